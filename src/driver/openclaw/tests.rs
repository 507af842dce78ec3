//! Tables of lines and their events.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::failure::{AgentError, ErrorClass};
use AgentEvent::{Ended, Error, Reasoning, Status, Text};

/// All events of some lines; `None` lines have none.
fn read(lines: &[Value]) -> Vec<AgentEvent> {
    let mut parse = parser();
    lines.iter().filter_map(|line| parse(&line.to_string())).flatten().collect()
}

fn event(stream: &str, data: Value) -> Value {
    json!({"event": "agent", "stream": stream, "data": data})
}

fn said(text: &str) -> AgentEvent {
    Text(text.to_owned())
}

#[test]
fn a_line_that_is_not_understood_is_none() {
    let mut parse = parser();
    for malformed in ["null", "5", "\"x\"", "true", "[{}]", "not json", "{", "}{", "\u{85}"] {
        assert_eq!(parse(malformed), None, "{malformed}");
    }
    for other in [
        json!({}),
        json!({"event": 5}),
        json!({"event": "agents", "stream": "assistant", "data": {"delta": "a"}}),
        json!({"type": "assistant", "message": {"content": "a"}}),
        json!({"event": "agent", "stream": "tool"}),
        event("tool", json!({"toolCallId": "t", "name": "n"})),
        event("assistant", json!({"content": "a"})),
        event("assistant", json!({"delta": 5})),
        event("asistant", json!({"delta": "a"})),
        event("lifecycle", json!({"phase": "done"})),
        json!({"event": "agent", "payload": {"stream": "assistant", "data": "a"}}),
    ] {
        assert_eq!(parse(&other.to_string()), None, "{other}");
    }
    for meaningless in [
        "",
        " \t\r",
        "\u{feff}\u{a0}",
        r#"{"type":"event","event":"tick","payload":{}}"#,
        r#"{"event":"chat","state":"final"}"#,
        r#"{"event":"agent","stream":"assistant","data":{"delta":""}}"#,
        r#"{"event":"agent","stream":"lifecycle","data":{"phase":"model"}}"#,
    ] {
        assert_eq!(parse(meaningless), Some(Vec::new()), "{meaningless}");
    }
    let marked = "\u{feff}{\"event\":\"agent\",\"stream\":\"assistant\",\"data\":{\"delta\":\"\\ud83d!\"}}";
    assert_eq!(parse(marked), Some(vec![said("\u{fffd}!")]));
}

#[test]
fn one_event_at_a_time() {
    let started = |id: &str, name: &str, input| {
        vec![AgentEvent::ToolStarted { id: id.to_owned(), name: name.to_owned(), title: None, input, parent: None }]
    };
    let finished = |name: Option<&str>, result| {
        vec![AgentEvent::ToolFinished { id: "t".to_owned(), name: name.map(str::to_owned), result }]
    };
    for (stream, data, expected) in [
        ("lifecycle", json!({"phase": "start"}), vec![status("Preparing response...")]),
        ("lifecycle", json!({"phase": "model"}), vec![]),
        ("lifecycle", json!({"phase": "end", "status": "ok"}), vec![Ended]),
        ("lifecycle", json!({"phase": "end", "status": "cancelled"}), {
            vec![Error("The agent ended the run: cancelled.".into()), Ended]
        }),
        ("lifecycle", json!({"phase": "error", "error": {"message": "deep"}}), vec![Error("deep".into())]),
        ("thinking", json!({"delta": "hm"}), vec![Reasoning("hm".to_owned())]),
        ("thinking", json!({"delta": 5}), vec![]),
        ("assistant", json!({"delta": ""}), vec![]),
        ("assistant", json!({"mediaUrls": [" u ", " ", 5], "delta": "a"}), vec![said("a"), said("\n![media](u)\n")]),
        ("assistant", json!({"stopReason": "error", "errorMessage": "e"}), vec![Error("e".into())]),
        ("assistant", json!({"stopReason": "error"}), vec![Error("Agent reported an error.".into())]),
        ("assistant", json!({"stopReason": "stop", "errorMessage": "e"}), vec![]),
        ("assistant", json!("text"), vec![]),
        ("compaction", json!({"phase": "start"}), vec![status("Optimizing session context...")]),
        ("compaction", json!({"phase": "end", "willRetry": true}), vec![status("Retrying with compacted context...")]),
        ("compaction", json!({"phase": "end", "willRetry": "true"}), vec![]),
        ("tool", json!({"phase": "start", "toolCallId": "t", "name": "n", "args": [1]}), started("t", "n", json!([1]))),
        ("tool", json!({"phase": "start", "toolCallId": 5, "args": "x"}), started("", "", json!({}))),
        ("tool", json!({"phase": "result", "toolCallId": "t"}), finished(None, Ok(json!({})))),
        (
            "tool",
            json!({"phase": "result", "toolCallId": "t", "name": "n", "isError": true, "result": "bad"}),
            finished(Some("n"), Err("bad".to_owned())),
        ),
        (
            "tool",
            json!({"phase": "result", "toolCallId": "t", "isError": 1, "result": "good"}),
            finished(None, Ok(json!({"text": "good"}))),
        ),
        (
            "tool",
            json!({"phase": "update", "toolCallId": "t", "partialResult": "half"}),
            vec![AgentEvent::ToolProgress { id: "t".to_owned(), output: json!({"text": "half"}) }],
        ),
        ("tool", json!({"phase": "update", "toolCallId": "t"}), vec![]),
        ("tool", json!({"phase": "end", "toolCallId": "t", "result": "r"}), vec![]),
        ("item", json!({"phase": "end", "progressText": "x"}), vec![]),
    ] {
        assert_eq!(read(&[event(stream, data.clone())]), expected, "{stream} {data}");
    }
}

#[test]
fn errors_outside_of_the_agent() {
    for (line, expected) in [
        (json!({"event": "error", "data": {"message": "gateway down"}}), "gateway down"),
        (json!({"event": "error", "data": null, "message": "top"}), "top"),
        (json!({"event": "error", "data": "text"}), "text"),
        (json!({"type": "event", "event": "error", "payload": {"error": {"message": "nested"}}}), "nested"),
        (json!({"event": "error"}), r#"Agent reported an error: {"event":"error"}"#),
    ] {
        assert_eq!(read(std::slice::from_ref(&line)), [Error((*expected).into())], "{line}");
    }
}

#[test]
fn a_limit_has_a_class_and_a_time() {
    let reset = json!({"resets_at": 1_800_000_000});
    let until = crate::clock::Timestamp::from_millis(1_800_000_000_000);
    for line in [
        event(
            "lifecycle",
            json!({"phase": "error", "error": {"status": 429, "message": "slow down", "headers": reset}}),
        ),
        json!({"event": "error", "data": {"statusCode": 429, "message": "slow down", "resetsAt": 1_800_000_000_000_i64}}),
        event(
            "lifecycle",
            json!({"phase": "error", "error": "429 {\"error\":{\"message\":\"slow down\",\"resets_at\":1800000000}}"}),
        ),
        event(
            "assistant",
            json!({"stopReason": "error", "errorMessage": "slow down", "status": 429.0, "retryAt": "2027-01-15T08:00:00Z"}),
        ),
    ] {
        let limit = AgentError { retry_at: Some(until), ..AgentError::of(ErrorClass::RateLimit, "slow down") };
        assert_eq!(read(std::slice::from_ref(&line)), [Error(limit)], "{line}");
    }
}

#[test]
fn a_gateway_frame_nests_the_event() {
    let frame = |stream: &str, data: Value, seq: u64| {
        let payload = json!({"runId": "r", "sessionKey": "s", "stream": stream, "data": data, "seq": seq, "ts": 1});
        json!({"type": "event", "event": "agent", "payload": payload, "seq": 3})
    };
    let lines = [
        frame("lifecycle", json!({"phase": "start"}), 1),
        frame("assistant", json!({"text": "I", "delta": "I", "itemId": "1"}), 3),
        frame("assistant", json!({"text": "I ran.", "delta": " ran.", "itemId": "1"}), 7),
        json!({"type": "event", "event": "chat", "payload": {"runId": "r", "deltaText": "I ran."}}),
        frame("lifecycle", json!({"phase": "end", "status": "cancelled"}), 9),
        // As observed with an aborted run: the numbering restarts.
        frame("lifecycle", json!({"phase": "error", "error": "This operation was aborted"}), 1),
    ];
    let aborted = Error("This operation was aborted".into());
    let cancelled = Error("The agent ended the run: cancelled.".into());
    let expected = [Status("Preparing response...".to_owned()), said("I"), said(" ran."), cancelled, Ended, aborted];
    assert_eq!(read(&lines), expected);
}

#[test]
fn repeats_and_strangers_are_not_heard() {
    let line = |run: Option<&str>, session: Option<&str>, seq: Option<u64>, delta: &str| {
        let mut line = event("assistant", json!({"delta": delta}));
        for (key, value) in [("runId", run.map(Value::from)), ("sessionKey", session.map(Value::from))] {
            line[key] = value.unwrap_or(Value::Null);
        }
        line["seq"] = seq.map_or(Value::Null, Value::from);
        line
    };
    let (ours, other) = (Some("run"), Some("other"));
    let lines = [
        line(ours, None, Some(5), "a"),
        line(ours, None, Some(5), "repeated"),
        line(ours, None, Some(1), "b"),
        line(other, None, Some(6), "of a sub-agent"),
        line(None, None, Some(5), "c"),
        line(ours, Some("session"), None, "d"),
        line(ours, Some("session"), None, "d"),
        line(ours, Some("another"), Some(9), "of another session"),
    ];
    assert_eq!(read(&lines), ["a", "b", "c", "d", "d"].map(said));
}

#[test]
fn the_memory_for_repeats_is_bounded() {
    let mut source = Source::default();
    let mut is_news = |seq: u64| source.is_news(json!({"seq": seq}).as_object().unwrap());
    for seq in 0..3000 {
        assert!(is_news(seq));
    }
    assert!(!is_news(2999));
    assert!(!is_news(1976));
    assert!(is_news(1975));
}

#[test]
fn text_without_a_delta_is_what_was_not_said_yet() {
    let text = |text: &str| event("assistant", json!({"text": text}));
    let item = |item: &str, text: &str| event("assistant", json!({"text": text, "itemId": item}));
    let delta = |delta: &str| event("assistant", json!({"delta": delta}));
    let tool = || event("tool", json!({"phase": "start", "toolCallId": "t", "name": "n"}));
    for (lines, expected) in [
        (vec![text("He"), text("Hello"), text("Hello"), text("Hello you")], vec!["He", "llo", " you"]),
        (vec![delta("Hello "), text("Hello"), text("Hello you")], vec!["Hello ", "you"]),
        (vec![text("One."), text("Two.")], vec!["One.", "Two."]),
        (vec![text("I ran."), tool(), text("I"), text("I saw.")], vec!["I ran.", "I", " saw."]),
        (vec![text("I ran."), tool(), text("I ran. Done.")], vec!["I ran.", " Done."]),
        (vec![item("1", "OK"), item("1", "OK, go"), item("2", "OK"), item("2", "OK!")], vec!["OK", ", go", "OK", "!"]),
        (vec![event("assistant", json!({"text": "all", "delta": ""})), text("all of it")], vec!["all of it"]),
    ] {
        let mut events = read(&lines);
        events.retain(|event| matches!(event, Text(_)));
        assert_eq!(events, expected.iter().copied().map(said).collect::<Vec<_>>(), "{lines:?}");
    }
}

/// Any JSON, with the words of the protocol in the places where they matter.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "agent",
        "error",
        "lifecycle",
        "assistant",
        "thinking",
        "tool",
        "compaction",
        "start",
        "end",
        "update",
        "result",
        "text",
        "x",
        "",
        "{\"error\":{\"message\":{}}}",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        word.prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let key = prop::sample::select(vec![
        "event",
        "payload",
        "stream",
        "data",
        "phase",
        "delta",
        "text",
        "mediaUrls",
        "stopReason",
        "errorMessage",
        "error",
        "message",
        "toolCallId",
        "name",
        "args",
        "result",
        "partialResult",
        "isError",
        "content",
        "details",
        "type",
        "seq",
        "runId",
        "sessionKey",
        "itemId",
        "willRetry",
        "0",
    ]);
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..8)
                .prop_map(|members| members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

/// An event of the agent with any data.
fn any_event() -> impl Strategy<Value = Value> {
    let stream = prop::sample::select(vec!["lifecycle", "assistant", "thinking", "tool", "compaction"]);
    let phase = prop::sample::select(vec!["start", "end", "error", "update", "result"]);
    (stream, phase, any_json()).prop_map(|(stream, phase, mut data)| {
        if let Some(data) = data.as_object_mut() {
            data.insert("phase".to_owned(), phase.into());
        }
        event(stream, data)
    })
}

proptest! {
    #[test]
    fn any_bytes_are_read(lines in prop::collection::vec(any::<Vec<u8>>(), 0..8)) {
        let mut parse = parser();
        for line in lines {
            parse(&String::from_utf8_lossy(&line));
        }
    }

    /// Texts and ids are strings by their type; outputs are objects, and no failure has an empty text.
    #[test]
    fn any_json_is_read(lines in prop::collection::vec(prop_oneof![any_json(), any_event()], 0..8)) {
        let mut parse = parser();
        for line in lines {
            let events = parse(&line.to_string());
            prop_assert!(events.is_none() || line.is_object());
            for event in events.into_iter().flatten() {
                match event {
                    AgentEvent::ToolStarted { input, .. } => prop_assert!(input.is_object() || input.is_array()),
                    AgentEvent::ToolProgress { output, .. } => prop_assert!(output.is_object()),
                    AgentEvent::ToolFinished { result: Ok(output), .. } => prop_assert!(output.is_object()),
                    AgentEvent::ToolFinished { result: Err(text), .. } | Text(text)
                    | Reasoning(text) | Status(text) => prop_assert!(!text.is_empty()),
                    Error(error) => prop_assert!(!error.message.is_empty()),
                    Ended => {}
                    other => prop_assert!(false, "{other:?}"),
                }
            }
        }
    }

    #[test]
    fn numbers_keep_their_value_in_javascript_form(number in any::<f64>().prop_filter("finite", |n| n.is_finite())) {
        prop_assert_eq!(js::stringify(&Value::from(number)).parse::<f64>().unwrap(), number);
    }
}

#[test]
fn what_was_lost_of_an_item_is_taken_from_its_text_so_far() {
    let mut lines = Lines::default();
    let mut said = |text: &str, delta: &str| {
        let data = json!({"text": text, "delta": delta, "itemId": "i"});
        let line = json!({"event": "agent", "stream": "assistant", "data": data}).to_string();
        lines.read(&line).unwrap()
    };
    let text = |text: &str| vec![AgentEvent::Text(text.into())];
    assert_eq!(said("one", "one"), text("one"));
    assert_eq!(said("one two three", " three"), text(" two three"));
    // The text so far differs from what was emitted, so only the delta counts.
    assert_eq!(said("One, two, three, four", " four"), text(" four"));
    for (whole, rest) in
        [("one two three four", vec![]), ("one two three four five", text(" five")), ("six", text("six"))]
    {
        assert_eq!(lines.complete(whole).into_iter().collect::<Vec<_>>(), rest, "{whole}");
    }
}
