//! The access log, and what refused clients read.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use super::file;
use super::findings::Findings;
use super::read::{Bounds, duration};
use crate::record::settings::{LogAccess, LogFormat, LogOutput, LogOverflow, LogSettings};

pub(super) fn log(out: &mut Findings<'_>, written: &file::Log) -> LogSettings {
    let output = match written.output.as_deref() {
        None | Some("stdout") => LogOutput::Stdout,
        Some("stderr") => LogOutput::Stderr,
        Some(path) => LogOutput::File(PathBuf::from(path)),
    };
    let read_by_a_person = match output {
        LogOutput::Stdout => std::io::stdout().is_terminal(),
        LogOutput::Stderr => std::io::stderr().is_terminal(),
        LogOutput::File(_) => false,
    };
    let format = match written.format {
        Some(file::LogFormat::Text) => LogFormat::Text,
        Some(file::LogFormat::Auto) if read_by_a_person => LogFormat::Text,
        None | Some(file::LogFormat::Json | file::LogFormat::Auto) => LogFormat::Json,
    };
    let access = match written.access {
        None | Some(file::LogAccess::All) => LogAccess::All,
        Some(file::LogAccess::Refused) => LogAccess::Refused,
        Some(file::LogAccess::None) => LogAccess::None,
    };
    let overflow = match written.overflow {
        None | Some(file::LogOverflow::Drop) => LogOverflow::Drop,
        Some(file::LogOverflow::Block) => LogOverflow::Block,
    };
    let open = duration(out, "log.open", written.open.as_deref(), 10, Bounds::Zero);
    LogSettings {
        format,
        output,
        access,
        overflow,
        net_all: written.net == Some(file::LogNet::All),
        open: Some(open).filter(|open| !open.is_zero()),
        empty: written.empty == Some(true),
    }
}

pub(super) fn contact(out: &mut Findings<'_>, text: Option<&str>) -> Option<Arc<str>> {
    /// It goes into every refusal.
    const MAX_CONTACT: usize = 256;
    let fits = |text: &str| !text.is_empty() && text.len() <= MAX_CONTACT && !text.chars().any(char::is_control);
    let read = |text: &str| {
        let wrong = || format!("write one line of 1 to {MAX_CONTACT} bytes, such as network-team@example.com");
        fits(text).then(|| text.into()).ok_or_else(wrong)
    };
    text.and_then(|text| out.keep("messages.contact", read(text)))
}
