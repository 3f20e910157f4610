//! What a name's server says, and what becomes of it: each fault to its reason.

use std::io::Write;

use hickory_server::net::xfer::Protocol;
use serde_json::Value;

use crate::clients::{HTTP, HTTPS, policy};
use crate::support::dns::{Dns, Does};
use crate::support::hello::Hello;
use crate::support::origin::Recorder;
use crate::support::{Egret, allowed, eventually, own_ip, read_all, refused, tunnel};

pub fn ask(egret: &Egret, name: &str) -> Value {
    let mut stream = tunnel(egret, &format!("{name}:10443"));
    let local = stream.local_addr().unwrap();
    stream.write_all(&Hello::named(name).record()).unwrap();
    let _ = stream.shutdown(std::net::Shutdown::Write);
    read_all(&mut stream);
    egret.record_of(local)
}

#[test]
fn each_fault_of_dns_has_its_reason() {
    let (dns, ip) = (Dns::start(), own_ip());
    let origin = Recorder::start(ip, HTTPS, &[21, 3, 3, 0, 2, 2, 40]);
    dns.set("none.web.test", Does::NoSuchName)
        .set("empty.web.test", Does::Answer(vec![]))
        .set("fail.web.test", Does::Fail)
        .set("silent.web.test", Does::Silence)
        .set("loop.web.test", Does::AliasLoop)
        .set("stray.web.test", Does::Stray(vec![ip]))
        .set("alias.web.test", Does::Alias("far.elsewhere.test".into(), vec![ip]))
        .set("long.web.test", Does::TooLong(vec![ip]));
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "limits: { dns: 1s }");
    refused(&ask(&egret, "none.web.test"), "no_such_name", "dns");
    refused(&ask(&egret, "empty.web.test"), "no_such_name", "dns");
    refused(&ask(&egret, "fail.web.test"), "dns_failed", "dns");
    refused(&ask(&egret, "silent.web.test"), "dns_timeout", "dns");
    refused(&ask(&egret, "loop.web.test"), "cname_loop", "dns");
    refused(&ask(&egret, "stray.web.test"), "no_such_name", "dns");
    assert_eq!(origin.count(), 0);
    allowed(&ask(&egret, "alias.web.test"), "web");
    assert_eq!(dns.asked("far.elsewhere.test"), 0, "an alias in the answer is not asked for");
    allowed(&ask(&egret, "long.web.test"), "web");
    assert!(dns.asked_over("long.web.test", Protocol::Tcp) > 0, "cut answers are asked for again over TCP");
    assert_eq!(origin.count(), 2);
}

#[test]
fn servers_and_families_that_are_silent_do_not_hide_the_others() {
    let (dns, ip, own) = (Dns::start(), own_ip(), own_ip());
    let _origin = Recorder::start(ip, HTTPS, &[21, 3, 3, 0, 2, 2, 40]);
    dns.set("half.web.test", Does::OnlyA(vec![ip])).set("a.web.test", Does::Answer(vec![ip]));
    let (deaf, failing) = (Dns::start(), Dns::start());
    deaf.set("*", Does::Silence);
    failing.set("*", Does::Fail);
    let config = format!(
        "listeners: [{{ kind: forward, bind: \"{own}:3128\" }}]\nadmin: {{ bind: \"{own}:9901\" }}\n\
         dns: {{ upstreams: [\"{}\", \"{}\", \"{}\"] }}\nlimits: {{ dns: 4s }}\npolicy:\n{}",
        deaf.address,
        failing.address,
        dns.address,
        policy().lines().map(|l| format!("  {l}\n")).collect::<String>()
    );
    let egret = Egret::run(&config, own);
    allowed(&ask(&egret, "a.web.test"), "web");
    let record = ask(&egret, "half.web.test");
    allowed(&record, "web");
    assert!(record["duration_ms"].as_u64() < Some(3000), "an answer in hand does not wait for the other: {record:#}");
}

#[test]
fn what_was_judged_is_what_is_dialled() {
    // The answer changes with every question: public first, then inside. One connection, one answer.
    let (dns, ip) = (Dns::start(), own_ip());
    let origin = Recorder::start(ip, HTTPS, &[21, 3, 3, 0, 2, 2, 40]);
    dns.set("rebind.web.test", Does::Rebind(vec![ip, "10.0.0.1".parse().unwrap()]));
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "limits: { dial: 300ms }");
    let record = ask(&egret, "rebind.web.test");
    allowed(&record, "web");
    assert_eq!(record["upstream"].as_str().unwrap(), format!("{ip}:10443"));
    assert_eq!(record["answers"], serde_json::json!([ip.to_string()]));
    assert_eq!(origin.count(), 1);
    // Kept as long as it lives: the second connection does not ask again.
    let asked = dns.asked("rebind.web.test");
    allowed(&ask(&egret, "rebind.web.test"), "web");
    assert_eq!(dns.asked("rebind.web.test"), asked);
}

#[test]
fn zones_have_servers_of_their_own() {
    let (dns, corp, ip) = (Dns::start(), Dns::start(), own_ip());
    let _origin = Recorder::start(ip, HTTPS, &[21, 3, 3, 0, 2, 2, 40]);
    corp.answer("db.corp.web.test", &[&ip.to_string()]);
    dns.set("*", Does::NoSuchName);
    let own = own_ip();
    let config = format!(
        "listeners: [{{ kind: forward, bind: \"{own}:3128\" }}]\nadmin: {{ bind: \"{own}:9901\" }}\n\
         dns: {{ upstreams: [\"{}\"], zones: {{ corp.web.test: [\"{}\"] }} }}\npolicy:\n{}",
        dns.address,
        corp.address,
        policy().lines().map(|l| format!("  {l}\n")).collect::<String>()
    );
    let egret = Egret::run(&config, own);
    allowed(&ask(&egret, "db.corp.web.test"), "web");
    assert_eq!(dns.asked("db.corp.web.test"), 0);
    refused(&ask(&egret, "notcorp.web.test"), "no_such_name", "dns");
    assert_eq!(corp.asked("notcorp.web.test"), 0);
}

#[test]
fn nobody_to_ask_at_start_is_no_reason_not_to_serve() {
    // Nothing listens there.
    let nobody = std::net::SocketAddr::new(own_ip(), 5353);
    let egret = Egret::start(nobody, (HTTPS, HTTP), &policy(), "limits: { dns: 500ms }");
    refused(&ask(&egret, "a.web.test"), "dns_timeout", "dns");
}

#[test]
fn encrypted_upstreams_are_asked_and_their_certificates_believed_only_when_signed() {
    use crate::support::dns::{HTTPS_PORT, TLS_PORT};
    use crate::support::origin::Authority;
    let (authority, ip, own) = (Authority::new(), own_ip(), own_ip());
    let stem = authority.sign("dns", &["dns.test"]);
    let _origin = Recorder::start(ip, HTTPS, &[21, 3, 3, 0, 2, 2, 40]);
    let plain = Dns::start();
    plain.answer("a.web.test", &[&ip.to_string()]);
    let tls = crate::support::dns::over_tls(&plain, &stem, own_ip());
    for (name, expected) in [("dns.test", None), ("other.test", Some("dns_timeout"))] {
        for upstream in
            [format!("tls://{tls}:{TLS_PORT}#{name}"), format!("https://{tls}:{HTTPS_PORT}/dns-query#{name}")]
        {
            let own = if expected.is_none() && upstream.starts_with("tls") { own } else { own_ip() };
            let config = format!(
                "listeners: [{{ kind: forward, bind: \"{own}:3128\" }}]\nadmin: {{ bind: \"{own}:9901\" }}\nlimits: {{ dns: 2s }}\n\
                 dns: {{ upstreams: [\"{upstream}\"], ca_file: \"{}\" }}\npolicy:\n{}",
                authority.ca(),
                policy().lines().map(|l| format!("  {l}\n")).collect::<String>()
            );
            let egret = Egret::run(&config, own);
            let record = ask(&egret, "a.web.test");
            match expected {
                None => allowed(&record, "web"),
                Some(reason) => refused(&record, reason, "dns"),
            }
        }
    }
    eventually("asked over both", || {
        plain.asked_over("a.web.test", Protocol::Tls) > 0 && plain.asked_over("a.web.test", Protocol::Https) > 0
    });
}
