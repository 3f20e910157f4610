//! Real servers in every role: knot has the names, unbound resolves them for egret, another unbound keeps stale answers
//! between egret and clients, and the C libraries ask.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::hop::{hop, tcp, udp};
use crate::nameserver::{echo, resolve};
use crate::support::{ADMIN, Server, eventually, have, run, text};
use crate::world::{HOP1, Through, World, ip};

const PORT: u16 = 9001;
/// Where knot and unbound are, seen from egret.
const OUTSIDE: &str = "20.70.0.9";
/// Where clients ask: a forwarder, as CoreDNS is one.
const FORWARDER: &str = "10.224.0.2";
/// Where a forwarder validates what it is answered.
const VALIDATOR: &str = "10.224.0.3";
/// As a pod's.
const RESOLV_CONF: &str =
    "nameserver 10.224.0.2\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";

const POLICY: &str = "
  application_rules:
    - { name: web, fqdns: [\"*.web.example\"], protocols: [\"https:443\"] }
  network_rules:
    - { name: tunnel, fqdns: [\"*.tun.example\"], protocols: [\"tcp:9001\", \"udp:9001\"] }
";

fn config(dns: &str) -> String {
    format!(
        "listeners:\n  - {{ kind: transparent, bind: \"[::]:3129\", capture: tproxy }}\n  - {{ kind: dns, bind: \"[::]:53\" }}\n\
         dns: {{ upstreams: [\"{OUTSIDE}\"], forwarders: [\"10.225.1.1\"], min_ttl: 0s, {dns} }}\n\
         admin: {{ bind: \"127.0.0.1:{ADMIN}\" }}\nhealth: {{ bind: \"[::]:9902\" }}\n\
         netfilter: {{ clients: [10.224.0.0/16, \"fd00:224::/64\"], interfaces: [lan] }}\n\
         limits: {{ dns_new_names: 1000000 }}\n\
         learn: {{ state_dir: state, floor: 60s }}\npolicy:{POLICY}"
    )
}

const ZONE: &str = "$ORIGIN example.\n\
    @ 5 SOA ns hostmaster 1 3600 600 86400 5\n@ 5 NS ns\nns 5 A 20.70.0.9\n\
    one.web 5 A 20.60.4.1\nalias.web 5 CNAME far.other\nfar.other 5 A 20.60.4.2\n\
    loop.web 5 CNAME round.other\nround.other 5 CNAME loop.web\n\
    private.web 5 A 10.1.2.3\nmixed.web 5 A 10.1.2.3\nmixed.web 5 A 20.60.4.1\n\
    short.tun 0 A 20.60.4.3\n";

/// With a signed zone, or one that is not.
fn knot(folder: &Path, is_signed: bool) -> Server {
    let wild: String = (1..=16).map(|n| format!("*.tun 1 A 20.60.4.{n}\n")).collect();
    std::fs::write(folder.join("example.zone"), format!("{ZONE}{wild}")).unwrap();
    let at = folder.display();
    let conf = format!(
        "server:\n  rundir: \"{at}\"\n  user: root\n  listen: {OUTSIDE}@5300\ndatabase:\n  storage: \"{at}\"\n\
         zone:\n  - domain: example.\n    file: \"{at}/example.zone\"\n    zonefile-sync: -1\n    journal-content: all\n    dnssec-signing: {}\n",
        if is_signed { "on" } else { "off" }
    );
    std::fs::write(folder.join("knot.conf"), conf).unwrap();
    let mut command = Command::new("knotd");
    command.arg("-c").arg(folder.join("knot.conf"));
    Server::start(&mut command, SocketAddr::new(OUTSIDE.parse().unwrap(), 5300))
}

fn unbound(folder: &Path, at: &str, rest: &str) -> Server {
    let file = folder.join("unbound.conf");
    let conf = format!(
        "server:\n  interface: {at}\n  access-control: 0.0.0.0/0 allow\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  \
         pidfile: \"\"\n  use-syslog: no\n  module-config: \"iterator\"\n  cache-min-ttl: 0\n  do-ip6: no\n  \
         local-zone: \"10.in-addr.arpa.\" nodefault\n  rrset-roundrobin: yes\n{rest}"
    );
    std::fs::write(&file, conf).unwrap();
    let mut command = Command::new("unbound");
    command.args(["-d", "-c"]).arg(&file);
    Server::start(&mut command, SocketAddr::new(at.parse().unwrap(), 53))
}

/// unbound behind egret.
fn recursive(folder: &Path) -> Server {
    let stub = format!("  do-not-query-localhost: no\nstub-zone:\n  name: \"example.\"\n  stub-addr: {OUTSIDE}@5300\n");
    unbound(folder, OUTSIDE, &stub)
}

struct Servers {
    world: World,
    folders: Vec<tempfile::TempDir>,
    recursive: Option<Server>,
    _knot: Server,
    _forwarder: Server,
}

impl Servers {
    fn start(is_signed: bool) -> Option<Self> {
        if !have(&["knotd", "unbound", "musl-gcc", "dig"]) {
            return None;
        }
        let world = World::build(Through::One)?;
        world.at("internet", || echo(PORT));
        let folders: Vec<tempfile::TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let knot = world.at("outside", || knot(folders[0].path(), is_signed));
        let recursive = Some(world.at("outside", || recursive(folders[1].path())));
        let expired = "  serve-expired: yes\n  serve-expired-ttl: 60\n  serve-expired-client-timeout: 0\n\
             forward-zone:\n  name: \".\"\n  forward-addr: 10.225.1.4\n";
        let forwarder = world.at("fabric", || {
            ip(&["addr", "add", &format!("{FORWARDER}/32"), "dev", "lo"]);
            unbound(folders[2].path(), FORWARDER, expired)
        });
        Some(Self { world, folders, recursive, _knot: knot, _forwarder: forwarder })
    }
}

/// What a program prints that asks its C library for a name and says every address.
const ASKER: &str = "#include <netdb.h>\n#include <stdio.h>\n#include <string.h>\n#include <arpa/inet.h>\n\
    int main(int n, char **of) {\n struct addrinfo want, *all, *one; char text[99];\n memset(&want, 0, sizeof want);\n\
     want.ai_socktype = SOCK_STREAM;\n int failed = getaddrinfo(of[1], 0, &want, &all);\n if (failed) { puts(gai_strerror(failed)); return 1; }\n\
     for (one = all; one; one = one->ai_next) {\n  if (one->ai_family != AF_INET) continue;\n\
      inet_ntop(AF_INET, &((struct sockaddr_in *)one->ai_addr)->sin_addr, text, sizeof text); puts(text);\n }\n return 0;\n}\n";

fn compiled(folder: &Path, compiler: &str) -> String {
    let (source, program) = (folder.join("asker.c"), folder.join(compiler));
    std::fs::write(&source, ASKER).unwrap();
    let [source, program] = [&source, &program].map(|path| path.to_str().unwrap().to_owned());
    let built = run(compiler, &["-static", "-o", &program, &source]);
    assert!(built.status.success() || compiler != "musl-gcc", "{built:?}");
    if !built.status.success() {
        assert!(run(compiler, &["-o", &program, &source]).status.success());
    }
    program
}

#[test]
fn what_the_c_libraries_find_is_open_behind_a_forwarder_with_stale_answers() {
    let Some(servers) = Servers::start(false) else { return };
    let world = &servers.world;
    let egret = hop(world, &config("stale: 0s"));
    for compiler in ["gcc", "musl-gcc"] {
        let program = compiled(servers.folders[0].path(), compiler);
        let asked = |name: &str| text(&world.with_resolver(RESOLV_CONF, &[&program, name]));
        // The names of the search list come first, and must not end the search.
        assert_eq!(asked("one.web.example").trim(), "20.60.4.1", "{compiler}");
        assert_eq!(asked("alias.web.example").trim(), "20.60.4.2", "{compiler}: a target that no rule lists");
        let found = asked(&format!("{compiler}.tun.example"));
        assert_eq!(found.lines().count(), 16, "{compiler}: {found}");
        world.at("client", || {
            assert_eq!(found.lines().filter(|ip| udp(ip, PORT).is_err()).count(), 0, "{compiler}");
        });
        for refused in ["not.listed.example", "private.web.example", "mixed.web.example", "loop.web.example"] {
            let said = world.with_resolver(RESOLV_CONF, &[&program, refused]);
            assert!(!said.status.success() && !text(&said).contains("20.60"), "{compiler} {refused}: {said:?}");
        }
    }
    for (name, reason) in [
        ("one.web.example.default.svc.cluster.local", "no_rule"),
        ("not.listed.example", "no_rule"),
        ("private.web.example", "address_denied"),
        ("mixed.web.example", "address_mixed"),
    ] {
        egret.record(name, |line| line["name"] == name && line["reason"] == reason);
    }
    // The forwarder hands out answers whose time is over, while it asks anew.
    world.at("client", || {
        let server = format!("{FORWARDER}:53");
        for n in 0..600 {
            let name = ["a.tun.example.", "b.tun.example.", "short.tun.example."][n % 3];
            let ip = resolve(&server, name).unwrap().to_string();
            let over = if n % 2 == 0 { tcp } else { udp };
            assert_eq!(over(&ip, PORT), Ok(()), "{name} at {ip}, round {n}");
        }
    });
}

#[test]
fn a_resolver_that_dies_costs_no_answer_and_is_used_again_when_it_is_back() {
    let Some(mut servers) = Servers::start(false) else { return };
    let egret = hop(&servers.world, &config("stale: 1h, max_ttl: 1s"));
    let server = format!("{HOP1}:53");
    let dig = |world: &World, name: &str| {
        world.at("client", || text(&run("dig", &["+tries=1", "+time=6", &format!("@{HOP1}"), name, "A"])))
    };
    assert!(dig(&servers.world, "one.web.example").contains("20.60.4.1"));
    servers.recursive = None;
    eventually("an old answer, marked as such", || {
        let said = dig(&servers.world, "one.web.example");
        assert!(said.contains("20.60.4.1"), "{said}");
        said.contains("EDE: 3")
    });
    let said = dig(&servers.world, "never-asked.tun.example");
    assert!(said.contains("SERVFAIL") && said.contains("EDE: 22"), "{said}");
    let folder = servers.folders[1].path().to_owned();
    servers.recursive = Some(servers.world.at("outside", || recursive(&folder)));
    servers.world.at("client", || {
        eventually("a new name is answered", || resolve(&server, "new.tun.example.").is_ok());
    });
    eventually("a new answer", || !dig(&servers.world, "one.web.example").contains("EDE: 3"));
    egret.record("the name that was never asked", |line| line["name"] == "never-asked.tun.example");
}

#[test]
fn a_forwarder_that_validates_is_served_where_signed_answers_are_left_intact() {
    let Some(servers) = Servers::start(true) else { return };
    let world = &servers.world;
    let key = world
        .at("outside", || text(&run("dig", &["+short", &format!("@{OUTSIDE}"), "-p", "5300", "example", "DNSKEY"])));
    let key = key.lines().find(|line| line.starts_with("257")).unwrap().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let anchor = format!(
        "  trust-anchor: \"example. DNSKEY {key}\"\nforward-zone:\n  name: \".\"\n  forward-addr: 10.225.1.4\n"
    );
    let dig = |name: &str, kind: &str| {
        world.at("client", || {
            text(&run("dig", &["+dnssec", "+tries=1", "+time=6", &format!("@{VALIDATOR}"), name, kind]))
        })
    };
    let validator = || {
        world.at("fabric", || {
            ip(&["addr", "replace", &format!("{VALIDATOR}/32"), "dev", "lo"]);
            let conf = folder.path().join("unbound.conf");
            let server = unbound(
                folder.path(),
                VALIDATOR,
                &anchor.replace("  trust-anchor", "  module-config: \"validator iterator\"\n  trust-anchor"),
            );
            assert!(conf.exists());
            server
        })
    };
    {
        let _egret = hop(world, &config("dnssec: intact"));
        let _validator = validator();
        for (name, found) in
            [("one.web.example", "20.60.4.1"), ("alias.web.example", "20.60.4.2"), ("w.tun.example", "20.60.4.9")]
        {
            let said = dig(name, "A");
            assert!(said.contains(found) && said.contains("RRSIG") && flags(&said).contains("ad"), "{name}: {said}");
        }
        let said = dig("one.web.example", "AAAA");
        assert!(said.contains("NOERROR") && flags(&said).contains("ad") && said.contains("NSEC"), "{said}");
        // Its own keys, and those of nothing else.
        let said = world.at("client", || text(&run("dig", &[&format!("@{HOP1}"), "elsewhere.test", "DNSKEY"])));
        assert!(said.contains("NXDOMAIN"), "{said}");
        let found = dig("v.tun.example", "A");
        world.at("client", || {
            let open =
                found.lines().filter(|line| line.contains("\tA\t")).filter_map(|line| line.split_whitespace().last());
            assert!(open.clone().count() == 16 && open.map(|ip| udp(ip, PORT)).all(|heard| heard.is_ok()));
        });
    }
    // Flattened, or without a signature, it is bogus to a validator.
    let _egret = hop(world, &config("dnssec: stripped"));
    let _validator = validator();
    assert!(dig("one.web.example", "A").contains("SERVFAIL"));
}

fn flags(said: &str) -> &str {
    said.lines()
        .find_map(|line| line.strip_prefix(";; flags:"))
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
}
