//! A run's stream as a person sees it on a terminal: text as it comes, thoughts dimmed and marked, tools and statuses a
//! line each.
//!
//! Always: whatever is shown starts on a line of its own unless it continues the same part, the stream ends with a line
//! end, and nothing that the agent says reaches the terminal as a command ([`plain`]). After every call the terminal is
//! in its normal colour, so that a view may be left at any time.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use serde_json::Value;

use super::plain::{one_line, plain};
use crate::chunk::{Chunk, NoticeLevel};
use crate::id::RunId;

/// How texts in a message are told apart that report an error: `engine/turn.rs`.
const ERROR_ID: &str = "error";
const ERROR_MARK: &str = "[error] ";
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const RED: Style = AnsiColor::Red.on_default();
const TOOL: Style = AnsiColor::Cyan.on_default();
const RETRACTED: &str = "withdrawn: the message above does not count";
/// Two of these lines still fit beside each other on a wide screen, and one on a narrow one wraps once.
const LINE_CHARS: usize = 120;

/// Shows the chunks of one or more runs, one after the other.
#[derive(Debug)]
pub struct TerminalView<W> {
    out: W,
    colour: bool,
    /// The part that the current line belongs to; none at the beginning of a line.
    part: Option<String>,
    /// Names of the tools that are running, and what was shown of them, by call: a result does not name its tool.
    tools: HashMap<String, (String, String)>,
    /// The run whose chunks are shown.
    run: Option<RunId>,
    /// Errors of the run that were shown.
    errors: HashSet<String>,
    /// The beginning of a text part that may be the error of the run, which then comes once more by itself.
    held: Option<(String, String)>,
}

impl TerminalView<io::Stdout> {
    /// A view on stdout, with colours when it is a terminal that wants them (`NO_COLOR`, `CLICOLOR`, `TERM`).
    pub fn stdout() -> Self {
        let colour = AutoStream::choice(&io::stdout()) != ColorChoice::Never;
        Self::new(io::stdout(), colour)
    }
}

impl<W: Write> TerminalView<W> {
    /// A view on `out`, which is at the beginning of a line. Without `colour` no escape sequence is written.
    pub fn new(out: W, colour: bool) -> Self {
        Self { out, colour, part: None, tools: HashMap::new(), run: None, errors: HashSet::new(), held: None }
    }

    /// Shows a chunk and flushes it.
    ///
    /// # Errors
    /// When `out` cannot be written to, for example because its reader is gone.
    pub fn show(&mut self, chunk: &Chunk) -> io::Result<()> {
        if !matches!(chunk, Chunk::TextEnd { .. } | Chunk::FinishStep | Chunk::Error { .. })
            && let Some((id, delta)) = self.held.take()
        {
            self.stream(&format!("text {id}"), Style::new(), "", &delta)?;
        }
        match chunk {
            Chunk::TextDelta { id, delta } if id.starts_with(ERROR_ID) => {
                self.error(delta.strip_prefix(ERROR_MARK).unwrap_or(delta))?;
            }
            Chunk::TextDelta { id, delta } if delta.starts_with(ERROR_MARK) => {
                self.held = Some((id.clone(), delta.clone()));
            }
            Chunk::TextDelta { id, delta } => self.stream(&format!("text {id}"), Style::new(), "", delta)?,
            Chunk::ReasoningDelta { id, delta } => self.stream(&format!("reasoning {id}"), DIM, "┊ ", delta)?,
            Chunk::TextEnd { .. } | Chunk::ReasoningEnd { .. } => self.end_line()?,
            Chunk::ToolInputAvailable { tool_call_id, tool_name, title, input, .. } => {
                let shown = join(tool_name, &join(title.as_deref().unwrap_or_default(), &brief(input)));
                let before = self.tools.insert(tool_call_id.clone(), (tool_name.clone(), shown.clone()));
                // It is said once more when somebody allowed it.
                if before.is_none_or(|(_, before)| before != shown) {
                    self.line(TOOL, "→", &shown)?;
                }
            }
            // A preliminary output comes again, whole, with the next one.
            Chunk::ToolOutputAvailable { preliminary: Some(true), .. } | Chunk::DataToolOutput { .. } => {}
            Chunk::ToolOutputAvailable { tool_call_id, output, .. } => {
                let name = self.tool_that_ended(tool_call_id);
                self.line(DIM, "←", &join(&name, &brief(output)))?;
            }
            Chunk::ToolOutputError { tool_call_id, error_text, .. } => {
                let name = self.tool_that_ended(tool_call_id);
                self.line(RED, "✗", &join(&name, error_text))?;
            }
            Chunk::ToolApprovalRequest { approval_id, tool_call_id } => {
                let name = self.tools.get(tool_call_id).map(|(name, _)| name.clone()).unwrap_or_default();
                self.line(TOOL, "?", &join(&name, "waits for an answer; allow or deny it with"))?;
                // Whole, because people copy it.
                writeln!(self.out, "  mainstay permissions --answer {} allow", one_line(approval_id, LINE_CHARS))?;
            }
            Chunk::ToolOutputDenied { tool_call_id } => {
                let name = self.tool_that_ended(tool_call_id);
                self.line(RED, "✗", &join(&name, "was not allowed"))?;
            }
            Chunk::DataStatus { data, .. } => self.line(DIM, "·", &data.label)?,
            Chunk::DataPlan { data, .. } => self.line(DIM, "·", &format!("plan: {}", steps(data)))?,
            Chunk::DataNotice { data, .. } => {
                let style = if data.level == Some(NoticeLevel::Warning) { TOOL } else { DIM };
                self.line(style, "!", &data.text)?;
            }
            Chunk::DataRetracted { .. } => self.line(DIM, "·", RETRACTED)?,
            Chunk::File { media_type, url } => {
                self.line(
                    DIM,
                    "·",
                    &format!("file: {media_type} {}", if url.starts_with("data:") { "" } else { url }),
                )?;
            }
            Chunk::SourceUrl { url, title, .. } => {
                self.line(DIM, "·", &join("source:", &join(title.as_deref().unwrap_or_default(), url)))?;
            }
            Chunk::Error { error_text } => {
                let is_same = |(_, delta): &(String, String)| delta.strip_prefix(ERROR_MARK) == Some(error_text);
                if let Some((id, delta)) = self.held.take_if(|held| !is_same(held)) {
                    self.stream(&format!("text {id}"), Style::new(), "", &delta)?;
                }
                self.held = None;
                self.error(error_text)?;
            }
            Chunk::Abort => self.line(DIM, "·", "stopped")?,
            Chunk::Finish { .. } => {
                self.end_line()?;
                self.tools.clear();
                self.errors.clear();
            }
            Chunk::Start { .. }
            | Chunk::StartStep
            | Chunk::FinishStep
            | Chunk::TextStart { .. }
            | Chunk::ReasoningStart { .. }
            | Chunk::MessageMetadata { .. } => {}
        }
        self.out.flush()
    }

    /// Names the run that the next chunks belong to.
    pub fn of_run(&mut self, run: RunId) {
        self.run = Some(run);
    }

    /// Shows what a person asked.
    ///
    /// # Errors
    /// When `out` cannot be written to.
    pub fn question(&mut self, text: &str) -> io::Result<()> {
        self.end_line()?;
        for line in plain(text).trim_end().lines() {
            self.styled(BOLD, &format!("> {line}"))?;
            writeln!(self.out)?;
        }
        self.out.flush()
    }

    /// An error, once: agents report one in several ways. Whole, and on as many lines as it has, because it is what the
    /// person has to act on.
    fn error(&mut self, text: &str) -> io::Result<()> {
        self.end_line()?;
        let text = plain(text).trim().to_owned();
        if self.errors.contains(&text) {
            return Ok(());
        }
        let run = self.run.map(|run| format!(" (run {run})")).unwrap_or_default();
        self.styled(RED, &format!("error: {text}{run}"))?;
        self.errors.insert(text);
        writeln!(self.out)
    }

    /// Continues a part, or begins one on a new line. The mark goes before each of its lines.
    fn stream(&mut self, part: &str, style: Style, mark: &str, delta: &str) -> io::Result<()> {
        let text = plain(delta);
        if !text.is_empty() && self.part.as_deref() != Some(part) {
            self.end_line()?;
        }
        for line in text.split_inclusive('\n') {
            let mark = if self.part.is_none() { mark } else { "" };
            self.styled(style, &format!("{mark}{line}"))?;
            self.part = (!line.ends_with('\n')).then(|| part.to_owned());
        }
        Ok(())
    }

    /// A line of its own, shortened.
    fn tool_that_ended(&mut self, id: &str) -> String {
        self.tools.remove(id).map(|(name, _)| name).unwrap_or_default()
    }

    fn line(&mut self, style: Style, sign: &str, text: &str) -> io::Result<()> {
        self.end_line()?;
        self.styled(style, &format!("{sign} {}", one_line(text, LINE_CHARS)))?;
        writeln!(self.out)
    }

    fn end_line(&mut self) -> io::Result<()> {
        if self.part.take().is_some() { writeln!(self.out) } else { Ok(()) }
    }

    fn styled(&mut self, style: Style, text: &str) -> io::Result<()> {
        if self.colour { write!(self.out, "{style}{text}{style:#}") } else { self.out.write_all(text.as_bytes()) }
    }
}

fn join(name: &str, rest: &str) -> String {
    let name = one_line(name, LINE_CHARS / 2);
    if name.is_empty() { rest.to_owned() } else { format!("{name} {rest}") }
}

/// A tool's input or output in a few words: a text as it is, anything else as JSON, nothing when there is nothing.
fn brief(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Object(fields) if fields.is_empty() => String::new(),
        other => other.to_string(),
    }
}

/// The steps of a plan, those that are done in parentheses.
fn steps(plan: &Value) -> String {
    let step = |step: &Value| {
        let content = step.get("content").and_then(Value::as_str)?;
        let is_done = step.get("status").and_then(Value::as_str) == Some("completed");
        Some(if is_done { format!("({content})") } else { content.to_owned() })
    };
    plan.as_array().into_iter().flatten().filter_map(step).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What is shown for chunks, which are given as the store gives them back.
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
}
