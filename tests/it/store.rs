//! The store by itself: what was acknowledged is there, what is illegal is refused, and each kind of unusable file is a
//! clear error that leaves the file as it was.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay::chunk::{Chunk, FinishReason};
use mainstay::clock::{Clock, ManualClock, Timestamp};
use mainstay::config::Durability;
use mainstay::failure::ErrorClass;
use mainstay::id::{MessageId, PermissionId, RunId, SessionId};
use mainstay::lease::{HeldLease, LeaseLost, WorkerKey};
use mainstay::message::UserMessage;
use mainstay::permission::{PermissionRequest, ToolKind};
use mainstay::run::{Cause, ExitReport, Outcome, RunOptions, Status};
use mainstay::store::event::{Append, Frames, Range};
use mainstay::store::fact::Fact;
use mainstay::store::permission::{NewPermission, PermissionFilter};
use mainstay::store::run::{
    ClaimRequest, Claimed, Enqueue, Enqueued, Lost, Orphan, Purpose, RUNS_AT_ONCE, Refusal, SessionScope, Settle,
    Settled,
};
use mainstay::store::session::{Closed, NamedValues, NewSession};
use mainstay::store::worker::Registration;
use mainstay::store::{Notice, Store, StoreError};
use mainstay::text::AgentSessionId;
use mainstay::usage::Usage;
use mainstay::waiting::WaitsFor;
use mainstay::worker::ProcessIdentity;
use mainstay::workspace::{ClientAccess, WhenFull, Workspace};

const LEASE: Duration = Duration::from_secs(30);

struct Scene {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    clock: Arc<ManualClock>,
    store: Store,
    worker: WorkerKey,
    registration: Registration,
    notices: Arc<Mutex<Vec<Notice>>>,
}

async fn open(path: &Path, clock: Arc<ManualClock>, notices: Arc<Mutex<Vec<Notice>>>) -> Result<Store, StoreError> {
    let on_commit = Box::new(move |new: Vec<Notice>| notices.lock().unwrap().extend(new));
    Store::open(path, Durability::Full, clock, on_commit, |_| true).await
}

fn workspace(slots: u32, when_full: WhenFull) -> Workspace {
    Workspace {
        name: "default".parse().unwrap(),
        dir: "/".into(),
        agent: "demo".parse().unwrap(),
        slots,
        when_full,
        client: ClientAccess::default(),
        allowed: Default::default(),
    }
}

impl Scene {
    async fn new(slots: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.db");
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
        let notices = Arc::default();
        let store = open(&path, clock.clone(), Arc::clone(&notices)).await.unwrap();
        store.sync_slots(workspace(slots, WhenFull::Share)).await.unwrap();
        let process = ProcessIdentity { host: "test".into(), pid: 1, started_at_ticks: 1 };
        let id = mainstay::id::WorkerId::generate();
        let registration = Registration { id, process, hostname: "test".into(), capacity: 8, lease: LEASE };
        let worker = store.register_worker(registration.clone()).await.unwrap();
        Self { _dir: dir, path, clock, store, worker, registration, notices }
    }

    fn enqueue_request(&self, session: &str, message: &str) -> Enqueue {
        Enqueue {
            session: session.parse().unwrap(),
            new: NewSession::of("default".parse().unwrap(), "demo".parse().unwrap(), 1_800_000),
            workspace_named: false,
            agent_named: false,
            message: UserMessage::text(message.parse().unwrap(), format!("text of {message}")).unwrap(),
            purpose: Purpose::Send,
            options: RunOptions::default(),
            declined_by: None,
            goes_next: false,
            max_queued: 1000,
            when_full: WhenFull::Share,
            slot_bound: Vec::new(),
            close_when_idle: false,
        }
    }

    async fn send(&self, session: &str, message: &str) -> Enqueued {
        self.store.enqueue(self.enqueue_request(session, message)).await.unwrap().unwrap()
    }

    async fn claim(&self, limit: i64) -> Vec<Claimed> {
        let request = ClaimRequest {
            worker: self.worker,
            limit,
            agents: BTreeMap::from([("demo".parse().unwrap(), 100)]),
            workspaces: vec!["default".parse().unwrap()],
            only: None,
            lease: LEASE,
        };
        self.store.claim(request).await.unwrap()
    }

    /// Takes over whatever is under a lease, as if nobody had renewed it for too long.
    async fn take_over(&self) -> Vec<Orphan> {
        let lost = Lost { leases: self.store.held_leases().await.unwrap(), ..Lost::default() };
        self.store.take_over(self.worker, lost, vec![], LEASE, 10).await.unwrap()
    }

    fn text(&self, claimed: &Claimed, text: &str) -> Append {
        Append {
            lease: claimed.lease,
            session: claimed.session,
            run_id: claimed.run,
            events: vec![format!(r#"{{"type":"text-delta","id":"text-1","delta":{}}}"#, serde_json::json!(text))]
                .into(),
            said: true,
            facts: Vec::new(),
            source_offset: 10,
            parts: None,
        }
    }

    async fn settle(&self, claimed: &Claimed, outcome: Outcome) -> Result<Settled, LeaseLost> {
        let settle = Settle {
            lease: claimed.lease,
            session: claimed.session,
            run_id: claimed.run,
            events: vec![Chunk::Finish { finish_reason: FinishReason::Stop, message_metadata: None }],
            source_offset: 0,
            outcome,
            exit: ExitReport::default(),
            parts: Some(r#"[{"type":"text","text":"hi","state":"done"}]"#.into()),
            progress: None,
            resumes: 0,
        };
        self.store.settle(settle).await.unwrap()
    }

    fn query(&self, sql: &str) -> String {
        rusqlite::Connection::open(&self.path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    async fn status(&self, run: RunId) -> Status {
        self.store.find_run(run).await.unwrap().unwrap().run.status
    }

    async fn shown(&self, session: &str) -> Vec<String> {
        let key = self.store.find_session_key(&session.parse().unwrap()).await.unwrap().unwrap();
        let start = mainstay::store::message::MessageCursor::START;
        let page = self.store.list_messages(key, start, 100, false).await.unwrap();
        page.messages.into_iter().chain(page.queued).map(|message| message.id.to_string()).collect()
    }

    async fn log(&self, session: &str) -> Vec<(i64, String)> {
        let id: SessionId = session.parse().unwrap();
        let session = self.store.find_session_key(&id).await.unwrap().unwrap();
        let events = self.store.events(Range { session, run: None, after: 0, limit: 10_000 }).await.unwrap();
        let kind =
            |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap()["type"].as_str().unwrap().to_owned();
        events.into_iter().map(|event| (event.seq, kind(event.event.get()))).collect()
    }
}

fn numbered(kinds: &[&str]) -> Vec<(i64, String)> {
    (1..).zip(kinds.iter().map(|kind| (*kind).to_owned())).collect()
}

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
    assert_eq!(frames, Frames::Events { text, last_seq: 4 });
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
async fn an_old_lease_changes_nothing() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let old = scene.claim(1).await.remove(0);
    let orphans = scene.take_over().await;
    assert_eq!(orphans.len(), 1);
    assert_eq!(scene.store.append(scene.text(&old, "late")).await.unwrap(), Err(LeaseLost));
    assert_eq!(scene.settle(&old, Outcome::completed()).await, Err(LeaseLost));
    assert!(!scene.store.put_back(old.lease).await.unwrap());
    // Nor does it let anybody end what is in the place by now.
    assert!(scene.store.turn_location(old.lease).await.unwrap().is_none());
    assert!(scene.store.turn_location(orphans[0].lease).await.unwrap().is_some());
    assert!(scene.store.put_back(orphans[0].lease).await.unwrap());
    let again = scene.claim(1).await.remove(0);
    assert_eq!(again.run, old.run);
    scene.settle(&again, Outcome::completed()).await.unwrap();
    assert_eq!(scene.log("s").await, numbered(&["start", "finish"]), "one start, though it was claimed twice");
}

#[tokio::test]
async fn a_lease_is_taken_over_as_it_was_seen_and_whatever_the_clock_says() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    let seen = scene.store.held_leases().await.unwrap();
    assert_eq!((seen[0].lease, seen[0].length), (claimed.lease, LEASE));
    let take_over = |lost: Lost| scene.store.take_over(scene.worker, lost, vec![], LEASE, 10);
    scene.clock.advance(Duration::from_secs(1_000_000));
    assert!(take_over(Lost::default()).await.unwrap().is_empty(), "taken over by the wall clock");
    // A renewal in between wins: also by a clock that stands, and by one that went back.
    for back in [0, 0, 2_000_000] {
        let seen = scene.store.held_leases().await.unwrap();
        scene.clock.set(scene.clock.now() - Duration::from_secs(back));
        let renewed = scene.store.renew(scene.worker, scene.registration.clone(), vec![claimed.lease]).await.unwrap();
        assert_eq!(renewed, [claimed.lease]);
        assert!(
            take_over(Lost { leases: seen, ..Lost::default() }).await.unwrap().is_empty(),
            "taken over in spite of it"
        );
    }
    scene.store.append(scene.text(&claimed, "still mine")).await.unwrap().unwrap();
    assert_eq!(scene.store.held_leases().await.unwrap().len(), 1);
    let orphan = scene.take_over().await.remove(0);
    assert_eq!((orphan.lease.token, orphan.source_offset), (claimed.lease.token + 1, 10));
    scene.store.let_expire(orphan.lease).await.unwrap();
    assert_eq!(scene.store.held_leases().await.unwrap()[0].expires_at, HeldLease::GIVEN_BACK);
}

#[tokio::test]
async fn no_duration_is_negative_when_the_clock_goes_back() {
    let scene = Scene::new(1).await;
    let sent = scene.send("s", "m1").await;
    let hour = Duration::from_secs(3600);
    scene.clock.set(scene.clock.now() - hour);
    let claimed = scene.claim(1).await.remove(0);
    scene.clock.set(scene.clock.now() - hour);
    scene.settle(&claimed, Outcome::completed()).await.unwrap();
    assert_eq!(scene.status(sent.run.run.id).await, Status::Completed);
    let conn = rusqlite::Connection::open(scene.store.path()).unwrap();
    let times: (i64, i64) =
        conn.query_row("SELECT waited_ms, ran_ms FROM v_runs", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(times, (0, 0));
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
async fn a_run_cancelled_in_the_queue_gets_its_span_behind_the_running_one() {
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
async fn a_waiting_session_gets_the_slot_that_is_freed() {
    let scene = Scene::new(1).await;
    scene.send("a", "1").await;
    let mut waiting = scene.enqueue_request("b", "2");
    waiting.when_full = WhenFull::Wait;
    scene.store.enqueue(waiting).await.unwrap().unwrap();
    let claimed = scene.claim(8).await;
    assert_eq!(claimed.len(), 1);
    scene.settle(&claimed[0], Outcome::completed()).await.unwrap();
    assert!(scene.claim(8).await.is_empty(), "an idle session keeps its slot until its TTL has passed");
    scene.clock.advance(Duration::from_secs(1801));
    assert_eq!(scene.store.expire_idle(10).await.unwrap(), 1);
    let next = scene.claim(8).await;
    assert_eq!((next[0].session_id.as_str(), next[0].slot.as_deref()), ("b", Some("chat-slot-default-1")));
    scene.clock.advance(Duration::from_secs(100_000));
    assert_eq!(scene.store.expire_idle(10).await.unwrap(), 0, "nothing busy ever expires");
}

async fn send_reclaiming(scene: &Scene, session: &str) -> Enqueued {
    let mut request = scene.enqueue_request(session, session);
    request.when_full = WhenFull::Reclaim;
    scene.store.enqueue(request).await.unwrap().unwrap()
}

async fn run_to_its_end(scene: &Scene, session: &str) {
    send_reclaiming(scene, session).await;
    let claimed = scene.claim(8).await.remove(0);
    assert_eq!(claimed.session_id.as_str(), session);
    scene.settle(&claimed, Outcome::completed()).await.unwrap();
    scene.clock.advance(Duration::from_secs(1));
}

#[tokio::test]
async fn child_of_running_session_does_not_wait_for_slot() {
    let scene = Scene::new(1).await;
    send_reclaiming(&scene, "parent").await;
    assert_eq!(scene.claim(8).await.len(), 1);
    send_reclaiming(&scene, "stranger").await;
    let mut request = scene.enqueue_request("child", "child");
    request.when_full = WhenFull::Reclaim;
    request.new.spawned_by = Some("parent".parse().unwrap());
    scene.store.enqueue(request).await.unwrap().unwrap();
    let claimed = scene.claim(8).await;
    let placed: Vec<_> = claimed.iter().map(|run| (run.session_id.as_str(), run.slot.as_deref())).collect();
    assert_eq!(placed, [("child", None)]);
}

#[tokio::test]
async fn full_pool_reclaims_slot_idle_longest() {
    let scene = Scene::new(3).await;
    for session in ["a", "b", "c"] {
        run_to_its_end(&scene, session).await;
    }
    scene.send("a", "more").await;
    scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    send_reclaiming(&scene, "d").await;
    let claimed = scene.claim(8).await.remove(0);
    assert_eq!((claimed.session_id.as_str(), claimed.slot.as_deref()), ("d", Some("chat-slot-default-2")));
    let slots = scene.store.list_slots().await.unwrap();
    let held: Vec<_> = slots.iter().map(|slot| slot.session_id.as_ref().map_or("", |id| id.as_str())).collect();
    assert_eq!(held, ["a", "d", "c"], "b was idle longest");
    let ended = scene.query("SELECT group_concat(state) FROM assignments WHERE ended_at IS NOT NULL");
    assert_eq!(ended, "reclaimed");
}

#[tokio::test]
async fn busy_sessions_keep_slots_until_idle() {
    let scene = Scene::new(2).await;
    send_reclaiming(&scene, "a").await;
    send_reclaiming(&scene, "b").await;
    let [a, b] = <[Claimed; 2]>::try_from(scene.claim(8).await).unwrap();
    send_reclaiming(&scene, "c").await;
    scene.clock.advance(Duration::from_secs(1));
    send_reclaiming(&scene, "d").await;
    assert!(scene.claim(8).await.is_empty(), "running sessions keep their slots");
    scene.send("b", "more").await;
    scene.settle(&b, Outcome::completed()).await.unwrap();
    let next = scene.claim(8).await;
    assert_eq!(next[0].session_id.as_str(), "b", "a session with a queued run keeps its slot");
    scene.settle(&a, Outcome::completed()).await.unwrap();
    let next = scene.claim(8).await;
    let next: Vec<_> = next.iter().map(|run| (run.session_id.as_str(), run.slot.as_deref())).collect();
    assert_eq!(next, [("c", Some("chat-slot-default-1"))], "the longest wait first, as soon as a session is idle");
}

#[tokio::test]
async fn agents_keyed_by_slot_share_and_keep_slots() {
    let scene = Scene::new(1).await;
    let bound = |session: &str| {
        let mut request = scene.enqueue_request(session, session);
        (request.when_full, request.slot_bound) = (WhenFull::Reclaim, vec!["demo".parse().unwrap()]);
        request
    };
    scene.store.enqueue(bound("a")).await.unwrap().unwrap();
    scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    scene.store.enqueue(bound("b")).await.unwrap().unwrap();
    send_reclaiming(&scene, "c").await;
    let claimed = scene.claim(8).await;
    let claimed: Vec<_> = claimed.iter().map(|run| (run.session_id.as_str(), run.slot.as_deref())).collect();
    assert_eq!(claimed, [("b", None)], "the slot of a is not taken; c shares as well, as no slot would come");
    assert_eq!(scene.query("SELECT group_concat(slot_key IS NULL) FROM assignments"), "0,1,1");
}

#[tokio::test]
async fn pool_without_slots_is_shared_when_reclaiming() {
    let scene = Scene::new(0).await;
    run_to_its_end(&scene, "a").await;
    run_to_its_end(&scene, "b").await;
}

#[tokio::test]
async fn waiting_sessions_follow_a_changed_policy() {
    let scene = Scene::new(1).await;
    run_to_its_end(&scene, "a").await;
    let mut waiting = scene.enqueue_request("b", "1");
    waiting.when_full = WhenFull::Wait;
    scene.store.enqueue(waiting.clone()).await.unwrap().unwrap();
    assert!(scene.claim(8).await.is_empty());
    scene.store.sync_slots(workspace(1, WhenFull::Reclaim)).await.unwrap();
    let b = scene.claim(8).await.remove(0);
    assert_eq!(b.session_id.as_str(), "b");
    send_reclaiming(&scene, "c").await;
    scene.settle(&b, Outcome::completed()).await.unwrap();
    let c = scene.claim(8).await.remove(0);
    send_reclaiming(&scene, "d").await;
    scene.store.sync_slots(workspace(0, WhenFull::Reclaim)).await.unwrap();
    assert_eq!(scene.claim(8).await[0].slot, None, "no slot would ever come");
    scene.settle(&c, Outcome::completed()).await.unwrap();
}

#[tokio::test]
async fn session_used_once_gives_slot_back() {
    let scene = Scene::new(1).await;
    let mut once = scene.enqueue_request("a", "1");
    once.close_when_idle = true;
    scene.store.enqueue(once).await.unwrap().unwrap();
    let claimed = scene.claim(1).await.remove(0);
    // Its worker is lost, and so is the client: nothing but the row remembers.
    let orphan = scene.take_over().await.remove(0);
    assert_eq!(orphan.lease.run, claimed.lease.run);
    let interrupted = Outcome::because(Cause::WorkerLost, "lost");
    scene.settle(&Claimed { lease: orphan.lease, ..claimed }, interrupted).await.unwrap();
    assert_eq!(scene.store.list_slots().await.unwrap()[0].state, "free");
    scene.send("a", "2").await;
    scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    assert_eq!(scene.store.list_slots().await.unwrap()[0].state, "idle", "who goes on with it keeps the slot");
}

#[tokio::test]
async fn a_full_pool_may_refuse() {
    let scene = Scene::new(1).await;
    scene.send("a", "1").await;
    let mut request = scene.enqueue_request("b", "2");
    request.when_full = WhenFull::Reject;
    let refused = scene.store.enqueue(request).await.unwrap();
    assert!(matches!(refused, Err(Refusal::PoolFull(_))));
    assert!(scene.store.find_session(&"b".parse().unwrap()).await.unwrap().is_none(), "a refusal stores nothing");
}

#[tokio::test]
async fn a_cancelled_caller_does_not_cancel_the_write() {
    let scene = Scene::new(1).await;
    for number in 0..50 {
        let store = scene.store.clone();
        let request = scene.enqueue_request("s", &format!("m{number}"));
        let task = tokio::spawn(async move { store.enqueue(request).await });
        tokio::task::yield_now().await;
        task.abort();
        let _ = task.await;
    }
    let last = scene.send("s", "last").await;
    let runs = scene.store.list_runs(&Default::default(), 500).await.unwrap();
    let messages: Vec<_> = runs.iter().map(|located| located.run.message_id.clone()).collect();
    assert_eq!(messages[0], last.run.run.message_id);
    let distinct: std::collections::HashSet<_> = messages.iter().collect();
    assert_eq!(distinct.len(), messages.len());
}

#[tokio::test]
async fn one_bad_write_does_not_fail_its_neighbours() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    let mut bad = scene.text(&claimed, "x");
    bad.events = vec!["{not json".into()].into();
    let (bad, good) = tokio::join!(scene.store.append(bad), scene.store.enqueue(scene.enqueue_request("t", "m2")));
    assert!(bad.is_err());
    assert!(good.unwrap().unwrap().created);
    assert_eq!(scene.log("s").await, numbered(&["start"]));
}

#[tokio::test]
async fn a_commit_is_told_in_order_with_its_rows() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    for word in ["a", "b", "c"] {
        scene.store.append(scene.text(&claimed, word)).await.unwrap().unwrap();
    }
    scene.settle(&claimed, Outcome::completed()).await.unwrap();
    let notices = scene.notices.lock().unwrap();
    let told: Vec<_> = notices
        .iter()
        .filter_map(|notice| match notice {
            Notice::EventsCommitted(committed) => {
                Some((committed.first_seq, committed.events.len(), committed.ends_run))
            }
            _ => None,
        })
        .collect();
    assert_eq!(told, [(2, 1, false), (3, 1, false), (4, 1, false), (5, 1, true)]);
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_reopening() {
    let scene = Scene::new(1).await;
    let sent = scene.send("s", "m1").await;
    scene.store.close().await;
    assert!(matches!(scene.store.enqueue(scene.enqueue_request("s", "m2")).await, Err(StoreError::Closed)));
    let store = open(&scene.path, scene.clock.clone(), Arc::default()).await.unwrap();
    assert_eq!(store.find_run(sent.run.run.id).await.unwrap().unwrap().run.status, Status::Queued);
}

#[tokio::test]
async fn eight_openers_at_once_make_one_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.db");
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(0)));
    let opened = (0..8).map(|_| {
        let (path, clock) = (path.clone(), clock.clone());
        tokio::spawn(async move { open(&path, clock, Arc::default()).await.map(|_| ()) })
    });
    for opener in futures_util::future::join_all(opened).await {
        opener.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_files_are_readable_by_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    for entry in std::fs::read_dir(scene.path.parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        let mode = if entry.path().is_dir() { 0o700 } else { 0o600 };
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, mode, "{:?}", entry.path());
    }
}

async fn opening(path: &Path) -> StoreError {
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(0)));
    open(path, clock, Arc::default()).await.expect_err("it must not open")
}

#[tokio::test]
async fn another_programs_file_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.txt");
    std::fs::write(&path, "my notes, which are long enough to be no empty database at all; ".repeat(20)).unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(opening(&path).await, StoreError::NotOurs(_)));
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let path = dir.path().join("other.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
    drop(other);
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(opening(&path).await, StoreError::NotOurs(_)));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_newer_database_is_refused() {
    let scene = Scene::new(1).await;
    scene.store.close().await;
    let conn = rusqlite::Connection::open(&scene.path).unwrap();
    conn.execute_batch(
        "INSERT INTO refinery_schema_history SELECT 99, 'future', applied_on, checksum FROM refinery_schema_history LIMIT 1",
    )
    .unwrap();
    drop(conn);
    let error = opening(&scene.path).await.to_string();
    assert!(error.contains("version 99") && error.contains("newer build"), "{error}");
}

fn agents_dir(path: &Path) -> std::fs::File {
    std::fs::File::open(path.with_file_name("m.db-agents")).unwrap()
}

#[tokio::test]
async fn whoever_has_the_database_open_keeps_migrations_away() {
    let scene = Scene::new(1).await;
    let another = open(&scene.path, scene.clock.clone(), Arc::default()).await.unwrap();
    let dir = agents_dir(&scene.path);
    assert!(dir.try_lock().is_err());
    scene.store.close().await;
    assert!(dir.try_lock().is_err(), "one of two is still there");
    another.close().await;
    dir.try_lock().unwrap();
}

#[tokio::test]
async fn a_database_that_is_moved_away_takes_no_write() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let away = scene.path.with_file_name("away.db");
    std::fs::rename(&scene.path, &away).unwrap();
    let request = scene.enqueue_request("s", "m2");
    let error = scene.store.enqueue(request.clone()).await.unwrap_err();
    assert!(matches!(&error, StoreError::Gone(_)) && error.is_transient(), "{error:?}");
    // So many at once that all connections are needed.
    for shown in futures_util::future::join_all((0..8).map(|_| scene.shown("s"))).await {
        assert_eq!(shown, ["m1"]);
    }
    let error = opening(&scene.path).await;
    assert!(matches!(&error, StoreError::Damaged { .. }), "its WAL is still needed: {error:?}");
    // Another file in its place, be it a copy, is not the same.
    std::fs::copy(&away, &scene.path).unwrap();
    assert!(matches!(scene.store.check_writable().await.unwrap_err(), StoreError::Gone(_)));
    assert_eq!(scene.shown("s").await, ["m1"], "readers go on");
    std::fs::rename(&away, &scene.path).unwrap();
    scene.store.enqueue(request).await.unwrap().unwrap();
    assert_eq!(scene.shown("s").await, ["m1", "m2"]);
}

#[tokio::test]
async fn a_damaged_database_is_refused() {
    use std::os::unix::fs::FileExt;
    let scene = Scene::new(1).await;
    for number in 0..200 {
        scene.send("s", &format!("m{number}")).await;
    }
    scene.store.close().await;
    let file = std::fs::OpenOptions::new().write(true).open(&scene.path).unwrap();
    for page in 3..20 {
        file.write_all_at(&[0xAA; 512], page * 4096).unwrap();
    }
    let error = opening(&scene.path).await;
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    file.set_len(5000).unwrap();
    let error = opening(&scene.path).await;
    assert!(matches!(error, StoreError::Damaged { .. } | StoreError::NotOurs(_)), "{error:?}");
}

#[tokio::test]
async fn a_missing_directory_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = opening(&dir.path().join("missing/m.db")).await;
    assert!(matches!(&error, StoreError::NoDirectory(missing) if missing.ends_with("missing")), "{error:?}");
    let error = opening(dir.path()).await;
    assert!(matches!(&error, StoreError::NotAFile { kind: "a directory", .. }), "{error:?}");
}

#[tokio::test]
async fn a_full_database_refuses_and_goes_on_when_there_is_room() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    let limit = scene.store.write(|tx| Box::pin(async move { tx.limit_pages(Some(0)).await })).await.unwrap();
    assert!(limit > 0);
    let big = "x".repeat(100_000);
    let error = scene.store.append(scene.text(&claimed, &big)).await.unwrap_err();
    assert!(matches!(error, StoreError::DiskFull), "{error:?}");
    scene.store.write(|tx| Box::pin(async move { tx.limit_pages(None).await })).await.unwrap();
    scene.store.append(scene.text(&claimed, &big)).await.unwrap().unwrap();
    assert_eq!(scene.log("s").await, numbered(&["start", "text-delta"]));
}

#[tokio::test]
async fn the_schema_refuses_illegal_states() {
    let scene = Scene::new(2).await;
    for (session, message) in [("a", "1"), ("a", "2"), ("b", "3"), ("c", "4")] {
        scene.send(session, message).await;
    }
    let claimed = scene.claim(8).await;
    scene.settle(&claimed[1], Outcome::completed()).await.unwrap();
    let conn = rusqlite::Connection::open(&scene.path).unwrap();
    conn.execute_batch("PRAGMA foreign_keys = ON").unwrap();
    let illegal = [
        (
            "two running runs in a session",
            "UPDATE runs SET status = 'running', slot_key = 2, ready = 0, lease_worker = 1, lease_expires_at = 1, claimed_at = 1, first_seq = s.last_seq + 1, last_seq = s.last_seq + 1 FROM sessions s WHERE s.key = session_key AND status = 'queued'",
            "runs.session_key",
        ),
        (
            "two running runs in a slot",
            "INSERT INTO runs (id, session_key, message_key, response_id, workspace, agent, slot_key, status, queued_at, claimed_at, lease_worker, lease_expires_at, first_seq, last_seq) VALUES ('123456789012345678901234567890123456', 2, 3, 'r', 'default', 'demo', 1, 'running', 1, 1, 1, 1, 4, 4)",
            "runs.slot_key",
        ),
        (
            "two running runs in a shared agent",
            "INSERT INTO runs (id, session_key, message_key, response_id, workspace, agent, slot_key, status, queued_at, claimed_at, lease_worker, lease_expires_at, first_seq, last_seq) VALUES ('123456789012345678901234567890123456', 2, 3, 'r', 'default', 'demo', NULL, 'running', 1, 1, 1, 1, 4, 4)",
            "runs.workspace",
        ),
        ("a word that is no status", "UPDATE runs SET status = 'stuck' WHERE status = 'queued'", "status IN"),
        ("running without a lease", "UPDATE runs SET lease_worker = NULL WHERE status = 'running'", "lease_worker"),
        (
            "a settled run that changes",
            "UPDATE runs SET status = 'failed' WHERE status = 'completed'",
            "a settled run does not change",
        ),
        (
            "a settled run that grows",
            "UPDATE runs SET last_seq = last_seq + 1 WHERE status = 'completed'",
            "a settled run does not change",
        ),
        (
            "a settled run that is queued again",
            "UPDATE runs SET status = 'queued', settled_at = NULL WHERE status = 'completed'",
            "a settled run does not change",
        ),
        ("an event that changes", "UPDATE events SET event = '{}'", "append-only"),
        ("a gap in seq", "UPDATE sessions SET last_seq = last_seq + 1", "gap"),
        ("seq that goes back", "UPDATE sessions SET last_seq = 0 WHERE last_seq > 0", "gap"),
        (
            "two sessions in a slot",
            "UPDATE assignments SET slot_key = 1 WHERE slot_key IS NOT NULL",
            "assignments.slot_key",
        ),
        (
            "two places of a session",
            "UPDATE assignments SET session_key = 1 WHERE slot_key IS NOT NULL",
            "assignments.session_key",
        ),
        (
            "a busy session that expires",
            "UPDATE assignments SET state = 'expired', ended_at = 1 WHERE state = 'active'",
            "the session is busy",
        ),
        ("a live assignment that has ended", "UPDATE assignments SET ended_at = 1", "ended_at"),
        ("a worker that leaves its runs", "DELETE FROM workers", "FOREIGN KEY"),
        (
            "a cancel that is withdrawn",
            "UPDATE runs SET cancel_requested_at = 1 WHERE status = 'queued'; UPDATE runs SET cancel_requested_at = NULL WHERE status = 'queued'",
            "not withdrawn",
        ),
        ("a run that has spoken and waits", "UPDATE runs SET said = 1 WHERE status = 'queued'", "said"),
        (
            "an id that could be a path",
            "INSERT INTO sessions (id, workspace, agent, idle_ttl_ms, created_at, updated_at) VALUES ('a/b', 'w', 'a', 1, 1, 1)",
            "id NOT GLOB",
        ),
        ("parts that are no array", "UPDATE messages SET parts = '{}'", "json_type(parts)"),
        (
            "a cause of another status",
            "UPDATE runs SET cause = 'exit_code' WHERE status = 'completed'",
            "status = CASE",
        ),
        ("a word that is no cause", "UPDATE runs SET cause = 'bored' WHERE status = 'completed'", "status = CASE"),
        ("a cause before the end", "UPDATE runs SET cause = 'shutdown' WHERE status = 'running'", "cause IS NULL"),
        ("a pid of no machine", "UPDATE runs SET pid = 1, pid_started_at = 1 WHERE status = 'running'", "pid_scope"),
        ("a title without a word", "UPDATE sessions SET title = ' '", "trim(title)"),
        ("an agent's id that is an option", "UPDATE sessions SET agent_session = '--yolo'", "agent_session"),
    ];
    for (what, sql, guard) in illegal {
        let refused = conn.execute_batch(sql).expect_err(what).to_string();
        assert!(refused.contains(guard), "{what} was refused for another reason: {refused}");
    }
}

#[tokio::test]
async fn key_of_deleted_row_is_never_given_again() {
    let scene = Scene::new(1).await;
    scene.send("a", "1").await;
    let conn = rusqlite::Connection::open(&scene.path).unwrap();
    let newest = |table: &str| {
        let sql = format!("SELECT max(key) FROM {table}");
        conn.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let tables = ["sessions", "messages", "runs"];
    let before = tables.map(newest);
    conn.execute_batch("DELETE FROM runs; DELETE FROM messages; DELETE FROM assignments; DELETE FROM sessions")
        .unwrap();
    scene.send("a", "1").await;
    let after = tables.map(newest);
    for ((table, before), after) in tables.iter().zip(before).zip(after) {
        assert!(after > before, "{table}: {after} after {before}");
    }
}

#[tokio::test]
async fn an_idle_place_ends_when_its_session_is_closed_and_is_preferred_when_it_comes_back() {
    let scene = Scene::new(3).await;
    for (session, message) in [("a", "1"), ("b", "2")] {
        scene.send(session, message).await;
    }
    for claimed in scene.claim(8).await {
        scene.settle(&claimed, Outcome::completed()).await.unwrap();
    }
    for session in ["a", "b"] {
        scene.store.close_session(session.parse().unwrap(), false).await.unwrap().unwrap();
    }
    assert!(scene.store.list_slots().await.unwrap().iter().all(|slot| slot.state == "free"));
    scene.send("b", "3").await;
    let claimed = scene.claim(8).await;
    assert_eq!(claimed[0].slot.as_deref(), Some("chat-slot-default-2"), "the slot it had before");
}

#[tokio::test]
async fn regenerating_replaces_the_answer_and_editing_replaces_what_follows() {
    let scene = Scene::new(1).await;
    let shown = async || {
        let key = scene.store.find_session_key(&"s".parse().unwrap()).await.unwrap().unwrap();
        let start = mainstay::store::message::MessageCursor::START;
        let page = scene.store.list_messages(key, start, 100, false).await.unwrap();
        page.messages.into_iter().map(|message| message.id).collect::<Vec<MessageId>>()
    };
    let mut answers = Vec::new();
    for message in ["m1", "m2"] {
        answers.push(scene.send("s", message).await.run.run.response_id);
        scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    }
    let (m1, m2): (MessageId, MessageId) = ("m1".parse().unwrap(), "m2".parse().unwrap());
    assert_eq!(shown().await, [m1.clone(), answers[0].clone(), m2.clone(), answers[1].clone()]);

    let mut again = scene.enqueue_request("s", "m2");
    again.purpose = Purpose::Regenerate;
    let third = scene.store.enqueue(again.clone()).await.unwrap().unwrap();
    let same = scene.store.enqueue(again).await.unwrap().unwrap();
    assert_eq!((third.created, same.created, third.run.run.id), (true, false, same.run.run.id));
    scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    assert_eq!(shown().await, [m1.clone(), answers[0].clone(), m2, third.run.run.response_id]);

    let mut edit = scene.enqueue_request("s", "m1");
    edit.purpose = Purpose::Edit;
    edit.message = UserMessage::text(m1.clone(), "another text").unwrap();
    let fourth = scene.store.enqueue(edit).await.unwrap().unwrap();
    assert_eq!(shown().await, std::slice::from_ref(&m1));
    scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    assert_eq!(shown().await, [m1, fourth.run.run.response_id]);
}

#[tokio::test]
async fn an_edit_of_a_queued_message_keeps_what_is_queued_behind() {
    let scene = Scene::new(1).await;
    for message in ["m1", "m2", "m3"] {
        scene.send("s", message).await;
    }
    let running = scene.claim(1).await.remove(0);
    let mut edit = scene.enqueue_request("s", "m2");
    edit.purpose = Purpose::Edit;
    edit.message = UserMessage::text("m2".parse().unwrap(), "another text").unwrap();
    let edited = scene.store.enqueue(edit).await.unwrap().unwrap();
    assert!(!edited.created, "it waits, and its run takes the new text");
    let runs = async || {
        let runs = scene.store.list_runs(&Default::default(), 10).await.unwrap();
        runs.into_iter()
            .rev()
            .map(|located| (located.run.message_id.to_string(), located.run.status))
            .collect::<Vec<_>>()
    };
    let expect =
        |runs: &[(&str, Status)]| runs.iter().map(|(id, status)| ((*id).to_owned(), *status)).collect::<Vec<_>>();
    let (busy, queued, cancelled) = (Status::Running, Status::Queued, Status::Cancelled);
    assert_eq!(runs().await, expect(&[("m1", busy), ("m2", queued), ("m3", queued)]));
    scene.settle(&running, Outcome::completed()).await.unwrap();
    let claimed = scene.claim(1).await.remove(0);
    assert_eq!(claimed.run, edited.run.run.id);
    assert!(claimed.message_parts.contains("another text"), "it is answered as it reads now");
    let mut edit = scene.enqueue_request("s", "m1");
    edit.purpose = Purpose::Edit;
    edit.message = UserMessage::text("m1".parse().unwrap(), "another text").unwrap();
    scene.store.enqueue(edit).await.unwrap().unwrap();
    let all = [("m1", Status::Completed), ("m2", busy), ("m3", cancelled), ("m1", queued)];
    assert_eq!(runs().await, expect(&all));
}

#[tokio::test]
async fn a_session_that_waits_keeps_its_place_in_the_line_when_its_message_is_replaced() {
    let scene = Scene::new(1).await;
    scene.send("a", "m1").await;
    let mut request = scene.enqueue_request("b", "m1");
    request.when_full = WhenFull::Wait;
    scene.store.enqueue(request.clone()).await.unwrap().unwrap();
    scene.clock.advance(Duration::from_secs(1));
    let mut behind = scene.enqueue_request("c", "m1");
    behind.when_full = WhenFull::Wait;
    scene.store.enqueue(behind).await.unwrap().unwrap();
    scene.clock.advance(Duration::from_secs(1));
    request.purpose = Purpose::Edit;
    request.message = UserMessage::text("m1".parse().unwrap(), "another text").unwrap();
    scene.store.enqueue(request).await.unwrap().unwrap();
    scene.store.close_session("a".parse().unwrap(), true).await.unwrap().unwrap();
    assert_eq!(scene.claim(8).await[0].session_id.as_str(), "b");
}

/// So many queued runs of a session, as its messages would have made them.
fn fill_queue(path: &Path, session: &str, runs: i64) {
    let db = rusqlite::Connection::open(path).unwrap();
    db.execute_batch(&format!(
        "BEGIN IMMEDIATE;
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {runs})
         INSERT INTO messages (session_key, id, role, parts, created_at, updated_at)
             SELECT s.key, 'q-' || i, 'user', '[]', 0, 0 FROM n, sessions s WHERE s.id = '{session}';
         INSERT INTO runs (id, session_key, message_key, response_id, workspace, agent, status, queued_at)
             SELECT printf('%08d-0000-7000-8000-000000000000', key), session_key, key, 'r-' || key, 'default', 'demo', 'queued', 0
             FROM messages WHERE id LIKE 'q-%' ORDER BY key;
         COMMIT;"
    ))
    .unwrap();
}

#[tokio::test]
async fn a_long_queue_is_cancelled_in_short_transactions() {
    let scene = Scene::new(1).await;
    scene.send("s", "first").await;
    let running = scene.claim(1).await.remove(0);
    fill_queue(&scene.path, "s", 2 * RUNS_AT_ONCE + 50);
    let count = |what: &str| -> i64 {
        let db = rusqlite::Connection::open(&scene.path).unwrap();
        db.query_row(&format!("SELECT count(*) FROM runs WHERE {what}"), [], |row| row.get(0)).unwrap()
    };
    let (queued, unwritten) = ("status = 'queued'", "settled_at IS NOT NULL AND first_seq IS NULL");
    let closed = scene.store.close_session("s".parse().unwrap(), true).await.unwrap().unwrap();
    assert_eq!((closed, count(queued)), (Closed::Closing, RUNS_AT_ONCE + 50));
    assert!(!scene.store.go_on_closing().await.unwrap(), "the running run comes first");
    assert!(scene.store.find_session(&"s".parse().unwrap()).await.unwrap().unwrap().closing);

    scene.notices.lock().unwrap().clear();
    scene.settle(&running, Outcome::cancelled()).await.unwrap();
    assert!(scene.notices.lock().unwrap().iter().any(|notice| matches!(notice, Notice::Closing)), "it is gone on with");
    assert_eq!((count(unwritten), count(queued)), (0, RUNS_AT_ONCE + 50));
    assert!(scene.claim(8).await.is_empty(), "what is to be cancelled is not claimed");
    let later = Enqueue { max_queued: 1, ..scene.enqueue_request("s", "later") };
    let later = scene.store.enqueue(later).await.unwrap().expect("what is to be cancelled takes no place in the queue");
    // As another process, after this one has crashed.
    let other = open(&scene.path, scene.clock.clone(), Arc::default()).await.unwrap();
    assert!(other.go_on_closing().await.unwrap());
    assert_eq!((count(queued), count(unwritten)), (50 + 1, 0));
    assert!(!other.go_on_closing().await.unwrap());
    assert_eq!((count(queued), count(unwritten)), (1, 0));
    other.close().await;
    let claimed = scene.claim(8).await;
    assert_eq!(claimed.iter().map(|claimed| claimed.run).collect::<Vec<_>>(), [later.run.run.id]);
    assert!(!scene.store.find_session(&"s".parse().unwrap()).await.unwrap().unwrap().closing);
    let disorder =
        "SELECT count(*) || '' FROM messages a JOIN messages b ON b.key = a.key + 1 AND b.position < a.position
        WHERE a.id LIKE 'q-%' AND b.id LIKE 'q-%'";
    assert_eq!(scene.query(disorder), "0");
}

#[tokio::test]
async fn spans_of_many_cancelled_runs_are_written_some_at_a_time() {
    let scene = Scene::new(1).await;
    scene.send("s", "first").await;
    let running = scene.claim(1).await.remove(0);
    fill_queue(&scene.path, "s", RUNS_AT_ONCE + 30);
    let queued: Vec<String> = {
        let db = rusqlite::Connection::open(&scene.path).unwrap();
        let mut ids = db.prepare("SELECT id FROM runs WHERE status = 'queued'").unwrap();
        ids.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    for run in queued {
        scene.store.cancel_run(run.parse().unwrap()).await.unwrap().unwrap();
    }
    scene.settle(&running, Outcome::completed()).await.unwrap();
    let unwritten = "SELECT count(*) || '' FROM runs WHERE first_seq IS NULL";
    assert_eq!(scene.query(unwritten), "30");
    assert!(!scene.store.go_on_closing().await.unwrap());
    assert_eq!(scene.query(unwritten), "0");
}

#[tokio::test]
async fn run_that_is_short_of_something_rests_in_the_queue() {
    let scene = Scene::new(1).await;
    let run = scene.send("s", "first").await.run;
    let first = scene.claim(1).await.remove(0);
    let rest = Duration::from_secs(5);
    assert!(scene.store.put_back_short(first.lease, rest, "No space left\0".into()).await.unwrap());
    assert!(!scene.store.put_back_short(first.lease, rest, "again".into()).await.unwrap(), "the lease is gone");
    assert!(scene.claim(1).await.is_empty());
    let most = BTreeMap::from([("demo".parse().unwrap(), 5)]);
    let waits_for = scene.store.waits_for(&[run.key], &most).await.unwrap();
    assert_eq!(waits_for[&run.key], WaitsFor::Resources);
    let short_of = "SELECT short_of FROM v_runs WHERE status = 'queued'";
    assert_eq!(scene.query(short_of), "No space left\u{fffd}");
    scene.clock.advance(rest);
    let again = scene.claim(1).await.remove(0);
    assert_eq!((again.run, again.shortages), (first.run, 1));
    assert!(scene.store.is_first_try(run.key).await.unwrap(), "its agent was not tried before");
    assert_eq!(scene.query("SELECT coalesce(short_of, 'none') FROM v_runs"), "none");
    assert!(scene.store.put_back_short(again.lease, rest, "No space left".into()).await.unwrap());
    let cancelled = scene.store.cancel_run(run.run.id).await.unwrap().unwrap();
    assert_eq!(cancelled.run.run.status, Status::Cancelled);
}

#[tokio::test]
async fn a_queue_has_a_limit() {
    let scene = Scene::new(1).await;
    scene.send("s", "first").await;
    scene.claim(1).await;
    let request = |message: &str| Enqueue { max_queued: 2, ..scene.enqueue_request("s", message) };
    for message in ["a", "b"] {
        scene.store.enqueue(request(message)).await.unwrap().unwrap();
    }
    assert_eq!(scene.store.enqueue(request("c")).await.unwrap().unwrap_err(), Refusal::QueueFull(2));
    assert!(!scene.store.enqueue(request("b")).await.unwrap().unwrap().created, "it is there");
    let elsewhere = Enqueue { session: "t".parse().unwrap(), ..request("c") };
    assert!(scene.store.enqueue(elsewhere).await.unwrap().is_ok());
}

#[tokio::test]
async fn an_answer_to_what_was_replaced_while_it_ran_is_not_shown() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let old = scene.claim(1).await.remove(0);
    let mut edit = scene.enqueue_request("s", "m1");
    edit.purpose = Purpose::Edit;
    edit.message = UserMessage::text("m1".parse().unwrap(), "another text").unwrap();
    let new = scene.store.enqueue(edit).await.unwrap().unwrap();
    scene.settle(&old, Outcome::completed()).await.unwrap();
    scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    assert_eq!(scene.shown("s").await, ["m1", new.run.run.response_id.as_str()]);
}

#[tokio::test]
async fn a_hidden_message_that_is_answered_anew_is_shown_with_its_answer() {
    let scene = Scene::new(1).await;
    for message in ["m1", "m2"] {
        scene.send("s", message).await;
        scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    }
    let mut answers = Vec::new();
    for message in ["m1", "m2"] {
        let mut again = scene.enqueue_request("s", message);
        again.purpose = Purpose::Regenerate;
        answers.push(scene.store.enqueue(again).await.unwrap().unwrap().run.run.response_id);
        scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    }
    assert_eq!(scene.shown("s").await, ["m1", answers[0].as_str(), "m2", answers[1].as_str()]);
}

#[tokio::test]
async fn a_removed_worker_does_not_come_back_as_another_one() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    assert_eq!(scene.store.remove_workers(vec![scene.worker]).await.unwrap(), 1);
    let process = ProcessIdentity { host: "test".into(), pid: 2, started_at_ticks: 2 };
    let id = mainstay::id::WorkerId::generate();
    let registration = Registration { id, process, hostname: "test".into(), capacity: 8, lease: LEASE };
    assert_ne!(scene.store.register_worker(registration).await.unwrap(), scene.worker);
    let request = ClaimRequest {
        worker: scene.worker,
        limit: 1,
        agents: BTreeMap::from([("demo".parse().unwrap(), 1)]),
        workspaces: vec!["default".parse().unwrap()],
        only: None,
        lease: LEASE,
    };
    assert!(scene.store.claim(request).await.is_err(), "it claims under nobody's name");
}

#[tokio::test]
async fn closing_leaves_no_statistics_that_would_slow_down_a_file_that_grows() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    scene.store.close().await;
    let conn = rusqlite::Connection::open(&scene.path).unwrap();
    let count = "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'sqlite_stat%'";
    assert_eq!(conn.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}

#[tokio::test]
async fn a_worker_that_was_forgotten_is_there_again_with_its_next_heartbeat() {
    let scene = Scene::new(1).await;
    assert_eq!(scene.store.remove_workers(vec![scene.worker]).await.unwrap(), 1);
    scene.store.renew(scene.worker, scene.registration.clone(), vec![]).await.unwrap();
    scene.send("s", "m1").await;
    assert_eq!(scene.claim(1).await.len(), 1);
}

#[tokio::test]
async fn a_full_disk_that_ends_the_transaction_does_not_end_the_writer() {
    let scene = Scene::new(1).await;
    scene.store.write(|tx| Box::pin(async move { tx.limit_pages(Some(0)).await })).await.unwrap();
    let mut refused = 0;
    for number in 0..200 {
        let mut new = NewSession::of("default".parse().unwrap(), "demo".parse().unwrap(), 1000);
        new.title = Some("t".repeat(400));
        let id = format!("many{number}").parse().unwrap();
        match scene.store.create_session(id, new, Default::default()).await {
            Ok(_) => {}
            Err(StoreError::DiskFull) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(refused > 1);
    scene.store.write(|tx| Box::pin(async move { tx.limit_pages(None).await })).await.unwrap();
    assert!(scene.send("s", "m1").await.created);
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
async fn who_waits_for_one_run_claims_nothing_behind_it() {
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
async fn a_title_that_somebody_gave_is_not_the_agents_to_change() {
    let scene = Scene::new(1).await;
    let (id, text) = (|| "s".parse::<SessionId>().unwrap(), |title: &str| Some(title.to_owned()));
    let sent = scene.enqueue_request("s", "m1");
    let new = NewSession { title: text("at the beginning"), ..sent.new.clone() };
    scene.store.create_session(id(), new, NamedValues::default()).await.unwrap();
    scene.store.enqueue(sent).await.unwrap().unwrap();
    let claimed = scene.claim(1).await.remove(0);
    let says = async |title: &str| {
        let append = Append { facts: vec![Fact::Title(title.to_owned())], ..scene.text(&claimed, "a") };
        scene.store.append(append).await.unwrap().unwrap();
        scene.store.find_session(&id()).await.unwrap().unwrap().title
    };
    assert_eq!(says("one").await, text("at the beginning"));
    assert!(scene.store.update_session(id(), Some(None), None).await.unwrap());
    assert_eq!(scene.store.find_session(&id()).await.unwrap().unwrap().title, None);
    assert_eq!(says("two").await, text("two"));
    assert_eq!(says("three").await, text("three"));
    assert!(scene.store.update_session(id(), Some(text("later")), None).await.unwrap());
    assert_eq!(says("four").await, text("later"));
    assert!(scene.store.update_session(id(), None, Some(1000)).await.unwrap());
    assert_eq!(says("five").await, text("later"));
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
        // What the agent got over, or what did not end the turn, is no class of its failure.
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

#[tokio::test]
async fn a_run_gives_up_one_session_of_its_agent_and_only_one_that_was_there_before() {
    let scene = Scene::new(1).await;
    let own = |id: &str| Fact::AgentSession { id: id.parse().unwrap(), origin: "new" };
    let said =
        |claimed: &Claimed, facts| Append { facts, events: Arc::default(), said: false, ..scene.text(claimed, "") };
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    assert!(!scene.store.put_back_afresh(claimed.lease).await.unwrap(), "there is none to give up");
    scene.store.append(said(&claimed, vec![own("first")])).await.unwrap().unwrap();
    assert!(!scene.store.put_back_afresh(claimed.lease).await.unwrap(), "its agent said that it is in it");
    scene.settle(&claimed, Outcome::completed()).await.unwrap();

    scene.send("s", "m2").await;
    let old = scene.claim(1).await.remove(0);
    assert_eq!(old.agent_session.as_ref().map(AgentSessionId::as_str), Some("first"));
    assert!(scene.store.put_back_afresh(old.lease).await.unwrap());
    assert!(!scene.store.put_back_afresh(old.lease).await.unwrap(), "the lease is gone");
    let again = scene.claim(1).await.remove(0);
    assert_eq!((again.run, again.agent_session.as_ref().map(AgentSessionId::as_str)), (old.run, None));
    scene.store.append(said(&again, vec![own("second")])).await.unwrap().unwrap();
    assert!(!scene.store.put_back_afresh(again.lease).await.unwrap(), "once is enough");
    let mut spoken = scene.text(&again, "a");
    spoken.source_offset = 20;
    scene.store.append(spoken).await.unwrap().unwrap();
    scene.settle(&again, Outcome::because(Cause::ExitCode, "code 1")).await.unwrap();

    let history = scene.store.list_agent_sessions(again.session, 10).await.unwrap();
    let history: Vec<_> = history.iter().map(|one| (one.id.as_str(), one.lost_in)).collect();
    assert_eq!(history, [("second", None), ("first", Some(old.run))]);
    let session = scene.store.find_session(&"s".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(session.agent_session.unwrap().id, "second");

    // A turn that has spoken is never run again, and one that is to stop neither.
    scene.send("s", "m3").await;
    let claimed = scene.claim(1).await.remove(0);
    scene.store.append(scene.text(&claimed, "a")).await.unwrap().unwrap();
    assert!(!scene.store.put_back_afresh(claimed.lease).await.unwrap());
    scene.settle(&claimed, Outcome::completed()).await.unwrap();
    let sent = scene.send("s", "m4").await;
    let claimed = scene.claim(1).await.remove(0);
    scene.store.cancel_run(sent.run.run.id).await.unwrap();
    assert!(!scene.store.put_back_afresh(claimed.lease).await.unwrap());
}

#[tokio::test]
async fn a_session_of_the_agent_is_not_lost_in_a_run_that_was_cancelled_before_it_said_anything() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    let known = vec![Fact::AgentSession { id: "first".parse().unwrap(), origin: "new" }];
    scene.store.append(Append { facts: known, ..scene.text(&claimed, "a") }).await.unwrap().unwrap();
    scene.settle(&claimed, Outcome::completed()).await.unwrap();
    for id in ["m2", "m3"] {
        let sent = scene.send("s", id).await;
        let claimed = scene.claim(1).await.remove(0);
        assert_eq!(claimed.agent_session.as_ref().map(AgentSessionId::as_str), Some("first"), "{id}");
        assert!(scene.store.put_back_afresh(claimed.lease).await.unwrap());
        if id == "m2" {
            scene.store.cancel_run(sent.run.run.id).await.unwrap();
        } else {
            let again = scene.claim(1).await.remove(0);
            scene.store.cancel_run(sent.run.run.id).await.unwrap();
            scene.settle(&again, Outcome::cancelled()).await.unwrap();
        }
        let kept = scene.store.find_session(&"s".parse().unwrap()).await.unwrap().unwrap().agent_session.unwrap();
        assert_eq!((kept.id.as_str(), kept.lost_in), ("first", None), "{id}");
    }
}

#[tokio::test]
async fn a_session_is_never_its_own_parent() {
    let scene = Scene::new(1).await;
    let new = |parent: Option<&str>| NewSession {
        spawned_by: parent.map(|id| id.parse().unwrap()),
        ..NewSession::of("default".parse().unwrap(), "demo".parse().unwrap(), 1000)
    };
    for (id, parent) in [("a", None), ("b", Some("a"))] {
        scene.store.create_session(id.parse().unwrap(), new(parent), NamedValues::default()).await.unwrap();
    }
    let other = rusqlite::Connection::open(&scene.path).unwrap();
    for sql in [
        "UPDATE sessions SET spawned_by = (SELECT key FROM sessions WHERE id = 'b') WHERE id = 'a'",
        "UPDATE sessions SET spawned_by = NULL WHERE id = 'b'",
        "INSERT INTO sessions (key, id, workspace, agent, idle_ttl_ms, created_at, updated_at, spawned_by)
         VALUES (99, 'c', 'w', 'a', 1, 0, 0, 99)",
    ] {
        assert!(other.execute(sql, []).is_err(), "{sql}");
    }
}

#[tokio::test]
async fn views_show_text_whole_and_its_parts_apart() {
    let scene = Scene::new(1).await;
    let parts = ["a\0b \\u0000 \"", "", "second\n"].map(|text| serde_json::json!({"type": "text", "text": text}));
    let message = UserMessage::from_parts("m".parse().unwrap(), parts.to_vec(), None).unwrap();
    let request = Enqueue { message, ..scene.enqueue_request("s", "m") };
    scene.store.enqueue(request).await.unwrap().unwrap();
    let claimed = scene.claim(1).await.remove(0);
    let mut append = scene.text(&claimed, "x");
    append.facts = vec![Fact::Progress("p\0q".into()), Fact::Title("t\0u".into())];
    scene.store.append(append).await.unwrap().unwrap();
    let exit =
        ExitReport { stderr: Some("e\0f".into()), malformed_sample: Some("m\0n".into()), ..ExitReport::default() };
    let settle = Settle {
        lease: claimed.lease,
        session: claimed.session,
        run_id: claimed.run,
        events: vec![Chunk::Finish { finish_reason: FinishReason::Stop, message_metadata: None }],
        source_offset: 0,
        outcome: Outcome::because(Cause::AgentError, "g\0h"),
        exit,
        parts: None,
        progress: None,
        resumes: 0,
    };
    scene.store.settle(settle).await.unwrap().unwrap();
    let conn = rusqlite::Connection::open(&scene.path).unwrap();
    let row = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(row("SELECT text FROM v_messages WHERE role = 'user'"), "a\u{fffd}b \\u0000 \"\n\nsecond\n");
    let texts = row("SELECT error || stderr || malformed_sample || progress FROM v_runs");
    assert_eq!(texts, "g\u{fffd}he\u{fffd}fm\u{fffd}np\u{fffd}q");
    assert_eq!(row("SELECT title FROM v_sessions"), "t\u{fffd}u");
}

#[tokio::test]
async fn pages_of_large_events_end_by_their_bytes() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    let large = "x".repeat(5_000_000);
    for _ in 0..5 {
        scene.store.append(scene.text(&claimed, &large)).await.unwrap().unwrap();
    }
    let range = |after, limit| Range { session: claimed.session, run: None, after, limit };
    let seqs = |events: &[mainstay::event::Event]| events.iter().map(|event| event.seq).collect::<Vec<_>>();
    let page = async |after, limit| {
        let page = scene.store.event_page(range(after, limit)).await.unwrap();
        (seqs(&page.events), page.more)
    };
    // One event, or as many as fit into 4 MiB.
    assert_eq!(page(0, 500).await, (vec![1], true));
    assert_eq!(page(1, 500).await, (vec![2], true));
    assert_eq!(page(5, 500).await, (vec![6], false));
    assert_eq!(page(6, 2).await, (vec![], false));
    assert_eq!(seqs(&scene.store.events(range(0, 500)).await.unwrap()), [1, 2, 3, 4, 5, 6]);
    assert_eq!(seqs(&scene.store.events(range(0, 3)).await.unwrap()), [1, 2, 3]);
    // A stream gives a large event out in pieces.
    let frames = async |after| scene.store.frames(range(after, 1000), 1_000_000).await.unwrap();
    assert!(matches!(frames(0).await, Some(Frames::Events { last_seq: 1, .. })));
    let Some(Frames::Large { seq: 2, bytes }) = frames(1).await else { panic!("it is large") };
    let mut whole = Vec::new();
    while whole.len() < bytes as usize {
        whole.extend(scene.store.event_piece(claimed.session, 2, whole.len() as i64, 2_000_000).await.unwrap());
    }
    let event = scene.store.events(range(1, 1)).await.unwrap().remove(0);
    assert!(whole == event.event.get().as_bytes());
    assert_eq!(frames(6).await, None);
}

#[tokio::test]
async fn pages_of_large_permissions_end_by_their_bytes() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    for number in 0..6 {
        let request = PermissionRequest {
            request: format!("r{number}"),
            tool_call: "t".into(),
            tool: "t".into(),
            kind: ToolKind::Other,
            title: "t".into(),
            input: "x".repeat(if number == 0 { 5_000_000 } else { 1_000_000 }).into(),
            options: Vec::new(),
        };
        let new = NewPermission { id: PermissionId::generate(), request, expires_at: None, decision: None };
        let mut append = scene.text(&claimed, "?");
        append.facts = vec![Fact::Permission(Box::new(new))];
        scene.store.append(append).await.unwrap().unwrap();
    }
    let (mut pages, mut filter) = (Vec::new(), PermissionFilter::default());
    loop {
        let page = scene.store.permission_page(&filter, 500).await.unwrap();
        let asked = page.permissions.iter().map(|(_, permission)| permission.request.request.clone());
        pages.push(asked.collect::<Vec<_>>().join(" "));
        filter.before = page.permissions.last().map(|(cursor, _)| *cursor);
        if !page.more {
            break;
        }
    }
    assert_eq!(pages, ["r5 r4 r3 r2", "r1", "r0"]);
    let page = scene.store.permission_page(&PermissionFilter::default(), 2).await.unwrap();
    assert_eq!((page.permissions.len(), page.more), (2, true));
}
