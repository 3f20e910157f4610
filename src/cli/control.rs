//! Commands to a running egret.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::common::{complain, load, print};
use super::error::CommandError;
use super::run::runtime;
use crate::{config, control};

pub(super) fn health(path: Option<&Path>, ready: bool, wait: Duration) -> Result<ExitCode, CommandError> {
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

pub(super) fn reload(path: Option<&Path>, socket: Option<PathBuf>) -> Result<ExitCode, CommandError> {
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
