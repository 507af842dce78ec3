//! Claude Code's background tasks: sub-agents, workflows, commands. Their ends may not be reported one by one, so the
//! set is replaced by `background_tasks_changed` if that arrives.

use std::collections::HashSet;

use serde_json::Value;

use crate::agent_event::AgentEvent;
use crate::driver::json::{items, text};

/// Maximum tasks tracked; newer ones are ignored.
const MAX_TASKS: usize = 1024;

/// The tasks known to run.
#[derive(Default)]
pub(super) struct Tasks {
    running: HashSet<String>,
}

impl Tasks {
    /// Handles a line; returns how many tasks run, if that changed.
    pub(super) fn hear(&mut self, line: &Value) -> Option<usize> {
        let before = self.running.len();
        let id = text(line, "task_id");
        match text(line, "subtype") {
            "task_started" if is_activity(line) && line.get("is_backgrounded") != Some(&Value::Bool(false)) => {
                self.add(id);
            }
            "task_updated" => {
                let patch = line.get("patch").unwrap_or(&Value::Null);
                if matches!(text(patch, "status"), "completed" | "failed" | "killed") {
                    self.running.remove(id);
                } else if patch.get("is_backgrounded") == Some(&Value::Bool(true)) {
                    self.add(id);
                }
            }
            "task_notification" => _ = self.running.remove(id),
            "background_tasks_changed" => {
                self.running.clear();
                for task in items(line, "tasks").iter().filter(|task| is_activity(task)) {
                    self.add(text(task, "task_id"));
                }
            }
            _ => {}
        }
        (self.running.len() != before).then_some(self.running.len())
    }

    /// Records that no task runs any more.
    pub(super) fn forget(&mut self) -> AgentEvent {
        self.running.clear();
        AgentEvent::Tasks(0)
    }

    fn add(&mut self, id: &str) {
        if self.running.len() < MAX_TASKS {
            self.running.insert(id.to_owned());
        }
    }
}

/// Whether a task counts: watchers and housekeeping run as long as the agent does.
fn is_activity(task: &Value) -> bool {
    let is_set = |key| task.get(key) == Some(&Value::Bool(true));
    !is_set("ambient") && !is_set("skip_transcript")
}
