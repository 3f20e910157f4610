//! `egret netfilter`: the kernel's rules, printed, applied and removed.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use super::{CommandError, complain, load, print, remember};
use crate::config::Settings;
pub(super) use crate::netfilter::FORWARDING;
use crate::netfilter::{self, Plan, ruleset};

#[derive(Debug, Subcommand)]
pub(super) enum NetfilterCommand {
    /// Print the table as `nft -f` takes it, and the policy routes as comments
    Show(Config),
    /// Put the policy routes and the table into the kernel, and switch forwarding on
    Apply(Config),
    /// Switch forwarding off, and take table and policy routes out of the kernel
    Remove {
        /// The configuration file is not needed for this, and may be named
        #[arg(long, value_name = "FILE", env = "EGRET_CONFIG")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Config {
    /// Configuration file
    #[arg(long, value_name = "FILE", env = "EGRET_CONFIG")]
    config: Option<PathBuf>,
}

impl Config {
    fn settings(&self) -> Result<Settings, CommandError> {
        let settings = load(self.config.as_deref())?;
        remember(&settings);
        Ok(settings)
    }
}

fn plan(settings: &Settings) -> Result<Plan, CommandError> {
    Plan::of(settings).ok_or_else(|| {
        let message =
            "the configuration asks nothing of the kernel; write such as netfilter: { clients: [\"10.224.0.0/16\"] }";
        CommandError::Usage(message.to_owned())
    })
}

/// Puts the routes and the table of some settings into the kernel, and says what could be better.
pub(super) fn apply(settings: &Settings) -> Result<(), CommandError> {
    for advice in netfilter::apply(&plan(settings)?)? {
        complain(&format!("egret: {advice}\n"));
    }
    Ok(())
}

impl NetfilterCommand {
    pub(super) fn carry_out(self) -> Result<ExitCode, CommandError> {
        match self {
            Self::Show(config) => print(&ruleset::shown(&plan(&config.settings()?)?)),
            Self::Apply(config) => {
                apply(&config.settings()?)?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Remove { .. } => {
                netfilter::remove()?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}
