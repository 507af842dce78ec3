//! Results on stdout: tables that fit the terminal for people, JSON for programs.
//!
//! Always: a table shows each id shortened to a prefix that every command accepts (`ids.rs`); with `--json` ids are complete,
//! and a list is one object per line and nothing else.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::cell::NOTHING_KNOWN;
use super::columns::{Column, layout};
use super::plain::{one_line, plain_json};
use crate::clock::Timestamp;
use crate::engine::Engine;

/// A longer cell or field is cut even if there is room.
const CELL_CHARS: usize = 200;
/// The width if there is no terminal.
const DEFAULT_WIDTH: usize = 80;
/// A terminal that reports less does not know its width.
const MIN_WIDTH: usize = 20;

/// What the cells of a table depend on.
#[derive(Debug, Clone, Copy)]
pub struct Sight {
    /// The time that relative times count from.
    pub now: Timestamp,
    /// How many characters of a UUID identify it among the others.
    pub id_chars: usize,
}

impl Sight {
    /// An id as shown: an id that a client chose is complete.
    pub fn id(&self, id: impl ToString) -> String {
        let mut id = id.to_string();
        if is_uuid(&id) {
            id.truncate(self.id_chars);
        }
        id
    }
}

fn is_uuid(id: &str) -> bool {
    const CHARS: usize = 36;
    id.len() == CHARS && Uuid::try_parse(id).is_ok()
}

/// An item that can be listed in a table.
pub trait Listed: Serialize {
    /// The columns.
    const COLUMNS: &'static [Column];
    /// The cells of its row.
    fn cells(&self, sight: Sight) -> Vec<String>;
    /// The ids in its row that commands accept.
    fn ids(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Prints a list: a table for people, one JSON object per line for programs.
///
/// # Errors
/// If `out` cannot be written to, or the database cannot be read.
pub async fn list<T: Listed>(
    engine: &Engine,
    out: &mut impl Write,
    items: &[T],
    json_lines: bool,
) -> anyhow::Result<()> {
    if json_lines {
        return Ok(items.iter().try_for_each(|item| json(out, item))?);
    }
    let ids: Vec<_> = items.iter().flat_map(Listed::ids).filter(|id| is_uuid(id)).collect();
    let sight = Sight { now: engine.now(), id_chars: engine.short_id_chars(&ids).await? };
    Ok(writeln!(out, "{}", table(items, sight, room()))?)
}

/// The width of a table.
fn room() -> usize {
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let seen = || {
        let size = io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
        size.map(|(width, _)| usize::from(width.0))
    };
    told.or_else(seen).filter(|width| *width >= MIN_WIDTH).unwrap_or(DEFAULT_WIDTH)
}

/// Prints one thing: one field per line for people, one JSON object for programs.
///
/// # Errors
/// If `out` cannot be written to.
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
/// If `out` cannot be written to.
pub fn json(out: &mut impl Write, item: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_string(item)?;
    writeln!(out, "{}", plain_json(&json))
}

fn table<T: Listed>(items: &[T], sight: Sight, room: usize) -> String {
    let mut rows: Vec<Vec<String>> =
        items.iter().map(|item| item.cells(sight).iter().map(|cell| one_line(cell, CELL_CHARS)).collect()).collect();
    let says_something = |index: usize| rows.iter().any(|row| row.get(index).is_some_and(|text| text != NOTHING_KNOWN));
    let shown: Vec<_> =
        T::COLUMNS.iter().enumerate().map(|(index, column)| !column.is_spare || says_something(index)).collect();
    let keep = |index: usize| shown.get(index).copied().unwrap_or_default();
    for row in &mut rows {
        let mut index = 0..;
        row.retain(|_| index.next().is_some_and(keep));
    }
    let columns: Vec<_> =
        T::COLUMNS.iter().enumerate().filter(|(index, _)| keep(*index)).map(|(_, column)| *column).collect();
    layout(&columns, &rows, room)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::options::SessionOptions;
    use crate::session::{Execution, Session, SessionMode};
    use crate::usage::Usage;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const SIGHT: Sight = Sight { now: NOW, id_chars: 13 };

    pub fn session(id: &str, title: &str) -> Session {
        Session {
            id: id.parse().unwrap(),
            workspace: "default".parse().unwrap(),
            agent: "demo".parse().unwrap(),
            title: Some(title.to_owned()),
            idle_ttl_ms: 1000,
            assignment: None,
            execution: Execution::Streaming,
            closing: false,
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
SESSION  DOING      AGENT  SLOT  UPDATED  TITLE
a        streaming  demo   -     3m ago   Hello
web:2    streaming  demo   -     3m ago   Two lines ␛[2J";
        assert_eq!(table(&items, SIGHT, 80), expected);
        let mut items = items;
        items[1].usage.output_tokens = Some(7);
        let told = table(&items, SIGHT, 80);
        assert!(
            told.contains("USED   TITLE") && told.contains("-      Hello") && told.contains("7 out  Two"),
            "{told}"
        );
    }

    #[test]
    fn ids_are_cut_to_what_tells_them_apart() {
        let id = "0192f0c1-2345-7000-8000-0123456789ab";
        let text = table(&[session(id, &"long title ".repeat(20))], SIGHT, 80);
        assert!(text.contains("\n0192f0c1-2345  streaming") && text.contains('…'), "{text}");
        assert!(text.lines().count() == 2 && text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let longer = Sight { id_chars: 18, ..SIGHT };
        assert!(table(&[session(id, "x")], longer, 80).contains("\n0192f0c1-2345-7000  "));
        assert!(table(&[session("web-chat-of-4711", "x")], SIGHT, 80).contains("web-chat-of-4711"));
    }

    #[test]
    fn programs_get_an_object_a_line() {
        let mut out = Vec::new();
        for session in [session("a", "x\ny"), session("b", "z")] {
            json(&mut out, &session).unwrap();
        }
        let lines: Vec<Value> =
            String::from_utf8(out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.iter().map(|line| line["id"].as_str().unwrap()).collect::<Vec<_>>(), ["a", "b"]);
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
