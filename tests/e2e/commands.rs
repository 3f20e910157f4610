//! The commands as a shell sees them: what they print, and their exit codes.

use std::io::Write as _;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{eventually, own_ip, text};

pub fn egret(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_egret")).args(args).output().unwrap()
}

#[track_caller]
pub fn exits(args: &[&str], code: i32, says: &[&str]) -> String {
    let out = egret(args);
    let text = text(&out);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {text}");
    for part in says {
        assert!(text.contains(part), "{args:?} says {part:?}: {text}");
    }
    text
}

fn config(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.yaml");
    std::fs::write(&file, text).unwrap();
    let path = file.display().to_string();
    (folder, path)
}

const GOOD: &str = "listeners: [{ kind: forward, bind: \"127.0.0.1:3128\" }]\npolicy:\n  application_rules:\n    - { name: web, sources: [\"10.0.0.0/8\"], fqdns: [\"*.web.test\"], protocols: [\"https:443\"] }\n";

#[test]
fn check_tells_faults_warnings_and_peace() {
    let (_folder, good) = config(GOOD);
    exits(&["check", "--config", &good], 0, &["fine: 1 listener, 1 application rule, 0 network rules"]);
    let (_folder, odd) = config(&GOOD.replace("*.web.test", "*"));
    exits(&["check", "--config", &odd], 0, &["warning: ", ":4:", "lets every name out"]);
    exits(&["check", "--config", &odd, "--strict"], 1, &["lets every name out"]);
    let (_folder, bad) = config(&GOOD.replace("sources", "source").replace("https:443", "https:0"));
    let said = exits(
        &["check", "--config", &bad],
        2,
        &["error: ", "did you mean `sources`?", "`0` is not a port", "2 faults"],
    );
    assert!(said.contains(&format!("{bad}:4:")), "{said}");
    let json: Value = serde_json::from_slice(&egret(&["check", "--config", &bad, "--json"]).stdout).unwrap();
    assert_eq!((json["faults"].as_array().unwrap().len(), &json["faults"][0]["line"]), (2, &4.into()));
    let (_folder, pod) =
        config("listeners: [{ kind: transparent, bind: \"[::]:3129\", capture: redirect }]\npolicy: {}\n");
    exits(&["netfilter", "apply", "--config", &pod], 2, &["add --sidecar"]);
    exits(&["check", "--config", "/nowhere/egret.yaml"], 2, &["cannot read /nowhere/egret.yaml"]);
}

#[test]
fn run_refuses_what_check_refuses() {
    let ip = own_ip();
    for (text, says) in [
        ("listeners: [", "YAML"),
        ("listen: []\n", "did you mean"),
        (&GOOD.replace("listeners", "listener"), "did you mean `listeners`?"),
        (&GOOD.replace("10.0.0.0/8", "10.0.0.0/40"), "is not a CIDR"),
        (&GOOD.replace("*.web.test", "**.web.test"), "`**` is not a pattern"),
        (&GOOD.replace(":3128", ":0"), "0 is not a port"),
        (&format!("{GOOD}  mode: audit\n"), "`audit` is not available"),
        (&format!("{GOOD}admin: {{ bind: \"127.0.0.1:3128\" }}\n"), "is taken by listeners[0].bind"),
    ] {
        let (_folder, path) = config(text);
        let says = if says == "did you mean" { "unknown key `listen`" } else { says };
        exits(&["run", "--config", &path], 2, &[says]);
    }
    let taken = std::net::TcpListener::bind((ip, 3128)).unwrap();
    let (_folder, path) = config(&GOOD.replace("127.0.0.1", &ip.to_string()));
    exits(
        &["run", "--config", &path],
        1,
        &["cannot listen on", &format!("(process {}) has it; stop that one", std::process::id())],
    );
    drop(taken);
    let (_folder, path) = config(&GOOD.replace("127.0.0.1", "192.0.2.1"));
    exits(&["run", "--config", &path], 1, &["no interface of this machine has the address"]);
    let (_folder, path) =
        config(&format!("{}log: {{ output: /nowhere/log }}\n", GOOD.replace("127.0.0.1", &ip.to_string())));
    exits(&["run", "--config", &path], 1, &["cannot write the access log"]);
}

#[test]
fn a_privileged_port_without_the_right_is_explained() {
    let (folder, path) = config(&GOOD.replace("127.0.0.1:3128", &format!("{}:81", own_ip())));
    let start = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n");
    if start.trim().parse().is_ok_and(|port: u16| port <= 81) {
        return crate::support::missing("a kernel that guards ports below 1024");
    }
    let out = if root {
        let public = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), public).unwrap();
        let copy = folder.path().join("egret");
        std::fs::copy(env!("CARGO_BIN_EXE_egret"), &copy).unwrap();
        let copy = copy.display().to_string();
        crate::support::run(
            "setpriv",
            &[
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--inh-caps=-all",
                "--bounding-set=-all",
                &copy,
                "run",
                "--config",
                &path,
            ],
        )
    } else {
        egret(&["run", "--config", &path])
    };
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    assert!(text(&out).contains("CAP_NET_BIND_SERVICE"), "{}", text(&out));
}

#[test]
fn explain_answers_with_verdict_reason_and_code() {
    exits(&["explain", "https://mcr.microsoft.com"], 0, &["allow", "aks/global/registry"]);
    exits(&["explain", "https://x.hcp.westeurope.azmk8s.io"], 0, &["*.hcp.*.azmk8s.io"]);
    exits(
        &["explain", "https://x.mcr.microsoft.com"],
        1,
        &["deny", "no_rule", "mcr.microsoft.com only, not the names under it", "fqdns: [\"x.mcr.microsoft.com\"]"],
    );
    exits(&["explain", "https://data.mcr.microsoft.com"], 1, &["does not cover the bare name"]);
    exits(&["explain", "http://mcr.microsoft.com"], 1, &["port_not_allowed", "on https:443"]);
    exits(&["explain", "mcr.microsoft.com"], 0, &["allow    mcr.microsoft.com", "config   default.yaml (built in)"]);
    exits(&["explain", "HTTPS://MCR.Microsoft.COM"], 0, &["aks/global/registry"]);
    exits(&["explain", "ftp://mcr.microsoft.com"], 2, &["write https://host"]);
    exits(&["explain", "https://Bücher.example"], 1, &["fqdns: [\"xn--bcher-kva.example\"]"]);
    exits(&["explain", ""], 2, &["is not a host"]);
    exits(&["explain", "tcp://127.0.0.1:80"], 1, &["http://NAME:80; loopback addresses are closed"]);
    let said = exits(&["explain", "https://bob:hunter2@mcr.microsoft.com/"], 2, &["takes no user name"]);
    assert!(!said.contains("hunter2"), "{said}");
    exits(&["explain", "tcp://20.1.2.3:443"], 1, &["ip_literal", "egret reads the name in the bytes there"]);
    exits(&["explain", "icmp://20.1.2.3"], 1, &["protocols: [\"icmp\"]"]);
    exits(&["explain", "mcr.microsoft.com", "https://evil.test"], 1, &["allow    mcr", "deny     https://evil.test"]);
    exits(
        &["explain", "mcr.microsoft.com", "x://y", "evil.test"],
        2,
        &["allow    mcr", "deny     evil", "`x://y` is not"],
    );
    let mut piped = Command::new(env!("CARGO_BIN_EXE_egret"))
        .args(["explain", "--json", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(b"mcr.microsoft.com\n\n# a comment\nevil.test\n").unwrap();
    let out = piped.wait_with_output().unwrap();
    let verdicts = String::from_utf8(out.stdout).unwrap();
    let verdicts: Vec<Value> = verdicts.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(out.status.code(), Some(1));
    assert!(
        verdicts.len() == 2 && verdicts[0]["verdict"] == "allow" && verdicts[1]["verdict"] == "deny",
        "{verdicts:?}"
    );
    assert_eq!(verdicts[0]["config"], "default.yaml (built in)");
    exits(&["explain", "udp://mcr.microsoft.com"], 2, &["needs a port"]);
    let (_folder, path) = config(GOOD);
    exits(&["explain", "--config", &path, "--from", "10.1.2.3", "https://a.web.test"], 0, &["rule     web"]);
    exits(
        &["explain", "--config", &path, "--from", "11.1.2.3", "https://a.web.test"],
        1,
        &["source_not_allowed", "for sources 10.0.0.0/8"],
    );
    let out = egret(&["explain", "--json", "https://evil.test"]);
    let json: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(
        (&json["verdict"], &json["reason"], &json["stage"]),
        (&"deny".into(), &"no_rule".into(), &"name".into())
    );
    assert_eq!(out.status.code(), Some(1));
    exits(&["explain", "--config", "/nowhere", "https://a.test"], 2, &["cannot read"]);
}

#[test]
fn every_command_knows_its_file_from_the_environment() {
    let (_folder, path) = config(GOOD);
    let with = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_egret")).args(args).env("EGRET_CONFIG", &path).output().unwrap();
        text(&output)
    };
    assert!(with(&["check"]).contains(&format!("{path}: ")), "{}", with(&["check"]));
    let explained = with(&["explain", "--from", "10.1.2.3", "https://a.web.test"]);
    assert!(explained.contains("rule     web") && explained.contains(&format!("config   {path}")), "{explained}");
    exits(&["check"], 0, &["default.yaml (built in): 1 warning"]);
}

#[test]
fn a_sidecars_table_is_not_for_run_to_make() {
    let (_folder, path) =
        config("listeners: [{ kind: transparent, bind: \"[::]:3129\", capture: redirect }]\npolicy: {}\n");
    exits(&["run", "--netfilter", "--config", &path], 2, &["run `egret netfilter apply --sidecar`"]);
}

#[test]
fn bundles_are_listed_with_their_other_names() {
    let (_folder, path) = config(
        "listeners: [{ kind: forward, bind: \"127.0.0.1:1\" }]\npolicy: { bundles: [{ bundle: aks, location: northeurope, features: [gpu] }] }\n",
    );
    let of_file = ["aks in global at northeurope", "features: gpu", &format!("{path}: policy.bundles[0]")];
    exits(&["bundle", "show", "--config", &path], 0, &of_file);
    exits(&["bundle", "show"], 2, &["which bundle?"]);
    exits(&["bundle", "list"], 0, &["global (also public, AzureCloud", "(also policy)"]);
}

#[test]
fn schema_help_and_completions_read_well() {
    let schema: Value = serde_json::from_slice(&egret(&["schema"]).stdout).unwrap();
    assert_eq!(schema["properties"]["listeners"]["type"], "array");
    assert_eq!(schema["additionalProperties"], false);
    assert!(schema["$defs"]["ApplicationRule"]["properties"]["fqdns"]["description"].is_string());
    exits(&["--help"], 0, &["lets out only what is named", "run", "check", "explain", "schema"]);
    exits(&["--version"], 0, &[env!("CARGO_PKG_VERSION")]);
    exits(&["completions", "bash"], 0, &["_egret()"]);
    exits(&["fly"], 2, &["unrecognized subcommand"]);
}

#[test]
fn health_asks_the_running_one() {
    let ip = own_ip();
    let text = GOOD.replace("127.0.0.1", &ip.to_string())
        + &format!("admin: {{ bind: \"{ip}:9901\" }}\nhealth: {{ bind: \"0.0.0.0:19902\" }}\n");
    let text = text.replace("0.0.0.0:19902", &format!("{}:9902", own_ip()));
    let (_folder, path) = config(&text);
    exits(&["health", "--config", &path], 1, &["does not answer"]);
    let early = Command::new(env!("CARGO_BIN_EXE_egret"))
        .args(["health", "--ready", "--wait", "20s", "--config", &path])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut running = crate::support::Egret::run(&text, ip);
    exits(&["health", "--config", &path], 0, &["ok"]);
    exits(&["health", "--ready", "--config", &path], 0, &["ready"]);
    assert_eq!(crate::support::text(&early.wait_with_output().unwrap()), "ready\n");
    // Stopping, it lives and is not ready.
    let held = crate::support::connect((ip, 3128).into());
    running.signal("TERM");
    eventually("draining", || text_of_health(&path).contains("/readyz says: draining"));
    exits(&["health", "--config", &path], 0, &["ok"]);
    drop(held);
    running.wait();
}

fn text_of_health(path: &str) -> String {
    text(&egret(&["health", "--ready", "--config", path]))
}
