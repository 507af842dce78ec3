//! The body of `POST /api/chat`: `{id, messages}` as `useChat` sends it, or `{id, message}`.
//!
//! Always: the history that is sent along costs no memory. Kept are the last message if it is a user's, the answers to
//! questions in messages of the assistant, and the fields beside the messages; the rest is skipped as it arrives.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};

use super::super::App;
use super::super::error::Error;
use super::super::extract::{check_json, malformed_json, read_body, timed_out, unreadable, with_path};
use super::super::memory::URGENT_BODY_BYTES;
use super::super::places::Crowded;
use super::super::skim::Skim;
use crate::message::Role;
use crate::run::WhenBusy;

/// Longest body: some hundred messages with pictures. It is never held in memory; the limit only ends an endless body.
pub(in crate::http) const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;
/// The fields beside the messages that are read; others belong to the application.
const FIELDS: [&str; 6] = ["id", "trigger", "messageId", "workspace", "agent", "when_busy"];
/// Longest of these fields, and of `role` and `state` within the messages: ids have up to 200 characters.
const MAX_FIELD_BYTES: usize = 2048;
/// Longest `approval` of a tool: an id, and a reason of 4000 characters, all escaped.
const MAX_APPROVAL_BYTES: usize = 64 * 1024;
/// What an approval takes in memory besides its text.
const APPROVAL_OVERHEAD_BYTES: usize = 256;

/// The parts of the body that are used.
#[derive(Debug)]
pub(in crate::http) struct ChatBody {
    pub fields: Fields,
    /// The `approval` of each tool call with a response in a message of the assistant, oldest first.
    pub approvals: Vec<Value>,
    /// How many of them, the newest, are in the last message.
    pub last_approvals: usize,
    pub last: Last,
}

/// The fields beside the messages.
#[derive(Debug, Deserialize)]
pub(in crate::http) struct Fields {
    pub id: String,
    #[serde(default)]
    pub trigger: Trigger,
    #[serde(rename = "messageId")]
    pub message_id: Option<String>,
    pub workspace: Option<String>,
    pub agent: Option<String>,
    pub when_busy: Option<WhenBusy>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::http) enum Trigger {
    #[default]
    SubmitMessage,
    RegenerateMessage,
}

/// The last message.
#[derive(Debug)]
pub(in crate::http) enum Last {
    User(UiMessage),
    Assistant,
    System,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object with role and parts")]
pub(in crate::http) struct UiMessage {
    pub id: Option<String>,
    pub parts: Vec<Value>,
    pub metadata: Option<Value>,
}

/// The longest that a body may take to arrive.
pub(in crate::http) fn max_arrival(app: &App) -> Duration {
    app.timeouts.body.saturating_mul(parts_of(MAX_BODY_BYTES, app))
}

/// How many times `max_body_bytes` such a body is. Each part may take as long as a whole body of that size.
fn parts_of(bytes: usize, app: &App) -> u32 {
    u32::try_from(1 + bytes / app.max_body_bytes.max(1)).unwrap_or(u32::MAX)
}

impl FromRequest<App> for ChatBody {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        check_json(request.headers())?;
        let (used, longest) = (app.max_body_bytes, MAX_BODY_BYTES.max(app.max_body_bytes));
        let hint = request.body().size_hint();
        // A body may answer a question, which is urgent, or send a message, which is not. A large one is not read to find out.
        if let Some(crowded) = request.extensions().get::<Crowded>()
            && hint.exact().is_none_or(|bytes| bytes > URGENT_BODY_BYTES as u64)
        {
            return Err(crowded.refuse());
        }
        if hint.exact().is_some_and(|bytes| bytes <= used as u64) {
            return Self::parse(read_body(request, app).await?, used);
        }
        // Refused before the body is sent: a client that waits for "100 Continue" need not send it.
        if hint.lower() > longest as u64 {
            return Err(body_too_large(longest));
        }
        Self::skim(std::pin::pin!(arriving(request.into_body(), app.clone(), longest)), used).await
    }
}

/// The body, piece by piece.
fn arriving(body: Body, app: App, longest: usize) -> impl Stream<Item = Result<Bytes, Error>> {
    let began = Instant::now();
    stream::try_unfold((body.into_data_stream(), 0_usize), move |(mut body, arrived)| {
        let deadline = began + app.timeouts.body.saturating_mul(parts_of(arrived, &app));
        async move {
            let piece = timeout_at(deadline, body.next()).await.map_err(|_| timed_out())?;
            let piece = piece.transpose().map_err(|error| unreadable(error.to_string()))?;
            let Some(piece) = piece else { return Ok(None) };
            let arrived = arrived + piece.len();
            if arrived > longest { Err(body_too_large(longest)) } else { Ok(Some((piece, (body, arrived)))) }
        }
    })
}

fn body_too_large(longest: usize) -> Error {
    let way_out = "only the last message is used: send that alone, as {id, message}, with prepareSendMessagesRequest";
    too_large(format!("the body may have at most {longest} bytes; {way_out}"))
}

fn message_too_large(used: usize) -> Error {
    let way_out = "send fewer or smaller files, or links (https://) to them, or raise max_body_bytes under [server]";
    too_large(format!("the last message may have at most {used} bytes; {way_out}"))
}

fn too_large(message: String) -> Error {
    Error::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

fn invalid_body(message: impl Into<String>) -> Error {
    Error::invalid("invalid_body", message)
}

impl ChatBody {
    /// Parses a body that has arrived, keeping at most `used` bytes of it.
    pub(super) fn parse(body: Bytes, used: usize) -> Result<Self, Error> {
        // Reports invalid JSON by line and column; what is skimmed is checked less strictly.
        serde_json::from_slice::<IgnoredAny>(&body).map_err(malformed_json)?;
        let read = Self::skim(stream::iter([Ok(body)]), used).now_or_never();
        read.unwrap_or_else(|| Err(Error::internal("the body had arrived and was waited for")))
    }

    async fn skim(source: impl Stream<Item = Result<Bytes, Error>> + Unpin, used: usize) -> Result<Self, Error> {
        let mut json = Skim::new(source);
        let Some(mut inside) = json.enter(b'{').await? else {
            return Err(invalid_body("an object with id and messages is expected"));
        };
        let (mut fields, mut messages, mut message) = (Map::new(), Messages::new(used), Messages::new(used));
        while let Some(key) = json.key(&mut inside).await? {
            match key.as_str() {
                "messages" => messages.read_list(&mut json).await?,
                "message" => message.read(&mut json).await?,
                name if FIELDS.contains(&name) => {
                    let value = json.value(MAX_FIELD_BYTES).await?;
                    let value = value.ok_or_else(|| invalid_body(format!("{key} is too long")))?;
                    fields.insert(key, serde_json::from_slice(&value).map_err(malformed_json)?);
                }
                _ => json.pass().await?,
            }
        }
        json.end().await?;
        let fields: Fields =
            serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| invalid_body(with_path(&error)))?;
        let given = if messages.are_given { messages } else { message };
        if !given.are_given {
            return Err(invalid_body("messages, or one message, is missing"));
        }
        let last = given.last()?;
        Ok(Self { fields, last, last_approvals: given.last_approvals, approvals: given.approvals })
    }
}

/// What is kept of the messages while they are read.
struct Messages {
    used: usize,
    are_given: bool,
    approvals: Vec<Value>,
    approval_bytes: usize,
    last_approvals: usize,
    last: Option<Newest>,
}

/// The newest message so far, with its text unless that is too long to be used.
struct Newest {
    role: Option<Role>,
    text: Option<Vec<u8>>,
}

impl Messages {
    fn new(used: usize) -> Self {
        Self { used, are_given: false, approvals: Vec::new(), approval_bytes: 0, last_approvals: 0, last: None }
    }

    async fn read_list<S>(&mut self, json: &mut Skim<S>) -> Result<(), Error>
    where
        S: Stream<Item = Result<Bytes, Error>> + Unpin,
    {
        let Some(mut inside) = json.enter(b'[').await? else {
            return Err(invalid_body("messages is not an array"));
        };
        self.are_given = true;
        while json.element(&mut inside).await? {
            self.read(json).await?;
        }
        Ok(())
    }

    async fn read<S>(&mut self, json: &mut Skim<S>) -> Result<(), Error>
    where
        S: Stream<Item = Result<Bytes, Error>> + Unpin,
    {
        self.are_given = true;
        let (mut role, mut approvals) = (None, Vec::new());
        json.keep(self.used);
        match json.enter(b'{').await? {
            None => json.pass().await?,
            Some(mut inside) => {
                while let Some(key) = json.key(&mut inside).await? {
                    match key.as_str() {
                        "role" => role = read_as(json, MAX_FIELD_BYTES).await?,
                        "parts" => self.read_parts(json, &mut approvals).await?,
                        _ => json.pass().await?,
                    }
                }
            }
        }
        let text = json.kept();
        if role != Some(Role::Assistant) {
            approvals.clear();
        }
        self.last_approvals = approvals.len();
        self.approvals.append(&mut approvals);
        self.last = Some(Newest { role, text });
        Ok(())
    }

    /// Reads only the answers to questions from the parts.
    async fn read_parts<S>(&mut self, json: &mut Skim<S>, approvals: &mut Vec<Value>) -> Result<(), Error>
    where
        S: Stream<Item = Result<Bytes, Error>> + Unpin,
    {
        let Some(mut parts) = json.enter(b'[').await? else { return json.pass().await };
        while json.element(&mut parts).await? {
            let Some(mut part) = json.enter(b'{').await? else {
                json.pass().await?;
                continue;
            };
            let (mut state, mut approval) = (None::<String>, None);
            while let Some(key) = json.key(&mut part).await? {
                match key.as_str() {
                    "state" => state = read_as(json, MAX_FIELD_BYTES).await?,
                    "approval" => approval = json.value(MAX_APPROVAL_BYTES).await?,
                    _ => json.pass().await?,
                }
            }
            if state.as_deref() == Some("approval-responded") {
                let approval = approval.unwrap_or_else(|| b"null".to_vec());
                self.approval_bytes += approval.len() + APPROVAL_OVERHEAD_BYTES;
                if self.approval_bytes > self.used {
                    return Err(body_too_large(self.used));
                }
                approvals.push(serde_json::from_slice(&approval).map_err(malformed_json)?);
            }
        }
        Ok(())
    }

    fn last(&self) -> Result<Last, Error> {
        let invalid = |message: String| Error::invalid("invalid_message", message);
        let newest = self.last.as_ref();
        let newest = newest.ok_or_else(|| invalid("messages is empty: its last one is what is sent".into()))?;
        match newest.role {
            Some(Role::User) => {}
            Some(Role::Assistant) => return Ok(Last::Assistant),
            Some(Role::System) => return Ok(Last::System),
            None => return Err(invalid("the last of the messages has no role: user, assistant or system".into())),
        }
        let text = newest.text.as_ref().ok_or_else(|| message_too_large(self.used))?;
        let message = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(text));
        let none = |error| invalid(format!("the last of the messages is no UI message: {}", with_path(&error)));
        message.map(Last::User).map_err(none)
    }
}

/// The next value, if it is within the limit and a `T`.
async fn read_as<T, S>(json: &mut Skim<S>, limit: usize) -> Result<Option<T>, Error>
where
    T: serde::de::DeserializeOwned,
    S: Stream<Item = Result<Bytes, Error>> + Unpin,
{
    let text = json.value(limit).await?;
    Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
}
