//! `egret explain`: the same walk as a connection's, without one.

use std::net::IpAddr;

use super::Policy;
use super::evidence::{Evidence, Flow, Request};
use super::permit::{Clearance, Destination, Grant, MatchedRule};
use crate::answers::Answers;
use crate::claim::{Source, Transport};
use crate::learned::Known;
use crate::name::{Host, HostName};
use crate::outcome::{Hint, Reason, Refusal, Stage};
use crate::rule::{AppProtocol, guard};
use crate::wire::http::Overrides;

/// What is asked of the policy.
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
    /// Walks the four steps of precedence for a question, before anything has been learned.
    ///
    /// # Errors
    /// The refusal a connection like this would get.
    pub fn explain(&self, question: &Question) -> Result<MatchedRule, Refusal> {
        self.explain_knowing(question, Known::nothing())
    }

    /// The same, with what has been learned.
    ///
    /// # Errors
    /// As [`Policy::explain`].
    pub fn explain_knowing(&self, question: &Question, known: Known<'_>) -> Result<MatchedRule, Refusal> {
        let flow = |transport, port| Flow { source: &question.source, transport, port };
        match &question.subject {
            Subject::App { protocol, host, port, path } => {
                let request = path.as_deref().map(|path| Request {
                    method: None,
                    path: Some(path),
                    overrides: Overrides::default(),
                    upgrades: false,
                });
                let evidence = Evidence {
                    alpn: (!question.alpn.is_empty()).then_some(&question.alpn),
                    request,
                    ..Evidence::of(&question.source, *protocol, *port)
                };
                self.explain_app(question, host, &evidence, known)
            }
            Subject::Tcp { host: host @ Host::Name(_), port } if self.claimed_ports.contains(port) => {
                let evidence = Evidence::of(&question.source, AppProtocol::Tcp, *port);
                self.explain_app(question, host, &evidence, known)
            }
            Subject::Tcp { host: Host::Name(name), port } if self.reads_name_of(question, name, *port, known) => {
                let tls = self.ports.get(port).is_none_or(|expected| expected.tls);
                let protocol = if tls { AppProtocol::Https } else { AppProtocol::Http };
                let evidence = Evidence::of(&question.source, protocol, *port);
                let matched = self.explain_app(question, &Host::Name(name.clone()), &evidence, known)?;
                let scheme = protocol.as_str();
                let nearest = format!(
                    "rule {} allows {scheme}://{name}:{port}: egret reads the name in the bytes there, and other bytes have none",
                    matched.rule
                );
                let hint = Hint { nearest: Some(nearest), ..Hint::default() };
                Err(Refusal::new(Reason::NoRule, Stage::Network).with(hint))
            }
            Subject::Tcp { host, port } => self.explain_net(question, host, flow(Transport::Tcp, Some(*port)), known),
            Subject::Udp { host, port } => self.explain_net(question, host, flow(Transport::Udp, Some(*port)), known),
            Subject::Icmp { host } => self.explain_net(question, host, flow(Transport::Icmp, None), known),
            Subject::Dns { name } => {
                self.by_question(&question.source, name).map(|clearance| clearance.matched_rule().clone())
            }
        }
    }

    /// Whether TCP to a name at a port is judged by the name that egret reads there: an application rule uses the port, and
    /// no network rule decides.
    fn reads_name_of(&self, question: &Question, name: &HostName, port: u16, known: Known<'_>) -> bool {
        let flow = Flow { source: &question.source, transport: Transport::Tcp, port: Some(port) };
        let decides = |ip| self.net_by_address(flow, ip, known).map_or(true, |grants| !grants.is_empty());
        self.ports.contains_key(&port)
            && self.net_by_name(flow.source, name, |rule| rule.takes(flow.transport, flow.port)).is_empty()
            && !question.dst.is_some_and(decides)
    }

    fn explain_app(
        &self,
        question: &Question,
        host: &Host,
        evidence: &Evidence<'_>,
        known: Known<'_>,
    ) -> Result<MatchedRule, Refusal> {
        let port = evidence.port;
        let flow = Flow { source: &question.source, transport: Transport::Tcp, port: Some(port) };
        let literal = if let Host::Address(ip) = host { Some(*ip) } else { question.dst };
        if let Some(ip) = literal {
            let grants = self.net_by_address(flow, ip, known)?;
            if !grants.is_empty() {
                return self.guarded(flow, grants, ip, known);
            }
        }
        let name = match host {
            Host::Name(name) => name,
            Host::Address(ip) if self.ports.contains_key(&port) => return Err(self.without_name(*ip, port)),
            Host::Address(ip) => {
                return Err(Refusal::new(Reason::NoRule, Stage::Network).with(self.address_hint(flow, *ip, known)));
            }
        };
        if let Some(grant) = self.net_by_name(flow.source, name, |rule| rule.takes(flow.transport, flow.port)).first() {
            return Ok(self.matched_rule(*grant));
        }
        self.first_of(&self.judge(name, evidence)?)
    }

    fn explain_net(
        &self,
        question: &Question,
        host: &Host,
        flow: Flow<'_>,
        known: Known<'_>,
    ) -> Result<MatchedRule, Refusal> {
        let ip = match (host, question.dst) {
            (Host::Address(ip), _) => Some(*ip),
            (Host::Name(_), dst) => dst,
        };
        if let Some(ip) = ip {
            let grants = self.net_by_address(flow, ip, known)?;
            if !grants.is_empty() {
                return self.guarded(flow, grants, ip, known);
            }
        }
        if let Host::Name(name) = host
            && let Some(grant) =
                self.net_by_name(flow.source, name, |rule| rule.takes(flow.transport, flow.port)).first()
        {
            return Ok(self.matched_rule(*grant));
        }
        let hint = match (ip, flow.port) {
            (Some(ip), Some(port)) if flow.transport == Transport::Tcp && self.ports.contains_key(&port) => {
                return Err(self.without_name(ip, port));
            }
            (Some(ip), _) => match self.expired(flow, ip, known) {
                Some(refusal) => return Err(refusal),
                None => self.address_hint(flow, ip, known),
            },
            (None, _) => Hint::default(),
        };
        Err(Refusal::new(Reason::NoRule, Stage::Network).with(hint))
    }

    /// Why a flow was refused that would be let out now, where it may be that an answer's time was over.
    #[must_use]
    pub fn expired_since(&self, question: &Question, known: Known<'_>) -> Option<Refusal> {
        let (transport, ip, port) = match question.subject {
            Subject::Tcp { host: Host::Address(ip), port } => (Transport::Tcp, ip, port),
            Subject::Udp { host: Host::Address(ip), port } => (Transport::Udp, ip, port),
            _ => return None,
        };
        self.expired(Flow { source: &question.source, transport, port: Some(port) }, ip, known)
    }

    /// An address that no rule leads to by itself, and that a rule's wildcard led to until the answer's time was over.
    fn expired(&self, flow: Flow<'_>, ip: IpAddr, known: Known<'_>) -> Option<Refusal> {
        let name = known.answered(ip)?;
        let grants = self.net_by_name(flow.source, &name, |rule| rule.takes(flow.transport, flow.port));
        let MatchedRule { rule, pattern } = self.matched_rule(*grants.first()?);
        let nearest = format!(
            "{name} had this address, in an answer whose time (learn.floor, learn.grace) is over; clients must ask for the name again"
        );
        let hint = Hint { rule: Some(rule), pattern, nearest: Some(nearest), ..Hint::default() };
        Some(Refusal::new(Reason::LearnedExpired, Stage::Network).with(hint))
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
        let nearest = Some(self.kept_hint(Transport::Tcp, Some(port)).unwrap_or_else(reads));
        Refusal::new(Reason::IpLiteral, Stage::Name).with(Hint { nearest, ..Hint::default() })
    }

    /// A literal must also pass the guard, as it would before being dialled.
    fn guarded(
        &self,
        flow: Flow<'_>,
        grants: Vec<Grant>,
        ip: IpAddr,
        known: Known<'_>,
    ) -> Result<MatchedRule, Refusal> {
        let Flow { source, transport, port } = flow;
        let (destination, source) = (Destination::Literal(ip), source.clone());
        let clearance = Clearance { destination, transport, port, prefers_v6: false, dst: None, source, grants };
        let (grant, _) = self.judge_addresses(&clearance, &Answers::literal(ip), known)?;
        Ok(self.matched_rule(grant))
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
