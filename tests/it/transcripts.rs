//! Recorded conversations with real agents, and what the engine and readers get from them: `tests/transcripts/`, a
//! directory for each driver. `UPDATE_CASES=1` rewrites the expected results.

mod made;

use std::fs;
use std::path::{Path, PathBuf};

use mainstay::agent_event::{AgentEvent, LineParser};
use mainstay::chunk::Chunk;
use mainstay::driver::{acp, claude, codex, opencode};
use mainstay::engine::decide::decide;
use mainstay::engine::turn::Turn;
use mainstay::process::decode;
use mainstay::run::{ExitReport, Outcome};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::rules;

const MAX_LINE_BYTES: usize = 1024 * 1024;

type Parser = fn() -> LineParser;

/// The drivers that read lines of a real agent.
const DRIVERS: [(&str, Parser); 4] =
    [("acp", acp::parser), ("claude", claude::parser), ("codex", codex::parser), ("opencode", opencode::parser)];

fn transcripts() -> Vec<(Parser, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut all = Vec::new();
    for (driver, parser) in DRIVERS {
        let files = fs::read_dir(root.join(driver)).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|it| it == "ndjson")).collect();
        assert!(!files.is_empty(), "nothing of {driver}");
        files.sort();
        all.extend(files.into_iter().map(|file| (parser, file)));
    }
    all
}

/// An event as one line of JSON.
fn written(event: &AgentEvent) -> Value {
    match event {
        AgentEvent::Status(label) => json!({"status": label}),
        AgentEvent::Reasoning(delta) => json!({"reasoning": delta}),
        AgentEvent::Text(delta) => json!({"text": delta}),
        AgentEvent::MessageBegan(again) => json!({"message_began": format!("again: {again:?}")}),
        AgentEvent::ToolStarted { id, name, title, input, parent } => {
            let mut tool = json!({"tool": name, "id": id, "input": input});
            for (key, value) in [("title", title), ("parent", parent)] {
                if let Some(value) = value {
                    tool[key] = value.as_str().into();
                }
            }
            tool
        }
        AgentEvent::ToolProgress { id, output } => json!({"progress": id, "output": output}),
        AgentEvent::ToolFinished { id, result: Ok(output), .. } => json!({"finished": id, "output": output}),
        AgentEvent::ToolFinished { id, result: Err(error), .. } => json!({"finished": id, "error": error}),
        AgentEvent::File { media_type, url } => json!({"file": media_type, "url": url}),
        AgentEvent::Source { url, title } => json!({"source": url, "title": title}),
        AgentEvent::Plan(plan) => json!({"plan": plan}),
        AgentEvent::Permission(request) => json!({"permission": request}),
        AgentEvent::Session { id, origin } => json!({"session": id, "origin": origin.as_str()}),
        AgentEvent::Title(title) => json!({"title": title}),
        AgentEvent::Advertised(offers) => json!({"advertised": offers}),
        AgentEvent::Usage(usage) => json!({"usage": usage}),
        AgentEvent::TotalUsage(usage) => json!({"total_usage": usage}),
        AgentEvent::Error(error) => {
            let class = error.class.map(|class| class.as_str());
            json!({"error": error.message, "class": class, "retry_at": error.retry_at})
        }
        AgentEvent::Trouble(error) => json!({"trouble": error.message}),
        AgentEvent::Notice(notice) => json!({"notice": notice}),
        AgentEvent::BlockBegan(block) => json!({"block_began": block}),
        AgentEvent::Withdrawn(blocks) => json!({"withdrawn": blocks}),
        AgentEvent::Tasks(count) => json!({"tasks": count}),
        AgentEvent::Continued => json!("continued"),
        AgentEvent::Refused(line) => json!({"refused": line}),
        AgentEvent::PermissionWithdrawn(request) => json!({"permission_withdrawn": request}),
        AgentEvent::SessionGone => json!("session_gone"),
        AgentEvent::Ended => json!("ended"),
    }
}

fn heard(output: &[u8], parser: LineParser) -> Vec<AgentEvent> {
    let records = decode([output], MAX_LINE_BYTES, parser);
    records.into_iter().flat_map(|record| record.events).collect()
}

/// A JSON text with a line for each event.
fn expected_text(events: &[AgentEvent]) -> String {
    let events: Vec<_> = events.iter().map(|event| written(event).to_string()).collect();
    if events.is_empty() { "[]\n".to_owned() } else { format!("[\n{}\n]\n", events.join(",\n")) }
}

#[test]
fn recorded_conversations_are_heard_as_written() {
    let update = std::env::var_os("UPDATE_CASES").is_some();
    let mut wrong = Vec::new();
    for (parser, file) in transcripts() {
        let events = heard(&fs::read(&file).unwrap(), parser());
        let mut turn = Turn::default();
        let mut chunks: Vec<_> = events.iter().flat_map(|event| turn.hear(event.clone())).collect();
        let text = expected_text(&events);
        chunks.extend(turn.close(&Outcome::completed()));
        rules::check(&chunks).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let expected = file.with_extension("expected.json");
        if update {
            fs::write(&expected, &text).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != text {
            wrong.push(format!("{}\n{text}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
}

/// Wherever an engine dies, the one that adopts its turn says the rest as the first would have.
#[test]
fn whoever_goes_on_in_the_midst_says_the_rest() {
    for (parser, file) in transcripts() {
        let records = decode([&fs::read(&file).unwrap()[..]], MAX_LINE_BYTES, parser());
        let mut turn = Turn::default();
        let (mut stored, mut successors) = (Vec::new(), Vec::new());
        for (at, record) in records.iter().enumerate() {
            let said: Vec<_> = record.events.iter().flat_map(|event| turn.hear(event.clone())).collect();
            for successor in &mut successors {
                let again: Vec<_> =
                    record.events.iter().flat_map(|event| Turn::hear(successor, event.clone())).collect();
                assert_eq!(again, said, "{}", file.display());
            }
            stored.extend(said);
            if at % records.len().div_ceil(7) == 0 {
                let mut successor = Turn::replay(stored.iter().cloned());
                let known = records[..=at].iter().flat_map(|record| record.events.clone());
                successor.hear_again(known.collect(), true);
                successors.push(successor);
            }
        }
        assert!(successors.iter().all(|successor| *successor == turn), "{}", file.display());
    }
}

/// Writes the readers' stream of everything that was recorded to the file that `MAINSTAY_STREAMS` names, one line each, for the
/// checks with the real client: `tests/clients/`.
#[test]
fn a_client_can_be_given_what_was_recorded() {
    let Some(path) = std::env::var_os("MAINSTAY_STREAMS") else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut lines = String::new();
    let mut write = |name: &str, mut chunks: Vec<Chunk>, mut turn: Turn| {
        let outcome = decide(None, &turn, &ExitReport { code: Some(0), ..ExitReport::default() }, true);
        chunks.extend(turn.close(&outcome));
        let parts: Value = serde_json::from_str(&turn.fold().parts_json()).unwrap();
        let line = json!({"name": name, "status": outcome.status().as_str(), "chunks": chunks, "parts": parts});
        lines.push_str(&format!("{line}\n"));
    };
    for (parser, file) in transcripts() {
        let mut turn = Turn::default();
        let events = heard(&fs::read(&file).unwrap(), parser());
        let chunks = events.into_iter().flat_map(|event| turn.hear(event)).collect();
        write(&file.strip_prefix(&root).unwrap().with_extension("").display().to_string(), chunks, turn);
    }
    for (name, events) in made::turns() {
        let mut turn = Turn::default();
        let chunks = events.into_iter().flat_map(|event| made::hear(&mut turn, event)).collect();
        write(name, chunks, turn);
    }
    fs::write(path, lines).unwrap();
}

fn words() -> impl Strategy<Value = Value> {
    let word = [
        "type",
        "event",
        "message",
        "content",
        "id",
        "name",
        "text",
        "input",
        "item",
        "assistant",
        "user",
        "system",
        "stream_event",
        "result",
        "control_request",
        "rate_limit_event",
        "init",
        "api_retry",
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "tool_use",
        "tool_result",
        "input_json_delta",
        "can_use_tool",
        "item.started",
        "item.completed",
        "turn.completed",
        "turn.failed",
        "mcp_tool_call",
        "todo_list",
        "command_execution",
        "subtype",
        "status",
        "error",
        "delta",
        "usage",
        "modelUsage",
        "is_error",
        "request",
        "items",
        "method",
        "session/update",
        "session/request_permission",
        "params",
        "update",
        "sessionUpdate",
        "agent_message_chunk",
        "tool_call_update",
        "toolCall",
        "toolCallId",
        "completed",
        "options",
        "mainstay",
    ];
    prop::sample::select(word.to_vec()).prop_map(Value::from)
}

/// JSON made of words that the agents use, in places where they do not belong.
fn line() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        words(),
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![json!(i64::MAX), json!(-1), json!(1e300), json!(429)]),
    ];
    leaf.prop_recursive(5, 48, 6, |inner| {
        let key = words().prop_map(|word| word.as_str().unwrap().to_owned());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 1..6).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_line_is_too_strange(lines in prop::collection::vec(line(), 1..12), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        for (_, parser) in DRIVERS {
            let mut output: Vec<u8> = lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
            output.extend(&bytes);
            let mut turn = Turn::default();
            let mut chunks: Vec<_> = heard(&output, parser()).into_iter().flat_map(|event| turn.hear(event)).collect();
            chunks.extend(turn.close(&Outcome::completed()));
            prop_assert_eq!(rules::check(&chunks), Ok(()));
        }
    }
}
