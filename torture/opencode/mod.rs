//! An agent that is a server, as `opencode serve` is: one process for all sessions of a workspace, whose turns run at the
//! same time.
//!
//! Always: one thread, so that the process is dead when its locks are free; the metadata of the prompt names the run of a
//! turn. Its sessions outlive the process, their messages do not.

mod hub;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay::clock::{Clock, SystemClock};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use self::hub::Hub;
use super::agent::port_in;
use super::fake::opencode::{self, Answer, Behaviour, Follower, Request};
use super::protocol::Opencode;
use super::turn::{self, Purpose, Turn};

/// The file of all sessions, beside the records.
const SESSIONS: &str = "opencode-sessions";
/// One word in this many is the last one before the connections of all followers are cut.
const WORDS_TO_A_CUT: u32 = 100;

/// Serves on the port in its arguments, until it is killed.
///
/// # Errors
/// If its port cannot be used, or a record cannot be written.
pub(super) fn serve(records: &Path, arguments: &[String]) -> anyhow::Result<u8> {
    let port = port_in(arguments)?;
    let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is needed"));
    let (user, password) = (variable("OPENCODE_SERVER_USERNAME")?, variable("OPENCODE_SERVER_PASSWORD")?);
    let authorization = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    let server = Arc::new(Server {
        records: records.to_owned(),
        authorization,
        hub: Arc::default(),
        turns: Mutex::default(),
        begun: Mutex::new(0),
        news: Notify::new(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        tokio::select! {
            served = opencode::serve(listener, server.clone()) => served?,
            talked = server.talk() => talked?,
        }
        Ok(0)
    })
}

/// The server with its turns.
struct Server {
    records: PathBuf,
    authorization: String,
    hub: Arc<Hub>,
    turns: Mutex<Vec<Turn>>,
    begun: Mutex<u32>,
    /// A turn has begun, or continues.
    news: Notify,
}

impl Server {
    fn turns(&self) -> MutexGuard<'_, Vec<Turn>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets all turns say what is due, for ever.
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

    /// Returns when the next turn is due.
    fn go_on(&self) -> anyhow::Result<Option<std::time::Instant>> {
        let mut turns = self.turns();
        for (turn, ending) in turn::go_on(&mut turns)? {
            turn.over(ending).into_iter().for_each(|event| self.hub.tell(&event));
        }
        if !turns.is_empty() && fastrand::u32(..WORDS_TO_A_CUT) == 0 {
            turns.iter_mut().try_for_each(Turn::note_cut)?;
            self.hub.cut();
        }
        Ok(turn::next_due(&turns))
    }

    fn begin(&self, session: String, prompt: &Value) -> anyhow::Result<()> {
        let part = &prompt["parts"][0];
        let text = part["text"].as_str().context("a prompt is a seed")?.to_owned();
        let seed = text.trim().parse()?;
        let purpose = Purpose::from_prompt(&part["metadata"]["mainstay"], session.clone(), seed)?;
        let number = {
            let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
            *begun += 1;
            *begun
        };
        // Ids grow, also from one process to the next.
        let now = SystemClock.now().as_millis();
        let [asked, message] = ["a", "b"].map(|which| format!("msg_{now:013x}{number:06x}{which}"));
        self.hub.forget(&session);
        let encoder = Opencode::new(session, asked, message, text);
        let hub = self.hub.clone();
        let sink = Box::new(move |event: &Value| {
            hub.tell(event);
            // A follower that misses the event gets the question from the state.
            Ok(true)
        });
        self.turns().push(Turn::begin(&self.records, purpose, number, Box::new(encoder), sink)?);
        self.news.notify_one();
        Ok(())
    }

    fn sessions(&self) -> PathBuf {
        self.records.join(SESSIONS)
    }

    fn take(&self, request: &Request) -> anyhow::Result<Option<Answer>> {
        let path: Vec<_> = request.path.split('/').skip(1).collect();
        let nothing = || json!([]);
        let value = match (request.method.as_str(), &path[..]) {
            ("GET", ["global", "health"]) => json!({"healthy": true, "version": "0"}),
            ("GET", ["agent"] | ["session", _, "children" | "todo"]) => nothing(),
            ("GET", ["config", "providers"]) => json!({"providers": []}),
            ("GET", ["permission"]) => self.hub.asked(),
            ("POST", ["permission", id, "reply"]) => return self.reply(id, &request.body),
            ("POST", ["session"]) => self.new_session()?,
            ("GET", ["session", "status"]) => self.status(),
            ("GET", ["session", id]) => return Ok(self.session(id)),
            ("GET", ["session", id, "message"]) => {
                let limit = request.query.split('&').find_map(|pair| pair.strip_prefix("limit="));
                self.hub.messages(id, limit.and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX))
            }
            ("POST", ["session", id, "prompt_async"]) => {
                self.begin((*id).to_owned(), &request.body)?;
                return Ok(Some((StatusCode::NO_CONTENT, Value::Null)));
            }
            ("POST", ["session", id, "abort"]) => {
                for turn in self.turns().iter_mut().filter(|turn| turn.conversation == *id) {
                    turn.cancel()?;
                }
                self.news.notify_one();
                json!(true)
            }
            _ => return Ok(Some((StatusCode::NOT_FOUND, Value::Null))),
        };
        Ok(Some((StatusCode::OK, value)))
    }

    fn new_session(&self) -> anyhow::Result<Value> {
        let id = format!("ses_{}", uuid::Uuid::new_v4().simple());
        let mut file = OpenOptions::new().create(true).append(true).open(self.sessions())?;
        file.write_all(format!("{id}\n").as_bytes())?;
        Ok(json!({"id": id}))
    }

    fn session(&self, id: &str) -> Option<Answer> {
        let sessions = std::fs::read_to_string(self.sessions()).unwrap_or_default();
        sessions.lines().any(|known| known == id).then(|| (StatusCode::OK, json!({"id": id})))
    }

    fn status(&self) -> Value {
        self.turns().iter().map(|turn| (turn.conversation.clone(), json!({"type": "busy"}))).collect()
    }

    fn reply(&self, id: &str, reply: &Value) -> anyhow::Result<Option<Answer>> {
        let answer = json!({"permission": id, "reply": reply["reply"]});
        let mut is_answer = false;
        for turn in self.turns().iter_mut() {
            is_answer |= turn.hear(&answer)?;
        }
        self.hub.answered(id);
        self.news.notify_one();
        Ok(Some(if is_answer { (StatusCode::OK, json!(true)) } else { (StatusCode::NOT_FOUND, Value::Null) }))
    }
}

impl Behaviour for Server {
    fn admits(&self, request: &Request) -> bool {
        request.authorization == self.authorization
    }

    fn followed(&self, _: Request, follower: Follower) {
        self.hub.follow(follower);
    }

    async fn answer(&self, request: Request) -> Option<Answer> {
        let failed =
            |error: anyhow::Error| Some((StatusCode::INTERNAL_SERVER_ERROR, json!({"message": format!("{error:#}")})));
        self.take(&request).unwrap_or_else(failed)
    }
}
