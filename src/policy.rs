//! Which options a session may have: the operator's side of [`options`](crate::options).
//!
//! Always: an option is checked when it is set and again when a turn begins, against the config of the process that executes the
//! turn. A list in the config has to contain the value, in the table of the agent and in that of the workspace; if neither has a
//! list, the default applies. Modes that lift an agent's own limits ([`UNRESTRICTED`]) are allowed by name only.

use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::agent::Agent;
use crate::allowed::Allowed;
use crate::catalogue::UNRESTRICTED;
use crate::id::{AgentName, WorkspaceName};
use crate::options::{InvalidOption, SessionOptions};
use crate::permission::PermissionOption;
use crate::workspace::Workspace;

/// The list entry that matches every value, those of [`UNRESTRICTED`] included.
const ANY: &str = "*";
/// Keys under which agents take a mode, without their separators.
const MODE_KEYS: [&str; 10] = [
    "mode",
    "permissionmode",
    "permissionprofile",
    "permissions",
    "sandbox",
    "sandboxmode",
    "approval",
    "approvalmode",
    "approvalpolicy",
    "askforapproval",
];
/// The same for a model.
const MODEL_KEYS: [&str; 2] = ["model", "fallbackmodel"];
/// Values that turn an option off.
const OFF: [&str; 4] = ["false", "off", "no", "0"];

/// Which options one session may have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OptionRules {
    agent: Table,
    workspace: Table,
    /// The workspace's directory; none when the workspace is not configured in this process.
    dir: Option<PathBuf>,
    /// Words that name an unrestricted mode for this agent only.
    own_unrestricted: Vec<String>,
}

/// A table of the config, with the options that it allows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Table {
    name: String,
    allowed: Allowed,
}

/// What an option sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mode,
    Model,
    Other,
}

impl OptionRules {
    /// The rules for a session. An agent or workspace that is not configured in this process sets no rules here: the process
    /// that executes the turn checks again.
    pub fn new(
        (agent_name, agent): (&AgentName, Option<&Agent>),
        (workspace_name, workspace): (&WorkspaceName, Option<&Workspace>),
    ) -> Self {
        let command = agent.and_then(|agent| agent.driver.process()).map_or(&[][..], |process| &process.command);
        let own = UNRESTRICTED.iter().filter(|mode| !mode.for_all && runs(command, mode.agent));
        Self {
            agent: Table {
                name: format!("agents.{agent_name}"),
                allowed: agent.map(|agent| agent.allowed.clone()).unwrap_or_default(),
            },
            workspace: Table {
                name: format!("workspaces.{workspace_name}"),
                allowed: workspace.map(|workspace| workspace.allowed.clone()).unwrap_or_default(),
            },
            dir: workspace.map(|workspace| workspace.dir.clone()),
            own_unrestricted: own.map(|mode| mode.word.to_owned()).collect(),
        }
    }

    /// Checks all options but `cwd`, using what the agent has advertised so far.
    ///
    /// # Errors
    /// [`InvalidOption::NotAllowed`] for the first that is refused.
    pub fn check(&self, options: &SessionOptions, advertised: Option<&Value>) -> Result<(), InvalidOption> {
        let named =
            [("mode", &options.mode), ("permission_profile", &options.permission_profile), ("model", &options.model)];
        for (key, value) in named {
            if let Some(value) = value {
                self.check_one(key, value, kind_of(key, None))?;
            }
        }
        for (key, value) in &options.extra {
            self.check_extra(key, value, category_of(advertised, key))?;
        }
        Ok(())
    }

    /// Checks an option of the agent's own that the agent assigns to this category.
    ///
    /// # Errors
    /// [`InvalidOption::NotAllowed`].
    pub fn check_extra(&self, key: &str, value: &str, category: Option<&str>) -> Result<(), InvalidOption> {
        let name = format!("extra.{key}");
        let lists = |table: &Table| table.allowed.options.clone();
        if let Some(missing) = self.missing(lists, key, true) {
            return Err(not_allowed(&name, value, "allow_options", &missing));
        }
        self.check_named(&name, key, value, kind_of(key, category))
    }

    /// Checks an option by the category that the agent reports. For the driver that sets it, which knows the category for sure.
    ///
    /// # Errors
    /// [`InvalidOption::NotAllowed`].
    pub fn check_offered(&self, key: &str, value: &str, category: Option<&str>) -> Result<(), InvalidOption> {
        self.check_named(key, key, value, kind_of(key, category))
    }

    /// Checks an option by its kind. An option of any name is also checked for an unrestricted mode: as its value, or as a flag
    /// of that name.
    fn check_named(&self, name: &str, key: &str, value: &str, kind: Kind) -> Result<(), InvalidOption> {
        self.check_one(name, value, kind)?;
        if kind == Kind::Other && !OFF.contains(&value) && self.is_unrestricted(key, key) {
            return self.check_mode(name, key);
        }
        Ok(())
    }

    fn check_one(&self, name: &str, value: &str, kind: Kind) -> Result<(), InvalidOption> {
        match kind {
            Kind::Mode => self.check_mode(name, value),
            Kind::Model => match self.missing(|table| table.allowed.models.clone(), value, true) {
                Some(missing) => Err(not_allowed(name, value, "allow_models", &missing)),
                None => Ok(()),
            },
            Kind::Other if self.is_unrestricted(name, value) => self.check_mode(name, value),
            Kind::Other => Ok(()),
        }
    }

    /// Checks a mode that is set by an option of this name.
    ///
    /// # Errors
    /// [`InvalidOption::NotAllowed`].
    pub fn check_mode(&self, name: &str, mode: &str) -> Result<(), InvalidOption> {
        let otherwise = !self.is_unrestricted(name, mode);
        match self.missing(|table| table.allowed.modes.clone(), mode, otherwise) {
            Some(missing) => Err(not_allowed(name, mode, "allow_modes", &missing)),
            None => Ok(()),
        }
    }

    /// Whether an answer that an agent offers would switch it to a refused mode: agents name such answers after the mode. A
    /// rejecting answer leaves the mode unchanged, so it is refused only if its word names an unrestricted mode.
    pub fn refuses_answer(&self, answer: &PermissionOption, advertised: Option<&Value>) -> bool {
        let id = answer.id.as_str();
        let is_mode = || answer.kind.allows() && advertised.is_some_and(|advertised| offers_mode(advertised, id));
        (self.is_unrestricted("answer", id) || is_mode()) && self.check_mode("answer", id).is_err()
    }

    /// The tables whose lists lack the value; none when it is allowed.
    fn missing(&self, list: impl Fn(&Table) -> Option<Vec<String>>, value: &str, otherwise: bool) -> Option<Vec<&str>> {
        let tables = [&self.agent, &self.workspace];
        let lists: Vec<_> = tables.into_iter().filter_map(|table| Some((table, list(table)?))).collect();
        if lists.is_empty() {
            return (!otherwise).then(|| vec![self.agent.name.as_str()]);
        }
        let names = |list: &[String]| list.iter().any(|entry| entry == ANY || entry == value);
        let missing = lists.iter().filter(|(_, list)| !names(list)).map(|(table, _)| table.name.as_str());
        let missing: Vec<_> = missing.collect();
        (!missing.is_empty()).then_some(missing)
    }

    fn is_unrestricted(&self, name: &str, word: &str) -> bool {
        let word = plain_word(word);
        let is_one = |known: &str| plain_word(known) == word;
        let never_asks = word == "never" && plain_word(name).contains("approval");
        never_asks
            || UNRESTRICTED.iter().any(|mode| mode.for_all && is_one(mode.word))
            || self.own_unrestricted.iter().any(|own| is_one(own))
    }

    /// The directory of a `cwd` with all links resolved. Reads the file system.
    ///
    /// # Errors
    /// [`InvalidOption::NotAllowed`] when it is not below the workspace's directory or a root of the config.
    pub fn resolve(&self, cwd: &Path) -> Result<PathBuf, InvalidOption> {
        let Some(dir) = &self.dir else { return Ok(cwd.to_owned()) };
        let shown = cwd.to_string_lossy();
        let refused = |tables: &[&str]| not_allowed("cwd", &shown, "cwd_roots", tables);
        let Ok(resolved) = followed(cwd) else { return Err(refused(&[&self.workspace.name])) };
        let is_below = |root: &PathBuf| followed(root).is_ok_and(|root| resolved.starts_with(root));
        if is_below(dir) {
            return Ok(resolved);
        }
        let tables = [&self.agent, &self.workspace];
        let roots: Vec<_> =
            tables.iter().filter_map(|table| Some((table, table.allowed.cwd_roots.as_ref()?))).collect();
        let missing: Vec<_> = roots
            .iter()
            .filter(|(_, roots)| !roots.iter().any(is_below))
            .map(|(table, _)| table.name.as_str())
            .collect();
        match missing.as_slice() {
            [] if roots.is_empty() => Err(refused(&[&self.workspace.name])),
            [] => Ok(resolved),
            missing => Err(refused(missing)),
        }
    }
}

/// Whether a command starts a program of this name, directly or through a launcher such as `npx` or `env`.
fn runs(command: &[String], program: &str) -> bool {
    command.iter().any(|word| word.rsplit('/').next() == Some(program))
}

/// Normalises a word for comparison: agents write modes in different cases, with different separators, and some as the end of a
/// URL.
fn plain_word(word: &str) -> String {
    let word = word.rsplit(['#', '/', ':']).find(|part| !part.is_empty()).unwrap_or_default();
    word.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn kind_of(key: &str, category: Option<&str>) -> Kind {
    let key: String = key.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    let is = |kind: &str, keys: &[&str]| category == Some(kind) || keys.contains(&key.as_str());
    if is("mode", &MODE_KEYS) {
        Kind::Mode
    } else if is("model", &MODEL_KEYS) {
        Kind::Model
    } else {
        Kind::Other
    }
}

/// The category of the agent's option with this key.
fn category_of<'a>(advertised: Option<&'a Value>, key: &'a str) -> Option<&'a str> {
    let options = advertised?.get("config_options")?.as_array()?;
    let option = options.iter().find(|option| option["id"] == key || option["category"] == key)?;
    option["category"].as_str()
}

/// Whether an agent offers a mode with this id, directly or as the value of an option.
fn offers_mode(advertised: &Value, id: &str) -> bool {
    let modes = advertised["modes"]["availableModes"].as_array().into_iter().flatten().map(|mode| &mode["id"]);
    let options = advertised["config_options"].as_array().into_iter().flatten();
    let options = options.filter(|option| option["id"] == "mode" || option["category"] == "mode");
    let values = options.flat_map(|option| option["options"].as_array().into_iter().flatten());
    // They may be grouped.
    let values = values.flat_map(|entry| match entry["options"].as_array() {
        Some(group) => group.iter().collect(),
        None => vec![entry],
    });
    modes.chain(values.map(|entry| &entry["value"])).any(|mode| mode == id)
}

fn not_allowed(key: &str, value: &str, list: &'static str, tables: &[&str]) -> InvalidOption {
    let tables = tables.iter().map(|table| format!("[{table}]")).collect::<Vec<_>>().join(" and ");
    InvalidOption::NotAllowed { key: key.to_owned(), value: value.to_owned(), list, tables }
}

/// A path with all links resolved. If it does not exist, the links of its deepest existing directory are resolved; the rest must
/// not lead upwards.
fn followed(path: &Path) -> io::Result<PathBuf> {
    let mut missing = Vec::new();
    for existing in path.ancestors() {
        match existing.canonicalize() {
            Ok(found) => return Ok(missing.iter().rev().fold(found, |path, part| path.join(part))),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
                    && existing.symlink_metadata().is_err() =>
            {
                let Some(Component::Normal(name)) = existing.components().next_back() else { return Err(error) };
                missing.push(name);
            }
            // Includes a dangling link: it exists, although its target does not.
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests;
