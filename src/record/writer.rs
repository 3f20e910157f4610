//! The thread that writes lines, and the queue in front of it.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::Line;
use crate::config::{LogFormat, LogOutput, LogSettings};
use crate::metrics::Metrics;

/// Lines that may wait for the disk: some seconds of a busy hop, some ten megabytes.
const QUEUE: usize = 16_384;

/// Hands lines to the writer. Never waits.
#[derive(Clone, Debug)]
pub struct Scribe {
    queue: Sender<Vec<u8>>,
    format: LogFormat,
    metrics: Arc<Metrics>,
}

/// The writing thread; ends when every [`Scribe`] is gone and the queue is empty.
#[derive(Debug)]
pub struct LogWriter(JoinHandle<()>);

impl Scribe {
    /// Opens the output and starts the writer.
    ///
    /// # Errors
    /// The output's, where it cannot be opened.
    pub fn start(settings: &LogSettings, metrics: Arc<Metrics>) -> io::Result<(Self, LogWriter)> {
        let output: Box<dyn Write + Send> = match &settings.output {
            LogOutput::Stdout => Box::new(io::stdout()),
            LogOutput::Stderr => Box::new(io::stderr()),
            LogOutput::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
        };
        let (queue, lines) = crossbeam_channel::bounded(QUEUE);
        let losses = Arc::clone(&metrics);
        let thread =
            std::thread::Builder::new().name("access-log".into()).spawn(move || write_all(&lines, output, &losses))?;
        Ok((Self { queue, format: settings.format, metrics }, LogWriter(thread)))
    }

    pub(super) fn write(&self, line: &Line) {
        let bytes = match self.format {
            LogFormat::Json => line.json(),
            LogFormat::Text => line.text(),
        };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.queue.try_send(bytes) {
            self.metrics.line_lost();
        }
    }
}

impl LogWriter {
    /// Waits until every line is written.
    pub fn finish(self) {
        // A writer that panicked has nothing more to write.
        let _ = self.0.join();
    }
}

fn write_all(lines: &Receiver<Vec<u8>>, output: Box<dyn Write + Send>, losses: &Metrics) {
    let mut output = BufWriter::with_capacity(64 << 10, output);
    while let Ok(first) = lines.recv() {
        let mut count = 1;
        let mut result = output.write_all(&first);
        // What is waiting already goes out in one write.
        while let (Ok(()), Ok(line)) = (&result, lines.try_recv()) {
            count += 1;
            result = output.write_all(&line);
        }
        if let Err(error) = result.and_then(|()| output.flush()) {
            // The place where lines go is gone or full; egret goes on, and the loss is counted.
            (0..count).for_each(|_| losses.line_lost());
            tracing::error!(%error, "cannot write the access log");
        }
    }
}
