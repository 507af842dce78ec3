//! The checks at the end: the promises, compared with what clients, readers and the agents themselves recorded.
//!
//! Always: every check is a pure function of the evidence, and `check/tests.rs` shows each of them failing.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::journal::{Findings, Journal};
use super::reader::{EventsRead, digest};
use super::record::{MARK, Record, Records, Said, joined};
use super::workdir::{Workdir, is_of_gateway, is_relayed};
use super::writer::Sent;
use mainstay::backend::{Backend, BackendState};
use mainstay::chunk::Chunk;
use mainstay::clock::Timestamp;
use mainstay::engine::{Engine, MessageCursor, RunFilter};
use mainstay::event::Event;
use mainstay::failure::ErrorClass;
use mainstay::id::SessionId;
use mainstay::message::{Message, Role};
use mainstay::run::{Cause, Run, Status};
use mainstay::slot::Slot;

/// A question of an agent is answered within this time, however often the engine is killed meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Rows per page.
const PAGE: i64 = 500;

/// What was recorded outside of the database.
#[derive(Default)]
pub(super) struct Evidence {
    pub(super) sent: Vec<Sent>,
    pub(super) read: Vec<EventsRead>,
    /// Runs whose agent lost its shim.
    pub(super) without_shim: BTreeSet<String>,
    /// The times between which the gateway may have been down.
    pub(super) gateway_down: Vec<(Timestamp, Timestamp)>,
}

/// Runs all checks, one session at a time.
pub(super) async fn all(
    engine: &Engine,
    workdir: &Workdir,
    evidence: &Evidence,
    journal: &Journal,
) -> anyhow::Result<Findings> {
    let runs = runs(engine).await?;
    let records = Records::list(&workdir.records())?;
    let mut found = Findings { agents: u64::try_from(records.count())?, ..Findings::default() };
    for run in &runs {
        *found.runs.entry(run.status.as_str()).or_default() += 1;
        if run.status == Status::Completed {
            *found.completed_by.entry(run.agent.to_string()).or_default() += 1;
        }
        *found.causes.entry(run.cause.clone().unwrap_or_default()).or_default() += 1;
        found.runs_tried_again += u64::from(run.attempts > 1);
    }
    messages(&evidence.sent, &runs, journal);
    slots(&engine.list_slots().await?, journal);
    let warm = engine.list_backends().await?;
    found.backends = u64::try_from(warm.len())?;
    backends(&warm, journal);

    let mut by_session: BTreeMap<SessionId, Vec<&Run>> = BTreeMap::new();
    for run in &runs {
        by_session.entry(run.session_id.clone()).or_default().push(run);
    }
    for (session, runs) in by_session {
        let events = events(engine, &session).await?;
        found.events += u64::try_from(events.len())?;
        log(&session, &events, &runs, journal);
        for read in evidence.read.iter().filter_map(|read| read.get(session.as_str())) {
            reading(&session, &events, read, journal);
        }
        let answers = answers(engine, &session).await?;
        for run in runs {
            let stored = stored(&events, run);
            let agents = records.of(&run.id.to_string())?;
            for agent in &agents {
                found.answers += agent.answers;
                found.cuts += agent.cuts;
                found.unheard += u64::try_from(agent.unheard.len())?;
            }
            words(run, &stored, &agents, journal);
            question(run, &agents, journal);
            ending(run, evidence, journal);
            answer(run, &stored, answers.get(run.response_id.as_str()).map(String::as_str), journal);
        }
    }
    Ok(found)
}

async fn runs(engine: &Engine) -> anyhow::Result<Vec<Run>> {
    let (mut runs, mut filter) = (Vec::new(), RunFilter::default());
    loop {
        let page = engine.list_runs(&filter, PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok(runs) };
        filter.before = Some(*last);
        runs.extend(page.into_iter().map(|(_, run)| run));
    }
}

async fn events(engine: &Engine, session: &SessionId) -> anyhow::Result<Vec<Event>> {
    let mut events: Vec<Event> = Vec::new();
    loop {
        let after = events.last().map_or(0, |event| event.seq);
        let page = engine.session_events(session, after, PAGE).await?;
        if page.is_empty() {
            return Ok(events);
        }
        events.extend(page);
    }
}

/// The agents' text in each answer, by message id.
async fn answers(engine: &Engine, session: &SessionId) -> anyhow::Result<BTreeMap<String, String>> {
    let (mut answers, mut after) = (BTreeMap::new(), Some(MessageCursor::START));
    while let Some(cursor) = after {
        let page = engine.list_messages(session, cursor, PAGE, true).await?;
        let of_agents = page.messages.iter().filter(|message| message.role == Role::Assistant);
        answers.extend(of_agents.map(|message| (message.id.to_string(), text(message))));
        after = page.next;
    }
    Ok(answers)
}

/// The text of a message, without spaces.
fn text(message: &Message) -> String {
    let parts: Vec<serde_json::Value> = serde_json::from_str(message.parts.get()).unwrap_or_default();
    let texts = parts.iter().filter(|part| part["type"] == "text").filter_map(|part| part["text"].as_str());
    let of_agent = texts.filter(|text| text.trim_start().starts_with(MARK));
    of_agent.flat_map(str::split_whitespace).collect()
}

/// The stored words of an agent.
fn stored(events: &[Event], run: &Run) -> Vec<Said> {
    let of_run = events.iter().filter(|event| event.run_id == run.id);
    let chunks = of_run.filter_map(|event| serde_json::from_str::<Chunk>(event.event.get()).ok());
    joined(chunks).into_iter().flat_map(Said::of_chunk).collect()
}

/// Every acknowledged message has the run that it was acknowledged with, and no other; a refused message has
/// none.
fn messages(sent: &[Sent], runs: &[Run], journal: &Journal) {
    let mut by_message: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for run in runs {
        by_message.entry((run.session_id.as_str(), run.message_id.as_str())).or_default().push(run.id.to_string());
    }
    for Sent { session, message, run } in sent {
        let found = by_message.remove(&(session, message)).unwrap_or_default();
        if !found.iter().eq(run) {
            let detail = format!("{message} was answered with {run:?}, and has {found:?}");
            journal.violation("a message has the one run that it was acknowledged with", detail);
        }
    }
    for ((session, message), runs) in by_message {
        if runs.len() > 1 {
            journal.violation("a message has one run", format!("{session} {message}: {runs:?}"));
        }
    }
}

fn slots(slots: &[Slot], journal: &Journal) {
    for slot in slots.iter().filter(|slot| slot.state == "active" || slot.run_id.is_some()) {
        journal.violation("a slot is free when nothing runs", format!("{slot:?}"));
    }
}

fn backends(backends: &[Backend], journal: &Journal) {
    for backend in backends.iter().filter(|backend| backend.state != BackendState::Stopped) {
        journal.violation("no agent is kept warm when no engine is there", format!("{backend:?}"));
    }
}

/// The log has no gap, and each run's span is contiguous with one end.
fn log(session: &SessionId, events: &[Event], runs: &[&Run], journal: &Journal) {
    for (event, seq) in events.iter().zip(1..) {
        if event.seq != seq {
            journal.violation("a log has no gap", format!("{session}: {} where {seq} should be", event.seq));
            break;
        }
    }
    for run in runs {
        let of_run: Vec<_> = events.iter().filter(|event| event.run_id == run.id).collect();
        let (first, last) = (of_run.first().map(|event| event.seq), of_run.last().map(|event| event.seq));
        let length = last.zip(first).map(|(last, first)| last - first + 1);
        let is_whole = length.is_some_and(|length| usize::try_from(length) == Ok(of_run.len()));
        if !is_whole || (first, last) != (run.first_seq, run.last_seq) {
            journal
                .violation("a run is one piece of its session", format!("{} {first:?} to {last:?}: {run:?}", run.id));
        }
        let is = |event: &&Event, kind: &str| event.event.get().starts_with(&format!("{{\"type\":\"{kind}\""));
        let ends: Vec<_> = of_run.iter().filter(|event| is(event, "finish")).map(|event| event.seq).collect();
        if !of_run.first().is_some_and(|event| is(event, "start")) || last.is_none() || !ends.iter().eq(&last) {
            journal.violation("a run begins once and ends once, at its end", format!("{}: ends at {ends:?}", run.id));
        }
    }
}

/// What a reader got is what is stored.
fn reading(session: &SessionId, events: &[Event], read: &BTreeMap<i64, u64>, journal: &Journal) {
    let stored: BTreeMap<_, _> = events.iter().map(|event| (event.seq, digest(event.event.get()))).collect();
    for (seq, digest) in read {
        if stored.get(seq) != Some(digest) {
            let what = if stored.contains_key(seq) { "is stored otherwise" } else { "is not stored" };
            journal.violation("what a reader got is stored", format!("{session}: {seq} {what}"));
        }
    }
}

/// An agent's words are stored in order, once, and by one agent per run; if an agent did not end by itself, as many of them as
/// were read.
fn words(run: &Run, stored: &[Said], agents: &[Record], journal: &Journal) {
    for (agent, place) in agents.iter().flat_map(|agent| agent.met.iter().map(move |place| (agent, place))) {
        let Record { agent, .. } = agent;
        journal.violation("two agents never live in one place", format!("{agent:?} met another in its {place}"));
    }
    // Agents before the last one were proven dead and had said nothing: everything stored is from the last.
    let (said, ended) = agents.last().map_or((&[][..], None), |agent| (&agent.said[..], agent.ended));
    let unheard = agents.last().map(Unheard::of).unwrap_or_default();
    let (lost, stored, said) = (unheard.lost(stored), unheard.without(stored), unheard.without(said));
    let cause = cause_of(run);
    let is_same =
        |stored: &Said, said: &Said| stored == said || (cause != Some(Cause::Finished) && stored.distrusts(said));
    let differs = |at: &usize| !stored.get(*at).zip(said.get(*at)).is_some_and(|(stored, said)| is_same(stored, said));
    if let Some(at) = (0..stored.len()).find(differs) {
        let shown = |words: &[Said]| words.get(at).map(Said::shown);
        let detail = format!(
            "{}: word {at} of {} is {:?}, and the last of {} agents said {:?}",
            run.id,
            stored.len(),
            shown(&stored),
            agents.len(),
            shown(&said)
        );
        journal.violation("what is stored is what the agent said", detail);
        return;
    }
    // The agent may be killed after it recorded a word and before it wrote it.
    let may_miss = match cause {
        Some(Cause::Finished) => 0,
        // These words go to the client in the bridge or relay; the rest is lost with the process that ended in between.
        _ if is_relayed(run.agent.as_str()) => usize::MAX,
        Some(Cause::ExitCode) => 0,
        Some(Cause::Signal) => 1,
        _ => usize::MAX,
    };
    // Words said while the connection was broken come with the end of the turn, if they belong to its last message.
    let missing = said.len() - stored.len() + if cause == Some(Cause::Finished) { lost } else { 0 };
    if missing > may_miss {
        let detail = format!("{} ({}): {missing} of {} words are missing", run.id, run.status, said.len());
        journal.violation("what an agent said is stored", detail);
    }
    let explained = match cause {
        Some(Cause::Finished) => ended == Some(0),
        // By its record it failed, or it was ended during the turn.
        Some(Cause::AgentError) => is_of_lost_agent(run) || ended.is_some_and(|code| code > 0),
        Some(Cause::ExitCode) if is_relayed(run.agent.as_str()) => ended.is_none(),
        Some(Cause::ExitCode) => ended.map(i64::from) == run.exit_code,
        Some(Cause::NoOutput) => said.is_empty(),
        _ => true,
    };
    if !explained {
        let detail = format!("{}: {cause:?}, exit code {:?}, by its record {ended:?}", run.id, run.exit_code);
        journal.violation("a run ends as its agent did", detail);
    }
}

/// Whether it failed because its backend was not there, or was lost.
fn is_of_lost_agent(run: &Run) -> bool {
    match run.error_class {
        Some(ErrorClass::Crashed) => true,
        // Backends that engines start are restarted.
        Some(ErrorClass::AgentMissing) => is_of_gateway(run.agent.as_str()),
        _ => false,
    }
}

/// What an agent said while its connection was broken: it may still be stored, from later output.
#[derive(Default)]
struct Unheard<'a> {
    words: BTreeSet<&'a Said>,
    /// Those in the text of its last message.
    last: Vec<&'a Said>,
}

impl<'a> Unheard<'a> {
    fn of(agent: &'a Record) -> Self {
        let unheard = |(at, said): (usize, &'a Said)| agent.unheard.contains(&at).then_some(said);
        let is_text = |said: &Said| matches!(said, Said::Text(_));
        let end = agent.said.iter().rposition(is_text).map_or(0, |at| at + 1);
        let is_tool = |said: &Said| matches!(said, Said::ToolStarted { .. });
        let begin = agent.said[..end].iter().rposition(is_tool).unwrap_or(0);
        let last = agent.said.iter().enumerate().take(end).skip(begin).filter(|(_, said)| is_text(said));
        Self {
            words: agent.said.iter().enumerate().filter_map(unheard).collect(),
            last: last.filter_map(unheard).collect(),
        }
    }

    /// What was said or stored, without these words. Each is removed once: a duplicate remains.
    fn without(&self, all: &[Said]) -> Vec<Said> {
        let mut words = self.words.clone();
        all.iter().filter(|said| !words.remove(said)).cloned().collect()
    }

    /// How many words of the last message are not stored.
    fn lost(&self, stored: &[Said]) -> usize {
        self.last.iter().filter(|said| !stored.contains(said)).count()
    }
}

fn cause_of(run: &Run) -> Option<Cause> {
    Cause::ALL.into_iter().find(|cause| run.cause.as_deref() == Some(cause.as_str()))
}

/// An agent that asks whether it may use a tool gets an answer, even if another engine executes its run by then. An agent that
/// was killed, or whose relay was, waits no more.
fn question(run: &Run, agents: &[Record], journal: &Journal) {
    let asked = agents.last().and_then(|agent| agent.asked);
    let Some(asked) = asked.filter(|_| !matches!(cause_of(run), Some(Cause::Signal | Cause::ShimLost))) else { return };
    let waited = run.settled_at.map(|at| at.since(Timestamp::from_millis(asked)));
    if waited.is_none_or(|waited| waited > ANSWER_TIMEOUT) {
        let detail = format!("{} ({:?}) ended {waited:?} after its agent asked", run.id, run.cause);
        journal.violation("an agent that asks is answered", detail);
    }
}

/// A run ends for a reason that existed; a cancel that was stored before its end is the reason.
fn ending(run: &Run, evidence: &Evidence, journal: &Journal) {
    let cause = cause_of(run);
    let legal = match cause {
        Some(Cause::Cancelled) => run.cancel_requested_at.is_some(),
        _ if run.cancel_requested_at.is_some() => false,
        // Its workers were killed so often before they could start its agent that it is not retried.
        Some(Cause::WorkerLost) => run.attempts >= 3,
        Some(Cause::ShimLost) => evidence.without_shim.contains(&run.id.to_string()),
        Some(Cause::AgentError) if is_of_gateway(run.agent.as_str()) && is_of_lost_agent(run) => {
            let (began, ended) = (run.claimed_at, run.settled_at);
            evidence.gateway_down.iter().any(|(from, to)| ended.as_ref() >= Some(from) && began.as_ref() <= Some(to))
        }
        Some(Cause::AgentError) => is_relayed(run.agent.as_str()),
        Some(cause) => {
            use Cause::{Internal, NotAllowed, OutputLimit, SpawnFailed, Unconfigured, Unstorable};
            !matches!(cause, OutputLimit | SpawnFailed | Unconfigured | NotAllowed | Unstorable | Internal)
        }
        None => false,
    };
    if !legal || cause.map(Cause::status) != Some(run.status) || !run.status.is_settled() {
        let detail = format!("{} is {}, {:?}: {:?}", run.id, run.status, run.cause, run.error);
        journal.violation("a run ends for a reason that there was", detail);
    }
}

/// The message that clients get is built from what is stored.
fn answer(run: &Run, stored: &[Said], answer: Option<&str>, journal: &Journal) {
    let words = stored.iter().filter_map(|said| if let Said::Text(text) = said { Some(text.as_str()) } else { None });
    let text: String = words.flat_map(str::split_whitespace).collect();
    if run.status != Status::Queued && answer.unwrap_or_default() != text {
        let detail = format!("{}: {} bytes instead of {}", run.response_id, answer.map_or(0, str::len), text.len());
        journal.violation("a message is what its events say", detail);
    }
}
