//! The commands: what is asked on the command line, and what is printed for it.

mod bundle;
mod cluster;
mod init;
mod netfilter;

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use serde_json::json;

use crate::app::{App, Bound, StartError};
use crate::config::{self, Capture, ConfigError, LogOutput, Settings};
use crate::control;
use crate::keeper;
use crate::netfilter::{FORWARDING, KernelError};
use crate::privileges::{self, Needs, PrivilegeError};
use bundle::BundleCommand;
use egret_core::claim::{Identity, Source};
use egret_core::outcome::Refusal;
use egret_core::policy::explain::{Question, Subject};
use egret_core::policy::{MatchedRule, OwnAddresses};
use init::InitCommand;
use netfilter::NetfilterCommand;

/// What the configuration in the binary is called.
const BUILT_IN: &str = "default.yaml";

/// A DNS-aware filtering egress proxy: lets out only what is named.
///
/// Without a command it runs with its built-in configuration: a forward proxy on 127.0.0.1:3128 that lets
/// out what an AKS cluster needs.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM
    Run {
        /// Configuration file; without it the built-in one
        #[arg(long, value_name = "FILE", env = "EGRET_CONFIG")]
        config: Option<PathBuf>,
        /// Put the kernel's rules in place before serving
        #[arg(long)]
        netfilter: bool,
    },
    /// Validate and lint a configuration (exit 0; 1 with warnings under --strict; 2 with faults)
    Check {
        /// The file to check; without it the built-in one
        #[arg(long, value_name = "FILE", env = "EGRET_CONFIG")]
        config: Option<PathBuf>,
        /// Warnings are failures
        #[arg(long)]
        strict: bool,
        /// Print faults and warnings as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Say what would happen to connections, and why (exit 0 allow, 1 any is denied, 2 any cannot be read)
    Explain(Explain),
    /// Look into the rule sets that come with egret
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Make a configuration for a cluster, and the commands around it
    #[command(subcommand)]
    Init(InitCommand),
    /// The kernel's rules for the transparent listener and the network rules
    #[command(subcommand)]
    Netfilter(NetfilterCommand),
    /// Have a running egret read its policy again, and print what came of it (exit 0; 2 with faults; 1 if egret cannot be reached)
    Reload {
        /// Its configuration file; without it the usual socket is asked
        #[arg(long, value_name = "FILE", env = "EGRET_CONFIG")]
        config: Option<PathBuf>,
        /// Its control socket, instead of the one in the configuration
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
    /// Print the JSON Schema of the configuration
    Schema,
    /// Ask a running egret whether it lives, for a container's health check, or whether it is ready
    Health {
        /// Its configuration file; without it the built-in one
        #[arg(long, value_name = "FILE", env = "EGRET_CONFIG")]
        config: Option<PathBuf>,
        /// Whether it serves with all that it needs (/readyz), and not only lives (/healthz)
        #[arg(long)]
        ready: bool,
        /// Ask again until it is so, for at most this long
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        wait: Option<Duration>,
    },
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, clap::Args)]
struct Explain {
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

/// What went wrong with a command, and so its exit code.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Start(#[from] StartError),
    #[error("{0}")]
    Kernel(#[from] KernelError),
    #[error("{0}")]
    Privilege(#[from] PrivilegeError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl CommandError {
    const fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage(_) => 2,
            Self::Start(_) | Self::Kernel(_) | Self::Privilege(_) | Self::Io(_) => 1,
        }
    }
}

impl Cli {
    /// Runs the command; the one place that prints errors.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let outcome = match self.command.unwrap_or_else(|| Command::Run {
            config: std::env::var_os("EGRET_CONFIG").map(PathBuf::from),
            netfilter: false,
        }) {
            Command::Run { config, netfilter } => run(config.as_deref(), netfilter),
            Command::Check { config, strict, json } => check(config.as_deref(), strict, json),
            Command::Explain(explain) => explain.answer(),
            Command::Bundle(bundle) => bundle.answer().and_then(|(text, said)| {
                complain(&said);
                print(&text)
            }),
            Command::Init(init) => init.answer().and_then(|text| print(&text)),
            Command::Netfilter(command) => command.carry_out(),
            Command::Reload { config, socket } => reload(config.as_deref(), socket),
            Command::Schema => print(&format!("{:#}\n", config::schema())),
            Command::Health { config, ready, wait } => health(config.as_deref(), ready, wait.unwrap_or_default()),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "egret", &mut script);
                print(&String::from_utf8_lossy(&script))
            }
        };
        outcome.unwrap_or_else(|error| {
            complain(&format!("egret: {error}\n"));
            ExitCode::from(error.code())
        })
    }
}

fn load(path: Option<&Path>) -> Result<Settings, ConfigError> {
    match path {
        Some(path) => Settings::load(path),
        None => Settings::parse(config::DEFAULT, BUILT_IN, Path::new(".")),
    }
}

/// What a configuration is called.
fn judged(path: Option<&Path>) -> String {
    path.map_or_else(|| format!("{BUILT_IN} (built in)"), |path| path.display().to_string())
}

fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|e| StartError::Runtime(e).into())
}

/// Gives network rules back what was found for their names before.
fn remember(settings: &Settings) {
    let (rules, learn) = (&settings.rules, &settings.learn);
    let Some(dir) = &learn.state_dir else { return };
    if let Err(why) = keeper::state::restore(dir, &rules.nets, rules.nat64, learn.remember) {
        complain(&format!("egret: {why}\n"));
    }
}

/// How long work that is not a connection may take when everything else has ended.
const LAST_WORK: Duration = Duration::from_secs(2);

fn run(path: Option<&Path>, applies: bool) -> Result<ExitCode, CommandError> {
    crate::reload::hold()?;
    let settings = load(path)?;
    remember(&settings);
    if applies {
        if settings.needs_sidecar_table() {
            let message = "the configuration is a sidecar's (`capture: redirect`); run `egret netfilter apply --sidecar` with CAP_NET_ADMIN first, then `egret run` without --netfilter";
            return Err(CommandError::Usage(message.to_owned()));
        }
        netfilter::apply(&settings)?;
    }
    let bound = Bound::bind(&settings)?;
    let removes = settings.next_hop().is_some_and(|part| part.removes);
    let kept = privileges::give_up(&needs(&settings, removes))?;
    let runtime = runtime()?;
    let served = {
        let _inside = runtime.enter();
        let app = App::build(settings, bound, Some(&kept), path)?;
        // The screen is for people; stdout belongs to the access log.
        complain(&format!("{}\n", app.screen()));
        runtime.block_on(app.serve())
    };
    // A look at a file on a disk that has gone away may never return.
    runtime.shutdown_timeout(LAST_WORK);
    served?;
    if removes {
        crate::netfilter::remove()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What serving takes beyond reading files and opening connections.
fn needs(settings: &Settings, removes: bool) -> Needs {
    let is_tproxy = settings.listeners.iter().any(|listener| listener.kind.captures(Capture::Tproxy));
    let network = is_tproxy || settings.next_hop().is_some();
    let log = match &settings.log.output {
        LogOutput::File(path) => path.parent().map(|folder| folder.join(".")),
        LogOutput::Stdout | LogOutput::Stderr => None,
    };
    let state = settings.learn.state_dir.clone().inspect(|dir| {
        // Should this fail, whoever writes there will say so.
        let _ = std::fs::create_dir_all(dir);
    });
    let control = settings.control.as_ref().and_then(|path| path.parent()).map(Path::to_owned);
    let forwarding = removes.then(|| FORWARDING.map(PathBuf::from)).into_iter().flatten();
    Needs { network, writes: log.into_iter().chain(state).chain(control).chain(forwarding).collect() }
}

fn check(path: Option<&Path>, strict: bool, as_json: bool) -> Result<ExitCode, CommandError> {
    let file = judged(path);
    let linted = match path {
        Some(path) => Settings::lint(path),
        None => Settings::lint_text(config::DEFAULT, BUILT_IN),
    };
    let (faults, warnings, notes, summary) = match linted {
        Ok(settings) => {
            let counts = [
                count(settings.listeners.len(), "listener"),
                count(settings.rules.apps.iter().filter(|rule| rule.decides()).count(), "application rule"),
                count(settings.rules.nets.len(), "network rule"),
            ];
            let word = match settings.warnings.len() {
                0 => "fine".to_owned(),
                n => count(n, "warning"),
            };
            (Vec::new(), settings.warnings, settings.notes, format!("{file}: {word}: {}", counts.join(", ")))
        }
        Err(error) => {
            let summary = format!("{file}: {}", count(error.faults.len(), "fault"));
            (error.faults, Vec::new(), Vec::new(), summary)
        }
    };
    let code = match (faults.is_empty(), warnings.is_empty()) {
        (false, _) => 2,
        (true, false) if strict => 1,
        (true, _) => 0,
    };
    if as_json {
        let list = |faults: &[config::Fault]| -> Vec<_> {
            let one = |f: &config::Fault| json!({ "line": f.place.line, "column": f.place.column, "path": f.path, "message": f.message });
            faults.iter().map(one).collect()
        };
        print(&format!(
            "{}\n",
            json!({ "file": file, "faults": list(&faults), "warnings": list(&warnings), "notes": list(&notes) })
        ))?;
        return Ok(ExitCode::from(code));
    }
    let mut text = String::new();
    for fault in &faults {
        text.push_str(&format!("error: {}\n", fault.at(&file)));
    }
    for warning in &warnings {
        text.push_str(&format!("warning: {}\n", warning.at(&file)));
    }
    for note in &notes {
        text.push_str(&format!("note: {}\n", note.at(&file)));
    }
    text.push_str(&summary);
    text.push('\n');
    if code == 0 {
        print(&text)?;
    } else {
        complain(&text);
    }
    Ok(ExitCode::from(code))
}

impl Explain {
    fn answer(self) -> Result<ExitCode, CommandError> {
        let settings = load(self.config.as_deref())?;
        let file = judged(self.config.as_deref());
        let binds = settings.listeners.iter().map(|l| l.bind).chain(settings.admin).chain(settings.health).collect();
        let own = Arc::new(OwnAddresses::new(binds, settings.own_addresses));
        let policy = settings.rules.compile(own);
        let names: Vec<Box<str>> = self.client.iter().map(|name| name.as_str().into()).collect();
        let identity = (!names.is_empty()).then(|| Identity::new(names));
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
            let question = Question { subject, source: source.clone(), dst: self.dst, alpn };
            let verdict = policy.explain(&question);
            code = code.max(u8::from(verdict.is_err()));
            let whom = verdict.as_ref().ok().and_then(|because| policy.whom(&because.rule));
            let answer = Explained { target, file: &file, verdict: &verdict, whom: whom.as_deref() };
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
    /// Whom the rule lets out, where not everybody.
    whom: Option<&'a str>,
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
            ("for", self.whom),
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

fn health(path: Option<&Path>, ready: bool, wait: Duration) -> Result<ExitCode, CommandError> {
    /// Between two questions.
    const PAUSE: Duration = Duration::from_millis(100);
    let settings = load(path)?;
    let bind: SocketAddr = settings
        .health
        .or(settings.admin)
        .ok_or_else(|| CommandError::Usage("the configuration has neither `health` nor `admin` to ask".to_owned()))?;
    let page = if ready { "/readyz" } else { "/healthz" };
    let asking = async {
        let until = tokio::time::Instant::now() + wait;
        loop {
            match crate::admin::ask(bind, page).await {
                Err(_) if tokio::time::Instant::now() < until => tokio::time::sleep(PAUSE).await,
                answer => return answer,
            }
        }
    };
    match runtime()?.block_on(asking) {
        Ok(()) => print(if ready { "ready\n" } else { "ok\n" }),
        Err(error) => {
            let says = if error.kind() == std::io::ErrorKind::Other { "says" } else { "does not answer" };
            let message = format!("http://{bind}{page} {says}: {error}");
            Err(CommandError::Io(std::io::Error::new(error.kind(), message)))
        }
    }
}

fn reload(path: Option<&Path>, socket: Option<PathBuf>) -> Result<ExitCode, CommandError> {
    let usage = |message: String| CommandError::Usage(message);
    let socket = match (socket, path) {
        (Some(socket), _) => socket,
        (None, None) => PathBuf::from(control::USUAL_SOCKET),
        // The rest of it may have faults: what it says of them is the answer.
        (None, Some(path)) => config::control_socket(path).map_err(usage)?.ok_or_else(|| {
            let cure =
                format!("write control: {{ socket: {} }}, restart egret, or send it SIGHUP", control::USUAL_SOCKET);
            usage(format!("{}: there is no control socket to ask; {cure}", path.display()))
        })?,
    };
    let (is_done, said) = control::ask(&socket, "reload").map_err(|error| {
        let cure = match error.kind() {
            std::io::ErrorKind::Other => "",
            std::io::ErrorKind::PermissionDenied => "; ask as egret's user, or as root",
            _ => "; does egret run, and with this `control.socket`?",
        };
        std::io::Error::new(error.kind(), format!("cannot ask at {}: {error}{cure}", socket.display()))
    })?;
    let text: String = said.iter().map(|line| format!("{line}\n")).collect();
    if is_done {
        return print(&text);
    }
    complain(&text);
    Ok(ExitCode::from(2))
}

fn count(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

/// Where nobody can hear it, the exit code still says it.
fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// A reader that went away (`| head`) is not an error.
fn print(text: &str) -> Result<ExitCode, CommandError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
