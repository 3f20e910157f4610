//! The access line: its fields, and how they look to machines and to people.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use egret_core::outcome::Refusal;

/// One access record. Absent when unknown; every text from the wire has been escaped.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Line {
    #[serde(serialize_with = "as_text")]
    pub ts: Stamp,
    pub event: &'static str,
    #[serde(serialize_with = "as_text")]
    pub id: Id,
    pub listener: Arc<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identity: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_dst: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_raw: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_source: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alpn: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ja4: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ech: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<Box<str>>,
    #[serde(skip_serializing_if = "<[IpAddr]>::is_empty")]
    pub answers: Box<[IpAddr]>,
    /// The answers' time was over, and no upstream could be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<SocketAddr>,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ending: Option<&'static str>,
    /// Refusals like this one that have no line of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<u64>,
}

impl Line {
    /// Fills in a refusal.
    pub(super) fn deny(&mut self, refusal: &Refusal) {
        self.verdict = Some("deny");
        self.reason = Some(refusal.reason.as_str());
        self.stage = Some(refusal.stage.as_str());
        if let Some(hint) = &refusal.hint {
            if let Some(rule) = &hint.rule {
                self.rule = Some(Arc::clone(rule));
                self.pattern = hint.pattern.as_deref().map(Into::into);
            }
            self.nearest = hint.nearest.as_deref().map(Into::into);
            self.fix = hint.fix.as_deref().map(Into::into);
        }
    }
}

/// When a connection began; written as RFC 3339 with microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Stamp(pub SystemTime);

impl Default for Stamp {
    fn default() -> Self {
        Self(SystemTime::UNIX_EPOCH)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_micros(self.0).fmt(f)
    }
}

/// Which run of egret, and which of its connections or requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Id {
    pub run: u32,
    pub number: u64,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:x}", self.run, self.number)
    }
}

fn as_text<S: Serializer>(value: &impl fmt::Display, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

impl Line {
    /// Bytes that it takes in memory: about what it will take as text.
    #[must_use]
    pub fn size(&self) -> usize {
        let texts = [&self.name, &self.name_raw, &self.sni, &self.method, &self.pattern, &self.nearest, &self.fix];
        let listed = |list: &[String]| list.iter().map(|text| size_of::<String>() + text.len()).sum::<usize>();
        let texts: usize = texts.into_iter().flatten().map(|text| text.len()).sum();
        size_of::<Self>() + texts + listed(&self.identity) + listed(&self.alpn) + size_of_val(&*self.answers)
    }

    /// One JSON object with its newline, behind what is there.
    pub fn json(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        // Nothing in a line can fail to serialise; an empty line would be a lie, so say which one it was.
        if serde_json::to_writer(&mut *out, self).is_err() {
            out.truncate(begin);
            out.extend_from_slice(format!("{{\"id\":\"{}\"}}", self.id).as_bytes());
        }
        out.push(b'\n');
    }

    /// One line for a person, with its newline, behind what is there.
    pub fn text(&self, to: &mut Vec<u8>) {
        let stamp = self.ts.to_string();
        let clock = stamp.get(11..19).unwrap_or(&stamp);
        let port = self.port.map(|p| format!(":{p}")).unwrap_or_default();
        let name = self.name.as_deref().or(self.name_raw.as_deref());
        // An original destination brings its own port.
        let place = match (name, &self.original_dst) {
            (Some(name), _) => format!("{name}{port}"),
            (None, Some(dst)) => dst.to_string(),
            (None, None) => format!("-{port}"),
        };
        let verdict = self.verdict.unwrap_or("-");
        let client = self.client.map(|client| client.to_string()).unwrap_or_default();
        let mut out = format!("{clock} {verdict:<5} {client} -> {place}");
        let mut add = |key: &str, value: Option<&str>| {
            if let Some(value) = value {
                let _ = write!(out, " {key}={value}");
            }
        };
        add("reason", self.reason);
        add("rule", self.rule.as_deref());
        add("method", self.method.as_deref());
        add("upstream", self.upstream.map(|upstream| upstream.to_string()).as_deref());
        add("ending", self.ending.filter(|e| *e != "refused"));
        if self.verdict == Some("allow") {
            let _ = write!(out, " up={} down={} ms={}", self.bytes_up, self.bytes_down, self.duration_ms);
        }
        for (word, value) in [("nearest", &self.nearest), ("to allow it", &self.fix)] {
            if let Some(value) = value {
                let _ = write!(out, "\n         {word}: {value}");
            }
        }
        out.push('\n');
        to.extend_from_slice(out.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(line: &Line) -> Vec<u8> {
        let mut out = Vec::new();
        line.json(&mut out);
        out
    }

    #[test]
    fn unknown_fields_are_absent() {
        let line = Line { event: "tcp", client: Some("192.0.2.1:5".parse().unwrap()), ..Line::default() };
        let json: serde_json::Value = serde_json::from_slice(&written(&line)).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["bytes_down", "bytes_up", "client", "duration_ms", "event", "id", "listener", "ts"]);
        assert_eq!(written(&line).iter().filter(|b| **b == b'\n').count(), 1);
        let line = Line {
            ts: Stamp(humantime::parse_rfc3339("2026-01-02T03:04:05.000006Z").unwrap()),
            id: Id { run: 0xab, number: 31 },
            client: Some("[2001:db8::1]:5".parse().unwrap()),
            answers: ["192.0.2.1".parse().unwrap(), "2001:db8::2".parse().unwrap()].into(),
            ..Line::default()
        };
        let json: serde_json::Value = serde_json::from_slice(&written(&line)).unwrap();
        assert_eq!(json["ts"], "2026-01-02T03:04:05.000006Z");
        assert_eq!(json["id"], "000000ab-1f");
        assert_eq!((&json["client"], &json["answers"][1]), (&"[2001:db8::1]:5".into(), &"2001:db8::2".into()));
    }

    #[test]
    fn people_see_the_reason_and_the_cure() {
        let line = Line {
            ts: Stamp(humantime::parse_rfc3339("2026-01-02T03:04:05.000006Z").unwrap()),
            client: Some("127.0.0.1:5".parse().unwrap()),
            name: Some("a.example".into()),
            port: Some(443),
            verdict: Some("deny"),
            reason: Some("no_rule"),
            fix: Some("x".into()),
            ..Line::default()
        };
        let mut text = Vec::new();
        line.text(&mut text);
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, "03:04:05 deny  127.0.0.1:5 -> a.example:443 reason=no_rule\n         to allow it: x\n");
    }
}
