//! The access line: its fields, and how they look to machines and to people.

use std::fmt::Write as _;
use std::sync::Arc;

use serde::Serialize;

/// One access record. Absent when unknown; every text from the wire has been escaped.
#[derive(Debug, Default, Serialize)]
pub struct Line {
    pub ts: String,
    pub event: &'static str,
    pub id: String,
    pub listener: Arc<str>,
    pub client: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identity: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_dst: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_raw: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_source: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alpn: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ja4: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ech: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ending: Option<&'static str>,
}

impl Line {
    /// One JSON object with its newline.
    #[must_use]
    pub fn json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        // Nothing in a line can fail to serialise; an empty line would be a lie, so say which one it was.
        if serde_json::to_writer(&mut out, self).is_err() {
            out = format!("{{\"id\":\"{}\"", self.id).into_bytes();
            out.push(b'}');
        }
        out.push(b'\n');
        out
    }

    /// One line for a person, with its newline.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        let clock = self.ts.get(11..19).unwrap_or(&self.ts);
        let port = self.port.map(|p| format!(":{p}")).unwrap_or_default();
        let name = self.name.as_deref().or(self.name_raw.as_deref());
        // An original destination brings its own port.
        let place = match (name, &self.original_dst) {
            (Some(name), _) => format!("{name}{port}"),
            (None, Some(dst)) => dst.clone(),
            (None, None) => format!("-{port}"),
        };
        let verdict = self.verdict.unwrap_or("-");
        let mut out = format!("{clock} {verdict:<5} {} -> {place}", self.client);
        let mut add = |key: &str, value: Option<&str>| {
            if let Some(value) = value {
                let _ = write!(out, " {key}={value}");
            }
        };
        add("reason", self.reason);
        add("rule", self.rule.as_deref());
        add("method", self.method.as_deref());
        add("upstream", self.upstream.as_deref());
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
        out.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_absent() {
        let line = Line { ts: "2026-01-02T03:04:05.000006Z".into(), event: "tcp", id: "1-2".into(), ..Line::default() };
        let json: serde_json::Value = serde_json::from_slice(&line.json()).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["bytes_down", "bytes_up", "client", "duration_ms", "event", "id", "listener", "ts"]);
        assert_eq!(line.json().iter().filter(|b| **b == b'\n').count(), 1);
    }

    #[test]
    fn people_see_the_reason_and_the_cure() {
        let line = Line {
            ts: "2026-01-02T03:04:05.000006Z".into(),
            client: "127.0.0.1:5".into(),
            name: Some("a.example".into()),
            port: Some(443),
            verdict: Some("deny"),
            reason: Some("no_rule"),
            fix: Some("x".into()),
            ..Line::default()
        };
        let text = String::from_utf8(line.text()).unwrap();
        assert_eq!(text, "03:04:05 deny  127.0.0.1:5 -> a.example:443 reason=no_rule\n         to allow it: x\n");
    }
}
