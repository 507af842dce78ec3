//! The client of an ACP agent: its session updates, its requests, and the answers to them.
//!
//! Always: the agent's messages are handled in their order. A session has one turn at a time; an update of a session
//! without a turn goes to no turn. A request for permission is answered once: as it was decided, or with `cancelled` if
//! its turn is.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use agent_client_protocol::schema::ProtocolVersion;
use agent_client_protocol::v1::schema::{
    CancelNotification, ClientCapabilities, ContentBlock, FileSystemCapabilities, Implementation, InitializeRequest,
    InitializeResponse, PromptRequest,
};
use agent_client_protocol::v1::{ConnectionTo, Responder};
use agent_client_protocol::{Agent, Error, UntypedMessage};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::ending;
use super::process::Process;
use super::session::{Session, Update};
use super::turn::{MAX_OPEN_REQUESTS, Turn, outcome};
use crate::driver::relay::RelayedTurn;
use crate::failure::AgentError;
use crate::process::lines::unreadable;
use crate::workspace::ClientAccess;

/// Updates that may be kept for sessions whose id is not known yet.
const MAX_EARLY_LINES: usize = 16;
/// How much of an agent's non-protocol output is quoted.
const MAX_QUOTED_BYTES: usize = 300;
/// A longer update is not kept for later.
const MAX_EARLY_BYTES: usize = 1024 * 1024;
/// How long to wait for an agent's last output after it ended; another process may hold its stdout open.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The client of one agent.
pub(super) struct Bridge {
    pub(super) client: Client,
    pub(super) process: Process,
    state: Mutex<State>,
    connected: OnceLock<Connected>,
    /// Why the agent has to be ended.
    given_up: watch::Sender<Option<String>>,
    /// Notified when a session is no longer busy.
    pub(super) freed: Notify,
    /// The agent's output was read to its end.
    pub(super) heard_all: CancellationToken,
}

struct Connected {
    connection: ConnectionTo<Agent>,
    agent: InitializeResponse,
}

/// What is known of the sessions.
#[derive(Default)]
pub(super) struct State {
    /// By the agent's id.
    pub(super) sessions: HashMap<String, Session>,
    /// Mainstay's ids of the sessions that have a turn, or are about to get one.
    pub(super) busy: HashSet<String>,
    /// Prompts without an answer: the id of the request, and the session.
    prompts: HashMap<String, String>,
    /// Updates of unknown sessions: the id, the parsed update, and the line.
    early: VecDeque<(String, Update, String)>,
    /// The beginning of the agent's non-protocol output.
    nonsense: String,
}

/// The parts of a message that determine where it goes.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: Option<String>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

impl Envelope<'_> {
    fn params(&self) -> Option<Params> {
        serde_json::from_str(self.params?.get()).ok()
    }

    /// Whether it is a message of the protocol. An update must name its session; any request counts, so that it gets an
    /// answer.
    fn is_message(&self, params: &Params) -> bool {
        match self.method.as_deref() {
            Some("session/update") => params.session_id.is_some(),
            Some(_) => true,
            None => self.id.is_some(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Params {
    session_id: Option<String>,
    update: Option<Update>,
}

impl Bridge {
    pub(super) fn new(access: ClientAccess, process: Process) -> Self {
        Self {
            client: Client::new(access),
            process,
            state: Mutex::default(),
            connected: OnceLock::new(),
            given_up: watch::Sender::new(None),
            freed: Notify::new(),
            heard_all: CancellationToken::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `initialize`: the client's name, and what the agent may request from it.
    ///
    /// # Errors
    /// The error that the agent answered; without a class if it did not answer at all.
    pub(super) async fn initialize(&self, connection: ConnectionTo<Agent>) -> Result<(), AgentError> {
        let access = self.client.access();
        let files = FileSystemCapabilities::new().read_text_file(access.read_files).write_text_file(access.write_files);
        let request = InitializeRequest::new(ProtocolVersion::V1)
            .client_capabilities(ClientCapabilities::new().fs(files).terminal(access.terminals))
            .client_info(Implementation::new("mainstay", env!("CARGO_PKG_VERSION")));
        // An invalid answer, or another version of ACP, is an error here.
        let agent = connection.send_request(request).block_task().await.map_err(|error| ending::refused(&error))?;
        // Called only once.
        let _ = self.connected.set(Connected { connection, agent });
        Ok(())
    }

    fn connected(&self) -> Result<&Connected, Error> {
        self.connected.get().ok_or_else(|| Error::internal_error().data("the agent is not there yet"))
    }

    /// The answer to `initialize`: the agent's capabilities.
    pub(super) fn agent(&self) -> Result<&InitializeResponse, Error> {
        Ok(&self.connected()?.agent)
    }

    /// Sends a request to the agent and waits for its answer.
    pub(super) async fn ask(&self, method: &str, params: impl Serialize) -> Result<Value, Error> {
        let request = UntypedMessage::new(method, params)?;
        self.connected()?.connection.send_request(request).block_task().await
    }

    /// Prompts the agent and waits for its answer, which keeps its place in the order of the session's updates. `_meta`
    /// tells the agent which run it works for.
    pub(super) async fn ask_for_turn(
        &self,
        session: &str,
        prompt: Vec<ContentBlock>,
        turn: &RelayedTurn,
    ) -> Result<Value, Error> {
        let prompt = PromptRequest::new(session.to_owned(), prompt).meta(turn.marker());
        let request = UntypedMessage::new("session/prompt", prompt)?;
        let request = self.connected()?.connection.prepare_request(request);
        let id = serde_json::to_string(request.raw_id())?;
        self.state().prompts.insert(id.clone(), session.to_owned());
        let answer = request.block_task().await;
        self.state().prompts.remove(&id);
        answer
    }

    /// Waits until the agent is lost, because it ended or has to be ended. Returns the reason.
    pub(super) async fn lost(&self) -> String {
        let mut given_up = self.given_up.subscribe();
        let ended = async {
            let ended = self.process.ended().await;
            // Its last output counts, above all an answer to a prompt.
            let _ = timeout(LAST_WORDS, self.heard_all.cancelled()).await;
            ended
        };
        tokio::select! {
            ended = ended => ended,
            Ok(reason) = given_up.wait_for(Option::is_some) => reason.clone().unwrap_or_default(),
        }
    }

    /// Ends the agent, because it violates the protocol.
    pub(super) fn give_up(&self, reason: impl Into<String>) {
        self.given_up.send_if_modified(|known| known.is_none() && known.replace(reason.into()).is_none());
    }

    /// Whether the agent is being ended, and may still work on a turn that it was told to end.
    pub(super) fn has_given_up(&self) -> bool {
        self.given_up.borrow().is_some()
    }

    /// Handles a line of the agent. Returns whether it is more than a session update, so that the protocol library has
    /// to handle it.
    pub(super) async fn heard(&self, line: &str) -> bool {
        let message = serde_json::from_str::<Envelope<'_>>(line).ok();
        let params = message.as_ref().and_then(Envelope::params).unwrap_or_default();
        let Some(message) = message.filter(|message| message.is_message(&params)) else {
            // An unreadable line ends nothing.
            self.heard_unreadable(line).await;
            return false;
        };
        let Params { session_id, update } = params;
        match (message.method.as_deref(), session_id) {
            (Some("session/update"), Some(session)) => {
                let turn = self.state().updated(&session, &update.unwrap_or_default(), line);
                say(turn, line).await;
                false
            }
            (Some("session/request_permission"), Some(session)) => {
                let turn = {
                    let mut state = self.state();
                    state.turn_of(&session).filter(|turn| !turn.is_answered).map(|turn| turn.lines.clone())
                };
                say(turn, line).await;
                true
            }
            (Some(_), _) => true,
            (None, _) => {
                self.note(line);
                let error = message.error.map(|_| line);
                let turn = message.id.and_then(|id| self.state().answered(id.get(), error));
                say(turn, line).await;
                true
            }
        }
    }

    /// Keeps the beginning of the agent's output until the agent is known to speak the protocol.
    fn note(&self, said: &str) {
        if self.connected.get().is_none() {
            let nonsense = &mut self.state().nonsense;
            let room = MAX_QUOTED_BYTES.saturating_sub(nonsense.len());
            nonsense.push_str(&said[..said.floor_char_boundary(room)]);
            nonsense.push(' ');
            nonsense.truncate(nonsense.floor_char_boundary(MAX_QUOTED_BYTES));
        }
    }

    /// The reason why the agent ended; if it never spoke the protocol, with a quote of its output.
    pub(super) fn quoting(&self, error: AgentError) -> AgentError {
        let state = self.state();
        match state.nonsense.trim() {
            _ if self.connected.get().is_some() => error,
            "" => error,
            said => AgentError { message: format!("{}; it said: {said}", error.message), ..error },
        }
    }

    /// Handles a line that is not a message, or the beginning of one that is too long: its turn counts it as malformed.
    pub(super) async fn heard_unreadable(&self, beginning: &str) {
        self.note(beginning);
        let turn = self.state().turn_of_unreadable(beginning);
        say(turn, &unreadable(beginning)).await;
    }

    /// Handles a request of the agent. Never waits.
    pub(super) fn requested(
        &self,
        request: UntypedMessage,
        responder: Responder,
        connection: &ConnectionTo<Agent>,
    ) -> Result<(), Error> {
        let session = request.params.get("sessionId").and_then(Value::as_str).unwrap_or_default();
        let mut state = self.state();
        let turn = state.turn_of(session);
        if request.method == "session/request_permission" {
            return Turn::permission(turn, &request.params, responder);
        }
        match turn.and_then(|turn| self.client.work(&request, turn)) {
            Some(work) => connection.spawn(async move { responder.respond_with_result(work.await) }),
            None => responder.respond_with_error(Error::method_not_found()),
        }
    }

    /// Passes the decision of a request to the agent. Only the first decision counts.
    pub(super) fn decided(&self, ours: &str, request: String, option: Option<String>) {
        let mut state = self.state();
        let turn = state.sessions.values_mut().filter(|session| session.ours == ours).find_map(|it| it.turn.as_mut());
        let Some(turn) = turn else { return };
        // The parser appends white space to tell requests with the same id apart.
        let request = request.trim_end().to_owned();
        match turn.open.remove(&request) {
            // Fails if the agent is gone.
            Some(responder) => drop(responder.respond(outcome(option.as_deref()))),
            // The engine has seen the request, but the protocol library has not handled it yet.
            None if turn.decided.len() < MAX_OPEN_REQUESTS => drop(turn.decided.insert(request, option)),
            None => {}
        }
    }

    /// Tells the agent to end the turn in a session, and cancels its open requests.
    pub(super) fn cancel(&self, session: &str) {
        let open = {
            let mut state = self.state();
            let turn = state.sessions.get_mut(session).and_then(|session| session.turn.as_mut());
            let Some(turn) = turn else { return };
            turn.cancelled = true;
            std::mem::take(&mut turn.open)
        };
        if let Ok(connected) = self.connected() {
            // Fails if the agent is gone, and then the turn ends anyway.
            let _ = connected.connection.send_notification(CancelNotification::new(session.to_owned()));
        }
        for responder in open.into_values() {
            // As above.
            let _ = responder.respond(outcome(None));
        }
    }
}

impl State {
    /// Handles an update of a session; returns its listener.
    fn updated(&mut self, id: &str, update: &Update, line: &str) -> Option<mpsc::Sender<String>> {
        match self.sessions.get_mut(id) {
            Some(session) => session.updated(update, line),
            None => {
                if line.len() <= MAX_EARLY_BYTES {
                    self.early.push_back((id.to_owned(), update.clone(), line.to_owned()));
                    self.early.drain(..self.early.len().saturating_sub(MAX_EARLY_LINES));
                }
                None
            }
        }
    }

    /// Adds a session and handles the updates that arrived before it was known.
    pub(super) fn add(&mut self, id: &str, mut session: Session) {
        for (of, update, line) in std::mem::take(&mut self.early) {
            if of == id {
                session.updated(&update, &line);
            }
        }
        self.sessions.insert(id.to_owned(), session);
    }

    /// The listener of the turn to which an unreadable line belongs: the turn in the session that it names, or the only
    /// turn.
    fn turn_of_unreadable(&self, beginning: &str) -> Option<mpsc::Sender<String>> {
        let names = |id: &&String| beginning.contains(&format!("\"{id}\""));
        let mut named = self.sessions.iter().filter(|(id, _)| names(id)).map(|(_, session)| session);
        let mut listeners = self.sessions.values().filter_map(Session::listener);
        match (named.next(), named.next()) {
            (Some(session), None) => session.listener(),
            (None, _) => listeners.next().filter(|_| listeners.next().is_none()),
            (Some(_), Some(_)) => None,
        }
    }

    /// The turn to which a request belongs: the one in its session, or the only one if the session is unknown, such as
    /// that of a sub-agent.
    fn turn_of(&mut self, session: &str) -> Option<&mut Turn> {
        if self.sessions.contains_key(session) {
            return self.sessions.get_mut(session)?.turn.as_mut();
        }
        let mut turns = self.sessions.values_mut().filter_map(|session| session.turn.as_mut());
        turns.next().filter(|_| turns.next().is_none())
    }

    /// Handles an answer of the agent, with its line if it is an error; returns the listener of the turn that it ends.
    fn answered(&mut self, id: &str, error: Option<&str>) -> Option<mpsc::Sender<String>> {
        let session = self.prompts.remove(id)?;
        self.sessions.get_mut(&session)?.answered(error)
    }
}

/// Sends a line to a turn. If the turn's relay does not read, the agent has to wait, as with a pipe.
async fn say(turn: Option<mpsc::Sender<String>>, line: &str) {
    if let Some(turn) = turn {
        // Fails if the turn is over, and then the line is not needed.
        let _ = turn.send(line.to_owned()).await;
    }
}
