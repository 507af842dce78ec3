//! The parsed text of a config: finds the line of a key, the key at a position, and unknown keys.

use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::error::excerpt;
use super::{ConfigError, limits};
use crate::nearest::hint;

/// The keys that the table at a path may have; none where the user chooses the keys (names of agents, of variables).
pub(super) type KnownKeys = fn(&[&str]) -> Option<&'static [&'static str]>;

/// The parsed text, to find the line of a key and the key at a position.
pub(super) struct Document<'a> {
    origin: &'a Path,
    text: &'a str,
    table: DeTable<'a>,
}

impl<'a> Document<'a> {
    pub(super) fn parse(text: &'a str, origin: &'a Path) -> Result<Self, ConfigError> {
        let file = || excerpt(&origin.to_string_lossy());
        if text.len() > limits::MAX_FILE_BYTES {
            return Err(ConfigError::TooLarge { file: file(), bytes: text.len() });
        }
        match DeTable::parse(text) {
            Ok(table) => Ok(Self { origin, text, table: table.into_inner() }),
            Err(error) => {
                let line = line_of(text, error.span().unwrap_or_default().start);
                Err(ConfigError::Syntax { file: file(), line, problem: excerpt(error.message()) })
            }
        }
    }

    fn file(&self) -> String {
        excerpt(&self.origin.to_string_lossy())
    }

    /// An error at the key of the path, or at the table that should have it.
    pub(super) fn error(&self, path: &[&str], problem: &str) -> ConfigError {
        let mut table = Some(&self.table);
        let mut position = 0;
        for key in path {
            let Some((key, value)) = table.and_then(|table| table.get_key_value(*key)) else { break };
            position = key.span().start;
            table = value.get_ref().as_table();
        }
        let line = line_of(self.text, position);
        ConfigError::Value { file: self.file(), line, key: dotted(path), problem: excerpt(problem) }
    }

    /// An error that serde found.
    pub(super) fn invalid(&self, error: &toml::de::Error) -> ConfigError {
        let position = error.span().unwrap_or_default().start;
        let path = path_at(&self.table, position).unwrap_or_default();
        let (file, line) = (self.file(), line_of(self.text, position));
        ConfigError::Value { file, line, key: dotted(&path), problem: excerpt(error.message()) }
    }

    /// Checks that every key is known.
    pub(super) fn check_keys(&self, known_keys: KnownKeys) -> Result<(), ConfigError> {
        self.check_table(known_keys, &self.table, &mut Vec::new())
    }

    fn check_table<'t>(
        &self,
        known_keys: KnownKeys,
        table: &'t DeTable<'a>,
        path: &mut Vec<&'t str>,
    ) -> Result<(), ConfigError> {
        let known = known_keys(path);
        for (key, value) in table {
            if known.is_some_and(|known| !known.contains(&key.get_ref().as_ref())) {
                return Err(self.unknown(known_keys, path, key.get_ref(), key.span()));
            }
            path.push(key.get_ref());
            match value.get_ref() {
                DeValue::Table(table) => self.check_table(known_keys, table, path)?,
                // serde would accept a list for a struct, by position.
                _ if known_keys(path).is_some() => return Err(self.error(path, "a table is needed here")),
                _ => {}
            }
            path.pop();
        }
        Ok(())
    }

    fn unknown(&self, known_keys: KnownKeys, path: &[&str], key: &str, span: Range<usize>) -> ConfigError {
        const SECTIONS: [&[&str]; 5] =
            [&["server"], &["engine"], &["agents", "NAME"], &["workspaces", "NAME"], &["tokens", "NAME"]];
        let home = SECTIONS.into_iter().find(|path| known_keys(path).is_some_and(|known| known.contains(&key)));
        let hint = match home {
            Some(home) => format!("it belongs in [{}]", home.join(".")),
            None => hint(key, known_keys(path).unwrap_or_default()),
        };
        let key = dotted(&[path, &[key]].concat());
        ConfigError::UnknownKey { file: self.file(), line: line_of(self.text, span.start), key, hint }
    }
}

/// The line of a position, counted from 1.
fn line_of(text: &str, position: usize) -> usize {
    1 + text.bytes().take(position).filter(|byte| *byte == b'\n').count()
}

/// The path of the key at a position.
fn path_at<'t>(table: &'t DeTable<'_>, position: usize) -> Option<Vec<&'t str>> {
    table.iter().find_map(|(key, value)| {
        let below = value.get_ref().as_table().and_then(|table| path_at(table, position));
        let here = || (key.span().contains(&position) || value.span().contains(&position)).then(Vec::new);
        let mut path = below.or_else(here)?;
        path.insert(0, key.get_ref().as_ref());
        Some(path)
    })
}

/// A path in TOML notation; parts that are not bare keys are quoted, so that no control character reaches a terminal.
fn dotted(path: &[&str]) -> String {
    let bare = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    let show = |part: &&str| if bare(part) { (*part).to_owned() } else { format!("{part:?}") };
    excerpt(&path.iter().map(show).collect::<Vec<_>>().join("."))
}
