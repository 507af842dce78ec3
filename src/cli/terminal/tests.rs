//! Chunks and how they are shown.

use serde_json::json;

use super::*;

/// The output for chunks, which are given as the store returns them.
fn shown(chunks: &[Value], colour: bool) -> String {
    let mut out = Vec::new();
    let mut view = TerminalView::new(&mut out, colour);
    for chunk in chunks {
        view.show(&serde_json::from_value(chunk.clone()).unwrap_or_else(|e| panic!("{chunk}: {e}"))).unwrap();
    }
    String::from_utf8(out).unwrap()
}

fn text(id: &str, delta: &str) -> Value {
    json!({"type": "text-delta", "id": id, "delta": delta})
}

fn think(delta: &str) -> Value {
    json!({"type": "reasoning-delta", "id": "r", "delta": delta})
}

fn status(label: &str) -> Value {
    json!({"type": "data-status", "data": {"label": label}, "transient": true})
}

fn call(id: &str, name: &str, input: Value) -> Value {
    json!({"type": "tool-input-available", "toolCallId": id, "toolName": name, "input": input,
           "providerExecuted": true, "dynamic": true})
}

fn output(id: &str, output: Value) -> Value {
    json!({"type": "tool-output-available", "toolCallId": id, "output": output, "providerExecuted": true,
           "dynamic": true})
}

fn tool_error(id: &str, text: &str) -> Value {
    json!({"type": "tool-output-error", "toolCallId": id, "errorText": text, "providerExecuted": true,
           "dynamic": true})
}

fn end(kind: &str, id: &str) -> Value {
    json!({"type": kind, "id": id})
}

fn finish() -> Value {
    json!({"type": "finish", "finishReason": "stop"})
}

#[test]
fn parts_stand_on_lines_of_their_own() {
    let start = json!({"type": "start", "messageId": "m", "messageMetadata": {}});
    let preliminary = json!({"type": "tool-output-available", "toolCallId": "1", "output": "half",
                             "providerExecuted": true, "dynamic": true, "preliminary": true});
    let table: [(&str, Vec<Value>, &str); 21] = [
        ("nothing said", vec![start.clone(), json!({"type": "start-step"}), finish()], ""),
        ("deltas run on", vec![text("1", "He"), text("1", ""), text("1", "llo"), finish()], "Hello\n"),
        ("one line end, not two", vec![text("1", "Hello\n"), end("text-end", "1"), finish()], "Hello\n"),
        ("the agent's own blank lines stay", vec![text("1", "a\n\nb"), end("text-end", "1")], "a\n\nb\n"),
        ("two texts", vec![text("1", "a"), end("text-end", "1"), text("2", "b"), finish()], "a\nb\n"),
        ("texts that alternate", vec![text("1", "a"), text("2", "b"), text("1", "c"), finish()], "a\nb\nc\n"),
        (
            "thought, then text",
            vec![think("h"), think("m\n\nso\n"), text("1", "Yes"), finish()],
            "┊ hm\n┊ \n┊ so\nYes\n",
        ),
        ("same id, other kind", vec![think("hm"), text("r", "Yes"), finish()], "┊ hm\nYes\n"),
        (
            "a status in a text",
            vec![text("1", "a"), status("Reading\nfiles"), text("1", "b"), finish()],
            "a\n· Reading files\nb\n",
        ),
        (
            "a tool",
            vec![
                text("1", "Look"),
                call("1", "bash", json!({"command": "ls\n-la"})),
                preliminary,
                output("1", json!("a\nb\n")),
                text("2", "Two."),
                finish(),
            ],
            "Look\n→ bash {\"command\":\"ls\\n-la\"}\n← bash a b\nTwo.\n",
        ),
        (
            "a tool without input or output",
            vec![call("1", "now", json!({})), output("1", json!(null))],
            "→ now\n← now\n",
        ),
        (
            "a tool that asks first",
            vec![
                call("1", "rm", json!("x")),
                json!({"type": "tool-approval-request", "approvalId": "a-1", "toolCallId": "1"}),
                json!({"type": "tool-output-denied", "toolCallId": "1"}),
            ],
            "→ rm x\n? rm waits for an answer; allow or deny it with\n  mainstay permissions --answer a-1 allow\n\
             ✗ rm was not allowed\n",
        ),
        (
            "results in another order, and one that is unknown",
            vec![
                call("1", "a", json!("x")),
                call("2", "b", json!([1])),
                tool_error("2", "no\nway"),
                output("1", json!({"ok": true})),
                output("9", json!("?")),
            ],
            "→ a x\n→ b [1]\n✗ b no way\n← a {\"ok\":true}\n← ?\n",
        ),
        (
            "a plan",
            vec![json!({"type": "data-plan", "id": "plan", "data": [
                {"content": "look", "status": "completed"}, {"content": "write", "status": "pending"}]})],
            "· plan: (look), write\n",
        ),
        (
            "a file",
            vec![json!({"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AAAA"})],
            "· file: image/png\n",
        ),
        (
            "a message that is void",
            vec![
                text("1", "Hell"),
                end("text-end", "1"),
                json!({"type": "data-retracted", "id": "retracted-2", "data": {"parts": [1]}}),
                text("3", "Hi"),
                finish(),
            ],
            &format!("Hell\n· {RETRACTED}\nHi\n"),
        ),
        (
            "an error",
            vec![text("1", "a"), json!({"type": "error", "errorText": "it broke:\nbadly\n"}), finish()],
            "a\nerror: it broke:\nbadly\n",
        ),
        (
            "an error of the agent, and the run's",
            vec![
                json!({"type": "text-start", "id": "error-0"}),
                text("error-0", "[error] it broke"),
                end("text-end", "error-0"),
                json!({"type": "finish-step"}),
                json!({"type": "error", "errorText": "it broke"}),
                finish(),
            ],
            "error: it broke\n",
        ),
        (
            "an error that is stored in the message",
            vec![
                text("1", "half"),
                end("text-end", "1"),
                text("text-1", "[error] it broke"),
                end("text-end", "text-1"),
                json!({"type": "finish-step"}),
                json!({"type": "error", "errorText": "it broke"}),
                finish(),
            ],
            "half\nerror: it broke\n",
        ),
        (
            "a text that only looks like an error",
            vec![text("1", "[error] is a mark"), text("1", " of ours"), end("text-end", "1"), finish()],
            "[error] is a mark of ours\n",
        ),
        (
            "a stop",
            vec![text("1", "a"), json!({"type": "abort"}), finish(), start, text("1", "next"), finish()],
            "a\n· stopped\nnext\n",
        ),
    ];
    for (name, chunks, expected) in table {
        assert_eq!(shown(&chunks, false), expected, "{name}");
    }
}

#[test]
fn an_error_names_its_run_and_a_question_is_marked() {
    let mut out = Vec::new();
    let mut view = TerminalView::new(&mut out, false);
    let run = RunId::generate();
    view.of_run(run);
    view.question("What\nis \u{1b}[1mit?\n").unwrap();
    view.show(&Chunk::Error { error_text: "it broke".to_owned() }).unwrap();
    let expected = format!("> What\n> is ␛[1mit?\nerror: it broke (run {run})\n");
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn colours_are_taken_back_at_once() {
    for (chunk, expected) in [
        (think("hm\n"), "\u{1b}[2m┊ hm\n\u{1b}[0m"),
        (text("1", "plain"), "plain"),
        (status("Busy"), "\u{1b}[2m· Busy\u{1b}[0m\n"),
        (call("1", "ls", json!({})), "\u{1b}[36m→ ls\u{1b}[0m\n"),
        (tool_error("1", "no"), "\u{1b}[31m✗ no\u{1b}[0m\n"),
        (json!({"type": "error", "errorText": "no"}), "\u{1b}[31merror: no\u{1b}[0m\n"),
    ] {
        assert_eq!(shown(&[chunk], true), expected);
    }
}

#[test]
fn the_agent_does_not_drive_the_terminal() {
    let attack = "\u{1b}]52;c;eA==\u{7}\u{9b}2J\u{202e}\r";
    let chunks = [
        text("1", attack),
        think(attack),
        status(attack),
        call("1", attack, json!({"a": attack})),
        call("2", "x", json!(attack)),
        output("1", json!(attack)),
        output("2", json!({attack: [attack]})),
        tool_error("3", attack),
        json!({"type": "error", "errorText": attack}),
    ];
    let shown = shown(&chunks, false);
    assert!(!shown.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{shown:?}");
    assert!(shown.contains("␛]52;c;eA==␇\u{fffd}2J\u{fffd}"));
}

#[test]
fn lines_are_short_and_texts_are_whole() {
    let long = "x".repeat(1000);
    let tool = shown(&[call("1", "read", json!(long)), output("1", json!(long))], false);
    assert!(tool.lines().all(|line| line.chars().count() <= LINE_CHARS + 2 && line.ends_with('…')), "{tool}");
    assert_eq!(shown(&[text("1", &long), finish()], false), format!("{long}\n"));
}
