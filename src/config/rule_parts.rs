//! The parts of a rule from text to types: names, ports, sources, and where names may lead.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use super::findings::Findings;
use crate::files::read_bounded;
use egret_core::rule::pattern::Pattern;
use egret_core::rule::prefixes::prefix;
use egret_core::rule::{Action, AppPort, AppProtocol, LearnedName, NetPort, Reach, Sources};

/// Repeated names of a file that each get a warning.
const MAX_TWINS: usize = 20;

/// The exact names of a network rule, to be kept resolved: clients that ask others dial their addresses.
pub(super) fn kept(fqdns: &[Pattern], reach: &Reach) -> Vec<LearnedName> {
    fqdns.iter().filter_map(Pattern::exact).map(|name| LearnedName::new(name, reach.clone())).collect()
}

/// Absent means everyone; a list that came out empty does not.
pub(super) fn sources(
    out: &mut Findings<'_>,
    path: &str,
    written: Option<&[String]>,
    clients: Option<&[String]>,
) -> Sources {
    let (sources_path, clients_path) = (format!("{path}.sources"), format!("{path}.clients"));
    if written.is_some_and(<[String]>::is_empty) {
        out.fault(&sources_path, "the list is empty; write CIDRs, or remove the key to mean everyone");
    }
    if clients.is_some_and(<[String]>::is_empty) {
        out.fault(&clients_path, "the list is empty; write names, or remove the key to mean everyone");
    }
    for (at, name) in clients.into_iter().flatten().enumerate() {
        if name.is_empty() || name.contains('*') {
            let message =
                format!("`{name}` is not a client's name; write a certificate's name or user:NAME, each in full");
            out.fault(&format!("{clients_path}[{at}]"), message);
        }
    }
    let clients = clients.unwrap_or_default().iter().map(|name| name.as_str().into()).collect();
    Sources { nets: out.nets(&sources_path, written.unwrap_or_default()), clients }
}

/// A rule set's own patterns: it repeats and widens on purpose.
pub(super) fn plain_patterns(out: &mut Findings<'_>, path: &str, texts: &[String]) -> Vec<Pattern> {
    texts.iter().filter_map(|text| out.keep(path, Pattern::parse(text).map_err(|fault| fault.to_string()))).collect()
}

pub(super) fn patterns(out: &mut Findings<'_>, path: &str, texts: &[String], action: &Action) -> Vec<Pattern> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut kept = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let here = format!("{path}[{at}]");
        let Some(pattern) = out.keep(&here, Pattern::parse(text).map_err(|fault| fault.to_string())) else { continue };
        if pattern.is_any() && *action == Action::Allow {
            out.warn(&here, "`*` lets every name out");
        }
        if let Some(first) = seen.insert(pattern.as_str().to_owned(), at) {
            out.warn(&here, format!("`{text}` stands in this list already, as number {}", first + 1));
        }
        kept.push(pattern);
    }
    kept
}

pub(super) fn patterns_of_file(out: &mut Findings<'_>, path: &str, name: &str) -> Vec<Pattern> {
    let file = out.policy_file(name);
    let Some(text) = out.keep(path, read_bounded(&file)) else { return Vec::new() };
    let mut kept: Vec<Pattern> = Vec::new();
    let (mut seen, mut twins): (HashMap<String, usize>, usize) = (HashMap::new(), 0);
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match Pattern::parse(line) {
            Ok(pattern) => {
                if pattern.is_any() {
                    out.warn(path, format!("{}:{number}: `*` lets every name out", file.display()));
                }
                if let Some(first) = seen.insert(pattern.as_str().to_owned(), number) {
                    twins += 1;
                    if twins <= MAX_TWINS {
                        let file = file.display();
                        out.warn(path, format!("{file}:{number}: `{line}` stands in line {first} already"));
                    }
                }
                kept.push(pattern);
            }
            Err(fault) => out.fault(path, format!("{}:{number}: {fault}", file.display())),
        }
    }
    if twins > MAX_TWINS {
        out.warn(path, format!("{}: {} more names stand there twice", file.display(), twins - MAX_TWINS));
    }
    if kept.is_empty() {
        out.fault(path, format!("{} holds no pattern; write one a line", file.display()));
    }
    kept
}

pub(super) fn reach(out: &mut Findings<'_>, path: &str, words: Option<&[String]>) -> Reach {
    let Some(words) = words else { return Reach::default() };
    if words.is_empty() {
        out.fault(path, "the list is empty, so every answer would be refused; write [public] or CIDRs");
    }
    let mut reach = Reach { public: false, prefixes: Vec::new() };
    for (at, word) in words.iter().enumerate() {
        if word == "public" {
            reach.public = true;
        } else if let Some(net) =
            out.keep(&format!("{path}[{at}]"), prefix(word).map_err(|e| format!("{e}, or public")))
        {
            reach.prefixes.push(net);
        }
    }
    reach
}

pub(super) fn alpn(out: &mut Findings<'_>, path: &str, list: &[String]) -> Vec<Box<[u8]>> {
    if list.is_empty() {
        out.fault(path, "the list is empty, so no offer could pass; write such as [h2, http/1.1], or remove it");
    }
    for (at, name) in list.iter().enumerate() {
        if name.is_empty() || name.len() > 255 {
            out.fault(&format!("{path}[{at}]"), "an ALPN protocol has 1 to 255 bytes (RFC 7301)");
        }
    }
    list.iter().map(|name| name.as_bytes().into()).collect()
}

pub(super) fn app_port(text: &str) -> Result<AppPort, String> {
    let wrong = || {
        format!(
            "`{text}` is not a protocol of an application rule; write https:443, http:80, or tcp:22 for names that clients claim"
        )
    };
    let (protocol, port) = text.split_once(':').ok_or_else(wrong)?;
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "https" => AppProtocol::Https,
        "http" => AppProtocol::Http,
        "tcp" => AppProtocol::Tcp,
        "udp" => {
            return Err(format!(
                "`{text}` is judged by address; write it into a network rule, or write https:{port} here"
            ));
        }
        _ => return Err(wrong()),
    };
    let port = read_port(port)?;
    Ok(AppPort { protocol, port })
}

pub(super) fn net_port(text: &str) -> Result<NetPort, String> {
    let wrong =
        || format!("`{text}` is not a protocol of a network rule; write tcp:8443, tcp:9000-9010, udp:123 or icmp");
    if text.eq_ignore_ascii_case("icmp") {
        return Ok(NetPort::Icmp);
    }
    let (protocol, ports) = text.split_once(':').ok_or_else(wrong)?;
    let range = port_range(ports)?;
    match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Ok(NetPort::Tcp(range)),
        "udp" => Ok(NetPort::Udp(range)),
        "https" | "http" => {
            Err(format!("`{text}` is judged by name; write it into an application rule, or write tcp:{ports} here"))
        }
        _ => Err(wrong()),
    }
}

pub(super) fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high) = (read_port(low)?, read_port(high)?);
    if low > high { Err(format!("`{text}` runs backwards; write {high}-{low}")) } else { Ok(low..=high) }
}

pub(super) fn read_port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port > 0);
    port.ok_or_else(|| format!("`{text}` is not a port; write a number from 1 to 65535"))
}
