//! What Claude Code reports to the user besides the model's text: notices, statuses, and the results of its own commands.

use serde_json::{Value, json};

use crate::agent_event::AgentEvent;
use crate::chunk::Notice;
use crate::driver::json::{self, items, text};

/// The modes that it may be in, with their display names.
const MODES: [(&str, &str); 6] = [
    ("default", "Ask before changes"),
    ("acceptEdits", "Edit without asking"),
    ("plan", "Plan only"),
    ("auto", "Decide by itself what to ask"),
    ("dontAsk", "Refuse instead of asking"),
    ("bypassPermissions", "Ask nothing"),
];

/// The outcome of a turn without text of the model.
#[derive(Default)]
pub(super) struct Report {
    /// Its newest status that is an outcome, such as of `/compact` or `/clear`.
    status: Option<Result<String, String>>,
    /// What stopped it.
    blocked: Option<String>,
}

impl Report {
    /// Handles a `system` line for the user.
    pub(super) fn hear(&mut self, line: &Value) -> Option<AgentEvent> {
        let content = text(line, "content");
        let notice = match text(line, "subtype") {
            "informational" => {
                if line.get("prevent_continuation") == Some(&Value::Bool(true)) {
                    self.blocked = Some(content.to_owned());
                }
                if text(line, "level") == "warning" { Notice::warning(content) } else { Notice::info(content) }
            }
            "model_refusal_fallback" => Notice::info(content),
            "model_refusal_no_fallback" => Notice::warning(content),
            "notification" => match text(line, "priority") {
                "high" | "immediate" => Notice::info(text(line, "text")),
                _ => return Some(AgentEvent::Status(text(line, "text").to_owned())),
            },
            "session_writes_lost" => Notice::warning(format!(
                "Claude Code could not save all of this conversation ({}): it may not remember it.",
                text(line, "error_code")
            )),
            "status" => {
                if text(line, "compact_result") == "failed" {
                    let why = text(line, "compact_error");
                    self.status =
                        Some(Err(format!("The conversation could not be compacted. {why}").trim().to_owned()));
                }
                let is_compacting = text(line, "status") == "compacting";
                return is_compacting.then(|| AgentEvent::Status("Compacting the conversation…".to_owned()));
            }
            "compact_boundary" => {
                let label = "The conversation was compacted.".to_owned();
                self.status = Some(Ok(label.clone()));
                return Some(AgentEvent::Status(label));
            }
            _ => return None,
        };
        Some(AgentEvent::Notice(notice))
    }

    /// Records that the conversation was cleared.
    pub(super) fn hear_reset(&mut self) {
        self.status = Some(Ok("The conversation was cleared.".to_owned()));
    }

    /// The answer of a turn without text of the model; `result` is the text of its result.
    ///
    /// # Errors
    /// Why the turn failed.
    pub(super) fn into_answer(self, result: &str) -> Result<String, String> {
        let result = result.trim();
        match (self.blocked, self.status) {
            // The result repeats the reason.
            (Some(why), _) if result.is_empty() || result == why.trim() => Err(match why.trim() {
                "" => "A hook stopped the turn.".to_owned(),
                why => why.to_owned(),
            }),
            (_, Some(status)) if result.is_empty() => status,
            _ => Ok(result.to_owned()),
        }
    }
}

/// A failed login.
pub(super) fn of_login(line: &Value) -> Option<Notice> {
    let error = text(line, "error");
    (!error.is_empty()).then(|| Notice::warning(format!("Login failed: {error}")))
}

/// MCP servers and plugins that failed to load.
pub(super) fn of_failed_parts(init: &Value) -> impl Iterator<Item = String> {
    let servers = items(init, "mcp_servers").iter().filter(|server| text(server, "status") == "failed");
    let servers =
        servers.map(|server| format!("The MCP server {} failed: its tools are missing.", text(server, "name")));
    let plugins = items(init, "plugin_errors").iter();
    let plugins = plugins.map(|error| format!("Plugin {}: {}", text(error, "plugin"), text(error, "message")));
    servers.chain(plugins)
}

/// Its modes and commands.
pub(super) fn offers(init: &Value) -> Value {
    let modes = MODES.map(|(id, name)| json!({"id": id, "name": name}));
    let commands = items(init, "slash_commands").iter().filter_map(Value::as_str);
    json!({
        "modes": {"currentModeId": text(init, "permissionMode"), "availableModes": modes},
        "commands": commands.map(|name| json!({"name": name})).collect::<Vec<_>>(),
    })
}

/// The reason and the time of a retry.
pub(super) fn retrying(line: &Value) -> String {
    let number = |key: &str| json::integer(line, key).unwrap_or(0);
    let why = match (text(line, "error"), number("error_status")) {
        ("rate_limit", _) => "The provider's rate limit is reached".to_owned(),
        ("overloaded", _) => "The provider is overloaded".to_owned(),
        (_, 0) => "The connection to the model broke".to_owned(),
        (_, status) => format!("The provider answered with status {status}"),
    };
    let seconds = (json::number(line, "retry_delay_ms").unwrap_or(0.0) / 1000.0).ceil();
    format!("{why}. Retrying in {seconds} s ({} of {})…", number("attempt"), number("max_retries"))
}
