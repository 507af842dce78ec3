//! Text for columns that people read. For SQLite's shell and many clients of its C interface a text ends at U+0000; there it
//! is replaced. In JSON it stays as it came, because it is escaped there. What else a text may hold is said in `crate::text`.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::StoreError;
use crate::busy::off_executor;

/// A text that is shown whole.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// The same for one that may be missing.
pub(super) fn shown_if_any(text: Option<&String>) -> Option<Cow<'_, str>> {
    text.map(|text| shown(text))
}

/// Stored JSON, passed on as it is.
pub(super) fn raw(json: String) -> Result<Box<RawValue>, StoreError> {
    let raw = off_executor(json.len(), || RawValue::from_string(json));
    raw.map_err(|error| StoreError::Invalid(format!("text that is not JSON ({error})")))
}
