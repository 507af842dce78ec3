//! Which session options a table of the config allows; [`policy`](crate::policy) applies it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What `[agents.NAME]` or `[workspaces.NAME]` allows. A missing list sets no rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Allowed {
    /// `allow_modes`: for `mode`, `permission_profile`, and other options that set a mode of the agent.
    pub modes: Option<Vec<String>>,
    /// `allow_models`
    pub models: Option<Vec<String>>,
    /// `allow_options`: the keys of `extra`.
    pub options: Option<Vec<String>>,
    /// `cwd_roots`: directories besides that of the workspace; absolute.
    pub cwd_roots: Option<Vec<PathBuf>>,
}
