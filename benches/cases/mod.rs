//! The paths that every connection takes, each ready to be run again and again.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use egret::answers::Answers;
use egret::claim::{Claim, ClientAddr, Identity, Target, Via};
use egret::config::{LogAccess, LogFormat, LogOutput, LogOverflow, LogSettings, Settings};
use egret::ending::Ending;
use egret::metrics::Metrics;
use egret::name::HostName;
use egret::peek::Sighting;
use egret::peek::client_hello::{ClientHello, HelloReader};
use egret::peek::http_head::RequestHead;
use egret::policy::hosts::HostIndex;
use egret::policy::pattern::Pattern;
use egret::policy::{OwnAddresses, Passage, Policy};
use egret::record::{Book, Scribe};

/// One path.
pub struct Case {
    pub name: &'static str,
    pub run: Box<dyn FnMut()>,
}

impl Case {
    fn new(name: &'static str, mut run: impl FnMut() + 'static) -> Self {
        // It must work before it is measured.
        run();
        Self { name, run: Box::new(run) }
    }
}

const LIMIT: usize = 64 << 10;
const NAME: &str = "cluster-1a2b.hcp.westeurope.azmk8s.io";

/// Everything between the first byte and the dial.
pub fn deciding() -> Vec<Case> {
    let bytes = hello();
    let head: &[u8] =
        b"GET /ubuntu/dists/jammy/InRelease HTTP/1.1\r\nHost: azure.archive.ubuntu.com\r\nCache-Control: max-age=0\r\n\
          Accept: text/*\r\nUser-Agent: Debian APT-HTTP/1.3 (2.4.11)\r\n\r\n";
    vec![
        Case::new("peek a hello", move || drop(black_box(sight(black_box(&bytes))))),
        Case::new("peek a request", move || {
            drop(black_box(RequestHead::look(black_box(head), LIMIT).unwrap().unwrap()));
        }),
        matching("match among 10", 10, true),
        matching("match among 100000", 100_000, true),
        matching("miss among 100000", 100_000, false),
        judging("judge among 10", 10),
        judging("judge among 100000", 100_000),
    ]
}

/// An access line, from accept to close, without the thread that writes it.
pub fn recording() -> Case {
    let output = LogOutput::File("/dev/null".into());
    let settings = LogSettings {
        format: LogFormat::Json,
        output,
        access: LogAccess::All,
        overflow: LogOverflow::Drop,
        net_all: false,
        open: None,
        empty: false,
    };
    let metrics = Arc::new(Metrics::default());
    let (scribe, _writer) = Scribe::start(&settings, Arc::clone(&metrics)).unwrap();
    let book = Arc::new(Book::new(scribe, metrics));
    let (listener, claim, sighting) = (Arc::from("sni:[::]:8443"), claim(), Sighting::Tls(Box::new(sight(&hello()))));
    let answers = answers();
    Case::new("an access line", move || {
        let mut record = book.open(&listener, claim.client);
        record.claim(&claim);
        record.sighting(&sighting);
        record.answers(&answers);
        record.upstream("192.0.2.7:443".parse().unwrap());
        record.close(Ending::Closed);
    })
}

fn sight(bytes: &[u8]) -> ClientHello {
    HelloReader::default().look(bytes, LIMIT).unwrap().unwrap()
}

/// Half exact, half suffix, one in a hundred with a star inside a label; the last one is the hello's.
fn patterns(count: usize) -> Vec<String> {
    let one = |n: usize| match n % 100 {
        0 => format!("md-*.zone{n}.example"),
        odd if odd % 2 == 1 => format!("host{n}.zone{}.example", n % 97),
        _ => format!("*.site{n}.test"),
    };
    (1..count).map(one).chain(["*.hcp.westeurope.azmk8s.io".to_owned()]).collect()
}

fn matching(name: &'static str, count: usize, is_listed: bool) -> Case {
    let mut index = HostIndex::default();
    for pattern in patterns(count) {
        index.add(&Pattern::parse(&pattern).unwrap(), 0);
    }
    let asked = HostName::from_wire(if is_listed { NAME } else { "www.nowhere.invalid" }.as_bytes()).unwrap();
    Case::new(name, move || {
        let mut hits = 0;
        index.matches(black_box(&asked), |_| hits += 1);
        assert_eq!(hits, usize::from(is_listed));
    })
}

/// The walk of a connection through the policy, up to the permit.
fn judging(name: &'static str, count: usize) -> Case {
    let names: String = patterns(count).iter().map(|pattern| format!("      - \"{pattern}\"\n")).collect();
    let text = format!(
        "listeners: [{{ kind: forward, bind: \"127.0.0.1:3128\" }}]\npolicy:\n  application_rules:\n  - name: r\n    \
         protocols: [\"https:443\"]\n    fqdns:\n{names}"
    );
    let rules = Settings::parse(&text, "bench", Path::new(".")).unwrap().rules;
    let policy = Policy::compile(rules.apps, rules.nets, None, Arc::new(OwnAddresses::new(Vec::new(), Vec::new())));
    let (claim, sighting, answers) = (claim(), Sighting::Tls(Box::new(sight(&hello()))), answers());
    Case::new(name, move || {
        let Passage::Peek(expectation) = policy.by_claim(black_box(&claim)).unwrap() else { unreachable!() };
        let clearance = policy.by_sighting(&claim, expectation, black_box(&sighting)).unwrap();
        drop(black_box(policy.by_address(&clearance, &answers).unwrap()));
    })
}

fn claim() -> Claim {
    let client = ClientAddr("10.9.0.1:40000".parse().unwrap());
    let (identity, listener) = (Identity::default(), Arc::from("bench"));
    Claim { client, identity, listener, target: Target::Unnamed, port: 443, via: Via::Steered }
}

fn answers() -> Answers {
    Answers { addresses: vec!["20.1.2.3".parse().unwrap()], ttl: Duration::from_secs(60), is_stale: false }
}

/// A TLS 1.3 hello with a name, two protocols and padding to the size browsers send.
fn hello() -> Vec<u8> {
    let name = b"cluster-1a2b.hcp.westeurope.azmk8s.io";
    let list = u16::try_from(name.len() + 3).unwrap();
    let mut extensions: Vec<(u16, Vec<u8>)> = vec![
        (0, [&list.to_be_bytes()[..], &[0], &(list - 3).to_be_bytes(), name].concat()),
        (16, [&[0, 16, 12][..], b"konnectivity", &[2], b"h2"].concat()),
        (43, vec![4, 3, 4, 3, 3]),
        (13, vec![0, 8, 4, 3, 8, 4, 4, 1, 8, 5]),
        (51, [&[0, 36, 0, 29, 0, 32][..], &[9; 32]].concat()),
    ];
    extensions.push((21, vec![0; 250]));
    let block: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, data)| {
            [&kind.to_be_bytes()[..], &u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
        })
        .collect();
    let ciphers = [0, 6, 0x13, 1, 0x13, 2, 0x13, 3, 1, 0];
    let size = u16::try_from(block.len()).unwrap().to_be_bytes();
    let body = [&[3, 3][..], &[7; 32], &[32], &[5; 32], &ciphers, &size, &block].concat();
    let len = u16::try_from(body.len()).unwrap();
    [&[22, 3, 1][..], &(len + 4).to_be_bytes(), &[1, 0], &len.to_be_bytes(), &body].concat()
}
