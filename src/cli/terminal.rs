//! A run's stream as shown on a terminal: text as it comes, thoughts dimmed and marked, tools and statuses one line
//! each.
//!
//! Always: output starts on a line of its own unless it continues the same part, the stream ends with a line end, and no
//! control sequence of the agent reaches the terminal ([`plain`]). After every call the terminal has its normal colour, so
//! that the view may be dropped at any time.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use serde_json::Value;

use super::plain::{one_line, plain};
use crate::chunk::{Chunk, NoticeLevel};
use crate::id::RunId;

/// Id prefix of the text parts that report an error: `engine/turn.rs`.
const ERROR_ID: &str = "error";
const ERROR_MARK: &str = "[error] ";
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const RED: Style = AnsiColor::Red.on_default();
const TOOL: Style = AnsiColor::Cyan.on_default();
const RETRACTED: &str = "withdrawn: the message above does not count";
/// Two such lines fit beside each other on a wide screen, and one wraps once on a narrow one.
const LINE_CHARS: usize = 120;

/// Shows the chunks of one or more runs, one run after the other.
#[derive(Debug)]
pub struct TerminalView<W> {
    out: W,
    colour: bool,
    /// The part that the current line belongs to; none at the beginning of a line.
    part: Option<String>,
    /// The running tools by call: the name, and what was shown. A result does not name its tool.
    tools: HashMap<String, (String, String)>,
    /// The run whose chunks are shown.
    run: Option<RunId>,
    /// The run's errors that were shown.
    errors: HashSet<String>,
    /// The beginning of a text part that may be the run's error, which then follows as a chunk of its own.
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
    /// A view on `out`, which must be at the beginning of a line. Without `colour` no escape sequence is written.
    pub fn new(out: W, colour: bool) -> Self {
        Self { out, colour, part: None, tools: HashMap::new(), run: None, errors: HashSet::new(), held: None }
    }

    /// Shows a chunk and flushes it.
    ///
    /// # Errors
    /// If `out` cannot be written to, for example because its reader is gone.
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
                // The same call comes again once it was allowed.
                if before.is_none_or(|(_, before)| before != shown) {
                    self.line(TOOL, "→", &shown)?;
                }
            }
            // A preliminary output is repeated, complete, in the next one.
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
                // Complete, because people copy it.
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

    /// Sets the run that the next chunks belong to.
    pub fn of_run(&mut self, run: RunId) {
        self.run = Some(run);
    }

    /// Shows the person's message.
    ///
    /// # Errors
    /// If `out` cannot be written to.
    pub fn question(&mut self, text: &str) -> io::Result<()> {
        self.end_line()?;
        for line in plain(text).trim_end().lines() {
            self.styled(BOLD, &format!("> {line}"))?;
            writeln!(self.out)?;
        }
        self.out.flush()
    }

    /// An error, once: agents report one in several ways. Complete, and on as many lines as it has, because the person has to act
    /// on it.
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

    /// Continues a part, or begins one on a new line. The mark precedes each of its lines.
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

/// The steps of a plan; finished ones are in parentheses.
fn steps(plan: &Value) -> String {
    let step = |step: &Value| {
        let content = step.get("content").and_then(Value::as_str)?;
        let is_done = step.get("status").and_then(Value::as_str) == Some("completed");
        Some(if is_done { format!("({content})") } else { content.to_owned() })
    };
    plan.as_array().into_iter().flatten().filter_map(step).collect::<Vec<_>>().join(", ")
}
