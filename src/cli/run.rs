//! `egret run`: rights are given up, then the runtime starts.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::common::{complain, learned, load};
use super::error::CommandError;
use super::netfilter;
use crate::app::{App, Bound, StartError};
use crate::config::Settings;
use crate::netfilter::names::FORWARDING;
use crate::privileges::{self, Needs};
use crate::proxy::listen::settings::Capture;
use crate::record::settings::LogOutput;

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|e| StartError::Runtime(e).into())
}

/// How long work that is not a connection may take when everything else has ended.
pub(super) const LAST_WORK: Duration = Duration::from_secs(2);

pub(super) fn run(path: Option<&Path>, applies: bool) -> Result<ExitCode, CommandError> {
    crate::reload::block_sighup()?;
    let settings = load(path)?;
    let learned = learned(&settings);
    if applies {
        if settings.needs_sidecar_table() {
            let message = "the configuration is a sidecar's (`capture: redirect`); run `egret netfilter apply --sidecar` with CAP_NET_ADMIN first, then `egret run` without --netfilter";
            return Err(CommandError::Usage(message.to_owned()));
        }
        netfilter::apply(&settings, &learned)?;
    }
    let bound = Bound::bind(&settings)?;
    let removes = settings.next_hop().is_some_and(|part| part.removes);
    let kept = privileges::give_up(&needs(&settings, removes))?;
    let runtime = runtime()?;
    let served = {
        let _inside = runtime.enter();
        let app = App::build(settings, bound, Some(&kept), path, Arc::new(learned))?;
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
pub(super) fn needs(settings: &Settings, removes: bool) -> Needs {
    let is_tproxy = settings.listeners.iter().any(|listener| listener.kind.captures(Capture::Tproxy));
    let network = is_tproxy || settings.next_hop().is_some();
    let log = match &settings.log.output {
        LogOutput::File(path) => path.parent().map(|folder| folder.join(".")),
        LogOutput::Stdout | LogOutput::Stderr => None,
    };
    let state = settings.learn.state_dir.clone().inspect(|dir| {
        // Should this fail, the later write will say so.
        let _ = std::fs::create_dir_all(dir);
    });
    let control = settings.control.as_ref().and_then(|path| path.parent()).map(Path::to_owned);
    let forwarding = removes.then(|| FORWARDING.map(PathBuf::from)).into_iter().flatten();
    Needs { network, writes: log.into_iter().chain(state).chain(control).chain(forwarding).collect() }
}
