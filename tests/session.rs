//! Connections over loopback pairs, in this process: what becomes of a client that is refused, of one that stalls, of a
//! tunnel whose upstream resets, and of one whose policy changes.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that is wrong about its world should fail there"
)]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use egret::budget::Budget;
use egret::config::Settings;
use egret::dns::{DnsLimits, Resolver};
use egret::drain::Drain;
use egret::metrics::Metrics;
use egret::proxy::listen::{ConnectionLimit, Listener};
use egret::proxy::services::{Current, Services};
use egret::proxy::session::{self, Arrival};
use egret::record::{AccessLog, LogSender, LogThread};
use egret_core::claim::ClientAddr;
use egret_core::learned::Learned;
use egret_core::policy::Policy;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// All that a session needs, and no process.
struct Loopback {
    services: Arc<Services>,
    listener: Arc<Listener>,
    drain: Drain,
    writer: LogThread,
    folder: tempfile::TempDir,
}

impl Loopback {
    /// Rules as they stand in a configuration, and limits.
    fn new(rules: &str, limits: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("access.json");
        let text = format!(
            "listeners: [{{ kind: forward, bind: \"127.0.0.1:1\" }}]\ndns: {{ upstreams: [\"127.0.0.1:1\"] }}\n\
             log: {{ output: \"{}\" }}\nlimits: {{ {limits} }}\npolicy: {{ network_rules: [{rules}] }}\n",
            log.display()
        );
        let mut settings = Settings::parse(&text, "test", Path::new(".")).unwrap();
        let (metrics, limits) = (Arc::new(Metrics::default()), settings.limits);
        let dns_limits = DnsLimits { deadline: limits.dns, lookups: 8, cache: limits.dns_cache };
        let dns = Resolver::new(settings.dns.clone(), dns_limits, Arc::clone(&metrics)).unwrap();
        let (sender, writer) = LogSender::start(&settings.log, Arc::clone(&metrics)).unwrap();
        let services = Arc::new(Services {
            policy: Current::new(Policy::of(std::mem::take(&mut settings.rules), Arc::default())),
            dns: Arc::new(dns),
            limits,
            peek_memory: Budget::new(1 << 20),
            connections: ConnectionLimit::new(16, limits.connections_per_client),
            parallel_dials: Budget::new(8),
            access_log: Arc::new(AccessLog::new(sender, metrics)),
            sources: Vec::new(),
            learned: Arc::new(Learned::new(settings.learn.remember)),
            steering: None,
            table: None,
            own_dials: None,
        });
        let listener = Arc::new(Listener::new(&settings.listeners[0], None));
        Self { services, listener, drain: Drain::new(), writer, folder }
    }

    /// A client whose connection has just been accepted.
    async fn client(&self) -> TcpStream {
        let (client, stream) = pair().await;
        let peer = client.local_addr().unwrap();
        let slot = self.listener.admit(&self.services.connections, peer);
        let arrival = Arrival { stream, peer: ClientAddr(peer), listener: Arc::clone(&self.listener), slot };
        tokio::spawn(session::serve(arrival, Arc::clone(&self.services), self.drain.guard()));
        client
    }

    /// A client that egret has let through to an address.
    async fn tunnel(&self, to: SocketAddr) -> TcpStream {
        let mut client = self.client().await;
        client.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await.unwrap();
        let mut head = [0; 39];
        client.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 Connection established\r\n\r\n");
        client
    }

    /// The lines of the access log, once all is over.
    async fn lines(self) -> Vec<Value> {
        self.drain.stop(Duration::from_secs(5), std::future::pending()).await;
        drop(self.services);
        self.writer.finish().await;
        let text = std::fs::read_to_string(self.folder.path().join("access.json")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// An origin, and the rule that opens it.
async fn origin() -> (TcpListener, SocketAddr, String) {
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = origin.local_addr().unwrap();
    let rule = format!("{{ name: origin, destinations: [127.0.0.1/32], protocols: [\"tcp:{}\"] }}", at.port());
    (origin, at, rule)
}

async fn rest_of(mut client: TcpStream) -> Result<String, ErrorKind> {
    let mut text = String::new();
    client.read_to_string(&mut text).await.map(|_| text).map_err(|error| error.kind())
}

#[tokio::test]
async fn a_refusal_is_spoken_and_recorded() {
    let egret = Loopback::new("", "");
    let mut client = egret.client().await;
    client.write_all(b"CONNECT not-listed.test:443 HTTP/1.1\r\nHost: not-listed.test:443\r\n\r\n").await.unwrap();
    let said = rest_of(client).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 403 ") && said.contains("no_rule"), "{said}");
    let lines = egret.lines().await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((&lines[0]["verdict"], &lines[0]["reason"]), (&"deny".into(), &"no_rule".into()));
    assert_eq!(lines[0]["name"], "not-listed.test");
}

#[tokio::test]
async fn a_client_that_stalls_is_refused_when_its_time_is_over() {
    let egret = Loopback::new("", "peek: 20ms");
    let mut client = egret.client().await;
    client.write_all(b"CONNECT a.te").await.unwrap();
    let _ = rest_of(client).await;
    let lines = egret.lines().await;
    assert_eq!((&lines[0]["reason"], &lines[0]["stage"]), (&"peek_timeout".into(), &"claim".into()));
}

#[tokio::test]
async fn a_reset_reaches_the_other_side_behind_what_came_before_it() {
    let (origin, at, rule) = origin().await;
    let egret = Loopback::new(&rule, "");
    let mut client = egret.tunnel(at).await;
    let (mut upstream, _) = origin.accept().await.unwrap();
    upstream.write_all(b"half a file").await.unwrap();
    let mut got = [0; 11];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"half a file");
    upstream.set_zero_linger().unwrap();
    drop(upstream);
    assert_eq!(rest_of(client).await, Err(ErrorKind::ConnectionReset), "not the end of a whole file");
    let lines = egret.lines().await;
    assert_eq!((&lines[0]["verdict"], &lines[0]["ending"]), (&"allow".into(), &"upstream_reset".into()));
    assert_eq!((&lines[0]["rule"], &lines[0]["bytes_down"]), (&"origin".into(), &11.into()));
}

#[tokio::test]
async fn a_reload_ends_what_the_new_policy_does_not_permit_and_nothing_else() {
    let ((first, first_at, first_rule), (second, second_at, second_rule)) = (origin().await, origin().await);
    let egret = Loopback::new(&format!("{first_rule}, {}", second_rule.replace("origin", "other")), "");
    let (client, mut other) = (egret.tunnel(first_at).await, egret.tunnel(second_at).await);
    let (_first, mut second) = (first.accept().await.unwrap(), second.accept().await.unwrap().0);
    let text = format!(
        "listeners: [{{ kind: forward, bind: \"127.0.0.1:1\" }}]\npolicy: {{ network_rules: [{second_rule}] }}\n"
    );
    let rules = Settings::parse(&text, "test", Path::new(".")).unwrap().rules;
    egret.services.policy.replace(Arc::new(Policy::of(rules, Arc::default())));
    egret.drain.reauthorizer().ask();
    assert_eq!(rest_of(client).await, Err(ErrorKind::ConnectionReset));
    other.write_all(b"still").await.unwrap();
    let mut got = [0; 5];
    second.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still");
    drop((other, second));
    let lines = egret.lines().await;
    let ending = |rule: &str| lines.iter().find(|line| line["rule"] == rule).unwrap()["ending"].clone();
    assert_eq!((ending("origin"), ending("other")), ("revoked".into(), "closed".into()));
}
