//! SIGHUP: another policy for a running egret.

use std::io::{Read, Write};
use std::process::Command;

use crate::clients::HTTPS;
use crate::support::dns::Dns;
use crate::support::hello::Hello;
use crate::support::origin::Recorder;
use crate::support::{ADMIN, Egret, FORWARD, connect, eventually, own_ip, tunnel};

const ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 40];

/// One egret whose names stand in a file beside its configuration.
struct World {
    egret: Egret,
    dns: Dns,
    _origin: Recorder,
}

impl World {
    fn start(names: &str) -> Self {
        let (dns, ip) = (Dns::start(), own_ip());
        for name in ["a.web.test", "b.web.test", "c.web.test"] {
            dns.answer(name, &[&ip.to_string()]);
        }
        let origin = Recorder::start(ip, HTTPS, ALERT);
        let own = own_ip();
        let config = Self::config(&dns, own, "names.txt");
        let egret = Egret::run_with(&config, own, &[("names.txt", names)]);
        Self { egret, dns, _origin: origin }
    }

    fn config(dns: &Dns, ip: std::net::IpAddr, file: &str) -> String {
        format!(
            "listeners: [{{ kind: forward, bind: \"{ip}:{FORWARD}\" }}]\n\
             dns: {{ upstreams: [\"{}\"], min_ttl: 0s }}\nadmin: {{ bind: \"{ip}:{ADMIN}\" }}\npolicy:\n  application_rules:\n    \
             - {{ name: listed, fqdns_file: {file}, protocols: [\"https:{HTTPS}\"], addresses: [\"127.0.0.0/8\"] }}\n",
            dns.address
        )
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.egret.folder().join(file), text).unwrap();
    }

    /// Sends the signal and waits for the word of it.
    fn hang_up(&self, says: &str) {
        let before = self.egret.errors().matches(says).count();
        let sent = Command::new("kill").args(["-HUP", &self.egret.pid().to_string()]).status().unwrap();
        assert!(sent.success());
        eventually(says, || self.egret.errors().matches(says).count() > before);
    }

    fn lets_out(&self, name: &str) -> bool {
        let mut stream = connect(self.egret.forward());
        write!(stream, "CONNECT {name}:{HTTPS} HTTP/1.1\r\nHost: {name}:{HTTPS}\r\n\r\n").unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        match &status {
            b"HTTP/1.1 200" => true,
            b"HTTP/1.1 403" => false,
            other => panic!("{}", other.escape_ascii()),
        }
    }

    fn page(&self) -> String {
        let mut stream = connect(std::net::SocketAddr::new(self.egret.ip, ADMIN));
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    }
}

const DONE: &str = "the new policy is in force";
const REFUSED: &str = "nothing has changed";

#[test]
fn a_new_policy_takes_effect_and_an_open_tunnel_goes_on() {
    let world = World::start("a.web.test\n");
    assert!(world.lets_out("a.web.test") && !world.lets_out("b.web.test"));
    let mut open = tunnel(&world.egret, &format!("a.web.test:{HTTPS}"));
    world.write("names.txt", "b.web.test\n");
    assert!(!world.lets_out("b.web.test"), "a file alone changes nothing");
    world.hang_up(DONE);
    assert!(!world.lets_out("a.web.test") && world.lets_out("b.web.test"));
    open.write_all(&Hello::named("a.web.test").record()).unwrap();
    let mut alert = [0; 7];
    open.read_exact(&mut alert).unwrap();
    assert_eq!(alert, ALERT, "who was let out already is not asked again");
    assert!(world.page().contains("egret_reloads_total{outcome=\"done\"} 1"));
}

#[test]
fn a_fault_changes_nothing_and_is_told_with_its_place() {
    let world = World::start("a.web.test\n");
    for (file, text, says) in [
        ("names.txt", "c.web.test\nhttps://b.web.test\n".to_owned(), "names.txt:2"),
        ("egret.yaml", "policy: { application_rule: [] }\n".to_owned(), "egret.yaml:1:11"),
        ("egret.yaml", World::config(&world.dns, world.egret.ip, "gone.txt"), "gone.txt"),
    ] {
        world.write(file, &text);
        world.hang_up(REFUSED);
        eventually(says, || world.egret.errors().contains(says));
        assert!(world.lets_out("a.web.test") && !world.lets_out("c.web.test"), "{says}");
    }
    std::fs::remove_file(world.egret.folder().join("egret.yaml")).unwrap();
    world.hang_up(REFUSED);
    assert!(world.lets_out("a.web.test"));
    assert!(world.page().contains("egret_reloads_total{outcome=\"refused\"} 4"));
}

#[test]
fn what_needs_a_restart_is_named() {
    let world = World::start("a.web.test\n");
    let config = World::config(&world.dns, world.egret.ip, "names.txt");
    world.write("egret.yaml", &format!("{config}limits: {{ idle: 1h }}\nlog: {{ overflow: block }}\n"));
    world.hang_up("keys=\"limits, log\"");
    world.write("egret.yaml", &config);
    world.hang_up(DONE);
    assert_eq!(world.egret.errors().matches("waits for a restart").count(), 1, "{}", world.egret.errors());
}

#[test]
fn a_long_list_is_compiled_while_others_are_served() {
    let world = World::start("a.web.test\n");
    let many: String = (0..50_000).map(|n| format!("host{n}.many.test\n")).collect();
    world.write("names.txt", &format!("a.web.test\nb.web.test\n{many}"));
    let sent = Command::new("kill").args(["-HUP", &world.egret.pid().to_string()]).status().unwrap();
    assert!(sent.success());
    let mut served = 0;
    eventually(DONE, || {
        assert!(world.lets_out("a.web.test"));
        served += 1;
        world.egret.errors().contains(DONE)
    });
    assert!(served > 10, "{served} connections during the reload");
    assert!(world.lets_out("b.web.test"));
}
