//! One line for each connection, whatever happened to it.
//!
//! A [`Record`] is opened at accept and closed with an ending; dropped without one, it still writes its
//! line. Lines go through bounded lanes to a thread of their own: an open connection never waits for a disk.
//! What does not fit is counted, or new ones wait. Decides nothing.

mod events;
mod line;
mod meter;
pub mod settings;
mod text;
mod writer;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::metrics::Metrics;
use egret_core::answers::Answers;
use egret_core::claim::{Claim, ClientAddr, Identity, Target, Via};
use egret_core::name::{Host, HostName};
use egret_core::outcome::{Ending, Reason, Refusal, Stage, Totals};
use egret_core::policy::MatchedRule;
use egret_core::wire::Sighting;
use egret_core::wire::client_hello::{ClientHello, Sni};
use egret_core::wire::http::{HostField, RequestHead};
pub use events::{NetVerdict, QuestionName};
pub use line::Line;
use line::{Id, Stamp};
pub use meter::{Lasting, Meter, Way};
pub use text::escape;
use text::without_userinfo;
pub use writer::{LogSender, LogState, LogThread};

/// Entries of a list in one line; a peer chooses how many there are.
const MAX_LISTED: usize = 64;
/// The longest registered method has 17 letters.
const MAX_METHOD: usize = 32;

/// What every record needs.
#[derive(Debug)]
pub struct AccessLog {
    sender: LogSender,
    metrics: Arc<Metrics>,
    /// Tells the records of two runs apart.
    run: u32,
    next: AtomicU64,
}

impl AccessLog {
    #[must_use]
    pub fn new(sender: LogSender, metrics: Arc<Metrics>) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            sender,
            metrics,
            run: since.subsec_nanos() ^ std::process::id().rotate_left(16),
            next: AtomicU64::new(0),
        }
    }

    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Has the log's file opened again.
    pub fn reopen_log(&self) {
        self.sender.reopen();
    }

    /// Waits until the log takes lines again, where none may be lost.
    pub async fn room(&self) {
        self.sender.room().await;
    }

    /// Waits until the log takes this client's lines again, where none may be lost.
    pub async fn room_for(&self, client: IpAddr) {
        self.sender.room_for(client).await;
    }

    /// Opens the record of a connection.
    #[must_use]
    pub fn open(self: &Arc<Self>, listener: &Arc<str>, client: ClientAddr) -> Record {
        self.metrics.opened();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let line = || Line {
            ts: Stamp(SystemTime::now()),
            event: "tcp",
            id: Id { run: self.run, number },
            listener: Arc::clone(listener),
            client: Some(client.socket()),
            ..Line::default()
        };
        Record {
            line: self.sender.writes().then(|| Box::new(line())),
            is_dialled: false,
            is_admitted: false,
            begun: Instant::now(),
            meter: Arc::new(Meter::new(Some(Arc::clone(&self.metrics)))),
            opened: AtomicU32::new(0),
            access_log: Arc::clone(self),
            closed: false,
        }
    }
}

/// The listener that packets have which the kernel judged.
const KERNEL: &str = "netfilter";

impl AccessLog {
    /// Writes down what the kernel judged. No connection waits for such a line: it is written where there is room.
    ///
    /// `name` is what the destination stands for, where that is a synthetic address.
    pub fn net(
        &self,
        verdict: NetVerdict,
        client: SocketAddr,
        (dst, name): (SocketAddr, Option<HostName>),
        protocol: Option<&'static str>,
    ) {
        if !self.sender.writes() {
            return;
        }
        let mut line = self.net_line();
        line.client = Some(client);
        line.original_dst = Some(dst);
        line.name_source = name.as_ref().map(|_| source(Via::Steered));
        line.name = name.map(|name| name.as_str().into());
        line.port = Some(dst.port()).filter(|port| *port > 0);
        line.protocol = protocol;
        match verdict {
            NetVerdict::Refused(refusal) => {
                line.deny(&refusal);
                line.ending = Some(Ending::Refused.as_str());
                if refusal.reason == Reason::QuicDenied {
                    line.protocol = Some("quic");
                }
            }
            NetVerdict::Ended { rule, upstream, totals, duration, ending } => {
                line.verdict = Some("allow");
                line.rule = Some(rule);
                line.upstream = Some(upstream);
                (line.bytes_up, line.bytes_down) = (totals.up, totals.down);
                line.duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
                line.ts = Stamp(SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH));
                line.ending = Some(ending.as_str());
            }
        }
        self.sender.write_if_room(line);
    }

    /// Writes down a refused question; without a name, a refused message or connection that holds none. No client waits for
    /// such a line: it is written where there is room.
    pub fn dns(
        &self,
        listener: &Arc<str>,
        client: ClientAddr,
        name: Option<&QuestionName<'_>>,
        since: Instant,
        refusal: &Refusal,
    ) {
        self.metrics.refused(refusal.reason, refusal.stage);
        self.metrics.dns_refused();
        if !self.sender.writes() {
            return;
        }
        let duration = since.elapsed();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut line = Box::new(Line {
            ts: Stamp(SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH)),
            event: "dns",
            id: Id { run: self.run, number },
            listener: Arc::clone(listener),
            client: Some(client.socket()),
            protocol: Some("dns"),
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            ending: Some(Ending::Refused.as_str()),
            ..Line::default()
        });
        match name {
            Some(QuestionName::Name(name)) => {
                line.name = Some(name.as_str().into());
                line.name_source = Some("dns");
            }
            Some(QuestionName::Raw(raw)) => line.name_raw = Some(escape(raw).into()),
            None => {}
        }
        line.deny(refusal);
        self.sender.write_if_room(line);
    }

    /// Writes down how many refused packets have no line.
    pub fn net_left_out(&self, reason: Reason, count: u64) {
        if self.sender.writes() {
            let mut line = self.net_line();
            line.deny(&Refusal::new(reason, Stage::Network));
            line.left_out = Some(count);
            self.sender.write_if_room(line);
        }
    }

    fn net_line(&self) -> Box<Line> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (id, listener) = (Id { run: self.run, number }, Arc::from(KERNEL));
        Box::new(Line { ts: Stamp(SystemTime::now()), event: "net", id, listener, ..Line::default() })
    }
}

/// The record of one connection while it lives.
#[derive(Debug)]
pub struct Record {
    /// `None` where none will be written.
    line: Option<Box<Line>>,
    is_dialled: bool,
    /// Its line may wait for the writer, whatever else of its client does.
    is_admitted: bool,
    begun: Instant,
    meter: Arc<Meter>,
    /// Lines written while it is open.
    opened: AtomicU32,
    access_log: Arc<AccessLog>,
    closed: bool,
}

impl Record {
    /// Where the connection's bytes are counted.
    #[must_use]
    pub fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    fn note(&mut self, what: impl FnOnce(&mut Line)) {
        if let Some(line) = &mut self.line {
            what(line);
        }
    }

    /// Whatever comes, it was allowed: a line of no interest need not be kept for a tunnel's long life.
    pub fn allowed(&mut self) {
        if !self.access_log.sender.writes_allowed() {
            self.line = None;
        }
    }

    /// Whose connection it is, where that is not the peer.
    pub fn client(&mut self, client: ClientAddr) {
        self.note(|line| line.client = Some(client.socket()));
    }

    /// What the client has shown itself to be.
    pub fn identity(&mut self, identity: &Identity) {
        self.note(|line| {
            line.identity = identity.names().iter().take(MAX_LISTED).map(|name| escape(name.as_bytes())).collect();
        });
    }

    pub fn claim(&mut self, claim: &Claim) {
        self.note(|line| {
            line.port = Some(claim.port);
            match &claim.target {
                Target::Name(name) => {
                    line.name = Some(name.as_str().into());
                    line.name_source = Some(source(claim.via));
                }
                Target::Address(dst) => line.original_dst = Some(dst.0),
                Target::Unnamed => {}
            }
        });
    }

    /// A name that is none, as it came.
    pub fn raw_name(&mut self, raw: &[u8]) {
        self.note(|line| line.name_raw = Some(escape(without_userinfo(raw)).into()));
    }

    /// The name that the client asked for, as the line has it.
    #[must_use]
    pub fn name(&self) -> Option<Box<str>> {
        self.line.as_ref()?.name.clone()
    }

    pub fn sighting(&mut self, sighting: &Sighting) {
        self.note(|line| match sighting {
            Sighting::Tls(hello) => Self::hello(line, hello),
            Sighting::Http(head) => Self::request(line, head),
        });
    }

    fn hello(line: &mut Line, hello: &ClientHello) {
        line.protocol = Some("https");
        line.alpn = hello.alpn.iter().take(MAX_LISTED).map(|p| escape(p)).collect();
        line.tls = Some(hello.version_name());
        line.ja4 = Some(hello.ja4().into());
        line.ech = Some(hello.ech || hello.esni);
        match &hello.sni {
            Sni::Name(name) => match &line.name {
                Some(claimed) if **claimed == *name.as_str() => {}
                Some(_) => line.sni = Some(name.as_str().into()),
                None => {
                    line.name = Some(name.as_str().into());
                    line.name_source = Some("sni");
                }
            },
            Sni::Address(ip) => line.name_raw = Some(ip.to_string().into()),
            Sni::Malformed { raw, .. } => line.name_raw = Some(escape(raw).into()),
            // A claimed name stands alone: that is shown, whatever becomes of it.
            Sni::Absent if line.name.is_some() => line.sni = Some("".into()),
            Sni::Absent => {}
        }
    }

    fn request(line: &mut Line, head: &RequestHead) {
        line.protocol = Some("http");
        line.event = "http";
        line.method = Some(head.method.get(..MAX_METHOD).unwrap_or(&head.method).into());
        match (head.authority(), &head.host) {
            (Ok(authority), _) => match &authority.host {
                Host::Name(name) if line.name.is_none() => {
                    line.name = Some(name.as_str().into());
                    line.name_source = Some("host");
                }
                // Another host than the one asked for is what the refusal will be about.
                Host::Name(name) if line.name.as_deref() != Some(name.as_str()) => {
                    line.name_raw = Some(name.as_str().into());
                }
                Host::Name(_) => {}
                Host::Address(ip) => line.name_raw = Some(ip.to_string().into()),
            },
            (Err(_), HostField::Malformed { raw, .. }) => line.name_raw = Some(escape(without_userinfo(raw)).into()),
            (Err(_), _) => {}
        }
    }

    /// The bytes were not looked at: a network rule decided.
    pub fn straight(&mut self) {
        self.note(|line| line.protocol = Some("tcp"));
    }

    pub fn matched_rule(&mut self, because: &MatchedRule) {
        self.note(|line| {
            line.rule = Some(Arc::clone(&because.rule));
            line.pattern = because.pattern.as_deref().map(Into::into);
        });
    }

    pub fn answers(&mut self, answers: &Answers) {
        self.note(|line| {
            line.answers = answers.addresses.iter().take(MAX_LISTED).copied().collect();
            line.stale = answers.is_stale.then_some(true);
        });
    }

    /// The address that was dialled and answered.
    pub fn upstream(&mut self, address: SocketAddr) {
        if !std::mem::replace(&mut self.is_dialled, true) {
            self.access_log.metrics.allowed();
        }
        self.note(|line| line.upstream = Some(address));
    }

    /// The connection has waited for the log. Until then, where no line may be lost, a client with too many lines on the
    /// way has none more: it could open connections faster than they are refused.
    pub fn admitted(&mut self) {
        self.is_admitted = true;
    }

    /// The record is of a request, whatever its bytes turn out to be.
    pub fn of_request(&mut self) {
        self.is_admitted = true;
        self.note(|line| line.event = "http");
    }

    /// The status of an answer.
    pub fn status(&mut self, status: u16) {
        self.note(|line| line.status = Some(status));
    }

    /// Closes the record of a connection that was allowed.
    pub fn close(mut self, ending: Ending) {
        self.note(|line| line.verdict = Some("allow"));
        self.finish(ending);
    }

    /// Closes the record of a connection that was closed without a byte: a probe, and not a refusal.
    pub fn empty(mut self) {
        if !self.access_log.sender.writes_empty() {
            self.line = None;
        }
        self.access_log.metrics.empty();
        self.finish(Ending::Closed);
    }

    /// Closes the record of a connection that was refused.
    pub fn refuse(mut self, refusal: &Refusal) {
        self.denied(refusal);
        self.finish(Ending::Refused);
    }

    /// Closes the record of a connection whose memory another client needed.
    pub fn evict(self) {
        if self.is_dialled {
            return self.close(Ending::Failed);
        }
        self.refuse(&Refusal::new(Reason::TooManyConnections, Stage::Limit));
    }

    fn denied(&mut self, refusal: &Refusal) {
        self.note(|line| line.deny(refusal));
        self.access_log.metrics.refused(refusal.reason, refusal.stage);
    }

    fn finish(&mut self, ending: Ending) {
        let totals = self.meter.totals();
        self.closed = true;
        self.access_log.metrics.closed(ending);
        if let Some(mut line) = self.line.take() {
            self.sum_up(&mut line, totals, ending);
            if self.is_admitted {
                self.access_log.sender.write(line);
            } else {
                self.access_log.sender.write_if_admissible(line);
            }
        }
    }
}

impl Record {
    fn sum_up(&self, line: &mut Line, totals: Totals, ending: Ending) {
        (line.bytes_up, line.bytes_down) = (totals.up, totals.down);
        line.duration_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        line.ending = Some(ending.as_str());
    }
}

impl Lasting for Record {
    fn meter(&self) -> &Meter {
        &self.meter
    }

    /// A line after `log.open`, and another one each hour.
    fn report_due(&self) -> Option<Instant> {
        const AGAIN: Duration = Duration::from_secs(3600);
        let (line, first) = self.line.as_ref().zip(self.access_log.sender.open())?;
        loop {
            let written = self.opened.load(Ordering::Relaxed);
            let due = self.begun + first + AGAIN * written;
            if Instant::now() < due {
                return Some(due);
            }
            self.opened.store(written + 1, Ordering::Relaxed);
            let mut line = line.clone();
            line.verdict = Some("allow");
            self.sum_up(&mut line, self.meter.totals(), Ending::Open);
            self.access_log.sender.write_if_room(line);
        }
    }
}

impl Drop for Record {
    /// A session that was cut (the end of a drain) or lost still has its line.
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        if std::thread::panicking() {
            self.denied(&Refusal::new(Reason::Internal, Stage::Relay));
            return self.finish(Ending::Failed);
        }
        if self.is_dialled {
            self.note(|line| line.verdict = Some("allow"));
            return self.finish(Ending::Drained);
        }
        self.denied(&Refusal::new(Reason::Draining, Stage::Limit));
        self.finish(Ending::Refused);
    }
}

const fn source(via: Via) -> &'static str {
    match via {
        Via::Connect => "connect",
        Via::Socks => "socks",
        Via::Absolute => "host",
        Via::Intercepted => "sni",
        Via::Steered => "dns",
    }
}
