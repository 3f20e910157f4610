//! Who may come in, and as whom: users, TLS to the proxy, client certificates, and the PROXY protocol.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use crate::clients::{HTTP, HTTPS, policy};
use crate::support::dns::Dns;
use crate::support::hello::Hello;
use crate::support::origin::{Authority, Nginx, Recorder};
use crate::support::{
    ADMIN, Egret, FORWARD, PATIENCE, Server, allowed, connect, curl, eventually, have, own_ip, read_all, read_head,
    refused, run, text,
};

/// "correct horse" by `htpasswd -nbB`, and "battery staple" by `argon2 -id -e`.
const ALICE: &str = "alice:$2y$05$DXv7v4to5HpPR0uKRPDUMOdxNeQAecGHCYLUWjtLLxmTFy3JWhExq\n";
const BOB: &str = "bob:$argon2id$v=19$m=4096,t=2,p=1$c2FsdHNhbHQ$HQcg2GJnA23mk2lG4vNQAz0WN7Wfp+NhlhN+wVjCQ7M\n";

const TLS: u16 = 3129;
const MUTUAL: u16 = 3130;
const BALANCED: u16 = 3131;
const BALANCED_TLS: u16 = 3132;

struct World {
    _dns: Dns,
    nginx: Nginx,
    authority: Authority,
    egret: Egret,
    users: String,
}

impl World {
    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.egret.ip, port)
    }
}

fn world() -> Option<World> {
    if !have(&["curl", "nginx"]) {
        return None;
    }
    let (dns, authority, ip, own) = (Dns::start(), Authority::new(), own_ip(), own_ip());
    let nginx = Nginx::start(&authority, ip, HTTPS, HTTP, &["web.test", "*.web.test"], "");
    dns.answer("web.test", &[&ip.to_string()]).answer("a.web.test", &[&ip.to_string()]);
    let stem = authority.sign("proxy", &[&own.to_string(), "proxy.test"]).display().to_string();
    let users = authority.path("users");
    std::fs::write(&users, format!("# users\n{ALICE}{BOB}")).unwrap();
    let tls = format!("certificate: \"{stem}.crt\", key: \"{stem}.key\"");
    let ca = authority.ca();
    let by_name = format!(
        "  - {{ name: agents, clients: [\"spiffe://test/agent\", \"agent.test\", \"An Agent\", \"user:bob\"], \
         fqdns: [\"a.web.test\"], protocols: [\"https:{HTTPS}\", \"http:{HTTP}\"], addresses: [\"127.0.0.0/8\"] }}\n  \
         - {{ name: one, sources: [\"192.0.2.7\"], fqdns: [\"web.test\"], protocols: [\"http:{HTTP}\"], \
         addresses: [\"127.0.0.0/8\"] }}\n  \
         - {{ name: alice, clients: [\"user:alice\"], fqdns: [\"web.test\"], \
         protocols: [\"https:{HTTPS}\", \"http:{HTTP}\"], addresses: [\"127.0.0.0/8\"] }}\n"
    );
    let config = format!(
        "listeners:\n  \
         - {{ kind: forward, bind: \"{own}:{FORWARD}\", auth: {{ users_file: \"{users}\" }} }}\n  \
         - {{ kind: forward, bind: \"{own}:{TLS}\", tls: {{ {tls} }}, auth: {{ users_file: \"{users}\" }} }}\n  \
         - {{ kind: forward, bind: \"{own}:{MUTUAL}\", tls: {{ {tls}, client_ca: \"{ca}\" }} }}\n  \
         - {{ kind: sni, bind: \"{own}:{BALANCED}\", port: {HTTP}, add_headers: [via, x-forwarded-for], \
         proxy_protocol: {{ v2: true, from: [\"127.0.0.1\"] }} }}\n  \
         - {{ kind: forward, bind: \"{own}:{BALANCED_TLS}\", tls: {{ {tls}, client_ca: \"{ca}\" }}, \
         proxy_protocol: {{ v2: true, from: [\"127.0.0.1\"] }} }}\n\
         dns: {{ upstreams: [\"{}\"], min_ttl: 0s }}\nlimits: {{ peek: 2s }}\nadmin: {{ bind: \"{own}:{ADMIN}\" }}\n\
         policy:\n  application_rules:\n{by_name}",
        dns.address
    );
    let egret = Egret::run(&config, own);
    Some(World { _dns: dns, nginx, authority, egret, users })
}

#[test]
fn users_show_a_password_in_http_and_in_socks() {
    let Some(w) = world() else { return };
    let ca = w.authority.ca();
    for (n, (target, port)) in
        [("https://web.test:10443/who", HTTPS), ("http://web.test:10080/who", HTTP)].into_iter().enumerate()
    {
        for scheme in ["http", "socks5h"] {
            let proxy = format!("{scheme}://{}", w.at(FORWARD));
            let say = |user: Option<&str>| {
                let user: Vec<&str> = user.map(|user| vec!["-U", user]).unwrap_or_default();
                text(&curl(&[&["-i", "--cacert", &ca, "-x", &proxy, target][..], &user].concat()))
            };
            let said = say(Some("alice:correct horse"));
            assert!(said.contains("web.test HTTP/"), "{scheme} {target}: {said}");
            for user in [None, Some("alice:wrong"), Some("nobody:correct horse"), Some(":"), Some("alice:")] {
                let said = say(user);
                assert!(!said.contains("web.test HTTP/"), "{scheme} {target} {user:?}: {said}");
                if scheme == "http" {
                    assert!(said.contains("HTTP/1.1 407"), "{user:?} {said}");
                    assert!(said.contains("Proxy-Authenticate: Basic realm=\"egret\""), "{said}");
                }
            }
            let fits = |record: &serde_json::Value| record["verdict"] == "allow" && record["port"] == port;
            let record = w.egret.record("alice", fits);
            allowed(&record, "alice");
            assert_eq!(record["identity"], serde_json::json!(["user:alice"]));
        }
        let failed = (n + 1) * 10;
        eventually("all refusals are counted", || {
            let count = format!("egret_refusals_total{{reason=\"auth_failed\",stage=\"claim\"}} {failed}");
            w.egret.metrics().contains(&count)
        });
    }
    let is_refusal = |record: &serde_json::Value| record["verdict"] == "deny";
    eventually("each has its line", || w.egret.records().into_iter().filter(is_refusal).count() == 20);
    let records = w.egret.records();
    let refusals: Vec<_> = records.iter().filter(|record| is_refusal(record)).collect();
    for why in ["the client shows no user and password", "the client offers no user", "there is no such user, or not"] {
        assert!(refusals.iter().any(|record| record["nearest"].as_str().unwrap().starts_with(why)), "{why}");
    }
    for record in refusals {
        refused(record, "auth_failed", "claim");
        assert!(record["identity"].is_null() && record["answers"].is_null(), "{record}");
    }
    assert!(records.iter().any(|record| record["reason"] == "auth_failed" && record["name"] == "web.test"));
    let log = format!("{records:?}{}", w.egret.errors());
    assert!(!log.contains("horse") && !log.contains("wrong"), "no password in a log");
}

#[test]
fn every_request_of_a_connection_shows_its_user() {
    let Some(w) = world() else { return };
    let mut stream = connect(w.at(FORWARD));
    let local = stream.local_addr().unwrap();
    let host = format!("web.test:{HTTP}");
    let field = "Proxy-Authorization: Basic YWxpY2U6Y29ycmVjdCBob3JzZQ==\r\n";
    let request = |field: &str| format!("GET http://{host}/who HTTP/1.1\r\nHost: {host}\r\n{field}\r\n");
    stream.write_all(request(field).as_bytes()).unwrap();
    allowed(&w.egret.record_of(local), "alice");
    stream.write_all(request("").as_bytes()).unwrap();
    let said = String::from_utf8(read_all(&mut stream)).unwrap();
    assert!(said.starts_with("HTTP/1.1 200") && said.contains("HTTP/1.1 407"), "{said}");
    refused(&w.egret.record_of(local), "auth_failed", "claim");
    // In a tunnel it was shown with the tunnel.
    let mut stream = connect(w.at(FORWARD));
    write!(stream, "CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{field}\r\n").unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 200"));
    write!(stream, "GET /who HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    assert!(String::from_utf8(read_all(&mut stream)).unwrap().contains("web.test HTTP/1.1"));
    // Twice is not once.
    let mut stream = connect(w.at(FORWARD));
    let local = stream.local_addr().unwrap();
    stream.write_all(request(&field.repeat(2)).as_bytes()).unwrap();
    assert!(String::from_utf8(read_all(&mut stream)).unwrap().starts_with("HTTP/1.1 400"));
    refused(&w.egret.record_of(local), "ambiguous_request", "claim");
}

#[test]
fn the_users_file_is_read_again_when_it_changes() {
    let Some(w) = world() else { return };
    let proxy = format!("http://{}", w.at(FORWARD));
    let passes = |user: &str| {
        text(&curl(&["-x", &proxy, "-U", user, "http://a.web.test:10080/who"])).contains("a.web.test HTTP/1.1")
    };
    let is_403 = |user: &str| {
        let said = text(&curl(&["-i", "-x", &proxy, "-U", user, "http://a.web.test:10080/who"]));
        said.contains("403 Forbidden")
    };
    assert!(passes("bob:battery staple") && is_403("alice:correct horse"), "who is known may still not go there");
    let write = |text: &str| {
        // As most tools do: a new file in the old one's place.
        std::fs::write(format!("{}.new", w.users), text).unwrap();
        std::fs::rename(format!("{}.new", w.users), &w.users).unwrap();
    };
    write(ALICE);
    eventually("bob is gone", || !passes("bob:battery staple"));
    assert!(is_403("alice:correct horse"));
    // A line that cannot be read is not a user, and is told of; the others are as they were.
    write(&format!("{ALICE}bob:not a hash\n"));
    eventually("the fault is told", || w.egret.errors().contains("users:2 has a hash that is neither"));
    assert!(is_403("alice:correct horse") && !passes("bob:battery staple"));
    write(BOB);
    eventually("bob is back", || passes("bob:battery staple"));
    // No file, no users.
    std::fs::remove_file(&w.users).unwrap();
    eventually("bob is gone again", || !passes("bob:battery staple"));
    write("");
    eventually("an empty file is read", || w.egret.errors().matches("read again").count() > 2);
    assert!(!passes("bob:battery staple"));
    assert!(!w.egret.errors().contains("$2y$"), "no hash in a log");
}

#[test]
fn a_tunnel_of_plain_requests_is_its_users_only_while_there_is_one() {
    let Some(w) = world() else { return };
    let host = format!("a.web.test:{HTTP}");
    let mut stream = connect(w.at(FORWARD));
    let local = stream.local_addr().unwrap();
    let field = "Proxy-Authorization: Basic Ym9iOmJhdHRlcnkgc3RhcGxl\r\n";
    write!(stream, "CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{field}\r\n").unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 200"));
    let request = format!("HEAD /who HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 200"));
    allowed(&w.egret.record_of(local), "agents");
    std::fs::write(&w.users, ALICE).unwrap();
    eventually("the change is seen", || w.egret.errors().contains("read again"));
    stream.write_all(request.as_bytes()).unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 407"));
    let record = w.egret.record_of(local);
    refused(&record, "auth_failed", "claim");
    assert_eq!(record["nearest"], "the user does not exist any more, or has another password now");
}

#[test]
fn users_of_one_connection_share_no_upstream() {
    let (dns, ip, own) = (Dns::start(), own_ip(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    let origin = Recorder::serving(ip, HTTP);
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    std::fs::write(&users, format!("{ALICE}{BOB}")).unwrap();
    let indented: String = policy().lines().map(|line| format!("  {line}\n")).collect();
    let egret = Egret::run(
        &format!(
            "listeners:\n  - {{ kind: forward, bind: \"{own}:{FORWARD}\", auth: {{ users_file: \"{}\" }} }}\n\
             dns: {{ upstreams: [\"{}\"], min_ttl: 0s }}\nadmin: {{ bind: \"{own}:{ADMIN}\" }}\npolicy:\n{indented}",
            users.display(),
            dns.address
        ),
        own,
    );
    let host = format!("a.web.test:{HTTP}");
    let mut stream = connect(egret.forward());
    for (user, upstreams) in [
        ("YWxpY2U6Y29ycmVjdCBob3JzZQ==", 1),
        ("YWxpY2U6Y29ycmVjdCBob3JzZQ==", 1),
        ("Ym9iOmJhdHRlcnkgc3RhcGxl", 2),
        ("Ym9iOmJhdHRlcnkgc3RhcGxl", 2),
    ] {
        let request =
            format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Basic {user}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        assert!(read_head(&mut stream).starts_with("HTTP/1.1 200"));
        stream.read_exact(&mut [0]).unwrap();
        assert_eq!(origin.count(), upstreams);
    }
}

#[test]
fn curl_speaks_tls_to_the_proxy() {
    let Some(w) = world() else { return };
    let ca = w.authority.ca();
    let proxy = format!("https://{}", w.at(TLS));
    let big = w.authority.path("big");
    std::fs::write(&big, vec![7; 20 << 20]).unwrap();
    std::fs::copy(&big, w.nginx.root.path().join("big")).unwrap();
    let through = |more: &[&str]| {
        let all = ["--cacert", &ca, "--proxy-cacert", &ca, "-x", &proxy, "-U", "alice:correct horse"];
        curl(&[&all[..], more].concat())
    };
    assert_eq!(text(&through(&["https://web.test:10443/who"])), "web.test HTTP/2.0 TLSv1.3\n");
    assert_eq!(text(&through(&["http://web.test:10080/who"])), "web.test HTTP/1.1 \n");
    for target in ["https://web.test:10443/big", "http://web.test:10080/big"] {
        assert!(through(&[target]).stdout == vec![7; 20 << 20], "{target}");
    }
    let record = w.egret.record("a tunnel in TLS", |r| r["protocol"] == "https" && r["verdict"] == "allow");
    assert_eq!((&record["name"], &record["ending"]), (&"web.test".into(), &"closed".into()), "{record:#}");
    // Plain bytes where TLS is spoken.
    let mut stream = connect(w.at(TLS));
    let local = stream.local_addr().unwrap();
    stream.write_all(b"CONNECT web.test:10443 HTTP/1.1\r\nHost: web.test:10443\r\n\r\n").unwrap();
    assert_eq!(read_all(&mut stream).first(), Some(&21), "an alert");
    let record = w.egret.record_of(local);
    refused(&record, "auth_failed", "claim");
    assert_eq!(record["nearest"], "TLS to the proxy: the client speaks none; its proxy URL should begin with https://");
    // And silence.
    let mut stream = connect(w.at(TLS));
    let local = stream.local_addr().unwrap();
    assert!(read_all(&mut stream).is_empty());
    refused(&w.egret.record_of(local), "peek_timeout", "claim");
}

#[test]
fn a_client_is_identified_by_its_certificate() {
    let Some(w) = world() else { return };
    let ca = w.authority.ca();
    let named = |common: Option<&str>, sans: Vec<SanType>| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = sans;
        params.distinguished_name = rcgen::DistinguishedName::new();
        common.into_iter().for_each(|name| params.distinguished_name.push(DnType::CommonName, name));
        params
    };
    let uri = |name: &str| SanType::URI(name.try_into().unwrap());
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let proxy = format!("https://{}", w.at(MUTUAL));
    let say = |stem: Option<&str>, target: &str| {
        let (cert, key) = (stem.map(|s| format!("{s}.crt")), stem.map(|s| format!("{s}.key")));
        let mut all = vec!["-i", "--cacert", &ca, "--proxy-cacert", &ca, "-x", &proxy];
        if let (Some(cert), Some(key)) = (&cert, &key) {
            all.extend(["--proxy-cert", cert, "--proxy-key", key]);
        }
        all.push(target);
        text(&curl(&all))
    };
    for (n, (params, identity)) in [
        (named(Some("Nobody"), vec![uri("spiffe://test/agent")]), "spiffe://test/agent"),
        (named(None, vec![dns("AGENT.test")]), "agent.test"),
        (named(Some("An Agent"), vec![]), "An Agent"),
    ]
    .into_iter()
    .enumerate()
    {
        let stem = w.authority.sign_as(&format!("client{n}"), params).display().to_string();
        let said = say(Some(&stem), "https://a.web.test:10443/who");
        assert!(said.contains("a.web.test HTTP/2.0"), "{identity}: {said}");
        let record = w.egret.record(identity, |r| r["identity"][0] == identity);
        allowed(&record, "agents");
        // Its name opens what its rules say, and no more.
        assert!(say(Some(&stem), "http://web.test:10080/who").contains("403 Forbidden"));
    }
    let other = w.authority.sign_as("other", named(Some("An Agent"), vec![uri("spiffe://test/other")]));
    let said = say(Some(&other.display().to_string()), "https://a.web.test:10443/who");
    assert!(said.contains("HTTP/1.1 403") && said.contains("source_not_allowed"), "{said}");
    let record = w.egret.record("another", |r| r["identity"][0] == "spiffe://test/other");
    refused(&record, "source_not_allowed", "name");
    assert!(record["nearest"].as_str().unwrap().contains("clients spiffe://test/agent, agent.test"), "{record}");
    // A session taken up again would show no certificate of today.
    let mutual = w.at(MUTUAL).to_string();
    let stem = w.authority.path("client0");
    let session = w.authority.path("session");
    for version in ["-tls1_3", "-tls1_2"] {
        let ask = |more: &str| {
            let request = "CONNECT web.test:1 HTTP/1.1\\r\\nHost: web.test:1\\r\\n\\r\\n";
            let command = format!(
                "(printf '{request}'; sleep 1) | timeout 20 openssl s_client {version} -connect {mutual} -ign_eof {more} 2>&1"
            );
            text(&run("sh", &["-c", &command]))
        };
        let said = ask(&format!("-cert {stem}.crt -key {stem}.key -sess_out {session}"));
        assert!(said.contains("HTTP/1.1 403"), "{said}");
        let resumes = std::path::Path::new(&session).exists().then(|| format!("-sess_in {session}"));
        let said = ask(&resumes.unwrap_or_default());
        assert!(!said.contains("HTTP/1.1"), "{version}: {said}");
    }
    let failed = |r: &serde_json::Value| r["reason"] == "auth_failed" && r["stage"] == "claim";
    eventually("both are told", || w.egret.records().iter().filter(|r| failed(r)).count() == 2);
    // No certificate, and a stranger's.
    let stranger = Authority::new();
    let stem = stranger.sign_as("stranger", named(Some("An Agent"), vec![])).display().to_string();
    for stem in [None, Some(&*stem)] {
        let said = say(stem, "https://a.web.test:10443/who");
        assert!(!said.contains("HTTP/"), "{said}");
    }
    eventually("both are told", || w.egret.records().iter().filter(|r| failed(r)).count() == 4);
}

/// A header of version 2 for a client, and what is added to it.
fn header(client: &str, more: &[u8]) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let (family, mut rest) = match client.ip() {
        IpAddr::V4(ip) => (0x11, [&ip.octets()[..], &[192, 0, 2, 200]].concat()),
        IpAddr::V6(ip) => (0x21, [&ip.octets()[..], &[0; 16]].concat()),
    };
    rest.extend([&client.port().to_be_bytes()[..], &[1, 187], more].concat());
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n\x21".as_slice(), &[family], &length, &rest].concat()
}

/// A connection from a loopback address of the caller's choice.
fn connect_from(ip: &str, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(ip.parse().unwrap(), 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn a_listed_load_balancer_says_whose_connection_it_is() {
    let Some(w) = world() else { return };
    let request = format!("GET /who HTTP/1.1\r\nHost: web.test:{HTTP}\r\nConnection: close\r\n\r\n");
    let say = |from: &str, start: &[u8]| {
        let mut stream = connect_from(from, w.at(BALANCED));
        let local = stream.local_addr().unwrap();
        // The refused may be reset before they have said it all.
        let _ = stream.write_all(&[start, request.as_bytes()].concat());
        (String::from_utf8(read_all(&mut stream)).unwrap(), local.to_string())
    };
    let of = |client: &str| w.egret.record(client, |r| r["client"] == client);
    let (said, _) = say("127.0.0.1", &header("192.0.2.7:4001", &[]));
    assert!(said.contains("web.test HTTP/1.1"), "{said}");
    allowed(&of("192.0.2.7:4001"), "one");
    say("127.0.0.1", &header("[::ffff:192.0.2.7]:4002", &[4, 0, 1, 0]));
    allowed(&of("192.0.2.7:4002"), "one");
    let (said, _) = say("127.0.0.1", &header("192.0.2.8:4003", &[]));
    assert!(said.contains("403 Forbidden"), "{said}");
    refused(&of("192.0.2.8:4003"), "source_not_allowed", "name");
    let (said, _) = say("127.0.0.1", &header("[2001:db8::7]:4004", &[]));
    assert!(said.contains("403 Forbidden"), "{said}");
    refused(&of("[2001:db8::7]:4004"), "source_not_allowed", "name");
    // The balancer's own connection is its own.
    let (_, local) = say("127.0.0.1", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    refused(&of(&local), "source_not_allowed", "name");
    for (from, start, why) in [
        ("127.0.0.2", header("192.0.2.7:4005", &[]), "not in proxy_protocol.from"),
        ("127.0.0.2", Vec::new(), "not in proxy_protocol.from"),
        ("127.0.0.1", Vec::new(), "sends no header"),
        ("127.0.0.1", b"PROXY TCP4 192.0.2.7 192.0.2.200 4006 443\r\n".to_vec(), "version 1"),
        ("127.0.0.1", header("192.0.2.7:4007", &[4, 0, 2, 0]), "broken"),
    ] {
        let (said, local) = say(from, &start);
        assert!(said.is_empty(), "{said}");
        let record = of(&local);
        refused(&record, "bad_proxy_header", "claim");
        assert!(record["nearest"].as_str().unwrap().contains(why), "{why}: {record}");
    }
    assert!(!w.egret.records().iter().any(|r| r["client"].as_str().is_some_and(|c| c.ends_with(":4005"))));
}

#[test]
fn haproxy_in_front_is_believed_and_tls_follows_its_header() {
    let Some(w) = world() else { return };
    if !have(&["haproxy"]) {
        return;
    }
    let (plain, tls) = (own_ip(), own_ip());
    let file = w.authority.path("haproxy.cfg");
    let section = |name: &str, ip: IpAddr, to: SocketAddr| {
        format!("listen {name}\n  bind {ip}:80\n  server egret {to} send-proxy-v2 proxy-v2-options crc32c,unique-id\n")
    };
    let config = format!(
        "defaults\n  mode tcp\n  unique-id-format %{{+X}}o%ci\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n{}{}",
        section("plain", plain, w.at(BALANCED)),
        section("tls", tls, w.at(BALANCED_TLS))
    );
    std::fs::write(&file, config).unwrap();
    let program = if std::path::Path::new("/usr/sbin/haproxy").exists() { "/usr/sbin/haproxy" } else { "haproxy" };
    let _haproxy = Server::start(Command::new(program).args(["-db", "-f", &file]), SocketAddr::new(plain, 80));
    let mut stream = connect_from("127.0.0.9", SocketAddr::new(plain, 80));
    let local = stream.local_addr().unwrap();
    write!(stream, "GET /who HTTP/1.1\r\nHost: web.test:{HTTP}\r\n\r\n").unwrap();
    assert!(String::from_utf8(read_all(&mut stream)).unwrap().contains("403 Forbidden"));
    refused(&w.egret.record_of(local), "source_not_allowed", "name");
    let ca = w.authority.ca();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("spiffe://test/agent".try_into().unwrap())];
    let stem = w.authority.sign_as("agent", params).display().to_string();
    let name = format!("proxy.test:80:{tls}");
    let out = curl(&[
        "--cacert",
        &ca,
        "--proxy-cacert",
        &ca,
        "--interface",
        "127.0.0.9",
        "--resolve",
        &name,
        "-x",
        "https://proxy.test:80",
        "--proxy-cert",
        &format!("{stem}.crt"),
        "--proxy-key",
        &format!("{stem}.key"),
        "https://a.web.test:10443/who",
    ]);
    assert_eq!(text(&out), "a.web.test HTTP/2.0 TLSv1.3\n");
}

#[test]
fn an_sni_listener_may_speak_one_protocol_only() {
    let (dns, ip, own) = (Dns::start(), own_ip(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    let origin = Recorder::serving(ip, HTTP);
    // One port that both protocols may use.
    let config = format!(
        "listeners:\n  - {{ kind: sni, bind: \"{own}:{FORWARD}\", protocol: http, port: {HTTP} }}\n  \
         - {{ kind: sni, bind: \"{own}:{TLS}\", protocol: https, port: {HTTP} }}\n\
         dns: {{ upstreams: [\"{}\"], min_ttl: 0s }}\nadmin: {{ bind: \"{own}:{ADMIN}\" }}\npolicy:\n  application_rules:\n  \
         - {{ name: web, fqdns: [a.web.test], protocols: [\"https:{HTTP}\", \"http:{HTTP}\"], addresses: [\"127.0.0.0/8\"] }}\n",
        dns.address
    );
    let egret = Egret::run(&config, own);
    let request = format!("GET /x HTTP/1.1\r\nHost: a.web.test:{HTTP}\r\nConnection: close\r\n\r\n");
    let hello = Hello::named("a.web.test").record();
    for (port, bytes, reason) in [
        (FORWARD, request.as_bytes(), None),
        (TLS, &*hello, None),
        (FORWARD, &*hello, Some("bad_request")),
        (TLS, request.as_bytes(), Some("not_tls")),
    ] {
        let mut stream = connect(SocketAddr::new(own, port));
        let local = stream.local_addr().unwrap();
        stream.write_all(bytes).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        read_all(&mut stream);
        let record = egret.record_of(local);
        match reason {
            None => allowed(&record, "web"),
            Some(reason) => refused(&record, reason, "peek"),
        }
    }
    assert_eq!(origin.count(), 2, "one of each");
}

#[test]
fn fields_are_added_where_the_configuration_says_so() {
    let (dns, ip, own) = (Dns::start(), own_ip(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    let origin = Recorder::closing(ip, HTTP, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    let indented: String = policy().lines().map(|line| format!("  {line}\n")).collect();
    let config = format!(
        "listeners:\n  - {{ kind: forward, bind: \"{own}:{FORWARD}\", add_headers: [via, x-forwarded-for] }}\n\
         dns: {{ upstreams: [\"{}\"], min_ttl: 0s }}\nadmin: {{ bind: \"{own}:{ADMIN}\" }}\npolicy:\n{indented}",
        dns.address
    );
    let egret = Egret::run(&config, own);
    let host = format!("a.web.test:{HTTP}");
    let mut stream = connect(egret.forward());
    write!(
        stream,
        "GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let said = String::from_utf8(read_all(&mut stream)).unwrap();
    assert_eq!(said, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.1 egret\r\nConnection: close\r\n\r\nhi");
    origin.received(
        format!(
            "GET / HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: 192.0.2.1\r\nVia: 1.1 egret\r\nX-Forwarded-For: 127.0.0.1\r\nConnection: close\r\n\r\n"
        )
        .as_bytes(),
    );
}

/// TLS with a certificate of a client's, and a connection that is kept.
fn certified(
    authority: &Authority,
    stem: &std::path::Path,
    to: SocketAddr,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.ca()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let chain = vec![CertificateDer::from_pem_file(stem.with_extension("crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(stem.with_extension("key")).unwrap();
    let config = config.with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
    let connection = ClientConnection::new(Arc::new(config), "proxy.test".try_into().unwrap()).unwrap();
    StreamOwned::new(connection, connect(to))
}

fn status(stream: &mut StreamOwned<ClientConnection, TcpStream>, host: &str) -> String {
    write!(stream, "GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    let mut head = Vec::new();
    let mut byte = [0; 1];
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.split("Content-Length: ").nth(1).map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
    stream.read_exact(&mut vec![0; length]).unwrap();
    head.get(9..12).unwrap_or_default().to_owned()
}

#[test]
fn a_kept_connection_does_not_outlive_its_certificate() {
    let (dns, authority, other) = (Dns::start(), Authority::new(), Authority::new());
    let (ip, own) = (own_ip(), own_ip());
    dns.answer("a.web.test", &[&ip.to_string()]);
    let _origin = Recorder::serving(ip, HTTP);
    let proxy = authority.sign("proxy", &["proxy.test"]).display().to_string();
    let now = SystemTime::now();
    let client = |file: &str, serial: u64, lasts: Duration| {
        let mut params = CertificateParams::new(vec!["agent.test".to_owned()]).unwrap();
        params.serial_number = Some(serial.into());
        (params.not_before, params.not_after) = ((now - Duration::from_secs(3600)).into(), (now + lasts).into());
        authority.sign_as(file, params)
    };
    let day = Duration::from_secs(24 * 3600);
    let (short, first, second) =
        (client("short", 1, Duration::from_secs(6)), client("first", 2, day), client("second", 3, day));
    let (ca, crl) = (authority.path("clients.pem"), authority.path("clients.crl"));
    std::fs::copy(authority.ca(), &ca).unwrap();
    std::fs::write(&crl, authority.revoke(&[], now + day)).unwrap();
    let indented: String = policy().lines().map(|line| format!("  {line}\n")).collect();
    let config = |crl: &str| {
        format!(
            "listeners:\n  - {{ kind: forward, bind: \"{own}:{TLS}\", tls: {{ certificate: \"{proxy}.crt\", key: \"{proxy}.key\", \
             client_ca: \"{ca}\", crl: \"{crl}\" }} }}\n\
             dns: {{ upstreams: [\"{}\"], min_ttl: 0s }}\nadmin: {{ bind: \"{own}:{ADMIN}\" }}\npolicy:\n{indented}",
            dns.address
        )
    };
    let egret = Egret::run(&config(&crl), own);
    let (to, host) = (SocketAddr::new(own, TLS), format!("a.web.test:{HTTP}"));
    let changes = |change: &dyn Fn()| {
        let count = || egret.errors().matches("read again").count();
        let before = count();
        change();
        eventually("the file is read again", || count() > before);
    };
    let [mut expires, mut revoked, mut stays] = [&short, &first, &second].map(|stem| certified(&authority, stem, to));
    for stream in [&mut expires, &mut revoked, &mut stays] {
        assert_eq!(status(stream, &host), "200");
    }
    // One that runs out.
    eventually("the certificate has expired", || SystemTime::now() > now + Duration::from_secs(7));
    assert_eq!(status(&mut expires, &host), "403");
    // One that is revoked.
    changes(&|| std::fs::write(&crl, authority.revoke(&[2], now + day)).unwrap());
    assert_eq!((status(&mut revoked, &host), status(&mut stays, &host)), ("403".into(), "200".into()));
    let mut again = certified(&authority, &first, to);
    let _ = write!(again, "GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
    assert!(again.read(&mut [0]).is_err(), "nor is it let in again");
    egret.record("the revoked one", |line| {
        line["nearest"].as_str().is_some_and(|why| why.contains("certificate is revoked"))
    });
    // An authority that is trusted no more; the list is of the one before.
    changes(&|| assert!(std::fs::copy(other.ca(), &ca).is_ok()));
    assert_eq!(status(&mut stays, &host), "403", "no password would help");
    let line = egret.record("the last", |line| {
        line["nearest"].as_str().is_some_and(|why| why.contains("not trusted any more")) && line["event"] == "http"
    });
    refused(&line, "auth_failed", "claim");
    // A list has expired (nextUpdate) says nothing of today.
    drop(egret);
    std::fs::copy(authority.ca(), &ca).unwrap();
    std::fs::write(&crl, authority.revoke(&[], now - Duration::from_secs(1))).unwrap();
    let egret = Egret::run(&config(&crl), own);
    let mut late = certified(&authority, &second, to);
    let _ = write!(late, "GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
    assert!(late.read(&mut [0]).is_err());
    egret.record("the late list", |line| {
        line["nearest"].as_str().is_some_and(|why| why.contains("has expired (nextUpdate)"))
    });
}
