//! The output of an agent of a torture: one thing after the other, drawn from its seed, each recorded before it is written.
//!
//! Always: a word is in the record before the engine can read it.

use std::io::{self, ErrorKind, Write};
use std::time::Duration;

use serde_json::Value;

use super::agent::{Behaviour, End};
use super::protocol::{Encoder, Ending};
use super::record::{Line, MARK, RecordWriter, Said};
use mainstay::clock::{Clock, SystemClock};

/// Longest pause between two words.
const MAX_PAUSE_MS: u64 = 20;
/// A long word does not fit into a pipe.
const LONG_WORD_BYTES: usize = 100 * 1024;

/// Where lines go. Returns whether the line was heard. A JSON string is written as it is: a line of no protocol.
pub(super) type LineSink = Box<dyn FnMut(&Value) -> io::Result<bool> + Send>;

/// Lines on stdout.
pub(super) fn stdout() -> LineSink {
    Box::new(|line| {
        let line = line.as_str().map_or_else(|| line.to_string(), str::to_owned);
        let mut stdout = io::stdout();
        stdout.write_all(format!("{line}\n").as_bytes())?;
        stdout.flush()?;
        Ok(true)
    })
}

pub(super) struct Voice {
    rng: fastrand::Rng,
    pub(super) record: RecordWriter,
    pid: u32,
    /// The number of the next word, and of the next thing.
    words: u32,
    things: u32,
    encoder: Box<dyn Encoder>,
    /// A running tool call, whose end comes next.
    tool: Option<String>,
    /// The question that waits for an answer.
    question: Option<String>,
    /// None once it was closed.
    sink: Option<LineSink>,
}

/// What follows a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Pause(Duration),
    /// Wait until the question is answered.
    Answer,
    /// Everything was said.
    End,
}

impl Voice {
    /// The agent's words are numbered from `words`.
    pub(super) fn new(
        rng: fastrand::Rng,
        record: RecordWriter,
        words: u32,
        encoder: Box<dyn Encoder>,
        sink: LineSink,
    ) -> Self {
        let (pid, sink) = (std::process::id(), Some(sink));
        Self { rng, record, pid, words, things: 0, encoder, tool: None, question: None, sink }
    }

    /// Says one thing.
    pub(super) fn step(&mut self, behaviour: &Behaviour) -> io::Result<Next> {
        match self.next(behaviour) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe && behaviour.ignores_broken_pipe => {
                (self.sink, self.question) = (None, None);
                Ok(Next::Pause(Duration::ZERO))
            }
            next => next,
        }
    }

    fn next(&mut self, behaviour: &Behaviour) -> io::Result<Next> {
        if let Some(tool) = self.tool.take() {
            self.finish_tool(tool)?;
        } else if self.things == behaviour.words {
            return Ok(Next::End);
        } else {
            if self.things == 0 {
                self.encoder.begin().iter().try_for_each(|line| self.print(line).map(drop))?;
            }
            self.things += 1;
            self.one_thing()?;
        }
        if self.question.is_some() {
            return Ok(Next::Answer);
        }
        let pause = if self.rng.bool() { self.rng.u64(..=MAX_PAUSE_MS) } else { 0 };
        Ok(Next::Pause(Duration::from_millis(pause)))
    }

    /// Whether a line is the expected answer.
    pub(super) fn hear(&mut self, line: &Value) -> io::Result<bool> {
        let is_answer = self.question.as_deref().is_some_and(|question| self.encoder.answers(line, question));
        if is_answer {
            self.question = None;
            self.record.write(&Line::Answered)?;
        }
        Ok(is_answer)
    }

    /// True one time in four.
    pub(super) fn one_in_four(&mut self) -> bool {
        self.rng.u8(..4) == 0
    }

    /// The question that waits for an answer.
    pub(super) fn question(&self) -> Option<&str> {
        self.question.as_deref()
    }

    /// Gives up on an answer.
    pub(super) fn forget_question(&mut self) {
        self.question = None;
    }

    /// Writes at once that the turn is cancelled.
    pub(super) fn say_cancelling(&mut self) -> io::Result<()> {
        self.encoder.cancelling().iter().try_for_each(|line| self.print(line).map(drop))
    }

    /// The lines that end the turn, for the caller to write.
    pub(super) fn ending(&mut self, ending: Ending) -> Vec<Value> {
        self.encoder.end(ending)
    }

    /// Writes that the turn is over before the process exits: always if the protocol requires it, otherwise sometimes.
    pub(super) fn may_say_the_end(&mut self, behaviour: &Behaviour) -> io::Result<()> {
        if behaviour.end == End::Well && (!self.encoder.may_omit_end() || self.rng.bool()) {
            self.encoder.end(Ending::Well).iter().try_for_each(|line| self.print(line).map(drop))?;
        }
        Ok(())
    }

    fn one_thing(&mut self) -> io::Result<()> {
        match self.rng.u8(..100) {
            0..60 => {
                let word = self.word();
                self.say(Said::Text(word))
            }
            60..80 => {
                let word = self.word();
                self.say(Said::Reasoning(word))
            }
            80..90 => self.use_tool(format!("tool-{}", self.things)),
            90..94 => self.print(&"this is no event of any protocol".into()).map(drop),
            94..99 => {
                // It may be closed.
                let _ = writeln!(io::stderr(), "some noise");
                Ok(())
            }
            // Too long to be repeated with every word.
            _ if self.encoder.retells() => Ok(()),
            _ => {
                let mut word = self.word();
                word.extend(std::iter::repeat_n('x', LONG_WORD_BYTES));
                self.say(Said::Text(word))
            }
        }
    }

    /// Begins a tool call, perhaps after a question. Its end comes next, or never.
    fn use_tool(&mut self, id: String) -> io::Result<()> {
        let input = self.word().trim_end().to_owned();
        self.say(Said::ToolStarted { id: id.clone(), input: input.clone() })?;
        if self.rng.bool() {
            let question = format!("question_{}_{}", self.pid, self.words);
            if let Some(line) = self.encoder.ask(&question, &id, &input).filter(|_| self.sink.is_some()) {
                self.question = Some(question);
                self.record.write(&Line::Asked(SystemClock.now().as_millis()))?;
                self.print(&line)?;
            }
        }
        self.tool = (self.rng.u8(..10) > 0).then_some(id);
        Ok(())
    }

    fn finish_tool(&mut self, id: String) -> io::Result<()> {
        let word = self.word().trim_end().to_owned();
        if self.rng.u8(..10) == 0 {
            return self.say(Said::ToolFailed { id, error: word });
        }
        self.say(Said::ToolFinished { id, output: word })
    }

    fn word(&mut self) -> String {
        let word = format!("{MARK}{}.{} ", self.pid, self.words);
        self.words += 1;
        word
    }

    fn say(&mut self, said: Said) -> io::Result<()> {
        let lines = self.encoder.say(&said);
        self.record.write(&Line::Said(said))?;
        let mut heard = true;
        for line in lines {
            heard &= self.print(&line)?;
        }
        if heard { Ok(()) } else { self.record.write(&Line::Unheard) }
    }

    fn print(&mut self, line: &Value) -> io::Result<bool> {
        self.sink.as_mut().map_or(Ok(true), |sink| sink(line))
    }
}
