//! The output of a tool while it is at work. Most agents send all of it again whenever it grows.
//!
//! Always: what readers are sent stays in proportion to the output, not to how often the agent sends it. Text that is
//! added is sent as a difference; the whole is sent again when it has doubled, for clients that know no differences. Other
//! changes are sent whole, as long as they are not too many. The last output is always sent whole.

use serde_json::Value;

use super::Turn;
use crate::chunk::{Chunk, ToolOutputDelta};
use crate::engine::fold::Tool;
use crate::engine::fold::bytes_of;

/// An output is sent whole again when it has grown by as much as it was, and by this at least.
const LEAST_GROWTH_BYTES: usize = 256;
/// Outputs that are no longer text of the one before are sent whole up to this sum for a call: enough for hundreds of
/// progress bars and status lines. Beyond it one is sent when it has doubled.
const MAX_REPLACED_BYTES: usize = 512 * 1024;

impl Turn {
    /// A tool at work has this output by now.
    pub(super) fn show_progress(&mut self, id: &str, output: Value, said: &mut Vec<Chunk>) {
        let id = if id.is_empty() { self.newest_without_id(None) } else { Some(id.to_owned()) };
        let Some(tool) = id.and_then(|id| self.fold.call(&id)) else { return };
        if tool.is_finished() || tool.question().is_some() {
            return;
        }
        let tool_call_id = tool.tool_call_id.clone();
        let size = bytes_of(&output);
        let has_doubled = size.saturating_sub(tool.whole_bytes) >= tool.whole_bytes.max(LEAST_GROWTH_BYTES);
        let chunk = match added(tool, &output) {
            Some("") => return,
            Some(delta) if !has_doubled => {
                let data = ToolOutputDelta { tool_call_id, delta: delta.to_owned() };
                Chunk::DataToolOutput { data, transient: true }
            }
            None if !has_doubled && !may_send_whole(tool, size) => return,
            _ => Chunk::ToolOutputAvailable {
                tool_call_id,
                output,
                provider_executed: true,
                dynamic: true,
                preliminary: Some(true),
            },
        };
        self.say(chunk, said);
    }
}

/// Whether something of this size may be sent whole for a tool at work, beside the growth of its output.
pub(super) fn may_send_whole(tool: &Tool, size: usize) -> bool {
    tool.sent_bytes.saturating_add(size) <= MAX_REPLACED_BYTES
}

/// What the output adds to the one that was shown; empty when it is the same, none when it is another.
fn added<'a>(tool: &Tool, output: &'a Value) -> Option<&'a str> {
    let shown = tool.output()?;
    match (shown, output) {
        (Value::String(shown), Value::String(output)) => output.strip_prefix(shown.as_str()),
        _ => (shown == output).then_some(""),
    }
}
