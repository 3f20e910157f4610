//! Why the kernel's rules could not be changed.

/// Why a change did not reach the kernel.
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
