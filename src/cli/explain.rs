//! `egret explain`: what the policy says of targets.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::json;

use super::common::{complain, judged, load, print};
use super::error::CommandError;
use egret_core::claim::{Identity, Source};
use egret_core::outcome::Refusal;
use egret_core::policy::explain::{Question, Subject};
use egret_core::policy::{MatchedRule, OwnAddresses, Policy};

#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    #[arg(
        required = true,
        value_name = "TARGET",
        help = "https://host[:port] (or the name alone), http://host[:port][/path], tcp://host-or-ip:port, udp://host-or-ip:port, icmp://ip or dns://name; - reads lines of them"
    )]
    targets: Vec<String>,
    /// Configuration file; without it the built-in one
    #[arg(long, value_name = "FILE", env = "EGRET_CONFIG")]
    config: Option<PathBuf>,
    /// The client's address; without it rules count for any client
    #[arg(long, value_name = "IP")]
    from: Option<IpAddr>,
    /// A name the client has shown: of its certificate, or user:NAME; without it rules count for any
    #[arg(long, value_name = "NAME")]
    client: Vec<String>,
    /// The address the client dials itself
    #[arg(long, value_name = "IP")]
    dst: Option<IpAddr>,
    /// ALPN protocols the client offers, such as h2,http/1.1
    #[arg(long, value_name = "P,…", value_delimiter = ',')]
    alpn: Vec<String>,
    /// Print the verdict as one JSON object
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn answer(self) -> Result<ExitCode, CommandError> {
        let settings = load(self.config.as_deref())?;
        let file = judged(self.config.as_deref());
        let binds = settings.listeners.iter().map(|l| l.bind).chain(settings.admin).chain(settings.health).collect();
        let own = Arc::new(OwnAddresses::new(binds, settings.own_addresses));
        let policy = Policy::of(settings.rules, own);
        let names: Vec<Box<str>> = self.client.iter().map(|name| name.as_str().into()).collect();
        let identity = (!names.is_empty()).then(|| Identity::new(names));
        let nameserver = settings.nameserver;
        let source = Source { ip: self.from.map(|ip| ip.to_canonical()), identity };
        let mut code = 0;
        for (at, target) in self.asked()?.iter().enumerate() {
            let subject: Subject = match target.parse() {
                Ok(subject) => subject,
                Err(fault) => {
                    code = 2;
                    if self.json {
                        print(&format!("{}\n", json!({ "target": target, "error": fault.to_string() })))?;
                    } else {
                        complain(&format!("egret: {fault}\n"));
                    }
                    continue;
                }
            };
            let alpn = self.alpn.iter().map(|p| p.as_bytes().into()).collect();
            // Questions of a forwarder are those of any client.
            let is_forwarded = matches!(subject, Subject::Dns { .. })
                && source.ip.is_some_and(|client| nameserver.is_forwarder(client));
            let source = if is_forwarded { Source::anybody() } else { source.clone() };
            let question = Question { subject, source, dst: self.dst, alpn };
            let verdict = policy.explain(&question);
            code = code.max(u8::from(verdict.is_err()));
            let clients = verdict.as_ref().ok().and_then(|matched| policy.clients_of(&matched.rule));
            let answered = match &question.subject {
                Subject::Dns { name } => policy.by_question(&question.source, name).ok(),
                _ => None,
            };
            let own = nameserver.own_answers.as_ref();
            let comes = own.filter(|own| answered.as_ref().is_some_and(|a| policy.is_read_at(a, &own.ports)));
            let comes = comes.map(|_| "egret's own address, where an `sni` listener reads the name");
            let steers = nameserver.steer.is_some() && answered.as_ref().is_some_and(|a| policy.steers(a).is_some());
            let opens =
                answered.map(|answered| policy.opened_by(&answered).join("; ")).filter(|opens| !opens.is_empty());
            let answer = Explained {
                target,
                file: &file,
                verdict: &verdict,
                clients: clients.as_deref(),
                answer: comes.or_else(|| steers.then_some("a synthetic address, which stands for the name")),
                opens: opens.as_deref(),
            };
            let gap = if at > 0 && !self.json { "\n" } else { "" };
            print(&format!("{gap}{}", if self.json { answer.json() } else { answer.text() }))?;
        }
        Ok(ExitCode::from(code))
    }

    /// The targets, those of standard input in the place of `-`.
    fn asked(&self) -> Result<Vec<String>, CommandError> {
        let mut asked = Vec::new();
        for target in &self.targets {
            if target == "-" {
                let before = asked.len();
                for line in std::io::stdin().lines() {
                    let line = line?.trim().to_owned();
                    asked.extend(Some(line).filter(|line| !line.is_empty() && !line.starts_with('#')));
                }
                if asked.len() == before {
                    return Err(CommandError::Usage("standard input has no target".to_owned()));
                }
            } else {
                asked.push(target.clone());
            }
        }
        Ok(asked)
    }
}

/// An answer of `explain`.
struct Explained<'a> {
    target: &'a str,
    /// The configuration that was judged by.
    file: &'a str,
    verdict: &'a Result<MatchedRule, Refusal>,
    /// The clients that the rule lets out, where not all.
    clients: Option<&'a str>,
    /// What a DNS client reads, where it is not what servers said.
    answer: Option<&'a str>,
    /// The network rules that the addresses of an answer open.
    opens: Option<&'a str>,
}

impl Explained<'_> {
    /// Keys and values, in their order; the verdict's own word is the first key of a text.
    fn parts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let because = self.verdict.as_ref().ok();
        let refusal = self.verdict.as_ref().err();
        let hint = refusal.and_then(|refusal| refusal.hint.as_deref());
        let rule = because.map(|because| &*because.rule).or_else(|| hint?.rule.as_deref());
        let pattern = because.map_or_else(|| hint?.pattern.as_deref(), |because| because.pattern.as_deref());
        let parts = [
            ("reason", refusal.map(|refusal| refusal.reason.as_str())),
            ("stage", refusal.map(|refusal| refusal.stage.as_str())),
            ("rule", rule),
            ("pattern", pattern),
            ("for", self.clients),
            ("answer", self.answer),
            ("opens", self.opens),
            ("nearest", hint.and_then(|hint| hint.nearest.as_deref())),
            ("fix", hint.and_then(|hint| hint.fix.as_deref())),
            ("config", Some(self.file)),
        ];
        parts.into_iter().filter_map(|(key, value)| Some((key, value?)))
    }

    const fn word(&self) -> &'static str {
        if self.verdict.is_ok() { "allow" } else { "deny" }
    }

    fn json(&self) -> String {
        let own = [("target", self.target), ("verdict", self.word())];
        let parts = own.into_iter().chain(self.parts()).map(|(key, value)| (key.to_owned(), value.into()));
        format!("{}\n", serde_json::Value::Object(parts.collect()))
    }

    fn text(&self) -> String {
        let parts = self.parts().filter(|(key, _)| *key != "stage");
        let lines = std::iter::once((self.word(), self.target)).chain(parts);
        lines.map(|(key, value)| format!("{key:<8} {value}\n")).collect()
    }
}
