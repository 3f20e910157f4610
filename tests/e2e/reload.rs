//! SIGHUP: another policy for a running egret.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::clients::HTTPS;
use crate::support::dns::Dns;
use crate::support::hello::Hello;
use crate::support::origin::Recorder;
use crate::support::{ADMIN, Egret, FORWARD, Server, connect, eventually, own_ip, run, tunnel};

const ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 40];

/// One egret whose names stand in a file beside its configuration.
struct World {
    egret: Egret,
    dns: Dns,
    origin: Recorder,
    logs: tempfile::TempDir,
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
        Self { egret, dns, origin, logs: tempfile::tempdir().unwrap() }
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
fn a_new_policy_may_end_what_it_would_not_let_begin() {
    let world = World::start("a.web.test\nb.web.test\nc.web.test\n");
    let config = World::config(&world.dns, world.egret.ip, "names.txt");
    let rules = "    - { name: plain, fqdns: [a.web.test], protocols: [\"http:18998\", \"https:18997\"], addresses: [127.0.0.0/8] }\n  \
                   network_rules: [{ name: unseen, destinations: [127.0.0.0/8], protocols: [\"tcp:18999\"] }]\n";
    let _unseen = Recorder::start(world.egret.ip, 18999, ALERT);
    world.write("egret.yaml", &format!("{config}{rules}"));
    world.hang_up(DONE);
    let open = |target: &str| {
        let mut stream = tunnel(&world.egret, target);
        stream.write_all(&Hello::named(target.split(':').next().unwrap()).record()).unwrap();
        let mut alert = [0; 7];
        stream.read_exact(&mut alert).unwrap();
        stream
    };
    let mut names = ["a", "b", "c"].map(|name| open(&format!("{name}.web.test:{HTTPS}")));
    let mut unseen = open(&format!("{}:18999", world.egret.ip));
    // A request whose answer does not end, and a handshake that nobody answers.
    let _endless =
        Recorder::start(world.origin.address.ip(), 18998, b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nbegins");
    let mut asked = connect(world.egret.forward());
    asked.write_all(b"GET http://a.web.test:18998/ HTTP/1.1\r\nHost: a.web.test:18998\r\n\r\n").unwrap();
    let mut begins = Vec::new();
    while !begins.ends_with(b"begins") {
        let mut byte = [0];
        asked.read_exact(&mut byte).unwrap_or_else(|e| panic!("{e} after {}", begins.escape_ascii()));
        begins.push(byte[0]);
    }
    let silent = Recorder::start(world.origin.address.ip(), 18997, b"");
    let mut unanswered = tunnel(&world.egret, "a.web.test:18997");
    unanswered.write_all(&Hello::named("a.web.test").record()).unwrap();
    eventually("the hello goes on", || silent.streams().iter().any(|bytes| !bytes.is_empty()));
    world.write("names.txt", "a.web.test\nb.web.test\n");
    world.hang_up(DONE);
    assert!(world.egret.records().is_empty(), "without on_change: cut everything goes on");

    world.write("names.txt", "b.web.test\n");
    world.write("egret.yaml", &format!("{config}  on_change: cut\n"));
    world.hang_up(DONE);
    let [a, b, c] = &mut names;
    let revoked = [("a", a), ("c", c), ("unseen", &mut unseen), ("asked", &mut asked), ("unanswered", &mut unanswered)];
    for (what, stream) in revoked {
        let left = stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(left.kind(), std::io::ErrorKind::ConnectionReset, "{what}");
        let line = world.egret.record_of(stream.local_addr().unwrap());
        assert!(line["ending"] == "revoked" && line["verdict"] == "allow", "{line:#}");
    }
    assert_eq!(world.egret.records().len(), 5);
    b.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(world.egret.record_of(b.local_addr().unwrap())["ending"], "closed", "b is listed as before");
}

#[test]
fn a_fault_changes_nothing_and_is_reported_with_its_place() {
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
    assert_eq!(
        world.egret.errors().matches("takes effect only after a restart").count(),
        1,
        "{}",
        world.egret.errors()
    );
}

#[test]
fn a_reload_asked_for_during_the_start_follows_it() {
    let (folder, ip) = (tempfile::tempdir().unwrap(), own_ip());
    let at = |file: &str| folder.path().join(file);
    let config = format!(
        "listeners: [{{ kind: forward, bind: \"{ip}:{FORWARD}\" }}]\npolicy:\n  application_rules: \
         [{{ name: listed, fqdns_file: names.txt, protocols: [\"https:443\"] }}]\n"
    );
    std::fs::write(at("egret.yaml"), config).unwrap();
    // The start takes until somebody writes the names.
    assert!(run("mkfifo", &[at("names.txt").to_str().unwrap()]).status.success());
    let errors = std::fs::File::create(at("errors")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_egret"));
    let child = command.args(["run", "--config"]).arg(at("egret.yaml")).stdout(Stdio::null()).stderr(errors).spawn();
    let child = Server(child.unwrap());
    let pid = child.0.id().to_string();
    eventually("SIGHUP waits", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().any(|line| line.starts_with("SigBlk:") && line.ends_with('1'))
    });
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    let mut names = std::fs::OpenOptions::new().write(true).open(at("names.txt")).unwrap();
    std::fs::write(at("others.txt"), "b.web.test\n").unwrap();
    std::fs::rename(at("others.txt"), at("names.txt")).unwrap();
    names.write_all(b"a.web.test\n").unwrap();
    drop(names);
    eventually(DONE, || std::fs::read_to_string(at("errors")).unwrap().contains(DONE));
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

/// A world with a control socket, a log file and a policy that is watched, or not.
fn controlled(watch: bool) -> World {
    let (dns, ip, own) = (Dns::start(), own_ip(), own_ip());
    for name in ["a.web.test", "b.web.test", "c.web.test"] {
        dns.answer(name, &[&ip.to_string()]);
    }
    let origin = Recorder::start(ip, HTTPS, ALERT);
    let config = World::config(&dns, own, "names.txt").replace("policy:\n", &format!("policy:\n  watch: {watch}\n"));
    let config = format!("control: {{ socket: run/control.sock }}\nlog: {{ output: /LOG }}\n{config}");
    let logs = tempfile::tempdir().unwrap();
    let config = config.replace("/LOG", &logs.path().join("access.log").display().to_string());
    let egret = Egret::run_with(&config, own, &[("names.txt", "a.web.test\n")]);
    World { egret, dns, origin, logs }
}

fn reload(world: &World) -> (Option<i32>, String) {
    let config = world.egret.folder().join("egret.yaml");
    let output = run(env!("CARGO_BIN_EXE_egret"), &["reload", "--config", config.to_str().unwrap()]);
    (output.status.code(), crate::support::text(&output))
}

#[test]
fn the_control_socket_reloads_and_says_what_happened() {
    let world = controlled(false);
    world.write("names.txt", "b.web.test\n");
    let (code, said) = reload(&world);
    assert_eq!((code, said.as_str()), (Some(0), "the new policy is in force: 1 rule with 1 name or pattern\n"));
    assert!(!world.lets_out("a.web.test") && world.lets_out("b.web.test"));
    // A fault changes nothing, and the socket is found although the file has one.
    world.write("names.txt", "b.web.test\na..b\n");
    let (code, said) = reload(&world);
    assert!(code == Some(2) && said.contains("nothing has changed") && said.contains("names.txt:2"), "{said}");
    assert!(world.lets_out("b.web.test"));
    let faulty = std::fs::read_to_string(world.egret.folder().join("egret.yaml")).unwrap() + "unknown: 1\n";
    world.write("egret.yaml", &faulty);
    let (code, said) = reload(&world);
    assert!(code == Some(2) && said.contains("unknown key"), "{said}");
    // Nobody else may speak on it.
    let socket = world.egret.folder().join("run/control.sock");
    let mode = |path: &std::path::Path| {
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777
    };
    assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o600, 0o700));
    let mut world = world;
    world.egret.signal("TERM");
    world.egret.wait();
    assert!(!socket.exists(), "it is gone with its egret");
    let (code, said) = reload(&world);
    assert!(code == Some(1) && said.contains("cannot ask at"), "{said}");
}

#[test]
fn a_watched_policy_is_read_again_when_its_files_rest() {
    let world = controlled(true);
    let rest = || std::thread::sleep(std::time::Duration::from_millis(600));
    // Written in pieces, each of which would be a policy.
    for names in ["b.web.test\n", "b.web.test\nc.web.test\n", "b.web.test\nc.web.test\n# all\n"] {
        world.write("names.txt", names);
        rest();
        assert!(world.lets_out("a.web.test"), "not while it changes");
    }
    eventually("the new names", || world.lets_out("c.web.test") && !world.lets_out("a.web.test"));
    assert_eq!(world.egret.errors().matches(DONE).count(), 1, "{}", world.egret.errors());
    // Half a file changes nothing, and is not asked for again.
    world.write("egret.yaml", "listeners: [{ kind: forward, bind: \"127.0");
    eventually(REFUSED, || world.egret.errors().contains(REFUSED));
    assert!(world.lets_out("c.web.test"));
    // Other files, by the swap of a link, as Kubernetes does it.
    let folder = world.egret.folder();
    for (n, names) in [(1, "a.web.test\n"), (2, "b.web.test\n")] {
        std::fs::create_dir(folder.join(format!("data{n}"))).unwrap();
        world.write(&format!("data{n}/names.txt"), names);
    }
    let lead_to = |n: u8| {
        std::os::unix::fs::symlink(format!("data{n}"), folder.join("next")).unwrap();
        std::fs::rename(folder.join("next"), folder.join("data")).unwrap();
    };
    lead_to(1);
    let config = World::config(&world.dns, world.egret.ip, "data/names.txt");
    world.write("egret.yaml", &config.replace("policy:\n", "policy:\n  watch: true\n"));
    eventually("the other file", || world.lets_out("a.web.test"));
    lead_to(2);
    eventually("the other folder", || world.lets_out("b.web.test") && !world.lets_out("a.web.test"));
    // A file that is not there yet.
    world.write("egret.yaml", &config.replace("policy:\n", "policy:\n  watch: true\n").replace("data/", "later/"));
    eventually("the missing file", || world.egret.errors().contains("later/names.txt"));
    std::fs::create_dir(folder.join("later")).unwrap();
    world.write("later/names.txt", "c.web.test\n");
    eventually("the file that came later", || world.lets_out("c.web.test"));
    // And no longer.
    world.write("egret.yaml", &config.replace("data/", "later/"));
    eventually("watching ends", || world.egret.errors().matches(DONE).count() == 5);
    world.write("later/names.txt", "a.web.test\n");
    rest();
    rest();
    rest();
    assert!(world.lets_out("c.web.test") && world.origin.count() == 0);
}

#[test]
fn a_signal_opens_the_log_again() {
    let world = controlled(false);
    let log = world.logs.path().join("access.log");
    let lines = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default().lines().count();
    assert!(!world.lets_out("b.web.test"));
    eventually("a line", || lines(&log) == 1);
    let old = log.with_extension("1");
    std::fs::rename(&log, &old).unwrap();
    world.hang_up("the access log is open again");
    assert!(!world.lets_out("b.web.test"));
    eventually("a line in the new file", || lines(&log) == 1);
    assert_eq!(lines(&old), 1);
    // What cannot be opened changes nothing.
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    world.hang_up("lines go on into the file that was open");
}
