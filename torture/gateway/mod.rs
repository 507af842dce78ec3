//! An agent that is a gateway, as OpenClaw's is: one process for all sessions, started by no engine, with one run at a time
//! for each of its agents.
//!
//! Always: one thread, so that the process is dead when its locks are free; the key of a request is the attempt that it is for,
//! and the gateway's agent is the slot. A repeated key gets the same run. No run outlives the process.

mod peers;
pub(super) mod supervisor;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use mainstay::run::Attempt;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::peers::{PeerId, Peers};
use super::fake::gateway::{Connection, accepted, hello};
use super::protocol::Gateway as Encoder;
use super::turn::{Purpose, Turn};

/// The token that clients need.
pub(super) const TOKEN: &str = "torture";
/// Requests that wait to be handled.
const UNREAD_REQUESTS: usize = 64;
/// One word in this many is the last one before the connection of its follower is cut.
const WORDS_TO_A_CUT: u32 = 100;

/// Serves at the address in its arguments, until it is killed.
///
/// # Errors
/// If its address cannot be used, or a record cannot be written.
pub(super) fn serve(records: &Path, arguments: &[String]) -> anyhow::Result<u8> {
    let address: SocketAddr = arguments.last().context("an address is needed")?.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        println!("{}", supervisor::LISTENS);
        let (sender, events) = mpsc::channel(UNREAD_REQUESTS);
        let mut gateway = Gateway::new(records);
        tokio::select! {
            accepted = accept(listener, sender) => accepted?,
            served = gateway.serve(events) => served?,
        }
        Ok(0)
    })
}

/// Events of a connection.
enum PeerEvent {
    Connected(mpsc::Sender<Arc<str>>),
    Request(Value),
    Closed,
}

async fn accept(listener: TcpListener, gateway: mpsc::Sender<(PeerId, PeerEvent)>) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    for peer in 0.. {
        let (stream, _) = listener.accept().await?;
        let gateway = gateway.clone();
        connections.spawn(async move {
            // A broken connection counts as closed.
            let _ = converse(peer, stream, &gateway).await;
            gateway.send((peer, PeerEvent::Closed)).await
        });
        while connections.try_join_next().is_some() {}
    }
    Ok(())
}

/// Carries frames both ways until one side has gone; queued frames are sent before the connection is closed.
async fn converse(peer: PeerId, stream: TcpStream, gateway: &mpsc::Sender<(PeerId, PeerEvent)>) -> anyhow::Result<()> {
    let mut connection = Connection::accept(stream).await?;
    let (sender, mut frames) = mpsc::channel(peers::UNREAD_FRAMES);
    gateway.send((peer, PeerEvent::Connected(sender))).await?;
    loop {
        tokio::select! {
            frame = frames.recv() => match frame {
                Some(frame) => connection.send_text(frame.as_ref().to_owned()).await?,
                None => return connection.close().await,
            },
            asked = connection.next() => match asked? {
                Some(asked) => gateway.send((peer, PeerEvent::Request(asked))).await?,
                None => return Ok(()),
            },
        }
    }
}

/// A run that has not ended.
struct Run {
    key: String,
    agent: String,
    session: String,
    turn: Turn,
}

/// A peer that waits for the end of a run, and until when.
struct Waiter {
    peer: PeerId,
    id: Value,
    run: String,
    until: Instant,
}

/// The gateway with its runs.
struct Gateway {
    records: PathBuf,
    boot: String,
    peers: Arc<Mutex<Peers>>,
    runs: Vec<Run>,
    waiters: Vec<Waiter>,
    /// The results of ended runs.
    over: BTreeMap<String, Value>,
    /// The last words of each session.
    last_words: BTreeMap<String, Value>,
    begun: u32,
}

impl Gateway {
    fn new(records: &Path) -> Self {
        Self {
            records: records.to_owned(),
            boot: uuid::Uuid::new_v4().to_string(),
            peers: Arc::default(),
            runs: Vec::new(),
            waiters: Vec::new(),
            over: BTreeMap::new(),
            last_words: BTreeMap::new(),
            begun: 0,
        }
    }

    async fn serve(&mut self, mut events: mpsc::Receiver<(PeerId, PeerEvent)>) -> anyhow::Result<()> {
        loop {
            let due = self.go_on()?;
            let due = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                event = events.recv() => match event {
                    Some((peer, PeerEvent::Connected(frames))) => self.peers().connect(peer, frames),
                    Some((peer, PeerEvent::Request(request))) => self.take(peer, &request)?,
                    Some((peer, PeerEvent::Closed)) => self.peers().cut(peer),
                    None => return Ok(()),
                },
            }
        }
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        lock(&self.peers)
    }

    /// Lets every run that is due say one thing. Returns when the next one is due.
    fn go_on(&mut self) -> anyhow::Result<Option<Instant>> {
        let (now, mut at) = (std::time::Instant::now(), 0);
        while let Some(run) = self.runs.get_mut(at) {
            let ending = run.turn.step(now)?;
            let follower = lock(&self.peers).follower_of(&run.key);
            if let Some(peer) = follower.filter(|_| fastrand::u32(..WORDS_TO_A_CUT) == 0) {
                run.turn.note_cut()?;
                lock(&self.peers).cut(peer);
            }
            match ending {
                None => at += 1,
                Some(ending) => {
                    let Run { key, session, turn, .. } = self.runs.remove(at);
                    self.end(&key, &session, turn.over(ending));
                }
            }
        }
        let now = Instant::now();
        let (late, rest) = std::mem::take(&mut self.waiters).into_iter().partition(|waiter| waiter.until <= now);
        self.waiters = rest;
        for Waiter { peer, id, run, .. } in late {
            self.peers().answer(peer, &id, json!({"runId": run, "status": "timeout"}));
        }
        let due = self.runs.iter().filter_map(|run| run.turn.due).min().map(Instant::from_std);
        Ok(due.into_iter().chain(self.waiters.iter().map(|waiter| waiter.until)).min())
    }

    /// Reports how a run ended: to all its followers, to the peer that requested it, and to those that wait.
    fn end(&mut self, key: &str, session: &str, mut frames: Vec<Value>) {
        let mut answer = frames.pop().unwrap_or_default();
        let mut peers = lock(&self.peers);
        for frame in frames {
            peers.tell(key, session, &frame);
        }
        peers.answer_asker(key, &answer);
        let words = answer["payload"]["result"]["meta"]["finalAssistantVisibleText"].take();
        let content = json!([{"type": "text", "text": words}]);
        self.last_words.insert(session.to_owned(), json!({"role": "assistant", "content": content}));
        answer["payload"]["result"]["meta"]["finalAssistantVisibleText"] = words;
        let (waiters, rest) = std::mem::take(&mut self.waiters).into_iter().partition(|waiter| waiter.run == key);
        self.waiters = rest;
        for Waiter { peer, id, .. } in waiters {
            peers.answer(peer, &id, waited(&answer));
        }
        drop(peers);
        self.over.insert(key.to_owned(), answer);
    }

    fn take(&mut self, peer: PeerId, request: &Value) -> anyhow::Result<()> {
        let (id, params) = (&request["id"], &request["params"]);
        let text = |key: &str| params[key].as_str().unwrap_or_default();
        if !self.peers().is_admitted(peer) {
            if request["method"] == "connect" && params["auth"]["token"] == TOKEN {
                self.peers().admit(peer, id, hello(&self.boot));
            } else {
                self.peers().cut(peer);
            }
            return Ok(());
        }
        match request["method"].as_str() {
            Some("agent") => self.begin(peer, id, params)?,
            Some("agent.wait") => {
                let run = text("runId").to_owned();
                self.peers().follow(peer, &run);
                match self.over.get(&run) {
                    Some(answer) => self.peers().answer(peer, id, waited(answer)),
                    None => {
                        let wait = Duration::from_millis(params["timeoutMs"].as_u64().unwrap_or_default());
                        let until = Instant::now() + wait;
                        self.waiters.push(Waiter { peer, id: id.clone(), run, until });
                    }
                }
            }
            Some("chat.abort") => {
                let mut aborted = Vec::new();
                let of_session = self.runs.iter_mut().filter(|run| run.session == text("sessionKey"));
                for run in of_session.filter(|run| params["runId"].is_null() || run.key == text("runId")) {
                    run.turn.cancel()?;
                    aborted.push(run.key.clone());
                }
                let answer = json!({"ok": true, "aborted": !aborted.is_empty(), "runIds": aborted});
                self.peers().answer(peer, id, answer);
            }
            Some("chat.history") => {
                let messages: Vec<_> = self.last_words.get(text("sessionKey")).into_iter().collect();
                self.peers().answer(peer, id, json!({"messages": messages}));
            }
            Some("sessions.messages.subscribe") => {
                self.peers().subscribe(peer, text("key"));
                self.peers().answer(peer, id, json!({"subscribed": true}));
            }
            _ => self.peers().refuse(peer, id, "unknown method"),
        }
        Ok(())
    }

    fn begin(&mut self, peer: PeerId, id: &Value, params: &Value) -> anyhow::Result<()> {
        let text = |key: &str| params[key].as_str().unwrap_or_default().to_owned();
        let (key, agent, session) = (text("idempotencyKey"), text("agentId"), text("sessionKey"));
        if let Some(answer) = self.over.get(&key) {
            self.peers().pass(peer, id, answer);
            return Ok(());
        }
        if self.runs.iter().any(|run| run.key == key) {
            self.peers().answer(peer, id, json!({"runId": key, "sessionKey": session, "status": "in_flight"}));
            return Ok(());
        }
        if let Some(run) = self.runs.iter().find(|run| run.agent == agent) {
            let refusal = format!("agent {agent} is busy with {}", run.key);
            self.peers().refuse(peer, id, &refusal);
            return Ok(());
        }
        let attempt: Attempt = key.parse()?;
        let purpose = Purpose {
            run: attempt.run.to_string(),
            attempt: attempt.number,
            session: session.rsplit(':').next().unwrap_or_default().to_owned(),
            slot: agent.clone(),
            conversation: session.clone(),
            // No engine would end it.
            is_held: false,
            seed: text("message").trim().parse()?,
        };
        let (peers, run, of) = (self.peers.clone(), key.clone(), session.clone());
        let sink = Box::new(move |frame: &Value| Ok(lock(&peers).tell(&run, &of, frame)));
        let encoder = Encoder::new(key.clone(), agent.clone(), session.clone());
        let turn = Turn::begin(&self.records, purpose, self.begun, Box::new(encoder), sink)?;
        self.begun += 1;
        self.peers().ask(peer, id, &key);
        self.peers().answer(peer, id, accepted(&key, &session));
        self.runs.push(Run { key, agent, session, turn });
        Ok(())
    }
}

/// How a run ended, for a peer that waited for it.
fn waited(answer: &Value) -> Value {
    let payload = &answer["payload"];
    let mut waited = json!({"runId": payload["runId"], "status": payload["status"], "endedAt": 1});
    if answer["ok"] == false {
        waited["error"] = payload["summary"].clone();
    }
    waited
}

fn lock(peers: &Mutex<Peers>) -> MutexGuard<'_, Peers> {
    peers.lock().unwrap_or_else(PoisonError::into_inner)
}
