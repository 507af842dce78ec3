//! What it is told on its command line; lines that no recorded conversation has, and those that are easily taken for
//! something else.

use serde_json::{Value, json};

use super::{ALWAYS, arguments, parser};
use crate::backend::fixtures::prompt;
use crate::backend::{Again, AgentEvent, Prompt};
use crate::clock::Timestamp;
use crate::failure::{AgentError, ErrorClass};

/// What lines say after the first, which is left out here as it says the same in each turn.
fn heard(lines: &[Value]) -> Vec<AgentEvent> {
    let mut parser = parser();
    parser(&json!({"type": "system", "subtype": "init", "session_id": "0-1"}).to_string()).unwrap();
    lines.iter().flat_map(|line| parser(&line.to_string()).unwrap()).collect()
}

fn event(event: Value) -> Value {
    json!({"type": "stream_event", "event": event, "parent_tool_use_id": null})
}

fn began(id: &str) -> Value {
    event(json!({"type": "message_start", "message": {"id": id}}))
}

fn delta(text: &str) -> Value {
    event(json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}))
}

fn stopped() -> Value {
    event(json!({"type": "message_stop"}))
}

fn tool_result(id: &str, content: Value) -> Value {
    let block = json!({"type": "tool_result", "tool_use_id": id, "content": content});
    json!({"type": "user", "message": {"content": [block]}, "parent_tool_use_id": null})
}

/// The error of a turn that ended with these lines.
fn error(lines: &[Value]) -> Option<AgentError> {
    let mut events = heard(lines);
    assert_eq!(events.pop(), Some(AgentEvent::Ended));
    events.into_iter().find_map(|event| if let AgentEvent::Error(error) = event { Some(error) } else { None })
}

#[test]
fn a_success_may_be_an_error_and_its_kind_is_what_is_said_in_codes() {
    let failed = |more: Value| {
        let mut result = json!({"subtype": "success", "is_error": true, "result": "no", "type": "result"});
        result.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        result
    };
    let api_error = |word: &str| json!({"type": "assistant", "error": word, "message": {"content": []}});
    let retry = |status: Value, word: &str| json!({"type": "system", "subtype": "api_retry", "error_status": status, "error": word});
    for (lines, class) in [
        (vec![failed(json!({}))], None),
        (vec![failed(json!({"api_error_status": 400}))], None),
        (vec![failed(json!({"api_error_status": 400, "terminal_reason": "prompt_too_long"}))], {
            Some(ErrorClass::ContextTooLong)
        }),
        (vec![failed(json!({"api_error_status": 401}))], Some(ErrorClass::Authentication)),
        (vec![failed(json!({"api_error_status": 429}))], Some(ErrorClass::RateLimit)),
        (vec![failed(json!({"api_error_status": 529}))], Some(ErrorClass::Overloaded)),
        (vec![api_error("billing_error"), failed(json!({}))], Some(ErrorClass::Authentication)),
        (vec![api_error("overloaded"), failed(json!({}))], Some(ErrorClass::Overloaded)),
        (vec![retry(json!(429), "rate_limit"), failed(json!({}))], Some(ErrorClass::RateLimit)),
        (vec![retry(json!(429), "rate_limit"), retry(json!(null), "unknown"), failed(json!({}))], None),
        // What was overcome is not why it failed later.
        (vec![retry(json!(529), "overloaded"), began("m"), stopped(), failed(json!({}))], None),
    ] {
        assert_eq!(error(&lines), Some(AgentError { message: "no".into(), class, retry_at: None }), "{lines:?}");
    }
    assert_eq!(error(&[json!({"is_error": false, "subtype": "error_during_execution", "type": "result"})]), None);
}

#[test]
fn a_limit_says_when_it_is_over() {
    let limit = |status: &str| json!({"type": "rate_limit_event", "rate_limit_info": {"status": status, "resetsAt": 1_800_000_000}});
    let failed = json!({"type": "result", "is_error": true, "result": "You have hit your limit"});
    let found = error(&[limit("rejected"), failed.clone()]).unwrap();
    let until = Timestamp::from_millis(1_800_000_000_000);
    assert_eq!((found.class, found.retry_at), (Some(ErrorClass::RateLimit), Some(until)));
    let found = error(&[limit("allowed_warning"), failed]).unwrap();
    assert_eq!((found.class, found.retry_at), (None, None));
}

#[test]
fn a_failure_has_words_whatever_is_missing_in_it() {
    for (result, words) in [
        (json!({"errors": ["one", "two"]}), "one\ntwo"),
        (json!({"subtype": "error_max_turns"}), "The agent reached its limit of model calls."),
        (json!({"subtype": "error_max_budget_usd"}), "The agent reached its limit of costs."),
        (json!({"terminal_reason": "aborted_tools", "errors": ["[x]"]}), "The turn was interrupted."),
        (json!({}), "The agent failed and did not say why."),
    ] {
        let mut line = json!({"type": "result", "is_error": true});
        line.as_object_mut().unwrap().extend(result.as_object().unwrap().clone());
        assert_eq!(error(&[line]).unwrap().message, words);
    }
}

#[test]
fn a_message_whose_stream_broke_is_void_with_the_next() {
    let (text, message) = (|text: &str| AgentEvent::Text(text.into()), AgentEvent::MessageBegan);
    let whole = json!({"type": "assistant", "message": {"id": "b", "content": [{"type": "text", "text": "hello"}]}});
    let mut abandoned = stopped();
    abandoned["abandoned_blocks"] = json!({"from_block_index": 0});
    let hel = || vec![message(Again::No), text("hel")];
    let hello = |again| vec![message(again), text("hello")];
    for (lines, after) in [
        (vec![began("a"), delta("hel"), began("b"), delta("hello")], hello(Again::Yes)),
        (vec![began("a"), delta("hel"), abandoned, began("b"), delta("hello")], hello(Again::Yes)),
        (vec![began("a"), delta("hel"), whole.clone()], hello(Again::Yes)),
        (vec![began("a"), delta("hel"), stopped(), whole.clone()], hello(Again::No)),
        (vec![began("a"), delta("hel"), stopped(), began("b"), delta("hello")], hello(Again::No)),
        // The whole of what was streamed says nothing new.
        (vec![began("b"), delta("hel"), whole], vec![]),
    ] {
        assert_eq!(heard(&lines), [hel(), after].concat(), "{lines:?}");
    }
}

#[test]
fn a_tool_call_is_said_once_and_its_result_may_come_before_the_message_is_whole() {
    let block = |kind: &str, more: Value| event(json!({"type": kind, "index": 1, "content_block": more}));
    let tool = |input: Value| json!({"type": "tool_use", "id": "t", "name": "Bash", "input": input});
    let input = |json: &str| {
        event(json!({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": json}}))
    };
    let whole = json!({"type": "assistant", "message": {"id": "a", "content": [tool(json!({"command": "ls"}))]}});
    let streamed =
        [began("a"), block("content_block_start", tool(json!({}))), input("{\"command\":"), input("\"ls\"}")];
    let end =
        [block("content_block_stop", json!(null)), tool_result("t", json!([{"type": "text", "text": "x"}])), stopped()];
    let expected = [
        AgentEvent::MessageBegan(Again::No),
        AgentEvent::ToolStarted {
            id: "t".into(),
            name: "Bash".into(),
            title: None,
            input: json!({"command": "ls"}),
            parent: None,
        },
        AgentEvent::ToolFinished { id: "t".into(), name: None, result: Ok(json!("x")) },
    ];
    assert_eq!(heard(&[&streamed[..], &end[..]].concat()), expected);
    assert_eq!(heard(&[&streamed[..], &[whole], &end[..]].concat()), expected);
}

#[test]
fn what_is_not_only_text_stays_as_it_came() {
    let content = json!([{"type": "text", "text": "x"}, {"type": "image", "source": {"data": "A".repeat(5_000_000)}}]);
    let finished = AgentEvent::ToolFinished { id: "t".into(), name: None, result: Ok(content.clone()) };
    assert_eq!(heard(&[tool_result("t", content)]), [finished]);
}

#[test]
fn a_turn_that_could_not_begin_is_left_to_how_its_process_ends() {
    let lost =
        json!({"type": "result", "subtype": "error_during_execution", "is_error": true, "errors": ["No conversation"]});
    assert_eq!(parser()(&lost.to_string()), Some(Vec::new()));
}

fn added(prompt: &Prompt) -> Vec<String> {
    let words = arguments(prompt).into_iter().map(|word| word.into_string().unwrap());
    words.skip(ALWAYS.len()).collect()
}

#[test]
fn only_what_was_set_is_said_on_the_command_line() {
    let mut prompt = prompt("hello");
    assert_eq!(added(&prompt), Vec::<String>::new());
    prompt.place.agent_session = Some("0-1".into());
    prompt.options.model = Some("--verbose".into());
    prompt.options.mode = Some("plan".into());
    prompt.options.extra = [("effort", "low"), ("settings", "{}")].map(|(k, v)| (k.into(), v.into())).into();
    assert_eq!(added(&prompt), ["--model=--verbose", "--permission-mode=plan", "--effort=low", "--resume=0-1"]);
    prompt.options.permission_profile = Some("acceptEdits".into());
    prompt.oneshot = true;
    assert_eq!(
        added(&prompt),
        ["--model=--verbose", "--permission-mode=acceptEdits", "--effort=low", "--no-session-persistence"]
    );
}
