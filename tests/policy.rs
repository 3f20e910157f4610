//! What a policy lets out, from the text of a configuration to the permit.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test's input is its own"
)]

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use egret::config::Settings;
use egret_core::answers::Answers;
use egret_core::claim::{Claim, ClientAddr, Identity, OriginalDst, Source, Target, Transport, Via};
use egret_core::learned::{Known, Learned};
use egret_core::name::{Host, HostName};
use egret_core::outcome::{Reason, Refusal};
use egret_core::policy::explain::{Question, Subject};
use egret_core::policy::{Destination, LessonUse, MatchedRule, OwnAddresses, Passage, Policy};
use egret_core::rule::{LearnedName, Reach};
use egret_core::wire::Sighting;
use egret_core::wire::client_hello::{ClientHello, Sni};
use egret_core::wire::http::RequestHead;

const POLICY: &str = r#"
listeners: [{ kind: forward, bind: "127.0.0.1:3128" }]
own_addresses: ["198.18.0.9"]
policy:
  application_rules:
    - { name: web, fqdns: ["a.example", "*.sub.example"], protocols: ["https:443", "http:80"] }
    - { name: evil, action: deny, fqdns: ["bad.sub.example"] }
    - { name: team, sources: ["10.1.0.0/16"], fqdns: ["team.example"], protocols: ["https:443"] }
    - { name: konn, fqdns: ["k.example"], protocols: ["https:443"], alpn: [konnectivity, h2] }
    - { name: noech, fqdns: ["e.example"], protocols: ["https:443"], ech: deny }
    - { name: shared, fqdns: ["front.example"], protocols: ["https:443"], sni: any_listed }
    - { name: nosni, fqdns: ["under_score.example"], protocols: ["https:443"], sni: optional }
    - { name: claimed, fqdns: ["*.claimed.example"], protocols: ["tcp:5432", "tcp:443"] }
    - { name: unclaimed, action: deny, fqdns: ["no.claimed.example"] }
    - { name: untls, action: deny, fqdns: ["half.claimed.example"], protocols: ["https:443"] }
    - { name: private, fqdns: ["p.example"], protocols: ["https:443"], addresses: ["10.1.0.0/16"] }
    - { name: both, fqdns: ["b.example"], protocols: ["https:443"], addresses: [public, "10.1.0.0/16"] }
    - { name: here, fqdns: ["h.example"], protocols: ["https:443"], addresses: ["198.18.0.7/32", "198.18.0.9/32", "127.0.0.0/8"] }
  network_rules:
    - { name: blocked, action: deny, destinations: ["192.9.9.0/24"], protocols: ["tcp:1-65535"] }
    - { name: other, destinations: ["192.9.9.0/24"], protocols: ["udp:5000"] }
    - { name: partner, destinations: ["192.9.0.0/16", "0.0.0.0/0"], protocols: ["tcp:8443", "udp:1194"] }
    - { name: lan, destinations: ["10.2.0.0/16"], protocols: ["tcp:9000-9010"] }
    - { name: time, fqdns: ["ntp.example"], protocols: ["udp:123", "tcp:4460"] }
"#;

fn policy() -> Policy {
    let settings = Settings::parse(POLICY, "test", Path::new(".")).unwrap();
    let own = Arc::new(OwnAddresses::new(vec!["127.0.0.1:443".parse().unwrap()], settings.own_addresses));
    own.set_local(vec!["198.18.0.7/32".parse().unwrap(), "8.8.4.4/32".parse().unwrap()]);
    Policy::compile(settings.rules.apps, settings.rules.nets, settings.rules.nat64, own)
}

fn claim(target: &str, port: u16) -> Claim {
    let target = match target {
        "" => Target::Unnamed,
        text => Claim::target(Host::from_wire(text.as_bytes()).unwrap(), port),
    };
    let client = ClientAddr("10.9.0.1:40000".parse().unwrap());
    Claim {
        client,
        identity: Identity::default(),
        listener: "test".into(),
        target,
        transport: Transport::Tcp,
        port,
        via: Via::Connect,
    }
}

fn hello(name: &str) -> ClientHello {
    let sni = HostName::from_wire(name.as_bytes()).map_or(Sni::Absent, Sni::Name);
    ClientHello { sni, alpn: vec![], version: 0x304, ech: false, esni: false, ja4: Default::default(), raw_len: 0 }
}

fn request(raw: &str) -> Sighting {
    Sighting::Http(Box::new(RequestHead::look(raw.as_bytes(), 9999).unwrap().unwrap()))
}

/// The whole walk of a connection, up to the permit.
fn walk(claim: &Claim, sighting: &Sighting, answers: &[&str]) -> Result<(String, Vec<String>), Reason> {
    let policy = policy();
    let run = || {
        let clearance = match policy.by_claim(claim, Known::nothing())? {
            Passage::Passthrough(clearance) => clearance,
            Passage::Peek(expectation) => policy.by_sighting(claim, expectation, sighting)?,
        };
        let answers = match clearance.destination() {
            Destination::Literal(ip) => Answers::literal(*ip),
            Destination::Name(_) => Answers {
                addresses: answers.iter().map(|a| a.parse().unwrap()).collect(),
                ttl: Duration::ZERO,
                is_stale: false,
                from_servers: true,
            },
        };
        policy.by_address(&clearance, &answers, Known::nothing())
    };
    run().map_err(|refusal: Refusal| refusal.reason).map(|permit| {
        let addresses = permit.addresses().iter().map(ToString::to_string).collect();
        (permit.matched_rule().rule.to_string(), addresses)
    })
}

fn tls(target: &str, sni: &str, answers: &[&str]) -> Result<(String, Vec<String>), Reason> {
    walk(&claim(target, 443), &Sighting::Tls(Box::new(hello(sni))), answers)
}

fn rule(result: Result<(String, Vec<String>), Reason>) -> Result<String, Reason> {
    result.map(|(rule, _)| rule)
}

#[track_caller]
fn allowed(result: Result<(String, Vec<String>), Reason>, by: &str) {
    assert_eq!(rule(result), Ok(by.to_owned()));
}

#[track_caller]
fn refused(result: Result<(String, Vec<String>), Reason>, reason: Reason) {
    assert_eq!(rule(result), Err(reason));
}

const PUBLIC: &[&str] = &["8.8.8.8"];

#[test]
fn a_name_is_let_out_and_its_neighbours_are_not() {
    allowed(tls("a.example", "a.example", PUBLIC), "web");
    allowed(tls("", "a.example", PUBLIC), "web");
    allowed(tls("", "x.sub.example", PUBLIC), "web");
    refused(tls("", "sub.example", PUBLIC), Reason::NoRule);
    refused(tls("", "xa.example", PUBLIC), Reason::NoRule);
    refused(tls("", "a.example.evil", PUBLIC), Reason::NoRule);
    refused(tls("", "bad.sub.example", PUBLIC), Reason::RuleDenied);
    refused(tls("bad.sub.example", "bad.sub.example", PUBLIC), Reason::RuleDenied);
    refused(
        walk(&claim("a.example", 8443), &Sighting::Tls(Box::new(hello("a.example"))), PUBLIC),
        Reason::PortNotAllowed,
    );
    refused(tls("team.example", "team.example", PUBLIC), Reason::SourceNotAllowed);
    let mut inside = claim("team.example", 443);
    inside.client = ClientAddr("[::ffff:10.1.2.3]:5".parse().unwrap());
    allowed(walk(&inside, &Sighting::Tls(Box::new(hello("team.example"))), PUBLIC), "team");
}

#[test]
fn the_inner_name_must_be_the_claimed_one() {
    refused(tls("a.example", "x.sub.example", PUBLIC), Reason::NameMismatch);
    refused(tls("a.example", "", PUBLIC), Reason::NoSni);
    allowed(tls("front.example", "a.example", PUBLIC), "shared");
    refused(tls("front.example", "z.example", PUBLIC), Reason::NoRule);
    refused(tls("front.example", "team.example", PUBLIC), Reason::SourceNotAllowed);
    refused(tls("a.example", "front.example", PUBLIC), Reason::NameMismatch);
    // Where a rule says so, a hello without a name is for the claimed one, and only that.
    allowed(tls("under_score.example", "", PUBLIC), "nosni");
    allowed(tls("under_score.example", "under_score.example", PUBLIC), "nosni");
    refused(tls("under_score.example", "a.example", PUBLIC), Reason::NameMismatch);
    refused(tls("front.example", "", PUBLIC), Reason::NoSni);
    refused(tls("", "", PUBLIC), Reason::NoSni);
    refused(tls("8.8.8.8", "", PUBLIC), Reason::NoSni);
    refused(tls("a.example", "", PUBLIC), Reason::NoSni);
}

#[test]
fn a_claimed_name_is_enough_where_a_rule_says_so() {
    let to = |target: &str, port, sni: &str| walk(&claim(target, port), &Sighting::Tls(Box::new(hello(sni))), PUBLIC);
    allowed(to("db.claimed.example", 5432, ""), "claimed");
    allowed(to("db.claimed.example", 443, "other.example"), "claimed");
    refused(to("db.claimed.example", 5433, ""), Reason::PortNotAllowed);
    refused(to("claimed.example", 5432, ""), Reason::NoRule);
    refused(to("a.example", 5432, "a.example"), Reason::PortNotAllowed);
    // What a rule denies of TLS or HTTP could be in bytes that are not looked at.
    refused(to("no.claimed.example", 5432, ""), Reason::RuleDenied);
    refused(to("half.claimed.example", 443, "half.claimed.example"), Reason::RuleDenied);
    allowed(to("half.claimed.example", 5432, ""), "claimed");
    // Bytes and addresses claim no name.
    refused(to("", 5432, "db.claimed.example"), Reason::PortNotAllowed);
    refused(to("8.8.8.8", 5432, "db.claimed.example"), Reason::NoRule);
    let mut absolute = claim("db.claimed.example", 5432);
    absolute.via = Via::Absolute;
    let asked = request("GET http://db.claimed.example:5432/ HTTP/1.1\r\nHost: db.claimed.example:5432\r\n\r\n");
    refused(walk(&absolute, &asked, PUBLIC), Reason::PortNotAllowed);
    // The guard judges as everywhere.
    refused(walk(&claim("db.claimed.example", 5432), &asked, &["10.0.0.1"]), Reason::AddressDenied);
}

#[test]
fn hellos_that_hide_or_offer_too_much_are_refused() {
    let seen = |change: &dyn Fn(&mut ClientHello), name: &str| {
        let mut hello = hello(name);
        change(&mut hello);
        walk(&claim("", 443), &Sighting::Tls(Box::new(hello)), PUBLIC)
    };
    let offer = |names: &'static [&str]| {
        move |h: &mut ClientHello| h.alpn = names.iter().map(|n| n.as_bytes().into()).collect()
    };
    allowed(seen(&offer(&["konnectivity", "h2"]), "k.example"), "konn");
    refused(seen(&offer(&["konnectivity", "http/1.1"]), "k.example"), Reason::AlpnNotAllowed);
    // No offer holds no protocol that is not in the list.
    allowed(seen(&offer(&[]), "k.example"), "konn");
    allowed(seen(&offer(&["http/1.1"]), "a.example"), "web");
    allowed(seen(&|h| h.ech = true, "a.example"), "web");
    refused(seen(&|h| h.ech = true, "e.example"), Reason::EchDenied);
    allowed(seen(&|_| (), "e.example"), "noech");
    refused(seen(&|h| h.esni = true, "a.example"), Reason::EsniDenied);
    refused(seen(&|h| h.sni = Sni::Address("8.8.8.8".parse().unwrap()), ""), Reason::IpLiteral);
    let malformed = Sni::Malformed { raw: (*b"a b").into(), fault: egret_core::name::NameFault::Empty };
    refused(seen(&|h| h.sni = malformed.clone(), ""), Reason::BadSni);
}

#[test]
fn a_literal_is_judged_by_network_rules_and_then_by_its_bytes() {
    let to = |ip: &str, port, sni: &str| walk(&claim(ip, port), &Sighting::Tls(Box::new(hello(sni))), PUBLIC);
    allowed(to("192.9.1.1", 8443, ""), "partner");
    refused(to("192.9.9.1", 8443, ""), Reason::RuleDenied);
    refused(to("192.9.1.1", 8444, ""), Reason::NoRule);
    allowed(to("10.2.0.1", 9005, ""), "lan");
    refused(to("10.3.0.1", 9005, ""), Reason::NoRule);
    refused(to("10.2.0.1", 9011, ""), Reason::NoRule);
    // The whole internet opens no private address, in no spelling.
    refused(to("10.2.0.1", 8443, ""), Reason::AddressDenied);
    refused(to("127.0.0.1", 8443, ""), Reason::AddressDenied);
    refused(to("169.254.169.254", 8443, ""), Reason::AddressDenied);
    // A port of application rules: the name in the bytes decides, and egret's own answer is dialled.
    assert_eq!(to("203.0.114.1", 443, "a.example"), Ok(("web".into(), vec!["8.8.8.8:443".into()])));
    refused(to("203.0.114.1", 443, "z.example"), Reason::NoRule);
    refused(to("203.0.114.1", 443, ""), Reason::NoSni);
}

#[test]
fn a_network_rule_by_name_needs_no_peek() {
    allowed(walk(&claim("ntp.example", 4460), &request("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), PUBLIC), "time");
    refused(walk(&claim("ntp.example", 4461), &request("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), PUBLIC), Reason::NoRule);
    refused(
        walk(&claim("ntp.example", 4460), &request("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), &["10.0.0.1"]),
        Reason::AddressDenied,
    );
}

#[test]
fn a_request_is_judged_by_its_host() {
    let get = |target: &str, port, raw: &str| walk(&claim(target, port), &request(raw), PUBLIC);
    allowed(get("", 80, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"), "web");
    allowed(get("", 80, "GET / HTTP/1.1\r\nHost: a.example:80\r\n\r\n"), "web");
    refused(get("", 80, "GET / HTTP/1.1\r\nHost: a.example:81\r\n\r\n"), Reason::AmbiguousRequest);
    refused(get("", 80, "GET / HTTP/1.1\r\nHost: z.example\r\n\r\n"), Reason::NoRule);
    refused(get("", 80, "GET / HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n"), Reason::IpLiteral);
    refused(get("", 80, "GET / HTTP/1.0\r\n\r\n"), Reason::NoHost);
    refused(get("", 80, "CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n"), Reason::MethodNotAllowed);
    refused(get("a.example", 80, "GET / HTTP/1.1\r\nHost: x.sub.example\r\n\r\n"), Reason::NameMismatch);
    // Plain bytes on a port that is https for this name.
    refused(get("", 443, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"), Reason::NotTls);
}

#[test]
fn all_addresses_of_a_name_are_judged_together() {
    refused(tls("", "a.example", &["10.1.0.1"]), Reason::AddressDenied);
    refused(tls("", "a.example", &["8.8.8.8", "10.1.0.1"]), Reason::AddressMixed);
    refused(tls("", "a.example", &["8.8.8.8", "::ffff:8.8.8.8"]), Reason::AddressMixed);
    refused(tls("", "p.example", PUBLIC), Reason::AddressDenied);
    allowed(tls("", "p.example", &["10.1.0.1"]), "private");
    refused(tls("", "p.example", &["10.2.0.1"]), Reason::AddressDenied);
    allowed(tls("", "b.example", &["10.1.0.1", "8.8.8.8"]), "both");
    refused(tls("", "b.example", &["10.2.0.1", "8.8.8.8"]), Reason::AddressMixed);
    refused(tls("", "a.example", &["192.9.9.7"]), Reason::RuleDenied);
}

#[test]
fn a_translated_address_is_the_address_it_carries() {
    let text = POLICY.replace("policy:\n", "policy:\n  nat64_prefix: \"64:ff9b::/96\"\n");
    let settings = Settings::parse(&text, "test", Path::new(".")).unwrap();
    let own = Arc::new(OwnAddresses::new(vec!["203.0.114.5:443".parse().unwrap()], settings.own_addresses));
    own.set_local(vec!["8.8.4.4/32".parse().unwrap()]);
    let policy = Policy::compile(settings.rules.apps, settings.rules.nets, settings.rules.nat64, own);
    let reason = |ip: &str| {
        let claim = claim("a.example", 443);
        let Passage::Peek(expectation) = policy.by_claim(&claim, Known::nothing()).unwrap() else {
            panic!("a network rule")
        };
        let sighting = Sighting::Tls(Box::new(hello("a.example")));
        let clearance = policy.by_sighting(&claim, expectation, &sighting).unwrap();
        let answers = Answers::literal(ip.parse().unwrap());
        policy.by_address(&clearance, &answers, Known::nothing()).map(|_| ()).map_err(|r| r.reason)
    };
    assert_eq!(reason("64:ff9b::808:808"), Ok(()));
    assert_eq!(reason("64:ff9b::a00:1"), Err(Reason::AddressDenied));
    assert_eq!(reason("64:ff9b::c009:907"), Err(Reason::RuleDenied), "a network denial of 192.9.9.0/24");
    assert_eq!(reason("64:ff9b::808:404"), Err(Reason::OwnAddress), "an interface");
    assert_eq!(reason("64:ff9b::cb00:7205"), Err(Reason::OwnAddress), "a listener");
    assert_eq!(reason("64:ff9b::c612:9"), Err(Reason::OwnAddress), "own_addresses");
    let literal = |ip: &str| policy.by_claim(&claim(ip, 8443), Known::nothing()).map(|_| ()).map_err(|r| r.reason);
    assert_eq!(literal("64:ff9b::c009:907"), Err(Reason::RuleDenied));
    assert_eq!(literal("64:ff9b::c009:107"), Ok(()));
    // A denial written for the translated spelling holds as well.
    let text = text.replace(
        "destinations: [\"192.9.9.0/24\"], protocols: [\"tcp:1-65535\"]",
        "destinations: [\"::/0\"], protocols: [\"tcp:1-65535\"]",
    );
    let settings = Settings::parse(&text, "test", Path::new(".")).unwrap();
    let policy = Policy::compile(settings.rules.apps, settings.rules.nets, settings.rules.nat64, Arc::default());
    assert_eq!(
        policy.by_claim(&claim("64:ff9b::c009:107", 8443), Known::nothing()).map(|_| ()).map_err(|r| r.reason),
        Err(Reason::RuleDenied)
    );
}

#[test]
fn a_name_never_leads_to_egret() {
    refused(tls("", "h.example", &["127.0.0.1"]), Reason::OwnAddress);
    allowed(tls("", "h.example", &["127.0.0.2"]), "here");
    refused(tls("", "h.example", &["198.18.0.9"]), Reason::OwnAddress);
    // An interface's own address is open only to a rule that names exactly it.
    allowed(tls("", "h.example", &["198.18.0.7"]), "here");
    refused(tls("", "a.example", &["8.8.4.4"]), Reason::OwnAddress);
    refused(tls("", "a.example", &["8.8.8.8", "8.8.4.4"]), Reason::AddressMixed);
}

#[test]
fn families_take_turns_and_the_clients_own_comes_first() {
    let (_, order) = tls("", "a.example", &["8.8.8.8", "8.8.8.9", "2a01::1"]).unwrap();
    assert_eq!(order, ["8.8.8.8:443", "[2a01::1]:443", "8.8.8.9:443"]);
    let mut v6 = claim("", 443);
    v6.client = ClientAddr("[2a02::1]:5".parse().unwrap());
    let (_, order) =
        walk(&v6, &Sighting::Tls(Box::new(hello("a.example"))), &["8.8.8.8", "8.8.8.9", "2a01::1"]).unwrap();
    assert_eq!(order, ["[2a01::1]:443", "8.8.8.8:443", "8.8.8.9:443"]);
    let mut dst = claim("", 443);
    dst.target = Target::Address(OriginalDst("[2a01::9]:443".parse().unwrap()));
    let (_, order) = walk(&dst, &Sighting::Tls(Box::new(hello("a.example"))), &["8.8.8.8", "2a01::1"]).unwrap();
    assert_eq!(order, ["[2a01::1]:443", "8.8.8.8:443"]);
}

fn explain(target: &str, from: Option<&str>, dst: Option<&str>, alpn: &[&str]) -> Result<MatchedRule, Refusal> {
    policy().explain(&Question {
        subject: target.parse::<Subject>().unwrap(),
        source: Source { ip: from.map(|ip| ip.parse().unwrap()), identity: None },
        dst: dst.map(|ip| ip.parse().unwrap()),
        alpn: alpn.iter().map(|p| p.as_bytes().into()).collect(),
    })
}

#[track_caller]
fn explained(target: &str, from: Option<&str>, expected: Result<&str, Reason>) {
    let got = explain(target, from, None, &[]);
    assert_eq!(got.as_ref().map(|b| &*b.rule).map_err(|r| r.reason), expected, "{target}");
}

#[test]
fn explaining_walks_the_same_steps() {
    explained("https://a.example", None, Ok("web"));
    explained("http://x.sub.example", None, Ok("web"));
    explained("https://bad.sub.example", None, Err(Reason::RuleDenied));
    explained("https://a.example:8443", None, Err(Reason::PortNotAllowed));
    explained("https://z.example", None, Err(Reason::NoRule));
    explained("https://team.example", Some("10.1.2.3"), Ok("team"));
    explained("https://team.example", Some("10.2.2.3"), Err(Reason::SourceNotAllowed));
    explained("https://8.8.8.8", None, Err(Reason::IpLiteral));
    explained("tcp://192.9.1.1:8443", None, Ok("partner"));
    explained("tcp://192.9.9.1:8443", None, Err(Reason::RuleDenied));
    explained("tcp://10.0.0.1:8443", None, Err(Reason::AddressDenied));
    explained("udp://192.9.1.1:1194", None, Ok("partner"));
    explained("udp://192.9.1.1:1195", None, Err(Reason::NoRule));
    explained("udp://192.9.9.1:5000", None, Ok("other"));
    explained("https://8.8.8.8:9999", None, Err(Reason::NoRule));
    explained("udp://ntp.example:123", None, Ok("time"));
    explained("tcp://ntp.example:123", None, Err(Reason::NoRule));
    explained("https://ntp.example:4460", None, Ok("time"));
    explained("dns://a.example", None, Ok("web"));
    explained("dns://ntp.example", None, Ok("time"));
    explained("dns://bad.sub.example", None, Err(Reason::RuleDenied));
    explained("dns://z.example", None, Err(Reason::NoRule));
    let alpn = |offer: &[&str]| explain("https://k.example", None, None, offer).map(|_| ()).map_err(|r| r.reason);
    assert_eq!(alpn(&["konnectivity"]), Ok(()));
    assert_eq!(alpn(&["konnectivity", "spdy/3"]), Err(Reason::AlpnNotAllowed));
    // A network rule that covers the destination is asked before any name.
    let dst = explain("https://z.example:8443", None, Some("192.9.1.1"), &[]).unwrap();
    assert_eq!(&*dst.rule, "partner");
}

#[track_caller]
fn hinted(target: &str, nearest: &str, fix: &str) {
    let hint = explain(target, Some("10.9.0.1"), None, &[]).unwrap_err().hint.expect("a hint");
    assert_eq!(hint.nearest.as_deref().unwrap_or_default(), nearest, "{target}");
    assert_eq!(hint.fix.as_deref().unwrap_or_default(), fix, "{target}");
}

#[test]
fn a_refusal_names_what_came_close_and_the_cure() {
    let fix = |id: &str, name: &str| {
        format!(
            "- {{ name: {id}, sources: [\"10.9.0.1/32\"], fqdns: [\"{name}\"], protocols: [\"https:443\"] }} # policy.application_rules"
        )
    };
    hinted(
        "https://sub.example",
        "rule web allows *.sub.example, which does not cover the bare name",
        &fix("sub-example", "sub.example"),
    );
    hinted(
        "https://x.a.example",
        "rule web allows a.example only, not the names under it",
        &fix("x-a-example", "x.a.example"),
    );
    hinted(
        "https://teem.example",
        "rule team allows team.example, which is spelled almost alike",
        &fix("teem-example", "teem.example"),
    );
    hinted("https://elsewhere.test", "", &fix("elsewhere-test", "elsewhere.test"));
    hinted("https://team.example", "rule team allows it, for sources 10.1.0.0/16", "");
    hinted("https://a.example:8443", "rule web allows it, on https:443, http:80", "");
    hinted(
        "tcp://192.9.1.1:8444",
        "rule partner covers the address on tcp:8443, udp:1194",
        "- { name: tcp-8444, sources: [\"10.9.0.1/32\"], destinations: [\"192.9.1.1/32\"], protocols: [\"tcp:8444\"] } # policy.network_rules",
    );
    // By address nothing is opened that is judged by name.
    let reads = "application rules use port 443: egret reads the name in the bytes there; ask for https://NAME:443";
    hinted("tcp://192.9.2.1:443", reads, "");
    hinted("https://192.9.2.1", reads, "");
    hinted(
        "tcp://zebra.example:443",
        "rule web allows a.example, which is another name",
        "- { name: zebra-example, sources: [\"10.9.0.1/32\"], fqdns: [\"zebra.example\"], protocols: [\"https:443\"] } # policy.application_rules",
    );
    hinted(
        "icmp://192.9.2.1",
        "rule partner covers the address on tcp:8443, udp:1194",
        "- { name: icmp, sources: [\"10.9.0.1/32\"], destinations: [\"192.9.2.1/32\"], protocols: [\"icmp\"] } # policy.network_rules",
    );
    let secrets = "169.254.169.254 hands out this machine's identity and secrets; no rule is offered for it";
    hinted("tcp://169.254.169.254:8080", secrets, "");
    hinted(
        "udp://127.0.0.1:53",
        "rule partner covers the address on tcp:8443, udp:1194",
        "- { name: udp-53, sources: [\"10.9.0.1/32\"], destinations: [\"127.0.0.1/32\"], protocols: [\"udp:53\"] } # policy.network_rules; opens services of egret's own machine",
    );
}

#[test]
fn the_fix_is_a_rule_that_works() {
    for target in ["https://sub.example", "http://new.test:8080", "https://new.test:444"] {
        let fix = explain(target, Some("10.9.0.1"), None, &[]).unwrap_err().hint.unwrap().fix.unwrap();
        let text = format!(
            "listeners: [{{ kind: forward, bind: \"127.0.0.1:1\" }}]\npolicy:\n  application_rules:\n    {fix}\n"
        );
        let settings = Settings::parse(&text, "fix", Path::new(".")).unwrap();
        let policy = Policy::compile(settings.rules.apps, settings.rules.nets, None, Arc::default());
        let question = Question {
            subject: target.parse().unwrap(),
            source: Source::at("10.9.0.1".parse().unwrap()),
            dst: None,
            alpn: vec![],
        };
        assert!(policy.explain(&question).is_ok(), "{target}: {fix}");
    }
}

#[test]
fn explaining_a_plain_request_judges_its_path() {
    let rule = "{ name: dists, fqdns: [a.example], protocols: [\"http:80\"], methods: [GET], paths: [/dists] }";
    let text =
        format!("listeners: [{{ kind: forward, bind: \"127.0.0.1:1\" }}]\npolicy: {{ application_rules: [{rule}] }}\n");
    let settings = Settings::parse(&text, "paths", Path::new(".")).unwrap();
    let policy = Policy::compile(settings.rules.apps, settings.rules.nets, None, Arc::default());
    for (target, expected) in [
        ("http://a.example", Ok("dists")),
        ("http://a.example/dists/noble?x=1", Ok("dists")),
        ("http://a.example/pool", Err(Reason::PathNotAllowed)),
        ("http://a.example/dists/../pool", Err(Reason::PathNotAllowed)),
        ("http://a.example/dists%2fx", Err(Reason::PathNotAllowed)),
    ] {
        let question =
            Question { subject: target.parse().unwrap(), source: Source::anybody(), dst: None, alpn: vec![] };
        let got = policy.explain(&question);
        assert_eq!(got.as_ref().map(|b| &*b.rule).map_err(|r| r.reason), expected, "{target}");
    }
}

#[test]
fn rules_for_some_clients_are_for_no_others() {
    let text = "listeners: [{ kind: forward, bind: \"127.0.0.1:1\" }]\npolicy:\n  application_rules:\n    \
        - { name: agents, clients: [agent.test, \"user:bob\"], sources: [10.0.0.0/8], fqdns: [a.example], protocols: [\"https:443\"] }\n    \
        - { name: all, fqdns: [b.example], protocols: [\"https:443\"] }\n  network_rules:\n    \
        - { name: ssh, clients: [agent.test], destinations: [192.9.9.0/24], protocols: [\"tcp:22\"] }\n";
    let settings = Settings::parse(text, "clients", Path::new(".")).unwrap();
    let policy = Policy::compile(settings.rules.apps, settings.rules.nets, None, Arc::default());
    let judged = |target: &str, ip: Option<&str>, names: Option<&[&str]>| {
        let identity = names.map(|names| Identity::new(names.iter().map(|name| (*name).into()).collect()));
        let source = Source { ip: ip.map(|ip| ip.parse().unwrap()), identity };
        let question = Question { subject: target.parse().unwrap(), source, dst: None, alpn: vec![] };
        policy.explain(&question).map(|because| because.rule.to_string()).map_err(|refusal| refusal.reason)
    };
    let (inside, outside) = (Some("10.1.1.1"), Some("192.0.2.1"));
    assert_eq!(judged("https://a.example", inside, Some(&["x", "agent.test"])), Ok("agents".into()));
    assert_eq!(judged("https://a.example", inside, Some(&["user:bob"])), Ok("agents".into()));
    assert_eq!(judged("https://a.example", None, None), Ok("agents".into()), "any client");
    for (ip, names) in [
        (outside, &["agent.test"][..]),
        (inside, &[]),
        (inside, &["bob"]),
        (inside, &["user:alice"]),
        (inside, &["agent.test.x", "Agent.test"]),
    ] {
        assert_eq!(judged("https://a.example", ip, Some(names)), Err(Reason::SourceNotAllowed), "{ip:?} {names:?}");
    }
    assert_eq!(judged("https://b.example", inside, Some(&[])), Ok("all".into()));
    assert_eq!(judged("tcp://192.9.9.1:22", inside, Some(&["agent.test"])), Ok("ssh".into()));
    assert_eq!(judged("tcp://192.9.9.1:22", inside, Some(&[])), Err(Reason::NoRule));
    assert_eq!(policy.clients_of("agents").as_deref(), Some("sources 10.0.0.0/8 and clients agent.test, user:bob"));
    assert_eq!(policy.clients_of("all"), None);
    let source =
        Source { identity: Some(Identity::new(vec!["a \"b\"".into()])), ..Source::at("10.1.1.1".parse().unwrap()) };
    let question = Question { subject: "https://c.example".parse().unwrap(), source, dst: None, alpn: vec![] };
    let fix = policy.explain(&question).unwrap_err().hint.unwrap().fix.unwrap();
    assert!(fix.contains("sources: [\"10.0.0.0/8\"], clients: [\"a \\\"b\\\"\"], fqdns"), "{fix}");
}

/// What a client that dials an address itself gets, and by which rule.
fn dialled(policy: &Policy, ip: &str, port: u16, known: Known<'_>) -> Result<String, Reason> {
    let claim = claim(ip, port);
    let passage = policy.by_claim(&claim, known).map_err(|refusal| refusal.reason)?;
    let Passage::Passthrough(clearance) = passage else { panic!("{ip}:{port} is judged by name") };
    let permit = policy.by_address(&clearance, &Answers::literal(ip.parse().unwrap()), known);
    permit.map(|permit| permit.matched_rule().rule.to_string()).map_err(|refusal| refusal.reason)
}

#[test]
fn what_was_learned_for_a_name_stands_for_it_as_far_as_each_rule_lets_it() {
    let text = "listeners: [{ kind: forward, bind: \"127.0.0.1:1\" }]\npolicy:\n  network_rules:\n    \
                - { name: outside, fqdns: [kept.test], protocols: [\"tcp:4460\"] }\n    \
                - { name: inside, fqdns: [kept.test], addresses: [10.0.0.0/8], protocols: [\"tcp:4461\"] }\n";
    let settings = Settings::parse(text, "t", Path::new(".")).unwrap();
    let policy = Policy::of(settings.rules, Arc::default());
    let hour = Duration::from_secs(3600);
    let (learned, start) = (Learned::new(hour), Instant::now());
    let names: Vec<LearnedName> = policy.kept_names().into_iter().cloned().collect();
    assert_eq!(names.len(), 2, "the two rules lead to different places");
    let (outside, inside) = ("20.1.1.1", "10.1.1.1");
    for name in &names {
        let clearance = policy.clearance_to_keep(name).unwrap();
        for ip in [outside, inside].map(|ip| ip.parse().unwrap()) {
            if let Ok(found) = policy.by_kept_answer(&clearance, &Answers::literal(ip)) {
                learned.learn(name, &found, start);
            }
        }
        let mixed = [outside, inside].map(|ip| ip.parse().unwrap()).to_vec();
        let mixed = Answers { addresses: mixed, ttl: hour, is_stale: false, from_servers: true };
        let refused = policy.by_kept_answer(&clearance, &mixed).unwrap_err();
        assert_eq!(refused.reason, Reason::AddressMixed, "nothing is learned of it");
    }
    let now = Known::at(&learned, start);
    assert_eq!(dialled(&policy, outside, 4460, now), Ok("outside".into()));
    assert_eq!(dialled(&policy, inside, 4461, now), Ok("inside".into()));
    for (ip, port, known) in [
        (inside, 4460, now),
        (outside, 4461, now),
        (outside, 4460, Known::at(&learned, start + hour)),
        (outside, 4460, Known::nothing()),
    ] {
        assert_eq!(dialled(&policy, ip, port, known), Err(Reason::NoRule), "{ip}:{port}");
    }
}

#[test]
fn a_client_may_dial_what_was_answered_for_the_name_a_while_ago() {
    let text = "listeners: [{ kind: forward, bind: \"127.0.0.1:1\" }]\npolicy:\n  application_rules:\n    \
                - { name: v, fqdns: [v.example], protocols: [\"https:443\"], destination: verify }\n";
    let settings = Settings::parse(text, "t", Path::new(".")).unwrap();
    let policy = Policy::of(settings.rules, Arc::default());
    let hour = Duration::from_secs(3600);
    let (learned, start) = (Learned::new(hour), Instant::now());
    let answers = |ips: &[&str]| {
        let addresses = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        Answers { addresses, ttl: hour, is_stale: false, from_servers: true }
    };
    // A client dials an address; these are answered.
    let dials = |ip: &str, answered: &[&str], now: Instant| {
        let claim = Claim { via: Via::Intercepted, ..claim(ip, 443) };
        let known = Known::at(&learned, now);
        let Ok(Passage::Peek(expectation)) = policy.by_claim(&claim, known) else { panic!("no rule by address") };
        let sighting = Sighting::Tls(Box::new(hello("v.example")));
        let clearance = policy.by_sighting(&claim, expectation, &sighting).unwrap();
        let answers = answers(answered);
        for name in policy.learnable(&clearance, &answers) {
            learned.learn(&name, &answers.addresses, now);
        }
        let permit = policy.by_address(&clearance, &answers, known).map_err(|refusal| refusal.reason)?;
        Ok(permit.addresses().iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let minute = Duration::from_secs(60);
    assert_eq!(dials("20.1.1.1", &["20.1.1.1", "20.1.1.2"], start), Ok(vec!["20.1.1.1:443".into()]));
    assert_eq!(dials("20.1.1.9", &["20.1.1.3"], start), Err(Reason::DstNotInDns));
    assert_eq!(dials("20.1.1.2", &["20.1.1.4"], start + minute), Ok(vec!["20.1.1.2:443".into()]), "an earlier answer");
    assert_eq!(
        dials("20.1.1.3", &["20.1.1.4"], start + minute),
        Ok(vec!["20.1.1.3:443".into()]),
        "of a refused client"
    );
    assert_eq!(dials("20.1.1.2", &["20.1.1.4"], start + hour), Err(Reason::DstNotInDns), "too long ago");
    assert_eq!(dials("20.1.1.5", &["20.1.1.5", "10.0.0.1"], start), Err(Reason::AddressMixed));
    assert_eq!(dials("20.1.1.5", &["20.1.1.4"], start), Err(Reason::DstNotInDns), "a mixed answer teaches nothing");
}

#[test]
fn a_question_is_answered_where_some_rule_lists_the_name_for_the_client() {
    let text = "listeners: [{ kind: forward, bind: \"127.0.0.1:1\" }]\npolicy:\n  application_rules:\n    \
                - { name: web, fqdns: [\"*.a.example\"], protocols: [\"https:8443\"] }\n    \
                - { name: plain, action: deny, fqdns: [half.a.example], protocols: [\"http:80\"] }\n    \
                - { name: none, action: deny, fqdns: [no.a.example] }\n    \
                - { name: team, sources: [10.1.0.0/16], fqdns: [team.example], protocols: [\"https:443\"] }\n  \
                network_rules:\n    \
                - { name: time, sources: [10.1.0.0/16], fqdns: [ntp.example], protocols: [\"udp:123\"] }\n";
    let settings = Settings::parse(text, "t", Path::new(".")).unwrap();
    let policy = Policy::of(settings.rules, Arc::default());
    for (name, from, expected) in [
        ("x.a.example", "10.9.0.1", Ok("web")),
        ("half.a.example", "10.9.0.1", Ok("web")),
        ("no.a.example", "10.9.0.1", Err(Reason::RuleDenied)),
        ("a.example", "10.9.0.1", Err(Reason::NoRule)),
        ("team.example", "10.1.0.1", Ok("team")),
        ("team.example", "10.9.0.1", Err(Reason::SourceNotAllowed)),
        ("ntp.example", "10.1.0.1", Ok("time")),
        ("ntp.example", "10.9.0.1", Err(Reason::SourceNotAllowed)),
    ] {
        let (source, host) = (Source::at(from.parse().unwrap()), HostName::from_wire(name.as_bytes()).unwrap());
        let got = policy
            .by_question(&source, &host)
            .map(|clearance| clearance.matched_rule().rule.to_string())
            .map_err(|r| r.reason);
        assert_eq!(got, expected.map(str::to_owned), "{name} for {from}");
        let question = Question { subject: Subject::Dns { name: host }, source, dst: None, alpn: vec![] };
        let explained = policy.explain(&question).map(|matched| matched.rule.to_string()).map_err(|r| r.reason);
        assert_eq!(explained, got, "{name} for {from}");
    }
}

#[test]
fn an_address_answered_under_a_wildcard_is_open_by_its_rule_until_its_time_is_over() {
    let text = "listeners: [{ kind: dns, bind: \"127.0.0.1:53\" }]\npolicy:\n  network_rules:\n    \
                - { name: wild, fqdns: [\"*.a.example\"], protocols: [\"tcp:9000\"] }\n    \
                - { name: other, fqdns: [\"*.b.example\"], protocols: [\"tcp:9001\"] }\n";
    let policy = Policy::of(Settings::parse(text, "t", Path::new(".")).unwrap().rules, Arc::default());
    let (learned, now) = (Learned::new(Duration::from_secs(86_400)), Instant::now());
    let lasts = Duration::from_secs(60);
    let teach = |rule: &str, name: &str, ip: &str| {
        let name = LearnedName::new(HostName::from_wire(name.as_bytes()).unwrap(), Reach::default());
        learned.learn_for(&rule.into(), &name, &[ip.parse().unwrap()], lasts, now);
    };
    teach("wild", "x.a.example", "20.0.0.1");
    let to = |ip: &str, port, later: Duration| {
        let (claim, known) = (claim(ip, port), Known::at(&learned, now + later));
        let passage = policy.by_claim(&claim, known)?;
        let Passage::Passthrough(clearance) = passage else { panic!("{passage:?}") };
        let literal = Answers::literal(ip.parse().unwrap());
        policy.by_address(&clearance, &literal, known).map(|permit| permit.matched_rule().rule.to_string())
    };
    let reason = |result: Result<String, Refusal>| result.map_err(|refusal| refusal.reason);
    assert_eq!(reason(to("20.0.0.1", 9000, lasts / 2)), Ok("wild".into()));
    assert_eq!(reason(to("20.0.0.1", 9001, lasts / 2)), Err(Reason::NoRule), "another rule's port");
    assert_eq!(reason(to("20.0.0.2", 9000, lasts / 2)), Err(Reason::NoRule));
    assert_eq!(reason(to("20.0.0.1", 9000, lasts)), Err(Reason::NoRule), "its time is over");
    // Names of another rule at the same address, however many, leave it open.
    (0..100).for_each(|n| teach("other", &format!("n{n}.b.example"), "20.0.0.1"));
    assert_eq!(reason(to("20.0.0.1", 9000, lasts / 2)), Ok("wild".into()));
    assert_eq!(reason(to("20.0.0.1", 9001, lasts / 2)), Ok("other".into()));
}

#[test]
fn an_answer_teaches_the_rules_that_go_by_addresses_as_far_as_they_may_use_it() {
    let text = "listeners: [{ kind: dns, bind: \"127.0.0.1:53\" }]\npolicy:\n  application_rules:\n    \
                - { name: checked, fqdns: [x.a.example], protocols: [\"https:443\"], destination: verify }\n    \
                - { name: plain, fqdns: [\"*.a.example\"], protocols: [\"https:443\"] }\n  network_rules:\n    \
                - { name: wild, sources: [10.1.0.0/16], fqdns: [\"*.a.example\"], protocols: [\"tcp:9000\"] }\n    \
                - { name: inside, fqdns: [x.a.example], protocols: [\"tcp:9001\"], addresses: [10.9.0.0/16] }\n";
    let settings = Settings::parse(text, "t", Path::new(".")).unwrap();
    let policy = Policy::of(settings.rules, Arc::default());
    let name = HostName::from_wire(b"x.a.example").unwrap();
    let taught = |from: &str, addresses: &[&str]| {
        let clearance = policy.by_question(&Source::at(from.parse().unwrap()), &name).unwrap();
        let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let lessons = policy.taught(&clearance, &addresses);
        lessons.iter().map(|lesson| (lesson.rule.to_string(), lesson.by)).collect::<Vec<_>>()
    };
    let (wild, inside) = (("wild".into(), LessonUse::Wildcard), ("inside".into(), LessonUse::Network));
    let checked = ("checked".into(), LessonUse::Destination);
    // What a name leads to is known once for all rules that let it lead to the same.
    assert_eq!(taught("10.1.0.1", &["20.0.0.1"]), [wild]);
    assert_eq!(taught("10.2.0.1", &["20.0.0.1"]), [checked], "another client's rule");
    assert_eq!(taught("10.1.0.1", &["10.9.0.1"]), [inside]);
    assert_eq!(taught("10.1.0.1", &["20.0.0.1", "10.9.0.1"]), [], "a mixed answer");
    assert_eq!(taught("10.1.0.1", &[]), []);
    let classes = ["10.1.0.1", "10.1.9.9", "10.2.0.1"].map(|ip| policy.class_of(&Source::at(ip.parse().unwrap())));
    assert!(classes[0].is_some() && classes[0] == classes[1] && classes[1] != classes[2]);
    assert_eq!(policy.class_of(&Source::anybody()), classes[0], "judged as a client of every rule");
}

#[test]
fn what_is_easily_taken_for_a_listed_name_is_not_offered() {
    let rule = "{ name: registry, fqdns: [mcr.microsoft.com], protocols: [\"https:443\"] }";
    let text =
        format!("listeners: [{{ kind: forward, bind: \"127.0.0.1:1\" }}]\npolicy: {{ application_rules: [{rule}] }}\n");
    let settings = Settings::parse(&text, "lures", Path::new(".")).unwrap();
    let policy = Policy::compile(settings.rules.apps, settings.rules.nets, None, Arc::default());
    let alike = Some("rule registry allows mcr.microsoft.com, which is spelled almost alike");
    for (target, nearest, has_fix) in [
        ("mcr.micros0ft.com", alike, false),
        ("mcr-microsoft.com", alike, false),
        ("mcr2.microsoft.com", alike, true),
        ("aka.microsoft.com", Some("rule registry allows mcr.microsoft.com, which is another name"), true),
        ("github.com", None, true),
    ] {
        let question =
            Question { subject: target.parse().unwrap(), source: Source::anybody(), dst: None, alpn: vec![] };
        let hint = policy.explain(&question).unwrap_err().hint.unwrap();
        assert_eq!((hint.nearest.as_deref(), hint.fix.is_some()), (nearest, has_fix), "{target}");
    }
}
