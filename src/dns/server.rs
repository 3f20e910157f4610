//! One server: how it wants to be asked, and whether it answers.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_net::NetError;
use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::xfer::{DnsHandle, FirstAnswer};
use hickory_proto::op::{DnsRequestOptions, DnsResponse, Query};
use hickory_proto::rr::Name;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use tokio::time::{Instant, timeout_at};

use super::sent::SentQuestions;
use super::settings::{DnsTransport, DnsUpstream};
use super::trouble::Trouble;
use super::udp::{self, Heard, Manner};

type Pool = NameServerPool<TokioRuntimeProvider>;

/// How long before the end the wait for a better answer over UDP than an ill one ends: later nothing would hear of it.
const LAST_WORD: Duration = Duration::from_millis(50);
/// How long a server's dialect is remembered, then it is tried again.
const REMEMBERED: Duration = Duration::from_secs(600);
/// A server changes the case of questions when so many different ones came back changed: one packet may be forged.
const CHANGED_QUESTIONS: usize = 3;
/// How often a server that does not answer is asked again, on behalf of no request.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How long it has for that: less than until the next time. It is sent again each second, so that a server's return is
/// known within one.
const PROBE_TIME: Duration = Duration::from_millis(4900);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) query: Query,
    /// With signatures (DO, RFC 4035 §3.2.1).
    pub(super) is_signed: bool,
}

impl From<Query> for Asked {
    fn from(query: Query) -> Self {
        Self { query, is_signed: false }
    }
}

pub(super) struct Server {
    name: String,
    /// Asked over UDP first, and over TCP where the answer was cut; `None` for encrypted servers.
    udp: Option<SocketAddr>,
    pool: Pool,
    /// What the configuration permits.
    manner: Manner,
    sent: Arc<SentQuestions>,
    known: Mutex<Known>,
}

/// What has been found out about it.
#[derive(Default)]
struct Known {
    /// It wants no OPT record, until then.
    no_edns: Option<Instant>,
    /// It changes the letter case of questions, until then.
    lowers: Option<Instant>,
    /// Different questions that came back changed.
    changed: Vec<Name>,
    /// When it was heard of last, whatever it said.
    heard: Option<Instant>,
    /// The last question that it answered.
    answered: Option<Asked>,
    is_failing: bool,
    /// It is being asked on behalf of no request.
    is_probed: bool,
}

impl Server {
    pub(super) fn new(
        upstream: &DnsUpstream,
        manner: Manner,
        sent: Arc<SentQuestions>,
        tls: &rustls::ClientConfig,
        deadline: Duration,
    ) -> Arc<Self> {
        let is_plain = upstream.transport == DnsTransport::Plain;
        Arc::new(Self {
            name: upstream.to_string(),
            udp: is_plain.then(|| SocketAddr::new(upstream.ip, upstream.port)),
            pool: pool(upstream, tls, deadline),
            manner,
            sent,
            known: Mutex::default(),
        })
    }

    /// Where it is asked over UDP; `None`: it is not.
    pub(super) const fn address(&self) -> Option<SocketAddr> {
        self.udp
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it was silent when it was asked last. It is asked again by itself, and no request needs to wait for it.
    pub(super) fn is_failing(&self) -> bool {
        self.known().is_failing
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks it as it wants to be asked.
    pub(super) async fn ask(self: Arc<Self>, asked: Asked, until: Instant) -> Result<DnsResponse, Trouble> {
        let begun = Instant::now();
        let until = last_word(until);
        let outcome = match self.udp {
            Some(address) => self.by_udp(address, &asked, until).await,
            None => self.by_pool(&asked, until).await,
        };
        self.note(asked, begun, &outcome);
        outcome
    }

    async fn by_udp(&self, address: SocketAddr, asked: &Asked, until: Instant) -> Result<DnsResponse, Trouble> {
        let manner = self.manner_now(asked);
        match udp::ask(address, &asked.query, manner, &self.sent, until).await? {
            Heard::Answer { response, dislikes_edns } => {
                if dislikes_edns {
                    self.remember_no_edns();
                }
                if manner.mixes_case {
                    self.known().changed.clear();
                }
                Ok(response)
            }
            Heard::Cut => self.by_pool(asked, until).await.map_err(|trouble| match trouble {
                Trouble::Silent | Trouble::Unreachable(_) => Trouble::CutShort(trouble.to_string()),
                other => other,
            }),
            Heard::OtherCase => {
                let answer = match self.by_pool(asked, halfway(until)).await {
                    Err(trouble) if trouble.is_silence() => self.in_lower_case(address, asked, until).await,
                    answer => answer,
                };
                if answer.as_ref().err().is_none_or(Trouble::is_absence) {
                    self.remember_changed(&asked.query.name);
                }
                answer
            }
        }
    }

    /// A new port for a question that is easier to forge.
    async fn in_lower_case(&self, address: SocketAddr, asked: &Asked, until: Instant) -> Result<DnsResponse, Trouble> {
        let manner = Manner { mixes_case: false, ..self.manner_now(asked) };
        match udp::ask(address, &asked.query, manner, &self.sent, until).await {
            Ok(Heard::Answer { response, .. }) => Ok(response),
            Err(trouble) if trouble.is_absence() => Err(trouble),
            Ok(Heard::Cut | Heard::OtherCase) | Err(_) => Err(Trouble::OtherCase),
        }
    }

    async fn by_pool(&self, asked: &Asked, until: Instant) -> Result<DnsResponse, Trouble> {
        let mut options = DnsRequestOptions::default();
        options.use_edns = self.manner_now(asked).edns;
        options.edns_set_dnssec_ok = asked.is_signed;
        let ask = async |options| {
            let answer = self.pool.lookup(asked.query.clone(), options).first_answer();
            timeout_at(until, answer).await.unwrap_or(Err(NetError::Timeout)).map_err(Trouble::from)
        };
        match ask(options).await {
            Err(Trouble::Code(code)) if options.use_edns && udp::is_for_edns(code) => {
                options.use_edns = false;
                let answer = ask(options).await;
                if answer.as_ref().err().is_none_or(Trouble::is_absence) {
                    self.remember_no_edns();
                }
                answer
            }
            answer => answer,
        }
    }

    fn manner_now(&self, asked: &Asked) -> Manner {
        let (known, now) = (self.known(), Instant::now());
        let is_over = |until: Option<Instant>| until.is_none_or(|until| until <= now);
        Manner {
            edns: self.manner.edns && is_over(known.no_edns),
            mixes_case: self.manner.mixes_case && is_over(known.lowers),
            is_signed: asked.is_signed,
        }
    }

    fn remember_no_edns(&self) {
        self.known().no_edns = Some(Instant::now() + REMEMBERED);
        tracing::info!(server = self.name, "does not accept EDNS; queried without it for ten minutes");
    }

    fn remember_changed(&self, question: &Name) {
        let mut known = self.known();
        if !known.changed.contains(question) {
            known.changed.push(question.clone());
        }
        if known.changed.len() >= CHANGED_QUESTIONS {
            known.changed.clear();
            known.lowers = Some(Instant::now() + REMEMBERED);
            drop(known);
            tracing::warn!(
                server = self.name,
                "changes the letter case of questions; queried in lower case for ten minutes, which is easier to forge (`dns.randomize_case: false` makes that permanent)"
            );
        }
    }

    /// Remembers whether it answers, and sees to it that a silent one is asked again.
    fn note(self: &Arc<Self>, asked: Asked, begun: Instant, outcome: &Result<DnsResponse, Trouble>) {
        let mut known = self.known();
        match outcome {
            Err(Trouble::Local(_)) => {}
            Err(trouble) if trouble.is_silence() => {
                let is_slow = known.heard.is_some_and(|heard| heard >= begun);
                if is_slow || std::mem::replace(&mut known.is_failing, true) {
                    return;
                }
                let again = known.answered.clone().unwrap_or(asked);
                drop(known);
                tracing::warn!("DNS server {} {trouble}; probing every five seconds", self.name);
                self.probe(again);
            }
            _ => {
                known.heard = Some(Instant::now());
                if outcome.is_ok() {
                    known.answered = Some(asked);
                }
                if std::mem::replace(&mut known.is_failing, false) {
                    drop(known);
                    tracing::info!("DNS server {} answers again", self.name);
                }
            }
        }
    }

    /// Asks it at once, and while it is silent every five seconds, on behalf of no request.
    pub(super) fn probe(self: &Arc<Self>, asked: Asked) {
        if std::mem::replace(&mut self.known().is_probed, true) {
            return;
        }
        let server = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(PROBE_EVERY);
            let mut is_again = false;
            loop {
                ticks.tick().await;
                let Some(server) = server.upgrade() else { return };
                // Boxed: asking ends in probing.
                // A question that it answered before, if any: this one may be what it cannot answer.
                let answered = server.known().answered.clone().filter(|_| is_again);
                let asked = answered.unwrap_or_else(|| asked.clone());
                is_again = true;
                let asking: Pin<Box<dyn Future<Output = _> + Send>> =
                    Box::pin(Arc::clone(&server).ask(asked, Instant::now() + PROBE_TIME));
                let _ = asking.await;
                let mut known = server.known();
                if !known.is_failing {
                    known.is_probed = false;
                    return;
                }
            }
        });
    }
}

fn last_word(until: Instant) -> Instant {
    let left = until.saturating_duration_since(Instant::now());
    until - LAST_WORD.min(left / 4)
}

fn halfway(until: Instant) -> Instant {
    let now = Instant::now();
    now + until.saturating_duration_since(now) / 2
}

fn pool(server: &DnsUpstream, tls: &rustls::ClientConfig, deadline: Duration) -> Pool {
    let mut options = ResolverOpts::default();
    options.timeout = deadline;
    let mut connections = match &server.transport {
        DnsTransport::Plain => vec![ConnectionConfig::tcp()],
        DnsTransport::Tls { name } => vec![ConnectionConfig::tls(Arc::clone(name))],
        DnsTransport::Https { name, path } => {
            vec![ConnectionConfig::https(Arc::clone(name), Some(Arc::clone(path)))]
        }
    };
    for connection in &mut connections {
        connection.port = server.port;
    }
    let server = NameServerConfig::new(server.ip, true, connections);
    let mut config = TlsConfig::new().unwrap_or_else(|_| unreachable!("the roots are built in"));
    config.config = tls.clone();
    let context = Arc::new(PoolContext::new(options, config));
    NameServerPool::from_config([server], context, TokioRuntimeProvider::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Message, ResponseCode};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{RData, Record, RecordType};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpSocket, UdpSocket};

    /// What a test's server was asked: over what, with EDNS or without, and in which case.
    type Seen = Arc<Mutex<Vec<(&'static str, bool, String)>>>;

    fn answer(question: &Message) -> Message {
        let mut answer = question.clone().into_response();
        let name = question.queries[0].name.clone();
        answer.add_answer(Record::from_rdata(name, 60, RData::A(A([192, 0, 2, 1].into()))));
        answer
    }

    /// A server on loopback that answers over UDP as `says`, and over TCP as it should, if it is open.
    async fn server(says: fn(&Message) -> Option<Message>, has_tcp: bool) -> (Arc<Server>, Seen) {
        let (udp, tcp) = loop {
            // A port that is free for both. Bound and no more, TCP is closed.
            let tcp = TcpSocket::new_v4().unwrap();
            tcp.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let asked = Seen::default();
        let note = |asked: &Seen, over, question: &Message| {
            let name = question.queries[0].name.to_ascii();
            asked.lock().unwrap().push((over, question.edns.is_some(), name));
        };
        if has_tcp {
            let listener = tcp.listen(9).unwrap();
            let asked = Arc::clone(&asked);
            tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let asked = Arc::clone(&asked);
                    tokio::spawn(async move {
                        while let Ok(len) = stream.read_u16().await {
                            let mut bytes = vec![0; usize::from(len)];
                            stream.read_exact(&mut bytes).await.unwrap();
                            let question = Message::from_vec(&bytes).unwrap();
                            note(&asked, "tcp", &question);
                            let bytes = answer(&question).to_vec().unwrap();
                            stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
                            stream.write_all(&bytes).await.unwrap();
                        }
                    });
                }
            });
        } else {
            tokio::spawn(async move {
                let _closed = tcp;
                std::future::pending::<()>().await;
            });
        }
        let seen = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (n, from) = udp.recv_from(&mut buffer).await.unwrap();
                let question = Message::from_vec(&buffer[..n]).unwrap();
                note(&seen, "udp", &question);
                if let Some(answer) = says(&question) {
                    udp.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
                }
            }
        });
        let upstream = DnsUpstream { ip: address.ip(), port: address.port(), transport: DnsTransport::Plain };
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let manner = Manner { edns: true, mixes_case: true, is_signed: false };
        (Server::new(&upstream, manner, Arc::default(), &tls, Duration::from_secs(3)), asked)
    }

    async fn ask(server: &Arc<Server>, name: &str) -> Result<String, Trouble> {
        let query = Query::query(Name::from_ascii(name).unwrap(), RecordType::A);
        let until = Instant::now() + Duration::from_millis(1500);
        Arc::clone(server).ask(query.into(), until).await.map(|response| response.answers[0].data.to_string())
    }

    fn taken(asked: &Seen) -> Vec<(&'static str, bool, String)> {
        std::mem::take(&mut asked.lock().unwrap())
    }

    const NAMES: [&str; 4] =
        ["one-long-name.example.", "two-long-names.example.", "three-long.example.", "four-longer.example."];

    #[tokio::test]
    async fn that_a_server_knows_no_edns_is_remembered() {
        let (server, asked) = server(
            |question| {
                let mut no = question.clone().into_response();
                (no.metadata.response_code, no.edns) = (ResponseCode::FormErr, None);
                Some(if question.edns.is_none() { answer(question) } else { no })
            },
            false,
        )
        .await;
        ask(&server, NAMES[0]).await.unwrap();
        assert_eq!(taken(&asked).iter().map(|(_, edns, _)| *edns).collect::<Vec<_>>(), [true, false]);
        ask(&server, NAMES[1]).await.unwrap();
        assert_eq!(taken(&asked).iter().map(|(_, edns, _)| *edns).collect::<Vec<_>>(), [false]);
    }

    #[tokio::test]
    async fn a_server_that_changes_case_is_believed_over_tcp_and_known_after_three_questions() {
        let lowers = |question: &Message| {
            let mut lower = answer(question);
            lower.queries[0].name = lower.queries[0].name.to_lowercase();
            Some(lower)
        };
        let (server, asked) = server(lowers, true).await;
        for n in [0, 0, 0, 1, 2] {
            assert_eq!(ask(&server, NAMES[n]).await.unwrap(), "192.0.2.1");
            let asked = taken(&asked);
            assert_eq!(asked.iter().map(|(over, ..)| *over).collect::<Vec<_>>(), ["udp", "tcp"], "{n}");
            assert_ne!(asked[0].2, asked[0].2.to_lowercase(), "in random case, however often the same one changed");
        }
        assert_eq!(ask(&server, NAMES[3]).await.unwrap(), "192.0.2.1");
        assert_eq!(taken(&asked), [("udp", true, NAMES[3].to_owned())]);
    }

    #[tokio::test]
    async fn without_tcp_the_last_resort_is_lower_case() {
        let lowers = |question: &Message| {
            let mut lower = answer(question);
            lower.queries[0].name = lower.queries[0].name.to_lowercase();
            Some(lower)
        };
        let (lowering, asked) = server(lowers, false).await;
        assert_eq!(ask(&lowering, NAMES[0]).await.unwrap(), "192.0.2.1");
        let all = taken(&asked);
        assert!(all.len() == 2 && all[1].2 == NAMES[0], "{all:?}");
        let uppers = |question: &Message| {
            let mut upper = answer(question);
            upper.queries[0].name = Name::from_ascii(upper.queries[0].name.to_ascii().to_uppercase()).unwrap();
            Some(upper)
        };
        let (uppering, _) = server(uppers, false).await;
        assert_eq!(ask(&uppering, NAMES[0]).await.unwrap_err(), Trouble::OtherCase);
    }

    #[tokio::test]
    async fn one_forged_packet_changes_nothing() {
        // It comes before the right answer, each time.
        let (server, asked) = server(|question| Some(answer(question)), true).await;
        for name in NAMES {
            server.remember_changed(&Name::from_ascii(NAMES[0]).unwrap());
            ask(&server, name).await.unwrap();
            let asked = taken(&asked);
            assert!(asked.len() == 1 && asked[0].2 != name, "{asked:?}");
        }
    }

    #[tokio::test]
    async fn a_cut_answer_without_tcp_has_words_of_its_own() {
        let cuts = |question: &Message| {
            let mut cut = question.clone().into_response();
            cut.metadata.truncation = true;
            Some(cut)
        };
        let (with, _) = server(cuts, true).await;
        assert_eq!(ask(&with, NAMES[0]).await.unwrap(), "192.0.2.1");
        let (without, _) = server(cuts, false).await;
        let trouble = ask(&without, NAMES[0]).await.unwrap_err();
        assert!(matches!(trouble, Trouble::CutShort(_)), "{trouble:?}");
        assert!(trouble.to_string().starts_with("cut its answer short, and TCP to it failed: "), "{trouble}");
    }
}
