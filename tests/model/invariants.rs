//! What must be true of the file after every operation. Read through a separate read-only connection, so that nothing here
//! depends on the store.

use std::collections::BTreeSet;

use rusqlite::{Connection, OpenFlags, Row};

use crate::ops::{AGENTS, SLOT_BOUND_AGENT, WORKSPACES};
use crate::picture::{Message, Picture, Place, Run, Session};
use crate::reference::{MessageName, Model, index, key};

/// Remembers what must not change any more.
pub struct Observer {
    conn: Connection,
    pub seen: Picture,
}

impl Observer {
    pub fn new(path: &std::path::Path) -> Self {
        let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        conn.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
        Self { conn, seen: Picture::default() }
    }

    fn list<T>(&self, sql: &str, row: impl Fn(&Row<'_>) -> rusqlite::Result<T>) -> Vec<T> {
        self.conn.prepare(sql).unwrap().query_map([], row).unwrap().map(Result::unwrap).collect()
    }

    fn read(&self) -> Picture {
        Picture {
            sessions: self.list(
                "SELECT key, workspace, last_seq, waiting_since, close_when_idle, idle_ttl_ms, slot_bound,
                     waiting_since IS NOT NULL AND reclaims FROM sessions ORDER BY key",
                |row| {
                    Ok(Session {
                        key: row.get(0)?,
                        workspace: row.get(1)?,
                        last_seq: row.get(2)?,
                        waiting_since: row.get(3)?,
                        closing: row.get(4)?,
                        ttl: row.get(5)?,
                        slot_bound: row.get(6)?,
                        reclaims: row.get(7)?,
                    })
                },
            ),
            runs: self.list(
                // Message keys have gaps: an upsert that updates has used one, too.
                "SELECT key, session_key, (SELECT count(*) FROM messages m WHERE m.key <= runs.message_key), workspace, agent,
                     slot_key, status, priority, not_before, ready, cancel_requested_at, settled_at, lease_worker, lease_token, lease_expires_at, first_seq, last_seq, said,
                     source_offset, front
                 FROM runs ORDER BY key",
                |row| {
                    Ok(Run {
                        key: row.get(0)?,
                        session: row.get(1)?,
                        message: row.get(2)?,
                        workspace: row.get(3)?,
                        agent: row.get(4)?,
                        slot: row.get(5)?,
                        status: row.get(6)?,
                        priority: row.get(7)?,
                        not_before: row.get(8)?,
                        ready: row.get(9)?,
                        cancel_requested_at: row.get(10)?,
                        settled_at: row.get(11)?,
                        worker: row.get(12)?,
                        token: row.get(13)?,
                        lease_expires_at: row.get(14)?,
                        first_seq: row.get(15)?,
                        last_seq: row.get(16)?,
                        said: row.get(17)?,
                        source_offset: row.get(18)?,
                        front: row.get(19)?,
                    })
                },
            ),
            places: self.list(
                "SELECT session_key, slot_key, state, idle_ttl_ms, last_active_at, ended_at FROM assignments ORDER BY key",
                |row| {
                    Ok(Place {
                        session: row.get(0)?,
                        slot: row.get(1)?,
                        state: row.get(2)?,
                        ttl: row.get(3)?,
                        last_active_at: row.get(4)?,
                        ended_at: row.get(5)?,
                    })
                },
            ),
            messages: self.list(
                "SELECT session_key, id, run_key, position, superseded_at IS NOT NULL, parts ->> '$[0].text'
                 FROM messages ORDER BY key",
                |row| {
                    Ok(Message {
                        session: row.get(0)?,
                        id: row.get(1)?,
                        run: row.get(2)?,
                        position: row.get(3)?,
                        hidden: row.get(4)?,
                        text: row.get(5)?,
                    })
                },
            ),
            permissions: self.list(
                "SELECT run_key, request, state, expires_at, answered_at FROM permissions ORDER BY key",
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)),
            ),
            slots: self.list("SELECT key, workspace, enabled FROM slots ORDER BY key", |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            }),
            workers: self.list("SELECT key FROM workers", |row| row.get(0)).into_iter().collect(),
            events: self.list(
                "SELECT session_key, seq, run_key, event ->> 'type' FROM events ORDER BY session_key, seq",
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
            ),
            lines: self
                .list(
                    "SELECT run_key, json_group_array(event ->> 'line' ORDER BY seq) FROM events
                     WHERE event ->> 'line' IS NOT NULL GROUP BY run_key",
                    |row| Ok((row.get(0)?, serde_json::from_str(&row.get::<_, String>(1)?).unwrap())),
                )
                .into_iter()
                .collect(),
            settled: self
                .list("SELECT first_seq, last_seq, * FROM runs WHERE settled_at IS NOT NULL", |row| {
                    let columns = row.as_ref().column_names();
                    let span = row.get::<_, Option<i64>>(0)?.zip(row.get(1)?);
                    let fixed = (2..columns.len()).filter(|i| !matches!(columns[*i], "first_seq" | "last_seq"));
                    Ok((row.get("key")?, (fixed.map(|i| row.get(i)).collect::<Result<_, _>>()?, span)))
                })
                .into_iter()
                .collect(),
        }
    }

    /// Reads the file, and compares it with its earlier content, with the invariants of every file, and with the model.
    pub fn look(&mut self, model: &Model) {
        let new = self.read();
        self.nothing_settled_has_changed(&new);
        logs_are_whole(&new);
        spans_are_well_formed(&new);
        what_an_agent_said_is_there_once(&new);
        one_at_a_time(&new);
        the_right_runs_are_ready(&new);
        places_are_right(&new);
        messages_are_where_they_belong(&new);
        questions_are_of_running_runs(&new);
        let broken = self.list("PRAGMA foreign_key_check", |row| row.get::<_, String>(0));
        assert!(broken.is_empty(), "rows that point nowhere in {broken:?}");
        as_the_model_says(&new, model);
        self.seen = new;
    }

    /// The id of a permission, if there is one.
    pub fn permission_id(&self, key: i64) -> Option<String> {
        self.list(&format!("SELECT id FROM permissions WHERE key = {key}"), |row| row.get(0)).pop()
    }

    /// Only at the end of a case, because it reads every page.
    pub fn is_undamaged(&self) {
        assert_eq!(self.list("PRAGMA integrity_check", |row| row.get::<_, String>(0)), ["ok"]);
    }

    fn nothing_settled_has_changed(&self, new: &Picture) {
        for (run, (row, span)) in &self.seen.settled {
            let (now, now_span) = new.settled.get(run).expect("a settled run stays");
            assert_eq!(row, now, "settled run {run} has changed");
            assert!(span.is_none() || span == now_span, "the span of settled run {run} has changed");
        }
        for (old, new) in self.seen.permissions.iter().zip(&new.permissions) {
            assert!(old.2 == "pending" || old == new, "a decision has changed: {old:?} to {new:?}");
        }
        for (old, new) in self.seen.runs.iter().zip(&new.runs) {
            assert!(old.token <= new.token, "the lease token of run {} went back", old.key);
        }
        // Events are only added: the earlier log is still a prefix of each log.
        let log = |picture: &Picture, session| {
            picture.events.iter().filter(|event| event.0 == session).cloned().collect::<Vec<_>>()
        };
        for session in &self.seen.sessions {
            let (old, new) = (log(&self.seen, session.key), log(new, session.key));
            assert!(new.starts_with(&old), "the log of session {} was changed: {old:?} → {new:?}", session.key);
        }
    }
}

fn logs_are_whole(picture: &Picture) {
    for session in &picture.sessions {
        let seqs: Vec<_> = picture.events.iter().filter(|event| event.0 == session.key).map(|event| event.1).collect();
        assert_eq!(seqs, (1..=session.last_seq).collect::<Vec<_>>(), "seq of session {}", session.key);
    }
    assert!(picture.events.iter().all(|event| picture.sessions.iter().any(|session| session.key == event.0)));
}

fn spans_are_well_formed(picture: &Picture) {
    for run in &picture.runs {
        let span: Vec<_> = picture.events.iter().filter(|event| event.2 == run.key).collect();
        let seqs: Vec<_> = span.iter().map(|event| event.1).collect();
        let named: Vec<_> = run.first_seq.zip(run.last_seq).map_or(vec![], |(first, last)| (first..=last).collect());
        assert_eq!(seqs, named, "the events of run {} are not its span", run.key);
        assert!(span.iter().all(|event| event.0 == run.session), "run {} speaks elsewhere", run.key);
        let at = |kind: &str| span.iter().enumerate().filter(|(_, e)| e.3 == kind).map(|(i, _)| i).collect::<Vec<_>>();
        if span.is_empty() {
            assert_ne!(run.status, "running", "run {} is running without a start", run.key);
            let in_midst =
                |other: &Run| other.session == run.session && other.is_unsettled() && other.first_seq.is_some();
            let excused = run.status == "cancelled" && picture.runs.iter().any(in_midst);
            assert!(run.is_unsettled() || excused, "settled run {} has no span", run.key);
        } else {
            assert_eq!(at("start"), [0], "run {} begins once", run.key);
            let end = if run.is_unsettled() { vec![] } else { vec![span.len() - 1] };
            assert_eq!(at("finish"), end, "run {} ends once, and last", run.key);
        }
    }
}

/// Whichever worker reads the agent, and wherever the previous one stopped: each line is there once, in order, up to the offset.
fn what_an_agent_said_is_there_once(picture: &Picture) {
    for run in &picture.runs {
        let lines = picture.lines.get(&run.key).map_or(&[][..], |lines| lines);
        let agents = lines.chunk_by(|a, b| a.split(':').next() == b.split(':').next());
        let mut newest = 0;
        for said in agents {
            let agent = said[0].split(':').next().unwrap();
            newest = key(said.len()) - 1;
            let script: Vec<_> = (0..newest).map(|line| format!("{agent}:{line}")).collect();
            assert_eq!(said, script, "what agent {agent} of run {} said", run.key);
        }
        // A new agent has said nothing yet, and neither has the agent of a run that was put back.
        assert!(run.source_offset == newest || run.source_offset == 0, "the offset of run {}: {lines:?}", run.key);
    }
}

fn one_at_a_time(picture: &Picture) {
    let mut taken = BTreeSet::new();
    for run in picture.runs.iter().filter(|run| run.status == "running") {
        assert!(taken.insert(("session", run.session, "")), "two running runs in session {}", run.session);
        let place = match run.slot {
            Some(slot) => ("slot", slot, ""),
            None => ("shared agent", 0, run.workspace.as_str()),
        };
        assert!(taken.insert(place), "two running runs in {place:?}");
        let worker = run.worker.expect("a running run has a lease");
        assert!(picture.workers.contains(&worker), "nobody holds the lease of run {}", run.key);
    }
}

/// A queue with too few ready runs is stuck for ever; one with too many breaks the order.
fn the_right_runs_are_ready(picture: &Picture) {
    for session in &picture.sessions {
        let mut queue: Vec<_> =
            picture.runs.iter().filter(|run| run.session == session.key && run.status == "queued").collect();
        queue.sort_by_key(|run| (run.first_seq.is_none(), -run.front, -run.priority, run.key));
        let running = picture.runs.iter().any(|run| run.session == session.key && run.status == "running");
        let placed = picture.places.iter().any(|place| place.session == session.key && place.ended_at.is_none());
        let wanted: Vec<_> = queue.first().filter(|_| placed && !running).map(|run| run.key).into_iter().collect();
        let ready = picture.runs.iter().filter(|run| run.session == session.key && run.ready);
        let ready: Vec<_> = ready.map(|run| run.key).collect();
        assert_eq!(ready, wanted, "ready runs of session {}", session.key);
    }
}

fn places_are_right(picture: &Picture) {
    let live = || picture.places.iter().filter(|place| place.ended_at.is_none());
    let (mut sessions, mut slots) = (BTreeSet::new(), BTreeSet::new());
    for place in live() {
        assert!(sessions.insert(place.session), "two places for session {}", place.session);
        assert!(place.slot.is_none_or(|slot| slots.insert(slot)), "two sessions in slot {:?}", place.slot);
        let busy = picture.runs.iter().any(|run| run.session == place.session && run.is_unsettled());
        let state = if busy { "active" } else { "idle" };
        assert_eq!(place.state, state, "the place of session {}", place.session);
    }
    for session in &picture.sessions {
        let of_it = || picture.runs.iter().filter(|run| run.session == session.key);
        let (placed, queued) = (sessions.contains(&session.key), of_it().any(|run| run.status == "queued"));
        assert!(placed || !of_it().any(|run| run.status == "running"), "session {} runs nowhere", session.key);
        // A session with a queued run has a place or waits in line for one; no other session waits in line.
        assert_eq!(session.waiting_since.is_some(), queued && !placed, "session {} in the line", session.key);
        // While it waits no slot is free; and while it reclaims, none is idle except those of agents that are keyed by slot.
        let may_go = |slot: i64| {
            let holder = live().find(|place| place.slot == Some(slot));
            holder
                .is_none_or(|place| session.reclaims && place.state == "idle" && !is_slot_bound(picture, place.session))
        };
        let free = |slot: &&(i64, String, bool)| slot.1 == session.workspace && slot.2 && may_go(slot.0);
        let free = picture.slots.iter().find(free);
        assert!(session.waiting_since.is_none() || free.is_none(), "session {} waits for {free:?}", session.key);
    }
}

fn is_slot_bound(picture: &Picture, session: i64) -> bool {
    picture.sessions[index(session)].slot_bound
}

fn messages_are_where_they_belong(picture: &Picture) {
    for (i, message) in picture.messages.iter().enumerate() {
        let Some(run) = message.run.map(|run| &picture.runs[index(run)]) else {
            let began = picture.runs.iter().filter(|run| run.message == key(i)).filter_map(|run| run.first_seq).max();
            assert_eq!(message.position, began, "message {} is not where its newest run began", message.id);
            continue;
        };
        assert_eq!(message.position, run.first_seq, "the answer of run {}", run.key);
        let newer = picture.runs.iter().any(|other| other.message == run.message && other.key > run.key);
        let asked = &picture.messages[index(run.message)];
        assert!(message.hidden || (!newer && !asked.hidden), "run {} answers what was replaced", run.key);
    }
}

fn questions_are_of_running_runs(picture: &Picture) {
    for (run, request, state, ..) in &picture.permissions {
        let status = &picture.runs[index(*run)].status;
        assert!(state != "pending" || status == "running", "question {request} is open, but run {run} is {status}");
    }
}

/// The rows that the model predicts.
fn as_the_model_says(picture: &Picture, model: &Model) {
    let sessions = (1..).zip(&model.sessions).map(|(key, session)| Session {
        key,
        workspace: WORKSPACES[session.workspace].to_owned(),
        last_seq: i64::try_from(session.log.len()).unwrap(),
        waiting_since: session.waiting_since,
        slot_bound: session.agent == SLOT_BOUND_AGENT,
        reclaims: session.waiting_since.is_some() && session.reclaims,
        closing: session.closing,
        ttl: session.ttl,
    });
    assert_eq!(picture.sessions, sessions.collect::<Vec<_>>());
    let runs = (1..).zip(&model.runs).map(|(number, run)| Run {
        key: number,
        session: key(run.session),
        message: key(run.message),
        workspace: WORKSPACES[model.sessions[run.session].workspace].to_owned(),
        agent: AGENTS[model.sessions[run.session].agent].to_owned(),
        slot: run.slot,
        status: run.status.as_str().to_owned(),
        priority: run.priority,
        front: run.front,
        not_before: run.not_before,
        ready: model.is_ready(number),
        cancel_requested_at: run.cancel_requested_at,
        settled_at: run.settled_at,
        worker: run.lease.map(|(worker, _)| worker),
        token: run.token,
        lease_expires_at: run.lease.map(|(_, end)| end),
        first_seq: run.span.map(|(first, _)| first),
        last_seq: run.span.map(|(_, last)| last),
        said: run.said,
        source_offset: run.source_offset,
    });
    assert_eq!(picture.runs, runs.collect::<Vec<_>>());
    let places = model.places.iter().map(|place| Place {
        session: key(place.session),
        slot: place.slot,
        state: match place.ended {
            Some((how, _)) => how.to_owned(),
            None => if model.is_busy(place.session) { "active" } else { "idle" }.to_owned(),
        },
        ttl: place.ttl,
        last_active_at: place.last_active_at,
        ended_at: place.ended.map(|(_, at)| at),
    });
    assert_eq!(picture.places, places.collect::<Vec<_>>());
    let messages = model.messages.iter().zip(&picture.messages).map(|(message, stored)| Message {
        session: key(message.session),
        id: match message.name {
            MessageName::Sent(number) => format!("m{number}"),
            // Holds the run's id, which the model cannot predict.
            MessageName::AnswerOf(_) => stored.id.clone(),
        },
        run: match message.name {
            MessageName::Sent(_) => None,
            MessageName::AnswerOf(run) => Some(run),
        },
        position: message.position,
        hidden: message.hidden,
        text: message.text.clone(),
    });
    assert_eq!(picture.messages, messages.collect::<Vec<_>>());
    assert_eq!(picture.messages.len(), model.messages.len());
    let permissions = model.permissions.iter().map(|asked| {
        (asked.run, asked.request.to_string(), asked.state.to_owned(), asked.expires_at, asked.answered_at)
    });
    assert_eq!(picture.permissions, permissions.collect::<Vec<_>>());
    let slots = (1..).zip(&model.slots).map(|(key, slot)| (key, WORKSPACES[slot.workspace].to_owned(), slot.enabled));
    assert_eq!(picture.slots, slots.collect::<Vec<_>>());
    assert_eq!(picture.workers, model.workers);
    let logs = (1..).zip(&model.sessions).flat_map(|(key, session)| {
        (1..).zip(&session.log).map(move |(seq, (run, kind))| (key, seq, *run, (*kind).to_owned()))
    });
    assert_eq!(picture.events, logs.collect::<Vec<_>>());
    let lines = (1..).zip(&model.runs).filter(|(_, run)| !run.lines.is_empty());
    assert_eq!(picture.lines, lines.map(|(key, run)| (key, run.lines.clone())).collect());
}
