//! Allowed names go through, untouched: real clients against real servers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::dns::Dns;
use crate::support::hello::Hello;
use crate::support::origin::{Authority, Nginx, Recorder, openssl_server};
use crate::support::{
    Egret, allowed, connect, curl, have, missing, own_ip, read_all, read_head, refused, run, text, tunnel,
};

pub const HTTPS: u16 = 10443;
pub const HTTP: u16 = 10080;

/// A policy that lets out `*.web.test` and `web.test`, to loopback.
pub fn policy() -> String {
    format!(
        "application_rules:\n  - {{ name: web, fqdns: [\".web.test\"], protocols: [\"https:{HTTPS}\", \"http:{HTTP}\"], \
         addresses: [\"127.0.0.0/8\", \"::1/128\"] }}\n"
    )
}

/// DNS, an nginx for `*.web.test`, and an egret between.
pub struct World {
    pub dns: Dns,
    pub authority: Authority,
    pub nginx: Nginx,
    pub egret: Egret,
    pub ip: std::net::IpAddr,
}

pub fn world(nginx_more: &str) -> Option<World> {
    if !have(&["curl", "nginx"]) {
        return None;
    }
    let (dns, authority, ip) = (Dns::start(), Authority::new(), own_ip());
    let nginx = Nginx::start(&authority, ip, HTTPS, HTTP, &["web.test", "*.web.test"], nginx_more);
    dns.answer("web.test", &[&ip.to_string()]).answer("a.web.test", &[&ip.to_string()]);
    dns.answer("evil.test", &[&ip.to_string()]);
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "");
    Some(World { dns, authority, nginx, egret, ip })
}

#[test]
fn curl_passes_through_connect_and_socks_in_both_http_versions() {
    let Some(w) = world("") else { return };
    let ca = w.authority.ca();
    for scheme in ["http", "socks5h"] {
        let proxy = format!("{scheme}://{}", w.egret.forward());
        for (flag, version) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2.0")] {
            let out = curl(&["--cacert", &ca, "-x", &proxy, flag, "https://a.web.test:10443/who"]);
            assert_eq!(text(&out), format!("a.web.test {version} TLSv1.3\n"));
        }
    }
    let out = curl(&[
        "--cacert",
        &ca,
        "-x",
        &format!("http://{}", w.egret.forward()),
        "--tls-max",
        "1.2",
        "https://web.test:10443/who",
    ]);
    assert_eq!(text(&out), "web.test HTTP/2.0 TLSv1.2\n");
    let record = w.egret.record("socks", |r| r["name_source"] == "socks");
    allowed(&record, "web");
    assert_eq!(record["pattern"], ".web.test");
    assert_eq!(record["upstream"], format!("{}:{HTTPS}", w.ip));
    assert_eq!(record["answers"][0], w.ip.to_string());
    assert!(record["bytes_up"].as_u64() > Some(300) && record["bytes_down"].as_u64() > Some(300), "{record}");
    let record = w.egret.record("TLS 1.2", |r| r["tls"] == "1.2");
    assert_eq!(
        (&record["name"], &record["protocol"], &record["ending"]),
        (&"web.test".into(), &"https".into(), &"closed".into())
    );
    assert!(record["ja4"].as_str().unwrap().starts_with("t12d"), "{record}");
}

#[test]
fn a_name_off_the_list_is_refused_in_every_protocol_and_never_resolved() {
    let Some(w) = world("") else { return };
    let http = format!("http://{}", w.egret.forward());
    let out = curl(&["-i", "-x", &http, "https://evil.test:10443/"]);
    assert!(text(&out).contains("HTTP/1.1 403") && text(&out).contains("details=\"no_rule\""), "{}", text(&out));
    let out = curl(&["-i", "-x", &http, "http://evil.test:10080/"]);
    assert!(text(&out).contains("403 Forbidden") && text(&out).contains("reason: no_rule"), "{}", text(&out));
    let out = curl(&["-x", &format!("socks5h://{}", w.egret.forward()), "https://evil.test:10443/"]);
    assert!(text(&out).contains("(2)") || text(&out).contains("not allowed"), "SOCKS code 2: {}", text(&out));
    let steer = format!("::{}:{}", w.egret.ip, w.egret.sni().port());
    let out = curl(&["-k", "--connect-to", &steer, "https://evil.test:10443/"]);
    assert!(text(&out).contains("access denied"), "{}", text(&out));
    for source in ["connect", "host", "socks", "sni"] {
        let record = w.egret.record(source, |r| r["name"] == "evil.test" && r["name_source"] == source);
        refused(&record, "no_rule", "name");
        assert!(record["fix"].as_str().unwrap().contains("evil.test"), "{record}");
        assert!(record["nearest"].as_str().unwrap().contains("rule web"), "{record}");
    }
    assert_eq!(w.dns.asked("evil.test"), 0, "a name that no rule lists is never resolved");
    assert!(w.egret.metrics().contains("egret_refusals_total{reason=\"no_rule\",stage=\"name\"} 4"));
}

#[test]
fn steered_clients_reach_the_name_they_ask_for() {
    let Some(w) = world("") else { return };
    let steer = format!("::{}:{}", w.egret.ip, w.egret.sni().port());
    let out = curl(&["--cacert", &w.authority.ca(), "--connect-to", &steer, "https://a.web.test:10443/who"]);
    assert_eq!(text(&out), "a.web.test HTTP/2.0 TLSv1.3\n");
    let steer = format!("::{}:{}", w.egret.ip, w.egret.plain().port());
    let out = curl(&["--connect-to", &steer, "http://a.web.test:10080/who"]);
    assert_eq!(text(&out), "a.web.test HTTP/1.1 \n");
}

#[test]
fn alpn_is_negotiated_as_if_nothing_stood_between() {
    if !have(&["openssl"]) {
        return;
    }
    let (dns, authority, ip) = (Dns::start(), Authority::new(), own_ip());
    let address = SocketAddr::new(ip, HTTPS);
    let _server = openssl_server(&authority, address, &["k.web.test"], &["-alpn", "konnectivity,h2"]);
    dns.answer("k.web.test", &[&ip.to_string()]);
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "");
    let negotiated = |more: &[&str]| {
        let ca = authority.ca();
        let mut args = vec!["s_client", "-CAfile", &ca, "-verify_return_error", "-servername", "k.web.test", "-alpn"];
        args.push("konnectivity,h2");
        args.extend(more);
        let out = text(&run("openssl", &args));
        out.lines().find(|l| l.contains("ALPN")).unwrap_or_else(|| panic!("{out}")).to_owned()
    };
    let direct = negotiated(&["-connect", &address.to_string()]);
    assert_eq!(direct, "ALPN protocol: konnectivity");
    assert_eq!(negotiated(&["-connect", "k.web.test:10443", "-proxy", &egret.forward().to_string()]), direct);
    assert_eq!(negotiated(&["-connect", &egret.sni().to_string()]), direct);
    let record = egret.last("k.web.test");
    assert_eq!(record["alpn"], serde_json::json!(["konnectivity", "h2"]));
}

#[test]
fn a_client_certificate_passes_through() {
    let Some(w) = world("") else { return };
    let ca = w.authority.ca();
    let mtls_ip = own_ip();
    let more = format!(
        "ssl_client_certificate {ca}; ssl_verify_client on; location /me {{ return 200 \"$ssl_client_verify\\n\"; }}"
    );
    let _nginx = Nginx::start(&w.authority, mtls_ip, HTTPS, HTTP, &["mtls.web.test"], &more);
    w.dns.answer("mtls.web.test", &[&mtls_ip.to_string()]);
    let stem = w.authority.sign("client", &["client.test"]);
    let (crt, key) =
        (stem.with_extension("crt").display().to_string(), stem.with_extension("key").display().to_string());
    let proxy = format!("http://{}", w.egret.forward());
    let out = curl(&["--cacert", &ca, "--cert", &crt, "--key", &key, "-x", &proxy, "https://mtls.web.test:10443/me"]);
    assert_eq!(text(&out), "SUCCESS\n");
    let out = curl(&[
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "--cacert",
        &ca,
        "-x",
        &proxy,
        "https://mtls.web.test:10443/me",
    ]);
    assert_eq!(text(&out), "400", "and its absence is the server's to judge");
}

#[test]
fn a_hello_of_several_segments_is_one_hello() {
    if !have(&["openssl"]) {
        return;
    }
    let (dns, authority, ip) = (Dns::start(), Authority::new(), own_ip());
    let _server = openssl_server(&authority, SocketAddr::new(ip, HTTPS), &["pq.web.test"], &["-alpn", "last"]);
    dns.answer("pq.web.test", &[&ip.to_string()]);
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "");
    // As many bytes as post-quantum key shares bring, and more, in protocols that nobody speaks.
    let protocols: Vec<String> = (0..40).map(|n| format!("{n:0>200}")).chain(["last".to_owned()]).collect();
    let ca = authority.ca();
    let out = run(
        "openssl",
        &[
            "s_client",
            "-CAfile",
            &ca,
            "-servername",
            "pq.web.test",
            "-alpn",
            &protocols.join(","),
            "-connect",
            &egret.sni().to_string(),
        ],
    );
    assert!(text(&out).contains("ALPN protocol: last"), "{}", text(&out));
    let record = egret.last("pq.web.test");
    assert!(record["bytes_up"].as_u64() > Some(8000), "{record}");
    assert_eq!(record["alpn"].as_array().unwrap().len(), 41);
}

#[test]
fn parallel_transfers_arrive_as_they_were_sent() {
    let Some(w) = world("") else { return };
    if !have(&["sha256sum"]) {
        return;
    }
    let file = w.nginx.root.path().join("large");
    let mut bytes = vec![0u8; 50 << 20];
    let mut seed = 88_172_645_463_325_252_u64;
    for word in bytes.chunks_exact_mut(8) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        word.copy_from_slice(&seed.to_le_bytes());
    }
    std::fs::write(&file, &bytes).unwrap();
    let sum = |command: &str| text(&run("sh", &["-c", &format!("{command} | sha256sum")]));
    let expected = sum(&format!("cat {}", file.display()));
    let children: Vec<_> = (0..64)
        .map(|n| {
            let proxy = if n % 2 == 0 { "http" } else { "socks5h" };
            let command = format!(
                "curl -sS --max-time 300 --noproxy '' --cacert {} -x {proxy}://{} https://a.web.test:10443/large | sha256sum",
                w.authority.ca(),
                w.egret.forward()
            );
            Command::new("sh").args(["-c", &command]).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), expected);
    }
    let ended = || w.egret.records().into_iter().filter(|record| record["ending"] != "open").collect::<Vec<_>>();
    crate::support::eventually("64 records", || ended().len() >= 64);
    assert!(ended().iter().all(|r| r["ending"] == "closed" && r["bytes_down"].as_u64() > Some(50 << 20)));
}

#[test]
fn each_side_may_finish_first_and_still_hear_the_other() {
    let (dns, ip) = (Dns::start(), own_ip());
    dns.answer("half.web.test", &[&ip.to_string()]);
    let hello = Hello::named("half.web.test").record();
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "");

    // The client finishes; the server hears it and answers afterwards.
    let listener = std::net::TcpListener::bind((ip, HTTPS)).unwrap();
    let mut client = tunnel(&egret, "half.web.test:10443");
    client.write_all(&hello).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut got = vec![0; hello.len()];
    server.read_exact(&mut got).unwrap();
    assert_eq!(got, hello, "byte for byte");
    server.write_all(&[21, 3, 3, 0, 2, 1, 0]).unwrap();
    let mut alert = [0; 7];
    client.read_exact(&mut alert).unwrap();
    client.write_all(b"to the server").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut server), b"to the server");
    server.write_all(b"and back").unwrap();
    drop(server);
    assert_eq!(read_all(&mut client), b"and back");
    let record = egret.record_of(client.local_addr().unwrap());
    assert_eq!(record["ending"], "closed");
    assert_eq!(record["bytes_up"].as_u64(), Some(hello.len() as u64 + 13));
    assert_eq!(record["bytes_down"].as_u64(), Some(7 + 8));

    // The server finishes; the client hears it and goes on sending.
    let mut client = tunnel(&egret, "half.web.test:10443");
    client.write_all(&hello).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.read_exact(&mut got).unwrap();
    server.write_all(&[21, 3, 3, 0, 2, 1, 0]).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), [21, 3, 3, 0, 2, 1, 0]);
    client.write_all(b"still here").unwrap();
    drop(client);
    assert_eq!(read_all(&mut server), b"still here");

    // A client that closes behind its hello: the server hears that too, before it has said a word.
    let mut client = tunnel(&egret, "half.web.test:10443");
    client.write_all(&hello).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    assert_eq!(read_all(&mut server), hello);
}

#[test]
fn a_reset_on_one_side_is_a_reset_on_the_other() {
    let (dns, ip) = (Dns::start(), own_ip());
    dns.answer("reset.web.test", &[&ip.to_string()]);
    let hello = Hello::named("reset.web.test").record();
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy(), "");
    let listener = std::net::TcpListener::bind((ip, HTTPS)).unwrap();
    for by_client in [true, false] {
        let mut client = tunnel(&egret, "reset.web.test:10443");
        let local = client.local_addr().unwrap();
        client.write_all(&hello).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut got = vec![0; hello.len()];
        server.read_exact(&mut got).unwrap();
        server.write_all(&[21, 3, 3, 0, 2, 1, 0]).unwrap();
        let mut alert = [0; 7];
        client.read_exact(&mut alert).unwrap();
        let (resetting, mut other) = if by_client { (client, server) } else { (server, client) };
        socket2::SockRef::from(&resetting).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(resetting);
        other.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
        let error = other.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let expected = if by_client { "client_reset" } else { "upstream_reset" };
        assert_eq!(egret.record_of(local)["ending"], expected);
    }
}

#[test]
fn both_address_families_work_on_both_sides() {
    if !have(&["curl", "openssl"]) {
        return;
    }
    let port = 20_000 + 2 * (std::process::id() % 5_000) as u16;
    let (dns, authority) = (Dns::start(), Authority::new());
    let v6: SocketAddr = format!("[::1]:{port}").parse().unwrap();
    let _server = openssl_server(&authority, v6, &["six.web.test"], &["-www"]);
    dns.answer("six.web.test", &["::1"]);
    let policy = policy().replace("https:10443", &format!("https:{port}"));
    let ip = own_ip();
    let config = format!(
        "listeners:\n  - {{ kind: forward, bind: \"[::1]:{}\" }}\n  - {{ kind: forward, bind: \"{ip}:3128\" }}\n\
         dns: {{ upstreams: [\"{}\"] }}\nadmin: {{ bind: \"{ip}:9901\" }}\npolicy:\n{}",
        port + 1,
        dns.address,
        policy.lines().map(|l| format!("  {l}\n")).collect::<String>()
    );
    let egret = Egret::run(&config, ip);
    let ca = authority.ca();
    for proxy in [format!("[::1]:{}", port + 1), format!("{ip}:3128")] {
        let url = format!("https://six.web.test:{port}/");
        let out =
            curl(&["-o", "/dev/null", "-w", "%{http_code}", "--cacert", &ca, "-x", &format!("http://{proxy}"), &url]);
        assert_eq!(text(&out), "200");
    }
    egret.record("IPv6 client", |r| {
        r["client"].as_str().unwrap().starts_with("[::1]") && r["upstream"] == format!("[::1]:{port}")
    });
    // A literal in brackets is an address, and no rule covers it.
    let mut client = connect(egret.forward());
    client.write_all(b"CONNECT [::1]:22 HTTP/1.1\r\nHost: [::1]:22\r\n\r\n").unwrap();
    assert!(read_head(&mut client).starts_with("HTTP/1.1 403"));
    refused(&egret.record_of(client.local_addr().unwrap()), "no_rule", "network");
}

#[test]
fn a_network_rule_opens_an_address_unseen_and_no_other() {
    let (dns, ip, other) = (Dns::start(), own_ip(), own_ip());
    let policy = format!(
        "network_rules:\n  - {{ name: ssh, destinations: [\"{ip}/32\"], protocols: [\"tcp:10022\"] }}\n  - {{ name: world, destinations: [\"0.0.0.0/0\"], protocols: [\"tcp:10023\"] }}\n"
    );
    let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy, "");
    let recorder = Recorder::start(ip, 10022, b"SSH-2.0-test\r\n");
    let _decoy = Recorder::start(other, 10022, b"");
    let _inside = Recorder::start(other, 10023, b"");
    let mut client = tunnel(&egret, &format!("{ip}:10022"));
    client.write_all(b"SSH-2.0-client\r\n").unwrap();
    let mut banner = [0; 14];
    client.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"SSH-2.0-test\r\n");
    recorder.received(b"SSH-2.0-client\r\n");
    let local = client.local_addr().unwrap();
    drop(client);
    let record = egret.record_of(local);
    allowed(&record, "ssh");
    assert_eq!((&record["protocol"], &record["original_dst"]), (&"tcp".into(), &format!("{ip}:10022").into()));
    for (target, code, reason, stage) in [
        (format!("{other}:10022"), "403", "no_rule", "network"),
        (format!("{ip}:10024"), "403", "no_rule", "network"),
        (format!("{other}:10023"), "502", "address_denied", "address"),
    ] {
        let mut client = connect(egret.forward());
        write!(client, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").unwrap();
        assert!(read_head(&mut client).starts_with(&format!("HTTP/1.1 {code}")), "{target}");
        refused(&egret.record_of(client.local_addr().unwrap()), reason, stage);
    }
}

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/clients");

#[test]
fn an_offer_of_another_protocol_is_not_a_demand() {
    let Some(w) = world("") else { return };
    let (proxy, url) = (w.egret.forward(), format!("http://a.web.test:{HTTP}/who"));
    let served = "a.web.test HTTP/1.1 \n";
    assert_eq!(text(&curl(&["--http2", "-x", &format!("http://{proxy}"), &url])), served);
    let to = format!("a.web.test:{HTTP}:{}", w.egret.plain());
    assert_eq!(text(&curl(&["--http2", "--connect-to", &to, &url])), served);
    if have(&["java", "javac"]) {
        let source = format!("{SCRIPTS}/Ask.java");
        let out = run("java", &[&source, &proxy.ip().to_string(), &proxy.port().to_string(), &url]);
        assert_eq!(text(&out), format!("200 {served}"));
    }
}

#[test]
fn a_tunnel_goes_where_its_target_says() {
    if !have(&["node"]) {
        return;
    }
    let Some(w) = world("") else { return };
    let (proxy, ca) = (w.egret.forward(), w.authority.ca());
    for (package, script) in [("tunnel-agent", "tunnel_agent.js"), ("undici", "undici.js")] {
        if !Path::new("/usr/share/nodejs").join(package).exists() {
            missing(&format!("node-{package}"));
            continue;
        }
        for (name, said) in [("a.web.test", "200 a.web.test HTTP/1.1 TLSv1.3\n"), ("evil.test", "")] {
            let url = format!("https://{name}:{HTTPS}/who");
            let out = Command::new("timeout")
                .args(["60", "node", &format!("{SCRIPTS}/{script}")])
                .args([&proxy.ip().to_string(), &proxy.port().to_string(), &url, &ca])
                .env("NODE_PATH", "/usr/share/nodejs")
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&out.stdout), said, "{package}: {}", text(&out));
        }
        refused(&w.egret.record("the other name", |line| line["name"] == "evil.test"), "no_rule", "name");
    }
}

#[test]
fn a_hello_without_a_name_passes_where_a_rule_says_so() {
    if !have(&["openssl"]) {
        return;
    }
    let (dns, authority, ip) = (Dns::start(), Authority::new(), own_ip());
    let address = SocketAddr::new(ip, HTTPS);
    let _server = openssl_server(&authority, address, &["a_b.web.test"], &[]);
    dns.answer("a_b.web.test", &[&ip.to_string()]).answer("other.web.test", &[&ip.to_string()]);
    let ca = authority.ca();
    for (is_optional, policy) in
        [(false, policy()), (true, policy().replace(", addresses:", ", sni: optional, addresses:"))]
    {
        let egret = Egret::start(dns.address, (HTTPS, HTTP), &policy, "");
        let proxy = egret.forward().to_string();
        let ask = |name: &[&str]| {
            let to = format!("a_b.web.test:{HTTPS}");
            let args = [
                "s_client",
                "-CAfile",
                &ca,
                "-verify_return_error",
                "-verify_hostname",
                "a_b.web.test",
                "-proxy",
                &proxy,
            ];
            run("openssl", &[&args[..], &["-connect", &to], name].concat()).status.success()
        };
        assert_eq!(ask(&["-noservername"]), is_optional);
        let record = egret.last("a_b.web.test");
        if is_optional {
            allowed(&record, "web");
            assert_eq!((&record["name_source"], &record["sni"]), (&"connect".into(), &"".into()));
        } else {
            refused(&record, "no_sni", "name");
        }
        assert!(ask(&["-servername", "a_b.web.test"]));
        assert!(!ask(&["-servername", "other.web.test"]), "optional is not any");
        egret.record("the other name", |line| line["reason"] == "name_mismatch" && line["stage"] == "name");
        // Without a claim, nothing stands for the name.
        let mut steered = connect(egret.sni());
        steered.write_all(&Hello::nameless().record()).unwrap();
        read_all(&mut steered);
        refused(&egret.record_of(steered.local_addr().unwrap()), "no_sni", "name");
    }
}

#[test]
fn a_user_in_a_url_is_the_origins_and_stays_out_of_the_log() {
    if !have(&["wget", "/usr/lib/apt/apt-helper"]) {
        return;
    }
    let Some(w) = world("") else { return };
    let (proxy, folder) = (format!("http://{}", w.egret.forward()), tempfile::tempdir().unwrap());
    let url = format!("http://alice:horse@a.web.test:{HTTP}/who");
    let out = Command::new("wget").args(["-q", "-O", "-", &url]).env("http_proxy", &proxy).output().unwrap();
    assert_eq!(text(&out), "a.web.test HTTP/1.1 \n");
    let file = folder.path().join("who").display().to_string();
    let option = format!("Acquire::http::Proxy={proxy}");
    let out = run("/usr/lib/apt/apt-helper", &["-o", &option, "download-file", &url, &file]);
    assert_eq!(std::fs::read_to_string(&file).unwrap_or_default(), "a.web.test HTTP/1.1 \n", "{}", text(&out));
    let log = format!("{:?}{}", w.egret.records(), w.egret.errors());
    assert!(!log.contains("horse") && !log.contains("alice"), "{log}");
}

/// A server that speaks first, as SSH's and many databases' do, and then says again what it hears.
fn greeter(at: SocketAddr) {
    let listener = std::net::TcpListener::bind(at).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut stream = stream;
                let _ = stream.write_all(b"SSH-2.0-greeter\r\n");
                let mut back = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut back);
            });
        }
    });
}

#[test]
fn a_claimed_name_carries_any_protocol() {
    if !have(&["curl"]) {
        return;
    }
    let (dns, ip) = (Dns::start(), own_ip());
    dns.answer("git.tcp.test", &[&ip.to_string()]);
    greeter(SocketAddr::new(ip, 10022));
    let policy = "application_rules:\n  - { name: git, fqdns: [\"*.tcp.test\"], protocols: [\"tcp:10022\"], addresses: [\"127.0.0.0/8\"] }\n";
    let egret = Egret::start(dns.address, (HTTPS, HTTP), policy, "");
    for scheme in ["http", "socks5h"] {
        let proxy = format!("{scheme}://{}", egret.forward());
        let ask = |name: &str| {
            let line = ["-sSN", "-p", "-x", &proxy, "--max-time", "10"];
            let mut curl = Command::new("curl")
                .args(line)
                .arg(format!("telnet://{name}:10022"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = String::new();
            // It goes on for as long as it is written to.
            let mut input = curl.stdin.take().unwrap();
            let _ = input.write_all(b"hello\n");
            let mut out = curl.stdout.take().unwrap();
            let mut part = [0; 100];
            while !said.contains("hello") {
                match out.read(&mut part) {
                    Ok(n) if n > 0 => said.push_str(&String::from_utf8_lossy(&part[..n])),
                    _ => break,
                }
            }
            drop(input);
            let _ = curl.kill();
            let _ = curl.wait();
            said
        };
        assert_eq!(ask("git.tcp.test"), "SSH-2.0-greeter\r\nhello\n", "{scheme}");
        assert_eq!(ask("evil.test"), "", "{scheme}");
    }
    for source in ["connect", "socks"] {
        let record = egret.record(source, |r| r["name"] == "git.tcp.test" && r["name_source"] == source);
        allowed(&record, "git");
        assert_eq!((&record["protocol"], &record["pattern"]), (&"tcp".into(), &"*.tcp.test".into()), "{record}");
        assert_eq!(record["bytes_up"], 6, "{record}");
        refused(&egret.record(source, |r| r["name"] == "evil.test" && r["name_source"] == source), "no_rule", "name");
    }
}
