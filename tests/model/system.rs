//! The store under test: executes an operation, and compares the answer with the model's.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use mainstay::clock::{ManualClock, Timestamp};
use mainstay::config::Durability;
use mainstay::id::{PermissionId, RunId, WorkerId};
use mainstay::lease::{HeldLease, Lease, LeaseLost, RunKey, WorkerKey};
use mainstay::message::UserMessage;
use mainstay::permission::{Answer as PermissionAnswer, OptionKind, PermissionOption, PermissionRequest, ToolKind};
use mainstay::run::{ExitReport, Outcome, RunOptions};
use mainstay::store::event::Appended;
use mainstay::store::fact::Fact;
use mainstay::store::permission::{Answered, GiveAnswer, NewPermission};
use mainstay::store::run::{ClaimRequest, Enqueue, Lost, Refusal, SessionScope, Settle};
use mainstay::store::session::{Closed, NewSession};
use mainstay::store::worker::Registration;
use mainstay::store::{Store, StoreError, event};
use mainstay::worker::ProcessIdentity;
use mainstay::workspace::{ClientAccess, WhenFull, Workspace};

use crate::invariants::Observer;
use crate::ops;
use crate::ops::{
    AGENTS, Answer, Ask, Claim, LEASE_MS, Op, SCRIPT_LINES, SLOT_BOUND_AGENT, START_MS, Seen, TTL_MS, Taken, WORKSPACES,
};
use crate::reference::{Model, OPEN_MS};

/// No operation takes this long, unless it waits for an answer that never comes.
const STUCK: Duration = Duration::from_secs(20);

/// The store under test, and what its users remember.
pub struct System {
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
    path: PathBuf,
    clock: Arc<ManualClock>,
    store: Option<Store>,
    workers: [WorkerKey; 2],
    ids: RefCell<BTreeMap<RunKey, RunId>>,
    readings: RefCell<HashMap<Lease, Reading>>,
    pub observer: Observer,
}

/// What the holder of a lease knows of the agent: which one it is, and how far it has read.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    agent: i64,
    offset: i64,
}

async fn open(path: &std::path::Path, clock: Arc<ManualClock>) -> Store {
    Store::open(path, Durability::Process, clock, Box::new(|_| {}), |_| true).await.unwrap()
}

const LEASE: Duration = Duration::from_millis(LEASE_MS.unsigned_abs());

fn registration() -> Registration {
    let process = ProcessIdentity { host: "test".into(), pid: 1, started_at_ticks: 1 };
    Registration { id: WorkerId::generate(), process, hostname: "test".into(), capacity: 8, lease: LEASE }
}

async fn register(store: &Store) -> WorkerKey {
    store.register_worker(registration()).await.unwrap()
}

fn workspace(number: usize, slots: u32, when_full: WhenFull) -> Workspace {
    let (name, agent) = (WORKSPACES[number].parse().unwrap(), AGENTS[0].parse().unwrap());
    Workspace {
        name,
        dir: "/".into(),
        agent,
        slots,
        when_full,
        client: ClientAccess::default(),
        allowed: Default::default(),
    }
}

fn session_id(name: usize) -> mainstay::id::SessionId {
    format!("s{name}").parse().unwrap()
}

fn written(result: Result<Result<Appended, LeaseLost>, StoreError>) -> Answer {
    match result {
        Ok(Ok(appended)) => Answer::LastSeq(appended.last_seq),
        Ok(Err(LeaseLost)) => Answer::LeaseLost,
        Err(_) => Answer::Failed,
    }
}

impl System {
    pub fn new(model: &Model) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.db");
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(START_MS)));
        let (store, workers) = runtime.block_on(async {
            let store = open(&path, clock.clone()).await;
            store.sync_slots(workspace(0, 2, WhenFull::Share)).await.unwrap();
            store.sync_slots(workspace(1, 1, WhenFull::Share)).await.unwrap();
            let workers = [register(&store).await, register(&store).await];
            (store, workers)
        });
        let mut observer = Observer::new(&path);
        observer.look(model);
        let (store, ids, readings) = (Some(store), RefCell::default(), RefCell::default());
        Self { runtime, _dir: dir, path, clock, store, workers, ids, readings, observer }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// Executes an operation that the model has executed already, and compares.
    pub fn step(&mut self, op: &Op, model: &Model) {
        self.clock.set(Timestamp::from_millis(model.now));
        let answer = match op {
            Op::Reopen { close } => self.reopen(*close),
            op => self.runtime.block_on(async { tokio::time::timeout(STUCK, self.ask(op)).await }).expect("an answer"),
        };
        if let (Op::Register { worker }, Answer::Worker(key)) = (op, &answer) {
            self.workers[*worker] = *key;
        }
        assert_eq!(answer, model.answer, "the answer to {op:?}");
        self.observer.look(model);
    }

    /// Closed in order, or dropped without that.
    fn reopen(&mut self, close: bool) -> Answer {
        let store = self.store.take().unwrap();
        let reopened = self.runtime.block_on(async {
            if close {
                store.close().await;
            }
            drop(store);
            open(&self.path, self.clock.clone()).await
        });
        self.store = Some(reopened);
        Answer::Done
    }

    /// Boxed, because it recurses for operations that are handed in together.
    fn ask<'a>(&'a self, op: &'a Op) -> LocalBoxFuture<'a, Answer> {
        Box::pin(async move {
            match op {
                Op::Enqueue(new) => self.enqueue(new).await,
                Op::Claim(claim) => self.claim(claim).await,
                Op::Append(append) => self.append(append).await,
                Op::Settle(settle) => self.settle(settle).await,
                Op::Cancel { run } => self.cancel(*run).await,
                Op::TakeOver { worker, dead, ran_out, own, limit } => {
                    self.take_over(*worker, dead, ran_out, own.clone(), *limit).await
                }
                Op::Together(ops) => Answer::All(join_all(ops.iter().map(|op| self.ask(op))).await),
                op => self.ask_briefly(op).await,
            }
        })
    }

    /// Operations that are passed on unchanged.
    async fn ask_briefly(&self, op: &Op) -> Answer {
        let (store, now) = (self.store(), self.store().clock().now());
        match op {
            Op::Renew { worker, leases } => {
                let renewed = store.renew(self.workers[*worker], registration(), leases.clone()).await.unwrap();
                Answer::Leases(renewed.into_iter().map(|lease| (lease.run, lease.token)).collect())
            }
            Op::PutBack { lease } => Answer::Is(store.put_back(*lease).await.unwrap()),
            Op::GiveBack { lease } => {
                store.let_expire(*lease).await.unwrap();
                Answer::Done
            }
            Op::ExpireIdle { limit } => Answer::Count(store.expire_idle(i64::try_from(*limit).unwrap()).await.unwrap()),
            Op::Purge { age, limit } => {
                let before = now - Duration::from_millis(age.unsigned_abs());
                Answer::Count(store.purge_assignments(before, i64::try_from(*limit).unwrap()).await.unwrap())
            }
            Op::Close { session, cancel } => match store.close_session(session_id(*session), *cancel).await.unwrap() {
                None => Answer::Unknown,
                Some(Closed::Closed) => Answer::Closed("closed"),
                Some(Closed::Closing) => Answer::Closed("closing"),
                Some(Closed::Busy(_)) => Answer::Closed("busy"),
            },
            Op::SyncSlots { workspace: number, slots, when_full } => {
                store.sync_slots(workspace(*number, *slots, *when_full)).await.unwrap();
                Answer::Done
            }
            Op::Update { session, ttl } => {
                Answer::Is(store.update_session(session_id(*session), None, Some(*ttl)).await.unwrap())
            }
            Op::Answer { permission, approved } => self.answer(*permission, *approved).await,
            Op::ExpireQuestions { run } => Answer::Count(store.expire_permissions(*run).await.unwrap()),
            Op::Register { .. } => Answer::Worker(register(store).await),
            Op::Deregister { worker } => {
                store.deregister_worker(self.workers[*worker]).await.unwrap();
                Answer::Done
            }
            Op::RemoveWorkers { workers } => {
                let workers = workers.iter().map(|worker| self.workers[*worker]).collect();
                Answer::Count(store.remove_workers(workers).await.unwrap())
            }
            Op::Park { run, until } => {
                // As another process on the file would: the store itself does not park runs yet.
                let other = rusqlite::Connection::open(&self.path).unwrap();
                other.busy_timeout(Duration::from_secs(5)).unwrap();
                let park = "UPDATE runs SET not_before = ?2 WHERE key = ?1 AND status = 'queued'";
                other.execute(park, [*run, now.as_millis() + until]).unwrap();
                Answer::Done
            }
            _ => Answer::Done,
        }
    }

    async fn enqueue(&self, new: &ops::Enqueue) -> Answer {
        let (workspace, agent) = (WORKSPACES[new.workspace].parse().unwrap(), AGENTS[new.agent].parse().unwrap());
        let request = Enqueue {
            session: session_id(new.session),
            new: NewSession::of(workspace, agent, TTL_MS),
            workspace_named: new.named,
            agent_named: new.named,
            message: UserMessage::text(format!("m{}", new.message).parse().unwrap(), new.text()).unwrap(),
            purpose: new.purpose,
            options: RunOptions { when_busy: new.when_busy, timeout: None, priority: new.priority },
            declined_by: None,
            goes_next: new.goes_next,
            max_queued: 1000,
            when_full: new.when_full,
            slot_bound: vec![AGENTS[SLOT_BOUND_AGENT].parse().unwrap()],
            close_when_idle: new.close_when_idle,
        };
        match self.store().enqueue(request).await.unwrap() {
            Ok(enqueued) => {
                self.ids.borrow_mut().insert(enqueued.run.key, enqueued.run.run.id);
                Answer::Enqueued { run: enqueued.run.key, created: enqueued.created }
            }
            Err(refusal) => Answer::Refused(match refusal {
                Refusal::QueueFull(_) => "queue full",
                Refusal::Busy(_) => "busy",
                Refusal::PoolFull(_) => "pool full",
                Refusal::Differs { .. } => "differs",
                Refusal::IdTaken(_) => "id taken",
                Refusal::MessageDiffers(_) => "other parts",
            }),
        }
    }

    async fn claim(&self, claim: &Claim) -> Answer {
        let agents = AGENTS.iter().zip(claim.places).filter_map(|(name, most)| Some((name.parse().unwrap(), most?)));
        let only = match claim.session {
            Some(session) => {
                // A client that waits for a run of the session; if none is left, nothing in it can be claimed anyway.
                let awaited = self.store().find_current_run(session).await.unwrap();
                Some(SessionScope { session, until: awaited.map_or(0, |awaited| awaited.key) })
            }
            None => None,
        };
        let request = ClaimRequest {
            worker: self.workers[claim.worker],
            limit: claim.limit,
            agents: agents.collect(),
            workspaces: WORKSPACES.iter().map(|name| name.parse().unwrap()).collect(),
            only,
            lease: LEASE,
        };
        let Ok(claimed) = self.store().claim(request).await else { return Answer::Failed };
        let begun = claimed.iter().map(|one| (one.lease, Reading { agent: one.lease.token, offset: 0 }));
        self.readings.borrow_mut().extend(begun);
        Answer::Claimed(claimed.into_iter().map(|one| (one.lease.run, (one.lease.token, one.slot))).collect())
    }

    /// The public id; a new one for a run that does not exist.
    fn id_of(&self, run: RunKey) -> RunId {
        self.ids.borrow().get(&run).copied().unwrap_or_else(RunId::generate)
    }

    fn reading(&self, lease: Lease) -> Reading {
        self.readings.borrow().get(&lease).copied().unwrap_or_default()
    }

    async fn append(&self, append: &ops::Append) -> Answer {
        let text = "x".repeat(append.bytes);
        let Reading { agent, offset } = self.reading(append.lease);
        let to = (offset + i64::try_from(append.count).unwrap()).min(SCRIPT_LINES);
        let event = |line: i64| {
            let line = format!(r#""line":"{agent}:{line}""#);
            match append.kind() {
                "text-delta" => format!(r#"{{"type":"text-delta","id":"text-1",{line},"delta":"{text}"}}"#),
                kind => format!(r#"{{"type":"{kind}",{line},"data":{{"label":"{text}"}},"transient":true}}"#),
            }
        };
        let mut events: Vec<_> = (offset..to).map(event).collect();
        if append.broken {
            events.push("{not json".to_owned());
        }
        let request = event::Append {
            lease: append.lease,
            session: 0,
            run_id: self.id_of(append.lease.run),
            said: append.said && to > offset,
            events: events.into(),
            facts: append
                .asks
                .filter(|_| append.said && to > offset)
                .map(|ask| self.fact_of(ask))
                .into_iter()
                .collect(),
            source_offset: to,
            parts: append.parts.map(|version| parts(version).into()),
        };
        match written(self.store().append(request).await) {
            // Which of its two faults is found first is left open.
            Answer::LeaseLost if append.broken => Answer::Failed,
            Answer::LastSeq(seq) => {
                self.readings.borrow_mut().insert(append.lease, Reading { agent, offset: to });
                Answer::LastSeq(seq)
            }
            answer => answer,
        }
    }

    fn fact_of(&self, ask: Ask) -> Fact {
        let option = |id: &str, kind| PermissionOption { id: id.to_owned(), name: id.to_owned(), kind };
        let request = PermissionRequest {
            request: ask.request.to_string(),
            tool_call: "t".into(),
            tool: "bash".into(),
            kind: ToolKind::Execute,
            title: "May it?".into(),
            input: serde_json::json!({}),
            options: vec![option("yes", OptionKind::AllowOnce), option("no", OptionKind::RejectOnce)],
        };
        let decision = request.decide(&PermissionAnswer::Approved(true)).filter(|_| ask.by_policy);
        let open_for = Duration::from_millis(OPEN_MS.unsigned_abs());
        let expires_at = decision.is_none().then(|| self.store().clock().now() + open_for);
        Fact::Permission(Box::new(NewPermission { id: PermissionId::generate(), request, expires_at, decision }))
    }

    async fn answer(&self, permission: i64, approved: bool) -> Answer {
        // A person who answers has the question's id, which the model cannot predict.
        let id = self.observer.permission_id(permission).map_or_else(PermissionId::generate, |id| id.parse().unwrap());
        let answer = PermissionAnswer::Approved(approved);
        let given = GiveAnswer { id, answer, by: "test".into(), reason: None };
        match self.store().answer_permission(given).await.unwrap() {
            Some(Answered::Decided(asked)) => Answer::Decided { state: asked.state.as_str(), is_first: true },
            Some(Answered::Before(asked)) => Answer::Decided { state: asked.state.as_str(), is_first: false },
            Some(Answered::NotOffered(_)) => Answer::Failed,
            None => Answer::Unknown,
        }
    }

    async fn settle(&self, settle: &ops::Settle) -> Answer {
        let settle = Settle {
            lease: settle.lease,
            session: 0,
            run_id: self.id_of(settle.lease.run),
            events: settle.chunks(),
            source_offset: self.reading(settle.lease).offset,
            outcome: Outcome::of(settle.cause, None),
            exit: ExitReport::default(),
            parts: settle.parts.map(|version| parts(version).into()),
            progress: None,
            resumes: 0,
        };
        let settled = self.store().settle(settle).await;
        written(settled.map(|settled| settled.map(|settled| Appended { last_seq: settled.last_seq })))
    }

    async fn cancel(&self, run: RunKey) -> Answer {
        match self.store().cancel_run(self.id_of(run)).await.unwrap() {
            Some(request) => Answer::Cancelled { status: request.run.run.status, was_settled: request.was_settled },
            None => Answer::Unknown,
        }
    }

    async fn take_over(
        &self,
        worker: usize,
        dead: &[usize],
        ran_out: &[Seen],
        own: Vec<RunKey>,
        limit: usize,
    ) -> Answer {
        let held = |seen: &Seen| HeldLease {
            lease: seen.lease,
            expires_at: Timestamp::from_millis(seen.expires_at),
            length: LEASE,
        };
        let lost = Lost {
            workers: dead.iter().map(|worker| self.workers[*worker]).collect(),
            leases: ran_out.iter().map(held).collect(),
        };
        let limit = i64::try_from(limit).unwrap();
        let Ok(orphans) = self.store().take_over(self.workers[worker], lost, own, LEASE, limit).await else {
            return Answer::Failed;
        };
        let taken = orphans.into_iter().map(|orphan| {
            // The agent is that of the newest claim; the offset is the store's.
            let mut readings = self.readings.borrow_mut();
            let before = (1..orphan.lease.token).rev().map(|token| Lease { token, ..orphan.lease });
            let agent = before.filter_map(|lease| readings.get(&lease)).next().map_or(0, |reading| reading.agent);
            readings.insert(orphan.lease, Reading { agent, offset: orphan.source_offset });
            Taken {
                lease: orphan.lease,
                worker_dead: orphan.worker_dead,
                said: orphan.said,
                cancel_requested: orphan.cancel_requested,
                source_offset: orphan.source_offset,
            }
        });
        Answer::Orphans(taken.collect())
    }
}

fn parts(number: u8) -> String {
    format!(r#"[{{"type":"text","text":"answer {number}"}}]"#)
}
