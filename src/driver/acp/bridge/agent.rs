//! The agent as its client sees it: what it says of its sessions, what it asks, and what it is told.
//!
//! Always: what the agent says is taken in its order. One turn at a time is in a session; what is said of a session while
//! none is goes to no turn. A request for permission is answered once: as it was decided, or `cancelled` when its turn is.

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

/// What is said of a session before its id is known to us.
const MAX_EARLY_LINES: usize = 16;
/// So much of what an agent says in place of its protocol is quoted.
const MAX_QUOTED_BYTES: usize = 300;
/// A longer one is not kept for later.
const MAX_EARLY_BYTES: usize = 1024 * 1024;
/// What an agent said before it ended is heard within so long; something else may hold its stdout open.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The client of one agent.
pub(super) struct Bridge {
    pub(super) client: Client,
    pub(super) process: Process,
    state: Mutex<State>,
    connected: OnceLock<Connected>,
    /// Why the agent has to end.
    given_up: watch::Sender<Option<String>>,
    /// Told when a session is not busy any more.
    pub(super) freed: Notify,
    /// All that the agent said was heard; no more comes.
    pub(super) heard_all: CancellationToken,
}

struct Connected {
    connection: ConnectionTo<Agent>,
    agent: InitializeResponse,
}

/// What is kept of the sessions.
#[derive(Default)]
pub(super) struct State {
    /// By the agent's id.
    pub(super) sessions: HashMap<String, Session>,
    /// Our sessions that a turn is in, or is about to be.
    pub(super) busy: HashSet<String>,
    /// Prompts that were not answered: the id of the request, and the session.
    prompts: HashMap<String, String>,
    /// What was said of sessions that are not known: the id, what it is, and the line.
    early: VecDeque<(String, Update, String)>,
    /// The beginning of what the agent said in place of its protocol.
    nonsense: String,
}

/// As much of a message as says where it goes.
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

    /// Whether it is one of the protocol. News of a session say which; any request is one, so that it gets an answer.
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

    /// Says who we are and what the agent may ask of us.
    ///
    /// # Errors
    /// What the agent answered instead; without a class when it did not answer at all.
    pub(super) async fn initialize(&self, connection: ConnectionTo<Agent>) -> Result<(), AgentError> {
        let access = self.client.access();
        let files = FileSystemCapabilities::new().read_text_file(access.read_files).write_text_file(access.write_files);
        let request = InitializeRequest::new(ProtocolVersion::V1)
            .client_capabilities(ClientCapabilities::new().fs(files).terminal(access.terminals))
            .client_info(Implementation::new("mainstay", env!("CARGO_PKG_VERSION")));
        // An answer that is none, and another version of ACP, is an error here.
        let agent = connection.send_request(request).block_task().await.map_err(|error| ending::refused(&error))?;
        // It is said once.
        let _ = self.connected.set(Connected { connection, agent });
        Ok(())
    }

    fn connected(&self) -> Result<&Connected, Error> {
        self.connected.get().ok_or_else(|| Error::internal_error().data("the agent is not there yet"))
    }

    /// What the agent said that it can do.
    pub(super) fn agent(&self) -> Result<&InitializeResponse, Error> {
        Ok(&self.connected()?.agent)
    }

    /// Asks the agent, and waits for its answer.
    pub(super) async fn ask(&self, method: &str, params: impl Serialize) -> Result<Value, Error> {
        let request = UntypedMessage::new(method, params)?;
        self.connected()?.connection.send_request(request).block_task().await
    }

    /// Prompts the agent, and waits for its answer, which is taken in its place among what is said of the session.
    /// It is told in `_meta` which run it works for.
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

    /// Why the agent is lost: it ended, or has to.
    pub(super) async fn lost(&self) -> String {
        let mut given_up = self.given_up.subscribe();
        let ended = async {
            let ended = self.process.ended().await;
            // Its last words count, an answer to a prompt most of all.
            let _ = timeout(LAST_WORDS, self.heard_all.cancelled()).await;
            ended
        };
        tokio::select! {
            ended = ended => ended,
            Ok(reason) = given_up.wait_for(Option::is_some) => reason.clone().unwrap_or_default(),
        }
    }

    /// Ends the agent: it does not do what it has to.
    pub(super) fn give_up(&self, reason: impl Into<String>) {
        self.given_up.send_if_modified(|known| known.is_none() && known.replace(reason.into()).is_none());
    }

    /// Whether the agent is being ended, and may still be at what it was told to end.
    pub(super) fn has_given_up(&self) -> bool {
        self.given_up.borrow().is_some()
    }

    /// Takes a line of the agent. Whether it is more than news of a session, and so for the protocol to deal with.
    pub(super) async fn heard(&self, line: &str) -> bool {
        let message = serde_json::from_str::<Envelope<'_>>(line).ok();
        let params = message.as_ref().and_then(Envelope::params).unwrap_or_default();
        let Some(message) = message.filter(|message| message.is_message(&params)) else {
            // It ends nothing.
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

    /// Keeps the beginning of what the agent says before it is known to speak the protocol.
    fn note(&self, said: &str) {
        if self.connected.get().is_none() {
            let nonsense = &mut self.state().nonsense;
            let room = MAX_QUOTED_BYTES.saturating_sub(nonsense.len());
            nonsense.push_str(&said[..said.floor_char_boundary(room)]);
            nonsense.push(' ');
            nonsense.truncate(nonsense.floor_char_boundary(MAX_QUOTED_BYTES));
        }
    }

    /// Why the agent ended; when it has not spoken the protocol, with what it said instead.
    pub(super) fn quoting(&self, error: AgentError) -> AgentError {
        let state = self.state();
        match state.nonsense.trim() {
            _ if self.connected.get().is_some() => error,
            "" => error,
            said => AgentError { message: format!("{}; it said: {said}", error.message), ..error },
        }
    }

    /// Takes a line that is no message, or the beginning of one that is too long: it is counted in the turn that it is of.
    pub(super) async fn heard_unreadable(&self, beginning: &str) {
        self.note(beginning);
        let turn = self.state().turn_of_unreadable(beginning);
        say(turn, &unreadable(beginning)).await;
    }

    /// Deals with a request of the agent. Never waits.
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

    /// Passes on how a request was decided. One that is decided already is not decided again.
    pub(super) fn decided(&self, ours: &str, request: String, option: Option<String>) {
        let mut state = self.state();
        let turn = state.sessions.values_mut().filter(|session| session.ours == ours).find_map(|it| it.turn.as_mut());
        let Some(turn) = turn else { return };
        // What stands behind the id tells requests with the same id apart.
        let request = request.trim_end().to_owned();
        match turn.open.remove(&request) {
            // It fails when the agent is gone.
            Some(responder) => drop(responder.respond(outcome(option.as_deref()))),
            // The engine heard of it before the protocol did.
            None if turn.decided.len() < MAX_OPEN_REQUESTS => drop(turn.decided.insert(request, option)),
            None => {}
        }
    }

    /// Tells the agent to end the turn in a session, and takes back what it waits for.
    pub(super) fn cancel(&self, session: &str) {
        let open = {
            let mut state = self.state();
            let turn = state.sessions.get_mut(session).and_then(|session| session.turn.as_mut());
            let Some(turn) = turn else { return };
            turn.cancelled = true;
            std::mem::take(&mut turn.open)
        };
        if let Ok(connected) = self.connected() {
            // It fails when the agent is gone, and then the turn ends anyway.
            let _ = connected.connection.send_notification(CancelNotification::new(session.to_owned()));
        }
        for responder in open.into_values() {
            // As above.
            let _ = responder.respond(outcome(None));
        }
    }
}

impl State {
    /// Takes an update of a session; who listens to it.
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

    /// What was said of a session before it was known is heard now.
    pub(super) fn add(&mut self, id: &str, mut session: Session) {
        for (of, update, line) in std::mem::take(&mut self.early) {
            if of == id {
                session.updated(&update, &line);
            }
        }
        self.sessions.insert(id.to_owned(), session);
    }

    /// Who listens to the turn that a line is of which cannot be read: the one in the session that it names, or the only one.
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

    /// The turn that a request is of: the one in its session, or the only one when the session is not known, as that of a
    /// sub-agent.
    fn turn_of(&mut self, session: &str) -> Option<&mut Turn> {
        if self.sessions.contains_key(session) {
            return self.sessions.get_mut(session)?.turn.as_mut();
        }
        let mut turns = self.sessions.values_mut().filter_map(|session| session.turn.as_mut());
        turns.next().filter(|_| turns.next().is_none())
    }

    /// Takes an answer of the agent, its line when it is an error; whose turn it ends.
    fn answered(&mut self, id: &str, error: Option<&str>) -> Option<mpsc::Sender<String>> {
        let session = self.prompts.remove(id)?;
        self.sessions.get_mut(&session)?.answered(error)
    }
}

/// A turn whose relay does not read holds the agent up, as a pipe does.
async fn say(turn: Option<mpsc::Sender<String>>, line: &str) {
    if let Some(turn) = turn {
        // It fails when the turn is over, and then nobody wants the line.
        let _ = turn.send(line.to_owned()).await;
    }
}
