//! One value from its text.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::file;
use super::findings::Findings;
use crate::files::{Files, Refreshed};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bounds {
    Zero,
    Positive,
}

/// A duration such as `5s`; a fault leaves the default, for the checks after it.
pub(super) fn duration(
    out: &mut Findings<'_>,
    path: &str,
    text: Option<&str>,
    default: u64,
    bounds: Bounds,
) -> Duration {
    /// Past this a timer means "never", which no limit may.
    const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
    let default = Duration::from_secs(default);
    let Some(text) = text else { return default };
    let read = match humantime::parse_duration(text) {
        Ok(time) if time > LONGEST => Err(format!("`{text}` is longer than a year; write a shorter time")),
        Ok(Duration::ZERO) if bounds == Bounds::Positive => {
            Err("a limit of zero lets nothing through; write 1ms or more".to_owned())
        }
        Ok(time) => Ok(time),
        Err(_) => Err(format!("`{text}` is not a duration; write a number and its unit, such as 5s, 2m or 4h")),
    };
    out.keep(path, read).unwrap_or(default)
}

pub(super) fn size(
    out: &mut Findings<'_>,
    path: &str,
    text: Option<&str>,
    default: usize,
    least: usize,
) -> Option<usize> {
    /// A gigabyte for a hello is a mistake, and a terabyte for everything too.
    const MOST: u64 = 1 << 40;
    let Some(text) = text else { return Some(default) };
    let read = match text.parse::<bytesize::ByteSize>() {
        Ok(size) if size.as_u64() < least as u64 => {
            Err(format!("`{text}` is too small to work; write {least}B or more"))
        }
        Ok(size) if size.as_u64() > MOST => Err(format!("`{text}` is more than a machine has; write less")),
        Ok(size) => usize::try_from(size.as_u64()).map_err(|_| "does not fit this machine".to_owned()),
        Err(_) => Err(format!("`{text}` is not a size; write a number and its unit, such as 64KiB or 256MiB")),
    };
    out.keep(path, read)
}

/// `Some(None)` is the first of the words.
#[allow(clippy::option_option, reason = "outer: was it readable; inner: was it a number")]
pub(super) fn count(
    out: &mut Findings<'_>,
    path: &str,
    written: Option<&file::Count>,
    word: &str,
) -> Option<Option<usize>> {
    let read = match written {
        None => Ok(None),
        Some(file::Count::Word(given)) if word.split(" or ").next() == Some(given) => Ok(None),
        Some(file::Count::Number(0)) => Err(format!("0 would refuse every client; write 1 or more, or {word}")),
        Some(file::Count::Number(n)) => Ok(Some(*n as usize)),
        Some(file::Count::Word(given)) => Err(format!("`{given}` is not a number; write one, or {word}")),
    };
    out.keep(path, read)
}

/// An address and port to listen on.
pub(super) fn socket(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(socket) if socket.port() == 0 => Err("0 is not a port; write a number from 1 to 65535".to_owned()),
        Ok(socket) => Ok(socket),
        Err(_) => Err(format!("`{text}` is not an address with a port; write 127.0.0.1:3128 or [::]:3128")),
    }
}

/// The files that a listener needs, or their fault noted.
pub(super) fn loaded<F: Files>(out: &mut Findings<'_>, path: &str, files: F) -> Option<Arc<Refreshed<F>>> {
    let loaded = Refreshed::load(files).map_err(|fault| {
        let key = if fault.key.is_empty() { path.to_owned() } else { format!("{path}.{}", fault.key) };
        out.fault(&key, fault.message);
    });
    loaded.ok().map(Arc::new)
}
