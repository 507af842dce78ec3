//! A server in place of opencode's.
//!
//! Always: requests and events have the shape of opencode's; the behaviour decides on responses and events. Deliberately
//! absent: a model. [`Scripted`] responds as a test says.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// The session that [`Scripted`] makes.
pub const SESSION: &str = "ses_new";
/// The largest body of a request.
const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;
/// Events that are queued for a follower.
const UNREAD_EVENTS: usize = 4096;

/// A request as received.
#[derive(Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// The part after the question mark.
    pub query: String,
    pub authorization: String,
    /// Null if it is no JSON.
    pub body: Value,
}

impl Request {
    /// `METHOD /path`.
    pub fn route(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// A response.
pub type Answer = (StatusCode, Value);

/// What the server does.
pub trait Behaviour: Send + Sync + 'static {
    /// Whether the request shows the right name and password.
    fn admits(&self, request: &Request) -> bool;

    /// Accepts a follower of the events, from now on.
    fn followed(&self, request: Request, follower: Follower);

    /// The response; none for an unknown route.
    fn answer(&self, request: Request) -> impl Future<Output = Option<Answer>> + Send;
}

/// Serves until it is dropped.
///
/// # Errors
/// If the listener fails.
pub async fn serve<B: Behaviour>(listener: TcpListener, behaviour: Arc<B>) -> io::Result<()> {
    let router = Router::new().fallback(take::<B>).with_state(behaviour);
    axum::serve(listener, router).await
}

async fn take<B: Behaviour>(State(behaviour): State<Arc<B>>, request: axum::extract::Request) -> Response {
    let (head, body) = request.into_parts();
    let authorization = head.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else { return StatusCode::PAYLOAD_TOO_LARGE.into_response() };
    let request = Request {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        authorization: authorization.unwrap_or_default().to_owned(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    if !behaviour.admits(&request) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if request.path == "/event" {
        let (sender, mut events) = mpsc::channel(UNREAD_EVENTS);
        behaviour.followed(request, Follower(sender));
        let events = futures_util::stream::poll_fn(move |context| events.poll_recv(context));
        return ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response();
    }
    let otherwise = if request.method == "GET" { StatusCode::NOT_FOUND } else { StatusCode::OK };
    match behaviour.answer(request).await {
        Some((StatusCode::NO_CONTENT, _)) => StatusCode::NO_CONTENT.into_response(),
        Some((status, value)) => (status, Json(value)).into_response(),
        None => (otherwise, Json(json!(true))).into_response(),
    }
}

/// An event of the server.
pub fn event(kind: &str, properties: Value) -> Value {
    json!({"id": "evt_1", "type": kind, "properties": properties})
}

/// The connection of a client that follows the events; it is closed when dropped.
#[derive(Debug)]
pub struct Follower(mpsc::Sender<io::Result<Bytes>>);

impl Follower {
    /// Sends an event, if there is room in the queue. A JSON string is sent as it is. Returns whether it was sent.
    pub fn try_tell(&self, event: &Value) -> bool {
        let event = event.as_str().map_or_else(|| event.to_string(), str::to_owned);
        self.0.try_send(Ok(format!("data: {event}\n\n").into())).is_ok()
    }

    /// Sends an event. Nothing happens if the follower has gone.
    pub async fn tell(&self, kind: &str, properties: Value) {
        self.raw(&format!("data: {}\n\n", event(kind, properties))).await;
    }

    /// Sends an event of [`SESSION`].
    pub async fn of_session(&self, kind: &str, mut properties: Value) {
        properties["sessionID"] = SESSION.into();
        self.tell(kind, properties).await;
    }

    /// Sends any bytes.
    pub async fn raw(&self, text: &str) {
        let _ = self.0.send(Ok(Bytes::copy_from_slice(text.as_bytes()))).await;
    }

    /// Breaks the connection.
    pub async fn cut(self) {
        let _ = self.0.send(Err(io::Error::other("cut"))).await;
    }
}

/// Does what a test says: it responds as set up, and hands requests and followers to the test.
pub struct Scripted {
    answers: Mutex<HashMap<String, Answer>>,
    /// Requests whose response waits for the test.
    held: Mutex<HashMap<String, oneshot::Receiver<()>>>,
    asked: mpsc::UnboundedSender<Request>,
    followers: mpsc::UnboundedSender<Follower>,
}

impl Behaviour for Scripted {
    fn admits(&self, _: &Request) -> bool {
        true
    }

    fn followed(&self, request: Request, follower: Follower) {
        let _ = self.asked.send(request);
        let _ = self.followers.send(follower);
    }

    async fn answer(&self, request: Request) -> Option<Answer> {
        let route = request.route();
        let _ = self.asked.send(request);
        let held = lock(&self.held).remove(&route);
        if let Some(held) = held {
            let _ = held.await;
        }
        lock(&self.answers).get(&route).cloned()
    }
}

/// A server with the behaviour [`Scripted`].
pub struct Server {
    pub endpoint: String,
    script: Arc<Scripted>,
    asked: mpsc::UnboundedReceiver<Request>,
    followers: mpsc::UnboundedReceiver<Follower>,
    serving: JoinHandle<io::Result<()>>,
}

impl Server {
    /// Starts on a free port.
    ///
    /// # Errors
    /// If there is none.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://opencode:secret@{}", listener.local_addr()?);
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
        let answers = answers.map(|(route, answer)| (route.to_owned(), (StatusCode::OK, answer)));
        let script = Arc::new(Scripted {
            answers: Mutex::new(HashMap::from(answers)),
            held: Mutex::default(),
            asked: asked_sender,
            followers: followers_sender,
        });
        let serving = tokio::spawn(serve(listener, script.clone()));
        Ok(Self { endpoint, script, asked, followers, serving })
    }

    /// Sets the response to `METHOD /path` from now on.
    pub fn answers(&self, route: &str, status: u16, answer: Value) {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        lock(&self.script.answers).insert(route.to_owned(), (status, answer));
    }

    /// Holds the response to the next `METHOD /path` until something is sent to the sender.
    pub fn holds(&self, route: &str) -> oneshot::Sender<()> {
        let (go, held) = oneshot::channel();
        lock(&self.script.held).insert(route.to_owned(), held);
        go
    }

    /// Waits for `METHOD /path`, skipping other requests. None if it never comes.
    pub async fn asked(&mut self, route: &str) -> Option<Request> {
        loop {
            let asked = self.asked.recv().await?;
            if asked.route() == route {
                return Some(asked);
            }
        }
    }

    /// Waits for a follower of the events, and greets it.
    pub async fn followed(&mut self) -> Option<Follower> {
        let follower = self.followers.recv().await?;
        follower.tell("server.connected", json!({})).await;
        Some(follower)
    }

    /// Stops at once, as if killed.
    pub async fn die(self) {
        self.serving.abort();
        let _ = self.serving.await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
