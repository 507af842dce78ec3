//! The fields of a JSON object.

use serde_json::{Map, Value};

pub(super) type Fields = Map<String, Value>;

pub(super) fn text<'a>(fields: &'a Fields, key: &str) -> Option<&'a str> {
    fields.get(key).and_then(Value::as_str)
}
