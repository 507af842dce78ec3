//! What a table of the config allows the options of a session to be; [`policy`](crate::policy) judges by it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What `[agents.NAME]` or `[workspaces.NAME]` allows. A list that is not given says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Allowed {
    /// `allow_modes`: for `mode`, `permission_profile`, and what else is a mode of the agent.
    pub modes: Option<Vec<String>>,
    /// `allow_models`
    pub models: Option<Vec<String>>,
    /// `allow_options`: the keys of `extra`.
    pub options: Option<Vec<String>>,
    /// `cwd_roots`: directories beside that of the workspace; absolute.
    pub cwd_roots: Option<Vec<PathBuf>>,
}
