//! Synthetic addresses through the hop: names that share an address stay apart, on any port.

use std::fs::Permissions;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hickory_proto::rr::Name;

use crate::hop::{RESET, hop, udp};
use crate::nameserver::{resolve, resolve_from};
use crate::support::{ADMIN, Server, allowed, curl, eventually, have, refused, run, text};
use crate::world::{DECOY6, HOP1, ORIGIN, Through, World, ip};

const PORT: u16 = 5432;
/// What network rules open.
const TUNNEL: u16 = 9001;
const SERVERS: u8 = 10;
/// The one address that many names share.
const SHARED: &str = "20.60.4.1";

const POLICY: &str = "
  application_rules:
    - { name: web, fqdns: [a.example], protocols: [\"https:443\"] }
    - { name: db, fqdns: [\"*.db.example\"], protocols: [\"tcp:5432\"] }
    - { name: real, fqdns: [real.example], protocols: [\"tcp:5432\"], steer: false }
  network_rules:
    - { name: tunnel, fqdns: [\"*.tun.example\"], protocols: [\"tcp:9001\", \"udp:9001\", icmp] }
    - { name: time, fqdns: [time.example], protocols: [\"udp:9001\"] }
    - { name: plain, fqdns: [plain.example], protocols: [\"udp:9001\"], steer: false }
    - { name: closed, action: deny, destinations: [20.60.4.9], protocols: [\"udp:9001\"] }
";

fn config(policy: &str) -> String {
    format!(
        "listeners:\n  - {{ kind: transparent, bind: \"[::]:3129\", capture: tproxy }}\n  - {{ kind: dns, bind: \"[::]:53\" }}\n\
         dns: {{ upstreams: [\"20.50.1.1\"], min_ttl: 0s, max_ttl: 1s, steer: true }}\n\
         admin: {{ bind: \"127.0.0.1:{ADMIN}\" }}\nhealth: {{ bind: \"[::]:9902\" }}\n\
         netfilter: {{ clients: [10.224.0.0/16, \"fd00:224::/64\"], interfaces: [lan] }}\n\
         limits: {{ dns_new_names: 1000000 }}\n\
         learn: {{ state_dir: state }}\npolicy:{policy}"
    )
}

/// A world with servers that say where they are, and then what they hear.
fn world() -> Option<World> {
    let world = World::build(Through::One)?;
    let servers = (1..=SERVERS).map(|n| IpAddr::from([20, 60, 4, n]));
    world.at("internet", || {
        ip(&["route", "add", "local", "20.60.4.0/24", "dev", "lo"]);
        for (server, port) in servers.clone().flat_map(|server| [(server, PORT), (server, TUNNEL)]) {
            let listener = TcpListener::bind((server, port)).unwrap();
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    std::thread::spawn(move || {
                        let _ = stream.write_all(format!("{server}\n").as_bytes());
                        let mut buffer = [0; 100];
                        while let Ok(len @ 1..) = stream.read(&mut buffer) {
                            let _ = stream.write_all(&buffer[..len]);
                        }
                    });
                }
            });
        }
        for server in servers.clone().chain([DECOY6.parse().unwrap()]) {
            let socket = UdpSocket::bind((server, TUNNEL)).unwrap();
            std::thread::spawn(move || {
                while let Ok((_, from)) = socket.recv_from(&mut [0; 100]) {
                    let _ = socket.send_to(server.to_string().as_bytes(), from);
                }
            });
        }
    });
    world.dns.answer("*", &[SHARED]).answer("a.example", &[ORIGIN]);
    Some(world)
}

fn server() -> String {
    format!("{HOP1}:53")
}

fn is_synthetic(ip: Ipv4Addr) -> bool {
    ip.octets()[..2] == [198, 18]
}

/// What a server at an address says first.
fn greeting(to: Ipv4Addr, port: u16) -> Result<String, ErrorKind> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to.into(), port), Duration::from_secs(5))
        .map_err(|error| error.kind())?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut said = [0; 100];
    let len = stream.read(&mut said).map_err(|error| error.kind())?;
    Ok(String::from_utf8_lossy(&said[..len]).trim_end().to_owned())
}

#[test]
fn names_that_share_an_address_stay_apart() {
    let Some(world) = world() else { return };
    let mut capture = world.capture();
    let egret = hop(&world, &config(POLICY));
    let ca = world.authority.ca();
    world.at("client", || {
        let db = resolve(&server(), "orders.db.example.").unwrap();
        assert!(is_synthetic(db), "{db}");
        assert_eq!(resolve(&server(), "orders.db.example."), Ok(db), "one name, one address");
        assert_eq!(greeting(db, PORT).unwrap(), SHARED);
        assert!(resolve(&server(), "other.example.").is_err());
        // Nothing leads to the address itself, nor to other ports of the name, nor over another transport.
        assert_eq!(greeting(SHARED.parse().unwrap(), PORT), Err(ErrorKind::ConnectionRefused));
        assert!(greeting(db, PORT + 1).is_err());
        assert_eq!(udp(&db.to_string(), PORT), RESET);
        assert!(!run("ping", &["-c1", "-W1", &db.to_string()]).status.success());
        // An address of the pool that stands for nothing.
        assert!(greeting("198.18.200.200".parse().unwrap(), PORT).is_err());

        // On an application port the bytes must show the name that the address stands for.
        let web = resolve(&server(), "a.example.").unwrap();
        assert!(is_synthetic(web) && web != db);
        let get = |name: &str, at: Ipv4Addr| {
            curl(&["--cacert", &ca, "--resolve", &format!("{name}:443:{at}"), &format!("https://{name}/who")])
        };
        assert_eq!(text(&get("a.example", web)), "a.example HTTP/2.0 TLSv1.3\n");
        assert!(!get("a.example", db).status.success());
        assert!(!get("x.example", web).status.success());
        assert!(greeting(web, PORT).is_err());

        // Real addresses, where a rule says so.
        assert_eq!(resolve(&server(), "real.example.").unwrap().to_string(), SHARED);
        let reverse = |ip: Ipv4Addr| {
            let name = Name::from(IpAddr::from(ip)).to_ascii();
            text(&run("dig", &["+short", &format!("@{HOP1}"), &name, "PTR"])).trim().to_owned()
        };
        assert_eq!(reverse(web), "a.example.");
        assert_eq!(reverse("198.18.200.200".parse().unwrap()), "");
    });
    let line = egret.record("the database", |line| line["name"] == "orders.db.example" && line["verdict"] == "allow");
    allowed(&line, "db");
    assert_eq!((&line["name_source"], &line["pattern"]), (&"dns".into(), &"*.db.example".into()), "{line:#}");
    assert_eq!(line["upstream"], format!("{SHARED}:{PORT}"));
    assert!(line["original_dst"].as_str().unwrap().starts_with("198.18."), "{line:#}");
    let line = egret.record("the unknown address", |line| line["original_dst"] == "198.18.200.200:5432");
    refused(&line, "dst_not_in_dns", "claim");
    let line = egret.record("the other name", |line| line["sni"] == "x.example" || line["name"] == "x.example");
    assert_eq!(line["reason"], "name_mismatch", "{line:#}");
    egret.record("UDP", |line| line["event"] == "net" && line["protocol"] == "udp" && line["reason"] == "no_rule");
    capture.saw_nothing("net 198.18.0.0/15");
}

/// Which server answers over UDP.
fn says(socket: &UdpSocket) -> Result<String, ErrorKind> {
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send(b"where?").map_err(|error| error.kind())?;
    let mut said = [0; 100];
    let len = socket.recv(&mut said).map_err(|error| error.kind())?;
    Ok(String::from_utf8_lossy(&said[..len]).into_owned())
}

fn socket_to(ip: impl Into<IpAddr>, port: u16) -> UdpSocket {
    let ip = ip.into();
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.connect((ip, port)).unwrap();
    socket
}

fn over_udp(ip: impl Into<IpAddr>, port: u16) -> Result<String, ErrorKind> {
    says(&socket_to(ip, port))
}

#[test]
fn network_rules_lead_to_what_is_behind_a_name() {
    let Some(world) = world() else { return };
    world.dns.answer("moves.tun.example", &["20.60.4.2"]).answer("closed.tun.example", &["20.60.4.9"]);
    world.dns.answer("plain.example", &["20.60.4.4"]).answer("six.tun.example", &[SHARED, DECOY6]);
    let mut capture = world.capture();
    let egret = hop(&world, &config(POLICY));
    let ask = |name: &str| resolve(&server(), &format!("{name}.")).unwrap();
    world.at("client", || {
        let name = ask("one.tun.example");
        assert!(is_synthetic(name));
        assert_eq!(over_udp(name, TUNNEL).as_deref(), Ok(SHARED));
        assert_eq!(greeting(name, TUNNEL).as_deref(), Ok(SHARED));
        assert!(run("ping", &["-c1", "-W2", &name.to_string()]).status.success());
        // No other port of the name; nothing at the address itself, or at another name there.
        assert!(greeting(name, PORT).is_err());
        assert_eq!(over_udp(name, TUNNEL + 1), Err(ErrorKind::ConnectionRefused));
        let shared = SHARED.parse().unwrap();
        assert_eq!(over_udp(shared, TUNNEL), Err(ErrorKind::ConnectionRefused));
        assert!(greeting(shared, TUNNEL).is_err());
        assert!(resolve(&server(), "other.example.").is_err());
        // A name that is kept resolved has a synthetic address, too, unless its rule says otherwise.
        let time = ask("time.example");
        assert!(is_synthetic(time));
        assert_eq!(over_udp(time, TUNNEL).as_deref(), Ok(SHARED));
        assert!(greeting(time, TUNNEL).is_err(), "its rule is for UDP");
        assert_eq!(over_udp(ask("closed.tun.example"), TUNNEL), Err(ErrorKind::ConnectionRefused), "a denial");
        // Each family leads to an address of its own.
        let six = text(&run("dig", &["+short", &format!("@{HOP1}"), "six.tun.example", "AAAA"]));
        let six: Ipv6Addr = six.trim().parse().unwrap();
        assert_eq!(six.segments()[0], 0xfd65, "{six}");
        assert_eq!(over_udp(six, TUNNEL).as_deref(), Ok(DECOY6));

        // What is behind a name moves when servers say so; open flows stay where they are.
        let moves = ask("moves.tun.example");
        let open = socket_to(moves, TUNNEL);
        assert_eq!(says(&open).as_deref(), Ok("20.60.4.2"));
        world.dns.answer("moves.tun.example", &["20.60.4.3", "20.60.4.2"]);
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(ask("moves.tun.example"), moves);
        assert_eq!(over_udp(moves, TUNNEL).as_deref(), Ok("20.60.4.2"), "it is still among the answers");
        world.dns.answer("moves.tun.example", &["20.60.4.3"]);
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(ask("moves.tun.example"), moves);
        assert_eq!(over_udp(moves, TUNNEL).as_deref(), Ok("20.60.4.3"));
        assert_eq!(greeting(moves, TUNNEL).as_deref(), Ok("20.60.4.3"));
        assert_eq!(says(&open).as_deref(), Ok("20.60.4.2"));
    });
    egret.record("the denial", |line| line["event"] == "net" && line["reason"] == "rule_denied");
    let line = egret.record("the other port", |line| line["event"] == "net" && line["name"] == "one.tun.example");
    assert_eq!((&line["reason"], &line["port"]), (&"no_rule".into(), &(TUNNEL + 1).into()), "{line:#}");
    capture.saw_nothing("net 198.18.0.0/15");
    // A rule that keeps its names' own addresses.
    world.at("client", || {
        let plain = ask("plain.example");
        assert_eq!(plain.to_string(), "20.60.4.4");
        assert_eq!(over_udp(plain, TUNNEL).as_deref(), Ok("20.60.4.4"));
    });
}

#[test]
fn a_name_that_flows_go_to_is_kept_resolved_and_outlives_a_restart() {
    let Some(world) = world() else { return };
    let state = tempfile::tempdir().unwrap();
    let learn = format!("state_dir: {}, floor: 6s, grace: 1s", state.path().display());
    let config = config(POLICY).replace("state_dir: state", &learn);
    let mut egret = hop(&world, &config);
    let (used, idle, open) = world.at("client", || {
        let [used, idle] = ["used", "idle"].map(|name| resolve(&server(), &format!("{name}.tun.example.")).unwrap());
        let open = socket_to(used, TUNNEL);
        for second in 0..11 {
            assert_eq!(says(&open).as_deref(), Ok(SHARED), "after {second} seconds");
            if second == 2 {
                world.dns.answer("used.tun.example", &["20.60.4.3"]);
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        // Its client has not asked again, and new flows find what is behind it now.
        assert_eq!(over_udp(used, TUNNEL).as_deref(), Ok("20.60.4.3"));
        assert_eq!(over_udp(idle, TUNNEL), Err(ErrorKind::ConnectionRefused), "its time is over");
        (used, idle, open)
    });
    let line = egret.record("the idle name", |line| line["name"] == "idle.tun.example");
    assert_eq!(line["reason"], "learned_expired", "{line:#}");
    world.at("client", || assert_eq!(resolve(&server(), "idle.tun.example."), Ok(idle)));
    egret.signal("TERM");
    assert_eq!(egret.wait(), 0);
    drop(egret);
    let _egret = hop(&world, &config);
    world.at("client", || {
        assert_eq!(over_udp(idle, TUNNEL).as_deref(), Ok(SHARED), "it was answered a moment ago");
        assert_eq!(over_udp(used, TUNNEL).as_deref(), Ok("20.60.4.3"));
        assert_eq!(says(&open).as_deref(), Ok(SHARED), "what was open goes on");
    });
}

#[test]
fn what_is_behind_a_name_moves_for_all_clients_whichever_asks() {
    let Some(world) = world() else { return };
    world.dns.answer("one.tun.example", &["20.60.4.2"]);
    let policy = "
  application_rules:
    - { name: web, fqdns: [\"*.tun.example\"], protocols: [\"https:443\"] }
  network_rules:
    - { name: tunnel, sources: [10.224.0.10], fqdns: [\"*.tun.example\"], protocols: [\"udp:9001\"] }
";
    let _egret = hop(&world, &config(policy));
    let other = Ipv4Addr::new(10, 224, 0, 11);
    world.at("client", || {
        ip(&["addr", "add", "10.224.0.11/24", "dev", "eth0"]);
        let own = Ipv4Addr::new(10, 224, 0, 10);
        let name = resolve_from(own, &server(), "one.tun.example.").unwrap();
        let from_own = || {
            let socket = UdpSocket::bind((own, 0)).unwrap();
            socket.connect((name, TUNNEL)).unwrap();
            says(&socket)
        };
        assert_eq!(from_own().as_deref(), Ok("20.60.4.2"));
        world.dns.answer("one.tun.example", &["20.60.4.3"]);
        std::thread::sleep(Duration::from_secs(2));
        // The network rule is not for this client.
        assert_eq!(resolve_from(other, &server(), "one.tun.example."), Ok(name));
        assert_eq!(from_own().as_deref(), Ok("20.60.4.3"));
    });
}

#[test]
fn every_name_leads_to_its_own_server() {
    let Some(world) = world() else { return };
    for n in 0..1000 {
        world.dns.answer(&format!("n{n}.db.example"), &[&format!("20.60.4.{}", n % usize::from(SERVERS) + 1)]);
    }
    let _egret = hop(&world, &config(POLICY));
    world.at("client", || {
        let addresses: Vec<Ipv4Addr> =
            (0..1000).map(|n| resolve(&server(), &format!("n{n}.db.example.")).unwrap()).collect();
        for (n, address) in addresses.iter().enumerate() {
            let expected = format!("20.60.4.{}", n % usize::from(SERVERS) + 1);
            assert_eq!(greeting(*address, PORT).as_ref(), Ok(&expected), "n{n} at {address}");
        }
        // One client has its share of the pool: a 64th.
        let more = (1000..1100).filter(|n| resolve(&server(), &format!("n{n}.db.example.")).is_ok()).count();
        assert_eq!(more, 23);
        assert!(is_synthetic(resolve(&server(), "a.example.").unwrap()), "a name that is listed itself");
    });
}

#[test]
fn an_address_outlives_egret_and_a_reload() {
    let Some(world) = world() else { return };
    let state = tempfile::tempdir().unwrap();
    let config = config(POLICY).replace("state_dir: state", &format!("state_dir: {}", state.path().display()));
    let egret = hop(&world, &config);
    let (first, mut open) = world.at("client", || {
        let first = resolve(&server(), "first.db.example.").unwrap();
        assert_eq!(greeting(first, PORT).unwrap(), SHARED);
        (first, TcpStream::connect((first, PORT)).unwrap())
    });
    // A reload that closes the rule closes the address, and nothing else comes to stand behind it.
    std::fs::write(egret.folder().join("egret.yaml"), config.replace("*.db.example", "*.dc.example")).unwrap();
    egret.signal("HUP");
    eventually("the reload", || egret.errors().contains("the new policy is in force"));
    world.at("client", || {
        assert!(greeting(first, PORT).is_err());
        open.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert!(open.read(&mut [0; 100]).is_ok_and(|len| len > 0), "what was open goes on");
    });
    egret.record("the name's refusal", |line| line["name"] == "first.db.example" && line["verdict"] == "deny");
    egret.signal("KILL");
    drop(egret);
    let _egret = hop(&world, &config);
    world.at("client", || {
        assert_eq!(greeting(first, PORT).unwrap(), SHARED, "it still stands for the name");
        let second = resolve(&server(), "second.db.example.").unwrap();
        assert!(is_synthetic(second) && second != first);
        assert_eq!(resolve(&server(), "first.db.example."), Ok(first));
    });
}

/// PostgreSQL as its own user, with one row to read.
fn postgres(folder: &Path, at: &str) -> Server {
    let programs = std::fs::read_dir("/usr/lib/postgresql").unwrap().next().unwrap().unwrap().path().join("bin");
    let data = folder.join("data");
    let as_postgres = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(programs.join(program));
        command.current_dir(folder);
        command
    };
    run("chown", &["postgres", folder.to_str().unwrap()]);
    let made = as_postgres("initdb").args(["-A", "trust", "-D"]).arg(&data).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut rules = std::fs::OpenOptions::new().append(true).open(data.join("pg_hba.conf")).unwrap();
    writeln!(rules, "host all all 0.0.0.0/0 trust").unwrap();
    let mut server = as_postgres("postgres");
    server.arg("-D").arg(&data).args(["-h", at, "-k", ""]);
    Server::start(&mut server, format!("{at}:{PORT}").parse().unwrap())
}

/// An SSH server that knows one key, and that key's file.
fn sshd(folder: &Path, at: &str) -> (Server, PathBuf) {
    let [host, key] = ["host", "key"].map(|name| folder.join(name));
    for file in [&host, &key] {
        assert!(run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", file.to_str().unwrap()]).status.success());
    }
    std::fs::create_dir_all("/run/sshd").unwrap();
    let conf = format!(
        "ListenAddress {at}:22\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nPermitRootLogin yes\nPidFile none\nUsePAM no\n",
        host.display(),
        key.with_extension("pub").display()
    );
    std::fs::write(folder.join("sshd.conf"), conf).unwrap();
    let mut command = Command::new("/usr/sbin/sshd");
    command.arg("-D").arg("-f").arg(folder.join("sshd.conf"));
    (Server::start(&mut command, format!("{at}:22").parse().unwrap()), key)
}

#[test]
fn databases_and_shells_are_reached_by_wildcard_name() {
    if !have(&["psql", "initdb", "sshd", "ssh", "setpriv"]) {
        return;
    }
    let Some(world) = World::build(Through::One) else { return };
    let at = "20.60.4.1";
    // Others must come through to it.
    let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
    let (_postgres, (_sshd, key)) = world.at("internet", || {
        ip(&["addr", "add", &format!("{at}/32"), "dev", "lo"]);
        (postgres(folder.path(), at), sshd(folder.path(), at))
    });
    world.dns.answer("*", &[at]);
    let policy = "
  application_rules:
    - { name: db, fqdns: [\"*.db.example\"], protocols: [\"tcp:5432\"] }
    - { name: ssh, fqdns: [\"*.ssh.example\"], protocols: [\"tcp:22\"] }
";
    let egret = hop(&world, &config(policy));
    let conf = format!("nameserver {HOP1}\n");
    let psql = |name: &str| {
        let place = format!("host={name} user=postgres dbname=postgres connect_timeout=10");
        world.with_resolver(&conf, &["psql", "-At", "-c", "select 6 * 7", &place])
    };
    let ssh = |name: &str| {
        let options =
            ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10"];
        let mut all = vec!["ssh", "-i", key.to_str().unwrap(), "-o", "LogLevel=ERROR"];
        all.extend(options);
        let place = format!("root@{name}");
        all.extend([place.as_str(), "echo", "here"]);
        world.with_resolver(&conf, &all)
    };
    assert_eq!(text(&psql("orders.db.example")).trim(), "42");
    assert_eq!(text(&ssh("build.ssh.example")).trim(), "here");
    // The same address, and names or ports that no rule lists.
    for refused in [psql("orders.ssh.example"), psql("other.example"), psql(at), ssh("build.db.example"), ssh(at)] {
        assert!(!refused.status.success(), "{refused:?}");
    }
    for (name, rule) in [("orders.db.example", "db"), ("build.ssh.example", "ssh")] {
        let line = egret.record(name, |line| line["name"] == name && line["verdict"] == "allow");
        assert_eq!((&line["rule"], &line["name_source"]), (&rule.into(), &"dns".into()), "{line:#}");
    }
}
