//! `egret netfilter`: the kernel's rules, printed, applied and removed.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use tokio::time::Instant;

use super::common::{complain, learned, load, print};
use super::error::CommandError;
use crate::app::plan::{next_hop, sidecar};
use crate::config::Settings;
use crate::netfilter::sidecar::{Mesh, User};
use crate::netfilter::{self, Plan, Sidecar, ruleset};
use crate::proxy::listen::settings::Capture;
use egret_core::learned::{Known, Learned};

#[derive(Debug, Subcommand)]
pub(super) enum NetfilterCommand {
    /// Print the table as `nft -f` takes it, and the policy routes as comments
    Show(Parameters),
    /// Put the policy routes and the table into the kernel, and switch forwarding on
    Apply(Parameters),
    /// Switch forwarding off, and take table and policy routes out of the kernel
    Remove {
        /// Not needed for this, and may be given as for apply
        #[arg(long)]
        sidecar: bool,
        /// The configuration file is not needed for this, and may be named
        #[arg(long, value_name = "FILE", env = "EGRET_CONFIG")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Parameters {
    /// Configuration file
    #[arg(long, value_name = "FILE", env = "EGRET_CONFIG")]
    config: Option<PathBuf>,
    /// The table for a pod's own traffic, for an init container
    #[arg(long)]
    sidecar: bool,
    /// The user that egret has in the pod, and no other process
    #[arg(long, value_name = "UID", default_value_t = 1129, requires = "sidecar")]
    uid: u32,
    /// The group that egret has in the pod; with `--mesh istio` 1337, which Istio's own rules pass by
    #[arg(long, value_name = "GID", requires = "sidecar")]
    gid: Option<u32>,
    /// Take what the mesh's proxy sends, and leave its own rules and ports alone
    #[arg(long, requires = "sidecar")]
    mesh: Option<MeshName>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum MeshName {
    Istio,
}

/// egret's user and group in its image.
const GROUP: u32 = 1129;
const ISTIO_GROUP: u32 = 1337;

impl Parameters {
    fn sidecar(&self) -> Result<Option<Sidecar>, CommandError> {
        if !self.sidecar {
            return Ok(None);
        }
        let mesh = self.mesh.map(|MeshName::Istio| Mesh::Istio);
        let usual = if mesh.is_some() { ISTIO_GROUP } else { GROUP };
        let user = User { uid: self.uid, gid: self.gid.unwrap_or(usual) };
        if user.uid == 0 {
            let message = "--uid 0 would let everything of root's pass by; give egret a user of its own";
            return Err(CommandError::Usage(message.to_owned()));
        }
        let sidecar = sidecar(&load(self.config.as_deref())?, user, mesh);
        let message = "no listener takes a pod's own traffic; write { kind: transparent, bind: \"[::]:3129\", capture: redirect }";
        sidecar.map(Some).ok_or_else(|| CommandError::Usage(message.to_owned()))
    }

    fn settings(&self) -> Result<(Settings, Learned), CommandError> {
        let settings = load(self.config.as_deref())?;
        let learned = learned(&settings);
        Ok((settings, learned))
    }
}

fn plan(settings: &Settings, learned: &Learned) -> Result<Plan, CommandError> {
    next_hop(settings, Known::at(learned, Instant::now().into_std())).ok_or_else(|| {
        let is_sidecar = settings.listeners.iter().any(|listener| listener.kind.captures(Capture::Redirect));
        let message = match is_sidecar {
            true => "the configuration is a sidecar's (`capture: redirect`); add --sidecar",
            false => "the configuration asks nothing of the kernel; write such as netfilter: { clients: [\"10.224.0.0/16\"] }",
        };
        CommandError::Usage(message.to_owned())
    })
}

/// Puts the routes and the table of some settings into the kernel, and says what could be better.
pub(super) fn apply(settings: &Settings, learned: &Learned) -> Result<(), CommandError> {
    for advice in netfilter::apply(&plan(settings, learned)?)? {
        complain(&format!("egret: {advice}\n"));
    }
    Ok(())
}

impl NetfilterCommand {
    pub(super) fn carry_out(self) -> Result<ExitCode, CommandError> {
        match self {
            Self::Show(asked) => match asked.sidecar()? {
                Some(sidecar) => print(&sidecar.text()),
                None => {
                    let (settings, learned) = asked.settings()?;
                    print(&ruleset::shown(&plan(&settings, &learned)?))
                }
            },
            Self::Apply(asked) => {
                match asked.sidecar()? {
                    Some(sidecar) => netfilter::apply_sidecar(&sidecar)?,
                    None => {
                        let (settings, learned) = asked.settings()?;
                        apply(&settings, &learned)?;
                    }
                }
                Ok(ExitCode::SUCCESS)
            }
            Self::Remove { .. } => {
                netfilter::remove_what_is_there()?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}
