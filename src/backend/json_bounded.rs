//! JSON that would take much more memory as a value than as a text: a value costs 80 bytes whatever it is, so that a line
//! of `[0,0,0,…]` would cost forty times itself.
//!
//! Always: what is read has at most [`MAX_NODES`] values, and beyond that a few of each object on the way. What does not fit
//! stands in its place as its own text, so that nothing of it is lost.

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// Values that are read of one text, some 8 MB. A real agent's line was never seen to have a tenth of it.
const MAX_NODES: usize = 100_000;
/// An object or array that is too large is looked into when it has so few members: what is large is further down.
const MAX_MEMBERS: usize = 256;
/// And not when it stands deeper than this.
const MAX_LEVELS: usize = 8;
/// A shorter text cannot have too many values.
const SMALL_BYTES: usize = 2 * MAX_NODES;

/// Reads a JSON text.
pub(super) fn parse(text: &str) -> Option<Value> {
    if text.len() <= SMALL_BYTES || nodes(text) <= MAX_NODES {
        return serde_json::from_str(text).ok();
    }
    let raw: &RawValue = serde_json::from_str(text).ok()?;
    read(raw.get(), &mut MAX_NODES.clone(), 0)
}

fn read(text: &str, room: &mut usize, level: usize) -> Option<Value> {
    let count = nodes(text);
    if count <= *room {
        *room -= count;
        return serde_json::from_str(text).ok();
    }
    let as_text = || Some(Value::String(text.to_owned()));
    if level == MAX_LEVELS || members(text) > MAX_MEMBERS {
        return as_text();
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
        // A single value, of which there are few where one gets to.
        _ => serde_json::from_str(text).ok(),
    }
}

/// The smallest first: what says what a line is costs little, and has room before what is large.
fn read_all(texts: &[&RawValue], room: &mut usize, level: usize) -> Option<Vec<Value>> {
    let mut order: Vec<_> = (0..texts.len()).collect();
    order.sort_by_key(|index| texts[*index].get().len());
    let mut values = vec![Value::Null; texts.len()];
    for index in order {
        values[index] = read(texts[index].get(), room, level + 1)?;
    }
    Some(values)
}

/// Keys and values of an object, as they stand.
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

/// About how many values a text has.
fn nodes(text: &str) -> usize {
    1 + marks(text).filter(|(mark, _)| matches!(mark, b',' | b'[' | b'{')).count()
}

/// About how many members it has itself.
fn members(text: &str) -> usize {
    1 + marks(text).filter(|(mark, depth)| *mark == b',' && *depth == 1).count()
}

/// What separates and holds values, outside of strings, with how many hold it.
fn marks(text: &str) -> impl Iterator<Item = (u8, usize)> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    text.bytes().filter_map(move |byte| {
        if in_string {
            (in_string, escaped) = (byte != b'"' || escaped, byte == b'\\' && !escaped);
            return None;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                return Some((byte, depth - 1));
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => return Some((byte, depth)),
            _ => {}
        }
        None
    })
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
