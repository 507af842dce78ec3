//! An agent that is a server, as `opencode serve` is: one process for all sessions of a workspace, whose turns go on at the
//! same time.
//!
//! Always: one thread, so that it is dead when its locks are gone; which run a turn is of stands in the metadata of the
//! prompt. Its sessions outlive it, what was said in them does not.

mod hub;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use axum::body::Body;
use axum::extract::{Path as InPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use self::hub::Hub;
use super::agent::port_in;
use super::dialect::{Opencode, event};
use super::live::{self, Purpose, Turn};
use mainstay::clock::{Clock, SystemClock};

/// The file of all sessions, beside the records.
const SESSIONS: &str = "opencode-sessions";
/// One word in so many is the last one before the connections of all who follow the events are cut.
const WORDS_TO_A_CUT: u32 = 100;

/// Serves on the port of its arguments, until it is killed.
///
/// # Errors
/// When nobody can reach it, or a record cannot be written.
pub(super) fn serve(records: &Path, arguments: &[String]) -> anyhow::Result<u8> {
    let port = port_in(arguments)?;
    let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is needed"));
    let (user, password) = (variable("OPENCODE_SERVER_USERNAME")?, variable("OPENCODE_SERVER_PASSWORD")?);
    let authorization = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    let server = Arc::new(Server {
        records: records.to_owned(),
        authorization,
        hub: Arc::new(Hub::new()),
        turns: Mutex::default(),
        begun: Mutex::new(0),
        news: Notify::new(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        tokio::select! {
            served = axum::serve(listener, router(&server)) => served?,
            talked = server.talk() => talked?,
        }
        Ok(0)
    })
}

fn router(server: &Arc<Server>) -> Router {
    let nothing = || async { Json(json!([])) };
    Router::new()
        .route("/global/health", get(async || Json(json!({"healthy": true, "version": "0"}))))
        .route("/agent", get(nothing))
        .route("/config/providers", get(async || Json(json!({"providers": []}))))
        .route("/event", get(events))
        .route("/permission", get(async |State(server): State<Arc<Server>>| Json(server.hub.asked())))
        .route("/permission/{id}/reply", post(reply))
        .route("/session", post(new_session))
        .route("/session/status", get(status))
        .route("/session/{id}", get(session))
        .route("/session/{id}/children", get(nothing))
        .route("/session/{id}/todo", get(nothing))
        .route("/session/{id}/message", get(messages))
        .route("/session/{id}/prompt_async", post(prompt))
        .route("/session/{id}/abort", post(abort))
        .layer(from_fn_with_state(server.clone(), admit))
        .with_state(server.clone())
}

/// The server with its turns.
struct Server {
    records: PathBuf,
    authorization: String,
    hub: Arc<Hub>,
    turns: Mutex<Vec<Turn>>,
    begun: Mutex<u32>,
    /// A turn has begun, or goes on.
    news: Notify,
}

impl Server {
    fn turns(&self) -> MutexGuard<'_, Vec<Turn>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets all turns talk.
    async fn talk(&self) -> anyhow::Result<()> {
        loop {
            let due = self.go_on()?;
            let due = async {
                match due {
                    Some(due) => sleep_until(Instant::from_std(due)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.news.notified() => {}
            }
        }
    }

    /// Answers when the next one is due.
    fn go_on(&self) -> anyhow::Result<Option<std::time::Instant>> {
        let mut turns = self.turns();
        for (turn, ending) in live::go_on(&mut turns)? {
            turn.over(ending).into_iter().for_each(|event| self.hub.tell(&event));
        }
        if !turns.is_empty() && fastrand::u32(..WORDS_TO_A_CUT) == 0 {
            turns.iter_mut().try_for_each(Turn::note_cut)?;
            self.hub.cut();
        }
        Ok(live::next_due(&turns))
    }

    fn begin(&self, session: String, prompt: &Value) -> anyhow::Result<()> {
        let part = &prompt["parts"][0];
        let text = part["text"].as_str().context("a prompt is a seed")?.to_owned();
        let seed = text.trim().parse()?;
        let purpose = Purpose::told(&part["metadata"]["mainstay"], session.clone(), seed)?;
        let number = {
            let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
            *begun += 1;
            *begun
        };
        // They grow, also from one process to the next.
        let now = SystemClock.now().as_millis();
        let [asked, message] = ["a", "b"].map(|which| format!("msg_{now:013x}{number:06x}{which}"));
        self.hub.forget(&session);
        let speech = Opencode::new(session, asked, message, text);
        let hub = self.hub.clone();
        let mouth = Box::new(move |event: &Value| {
            hub.tell(event);
            // Who misses it is told again.
            Ok(true)
        });
        self.turns().push(Turn::begin(&self.records, purpose, number, Box::new(speech), mouth)?);
        self.news.notify_one();
        Ok(())
    }

    fn sessions(&self) -> PathBuf {
        self.records.join(SESSIONS)
    }
}

/// Only who knows the password is let in.
async fn admit(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION);
    if given.is_some_and(|given| given.as_bytes() == server.authorization.as_bytes()) {
        return next.run(request).await;
    }
    StatusCode::UNAUTHORIZED.into_response()
}

async fn events(State(server): State<Arc<Server>>) -> Response {
    let events = server.hub.follow(event("server.connected", json!({})));
    let events = stream::unfold(events, async |mut events| {
        let event = events.next().await?;
        Some((Ok::<_, io::Error>(format!("data: {event}\n\n")), events))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

async fn new_session(State(server): State<Arc<Server>>) -> Result<Json<Value>, Failed> {
    let id = format!("ses_{}", uuid::Uuid::new_v4().simple());
    let mut file = OpenOptions::new().create(true).append(true).open(server.sessions())?;
    file.write_all(format!("{id}\n").as_bytes())?;
    Ok(Json(json!({"id": id})))
}

async fn session(State(server): State<Arc<Server>>, InPath(id): InPath<String>) -> Response {
    let sessions = std::fs::read_to_string(server.sessions()).unwrap_or_default();
    match sessions.lines().any(|known| known == id) {
        true => Json(json!({"id": id})).into_response(),
        false => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn status(State(server): State<Arc<Server>>) -> Json<Value> {
    let busy = server.turns().iter().map(|turn| (turn.conversation.clone(), json!({"type": "busy"}))).collect();
    Json(Value::Object(busy))
}

async fn messages(State(server): State<Arc<Server>>, InPath(id): InPath<String>, request: Request) -> Json<Value> {
    let limit = request.uri().query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("limit="));
    Json(server.hub.messages(&id, limit.and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX)))
}

async fn prompt(
    State(server): State<Arc<Server>>,
    InPath(id): InPath<String>,
    Json(prompt): Json<Value>,
) -> Result<StatusCode, Failed> {
    server.begin(id, &prompt)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn abort(State(server): State<Arc<Server>>, InPath(id): InPath<String>) -> Result<Json<bool>, Failed> {
    for turn in server.turns().iter_mut().filter(|turn| turn.conversation == id) {
        turn.cancel()?;
    }
    server.news.notify_one();
    Ok(Json(true))
}

async fn reply(
    State(server): State<Arc<Server>>,
    InPath(id): InPath<String>,
    Json(reply): Json<Value>,
) -> Result<Response, Failed> {
    let answer = json!({"permission": id, "reply": reply["reply"]});
    let mut is_answer = false;
    for turn in server.turns().iter_mut() {
        is_answer |= turn.hear(&answer)?;
    }
    server.hub.answered(&id);
    server.news.notify_one();
    Ok(if is_answer { Json(true).into_response() } else { StatusCode::NOT_FOUND.into_response() })
}

/// What went wrong, as an answer.
struct Failed(anyhow::Error);

impl<T: Into<anyhow::Error>> From<T> for Failed {
    fn from(error: T) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let message = json!({"message": format!("{:#}", self.0)});
        (StatusCode::INTERNAL_SERVER_ERROR, Json(message)).into_response()
    }
}
