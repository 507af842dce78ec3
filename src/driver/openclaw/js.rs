//! JSON and truthiness as in JavaScript: OpenClaw and its first clients are written in it, and their rules show in
//! texts for the user.
//!
//! Always: total. No JSON makes it fail.

use std::fmt::Write as _;

use serde_json::{Map, Number, Value};

/// Trims white space as `String.prototype.trim` does: with the byte order mark, without U+0085.
pub fn trim(text: &str) -> &str {
    text.trim_matches(|c: char| c == '\u{feff}' || (c.is_whitespace() && c != '\u{85}'))
}

/// Whether a value is truthy.
pub fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
    }
}

/// The output of `JSON.stringify`.
pub fn stringify(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => {
            // Writing to a String cannot fail.
            let _ = write!(out, "{value}");
        }
        Value::Number(number) => write_number(number, out),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (index, (key, item)) in in_order(map).into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                let _ = write!(out, "{}:", Value::from(key));
                write(item, out);
            }
            out.push('}');
        }
    }
}

/// The members of an object in JavaScript's order: array indices first and ascending, then the rest in order of insertion.
fn in_order(map: &Map<String, Value>) -> Vec<(&str, &Value)> {
    let mut members: Vec<_> = map.iter().map(|(key, value)| (key.as_str(), value)).collect();
    // The sort is stable.
    members.sort_by_key(|(key, _)| array_index(key).map_or((1, 0), |index| (0, index)));
    members
}

fn array_index(key: &str) -> Option<u32> {
    let index: u32 = key.parse().ok()?;
    (index != u32::MAX && index.to_string() == key).then_some(index)
}

/// `Number.prototype.toString` for finite numbers.
fn write_number(number: &Number, out: &mut String) {
    let value = number.as_f64().unwrap_or_default();
    if value == 0.0 {
        return out.push('0');
    }
    let scientific = format!("{:e}", value.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    // The position of the decimal point, counted from the first digit.
    let point = 1 + exponent.parse::<i32>().unwrap_or_default();
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    if value < 0.0 {
        out.push('-');
    }
    let zeros = |n: i32| "0".repeat(usize::try_from(n).unwrap_or_default());
    let (before, after) = digits.split_at(usize::try_from(point).unwrap_or_default().clamp(1, digits.len()));
    let _ = match point {
        _ if (count..=21).contains(&point) => write!(out, "{digits}{}", zeros(point - count)),
        1..=21 => write!(out, "{before}.{after}"),
        -5..=0 => write!(out, "0.{}{digits}", zeros(-point)),
        _ => write!(out, "{mantissa}e{:+}", point - 1),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_keys_are_written_as_in_javascript() {
        for (json, written) in [
            ("1.0", "1"),
            ("-0.0", "0"),
            ("1e21", "1e+21"),
            ("123456789012345678901", "123456789012345680000"),
            ("9007199254740993", "9007199254740992"),
            ("-12.5", "-12.5"),
            ("0.000001", "0.000001"),
            ("0.0000001", "1e-7"),
            ("1.25e-7", "1.25e-7"),
            ("1.5e300", "1.5e+300"),
            ("120", "120"),
            (r#"{"b":1,"10":2,"2":3,"02":4,"a":[true,null]}"#, r#"{"2":3,"10":2,"b":1,"02":4,"a":[true,null]}"#),
            ("\"\u{2028}\\u0001\"", "\"\u{2028}\\u0001\""),
        ] {
            assert_eq!(stringify(&serde_json::from_str(json).unwrap()), written, "{json}");
        }
    }

    #[test]
    fn white_space_is_javascripts() {
        assert_eq!(trim("\u{feff}\u{a0}\t x \u{85}\r\n"), "x \u{85}");
    }
}
