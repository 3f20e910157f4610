//! The proxies: their equivalent configurations, and what they cost.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::cost::cpu_of;
use crate::load::{self, Mode, Way};
use crate::support::dns::Dns;
use crate::support::{eventually, own_ip};

/// The name every hello asks for; the last of the rules.
pub const NAME: &str = "origin.bench.test";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Egret,
    Nginx,
    Haproxy,
    Envoy,
    Squid,
    /// No proxy at all.
    Direct,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Egret, Self::Nginx, Self::Haproxy, Self::Envoy, Self::Squid];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Egret => "egret",
            Self::Nginx => "nginx stream",
            Self::Haproxy => "HAProxy",
            Self::Envoy => "Envoy",
            Self::Squid => "squid (CONNECT)",
            Self::Direct => "no proxy",
        }
    }

    fn program(self) -> Option<PathBuf> {
        let places: &[&str] = match self {
            Self::Egret => return Some(env!("CARGO_BIN_EXE_egret").into()),
            Self::Nginx if !Path::new("/usr/lib/nginx/modules/ngx_stream_module.so").exists() => &[],
            Self::Nginx => &["/usr/sbin/nginx"],
            Self::Haproxy => &["/usr/sbin/haproxy"],
            Self::Envoy => {
                // The wheel of PyPI has the server itself here; the command around it is a script.
                let found = std::env::var_os("EGRET_BENCH_ENVOY").map(PathBuf::from);
                return found.filter(|path| path.exists());
            }
            Self::Squid if !Path::new("/usr/lib/squid/security_file_certgen").exists() => &[],
            Self::Squid => &["/usr/sbin/squid"],
            Self::Direct => &[],
        };
        places.iter().map(PathBuf::from).find(|path| path.exists())
    }

    pub fn is_here(self) -> bool {
        self.program().is_some()
    }
}

/// What all proxies share.
pub struct World {
    pub ip: IpAddr,
    dns: Dns,
}

impl World {
    pub fn new() -> Self {
        let (dns, ip) = (Dns::start(), own_ip());
        dns.answer(NAME, &[&ip.to_string()]);
        Self { ip, dns }
    }
}

/// A running proxy.
pub struct Peer {
    pub kind: Kind,
    ip: IpAddr,
    child: Child,
    folder: TempDir,
}

impl Peer {
    pub fn start(kind: Kind, world: &World, rules: usize, lines: bool) -> Self {
        Self::start_under(&[], kind, world, rules, lines)
    }

    /// Starts one as the child of a tool that looks on.
    fn start_under(under: &[&str], kind: Kind, world: &World, rules: usize, lines: bool) -> Self {
        let (ip, folder) = (own_ip(), tempfile::tempdir().unwrap());
        let dir = folder.path();
        let names: Vec<String> = (1..rules).map(|n| format!("host{n}.bench.test")).chain([NAME.to_owned()]).collect();
        let modes = [Mode::Echo, Mode::Down, Mode::Up];
        let program = kind.program().unwrap();
        let mut command = Command::new("taskset");
        command.args(["-c", "1"]).args(under).arg(&program);
        match kind {
            Kind::Egret => {
                fs::write(dir.join("names"), names.join("\n")).unwrap();
                let listeners: String = modes
                    .map(|mode| format!("  - {{ kind: sni, bind: \"{ip}:{0}\", port: {0} }}\n", mode.port()))
                    .concat();
                let ports = modes.map(|mode| format!("\"https:{}\"", mode.port())).join(", ");
                let access = if lines { "all" } else { "none" };
                let config = format!(
                    "listeners:\n{listeners}dns: {{ upstreams: [\"{}\"], min_ttl: 10m }}\n\
                     log: {{ output: {}, access: {access} }}\npolicy:\n  application_rules:\n    \
                     - {{ name: bench, fqdns_file: names, protocols: [{ports}], addresses: [\"127.0.0.0/8\"] }}\n",
                    world.dns.address,
                    dir.join("log").display()
                );
                fs::write(dir.join("egret.yaml"), config).unwrap();
                command.args(["run", "--config"]).arg(dir.join("egret.yaml"));
            }
            Kind::Nginx => {
                let map: String = names.iter().map(|name| format!("{name} {name};\n")).collect();
                let log = if lines {
                    format!(
                        "log_format l '$remote_addr $ssl_preread_server_name $upstream_addr $bytes_sent $bytes_received $session_time'; access_log {}/access l;",
                        dir.display()
                    )
                } else {
                    "access_log off;".to_owned()
                };
                let servers: String = modes
                    .map(|mode| {
                        format!("server {{ listen {ip}:{0}; ssl_preread on; proxy_half_close on; proxy_pass $listed:{0}; }}\n", mode.port())
                    })
                    .concat();
                let dns = world.dns.address;
                let config = format!(
                    "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off; master_process off; user root;\n\
                     pid {0}/pid; error_log {0}/error.log; worker_rlimit_nofile 20000;\nevents {{ worker_connections 18000; }}\n\
                     stream {{ {log} map_hash_max_size 262144; map_hash_bucket_size 128; resolver {dns} valid=600s ipv6=off;\n\
                     map $ssl_preread_server_name $listed {{ {map} }}\n{servers} }}\n",
                    dir.display()
                );
                fs::write(dir.join("nginx.conf"), config).unwrap();
                command.arg("-c").arg(dir.join("nginx.conf"));
            }
            Kind::Haproxy => {
                fs::write(dir.join("names"), names.join("\n")).unwrap();
                let names = dir.join("names");
                let log = if lines {
                    // To a file, as the others do.
                    "  log global\n  option tcplog\n"
                } else {
                    ""
                };
                let listeners: String = modes
                    .map(|mode| {
                        format!(
                            "listen p{0}\n  bind {ip}:{0}\n{log}  tcp-request inspect-delay 5s\n  \
                             acl listed req.ssl_sni -i -f {1}\n  tcp-request content reject if {{ req.ssl_hello_type 1 }} !listed\n  \
                             tcp-request content do-resolve(txn.ip,dns,ipv4) req.ssl_sni if {{ req.ssl_hello_type 1 }}\n  \
                             tcp-request content set-dst var(txn.ip) if {{ req.ssl_hello_type 1 }}\n  \
                             tcp-request content set-dst-port int({0}) if {{ req.ssl_hello_type 1 }}\n  \
                             tcp-request content accept if {{ req.ssl_hello_type 1 }}\n  tcp-request content reject if WAIT_END\n  \
                             server any 0.0.0.0:0\n",
                            mode.port(),
                            names.display()
                        )
                    })
                    .concat();
                let config = format!(
                    "global\n  nbthread 1\n  maxconn 7600\n  maxpipes 256\n{}defaults\n  mode tcp\n  option splice-auto\n  timeout connect 5s\n  timeout client 4h\n  timeout server 4h\n\
                     resolvers dns\n  nameserver one {}\n  hold valid 600s\n{listeners}",
                    if lines { "  log stdout format raw local0\n" } else { "" },
                    world.dns.address
                );
                fs::write(dir.join("haproxy.cfg"), config).unwrap();
                command.args(["-db", "-f"]).arg(dir.join("haproxy.cfg"));
            }
            Kind::Envoy => {
                let list: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
                let cache = "dns_cache_config: { name: c, dns_lookup_family: V4_ONLY, host_ttl: 600s, dns_refresh_rate: 600s, typed_dns_resolver_config: { name: envoy.network.dns_resolver.cares, typed_config: { \"@type\": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, resolvers: [ { socket_address: { address: DNSIP, port_value: DNSPORT } } ] } } }"
                    .replace("DNSIP", &world.dns.address.ip().to_string())
                    .replace("DNSPORT", &world.dns.address.port().to_string());
                let log = if lines {
                    format!(
                        "access_log: [ {{ name: f, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {}/access }} }} ], ",
                        dir.display()
                    )
                } else {
                    String::new()
                };
                let listeners: Vec<String> = modes
                    .map(|mode| {
                        let port = mode.port();
                        format!(
                            "{{ name: p{port}, address: {{ socket_address: {{ address: {ip}, port_value: {port} }} }}, \
                             listener_filters: [ {{ name: t, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector }} }} ], \
                             filter_chains: [ {{ filter_chain_match: {{ server_names: [{}] }}, filters: [ \
                             {{ name: s, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig, port_value: {port}, {cache} }} }}, \
                             {{ name: p, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, {log}cluster: c }} }} ] }} ] }}",
                            list.join(", ")
                        )
                    })
                    .to_vec();
                let config = format!(
                    "static_resources: {{ listeners: [ {} ], clusters: [ {{ name: c, lb_policy: CLUSTER_PROVIDED, \
                     circuit_breakers: {{ thresholds: [ {{ max_connections: 20000, max_pending_requests: 20000 }} ] }}, \
                     cluster_type: {{ name: envoy.clusters.dynamic_forward_proxy, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, {cache} }} }} }} ] }}\n",
                    listeners.join(",\n")
                );
                fs::write(dir.join("envoy.yaml"), config).unwrap();
                command.args(["--concurrency", "1", "--log-level", "error", "--disable-hot-restart", "-c"]);
                command.arg(dir.join("envoy.yaml"));
            }
            Kind::Squid => {
                // It sees hellos only behind CONNECT or a redirect; peeking wants a certificate that splicing never uses.
                fs::write(dir.join("names"), names.join("\n")).unwrap();
                fs::write(dir.join("hosts"), format!("{} {NAME}\n", world.ip)).unwrap();
                let certified = Command::new("openssl")
                    .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=bench"])
                    .arg("-keyout")
                    .arg(dir.join("ca"))
                    .arg("-out")
                    .arg(dir.join("certificate"))
                    .stderr(Stdio::null())
                    .status();
                assert!(certified.is_ok_and(|status| status.success()), "openssl makes a certificate");
                let d = dir.display();
                let made = Command::new("/usr/lib/squid/security_file_certgen")
                    .args(["-c", "-s", &format!("{d}/db"), "-M", "4MB"])
                    .stdout(Stdio::null())
                    .status();
                assert!(made.is_ok_and(|status| status.success()), "squid makes its store of certificates");
                let log = if lines { format!("stdio:{d}/access") } else { "none".to_owned() };
                let config = format!(
                    "http_port {ip}:{} ssl-bump tls-cert={d}/certificate tls-key={d}/ca generate-host-certificates=off\n\
                     sslcrtd_program /usr/lib/squid/security_file_certgen -s {d}/db -M 4MB\nsslcrtd_children 1\n\
                     acl listed ssl::server_name \"{d}/names\"\nacl asked dstdomain \"{d}/names\"\nacl hello at_step SslBump1\n\
                     http_access allow asked\nhttp_access deny all\nssl_bump peek hello\nssl_bump splice listed\nssl_bump terminate all\n\
                     hosts_file {d}/hosts\naccess_log {log}\ncache_log {d}/cache.log\npid_filename {d}/pid\ncache deny all\ncache_mem 0 MB\n\
                     cache_effective_user proxy\nmax_filedescriptors 18000\nnetdb_filename none\npinger_enable off\nread_timeout 4 hours\n\
                     client_lifetime 1 day\nshutdown_lifetime 0 seconds\nvisible_hostname bench\ncoredump_dir {d}\n",
                    Mode::Echo.port()
                );
                fs::write(dir.join("squid.conf"), config).unwrap();
                // It refuses to work as root; its name keeps its shared memory apart from another one's.
                let given = Command::new("chown").args(["-R", "proxy"]).arg(dir).status();
                assert!(given.is_ok_and(|status| status.success()), "squid's package has made its user");
                let name = format!("bench{}x{rules}x{lines}", std::process::id());
                command.args(["-N", "-n", &name, "-f"]).arg(dir.join("squid.conf"));
            }
            Kind::Direct => unreachable!("is not started"),
        }
        let said = fs::File::create(dir.join("said")).unwrap();
        command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
        let child = command.spawn().unwrap();
        let mut peer = Self { kind, ip, child, folder };
        eventually(&format!("{} serves", kind.name()), || {
            let said = || fs::read_to_string(peer.folder.path().join("said")).unwrap_or_default();
            assert!(matches!(peer.child.try_wait(), Ok(None)), "{} has ended: {}", kind.name(), said());
            load::answers(peer.at(Mode::Echo))
        });
        peer
    }

    pub fn at(&self, mode: Mode) -> Way {
        if self.kind == Kind::Squid {
            return Way { to: SocketAddr::new(self.ip, Mode::Echo.port()), connect: Some(mode.port()) };
        }
        SocketAddr::new(self.ip, mode.port()).into()
    }

    /// CPU seconds that the proxy's threads take while something is done.
    pub fn cpu(&self, done: impl FnOnce()) -> f64 {
        cpu_of(self.child.id(), done)
    }

    /// System calls of the proxy while something is done.
    pub fn system_calls(&self, done: impl FnOnce()) -> f64 {
        let summary = self.folder.path().join("calls");
        let mut tracer = Command::new("strace")
            .args(["-f", "-c", "-q", "-p", &self.child.id().to_string(), "-o"])
            .arg(&summary)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let traced = || fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let tracer_is = format!("TracerPid:\t{}\n", tracer.id());
        eventually("strace looks on", || traced().contains(&tracer_is));
        done();
        let _ = Command::new("kill").args(["-INT", &tracer.id().to_string()]).status();
        tracer.wait().unwrap();
        let text = fs::read_to_string(summary).unwrap();
        let total = text.lines().find(|line| line.ends_with(" total")).unwrap();
        // "% time  seconds  usecs/call  calls  errors", of which the second but last may be empty.
        let calls = total.split_whitespace().find_map(|word| word.parse::<u64>().ok().filter(|n| *n > 100));
        calls.unwrap() as f64
    }

    /// KiB.
    pub fn resident(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

/// Instructions of egret in user space for so many connections, and its start.
pub fn instructions(world: &World, rules: usize, connections: usize) -> f64 {
    let tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"];
    let mut peer = Peer::start_under(&tool, Kind::Egret, world, rules, false);
    load::connections(peer.at(Mode::Echo), connections, 1);
    let said = peer.folder.path().join("said");
    peer.end();
    let text = fs::read_to_string(said).unwrap();
    let line = text.lines().find_map(|line| line.split("Collected : ").nth(1));
    line.unwrap_or_else(|| panic!("callgrind counts: {text}")).trim().parse().unwrap()
}

impl Peer {
    fn end(&mut self) {
        // squid removes its shared memory when it is asked to end.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        eventually("the proxy has ended", || matches!(self.child.try_wait(), Ok(Some(_))));
    }
}
impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

/// Keeps a process on one core.
pub fn pin(pid: u32, core: usize) {
    let status =
        Command::new("taskset").args(["-a", "-cp", &core.to_string(), &pid.to_string()]).stdout(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "taskset (util-linux) keeps load and proxies apart");
}
