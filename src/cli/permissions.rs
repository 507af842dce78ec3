//! `permissions`: the questions that agents ask before they use a tool, and answering them. Also how `run` asks at the terminal.

use std::collections::VecDeque;
use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::Context;
use tokio::sync::mpsc;

use super::exit::Exit;
use super::ids;
use super::plain::one_line;
use super::{PermissionsArgs, deciding, table};
use crate::chunk::Chunk;
use crate::engine::{Engine, EngineError, Followed, PermissionFilter};
use crate::permission::{Answer, Permission, PermissionState};
use crate::telemetry;

/// A longer input or title is cut.
const SHOWN_CHARS: usize = 400;

/// An answer as a person gives it: the id of an option, or `allow` or `deny`. An option with that id has precedence.
fn answer_of(permission: &Permission, word: &str) -> Answer {
    let is_option = permission.request.options.iter().any(|option| option.id == word);
    match word {
        _ if is_option => Answer::Option(word.to_owned()),
        "allow" => Answer::Approved(true),
        "deny" => Answer::Approved(false),
        _ => Answer::Option(word.to_owned()),
    }
}

pub(super) async fn run(
    engine: &Engine,
    args: &PermissionsArgs,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    if let [id, option] = &args.answer[..] {
        deciding::check().await?;
        let id = ids::permission(engine, id).await?;
        let answer = answer_of(&engine.permission(id).await?, option);
        let answered = engine.answer_permission(id, answer, &deciding::user(), args.reason.clone()).await;
        let permission = answered.context("failed to answer")?;
        match json {
            true => table::json(out, &permission)?,
            false => writeln!(out, "{id} {}", permission.state.as_str())?,
        }
        return Ok(Exit::Done);
    }
    let session = match &args.session {
        Some(session) => Some(ids::session(engine, session).await?),
        None => None,
    };
    let run = match &args.run {
        Some(run) => Some(ids::run(engine, run).await?),
        None => None,
    };
    // Without a filter: the pending questions.
    let state = args.state.or((!args.all).then_some(PermissionState::Pending));
    let filter = PermissionFilter { state, session, run, before: None };
    let permissions = engine.list_permissions(&filter, i64::from(args.list.limit)).await?;
    let permissions: Vec<_> = permissions.into_iter().map(|(_, permission)| permission).collect();
    table::list(engine, out, &permissions, json).await?;
    let is_person = !json && io::stderr().is_terminal();
    if is_person && permissions.iter().any(|permission| permission.state == PermissionState::Pending) {
        telemetry::say("(answer with: mainstay permissions --answer ID allow|deny|OPTION)\n");
    }
    Ok(Exit::Done)
}

/// Asks the person at the terminal what the agent of a run asks. Without a terminal, or if an agent gave the command, it does
/// nothing: the stream itself says how to answer.
pub(super) struct Asking {
    /// Lines that the person writes; none if stdin or stderr is no terminal.
    lines: Option<mpsc::Receiver<String>>,
    questions: VecDeque<Permission>,
}

impl Asking {
    pub(super) async fn new(json: bool) -> Self {
        let is_terminal = !json && io::stdin().is_terminal() && io::stderr().is_terminal();
        let is_person = is_terminal && deciding::check().await.is_ok();
        Self { lines: is_person.then(read_lines), questions: VecDeque::new() }
    }

    /// Collects the questions in some events.
    pub(super) async fn hear(&mut self, engine: &Engine, events: &[Followed]) -> anyhow::Result<()> {
        if self.lines.is_none() {
            return Ok(());
        }
        let was_asking = !self.questions.is_empty();
        let chunks = events.iter().filter_map(|event| serde_json::from_str::<Chunk>(&event.event).ok());
        for chunk in chunks {
            if let Chunk::ToolApprovalRequest { approval_id, .. } = chunk {
                let permission = engine.permission(approval_id.parse()?).await?;
                self.questions.extend(Some(permission).filter(|asked| asked.state == PermissionState::Pending));
            }
        }
        if !was_asking { self.ask(engine).await } else { Ok(()) }
    }

    /// Shows the next question that is still open.
    async fn ask(&mut self, engine: &Engine) -> anyhow::Result<()> {
        while let Some(asked) = self.questions.front() {
            if engine.permission(asked.id).await?.state == PermissionState::Pending {
                let request = &asked.request;
                let (title, input) = (one_line(&request.title, SHOWN_CHARS), request.input.to_string());
                telemetry::say(&format!("{title}: {}\nAllow it? [y/n] ", one_line(&input, SHOWN_CHARS)));
                return Ok(());
            }
            self.questions.pop_front();
        }
        Ok(())
    }

    /// The next line from the terminal, while a question is open.
    pub(super) async fn line(&mut self) -> Option<String> {
        match &mut self.lines {
            Some(lines) if !self.questions.is_empty() => lines.recv().await,
            _ => std::future::pending().await,
        }
    }

    /// Answers with the person's line; none means that stdin was closed.
    pub(super) async fn answer(&mut self, engine: &Engine, line: Option<String>) -> anyhow::Result<()> {
        let Some(line) = line else {
            self.lines = None;
            return Ok(());
        };
        let answer = match line.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Some(Answer::Approved(true)),
            "n" | "no" => Some(Answer::Approved(false)),
            _ => None,
        };
        if let Some(answer) = answer
            && let Some(asked) = self.questions.pop_front()
        {
            match engine.answer_permission(asked.id, answer, &deciding::user(), None).await {
                // Another answer was first.
                Err(error @ (EngineError::Decided(_) | EngineError::NotOffered(_))) => {
                    telemetry::say(&format!("{error}\n"));
                }
                answered => drop(answered.context("failed to answer")?),
            }
        }
        self.ask(engine).await
    }
}

/// The lines that the person writes. A separate thread reads them and is never joined, because only the end of this process
/// ends a read from a terminal.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    lines
}
