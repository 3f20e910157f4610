//! Settings: the text (`file`), its shape (`schema`), its meaning (`check`, `rules`).
//!
//! A [`Settings`] cannot be wrong: it exists only if no fault was found, and all faults are found at once.
//! Opens no socket, resolves nothing, reads no clock; the files a text names are read here.

mod bundle;
mod check;
mod document;
mod file;
mod lint;
mod netfilter;
mod rules;
mod schema;
mod tags;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv6Net};

use crate::bundle::Asked;
use crate::dns::HostsFile;
use crate::files::{Refreshed, StampedFile, read_bounded, stamp};
use crate::identity::{TlsFiles, UsersFile};
pub use document::Place;
use egret_core::name::HostName;
use egret_core::policy::{OwnAddresses, Policy};
use egret_core::rule::{AppProtocol, AppRule, NetRule};
use egret_core::wire::http::HeadLimits;
pub use netfilter::{Dnat, Learn, Netfilter};
pub use schema::schema;

/// The configuration in the binary: a forward proxy for this machine with the AKS rules.
pub const DEFAULT: &str = include_str!("../config/default.yaml");

fn as_json(path: &Path) -> Result<serde_json::Value, String> {
    let tree = document::parse(&read_bounded(path)?).map_err(|fault| fault.at(&path.display().to_string()))?;
    Ok(tree.json_without(&[], ""))
}

/// The control socket that a configuration names, whatever else is wrong with it.
///
/// # Errors
/// Where the file cannot be read, or is not YAML.
pub fn control_socket(path: &Path) -> Result<Option<PathBuf>, String> {
    let all = as_json(path)?;
    let socket = all.pointer("/control/socket").and_then(|socket| socket.as_str());
    Ok(socket.map(|socket| path.parent().unwrap_or_else(|| Path::new(".")).join(socket)))
}

/// The rule sets that a configuration asks for, in their order, whatever else stands in it.
///
/// # Errors
/// Where the file cannot be read, or the list of rule sets not be understood.
pub fn bundles(path: &Path) -> Result<Vec<Asked>, String> {
    let bundles = as_json(path)?.pointer("/policy/bundles").cloned().unwrap_or_else(|| serde_json::json!([]));
    serde_json::from_value(bundles).map_err(|error| format!("{}: policy.bundles: {error}", path.display()))
}

/// Checked settings.
#[derive(Debug)]
pub struct Settings {
    pub listeners: Vec<ListenerSettings>,
    pub dns: DnsSettings,
    pub rules: Rules,
    pub own_addresses: Vec<IpNet>,
    pub netfilter: Option<Netfilter>,
    /// Addresses to dial from; empty: the system's choice.
    pub sources: Vec<IpAddr>,
    pub learn: Learn,
    pub limits: Limits,
    pub log: LogSettings,
    pub admin: Option<SocketAddr>,
    pub health: Option<SocketAddr>,
    /// Who may ask for health, besides this machine; `None`: everyone.
    pub health_from: Option<Vec<IpNet>>,
    /// The control socket's path.
    pub control: Option<PathBuf>,
    /// Files that the policy was read from, the configuration's among them, as they were before.
    pub files: Vec<StampedFile>,
    /// Whom refused clients may ask.
    pub contact: Option<Arc<str>>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<Fault>,
    /// What is meant and yet worth a word.
    pub notes: Vec<Fault>,
}

/// Checked rules, ready to be compiled.
#[derive(Debug, Default)]
pub struct Rules {
    pub apps: Vec<AppRule>,
    pub nets: Vec<NetRule>,
    pub nat64: Option<Ipv6Net>,
    /// Whether flows of the kernel end with the rule that let them out.
    pub cuts: bool,
    /// Whether the policy is read again when its files change.
    pub watches: bool,
    /// The prefixes of bundles' rule names, one for each bundle.
    pub bundles: Vec<String>,
    /// Where each rule stands in the file.
    pub origins: Origins,
}

impl Rules {
    /// Makes the policy of them.
    #[must_use]
    pub fn compile(self, own: Arc<OwnAddresses>) -> Policy {
        Policy::compile(self.apps, self.nets, self.nat64, own)
    }
}

/// Where rules stand, in their order.
#[derive(Debug, Default)]
pub struct Origins {
    pub apps: Vec<Origin>,
    pub nets: Vec<Origin>,
}

/// Where one rule stands.
#[derive(Debug)]
pub struct Origin {
    /// Its key path, or its bundle's.
    pub path: String,
    pub is_bundle: bool,
    /// Patterns that stand in the file itself, before those of `fqdns_file`.
    pub inline: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSettings {
    pub bind: SocketAddr,
    pub kind: ListenerKind,
    /// Who must say whose connections they bring; `None`: nobody may.
    pub proxies: Option<Vec<IpNet>>,
    pub tls: Option<Arc<Refreshed<TlsFiles>>>,
    pub users: Option<Arc<Refreshed<UsersFile>>>,
    pub adds: Adds,
}

/// What is said of the way in plain HTTP requests and answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adds {
    /// RFC 9110 §7.6.3.
    pub via: bool,
    pub forwarded_for: bool,
}

impl ListenerSettings {
    /// What the log calls it, such as `forward:127.0.0.1:3128`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}:{}", self.kind.as_str(), self.bind)
    }

    /// Whether clients must show who they are.
    #[must_use]
    pub fn identifies(&self) -> bool {
        self.users.is_some() || self.certifies()
    }

    /// Whether clients must show a certificate.
    #[must_use]
    pub fn certifies(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.files().client_ca.is_some())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    Forward,
    /// The port every name is dialled at.
    Sni {
        port: u16,
        /// `None`: whichever of the two the port's rules allow.
        protocol: Option<AppProtocol>,
    },
    Transparent {
        capture: Capture,
        /// Whether upstreams see the client's address.
        preserve_source: bool,
    },
}

/// How the kernel hands connections over, and so where it says where they were going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// Routed traffic: the socket's own address is the original destination.
    Tproxy,
    /// The machine's own traffic: netfilter remembers the original destination.
    Redirect,
}

impl ListenerKind {
    /// Whether the kernel hands it connections in this way.
    #[must_use]
    pub fn captures(self, by: Capture) -> bool {
        matches!(self, Self::Transparent { capture, .. } if capture == by)
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Sni { .. } => "sni",
            Self::Transparent { .. } => "transparent",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    /// Empty: the system's.
    pub upstreams: Vec<DnsUpstream>,
    pub zones: Vec<(HostName, Vec<DnsUpstream>)>,
    /// PEM text of the authorities for encrypted upstreams.
    pub authorities: Option<Arc<str>>,
    pub min_ttl: Duration,
    pub max_ttl: Duration,
    pub negative_ttl: Duration,
    /// How long an answer may still be used when its time is over and no server answers.
    pub stale: Duration,
    /// Asked before any server.
    pub hosts: Option<Arc<Refreshed<HostsFile>>>,
    /// Whether questions have an OPT record (RFC 6891).
    pub edns: bool,
    /// Whether questions are in random letter case (draft-vixie-dnsext-dns0x20).
    pub randomize_case: bool,
}

impl DnsSettings {
    /// The most servers that one name may be asked of at once.
    #[must_use]
    pub fn most_servers(&self) -> usize {
        /// What resolv.conf(5) may name.
        const SYSTEM: usize = 3;
        let default = if self.upstreams.is_empty() { SYSTEM } else { self.upstreams.len() };
        self.zones.iter().map(|(_, servers)| servers.len()).fold(default, usize::max)
    }
}

/// One server that answers questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsUpstream {
    pub ip: IpAddr,
    pub port: u16,
    pub transport: DnsTransport,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsTransport {
    /// UDP, and TCP where an answer was cut.
    Plain,
    /// RFC 7858; the name its certificate must bear.
    Tls { name: Arc<str> },
    /// RFC 8484.
    Https { name: Arc<str>, path: Arc<str> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub hello: usize,
    pub peek: Duration,
    pub head: HeadLimits,
    pub dns: Duration,
    pub dial: Duration,
    pub idle: Duration,
    pub keepalive: Duration,
    pub drain: Duration,
    /// `None`: from descriptors and memory.
    pub connections: Option<usize>,
    pub connections_per_client: PerClient,
    pub peek_memory: usize,
    /// Between two requests of one connection.
    pub next_request: Duration,
    /// Names that are looked up at once. `None`: from descriptors.
    pub lookups: Option<usize>,
    /// Bytes of answers that are kept.
    pub dns_cache: usize,
    /// Addresses of a name that are tried.
    pub dial_addresses: usize,
}

/// Connections at once from one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerClient {
    /// A quarter of all, where clients have addresses of their own.
    Auto,
    Unlimited,
    Most(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    pub format: LogFormat,
    pub output: LogOutput,
    pub access: LogAccess,
    pub overflow: LogOverflow,
    /// Whether flows that the kernel let out have a line.
    pub net_all: bool,
    /// How long something is open before it has a line; `None`: it has one at its end.
    pub open: Option<Duration>,
    /// Whether connections without a byte have a line.
    pub empty: bool,
}

/// What happens where lines come faster than they can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOverflow {
    /// Lines are lost, and counted.
    Drop,
    /// New connections and requests wait.
    Block,
}

/// Which lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogAccess {
    All,
    Refused,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    Stdout,
    Stderr,
    File(PathBuf),
}

impl fmt::Display for LogOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::Stderr => f.write_str("stderr"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// One thing wrong with a configuration, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub place: Place,
    /// Such as `policy.application_rules[2].fqdns[0]`; empty where no key is meant.
    pub path: String,
    pub message: String,
}

/// Why there are no settings.
#[derive(Debug)]
pub struct ConfigError {
    /// The file's name as given; `default.yaml` for the one in the binary.
    pub file: String,
    /// At least one, in the order of the text.
    pub faults: Vec<Fault>,
    /// Files that were read, or looked for, as they were before.
    pub files: Vec<StampedFile>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.faults {
            writeln!(f, "{}", fault.at(&self.file))?;
        }
        write!(f, "{}: {} fault{}", self.file, self.faults.len(), if self.faults.len() == 1 { "" } else { "s" })
    }
}

impl Fault {
    /// `egret.yaml:12:7: policy.mode: message`.
    #[must_use]
    pub fn at(&self, file: &str) -> String {
        let Place { line, column } = self.place;
        match (line, self.path.as_str()) {
            (0, _) => format!("{file}: {}", self.message),
            (_, "") => format!("{file}:{line}:{column}: {}", self.message),
            (_, path) => format!("{file}:{line}:{column}: {path}: {}", self.message),
        }
    }
}

impl Settings {
    /// Reads a configuration file, and the files it names.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::read(path, check::Depth::Load)
    }

    /// The kernel's part, where others' traffic is routed here.
    #[must_use]
    pub fn next_hop(&self) -> Option<&Netfilter> {
        self.netfilter.as_ref().filter(|part| !part.clients.is_empty())
    }

    /// Whether egret is in a pod whose traffic is led to it by a table that it cannot change, and serves only by it.
    #[must_use]
    pub fn needs_sidecar_table(&self) -> bool {
        self.next_hop().is_none()
            && self.listeners.iter().any(|listener| listener.kind.captures(Capture::Redirect))
            && self.netfilter.as_ref().is_none_or(|part| part.is_required)
    }

    /// The keys, but for `policy`, that say something else in another one.
    #[must_use]
    pub fn differs(&self, other: &Self) -> Vec<&'static str> {
        let all = [
            ("listeners", self.listeners != other.listeners),
            ("dns", self.dns != other.dns),
            ("own_addresses", self.own_addresses != other.own_addresses),
            ("netfilter", self.netfilter != other.netfilter),
            ("upstream", self.sources != other.sources),
            ("learn", self.learn != other.learn),
            ("limits", self.limits != other.limits),
            ("log", self.log != other.log),
            ("messages", self.contact != other.contact),
            ("admin", self.admin != other.admin),
            ("control", self.control != other.control),
            ("health", self.health != other.health || self.health_from != other.health_from),
        ];
        all.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }

    /// Reads a configuration file as [`Settings::load`] does, and also looks for what is probably not meant.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault.
    pub fn lint(path: &Path) -> Result<Self, ConfigError> {
        Self::read(path, check::Depth::Lint)
    }

    /// The same for a text.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault.
    pub fn lint_text(text: &str, file: &str) -> Result<Self, ConfigError> {
        Self::from_text(text, file, Path::new("."), check::Depth::Lint)
    }

    fn read(path: &Path, depth: check::Depth) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let own = (path.to_owned(), stamp(path));
        let text = read_bounded(path).map_err(|message| ConfigError {
            file: file.clone(),
            faults: vec![Fault { place: Place::default(), path: String::new(), message }],
            files: vec![own.clone()],
        })?;
        match Self::from_text(&text, &file, path.parent().unwrap_or_else(|| Path::new(".")), depth) {
            Ok(mut settings) => {
                settings.files.push(own);
                Ok(settings)
            }
            Err(mut error) => {
                error.files.push(own);
                Err(error)
            }
        }
    }

    /// Checks a configuration's text; relative paths in it start at `folder`.
    ///
    /// # Errors
    /// [`ConfigError`] with every fault.
    pub fn parse(text: &str, file: &str, folder: &Path) -> Result<Self, ConfigError> {
        Self::from_text(text, file, folder, check::Depth::Load)
    }

    fn from_text(text: &str, file: &str, folder: &Path, depth: check::Depth) -> Result<Self, ConfigError> {
        let mut files = Vec::new();
        match check::settings(text, folder, depth, &mut files) {
            Ok(settings) => Ok(Self { files, ..settings }),
            Err(mut faults) => {
                faults.sort_by_key(|fault| fault.place);
                Err(ConfigError { file: file.to_owned(), faults, files })
            }
        }
    }
}

#[cfg(test)]
mod tests;
