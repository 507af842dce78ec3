//! The command line; lines that no recorded conversation contains; and lines that are easily misread.

mod shown;

use serde_json::{Value, json};

use super::result::is_session_gone;
use super::{ALWAYS, arguments, parser};
use crate::agent_event::{Again, AgentEvent, SessionOrigin};
use crate::chunk::Notice;
use crate::clock::Timestamp;
use crate::failure::{AgentError, ErrorClass};
use crate::process::Prompt;
use crate::process::fixtures::prompt;

/// The events of lines after an `init` line, whose own events are the same in each turn, without usage.
fn heard(lines: &[Value]) -> Vec<AgentEvent> {
    let mut parser = parser();
    parser(&json!({"type": "system", "subtype": "init", "session_id": "0-1"}).to_string()).unwrap();
    let events = lines.iter().flat_map(|line| parser(&line.to_string()).unwrap());
    events.filter(|event| !matches!(event, AgentEvent::Usage(_))).collect()
}

fn system(subtype: &str, more: Value) -> Value {
    let mut line = json!({"type": "system", "subtype": subtype});
    line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    line
}

fn success(result: &str) -> Value {
    json!({"type": "result", "subtype": "success", "is_error": false, "result": result, "stop_reason": "end_turn"})
}

fn whole(id: &str, uuid: &str, words: &str) -> Value {
    let message = json!({"id": id, "content": [{"type": "text", "text": words}]});
    json!({"type": "assistant", "message": message, "uuid": uuid, "parent_tool_use_id": null})
}

/// The events of a message with one block of text.
fn message(block: u64, words: &str) -> Vec<AgentEvent> {
    vec![AgentEvent::MessageBegan(Again::No), AgentEvent::BlockBegan(block), AgentEvent::Text(words.into())]
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
        (vec![retry(json!(429.0), ""), failed(json!({}))], Some(ErrorClass::RateLimit)),
        // An error from which it recovered is not why it failed later.
        (vec![retry(json!(529), "overloaded"), began("m"), stopped(), failed(json!({}))], None),
    ] {
        assert_eq!(error(&lines), Some(AgentError { message: "no".into(), class, retry_at: None }), "{lines:?}");
    }
}

#[test]
fn a_turn_is_completed_when_all_of_its_result_says_so() {
    let success = || json!({"type": "result", "subtype": "success", "is_error": false, "stop_reason": "end_turn"});
    let with = |more: Value| {
        let mut result = success();
        result.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        error(&[result]).map(|error| error.message)
    };
    for more in [
        json!({}),
        json!({"terminal_reason": "completed", "stop_reason": null}),
        json!({"stop_reason": "stop_sequence"}),
        json!({"terminal_reason": "hook_stopped"}),
        json!({"terminal_reason": "hook_stopped", "stop_reason": "tool_use"}),
    ] {
        assert_eq!(with(more.clone()), None, "{more}");
    }
    for (more, words) in [
        (json!({"stop_reason": "tool_use"}), "The turn ended in the midst of a tool call."),
        (
            json!({"stop_reason": "tool_use", "terminal_reason": "completed"}),
            "The turn ended in the midst of a tool call.",
        ),
        (json!({"stop_reason": "max_tokens"}), "The answer is cut off: the model may not write more at once."),
        (json!({"stop_reason": "refusal"}), "The model refused to answer."),
        (json!({"terminal_reason": "aborted_streaming"}), "The turn was interrupted."),
        (json!({"terminal_reason": "max_turns"}), "The agent reached its limit of model calls."),
        (json!({"terminal_reason": "model_error", "result": "half"}), "The agent ended the turn: model error."),
        (json!({"terminal_reason": "of_some_day"}), "The agent ended the turn: of some day."),
        (json!({"subtype": "error_max_turns"}), "The agent reached its limit of model calls."),
        (json!({"subtype": "error_during_execution", "errors": ["one", "two"]}), "one\ntwo"),
        (json!({"subtype": "error_of_some_day"}), "The agent failed and did not say why."),
        (json!({"is_error": true, "result": "no"}), "no"),
    ] {
        assert_eq!(with(more.clone()).as_deref(), Some(words), "{more}");
    }
    // A result that reports nothing about the turn is ignored.
    assert_eq!(heard(&[json!({"type": "result"})]), []);
}

#[test]
fn a_limit_says_when_it_is_over() {
    let limit = |status: &str| json!({"type": "rate_limit_event", "rate_limit_info": {"status": status, "resetsAt": 1_800_000_000}});
    let failed = json!({"type": "result", "is_error": true, "result": "You have hit your limit"});
    let found = error(&[limit("rejected"), failed.clone()]).unwrap();
    let until = Timestamp::from_millis(1_800_000_000_000);
    assert_eq!((found.class, found.retry_at), (Some(ErrorClass::RateLimit), Some(until)));
    for none in [limit("allowed_warning"), limit("allowed"), json!({"type": "rate_limit_event"})] {
        let found = error(&[limit("rejected"), none, failed.clone()]).unwrap();
        assert_eq!((found.class, found.retry_at), (None, None));
    }
    let of =
        |info: Value| error(&[json!({"type": "rate_limit_event", "rate_limit_info": info}), failed.clone()]).unwrap();
    // The exhausted window, not the one that resets last.
    let windows = json!({"five_hour": {"utilization": 1, "resetsAt": 1_800_000_000}, "seven_day": {"utilization": 0.4, "resetsAt": 1_900_000_000}});
    assert_eq!(
        of(json!({"status": "rejected", "resetsAt": 1_900_000_000, "unifiedWindows": windows})).retry_at,
        Some(until)
    );
    let overage = |used: bool| {
        of(json!({"status": "allowed", "isUsingOverage": used, "overageStatus": "rejected", "overageResetsAt": 1.8e9}))
    };
    assert_eq!((overage(true).class, overage(true).retry_at), (Some(ErrorClass::RateLimit), Some(until)));
    assert_eq!(overage(false).class, None);
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
fn a_message_whose_stream_broke_is_withdrawn_with_the_next() {
    let of_b = |words| whole("b", "u", words);
    let mut abandoned = stopped();
    abandoned["abandoned_blocks"] = json!({"from_block_index": 0});
    let withdrawn = || [vec![AgentEvent::Withdrawn(vec![1])], message(2, "hello")].concat();
    for (lines, after) in [
        (vec![began("a"), delta("hel"), began("b"), delta("hello")], withdrawn()),
        (vec![began("a"), delta("hel"), abandoned, began("b"), delta("hello")], withdrawn()),
        (vec![began("a"), delta("hel"), of_b("hello")], withdrawn()),
        (vec![began("a"), delta("hel"), stopped(), of_b("hello")], message(2, "hello")),
        (vec![began("a"), delta("hel"), stopped(), began("b"), delta("hello")], message(2, "hello")),
        // The complete block adds what the stream left out.
        (vec![began("b"), delta("hel"), of_b("hel")], vec![]),
        (vec![began("b"), delta("hel"), of_b("hello")], vec![AgentEvent::Text("lo".into())]),
        (vec![began("b"), delta("hel"), of_b("other")], vec![]),
    ] {
        assert_eq!(heard(&lines), [message(1, "hel"), after].concat(), "{lines:?}");
    }
}

#[test]
fn withdrawn_lines_take_their_blocks_with_them() {
    let retracted =
        || system("model_refusal_fallback", json!({"content": "Retrying", "retracted_message_uuids": ["u", 5, "x"]}));
    let mut superseding = whole("b", "v", "safe");
    superseding["supersedes"] = json!(["u"]);
    let notice = || vec![AgentEvent::Notice(Notice::info("Retrying"))];
    let withdrawn = |block| vec![AgentEvent::Withdrawn(vec![block])];
    for (lines, after) in [
        (vec![retracted(), whole("b", "v", "safe")], [withdrawn(1), notice(), message(2, "safe")].concat()),
        (vec![superseding.clone()], [withdrawn(1), message(2, "safe")].concat()),
        (vec![retracted(), superseding], [withdrawn(1), notice(), withdrawn(1), message(2, "safe")].concat()),
        (vec![whole("b", "v", "safe"), retracted()], [message(2, "safe"), withdrawn(1), notice()].concat()),
    ] {
        for told in [vec![whole("a", "u", "bad")], vec![began("a"), delta("bad"), whole("a", "u", "bad"), stopped()]] {
            assert_eq!(
                heard(&[told, lines.clone()].concat()),
                [message(1, "bad"), after.clone()].concat(),
                "{lines:?}"
            );
        }
    }
    // Withdrawn text does not count: the result is the answer then.
    let events = heard(&[whole("a", "u", "bad"), retracted(), success("safe")]);
    assert!(events.contains(&AgentEvent::Text("safe".into())), "{events:?}");
}

#[test]
fn blocks_of_a_message_are_told_apart() {
    let start = |kind: &str| event(json!({"type": "content_block_start", "content_block": {"type": kind}}));
    let think = event(json!({"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}}));
    let of = |blocks: Value, uuid: &str| json!({"type": "assistant", "uuid": uuid, "message": {"id": "a", "content": blocks}});
    let lines = [
        began("a"),
        start("thinking"),
        think,
        of(json!([{"type": "thinking", "thinking": "hm"}]), "t"),
        start("text"),
        delta("one"),
        of(json!([{"type": "text", "text": "one"}]), "u"),
        start("text"),
        delta("two"),
        of(json!([{"type": "text", "text": "two"}]), "v"),
        stopped(),
        system("model_refusal_fallback", json!({"retracted_message_uuids": ["u"]})),
    ];
    let events = heard(&lines);
    let blocks = events.iter().filter(|event| matches!(event, AgentEvent::BlockBegan(_))).count();
    assert_eq!((blocks, events.contains(&AgentEvent::Withdrawn(vec![2]))), (3, true), "{events:?}");
}

#[test]
fn a_turn_is_over_when_no_task_runs_or_it_says_that_it_is_idle() {
    let started = |id: &str, kind: &str| system("task_started", json!({"task_id": id, "task_type": kind}));
    let changed = |ids: &[&str]| {
        let tasks: Vec<_> = ids.iter().map(|id| json!({"task_id": id, "task_type": "local_bash"})).collect();
        system("background_tasks_changed", json!({"tasks": tasks}))
    };
    let state = |state: &str| system("session_state_changed", json!({"state": state}));
    let of_task = |subtype: &str, more: Value| system(subtype, more);
    let spoke = whole("a", "u", "done");
    for (lines, states) in [
        (vec![spoke.clone(), success("done")], "end"),
        (vec![started("t", "local_workflow"), spoke.clone(), success("done")], "1 end"),
        (vec![started("t", "some_kind"), spoke.clone(), success("done"), state("idle")], "1 end 0 end"),
        (
            vec![
                started("t", "x"),
                success("done"),
                of_task("task_notification", json!({"task_id": "t"})),
                spoke.clone(),
                success(""),
            ],
            { "1 end 0 on end" },
        ),
        (
            vec![started("t", "x"), of_task("task_updated", json!({"task_id": "t", "patch": {"status": "completed"}}))],
            "1 0",
        ),
        (vec![started("t", "x"), changed(&[])], "1 0"),
        (vec![changed(&["t", "u"]), changed(&["u"]), state("idle")], "2 1"),
        (vec![spoke.clone(), success("done"), state("running"), state("idle")], "end on"),
        (vec![of_task("task_started", json!({"task_id": "t", "is_backgrounded": false}))], ""),
        (vec![of_task("task_started", json!({"task_id": "t", "ambient": true}))], ""),
        // A failure is the end, whatever tasks run.
        (vec![started("t", "x"), json!({"type": "result", "subtype": "error_during_execution"})], "1 0 end"),
    ] {
        let states_of = |event| match event {
            AgentEvent::Tasks(count) => Some(count.to_string()),
            AgentEvent::Ended => Some("end".into()),
            AgentEvent::Continued => Some("on".into()),
            _ => None,
        };
        let found: Vec<_> = heard(&lines).into_iter().filter_map(states_of).collect();
        assert_eq!(found.join(" "), states, "{lines:?}");
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
    let mut late = [&streamed[..], &end[..2]].concat();
    late.extend([whole.clone(), stopped()]);
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
    assert_eq!(heard(&late), expected);
}

#[test]
fn what_is_not_only_text_stays_as_it_came() {
    let content = json!([{"type": "text", "text": "x"}, {"type": "image", "source": {"data": "A".repeat(5_000_000)}}]);
    let finished = AgentEvent::ToolFinished { id: "t".into(), name: None, result: Ok(content.clone()) };
    assert_eq!(heard(&[tool_result("t", content)]), [finished]);
}

#[test]
fn a_turn_that_could_not_begin_says_why() {
    let failed = |words: &str| {
        let line = json!({"type": "result", "subtype": "error_during_execution", "is_error": true, "errors": [words]});
        parser()(&line.to_string()).unwrap()
    };
    assert_eq!(failed("Disk busy"), [AgentEvent::Error("Disk busy".into()), AgentEvent::Ended]);
    let gone = "No conversation found with session ID: 0-1";
    assert_eq!(failed(gone), [AgentEvent::SessionGone, AgentEvent::Error(gone.into()), AgentEvent::Ended]);
    for (stderr, is_gone) in [
        (gone, true),
        ("warning\nNo conversation found with session ID: 0-1\n", true),
        ("Error: connect ETIMEDOUT 10.0.0.1:443", false),
        ("", false),
    ] {
        assert_eq!(is_session_gone(stderr, "0-1"), is_gone, "{stderr}");
    }
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
