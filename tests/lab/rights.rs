//! What egret may do while it serves, what is left when it ends, and what it says where it may not.

use std::process::Command;

use crate::hop::{POLICY, config, hop, page, tcp};
use crate::support::{Egret, eventually, run, text};
use crate::world::{DECOY, PARTNER, Through, World};

#[test]
fn a_serving_egret_has_given_up_what_it_does_not_need() {
    let Some(world) = World::build(Through::One) else { return };
    let egret = hop(&world, &config(POLICY, ""));
    let status = std::fs::read_to_string(format!("/proc/{}/status", egret.pid())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
        line.split_whitespace().last().unwrap().to_owned()
    };
    // CAP_NET_ADMIN is bit 12.
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(field(set), "0000000000001000", "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()));
    // Every thread, not the first alone.
    for task in std::fs::read_dir(format!("/proc/{}/task", egret.pid())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(status.contains("CapEff:\t0000000000001000") && status.contains("Seccomp:\t2"), "{status}");
    }
    assert!(egret.errors().contains("kept         CAP_NET_ADMIN; no new privileges, seccomp, "), "{}", egret.errors());
}

#[test]
fn the_rights_of_the_systemd_unit_are_enough() {
    let Some(world) = World::build(Through::One) else { return };
    let unit = include_str!("../../deploy/egret-next-hop.service");
    let rights = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let rights = rights.to_lowercase().replace("cap_", ",+").replace(' ', "");
    let before = ["setpriv", "--bounding-set", &format!("-all{rights}")];
    let egret = world.at("hop1", || {
        Egret::run_by(&before, &config(POLICY, ""), "127.0.0.1".parse().unwrap(), &[], &["--netfilter"])
    });
    world.at("client", || {
        eventually("it serves", || tcp(PARTNER, 9000).is_ok());
        assert!(tcp(DECOY, 9000).is_err());
    });
    let kept = "kept         CAP_NET_ADMIN; no new privileges, seccomp, ";
    eventually(kept, || egret.errors().contains(kept));
    // And a reload reaches the kernel.
    let narrower = POLICY.replace("\"tcp:9000\", ", "");
    std::fs::write(egret.folder().join("egret.yaml"), config(&narrower, "")).unwrap();
    egret.signal("HUP");
    world.at("client", || eventually("the reload", || tcp(PARTNER, 9000).is_err()));
}

#[test]
fn what_stays_when_egret_ends_is_the_operators_choice() {
    let Some(world) = World::build(Through::One) else { return };
    let mut capture = world.capture();
    let state = || {
        world.at("hop1", || {
            let rules = text(&run("ip", &["rule"])).contains("fwmark");
            let table = text(&run("nft", &["list", "tables"])).contains("inet egret");
            (table, rules, std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim() == "1")
        })
    };
    let mut egret = hop(&world, &config(POLICY, ""));
    egret.signal("TERM");
    assert_eq!(egret.wait(), 0);
    assert_eq!(state(), (true, true, true), "keep");
    assert_eq!(world.at("client", || tcp(PARTNER, 9000)), Ok(()));
    assert!(world.at("client", || tcp(DECOY, 9000)).is_err());
    let removing = config(POLICY, "").replace("interfaces: [lan]", "interfaces: [lan], on_exit: remove");
    let mut egret = hop(&world, &removing);
    egret.signal("TERM");
    assert_eq!(egret.wait(), 0, "{}", egret.errors());
    assert_eq!(state(), (false, false, false), "remove");
    assert!(world.at("client", || tcp(DECOY, 9000)).is_err());
    capture.saw_nothing(&format!("dst host {DECOY}"));
    assert!(world.at("hop1", || page("readyz").is_empty()));
}

#[test]
fn without_the_right_or_the_tool_it_says_which() {
    let Some(world) = World::build(Through::One) else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.yaml");
    std::fs::write(&file, config(POLICY, "")).unwrap();
    assert!(run("chmod", &["-R", "a+rX", folder.path().to_str().unwrap()]).status.success());
    let egret = env!("CARGO_BIN_EXE_egret");
    let file = file.to_str().unwrap();
    // Where everybody may read it, whoever built it.
    let copy = folder.path().join("egret");
    std::fs::copy(egret, &copy).unwrap();
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", copy.to_str().unwrap()];
    for args in [&["netfilter", "apply"][..], &["netfilter", "remove"], &["run", "--netfilter"]] {
        let args = [&nobody[..], args, &["--config", file]].concat();
        let said = world.at("hop1", || run("setpriv", &args));
        assert_eq!(said.status.code(), Some(1), "{}", text(&said));
        assert!(text(&said).contains("run as root, or add CAP_NET_ADMIN"), "{}", text(&said));
    }
    let hidden = format!("mount -t tmpfs none /usr/sbin && {egret} netfilter apply --config {file}");
    let said = world.at("hop1", || Command::new("unshare").args(["-m", "sh", "-c", &hidden]).output().unwrap());
    assert_eq!(said.status.code(), Some(1));
    assert!(text(&said).contains("apt-get install nftables"), "{}", text(&said));
    let said = world.at("hop1", || run(egret, &["netfilter", "show", "--config", file]));
    assert!(said.status.success() && text(&said).contains("ip -4 rule add pref 82 not iif lo prohibit"));
}
