//! The thread that writes lines, and the queue in front of it.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::oneshot;

use super::Line;
use crate::config::{LogAccess, LogFormat, LogOutput, LogSettings};
use crate::metrics::Metrics;

/// Bytes of lines that may wait for the disk: some seconds of a busy hop.
const QUEUE: usize = 16 << 20;
/// How long the last lines may take when egret ends.
const LAST_LINES: Duration = Duration::from_secs(5);

/// Hands lines to the writer. Never waits.
#[derive(Clone, Debug)]
pub struct Scribe {
    queue: Sender<Vec<u8>>,
    /// Bytes in the queue.
    waiting: Arc<AtomicUsize>,
    format: LogFormat,
    access: LogAccess,
    metrics: Arc<Metrics>,
}

/// The writing thread; ends when every [`Scribe`] is gone and the queue is empty.
#[derive(Debug)]
pub struct LogWriter {
    ended: oneshot::Receiver<()>,
}

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
        let (queue, lines) = crossbeam_channel::unbounded();
        let waiting = Arc::new(AtomicUsize::new(0));
        let (end, ended) = oneshot::channel();
        let desk = Desk { lines, waiting: Arc::clone(&waiting), losses: Arc::clone(&metrics) };
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            desk.write_all(output);
            // Whoever waits has gone already, or hears it.
            let _ = end.send(());
        })?;
        Ok((Self { queue, waiting, format: settings.format, access: settings.access, metrics }, LogWriter { ended }))
    }

    pub(super) fn write(&self, line: &Line) {
        let is_wanted = match self.access {
            LogAccess::All => true,
            LogAccess::Refused => line.reason.is_some(),
            LogAccess::None => false,
        };
        if !is_wanted {
            return;
        }
        let bytes = match self.format {
            LogFormat::Json => line.json(),
            LogFormat::Text => line.text(),
        };
        let size = bytes.len();
        if self.waiting.fetch_add(size, Ordering::Relaxed) + size > QUEUE || self.queue.send(bytes).is_err() {
            self.waiting.fetch_sub(size, Ordering::Relaxed);
            self.metrics.line_lost();
        }
    }
}

impl LogWriter {
    /// Waits until every line is written, or a bounded time where nobody reads them.
    pub async fn finish(self) {
        if tokio::time::timeout(LAST_LINES, self.ended).await.is_err() {
            tracing::error!("nobody reads the access log; its last lines are lost");
        }
    }
}

/// The writer's side.
struct Desk {
    /// Bounded by `waiting`.
    lines: Receiver<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
    losses: Arc<Metrics>,
}

impl Desk {
    fn write_all(&self, output: Box<dyn Write + Send>) {
        let mut output = BufWriter::with_capacity(64 << 10, output);
        while let Ok(first) = self.lines.recv() {
            let mut count = 1;
            let mut result = self.write(&mut output, &first);
            // What is waiting already goes out in one write.
            while let (Ok(()), Ok(line)) = (&result, self.lines.try_recv()) {
                count += 1;
                result = self.write(&mut output, &line);
            }
            if let Err(error) = result.and_then(|()| output.flush()) {
                // The place where lines go is gone or full; egret goes on, and the loss is counted.
                (0..count).for_each(|_| self.losses.line_lost());
                tracing::error!(%error, "cannot write the access log");
            }
        }
    }

    fn write(&self, output: &mut impl Write, line: &[u8]) -> io::Result<()> {
        let result = output.write_all(line);
        self.waiting.fetch_sub(line.len(), Ordering::Relaxed);
        result
    }
}
