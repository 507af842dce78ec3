//! The keys of an agent or a workspace that restrict the options of its sessions.

use std::path::{Component, Path, PathBuf};

use super::ConfigError;
use super::section::{Section, Words};
use crate::allowed::Allowed;

/// The keys as written in the file.
pub(super) struct AllowedKeys {
    pub modes: Option<Words>,
    pub models: Option<Words>,
    pub options: Option<Words>,
    pub cwd_roots: Option<Words>,
}

/// Checks them. Relative directories are relative to `base_dir`.
pub(super) fn read(section: &Section<'_>, given: AllowedKeys, base_dir: &Path) -> Result<Allowed, ConfigError> {
    let legal = |entry: &str| !entry.trim().is_empty() && !entry.contains(char::is_control);
    let list = |key: &str, given: Option<Words>, want: &str| {
        let mut value = given.is_some().then(Vec::new);
        if let Some(value) = &mut value {
            section.list(key, given, legal, want, value)?;
        }
        Ok::<_, ConfigError>(value)
    };
    let options =
        list("allow_options", given.options, "a key of `extra`, such as \"effort\", is needed, or \"*\" for all")?;
    let without_prefix = |key: String| key.strip_prefix("extra.").map_or(key.clone(), str::to_owned);
    let roots = list("cwd_roots", given.cwd_roots, "a directory is needed")?;
    Ok(Allowed {
        modes: list("allow_modes", given.modes, "a mode of the agent, such as \"plan\", is needed, or \"*\" for all")?,
        models: list("allow_models", given.models, "a model of the agent is needed, or \"*\" for all")?,
        options: options.map(|keys| keys.into_iter().map(without_prefix).collect()),
        cwd_roots: roots.map(|roots| roots.iter().map(|root| directory(base_dir, root)).collect()),
    })
}

/// A directory named in the file. Removes the dot of "./x", so that a path is shown the same everywhere, but keeps "..":
/// resolving it would be wrong behind a link.
pub(super) fn directory(base_dir: &Path, dir: &str) -> PathBuf {
    base_dir.join(dir).components().filter(|part| *part != Component::CurDir).collect()
}
