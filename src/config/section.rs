//! A table of the file: its values are checked against their limits, and an error states the limits.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::de::{self, Deserialize, Unexpected, Visitor};

use super::document::Document;
use super::{ConfigError, duration, limits, size};

/// A whole number; its limits are checked later, where its key is known.
pub(super) struct Whole(pub(super) i64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WholeVisitor;
        impl Visitor<'_> for WholeVisitor {
            type Value = Whole;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Whole, E> {
                Ok(Whole(number))
            }
        }
        deserializer.deserialize_i64(WholeVisitor)
    }
}

/// A duration; its limits are checked later, where its key is known.
pub(super) struct Period(pub(super) Duration);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PeriodVisitor;
        impl Visitor<'_> for PeriodVisitor {
            type Value = Period;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(r#"a duration such as "500ms", "30s", "1m30s", "2h" or "7d""#)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Period, E> {
                duration::parse(text).map(Period).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(PeriodVisitor)
    }
}

/// A size; its limits are checked later, where its key is known.
pub(super) struct Size(pub(super) usize);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(r#"a size such as "512MiB" or "1GiB""#)
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                usize::try_from(bytes).map(Size).map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                size::parse(text).map(Size).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

/// A list of texts. For a single text without brackets, the error shows how to write the list.
pub(super) struct Words(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordsVisitor;
        impl<'de> Visitor<'de> for WordsVisitor {
            type Value = Words;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(r#"a list of texts such as ["one", "two"]"#)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Words, E> {
                // A text with shell syntax is not split into words for the suggestion.
                let has_quotes = text.contains(['"', '\'', '\\', '$', '|', '>', '<', '&', ';', '`']);
                let words: Vec<_> = if has_quotes { vec![text] } else { text.split_whitespace().collect() };
                Err(E::custom(format!("a list of texts is needed: write it as {words:?}")))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = seq.next_element()? {
                    words.push(word);
                }
                Ok(Words(words))
            }
        }
        deserializer.deserialize_seq(WordsVisitor)
    }
}

/// A table of the file, for checking the values in it.
pub(super) struct Section<'s> {
    document: &'s Document<'s>,
    path: Vec<&'s str>,
}

impl<'s> Section<'s> {
    /// The nested table of this name.
    pub(super) fn below(&self, name: &'s str) -> Self {
        Self { document: self.document, path: [&self.path, &[name][..]].concat() }
    }

    pub(super) fn new(document: &'s Document<'s>, path: &[&'s str]) -> Self {
        Self { document, path: path.to_vec() }
    }

    pub(super) fn error(&self, key: &[&str], problem: impl Display) -> ConfigError {
        self.document.error(&[&self.path, key].concat(), &problem.to_string())
    }

    /// Checks a duration against its limits.
    pub(super) fn period(
        &self,
        key: &str,
        given: Option<Period>,
        limits: RangeInclusive<Duration>,
        value: &mut Duration,
    ) -> Result<(), ConfigError> {
        let Some(Period(given)) = given else { return Ok(()) };
        if !limits.contains(&given) {
            let [given, least, most] = [given, *limits.start(), *limits.end()].map(duration::show);
            return Err(self.error(&[key], format!("{given} is not allowed: use {least} to {most}")));
        }
        *value = given;
        Ok(())
    }

    /// Checks a size against its limits.
    pub(super) fn size(
        &self,
        key: &str,
        given: Option<Size>,
        limits: RangeInclusive<usize>,
        value: &mut usize,
    ) -> Result<(), ConfigError> {
        let Some(Size(given)) = given else { return Ok(()) };
        if !limits.contains(&given) {
            let [given, least, most] = [given, *limits.start(), *limits.end()].map(size::show);
            return Err(self.error(&[key], format!("{given} is not allowed: use {least} to {most}")));
        }
        *value = given;
        Ok(())
    }

    /// Checks a number against its limits.
    pub(super) fn number<T: TryFrom<i64> + PartialOrd + Display>(
        &self,
        key: &str,
        given: Option<Whole>,
        limits: RangeInclusive<T>,
        value: &mut T,
    ) -> Result<(), ConfigError> {
        let Some(Whole(given)) = given else { return Ok(()) };
        *value = T::try_from(given).ok().filter(|number| limits.contains(number)).ok_or_else(|| {
            self.error(&[key], format!("{given} is not allowed: use {} to {}", limits.start(), limits.end()))
        })?;
        Ok(())
    }

    /// Checks that a word is one of `words`.
    pub(super) fn choice<T: Copy, const N: usize>(
        &self,
        key: &str,
        given: Option<String>,
        words: [(&str, T); N],
        value: &mut T,
    ) -> Result<(), ConfigError> {
        let Some(given) = given else { return Ok(()) };
        let Some((_, chosen)) = words.iter().find(|(word, _)| *word == given) else {
            let words = words.map(|(word, _)| word).join(", ");
            return Err(self.error(&[key], format!("{given:?} is not allowed: use one of {words}")));
        };
        *value = *chosen;
        Ok(())
    }

    /// Checks that every entry of a list is `legal`; `want` describes a legal entry.
    pub(super) fn list(
        &self,
        key: &str,
        given: Option<Words>,
        legal: fn(&str) -> bool,
        want: &str,
        value: &mut Vec<String>,
    ) -> Result<(), ConfigError> {
        let Some(Words(given)) = given else { return Ok(()) };
        if given.len() > limits::MAX_ALLOWED {
            let (count, most) = (given.len(), limits::MAX_ALLOWED);
            return Err(self.error(&[key], format!("{count} entries are not allowed: use {most} at most")));
        }
        if let Some(bad) = given.iter().find(|entry| !legal(entry)) {
            return Err(self.error(&[key], format!("{bad:?}: {want}")));
        }
        *value = given;
        Ok(())
    }
}
