//! Results on stdout: tables that fit the terminal for people, JSON for programs.
//!
//! Always: an id is shown whole, because people copy it; with `--json` a list is one object a line and nothing else.

use std::io::{self, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, ColumnConstraint, ContentArrangement, Row, Table};
use serde::Serialize;
use serde_json::Value;

use super::cell::{NOTHING_KNOWN, or_dash, relative, span, used};
use super::plain::one_line;
use crate::clock::Timestamp;
use crate::message::{Message, attachments, prompt};
use crate::permission::{Permission, PermissionState};
use crate::run::Run;
use crate::session::Session;
use crate::slot::Slot;
use crate::warm::Backend;
use crate::worker::Worker;

/// Longer cells are cut even where there is no terminal to fit.
const CELL_CHARS: usize = 200;

/// A column of a table, by its title.
#[derive(Debug, Clone, Copy)]
pub enum Column {
    /// Shown whole, however narrow the terminal is.
    Whole(&'static str),
    /// Gives way to the others.
    Narrow(&'static str),
    /// The same, and left out when it would say nothing of any item.
    Spare(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        let (Self::Whole(title) | Self::Narrow(title) | Self::Spare(title)) = self;
        title
    }
}

/// What can be listed in a table.
pub trait Listed: Serialize {
    /// The columns.
    const COLUMNS: &'static [Column];
    /// The cells of its row.
    fn cells(&self, now: Timestamp) -> Vec<String>;
}

/// Prints a list: a table for people, one JSON object a line for programs.
///
/// # Errors
/// When `out` cannot be written to.
pub fn list<T: Listed>(out: &mut impl Write, items: &[T], json_lines: bool, now: Timestamp) -> io::Result<()> {
    if json_lines {
        return items.iter().try_for_each(|item| json(out, item));
    }
    writeln!(out, "{}", table(items, now, None))
}

/// Prints one thing: a line a field for people, one JSON object for programs.
///
/// # Errors
/// When `out` cannot be written to.
pub fn record(out: &mut impl Write, item: &impl Serialize, as_json: bool) -> io::Result<()> {
    if as_json {
        return json(out, item);
    }
    let Value::Object(fields) = serde_json::to_value(item)? else { return json(out, item) };
    let width = fields.keys().map(String::len).max().unwrap_or_default();
    let is_empty = |value: &Value| value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
    for (name, value) in fields.iter().filter(|(_, value)| !is_empty(value)) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        writeln!(out, "{name:width$}  {}", one_line(&value, CELL_CHARS))?;
    }
    Ok(())
}

/// Prints one JSON object on a line.
///
/// # Errors
/// When `out` cannot be written to.
pub fn json(out: &mut impl Write, item: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, item)?;
    out.write_all(b"\n")
}

/// The table as text; as wide as the terminal that stdout is, unless a width is given.
fn table<T: Listed>(items: &[T], now: Timestamp, width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_truncation_indicator("…");
    if let Some(width) = width {
        table.set_width(width);
    }
    let rows: Vec<_> = items.iter().map(|item| item.cells(now)).collect();
    let says_something =
        |index: usize| rows.iter().any(|cells| cells.get(index).is_some_and(|text| text != NOTHING_KNOWN));
    let shown = T::COLUMNS.iter().enumerate();
    let shown = shown.filter(|(index, column)| !matches!(column, Column::Spare(_)) || says_something(*index));
    let shown: Vec<_> = shown.collect();
    table.set_header(shown.iter().map(|(_, column)| column.title()));
    for cells in &rows {
        let cells = shown.iter().filter_map(|(index, _)| cells.get(*index));
        let mut row = Row::from(cells.map(|text| Cell::new(one_line(text, CELL_CHARS))));
        row.max_height(1);
        table.add_row(row);
    }
    for (column, (_, kind)) in table.column_iter_mut().zip(shown) {
        // Two spaces between columns, none at the edge.
        column.set_padding((0, 2));
        if let Column::Whole(_) = kind {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table.trim_fmt()
}

impl Listed for Session {
    const COLUMNS: &'static [Column] = &[
        Column::Whole("SESSION"),
        Column::Whole("DOING"),
        Column::Narrow("WORKSPACE"),
        Column::Narrow("AGENT"),
        Column::Narrow("SLOT"),
        Column::Whole("SEQ"),
        Column::Whole("UPDATED"),
        Column::Spare("USED"),
        Column::Narrow("TITLE"),
    ];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let slot = self.assignment.as_ref().map(|place| place.slot.clone().unwrap_or_else(|| "shared".to_owned()));
        vec![
            self.id.to_string(),
            self.execution.as_str().to_owned(),
            self.workspace.to_string(),
            self.agent.to_string(),
            or_dash(slot),
            self.last_seq.to_string(),
            relative(self.updated_at, now),
            or_dash(used(&self.usage)),
            or_dash(self.title.clone()),
        ]
    }
}

impl Listed for Run {
    const COLUMNS: &'static [Column] = &[
        Column::Whole("RUN"),
        Column::Whole("SESSION"),
        Column::Whole("STATUS"),
        Column::Narrow("AGENT"),
        Column::Whole("QUEUED"),
        Column::Whole("TOOK"),
        Column::Spare("USED"),
        Column::Narrow("ERROR"),
    ];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let took = self.claimed_at.map(|claimed_at| span(self.settled_at.unwrap_or(now).since(claimed_at)));
        vec![
            self.id.to_string(),
            self.session_id.to_string(),
            self.status.to_string(),
            self.agent.to_string(),
            relative(self.queued_at, now),
            or_dash(took),
            or_dash(used(&self.usage)),
            or_dash(self.error.clone()),
        ]
    }
}

impl Listed for Slot {
    const COLUMNS: &'static [Column] = &[
        Column::Whole("SLOT"),
        Column::Whole("STATE"),
        Column::Whole("SESSION"),
        Column::Whole("RUN"),
        Column::Whole("LAST ACTIVE"),
    ];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let state = if self.enabled { self.state.clone() } else { format!("{}, removed", self.state) };
        vec![
            self.id.clone(),
            state,
            or_dash(self.session_id.as_ref()),
            or_dash(self.run_id),
            or_dash(self.last_active_at.map(|at| relative(at, now))),
        ]
    }
}

impl Listed for Worker {
    const COLUMNS: &'static [Column] = &[
        Column::Whole("WORKER"),
        Column::Narrow("HOST"),
        Column::Whole("PID"),
        Column::Whole("RUNS"),
        Column::Narrow("VERSION"),
        Column::Whole("STARTED"),
        Column::Whole("SEEN"),
    ];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        // A process that takes no runs from the queue may still execute one of its own, as `run` does.
        let runs = match self.capacity {
            0 => self.running.to_string(),
            capacity => format!("{} of {capacity}", self.running),
        };
        vec![
            self.id.to_string(),
            self.hostname.clone(),
            self.pid.to_string(),
            runs,
            self.version.clone(),
            relative(self.started_at, now),
            relative(self.heartbeat_at, now),
        ]
    }
}

impl Listed for Backend {
    const COLUMNS: &'static [Column] = &[
        Column::Whole("BACKEND"),
        Column::Whole("STATE"),
        Column::Narrow("AGENT"),
        Column::Narrow("WORKSPACE"),
        Column::Narrow("SESSION"),
        Column::Whole("TURNS"),
        Column::Whole("USED"),
        Column::Narrow("WHY"),
    ];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let state = if self.close_when_idle && self.stopped_at.is_none() {
            format!("{}, closes", self.state.as_str())
        } else {
            self.state.as_str().to_owned()
        };
        vec![
            self.id.to_string(),
            state,
            self.agent.to_string(),
            self.workspace.to_string(),
            self.session_id.as_ref().map_or_else(|| "shared".to_owned(), ToString::to_string),
            self.running.to_string(),
            relative(self.used_at, now),
            or_dash(self.reason.clone()),
        ]
    }
}

impl Listed for Permission {
    const COLUMNS: &'static [Column] = &[
        Column::Whole("PERMISSION"),
        Column::Whole("STATE"),
        Column::Whole("SESSION"),
        Column::Whole("ASKED"),
        Column::Narrow("EXPIRES"),
        Column::Narrow("TOOL"),
        Column::Narrow("ASKS"),
    ];

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let expires_at = self.expires_at.filter(|_| self.state == PermissionState::Pending);
        vec![
            self.id.to_string(),
            self.state.as_str().to_owned(),
            self.session_id.to_string(),
            relative(self.requested_at, now),
            or_dash(expires_at.map(|at| relative(at, now))),
            self.request.tool.clone(),
            format!("{} {}", self.request.title, self.request.input),
        ]
    }
}

impl Listed for Message {
    const COLUMNS: &'static [Column] = &[Column::Whole("ROLE"), Column::Narrow("TEXT"), Column::Whole("MESSAGE")];

    fn cells(&self, _: Timestamp) -> Vec<String> {
        let parts: Vec<Value> = serde_json::from_str(self.parts.get()).unwrap_or_default();
        let files = attachments(&parts).into_iter().map(|file| format!("[{}]", file.label()));
        let said = files.chain([prompt(&parts)]).collect::<Vec<_>>().join(" ");
        vec![self.role.as_str().to_owned(), said, self.id.to_string()]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::options::SessionOptions;
    use crate::session::{Execution, SessionMode};
    use crate::usage::Usage;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    pub fn session(id: &str, title: &str) -> Session {
        Session {
            id: id.parse().unwrap(),
            workspace: "default".parse().unwrap(),
            agent: "demo".parse().unwrap(),
            title: Some(title.to_owned()),
            idle_ttl_ms: 1000,
            assignment: None,
            execution: Execution::Streaming,
            mode: SessionMode::default(),
            options: SessionOptions::default(),
            agent_session: None,
            spawned_by: None,
            label: None,
            progress: None,
            last_outcome: None,
            usage: Usage::default(),
            last_seq: 12,
            created_at: NOW,
            updated_at: NOW - Duration::from_secs(200),
        }
    }

    #[test]
    fn a_table_is_aligned_and_a_line_a_row() {
        let items = [session("a", "Hello"), session("web:2", "Two\nlines \u{1b}[2J")];
        let expected = "\
SESSION  DOING      WORKSPACE  AGENT  SLOT  SEQ  UPDATED    TITLE
a        streaming  default    demo   -     12   3 min ago  Hello
web:2    streaming  default    demo   -     12   3 min ago  Two lines ␛[2J";
        assert_eq!(table(&items, NOW, None), expected);
        let mut items = items;
        items[1].usage.output_tokens = Some(7);
        let told = table(&items, NOW, None);
        assert!(
            told.contains("USED   TITLE") && told.contains("-      Hello") && told.contains("7 out  Two"),
            "{told}"
        );
    }

    #[test]
    fn a_narrow_terminal_costs_titles_and_no_ids() {
        let id = "0192f0c1-2345-7000-8000-0123456789ab";
        let text = table(&[session(id, &"long title ".repeat(20))], NOW, Some(100));
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains(id) && text.contains('…'), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        // Narrower than the ids alone: they are still whole, and the terminal wraps.
        assert!(table(&[session(id, "x")], NOW, Some(20)).contains(id));
    }

    #[test]
    fn programs_get_an_object_a_line() {
        let mut out = Vec::new();
        list(&mut out, &[session("a", "x\ny"), session("b", "z")], true, NOW).unwrap();
        let lines: Vec<Value> =
            String::from_utf8(out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.iter().map(|line| line["id"].as_str().unwrap()).collect::<Vec<_>>(), ["a", "b"]);

        let mut none = Vec::new();
        list::<Session>(&mut none, &[], true, NOW).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn one_thing_is_a_line_a_field() {
        let mut out = Vec::new();
        record(&mut out, &serde_json::json!({"id": "a", "title": "x\n\u{1b}", "slot": null, "exit_code": 3}), false)
            .unwrap();
        let mut lines: Vec<_> = str::from_utf8(&out).unwrap().lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["exit_code  3", "id         a", "title      x ␛"]);
    }
}
