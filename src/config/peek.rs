//! Single keys of a file, whatever is wrong with the rest of it.

use std::path::{Path, PathBuf};

use super::document;
use crate::bundle::Parameters;
use crate::files::read_bounded;

fn as_json(path: &Path) -> Result<serde_json::Value, String> {
    let tree = document::parse(&read_bounded(path)?).map_err(|fault| fault.at(&path.display().to_string()))?;
    Ok(tree.json_without(&[], ""))
}

/// The control socket that a configuration names, whatever else is wrong with it.
///
/// # Errors
/// Where the file cannot be read, or is not YAML.
pub fn control_socket(path: &Path) -> Result<Option<PathBuf>, String> {
    let all = as_json(path)?;
    let socket = all.pointer("/control/socket").and_then(|socket| socket.as_str());
    Ok(socket.map(|socket| path.parent().unwrap_or_else(|| Path::new(".")).join(socket)))
}

/// The rule sets that a configuration asks for, in their order, whatever else stands in it.
///
/// # Errors
/// Where the file cannot be read, or the list of rule sets not be understood.
pub fn bundles(path: &Path) -> Result<Vec<Parameters>, String> {
    let bundles = as_json(path)?.pointer("/policy/bundles").cloned().unwrap_or_else(|| serde_json::json!([]));
    serde_json::from_value(bundles).map_err(|error| format!("{}: policy.bundles: {error}", path.display()))
}
