//! Text for columns that people read. SQLite's shell and many clients of its C interface end a text at U+0000, so it is replaced
//! here. In JSON it stays, because it is escaped there. `crate::text` has the other rules for texts.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::StoreError;
use crate::busy::off_executor;

/// A text for a column that people read.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// The same for an optional text.
pub(super) fn shown_if_any(text: Option<&String>) -> Option<Cow<'_, str>> {
    text.map(|text| shown(text))
}

/// Stored JSON, passed on unchanged.
pub(super) fn raw(json: String) -> Result<Box<RawValue>, StoreError> {
    let raw = off_executor(json.len(), || RawValue::from_string(json));
    raw.map_err(|error| StoreError::Invalid(format!("text that is not JSON ({error})")))
}
