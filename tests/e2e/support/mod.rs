//! Roles that a test reads as a list: an egret, a DNS server, origins, clients.

pub mod crowd;
pub mod dns;
pub mod hello;
pub mod origin;

pub use crate::missing::missing;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything in a test may take before it counts as broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A loopback address that no other test has: ports on it are free, whatever runs beside.
pub fn own_ip() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    let byte = |value: u32| u8::try_from(value % 250).expect("below 250");
    Ipv4Addr::new(127, byte(pid) + 1, byte(pid / 250 + n / 250) + 1, byte(n) + 1).into()
}

/// Whether all these programs are on the machine; complains otherwise.
pub fn have(tools: &[&str]) -> bool {
    let lacking = tools.iter().find(|tool| {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {tool} || ls /usr/sbin/{tool} || ls /usr/lib/postgresql/*/bin/{tool}")])
            .output();
        !found.is_ok_and(|output| output.status.success())
    });
    lacking.inspect(|tool| missing(tool)).is_none()
}

/// A running egret.
pub struct Egret {
    child: Child,
    lines: Arc<(Mutex<Vec<Value>>, Condvar)>,
    errors: Arc<Mutex<String>>,
    told: Mutex<Vec<Value>>,
    pub ip: IpAddr,
    folder: TempDir,
}

/// Ports of every egret of the tests, on its own address.
pub const FORWARD: u16 = 3128;
pub const SNI: u16 = 8443;
pub const PLAIN_SNI: u16 = 8080;
pub const ADMIN: u16 = 9901;

impl Egret {
    /// Starts one with a policy (the YAML under `policy:`, unindented) that asks `dns`, with a forward
    /// listener, an `sni` listener for port 443 of the test's own world (`https_port`) and one for plain HTTP.
    pub fn start(dns: SocketAddr, ports: (u16, u16), policy: &str, more: &str) -> Self {
        let ip = own_ip();
        let (https, http) = ports;
        let indented: String = policy.lines().map(|line| format!("  {line}\n")).collect();
        let text = format!(
            "listeners:\n  - {{ kind: forward, bind: \"{ip}:{FORWARD}\" }}\n  \
             - {{ kind: sni, bind: \"{ip}:{SNI}\", port: {https} }}\n  \
             - {{ kind: sni, bind: \"{ip}:{PLAIN_SNI}\", port: {http} }}\n\
             dns: {{ upstreams: [\"{dns}\"], min_ttl: 0s }}\nadmin: {{ bind: \"{ip}:{ADMIN}\" }}\n{more}\npolicy:\n{indented}"
        );
        Self::run(&text, ip)
    }

    /// Starts one with a whole configuration that has its admin pages at `ip`.
    pub fn run(config: &str, ip: IpAddr) -> Self {
        Self::run_with(config, ip, &[])
    }

    /// The same, with files beside the configuration.
    pub fn run_with(config: &str, ip: IpAddr, files: &[(&str, &str)]) -> Self {
        Self::run_as(config, ip, files, &[])
    }

    /// And with more on its command line.
    pub fn run_as(config: &str, ip: IpAddr, files: &[(&str, &str)], more: &[&str]) -> Self {
        Self::run_by(&[], config, ip, files, more)
    }

    /// And started by another program, which must take its place.
    pub fn run_by(before: &[&str], config: &str, ip: IpAddr, files: &[(&str, &str)], more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let file = folder.path().join("egret.yaml");
        std::fs::write(&file, config).unwrap();
        let _ = std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755));
        let line = [before, &[env!("CARGO_BIN_EXE_egret")]].concat();
        let mut child = Command::new(line[0])
            .args(&line[1..])
            .args(["run", "--config"])
            .arg(&file)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines: Arc<(Mutex<Vec<Value>>, Condvar)> = Arc::default();
        let errors: Arc<Mutex<String>> = Arc::default();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let sink = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let record = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e} in {line}"));
                sink.0.lock().unwrap().push(record);
                sink.1.notify_all();
            }
        });
        let sink = Arc::clone(&errors);
        std::thread::spawn(move || {
            for line in BufReader::new(err).lines().map_while(Result::ok) {
                sink.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        let mut egret = Self { child, lines, errors, told: Mutex::default(), ip, folder };
        eventually("egret serves", || {
            assert!(matches!(egret.child.try_wait(), Ok(None)), "egret has ended: {}", egret.errors());
            TcpStream::connect((ip, ADMIN)).is_ok()
        });
        egret
    }

    pub fn forward(&self) -> SocketAddr {
        SocketAddr::new(self.ip, FORWARD)
    }

    pub fn sni(&self) -> SocketAddr {
        SocketAddr::new(self.ip, SNI)
    }

    pub fn plain(&self) -> SocketAddr {
        SocketAddr::new(self.ip, PLAIN_SNI)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn errors(&self) -> String {
        self.errors.lock().unwrap().clone()
    }

    pub fn records(&self) -> Vec<Value> {
        self.lines.0.lock().unwrap().clone()
    }

    /// The first record that fits, waited for.
    pub fn record(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.lines.0.lock().unwrap();
        loop {
            if let Some(found) = lines.iter().find(|line| fits(line)) {
                return found.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no record of {what} among {lines:#?}\n{}", self.errors());
            lines = self.lines.1.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// The record of the n-th connection that ended, counted from 0.
    pub fn record_number(&self, n: usize) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.lines.0.lock().unwrap();
        while lines.len() <= n {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no record number {n}\n{}", self.errors());
            lines = self.lines.1.wait_timeout(lines, left).unwrap().0;
        }
        lines[n].clone()
    }

    /// The record of the connection whose client had this local address.
    pub fn record_of(&self, client: SocketAddr) -> Value {
        // A client's port may come again within a test: a record is told once.
        let told = self.told.lock().unwrap().clone();
        let fits = |line: &Value| line["client"] == client.to_string() && !told.contains(&line["id"]);
        let record = self.record(&format!("client {client}"), fits);
        self.told.lock().unwrap().push(record["id"].clone());
        record
    }

    /// The newest record about a name.
    pub fn last(&self, name: &str) -> Value {
        self.record(name, |line| line["name"] == name);
        self.records().into_iter().rev().find(|line| line["name"] == name).unwrap()
    }

    pub fn metrics(&self) -> String {
        let mut stream = TcpStream::connect((self.ip, ADMIN)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        page
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "egret does not end");
            pause();
        }
    }
}

impl Drop for Egret {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server process that ends with its owner.
pub struct Server(pub Child);

impl Server {
    pub fn start(command: &mut Command, listens: SocketAddr) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self(child);
        eventually(&format!("{command:?} listens"), || TcpStream::connect(listens).is_ok());
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx's master passes this on to its workers.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
            pause();
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks again until it is so; the pause is not synchronisation, only politeness between questions.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        pause();
    }
}

#[allow(clippy::disallowed_methods, reason = "a test's own thread may sleep between two looks")]
pub fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// Runs a program to its end.
pub fn run(program: &str, args: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg("60").arg(program).args(args).stdin(Stdio::null());
    command.output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// Standard output and standard error as one text.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// curl with what every test wants: quiet, no environment, a bound on time.
pub fn curl(args: &[&str]) -> Output {
    let mut all = vec!["-sS", "--max-time", "50", "--noproxy", ""];
    all.extend(args);
    run("curl", &all)
}

/// A connected client with a bound on every wait.
pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Everything until the end; a reset ends it too.
pub fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return all,
            Ok(n) => all.extend_from_slice(&chunk[..n]),
        }
    }
}

/// Reads an HTTP head.
pub fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0; 1];
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Opens a tunnel by CONNECT and asserts that it stands.
pub fn tunnel(egret: &Egret, target: &str) -> TcpStream {
    let mut stream = connect(egret.forward());
    write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").unwrap();
    let head = read_head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    stream
}

/// Asserts a refusal's reason and stage in the record.
#[track_caller]
pub fn refused(record: &Value, reason: &str, stage: &str) {
    let got = (&record["verdict"], &record["reason"], &record["stage"], &record["ending"]);
    assert!(
        record["verdict"] == "deny"
            && record["reason"] == reason
            && record["stage"] == stage
            && record["ending"] == "refused",
        "expected deny {reason} at {stage}, got {got:?} in {record:#}"
    );
}

/// Asserts that a connection was let out by a rule.
#[track_caller]
pub fn allowed(record: &Value, rule: &str) {
    assert!(record["verdict"] == "allow" && record["rule"] == rule, "{record:#}");
}
