//! Clients that ask egret's `dns` listener: what they read, and what the log says of what they do not.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsCode;
use hickory_proto::rr::rdata::svcb::{Alpn, EchConfigList, IpHint, Mandatory, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, CNAME, HTTPS, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::support::dns::{Dns, Does};
use crate::support::{Egret, Server, eventually, have, own_ip, run, text};

const PORT: u16 = 5300;

const POLICY: &str = "  application_rules:
    - name: web
      fqdns: [\"web.test\", \"*.web.test\", \"alias.test\"]
      protocols: [\"https:443\"]
    - name: inside
      fqdns: [\"inside.test\"]
      protocols: [\"https:443\"]
      addresses: [\"10.1.0.0/16\"]
    - name: mine
      sources: [\"192.0.2.0/24\"]
      fqdns: [\"mine.test\", \"*.far.glob-*.deep.test\"]
      protocols: [\"https:8443\"]
    - name: evil
      action: deny
      fqdns: [\"evil.test\", \"evil.web.test\"]
  network_rules:
    - { name: net, sources: [\"192.0.2.0/24\"], fqdns: [\"net.test\"], protocols: [\"tcp:9000\"] }
";

/// An egret that answers, with more under `dns`.
fn nameserver(dns: &Dns, more: &str) -> Egret {
    let ip = own_ip();
    let config = format!(
        "listeners: [{{ kind: dns, bind: \"{ip}:{PORT}\" }}]\nadmin: {{ bind: \"{ip}:9901\" }}\n\
         dns:\n  upstreams: [\"{}\"]\n  min_ttl: 0s\n{more}\npolicy:\n{POLICY}",
        dns.address
    );
    Egret::run(&config, ip)
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_version(0);
    message.set_edns(edns);
    message
}

fn over_udp(egret: &Egret, message: &[u8]) -> Option<Vec<u8>> {
    // One client for all.
    let socket = UdpSocket::bind((egret.ip, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.connect((egret.ip, PORT)).unwrap();
    socket.send(message).unwrap();
    let mut buffer = [0; 4096];
    socket.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec())
}

fn ask(egret: &Egret, name: &str, kind: RecordType) -> Message {
    let message = question(name, kind);
    let answer = Message::from_vec(&over_udp(egret, &message.to_vec().unwrap()).unwrap()).unwrap();
    assert_eq!((answer.id, answer.queries[0].name.to_ascii()), (message.id, name.to_owned()));
    answer
}

fn shown(answer: &Message) -> Vec<String> {
    answer.answers.iter().map(|record| format!("{} {}", record.name, record.data)).collect()
}

/// The info code and the text of an extended error.
fn error(answer: &Message) -> Option<(u16, String)> {
    let option: Vec<u8> = answer.edns.as_ref()?.option(EdnsCode::Unknown(15))?.try_into().unwrap();
    Some((u16::from_be_bytes([option[0], option[1]]), String::from_utf8(option[2..].to_vec()).unwrap()))
}

/// A refused question as the client and the log see it.
#[track_caller]
fn refused(egret: &Egret, name: &str, kind: RecordType, code: ResponseCode, reason: &str) -> serde_json::Value {
    let answer = ask(egret, name, kind);
    assert_eq!((answer.response_code, answer.answers.len()), (code, 0), "{name}");
    let plain = name.trim_end_matches('.').to_lowercase();
    let record = egret.record(name, |record| record["name"] == plain.as_str() && record["reason"] == reason);
    assert_eq!(
        (&record["event"], &record["verdict"], &record["name_source"]),
        (&"dns".into(), &"deny".into(), &"dns".into())
    );
    record
}

fn ip(n: u8) -> IpAddr {
    IpAddr::from([20, 0, 0, n])
}

fn record(owner: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(Name::from_ascii(owner).unwrap(), ttl, data)
}

fn a(owner: &str, n: u8) -> Record {
    record(owner, 60, RData::A(A([20, 0, 0, n].into())))
}

fn alias(owner: &str, ttl: u32, target: &str) -> Record {
    record(owner, ttl, RData::CNAME(CNAME(Name::from_ascii(target).unwrap())))
}

#[test]
fn what_is_listed_is_answered_and_nothing_else() {
    let dns = Dns::start();
    dns.set("a.web.test", Does::Answer(vec![ip(1), ip(2)])).set("mine.test", Does::Answer(vec![ip(3)]));
    let egret = nameserver(&dns, "");
    let answer = ask(&egret, "A.wEb.test.", RecordType::A);
    assert_eq!(shown(&answer), ["A.wEb.test. 20.0.0.1", "A.wEb.test. 20.0.0.2"]);
    assert!(answer.recursion_available && answer.recursion_desired && error(&answer).is_none());
    assert_eq!(ask(&egret, "a.web.test.", RecordType::AAAA).response_code, ResponseCode::NoError);
    assert_eq!(
        ask(&egret, "b.web.test.", RecordType::A).response_code,
        ResponseCode::NXDomain,
        "listed, and not there"
    );
    let line = refused(&egret, "nope.test.", RecordType::A, ResponseCode::NXDomain, "no_rule");
    assert!(line["nearest"].is_string() && line["fix"].as_str().unwrap().contains("nope.test"), "{line:#}");
    assert_eq!(error(&ask(&egret, "nope.test.", RecordType::A)), Some((15, "no_rule".into())));
    refused(&egret, "evil.web.test.", RecordType::A, ResponseCode::NXDomain, "rule_denied");
    refused(&egret, "mine.test.", RecordType::A, ResponseCode::NXDomain, "source_not_allowed");
    for name in ["nope.test", "evil.web.test", "mine.test"] {
        assert_eq!(dns.asked(name), 0, "{name} is not asked for upstream");
    }
    let soa = ask(&egret, "nope.test.", RecordType::A);
    assert!(matches!(&soa.authorities[0].data, RData::SOA(soa) if soa.minimum == 10), "{soa:?}");
}

#[test]
fn what_is_above_a_listed_name_is_there_and_empty() {
    let (dns, before) = (Dns::start(), "deep.test");
    let egret = nameserver(&dns, "  forwarders: [\"127.0.0.0/8\"]");
    for name in ["test.", "deep.test.", "glob-x.deep.test.", "far.glob-x.deep.test."] {
        for kind in [RecordType::A, RecordType::NS, RecordType::TXT] {
            let answer = ask(&egret, name, kind);
            assert_eq!((answer.response_code, answer.answers.len()), (ResponseCode::NoError, 0), "{name} {kind}");
        }
    }
    refused(&egret, "x.deep.test.", RecordType::A, ResponseCode::NXDomain, "no_rule");
    assert_eq!(dns.asked(before), 0);
    assert_eq!(egret.records().len(), 1, "what is above is not refused");
    // For its client alone, and a denial lists nothing.
    let egret = nameserver(&dns, "");
    assert_eq!(ask(&egret, "test.", RecordType::A).response_code, ResponseCode::NoError);
    refused(&egret, "deep.test.", RecordType::A, ResponseCode::NXDomain, "no_rule");
    let line = refused(&egret, "net.test.", RecordType::A, ResponseCode::NXDomain, "source_not_allowed");
    assert_eq!(line["nearest"], "rule net allows it, for sources 192.0.2.0/24", "{line:#}");
}

#[test]
fn kinds_that_are_not_for_connections_are_absent_unless_listed() {
    let dns = Dns::start();
    let texts = vec![record("a.web.test.", 60, RData::TXT(TXT::new(vec!["hello".into()])))];
    dns.set("a.web.test", Does::Records(texts));
    let egret = nameserver(&dns, "");
    let line = refused(&egret, "a.web.test.", RecordType::TXT, ResponseCode::NoError, "qtype_denied");
    assert!(line["nearest"].as_str().unwrap().starts_with("TXT records are not answered"), "{line:#}");
    assert_eq!(error(&ask(&egret, "a.web.test.", RecordType::TXT)), Some((17, "qtype_denied".into())));
    let line = refused(&egret, "a.web.test.", RecordType::Unknown(256), ResponseCode::NoError, "qtype_denied");
    assert!(line["nearest"].as_str().unwrap().contains("records are not answered"), "{line:#}");
    let any = ask(&egret, "a.web.test.", RecordType::ANY);
    assert_eq!((any.response_code, error(&any)), (ResponseCode::NoError, Some((17, "qtype_denied".into()))));
    egret.record("ANY", |line| line["nearest"] == "ANY is not a kind of record that a name has");
    let lists = nameserver(&dns, "  types: [TXT]");
    assert_eq!(shown(&ask(&lists, "a.web.test.", RecordType::TXT)), ["a.web.test. hello"]);
}

#[test]
fn aliases_are_flattened_or_passed_on_and_a_denied_target_spoils_the_answer() {
    let dns = Dns::start();
    let chain = vec![
        alias("alias.test.", 9, "one.elsewhere."),
        alias("one.elsewhere.", 60, "two.elsewhere."),
        a("two.elsewhere.", 1),
        a("stray.test.", 9),
    ];
    dns.set("alias.test", Does::Records(chain));
    dns.set("bad.web.test", Does::Records(vec![alias("bad.web.test.", 60, "evil.test."), a("evil.test.", 1)]));
    dns.set("loop.web.test", Does::AliasLoop);
    let egret = nameserver(&dns, "");
    let answer = ask(&egret, "alias.test.", RecordType::A);
    assert_eq!(shown(&answer), ["alias.test. 20.0.0.1"]);
    assert!(answer.answers[0].ttl <= 9, "the shortest life on the way");
    let line = refused(&egret, "bad.web.test.", RecordType::A, ResponseCode::NoError, "rule_denied");
    assert_eq!(line["rule"], "evil");
    refused(&egret, "bad.web.test.", RecordType::CNAME, ResponseCode::NoError, "rule_denied");
    let looping = ask(&egret, "loop.web.test.", RecordType::A);
    assert_eq!(looping.response_code, ResponseCode::ServFail);
    egret.record("the loop", |record| record["reason"] == "cname_loop");
    let keeps = nameserver(&dns, "  chain: keep");
    let kept = shown(&ask(&keeps, "alias.test.", RecordType::A));
    assert_eq!(kept, ["alias.test. one.elsewhere.", "one.elsewhere. two.elsewhere.", "two.elsewhere. 20.0.0.1"]);
}

#[test]
fn private_addresses_are_answered_where_their_range_is_listed() {
    let dns = Dns::start();
    let (private, other): (IpAddr, IpAddr) = ("10.1.0.9".parse().unwrap(), "10.2.0.9".parse().unwrap());
    dns.set("a.web.test", Does::Answer(vec![private])).set("b.web.test", Does::Answer(vec![ip(1), private]));
    dns.set("inside.test", Does::Answer(vec![private])).set("c.web.test", Does::Answer(vec![other]));
    let egret = nameserver(&dns, "");
    refused(&egret, "a.web.test.", RecordType::A, ResponseCode::NoError, "address_denied");
    refused(&egret, "b.web.test.", RecordType::A, ResponseCode::NoError, "address_mixed");
    assert_eq!(error(&ask(&egret, "b.web.test.", RecordType::A)), Some((17, "unreachable".into())));
    assert_eq!(shown(&ask(&egret, "inside.test.", RecordType::A)), ["inside.test. 10.1.0.9"]);
    let local = nameserver(&dns, "  local_ranges: [\"10.1.0.0/16\"]");
    assert_eq!(ask(&local, "b.web.test.", RecordType::A).answers.len(), 2);
    let fixed = nameserver(&dns, "  hosts: { web.test: [\"20.0.0.9\"], nope.test: [\"20.0.0.8\"] }");
    assert_eq!(shown(&ask(&fixed, "web.test.", RecordType::A)), ["web.test. 20.0.0.9"]);
    assert_eq!((ask(&fixed, "web.test.", RecordType::AAAA).answers.len(), dns.asked("web.test")), (0, 0));
    refused(&fixed, "nope.test.", RecordType::A, ResponseCode::NXDomain, "no_rule");
    refused(&local, "c.web.test.", RecordType::A, ResponseCode::NoError, "address_denied");
}

#[test]
fn service_records_lead_to_tcp_in_the_clear_and_to_listed_names_alone() {
    let dns = Dns::start();
    let service = |priority, target: &str, params: Vec<(SvcParamKey, SvcParamValue)>| {
        record("a.web.test.", 60, RData::HTTPS(HTTPS(SVCB::new(priority, Name::from_ascii(target).unwrap(), params))))
    };
    let alpn =
        |all: &[&str]| (SvcParamKey::Alpn, SvcParamValue::Alpn(Alpn(all.iter().map(|p| (*p).to_owned()).collect())));
    let hint = |n: [u8; 4]| (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![A(n.into())])));
    let ech = || (SvcParamKey::EchConfigList, SvcParamValue::EchConfigList(EchConfigList(vec![1, 2, 3])));
    let mandatory = |keys: &[SvcParamKey]| (SvcParamKey::Mandatory, SvcParamValue::Mandatory(Mandatory(keys.to_vec())));
    let no_default = || (SvcParamKey::NoDefaultAlpn, SvcParamValue::NoDefaultAlpn);
    let port = |port| (SvcParamKey::Port, SvcParamValue::Port(port));
    dns.set(
        "a.web.test",
        Does::Records(vec![
            service(
                1,
                ".",
                vec![mandatory(&[SvcParamKey::EchConfigList]), alpn(&["h3", "h2"]), hint([20, 0, 0, 1]), ech()],
            ),
            service(2, ".", vec![alpn(&["h2"]), hint([10, 0, 0, 1])]),
            service(3, ".", vec![alpn(&["h3"]), no_default()]),
            service(4, ".", vec![alpn(&["h2"]), port(8443)]),
            service(5, "evil.test.", vec![alpn(&["h2"])]),
            service(6, "b.web.test.", vec![port(443)]),
        ]),
    );
    dns.set(
        "b.web.test",
        Does::Records(vec![record(
            "b.web.test.",
            60,
            RData::HTTPS(HTTPS(SVCB::new(0, Name::from_ascii("elsewhere.").unwrap(), vec![]))),
        )]),
    );
    let srv = |target: &str| {
        record("_x._tcp.web.test.", 60, RData::SRV(SRV::new(1, 1, 443, Name::from_ascii(target).unwrap())))
    };
    dns.set("_x._tcp.web.test", Does::Records(vec![srv("a.web.test."), srv("elsewhere.")]));
    let egret = nameserver(&dns, "");
    let answer = ask(&egret, "a.web.test.", RecordType::HTTPS);
    let services: Vec<&SVCB> = answer
        .answers
        .iter()
        .map(|record| match &record.data {
            RData::HTTPS(https) => &https.0,
            other => panic!("{other}"),
        })
        .collect();
    let all: Vec<(u16, Vec<SvcParamKey>)> = services
        .iter()
        .map(|service| (service.svc_priority, service.svc_params.iter().map(|(key, _)| *key).collect()))
        .collect();
    assert_eq!(
        all,
        [
            (1, vec![SvcParamKey::Alpn, SvcParamKey::Ipv4Hint]),
            (2, vec![SvcParamKey::Alpn]),
            (6, vec![SvcParamKey::Port]),
        ]
    );
    assert_eq!(services[0].svc_params[0].1, SvcParamValue::Alpn(Alpn(vec!["h2".into()])));
    let none = ask(&egret, "b.web.test.", RecordType::HTTPS);
    assert_eq!((none.response_code, none.answers.len(), none.authorities.len()), (ResponseCode::NoError, 0, 1));
    assert_eq!(shown(&ask(&egret, "_x._tcp.web.test.", RecordType::SRV)), ["_x._tcp.web.test. 1 1 443 a.web.test."]);
    // Hints are addresses: no answer has more than 256.
    let hints = (0..257_u32).map(|n| A((0x1400_0000 + n).into())).collect();
    let hints = vec![(SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(hints)))];
    let many = RData::HTTPS(HTTPS(SVCB::new(1, Name::root(), hints)));
    dns.set("many.web.test", Does::Records(vec![record("many.web.test.", 60, many)]));
    refused(&egret, "many.web.test.", RecordType::HTTPS, ResponseCode::ServFail, "bad_dns");
}

#[test]
fn forwarders_ask_for_every_client_and_other_names_are_answered_where_they_are_listed() {
    let dns = Dns::start();
    dns.set("*", Does::Answer(vec![ip(7)]));
    let egret = nameserver(&dns, "  forwarders: [\"127.0.0.0/8\"]\n  also: [\"*.search.test\"]");
    assert_eq!(ask(&egret, "mine.test.", RecordType::A).answers.len(), 1, "it is another client's");
    assert_eq!(ask(&egret, "x.search.test.", RecordType::A).answers.len(), 1);
    refused(&egret, "nope.test.", RecordType::A, ResponseCode::NXDomain, "no_rule");
    let open = nameserver(&dns, "  filter: off\n  refused: refused");
    assert_eq!(ask(&open, "nope.test.", RecordType::A).answers.len(), 1);
    refused(&open, "evil.test.", RecordType::A, ResponseCode::Refused, "rule_denied");
}

#[test]
fn messages_without_a_question_are_answered_and_logged() {
    let (dns, raw) = (Dns::start(), |bytes: &[u8]| bytes.to_vec());
    dns.set("a.web.test", Does::Answer(vec![ip(1)]));
    let egret = nameserver(&dns, "");
    let good = question("a.web.test.", RecordType::A).to_vec().unwrap();
    let changed = |at: usize, byte: u8| {
        let mut message = good.clone();
        message[at] = byte;
        over_udp(&egret, &message).map(|answer| (answer[2] >> 3 & 15, answer[3] & 15))
    };
    assert_eq!(changed(2, 0x28), Some((5, 4)), "an update is not implemented");
    assert_eq!(changed(5, 2), Some((0, 1)), "two questions");
    for n in 0..2 {
        let line = egret.record_number(n);
        assert_eq!((&line["event"], &line["reason"], line.get("name")), (&"dns".into(), &"bad_request".into(), None));
    }
    let chaos = {
        let mut message = good.clone();
        let at = 12 + "a.web.test.".len() + 1 + 3;
        message[at] = 3;
        over_udp(&egret, &message).unwrap()
    };
    assert_eq!(chaos[3] & 15, 5, "the class is refused");
    let mut response = raw(&good);
    response[2] |= 0x80;
    let socket = UdpSocket::bind((own_ip(), 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket.send_to(&response, (egret.ip, PORT)).unwrap();
    assert!(socket.recv(&mut [0; 100]).is_err(), "a response is not answered");
    let mut version = question("a.web.test.", RecordType::A);
    version.edns.as_mut().unwrap().set_version(1);
    let answer = Message::from_vec(&over_udp(&egret, &version.to_vec().unwrap()).unwrap()).unwrap();
    assert_eq!(u16::from(answer.response_code), 16, "BADVERS");
    let mut odd = vec![0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, b'a', b' ', b'b', 0, 0, 1, 0, 1];
    assert_eq!(over_udp(&egret, &odd).unwrap()[3] & 15, 3);
    egret.record("the odd name", |record| record["reason"] == "bad_host" && record["name_raw"] == "a b.");
    let dotted = [&odd[..12], &[3, b'a', b'.', b'b', 0, 0, 1, 0, 1]].concat();
    assert_eq!(over_udp(&egret, &dotted).unwrap()[3] & 15, 3);
    egret.record("a dot amid a label", |record| record["name_raw"].as_str().is_some_and(|raw| raw.contains("a\\")));
    // The root's servers, as resolvers ask for them: no refusal, and nothing to tell.
    let lines = egret.records().len();
    let root = over_udp(&egret, &question(".", RecordType::NS).to_vec().unwrap()).unwrap();
    assert_eq!((root[3] & 15, egret.records().len()), (0, lines));
    socket.send_to(&[&good[..], &[0; 5000]].concat(), (egret.ip, PORT)).unwrap();
    let mut stream = TcpStream::connect((egret.ip, PORT)).unwrap();
    stream.write_all(&[&[0x20, 0][..], &[0; 100]].concat()).unwrap();
    assert_eq!(stream.read(&mut [0; 10]).unwrap_or(0), 0, "the connection ends");
    eventually("a line for each large message", || {
        let large = |line: &&serde_json::Value| line["nearest"].as_str().is_some_and(|why| why.contains("4096 bytes"));
        egret.records().iter().filter(large).count() == 2
    });
    odd.truncate(9);
    assert_eq!(ask(&egret, "a.web.test.", RecordType::A).answers.len(), 1, "it still answers");
}

#[test]
fn many_questions_on_one_connection_are_answered_as_they_come() {
    let dns = Dns::start();
    dns.set("slow.web.test", Does::Silence).set("*", Does::Answer(vec![ip(1)]));
    let egret = nameserver(&dns, "limits: { dns: 2s }");
    let mut stream = TcpStream::connect((egret.ip, PORT)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut all = Vec::new();
    let names: Vec<String> = std::iter::once("slow".to_owned()).chain((0..50).map(|n| format!("n{n}"))).collect();
    for (n, name) in (0u16..).zip(&names) {
        let mut message = question(&format!("{name}.web.test."), RecordType::A);
        message.metadata.id = n;
        let bytes = message.to_vec().unwrap();
        all.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
        all.extend(bytes);
    }
    let (front, rest) = all.split_at(7);
    stream.write_all(front).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    stream.write_all(rest).unwrap();
    let mut seen = Vec::new();
    for _ in &names {
        let mut len = [0; 2];
        stream.read_exact(&mut len).unwrap();
        let mut bytes = vec![0; usize::from(u16::from_be_bytes(len))];
        stream.read_exact(&mut bytes).unwrap();
        let answer = Message::from_vec(&bytes).unwrap();
        seen.push((answer.id, answer.response_code));
    }
    assert_eq!(seen.last(), Some(&(0, ResponseCode::ServFail)), "the slow one is the last");
    let mut ids: Vec<u16> = seen.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..51).collect::<Vec<_>>());
    let many = (0..200).map(|n| a("big.web.test.", n)).collect();
    dns.set("big.web.test", Does::Records(many));
    let cut = ask(&egret, "big.web.test.", RecordType::A);
    assert!(cut.truncation && cut.answers.is_empty(), "over UDP it does not fit");
}

#[test]
fn a_connection_without_room_ends_with_a_line() {
    let dns = Dns::start();
    dns.set("slow.web.test", Does::Silence);
    let egret = nameserver(&dns, "limits: { connections_per_client: 1 }");
    let mut busy = TcpStream::connect((egret.ip, PORT)).unwrap();
    let bytes = question("slow.web.test.", RecordType::A).to_vec().unwrap();
    busy.write_all(&[&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat()).unwrap();
    eventually("the question has arrived", || dns.asked("slow.web.test") > 0);
    let mut second = TcpStream::connect((egret.ip, PORT)).unwrap();
    assert_eq!(second.read(&mut [0; 1]).unwrap_or(0), 0);
    egret.record("the second", |record| record["event"] == "dns" && record["reason"] == "too_many_connections");
}

#[test]
fn a_silent_server_leaves_old_answers_and_they_say_so() {
    let dns = Dns::start();
    let egret = nameserver(&dns, "  max_ttl: 1s\nlimits: { dns: 1s }");
    dns.set("a.web.test", Does::Answer(vec![ip(1)]));
    assert_eq!(ask(&egret, "a.web.test.", RecordType::A).answers.len(), 1);
    dns.set("a.web.test", Does::Silence).set("b.web.test", Does::Silence);
    std::thread::sleep(Duration::from_millis(1100));
    let stale = ask(&egret, "a.web.test.", RecordType::A);
    assert_eq!((shown(&stale).len(), stale.answers[0].ttl, error(&stale)), (1, 30, Some((3, String::new()))));
    assert_eq!(ask(&egret, "b.web.test.", RecordType::A).response_code, ResponseCode::ServFail);
    egret.record("the other", |record| record["name"] == "b.web.test" && record["reason"] == "dns_timeout");
    dns.set("b.web.test", Does::NoSuchName).set("a.web.test", Does::Answer(vec![ip(2)]));
    // However long egret may wait, its clients do not.
    let patient = nameserver(&dns, "limits: { dns: 30s }");
    dns.set("c.web.test", Does::Silence);
    assert_eq!(ask(&patient, "c.web.test.", RecordType::A).response_code, ResponseCode::ServFail);
    eventually("the new answer", || shown(&ask(&egret, "a.web.test.", RecordType::A)) == ["a.web.test. 20.0.0.2"]);
}

#[test]
fn data_in_new_names_is_bounded_and_known_names_go_on() {
    let dns = Dns::start();
    dns.set("*", Does::Answer(vec![ip(1)]));
    let egret = nameserver(&dns, "limits: { dns_new_names: 600 }");
    let tunnel = |n: usize| ask(&egret, &format!("{n:050}.web.test."), RecordType::A);
    assert_eq!(ask(&egret, "known.web.test.", RecordType::A).answers.len(), 1);
    let refused = (0..40).filter(|n| tunnel(*n).response_code == ResponseCode::ServFail).count();
    assert!((27..=30).contains(&refused), "{refused} of 40 with 51 characters each");
    let line = egret.record("the tunnel", |record| record["reason"] == "rate_limited");
    assert_eq!((&line["stage"], &line["pattern"]), (&"limit".into(), &"*.web.test".into()), "{line:#}");
    assert_eq!(ask(&egret, "known.web.test.", RecordType::A).answers.len(), 1, "a name that was answered");
    assert_eq!(ask(&egret, "alias.test.", RecordType::A).answers.len(), 1, "a name that a rule lists");
    assert!(egret.metrics().contains("egret_dns_questions_total{outcome=\"refused\"}"));
}

#[test]
fn real_clients_read_the_answers() {
    if !have(&["dig"]) {
        return;
    }
    let dns = Dns::start();
    dns.set("a.web.test", Does::Answer(vec![ip(1)]));
    let egret = nameserver(&dns, "");
    let at = SocketAddr::new(egret.ip, PORT);
    let dig = |more: &[&str]| {
        let (server, port) = (format!("@{}", at.ip()), at.port().to_string());
        text(&run("dig", &[&[&server, "-p", &port, "+tries=1"], more].concat()))
    };
    for how in ["+noedns", "+edns=0", "+tcp", "+dnssec", "+cookie"] {
        let said = dig(&["a.web.test", how]);
        assert!(
            said.contains("status: NOERROR") && said.contains("20.0.0.1") && !said.contains("WARNING"),
            "{how}: {said}"
        );
    }
    let said = dig(&["nope.test", "AAAA"]);
    assert!(said.contains("status: NXDOMAIN") && said.contains("EDE: 15 (Blocked): (no_rule)"), "{said}");
}

#[test]
fn explain_says_what_an_answer_opens_and_whether_it_is_synthetic() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.yaml");
    let config = "listeners: [{ kind: dns, bind: \"127.0.0.1:53\" }, { kind: transparent, bind: \"[::]:3129\", capture: tproxy }]
netfilter: { clients: [10.0.0.0/8] }
dns: { steer: true }
learn: { state_dir: state }
policy:
  application_rules:
    - { name: web, fqdns: [\"*.web.test\"], protocols: [\"https:443\"] }
  network_rules:
    - { name: tunnel, fqdns: [\"*.tun.test\"], protocols: [\"tcp:9000\", \"udp:1194\"] }
    - { name: real, fqdns: [\"*.real.test\"], protocols: [\"tcp:9000\"], steer: false }
";
    std::fs::write(&file, config).unwrap();
    let explain =
        |name: &str| text(&run(env!("CARGO_BIN_EXE_egret"), &["explain", "--config", file.to_str().unwrap(), name]));
    let said = explain("dns://a.tun.test");
    assert!(said.contains("opens    tunnel tcp:9000, udp:1194") && said.contains("a synthetic address"), "{said}");
    let said = explain("dns://a.real.test");
    assert!(said.contains("opens    real tcp:9000") && !said.contains("synthetic"), "{said}");
    let said = explain("dns://a.web.test");
    assert!(said.contains("answer   a synthetic address") && !said.contains("opens"), "{said}");
}

#[test]
fn clients_of_sni_listeners_are_led_to_them_by_answers() {
    let dns = Dns::start();
    let hints = SvcParamValue::Ipv4Hint(IpHint(vec![A([20, 0, 0, 1].into())]));
    let https = HTTPS(SVCB::new(1, Name::root(), vec![(SvcParamKey::Ipv4Hint, hints)]));
    let data = record("web.test.", 60, RData::HTTPS(https));
    let ip = own_ip();
    let steered = format!(
        "listeners: [{{ kind: dns, bind: \"{ip}:{PORT}\" }}, {{ kind: sni, bind: \"{ip}:8443\", port: 443 }}]\n\
         dns: {{ upstreams: [\"{}\"], steer: self }}\nadmin: {{ bind: \"{ip}:9901\" }}\npolicy:\n{POLICY}    - {{ name: both, fqdns: [\"both.web.test\"], protocols: [\"tcp:9000\"] }}\n",
        dns.address
    );
    dns.answer("*", &["20.0.0.1", "2a01:60::1"]);
    dns.set("web.test", Does::Records(vec![a("web.test.", 1), data]));
    dns.answer("private.web.test", &["10.9.9.9"]);
    let egret = Egret::run(&steered, ip);
    let answers = |name: &str, kind| shown(&ask(&egret, name, kind));
    assert_eq!(answers("a.web.test.", RecordType::A), [format!("a.web.test. {ip}")]);
    assert_eq!(answers("a.web.test.", RecordType::AAAA), [] as [&str; 0], "the listener has none of the family");
    assert_eq!(answers("web.test.", RecordType::HTTPS), ["web.test. 1 ."], "without hints");
    // Flows of network rules would come here, too, and the guard is asked first.
    assert_eq!(answers("both.web.test.", RecordType::A), ["both.web.test. 20.0.0.1"]);
    refused(&egret, "private.web.test.", RecordType::A, ResponseCode::NoError, "address_denied");
    refused(&egret, "other.test.", RecordType::A, ResponseCode::NXDomain, "no_rule");
}

#[test]
fn a_name_in_use_is_asked_for_again_before_its_time_is_over() {
    let dns = Dns::start();
    for name in ["used.web.test", "unused.web.test"] {
        dns.set(name, Does::Records(vec![record(&format!("{name}."), 20, RData::A(A([20, 0, 0, 1].into())))]));
    }
    let egret = nameserver(&dns, "");
    let begun = Instant::now();
    let ask_at = |wait: u64| {
        std::thread::sleep(Duration::from_secs(wait).saturating_sub(begun.elapsed()));
        ask(&egret, "used.web.test.", RecordType::A)
    };
    ask(&egret, "unused.web.test.", RecordType::A);
    ask_at(0);
    ask_at(10);
    assert_eq!(dns.asked("used.web.test"), 1, "amid its time");
    std::thread::sleep(Duration::from_millis(18_300).saturating_sub(begun.elapsed()));
    let answer = ask(&egret, "used.web.test.", RecordType::A);
    assert!(answer.answers[0].ttl <= 2, "{answer}");
    eventually("it is asked for again", || dns.asked("used.web.test") == 2);
    assert!(begun.elapsed() < Duration::from_secs(20), "while the old answer holds");
    eventually("clients read the new one", || ask(&egret, "used.web.test.", RecordType::A).answers[0].ttl > 15);
    assert_eq!((dns.asked("used.web.test"), dns.asked("unused.web.test")), (2, 1));
}

#[test]
fn a_question_that_comes_back_ends_at_once() {
    if !have(&["dnsmasq"]) {
        return;
    }
    let (ip, server) = (own_ip(), own_ip());
    let mut dnsmasq = Command::new("dnsmasq");
    dnsmasq.args(["--no-daemon", "--no-resolv", "--no-hosts", "--pid-file=", "--bind-interfaces", "--port=5399"]);
    dnsmasq.args([format!("--listen-address={server}"), format!("--server={ip}#{PORT}")]);
    let _dnsmasq = Server::start(&mut dnsmasq, SocketAddr::new(server, 5399));
    let egret = Egret::run(
        &format!(
            "listeners: [{{ kind: dns, bind: \"{ip}:{PORT}\" }}]\nadmin: {{ bind: \"{ip}:9901\" }}\n\
             dns: {{ upstreams: [\"{server}:5399\"] }}\npolicy:\n{POLICY}"
        ),
        ip,
    );
    let begun = Instant::now();
    let answer = ask(&egret, "in-a-circle.web.test.", RecordType::A);
    assert_eq!(answer.response_code, ResponseCode::ServFail);
    // Not the time that a question may take.
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let line = egret.record("the question that came back", |line| {
        line["nearest"].as_str().is_some_and(|nearest| nearest.starts_with("this is egret's own question"))
    });
    assert_eq!((&line["reason"], &line["stage"]), (&"dns_failed".into(), &"dns".into()), "{line:#}");
    assert!(egret.errors().contains("DNS questions go in a circle"), "{}", egret.errors());
}

#[test]
fn one_client_opens_so_many_addresses_under_a_wildcard_and_no_more() {
    let dns = Dns::start();
    dns.set("*", Does::Rebind((1..=250).map(ip).collect()));
    for n in 0..20 {
        let many: Vec<Record> =
            (0..200).map(|m| record(&format!("n{n}.tun.test."), 1, RData::A(A([20, 1, n, m].into())))).collect();
        dns.set(&format!("n{n}.tun.test"), Does::Records(many));
    }
    let own = own_ip();
    let config = format!(
        "listeners: [{{ kind: dns, bind: \"{own}:{PORT}\" }}]\nadmin: {{ bind: \"{own}:9901\" }}\n\
         dns: {{ upstreams: [\"{}\"] }}\npolicy:\n{POLICY}    - {{ name: tunnel, fqdns: [\"*.tun.test\"], protocols: [\"tcp:9000\"] }}\n",
        dns.address
    );
    let egret = Egret::run(&config, own);
    let answered = (0..20).filter(|n| {
        // By TCP, for which an answer is never too long.
        let said = run(
            "dig",
            &[
                "+tcp",
                "+tries=1",
                &format!("@{own}"),
                "-p",
                &PORT.to_string(),
                "-b",
                &own.to_string(),
                &format!("n{n}.tun.test"),
            ],
        );
        text(&said).contains("status: NOERROR")
    });
    assert_eq!(answered.count(), 5, "1,024 addresses");
    let line = egret.record("the bound", |line| line["reason"] == "rate_limited");
    assert_eq!(line["rule"], "tunnel", "{line:#}");
    assert!(!shown(&ask(&egret, "web.test.", RecordType::A)).is_empty(), "names of other rules go on");
}

#[test]
fn what_an_alias_leads_to_may_be_asked_for_where_aliases_are_passed_on() {
    let dns = Dns::start();
    let alias = record("alias.test.", 60, RData::CNAME(CNAME(Name::from_ascii("far.other.test.").unwrap())));
    dns.set("alias.test", Does::Records(vec![alias, a("far.other.test.", 1)]));
    dns.answer("far.other.test", &["20.0.0.1"]);
    let kept = nameserver(&dns, "  chain: keep");
    refused(&kept, "far.other.test.", RecordType::A, ResponseCode::NXDomain, "no_rule");
    assert_eq!(ask(&kept, "alias.test.", RecordType::A).answers.len(), 2);
    assert_eq!(shown(&ask(&kept, "far.other.test.", RecordType::A)), ["far.other.test. 20.0.0.1"]);
    refused(&kept, "near.other.test.", RecordType::A, ResponseCode::NXDomain, "no_rule");
    let flat = nameserver(&dns, "");
    assert_eq!(shown(&ask(&flat, "alias.test.", RecordType::A)), ["alias.test. 20.0.0.1"]);
    assert_eq!(ask(&flat, "alias.test.", RecordType::CNAME).answers.len(), 1);
    refused(&flat, "far.other.test.", RecordType::A, ResponseCode::NXDomain, "no_rule");
}

#[test]
fn keys_are_asked_for_only_of_zones_above_listed_names() {
    let dns = Dns::start();
    let ip = own_ip();
    let config = |dnssec: &str| {
        format!(
            "listeners: [{{ kind: dns, bind: \"{ip}:{PORT}\" }}]\nadmin: {{ bind: \"{ip}:9901\" }}\n\
             dns: {{ upstreams: [\"{}\"], dnssec: {dnssec} }}\npolicy:\n  application_rules:\n    \
             - {{ name: db, fqdns: [\"db.*.rds.test\"], protocols: [\"https:443\"] }}\n",
            dns.address
        )
    };
    let zones = ["rds.test.", "data.rds.test.", "more.data.rds.test.", "other.test."];
    {
        let egret = Egret::run(&config("stripped"), ip);
        zones.iter().for_each(|zone| drop(ask(&egret, zone, RecordType::DNSKEY)));
        assert_eq!(zones.map(|zone| dns.asked(zone.trim_end_matches('.'))), [0; 4]);
    }
    let egret = Egret::run(&config("intact"), ip);
    zones.iter().for_each(|zone| drop(ask(&egret, zone, RecordType::DNSKEY)));
    let asked = zones.map(|zone| dns.asked(zone.trim_end_matches('.')) > 0);
    assert_eq!(asked, [true, false, false, false], "what is above through a wildcard could carry data");
}
