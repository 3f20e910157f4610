//! One next hop: who gets through, by name and by address, and who does not.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::support::{ADMIN, Egret, allowed, curl, eventually, refused, run, text};
use crate::world::{
    API_SERVER, CLIENT, CLIENT6, DECOY, DECOY6, HOP1, ORIGIN, ORIGIN6, PARTNER, PARTNER6, Through, World,
};

pub const POLICY: &str = "
  application_rules:
    - { name: web, sources: [10.224.0.0/16, \"fd00:224::/64\"], fqdns: [a.example], protocols: [\"https:443\", \"http:80\"] }
    - { name: checked, fqdns: [b.example], protocols: [\"https:443\"], destination: verify }
  network_rules:
    - { name: tunnel, destinations: [20.60.3.0/24, \"2a01:60::3/128\"], protocols: [\"udp:1194\", \"tcp:9000\", \"tcp:22\"] }
    - { name: time, fqdns: [time.example], protocols: [\"udp:123\"] }
";

/// A hop's configuration: its own DNS is the internet's.
pub fn config(policy: &str, more: &str) -> String {
    format!(
        "listeners: [{{ kind: transparent, bind: \"[::]:3129\", capture: tproxy }}]\n\
         dns: {{ upstreams: [\"20.50.1.1\"], min_ttl: 0s }}\n\
         admin: {{ bind: \"127.0.0.1:{ADMIN}\" }}\nhealth: {{ bind: \"[::]:9902\" }}\n\
         netfilter: {{ clients: [10.224.0.0/16, \"fd00:224::/64\"], interfaces: [lan] }}\n\
         learn: {{ refresh: 1s, state_dir: state }}\n{more}\npolicy:{policy}"
    )
}

pub fn hop(world: &World, config: &str) -> Egret {
    hop_at(world, "hop1", config)
}

pub fn hop_at(world: &World, role: &str, config: &str) -> Egret {
    let egret = world.at(role, || Egret::run_as(config, "127.0.0.1".parse().unwrap(), &[], &["--netfilter"]));
    eventually("the hop is ready", || world.at(role, || page("readyz")).starts_with("HTTP/1.1 200"));
    egret
}

pub fn page(path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", 9902)) else { return String::new() };
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    let _ = stream.read_to_string(&mut page);
    page
}

/// Says something by TCP and hears it back; the error where nobody answers.
pub fn tcp(to: &str, port: u16) -> Result<(), ErrorKind> {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).map_err(|e| e.kind())?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"hello").map_err(|e| e.kind())?;
    let mut back = [0; 5];
    stream.read_exact(&mut back).map_err(|e| e.kind())?;
    // An alert of egret's is not an echo.
    if &back == b"hello" { Ok(()) } else { Err(ErrorKind::InvalidData) }
}

/// The same by UDP.
pub fn udp(to: &str, port: u16) -> Result<(), ErrorKind> {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket.connect(to).unwrap();
    socket.send(b"hello").map_err(|e| e.kind())?;
    socket.recv(&mut [0; 5]).map(|_| ()).map_err(|e| e.kind())
}

/// What a refused client sees at once.
pub const RESET: Result<(), ErrorKind> = Err(ErrorKind::ConnectionRefused);

#[test]
fn clients_without_a_proxy_reach_what_is_listed_and_nothing_else() {
    let Some(world) = World::build(Through::One) else { return };
    world.dns.answer("time.example", &[PARTNER]).answer("c.example", &[DECOY]);
    let mut capture = world.capture();
    let egret = hop(&world, &config(POLICY, ""));
    let ca = world.authority.ca();
    let get = |args: &[&str]| world.at("client", || curl(&[&["--cacert", &ca], args].concat()));
    let via = |name: &str, ip: &str| format!("{name}:443:{ip}");

    // By name, as it stands in the bytes: both families, with the client's own DNS.
    let said = get(&["--resolve", &via("a.example", ORIGIN), "https://a.example/who"]);
    assert_eq!(text(&said), "a.example HTTP/2.0 TLSv1.3\n");
    let line = egret.record_number(0);
    allowed(&line, "web");
    assert_eq!(line["original_dst"], format!("{ORIGIN}:443"));
    assert!(line["client"].as_str().unwrap().starts_with(CLIENT) && line["name_source"] == "sni", "{line:#}");
    let said = get(&["--resolve", &via("a.example", ORIGIN6), "https://a.example/who"]);
    assert_eq!(text(&said), "a.example HTTP/2.0 TLSv1.3\n");
    let line = egret.record("IPv6", |line| line["client"].as_str().unwrap().contains(CLIENT6));
    assert_eq!(line["upstream"], format!("[{ORIGIN6}]:443"));
    let said = get(&["--resolve", &format!("a.example:80:{ORIGIN}"), "http://a.example/hello"]);
    assert_eq!(text(&said), "hello\n");

    // ALPN is the client's business.
    let alpn = |protocols: &str| {
        let connect = format!("{ORIGIN}:443");
        let args = ["s_client", "-connect", &connect, "-servername", "a.example", "-alpn", protocols, "-CAfile", &ca];
        text(&world.at("client", || run("openssl", &args)))
    };
    assert!(alpn("http/1.1").contains("ALPN protocol: http/1.1"));
    assert!(alpn("konnectivity").contains("No ALPN negotiated"));
    egret.record("ALPN", |line| line["alpn"][0] == "konnectivity");

    // A listed name at a stranger's address leads to the true one.
    let said = get(&["--resolve", &via("a.example", DECOY), "https://a.example/who"]);
    assert_eq!(text(&said), "a.example HTTP/2.0 TLSv1.3\n");
    let line = egret.record("the decoy's client", |line| line["original_dst"] == format!("{DECOY}:443"));
    assert_eq!(line["upstream"], format!("{ORIGIN}:443"));
    let said = get(&["--resolve", &via("b.example", DECOY), "https://b.example/"]);
    assert!(!said.status.success());
    refused(&egret.last("b.example"), "dst_not_in_dns", "address");

    // What nobody lists.
    let said = get(&["--resolve", &via("c.example", DECOY), "https://c.example/"]);
    assert!(!said.status.success());
    refused(&egret.last("c.example"), "no_rule", "name");
    let said = get(&[&format!("https://{DECOY}/")]);
    assert!(!said.status.success(), "no name, no rule");

    // By address, each beside its nearest refusal.
    world.at("client", || {
        for port in [9000, 22] {
            assert_eq!(tcp(PARTNER, port), Ok(()), "{port}");
            assert_eq!(tcp(PARTNER6, port), Ok(()), "{port}");
            assert_eq!(tcp(DECOY, port), RESET, "{port}");
            assert_eq!(tcp(DECOY6, port), RESET, "{port}");
        }
        assert_eq!(tcp(PARTNER, 9001), RESET);
        assert_eq!(udp(PARTNER, 1194), Ok(()));
        assert_eq!(udp(PARTNER6, 1194), Ok(()));
        for (ip, port) in [(DECOY, 1194), (DECOY6, 1194), (PARTNER6, 123), (DECOY, 123), (DECOY, 443)] {
            assert_eq!(udp(ip, port), RESET, "{ip} {port}");
        }
        // The name's address is known before anybody asks for it.
        eventually("time.example is learned", || udp(PARTNER, 123) == Ok(()));
        // The hop itself is not a place to go.
        assert_eq!(tcp(HOP1, 22), RESET);
        assert_eq!(tcp(HOP1, ADMIN), RESET);
    });
    capture.saw_nothing(&format!("dst host {DECOY} or dst host {DECOY6} or host {CLIENT} or net fd00:224::/64"));
    assert!(capture.packets(&format!("dst host {API_SERVER}")).is_empty());
}
