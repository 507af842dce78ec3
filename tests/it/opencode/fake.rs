//! A server that says what a test tells it to, where opencode would listen.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// The session that the server makes.
pub const SESSION: &str = "ses_new";

/// A request as it came: `METHOD /path?query`, authorization, body.
pub struct Asked {
    pub what: String,
    pub authorization: String,
    pub body: Value,
}

/// Somebody who follows the events.
pub struct Follower(mpsc::Sender<Result<Bytes, std::io::Error>>);

impl Follower {
    /// Tells an event.
    pub async fn tell(&self, kind: &str, properties: Value) {
        self.raw(&format!("data: {}\n\n", json!({"id": "evt_1", "type": kind, "properties": properties}))).await;
    }

    /// Tells an event of the session that the server makes.
    pub async fn of_session(&self, kind: &str, mut properties: Value) {
        properties["sessionID"] = SESSION.into();
        self.tell(kind, properties).await;
    }

    pub async fn raw(&self, text: &str) {
        self.0.send(Ok(Bytes::copy_from_slice(text.as_bytes()))).await.unwrap();
    }

    /// Breaks the connection.
    pub async fn cut(self) {
        self.0.send(Err(std::io::Error::other("cut"))).await.unwrap();
    }
}

struct Shared {
    answers: Mutex<HashMap<String, (StatusCode, Value)>>,
    /// Requests that are answered only when the test says so.
    held: Mutex<HashMap<String, oneshot::Receiver<()>>>,
    asked: mpsc::UnboundedSender<Asked>,
    followers: mpsc::UnboundedSender<Follower>,
}

/// The server.
pub struct Fake {
    pub endpoint: String,
    shared: Arc<Shared>,
    asked: mpsc::UnboundedReceiver<Asked>,
    followers: mpsc::UnboundedReceiver<Follower>,
    serving: JoinHandle<()>,
}

impl Fake {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://opencode:secret@{}", listener.local_addr().unwrap());
        let (asked_sender, asked) = mpsc::unbounded_channel();
        let (followers_sender, followers) = mpsc::unbounded_channel();
        let answers = [
            ("POST /session", json!({"id": SESSION})),
            ("GET /session/status", json!({})),
            ("GET /agent", json!([{"name": "build", "mode": "primary"}, {"name": "helper", "mode": "subagent"}])),
            ("GET /config/providers", json!({"providers": [{"id": "p", "models": {"a/b": {"name": "AB"}}}]})),
            ("GET /permission", json!([])),
            ("GET /session/ses_new/children", json!([])),
            ("GET /session/ses_new/todo", json!([])),
        ];
        let answers = answers.map(|(what, answer)| (what.to_owned(), (StatusCode::OK, answer)));
        let shared = Arc::new(Shared {
            answers: Mutex::new(HashMap::from(answers)),
            held: Mutex::default(),
            asked: asked_sender,
            followers: followers_sender,
        });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { endpoint, shared, asked, followers, serving }
    }

    /// From now on `METHOD /path` is answered so.
    pub fn answers(&self, what: &str, status: u16, answer: Value) {
        let status = StatusCode::from_u16(status).unwrap();
        self.shared.answers.lock().unwrap().insert(what.to_owned(), (status, answer));
    }

    /// The next `METHOD /path` is answered when the sender says so.
    pub fn holds(&self, what: &str) -> oneshot::Sender<()> {
        let (go, held) = oneshot::channel();
        self.shared.held.lock().unwrap().insert(what.to_owned(), held);
        go
    }

    /// Waits for `METHOD /path`; what was asked before it is passed over.
    pub async fn asked(&mut self, what: &str) -> Asked {
        loop {
            let asked = self.asked.recv().await.unwrap();
            if asked.what.split('?').next() == Some(what) {
                return asked;
            }
        }
    }

    /// Waits for somebody who follows the events.
    pub async fn followed(&mut self) -> Follower {
        let follower = self.followers.recv().await.unwrap();
        follower.tell("server.connected", json!({})).await;
        follower
    }

    /// Ends at once, as if killed.
    pub async fn die(self) {
        self.serving.abort();
        let _ = self.serving.await;
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let key = format!("{} {path}", request.method());
    let what = format!("{} {}", request.method(), request.uri());
    let authorization = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let _ = shared.asked.send(Asked { what, authorization: authorization.unwrap_or_default(), body });
    if path == "/event" {
        let (sender, mut receiver) = mpsc::channel(64);
        let _ = shared.followers.send(Follower(sender));
        let events = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
        return ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response();
    }
    let held = shared.held.lock().unwrap().remove(&key);
    if let Some(held) = held {
        let _ = held.await;
    }
    let known = shared.answers.lock().unwrap().get(&key).cloned();
    let otherwise = || if key.starts_with("GET") { StatusCode::NOT_FOUND } else { StatusCode::OK };
    let (status, value) = known.unwrap_or_else(|| (otherwise(), json!(true)));
    (status, axum::Json(value)).into_response()
}
