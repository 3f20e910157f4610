//! Putting a plan into the kernel, and taking it out again.

use std::io::{ErrorKind, Write as _};
use std::process::{Command, Stdio};

use super::error::{KernelError, may_apply};
use super::plan::Plan;
use super::sidecar::Sidecar;
use super::{batch, conntrack, names, nflog, routes, ruleset, sysctl};

/// Puts a plan into the kernel: the barrier of routes first, then the table in one transaction, and forwarding last.
/// What could be better and was left alone is returned.
///
/// # Errors
/// [`KernelError`]; clients are shut in then, or as they were.
pub fn apply(plan: &Plan) -> Result<Vec<String>, KernelError> {
    may_apply()?;
    routes::install(plan)?;
    // A running egret may need as many slots as it has.
    let standing = batch::socket().and_then(|socket| nflog::counters(&socket));
    let standing = standing.map_err(KernelError::io("cannot read the kernel's table"))?;
    let [allows, denies] = standing.iter().find_map(|(name, _)| names::any_slots(name)).unwrap_or_default();
    let slots = [plan.slots[0].max(allows), plan.slots[1].max(denies)];
    let plan = &Plan { slots, ..plan.clone() };
    nft(&ruleset::text(plan, ruleset::nonce()))?;
    if !plan.dnat.is_empty() {
        conntrack::forget_untranslated(&plan.dnat)
            .map_err(KernelError::io("cannot end flows from before the ingress"))?;
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
    let counters = batch::socket().and_then(|socket| nflog::counters(&socket));
    let counters = counters.map_err(KernelError::io("cannot read the kernel's table"))?;
    if counters.iter().any(|(name, _)| names::any_slots(name).is_some()) || routes::any()? {
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
