//! The paths that every connection takes, each ready to be run again and again.

pub mod samples;

use std::hint::black_box;
use std::sync::Arc;

use egret_core::learned::Known;
use egret_core::name::HostName;
use egret_core::policy::hosts::HostIndex;
use egret_core::policy::{Passage, Policy};
use egret_core::rule::pattern::Pattern;
use egret_core::rule::{Action, AppPort, AppProtocol, AppRule, Ech, InnerName, Reach, Sources};
use egret_core::wire::Sighting;
use egret_core::wire::http::RequestHead;
use samples::{LIMIT, NAME, answers, claim, hello, sight};

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
    let rule = AppRule {
        name: "r".into(),
        action: Action::Allow,
        sources: Sources::default(),
        fqdns: patterns(count).iter().map(|pattern| Pattern::parse(pattern).unwrap()).collect(),
        except: Vec::new(),
        protocols: vec![AppPort { protocol: AppProtocol::Https, port: 443 }],
        alpn: None,
        ech: Ech::Outer,
        inner: InnerName::Same,
        methods: None,
        paths: None,
        websocket: false,
        verify: false,
        steer: true,
        reach: Reach::default(),
    };
    let policy = Policy::compile(vec![rule], Vec::new(), None, Arc::default());
    let (claim, sighting, answers) = (claim(), Sighting::Tls(Box::new(sight(&hello()))), answers());
    Case::new(name, move || {
        let Passage::Peek(expectation) = policy.by_claim(black_box(&claim), Known::nothing()).unwrap() else {
            unreachable!()
        };
        let clearance = policy.by_sighting(&claim, expectation, black_box(&sighting)).unwrap();
        drop(black_box(policy.by_address(&clearance, &answers, Known::nothing()).unwrap()));
    })
}
