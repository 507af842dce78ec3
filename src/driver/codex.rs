//! Codex: `codex exec --json`, one process per turn. It reads the message on stdin, asks nothing, and reports each item
//! when it is done: its text does not arrive word by word.
//!
//! Its conversations are threads; `exec resume` continues one.

use std::collections::HashMap;
use std::ffi::OsString;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::json::{self, items, text};
use super::per_turn::{Dialect, PerTurn, Stdin};
use super::provider;
use crate::agent::{CODEX_OPTIONS, ProcessSpec};
use crate::agent_event::{Again, AgentEvent, LineParser, SessionOrigin};
use crate::chunk::Notice;
use crate::failure::AgentError;
use crate::process::Prompt;
use crate::process::Shims;
use crate::usage::Usage;

/// The driver of an agent.
pub fn backend(spec: &ProcessSpec, kill_grace: Duration, shims: &Shims) -> PerTurn {
    let dialect = Dialect { arguments, stdin: |_| Stdin::Message, is_session_gone, ..Dialect::of_lines(parser) };
    PerTurn::new(spec.clone(), kill_grace, dialect, shims.clone())
}

fn arguments(prompt: &Prompt) -> Vec<OsString> {
    let options = &prompt.options;
    // The workspace decides where an agent may work, whether that is a repository or not.
    let mut arguments: Vec<OsString> = ["exec", "--json", "--skip-git-repo-check"].map(OsString::from).into();
    arguments.extend(options.model.as_ref().map(|model| format!("--model={model}").into()));
    let mut set = |key: &str, value: Option<&String>| {
        // A JSON string is a TOML string.
        arguments.extend(value.map(|value| format!("--config={key}={}", json!(value)).into()));
    };
    set("sandbox_mode", options.permission_profile.as_ref());
    for key in CODEX_OPTIONS.iter().filter_map(|option| option.strip_prefix("extra.")) {
        set(key, options.extra.get(key));
    }
    match &prompt.place.agent_session {
        _ if prompt.oneshot => arguments.push("--ephemeral".into()),
        Some(thread) => arguments.extend(["resume".into(), thread.into()]),
        None => {}
    }
    // The message is on stdin, where other users of the machine cannot read it (`ps` shows them arguments).
    arguments.push("-".into());
    arguments
}

/// Whether the words say that the thread no longer exists.
fn is_session_gone(words: &str, session: &str) -> bool {
    let proofs =
        [format!("no rollout found for thread id {session}"), format!("No saved session found with ID {session}")];
    words.lines().any(|line| proofs.iter().any(|proof| line.contains(proof)))
}

/// Parses the lines of a turn.
pub fn parser() -> LineParser {
    let mut lines = Lines::default();
    Box::new(move |line| lines.read(line))
}

#[derive(Default)]
struct Lines {
    /// Items in progress, with the input last reported.
    at_work: HashMap<String, Value>,
}

impl Lines {
    fn read(&mut self, line: &str) -> Option<Vec<AgentEvent>> {
        let line = json::parse(line)?;
        let within = |key: &str| line.get(key).unwrap_or(&Value::Null);
        Some(match line.get("type")?.as_str()? {
            "thread.started" => {
                let id = text(&line, "thread_id").to_owned();
                vec![AgentEvent::Session { id, origin: SessionOrigin::New }]
            }
            "item.started" | "item.updated" => self.item(within("item"), false),
            "item.completed" => self.item(within("item"), true),
            // A retry is reported as an error too. If no failure of the turn follows, the newest one is why it ended.
            "error" => {
                let error = error_of(&line);
                vec![AgentEvent::Status(error.message.clone()), AgentEvent::Trouble(error)]
            }
            "turn.completed" => vec![AgentEvent::TotalUsage(usage(within("usage"))), AgentEvent::Ended],
            "turn.failed" => vec![AgentEvent::Error(error_of(within("error"))), AgentEvent::Ended],
            _ => Vec::new(),
        })
    }

    /// An item: something that the agent says or does.
    fn item(&mut self, item: &Value, is_done: bool) -> Vec<AgentEvent> {
        let words = |key| text(item, key).to_owned();
        match text(item, "type") {
            "agent_message" if is_done => {
                vec![AgentEvent::MessageBegan(Again::No), AgentEvent::Text(words("text"))]
            }
            "reasoning" if is_done => vec![AgentEvent::MessageBegan(Again::No), AgentEvent::Reasoning(words("text"))],
            "todo_list" => vec![AgentEvent::Plan(plan(item))],
            // A warning; it does not end the turn.
            "error" => vec![AgentEvent::Notice(Notice::warning(words("message")))],
            "command_execution" => self.tool(item, is_done, "command_execution", &["command"]),
            "file_change" => self.tool(item, is_done, "file_change", &["changes"]),
            "web_search" => self.tool(item, is_done, "web_search", &["query", "action"]),
            "mcp_tool_call" => {
                let name = format!("{}.{}", text(item, "server"), text(item, "tool"));
                self.tool(item, is_done, &name, &["arguments"])
            }
            // An unknown kind with a status: shown as a tool with what is reported of it.
            kind if item.get("status").is_some_and(Value::is_string) => {
                self.tool(item, is_done, kind, &["tool", "prompt"])
            }
            _ => Vec::new(),
        }
    }

    /// A tool call. The members named in `given` are its input, the others its output.
    fn tool(&mut self, item: &Value, is_done: bool, name: &str, given: &[&str]) -> Vec<AgentEvent> {
        let id = text(item, "id").to_owned();
        let (mut input, mut output) = (Map::new(), Map::new());
        for (key, value) in item.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            match key.as_str() {
                "id" | "type" | "status" | "server" => {}
                key if given.contains(&key) => _ = input.insert(key.to_owned(), value.clone()),
                "tool" => {}
                key => _ = output.insert(key.to_owned(), value.clone()),
            }
        }
        let input = input.remove("arguments").unwrap_or(Value::Object(input));
        let is_told = self.at_work.get(&id) == Some(&input);
        let mut events = Vec::new();
        if !is_told {
            let (id, input) = (id.clone(), input.clone());
            events.push(AgentEvent::ToolStarted { id, name: name.to_owned(), title: None, input, parent: None });
        }
        if is_done {
            self.at_work.remove(&id);
        } else if !is_told {
            self.at_work.insert(id.clone(), input);
        }
        let failed = matches!(text(item, "status"), "failed" | "declined");
        if is_done {
            let result = if failed { Err(failure(item)) } else { Ok(Value::Object(output)) };
            events.push(AgentEvent::ToolFinished { id, name: None, result });
        } else if output.values().any(|value| value.as_str().is_none_or(|words| !words.is_empty())) {
            events.push(AgentEvent::ToolProgress { id, output: Value::Object(output) });
        }
        events
    }
}

/// The error of a line. A provider's answer is embedded in it as JSON.
fn error_of(line: &Value) -> AgentError {
    let said = text(line, "message");
    let body = provider::body(said).map(|(_, body)| body);
    let message = body.as_ref().and_then(|body| body.pointer("/error/message").or(body.get("message"))?.as_str());
    let message = match message.unwrap_or(said) {
        "" => "The agent failed and did not say why.",
        message => message,
    };
    provider::error(line, message.to_owned())
}

/// The error text of a failed item.
fn failure(item: &Value) -> String {
    let error = item.get("error").map(|error| text(error, "message")).unwrap_or_default();
    let output = text(item, "aggregated_output").trim_end();
    let code = json::integer(item, "exit_code").map(|code| format!("exit code {code}"));
    let said: Vec<_> =
        [error, output, code.as_deref().unwrap_or_default()].into_iter().filter(|s| !s.is_empty()).collect();
    if said.is_empty() { text(item, "status").to_owned() } else { said.join("\n") }
}

fn plan(item: &Value) -> Value {
    let step = |step: &Value| {
        let status = if step.get("completed") == Some(&Value::Bool(true)) { "completed" } else { "pending" };
        json!({"content": text(step, "text"), "status": status})
    };
    items(item, "items").iter().map(step).collect()
}

/// The usage of the whole thread. Cached input is counted as part of the input.
fn usage(usage: &Value) -> Usage {
    let count = |key: &str| json::integer(usage, key);
    let cached = count("cached_input_tokens");
    Usage {
        input_tokens: count("input_tokens").map(|read| read.saturating_sub(cached.unwrap_or(0)).max(0)),
        output_tokens: count("output_tokens"),
        cache_read_tokens: cached,
        cache_write_tokens: count("cache_write_input_tokens"),
        reasoning_tokens: count("reasoning_output_tokens"),
        ..Usage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::fixtures::prompt;

    #[test]
    fn message_is_never_an_argument() {
        let words = |prompt: &Prompt| -> Vec<_> {
            arguments(prompt).into_iter().map(|word| word.into_string().unwrap()).collect()
        };
        let mut prompt = prompt("a secret");
        assert_eq!(words(&prompt), ["exec", "--json", "--skip-git-repo-check", "-"]);
        prompt.place.agent_session = Some("0-1".into());
        prompt.options.model = Some("m".into());
        prompt.options.permission_profile = Some("read-only".into());
        prompt.options.extra = [("model_verbosity", "low"), ("notify", "[]")].map(|(k, v)| (k.into(), v.into())).into();
        assert_eq!(
            words(&prompt)[3..],
            [
                "--model=m",
                "--config=sandbox_mode=\"read-only\"",
                "--config=model_verbosity=\"low\"",
                "resume",
                "0-1",
                "-"
            ]
        );
        prompt.oneshot = true;
        assert_eq!(words(&prompt)[6..], ["--ephemeral", "-"]);
    }

    #[test]
    fn items_are_what_it_says_and_does() {
        let read = |kind: &str, item: Value| parser()(&json!({"type": kind, "item": item}).to_string()).unwrap();
        let started = |name: &str, input: Value| AgentEvent::ToolStarted {
            id: "i".into(),
            name: name.into(),
            title: None,
            input,
            parent: None,
        };
        let finished = |result: Result<Value, &str>| AgentEvent::ToolFinished {
            id: "i".into(),
            name: None,
            result: result.map_err(str::to_owned),
        };
        let file = json!([{"path": "a", "kind": "add"}]);
        for (item, events) in [
            (
                json!({"id": "i", "type": "file_change", "changes": file, "status": "completed"}),
                vec![started("file_change", json!({"changes": file})), finished(Ok(json!({})))],
            ),
            (
                json!({"id": "i", "type": "mcp_tool_call", "server": "s", "tool": "t", "arguments": {"a": 1}, "result": {"b": 2},
                    "error": null, "status": "completed"}),
                vec![started("s.t", json!({"a": 1})), finished(Ok(json!({"result": {"b": 2}})))],
            ),
            (
                json!({"id": "i", "type": "mcp_tool_call", "server": "s", "tool": "t", "arguments": {}, "error": {"message": "no"},
                    "status": "failed"}),
                vec![started("s.t", json!({})), finished(Err("no"))],
            ),
            (
                json!({"id": "i", "type": "web_search", "query": "q"}),
                vec![started("web_search", json!({"query": "q"})), finished(Ok(json!({})))],
            ),
            (
                json!({"id": "i", "type": "command_execution", "command": "c", "aggregated_output": "o\n", "exit_code": 1,
                    "status": "failed"}),
                vec![started("command_execution", json!({"command": "c"})), finished(Err("o\nexit code 1"))],
            ),
            (
                json!({"id": "i", "type": "command_execution", "command": "c", "status": "declined"}),
                vec![started("command_execution", json!({"command": "c"})), finished(Err("declined"))],
            ),
            (
                json!({"id": "i", "type": "some_day", "tool": "wait", "found": 1, "status": "completed"}),
                vec![started("some_day", json!({"tool": "wait"})), finished(Ok(json!({"found": 1})))],
            ),
            (json!({"id": "i", "type": "some_day"}), vec![]),
            (
                json!({"type": "todo_list", "items": [{"text": "a", "completed": true}, {"text": "b", "completed": false}]}),
                vec![AgentEvent::Plan(json!([
                    {"content": "a", "status": "completed"}, {"content": "b", "status": "pending"}
                ]))],
            ),
            (json!({"type": "error", "message": "careful"}), vec![AgentEvent::Notice(Notice::warning("careful"))]),
        ] {
            assert_eq!(read("item.completed", item.clone()), events, "{item}");
        }
        let running = json!({"id": "i", "type": "command_execution", "command": "c", "aggregated_output": "o", "status": "in_progress"});
        let progress = AgentEvent::ToolProgress { id: "i".into(), output: json!({"aggregated_output": "o"}) };
        assert_eq!(read("item.updated", running), [started("command_execution", json!({"command": "c"})), progress]);
        assert_eq!(read("item.started", json!({"type": "agent_message", "text": "not yet"})), []);
    }

    #[test]
    fn what_came_from_a_cache_is_not_counted_as_read() {
        let line = json!({"type": "turn.completed", "usage": {"input_tokens": 100, "cached_input_tokens": 80, "output_tokens": 5}});
        let total =
            Usage { input_tokens: Some(20), cache_read_tokens: Some(80), output_tokens: Some(5), ..Usage::default() };
        assert_eq!(parser()(&line.to_string()), Some(vec![AgentEvent::TotalUsage(total), AgentEvent::Ended]));
    }
}
