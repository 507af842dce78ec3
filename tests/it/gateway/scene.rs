//! A gateway that does what a test says, and a turn that is taken to it.

use std::future::Future;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use mainstay::agent::GatewaySpec;
use mainstay::agent_event::AgentEvent;
use mainstay::driver::Backend;
use mainstay::driver::openclaw_gateway::Gateway;
use mainstay::failure::AgentError;
use mainstay::id::RunId;
use mainstay::options::SessionOptions;
use mainstay::process::Hosts;
use mainstay::process::{Adoption, End, Prompt, Reply, TurnPlace};
use mainstay::run::{Attempt, ExitReport};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};

pub const DEADLINE: Duration = Duration::from_secs(60);
pub const TOKEN: &str = "a-token-{slot}";

pub async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the deadline passed")
}

/// The stand-in.
pub struct FakeGateway {
    pub listener: TcpListener,
}

impl FakeGateway {
    pub async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.listener.local_addr().unwrap())
    }

    /// The next one who connects, before it introduced itself.
    pub async fn stranger(&self) -> Peer {
        let (socket, _) = in_time(self.listener.accept()).await.unwrap();
        Peer { socket: in_time(accept_async(socket)).await.unwrap() }
    }

    /// The next one who connects, taken in by the gateway's process `boot`.
    pub async fn accept(&self, boot: &str) -> Peer {
        let mut peer = self.stranger().await;
        peer.send(json!({"type": "event", "event": "connect.challenge", "payload": {"nonce": "n", "ts": 1}})).await;
        let params = peer.asked("connect").await;
        assert_eq!(params["auth"]["token"], TOKEN);
        assert_eq!(params["caps"], json!(["tool-events"]));
        let hello = json!({"type": "hello-ok", "protocol": 4, "server": {"version": "1", "bootId": boot}});
        peer.answer("connect", hello).await;
        peer
    }
}

/// A relay, as the gateway sees it.
pub struct Peer {
    pub socket: WebSocketStream<TcpStream>,
}

impl Peer {
    pub async fn send(&mut self, frame: Value) {
        self.send_text(frame.to_string()).await;
    }

    pub async fn send_text(&mut self, text: String) {
        in_time(self.socket.send(Message::text(text))).await.unwrap();
    }

    /// The parameters of the next request, which is for this method and has an id that begins with the last word of it.
    pub async fn asked(&mut self, method: &str) -> Value {
        let message = in_time(self.socket.next()).await.expect("the relay went away").unwrap();
        let request: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        assert_eq!((&request["type"], &request["method"]), (&json!("req"), &json!(method)), "{request}");
        request["params"].clone()
    }

    pub async fn answer(&mut self, id: &str, payload: Value) {
        self.send(json!({"type": "res", "id": id, "ok": true, "payload": payload})).await;
    }

    /// Takes the run on, and answers with what was asked for.
    pub async fn accept_run(&mut self) -> Value {
        let params = self.asked("agent").await;
        let (run, key) = (&params["idempotencyKey"], &params["sessionKey"]);
        self.answer("agent", json!({"runId": run, "sessionKey": key, "status": "accepted", "acceptedAt": 1})).await;
        params
    }

    /// An event of a run.
    pub async fn event(&mut self, run: &Value, seq: u64, stream: &str, data: Value) {
        let payload = json!({"runId": run, "sessionKey": "agent:a:web:s-1", "sessionId": "gs-1", "agentId": "a",
            "stream": stream, "data": data, "seq": seq, "ts": 1});
        self.send(json!({"type": "event", "event": "agent", "payload": payload, "seq": seq + 7})).await;
    }

    /// A piece of the agent's message, with the whole of it so far.
    pub async fn says(&mut self, run: &Value, seq: u64, so_far: &str, delta: &str) {
        self.event(run, seq, "assistant", json!({"text": so_far, "delta": delta, "itemId": "i:1"})).await;
    }

    /// That the connection is closed from the other side.
    pub async fn hears_the_end(mut self) {
        while let Some(Ok(_)) = in_time(self.socket.next()).await {}
    }
}

/// A turn of the agent `{slot}`.
pub struct Turn {
    pub run: Value,
    attempt: Attempt,
    pub reply: Reply,
    pub events: Vec<AgentEvent>,
}

pub fn prompt() -> Prompt {
    Prompt {
        place: TurnPlace {
            attempt: Attempt { run: RunId::generate(), number: 1 },
            session: "s-1".parse().unwrap(),
            slot: "a".to_owned(),
            workspace: "w".parse().unwrap(),
            dir: std::env::temp_dir(),
            agent_session: None,
            endpoint: None,
        },
        start_by: Instant::now() + DEADLINE,
        limit: Duration::from_secs(1800),
        message: "hi {message}".to_owned(),
        attachments: Vec::new(),
        options: SessionOptions::default(),
        rules: Default::default(),
        oneshot: false,
    }
}

pub fn backend(url: String, grace: Duration) -> Gateway {
    let spec = GatewaySpec { url, token: Some(TOKEN.to_owned()), agent: "{slot}".to_owned() };
    Gateway::new(&spec, grace, &hosts())
}

/// Where the hosts of this test program live.
fn hosts() -> Hosts {
    static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());
    Hosts::new(PathBuf::from(env!("CARGO_BIN_EXE_mainstay")), DIR.path().join("agents"))
}

impl Turn {
    pub async fn at(url: String) -> Self {
        Self::of(url, prompt()).await
    }

    pub async fn of(url: String, prompt: Prompt) -> Self {
        Self::with_grace(url, prompt, DEADLINE).await
    }

    pub async fn with_grace(url: String, prompt: Prompt, grace: Duration) -> Self {
        let run = json!(format!("{}-{}", prompt.place.attempt.run, prompt.place.attempt.number));
        let attempt = prompt.place.attempt;
        let reply = backend(url, grace).prompt(prompt).await.unwrap();
        reply.control.begin();
        Self { run, attempt, reply, events: Vec::new() }
    }

    /// The same turn in the hands of another engine, from its beginning.
    pub async fn goes_on(mut self, url: String) -> Self {
        self.reply.control.leave();
        while in_time(self.reply.records.recv()).await.is_some() {}
        in_time(self.reply.end).await.unwrap();
        let attempt = Attempt { number: self.attempt.number + 1, ..self.attempt };
        let adoption = Adoption { attempt, host: self.reply.host.unwrap(), offset: 0 };
        let reply = backend(url, DEADLINE).adopt(adoption).await.unwrap();
        Self { run: self.run, attempt, reply, events: Vec::new() }
    }

    /// Reads until the agent has said this text.
    pub async fn hears(&mut self, text: &str) {
        while self.text() != text {
            let record = in_time(self.reply.records.recv()).await;
            self.events.extend(record.unwrap_or_else(|| panic!("it ended after {:?}", self.events)).events);
        }
    }

    pub fn text(&self) -> String {
        let text = |event: &AgentEvent| match event {
            AgentEvent::Text(text) => Some(text.clone()),
            _ => None,
        };
        self.events.iter().filter_map(text).collect()
    }

    pub fn errors(&self) -> Vec<AgentError> {
        let error = |event: &AgentEvent| match event {
            AgentEvent::Error(error) => Some(error.clone()),
            _ => None,
        };
        self.events.iter().filter_map(error).collect()
    }

    /// The one error.
    pub fn error(&self) -> AgentError {
        let [error] = &self.errors()[..] else { panic!("{:?}", self.events) };
        error.clone()
    }

    /// Reads to the end.
    pub async fn ends(&mut self) -> ExitReport {
        while let Some(record) = in_time(self.reply.records.recv()).await {
            self.events.extend(record.events);
        }
        match in_time(&mut self.reply.end).await.unwrap() {
            End::Exited(report) => report,
            other => panic!("{other:?}"),
        }
    }
}
