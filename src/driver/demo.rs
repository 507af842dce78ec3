//! The demo agent: answers without a key or a network, in token-sized deltas with a reasoning part and a tool call. A
//! directive at the beginning of the message makes it slow, silent or failing, for demos and for tests.
//!
//! It is a process under a shim, like any other agent (`process/shim_client.rs`). A program that embeds the engine
//! without the `mainstay` program runs it in its own process instead, where it ends with the engine.
//!
//! Always: it stops at once when it is cancelled or killed, even if its output is not read.

mod process;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, OptionFuture};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::Driver;
use super::per_turn::PerTurn;
use crate::agent_event::AgentEvent;
use crate::memory::{Held, Memory};
use crate::message::Attachment;
use crate::permission::{Decision, OptionKind, PermissionOption, PermissionRequest, ToolKind};
use crate::process::Shims;
use crate::process::control::Input;
use crate::process::{Adoption, Control, End, Prompt, Record, Reply, StartError};
use crate::run::ExitReport;

/// Records that may wait for the reader; beyond them the agent waits.
const RECORDS_WAITING: usize = 64;

/// A `/slow` beyond this would run for more than half an hour, the default limit of a turn.
const MAX_SLOW_DELTAS: u32 = 100_000;

/// Time between the deltas of `/slow`.
const SLOW_PACE: Duration = Duration::from_millis(20);

/// How much of a message the answer repeats.
const QUOTED_CHARS: usize = 1000;

/// A longer word is split, as models' tokenizers do.
const TOKEN_CHARS: usize = 16;

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

const DIRECTIVES: &str = "/slow N (N deltas, 20 ms apart), /tool (a tool call with progress), /fail TEXT (reports an error), \
    /exit N (ends with exit code N), /hang (says nothing more until it is cancelled), \
    /ask TEXT (asks for a permission to write that to a file, and says what was answered)";

/// The driver of the demo agent: under one of `shims`, if their program exists.
pub fn backend(kill_grace: Duration, shims: &Shims) -> Arc<dyn Driver> {
    match shims.program().to_str().filter(|program| which::which(program).is_ok()) {
        Some(program) => Arc::new(PerTurn::new(process::spec(program), kill_grace, process::dialect(), shims.clone())),
        None => Arc::new(Demo),
    }
}

pub use process::{is_asked_for, run};

/// The demo agent in this very process.
#[derive(Debug, Clone, Copy)]
pub struct Demo;

impl Driver for Demo {
    fn prompt(&self, prompt: Prompt) -> BoxFuture<'_, Result<Reply, StartError>> {
        Box::pin(async { Ok(speak(prompt.message, prompt.attachments)) })
    }

    fn adopt(&self, _: Adoption) -> BoxFuture<'_, Option<Reply>> {
        Box::pin(async { None })
    }

    fn answer(&self, request: &PermissionRequest, decision: &Decision) -> Option<String> {
        Some(answer_line(request, decision))
    }
}

fn answer_line(request: &PermissionRequest, decision: &Decision) -> String {
    json!({ "request": request.request, "option": decision.option() }).to_string()
}

/// Answers a message once it is allowed to begin.
fn speak(message: String, attachments: Vec<Attachment>) -> Reply {
    let (records, receiver) = mpsc::channel(RECORDS_WAITING);
    let control = Control::default();
    let mut voice = Voice { records, inputs: control.inputs(), control: control.clone(), said: 0 };
    let end = tokio::spawn(async move {
        let answer = async {
            voice.begun().await?;
            answer(&mut voice, &message, &attachments).await
        };
        let (code, signal) = match answer.await {
            Ok(code) => (Some(code), None),
            Err(Stopped { signal }) => (None, Some(signal)),
        };
        let stopped = signal.and_then(|_| voice.control.cause());
        End::Exited(ExitReport { code, signal, stopped, ..ExitReport::default() })
    });
    Reply { host: None, records: receiver, control, memory: Memory::default().open_account(), end }
}

/// What a message asks the demo agent to do.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Directive {
    Slow(u32),
    Tool,
    Fail(String),
    Exit(i32),
    Hang,
    Ask(String),
    /// An unknown directive, or one with a wrong argument; the text to answer with.
    Unknown(String),
}

impl Directive {
    /// The directive at the beginning of a message. A path such as `/usr/bin` is none.
    fn of(message: &str) -> Option<Self> {
        let rest = message.trim_start().strip_prefix('/')?;
        let (word, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        if word.is_empty() || !word.chars().all(|c| c.is_ascii_lowercase()) {
            return None;
        }
        let argument = argument.trim();
        Some(match word {
            "slow" => match argument.parse() {
                Ok(deltas @ 1..=MAX_SLOW_DELTAS) => Self::Slow(deltas),
                _ => Self::Unknown(format!("/slow takes a number from 1 to {MAX_SLOW_DELTAS}.")),
            },
            "exit" => match argument.parse() {
                Ok(code @ 0..=255) => Self::Exit(code),
                _ => Self::Unknown("/exit takes a number from 0 to 255.".to_owned()),
            },
            "fail" if argument.is_empty() => Self::Fail("the demo agent was asked to fail".to_owned()),
            "fail" => Self::Fail(argument.to_owned()),
            "tool" => Self::Tool,
            "hang" => Self::Hang,
            "ask" => Self::Ask(argument.to_owned()),
            _ => {
                let word = quote(word);
                Self::Unknown(format!("The demo agent does not know /{word}. It knows: {DIRECTIVES}."))
            }
        })
    }
}

/// Answers one message; returns the exit code.
async fn answer(voice: &mut Voice, message: &str, attachments: &[Attachment]) -> Result<i32, Stopped> {
    match Directive::of(message) {
        None => converse(voice, message, attachments).await?,
        Some(Directive::Slow(deltas)) => count_slowly(voice, deltas).await?,
        Some(Directive::Tool) => show_a_tool(voice).await?,
        Some(Directive::Fail(text)) => {
            voice.say(AgentEvent::Error(text.into())).await?;
            return Ok(1);
        }
        Some(Directive::Exit(code)) => {
            voice.write(&format!("Going to end with exit code {code}.")).await?;
            return Ok(code);
        }
        Some(Directive::Hang) => {
            voice.write("Saying nothing more until I am cancelled.").await?;
            return Err(voice.stopped().await);
        }
        Some(Directive::Ask(text)) => ask(voice, &text).await?,
        Some(Directive::Unknown(text)) => voice.write(&text).await?,
    }
    voice.say(AgentEvent::Ended).await?;
    Ok(0)
}

async fn converse(voice: &mut Voice, message: &str, files: &[Attachment]) -> Result<(), Stopped> {
    let quoted = quote(message.trim());
    let words = message.split_whitespace().count();
    let characters = message.trim().chars().count();
    for token in tokens("A message came in. I will count its words.") {
        voice.say(AgentEvent::Reasoning(token)).await?;
    }
    let id = "call-1".to_owned();
    let name = "word_count".to_owned();
    voice
        .say(AgentEvent::ToolStarted {
            id: id.clone(),
            name: name.clone(),
            title: None,
            input: json!({ "text": quoted }),
            parent: None,
        })
        .await?;
    let result = Ok(json!({ "words": words, "characters": characters }));
    voice.say(AgentEvent::ToolFinished { id, name: Some(name), result }).await?;
    let words_of = if words == 1 { "word" } else { "words" };
    let mut said = format!("You said: “{quoted}”. That is {words} {words_of}, {characters} characters.");
    if !files.is_empty() {
        let names: Vec<_> = files.iter().map(|file| quote(file.label())).collect();
        said += &format!(" You sent along: {}.", names.join(", "));
    }
    voice.write(&said).await
}

async fn count_slowly(voice: &mut Voice, deltas: u32) -> Result<(), Stopped> {
    let mut pace = tokio::time::interval(SLOW_PACE);
    // After a slow reader it does not catch up by sending faster.
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for delta in 1..=deltas {
        tokio::select! {
            biased;
            stopped = voice.stopped() => return Err(stopped),
            _ = pace.tick() => {}
        }
        voice.say(AgentEvent::Text(format!("{delta} "))).await?;
    }
    Ok(())
}

async fn show_a_tool(voice: &mut Voice) -> Result<(), Stopped> {
    const STEPS: u32 = 3;
    let id = "call-1".to_owned();
    let name = "count_to".to_owned();
    voice
        .say(AgentEvent::ToolStarted {
            id: id.clone(),
            name: name.clone(),
            title: None,
            input: json!({ "number": STEPS }),
            parent: None,
        })
        .await?;
    for step in 1..=STEPS {
        voice.say(AgentEvent::ToolProgress { id: id.clone(), output: json!({ "counted": step }) }).await?;
    }
    voice.say(AgentEvent::ToolFinished { id, name: Some(name), result: Ok(json!({ "counted": STEPS })) }).await?;
    voice.write(&format!("The tool counted to {STEPS}.")).await
}

async fn ask(voice: &mut Voice, text: &str) -> Result<(), Stopped> {
    let (id, name) = ("call-1".to_owned(), "write_file".to_owned());
    let input = json!({ "path": "demo.txt", "content": quote(text) });
    let started =
        AgentEvent::ToolStarted { id: id.clone(), name: name.clone(), title: None, input: input.clone(), parent: None };
    voice.say(started).await?;
    let option = |id: &str, name: &str, kind| PermissionOption { id: id.to_owned(), name: name.to_owned(), kind };
    let request = PermissionRequest {
        request: "ask-1".to_owned(),
        tool_call: id.clone(),
        tool: name.clone(),
        kind: ToolKind::Edit,
        title: "Write demo.txt".to_owned(),
        input,
        options: vec![
            option("allow", "Allow once", OptionKind::AllowOnce),
            option("always", "Allow always", OptionKind::AllowAlways),
            option("reject", "Reject", OptionKind::RejectOnce),
        ],
    };
    voice.say(AgentEvent::Permission(request.clone())).await?;
    let chosen = voice.answer(&request).await?;
    let allowed = chosen.as_ref().is_some_and(|option| option.kind.allows());
    let result = if allowed { Ok(json!({ "written": true })) } else { Err("It was not allowed.".to_owned()) };
    voice.say(AgentEvent::ToolFinished { id, name: Some(name), result }).await?;
    let answer = chosen.map_or_else(|| "nothing that it offered".to_owned(), |option| format!("“{}”", option.name));
    voice.write(&format!("The answer was {answer}. As a demo, it wrote nothing.")).await
}

/// The agent was stopped; the signal to report, as if it were a process.
#[derive(Debug)]
struct Stopped {
    signal: i32,
}

/// Sends records to the reader, one event each; the offset is the number of records.
struct Voice {
    records: mpsc::Sender<Record>,
    control: Control,
    /// The lines written to the agent.
    inputs: Option<mpsc::Receiver<Input>>,
    said: u64,
}

impl Voice {
    async fn begun(&self) -> Result<(), Stopped> {
        tokio::select! {
            () = self.control.begun() => Ok(()),
            stopped = self.stopped() => Err(stopped),
        }
    }

    async fn say(&mut self, event: AgentEvent) -> Result<(), Stopped> {
        let record = Record { offset: self.said + 1, events: vec![event], held: Held::default() };
        tokio::select! {
            biased;
            stopped = self.stopped() => Err(stopped),
            sent = self.records.send(record) => {
                self.said += 1;
                sent.map_err(|_| Stopped { signal: SIGKILL })
            }
        }
    }

    async fn write(&mut self, text: &str) -> Result<(), Stopped> {
        for token in tokens(text) {
            self.say(AgentEvent::Text(token)).await?;
        }
        Ok(())
    }

    /// Waits for the answer to a request: one of its options, or none.
    async fn answer(&mut self, request: &PermissionRequest) -> Result<Option<PermissionOption>, Stopped> {
        loop {
            let mut inputs = self.inputs.take();
            let input = tokio::select! {
                biased;
                stopped = self.stopped() => return Err(stopped),
                Some(Some(input)) = OptionFuture::from(inputs.as_mut().map(|inputs| inputs.recv())) => input,
            };
            self.inputs = inputs;
            let Input::Line(line) = input else { continue };
            let told: Value = serde_json::from_slice(&line).unwrap_or_default();
            if told["request"] == request.request {
                let option = request.options.iter().find(|option| told["option"] == option.id);
                return Ok(option.cloned());
            }
        }
    }

    /// Waits until the agent has to stop: on request, or because the reader is gone.
    async fn stopped(&self) -> Stopped {
        tokio::select! {
            biased;
            () = self.control.killed() => Stopped { signal: SIGKILL },
            () = self.control.asked() => Stopped { signal: SIGTERM },
            () = self.control.left() => Stopped { signal: SIGKILL },
            () = self.records.closed() => Stopped { signal: SIGKILL },
        }
    }
}

/// The text, cut off after a limit.
fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

/// Splits a text into pieces as a model would send them: words with the space behind them, long ones split.
fn tokens(text: &str) -> impl Iterator<Item = String> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut end = rest.len();
        for (count, (at, c)) in rest.char_indices().enumerate() {
            if count == TOKEN_CHARS {
                end = at;
                break;
            }
            if c.is_whitespace() {
                end = at + c.len_utf8();
                break;
            }
        }
        let (token, behind) = rest.split_at(end);
        rest = behind;
        (!token.is_empty()).then(|| token.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_directives_only_at_the_beginning_and_only_as_words() {
        for (message, directive) in [
            ("hello", None),
            ("say /hang", None),
            ("/usr/bin/env", None),
            ("/", None),
            ("/2", None),
            ("/hang", Some(Directive::Hang)),
            ("  /tool\nplease", Some(Directive::Tool)),
            ("/slow 3", Some(Directive::Slow(3))),
            ("/slow 100000", Some(Directive::Slow(100_000))),
            ("/ask hello", Some(Directive::Ask("hello".to_owned()))),
            ("/exit 7", Some(Directive::Exit(7))),
            ("/fail the disk is full", Some(Directive::Fail("the disk is full".to_owned()))),
        ] {
            assert_eq!(Directive::of(message), directive, "{message}");
        }
        for message in ["/slow", "/slow 0", "/slow 100001", "/slow many", "/exit 256", "/exit -1", "/dance"] {
            assert!(matches!(Directive::of(message), Some(Directive::Unknown(_))), "{message}");
        }
    }

    #[test]
    fn tokens_are_short_and_lose_nothing() {
        for text in ["", "a", "two words", "  lead", "Donaudampfschifffahrtsgesellschaft ü", "line\nbreak\n"] {
            let pieces: Vec<String> = tokens(text).collect();
            assert_eq!(pieces.concat(), text);
            assert!(pieces.iter().all(|p| p.chars().count() <= TOKEN_CHARS), "{pieces:?}");
        }
    }
}
