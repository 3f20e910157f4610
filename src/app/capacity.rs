//! What the machine has room for.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::admin;
use crate::config::Settings;
use crate::proxy::limits::Limits;
use crate::proxy::relay;

/// Descriptors for everything but connections and what they wait for: listeners, log, pages, and the relay's pipes.
const SPARE_DESCRIPTORS: u64 = 128 + 2 * admin::MAX_VISITORS as u64 + 2 * relay::MOST_PIPES as u64;

/// Names looked up at once, where descriptors allow: at ten milliseconds each, 25,000 a second.
const MAX_LOOKUPS: usize = 256;

/// Addresses tried at once beyond the first of their names, where descriptors allow.
const MAX_PARALLEL_DIALS: usize = 256;

/// What one relayed connection may cost: two sockets' own buffers, the session, and where clients speak TLS its state
/// and two copying buffers.
const BYTES_PER_CONNECTION: u64 = 160 << 10;

/// The soft limit on descriptors goes up to the hard one: nothing here uses `select(2)`.
pub(super) fn raise_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, "cannot raise the limit on descriptors");
    }
}

/// What the machine's memory and descriptors leave for connections, for peeking, and for what connections wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) connections: usize,
    pub(super) peek_memory: usize,
    /// Names looked up at once.
    pub(super) lookups: usize,
    /// Addresses tried at once beyond the first of their names.
    pub(super) parallel_dials: usize,
}

impl Room {
    pub(super) fn measure(settings: &Settings) -> Self {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard);
        let servers = settings.dns.most_servers();
        let room = Self::within(memory_limit(), descriptors, &settings.limits, servers);
        let needed = room.descriptors_beside(servers) + 2 * room.connections as u64;
        if needed > descriptors {
            tracing::warn!(
                needed,
                descriptors,
                "limits.connections and limits.lookups need more descriptors than there are; raise LimitNOFILE (ulimit -n), or write less"
            );
        }
        room
    }

    /// Descriptors for all but connections.
    const fn descriptors_beside(&self, servers: usize) -> u64 {
        // A look-up asks every server for both families, each over a socket of its own.
        SPARE_DESCRIPTORS + (2 * servers * self.lookups + self.parallel_dials) as u64
    }

    /// Peeking gets an eighth of the memory at most, connections (two descriptors each) half of it.
    fn within(memory: u64, descriptors: u64, limits: &Limits, servers: usize) -> Self {
        let fit = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let mut room = Self {
            connections: 0,
            peek_memory: limits.peek_memory.min(fit(memory / 8)),
            lookups: limits.lookups.unwrap_or_else(|| fit(descriptors / 64).clamp(8, MAX_LOOKUPS)),
            parallel_dials: fit(descriptors / 16).clamp(8, MAX_PARALLEL_DIALS),
        };
        let by_descriptors = descriptors.saturating_sub(room.descriptors_beside(servers)) / 2;
        let by_memory = memory / 2 / BYTES_PER_CONNECTION;
        room.connections = limits.connections.unwrap_or_else(|| fit(by_descriptors.min(by_memory)).max(16));
        room
    }
}

/// Bytes this process may use: the container's limit (cgroup v2) or the machine's memory.
pub(super) fn memory_limit() -> u64 {
    /// Where neither can be read, as on a machine without /proc.
    const UNKNOWN: u64 = 1 << 30;
    let cgroup = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib << 10)
    });
    match (cgroup, machine) {
        (Some(cgroup), Some(machine)) => u64::min(cgroup, machine),
        (one, other) => one.or(other).unwrap_or(UNKNOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_small_machine_still_serves_and_bounds_its_peeks() {
        let settings = Settings::parse(crate::config::DEFAULT, "t", Path::new(".")).unwrap();
        let room = |mebibytes: u64, descriptors| {
            let room = Room::within(mebibytes << 20, descriptors, &settings.limits, 2);
            (room.connections, room.peek_memory >> 20, room.lookups)
        };
        assert_eq!(room(64, 1 << 20), (204, 8, 256));
        assert_eq!(room(128, 1 << 20), (409, 16, 256));
        assert_eq!(room(512, 1 << 20), (1638, 64, 256));
        assert_eq!(room(8192, 1 << 20), (26_214, 256, 256));
        // 20,000 less 448, 1,024 for look-ups and 256 for dials.
        assert_eq!(room(8192, 20_000), (9136, 256, 256));
        assert_eq!(room(8192, 1024), (224, 256, 16));
        assert_eq!(room(1, 64), (16, 0, 8));
    }
}
