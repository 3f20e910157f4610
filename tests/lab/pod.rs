//! A sidecar: the pod's own connections come to egret, which has no rights, and nothing else of the pod's leaves.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::hop::{page, tcp, udp};
use crate::support::{ADMIN, Egret, curl, eventually, pause, refused, run, text};
use crate::world::{DECOY, DECOY6, FORWARDER, ORIGIN, ORIGIN6, PARTNER, Through, World, ip, set};

const POLICY: &str = "
  application_rules:
    - { name: web, fqdns: [a.example], protocols: [\"https:443\", \"http:80\"] }
  network_rules:
    - { name: dns, destinations: [10.224.0.1/32], protocols: [\"udp:53\"] }
    - { name: tunnel, destinations: [20.60.3.3/32], protocols: [\"udp:1194\", \"tcp:9000\"] }
";

fn config(policy: &str) -> String {
    format!(
        "listeners: [{{ kind: transparent, bind: \"[::]:3129\", capture: redirect }}]\n\
         dns: {{ upstreams: [\"{FORWARDER}\"], min_ttl: 0s }}\nadmin: {{ bind: \"127.0.0.1:{ADMIN}\" }}\nhealth: {{ bind: \"127.0.0.1:9902\" }}\n\
         netfilter: {{ bypass: [20.60.9.9/32] }}\n\
         policy:{policy}"
    )
}

/// Applies the table as an init container does, with egret's user.
fn apply(world: &World, config: &str, more: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.yaml");
    std::fs::write(&file, config).unwrap();
    let mut args = vec!["netfilter", "apply", "--config", file.to_str().unwrap(), "--sidecar"];
    args.extend(more);
    let output = world.at("client", || run(env!("CARGO_BIN_EXE_egret"), &args));
    assert!(output.status.success(), "{}", text(&output));
}

/// The world around the pod forwards everything.
fn open(world: &World) {
    world.at("hop1", || {
        set("net/ipv4/ip_forward", "1");
        set("net/ipv6/conf/all/forwarding", "1");
    });
    world.at("internet", || {
        ip(&["route", "add", "10.224.0.0/16", "via", "20.50.1.4"]);
        ip(&["route", "add", "fd00:224::/64", "via", "2a01:50:1::4"]);
    });
}

/// egret as the pod's user, without rights.
fn sidecar(world: &World, config: &str, gid: &str) -> Egret {
    world.at("client", || {
        let as_user =
            ["setpriv", "--reuid", "1129", "--regid", gid, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
        Egret::run_by(&as_user, config, "127.0.0.1".parse().unwrap(), &[], &[])
    })
}

#[test]
fn a_pods_own_traffic_is_judged_and_nothing_goes_around() {
    let Some(world) = World::build(Through::One) else { return };
    open(&world);
    assert_eq!(world.at("client", || tcp(DECOY, 9000)), Ok(()), "the way is open without egret");
    let mut capture = world.capture();
    apply(&world, &config(POLICY), &[]);
    // Before egret is there, nothing leaves.
    assert!(world.at("client", || tcp(PARTNER, 9000)).is_err());
    let egret = sidecar(&world, &config(POLICY), "1129");
    let ca = world.authority.ca();
    for (name, at) in [("a.example", ORIGIN), ("a.example", ORIGIN6), ("a.example", DECOY)] {
        let resolved = format!("{name}:443:{at}");
        let said = world.at("client", || curl(&["--cacert", &ca, "--resolve", &resolved, "https://a.example/who"]));
        assert_eq!(text(&said), "a.example HTTP/2.0 TLSv1.3\n", "{at}");
    }
    let line = egret.record_number(0);
    assert_eq!(line["original_dst"], format!("{ORIGIN}:443"));
    egret.record("IPv6", |line| line["original_dst"] == format!("[{ORIGIN6}]:443"));
    world.at("client", || {
        assert_eq!(tcp(PARTNER, 9000), Ok(()), "judged by egret");
        assert_eq!(udp(PARTNER, 1194), Ok(()), "judged by the table");
        for port in [22, 9000] {
            assert!(tcp(DECOY, port).is_err() && tcp(DECOY6, port).is_err(), "{port}");
        }
        for port in [123, 443, 1194] {
            assert!(udp(DECOY, port).is_err() && udp(DECOY6, port).is_err(), "{port}");
        }
        assert!(!run("ping", &["-c1", "-W1", DECOY]).status.success());
        let listener = std::net::TcpListener::bind("127.0.0.1:7000").unwrap();
        assert!(std::net::TcpStream::connect(listener.local_addr().unwrap()).is_ok(), "loopback is the pod's own");
    });
    let said = world.at("client", || curl(&["-k", "https://20.60.9.9/hello"]));
    assert_eq!(text(&said), "hello\n", "exempt");
    // The user alone, or the group alone, is not egret.
    for (uid, gid) in [("1129", "65534"), ("65534", "1129")] {
        let to = format!("/dev/tcp/{DECOY}/9000");
        let command = format!("exec 3<>{to} && echo hello >&3 && timeout 2 head -c 5 <&3");
        let said = world.at("client", || {
            run("setpriv", &["--reuid", uid, "--regid", gid, "--clear-groups", "bash", "-c", &command])
        });
        assert!(!text(&said).contains("hello\n") || !said.status.success(), "{uid}:{gid} {}", text(&said));
    }
    // A port that egret has used opens nothing to who uses it next.
    let from_port = format!(
        "import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('',40002)); s.settimeout(1); s.sendto(b'x',('{PARTNER}',123)); s.recv(9)"
    );
    let as_user = |id: &str| {
        let args = ["--reuid", id, "--regid", id, "--clear-groups", "/usr/bin/python3", "-c", &from_port];
        world.at("client", || run("setpriv", &args).status.success())
    };
    assert!(as_user("1129") && !as_user("65534"));
    capture.saw_nothing(&format!("dst host {DECOY} or dst host {DECOY6}"));
    // Somebody who dials the listener itself wants to go nowhere.
    world.at("client", || drop(std::net::TcpStream::connect("127.0.0.1:3129").unwrap()));
    egret.record("the listener's own port", |line| line["reason"] == "no_original_dst");

    // A reload of names, or of TCP where no listener answers DNS, is the policy's alone; one that the table would need is not half done.
    let file = egret.folder().join("egret.yaml");
    let tcp = "    - { name: more, destinations: [20.60.3.4/32], protocols: [\"tcp:50-60\"] }\n";
    std::fs::write(&file, config(&format!("{}{tcp}", POLICY.replace("a.example", "b.example")))).unwrap();
    egret.signal("HUP");
    eventually("the reload", || egret.errors().contains("the new policy is in force"));
    std::fs::write(&file, config(&POLICY.replace("udp:1194", "udp:1195"))).unwrap();
    egret.signal("HUP");
    eventually("the refusal", || egret.errors().contains("restart the pod"));
}

#[test]
fn a_pods_questions_are_answered_for_what_is_listed_whichever_server_it_asks() {
    let Some(world) = World::build(Through::One) else { return };
    open(&world);
    let servers = "    - { name: server, destinations: [20.50.1.1/32], protocols: [\"udp:53\", \"tcp:53\"] }\n";
    let policy =
        POLICY.replace("    - { name: dns, destinations: [10.224.0.1/32], protocols: [\"udp:53\"] }\n", servers);
    let listener = "{ kind: dns, bind: \"[::]:5353\" }";
    let config = config(&policy).replace("listeners: [", &format!("listeners: [{listener}, "));
    apply(&world, &config, &[]);
    let dig = |server: &str, name: &str, more: &[&str]| {
        let at = format!("@{server}");
        let args = [&[&at, name, "+tries=1", "+timeout=3", "+noall", "+comments", "+answer"][..], more].concat();
        text(&world.at("client", || run("dig", &args)))
    };
    assert!(!dig(DECOY, "a.example", &[]).contains("status"), "before egret is there, no question leaves");
    let egret = sidecar(&world, &config, "1129");
    for more in [&[][..], &["+tcp"]] {
        for server in [DECOY, DECOY6] {
            let said = dig(server, "a.example", more);
            assert!(said.contains("NOERROR") && said.contains(ORIGIN), "{server} {more:?}: {said}");
            assert!(dig(server, "not.listed", more).contains("NXDOMAIN"), "{server} {more:?}");
        }
    }
    assert_eq!(world.dns.asked("not.listed"), 0);
    egret.record("the refused question", |line| line["event"] == "dns" && line["name"] == "not.listed");
    // A server that network rules name is asked itself, over UDP and TCP.
    drop(dig("20.50.1.1", "not.listed", &[]));
    assert!(world.dns.asked("not.listed") > 0);
    drop(dig("20.50.1.1", "a.example", &["+tcp"]));
    egret.record("TCP to the server", |line| line["original_dst"] == "20.50.1.1:53" && line["rule"] == "server");
}

#[test]
fn a_pods_answers_open_wildcards_of_network_rules() {
    let Some(world) = World::build(Through::One) else { return };
    open(&world);
    let policy = POLICY.replace(", \"tcp:9000\"", "").replace(
        "    - { name: dns, destinations: [10.224.0.1/32], protocols: [\"udp:53\"] }\n",
        "    - { name: wild, fqdns: [\"*.tun.example\"], protocols: [\"tcp:9000\"] }\n",
    );
    let listener = "{ kind: dns, bind: \"[::]:5353\" }";
    let config = config(&policy).replace("listeners: [", &format!("listeners: [{listener}, "));
    world.dns.answer("x.tun.example", &[PARTNER]);
    apply(&world, &config, &[]);
    let egret = sidecar(&world, &config, "1129");
    assert_eq!(
        world.at("client", || tcp(PARTNER, 9000)),
        Err(std::io::ErrorKind::ConnectionReset),
        "nothing was answered yet"
    );
    let said = text(&world.at("client", || run("dig", &[&format!("@{DECOY}"), "x.tun.example", "+short"])));
    assert_eq!(said.trim(), PARTNER);
    assert_eq!(world.at("client", || tcp(PARTNER, 9000)), Ok(()));
    egret.record("the flow", |line| line["rule"] == "wild" && line["verdict"] == "allow");
}

#[test]
fn a_pods_names_are_kept_apart_by_synthetic_addresses() {
    let Some(world) = World::build(Through::One) else { return };
    open(&world);
    let policy =
        POLICY.replace("    - { name: dns, destinations: [10.224.0.1/32], protocols: [\"udp:53\"] }\n", "").replace(
            "  network_rules:",
            "    - { name: echo, fqdns: [\"*.echo.example\"], protocols: [\"tcp:9000\"] }\n  network_rules:",
        );
    let state = tempfile::tempdir().unwrap();
    std::fs::set_permissions(state.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let listener = "{ kind: dns, bind: \"[::]:5353\" }";
    let config = config(&policy)
        .replace("listeners: [", &format!("listeners: [{listener}, "))
        .replace("min_ttl: 0s", "min_ttl: 0s, steer: true")
        + &format!("learn: {{ state_dir: {} }}\n", state.path().display());
    world.dns.answer("x.echo.example", &[PARTNER]);
    apply(&world, &config, &[]);
    let egret = sidecar(&world, &config, "1129");
    let dig = |name: &str, kind: &str| {
        text(&world.at("client", || run("dig", &[&format!("@{DECOY}"), name, kind, "+short", "+tries=1"])))
            .trim()
            .to_owned()
    };
    let address = dig("x.echo.example", "A");
    assert!(address.starts_with("198.18."), "{address}");
    assert_eq!(world.at("client", || tcp(&address, 9000)), Ok(()));
    let line = egret.record("the name", |line| line["name"] == "x.echo.example");
    assert_eq!((&line["rule"], &line["name_source"]), (&"echo".into(), &"dns".into()), "{line:#}");
    // By IPv6 the same name, where it has such addresses.
    assert!(dig("a.example", "AAAA").starts_with("fd65:6772:6574::"), "{}", dig("a.example", "AAAA"));
    let ca = world.authority.ca();
    let get = |at: &str| {
        let resolve = format!("a.example:443:{at}");
        world.at("client", || curl(&["--cacert", &ca, "--resolve", &resolve, "https://a.example/who"]))
    };
    assert!(text(&get(&dig("a.example", "A"))).starts_with("a.example"));
    assert!(!get(&address).status.success());
}

/// Starts egret as [`sidecar`] does where it is expected to give up, and returns what it says.
fn gives_up(world: &World, config: &str, gid: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.yaml");
    std::fs::write(&file, config).unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let as_user = ["--reuid", "1129", "--regid", gid, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
    let egret = [env!("CARGO_BIN_EXE_egret"), "run", "--config", file.to_str().unwrap()];
    let output = world.at("client", || run("setpriv", &[&as_user[..], &egret].concat()));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(!text(&output).contains("lets out only what is named"), "it serves: {}", text(&output));
    text(&output)
}

#[test]
fn a_sidecar_serves_only_by_its_own_table() {
    let Some(world) = World::build(Through::One) else { return };
    open(&world);
    let good = config(POLICY);
    let missing = "the pod's table is missing";
    let said = gives_up(&world, &good, "1129");
    assert!(said.contains(missing) && said.contains("netfilter: { required: false }"), "{said}");
    apply(&world, &good, &[]);
    let said = gives_up(&world, &good, "0");
    assert!(said.contains("this process is 1129:0, the pod's table lets 1129:1129 pass"), "{said}");
    let said = gives_up(&world, &good.replace(":3129", ":3130"), "1129");
    assert!(said.contains("it leads to port 3129, and egret listens on port 3130"), "{said}");
    let others = [good.replace("udp:1194", "udp:1195"), good.replace("20.60.9.9", "20.60.9.8")];
    for other in &others {
        let said = gives_up(&world, other, "1129");
        assert!(said.contains("its network rules or its netfilter.bypass differ"), "{said}");
    }

    let egret = sidecar(&world, &good, "1129");
    let ready = || world.at("client", || page("readyz"));
    assert!(ready().starts_with("HTTP/1.1 200"), "{}", ready());
    // An application's refused packets, each answered by an ICMP message, do not make the probes fail.
    let noise = "import socket,time\nuntil=time.time()+4\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n\
                 while time.time()<until:\n try: s.sendto(b'x',('20.60.3.3',8125))\n except OSError: pass\n";
    let as_other = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/bin/python3", "-c", noise];
    let mut noise = world.at("client", || Command::new("setpriv").args(as_other).stdin(Stdio::null()).spawn().unwrap());
    while noise.try_wait().unwrap().is_none() {
        assert!(ready().starts_with("HTTP/1.1 200"), "{} {}", ready(), egret.errors());
        pause();
    }
    let flush = || assert!(world.at("client", || run("nft", &["flush", "ruleset"])).status.success());
    let foreign = || apply(&world, &others[0], &[]);
    let for_others = || apply(&world, &good, &["--uid", "1130", "--gid", "70000"]);
    let nft = |command: &str| {
        let output = world.at("client", || run("nft", &[command]));
        assert!(output.status.success(), "{}", text(&output));
    };
    let no_capture = || nft("flush chain inet egret capture");
    let ways: [(&dyn Fn(), &str); 4] = [
        (&flush, missing),
        (&no_capture, "or has been changed"),
        (&foreign, "its network rules or its netfilter.bypass differ"),
        (&for_others, "this process is 1129:1129, the pod's table lets 1130:70000 pass"),
    ];
    for (spoil, words) in ways {
        spoil();
        let begun = Instant::now();
        eventually("not ready", || ready().starts_with("HTTP/1.1 503"));
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(1500), "{took:?}");
        assert!(ready().contains("the kernel's rules are not in place") && ready().contains("fault: kernel"));
        let metrics = world.at("client", || egret.metrics());
        assert!(metrics.contains("egret_fault{fault=\"kernel\"} 1"), "{metrics}");
        let line = |line: &str| line.contains("ERROR") && line.contains(words);
        eventually(words, || egret.errors().lines().any(line));
        apply(&world, &good, &[]);
        eventually("ready again", || ready().starts_with("HTTP/1.1 200"));
    }
    assert_eq!(egret.errors().matches("ERROR").count(), 4, "each once: {}", egret.errors());
    // Its chains without their rules let nothing by, not even questions about health.
    nft("flush table inet egret");
    let drops = "the pod's table has been changed and drops everything";
    eventually(drops, || egret.errors().contains(drops));
    apply(&world, &good, &[]);
    eventually("ready again", || ready().starts_with("HTTP/1.1 200"));
}

#[test]
fn a_sidecars_table_goes_alone() {
    let Some(world) = World::build(Through::One) else { return };
    world.at("client", || set("net/ipv4/ip_forward", "1"));
    let remove = || world.at("client", || run(env!("CARGO_BIN_EXE_egret"), &["netfilter", "remove", "--sidecar"]));
    assert!(remove().status.success(), "there is nothing: {}", text(&remove()));
    apply(&world, &config(POLICY), &[]);
    assert!(remove().status.success(), "{}", text(&remove()));
    let tables = world.at("client", || text(&run("nft", &["list", "tables"])));
    let forwards = world.at("client", || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap());
    assert!(!tables.contains("egret") && forwards.trim() == "1", "forwarding is somebody else's: {tables}");
}

#[test]
fn a_connection_of_egrets_own_that_comes_back_is_refused() {
    let Some(world) = World::build(Through::One) else { return };
    open(&world);
    let loops = config(POLICY).replace("bypass:", "required: false, bypass:");
    apply(&world, &loops, &[]);
    let egret = sidecar(&world, &loops, "0");
    world.at("client", || {
        assert!(tcp(PARTNER, 9000).is_err());
    });
    egret.record("the way there", |line| line["original_dst"] == format!("{PARTNER}:9000"));
    let back = egret.record("the way back", |line| line["reason"] == "own_address");
    refused(&back, "own_address", "claim");
    assert_eq!(back["nearest"], format!("egret's own connection to {PARTNER}:9000 was led back to it"));
    assert_eq!(egret.records().len(), 2, "{:#?}", egret.records());
}

#[test]
fn a_mesh_keeps_its_own_rules_and_its_proxy_comes_to_egret() {
    let Some(world) = World::build(Through::One) else { return };
    open(&world);
    let mut capture = world.capture();
    apply(&world, &config(POLICY), &["--mesh", "istio"]);
    let egret = sidecar(&world, &config(POLICY), "1337");
    // What Istio's own rules do: everything of the application goes to its proxy, whose user and group pass.
    let istio = "add table ip istio; add chain ip istio out { type nat hook output priority -100; }; \
                 add rule ip istio out meta skuid 1337 return; add rule ip istio out meta skgid 1337 return; \
                 add rule ip istio out oifname lo return; add rule ip istio out meta l4proto tcp redirect to :15001";
    let proxy = "import socket,threading\n\
        s=socket.socket(); s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1); s.bind(('127.0.0.1',15001)); s.listen(50)\n\
        def pump(a,b):\n\
        \x20try:\n\
        \x20 while (d:=a.recv(65536)): b.sendall(d)\n\
        \x20except OSError: pass\n\
        \x20try: b.shutdown(1)\n\
        \x20except OSError: pass\n\
        def serve(c):\n\
        \x20o=c.getsockopt(0,80,16); port=int.from_bytes(o[2:4],'big'); ip=socket.inet_ntoa(o[4:8])\n\
        \x20try: u=socket.create_connection((ip,port))\n\
        \x20except OSError: return c.close()\n\
        \x20threading.Thread(target=pump,args=(u,c)).start(); pump(c,u)\n\
        while True: threading.Thread(target=serve,args=(s.accept()[0],),daemon=True).start()\n";
    let mut mesh = world.at("client", || {
        assert!(run("nft", &[istio]).status.success());
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "1337", "--regid", "1337", "--clear-groups", "/usr/bin/python3", "-c", proxy]);
        command.stdin(Stdio::null()).spawn().unwrap()
    });
    let ca = world.authority.ca();
    let resolved = format!("a.example:443:{ORIGIN}");
    eventually("through the mesh and egret", || {
        let said = world.at("client", || curl(&["--cacert", &ca, "--resolve", &resolved, "https://a.example/who"]));
        text(&said) == "a.example HTTP/2.0 TLSv1.3\n"
    });
    egret.record("the mesh's connection", |line| line["original_dst"] == format!("{ORIGIN}:443"));
    let said = world.at("client", || curl(&["-k", "--max-time", "5", &format!("https://{DECOY}/")]));
    assert!(!said.status.success());
    assert!(world.at("client", || udp(DECOY, 1194)).is_err());
    // The proxy's own user reaches its control plane's ports nowhere else either, nor anybody's DNS.
    for port in [15012, 53] {
        let dials = format!("import socket; socket.create_connection(('{DECOY}',{port}),2)");
        let args = ["--reuid", "1337", "--regid", "1337", "--clear-groups", "/usr/bin/python3", "-c", &dials];
        world.at("client", || run("setpriv", &args));
    }
    let _ = (mesh.kill(), mesh.wait());
    capture.saw_nothing(&format!("dst host {DECOY}"));
}
