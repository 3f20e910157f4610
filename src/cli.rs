//! The commands: what is asked on the command line, and what is printed for it.

mod bundle;
mod check;
mod cluster;
mod common;
mod control;
mod error;
mod explain;
mod init;
mod netfilter;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config;
use bundle::BundleCommand;
use check::check;
use common::{complain, print};
use control::{health, reload};
use explain::Explain;
use init::InitCommand;
use netfilter::NetfilterCommand;
use run::run;

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
