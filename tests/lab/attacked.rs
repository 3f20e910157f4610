//! One client against the others, and forged packets against the hop itself.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::hop::{POLICY, config, hop, tcp, udp};
use crate::support::{Egret, eventually, have, pause, run, text};
use crate::world::{CLIENT, DECOY, HOP1, HOP1_WAN, PARTNER, Through, World, ip};

/// A second client on the same wire.
const NEIGHBOUR: &str = "10.224.0.11";

fn with_neighbour() -> Option<World> {
    let world = World::build(Through::One)?;
    world.at("client", || ip(&["addr", "add", "10.224.0.11/24", "dev", "eth0"]));
    Some(world)
}

fn limited(flows: u32) -> String {
    config(POLICY, "").replace("interfaces: [lan]", &format!("interfaces: [lan], flows_per_client: {flows}"))
}

/// Flows of a client that the hop's kernel knows.
fn flows(world: &World, client: &str) -> usize {
    let listed = world.at("hop1", || run("conntrack", &["-L", "-s", client]));
    String::from_utf8_lossy(&listed.stdout).lines().count()
}

/// How many of so many flows from an address hear their echo.
fn heard(world: &World, from: &str, count: usize) -> usize {
    world.at("client", || {
        let talk = |_| {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            socket.connect((PARTNER, 1194)).unwrap();
            let _ = socket.send(b"hello");
            socket
        };
        let all: Vec<UdpSocket> = (0..count).map(talk).collect();
        all.iter().filter(|socket| socket.recv(&mut [0; 9]).is_ok()).count()
    })
}

#[test]
fn one_client_has_its_part_of_the_flows_and_no_more() {
    let Some(world) = with_neighbour() else { return };
    // What is usual comes to several counts, and to a client's whole part all the same.
    let usual = hop(&world, &config(POLICY, ""));
    assert_eq!(heard(&world, CLIENT, 200), 200);
    drop(usual);
    world.at("hop1", || run("conntrack", &["-D", "-s", CLIENT]));
    let egret = hop(&world, &limited(50));
    let through = heard(&world, CLIENT, 120);
    println!("{through} of 120 flows of one client went through, {} are known", flows(&world, CLIENT));
    assert!((45..=51).contains(&through), "{through}");
    assert!(flows(&world, CLIENT) <= 51);
    assert_eq!(heard(&world, NEIGHBOUR, 20), 20, "another one has its own");
    let line = egret.record("the refusal", |line| line["reason"] == "rate_limited");
    assert!(line["stage"] == "network" && line["client"].as_str().unwrap().starts_with(CLIENT), "{line:#}");
    assert!(line["nearest"].as_str().unwrap().contains("netfilter.flows_per_client"), "{line:#}");
    assert_eq!(world.at("client", || tcp(PARTNER, 9000)), Err(ErrorKind::ConnectionRefused));
    // A flow that ends gives its part back.
    world.at("hop1", || run("conntrack", &["-D", "-s", CLIENT]));
    eventually("room again", || world.at("client", || tcp(PARTNER, 9000)) == Ok(()));
}

#[test]
fn a_client_that_cannot_be_counted_is_refused() {
    let Some(world) = with_neighbour() else { return };
    let _egret = hop(&world, &limited(50));
    let table = world.at("hop1", || text(&run("nft", &["list", "table", "inet", "egret"])));
    let full = format!("delete table inet egret\n{}", table.replace("size 262144", "size 1"));
    assert!(table.contains("size 262144"), "{table}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), full).unwrap();
    let loaded = world.at("hop1", || run("nft", &["-f", file.path().to_str().unwrap()]));
    assert!(loaded.status.success(), "{}", text(&loaded));
    world.at("hop1", || run("conntrack", &["-D"]));
    assert_eq!((heard(&world, CLIENT, 3), heard(&world, NEIGHBOUR, 3)), (3, 0));
}

#[test]
fn a_connection_that_begins_from_an_old_ones_port_is_judged_anew() {
    let Some(world) = World::build(Through::One) else { return };
    let mut capture = world.capture();
    let egret = hop(&world, &config(POLICY, ""));
    let connect = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::new(CLIENT.parse().unwrap(), 40_404).into()).unwrap();
        let to = SocketAddr::new(PARTNER.parse().unwrap(), 9000);
        socket.connect_timeout(&to.into(), Duration::from_secs(2)).map(|()| socket)
    };
    let old = world.at("client", connect).unwrap();
    // The rule goes, and its flows stay.
    std::fs::write(egret.folder().join("egret.yaml"), config(&POLICY.replace("\"tcp:9000\", ", ""), "")).unwrap();
    egret.signal("HUP");
    eventually("the reload", || egret.errors().contains("the new policy is in force"));
    assert!(flows(&world, CLIENT) > 0);
    // It ends without a word, so that the hop still knows of it.
    world.at("client", || {
        let mute = "add table ip mute; add chain ip mute out { type filter hook output priority 0; }; \
                    add rule ip mute out tcp sport 40404 tcp flags & (rst | fin) != 0 drop";
        assert!(run("nft", &[mute]).status.success());
        old.set_linger(Some(Duration::ZERO)).unwrap();
        drop(old);
    });
    // Between fork and exec a child of another test still holds the old socket, and with it the port.
    let mut ended = ErrorKind::AddrNotAvailable;
    eventually("the port is free", || {
        ended = world.at("client", connect).unwrap_err().kind();
        ended != ErrorKind::AddrNotAvailable
    });
    assert_eq!(ended, ErrorKind::ConnectionRefused);
    let begun = capture.packets("src port 40404 and tcp[tcpflags] & (tcp-syn | tcp-ack) == tcp-syn");
    assert_eq!(begun.len(), 1, "{begun:#?}");
}

#[test]
fn a_noisy_client_hides_no_others_refusals() {
    let Some(world) = with_neighbour() else { return };
    let egret = hop(&world, &config(POLICY, ""));
    world.at("client", || {
        let noisy = UdpSocket::bind((CLIENT, 0)).unwrap();
        let quiet = UdpSocket::bind((NEIGHBOUR, 0)).unwrap();
        for n in 0..3000 {
            let _ = noisy.send_to(b"x", (DECOY, 7777));
            if n % 300 == 0 {
                let _ = quiet.send_to(b"x", (DECOY, 8888));
            }
        }
    });
    let of = |egret: &Egret, port: u16| egret.records().iter().filter(|line| line["port"] == port).count();
    eventually("each of the other's has its line", || of(&egret, 8888) == 10);
    println!("{} lines for 3000 packets of one client, 10 for 10 of another", of(&egret, 7777));
    assert!((1..100).contains(&of(&egret, 7777)));
}

fn reaches(world: &World, role: &str, from: &str, port: u16) -> bool {
    world.at(role, || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(from.parse::<IpAddr>().unwrap(), 0).into()).unwrap();
        let to = SocketAddr::new(HOP1.parse().unwrap(), port);
        socket.connect_timeout(&to.into(), Duration::from_secs(1)).is_ok()
    })
}

#[test]
fn the_platforms_address_probes_and_leases_and_does_nothing_else() {
    let Some(world) = World::build(Through::One) else { return };
    let platform = "168.63.129.16";
    world.at("fabric", || ip(&["addr", "add", "168.63.129.16/32", "dev", "h1"]));
    world.at("hop1", || ip(&["route", "add", platform, "via", "10.225.1.1"]));
    let egret = hop(&world, &config(POLICY, ""));
    let _service = world.at("hop1", || TcpListener::bind("0.0.0.0:2222").unwrap());
    assert!(reaches(&world, "fabric", platform, 9902), "the probe");
    assert!(!reaches(&world, "fabric", platform, 2222));
    assert!(reaches(&world, "fabric", "10.225.1.1", 2222), "an operator");
    assert!(!reaches(&world, "client", CLIENT, 9902), "a client may not ask for health");
    let asked = world.at("fabric", || {
        let mut probe = TcpStream::connect((HOP1, 9902)).unwrap();
        let _ = std::io::Write::write_all(&mut probe, b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        crate::support::read_all(&mut probe)
    });
    assert!(asked.is_empty(), "another source that is not listed");
    let page = world.at("fabric", || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(platform.parse().unwrap(), 0).into()).unwrap();
        socket.connect(&SocketAddr::new(HOP1.parse().unwrap(), 9902).into()).unwrap();
        let mut probe = TcpStream::from(socket);
        std::io::Write::write_all(&mut probe, b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        String::from_utf8(crate::support::read_all(&mut probe)).unwrap()
    });
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    let hears = |role: &str, from: &str, source: u16, port: u16| {
        let service = world.at("hop1", || UdpSocket::bind((HOP1, port)).unwrap());
        service.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        world.at(role, || UdpSocket::bind((from, source)).unwrap().send_to(b"x", (HOP1, port)).unwrap());
        service.recv(&mut [0; 9]).is_ok()
    };
    assert!(hears("fabric", platform, 67, 68), "leases");
    assert!(!hears("fabric", platform, 67, 161));
    assert!(!hears("fabric", platform, 5353, 68));
    assert!(!hears("client", CLIENT, 67, 68), "no client offers a lease");
    assert!(hears("fabric", "10.225.1.1", 67, 68), "a server in the hop's own network does");
    let line = egret.record("the forged one", |line| line["client"].as_str().is_some_and(|c| c.starts_with(platform)));
    assert_eq!(line["reason"], "source_not_allowed", "{line:#}");
}

#[test]
fn answers_come_in_where_questions_go_out() {
    let Some(world) = World::build(Through::One) else { return };
    if !have(&["python3"]) {
        return;
    }
    let _egret = hop(&world, &config(POLICY, ""));
    let asks = world.at("hop1", || {
        let socket = UdpSocket::bind((HOP1_WAN, 5555)).unwrap();
        socket.connect((PARTNER, 1194)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.send(b"question").unwrap();
        let mut answer = [0; 9];
        assert_eq!(socket.recv(&mut answer).unwrap(), 8);
        socket
    });
    let forged = format!(
        "import socket as s,struct\n\
         u=struct.pack('!HHHH',1194,5555,14,0)+b'FORGED'\n\
         k=s.socket(s.AF_INET,s.SOCK_RAW,s.IPPROTO_RAW)\n\
         h=struct.pack('!BBHHHBBH',69,0,20+len(u),1,0,64,17,0)+s.inet_aton('{PARTNER}')+s.inet_aton('{HOP1_WAN}')\n\
         k.sendto(h+u,('{HOP1_WAN}',0))\n"
    );
    world.at("fabric", || {
        ip(&["route", "add", "20.50.1.4/32", "via", HOP1]);
        let sent = run("python3", &["-c", &forged]);
        assert!(sent.status.success(), "{}", text(&sent));
    });
    assert!(asks.recv(&mut [0; 9]).is_err(), "an answer from the clients' side");
    asks.send(b"question").unwrap();
    assert_eq!(asks.recv(&mut [0; 9]).unwrap(), 8, "and the true one still comes");
    (0..5).for_each(|_| pause());
    assert_eq!(world.at("client", || udp(PARTNER, 1194)), Ok(()));
}
