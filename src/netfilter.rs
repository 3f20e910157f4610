//! The kernel's part of a next hop: which flows come to egret, which are let through by address, and that nothing
//! else leaves.
//!
//! ```text
//! Settings ──▶ Plan ──▶ ruleset (text, for `nft`) ──▶ table inet egret
//!               │  └──▶ routes (netlink) ──▶ ip rules: no way for clients but by egret's mark
//!               └──▶ members ──▶ batch (netlink) ──▶ what changes while egret runs: set elements, never chains
//! ```
//!
//! Two barriers, each enough by itself. The table decides once per flow, at its first packet, and writes the decision
//! into the flow's conntrack mark: **captured** (comes to egret, never leaves the forward chain) or **forwarded**. The
//! policy routes give what carries no such mark no way out, so that a flushed table closes.

mod batch;
pub mod flows;
pub mod kernel;
pub mod members;
mod packet;
mod places;
pub mod plan;
mod refusals;
mod routes;
pub mod ruleset;
pub mod sidecar;
mod sysctl;
pub mod told;

use std::io::{ErrorKind, Write as _};
use std::process::{Command, Stdio};

pub use kernel::Kernel;
pub use plan::Plan;
pub use sidecar::Sidecar;

/// The state that a mark tells, in its highest byte; what is below is the rule's place.
pub const STATE: u32 = 0xff00_0000;
/// The flow comes to egret's transparent listener.
pub const CAPTURED: u32 = 0xe900_0000;
/// The flow is let through by address.
pub const FORWARDED: u32 = 0xea00_0000;
/// Places of flows that no network rule let through.
pub const BYPASSED: u32 = FORWARDED | 0x00ff_fffe;
pub const INGRESS: u32 = FORWARDED | 0x00ff_fffd;
/// Ingress whose client sees where it comes from.
pub const INGRESS_PLAIN: u32 = FORWARDED | 0x00ff_fffc;
/// Where refused packets are told (nfnetlink_log).
pub const LOG_GROUP: u16 = 1129;
/// The table's name, in the family `inet`.
pub const TABLE: &str = "egret";

/// The switches of forwarding, IPv4 and IPv6.
pub const FORWARDING: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

/// Why the kernel was not told.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("changing the kernel's rules needs a right that this process lacks; run as root, or add CAP_NET_ADMIN")]
    Right,
    #[error(
        "`nft` is not on this machine; install nftables (apt-get install nftables), or load what `egret netfilter show` prints"
    )]
    NoNft,
    #[error("nft refused the rules; the table is as it was, and policy routes shut what it does not let out: {0}")]
    Nft(String),
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
}

impl KernelError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(nix::libc::EPERM) => Self::Right,
            _ => Self::Io { what: what.into(), source },
        }
    }
}

/// Whether this process may change the kernel's rules.
///
/// # Errors
/// [`KernelError::Right`].
pub fn may_apply() -> Result<(), KernelError> {
    match caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN) {
        Ok(true) => Ok(()),
        _ => Err(KernelError::Right),
    }
}

/// Puts a plan into the kernel: the barrier of routes first, then the table in one transaction, and forwarding last.
/// What could be better and was left alone is returned.
///
/// # Errors
/// [`KernelError`]; clients are shut in then, or as they were.
pub fn apply(plan: &Plan) -> Result<Vec<String>, KernelError> {
    may_apply()?;
    routes::install(plan)?;
    // A running egret may need as many places as it has.
    let standing = batch::socket().and_then(|socket| refusals::counters(&socket));
    let standing = standing.map_err(KernelError::io("cannot read the kernel's table"))?;
    let [allows, denies] = standing.iter().find_map(|(name, _)| ruleset::any_places(name)).unwrap_or_default();
    let places = [plan.places[0].max(allows), plan.places[1].max(denies)];
    let plan = &Plan { places, ..plan.clone() };
    nft(&ruleset::text(plan, ruleset::nonce()))?;
    if !plan.dnat.is_empty() {
        flows::forget_untranslated(&plan.dnat).map_err(KernelError::io("cannot end flows from before the ingress"))?;
    }
    sysctl::set(plan)
}

/// Puts a sidecar's table into the kernel, in one transaction.
///
/// # Errors
/// [`KernelError`]; nothing has changed then.
pub fn apply_sidecar(sidecar: &Sidecar) -> Result<(), KernelError> {
    may_apply()?;
    nft(&sidecar.text())
}

/// Takes everything out of the kernel again; forwarding first.
///
/// # Errors
/// [`KernelError`].
pub fn remove() -> Result<(), KernelError> {
    may_apply()?;
    sysctl::stop_forwarding()?;
    batch::delete_table()?;
    routes::remove()
}

/// The same where a next hop's part is there; a sidecar's table alone goes without a change of forwarding, which is not
/// egret's then.
///
/// # Errors
/// As [`remove`].
pub fn remove_what_is_there() -> Result<(), KernelError> {
    may_apply()?;
    let counters = batch::socket().and_then(|socket| refusals::counters(&socket));
    let counters = counters.map_err(KernelError::io("cannot read the kernel's table"))?;
    if counters.iter().any(|(name, _)| ruleset::any_places(name).is_some()) || routes::any()? {
        return remove();
    }
    batch::delete_table()
}

/// Runs `nft -f -`: one transaction, all of it or nothing.
fn nft(text: &str) -> Result<(), KernelError> {
    let spawn = |program: &str| {
        let mut command = Command::new(program);
        command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
    };
    // Where a service's PATH has no sbin.
    let mut tried = ["nft", "/usr/sbin/nft", "/sbin/nft"].iter().map(|program| spawn(program));
    let is_there = |outcome: &std::io::Result<_>| !outcome.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound);
    let found = tried.find(is_there).ok_or(KernelError::NoNft)?;
    let mut child = found.map_err(KernelError::io("cannot run nft"))?;
    let lost = KernelError::io("cannot talk to nft");
    if let Some(mut stdin) = child.stdin.take()
        && let Err(error) = stdin.write_all(text.as_bytes())
        && error.kind() != ErrorKind::BrokenPipe
    {
        return Err(lost(error));
    }
    let output = child.wait_with_output().map_err(lost)?;
    if output.status.success() {
        return Ok(());
    }
    // Its complaint repeats the whole line behind the message.
    let said = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = said.lines().filter(|line| line.contains("rror")).take(3).collect();
    let said = if errors.is_empty() { format!("{} {}", output.status, said.trim()) } else { errors.join("; ") };
    Err(KernelError::Nft(said))
}
