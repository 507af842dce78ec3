//! Requests, notices to the user, and turns in which the model says nothing.

use super::*;

#[test]
fn every_request_has_an_answer() {
    let asked = |id: Value, request: Value| json!({"type": "control_request", "request_id": id, "request": request});
    let refused = |line: Value| match &heard(&[line])[..] {
        [AgentEvent::Refused(line)] => Some(serde_json::from_str::<Value>(line).unwrap()["response"].clone()),
        [] => None,
        other => panic!("{other:?}"),
    };
    let error = |kind: &str| json!({"subtype": "error", "request_id": "r", "error": format!("Unsupported control request: {kind}")});
    for kind in ["hook_callback", "mcp_message", "of_some_day", ""] {
        assert_eq!(refused(asked(json!("r"), json!({"subtype": kind}))), Some(error(kind)));
    }
    assert_eq!(refused(asked(json!("r"), json!(null))), Some(error("")));
    let declined = json!({"subtype": "success", "request_id": 5, "response": {"action": "decline"}});
    assert_eq!(refused(asked(json!(5), json!({"subtype": "elicitation", "message": "Which?"}))), Some(declined));
    assert_eq!(refused(asked(json!("r"), json!({"subtype": "request_user_dialog"}))), None);
    assert_eq!(refused(json!({"type": "control_request"})), None);
    let withdrawn = heard(&[json!({"type": "control_cancel_request", "request_id": "r"})]);
    assert_eq!(withdrawn, [AgentEvent::PermissionWithdrawn("r".into())]);
}

#[test]
fn what_is_meant_for_people_is_shown() {
    let info = |text: &str| AgentEvent::Notice(Notice::info(text));
    let warning = |text: &str| AgentEvent::Notice(Notice::warning(text));
    for (line, shown) in [
        (system("informational", json!({"content": "c", "level": "notice"})), info("c")),
        (system("informational", json!({"content": "c", "level": "warning"})), warning("c")),
        (system("model_refusal_no_fallback", json!({"content": "c"})), warning("c")),
        (system("notification", json!({"text": "c", "priority": "high"})), info("c")),
        (system("notification", json!({"text": "c", "priority": "low"})), AgentEvent::Status("c".into())),
        (system("session_writes_lost", json!({"error_code": "ENOSPC"})), {
            warning("Claude Code could not save all of this conversation (ENOSPC): it may not remember it.")
        }),
        (json!({"type": "auth_status", "error": "expired"}), warning("Login failed: expired")),
        (
            system(
                "api_retry",
                json!({"error_status": 503.0, "retry_delay_ms": 512.5, "attempt": 1.0, "max_retries": 10}),
            ),
            { AgentEvent::Status("The provider answered with status 503. Retrying in 1 s (1 of 10)…".into()) },
        ),
    ] {
        assert_eq!(heard(std::slice::from_ref(&line)), [shown], "{line}");
    }
    assert_eq!(heard(&[system("local_command_output", json!({"content": "c"}))]), message(1, "c"));
    let init = json!({"type": "system", "subtype": "init", "session_id": "0-1",
        "mcp_servers": [{"name": "good", "status": "connected"}, {"name": "db", "status": "failed"}],
        "plugin_errors": [{"plugin": "p@m", "type": "generic-error", "message": "is broken"}]});
    let shown = parser()(&init.to_string()).unwrap();
    let shown: Vec<_> = shown.into_iter().filter(|event| matches!(event, AgentEvent::Notice(_))).collect();
    assert_eq!(shown, [warning("The MCP server db failed: its tools are missing."), warning("Plugin p@m: is broken")]);
}

#[test]
fn a_turn_without_words_of_the_model_has_an_answer_or_fails() {
    let blocked = |content: &str| system("informational", json!({"content": content, "prevent_continuation": true}));
    let compacted = system("compact_boundary", json!({}));
    let failed = system("status", json!({"status": null, "compact_result": "failed", "compact_error": "Too short."}));
    let reset = json!({"type": "conversation_reset", "new_conversation_id": "0-2", "session_id": "0-1"});
    let answer = |lines: &[Value]| {
        let said = |event| match event {
            AgentEvent::Text(words) => Some(words),
            AgentEvent::Error(error) => Some(format!("error: {}", error.message)),
            _ => None,
        };
        heard(lines).into_iter().filter_map(said).collect::<Vec<_>>().join("|")
    };
    for (lines, words) in [
        (vec![success("The answer is 42.")], "The answer is 42."),
        (vec![success("")], ""),
        (vec![whole("a", "u", "hello"), success("done")], "hello"),
        (vec![whole("a", "u", "hello"), success("hello"), success("more")], "hello|more"),
        (vec![compacted.clone(), success("")], "The conversation was compacted."),
        (vec![compacted, whole("a", "u", "hello"), success("")], "hello"),
        (vec![failed, success("")], "error: The conversation could not be compacted. Too short."),
        (vec![reset.clone(), success("")], "The conversation was cleared."),
        (vec![blocked("not today"), success("")], "error: not today"),
        (vec![blocked("not today"), success("not today")], "error: not today"),
        (vec![blocked(""), success("")], "error: A hook stopped the turn."),
        (vec![blocked("enough"), whole("a", "u", "hello"), success("hello")], "hello"),
        (vec![system("informational", json!({"content": "by the way"})), success("")], ""),
    ] {
        assert_eq!(answer(&lines), words, "{lines:?}");
    }
    let session = AgentEvent::Session { id: "0-2".into(), origin: SessionOrigin::New };
    assert_eq!(heard(&[reset]), [session]);
}
