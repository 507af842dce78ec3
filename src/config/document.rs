//! The parsed text of a config: on which line a key stands, which key stands at a position, and which keys are unknown.

use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::error::excerpt;
use super::file::known_keys;
use super::{ConfigError, limits};

/// The parsed text, for finding the line of a key and the key of a position.
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
    pub(super) fn check_keys(&self) -> Result<(), ConfigError> {
        self.check_table(&self.table, &mut Vec::new())
    }

    fn check_table<'t>(&self, table: &'t DeTable<'a>, path: &mut Vec<&'t str>) -> Result<(), ConfigError> {
        let known = known_keys(path);
        for (key, value) in table {
            if known.is_some_and(|known| !known.contains(&key.get_ref().as_ref())) {
                return Err(self.unknown(path, key.get_ref(), key.span()));
            }
            path.push(key.get_ref());
            match value.get_ref() {
                DeValue::Table(table) => self.check_table(table, path)?,
                // serde would fill a struct from a list, by position.
                _ if known_keys(path).is_some() => return Err(self.error(path, "a table is needed here")),
                _ => {}
            }
            path.pop();
        }
        Ok(())
    }

    fn unknown(&self, path: &[&str], key: &str, span: Range<usize>) -> ConfigError {
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

/// The line of a position, from 1.
fn line_of(text: &str, position: usize) -> usize {
    1 + text.bytes().take(position).filter(|byte| *byte == b'\n').count()
}

/// The keys that lead to what is written at a position.
fn path_at<'t>(table: &'t DeTable<'_>, position: usize) -> Option<Vec<&'t str>> {
    table.iter().find_map(|(key, value)| {
        let below = value.get_ref().as_table().and_then(|table| path_at(table, position));
        let here = || (key.span().contains(&position) || value.span().contains(&position)).then(Vec::new);
        let mut path = below.or_else(here)?;
        path.insert(0, key.get_ref().as_ref());
        Some(path)
    })
}

/// A path as TOML would write it; parts that are no bare keys are quoted, so that nothing in them reaches a terminal.
fn dotted(path: &[&str]) -> String {
    let bare = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    let show = |part: &&str| if bare(part) { (*part).to_owned() } else { format!("{part:?}") };
    excerpt(&path.iter().map(show).collect::<Vec<_>>().join("."))
}

/// Which known word the given one may be meant for, as the end of a sentence: the nearest if one is near, else all.
pub(crate) fn hint(word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(nearest) => format!("the nearest known one is {nearest}"),
        None => format!("the known ones are {}", known.join(", ")),
    }
}

/// The known word that the given one is most likely meant for: one that a slip of the finger or a forgotten part tells from
/// it. None when none is that near.
pub(crate) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let has_it =
        |key: &&&str| word.len() >= MIN_PART && key.len() >= MIN_PART && (key.contains(word) || word.contains(**key));
    let likeness = |key: &str| strsim::jaro_winkler(word, key);
    let part = || known.iter().filter(has_it).max_by(|a, b| likeness(a).total_cmp(&likeness(b))).copied();
    // All of this is quadratic in the length; a key of this length is no misspelling.
    if word.len() > 64 { None } else { nearest_by_slips(word, known).or_else(part) }
}

/// The known word that slips of the finger tell from the given one: one, or in a long word one in four characters.
pub(super) fn nearest_by_slips<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_ascii_lowercase();
    let slips = |key: &str| strsim::osa_distance(&word, key);
    let likeness = |key: &str| strsim::jaro_winkler(&word, key);
    // Two letters that changed places are likelier than one that was forgotten.
    let by_slips = |key: &str| (slips(key), key.len().abs_diff(word.len()));
    let closer = |a: &str, b: &str| by_slips(a).cmp(&by_slips(b)).then(likeness(b).total_cmp(&likeness(a)));
    let nearest = known.iter().min_by(|a, b| closer(a, b))?;
    (slips(nearest) <= (word.chars().count() / 4).max(1)).then_some(*nearest)
}

/// A shorter part of a word is in many.
const MIN_PART: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_near_word_is_suggested() {
        let known = ["lease", "workers", "turn_timeout", "idle_timeout", "max_backends", "dir", "on_shutdown"];
        for (word, expected) in [
            ("leese", Some("lease")),
            ("Lease", Some("lease")),
            ("worker", Some("workers")),
            ("turn-timeout", Some("turn_timeout")),
            ("timeout", Some("turn_timeout")),
            ("backends", Some("max_backends")),
            ("dirr", Some("dir")),
            ("colour", None),
            ("port", None),
            ("x", None),
            ("", None),
        ] {
            let found = nearest(word, &known);
            assert!(found == expected || (word == "timeout" && found == Some("idle_timeout")), "{word}: {found:?}");
        }
        assert_eq!(hint("port", &["a", "b"]), "the known ones are a, b");
    }
}
