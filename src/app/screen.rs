//! What egret does, on one screen.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use crate::config::Settings;
use crate::dns::Resolver;
use crate::privileges::Kept;
use crate::proxy::limits::PerClient;
use crate::proxy::listen::Listener;
use crate::proxy::listen::settings::{Capture, ListenerKind, ListenerSettings};
use egret_core::policy::Policy;
use egret_core::wire::Expected;

/// The start-up screen's facts that go into other hands while building.
pub(super) struct Screen {
    source: String,
    /// The file, where there is one.
    config: Option<String>,
    listeners: Vec<String>,
    admin: Option<SocketAddr>,
    health: Option<SocketAddr>,
    most: usize,
    per_client: Option<usize>,
    /// Where to try it, and what curl must show besides.
    forward: Option<(&'static str, SocketAddr, String)>,
    warnings: usize,
}

impl Screen {
    pub(super) fn of(settings: &Settings, config: Option<&Path>, most: usize, per_client: Option<usize>) -> Self {
        let config = config.map(|file| file.display().to_string());
        let behind =
            |l: &ListenerSettings| l.proxies.as_ref().map(|_| ", behind the PROXY protocol").unwrap_or_default();
        let listeners = settings.listeners.iter().map(|l| match l.kind {
            ListenerKind::Forward => {
                let tls = if l.tls.is_some() { ", inside TLS" } else { "" };
                let identified = if l.identifies() { ", for clients that identify themselves" } else { "" };
                format!("forward      {}  (HTTP CONNECT, HTTP, SOCKS5{tls}{identified}{})", l.bind, behind(l))
            }
            ListenerKind::Sni { port, speaks } => {
                let only = match speaks {
                    Expected { http: false, .. } => ", https only",
                    Expected { tls: false, .. } => ", http only",
                    Expected { .. } => "",
                };
                format!("sni          {}  (to port {port}{only}{})", l.bind, behind(l))
            }
            ListenerKind::Dns => format!("dns          {}  (answers clients, UDP and TCP)", l.bind),
            ListenerKind::Transparent { capture, .. } => {
                let how = match capture {
                    Capture::Tproxy => "routed traffic, by TPROXY",
                    Capture::Redirect => "this machine's own traffic, by REDIRECT",
                };
                format!("transparent  {}  ({how}{})", l.bind, behind(l))
            }
        });
        let open = |l: &&ListenerSettings| l.kind == ListenerKind::Forward && l.proxies.is_none();
        let forward = settings.listeners.iter().find(open).map(|l| {
            let scheme = if l.tls.is_some() { "https" } else { "http" };
            let user = l.users.as_ref().map(|_| " -U NAME:PASSWORD").unwrap_or_default();
            let certificate = if l.certifies() { " --proxy-cert FILE --proxy-key FILE" } else { "" };
            (scheme, l.bind, format!("{user}{certificate}"))
        });
        Self {
            source: config.clone().unwrap_or_else(|| "built in (config/default.yaml)".to_owned()),
            listeners: listeners.collect(),
            admin: settings.admin,
            health: settings.health,
            most,
            per_client: per_client.filter(|_| {
                let is_number = settings.limits.connections_per_client != PerClient::Auto;
                is_number || settings.listeners.iter().any(|l| !Listener::new(l, None).has_shared_address())
            }),
            forward,
            // The built-in file is what it is meant to be.
            warnings: config.as_ref().map_or(0, |_| settings.warnings.len()),
            config,
        }
    }

    pub(super) fn text(&self, policy: &Policy, dns: &Resolver, kept: Option<&Kept>) -> String {
        let (rules, patterns) = policy.size();
        let mut out = format!("egret {} lets out only what is named\n\n", env!("CARGO_PKG_VERSION"));
        let _ = writeln!(out, "  settings     {}", self.source);
        for listener in &self.listeners {
            let _ = writeln!(out, "  {listener}");
        }
        if let Some(admin) = self.admin {
            let _ = writeln!(out, "  admin        {admin}  (/metrics, /healthz, /readyz)");
        }
        if let Some(health) = self.health {
            let _ = writeln!(out, "  health       {health}  (/healthz, /readyz)");
        }
        let _ = writeln!(out, "  policy       {rules} rules with {patterns} names and patterns; all else is refused");
        let _ = writeln!(out, "  dns          {}", dns.described());
        let per_client = self.per_client.map_or_else(String::new, |n| format!(", {n} from one client"));
        let _ = writeln!(out, "  limits       {} connections{per_client}", self.most);
        if let Some(kept) = kept {
            let _ = writeln!(out, "  kept         {kept}");
        }
        if self.warnings > 0 {
            let _ = writeln!(out, "  warnings     {}; `egret check` shows them", self.warnings);
        }
        if let Some((scheme, forward, shows)) = &self.forward {
            let host =
                if forward.ip().is_unspecified() { IpAddr::V4(std::net::Ipv4Addr::LOCALHOST) } else { forward.ip() };
            let proxy = SocketAddr::new(host, forward.port());
            let option = self.config.as_ref().map(|path| format!("--config {path} ")).unwrap_or_default();
            out.push_str("\nTry it from another shell:\n");
            if let Some((name, port)) = policy.example() {
                let port = if port == 443 { String::new() } else { format!(":{port}") };
                let _ = writeln!(
                    out,
                    "  curl -x {scheme}://{proxy}{shows} https://{name}{port}/    # a listed name goes through"
                );
            }
            let _ = writeln!(
                out,
                "  curl -ix {scheme}://{proxy}{shows} https://not-listed.example/    # any other gets 403 and the reason"
            );
            let _ =
                writeln!(out, "  egret explain {option}https://not-listed.example    # says why, without a connection");
        }
        out
    }
}
