//! A cluster's API server, which clients dial by address, and the commands around the rule set.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::commands::{egret, exits};
use crate::support::dns::Dns;
use crate::support::hello::Hello;
use crate::support::origin::Recorder;
use crate::support::{ADMIN, Egret, FORWARD, allowed, connect, eventually, missing, own_ip, read_head, refused, text};

/// The record of a CONNECT to an address and, where it goes on, of a hello that shows no name.
fn nameless(egret: &Egret, to: &str) -> Value {
    let mut client = connect(egret.forward());
    let from = client.local_addr().unwrap();
    write!(client, "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").unwrap();
    if read_head(&mut client).starts_with("HTTP/1.1 200") {
        client.write_all(&Hello::nameless().record()).unwrap();
        // The recorder answers and closes; a refusal does too.
        let _ = std::io::Read::read(&mut client, &mut [0; 16]);
    }
    drop(client);
    egret.record_of(from)
}

#[test]
fn a_name_that_is_not_there_is_asked_for_no_more_often_than_others() {
    let (dns, ip) = (Dns::start(), own_ip());
    let config = format!(
        "listeners: [{{ kind: forward, bind: \"{ip}:{FORWARD}\" }}]\nadmin: {{ bind: \"{ip}:{ADMIN}\" }}\ndns: {{ upstreams: [\"{}\"] }}\nlearn: {{ refresh: 1h }}\n\
         policy: {{ network_rules: [{{ name: none, fqdns: [none.example], protocols: [\"tcp:9000\"] }}] }}\n",
        dns.address
    );
    let _egret = Egret::run(&config, ip);
    eventually("it is asked for", || dns.asked("none.example") > 0);
    // Two seconds are the pause after silence.
    (0..500).for_each(|_| crate::support::pause());
    assert!(
        dns.asked("none.example") <= 2,
        "{} questions, of which A and AAAA are one look-up",
        dns.asked("none.example")
    );
}

#[test]
fn an_api_server_is_kept_resolved_and_reached_by_address_without_a_name() {
    let (old, new, other) = (own_ip(), own_ip(), own_ip());
    if std::net::TcpListener::bind((own_ip(), 443)).is_err() {
        return missing("the right to listen on port 443");
    }
    let origins = [old, new, other].map(|ip| Recorder::closing(ip, 443, b"x"));
    let dns = Dns::start();
    dns.answer("api.hcp.westeurope.azmk8s.io", &[&old.to_string()]);
    let ip = own_ip();
    // Two bundles keep the same name, each for its own clients and with its own reach.
    let bundle = "{ bundle: aks, location: westeurope, api_server: api.hcp.westeurope.azmk8s.io";
    let config = format!(
        "listeners: [{{ kind: forward, bind: \"{ip}:{FORWARD}\" }}]\n\
         dns: {{ upstreams: [\"{}\"], max_ttl: 1s }}\nlearn: {{ refresh: 1s }}\nadmin: {{ bind: \"{ip}:{ADMIN}\" }}\npolicy:\n  bundles:\n    \
         - {bundle}, sources: [10.0.0.0/8] }}\n    \
         - {bundle}, sources: [127.0.0.0/8], addresses: [public, \"{old}/32\", \"{new}/32\"] }}\n",
        dns.address
    );
    let egret = Egret::run(&config, ip);
    let opens = |ip: std::net::IpAddr| nameless(&egret, &format!("{ip}:443"))["verdict"] == "allow";
    eventually("the API server's name is resolved", || opens(old));
    allowed(&nameless(&egret, &format!("{old}:443")), "aks/global/api-server-address#2");
    assert!(origins[0].count() > 0);

    // Nothing but its addresses, and nothing but its port.
    let record = nameless(&egret, &format!("{other}:443"));
    refused(&record, "no_sni", "name");
    assert!(
        record["nearest"].as_str().unwrap().contains("kubernetes.azure.com/set-kube-service-host-fqdn"),
        "{record}"
    );
    refused(&nameless(&egret, &format!("{old}:9000")), "no_rule", "network");

    // It moves: the new address opens, the old one is remembered.
    dns.answer("api.hcp.westeurope.azmk8s.io", &[&new.to_string()]);
    eventually("the new address is known", || opens(new));
    assert!(opens(old));

    // An answer that may not be dialled opens nothing.
    let asked = dns.asked("api.hcp.westeurope.azmk8s.io");
    dns.answer("api.hcp.westeurope.azmk8s.io", &[&other.to_string()]);
    eventually("the name is asked for again", || dns.asked("api.hcp.westeurope.azmk8s.io") > asked + 4);
    refused(&nameless(&egret, &format!("{other}:443")), "no_sni", "name");
    assert_eq!(origins[2].count(), 0);
    assert!(opens(new));

    // By name it is judged by name, and no other cluster's is open.
    let mut client = connect(egret.forward());
    write!(
        client,
        "CONNECT other.hcp.westeurope.azmk8s.io:443 HTTP/1.1\r\nHost: other.hcp.westeurope.azmk8s.io:443\r\n\r\n"
    )
    .unwrap();
    refused(&egret.record_of(client.local_addr().unwrap()), "no_rule", "name");
}

fn json(args: &[&str]) -> Value {
    let out = egret(args);
    assert!(out.status.success(), "{}", text(&out));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn bundles_are_listed_shown_and_compared() {
    exits(&["bundle", "list"], 0, &["aks", "china, global, usgov", "azure-policy", "2023-06-13", "2026-06-18"]);
    let list = json(&["bundle", "list", "--format", "json"]);
    assert_eq!(list["bundles"][0]["features"].as_array().unwrap().len(), 20);
    let shown = exits(
        &["bundle", "show", "aks", "--cloud", "global", "--location", "westeurope", "--features", "gpu,dev-spaces"],
        0,
        &[
            "opens    *.hcp.westeurope.azmk8s.io on https:443",
            "its ALPN must arrive as sent",
            "nvidia.github.io",
            "printed  azds-..azds.io",
            "aks/global/tunnel-udp              not needed with konnectivity",
            "warning: --features[1]: dev-spaces is in no document since 2023-03-09",
            "nothing needs it; feature managed-disks opens it",
        ],
    );
    assert!(!shown.contains("cx.prod.service"), "another cloud's names");
    let data = json(&["bundle", "show", "aks", "--location", "westeurope", "--format", "json"]);
    let rules = data["rules"].as_array().unwrap();
    let registry = rules.iter().find(|r| r["rule"] == "aks/global/registry").unwrap();
    assert_eq!((&registry["fqdns"][0], &registry["need"]), (&"mcr.microsoft.com".into(), &"required".into()));
    assert!(rules.iter().all(|r| r["purpose"].as_str().unwrap().len() > 8));

    let diff = json(&["bundle", "diff", "aks", "2023-06-13", "latest", "--format", "json"]);
    let has = |kind: &str, cloud: &str, id: &str| {
        diff[kind].as_array().unwrap().iter().any(|c| c["cloud"] == cloud && c["id"] == id)
    };
    assert!(
        has("added", "global", "binaries")
            && has("added", "usgov", "binaries")
            && has("changed", "global", "monitor-prometheus")
    );
    assert!(!has("added", "global", "registry") && !has("removed", "global", "registry"));
    exits(
        &["bundle", "diff", "aks", "2020-01-01", "2023-03-09"],
        0,
        &["removed  global  dev-spaces", "- cloudflare.docker.com"],
    );
    exits(
        &["bundle", "diff", "aks", "2023-07-01", "latest"],
        0,
        &["note: the edition in force on 2023-07-01 is that of 2023-06-13"],
    );
    exits(&["bundle", "diff", "aks", "latest", "latest"], 0, &["nothing changed"]);
    exits(
        &["bundle", "diff", "aks", "2018-01-01", "latest"],
        2,
        &["no edition as old as 2018-01-01; the first one is 2019-05-06"],
    );
    exits(
        &["bundle", "diff", "aks", "june", "latest"],
        2,
        &["`june` is not a date; write it as 2023-06-13, or latest"],
    );
    exits(&["bundle", "show", "ask"], 2, &["there is no bundle `ask` (did you mean `aks`?)"]);
    exits(&["bundle", "show", "aks", "--cloud", "chna"], 2, &["did you mean `china`?"]);
    exits(&["bundle", "show", "aks", "--location", "westeurop"], 2, &["did you mean `westeurope`?"]);
    exits(
        &["bundle", "show", "aks", "--cloud", "usgov", "--location", "westeurope"],
        2,
        &["no location `westeurope` in this cloud"],
    );
    exits(&["bundle", "show", "aks", "--features", "azure-polcy"], 2, &["did you mean `azure-policy`?"]);
    exits(&["bundle", "show", "aks", "--edition", "2023-02-30"], 2, &["`2023-02-30` is not a date"]);
}

#[test]
fn what_show_prints_as_yaml_is_a_policy_that_opens_the_same() {
    let out = egret(&[
        "bundle",
        "show",
        "aks",
        "--location",
        "westeurope",
        "--features",
        "gpu,azure-monitor",
        "--format",
        "yaml",
    ]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.yaml");
    let policy = String::from_utf8(out.stdout).unwrap();
    std::fs::write(&file, format!("listeners: [{{ kind: forward, bind: \"127.0.0.1:3128\" }}]\n{policy}")).unwrap();
    let file = file.display().to_string();
    exits(&["check", "--config", &file], 0, &["application rules"]);
    for (target, code) in [
        ("https://nvidia.github.io", 0),
        ("https://x.ods.opinsights.azure.com", 0),
        ("udp://ntp.ubuntu.com:123", 0),
        ("https://gcr.io", 1),
    ] {
        exits(&["explain", "--config", &file, target], code, &[]);
    }
}

#[test]
fn the_proxy_setting_is_what_aks_takes() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, "-----BEGIN CERTIFICATE-----\n").unwrap();
    let ca: &'static str = ca.display().to_string().leak();
    let show = ["bundle", "show", "aks", "--location", "westeurope", "--format", "aks-http-proxy"];
    let with = |more: &[&'static str]| [&show[..], more].concat();
    let setting =
        json(&with(&["--proxy", "http://10.0.0.4:3128", "--no-proxy", "10.224.0.0/16,corp.example.com", "--ca", ca]));
    assert_eq!(
        (&setting["httpProxy"], &setting["httpsProxy"]),
        (&"http://10.0.0.4:3128".into(), &"http://10.0.0.4:3128".into())
    );
    assert_eq!(setting["trustedCa"], "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg==");
    let around: Vec<&str> = setting["noProxy"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(
        ["localhost", "168.63.129.16", "10.224.0.0/16", "corp.example.com"].iter().all(|x| around.contains(x)),
        "{around:?}"
    );
    exits(&with(&["--proxy", "https://10.0.0.4:3128"]), 2, &["does not begin with http://"]);
    exits(&with(&["--no-proxy", "*.example.com"]), 2, &["AKS takes no `*`"]);
    exits(&with(&["--ca", "/nowhere"]), 2, &["cannot read /nowhere"]);
}

#[test]
fn init_makes_a_checked_configuration_from_options_or_answers() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.yaml").display().to_string();
    let options = [
        "init",
        "aks",
        "--location",
        "westeurope",
        "--subnets",
        "10.224.0.0/16",
        "--features",
        "gpu",
        "--registries",
        "myregistry",
        "--api-server",
        "mine-1a2b.hcp.westeurope.azmk8s.io",
    ];
    let commands = exits(
        &[&options[..], &["--output", &file]].concat(),
        0,
        &[
            "--outbound-type userDefinedRouting",
            "--api-server-authorized-ip-ranges $EGRESS_IP/32",
            "route-table create",
            "--next-hop-type VirtualAppliance",
        ],
    );
    // The route is there before the cluster that needs it, and the way out before the route.
    let at = |what: &str| commands.find(what).unwrap();
    assert!(at("vm create") < at("route-table create") && at("vnet subnet update") < at("aks create"));
    exits(&["check", "--config", &file, "--strict"], 0, &["fine"]);
    exits(
        &["explain", "--config", &file, "--from", "10.224.0.9", "https://mine-1a2b.hcp.westeurope.azmk8s.io"],
        0,
        &[],
    );
    exits(
        &["explain", "--config", &file, "--from", "10.224.0.9", "https://other-1a2b.hcp.westeurope.azmk8s.io"],
        1,
        &["no_rule"],
    );
    exits(
        &["explain", "--config", &file, "--from", "10.224.0.9", "https://myregistry.westeurope.data.azurecr.io"],
        0,
        &["registry-myregistry"],
    );
    exits(
        &["explain", "--config", &file, "--from", "10.9.0.9", "https://mcr.microsoft.com"],
        1,
        &["source_not_allowed"],
    );
    exits(&[&options[..], &["--output", &file]].concat(), 2, &["is there already; give a place that is free"]);
    // Without a file, one text: the configuration, and the commands as comments.
    let out = egret(&options);
    std::fs::write(&file, &out.stdout).unwrap();
    exits(&["check", "--config", &file, "--strict"], 0, &["fine"]);
    exits(
        &["init", "aks", "--location", "westeurop", "--subnets", "10.224.0.0/16"],
        2,
        &["did you mean `westeurope`?"],
    );
    exits(
        &["init", "aks", "--location", "westeurope", "--subnets", "10.225.0.0/16"],
        2,
        &["egret a subnet of its own"],
    );

    let mut child = Command::new(env!("CARGO_BIN_EXE_egret"))
        .args(["init", "aks"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"china\nchinaeast2\n10.1.0.0/16, 10.2.0.0/16\n\nazure-policy\n\n").unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    std::fs::write(&file, &out.stdout).unwrap();
    exits(
        &["explain", "--config", &file, "--from", "10.2.0.9", "https://data.policy.azure.cn"],
        0,
        &["aks/china/azure-policy"],
    );
    exits(&["init", "aks"], 2, &["no answer; say it with options: --location"]);
}
