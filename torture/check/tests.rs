//! Each check on manipulated evidence: good evidence passes, and every kind of damage is reported as what it is.

use serde_json::value::RawValue;

use super::*;
use crate::record::Identity;
use mainstay::clock::Timestamp;
use mainstay::id::{MessageId, RunId};

/// A run of one session, with all evidence about it.
struct Scene {
    run: Run,
    others: Vec<Run>,
    events: Vec<Event>,
    agents: Vec<Record>,
    sent: Vec<Sent>,
    read: BTreeMap<i64, u64>,
    answer: Option<String>,
    slots: Vec<Slot>,
    evidence: Evidence,
}

const STREAM: [&str; 6] = [
    r##"{"type":"start","messageId":"a"}"##,
    r##"{"type":"text-start","id":"text-0"}"##,
    r##"{"type":"text-delta","id":"text-0","delta":"#7.0 "}"##,
    r##"{"type":"text-delta","id":"text-0","delta":"#7.1 "}"##,
    r##"{"type":"text-end","id":"text-0"}"##,
    r##"{"type":"finish","finishReason":"stop"}"##,
];

fn event(seq: i64, run_id: RunId, json: &str) -> Event {
    let event = RawValue::from_string(json.to_owned()).unwrap();
    Event { seq, at: Timestamp::from_millis(0), run_id, event }
}

fn record(run: &Run, pid: u32, words: &[&str], ended: Option<u8>) -> Record {
    let agent = Identity {
        run: run.id.to_string(),
        attempt: i64::from(pid),
        session: "s".to_owned(),
        slot: "chat-slot-default-1".to_owned(),
        pid,
        started_at_ticks: 1,
    };
    let said = words.iter().map(|word| Said::Text((*word).to_owned())).collect();
    Record { said, ended, ..Record::of(agent) }
}

impl Scene {
    fn new() -> Self {
        let id = RunId::generate();
        let at = Some(Timestamp::from_millis(0));
        let run = Run {
            waits_for: None,
            short_of: None,
            id,
            session_id: "s".parse().unwrap(),
            message_id: "m".parse().unwrap(),
            response_id: MessageId::of_response(id),
            workspace: "default".parse().unwrap(),
            agent: "torture".parse().unwrap(),
            slot: None,
            status: Status::Completed,
            cause: Some("finished".to_owned()),
            error: None,
            error_class: None,
            advice: None,
            retry_at: None,
            progress: None,
            usage: mainstay::usage::Usage::default(),
            priority: 0,
            attempts: 1,
            timeout_ms: None,
            exit_code: Some(0),
            exit_signal: None,
            first_seq: Some(1),
            last_seq: Some(6),
            resumes: None,
            malformed_lines: 0,
            queued_at: Timestamp::from_millis(0),
            not_before: None,
            claimed_at: at,
            cancel_requested_at: None,
            settled_at: at,
        };
        let sent = Sent { session: "s".into(), message: "m".into(), run: Some(id.to_string()) };
        Self {
            events: STREAM.iter().zip(1..).map(|(json, seq)| event(seq, id, json)).collect(),
            agents: vec![record(&run, 7, &["#7.0", "#7.1"], Some(0))],
            sent: vec![sent],
            read: STREAM.iter().zip(1..).map(|(json, seq)| (seq, digest(json))).collect(),
            answer: Some("#7.0#7.1".to_owned()),
            slots: Vec::new(),
            evidence: Evidence::default(),
            others: Vec::new(),
            run,
        }
    }

    fn end(&mut self, status: Status, cause: Cause) {
        (self.run.status, self.run.cause) = (status, Some(cause.as_str().to_owned()));
    }

    /// The promises that are reported as broken.
    fn broken(&self) -> Vec<&'static str> {
        let journal = Journal::default();
        let runs: Vec<Run> = std::iter::once(&self.run).chain(&self.others).cloned().collect();
        let stored = stored(&self.events, &self.run);
        messages(&self.sent, &runs, &journal);
        slots(&self.slots, &journal);
        log(&self.run.session_id, &self.events, &[&self.run], &journal);
        reading(&self.run.session_id, &self.events, &self.read, &journal);
        words(&self.run, &stored, &self.agents, &journal);
        question(&self.run, &self.agents, &journal);
        ending(&self.run, &self.evidence, &journal);
        answer(&self.run, &stored, self.answer.as_deref(), &journal);
        let report = journal.report(0, std::time::Duration::ZERO, Findings::default());
        let mut promises: Vec<_> = report.violations.iter().map(|violation| violation.promise).collect();
        promises.dedup();
        promises
    }
}

/// The promises that are reported as broken after damage to a good scene.
fn after(damage: impl FnOnce(&mut Scene)) -> Vec<&'static str> {
    let mut scene = Scene::new();
    damage(&mut scene);
    scene.broken()
}

const NOTHING: [&str; 0] = [];

#[test]
fn what_is_well_passes() {
    assert_eq!(after(|_| ()), NOTHING);
    // A missing end is no damage if the agent was ended.
    let cut = after(|scene| {
        scene.end(Status::Interrupted, Cause::Shutdown);
        scene.agents[0].said.push(Said::Text("#7.2".into()));
        scene.agents[0].ended = None;
    });
    assert_eq!(cut, NOTHING);
    let tried_again = after(|scene| scene.agents.insert(0, record(&scene.run, 6, &["#6.0"], None)));
    assert_eq!(tried_again, NOTHING);
}

#[test]
fn a_tool_that_ended_in_a_cancelled_turn_is_not_believed() {
    let finished = |cause: Cause| {
        after(|scene| {
            scene.end(cause.status(), cause);
            scene.run.cancel_requested_at = scene.run.claimed_at.filter(|_| cause == Cause::Cancelled);
            let failed = r##"{"type":"tool-output-error","toolCallId":"t","errorText":"#7.1","providerExecuted":true,"dynamic":true}"##;
            scene.events[3] = event(4, scene.run.id, failed);
            scene.read.clear();
            scene.answer = Some("#7.0".into());
            scene.agents[0].said[1] = Said::ToolFinished { id: "t".into(), output: "#7.1".into() };
        })
    };
    assert_eq!(finished(Cause::Cancelled), NOTHING);
    assert_eq!(finished(Cause::Finished), ["what is stored is what the agent said"]);
}

#[test]
fn a_missing_a_doubled_and_a_swapped_event_are_seen() {
    let gap = after(|scene| {
        scene.events.remove(2);
        scene.read.remove(&3);
    });
    assert!(gap.contains(&"a log has no gap") && gap.contains(&"what is stored is what the agent said"), "{gap:?}");

    let closed_over = after(|scene| {
        scene.events.remove(3);
        scene.events.iter_mut().zip(1..).for_each(|(event, seq)| event.seq = seq);
        scene.run.last_seq = Some(5);
        scene.read.clear();
        scene.answer = Some("#7.0".into());
    });
    assert_eq!(closed_over, ["what an agent said is stored"]);

    let doubled = after(|scene| {
        let again = event(0, scene.run.id, STREAM[3]);
        scene.events.insert(4, again);
        scene.events.iter_mut().zip(1..).for_each(|(event, seq)| event.seq = seq);
        scene.run.last_seq = Some(7);
        scene.read.clear();
        scene.answer = Some("#7.0#7.1#7.1".into());
    });
    assert_eq!(doubled, ["what is stored is what the agent said"]);

    let swapped = after(|scene| {
        scene.events[2] = event(3, scene.run.id, STREAM[3]);
        scene.events[3] = event(4, scene.run.id, STREAM[2]);
        scene.read.clear();
        scene.answer = Some("#7.1#7.0".into());
    });
    assert_eq!(swapped, ["what is stored is what the agent said"]);
}

#[test]
fn an_end_that_is_missing_doubled_or_early_is_seen() {
    const PROMISE: [&str; 1] = ["a run begins once and ends once, at its end"];
    let without = after(|scene| {
        scene.events.pop();
        scene.run.last_seq = Some(5);
        scene.read.remove(&6);
    });
    assert_eq!(without, PROMISE);
    let more = after(|scene| {
        scene.events.push(event(7, scene.run.id, STREAM[5]));
        scene.run.last_seq = Some(7);
    });
    assert_eq!(more, PROMISE);
    let foreign = after(|scene| scene.events.insert(2, event(3, RunId::generate(), STREAM[1])));
    assert!(foreign.contains(&"a log has no gap"), "{foreign:?}");
    assert_eq!(after(|scene| scene.run.last_seq = Some(5)), ["a run is one piece of its session"]);
}

#[test]
fn two_agents_for_one_run_are_seen() {
    let met = after(|scene| scene.agents[0].met.push("session s".into()));
    assert_eq!(met, ["two agents never live in one place"]);
    // The first agent had spoken, and another was started nevertheless.
    let again = after(|scene| scene.agents.push(record(&scene.run, 8, &["#8.0"], Some(0))));
    assert_eq!(again, ["what is stored is what the agent said"]);
    let none = after(|scene| scene.agents.clear());
    assert_eq!(none, ["what is stored is what the agent said"]);
}

#[test]
fn a_reader_who_got_what_is_not_stored_is_heard() {
    const PROMISE: [&str; 1] = ["what a reader got is stored"];
    let lost = after(|scene| scene.read.extend([(7, digest(STREAM[5]))]));
    assert_eq!(lost, PROMISE);
    let otherwise = after(|scene| scene.read.extend([(3, digest(STREAM[3]))]));
    assert_eq!(otherwise, PROMISE);
}

#[test]
fn a_message_with_no_run_two_runs_or_another_run_is_seen() {
    const PROMISE: [&str; 1] = ["a message has the one run that it was acknowledged with"];
    let second = |scene: &Scene| Run { id: RunId::generate(), ..scene.run.clone() };
    assert_eq!(after(|scene| scene.others.push(second(scene))), PROMISE);
    assert_eq!(after(|scene| scene.sent[0].run = Some(RunId::generate().to_string())), PROMISE);
    assert_eq!(after(|scene| scene.sent[0].message = "lost".into()), PROMISE);
    assert_eq!(after(|scene| scene.sent[0].run = None), PROMISE, "it was refused, and ran");
    let unanswered = after(|scene| {
        scene.sent.clear();
        scene.others.push(second(scene));
    });
    assert_eq!(unanswered, ["a message has one run"]);
}

#[test]
fn an_end_without_a_reason_is_seen() {
    const PROMISE: [&str; 1] = ["a run ends for a reason that there was"];
    assert_eq!(after(|scene| scene.end(Status::Cancelled, Cause::Cancelled)), PROMISE, "no cancel was asked for");
    let asked_for = after(|scene| scene.run.cancel_requested_at = scene.run.claimed_at);
    assert_eq!(asked_for, PROMISE, "a cancel that was stored decides the outcome");
    assert_eq!(after(|scene| scene.end(Status::Failed, Cause::Internal)), PROMISE);
    assert_eq!(after(|scene| scene.end(Status::Failed, Cause::TurnTimeout)), PROMISE, "the cause has another status");
    assert_eq!(after(|scene| scene.agents[0].ended = None), ["a run ends as its agent did"], "killed is not completed");
    let other_code = after(|scene| {
        scene.end(Status::Failed, Cause::ExitCode);
        scene.run.exit_code = Some(3);
    });
    assert_eq!(other_code, ["a run ends as its agent did"]);
}

#[test]
fn a_run_is_interrupted_only_when_its_host_was_killed_or_it_never_got_one() {
    let verdict = |cause: Cause, attempts: i64, shim_killed: bool| {
        let mut scene = Scene::new();
        scene.end(Status::Interrupted, cause);
        scene.run.attempts = attempts;
        let without_shim = shim_killed.then(|| scene.run.id.to_string()).into_iter().collect();
        let (evidence, journal) = (Evidence { without_shim, ..Evidence::default() }, Journal::default());
        ending(&scene.run, &evidence, &journal);
        journal.violations() == 0
    };
    assert!(verdict(Cause::ShimLost, 1, true) && !verdict(Cause::ShimLost, 1, false));
    assert!(verdict(Cause::WorkerLost, 3, false) && !verdict(Cause::WorkerLost, 1, true));
}

#[test]
fn a_message_that_is_not_what_its_events_say_and_a_slot_that_stays_taken_are_seen() {
    assert_eq!(after(|scene| scene.answer = None), ["a message is what its events say"]);
    let slot = |state: &str| Slot {
        id: "chat-slot-default-1".into(),
        workspace: "default".parse().unwrap(),
        number: 1,
        enabled: true,
        state: state.into(),
        session_id: None,
        run_id: None,
        last_active_at: None,
    };
    assert_eq!(after(|scene| scene.slots = vec![slot("free"), slot("idle")]), NOTHING);
    assert_eq!(after(|scene| scene.slots = vec![slot("active")]), ["a slot is free when nothing runs"]);
}

#[test]
fn an_agent_that_is_not_answered_is_seen() {
    let waited = |ms: i64, cause: Cause| {
        after(|scene| {
            scene.end(cause.status(), cause);
            scene.agents[0].asked = Some(0);
            scene.run.settled_at = Some(Timestamp::from_millis(ms));
        })
    };
    assert_eq!(waited(10_000, Cause::TurnTimeout), NOTHING);
    assert_eq!(waited(10_001, Cause::TurnTimeout), ["an agent that asks is answered"]);
    assert_eq!(waited(10_001, Cause::Signal), NOTHING, "it was killed");
}

#[test]
fn an_error_of_an_agent_is_one_that_it_had() {
    let failed = |agent: &str, class: Option<ErrorClass>, ended: Option<u8>| {
        after(|scene| {
            scene.end(Status::Failed, Cause::AgentError);
            (scene.run.agent, scene.run.error_class) = (agent.parse().unwrap(), class);
            scene.agents[0].ended = ended;
        })
    };
    let live = "torture-acp-shared";
    assert_eq!(failed(live, None, Some(7)), NOTHING, "it answered with an error");
    assert_eq!(failed(live, Some(ErrorClass::Crashed), None), NOTHING, "it was killed");
    assert_eq!(failed(live, None, None), ["a run ends as its agent did"]);
    assert_eq!(failed("torture-codex", None, Some(7)), ["a run ends for a reason that there was"]);
}

#[test]
fn a_gateway_is_lost_only_when_it_was_down() {
    let failed = |class: ErrorClass, down: (i64, i64)| {
        after(|scene| {
            scene.end(Status::Failed, Cause::AgentError);
            (scene.run.agent, scene.run.error_class) = ("torture-gateway".parse().unwrap(), Some(class));
            (scene.run.claimed_at, scene.run.settled_at) =
                (Some(Timestamp::from_millis(10)), Some(Timestamp::from_millis(20)));
            scene.agents[0].ended = None;
            scene.evidence.gateway_down = vec![(Timestamp::from_millis(down.0), Timestamp::from_millis(down.1))];
        })
    };
    for class in [ErrorClass::Crashed, ErrorClass::AgentMissing] {
        assert_eq!(failed(class, (15, 30)), NOTHING);
        assert_eq!(failed(class, (5, 12)), NOTHING);
        for elsewhere in [(1, 9), (21, 30)] {
            assert_eq!(failed(class, elsewhere), ["a run ends for a reason that there was"]);
        }
    }
}

#[test]
fn unheard_words_may_be_missing_but_not_from_the_last_message() {
    // Stored is `#7.0 #7.1`; the agent also said these words, of which those in this set were not heard.
    let said = |words: &[&str], unheard: &[usize]| {
        after(|scene| {
            let said = |word: &&str| match word.strip_prefix("tool ") {
                Some(input) => Said::ToolStarted { id: "t".into(), input: input.into() },
                None => Said::Text((*word).to_owned()),
            };
            scene.agents[0].said = words.iter().map(said).collect();
            scene.agents[0].unheard = unheard.iter().copied().collect();
        })
    };
    let missing = ["what an agent said is stored"];
    assert_eq!(said(&["#7.9", "tool #7.8", "#7.0", "#7.1"], &[0, 1]), NOTHING);
    assert_eq!(said(&["#7.9", "tool #7.8", "#7.0", "#7.1"], &[0]), ["what is stored is what the agent said"]);
    assert_eq!(said(&["#7.0", "#7.1"], &[0, 1]), NOTHING, "it came with what it said later");
    assert_eq!(said(&["#7.0", "#7.1", "#7.2"], &[2]), missing);
    assert_eq!(said(&["#7.0", "#7.1", "tool #7.8"], &[2]), NOTHING);
}

#[test]
fn a_live_agent_that_is_left_is_seen() {
    let backend = |state: BackendState| Backend {
        id: mainstay::id::BackendId::generate(),
        agent: "torture".parse().unwrap(),
        workspace: "default".parse().unwrap(),
        session_id: None,
        state,
        reason: None,
        error_class: None,
        worker: None,
        generation: 1,
        pid: None,
        running: 0,
        close_when_idle: false,
        created_at: Timestamp::from_millis(0),
        started_at: None,
        healthy_at: None,
        used_at: Timestamp::from_millis(0),
        not_before: None,
        stopped_at: None,
    };
    for state in BackendState::ALL {
        let journal = Journal::default();
        backends(&[backend(state)], &journal);
        assert_eq!(journal.violations() == 0, state == BackendState::Stopped, "{state:?}");
    }
}
