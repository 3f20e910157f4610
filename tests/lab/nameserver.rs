//! DNS through the hop: what clients are answered is open before they know it, and no other server is asked.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::hop::{RESET, hop, tcp, udp};
use crate::support::dns::Does;
use crate::support::{ADMIN, Egret, Server, eventually, pause};
use crate::world::{HOP1, OUTSIDER, Through, World, echo_tcp, echo_udp, ip};

/// Many servers, so that a fixed address proves nothing.
const SERVERS: u8 = 16;
const PORT: u16 = 9001;
/// Where a forwarder of the fabric's own asks egret.
const FORWARDER: &str = "10.224.0.1:5353";

/// How long answers may be kept.
const LIVES: &str = "min_ttl: 0s, max_ttl: 1s";

const POLICY: &str = "
  network_rules:
    - { name: tunnel, fqdns: [\"*.tun.example\"], protocols: [\"tcp:9001\", \"udp:9001\"] }
    - { name: other, fqdns: [\"*.other.example\"], protocols: [\"tcp:9001\"] }
    - { name: exact, fqdns: [exact.example], protocols: [\"udp:9001\"] }
";

fn config(policy: &str, learn: &str) -> String {
    format!(
        "listeners:\n  - {{ kind: transparent, bind: \"[::]:3129\", capture: tproxy }}\n  - {{ kind: dns, bind: \"[::]:53\" }}\n\
         dns: {{ upstreams: [\"20.50.1.1\"], {LIVES}, forwarders: [\"10.225.1.1\"] }}\n\
         admin: {{ bind: \"127.0.0.1:{ADMIN}\" }}\nhealth: {{ bind: \"[::]:9902\" }}\n\
         netfilter: {{ clients: [10.224.0.0/16, \"fd00:224::/64\"], interfaces: [lan] }}\n\
         limits: {{ dns_new_names: 1000000 }}\n\
         learn: {{ state_dir: state, {learn} }}\npolicy:{policy}"
    )
}

/// The addresses of many servers.
fn servers() -> impl Iterator<Item = IpAddr> {
    (1..=SERVERS).map(|n| IpAddr::from([20, 60, 4, n]))
}

/// Servers that say back what they hear.
pub fn echo(port: u16) {
    ip(&["route", "add", "local", "20.60.4.0/24", "dev", "lo"]);
    for server in servers() {
        echo_tcp(server, port);
        echo_udp(server, port);
    }
}

/// A world with servers that say back what they hear, and a name for any of them.
fn world() -> Option<World> {
    let world = World::build(Through::One)?;
    world.at("internet", || echo(PORT));
    world.dns.set("*", Does::Rebind(servers().collect()));
    Some(world)
}

/// Asks one server for an address over UDP, as the client.
pub fn resolve(server: &str, name: &str) -> Result<Ipv4Addr, ResponseCode> {
    resolve_from(Ipv4Addr::UNSPECIFIED, server, name)
}

/// The same from one of its addresses.
pub fn resolve_from(client: Ipv4Addr, server: &str, name: &str) -> Result<Ipv4Addr, ResponseCode> {
    let socket = UdpSocket::bind((client, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    socket.connect(server).unwrap();
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    socket.send(&message.to_vec().unwrap()).unwrap();
    let mut buffer = [0; 1500];
    let len = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{name} from {server}: {error}"));
    let answer = Message::from_vec(&buffer[..len]).unwrap();
    let address = answer.answers.iter().find_map(|record| match &record.data {
        RData::A(ip) => Some(ip.0),
        _ => None,
    });
    address.ok_or(answer.response_code)
}

/// Resolves and connects at once, again and again; how often it was refused.
fn rounds(
    server: &str,
    names: impl Iterator<Item = String>,
    over: fn(&str, u16) -> Result<(), std::io::ErrorKind>,
) -> usize {
    let refused = |name: &String| {
        let address = resolve(server, name).unwrap_or_else(|code| panic!("{name}: {code}"));
        over(&address.to_string(), PORT).is_err()
    };
    names.filter(refused).count()
}

fn forwarder(world: &World) -> Server {
    world.at("fabric", || {
        let mut command = Command::new("dnsmasq");
        command.args(["--no-daemon", "--no-resolv", "--no-hosts", "--cache-size=1000", "--pid-file=", "--port=5353"]);
        command.args([
            "--server=10.225.1.4",
            "--listen-address=10.224.0.1",
            "--bind-interfaces",
            "--use-stale-cache=5",
        ]);
        Server::start(&mut command, FORWARDER.parse().unwrap())
    })
}

#[test]
fn an_answer_is_open_before_its_client_has_it() {
    let Some(world) = world() else { return };
    let _forwarder = forwarder(&world);
    let direct = format!("{HOP1}:53");
    let learn = config(POLICY, "floor: 10s, grace: 5s");
    // Ten thousand rounds, all in all. Clients read whole seconds: 1ms is a life of 0.
    for ttl in ["1ms", "1s", "5s"] {
        let _egret = hop(&world, &learn.replace(LIVES, &format!("min_ttl: {ttl}, max_ttl: {ttl}")));
        world.at("client", || {
            for (way, server) in [("direct", direct.as_str()), ("forwarded", FORWARDER)] {
                let fresh = |n: usize| format!("n{n}.{way}.t{ttl}.tun.example.");
                assert_eq!(rounds(server, (0..550).map(fresh), tcp), 0, "{way}, TCP, {ttl}");
                assert_eq!(rounds(server, (550..1100).map(fresh), udp), 0, "{way}, UDP, {ttl}");
                // The same names again, at other addresses when they are asked for anew.
                assert_eq!(rounds(server, (0..600).map(|n| fresh(n % 7)), udp), 0, "{way}, in turns, {ttl}");
            }
            assert_eq!(rounds(&direct, (0..50).map(|_| "exact.example.".to_owned()), udp), 0, "an exact name, {ttl}");
        });
    }
}

#[test]
fn what_is_not_asked_for_any_more_closes_and_what_is_open_goes_on() {
    let Some(world) = world() else { return };
    let egret = hop(&world, &config(POLICY, "floor: 1s, grace: 2s"));
    let server = format!("{HOP1}:53");
    world.at("client", || {
        let address = resolve(&server, "a.tun.example.").unwrap().to_string();
        let mut stream = TcpStream::connect((address.as_str(), PORT)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        eventually("a new flow is refused", || {
            pause();
            tcp(&address, PORT) == RESET
        });
        stream.write_all(b"still").unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"still");
        assert!(tcp("20.60.4.99", PORT).is_err(), "what was never answered");
        // Until it is asked for again.
        let again = resolve(&server, "a.tun.example.").unwrap().to_string();
        assert_eq!(tcp(&again, PORT), Ok(()));
    });
    let line =
        egret.record("the refused flow", |record| record["event"] == "net" && record["reason"] == "learned_expired");
    assert_eq!((&line["rule"], &line["pattern"]), (&"tunnel".into(), &"*.tun.example".into()));
    assert!(line["nearest"].as_str().unwrap().starts_with("a.tun.example had this address"), "{line}");
    egret.record("what was never answered", |record| record["reason"] == "no_rule" && record["port"] == PORT);
}

#[test]
fn what_one_client_asked_is_open_for_another_before_its_answer() {
    let Some(world) = world() else { return };
    let policy = "
  application_rules:
    - { name: verified, fqdns: [\"*.tun.example\"], protocols: [\"https:443\"], destination: verify }
  network_rules:
    - { name: tunnel, sources: [10.224.0.11], fqdns: [\"*.tun.example\"], protocols: [\"udp:9001\"] }
";
    let _egret = hop(&world, &config(policy, "floor: 60s"));
    let server = format!("{HOP1}:53");
    world.at("client", || {
        ip(&["addr", "add", "10.224.0.11/24", "dev", "eth0"]);
        let other = Ipv4Addr::new(10, 224, 0, 11);
        for n in 0..20 {
            let name = format!("n{n}.tun.example.");
            // For this one the name is a matter of the proxy alone.
            resolve(&server, &name).unwrap();
            let address = resolve_from(other, &server, &name).unwrap();
            let socket = UdpSocket::bind((other, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket.connect((address, PORT)).unwrap();
            socket.send(b"hello").unwrap();
            socket.recv(&mut [0; 5]).unwrap_or_else(|error| panic!("{name} at {address}: {error}"));
        }
    });
}

#[test]
fn what_one_client_asked_is_open_for_no_other_where_the_client_is_the_key() {
    let Some(world) = world() else { return };
    world.dns.answer("exact.example", &["20.60.4.16"]);
    let egret = hop(&world, &config(POLICY, "floor: 60s, key: client").replace("forwarders: [\"10.225.1.1\"]", ""));
    let server = format!("{HOP1}:53");
    let other = Ipv4Addr::new(10, 224, 0, 11);
    let reaches = |client: Ipv4Addr, to: Ipv4Addr| {
        let socket = UdpSocket::bind((client, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.connect((to, PORT)).unwrap();
        socket.send(b"hello").is_ok() && socket.recv(&mut [0; 5]).is_ok()
    };
    world.at("client", || {
        ip(&["addr", "add", "10.224.0.11/24", "dev", "eth0"]);
        let first = Ipv4Addr::new(10, 224, 0, 10);
        world.dns.answer("one.tun.example", &["20.60.4.1"]);
        let address = resolve_from(first, &server, "one.tun.example.").unwrap();
        assert!(reaches(first, address) && !reaches(other, address));
        assert_eq!(resolve_from(other, &server, "one.tun.example."), Ok(address));
        assert!(reaches(other, address) && reaches(first, address));
        // What is kept resolved is open for every client of its rule.
        let exact = resolve_from(first, &server, "exact.example.").unwrap();
        assert!(reaches(other, exact));
    });
    reload(
        &egret,
        &config(&POLICY.replace("[exact.example]", "[exact.example], steer: false"), "floor: 60s, key: client")
            .replace("forwarders: [\"10.225.1.1\"]", ""),
        1,
    );
    world.at("client", || {
        world.dns.answer("two.tun.example", &["20.60.4.2"]);
        let address = resolve_from(other, &server, "two.tun.example.").unwrap();
        assert!(reaches(other, address) && !reaches(Ipv4Addr::new(10, 224, 0, 10), address));
        assert!(reaches(other, Ipv4Addr::new(20, 60, 4, 1)), "a reload keeps what it was");
    });
}

#[test]
fn a_server_that_a_network_rule_names_is_asked_directly() {
    let Some(world) = world() else { return };
    let rule = "    - { name: server, destinations: [20.50.1.1/32], protocols: [\"udp:53\"] }\n";
    let _egret = hop(&world, &config(&format!("{POLICY}{rule}"), "floor: 60s"));
    world.at("client", || {
        let address = resolve("20.50.1.1:53", "not.listed.").unwrap();
        assert_eq!(address.octets()[..3], [20, 60, 4]);
    });
    assert_eq!(world.dns.asked("not.listed"), 1);
}

#[test]
fn answers_wait_for_a_reload() {
    let Some(world) = world() else { return };
    const LEARN: &str = "floor: 5s, grace: 2s";
    let egret = hop(&world, &config(POLICY, LEARN));
    let (server, stop) = (format!("{HOP1}:53"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let ask = |client: usize| {
            let (world, server, stop) = (&world, &server, &stop);
            move || {
                world.at("client", || {
                    let names = (0..20_000).map(|n| format!("r{n}.c{client}.tun.example."));
                    let mut asked = 0;
                    let names = names.take_while(|_| !stop.load(Ordering::Relaxed)).inspect(|_| asked += 1);
                    let refused = rounds(server, names, tcp);
                    (asked, refused)
                })
            }
        };
        let asking: Vec<_> = (0..4).map(|client| scope.spawn(ask(client))).collect();
        for n in 0..40 {
            let rule = format!("{{ name: more{n}, destinations: [20.60.9.{n}/32], protocols: [\"tcp:7000\"] }}");
            reload(&egret, &config(&format!("{POLICY}    - {rule}\n"), LEARN), n + 1);
        }
        stop.store(true, Ordering::Relaxed);
        for asking in asking {
            let (asked, refused) = asking.join().unwrap();
            assert!(asked > 20 && refused == 0, "{refused} of {asked}");
        }
    });
}

fn reload(egret: &Egret, config: &str, count: usize) {
    std::fs::write(egret.folder().join("egret.yaml"), config).unwrap();
    egret.signal("HUP");
    eventually("the reload", || egret.errors().matches("the new policy is in force").count() >= count);
}

#[test]
fn whichever_server_is_asked_egret_answers() {
    let Some(world) = world() else { return };
    let egret = hop(&world, &config(POLICY, "floor: 60s"));
    world.at("client", || {
        let stranger = format!("{OUTSIDER}:53");
        let address = resolve(&stranger, "x.tun.example.").unwrap();
        assert_eq!(address.octets()[..3], [20, 60, 4]);
        assert_eq!(resolve(&stranger, "not.listed."), Err(ResponseCode::NXDomain));
        let mut stream = TcpStream::connect(&*stranger).unwrap();
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii("not.listed.").unwrap(), RecordType::A));
        let bytes = message.to_vec().unwrap();
        stream.write_all(&[&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat()).unwrap();
        let mut head = [0; 6];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(head[5] & 15, 3, "over TCP, too");
        let to = SocketAddr::new(OUTSIDER.parse().unwrap(), 853);
        assert!(TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_err(), "and nothing encrypted gets out");
    });
    assert_eq!(world.dns.asked("not.listed"), 0);
    egret.record("the refused question", |record| {
        record["event"] == "dns"
            && record["name"] == "not.listed"
            && record["client"].as_str().unwrap().starts_with("10.224.0.10:")
    });
}
