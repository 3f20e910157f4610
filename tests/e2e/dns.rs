//! What a name's server says, and what becomes of it: each fault to its reason.

use std::io::Write;

use hickory_server::net::xfer::Protocol;
use serde_json::Value;

use crate::clients::{HTTP, HTTPS, policy};
use crate::support::dns::{Dns, Does};
use crate::support::hello::Hello;
use crate::support::origin::Recorder;
use crate::support::{Egret, allowed, eventually, have, missing, own_ip, read_all, refused, run, tunnel};

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
    let server = dns.address;
    for (name, reason, words) in [
        ("none.web.test", "no_such_name", format!("{server} says that there is no such name (NXDOMAIN)")),
        ("empty.web.test", "no_such_name", format!("{server} has no address for the name")),
        ("fail.web.test", "dns_failed", format!("{server} refused the question: Server Failure")),
        ("silent.web.test", "dns_timeout", format!("{server} did not answer in time")),
        ("loop.web.test", "cname_loop", "the name's aliases (CNAME) lead in a circle".to_owned()),
        ("stray.web.test", "no_such_name", "has no address for the name".to_owned()),
    ] {
        let record = ask(&egret, name);
        refused(&record, reason, "dns");
        let nearest = record["nearest"].as_str().unwrap_or_default();
        assert!(nearest.contains(&words), "{name}: {nearest:?} is not {words:?}");
    }
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
fn egret_serves_while_no_dns_server_answers() {
    // Nothing listens there.
    let nobody = std::net::SocketAddr::new(own_ip(), 5353);
    let egret = Egret::start(nobody, (HTTPS, HTTP), &policy(), "limits: { dns: 500ms }");
    let record = ask(&egret, "a.web.test");
    refused(&record, "dns_failed", "dns");
    assert_eq!(record["nearest"], format!("{nobody} cannot be reached: Connection refused (os error 111)"));
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
    for (name, expected) in [("dns.test", None), ("other.test", Some("dns_failed"))] {
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

/// A configuration with its own part under `dns`, that asks `dns` unless it says otherwise.
fn with_dns(own: std::net::IpAddr, keys: &str, more: &str) -> String {
    format!(
        "listeners: [{{ kind: forward, bind: \"{own}:3128\" }}]\nadmin: {{ bind: \"{own}:9901\" }}\n\
         dns: {{ {keys} }}\n{more}\npolicy:\n{}",
        policy().lines().map(|l| format!("  {l}\n")).collect::<String>()
    )
}

#[test]
fn old_answers_stand_in_while_no_server_answers() {
    let (dns, ip, own) = (Dns::start(), own_ip(), own_ip());
    let _origin = Recorder::start(ip, HTTPS, &[21, 3, 3, 0, 2, 2, 40]);
    let names = ["a.web.test", "b.web.test", "c.web.test"];
    for name in names {
        dns.answer(name, &[&ip.to_string()]);
    }
    let keys = format!("upstreams: [\"{}\"], min_ttl: 0s, max_ttl: 1s, negative_ttl: 0s", dns.address);
    let egret = Egret::run(&with_dns(own, &keys, ""), own);
    let fresh = |name: &str| {
        let record = ask(&egret, name);
        allowed(&record, "web");
        assert!(record["stale"].is_null(), "{record:#}");
    };
    names.iter().for_each(|name| fresh(name));
    let age = || std::thread::sleep(std::time::Duration::from_millis(1100));
    let stale = |name: &str, most: u64| {
        let record = ask(&egret, name);
        allowed(&record, "web");
        assert_eq!(record["stale"], true, "{record:#}");
        let took = record["duration_ms"].as_u64().unwrap();
        assert!(took < most, "{took} ms");
    };
    // A server that says no.
    age();
    dns.set("a.web.test", Does::Fail);
    stale("a.web.test", 1000);
    // Silence: the first request waits a while, and when the server is known to be silent none does.
    for name in names {
        dns.set(name, Does::Silence);
    }
    stale("b.web.test", 4000);
    let line = format!("DNS server {} did not answer in time; probing every five seconds", dns.address);
    eventually(&line, || egret.errors().contains(&line));
    let asked = dns.asked("c.web.test");
    for _ in 0..20 {
        stale("c.web.test", 1000);
    }
    assert!(dns.asked("c.web.test") <= asked + 1, "no request asks, and a probe once");
    // What was never known waits for the server all the same.
    dns.answer("d.web.test", &[&ip.to_string()]);
    fresh("d.web.test");
    assert!(egret.errors().contains("answers again"));
    let metrics = egret.metrics();
    assert!(metrics.contains("egret_dns_lookups_total{outcome=\"stale\"} 22\n"), "{metrics}");
    // An absence is news.
    dns.set("a.web.test", Does::NoSuchName);
    refused(&ask(&egret, "a.web.test"), "no_such_name", "dns");
    dns.set("a.web.test", Does::Fail);
    refused(&ask(&egret, "a.web.test"), "dns_failed", "dns");
}

#[test]
fn without_the_permission_no_old_answer_is_used() {
    let (dns, ip, own) = (Dns::start(), own_ip(), own_ip());
    let _origin = Recorder::start(ip, HTTPS, &[21, 3, 3, 0, 2, 2, 40]);
    dns.answer("a.web.test", &[&ip.to_string()]);
    let keys = format!("upstreams: [\"{}\"], min_ttl: 0s, max_ttl: 1s, stale: 0s", dns.address);
    let egret = Egret::run(&with_dns(own, &keys, ""), own);
    allowed(&ask(&egret, "a.web.test"), "web");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    dns.set("a.web.test", Does::Fail);
    refused(&ask(&egret, "a.web.test"), "dns_failed", "dns");
}

#[test]
fn a_hosts_file_answers_first_and_is_followed() {
    let (dns, ip, own) = (Dns::start(), own_ip(), own_ip());
    let _origin = Recorder::start(ip, HTTPS, &[21, 3, 3, 0, 2, 2, 40]);
    dns.set("*", Does::NoSuchName);
    let keys = format!("upstreams: [\"{}\"], min_ttl: 0s, negative_ttl: 0s, hosts_file: hosts", dns.address);
    let text = with_dns(own, &keys, "limits: { dns: 1s }");
    let egret =
        Egret::run_with(&text, own, &[("hosts", &format!("{ip} a.web.test # ours\n10.0.0.9 inside.web.test\n"))]);
    allowed(&ask(&egret, "a.web.test"), "web");
    assert_eq!(dns.asked("a.web.test"), 0);
    refused(&ask(&egret, "inside.web.test"), "address_denied", "address");
    refused(&ask(&egret, "b.web.test"), "no_such_name", "dns");
    std::fs::write(egret.folder().join("hosts"), format!("{ip} b.web.test\n")).unwrap();
    eventually("the new file", || ask(&egret, "b.web.test")["verdict"] == "allow");
    refused(&ask(&egret, "a.web.test"), "no_such_name", "dns");
    // The file is read anew while the servers are silent, too.
    for name in ["a.web.test", "b.web.test", "c.web.test"] {
        dns.set(name, Does::Silence);
    }
    refused(&ask(&egret, "c.web.test"), "dns_timeout", "dns");
    std::fs::write(egret.folder().join("hosts"), "127.9.9.9 b.web.test\n").unwrap();
    eventually("the newest file", || ask(&egret, "b.web.test")["answers"][0] == "127.9.9.9");
    assert!(egret.records().iter().all(|line| line["stale"].is_null()));
    std::fs::write(egret.folder().join("hosts"), format!("{ip} b.web.test\n")).unwrap();
    eventually("the old file", || ask(&egret, "b.web.test")["verdict"] == "allow");
    // What cannot be read changes nothing.
    std::fs::write(egret.folder().join("hosts"), "b.web.test 10.0.0.1\n").unwrap();
    eventually("the warning", || egret.errors().contains("line 1: `b.web.test` is not an IP address"));
    allowed(&ask(&egret, "b.web.test"), "web");
}

#[test]
fn the_systems_servers_are_followed() {
    if !have(&["unshare", "mount"]) || !run("unshare", &["-m", "true"]).status.success() {
        return missing("unshare -m (root)");
    }
    let (ip, own) = (own_ip(), own_ip());
    let [one, two] = [own_ip(), own_ip()].map(|ip| Dns::at(std::net::SocketAddr::new(ip, 53)));
    let _origin = Recorder::start(ip, HTTPS, &[21, 3, 3, 0, 2, 2, 40]);
    one.answer("a.web.test", &[&ip.to_string()]);
    two.answer("b.web.test", &[&ip.to_string()]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let names =
        |server: &Dns| std::fs::write(file.path(), format!("search web.test\nnameserver {}\n", server.address.ip()));
    names(&one).unwrap();
    let mount = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", file.path().display());
    let before = ["unshare", "-m", "sh", "-c", &mount, "sh"];
    let egret = Egret::run_by(&before, &with_dns(own, "min_ttl: 0s, negative_ttl: 0s", ""), own, &[], &[]);
    allowed(&ask(&egret, "a.web.test"), "web");
    refused(&ask(&egret, "b.web.test"), "no_such_name", "dns");
    // Search lists are the client's.
    names(&two).unwrap();
    eventually("the other server", || ask(&egret, "b.web.test")["verdict"] == "allow");
    assert!(egret.errors().contains("the system's DNS servers have changed"), "{}", egret.errors());
    std::fs::write(file.path(), "# nobody\n").unwrap();
    eventually("the warning", || egret.errors().contains("no nameservers found"));
    allowed(&ask(&egret, "b.web.test"), "web");
}

#[test]
fn a_name_of_one_label_says_what_to_ask_for() {
    let dns = Dns::start();
    dns.set("*", Does::NoSuchName);
    let rule =
        "application_rules: [{ name: all, fqdns: [db], protocols: [\"https:10443\"], addresses: [127.0.0.0/8] }]";
    let egret = Egret::start(dns.address, (HTTPS, HTTP), rule, "");
    let record = ask(&egret, "db");
    refused(&record, "no_such_name", "dns");
    let nearest = record["nearest"].as_str().unwrap();
    assert!(nearest.contains("`db` is a name of one label; search lists are the client's business"), "{nearest}");
}
