//! Whatever happens to egret, its rules or its surroundings: nothing gets out that is not listed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use crate::hop::{POLICY, config, hop, page, tcp, udp};
use crate::support::{Egret, curl, eventually, missing, pause, run, text};
use crate::world::{CLIENT, Capture, DECOY, DECOY6, HOP1_WAN, ORIGIN, ORIGIN6, PARTNER, Through, World, ip, set};

/// What nobody may see: a client tries every way to the decoy, and origins past egret.
fn stray(world: &World) {
    world.at("client", || {
        std::thread::scope(|scope| {
            for ip in [DECOY, DECOY6] {
                for port in [22, 80, 443, 8443, 9000] {
                    scope.spawn(move || {
                        let to = SocketAddr::new(ip.parse().unwrap(), port);
                        let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(700)) else {
                            return;
                        };
                        // Captured: whatever is said must end at egret.
                        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: stray.example\r\n\r\n");
                    });
                }
                for port in [123, 443, 1194] {
                    scope.spawn(move || udp_once(ip, port));
                }
            }
        });
    });
}

fn udp_once(ip: &str, port: u16) {
    let to = SocketAddr::new(ip.parse().unwrap(), port);
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    let _ = socket.send_to(b"stray", to);
}

#[track_caller]
fn leaked_nothing(capture: &mut Capture) {
    capture.saw_nothing(&format!("host {DECOY} or host {DECOY6} or net 10.224.0.0/16 or net fd00:224::/64"));
}

/// An egret that cannot serve.
fn start(world: &World, config: &str, path: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.yaml");
    std::fs::write(&file, config).unwrap();
    world.at("hop1", || {
        let mut command = Command::new("timeout");
        command.args(["10", env!("CARGO_BIN_EXE_egret"), "run", "--netfilter", "--config"]).arg(&file);
        let output = command.env("PATH", path).output().unwrap();
        assert!(!output.status.success() && output.status.code() != Some(124), "{}", text(&output));
        text(&output)
    })
}

fn nft(world: &World, command: &str) -> String {
    let output = world.at("hop1", || run("nft", &command.split(' ').collect::<Vec<_>>()));
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

fn is_ready(world: &World) -> bool {
    world.at("hop1", || page("readyz")).starts_with("HTTP/1.1 200")
}

#[test]
fn a_killed_egret_leaves_the_door_shut() {
    let Some(world) = World::build(Through::One) else { return };
    let mut capture = world.capture();
    let egret = hop(&world, &config(POLICY, ""));
    // A connection that is under way, by a client that will not hear of its end.
    let mut stream = world.at("client", || {
        let mut stream = TcpStream::connect((ORIGIN, 80)).unwrap();
        stream.write_all(b"GET /hello HTTP/1.1\r\nHost: a.example\r\n\r\n").unwrap();
        let mut first = [0; 15];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        let deaf = "add table ip deaf; add chain ip deaf in { type filter hook input priority 0; }; \
                    add rule ip deaf in tcp flags & rst == rst drop";
        assert!(run("nft", &[deaf]).status.success());
        stream
    });
    // Another service of the hop's, which clients must never come to, whether egret is there or not.
    let service = world.at("hop1", || TcpListener::bind("[::]:443").unwrap());
    service.set_nonblocking(true).unwrap();
    egret.signal("KILL");
    eventually("egret is gone", || world.at("hop1", || page("readyz").is_empty()));
    for _ in 0..20 {
        let _ = stream.write_all(b"SAID-AFTER-THE-KILL");
        pause();
    }
    stray(&world);
    assert!(world.at("client", || tcp(ORIGIN, 443).is_err() && tcp(ORIGIN6, 443).is_err()));
    assert!(service.accept().is_err());
    assert_eq!(world.at("client", || udp(PARTNER, 1194)), Ok(()), "what the kernel forwards needs no egret");
    leaked_nothing(&mut capture);
    assert!(!capture.contains(b"SAID-AFTER-THE-KILL"));
}

#[test]
fn an_egret_that_does_not_start_opens_nothing() {
    let Some(world) = World::build(Through::One) else { return };
    let mut capture = world.capture();
    world.at("hop1", || {
        // As on a machine that forwards already.
        set("net/ipv4/ip_forward", "1");
        set("net/ipv6/conf/all/forwarding", "1");
    });
    let path = std::env::var("PATH").unwrap();
    // nft refuses: the barrier of routes is up all the same.
    let tools = tempfile::tempdir().unwrap();
    let fake = tools.path().join("nft");
    std::fs::write(&fake, "#!/bin/sh\ncat > /dev/null; echo 'Error: no such file or directory' >&2; exit 1\n").unwrap();
    assert!(run("chmod", &["+x", fake.to_str().unwrap()]).status.success());
    let said = start(&world, &config(POLICY, ""), &format!("{}:{path}", tools.path().display()));
    assert!(said.contains("nft refused the rules") && said.contains("no such file"), "{said}");
    stray(&world);
    assert!(world.at("client", || udp(PARTNER, 1194)).is_err());
    // A listener's port is taken.
    let taken = world.at("hop1", || TcpListener::bind("[::]:3129").unwrap());
    let said = start(&world, &config(POLICY, ""), &path);
    assert!(said.contains("cannot listen on [::]:3129"), "{said}");
    stray(&world);
    drop(taken);
    // A configuration with a fault changes nothing.
    let said = start(&world, "listeners: []\nnetfilter: {}\n", &path);
    assert!(said.contains("there is no listener"), "{said}");
    stray(&world);
    leaked_nothing(&mut capture);
}

#[test]
fn a_table_from_before_the_network_lets_nothing_by() {
    let Some(world) = World::build(Through::One) else { return };
    let mut capture = world.capture();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.yaml");
    std::fs::write(&file, config(POLICY, "")).unwrap();
    world.at("hop1", || {
        let shell = |command: &str| {
            let output = run("sh", &["-ec", command]);
            assert!(output.status.success(), "{}", text(&output));
            text(&output)
        };
        let routes = shell("ip -4 route show dev lan; ip link set lan down");
        set("net/ipv4/ip_forward", "1");
        // As the unit does it, with the unit's rights.
        let unit = include_str!("../../deploy/egret-next-hop-table.service");
        let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
        assert!(value("Before").contains("network-pre.target") && value("Wants") == "network-pre.target");
        let rights = value("CapabilityBoundingSet").to_lowercase().replace("cap_", "-all,+");
        let command = value("ExecStart").replace("/usr/local/bin/egret", env!("CARGO_BIN_EXE_egret"));
        let command = command.replace("/etc/egret/egret.yaml", &file.display().to_string());
        shell(&format!("setpriv --bounding-set {rights} {command}"));
        shell("ip link set lan up");
        routes.lines().for_each(|route| drop(shell(&format!("ip route replace {route} dev lan"))));
    });
    world.at("client", || eventually("what the rules let out", || udp(PARTNER, 1194).is_ok()));
    stray(&world);
    leaked_nothing(&mut capture);
}

#[test]
fn a_reload_right_after_the_table_was_made_anew_is_no_fault() {
    let Some(world) = World::build(Through::One) else { return };
    let egret = hop(&world, &config(POLICY, ""));
    let file = egret.folder().join("egret.yaml");
    for n in 1..=3 {
        let output = world.at("hop1", || {
            run(env!("CARGO_BIN_EXE_egret"), &["netfilter", "apply", "--config", file.to_str().unwrap()])
        });
        assert!(output.status.success(), "{}", text(&output));
        egret.signal("HUP");
        let done = "the new policy is in force";
        eventually(done, || egret.errors().matches(done).count() == n);
    }
    assert!(!egret.errors().contains("nothing has changed"), "{}", egret.errors());
}

#[test]
fn a_missing_interface_is_seen() {
    let Some(world) = World::build(Through::One) else { return };
    let text = config(POLICY, "").replace("interfaces: [lan]", "interfaces: [lan, lan2]");
    let egret = world.at("hop1", || Egret::run_as(&text, "127.0.0.1".parse().unwrap(), &[], &["--netfilter"]));
    let missing = "netfilter.interfaces: lan2 is missing";
    eventually(missing, || egret.errors().lines().any(|line| line.contains("ERROR") && line.contains(missing)));
    let page = world.at("hop1", || page("readyz"));
    assert!(page.starts_with("HTTP/1.1 503") && page.contains("fault: kernel"), "{page}");
    world.at("hop1", || {
        assert!(run("ip", &["link", "add", "lan2", "type", "veth", "peer", "name", "peer2"]).status.success());
    });
    eventually("ready", || is_ready(&world));
}

#[test]
fn a_flushed_table_closes_and_is_seen() {
    let Some(world) = World::build(Through::One) else { return };
    let mut capture = world.capture();
    let egret = hop(&world, &config(POLICY, ""));
    assert_eq!(world.at("client", || udp(PARTNER, 1194)), Ok(()));
    // The way back is open as far as the hop.
    world.at("internet", || ip(&["route", "add", "10.224.0.0/16", "via", HOP1_WAN]));
    let heard = world.at("client", || UdpSocket::bind((CLIENT, 5555)).unwrap());
    heard.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let intrude = || world.at("outside", || udp_once(CLIENT, 5555));
    intrude();
    for flush in ["flush ruleset", "flush table inet egret", "delete table inet egret"] {
        nft(&world, flush);
        stray(&world);
        intrude();
        assert!(world.at("client", || udp(PARTNER, 1194)).is_err(), "{flush}");
        assert!(world.at("client", || tcp(ORIGIN, 443)).is_err(), "{flush}");
        eventually("not ready", || world.at("hop1", || page("readyz")).contains("rules are not in place"));
        assert!(world.at("hop1", || page("healthz")).starts_with("HTTP/1.1 200"));
        let file = egret.folder().join("egret.yaml");
        let applied = world.at("hop1", || {
            run(env!("CARGO_BIN_EXE_egret"), &["netfilter", "apply", "--config", file.to_str().unwrap()])
        });
        assert!(applied.status.success(), "{}", text(&applied));
        eventually("ready again", || is_ready(&world));
        assert_eq!(world.at("client", || udp(PARTNER, 1194)), Ok(()), "{flush}");
    }
    // Forwarding that somebody switches off serves nobody.
    for forwarding in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let set = |to: &str| world.at("hop1", || std::fs::write(format!("/proc/sys/net/{forwarding}"), to).unwrap());
        set("0");
        eventually("not ready", || !is_ready(&world));
        set("1");
        eventually("ready again", || is_ready(&world));
    }
    // A route taken away is seen too; the table alone holds.
    world.at("hop1", || {
        assert!(run("ip", &["rule", "del", "pref", "82"]).status.success());
    });
    stray(&world);
    eventually("not ready", || !is_ready(&world));
    for said in [
        "`inet egret` is not there",
        "net.ipv6.conf.all.forwarding is off",
        "has 0 rules instead of",
        "a policy route is gone (ip rule pref 82",
    ] {
        eventually(said, || egret.errors().contains(said));
    }
    assert!(heard.recv(&mut [0; 9]).is_err(), "nobody outside reaches a client either");
    capture.saw_nothing(&format!("dst host {DECOY} or dst host {DECOY6} or src net 10.224.0.0/16"));
}

#[test]
fn neither_a_bad_reload_nor_silent_dns_opens_or_closes_anything() {
    let Some(world) = World::build(Through::One) else { return };
    world.dns.answer("time.example", &[PARTNER]);
    let mut capture = world.capture();
    let egret = hop(&world, &config(POLICY, ""));
    let ca = world.authority.ca();
    let by_name = |egret: &Egret| egret.records().iter().filter(|line| line["name"] == "a.example").count();
    eventually("time.example is learned", || world.at("client", || udp(PARTNER, 123)) == Ok(()));
    let file = egret.folder().join("egret.yaml");
    std::fs::write(&file, "listeners: [").unwrap();
    egret.signal("HUP");
    eventually("the fault is told", || world.at("hop1", || page("readyz")).contains("fault: reload"));
    assert!(is_ready(&world), "what every instance has alike takes none out of service");
    stray(&world);
    assert_eq!(world.at("client", || udp(PARTNER, 1194)), Ok(()));
    // No DNS at all.
    world.at("internet", || assert!(run("ip", &["link", "set", "dns0", "down"]).status.success()));
    let block = "add table ip deaf; add chain ip deaf in { type filter hook input priority 0; }; \
                 add rule ip deaf in udp dport 53 drop; add rule ip deaf in tcp dport 53 drop";
    world.at("internet", || assert!(run("nft", &[block]).status.success()));
    let resolved = format!("a.example:443:{ORIGIN}");
    let said = world.at("client", || curl(&["--cacert", &ca, "--resolve", &resolved, "https://a.example/who"]));
    assert!(!said.status.success(), "egret resolves the name itself");
    eventually("a record", || by_name(&egret) > 0);
    let line = egret.last("a.example");
    assert!(line["reason"] == "dns_timeout", "{line:#}");
    eventually("the fault is told", || world.at("hop1", || page("readyz")).contains("fault: dns"));
    assert!(is_ready(&world));
    stray(&world);
    assert_eq!(world.at("client", || udp(PARTNER, 123)), Ok(()), "what was learned is remembered");
    leaked_nothing(&mut capture);
    assert!(!capture.packets(&format!("src host {HOP1_WAN}")).is_empty(), "the capture sees what passes");
}

#[test]
fn a_full_conntrack_table_drops_or_forgets_and_opens_nothing() {
    let Some(world) = World::build(Through::One) else { return };
    let max: u64 = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap().trim().parse().unwrap();
    if max > 600_000 {
        // It is the whole machine's, and no test's to change.
        return missing("a conntrack table that a test can fill");
    }
    let mut capture = world.capture();
    let egret = hop(&world, &config(POLICY, ""));
    let count = || -> u64 {
        let text = world.at("hop1", || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap());
        text.trim().parse().unwrap()
    };
    let sockets = usize::try_from(max / 250 + 50).unwrap();
    // The hop's own flows fill the table: no limit of one client's holds them up.
    world.at("hop1", || {
        for _ in 0..sockets {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for last in 1..=250 {
                let _ = socket.send_to(b"x", (format!("127.60.3.{last}").as_str(), 1194));
            }
        }
    });
    assert!(count() > max * 9 / 10, "{} of {max}", count());
    stray(&world);
    egret.signal("KILL");
    stray(&world);
    leaked_nothing(&mut capture);
}

#[test]
fn a_table_made_anew_says_what_egret_says() {
    let Some(world) = World::build(Through::One) else { return };
    let mut capture = world.capture();
    // Its address is the decoy's, and only NTP may go there.
    world.dns.answer("time.example", &[DECOY]);
    let rules = |first: &str, second: &str| {
        let text = format!("\n  application_rules: []\n  network_rules:\n    - {first}\n    - {second}\n");
        config(&text, "")
    };
    let (time, tunnel) = (
        "{ name: time, fqdns: [time.example], protocols: [\"udp:123\"] }",
        "{ name: tunnel, destinations: [20.60.3.0/24], protocols: [\"tcp:22\", \"udp:1194\"] }",
    );
    let egret = hop(&world, &rules(time, tunnel));
    eventually("time.example is learned", || world.at("client", || udp(DECOY, 123)) == Ok(()));
    // Somebody applies the same rules in another order: their places are others.
    let file = egret.folder().join("egret.yaml");
    for text_of in [rules(tunnel, time), rules(time, tunnel), rules(tunnel, time)] {
        std::fs::write(&file, text_of).unwrap();
        let apply = ["netfilter", "apply", "--config", file.to_str().unwrap()];
        let applied = world.at("hop1", || run(env!("CARGO_BIN_EXE_egret"), &apply));
        assert!(applied.status.success(), "{}", text(&applied));
        (0..150).for_each(|_| pause());
        assert!(is_ready(&world));
        assert_eq!(world.at("client", || tcp(PARTNER, 22)), Ok(()));
        assert_eq!(world.at("client", || udp(DECOY, 123)), Ok(()));
        assert!(world.at("client", || tcp(DECOY, 22).is_err() && udp(DECOY, 1194).is_err()));
        let told = || egret.errors().matches("the new policy is in force").count();
        let before = told();
        egret.signal("HUP");
        eventually("the reload", || told() > before);
    }
    // More rules than there were, by a reload; and then the table made of them.
    let more = rules(time, tunnel) + "    - { name: more, destinations: [20.60.3.3/32], protocols: [\"tcp:9001\"] }\n";
    std::fs::write(&file, &more).unwrap();
    egret.signal("HUP");
    eventually("the new rule", || world.at("client", || tcp(PARTNER, 9001)) == Ok(()));
    nft(&world, "delete table inet egret");
    eventually("not ready", || !is_ready(&world));
    let apply = ["netfilter", "apply", "--config", file.to_str().unwrap()];
    assert!(world.at("hop1", || run(env!("CARGO_BIN_EXE_egret"), &apply)).status.success());
    eventually("ready again", || is_ready(&world));
    world.at("client", || {
        assert_eq!((tcp(PARTNER, 9001), udp(DECOY, 123)), (Ok(()), Ok(())));
        assert!(tcp(DECOY, 22).is_err() && tcp(DECOY, 9001).is_err());
    });

    // Elements that somebody takes out come back; a rule in another's place is seen.
    nft(&world, "flush set inet egret clients4");
    nft(&world, "flush set inet egret allow0_ports");
    eventually("the sets are filled again", || world.at("client", || udp(DECOY, 123)) == Ok(()));
    nft(&world, "insert rule inet egret forwarded accept");
    eventually("not ready", || !is_ready(&world));
    eventually("it is told", || egret.errors().contains("rules instead of"));
    capture.saw_nothing(&format!("dst host {DECOY} and not udp dst port 123"));
}

#[test]
fn a_smaller_policy_applied_beside_a_running_egret_leaves_it_its_room() {
    let Some(world) = World::build(Through::One) else { return };
    let ports = |ports: std::ops::Range<u16>| {
        let rule =
            |port| format!("    - {{ name: n{port}, destinations: [{PARTNER}/32], protocols: [\"tcp:{port}\"] }}\n");
        config(&format!("\n  network_rules:\n{}", ports.map(rule).collect::<String>()), "")
    };
    let egret = hop(&world, &ports(9000..9030));
    let file = egret.folder().join("egret.yaml");
    std::fs::write(&file, ports(9000..9001)).unwrap();
    let apply = ["netfilter", "apply", "--config", file.to_str().unwrap()];
    assert!(world.at("hop1", || run(env!("CARGO_BIN_EXE_egret"), &apply)).status.success());
    eventually("what egret says holds", || world.at("client", || tcp(PARTNER, 9001)) == Ok(()));
    eventually("ready", || is_ready(&world));
    egret.signal("HUP");
    eventually("one rule is left", || world.at("client", || tcp(PARTNER, 9001)) != Ok(()));
    assert_eq!(world.at("client", || tcp(PARTNER, 9000)), Ok(()));
    std::fs::write(&file, ports(9000..9030)).unwrap();
    egret.signal("HUP");
    eventually("all of them again", || world.at("client", || tcp(PARTNER, 9001)) == Ok(()));
}

#[test]
fn the_hop_itself_is_closed_to_clients_of_every_family() {
    let Some(world) = World::build(Through::One) else { return };
    let only_v4 = config(POLICY, "").replace("clients: [10.224.0.0/16, \"fd00:224::/64\"]", "clients: [10.224.0.0/16]");
    let egret = hop(&world, &only_v4);
    let _service = world.at("hop1", || TcpListener::bind("[::]:2222").unwrap());
    let reaches = |role: &str, to: &str| {
        let to: SocketAddr = to.parse().unwrap();
        world.at(role, || TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok())
    };
    assert!(!reaches("client", "10.225.1.4:2222"));
    assert!(!reaches("client", "20.50.1.4:2222"), "nor by its other address");
    assert!(!reaches("client", "[fd00:2251::4]:2222"));
    assert!(!reaches("fabric", "[fd00:2251::4]:2222"), "nobody who comes in there by IPv6");
    assert!(reaches("client", "10.225.1.4:3129"), "its listener");
    assert!(reaches("fabric", "10.225.1.4:2222"), "an operator in the hop's own network");
    assert!(reaches("internet", "20.50.1.4:2222"), "or on another interface");
    assert!(!egret.errors().contains("ERROR"), "{}", egret.errors());
}
