//! Where clients come in.

use ipnet::IpNet;

use super::file;
use super::findings::Findings;
use super::read::{loaded, socket};
use crate::identity::{TlsFiles, UsersFile};
use crate::proxy::listen::settings::{Adds, Capture, ListenerKind, ListenerSettings};
use egret_core::wire::Expected;

pub(super) fn listeners(out: &mut Findings<'_>, written: &file::File) -> Vec<(ListenerSettings, String)> {
    if written.listeners.is_empty() {
        out.fault("listeners", "there is no listener; write one, such as { kind: forward, bind: \"127.0.0.1:3128\" }");
    }
    let mut kept = Vec::new();
    for (at, listener) in file::readable(&written.listeners) {
        let path = format!("listeners[{at}]");
        let bind = out.keep(&format!("{path}.bind"), socket(&listener.bind));
        let kind = match listener.kind {
            file::ListenerKind::Forward => ListenerKind::Forward,
            file::ListenerKind::Sni => {
                let (usual, speaks) = match listener.protocol {
                    None => (443, Expected { tls: true, http: true }),
                    Some(file::AppProtocol::Https) => (443, Expected { tls: true, http: false }),
                    Some(file::AppProtocol::Http) => (80, Expected { tls: false, http: true }),
                };
                ListenerKind::Sni { port: listener.port.unwrap_or(usual), speaks }
            }
            file::ListenerKind::Dns => ListenerKind::Dns,
            file::ListenerKind::Transparent => transparent(out, &path, listener, written.netfilter.is_some()),
        };
        let is_forward = listener.kind == file::ListenerKind::Forward;
        let is_transparent = listener.kind == file::ListenerKind::Transparent;
        let only_transparent =
            [("capture", listener.capture.is_some()), ("preserve_source", listener.preserve_source.is_some())];
        for (key, _) in only_transparent.iter().filter(|(_, is_there)| *is_there && !is_transparent) {
            out.fault(&format!("{path}.{key}"), "only a transparent listener is handed connections; remove it");
        }
        let only_sni = [("port", listener.port.is_some()), ("protocol", listener.protocol.is_some())];
        for (key, _) in only_sni.iter().filter(|(_, is_there)| *is_there) {
            let message = match listener.kind {
                file::ListenerKind::Forward => {
                    format!("a forward listener learns the {key} from its clients; remove it")
                }
                file::ListenerKind::Transparent => {
                    format!("a transparent listener learns the {key} from the connection; remove it")
                }
                file::ListenerKind::Dns => format!("DNS has no {key} of its own; remove it"),
                file::ListenerKind::Sni => continue,
            };
            out.fault(&format!("{path}.{key}"), message);
        }
        let only_forward = [("tls", listener.tls.is_some()), ("auth", listener.auth.is_some())];
        for (key, _) in only_forward.iter().filter(|(_, is_there)| *is_there && !is_forward) {
            let message = "clients of this listener do not know of it and could not answer; remove it";
            out.fault(&format!("{path}.{key}"), message);
        }
        let only_tcp =
            [("proxy_protocol", listener.proxy_protocol.is_some()), ("add_headers", !listener.add_headers.is_empty())];
        for (key, _) in only_tcp.iter().filter(|(_, is_there)| *is_there && kind == ListenerKind::Dns) {
            out.fault(&format!("{path}.{key}"), "DNS clients send none, and read none; remove it");
        }
        let proxies = listener.proxy_protocol.as_ref().map(|written| proxies(out, &path, written));
        let tls = listener.tls.as_ref().filter(|_| is_forward).map(|written| TlsFiles {
            certificate: out.folder.join(&written.certificate),
            key: out.folder.join(&written.key),
            client_ca: written.client_ca.as_ref().map(|name| out.folder.join(name)),
            crl: written.crl.as_ref().map(|name| out.folder.join(name)),
        });
        if tls.as_ref().is_some_and(|files| files.crl.is_some() && files.client_ca.is_none()) {
            let message = "crl needs tls.client_ca; add it, or remove crl";
            out.fault(&format!("{path}.tls.crl"), message);
        }
        let users = listener
            .auth
            .as_ref()
            .filter(|_| is_forward)
            .map(|written| UsersFile(out.folder.join(&written.users_file)));
        let tls = tls.and_then(|files| loaded(out, &format!("{path}.tls"), files));
        let users = users.and_then(|file| loaded(out, &format!("{path}.auth"), file));
        let adds = |header| listener.add_headers.contains(&header);
        let adds = Adds { via: adds(file::Header::Via), forwarded_for: adds(file::Header::XForwardedFor) };
        if let Some(bind) = bind {
            kept.push((ListenerSettings { bind, kind, proxies, tls, users, adds }, format!("{path}.bind")));
        }
    }
    kept
}

fn transparent(out: &mut Findings<'_>, path: &str, listener: &file::Listener, has_netfilter: bool) -> ListenerKind {
    let capture = match listener.capture {
        Some(file::Capture::Redirect) => Capture::Redirect,
        Some(file::Capture::Tproxy) => {
            if !has_netfilter {
                let message = "nothing leads here without `netfilter`, and what is routed to this machine passes it unjudged; write netfilter: { clients: [\"10.224.0.0/16\"] }";
                out.fault(&format!("{path}.capture"), message);
            }
            Capture::Tproxy
        }
        None => {
            let message = "how does the kernel hand connections over? write `capture: tproxy` on a next hop, `capture: redirect` in a sidecar";
            out.fault(path, message);
            Capture::Tproxy
        }
    };
    let preserve_source = listener.preserve_source == Some(true);
    if preserve_source && capture == Capture::Redirect {
        let message = "the clients are on this machine: their address is its own; remove it";
        out.fault(&format!("{path}.preserve_source"), message);
    }
    ListenerKind::Transparent { capture, preserve_source }
}

fn proxies(out: &mut Findings<'_>, path: &str, written: &file::ProxyProtocol) -> Vec<IpNet> {
    let path = format!("{path}.proxy_protocol");
    if !written.v2 {
        out.fault(&format!("{path}.v2"), "version 2 is the only one there is; write true, or remove proxy_protocol");
    }
    if written.from.is_empty() {
        out.fault(
            &format!("{path}.from"),
            "the list is empty, so every peer would be refused; write the load balancer's CIDR",
        );
    }
    let from = out.nets(&format!("{path}.from"), &written.from);
    for (at, _) in from.iter().enumerate().filter(|(_, net)| net.prefix_len() == 0) {
        let message = "lets any peer claim any address; write the load balancer's own CIDR";
        out.fault(&format!("{path}.from[{at}]"), message);
    }
    from
}
