use std::path::Path;

use super::check::Depth;
use super::*;
use crate::proxy::listen::settings::ListenerKind;
use egret_core::rule::pattern::Pattern;
use egret_core::wire::Expected;

const BASE: &str = "listeners: [{ kind: forward, bind: \"127.0.0.1:3128\" }]\n";

fn parse(text: &str) -> Result<Settings, ConfigError> {
    Settings::parse(text, "t.yaml", Path::new("."))
}

/// The fault's place and path, and a piece of what it says.
#[track_caller]
fn fault(text: &str, expected: &[(&str, &str)]) {
    let error = parse(text).expect_err(text);
    let got: Vec<String> = error.faults.iter().map(|f| f.at("t")).collect();
    assert_eq!(got.len(), expected.len(), "{got:#?}");
    for (got, (place, says)) in got.iter().zip(expected) {
        assert!(got.starts_with(&format!("t:{place}: ")) && got.contains(says), "{got:?} at {place} says {says:?}");
    }
}

/// Every configuration that comes with egret, with its file: those of `config`, and those inside manifests of `deploy`.
fn shipped() -> Vec<(String, String)> {
    let yaml = |folder: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let paths = paths.filter(|path| path.extension().is_some_and(|e| e == "yaml"));
        paths.map(|path| (path.display().to_string(), std::fs::read_to_string(&path).unwrap())).collect::<Vec<_>>()
    };
    let inside = |(path, text): (String, String)| {
        let (_, block) = text.split_once("  egret.yaml: |\n").unwrap_or_else(|| panic!("no configuration in {path}"));
        let lines = block.lines().map_while(|line| line.strip_prefix("    "));
        (path, lines.map(|line| format!("{line}\n")).collect())
    };
    yaml("config").into_iter().chain(yaml("deploy").into_iter().map(inside)).collect()
}

#[test]
fn every_file_that_comes_with_egret_is_clean() {
    let shipped = shipped();
    assert!(shipped.len() >= 6, "default, next-hop, reference, sidecar and two manifests");
    for (path, text) in shipped {
        let settings = Settings::from_text(&text, &path, Path::new("config"), Depth::Lint).unwrap();
        let warnings: Vec<String> = settings.warnings.iter().map(|w| w.at(&path)).collect();
        if path.ends_with("default.yaml") {
            let any = "`any` opens the names of every region";
            assert!(warnings.len() == 1 && warnings[0].contains(any), "{warnings:?}");
        } else {
            assert_eq!(warnings, Vec::<String>::new());
        }
    }
}

#[test]
fn a_pods_questions_come_to_loopback() {
    let of = |bind: &str| {
        let text = format!(
            "listeners:\n  - {{ kind: transparent, bind: \"[::]:3129\", capture: redirect }}\n  - {{ kind: dns, bind: \"{bind}:5353\" }}\n"
        );
        said(&text).into_iter().filter(|line| line.contains("loopback")).collect::<Vec<_>>()
    };
    assert_eq!([of("[::]"), of("127.0.0.1")], [Vec::<String>::new(), Vec::new()]);
    assert!(matches!(&*of("10.1.2.3"), [one] if one.starts_with("listeners[1].bind: ")), "{:?}", of("10.1.2.3"));
}

/// The warnings and notes of a text, with their key paths.
fn said(text: &str) -> Vec<String> {
    let settings = Settings::from_text(text, "t", Path::new("."), Depth::Lint).expect(text);
    let said = settings.warnings.iter().chain(&settings.notes);
    said.map(|fault| format!("{}: {}", fault.path, fault.message)).collect()
}

#[test]
fn what_a_next_hop_would_not_do_is_said() {
    const TPROXY: &str = "{ kind: transparent, bind: \"[::]:3129\", capture: tproxy }";
    let hop = |keys: &str, more: &str| {
        format!(
            "listeners: [{TPROXY}]\nnetfilter: {{ clients: [10.224.0.0/16], {keys} }}\nadmin: {{ bind: \"127.0.0.1:9901\" }}\n\
             health: {{ bind: \"[::]:9902\" }}\n{more}\n"
        )
    };
    fault(&format!("listeners: [{TPROXY}]\n"), &[("1:62", "passes it unjudged; write netfilter")]);
    let second = TPROXY.replace("[::]:3129", "10.0.0.1:3130");
    let two = hop("", "").replace(TPROXY, &format!("{TPROXY}, {second}"));
    fault(&two, &[("1:99", "led to [::]:3129 already, and to one listener only")]);
    fault(&hop("required: false", ""), &[("2:50", "never serves without its table")]);
    let dnat = |port: &str, keys: &str| format!("{{ protocol: \"{port}\", to: \"10.224.0.10:80\"{keys} }}");
    for (port, says) in [("tcp:3129", "listeners[0].bind"), ("tcp:9901", "admin.bind"), ("tcp:9902", "health.bind")] {
        let text = hop(&format!("dnat: [{}]", dnat(port, "")), "");
        fault(&text, &[("2:59", &format!("is {says}, whose connections would go to the client instead"))]);
    }
    let twice = |a: &str, b: &str| hop(&format!("dnat: [{}, {}]", dnat("tcp:443", a), dnat("tcp:443", b)), "");
    fault(&twice("", ", sources: [20.1.0.0/16]"), &[("2:106", "netfilter.dnat[0] already forwards this port")]);
    assert_eq!(said(&twice(", sources: [20.2.0.0/16]", ", sources: [20.1.0.0/16]")).len(), 1, "no rule, nothing else");

    let rule = |keys: &str| {
        let rule = format!("{{ fqdns: [a.example], protocols: [\"https:443\"], {keys} }}");
        format!("policy: {{ application_rules: [{rule}] }}")
    };
    let one = |text: &str, path: &str, says: &str| {
        let said = said(text);
        assert!(said.len() == 1 && said[0].starts_with(&format!("{path}: ")) && said[0].contains(says), "{said:?}");
    };
    let fine = rule("");
    assert_eq!(said(&hop("", &fine)), [""; 0], "only clients come here, so rules need no sources");
    one(&hop(&format!("dnat: [{}]", dnat("tcp:22", "")), &fine), "netfilter.dnat[0].protocol", "SSH to this machine");
    let pool = format!("{fine}\nupstream: {{ sources: [10.0.0.4] }}");
    one(&hop("snat: none", &pool), "upstream.sources", "netfilter.snat is none");
    let elsewhere = rule("sources: [10.224.1.0/24, 10.225.0.0/16]");
    one(&hop("", &elsewhere), "policy.application_rules[0].sources[1]", "in none of netfilter.clients");
    one(&hop("interfaces: [absent0]", &fine), "netfilter.interfaces[0]", "no interface absent0");
}

#[test]
fn paths_have_no_variables() {
    fault(&format!("{BASE}log: {{ output: \"${{LOGS}}/access.log\" }}\n"), &[("2:16", "write the path itself")]);
    fault(&format!("{BASE}control: {{ socket: \"{{{{ run }}}}/s.sock\" }}\n"), &[("2:20", "write the path itself")]);
    for path in ["@egret", "~/s.sock", "", "run/"] {
        fault(&format!("{BASE}control: {{ socket: \"{path}\" }}\n"), &[("2:20", "is not a file's path")]);
    }
    fault(&format!("{BASE}control: {{ socket: \"/{}\" }}\n", "x".repeat(110)), &[("2:20", "write a shorter path")]);
}

#[test]
fn what_opens_more_or_less_than_it_seems_is_said() {
    let rule =
        |keys: &str| format!("{BASE}policy: {{ application_rules: [{{ {keys}, protocols: [\"https:443\"] }}] }}\n");
    for (keys, says) in [
        ("fqdns: [a.example], addresses: [\"0.0.0.0/0\"]", "0.0.0.0/0 opens public addresses only"),
        (
            "fqdns: [\"*.a.example\"], addresses: [169.254.169.254/32]",
            "a DNS record for any name that matches `*.a.example`",
        ),
    ] {
        let said = said(&rule(keys));
        assert!(said.len() == 1 && said[0].contains(says), "{said:?}");
    }
    assert_eq!(said(&rule("fqdns: [a.example], addresses: [169.254.169.254/32]")), [""; 0]);
    for (bind, is_said) in [("127.0.0.1", false), ("10.0.0.4", false), ("20.1.2.3", true), ("[::]", true)] {
        let text = format!("{}admin: {{ bind: \"{bind}:9901\" }}\n", rule("fqdns: [a.example]"));
        assert_eq!(said(&text).iter().any(|said| said.starts_with("admin.bind: ")), is_said, "{bind}");
    }
}

#[test]
fn the_reference_explains_every_key_of_the_schema() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/reference.yaml")).unwrap();
    let schema = schema();
    let mut keys = Vec::new();
    collect(&schema, &mut keys);
    assert!(keys.len() > 40, "{keys:?}");
    for key in keys {
        assert!(text.contains(&format!("{key}:")), "config/reference.yaml does not show `{key}`");
    }
}

fn collect(schema: &serde_json::Value, keys: &mut Vec<String>) {
    let Some(map) = schema.as_object() else { return };
    if let Some(properties) = map.get("properties").and_then(|p| p.as_object()) {
        keys.extend(properties.keys().cloned());
    }
    map.values().for_each(|inner| collect(inner, keys));
}

#[test]
fn all_faults_come_at_once_with_their_places() {
    fault(
        &format!(
            "{BASE}limits: {{ hello: 64 KB ish, peek: 5, idel: 4h }}\npolicy:\n  mode: enforced\n  application_rules:\n    - fqdn: [a.example]\n"
        ),
        &[
            ("2:18", "limits.hello: `64 KB ish` is not a size"),
            ("2:35", "limits.peek: a number stands here; write a text"),
            ("2:38", "unknown key `idel`; did you mean `idle`?"),
            ("4:9", "`enforced` is none of the possible words; did you mean `enforce`?"),
            ("6:7", "unknown key `fqdn`; did you mean `fqdns`?"),
        ],
    );
    fault(
        &format!(
            "{BASE}limits: {{ hello: much, idle: 0s, keepalive: 4 h o u r s }}\nown_addresses: [10.0.0.0/33]\n\
             policy:\n  application_rules:\n    - {{ fqdns: [\"https://a.example\", \"b.example\"], protocols: [\"https:0\", \"udp:22\"] }}\n"
        ),
        &[
            ("2:18", "`much` is not a size"),
            ("2:30", "a limit of zero"),
            ("2:45", "`4 h o u r s` is not a duration"),
            ("3:17", "`10.0.0.0/33` is not a CIDR"),
            ("6:17", "application_rules[0].fqdns[0]: a pattern is a name only; write `a.example`"),
            ("6:64", "`0` is not a port"),
            ("6:75", "write it into a network rule, or write https:22 here"),
        ],
    );
}

#[test]
fn a_fault_of_shape_hides_none_of_meaning() {
    fault(
        "listeners:\n  - { kind: foward, bind: \"127.0.0.1:1\" }\n  - { kind: forward, bind: nowhere }\nadmin: {}\nlog: { format: xml }\npolicy:\n  application_rules:\n    - { fqdns: [1], protocols: [\"https:443\"] }\n    - { fqdns: [\"**.x\"], protocols: [\"https:443\"], ech: inner }\n",
        &[
            ("2:13", "did you mean `forward`?"),
            ("3:28", "not an address with a port"),
            ("4:8", "the key `bind` is missing"),
            ("5:16", "write `json` or `text` or `auto`"),
            ("8:17", "a number stands here; write a text"),
            ("9:17", "`**` is not a pattern"),
            ("9:57", "write `outer` or `deny`"),
        ],
    );
}

#[test]
fn a_key_with_nothing_behind_it_is_a_fault_and_not_left_out() {
    for (key, listener, rule) in [
        ("auth", "auth: ", ""),
        ("tls", "tls: ", ""),
        ("client_ca", "tls: { certificate: a, key: b, client_ca: }", ""),
        ("proxy_protocol", "proxy_protocol: ", ""),
        ("port", "port: ", ""),
        ("protocol", "protocol: ", ""),
        ("clients", "", "clients: "),
        ("sources", "", "sources: "),
        ("ech", "", "ech: "),
        ("alpn", "", "alpn: "),
        ("paths", "", "paths: "),
        ("addresses", "", "addresses: "),
    ] {
        let text = format!(
            "listeners:\n  - {{ kind: sni, bind: \"127.0.0.1:1\", {listener} }}\npolicy:\n  application_rules:\n    - {{ fqdns: [a.example], protocols: [\"https:443\"], {rule} }}\nlimits: {{ idle: }}\nadmin:\n"
        );
        let faults = parse(&text).unwrap_err().faults;
        for key in [key, "idle", "admin"] {
            let told =
                faults.iter().find(|fault| fault.path.ends_with(key)).map(|fault| &*fault.message).unwrap_or_default();
            assert!(told.starts_with("nothing stands here; write "), "{key}: {faults:#?}");
        }
    }
}

#[test]
fn the_text_itself_can_be_wrong() {
    fault("listeners: [\n", &[("1:12", "YAML")]);
    fault("a: 1\na: 2\n", &[("2:1", "duplicate")]);
    fault("", &[("1:1", "nothing stands here; write a group of keys")]);
    fault("- 1\n", &[("1:1", "a list stands here")]);
    fault("a: [*.github.com]\n", &[("1:5", "quote patterns that begin with `*`")]);
    fault("{}\n", &[("1:1", "the key `listeners` is missing")]);
    let error = Settings::load(Path::new("/nowhere/egret.yaml")).unwrap_err().to_string();
    assert!(error.contains("cannot read /nowhere/egret.yaml"), "{error}");
}

#[test]
fn answering_dns_clients_takes_a_listener_and_servers_other_than_itself() {
    let forward = "listeners: [{ kind: forward, bind: \"127.0.0.1:1\" }]\n";
    fault(&format!("{forward}dns: {{ local_ranges: [10.0.0.0/8] }}\n"), &[("2:22", "there is no `dns` listener")]);
    fault(&format!("{forward}learn: {{ floor: 1h }}\n"), &[("2:17", "there is no `dns` listener")]);
    let wild = "policy: { network_rules: [{ fqdns: [\"*.a.example\"], protocols: [\"tcp:9000\"] }] }\n";
    fault(&format!("{forward}{wild}"), &[("2:37", "add a `dns` listener that they ask")]);
    let dns = "listeners: [{ kind: dns, bind: \"127.0.0.1:53\" }]\n";
    assert!(Settings::parse(&format!("{dns}{wild}"), "t", Path::new("/")).is_ok());
    fault(&format!("{dns}dns: {{ upstreams: [10.0.0.1, 127.0.0.1] }}\n"), &[("2:30", "it would ask itself")]);
    let all = "listeners: [{ kind: dns, bind: \"[::]:53\" }]\n";
    fault(&format!("{all}dns: {{ zones: {{ a.example: [\"::1\"] }} }}\n"), &[("2:29", "it would ask itself")]);
    fault(
        &format!("{dns}dns: {{ hosts: {{ \"*.a.example\": [10.0.0.1], a.example: [], b.example: [here] }} }}\n"),
        &[("2:32", "not a name in full"), ("2:55", "there is no address"), ("2:71", "`here` is not an address")],
    );
    fault(
        &format!("{dns}dns: {{ types: [txt, ANY] }}\n"),
        &[("2:16", "in capitals"), ("2:21", "not for records of one kind")],
    );
}

#[test]
fn synthetic_addresses_need_who_takes_them_and_a_place_to_be_kept() {
    let all = "listeners: [{ kind: dns, bind: \"[::]:53\" }, { kind: transparent, bind: \"[::]:3129\", capture: redirect }]\n";
    let state = "learn: { state_dir: state }\n";
    let pool = |text: &str| format!("{all}{state}dns: {{ steer: {text} }}\n");
    let steered = |text: &str| parse(&pool(text)).unwrap().nameserver.steer;
    let usual = steered("true").unwrap();
    assert_eq!((usual.pool.size(), usual.pool.nets().count()), (65_534, 2));
    assert_eq!(steered("false"), None);
    assert_eq!(steered("{ pool: 198.19.0.0/20 }").unwrap().pool.size(), 4094);
    fault(&pool("{ pool: 20.0.0.0/16 }"), &[("3:23", "has public addresses")]);
    fault(&pool("{ pool: 198.18.0.0/30 }"), &[("3:23", "write a length from 8 to 28")]);
    fault(
        &pool("{ pool6: 198.18.0.0/16 }"),
        &[("3:15", "each in its place"), ("3:24", "write a length from 64 to 124")],
    );
    fault(&format!("{all}dns: {{ steer: true }}\n"), &[("2:15", "write `learn.state_dir`")]);
    fault(&format!("{all}{state}fleet: true\ndns: {{ steer: true }}\n"), &[("4:15", "instances of a fleet")]);
    let alone = "listeners: [{ kind: dns, bind: \"[::]:53\" }]\n";
    let asks = format!("{alone}learn: {{ key: client }}\n");
    assert!(parse(&asks).unwrap().nameserver.opens_for_asker);
    fault(&format!("{asks}dns: {{ forwarders: [10.0.0.1] }}\n"), &[("2:15", "would open for the forwarder alone")]);
    let wild = "policy: { network_rules: [{ fqdns: [\"*.a.example\"], protocols: [\"tcp:9000\"] }] }\n";
    assert!(parse(&format!("{alone}{wild}")).is_ok());
    fault(&format!("{alone}fleet: true\n{wild}"), &[("3:37", "each other's answers yet; write exact names")]);
    fault(&format!("{alone}{state}dns: {{ steer: true }}\n"), &[("3:15", "there is no `transparent` listener")]);
    let forward = "listeners: [{ kind: forward, bind: \"127.0.0.1:1\" }, { kind: transparent, bind: \"[::]:3129\", capture: redirect }]\n";
    fault(&format!("{forward}{state}dns: {{ steer: true }}\n"), &[("3:15", "there is no `dns` listener")]);
}

#[test]
fn listeners_are_checked() {
    fault(
        "listeners: [{ kind: , bind: \"127.0.0.1:1\" }]\n",
        &[("1:19", "nothing stands here; write `forward` or `sni`")],
    );
    fault(
        "listeners: [{ kind: sni, bind: \"127.0.0.1:1\", port: 9999999999999999999 }]\n",
        &[("1:53", "out of range")],
    );
    fault("listeners: []\n", &[("1:12", "there is no listener")]);
    fault("listeners: [{ kind: forward, bind: \"127.0.0.1:0\" }]\n", &[("1:36", "0 is not a port")]);
    fault("listeners: [{ kind: forward, bind: localhost }]\n", &[("1:36", "not an address with a port")]);
    fault("listeners: [{ kind: proxy, bind: \"127.0.0.1:1\" }]\n", &[("1:21", "none of the possible words")]);
    fault("listeners: [{ kind: forward, bind: \"127.0.0.1:1\", port: 443 }]\n", &[("1:57", "remove it")]);
    fault("listeners: [{ kind: dns, bind: \"127.0.0.1:1\", port: 443 }]\n", &[("1:53", "DNS has no port of its own")]);
    fault(
        "listeners: [{ kind: dns, bind: \"127.0.0.1:1\", add_headers: [via] }]\n",
        &[("1:60", "DNS clients send none, and read none")],
    );
    fault(
        "listeners: [{ kind: forward, bind: \"127.0.0.1:1\", protocol: http }]\n",
        &[("1:61", "learns the protocol from its clients; remove it")],
    );
    fault("listeners: [{ kind: sni, bind: \"127.0.0.1:1\", protocol: tls }]\n", &[("1:57", "write `https` or `http`")]);
    let kind = |more: &str| {
        let listener = format!("{{ kind: sni, bind: \"127.0.0.1:1\"{more} }}");
        parse(&format!("listeners: [{listener}]\n")).unwrap().listeners.remove(0).kind
    };
    assert_eq!(kind(""), ListenerKind::Sni { port: 443, speaks: Expected { tls: true, http: true } });
    assert_eq!(kind(", protocol: http"), ListenerKind::Sni { port: 80, speaks: Expected { tls: false, http: true } });
    fault("listeners: [{ kind: sni, bind: \"127.0.0.1:1\", port: 0 }]\n", &[("1:53", "out of range")]);
    fault("listeners: [{ kind: sni, bind: \"127.0.0.1:1\", port: 70000 }]\n", &[("1:53", "out of range")]);
    fault(
        "listeners: [{ kind: sni, bind: \"127.0.0.1:1\" }, { kind: forward, bind: \"0.0.0.0:1\" }]\nadmin: { bind: \"[::]:1\" }\n",
        &[("1:72", "taken by listeners[0].bind"), ("2:16", "taken by listeners[0].bind")],
    );
}

#[test]
fn what_a_listener_asks_of_clients_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let signed = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(["proxy.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let ((certificate, key), (_, other)) = (signed(), signed());
    write("proxy.pem", &certificate);
    write("proxy.key", &key);
    write("other.key", &other);
    write("users", "alice:$2y$05$DXv7v4to5HpPR0uKRPDUMOdxNeQAecGHCYLUWjtLLxmTFy3JWhExq\n");
    write("plain", "\nalice:secret\n");
    let checked = |bind: &str, keys: &str| {
        let text = format!(
            "listeners:\n  - {{ kind: forward, bind: \"{bind}\", {keys} }}\npolicy:\n  application_rules:\n    - {{ fqdns: [a.example], protocols: [\"https:443\"], clients: [\"user:alice\"] }}\n"
        );
        check::settings(&text, folder.path(), Depth::Lint, &mut Vec::new())
    };
    let good = "tls: { certificate: proxy.pem, key: proxy.key, client_ca: proxy.pem }, auth: { users_file: users }";
    let settings = checked("0.0.0.0:1", good).unwrap();
    assert_eq!(settings.warnings, []);
    for (keys, path, says) in [
        ("tls: { certificate: proxy.pem }", "listeners[0].tls", "the key `key` is missing"),
        ("tls: { certificate: none, key: proxy.key }", "listeners[0].tls.certificate", "cannot read"),
        ("tls: { certificate: proxy.key, key: proxy.key }", "listeners[0].tls.certificate", "holds no certificate"),
        ("tls: { certificate: proxy.pem, key: proxy.pem }", "listeners[0].tls.key", "holds no private key"),
        ("tls: { certificate: proxy.pem, key: other.key }", "listeners[0].tls.key", "is not the key of"),
        (
            "tls: { certificate: proxy.pem, key: proxy.key, client_ca: users }",
            "listeners[0].tls.client_ca",
            "no certificate",
        ),
        ("auth: { users_file: plain }", "listeners[0].auth.users_file", "plain:2 has a hash that is neither"),
        ("auth: { users_file: none }", "listeners[0].auth.users_file", "cannot read"),
        ("proxy_protocol: { v2: false, from: [10.0.0.4] }", "listeners[0].proxy_protocol.v2", "write true"),
        ("proxy_protocol: { v2: true, from: [] }", "listeners[0].proxy_protocol.from", "the list is empty"),
        ("proxy_protocol: { v2: true, from: [\"::/0\"] }", "listeners[0].proxy_protocol.from[0]", "any address"),
        ("proxy_protocol: { from: [10.0.0.4] }", "listeners[0].proxy_protocol", "`v2` is missing"),
        ("add_headers: [forwarded]", "listeners[0].add_headers[0]", "write `via` or `x-forwarded-for`"),
    ] {
        let faults = checked("127.0.0.1:1", keys).unwrap_err();
        let told = faults.iter().find(|fault| fault.path == path).map(|fault| &*fault.message).unwrap_or_default();
        assert!(faults.len() == 1 && told.contains(says) && !told.contains("secret"), "{keys}: {faults:?}");
    }
    let odd = |bind: &str, keys: &str| {
        let warnings = checked(bind, keys).unwrap().warnings;
        warnings.iter().map(|warning| format!("{}: {}", warning.path, warning.message)).collect::<Vec<_>>().join("\n")
    };
    assert!(odd("0.0.0.0:1", "auth: { users_file: users }").contains("listeners[0].auth: passwords cross"));
    assert_eq!(odd("127.0.0.1:1", "auth: { users_file: users }"), "");
    let nobody = odd("127.0.0.1:1", "add_headers: []");
    assert!(
        nobody.contains("policy.application_rules[0].clients[0]: no client can have this name: there is no such user"),
        "{nobody}"
    );
    let named = |name: &str, listener: &str| {
        let text = format!(
            "listeners:\n  - {{ kind: forward, bind: \"127.0.0.1:1\", {listener} }}\npolicy:\n  application_rules:\n    - {{ fqdns: [a.example], protocols: [\"https:443\"], clients: [\"{name}\"] }}\n"
        );
        let settings = check::settings(&text, folder.path(), Depth::Lint, &mut Vec::new()).unwrap();
        settings.warnings.first().map(|warning| warning.message.clone()).unwrap_or_default()
    };
    let (users, mutual) =
        ("auth: { users_file: users }", "tls: { certificate: proxy.pem, key: proxy.key, client_ca: proxy.pem }");
    for (name, listener, says) in [
        ("user:alice", users, ""),
        ("alice", users, "users are written user:NAME"),
        ("user:bob", users, "no such user"),
        ("spiffe://x", users, "no listener has `tls.client_ca`"),
        ("spiffe://X", mutual, ""),
        ("An Agent", mutual, ""),
        ("Agent.Example", mutual, "lower case"),
        ("user:alice", mutual, "no such user"),
    ] {
        let told = named(name, listener);
        assert!(told.is_empty() == says.is_empty() && told.contains(says), "{name} {listener}: {told}");
    }
    fault(
        &format!("{BASE}policy: {{ application_rules: [{{ action: deny, fqdns: [a.example], clients: [x] }}] }}\n"),
        &[("2:76", "a deny rule takes no conditions")],
    );
    fault(
        "listeners: [{ kind: sni, bind: \"127.0.0.1:1\", auth: { users_file: x } }]\n",
        &[("1:53", "could not answer; remove it")],
    );
    fault(
        &format!(
            "{BASE}policy: {{ network_rules: [{{ destinations: [192.0.2.0/24], protocols: [\"tcp:22\"], clients: [\"*\", \"\"] }}, {{ destinations: [192.0.2.0/24], protocols: [\"tcp:22\"], clients: [] }}] }}\n"
        ),
        &[("2:92", "is not a client's name"), ("2:97", "is not a client's name"), ("2:168", "the list is empty")],
    );
}

#[test]
fn dns_upstreams_are_checked() {
    let dns = |list: &str| parse(&format!("{BASE}dns: {{ upstreams: [{list}] }}\n")).map(|s| s.dns.upstreams);
    let shown = |list: &str| dns(list).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        shown("\"10.0.0.53\", \"10.0.0.53:5353\", \"fd00::53\", \"[fd00::53]:54\""),
        ["10.0.0.53:53", "10.0.0.53:5353", "[fd00::53]:53", "[fd00::53]:54"]
    );
    assert_eq!(
        shown("\"tls://9.9.9.9#dns.quad9.net\", \"https://9.9.9.9:8443/q#dns.quad9.net\""),
        ["tls://9.9.9.9:853#dns.quad9.net", "https://9.9.9.9:8443/q#dns.quad9.net"]
    );
    for (entry, says) in [
        ("dns.example", "by address, not by name"),
        ("tls://9.9.9.9", "needs the name of its certificate"),
        ("https://dns.example/dns-query#dns.example", "by address, not by name"),
        ("quic://9.9.9.9", "is not an upstream"),
        ("9.9.9.9:0", "0 is not a port"),
    ] {
        let error = dns(&format!("\"{entry}\"")).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    fault(&format!("{BASE}dns: {{ zones: {{ corp.example: [] }} }}\n"), &[("2:31", "no upstream for this zone")]);
}

#[test]
fn rules_are_checked() {
    let rule = |rule: &str| format!("{BASE}policy:\n  application_rules:\n    - {rule}\n");
    fault(&rule("{ fqdns: [], protocols: [\"https:443\"] }"), &[("4:7", "lists no name")]);
    fault(&rule("{ fqdns: [a.example] }"), &[("4:7", "opens no port")]);
    fault(&rule("{ fqdns: [a.example], protocols: [\"http:80\"], alpn: [h2] }"), &[("4:59", "no ALPN")]);
    fault(&rule("{ action: deny, fqdns: [a.example], ech: deny }"), &[("4:48", "takes no conditions")]);
    fault(
        &rule("{ fqdns: [a.example], protocols: [\"https:443\"], paths: [/x] }"),
        &[("4:62", "no method and no path that could be seen")],
    );
    fault(&rule("{ fqdns: [a.example], protocols: [\"https:443\"], addresses: [private] }"), &[("4:67", "or public")]);
    fault(
        &rule("{ fqdns: [a.example], protocols: [\"https:443\"], sources: [10.0.0.1/8] }"),
        &[("4:65", "write 10.0.0.0/8")],
    );
    let net = |rule: &str| format!("{BASE}policy:\n  network_rules:\n    - {rule}\n");
    fault(&net("{ destinations: [10.0.0.0/8], protocols: [\"https:443\"] }"), &[("4:49", "application rule")]);
    fault(&net("{ fqdns: [ntp.example], protocols: [\"tcp:443\"] }"), &[("4:43", "port 443 is judged by name")]);
    fault(&net("{ fqdns: [ntp.example], protocols: [\"udp:400-500\"] }"), &[("4:43", "port 443 is judged by name")]);
    fault(&net("{ fqdns: [\"*.ntp.example\"], protocols: [\"udp:123\"] }"), &[("4:17", "add a `dns` listener")]);
    fault(&net("{ protocols: [\"udp:9-1\"] }"), &[("4:7", "no destination"), ("4:21", "runs backwards; write 1-9")]);
    fault(&format!("{BASE}policy: {{ mode: audit }}\n"), &[("2:17", "`audit` is not available")]);
    fault(
        &format!(
            "{BASE}policy:\n  application_rules:\n    - {{ name: x, fqdns: [a.example], protocols: [\"https:443\"] }}\n    - {{ name: x, fqdns: [b.example], protocols: [\"https:443\"] }}\n"
        ),
        &[("5:15", "is the name of policy.application_rules[0] already")],
    );
}

#[test]
fn what_would_mean_nothing_is_a_fault() {
    let one = |text: &str, says: &str| {
        let error = parse(&format!("{BASE}{text}\n")).expect_err(text).to_string();
        assert!(error.contains(says) && error.contains("1 fault"), "{error}");
    };
    one("limits: { keepalive: 24h }", "1s to 32767s");
    one("limits: { hello: 1MiB, peek_memory: 64KiB, head: 32KiB }", "larger than `limits.peek_memory`");
    one("own_addresses: [\"::ffff:203.0.114.7\"]", "write 203.0.114.7");
    one("own_addresses: [\"::ffff:203.0.114.0/120\"]", "write 203.0.114.0/24");
    one("dns: { zones: { \"*.corp.example\": [\"10.0.0.1\"] } }", "plain domain");
    one("dns: { zones: { corp.example: [\"10.0.0.1\"], Corp.example: [\"10.0.0.1\"] } }", "stands here twice");
    let rule = "fqdns: [a.example], protocols: [\"https:443\"]";
    one(&format!("policy: {{ application_rules: [{{ sources: [], {rule} }}] }}"), "remove the key to mean everyone");
    // Two sockets that do not overlap are not a clash.
    assert!(
        parse("listeners: [{ kind: forward, bind: \"0.0.0.0:1\" }, { kind: forward, bind: \"[::1]:1\" }]\n").is_ok()
    );
}

#[test]
fn the_kernels_part_is_checked() {
    const HOP: &str = "listeners: [{ kind: transparent, bind: \"[::]:3129\", capture: tproxy }]\n";
    let kernel = |keys: &str| format!("{HOP}netfilter: {{ clients: [10.224.0.0/16], {keys} }}\n");
    let settings = parse(&kernel("interfaces: [eth1, cali-1.2@if3], bypass: [10.1.0.0/16], on_exit: remove")).unwrap();
    let part = settings.netfilter.unwrap();
    assert!(part.masquerades && part.removes && part.interfaces.len() == 2);
    assert_eq!(settings.learn.state_dir, Some("/var/lib/egret".into()));
    fault(&format!("{HOP}netfilter: {{ clients: [] }}\n"), &[("2:23", "there is no client")]);
    fault(&format!("{HOP}netfilter: {{ clients: [0.0.0.0/0] }}\n"), &[("2:24", "takes the internet for clients")]);
    for name in ["eth 1", "a\\\"b", "x; flush ruleset", "0123456789abcdef", ""] {
        fault(&kernel(&format!("interfaces: [\"{name}\"]")), &[("2:53", "not an interface name")]);
    }
    fault(&kernel("bypass: [\"::/0\"]"), &[("2:49", "lets everything out unjudged")]);
    let routed = "listeners: [{ kind: transparent, bind: \"[::]:3129\", capture: redirect }]\nnetfilter: { clients: [10.0.0.0/8] }\n";
    fault(routed, &[("2:23", "takes only the machine's own connections")]);
    let dnat = |line: &str| kernel(&format!("dnat: [{line}]"));
    fault(&dnat("{ protocol: \"tcp:1-2\", to: \"10.224.0.1:80\" }"), &[("2:59", "one port leads to one port")]);
    fault(&dnat("{ protocol: icmp, to: \"10.224.0.1:80\" }"), &[("2:59", "icmp has no port")]);
    fault(&dnat("{ protocol: \"tcp:1\", to: \"10.1.0.1:80\" }"), &[("2:72", "in none of netfilter.clients")]);
    fault("listeners: [{ kind: transparent, bind: \"[::]:3129\" }]\n", &[("1:13", "write `capture: tproxy`")]);
    let listener = |keys: &str| format!("listeners: [{{ kind: transparent, bind: \"[::]:3129\", {keys} }}]\n");
    let routed = "netfilter: { clients: [10.224.0.0/16] }\n";
    fault(
        &format!("{}{routed}", listener("capture: tproxy, port: 443")),
        &[("1:76", "learns the port from the connection")],
    );
    fault(&listener("capture: redirect, preserve_source: true"), &[("1:89", "their address is its own")]);
    let keeps = listener("capture: tproxy, preserve_source: true");
    let clients = "clients: [10.224.0.0/16]";
    fault(&format!("{keeps}netfilter: {{ {clients} }}\n"), &[("1:87", "write netfilter.snat: none")]);
    fault(&format!("{keeps}netfilter: {{ {clients}, snat: none }}\nfleet: true\n"), &[("1:87", "another instance")]);
    parse(&format!("{keeps}netfilter: {{ {clients}, snat: none }}\n")).unwrap();
    fault(&format!("{BASE}upstream: {{ sources: [0.0.0.0] }}\n"), &[("2:23", "not an address of this machine")]);
    fault(&format!("{BASE}learn: {{ remember: 5s }}\n"), &[("2:20", "shorter than `learn.refresh`")]);
    let verify =
        "policy: { application_rules: [{ fqdns: [a.example], protocols: [\"https:443\"], destination: verify }] }";
    parse(&format!("{BASE}{verify}\n")).unwrap();
    fault(&format!("{BASE}fleet: true\n{verify}\n"), &[("3:92", "do not know each other's answers")]);
}

#[test]
fn names_that_clients_claim_meet_no_condition_and_need_a_listener_for_claims() {
    let rule = |keys: &str| {
        format!("policy: {{ application_rules: [{{ fqdns: [a.example], protocols: [\"tcp:22\"]{keys} }}] }}\n")
    };
    assert!(parse(&format!("{BASE}{}", rule(""))).unwrap().warnings.is_empty());
    for keys in [
        "alpn: [h2]",
        "ech: deny",
        "sni: optional",
        "methods: [GET]",
        "paths: [/x]",
        "upgrade: [websocket]",
        "destination: verify",
    ] {
        let faults = parse(&format!("{BASE}{}", rule(&format!(", {keys}")))).unwrap_err();
        assert!(
            faults.faults.iter().any(|fault| fault.message.contains("whatever its bytes are")),
            "{keys}: {faults:#?}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.yaml");
    std::fs::write(&file, format!("listeners: [{{ kind: sni, bind: \"127.0.0.1:1\", port: 22 }}]\n{}", rule("")))
        .unwrap();
    let warnings = Settings::lint(&file).unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.message.contains("neither a `forward` listener")), "{warnings:#?}");
}

#[test]
fn network_rules_that_do_less_or_more_than_meant_are_warned_of() {
    let warnings = |rule: &str| {
        let text = format!(
            "{BASE}policy:\n  application_rules: [{{ fqdns: [a.example], protocols: [\"https:443\"] }}]\n  network_rules: [{rule}]\n"
        );
        parse(&text).unwrap().warnings.into_iter().map(|w| w.message).collect::<Vec<_>>()
    };
    assert!(
        warnings("{ destinations: [\"0.0.0.0/0\"], protocols: [\"tcp:1-1000\"] }")[0]
            .contains("port 443 are not judged by name")
    );
    assert!(
        warnings("{ destinations: [\"0.0.0.0/0\"], protocols: [\"udp:123\"] }")[0].contains("nothing will use this")
    );
    assert!(warnings("{ destinations: [\"0.0.0.0/0\"], protocols: [\"tcp:22\"] }").is_empty());
    assert!(warnings("{ action: deny, destinations: [\"0.0.0.0/0\"], protocols: [\"tcp:443\"] }").is_empty());
}

#[test]
fn bundles_are_checked() {
    let bundle = |text: &str| format!("{BASE}policy: {{ bundles: [{text}] }}\n");
    fault(&bundle("{ bundle: ask, location: any }"), &[("2:31", "did you mean `aks`")]);
    fault(&bundle("{ bundle: aks, cloud: globl, location: any }"), &[("2:43", "did you mean `global`")]);
    fault(&bundle("{ bundle: aks, location: \"West Europe\" }"), &[("2:46", "did you mean `westeurope`")]);
    fault(&bundle("{ bundle: aks }"), &[("2:21", "`location` is missing")]);
    let one = parse(&bundle("{ bundle: aks, location: westeurope, sources: [10.224.0.0/16] }")).unwrap();
    let patterns: Vec<&str> = one.rules.apps.iter().flat_map(|r| &r.fqdns).map(Pattern::as_str).collect();
    assert!(patterns.contains(&"*.hcp.westeurope.azmk8s.io") && patterns.contains(&"mcr.microsoft.com"));
    assert!(one.rules.apps.iter().all(|r| r.sources.nets.len() == 1));
}

#[test]
fn a_list_in_a_file_is_read_and_its_faults_have_lines() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("names.txt");
    let text =
        format!("{BASE}policy: {{ application_rules: [{{ fqdns_file: names.txt, protocols: [\"https:443\"] }}] }}\n");
    let load = |list: &str| {
        std::fs::write(&file, list).unwrap();
        Settings::parse(&text, "t.yaml", folder.path())
    };
    let settings = load("# ours\na.example\n\n*.b.example # and theirs\n").unwrap();
    assert_eq!(settings.rules.apps[0].fqdns.len(), 2);
    let error = load("a.example\nhttp://b.example\nc d\n").unwrap_err().to_string();
    assert!(error.contains("names.txt:2:") && error.contains("names.txt:3:"), "{error}");
    assert!(load("# nothing\n").unwrap_err().to_string().contains("holds no pattern"));
    std::fs::remove_file(&file).unwrap();
    let error = Settings::parse(&text, "t.yaml", folder.path()).unwrap_err().to_string();
    assert!(error.contains("cannot read"), "{error}");
}

#[test]
fn what_is_allowed_and_odd_is_a_warning() {
    let text = format!(
        "{BASE}policy:\n  application_rules:\n    - {{ fqdns: [\"*\", a.example, A.example], protocols: [\"https:443\"] }}\n"
    );
    let warnings: Vec<String> = parse(&text).unwrap().warnings.iter().map(|w| w.at("t")).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("4:17") && warnings[0].contains("every name"));
    assert!(warnings[1].contains("as number 2"));
    assert!(parse(BASE).unwrap().warnings[0].message.contains("everything will be refused"));
}

/// What the lint says to a list of rules, warnings and notes apart.
fn linted(policy: &str) -> (Vec<String>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.yaml");
    std::fs::write(&file, format!("{BASE}policy:\n{policy}")).unwrap();
    let settings = Settings::lint(&file).unwrap();
    let told = |faults: Vec<Fault>| faults.into_iter().map(|f| format!("{}: {}", f.path, f.message)).collect();
    (told(settings.warnings), told(settings.notes))
}

fn app_rules(rules: &[&str]) -> String {
    let rule = |(n, text): (usize, &&str)| format!("    - {{ name: r{n}, protocols: [\"https:443\"], {text} }}\n");
    format!("  application_rules:\n{}", rules.iter().enumerate().map(rule).collect::<String>())
}

/// Rules, and the one warning they get; none where the text is empty.
#[track_caller]
fn lints(rules: &[&str], expected: &str) {
    let (warnings, _) = linted(&app_rules(rules));
    if expected.is_empty() {
        assert!(warnings.is_empty(), "{warnings:?}");
    } else {
        assert!(warnings.len() == 1 && warnings[0].contains(expected), "{expected} in {warnings:?}");
    }
}

#[test]
fn the_lint_tells_of_strangers_names() {
    for (pattern, says) in [
        ("*.co.uk", "every name under the public suffix co.uk"),
        ("*.io", "every name under the public suffix io"),
        ("*.github.io", "opens every tenant's names in github.io"),
        ("*.blob.core.windows.net", "opens every tenant's names in blob.core.windows.net"),
        (".azureedge.net", "opens every tenant's names in azureedge.net"),
        ("*.core.windows.net", "opens blob.core.windows.net, where every tenant has a name"),
        ("*.vault.azure.cn", "opens every tenant's names in vault.azure.cn"),
        ("umsa*.blob.core.windows.net", "any tenant of blob.core.windows.net can take a name that fits"),
        ("*.google", "public suffix google"),
    ] {
        let (warnings, _) = linted(&app_rules(&[&format!("fqdns: [\"{pattern}\"]")]));
        assert!(
            warnings.iter().any(|w| w.contains(says) && w.contains("application_rules[0].fqdns[0]")),
            "{pattern}: {warnings:?}"
        );
    }
    for mine in [
        "*.example.co.uk",
        "mine.blob.core.windows.net",
        "*.mine.github.io",
        "*.corp.internal",
        "*.mine.azureedge.net",
        "*.internal",
    ] {
        lints(&[&format!("fqdns: [\"{mine}\"]")], "");
    }
}

#[test]
fn the_lint_tells_of_rules_that_others_make_needless() {
    lints(
        &["fqdns: [a.example.com]", "fqdns: [a.example.com]"],
        "`a.example.com` is a duplicate: rule r0 has it already",
    );
    lints(
        &["fqdns: [\"*.example.com\"]", "fqdns: [a.example.com]"],
        "`a.example.com` is shadowed by `*.example.com` of rule r0",
    );
    lints(
        &["fqdns: [a.example.com]", "fqdns: [\"*.example.com\"]"],
        "application_rules[0].fqdns[0]: `a.example.com` is shadowed by",
    );
    lints(
        &["fqdns: [\"*.example.com\"]", "fqdns: [\"a.example.com\", \"*.b.example.com\", \"x-*.example.com\"]"],
        "this rule is shadowed by rule r0",
    );
    lints(
        &["fqdns: [\".example.com\", \"a.example.com\"]"],
        "`a.example.com` is shadowed by `.example.com` of rule r0",
    );
    lints(&["fqdns: [\".example.com\"]", "fqdns: [\"*.example.com\"]"], "shadowed by `.example.com`");
    lints(&["fqdns: [\"x-*.example.com\"]", "fqdns: [\"x-*.example.com\"]"], "is a duplicate: rule r0");
    // Each neighbour says something of its own.
    lints(&["fqdns: [\"*.example.com\"]", "fqdns: [example.com]"], "");
    lints(
        &["fqdns: [\"*.example.com\"]", "fqdns: [\".example.com\"]"],
        "application_rules[0].fqdns[0]: `*.example.com` is shadowed",
    );
    lints(
        &["fqdns: [a.example.com], sources: [10.0.0.0/8]", "fqdns: [a.example.com], sources: [10.1.0.0/16]"],
        "fqdns[0]: `a.example.com` is a duplicate: rule r0",
    );
    lints(&["fqdns: [a.example.com], sources: [10.1.0.0/16]", "fqdns: [a.example.com], sources: [10.2.0.0/16]"], "");
    lints(&["fqdns: [a.example.com], alpn: [h2]", "fqdns: [a.example.com], addresses: [10.0.0.0/8]"], "");
    lints(&["fqdns: [a.example.com], addresses: [10.0.0.0/8]", "fqdns: [a.example.com]"], "");
    lints(&["fqdns: [a.example.com], ech: deny", "fqdns: [a.example.com]"], "application_rules[0].fqdns[0]");
    lints(&["fqdns: [x-a.example.com]", "fqdns: [\"x-*.example.com\"]"], "shadowed by `x-*.example.com`");
}

#[test]
fn the_lint_tells_of_rules_that_never_match() {
    let deny = |more: &str| format!("action: deny, fqdns: [\".example.com\"]{more}");
    lints(&[&deny(""), "fqdns: [a.example.com]"], "`a.example.com` can never match: rule r0 denies .example.com");
    lints(
        &["fqdns: [a.example.com, \"*.b.example.com\"]", &deny("")],
        "this rule can never match: rule r1 denies all of its names",
    );
    lints(&[&deny(", sources: [10.0.0.0/8]"), "fqdns: [a.example.com]"], "");
    lints(&["action: deny, fqdns: [a.example.com]", "fqdns: [\"*.example.com\"]"], "");
    let steered = "listeners: [{ kind: sni, bind: \"127.0.0.1:8443\" }]\npolicy:\n  application_rules: [{ name: r, fqdns: [a.example.com], protocols: [\"https:8443\"] }]\n";
    let folder = tempfile::tempdir().unwrap();
    let lint = |text: &str| {
        std::fs::write(folder.path().join("t.yaml"), text).unwrap();
        Settings::lint(&folder.path().join("t.yaml")).unwrap().warnings
    };
    assert!(lint(steered)[0].message.contains("the listeners carry port 443 only"));
    assert!(lint(&steered.replace("https:8443", "https:443")).is_empty());
    let nets = |rules: &str| linted(&format!("  network_rules:\n{rules}")).0;
    let net = |name: &str, action: &str, to: &str, port: &str| {
        format!("    - {{ name: {name}, action: {action}, destinations: [{to}], protocols: [\"{port}\"] }}\n")
    };
    let wide = net("wide", "allow", "20.0.0.0/8", "tcp:8000-9000");
    assert!(
        nets(&(wide.clone() + &net("n", "allow", "20.1.0.0/16", "tcp:8443")))[0]
            .contains("network_rules[1]: this rule is shadowed by rule wide")
    );
    assert!(
        nets(&(net("n", "allow", "20.1.0.0/16", "tcp:8443") + &net("no", "deny", "20.0.0.0/9", "tcp:1-65535")))[0]
            .contains("denies all of it")
    );
    assert!(nets(&(wide.clone() + &net("n", "allow", "21.1.0.0/16", "tcp:8443"))).is_empty());
    assert!(nets(&(wide + &net("n", "allow", "20.1.0.0/16", "tcp:7999-8001"))).is_empty());
}

#[test]
fn the_lint_tells_of_ways_around() {
    lints(&["fqdns: [\"*.quad9.net\"]"], "`*.quad9.net` opens dns.quad9.net, which answers DNS over HTTPS; deny it");
    lints(&["fqdns: [\"*.quad9.net\"]", "action: deny, fqdns: [\".quad9.net\"]"], "can never match");
    lints(&["fqdns: [dns.quad9.net]"], "");
    lints(&["fqdns: [\".cloudflare-ech.com\"]"], "the front of encrypted hellos for many sites; write `ech: deny`");
    lints(&["fqdns: [\".cloudflare-ech.com\"], ech: deny"], "");
}

#[test]
fn a_bundle_s_own_rows_inform_and_do_not_warn() {
    let (warnings, notes) = linted(
        "  bundles: [{ bundle: aks, location: westeurope, features: [key-vault, managed-disks, cost-analysis] }]\n",
    );
    assert!(warnings.is_empty(), "{warnings:?}");
    assert!(
        notes.iter().any(|n| n.contains("aks/global/key-vault: `.vault.azure.net` opens every tenant's names")),
        "{notes:?}"
    );
    assert!(notes.iter().any(|n| n.contains("name yours in key_vaults")), "{notes:?}");
    // What one's own rule repeats of it is one's own to mend.
    let text =
        format!("  bundles: [{{ bundle: aks, location: westeurope }}]\n{}", app_rules(&["fqdns: [mcr.microsoft.com]"]));
    assert!(linted(&text).0[0].contains("is a duplicate: rule aks/global/registry has it already"));
}

#[test]
fn the_lint_knows_what_the_guard_opens() {
    // A wide prefix opens no special range, so the narrow one beside it is needed.
    lints(
        &["fqdns: [a.example.com], addresses: [public, 8.0.0.0/5]", "fqdns: [a.example.com], addresses: [10.1.0.0/16]"],
        "",
    );
    lints(
        &["fqdns: [a.example.com], addresses: [10.0.0.0/8]", "fqdns: [a.example.com], addresses: [10.1.0.0/16]"],
        "is a duplicate",
    );
    let nets = |wide: &str, narrow: &str| {
        let rule = |name: &str, to: &str| {
            format!("    - {{ name: {name}, destinations: [{to}], protocols: [\"tcp:8443\"] }}\n")
        };
        linted(&format!("  network_rules:\n{}{}", rule("wide", wide), rule("narrow", narrow))).0
    };
    assert!(nets("0.0.0.0/0", "10.0.0.5/32").is_empty());
    assert!(nets("169.254.0.0/16", "169.254.169.254/32").is_empty());
    assert!(nets("10.0.0.0/8", "10.0.0.5/32")[0].contains("shadowed by rule wide"));
}

#[test]
fn the_lint_sees_through_regions_and_into_files() {
    for pattern in
        ["*.westeurope.cloudapp.azure.com", "*.hcp.westeurope.azmk8s.io", "*.hcp.chinaeast2.cx.prod.service.azk8s.cn"]
    {
        let (warnings, _) = linted(&app_rules(&[&format!("fqdns: [\"{pattern}\"]")]));
        assert!(warnings.iter().any(|w| w.contains("opens every tenant's names")), "{pattern}: {warnings:?}");
    }
    lints(&["fqdns: [\"*.mine.cloudapp.azure.com\"]"], "");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("names.txt"), "b.example\na.example\n# c\nB.example\n*.github.io\n").unwrap();
    let text = format!(
        "{BASE}policy: {{ application_rules: [{{ name: r, fqdns: [x.example], fqdns_file: names.txt, protocols: [\"https:443\"] }}] }}\n"
    );
    std::fs::write(folder.path().join("t.yaml"), text).unwrap();
    let told: Vec<String> = Settings::lint(&folder.path().join("t.yaml"))
        .unwrap()
        .warnings
        .into_iter()
        .map(|f| format!("{}: {}", f.path, f.message))
        .collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("names.txt:4: `B.example` stands in line 1 already"), "{told:?}");
    assert!(told[1].starts_with("policy.application_rules[0].fqdns_file: `*.github.io`"), "{told:?}");
    // An open door and rules for everybody.
    std::fs::write(folder.path().join("o.yaml"), "listeners: [{ kind: forward, bind: \"0.0.0.0:3128\" }]\npolicy: { application_rules: [{ name: r, fqdns: [x.example], protocols: [\"https:443\"] }] }\n").unwrap();
    assert!(Settings::lint(&folder.path().join("o.yaml")).unwrap().warnings[0].message.contains("write `sources`"));
}

#[test]
fn ten_thousand_twins_are_looked_at_once_each() {
    let folder = tempfile::tempdir().unwrap();
    let names: String = (0..20_000).map(|n| format!("same.example\nx{n}-*.one.example\n")).collect();
    std::fs::write(folder.path().join("names.txt"), names).unwrap();
    std::fs::write(folder.path().join("t.yaml"), format!("{BASE}policy: {{ application_rules: [{{ name: r, fqdns_file: names.txt, protocols: [\"https:443\"] }}] }}\n")).unwrap();
    let warnings = Settings::lint(&folder.path().join("t.yaml")).unwrap().warnings;
    assert_eq!(warnings.len(), 21, "twenty one by one, the rest together");
}

#[test]
fn what_a_rule_says_of_requests_is_checked() {
    let rule = |text: &str| format!("{BASE}policy: {{ application_rules: [{{ fqdns: [a.example], {text} }}] }}\n");
    for (text, says) in [
        ("protocols: [\"https:443\"], methods: [GET]", "no method and no path that could be seen"),
        ("protocols: [\"http:80\", \"https:443\"], upgrade: [websocket]", "a rule of its own for http ports"),
        ("protocols: [\"http:80\"], methods: [get]", "case counts; write GET"),
        ("protocols: [\"http:80\"], methods: [CONNECT]", "is not an HTTP method"),
        ("protocols: [\"http:80\"], methods: [\"G T\"]", "is not an HTTP method"),
        ("protocols: [\"http:80\"], methods: []", "no request could pass"),
        ("protocols: [\"http:80\"], paths: []", "no request could pass"),
        ("protocols: [\"http:80\"], paths: [dists]", "write it from the root, such as /dists"),
        ("protocols: [\"http:80\"], upgrade: [h2c]", "write `websocket`"),
        ("action: deny, methods: [GET]", "takes no conditions"),
    ] {
        let told = parse(&rule(text)).expect_err(text).to_string();
        assert!(told.contains(says), "{text}: {told}");
    }
    let good =
        parse(&rule("protocols: [\"http:80\"], methods: [GET, PURGE], paths: [/a, \"/b/*\"], upgrade: [websocket]"))
            .unwrap();
    let rule = &good.rules.apps[0];
    assert_eq!(
        (rule.methods.as_ref().unwrap().len(), rule.paths.as_ref().unwrap().len(), rule.websocket),
        (2, 2, true)
    );
}

#[test]
fn what_tired_operators_write_is_answered_with_the_cure() {
    for (pattern, cure) in [
        (r"^.*\.example\.org$", "write such as `*.example.org`"),
        (r"^api\.example\.org$", "write such as `api.example.org`"),
        ("/example/", "a glob, not a regular expression; write such as `*.example.org`"),
        ("(.+)x", "a glob, not a regular expression"),
        ("a,b", "commas are not part of a name; write one pattern per list entry"),
        ("%.x", "`%` is not a letter"),
        ("example.*", "one pattern for each ending that is meant"),
        ("${X}.example", "`${X}` is not filled in"),
        ("{{ .X }}.example", "spaces are not"),
        ("{{x}}.example", "`{{x}}` is not filled in"),
        ("“a.example”", "`“` (U+201C) is not part of a name"),
        ("a\u{200b}b.example", "(U+200B) is not part of a name"),
    ] {
        let rule =
            format!("policy:\n  application_rules:\n    - {{ fqdns: ['{pattern}'], protocols: [\"https:443\"] }}\n");
        fault(&format!("{BASE}{rule}"), &[("4:17", cure)]);
    }
    fault(
        &format!("{BASE}application_rules: []\n"),
        &[("2:1", "`application_rules` belongs under `policy`; write it there")],
    );
    fault(&format!("{BASE}dns: {{ upstreams: [\"10.0.0.53:530000\"] }}\n"), &[("2:20", "has no port from 1 to 65535")]);
    let rules = |of: &str| format!("{BASE}policy:\n  application_rules:\n    - {of}\n");
    fault(&rules("{ fqdns: a.example, protocols: [\"https:443\"] }"), &[("4:16", "write a list: [\"a.example\"]")]);
    fault(
        &rules("{ fqdns: [\"a.example], protocols: [\"https:443\"] }"),
        &[("4:43", "the quotation mark at 4:17 closes only at 4:42")],
    );
    fault(
        &format!("{BASE}log: {{}}\nadmin: {{}}\nlog: {{}}\n"),
        &[("4:1", "`log`: it stands at 2:1 already; write it once")],
    );
    let bundle = "policy:\n  bundles: [{ bundle: aks, location: westeurope, edition: 2023 }]\n";
    fault(&format!("{BASE}{bundle}"), &[("3:59", "such as \"2023-06-13\" in quotes")]);
}

#[test]
fn limits_that_cannot_hold_are_faults() {
    fault(
        &format!("{BASE}limits: {{ connections: 10, connections_per_client: 11, lookups: 5000 }}\npolicy: {{}}\n"),
        &[
            ("2:52", "is larger than `limits.connections`, which is 10; write less, or unlimited"),
            ("2:65", "write 4096 or less, or auto"),
        ],
    );
}

#[test]
fn clients_can_be_answered_with_addresses_of_sni_listeners() {
    let listen = |bind: &str, steer: &str| {
        format!(
            "listeners: [{{ kind: dns, bind: \"[::]:53\" }}, {{ kind: sni, bind: \"{bind}\" }}]\ndns: {{ steer: {steer} }}\n"
        )
    };
    let own = |bind: &str, steer: &str| parse(&listen(bind, steer)).unwrap().nameserver.own_answers.unwrap();
    let found = own("10.0.0.4:443", "self");
    assert_eq!(found.addresses, ["10.0.0.4".parse::<std::net::IpAddr>().unwrap()]);
    let ports: Vec<String> = found.ports.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["https:443", "http:443"]);
    assert_eq!(own("[::]:443", "{ self: [10.0.0.4, \"fd00::4\"] }").addresses.len(), 2);
    fault(&listen("[::]:443", "self"), &[("2:15", "write where they reach the `sni` listeners")]);
    fault(&listen("[::]:443", "{ self: [10.0.0.4, 10.0.0.5] }"), &[("2:15", "one address of each family")]);
    fault(&listen("[::]:443", "{ self: [a.example] }"), &[("2:24", "`a.example` is not an address")]);
    let without = "listeners: [{ kind: dns, bind: \"[::]:53\" }]\ndns: { steer: self }\n";
    fault(without, &[("2:15", "there is none; add one")]);
}
