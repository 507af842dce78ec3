//! Runs from their message to their settled end, and the order in which they are claimed.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay::clock::{Clock, Timestamp};
use mainstay::failure::ErrorClass;
use mainstay::lease::LeaseLost;
use mainstay::run::{Cause, Outcome, Status};
use mainstay::store::event::{Append, Frames, Range};
use mainstay::store::fact::Fact;
use mainstay::store::run::{ClaimRequest, SessionScope};
use mainstay::usage::Usage;

use super::{LEASE, Scene, numbered};

#[tokio::test]
async fn a_run_goes_from_message_to_settled() {
    let scene = Scene::new(2).await;
    let sent = scene.send("s", "m1").await;
    assert!(sent.created);
    assert_eq!(sent.run.run.status, Status::Queued);
    let claimed = scene.claim(8).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].slot.as_deref(), Some("chat-slot-default-1"));
    scene.store.append(scene.text(&claimed[0], "a\"é\u{1}\\n")).await.unwrap().unwrap();
    scene.settle(&claimed[0], Outcome::completed()).await.unwrap();
    assert_eq!(scene.log("s").await, numbered(&["start", "text-delta", "finish"]));
    let run = scene.store.find_run(sent.run.run.id).await.unwrap().unwrap();
    assert_eq!((run.run.first_seq, run.run.last_seq), (Some(1), Some(3)));
    assert_eq!(run.run.status, Status::Completed);
    let page = scene
        .store
        .list_messages(run.session, mainstay::store::message::MessageCursor::START, 10, false)
        .await
        .unwrap();
    let roles: Vec<_> = page.messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant"]);
}

#[tokio::test]
async fn what_is_stored_is_byte_for_byte_what_was_appended() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    let mut append = scene.text(&claimed, "");
    let wanted: Vec<String> = vec![
        r#"{"type":"text-delta","id":"text-1","delta":"\u0000\u0001\ud83d\ude00 é \" \\ / <>"}"#.into(),
        r#"{"type":"tool-output-available","toolCallId":"t","output":{"a":1.0,"b":1e400,"c":123456789012345678901234567890,"a":null}}"#.into(),
        r#"{"type":"text-delta","id":"text-1","delta":"id: 7\n\ndata: x"}"#.into(),
    ];
    append.events = wanted.clone().into();
    scene.store.append(append).await.unwrap().unwrap();
    let range = Range { session: claimed.session, run: None, after: 1, limit: 10 };
    let events = scene.store.events(range).await.unwrap();
    assert_eq!(events.iter().map(|event| event.event.get()).collect::<Vec<_>>(), wanted);
    let frames = scene.store.frames(range, 1_000_000).await.unwrap().unwrap();
    let text: String = (2..).zip(&wanted).map(|(seq, event)| format!("id: {seq}\ndata: {event}\n\n")).collect();
    let Frames::Events { text: frames, last_seq: 4 } = frames else { panic!("{frames:?}") };
    assert_eq!(frames, text);
}

#[tokio::test]
async fn the_same_message_is_enqueued_once() {
    let scene = Scene::new(1).await;
    let first = scene.send("s", "m1").await;
    let again = scene.send("s", "m1").await;
    assert_eq!((first.run.run.id, again.created), (again.run.run.id, false));
}

#[tokio::test]
async fn one_run_at_a_time_in_a_session_and_in_the_shared_agent() {
    let scene = Scene::new(1).await;
    for (session, message) in [("a", "1"), ("a", "2"), ("b", "3"), ("c", "4")] {
        scene.send(session, message).await;
    }
    let claimed = scene.claim(8).await;
    let who: Vec<_> = claimed.iter().map(|c| (c.session_id.as_str(), c.slot.is_some())).collect();
    assert_eq!(who, [("a", true), ("b", false)], "c shares the resident agent with b");
    assert!(scene.claim(8).await.is_empty());
    scene.settle(&claimed[1], Outcome::completed()).await.unwrap();
    let next = scene.claim(8).await;
    assert_eq!(next.iter().map(|c| c.session_id.as_str()).collect::<Vec<_>>(), ["c"]);
    scene.settle(&claimed[0], Outcome::completed()).await.unwrap();
    assert_eq!(scene.claim(8).await[0].session_id.as_str(), "a");
}

#[tokio::test]
async fn a_higher_priority_goes_first_in_its_session() {
    let scene = Scene::new(1).await;
    for (message, priority) in [("low", 0), ("high", 5), ("lower", -1), ("high2", 5)] {
        let mut request = scene.enqueue_request("s", message);
        request.options.priority = priority;
        scene.store.enqueue(request).await.unwrap().unwrap();
    }
    let mut order = Vec::new();
    while let Some(claimed) = scene.claim(8).await.pop() {
        order.push(claimed.message_parts.clone());
        scene.settle(&claimed, Outcome::completed()).await.unwrap();
    }
    let order: Vec<_> =
        order.iter().map(|parts| parts.split("text of ").nth(1).unwrap().split('"').next().unwrap()).collect();
    assert_eq!(order, ["high", "high2", "low", "lower"]);
}

#[tokio::test]
async fn a_cancel_decides_the_outcome() {
    let scene = Scene::new(1).await;
    let sent = scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    scene.store.cancel_run(sent.run.run.id).await.unwrap().unwrap();
    assert_eq!(scene.settle(&claimed, Outcome::completed()).await, Err(LeaseLost));
    assert_eq!(scene.store.cancel_requests(scene.worker).await.unwrap(), [claimed.lease.run]);
    scene.settle(&claimed, Outcome::cancelled()).await.unwrap();
    assert_eq!(scene.status(sent.run.run.id).await, Status::Cancelled);
    assert_eq!(scene.log("s").await, numbered(&["start", "finish"]));
}

#[tokio::test]
async fn run_cancelled_in_queue_gets_its_span_after_the_running_one() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let second = scene.send("s", "m2").await;
    let claimed = scene.claim(1).await.remove(0);
    scene.store.cancel_run(second.run.run.id).await.unwrap().unwrap();
    assert_eq!(scene.status(second.run.run.id).await, Status::Cancelled);
    assert_eq!(scene.log("s").await, numbered(&["start"]), "not in the midst of another span");
    scene.store.append(scene.text(&claimed, "x")).await.unwrap().unwrap();
    scene.settle(&claimed, Outcome::completed()).await.unwrap();
    assert_eq!(scene.log("s").await, numbered(&["start", "text-delta", "finish", "start", "abort", "finish"]));
    let third = scene.send("s", "m3").await;
    scene.store.cancel_run(third.run.run.id).await.unwrap().unwrap();
    assert_eq!(scene.log("s").await.len(), 9, "at once when nothing is running");
}

#[tokio::test]
async fn a_begun_run_that_is_cancelled_in_the_queue_ends_its_own_span() {
    let scene = Scene::new(1).await;
    let sent = scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    assert!(scene.store.put_back(claimed.lease).await.unwrap());
    scene.store.cancel_run(sent.run.run.id).await.unwrap().unwrap();
    assert_eq!(scene.log("s").await, numbered(&["start", "abort", "finish"]));
}

#[tokio::test]
async fn runs_of_a_workspace_that_is_not_known_here_are_left_alone() {
    let scene = Scene::new(1).await;
    let mut request = scene.enqueue_request("s", "m1");
    request.new.workspace = "theirs".parse().unwrap();
    scene.store.enqueue(request).await.unwrap().unwrap();
    assert!(scene.claim(8).await.is_empty());
}

#[tokio::test]
async fn claim_for_one_run_claims_nothing_behind_it() {
    let scene = Scene::new(2).await;
    let awaited = scene.send("s", "m1").await.run;
    scene.send("s", "m2").await;
    scene.send("t", "m3").await;
    let request = ClaimRequest {
        worker: scene.worker,
        limit: 8,
        agents: BTreeMap::from([("demo".parse().unwrap(), 100)]),
        workspaces: vec!["default".parse().unwrap()],
        only: Some(SessionScope { session: awaited.session, until: awaited.key }),
        lease: LEASE,
    };
    let claimed = scene.store.claim(request.clone()).await.unwrap();
    assert_eq!(claimed.iter().map(|one| one.run).collect::<Vec<_>>(), [awaited.run.id]);
    scene.settle(&claimed[0], Outcome::completed()).await.unwrap();
    assert!(scene.store.claim(request).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_turn_used_and_why_it_failed_is_kept_and_summed() {
    let scene = Scene::new(1).await;
    let mut ids = Vec::new();
    let usage = |input, cost| Usage { input_tokens: Some(input), cost_usd: Some(cost), ..Usage::default() };
    let limited = Fact::Failure { class: ErrorClass::RateLimit, retry_at: Some(Timestamp::from_millis(7)) };
    let later = Fact::Failure { class: ErrorClass::Overloaded, retry_at: None };
    let agent_error = Outcome::because(Cause::AgentError, "why");
    let limit = Outcome::because(Cause::OutputLimit, "too long");
    let crashed = Outcome::because(Cause::ExitCode, "code 3").with_class(ErrorClass::Crashed);
    let turns = [
        (vec![Fact::Usage(usage(10, 0.5)), limited.clone(), later], agent_error, Some(ErrorClass::RateLimit), Some(7)),
        // An error that the agent recovered from, or that did not end the turn, is no class of its failure.
        (vec![Fact::Usage(usage(5, 0.25)), limited.clone()], Outcome::completed(), None, None),
        (vec![limited.clone()], limit, None, None),
        (vec![limited], crashed, Some(ErrorClass::Crashed), None),
    ];
    for (number, (facts, outcome, class, retry_at)) in turns.into_iter().enumerate() {
        let sent = scene.send("s", &format!("m{number}")).await;
        let claimed = scene.claim(1).await.remove(0);
        let append = Append { facts, ..scene.text(&claimed, "a") };
        scene.store.append(append).await.unwrap().unwrap();
        let going = scene.store.find_run(sent.run.run.id).await.unwrap().unwrap().run;
        assert_eq!((going.error_class, going.retry_at), (None, None));
        assert_eq!(scene.settle(&claimed, outcome).await.unwrap().class, class);
        let run = scene.store.find_run(sent.run.run.id).await.unwrap().unwrap().run;
        assert_eq!((run.error_class, run.retry_at.map(Timestamp::as_millis)), (class, retry_at), "{number}");
        assert_eq!(run.advice, class.map(ErrorClass::advice));
        ids.push(run.id);
    }
    let session = scene.store.find_session(&"s".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(session.usage, usage(15, 0.75));

    let stats = scene.store.stats(scene.clock.now() - Duration::from_secs(60)).await.unwrap();
    let counts = |counts: &[(&str, i64)]| counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    assert_eq!(stats.errors, counts(&[("crashed", 1), ("other", 1), ("rate_limit", 1)]));
    assert_eq!((stats.turns.active, stats.turns.queued, stats.turns.ended["completed"]), (0, 0, 1));
    assert_eq!((stats.turns.ended["failed"], stats.turns.ended["interrupted"]), (3, 0));
    assert_eq!((stats.latency_ms.average, stats.latency_ms.max), (Some(0), Some(0)));
    assert_eq!((stats.sessions.placed, stats.sessions.used), (1, 1));
    scene.clock.advance(Duration::from_secs(3600));
    let stats = scene.store.stats(scene.clock.now() - Duration::from_secs(60)).await.unwrap();
    assert_eq!((stats.errors.len(), stats.latency_ms.average, stats.sessions.used), (0, None, 0));
}
