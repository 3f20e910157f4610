//! What egret gives up once its sockets are bound: rights, new programs, files.
//!
//! Rights, Landlock and seccomp hold for the calling thread and those it starts: all of it happens before the runtime.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// What of the right to change the network is needed while serving.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Set elements of a next hop, sockets with foreign addresses.
    pub network: bool,
    /// Files and folders that are written to.
    pub writes: Vec<PathBuf>,
}

/// What is left, for the start-up screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    rights: Vec<String>,
    /// Landlock as far as the kernel has it.
    files: &'static str,
    calls: String,
}

/// Why a privilege could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("cannot give up {what}: {why}")]
pub struct PrivilegeError {
    what: &'static str,
    why: String,
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> PrivilegeError {
    move |error| PrivilegeError { what, why: error.to_string() }
}

/// System calls that serving never makes. What they would be good for is getting further into a machine.
const FORBIDDEN: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
    libc::SYS_pidfd_getfd,
    libc::SYS_io_uring_setup,
    libc::SYS_name_to_handle_at,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_open_by_handle_at,
    libc::SYS_acct,
    libc::SYS_quotactl,
];

/// Gives up everything but what is needed. Must run before other threads do.
///
/// # Errors
/// [`PrivilegeError`], where the kernel refuses; Landlock or seccomp that it does not have is logged, and not an error.
pub fn give_up(needs: &Needs) -> Result<Kept, PrivilegeError> {
    let rights = rights(needs)?;
    nix::sys::prctl::set_no_new_privs().map_err(failed("new privileges"))?;
    let files = files(needs).map_err(failed("files"))?;
    // Some sandboxes allow no filters of one's own.
    let calls = match calls() {
        Ok(()) => "seccomp".to_owned(),
        Err(error) => format!("no seccomp ({})", error.why),
    };
    Ok(Kept { rights, files, calls })
}

fn rights(needs: &Needs) -> Result<Vec<String>, PrivilegeError> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed("rights"))?;
    let wanted = [Capability::CAP_NET_ADMIN].into_iter().filter(|right| needs.network && permitted.contains(right));
    let kept: CapsHashSet = wanted.collect();
    // The bounding set may be narrowed with CAP_SETPCAP alone; without it, no_new_privs keeps programs from gaining any.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(failed("rights"))? {
        for right in caps::read(None, CapSet::Bounding).map_err(failed("rights"))?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *right).map_err(failed("rights"))?;
        }
    }
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).map_err(failed("rights"))?;
    }
    caps::set(None, CapSet::Effective, &kept).map_err(failed("rights"))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed("rights"))?;
    let mut names: Vec<String> = kept.iter().map(ToString::to_string).collect();
    names.sort();
    Ok(names)
}

/// Everything may be read, as before; written is what must be, and nothing is run.
fn files(needs: &Needs) -> Result<&'static str, landlock::RulesetError> {
    let abi = ABI::V5;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .create()?;
    let rule = |path: &Path, access: BitFlags<AccessFs>| PathFd::new(path).ok().map(|fd| PathBeneath::new(fd, access));
    let reads = AccessFs::ReadFile | AccessFs::ReadDir;
    if let Some(rule) = rule(Path::new("/"), reads) {
        ruleset = ruleset.add_rule(rule)?;
    }
    for path in &needs.writes {
        let access = if path.is_dir() {
            AccessFs::from_all(abi) & !AccessFs::Execute
        } else {
            AccessFs::from_file(abi) & !AccessFs::Execute
        };
        if let Some(rule) = rule(path, access) {
            ruleset = ruleset.add_rule(rule)?;
        }
    }
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => "Landlock",
        RulesetStatus::NotEnforced => "no Landlock in this kernel",
    })
}

fn calls() -> Result<(), PrivilegeError> {
    let mut rules: Rules = FORBIDDEN.iter().map(|call| (*call, Vec::new())).collect();
    // A thread, yes; a user namespace, in which it would have every right, no.
    let user = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(user), user);
    let condition = condition.and_then(|condition| SeccompRule::new(vec![condition]));
    rules.insert(libc::SYS_clone, vec![condition.map_err(failed("system calls"))?]);
    refuse(rules, libc::EPERM)?;
    // Its flags stand in memory, where no filter sees them; libraries fall back to clone.
    refuse(Rules::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn refuse(rules: Rules, errno: i32) -> Result<(), PrivilegeError> {
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().map_err(failed("system calls"))?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).map_err(failed("system calls"))?;
    let program: BpfProgram = filter.try_into().map_err(failed("system calls"))?;
    seccompiler::apply_filter(&program).map_err(failed("system calls"))
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rights = if self.rights.is_empty() { "no rights".to_owned() } else { self.rights.join(", ") };
        write!(f, "{rights}; no new privileges, {}, {}", self.calls, self.files)
    }
}
