//! The store by itself: what was acknowledged is there, what is illegal is refused, and each kind of unusable file gives a
//! clear error and stays as it was.

mod file;
mod leases;
mod messages;
mod pages;
mod queue;
mod runs;
mod schema;
mod sessions;
mod slots;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay::chunk::{Chunk, FinishReason};
use mainstay::clock::{ManualClock, Timestamp};
use mainstay::config::Durability;
use mainstay::id::{RunId, SessionId};
use mainstay::lease::{LeaseLost, WorkerKey};
use mainstay::message::UserMessage;
use mainstay::run::{ExitReport, Outcome, RunOptions, Status};
use mainstay::store::event::{Append, Range};
use mainstay::store::run::{ClaimRequest, Claimed, Enqueue, Enqueued, Lost, Orphan, Purpose, Settle, Settled};
use mainstay::store::session::NewSession;
use mainstay::store::worker::Registration;
use mainstay::store::{Notice, Store, StoreError};
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

    /// Takes over all leases, as if they had not been renewed for too long.
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
