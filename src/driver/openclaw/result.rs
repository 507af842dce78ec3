//! The result of an OpenClaw tool: the output to show, and the message of a failure.
//!
//! Always: an output is an object and a failure is text, whatever the tool returned.

use serde_json::{Map, Value};

use super::js;

/// In UTF-16 units, as in the clients that set the limit; longer details are shown without a text of their own.
const MAX_TEXT_UNITS: usize = 50_000;

/// The text and the details in a raw result.
struct Parts<'a> {
    text: Option<String>,
    details: Option<&'a Value>,
}

impl<'a> Parts<'a> {
    fn of(raw: &'a Value) -> Self {
        let fields = match raw {
            Value::String(text) => return Self { text: non_empty(text), details: None },
            Value::Array(_) => return Self { text: None, details: Some(raw) },
            Value::Object(fields) => fields,
            Value::Null | Value::Bool(_) | Value::Number(_) => return Self { text: None, details: None },
        };
        let content = fields.get("content").and_then(Value::as_array);
        let text = content.and_then(|blocks| {
            let texts = blocks.iter().filter(|block| block.get("type").and_then(Value::as_str) == Some("text"));
            let texts: Vec<_> = texts.filter_map(|block| block.get("text").and_then(Value::as_str)).collect();
            non_empty(&texts.join("\n"))
        });
        let details = fields.get("details").filter(|details| details.is_object() || details.is_array());
        // Neither text nor details: the tool returned an object of its own, or content of another kind, such as an image.
        let is_bare = text.is_none() && details.is_none() && content.is_none_or(|blocks| has_more_than_text(blocks));
        Self { text, details: if is_bare { Some(raw) } else { details } }
    }
}

fn has_more_than_text(blocks: &[Value]) -> bool {
    blocks.iter().any(|block| block.is_object() && block.get("type").and_then(Value::as_str) != Some("text"))
}

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// The output: `text`, and beside it every detail. Details without a text get their JSON as text.
pub fn output(raw: &Value) -> Value {
    let Parts { text, details } = Parts::of(raw);
    let mut output = Map::new();
    if let Some(text) = text {
        output.insert("text".to_owned(), text.into());
    }
    match details {
        Some(Value::Object(fields)) => output.extend(fields.iter().map(|(key, value)| (key.clone(), value.clone()))),
        Some(Value::Array(items)) => {
            output.extend(items.iter().enumerate().map(|(index, item)| (index.to_string(), item.clone())));
        }
        _ => {}
    }
    if let Some(details) = details
        && !output.get("text").is_some_and(js::is_truthy)
    {
        let json = js::stringify(details);
        if json.encode_utf16().count() <= MAX_TEXT_UNITS {
            output.insert("text".to_owned(), json.into());
        }
    }
    Value::Object(output)
}

/// The message of a failed tool.
pub fn failure(raw: &Value) -> String {
    let Parts { text, details } = Parts::of(raw);
    let reported = || match details?.get("error").filter(|error| js::is_truthy(error))? {
        Value::String(error) => Some(error.clone()),
        error => Some(js::stringify(error)),
    };
    text.or_else(reported).unwrap_or_else(|| "Tool execution failed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn outputs() {
        let long = "x".repeat(MAX_TEXT_UNITS);
        for (raw, expected) in [
            (json!(null), json!({})),
            (json!(0), json!({})),
            (json!(7), json!({})),
            (json!(true), json!({})),
            (json!(""), json!({})),
            (json!("plain"), json!({"text": "plain"})),
            (json!({}), json!({"text": "{}"})),
            (json!([]), json!({"text": "[]"})),
            (json!(["a", {"b": 1.0}]), json!({"0": "a", "1": {"b": 1.0}, "text": r#"["a",{"b":1}]"#})),
            (json!({"content": []}), json!({})),
            (json!({"content": [{"type": "image", "data": "AA"}]}), {
                json!({"content": [{"type": "image", "data": "AA"}], "text": r#"{"content":[{"type":"image","data":"AA"}]}"#})
            }),
            (json!({"content": "no blocks"}), json!({"content": "no blocks", "text": r#"{"content":"no blocks"}"#})),
            (json!({"content": [], "details": {"a": 1}}), json!({"a": 1, "text": r#"{"a":1}"#})),
            (json!({"content": [], "details": 5, "x": 1}), json!({})),
            (json!({"content": [{"type": "text", "text": "t"}], "details": {"text": ""}}), {
                json!({"text": r#"{"text":""}"#})
            }),
            (json!({"details": {"text": 7}}), json!({"text": 7})),
            (json!({"details": {"text": null, "n": 1}}), json!({"text": r#"{"text":null,"n":1}"#, "n": 1})),
            (json!({"details": {"long": long}}), json!({"long": long})),
        ] {
            assert_eq!(output(&raw), expected, "{raw}");
        }
    }

    #[test]
    fn failures_are_text() {
        for (raw, expected) in [
            (json!({"content": [{"type": "text", "text": "no such file"}]}), "no such file"),
            (json!({"details": {"error": "denied"}}), "denied"),
            (json!({"details": {"error": {"code": 5}}}), r#"{"code":5}"#),
            (json!({"error": ["a", 1]}), r#"["a",1]"#),
            (json!({"details": {"error": ""}}), "Tool execution failed"),
            (json!([{"error": "x"}]), "Tool execution failed"),
            (json!(null), "Tool execution failed"),
            (json!(""), "Tool execution failed"),
        ] {
            assert_eq!(failure(&raw), expected, "{raw}");
        }
    }
}
