//! The kernel's settings that forwarding needs (Documentation/networking/ip-sysctl.rst).

use std::path::{Path, PathBuf};

use super::error::KernelError;
use super::names::FORWARDING;
use super::plan::Plan;

const NET: &str = "/proc/sys/net";
/// Flows at once, below which a busy subnet may find no room; a flow without room is dropped.
const ENOUGH_FLOWS: u64 = 131_072;
/// Ports that one destination can be dialled from, below which a busy name may find none.
const ENOUGH_PORTS: u64 = 28_000;

fn write(path: &Path, value: &str) -> Result<(), KernelError> {
    std::fs::write(path, value).map_err(KernelError::io(format!("cannot set {} to {value}", path.display())))
}

fn read(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(Path::new(NET).join(path)).ok()?.trim().to_owned())
}

/// Sets what forwarding needs, forwarding itself last; what could be better is returned.
pub(super) fn set(plan: &Plan) -> Result<Vec<String>, KernelError> {
    let net = Path::new(NET);
    // Packets to egret have addresses that are not this machine's. The table itself drops what clients forge.
    for interface in interfaces("ipv4") {
        match write(&interface.join("rp_filter"), "0") {
            // The interface has gone since it was listed.
            Err(KernelError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            outcome => outcome?,
        }
    }
    // The bytes and the time of a flow are in its record.
    for what in ["nf_conntrack_acct", "nf_conntrack_timestamp"] {
        let path = net.join("netfilter").join(what);
        if path.exists() {
            write(&path, "1")?;
        }
    }
    let [v4, v6] = FORWARDING.map(Path::new);
    write(v4, "1")?;
    if plan.has_v6() {
        // A router takes no route from advertisements, unless configured to; from clients it takes none.
        let is_clients =
            |path: &PathBuf| path.file_name().is_some_and(|name| plan.interfaces.iter().any(|of| **of == *name));
        for interface in interfaces("ipv6").into_iter().filter(|path| !is_clients(path)) {
            let accepts = interface.join("accept_ra");
            if std::fs::read_to_string(&accepts).is_ok_and(|value| value.trim() == "1") {
                write(&accepts, "2")?;
            }
        }
        write(v6, "1")?;
    }
    let absent = absent_interfaces(plan)
        .map(|name| format!("netfilter.interfaces: this machine has no interface {name}: no client can come in by it"));
    Ok(absent.chain(advice()).collect())
}

/// Where clients should come in, and no interface is.
pub(super) fn absent_interfaces(plan: &Plan) -> impl Iterator<Item = &str> {
    let names = plan.interfaces.iter().map(String::as_str);
    names.filter(|name| nix::net::if_::if_nametoindex(*name).is_err())
}

/// The forwarding that is off, if any, as sysctl(8) names it.
pub(super) fn not_forwarding(plan: &Plan) -> Option<&'static str> {
    let [v4, v6] = FORWARDING;
    let is_off = |path| std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "0");
    [("net.ipv4.ip_forward", v4, true), ("net.ipv6.conf.all.forwarding", v6, plan.has_v6())]
        .into_iter()
        .find_map(|(name, path, is_needed)| (is_needed && is_off(path)).then_some(name))
}

/// Switches forwarding off in both families.
pub(super) fn stop_forwarding() -> Result<(), KernelError> {
    // A kernel may be without IPv6.
    FORWARDING.iter().map(Path::new).filter(|path| path.exists()).try_for_each(|path| write(path, "0"))
}

/// The settings of every interface; the greater of an interface's own and that of `all` counts.
fn interfaces(family: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(Path::new(NET).join(family).join("conf"));
    all.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn advice() -> Vec<String> {
    let number = |path| read(path).and_then(|text| text.parse::<u64>().ok());
    let mut said = Vec::new();
    if let Some(most) = number("netfilter/nf_conntrack_max").filter(|most| *most < ENOUGH_FLOWS) {
        said.push(format!("net.netfilter.nf_conntrack_max is {most}: more flows at once are dropped; {ENOUGH_FLOWS} or more are usual on a next hop"));
    }
    let ports = read("ipv4/ip_local_port_range").and_then(|text| {
        let (low, high) = text.split_once(char::is_whitespace)?;
        Some(high.trim().parse::<u64>().ok()?.saturating_sub(low.parse().ok()?))
    });
    if let Some(ports) = ports.filter(|ports| *ports < ENOUGH_PORTS) {
        said.push(format!("net.ipv4.ip_local_port_range has {ports} ports: so many connections can lead to one destination at once; widen it"));
    }
    said
}
