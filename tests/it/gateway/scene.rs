//! A gateway that does what a test says, and a turn that goes to it.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use mainstay::agent::GatewaySpec;
use mainstay::agent_event::AgentEvent;
use mainstay::driver::Driver;
use mainstay::driver::openclaw_gateway::Gateway;
use mainstay::failure::AgentError;
use mainstay::id::RunId;
use mainstay::options::SessionOptions;
use mainstay::process::Shims;
use mainstay::process::{Adoption, End, Prompt, Reply, TurnPlace};
use mainstay::run::{Attempt, ExitReport};
use serde_json::{Value, json};
use testkit::fake::gateway::{Connection, RunOf, accepted, agent_event, answer, challenge, hello};
pub use testkit::{TIMEOUT, within};
use tokio::net::TcpListener;

pub const TOKEN: &str = "a-token-{slot}";

/// The gateway.
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

    /// The next connection, before the client introduced itself.
    pub async fn stranger(&self) -> Peer {
        let (socket, _) = within(self.listener.accept()).await.unwrap();
        Peer { connection: within(Connection::accept(socket)).await.unwrap() }
    }

    /// The next connection, accepted by the gateway's process `boot`.
    pub async fn accept(&self, boot: &str) -> Peer {
        let mut peer = self.stranger().await;
        peer.send(challenge()).await;
        let params = peer.asked("connect").await;
        assert_eq!(params["auth"]["token"], TOKEN);
        assert_eq!(params["caps"], json!(["tool-events"]));
        peer.answer("connect", hello(boot)).await;
        peer
    }
}

/// A relay, as the gateway sees it.
pub struct Peer {
    pub connection: Connection,
}

impl Peer {
    pub async fn send(&mut self, frame: Value) {
        self.send_text(frame.to_string()).await;
    }

    pub async fn send_text(&mut self, text: String) {
        within(self.connection.send_text(text)).await.unwrap();
    }

    /// The parameters of the next request, which must have this method and an id that begins with the method's last word.
    pub async fn asked(&mut self, method: &str) -> Value {
        let request = within(self.connection.next()).await.unwrap().expect("the relay went away");
        assert_eq!((&request["type"], &request["method"]), (&json!("req"), &json!(method)), "{request}");
        request["params"].clone()
    }

    pub async fn answer(&mut self, id: &str, payload: Value) {
        self.send(answer(&id.into(), payload)).await;
    }

    /// Accepts the run, and returns the parameters of its request.
    pub async fn accept_run(&mut self) -> Value {
        let params = self.asked("agent").await;
        let [run, key] = ["idempotencyKey", "sessionKey"].map(|key| params[key].as_str().unwrap());
        self.answer("agent", accepted(run, key)).await;
        params
    }

    /// An event of a run.
    pub async fn event(&mut self, run: &Value, seq: u64, stream: &str, data: Value) {
        let run = run.as_str().unwrap();
        let of = RunOf { run, agent: "a", session: "agent:a:web:s-1", session_id: "gs-1" };
        let mut event = agent_event(&of, seq, stream, data);
        event["seq"] = (seq + 7).into();
        self.send(event).await;
    }

    /// A piece of the agent's message, with the whole message so far.
    pub async fn says(&mut self, run: &Value, seq: u64, so_far: &str, delta: &str) {
        self.event(run, seq, "assistant", json!({"text": so_far, "delta": delta, "itemId": "i:1"})).await;
    }

    /// Waits until the relay closes the connection.
    pub async fn hears_the_end(mut self) {
        while let Some(Ok(_)) = within(self.connection.socket.next()).await {}
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
        start_by: Instant::now() + TIMEOUT,
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
    Gateway::new(&spec, grace, &shims())
}

/// The directory of this test program's shims.
fn shims() -> Shims {
    static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());
    Shims::new(PathBuf::from(env!("CARGO_BIN_EXE_mainstay")), DIR.path().join("agents"))
}

impl Turn {
    pub async fn at(url: String) -> Self {
        Self::of(url, prompt()).await
    }

    pub async fn of(url: String, prompt: Prompt) -> Self {
        Self::with_grace(url, prompt, TIMEOUT).await
    }

    pub async fn with_grace(url: String, prompt: Prompt, grace: Duration) -> Self {
        let run = json!(format!("{}-{}", prompt.place.attempt.run, prompt.place.attempt.number));
        let attempt = prompt.place.attempt;
        let reply = backend(url, grace).prompt(prompt).await.unwrap();
        reply.control.begin();
        Self { run, attempt, reply, events: Vec::new() }
    }

    /// The same turn adopted by another engine, from its beginning.
    pub async fn goes_on(mut self, url: String) -> Self {
        self.reply.control.leave();
        while within(self.reply.records.recv()).await.is_some() {}
        within(self.reply.end).await.unwrap();
        let attempt = Attempt { number: self.attempt.number + 1, ..self.attempt };
        let adoption = Adoption { attempt, host: self.reply.host.unwrap(), offset: 0 };
        let reply = backend(url, TIMEOUT).adopt(adoption).await.unwrap();
        Self { run: self.run, attempt, reply, events: Vec::new() }
    }

    /// Reads until the agent has said this text.
    pub async fn hears(&mut self, text: &str) {
        while self.text() != text {
            let record = within(self.reply.records.recv()).await;
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

    /// The only error.
    pub fn error(&self) -> AgentError {
        let [error] = &self.errors()[..] else { panic!("{:?}", self.events) };
        error.clone()
    }

    /// Reads to the end.
    pub async fn ends(&mut self) -> ExitReport {
        while let Some(record) = within(self.reply.records.recv()).await {
            self.events.extend(record.events);
        }
        match within(&mut self.reply.end).await.unwrap() {
            End::Exited(report) => report,
            other => panic!("{other:?}"),
        }
    }
}
