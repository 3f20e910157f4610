//! `egret explain`: the same walk as a connection's, without one.

use std::net::IpAddr;

use super::Policy;
use super::evidence::{Evidence, Request};
use super::judge::further;
use super::permit::{Clearance, Destination, Grant, MatchedRule};
use crate::answers::Answers;
use crate::claim::Source;
use crate::name::{Host, HostName};
use crate::outcome::{Hint, Reason, Refusal, Stage};
use crate::rule::{Action, AppPort, AppProtocol, InnerName, NetKind, NetRule, guard};
use crate::wire::http::Overrides;

/// What somebody wants to know.
#[derive(Clone, Debug)]
pub struct Question {
    pub subject: Subject,
    pub source: Source,
    /// The address the client dials itself.
    pub dst: Option<IpAddr>,
    pub alpn: Vec<Box<[u8]>>,
}

/// `https://a.example` (or `a.example`), `tcp://10.0.0.1:22`, `icmp://10.0.0.1`, `dns://a.example`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    App {
        protocol: AppProtocol,
        host: Host,
        port: u16,
        /// With its query; of plain HTTP only, where rules can see it. `None`: any path.
        path: Option<Box<str>>,
    },
    Tcp {
        host: Host,
        port: u16,
    },
    Udp {
        host: Host,
        port: u16,
    },
    Icmp {
        host: Host,
    },
    Dns {
        name: HostName,
    },
}

/// Why a subject could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectFault {
    #[error(
        "`{0}` is not a target; write https://host, http://host, tcp://host:port, udp://host:port, icmp://host or dns://name"
    )]
    Scheme(String),
    #[error("a target takes no user name and no password; write https://host")]
    User,
    #[error("`{0}` needs a port, as in `{0}:1194`")]
    Port(String),
    #[error("`{0}` is not a port; write a number from 1 to 65535")]
    BadPort(String),
    #[error("`{0}` is not a host: {1}")]
    Host(String, crate::name::NameFault),
}

impl std::str::FromStr for Subject {
    type Err = SubjectFault;

    fn from_str(text: &str) -> Result<Self, SubjectFault> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
        if rest.contains('@') {
            return Err(SubjectFault::User);
        }
        let (rest, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let path = path.split('#').next().filter(|path| path.starts_with('/')).map(Into::into);
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                let number = port.parse().ok().filter(|p| *p > 0);
                (host, Some(number.ok_or_else(|| SubjectFault::BadPort(port.to_owned()))?))
            }
            _ => (rest, None),
        };
        // As browsers write names (IDNA); on the wire they are A-labels.
        let ascii = idna::domain_to_ascii(host).ok().filter(|_| !host.is_ascii());
        let host = ascii.as_deref().unwrap_or(host);
        let host = Host::from_wire(host.as_bytes()).map_err(|fault| SubjectFault::Host(host.to_owned(), fault))?;
        let needed = port.ok_or_else(|| SubjectFault::Port(text.to_owned()));
        Ok(match (&*scheme.to_ascii_lowercase(), host) {
            ("https", host) => Self::App { protocol: AppProtocol::Https, host, port: port.unwrap_or(443), path: None },
            ("http", host) => Self::App { protocol: AppProtocol::Http, host, port: port.unwrap_or(80), path },
            ("tcp", host) => Self::Tcp { host, port: needed? },
            ("udp", host) => Self::Udp { host, port: needed? },
            ("icmp", host) => Self::Icmp { host },
            ("dns", Host::Name(name)) => Self::Dns { name },
            ("dns", Host::Address(_)) => {
                return Err(SubjectFault::Host(rest.to_owned(), crate::name::NameFault::Address));
            }
            _ => return Err(SubjectFault::Scheme(text.to_owned())),
        })
    }
}

impl Policy {
    /// Walks the four steps of precedence for a question.
    ///
    /// # Errors
    /// The refusal a connection like this would get.
    pub fn explain(&self, question: &Question) -> Result<MatchedRule, Refusal> {
        match &question.subject {
            Subject::App { protocol, host, port, path } => {
                let request = path.as_deref().map(|path| Request {
                    method: None,
                    path: Some(path),
                    overrides: Overrides::default(),
                    upgrades: false,
                });
                self.explain_app(question, *protocol, host, *port, request)
            }
            Subject::Tcp { host: Host::Name(name), port } if self.reads_name_of(question, name, *port) => {
                let tls = self.ports.get(port).is_none_or(|expected| expected.tls);
                let protocol = if tls { AppProtocol::Https } else { AppProtocol::Http };
                let because = self.explain_app(question, protocol, &Host::Name(name.clone()), *port, None)?;
                let scheme = protocol.as_str();
                let nearest = format!(
                    "rule {} allows {scheme}://{name}:{port}: egret reads the name in the bytes there, and other bytes have none",
                    because.rule
                );
                let hint = Hint { nearest: Some(nearest), ..Hint::default() };
                Err(Refusal::new(Reason::NoRule, Stage::Network).with(hint))
            }
            Subject::Tcp { host, port } => self.explain_net(question, host, *port, NetKind::Tcp),
            Subject::Udp { host, port } => self.explain_net(question, host, *port, NetKind::Udp),
            Subject::Icmp { host } => self.explain_net(question, host, 0, NetKind::Icmp),
            Subject::Dns { name } => self.explain_dns(question, name),
        }
    }

    /// Whether TCP to a name at a port is judged by the name that egret reads there: an application rule uses the port, and
    /// no network rule decides.
    fn reads_name_of(&self, question: &Question, name: &HostName, port: u16) -> bool {
        self.ports.contains_key(&port)
            && self.net_by_name(&question.source, name, |rule| rule.takes_tcp(port)).is_empty()
            && question
                .dst
                .is_none_or(|ip| self.net_by_address(&question.source, ip, port).is_ok_and(|grants| grants.is_empty()))
    }

    fn explain_app(
        &self,
        question: &Question,
        protocol: AppProtocol,
        host: &Host,
        port: u16,
        request: Option<Request<'_>>,
    ) -> Result<MatchedRule, Refusal> {
        let literal = if let Host::Address(ip) = host { Some(*ip) } else { question.dst };
        if let Some(ip) = literal {
            let grants = self.net_by_address(&question.source, ip, port)?;
            if !grants.is_empty() {
                return self.guarded(question, grants, ip, port);
            }
        }
        let name = match host {
            Host::Name(name) => name,
            Host::Address(ip) if self.ports.contains_key(&port) => return Err(self.without_name(*ip, port)),
            Host::Address(ip) => {
                let hint = self.address_hint(&question.source, *ip, port, NetKind::Tcp);
                return Err(Refusal::new(Reason::NoRule, Stage::Network).with(hint));
            }
        };
        if let Some(grant) = self.net_by_name(&question.source, name, |rule| rule.takes_tcp(port)).first() {
            return Ok(self.matched_rule(*grant));
        }
        let evidence = Evidence {
            source: &question.source,
            port,
            protocol,
            alpn: (!question.alpn.is_empty()).then_some(&question.alpn),
            ech: false,
            inner: InnerName::Same,
            request,
        };
        self.first_grant(name, &evidence)
    }

    fn explain_net(&self, question: &Question, host: &Host, port: u16, kind: NetKind) -> Result<MatchedRule, Refusal> {
        let takes = |rule: &NetRule| rule.takes(kind, port);
        let ip = match (host, question.dst) {
            (Host::Address(ip), _) => Some(*ip),
            (Host::Name(_), dst) => dst,
        };
        if let Some(ip) = ip {
            let equivalents = guard::equivalents(ip, self.nat64);
            let denied = |rule: &NetRule| takes(rule) && equivalents.iter().any(|ip| rule.covers(*ip));
            if let Some(grant) = self.net_rules(&question.source, Action::Deny, denied).next() {
                return Err(self.refusal_by(Reason::RuleDenied, Stage::Network, grant));
            }
            let meant = guard::effective(ip, self.nat64);
            let allowed = |rule: &NetRule| takes(rule) && rule.covers(meant);
            let grants: Vec<_> = self.net_rules(&question.source, Action::Allow, allowed).collect();
            if !grants.is_empty() {
                // What denies TCP on a port says nothing about UDP on it.
                let port = if kind == NetKind::Tcp { port } else { 0 };
                return self.guarded(question, grants, ip, port);
            }
        }
        if let Host::Name(name) = host
            && let Some(grant) = self.net_by_name(&question.source, name, takes).first()
        {
            return Ok(self.matched_rule(*grant));
        }
        let hint = match ip {
            Some(ip) if kind == NetKind::Tcp && self.ports.contains_key(&port) => {
                return Err(self.without_name(ip, port));
            }
            Some(ip) => self.address_hint(&question.source, ip, port, kind),
            None => Hint::default(),
        };
        Err(Refusal::new(Reason::NoRule, Stage::Network).with(hint))
    }

    /// Where names are judged, the bytes would have to bring one.
    fn without_name(&self, ip: IpAddr, port: u16) -> Refusal {
        let scheme = if self.ports.get(&port).is_none_or(|expected| expected.tls) { "https" } else { "http" };
        let closed = match guard::effective(ip, self.nat64) {
            ip if guard::metadata().any(|metadata| ip == metadata) => "; metadata addresses are closed",
            ip if ip.is_loopback() => "; loopback addresses are closed",
            _ => "",
        };
        let reads = || {
            format!(
                "application rules use port {port}: egret reads the name in the bytes there; ask for {scheme}://NAME:{port}{closed}"
            )
        };
        let nearest = Some(self.kept_hint(port, NetKind::Tcp).unwrap_or_else(reads));
        Refusal::new(Reason::IpLiteral, Stage::Name).with(Hint { nearest, ..Hint::default() })
    }

    fn first_grant(&self, name: &HostName, evidence: &Evidence<'_>) -> Result<MatchedRule, Refusal> {
        let grants = self.judge(name, evidence)?;
        let first = grants.first().ok_or(Refusal::new(Reason::Internal, Stage::Name))?;
        Ok(self.matched_rule(*first))
    }

    /// A literal must also pass the guard, as it would before being dialled.
    fn guarded(&self, question: &Question, grants: Vec<Grant>, ip: IpAddr, port: u16) -> Result<MatchedRule, Refusal> {
        let source = question.source.clone();
        let destination = Destination::Literal(ip);
        let clearance = Clearance { destination, port, prefers_v6: false, dst: None, source, grants };
        self.by_address(&clearance, &Answers::literal(ip)).map(|permit| permit.matched_rule().clone())
    }

    /// A name may be asked for when some rule lists it for this client, on whatever port.
    fn explain_dns(&self, question: &Question, name: &HostName) -> Result<MatchedRule, Refusal> {
        if let Some(grant) = self.net_by_name(&question.source, name, |_| true).first() {
            return Ok(self.matched_rule(*grant));
        }
        let mut best = Refusal::new(Reason::NoRule, Stage::Name);
        let mut ports: Vec<_> = self.apps.iter().flat_map(|rule| &rule.protocols).copied().collect();
        ports.sort_by_key(|app| (app.port, app.protocol as u8));
        ports.dedup();
        if ports.is_empty() {
            ports.push(AppPort { protocol: AppProtocol::Https, port: 443 });
        }
        for app in ports {
            let evidence = Evidence {
                source: &question.source,
                port: app.port,
                protocol: app.protocol,
                alpn: None,
                ech: false,
                inner: InnerName::Same,
                request: None,
            };
            match self.first_grant(name, &evidence) {
                Ok(because) => return Ok(because),
                Err(refusal) => best = further(refusal, best),
            }
        }
        match self.dns_only(question, name) {
            Some(because) if best.reason != Reason::RuleDenied => Ok(because),
            _ => Err(best),
        }
    }

    /// The rule that lets a name be asked for without being dialled.
    fn dns_only(&self, question: &Question, name: &HostName) -> Option<MatchedRule> {
        let mut found = None;
        self.app_hosts.matches(name, |pattern| {
            let id = self.app_hosts.rule(pattern);
            let Some(rule) = self.apps.get(id as usize).filter(|rule| rule.is_dns_only()) else { return };
            if rule.sources.include(&question.source) {
                found.get_or_insert(Grant::App { rule: id, pattern });
            }
        });
        found.map(|grant| self.matched_rule(grant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_or_explained() {
        let app = |protocol, host: &str, port, path: Option<&str>| {
            Ok(Subject::App {
                protocol,
                host: Host::from_wire(host.as_bytes()).unwrap(),
                port,
                path: path.map(Into::into),
            })
        };
        assert_eq!("https://A.example".parse(), app(AppProtocol::Https, "a.example", 443, None));
        assert_eq!("https://a.example/x".parse(), app(AppProtocol::Https, "a.example", 443, None));
        assert_eq!("http://a.example:8080/x?y#z".parse(), app(AppProtocol::Http, "a.example", 8080, Some("/x?y")));
        assert_eq!("http://a.example?y".parse(), app(AppProtocol::Http, "a.example", 80, None));
        assert_eq!("https://[2001:db8::1]:8443".parse(), app(AppProtocol::Https, "2001:db8::1", 8443, None));
        assert!(matches!("udp://20.1.2.3:1194".parse(), Ok(Subject::Udp { port: 1194, .. })));
        assert!(matches!("udp://20.1.2.3".parse::<Subject>(), Err(SubjectFault::Port(_))));
        assert!(matches!("https://a.example:0".parse::<Subject>(), Err(SubjectFault::BadPort(_))));
        assert!(matches!("ftp://a.example".parse::<Subject>(), Err(SubjectFault::Scheme(_))));
        assert_eq!("a.example".parse(), app(AppProtocol::Https, "a.example", 443, None));
        assert_eq!("a.example:8443".parse(), app(AppProtocol::Https, "a.example", 8443, None));
        assert_eq!("HTTPS://A.example".parse(), app(AppProtocol::Https, "a.example", 443, None));
        assert_eq!("https://Bücher.example".parse(), app(AppProtocol::Https, "xn--bcher-kva.example", 443, None));
        assert!(matches!("icmp://20.1.2.3".parse(), Ok(Subject::Icmp { .. })));
        assert!(matches!("https://a..b".parse::<Subject>(), Err(SubjectFault::Host(..))));
        assert!(matches!("dns://10.0.0.1".parse::<Subject>(), Err(SubjectFault::Host(..))));
    }
}
