//! The options of a session: settings for its agent, besides the messages. An option that the agent does not offer is not sent
//! to it.
//!
//! Always: texts are trimmed, not empty, bounded and without control characters, so that each can be one argument of a
//! process; [`SessionOptions::patched`] is the one way in.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::nearest::hint;

/// The options of a session; none are set in a new one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionOptions {
    /// The agent's mode, such as `plan`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// The model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The working directory, instead of the workspace's; absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<PathBuf>,
    /// The permission profile: what the agent may do without asking, in the agent's own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission_profile: Option<String>,
    /// Limit for a whole turn, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// Further options of the agent, by its own keys.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, String>,
}

const KEYS: [&str; 6] = ["mode", "model", "cwd", "permission_profile", "timeout_seconds", "extra"];
/// Maximum lengths of texts, in characters.
const MAX_MODE_CHARS: usize = 64;
const MAX_MODEL_CHARS: usize = 200;
const MAX_CWD_CHARS: usize = 4096;
const MAX_PROFILE_CHARS: usize = 80;
const MAX_EXTRA_KEY_CHARS: usize = 64;
const MAX_EXTRA_VALUE_CHARS: usize = 512;
/// Maximum number of further options.
const MAX_EXTRAS: usize = 32;
/// Maximum number of an agent's modes that an error lists.
const MAX_MODES_NAMED: usize = 20;
/// Maximum limit of a turn: a day.
const MAX_TIMEOUT_SECONDS: u32 = 24 * 3600;

/// An option that cannot be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOption {
    /// No option has this name.
    #[error("unknown option {key:?}: {hint}; an option of the agent's own goes into `extra`")]
    UnknownKey {
        /// The name.
        key: String,
        /// What may have been meant.
        hint: String,
    },
    /// The operator's config does not allow it.
    #[error(
        "the option {key} may not be {value:?} here: the operator can add it to `{list}` of {tables} in the config"
    )]
    NotAllowed {
        /// The option.
        key: String,
        /// Its value.
        value: String,
        /// The list of the config that would allow it.
        list: &'static str,
        /// The tables in which that list would have to name it.
        tables: String,
    },
    /// Its value is not valid.
    #[error("the option {key} {problem}")]
    Value {
        /// The option.
        key: String,
        /// What is wrong, and what is needed.
        problem: String,
    },
}

impl SessionOptions {
    /// The options after a patch: a value replaces the old one, null clears it, all others stay; the same within `extra`.
    ///
    /// # Errors
    /// [`InvalidOption`] for the first thing that is wrong; nothing is changed then.
    pub fn patched(&self, patch: &Map<String, Value>) -> Result<Self, InvalidOption> {
        let mut options = self.clone();
        for (key, value) in patch {
            match key.as_str() {
                "mode" => options.mode = text(key, value, MAX_MODE_CHARS)?,
                "model" => options.model = text(key, value, MAX_MODEL_CHARS)?,
                "cwd" => options.cwd = directory(key, value)?,
                "permission_profile" => options.permission_profile = text(key, value, MAX_PROFILE_CHARS)?,
                "timeout_seconds" => options.timeout_seconds = seconds(key, value)?,
                "extra" => options.extra = extras(&options.extra, value)?,
                unknown => {
                    let (key, hint) = (excerpt(unknown), hint(unknown, &KEYS));
                    return Err(InvalidOption::UnknownKey { key, hint });
                }
            }
        }
        Ok(options)
    }

    /// The patch for options given as texts, as on a command line: `extra.KEY` is an option of the agent's own. An option
    /// without a text is cleared.
    pub fn patch_of<'a>(changes: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> Map<String, Value> {
        let (mut patch, mut extra) = (Map::new(), Map::new());
        for (key, text) in changes {
            let value = match text.map(|text| (text, text.trim().parse::<u64>())) {
                None => Value::Null,
                Some((_, Ok(number))) if key == "timeout_seconds" => Value::from(number),
                Some((text, _)) => Value::from(text),
            };
            match key.strip_prefix("extra.") {
                Some(own) => extra.insert(own.to_owned(), value),
                None => patch.insert(key.to_owned(), value),
            };
        }
        if !extra.is_empty() {
            patch.insert("extra".to_owned(), Value::Object(extra));
        }
        patch
    }

    /// Checks that the agent offers the mode, if it differs from that of `before`. Any mode passes until the agent has reported
    /// what it offers.
    ///
    /// # Errors
    /// [`InvalidOption`] with the modes that it offers.
    pub fn check_offered(&self, before: &Self, advertised: Option<&Value>) -> Result<(), InvalidOption> {
        let Some(mode) = self.mode.as_ref().filter(|_| self.mode != before.mode) else { return Ok(()) };
        let Some(offers) = advertised.filter(|offers| !may_be_mode(offers, mode)) else { return Ok(()) };
        let offered: Vec<_> = modes(offers).into_iter().take(MAX_MODES_NAMED).map(excerpt).collect();
        wrong("mode", format!("is none that the agent offers: {}", offered.join(", ")))
    }

    /// The limit of a turn, if there is one.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout_seconds.map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// The effect of each option that is set, as far as known.
    pub fn effects(&self, takes: Takes, advertised: Option<&Value>) -> BTreeMap<String, Effect> {
        let mut effects = BTreeMap::new();
        let mut add = |key: String, effect| effects.insert(key, effect);
        if self.cwd.is_some() {
            add("cwd".to_owned(), Effect::Applied);
        }
        if self.timeout_seconds.is_some() {
            add("timeout_seconds".to_owned(), Effect::Applied);
        }
        let named = [("mode", &self.mode), ("model", &self.model), ("permission_profile", &self.permission_profile)];
        let named =
            named.into_iter().filter_map(|(key, value)| value.as_deref().map(|value| (key, key.to_owned(), value)));
        let extra = self.extra.iter().map(|(key, value)| (key.as_str(), format!("extra.{key}"), value.as_str()));
        for (key, name, value) in named.chain(extra) {
            let is_told = takes.always.contains(&name.as_str());
            let effect = match advertised {
                // A turn in a mode that does not exist fails.
                None if is_told && key == "mode" => Effect::Unknown,
                Some(offers) if is_told && key == "mode" && !may_be_mode(offers, value) => Effect::Unknown,
                _ if is_told => Effect::Applied,
                None if takes.advertised => Effect::Unknown,
                Some(offers) if takes.advertised && is_offered(offers, key, value) => Effect::Applied,
                _ => Effect::Ignored,
            };
            add(name, effect);
        }
        effects
    }
}

/// Which options an agent accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Takes {
    /// These, whatever their values; `extra.KEY` is one of its own.
    pub always: &'static [&'static str],
    /// Whether it also accepts those that it advertises.
    pub advertised: bool,
}

/// The effect of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// It applies from the next turn on.
    Applied,
    /// The agent does not offer it, so it is not sent.
    Ignored,
    /// The agent has not reported yet what it offers; the first turn will show.
    Unknown,
}

impl Effect {
    /// The word in JSON and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Ignored => "ignored",
            Self::Unknown => "unknown",
        }
    }
}

/// The ids of the modes that an agent offers.
fn modes(advertised: &Value) -> Vec<&str> {
    let modes = advertised["modes"]["availableModes"].as_array().into_iter().flatten();
    modes.filter_map(|mode| mode["id"].as_str()).collect()
}

/// Whether an agent offers a mode, or has reported no modes.
fn may_be_mode(advertised: &Value, mode: &str) -> bool {
    modes(advertised).is_empty() || is_offered(advertised, "mode", mode)
}

/// Whether an agent offers a mode or an option of this name and with this value.
fn is_offered(advertised: &Value, key: &str, value: &str) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let is_mode = key == "mode" && modes(advertised).contains(&value);
    let options = list(&advertised["config_options"]);
    let is_option = options.iter().any(|option| {
        let is_named = option["id"] == key || option["category"] == key;
        // The choices may be grouped; an option without choices accepts any value.
        let choices = list(&option["options"]);
        let groups = choices.iter().flat_map(|choice| list(&choice["options"]));
        let has_value = choices.iter().cloned().chain(groups).any(|choice| choice["value"] == value);
        is_named && (choices.is_empty() || has_value)
    });
    is_mode || is_option
}

fn wrong<T>(key: &str, problem: impl Into<String>) -> Result<T, InvalidOption> {
    Err(InvalidOption::Value { key: excerpt(key), problem: problem.into() })
}

/// Shortens a foreign word for an error, which may be printed to a terminal.
fn excerpt(word: &str) -> String {
    word.chars()
        .take(MAX_EXTRA_KEY_CHARS)
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

fn text(key: &str, value: &Value, max_chars: usize) -> Result<Option<String>, InvalidOption> {
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) => text.trim(),
        _ => return wrong(key, "needs a text, or null to clear it"),
    };
    if text.is_empty() {
        return wrong(key, "is empty: null clears it");
    }
    if text.chars().count() > max_chars {
        return wrong(key, format!("may have at most {max_chars} characters"));
    }
    if text.chars().any(char::is_control) {
        return wrong(key, "has a control character in it");
    }
    Ok(Some(text.to_owned()))
}

fn directory(key: &str, value: &Value) -> Result<Option<PathBuf>, InvalidOption> {
    match text(key, value, MAX_CWD_CHARS)? {
        Some(path) if !Path::new(&path).is_absolute() => wrong(key, "needs an absolute path"),
        path => Ok(path.map(PathBuf::from)),
    }
}

fn seconds(key: &str, value: &Value) -> Result<Option<u32>, InvalidOption> {
    if value.is_null() {
        return Ok(None);
    }
    let seconds = value.as_u64().and_then(|seconds| u32::try_from(seconds).ok());
    match seconds.filter(|seconds| (1..=MAX_TIMEOUT_SECONDS).contains(seconds)) {
        Some(seconds) => Ok(Some(seconds)),
        None => wrong(key, format!("needs a whole number from 1 to {MAX_TIMEOUT_SECONDS}, or null to clear it")),
    }
}

fn extras(current: &BTreeMap<String, String>, value: &Value) -> Result<BTreeMap<String, String>, InvalidOption> {
    let changes = match value {
        Value::Null => return Ok(BTreeMap::new()),
        Value::Object(changes) => changes,
        _ => return wrong("extra", "needs an object of texts, or null to clear it"),
    };
    let mut extras = current.clone();
    for (key, value) in changes {
        let name = format!("extra.{key}");
        let key = key.trim();
        let legal = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
        let begins_well = key.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins_well || !key.chars().all(legal) || key.len() > MAX_EXTRA_KEY_CHARS {
            let rule = "1 to 64 of A–Z a–z 0–9 . _ : -, the first a letter or digit";
            return wrong(&name, format!("has a name that no option can have: {rule}"));
        }
        match text(&name, value, MAX_EXTRA_VALUE_CHARS)? {
            Some(value) => extras.insert(key.to_owned(), value),
            None => extras.remove(key),
        };
    }
    match extras.len() {
        ..=MAX_EXTRAS => Ok(extras),
        _ => wrong("extra", format!("may have at most {MAX_EXTRAS} entries")),
    }
}
