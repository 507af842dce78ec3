//! What agents said, by their own account: each writes a line to a file of its own before it says it to the engine.
//!
//! Always: every word of an agent begins with [`MARK`], its pid and a number, so that it is like no other word of any
//! agent, and what the engine adds in an agent's name is told apart from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use mainstay::chunk::Chunk;
use mainstay::engine::turn::MAX_DELTA_BYTES;

/// Begins every word of an agent, and nothing that the engine says by itself.
pub(super) const MARK: char = '#';

/// One thing that an agent said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Said {
    Text(String),
    Reasoning(String),
    ToolStarted { id: String, input: String },
    ToolFinished { id: String, output: String },
    ToolFailed { id: String, error: String },
}

impl Said {
    /// What a stored chunk says in the agent's words: several when the agent said them while its connection was broken; none for
    /// what only frames them.
    pub(super) fn of_chunk(chunk: Chunk) -> Vec<Self> {
        let said = match chunk {
            Chunk::TextDelta { delta, .. } => return words_of(&delta).map(Self::Text).collect(),
            Chunk::ReasoningDelta { delta, .. } => return words_of(&delta).map(Self::Reasoning).collect(),
            Chunk::ToolInputAvailable { tool_call_id: id, input, .. } => {
                Self::ToolStarted { id, input: words_in(&input) }
            }
            Chunk::ToolOutputAvailable { tool_call_id: id, output, .. } => {
                Self::ToolFinished { id, output: words_in(&output) }
            }
            Chunk::ToolOutputError { tool_call_id: id, error_text: error, .. } => {
                Self::ToolFailed { id, error: first_word(&error) }
            }
            _ => return Vec::new(),
        };
        said.words().starts_with(MARK).then_some(said).into_iter().collect()
    }

    /// Without the space behind it, which does not come through everywhere.
    fn trimmed(self) -> Self {
        match self {
            Self::Text(word) => Self::Text(word.trim_end().to_owned()),
            Self::Reasoning(word) => Self::Reasoning(word.trim_end().to_owned()),
            tool => tool,
        }
    }

    /// Whether this is a failure where the agent said a success: what tools say after a cancel is not believed.
    pub(super) fn distrusts(&self, said: &Self) -> bool {
        match (self, said) {
            (Self::ToolFailed { id, error }, Self::ToolFinished { id: of, output }) => (id, error) == (of, output),
            _ => false,
        }
    }

    fn words(&self) -> &str {
        match self {
            Self::Text(words) | Self::Reasoning(words) => words,
            Self::ToolStarted { input, .. } => input,
            Self::ToolFinished { output, .. } => output,
            Self::ToolFailed { error, .. } => error,
        }
    }

    /// Short enough for a report.
    pub(super) fn shown(&self) -> String {
        self.words().chars().take(40).collect()
    }
}

/// The chunks, with those joined again that one long text was cut into.
pub(super) fn joined(chunks: impl Iterator<Item = Chunk>) -> Vec<Chunk> {
    let (mut whole, mut is_cut) = (Vec::new(), false);
    for chunk in chunks {
        let bytes = match &chunk {
            Chunk::TextDelta { delta, .. } | Chunk::ReasoningDelta { delta, .. } => delta.len(),
            _ => 0,
        };
        match (whole.last_mut(), chunk) {
            (Some(Chunk::TextDelta { delta, .. }), Chunk::TextDelta { delta: more, .. })
            | (Some(Chunk::ReasoningDelta { delta, .. }), Chunk::ReasoningDelta { delta: more, .. })
                if is_cut =>
            {
                delta.push_str(&more);
            }
            (_, chunk) => whole.push(chunk),
        }
        // It is cut between characters, of up to four bytes.
        is_cut = bytes + 4 > MAX_DELTA_BYTES;
    }
    whole
}

/// The word of an agent in what a driver made of it: each has a shape of its own for the input and output of a tool, and
/// some say more below it.
fn words_in(value: &Value) -> String {
    match value {
        Value::String(text) if text.starts_with(MARK) => first_word(text),
        Value::Array(items) => items.iter().map(words_in).find(|found| !found.is_empty()).unwrap_or_default(),
        Value::Object(map) => map.values().map(words_in).find(|found| !found.is_empty()).unwrap_or_default(),
        _ => String::new(),
    }
}

/// The words of an agent in a text, without the space behind them.
fn words_of(text: &str) -> impl Iterator<Item = String> {
    text.split(MARK).skip(1).map(|word| format!("{MARK}{}", word.trim_end()))
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

/// A line of a record.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Line {
    Began(Identity),
    /// Another agent lived in the same place: a session, or a slot.
    Met(String),
    Said(Said),
    /// Its last word was not heard: the connection of the follower of the turn was broken.
    Unheard,
    /// That connection is cut.
    Cut,
    /// It asks whether it may use a tool, at this time in milliseconds, and waits for the answer.
    Asked(i64),
    /// It was answered.
    Answered,
    /// The last line, when the agent ends by itself.
    Ended(u8),
}

/// Who an agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) run: String,
    pub(super) attempt: i64,
    pub(super) session: String,
    pub(super) slot: String,
    pub(super) pid: u32,
    pub(super) started_at_ticks: u64,
}

/// The record of an agent that is being written.
pub(super) struct RecordWriter {
    file: File,
    agent: String,
}

impl RecordWriter {
    pub(super) fn create(dir: &Path, agent: &Identity) -> io::Result<Self> {
        let path = dir.join(format!("{}.{}.{}", agent.run, agent.pid, agent.attempt));
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let mut writer = Self { file, agent: format!("run {}, pid {}", agent.run, agent.pid) };
        writer.write(&Line::Began(agent.clone()))?;
        Ok(writer)
    }

    /// Whose record it is, for others to read.
    pub(super) fn agent(&self) -> &str {
        &self.agent
    }

    pub(super) fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        // In one write: an agent is killed before it or after it.
        self.file.write_all(text.as_bytes())
    }
}

/// What an agent recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) agent: Identity,
    pub(super) met: Vec<String>,
    pub(super) said: Vec<Said>,
    /// Indexes of what was not heard when it was said.
    pub(super) unheard: BTreeSet<usize>,
    /// How often the connection of the follower of the turn was cut.
    pub(super) cuts: u64,
    /// When it asked what it got no answer to.
    pub(super) asked: Option<i64>,
    /// Questions that it got an answer to.
    pub(super) answers: u64,
    /// The status that it ended with; none when it was killed.
    pub(super) ended: Option<u8>,
}

impl Record {
    /// That of an agent that has said nothing so far.
    pub(super) fn of(agent: Identity) -> Self {
        let (met, said, unheard) = Default::default();
        Self { agent, met, said, unheard, cuts: 0, asked: None, answers: 0, ended: None }
    }

    /// None when the agent was killed before it wrote who it is.
    fn read(text: &str) -> Result<Option<Self>, serde_json::Error> {
        let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let Some(Line::Began(agent)) = lines.next().map(serde_json::from_str).transpose()? else { return Ok(None) };
        let mut record = Self::of(agent);
        for line in lines {
            match serde_json::from_str(line)? {
                Line::Began(agent) => record.met.push(format!("record with pid {}", agent.pid)),
                Line::Met(place) => record.met.push(place),
                Line::Said(said) => record.said.push(said.trimmed()),
                Line::Unheard => drop(record.unheard.insert(record.said.len().saturating_sub(1))),
                Line::Cut => record.cuts += 1,
                Line::Asked(at) => record.asked = Some(at),
                Line::Answered => (record.asked, record.answers) = (None, record.answers + 1),
                Line::Ended(code) => record.ended = Some(code),
            }
        }
        Ok(Some(record))
    }
}

/// The records of all agents, by run.
#[derive(Default)]
pub(super) struct Records(BTreeMap<String, Vec<PathBuf>>);

impl Records {
    pub(super) fn list(dir: &Path) -> io::Result<Self> {
        let mut records = Self::default();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some((run, _)) = name.split_once('.') {
                records.0.entry(run.to_owned()).or_default().push(entry.path());
            }
        }
        Ok(records)
    }

    /// The agents that ran for a run, in the order of the tries at it.
    pub(super) fn of(&self, run: &str) -> anyhow::Result<Vec<Record>> {
        let mut records = Vec::new();
        for path in self.0.get(run).into_iter().flatten() {
            records.extend(Record::read(&fs::read_to_string(path)?)?);
        }
        records.sort_by_key(|record| (record.agent.attempt, record.agent.started_at_ticks));
        Ok(records)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> Identity {
        let (run, session, slot) = ("r".into(), "s".into(), "p".into());
        Identity { run, attempt: 1, session, slot, pid: 7, started_at_ticks: 1 }
    }

    #[test]
    fn long_words_that_were_cut_are_joined() {
        let delta = |delta: String| Chunk::TextDelta { id: "t".into(), delta };
        let long = || delta("é".repeat(MAX_DELTA_BYTES / 2));
        let chunks = [delta("a".into()), delta("b".into()), long(), long(), delta("c".into()), delta("d".into())];
        let lengths: Vec<_> = joined(chunks.into_iter()).iter().map(|chunk| chunk.to_json().len()).collect();
        let frame = delta(String::new()).to_json().len();
        assert_eq!(lengths, [frame + 1, frame + 1, frame + 2 * MAX_DELTA_BYTES + 1, frame + 1]);
    }

    #[test]
    fn words_that_come_together_are_told_apart() {
        let delta = |delta: &str| Chunk::TextDelta { id: "t".into(), delta: delta.into() };
        let text = |word: &str| Said::Text(word.to_owned());
        assert_eq!(Said::of_chunk(delta("#7.0 ")), [text("#7.0")]);
        assert_eq!(Said::of_chunk(delta(" #7.0 #7.1 xx#7.2 ")), [text("#7.0"), text("#7.1 xx"), text("#7.2")]);
        assert_eq!(Said::of_chunk(delta("by another")), []);
    }

    #[test]
    fn unheard_words_are_known() {
        let lines =
            [Line::Said(Said::Text("#7.0 ".into())), Line::Cut, Line::Said(Said::Text("#7.1 ".into())), Line::Unheard];
        let lines: Vec<_> = lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
        let began = serde_json::to_string(&Line::Began(agent())).unwrap();
        let record = Record::read(&format!("{began}\n{}\n", lines.join("\n"))).unwrap().unwrap();
        assert_eq!((record.unheard, record.cuts), (BTreeSet::from([1]), 1));
    }

    #[test]
    fn a_line_that_was_cut_by_a_kill_was_not_said() {
        let began = serde_json::to_string(&Line::Began(agent())).unwrap();
        let said = serde_json::to_string(&Line::Said(Said::Text("#7.0 ".into()))).unwrap();
        let record = Record::read(&format!("{began}\n{said}\n{}", &said[..9])).unwrap().unwrap();
        assert_eq!((record.said, record.ended), (vec![Said::Text("#7.0".into())], None));
        assert_eq!(Record::read(&began[..9]).unwrap(), None);
    }
}
