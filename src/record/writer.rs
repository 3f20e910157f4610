//! The thread that writes lines, and the queue in front of it: one order, but a lane's worth of room for each kind.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use foldhash::quality::RandomState;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::line::Line;
use super::settings::{LogAccess, LogFormat, LogOutput, LogOverflow, LogSettings};
use crate::metrics::{Fault, Metrics};
use egret_core::claim::network_of;

/// Bytes of lines that may wait in a lane: some seconds of a busy hop.
const LANE: usize = 16 << 20;
/// Of these, lines of one client that may wait where none may be lost: the others' connections must not wait for it.
const LANE_PER_CLIENT: usize = LANE / 4;
/// Bytes of one write.
const BATCH: usize = 64 << 10;
/// How long the writer lets lines gather: waking it for each would cost more than the line.
const GATHER: Duration = Duration::from_millis(2);
/// After a failed write, where no line may be lost.
const RETRY: Duration = Duration::from_secs(1);
/// How long a write may take, tries included, before the log counts as stopped.
const STOPPED: Duration = Duration::from_secs(10);
/// How long the last lines may take when egret ends.
const LAST_LINES: Duration = Duration::from_secs(5);

/// Hands lines to the writer. Never waits.
#[derive(Clone, Debug)]
pub struct LogSender {
    queue: Sender<Queued>,
    refused: Arc<Lane>,
    allowed: Arc<Lane>,
    /// Bytes on the way of each client, where none may be lost.
    of_clients: Arc<OfClients>,
    room: Arc<Notify>,
    access: LogAccess,
    overflow: LogOverflow,
    open: Option<Duration>,
    empty: bool,
    state: Arc<LogState>,
    /// The file is to be opened again.
    reopens: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

/// Whether lines are being written.
#[derive(Debug)]
pub struct LogState {
    overflow: LogOverflow,
    /// Since when the lines at hand wait for the output.
    since: Mutex<Option<Instant>>,
    /// The last write failed.
    has_failed: AtomicBool,
}

impl LogState {
    fn new(overflow: LogOverflow) -> Self {
        Self { overflow, since: Mutex::default(), has_failed: AtomicBool::new(false) }
    }

    /// Whether nothing can be served any more: lines do not get out, and none may be lost.
    #[must_use]
    pub fn stops_service(&self) -> bool {
        self.overflow == LogOverflow::Block && self.has_stopped()
    }

    /// Sets the fault in the metrics.
    pub fn count(&self, metrics: &Metrics) {
        metrics.fault(Fault::Log, self.has_failed.load(Ordering::Relaxed) || self.has_stopped());
    }

    fn has_stopped(&self) -> bool {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|since| since.elapsed() >= STOPPED)
    }

    fn begins(&self) {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
    }

    fn ends(&self, has_failed: bool) {
        self.has_failed.store(has_failed, Ordering::Relaxed);
        if !has_failed {
            *self.since.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// Room in the queue for one kind of line. A flood of the other leaves it free.
#[derive(Debug)]
struct Lane {
    name: &'static str,
    /// Bytes on the way.
    waiting: AtomicUsize,
}

/// Bytes on the way, by client; clients without any have no entry.
#[derive(Debug, Default)]
struct OfClients(Mutex<HashMap<IpAddr, usize, RandomState>>);

impl OfClients {
    fn of(&self, client: IpAddr) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&client).copied().unwrap_or(0)
    }

    fn add(&self, client: IpAddr, size: usize) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(client).or_default() += size;
    }

    fn take(&self, client: IpAddr, size: usize) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&client) {
            Some(waiting) if *waiting > size => *waiting -= size,
            _ => drop(all.remove(&client)),
        }
    }
}

/// What the writer is given.
#[derive(Debug)]
enum Queued {
    /// A line and the lane that it is counted in.
    Line(Arc<Lane>, Box<Line>),
    /// The file may be another one by now.
    Reopen,
}

/// The writing thread; ends when every [`LogSender`] is gone and the queue is empty.
#[derive(Debug)]
pub struct LogThread {
    ended: oneshot::Receiver<()>,
}

impl LogSender {
    /// Opens the output and starts the writer.
    ///
    /// # Errors
    /// The output's, where it cannot be opened.
    pub fn start(settings: &LogSettings, metrics: Arc<Metrics>) -> io::Result<(Self, LogThread)> {
        Self::write_to(opened(&settings.output)?, settings, metrics)
    }

    fn write_to(
        output: Box<dyn Write + Send>,
        settings: &LogSettings,
        metrics: Arc<Metrics>,
    ) -> io::Result<(Self, LogThread)> {
        let LogSettings { format, access, overflow, open, empty, .. } = *settings;
        // Made into text by the writer: no connection waits for that.
        let room = Arc::new(Notify::new());
        let (queue, lines) = crossbeam_channel::unbounded();
        let lane = |name| Arc::new(Lane { name, waiting: AtomicUsize::new(0) });
        let (end, ended) = oneshot::channel();
        let state = Arc::new(LogState::new(overflow));
        let of_clients = Arc::new(OfClients::default());
        let reopens = Arc::new(AtomicBool::new(false));
        let desk = LogWriter {
            reopens: Arc::clone(&reopens),
            state: Arc::clone(&state),
            of_clients: Arc::clone(&of_clients),
            lines,
            format,
            place: settings.output.clone(),
            output,
            batch: Vec::with_capacity(BATCH),
            held: Vec::new(),
            is_torn: false,
            room: Arc::clone(&room),
            overflow,
            metrics: Arc::clone(&metrics),
        };
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            desk.work();
            // A waiter that is gone already does not hear it.
            let _ = end.send(());
        })?;
        let (refused, allowed) = (lane("refused"), lane("allowed"));
        let sender =
            Self { queue, refused, allowed, of_clients, room, access, overflow, open, empty, state, reopens, metrics };
        Ok((sender, LogThread { ended }))
    }

    /// Whether lines get out.
    #[must_use]
    pub fn state(&self) -> Arc<LogState> {
        Arc::clone(&self.state)
    }

    /// Whether any line is written at all.
    pub(super) fn writes(&self) -> bool {
        self.access != LogAccess::None
    }

    /// Whether lines are written of what was allowed.
    pub(super) fn writes_allowed(&self) -> bool {
        self.access == LogAccess::All
    }

    /// Whether lines are written of connections without a byte.
    pub(super) fn writes_empty(&self) -> bool {
        self.empty
    }

    /// How long something is open before it has a line.
    pub(super) fn open(&self) -> Option<Duration> {
        self.open.filter(|_| self.writes_allowed())
    }

    /// Writes a line that no connection waits for, if there is room.
    pub(super) fn write_if_room(&self, line: Box<Line>) {
        let lane = if line.reason.is_some() { &self.refused } else { &self.allowed };
        if lane.waiting.load(Ordering::Relaxed) > LANE {
            return self.metrics.lines_lost(lane.name, 1);
        }
        self.write(line);
    }

    /// Writes the line of a connection that has not waited for the log, unless its client has too many on the way.
    pub(super) fn write_if_admissible(&self, line: Box<Line>) {
        if self.charged(&line).is_some_and(|client| self.of_clients.of(client) > LANE_PER_CLIENT) {
            return self.metrics.lines_lost(self.refused.name, 1);
        }
        self.write(line);
    }

    /// The client charged for a line, where none may be lost.
    fn charged(&self, line: &Line) -> Option<IpAddr> {
        charged(line, self.overflow)
    }

    pub(super) fn write(&self, line: Box<Line>) {
        let is_refusal = line.reason.is_some();
        let is_wanted = match self.access {
            LogAccess::All => true,
            LogAccess::Refused => is_refusal,
            LogAccess::None => false,
        };
        if !is_wanted {
            return;
        }
        let lane = if is_refusal { &self.refused } else { &self.allowed };
        let size = line.size();
        let waiting = lane.waiting.fetch_add(size, Ordering::Relaxed) + size;
        // Connections that were admitted may always write their last line: there are no more of them than slots.
        let fits = waiting <= LANE || self.overflow == LogOverflow::Block;
        if let Some(client) = self.charged(&line) {
            self.of_clients.add(client, size);
        }
        if !fits || self.queue.send(Queued::Line(Arc::clone(lane), line)).is_err() {
            lane.waiting.fetch_sub(size, Ordering::Relaxed);
            self.metrics.lines_lost(lane.name, 1);
        }
    }

    /// Has the file opened again, behind the lines that are on their way.
    pub(super) fn reopen(&self) {
        self.reopens.store(true, Ordering::Relaxed);
        // A writer that has ended writes nowhere.
        let _ = self.queue.send(Queued::Reopen);
    }

    /// Waits for the writer, where no line may be lost.
    pub(super) async fn room(&self) {
        self.room_while(|| {
            [&self.refused, &self.allowed].iter().any(|lane| lane.waiting.load(Ordering::Relaxed) > LANE)
        })
        .await;
    }

    /// Waits for the writer, where a client's lines on the way are as many as one client's may be, and none may be lost.
    pub(super) async fn room_for(&self, client: IpAddr) {
        let client = network_of(client);
        self.room_while(|| self.of_clients.of(client) > LANE_PER_CLIENT).await;
    }

    async fn room_while(&self, is_full: impl Fn() -> bool) {
        while self.overflow == LogOverflow::Block && is_full() {
            let mut notified = std::pin::pin!(self.room.notified());
            notified.as_mut().enable();
            if is_full() {
                notified.await;
            }
        }
    }
}

fn charged(line: &Line, overflow: LogOverflow) -> Option<IpAddr> {
    line.client.filter(|_| overflow == LogOverflow::Block).map(|client| network_of(client.ip()))
}

impl LogThread {
    /// Waits until every line is written, or a bounded time where the output takes none.
    pub async fn finish(self) {
        if tokio::time::timeout(LAST_LINES, self.ended).await.is_err() {
            tracing::error!("the access log's output takes no lines; its last ones are lost");
        }
    }
}

/// A line in the batch.
struct Held {
    client: Option<IpAddr>,
    lane: Arc<Lane>,
    /// As counted on the way.
    waiting: usize,
    bytes: usize,
}

/// The writer's side.
struct LogWriter {
    reopens: Arc<AtomicBool>,
    state: Arc<LogState>,
    of_clients: Arc<OfClients>,
    /// Bounded by the lanes.
    lines: Receiver<Queued>,
    format: LogFormat,
    place: LogOutput,
    output: Box<dyn Write + Send>,
    batch: Vec<u8>,
    /// The lines of the batch.
    held: Vec<Held>,
    /// The last line that was written lacks its end.
    is_torn: bool,
    room: Arc<Notify>,
    overflow: LogOverflow,
    metrics: Arc<Metrics>,
}

impl LogWriter {
    fn work(mut self) {
        while let Ok(line) = self.lines.recv() {
            self.take(line);
            pause(GATHER);
            while !self.batch.is_empty() {
                while self.batch.len() < BATCH
                    && let Ok(line) = self.lines.try_recv()
                {
                    self.take(line);
                }
                self.write();
                self.lines.try_recv().into_iter().for_each(|line| self.take(line));
            }
        }
    }

    fn take(&mut self, queued: Queued) {
        let (lane, line) = match queued {
            Queued::Line(lane, line) => (lane, line),
            Queued::Reopen => return self.reopen(),
        };
        // One that could not be finished must not spoil the next.
        let torn = std::mem::take(&mut self.is_torn);
        let begin = self.batch.len();
        self.batch.extend_from_slice(if torn { b"\n" } else { b"" });
        match self.format {
            LogFormat::Json => line.json(&mut self.batch),
            LogFormat::Text => line.text(&mut self.batch),
        }
        let client = charged(&line, self.overflow);
        self.held.push(Held { client, lane, waiting: line.size(), bytes: self.batch.len() - begin });
    }

    /// Goes on in a new file where the old one was moved away (logrotate(8)).
    fn reopen(&mut self) {
        if !self.batch.is_empty() {
            self.write();
        }
        if let Some(output) = opened_again(&self.reopens, &self.place) {
            self.output = output;
            self.is_torn = false;
        }
    }

    /// Writes the batch whole, or says that its lines are lost.
    fn write(&mut self) {
        let mut rest = self.batch.as_slice();
        let mut logged = false;
        self.state.begins();
        while !rest.is_empty() {
            match self.output.write(rest) {
                Ok(n) if n > 0 => rest = rest.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                failed => {
                    let error = failed.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                    if !std::mem::replace(&mut logged, true) {
                        tracing::error!(%error, "cannot write the access log");
                    }
                    self.state.ends(true);
                    if self.overflow == LogOverflow::Drop {
                        break;
                    }
                    pause(RETRY);
                    // The new file may be writable. A line that was begun in the old one begins again.
                    if let Some(output) = opened_again(&self.reopens, &self.place) {
                        self.output = output;
                        let written = self.batch.get(..self.batch.len() - rest.len()).unwrap_or_default();
                        let line = written.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
                        rest = self.batch.get(line..).unwrap_or_default();
                    }
                }
            }
        }
        if rest.is_empty() {
            self.state.ends(false);
        }
        let mut written = self.batch.len() - rest.len();
        self.is_torn =
            !rest.is_empty() && self.batch.get(..written).and_then(<[u8]>::last).is_some_and(|b| *b != b'\n');
        self.batch.clear();
        for Held { client, lane, waiting, bytes } in self.held.drain(..) {
            lane.waiting.fetch_sub(waiting, Ordering::Relaxed);
            if let Some(client) = client {
                self.of_clients.take(client, waiting);
            }
            match written.checked_sub(bytes) {
                Some(more) => written = more,
                None => {
                    written = 0;
                    self.metrics.lines_lost(lane.name, 1);
                }
            }
        }
        self.room.notify_waiters();
    }
}

/// The file as it is now, where it is to be opened again; `None` where what is open must do.
fn opened_again(wanted: &AtomicBool, place: &LogOutput) -> Option<Box<dyn Write + Send>> {
    let LogOutput::File(path) = place else { return None };
    if !wanted.swap(false, Ordering::Relaxed) {
        return None;
    }
    let opened = opened(place);
    match &opened {
        Ok(_) => tracing::info!(file = %path.display(), "the access log is open again"),
        Err(error) => {
            tracing::error!(file = %path.display(), %error, "cannot open the access log again: lines go on into the file that was open");
        }
    }
    opened.ok()
}

fn opened(place: &LogOutput) -> io::Result<Box<dyn Write + Send>> {
    Ok(match place {
        // Their own handles would keep a rest of what was written, and call it done.
        LogOutput::Stdout => Box::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
        LogOutput::Stderr => Box::new(File::from(io::stderr().as_fd().try_clone_to_owned()?)),
        LogOutput::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
    })
}

#[allow(clippy::disallowed_methods, reason = "the writer is a thread of its own, and no worker")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes more, and what is on it.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(usize, Vec<u8>)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            // Never all at once.
            let n = bytes.len().min(1000).min(disk.0);
            if n == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.0 -= n;
            disk.1.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start(overflow: LogOverflow) -> (Disk, LogSender, LogThread, Arc<Metrics>) {
        start_at(overflow, LogOutput::Stdout)
    }

    /// One that is opened again at a place.
    fn start_at(overflow: LogOverflow, output: LogOutput) -> (Disk, LogSender, LogThread, Arc<Metrics>) {
        let settings = LogSettings {
            format: LogFormat::Json,
            output,
            access: LogAccess::All,
            overflow,
            net_all: false,
            open: None,
            empty: false,
        };
        let (disk, metrics) = (Disk::default(), Arc::new(Metrics::default()));
        let (sender, writer) = LogSender::write_to(Box::new(disk.clone()), &settings, Arc::clone(&metrics)).unwrap();
        (disk, sender, writer, metrics)
    }

    /// About four kilobytes.
    fn line(reason: Option<&'static str>) -> Box<Line> {
        Box::new(Line { reason, name_raw: Some("x".repeat(4096).into()), ..Line::default() })
    }

    #[tokio::test]
    async fn where_no_line_may_be_lost_newcomers_wait() {
        let (disk, sender, writer, metrics) = start(LogOverflow::Block);
        let many = 2 * LANE / 4096;
        sender.room().await;
        (0..many).for_each(|_| sender.write(line(None)));
        let room = {
            let sender = sender.clone();
            tokio::spawn(async move { sender.room().await })
        };
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!room.is_finished(), "the disk is full");
        disk.0.lock().unwrap().0 = usize::MAX;
        room.await.unwrap();
        drop(sender);
        writer.finish().await;
        let written = disk.0.lock().unwrap().1.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(written, many, "every line, once");
        assert!(!metrics.page(0).contains("lines_lost_total{"));
    }

    #[tokio::test]
    async fn where_no_line_may_be_lost_a_client_waits_for_its_own_lines_alone() {
        let (disk, sender, writer, metrics) = start(LogOverflow::Block);
        let (noisy, quiet): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        for _ in 0..LANE_PER_CLIENT / 4096 + 2 {
            sender.write(Box::new(Line { client: Some((noisy, 1).into()), ..*line(Some("no_rule")) }));
        }
        let waits = {
            let sender = sender.clone();
            tokio::spawn(async move { sender.room_for(noisy).await })
        };
        sender.room_for(quiet).await;
        sender.room().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waits.is_finished(), "the disk is full, and these lines are its own");
        // Nor does it get any in by being refused before.
        let waiting = sender.refused.waiting.load(Ordering::Relaxed);
        sender.write_if_admissible(Box::new(Line { client: Some((noisy, 2).into()), ..*line(Some("no_rule")) }));
        assert_eq!(sender.refused.waiting.load(Ordering::Relaxed), waiting);
        sender.write_if_admissible(Box::new(Line { client: Some((quiet, 2).into()), ..*line(Some("no_rule")) }));
        assert!(sender.refused.waiting.load(Ordering::Relaxed) > waiting);
        disk.0.lock().unwrap().0 = usize::MAX;
        waits.await.unwrap();
        let of_clients = Arc::clone(&sender.of_clients);
        drop(sender);
        writer.finish().await;
        assert!(of_clients.0.lock().unwrap().is_empty(), "what is written counts no more");
        assert!(metrics.page(0).contains("lines_lost_total{lane=\"refused\"} 1\n"));
    }

    #[tokio::test]
    async fn a_file_that_is_opened_again_begins_with_a_whole_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (disk, sender, writer, metrics) = start_at(LogOverflow::Block, LogOutput::File(file.path().to_owned()));
        // Full in the second of three lines.
        disk.0.lock().unwrap().0 = 6000;
        (0..3).for_each(|_| sender.write(line(None)));
        while disk.0.lock().unwrap().0 > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sender.reopen();
        drop(sender);
        writer.finish().await;
        let whole = |text: &str| -> Vec<bool> {
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).collect()
        };
        assert_eq!(whole(&String::from_utf8_lossy(&disk.0.lock().unwrap().1)), [true, false]);
        assert_eq!(whole(&std::fs::read_to_string(file.path()).unwrap()), [true, true], "no line is lost");
        assert!(!metrics.page(0).contains("lines_lost_total{"));
    }

    #[tokio::test]
    async fn a_line_that_was_cut_spoils_no_other() {
        let (disk, sender, writer, metrics) = start(LogOverflow::Drop);
        disk.0.lock().unwrap().0 = 6000;
        (0..3).for_each(|_| sender.write(line(None)));
        let lost = || metrics.page(0).contains("egret_log_lines_lost_total{lane=\"allowed\"} 2\n");
        for _ in 0..1000 {
            if lost() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(lost(), "one was whole: {}", metrics.page(0));
        disk.0.lock().unwrap().0 = usize::MAX;
        sender.write(line(None));
        drop(sender);
        writer.finish().await;
        let text = String::from_utf8(disk.0.lock().unwrap().1.clone()).unwrap();
        let whole: Vec<bool> =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).collect();
        assert_eq!(whole, [true, false, true]);
    }

    #[tokio::test]
    #[allow(clippy::await_holding_lock, reason = "it is given back before")]
    async fn a_flood_of_allowed_lines_hides_no_refusal() {
        let (disk, sender, writer, metrics) = start(LogOverflow::Drop);
        // While the writer waits for more, nothing is taken out of the lanes but one line.
        let many = 2 * LANE / 4096;
        disk.0.lock().unwrap().0 = usize::MAX;
        let lock = disk.0.lock().unwrap();
        (0..many).for_each(|_| sender.write(line(None)));
        (0..10).for_each(|_| sender.write(line(Some("no_rule"))));
        drop((lock, sender));
        writer.finish().await;
        let disk = disk.0.lock().unwrap();
        let text = String::from_utf8_lossy(&disk.1);
        assert_eq!(text.lines().filter(|line| line.contains("no_rule")).count(), 10);
        let lost = many - text.lines().filter(|line| !line.contains("no_rule")).count();
        assert!(lost > many / 4, "{lost} of {many} lost");
        let page = metrics.page(0);
        assert!(page.contains(&format!("egret_log_lines_lost_total{{lane=\"allowed\"}} {lost}\n")), "{page}");
        assert!(!page.contains("lane=\"refused\""), "{page}");
    }
}
