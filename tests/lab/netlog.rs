//! What the kernel does by itself, told: refused packets with reason and cure, flows with their bytes; and what a reload
//! changes while flows go on.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::hop::{POLICY, RESET, config, hop, tcp, udp};
use crate::support::{Egret, eventually, have};
use crate::world::{API_SERVER, CLIENT, DECOY, ORIGIN, PARTNER, Through, World};

fn metrics(world: &World, egret: &Egret) -> String {
    world.at("hop1", || egret.metrics())
}

fn net<'a>(egret: &Egret, dst: &'a str, reason: &'a str) -> Value {
    egret.record(&format!("{reason} for {dst}"), |line| {
        line["event"] == "net" && line["original_dst"] == dst && line["reason"] == reason
    })
}

#[test]
fn refused_packets_and_ended_flows_have_their_lines() {
    let Some(world) = World::build(Through::One) else { return };
    if !have(&["python3", "ping"]) {
        return;
    }
    let policy = format!(
        "{POLICY}    - {{ name: never, action: deny, destinations: [20.60.3.8/32, 20.60.3.9/32], protocols: [\"tcp:1-65535\"] }}\n    - {{ name: echo, destinations: [{PARTNER}/32], protocols: [icmp] }}\n"
    );
    let egret = hop(&world, &config(&policy, "log: { net: all }\nown_addresses: [20.60.3.7]"));
    world.at("client", || {
        assert_eq!(tcp(DECOY, 9000), RESET);
        assert_eq!(udp(DECOY, 443), RESET);
        assert_eq!(udp(DECOY, 1194), RESET);
        assert_eq!(udp(DECOY, 123), RESET);
        assert_eq!(tcp("20.60.3.9", 9000), RESET);
        assert_eq!(tcp("20.60.3.7", 9000), RESET, "as its neighbours, and yet egret's own");
        let ping = |to: &str| crate::support::run("ping", &["-c1", "-W1", to]).status.success();
        assert!(ping(PARTNER) && !ping(DECOY), "echo by an icmp rule only");
        let many = crate::support::text(&crate::support::run("ping", &["-q", "-c500", "-i0.002", "-W1", PARTNER]));
        let answered = many.split(" received").next().and_then(|said| said.rsplit(' ').next()?.parse::<u32>().ok());
        assert!((50..400).contains(&answered.unwrap()), "a stream of echoes is not a way out: {many}");
    });
    let line = net(&egret, &format!("{DECOY}:9000"), "no_rule");
    assert!(line["verdict"] == "deny" && line["stage"] == "network" && line["protocol"] == "tcp", "{line:#}");
    assert!(line["client"].as_str().unwrap().starts_with(CLIENT) && line["port"] == 9000);
    let fix = format!("destinations: [\"{DECOY}/32\"], protocols: [\"tcp:9000\"]");
    assert!(line["fix"].as_str().unwrap().contains(&fix), "{line:#}");
    assert!(net(&egret, &format!("{DECOY}:1194"), "no_rule")["fix"].as_str().unwrap().contains("udp:1194"));
    let nearest = "rule time opens the addresses of time.example, as the running egret finds them";
    assert_eq!(net(&egret, &format!("{DECOY}:123"), "no_rule")["nearest"], nearest);
    assert_eq!(net(&egret, &format!("{DECOY}:443"), "quic_denied")["protocol"], "quic");
    assert_eq!(net(&egret, "20.60.3.9:9000", "rule_denied")["rule"], "never");
    // Amid a connection that nobody here knows, and an answer whose question went another way.
    let raw = "import socket,struct,sys\n\
        s=socket.socket(socket.AF_INET,socket.SOCK_RAW,socket.IPPROTO_TCP)\n\
        def send(dst,port,flags):\n\
        \x20h=struct.pack('!HHLLBBHHH',4242,port,7,9,80,flags,1024,0,0)\n\
        \x20p=socket.inet_aton('10.224.0.10')+socket.inet_aton(dst)+struct.pack('!BBH',0,6,len(h))+h\n\
        \x20t=sum(struct.unpack('!%dH'%(len(p)//2),p)); t=(t>>16)+(t&65535); t+=t>>16\n\
        \x20s.sendto(h[:16]+struct.pack('!H',~t&65535)+h[18:],(dst,0))\n\
        send('20.60.3.3',9000,16)\nsend('20.60.1.1',443,18)\n";
    world.at("client", || assert!(crate::support::run("python3", &["-c", raw]).status.success()));
    net(&egret, &format!("{PARTNER}:9000"), "no_flow");
    net(&egret, &format!("{ORIGIN}:443"), "no_flow");
    net(&egret, "20.60.3.7:9000", "own_address");
    // Another protocol, and a source that is nobody's.
    let other =
        format!("import socket; socket.socket(socket.AF_INET,socket.SOCK_RAW,99).sendto(b'x'*16,('{PARTNER}',0))");
    world.at("client", || assert!(crate::support::run("python3", &["-c", &other]).status.success()));
    let line = net(&egret, &format!("{PARTNER}:0"), "protocol_denied");
    assert!(line["nearest"].as_str().unwrap().starts_with("IP protocol 99;"), "{line:#}");
    let timestamp = format!(
        "import socket as s; s.socket(s.AF_INET,s.SOCK_RAW,s.IPPROTO_ICMP).sendto(bytes([13,0,0xf2,0xff])+bytes(16),('{ORIGIN}',0))"
    );
    world.at("client", || assert!(crate::support::run("python3", &["-c", &timestamp]).status.success()));
    let line = net(&egret, &format!("{ORIGIN}:0"), "protocol_denied");
    assert!(line["nearest"].as_str().unwrap().starts_with("an icmp rule lets out echo requests"), "{line:#}");
    world.at("fabric", || {
        let from = UdpSocket::bind("10.225.1.1:0").unwrap();
        crate::world::ip(&["route", "add", DECOY, "via", crate::world::HOP1]);
        from.send_to(b"x", (DECOY, 1194)).unwrap();
    });
    net(&egret, &format!("{DECOY}:1194"), "source_not_allowed");
    // The hop itself, where no rule helps.
    world.at("client", || assert_eq!(tcp(crate::world::HOP1, 22), RESET));
    let line = net(&egret, &format!("{}:22", crate::world::HOP1), "no_rule");
    assert!(line["fix"].is_null() && line["nearest"].as_str().unwrap().contains("this machine itself"), "{line:#}");
    // Nor may anybody outside speak as a client, amid that one's flow either.
    let talk = world.at("client", || {
        let talk = UdpSocket::bind("0.0.0.0:0").unwrap();
        talk.send_to(b"hello", (PARTNER, 1194)).unwrap();
        talk.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        talk.recv(&mut [0; 5]).unwrap();
        talk
    });
    let mac = world.at("hop1", || crate::support::text(&crate::support::run("ip", &["-br", "link", "show", "wan"])));
    let mac = mac.split_whitespace().nth(2).unwrap().replace(':', "");
    let forged = format!(
        "import socket as s,struct\n\
         u=struct.pack('!HHHH',{},1194,15,0)+b'SPOOFED'\n\
         h=struct.pack('!BBHHHBBH',69,0,20+len(u),1,0,64,17,0)+s.inet_aton('{CLIENT}')+s.inet_aton('{PARTNER}')\n\
         t=sum(struct.unpack('!10H',h)); t=(t>>16)+(t&65535); h=h[:10]+struct.pack('!H',~t&65535)+h[12:]\n\
         s.socket(s.AF_PACKET,s.SOCK_DGRAM).sendto(h+u,('w1',2048,0,0,bytes.fromhex('{mac}')))\n",
        talk.local_addr().unwrap().port()
    );
    let said = world.at("internet", || crate::support::run("python3", &["-c", &forged]));
    assert!(said.status.success(), "{}", crate::support::text(&said));
    net(&egret, &format!("{PARTNER}:1194"), "source_not_allowed");
    // A flow has its line when it is over.
    world.at("client", || assert_eq!(tcp(PARTNER, 9000), Ok(())));
    world.at("hop1", || {
        crate::support::run("conntrack", &["-D", "-p", "tcp", "--dport", "9000"]);
    });
    let line = egret.record("the flow", |line| line["event"] == "net" && line["verdict"] == "allow");
    assert!(line["rule"] == "tunnel" || line["rule"] == "echo", "{line:#}");
    let line = egret.record("the TCP flow", |line| line["event"] == "net" && line["rule"] == "tunnel");
    assert!(line["bytes_up"].as_u64().unwrap() > 100 && line["bytes_down"].as_u64().unwrap() > 100, "{line:#}");
    assert_eq!(line["upstream"], format!("{PARTNER}:9000"));
    // Counted, and beyond some only counted.
    eventually("counters", || {
        let page = metrics(&world, &egret);
        page.contains("egret_net_refusals_total{reason=\"quic_denied\"} 1")
            && page.contains("egret_net_flows_total{rule=\"tunnel\"} 2")
            && page.contains("egret_source_ports_in_use{source=\"20.50.1.4\"} ")
    });
    world.at("client", || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..2000 {
            let _ = socket.send_to(b"x", (DECOY, 7777));
        }
    });
    let line = egret.record("what was left out", |line| line["left_out"].as_u64().is_some_and(|n| n > 500));
    assert!(line["event"] == "net" && line["reason"] == "no_rule", "{line:#}");
    assert!(egret.records().len() < 1500);
}

/// A flow that says something now and then, and whether it is heard.
struct Talk(TcpStream);

impl Talk {
    fn begin(world: &World, to: &str, port: u16) -> Self {
        let stream = world.at("client", || TcpStream::connect(SocketAddr::new(to.parse().unwrap(), port)).unwrap());
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        Self(stream)
    }

    fn is_heard(&mut self) -> bool {
        // An alert of egret's is not an echo.
        let mut back = [0; 5];
        self.0.write_all(b"hello").is_ok() && self.0.read_exact(&mut back).is_ok() && &back == b"hello"
    }
}

/// Has the hop read another policy, and waits for its word.
#[test]
fn a_flow_from_before_a_restart_is_logged_under_no_rule_that_would_refuse_it() {
    let Some(world) = World::build(Through::One) else { return };
    if !have(&["conntrack"]) {
        return;
    }
    let mut egret = hop(&world, &config(POLICY, "log: { net: all }"));
    let open = world.at("client", || {
        assert_eq!(udp(PARTNER, 1194), Ok(()));
        TcpStream::connect((PARTNER, 9000)).unwrap()
    });
    egret.signal("TERM");
    assert_eq!(egret.wait(), 0);
    let others = "\n  network_rules:\n    - { name: other, destinations: [20.60.3.0/24], protocols: [\"udp:1194\"] }\n";
    let egret = hop(&world, &config(others, "log: { net: all }"));
    assert!(world.at("client", || tcp(PARTNER, 9000)).is_err());
    world.at("hop1", || {
        for (protocol, port) in [("tcp", "9000"), ("udp", "1194")] {
            crate::support::run("conntrack", &["-D", "-p", protocol, "--dport", port]);
        }
    });
    let ended = |port: u16| egret.record("the end", |line| line["verdict"] == "allow" && line["port"] == port);
    assert_eq!(ended(9000)["rule"], "?");
    assert_eq!(ended(1194)["rule"], "other");
    drop(open);
}

fn reload(world: &World, egret: &Egret, policy: &str, outcome: &str) {
    let count = |page: &str| {
        let line = page.lines().find(|line| line.starts_with(&format!("egret_reloads_total{{outcome=\"{outcome}\"}}")));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
    };
    let before = count(&metrics(world, egret));
    std::fs::write(egret.folder().join("egret.yaml"), config(policy, "")).unwrap();
    egret.signal("HUP");
    eventually("the reload", || count(&metrics(world, egret)) > before);
}

#[test]
fn a_reload_refuses_nothing_that_both_policies_let_out() {
    let Some(world) = World::build(Through::One) else { return };
    let mut capture = world.capture();
    // The partner goes from one rule to another, and a denial from one source and destination to others.
    let policies = [
        "
  network_rules:
    - { name: tunnel, destinations: [20.60.3.3/32, 20.60.9.9/32], protocols: [\"tcp:22\", \"tcp:9000\"] }
    - { name: never, action: deny, sources: [10.224.7.0/24], destinations: [20.60.3.0/24], protocols: [\"tcp:1-65535\"] }
",
        "
  network_rules:
    - { name: never, action: deny, sources: [10.224.0.0/16], destinations: [20.60.6.6/32], protocols: [\"tcp:1-65535\"] }
    - { name: tunnel, destinations: [20.60.9.9/32], protocols: [\"tcp:22\"] }
    - { name: partner, sources: [10.224.0.0/24], destinations: [20.60.3.0/24], protocols: [\"tcp:9000-9001\"] }
",
    ];
    let egret = hop(&world, &config(policies[0], "log: { net: all }"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = || {
            world.at("client", || {
                let mut asked = 0;
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(tcp(PARTNER, 9000), Ok(()), "after {asked}");
                    asked += 1;
                }
                asked
            })
        };
        let clients = [(); 4].map(|()| scope.spawn(client));
        for n in 1..=20 {
            reload(&world, &egret, policies[n % 2], "done");
        }
        done.store(true, Ordering::Relaxed);
        let asked: u64 = clients.into_iter().map(|client| client.join().unwrap()).sum();
        assert!(asked > 400, "{asked} connections are too few to find a gap");
    });
    // What a rule let out is its own, after it is gone too.
    reload(&world, &egret, policies[1], "done");
    let mut talk = Talk::begin(&world, PARTNER, 9000);
    reload(&world, &egret, policies[0], "done");
    assert!(talk.is_heard());
    let from = talk.0.local_addr().unwrap();
    let delete = ["-D", "-p", "tcp", "--sport", &from.port().to_string()];
    assert!(world.at("hop1", || crate::support::run("conntrack", &delete)).status.success());
    let line = egret.record("the flow", |line| line["client"] == from.to_string() && line["verdict"] == "allow");
    assert_eq!(line["rule"], "partner", "{line:#}");
    capture.saw_nothing(&format!("dst host {DECOY}"));
}

#[test]
fn a_reload_reaches_the_kernel_and_cuts_or_keeps_what_is_under_way() {
    let Some(world) = World::build(Through::One) else { return };
    let mut capture = world.capture();
    let egret = hop(&world, &config(POLICY, "log: { net: all }"));
    let file = egret.folder().join("egret.yaml");
    let reload = |policy: &str, outcome: &str| reload(&world, &egret, policy, outcome);
    let from_client = |port| world.at("client", || tcp(PARTNER, port));
    let mut talk = Talk::begin(&world, PARTNER, 9000);
    assert!(talk.is_heard());
    assert_eq!(from_client(9001), RESET);

    // A wider rule, a new one and a new port for egret; nobody's flow is touched.
    let wider = POLICY.replace("\"tcp:9000\"", "\"tcp:9000-9001\"")
        + "    - { name: more, destinations: [20.60.9.9/32], protocols: [\"tcp:443\"] }\n    - { name: late, fqdns: [late.example], protocols: [\"tcp:9000\"] }\n";
    world.dns.answer("late.example", &[DECOY]);
    reload(&wider, "done");
    assert_eq!(from_client(9001), Ok(()));
    assert!(talk.is_heard());
    let connects = |to: &'static str, port| {
        world.at("client", || {
            TcpStream::connect_timeout(&SocketAddr::new(to.parse().unwrap(), port), Duration::from_secs(2)).is_ok()
        })
    };
    assert!(connects(API_SERVER, 443));
    eventually("late.example is learned", || world.at("client", || tcp(DECOY, 9000)) == Ok(()));
    let stands = || world.at("hop1", || crate::hop::page("readyz")).starts_with("HTTP/1.1 200");
    assert!(stands(), "what a reload changes is not a foreign hand");

    // Too many for the table: refused whole, and the old ones hold.
    let many: String = (0..40)
        .map(|n| format!("    - {{ name: n{n}, destinations: [20.60.3.{n}/32], protocols: [\"tcp:22\"] }}\n"))
        .collect();
    reload(&format!("{wider}{many}"), "refused");
    assert!(egret.errors().contains("places for network rules"), "{}", egret.errors());
    assert_eq!(from_client(9001), Ok(()));

    // What is forwarded stays so when its port is captured from now on; what begins comes to egret.
    let by_name = wider.replace("\"http:80\"]", "\"http:80\", \"https:9000\"]").replace("\"tcp:9000-9001\", ", "");
    let by_name = by_name
        .replace("fqdns: [late.example], protocols: [\"tcp:9000\"]", "fqdns: [late.example], protocols: [\"tcp:22\"]");
    reload(&by_name, "done");
    assert!(talk.is_heard());
    let mut fresh = Talk::begin(&world, PARTNER, 9000);
    assert!(!fresh.is_heard());
    egret.record("the captured one", |line| {
        line["event"] == "tcp" && line["port"] == 9000 && line["reason"] == "not_tls"
    });
    reload(&wider, "done");
    assert!(talk.is_heard());

    // A table made of the many has room, and is this egret's a moment later.
    std::fs::write(&file, config(&format!("{wider}{many}"), "")).unwrap();
    let apply = ["netfilter", "apply", "--config", file.to_str().unwrap()];
    let applied = world.at("hop1", || crate::support::run(env!("CARGO_BIN_EXE_egret"), &apply));
    assert!(applied.status.success());
    (0..150).for_each(|_| crate::support::pause());
    assert!(stands() && talk.is_heard());
    reload(&format!("{wider}{many}"), "done");
    assert_eq!(from_client(9001), Ok(()));

    // A rule that goes leaves its flows alone, and lets no new one begin; its name's addresses go with it.
    reload(POLICY, "done");
    assert_eq!(from_client(9001), RESET);
    assert_eq!(world.at("client", || tcp(DECOY, 9000)), RESET);
    let narrower = POLICY.replace("\"tcp:9000\", ", "");
    reload(&narrower, "done");
    assert_eq!(from_client(9000), RESET);
    assert!(talk.is_heard(), "on_change: keep");
    // Or ends them.
    reload(&format!("\n  on_change: cut{narrower}"), "done");
    assert!(!talk.is_heard(), "on_change: cut");
    net(&egret, &format!("{PARTNER}:9000"), "no_flow");
    egret.record("the flow that was cut", |line| line["event"] == "net" && line["ending"] == "revoked");
    assert!(capture.packets(&format!("dst host {DECOY} and dst port 9000")).len() > 1);
    capture.saw_nothing(&format!("dst host {DECOY} and not port 9000"));
}
