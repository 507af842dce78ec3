//! Parses JSON that would take much more memory as a value than as text: a value costs 80 bytes whatever it is, so a
//! line of `[0,0,0,…]` would cost forty times its size.
//!
//! Always: the result has at most [`MAX_NODES`] values, and beyond that a few for each object on the path. What does
//! not fit is kept as its own text, so nothing is lost.

use memchr::memchr2;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// Maximum values parsed from one text, some 8 MB. No real agent's line was ever seen to have a tenth of it.
const MAX_NODES: usize = 100_000;
/// An object or array that is too large is descended into only if it has at most this many members: the large part is
/// further down.
const MAX_MEMBERS: usize = 256;
/// Maximum depth to descend.
const MAX_LEVELS: usize = 8;
/// A shorter text cannot have too many values.
const SMALL_BYTES: usize = 2 * MAX_NODES;

/// Parses a JSON text.
pub(super) fn parse(text: &str) -> Option<Value> {
    if text.len() <= SMALL_BYTES {
        return serde_json::from_str(text).ok();
    }
    let mut room = MAX_NODES;
    read(text.trim_matches([' ', '\t', '\n', '\r']), &mut room, 0)
}

fn read(text: &str, room: &mut usize, level: usize) -> Option<Value> {
    let shape = Shape::of(text);
    if shape.nodes <= *room {
        *room -= shape.nodes;
        return serde_json::from_str(text).ok();
    }
    if level == MAX_LEVELS || shape.members > MAX_MEMBERS {
        // On a deeper level the text was already validated by the level above.
        let is_json = level > 0 || serde_json::from_str::<&RawValue>(text).is_ok();
        return is_json.then(|| Value::String(text.to_owned()));
    }
    match text.as_bytes().first() {
        Some(b'{') => {
            let Members(members) = serde_json::from_str(text).ok()?;
            let (keys, values): (Vec<_>, Vec<_>) = members.into_iter().unzip();
            let values = read_all(&values, room, level)?;
            Some(Value::Object(keys.into_iter().zip(values).collect::<Map<_, _>>()))
        }
        Some(b'[') => {
            let values: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            read_all(&values, room, level).map(Value::Array)
        }
        // A single value; the levels above bound how many of them are reached.
        _ => serde_json::from_str(text).ok(),
    }
}

/// Reads the smallest first: what identifies a line is small, and gets room before what is large.
fn read_all(texts: &[&RawValue], room: &mut usize, level: usize) -> Option<Vec<Value>> {
    let mut order: Vec<_> = (0..texts.len()).collect();
    order.sort_by_key(|index| texts[*index].get().len());
    let mut values = vec![Value::Null; texts.len()];
    for index in order {
        values[index] = read(texts[index].get(), room, level + 1)?;
    }
    Some(values)
}

/// The keys of an object and the raw texts of its values.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

/// Roughly how many values a text has, and how many of them are its direct members.
struct Shape {
    nodes: usize,
    members: usize,
}

impl Shape {
    /// Reads each byte once; strings are skipped.
    fn of(text: &str) -> Self {
        let mut shape = Self { nodes: 1, members: 1 };
        let (bytes, mut at, mut depth) = (text.as_bytes(), 0, 0_usize);
        while let Some(byte) = bytes.get(at) {
            at += 1;
            match byte {
                b'"' => at = behind_string(bytes, at),
                b'{' | b'[' => {
                    depth += 1;
                    shape.nodes += 1;
                }
                b'}' | b']' => depth = depth.saturating_sub(1),
                b',' => {
                    shape.nodes += 1;
                    shape.members += usize::from(depth == 1);
                }
                _ => {}
            }
        }
        shape
    }
}

/// The position behind the string whose first character is here.
fn behind_string(bytes: &[u8], mut at: usize) -> usize {
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found + 1;
        if bytes[at - 1] == b'"' {
            return at;
        }
        at += 1;
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_stands_as_its_text() {
        let zeros = format!("[{}0]", "0,".repeat(MAX_NODES));
        let line = format!(r#"{{"type":"a\",{{","deep":{{"list":[{{"big":{zeros}}},1]}},"usage":{{"n":[1,2]}}}}"#);
        let read = parse(&line).unwrap();
        assert_eq!(read["type"], "a\",{");
        assert_eq!(read["usage"]["n"][1], 2);
        assert_eq!(read["deep"]["list"][1], 1);
        assert_eq!(read["deep"]["list"][0]["big"], zeros);
        assert_eq!(parse(&zeros), Some(Value::String(zeros.clone())));
        assert_eq!(parse(&zeros[1..]), None);
    }

    #[test]
    fn many_medium_values_share_the_room() {
        let medium = format!("[{}0]", "0,".repeat(MAX_NODES / 3));
        let line = format!("[{}]", [medium.as_str(); 5].join(","));
        let read = parse(&line).unwrap();
        let kinds: Vec<_> = read.as_array().unwrap().iter().map(Value::is_array).collect();
        assert_eq!(kinds.iter().filter(|is_array| **is_array).count(), 2);
        assert!(read[4] == medium.as_str() || read[4].is_array());
    }

    #[test]
    fn what_fits_is_read_as_ever() {
        let text = format!(r#"{{"text":"{}","n":1.50}}"#, ",[{".repeat(SMALL_BYTES));
        assert_eq!(parse(&text), serde_json::from_str(&text).ok());
    }
}
