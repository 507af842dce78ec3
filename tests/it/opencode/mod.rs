//! The relay of a turn against a server that behaves as real ones do on bad days.
//!
//! Always: waiting is done on what the server was asked, on what the relay says, or on its end.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use mainstay::agent::ProcessSpec;
use mainstay::agent_event::AgentEvent;
use mainstay::driver::relay::RelayedTurn;
use mainstay::driver::{Driver, Warm, opencode};
use mainstay::failure::{AgentError, ErrorClass};
use mainstay::id::RunId;
use mainstay::message::Attachment;
use mainstay::options::SessionOptions;
use mainstay::process::Shims;
use mainstay::process::{TurnPlace, decode};
use mainstay::run::Attempt;
use serde_json::{Value, json};
use testkit::fake::opencode::{Follower, SESSION, Server};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const DEADLINE: Duration = Duration::from_secs(60);

/// A relay that was told a turn.
struct Relay {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    said: Vec<u8>,
}

fn turn(endpoint: &str, agent_session: Option<&str>, options: SessionOptions) -> RelayedTurn {
    let file = Attachment {
        media_type: "text/plain".to_owned(),
        filename: Some("a.txt".to_owned()),
        url: "data:text/plain,a".to_owned(),
    };
    RelayedTurn {
        session: "s".to_owned(),
        run: "r".to_owned(),
        attempt: 1,
        slot: "w".to_owned(),
        dir: "/a dir".into(),
        agent_session: agent_session.map(str::to_owned),
        message: "hello".to_owned(),
        attachments: vec![file],
        options,
        rules: Default::default(),
        oneshot: false,
        endpoint: endpoint.to_owned(),
    }
}

fn options() -> SessionOptions {
    SessionOptions::default()
}

fn backend() -> Arc<opencode::Opencode> {
    let process = ProcessSpec { command: vec!["opencode".to_owned()], env: Default::default(), max_line_bytes: 1024 };
    let shims = Shims::new(env!("CARGO_BIN_EXE_mainstay").into(), "/nonexistent".into());
    Arc::new(opencode::Opencode::new(&process, Duration::ZERO, &shims))
}

impl Relay {
    async fn start(turn: RelayedTurn) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        command.args(["relay", "opencode"]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(turn.to_line().as_bytes()).await.unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, stdin, lines, said: Vec::new() }
    }

    /// Waits until it says a line with these words.
    async fn says(&mut self, words: &str) {
        loop {
            let line = self.lines.next_line().await.unwrap().unwrap_or_else(|| panic!("it ended without {words}"));
            self.said.extend(format!("{line}\n").into_bytes());
            if line.contains(words) {
                return;
            }
        }
    }

    /// Waits until it says more, which nobody reads.
    async fn says_more(&mut self) {
        assert!(!self.lines.get_mut().fill_buf().await.unwrap().is_empty());
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// What it said, to its end, which is a good one.
    async fn end(self) -> Vec<AgentEvent> {
        self.ends().await.0
    }

    /// The same, and the lines that its parser makes nothing of.
    async fn ends(mut self) -> (Vec<AgentEvent>, Vec<String>) {
        let mut rest = Vec::new();
        let mut reader = self.lines.into_inner();
        reader.read_to_end(&mut rest).await.unwrap();
        self.said.extend(rest);
        assert_eq!(self.child.wait().await.unwrap().code(), Some(0));
        let records = decode([&self.said[..]], 32 * 1024 * 1024, opencode::parser());
        let (mut parser, said) = (opencode::parser(), String::from_utf8(self.said).unwrap());
        let unread = said.lines().filter(|line| parser(line).is_none()).map(str::to_owned).collect();
        (records.into_iter().flat_map(|record| record.events).collect(), unread)
    }
}

async fn in_time(test: impl Future<Output = ()>) {
    tokio::time::timeout(DEADLINE, test).await.expect("it takes too long");
}

fn message(id: &str, role: &str, completed: bool) -> Value {
    let time = if completed { json!({"created": 1, "completed": 2}) } else { json!({"created": 1}) };
    json!({"sessionID": SESSION, "id": id, "role": role, "time": time})
}

fn text_part(text: &str, whole: bool) -> Value {
    let time = if whole { json!({"start": 1, "end": 2}) } else { json!({"start": 1}) };
    json!({"id": "prt_1", "messageID": "msg_2", "sessionID": SESSION, "type": "text", "text": text, "time": time})
}

fn delta(text: &str) -> Value {
    json!({"messageID": "msg_2", "partID": "prt_1", "field": "text", "delta": text})
}

/// The prompt is taken, and the agent begins to write.
async fn begins(follower: &Follower) {
    follower.of_session("message.updated", json!({"info": message("msg_1", "user", false)})).await;
    follower.of_session("session.status", json!({"status": {"type": "busy"}})).await;
    follower.of_session("message.updated", json!({"info": message("msg_2", "assistant", false)})).await;
    follower.of_session("message.part.updated", json!({"part": text_part("", false)})).await;
    follower.of_session("message.part.delta", delta("one ")).await;
}

async fn ends(follower: &Follower, text: &str) {
    follower.of_session("message.part.updated", json!({"part": text_part(text, true)})).await;
    follower.of_session("message.updated", json!({"info": message("msg_2", "assistant", true)})).await;
    follower.of_session("session.status", json!({"status": {"type": "idle"}})).await;
}

fn text_of(events: &[AgentEvent]) -> String {
    let texts = events.iter().filter_map(|event| match event {
        AgentEvent::Text(text) => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

fn error_of(events: &[AgentEvent]) -> Option<&AgentError> {
    events.iter().find_map(|event| match event {
        AgentEvent::Error(error) => Some(error),
        _ => None,
    })
}

fn session_of(events: &[AgentEvent]) -> (String, &'static str) {
    let session = events.iter().find_map(|event| match event {
        AgentEvent::Session { id, origin } => Some((id.clone(), origin.as_str())),
        _ => None,
    });
    session.expect("no session")
}

#[tokio::test]
async fn a_turn_is_told_from_its_prompt_until_the_server_is_idle() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        let options = SessionOptions {
            mode: Some("build".to_owned()),
            model: Some("p/a/b".to_owned()),
            extra: [("variant".to_owned(), "high".to_owned())].into(),
            ..options()
        };
        let relay = Relay::start(turn(&fake.endpoint, None, options)).await;
        let follower = fake.followed().await.unwrap();
        let asked = fake.asked("POST /session/ses_new/prompt_async").await.unwrap();
        assert_eq!(asked.authorization, "Basic b3BlbmNvZGU6c2VjcmV0");
        assert_eq!(asked.query, "directory=%2Fa%20dir");
        let marker = asked.body.pointer("/parts/0/metadata/mainstay").unwrap();
        for key in ["run", "attempt", "session", "slot"] {
            assert!(marker.get(key).is_some_and(|value| !value.is_null()), "{key}: {marker}");
        }
        let parts = json!([{"type": "text", "text": "hello", "metadata": {"mainstay": marker}},
            {"type": "file", "mime": "text/plain", "url": "data:text/plain,a", "filename": "a.txt"}]);
        let prompt = json!({"parts": parts, "agent": "build", "model": {"providerID": "p", "modelID": "a/b"},
            "variant": "high"});
        assert_eq!(asked.body, prompt);
        // An idle that belongs to what was before, and the text of somebody else's session.
        follower.of_session("session.idle", json!({})).await;
        follower.tell("message.part.delta", json!({"sessionID": "ses_other", "delta": "not ours"})).await;
        begins(&follower).await;
        ends(&follower, "one two").await;
        let events = relay.end().await;
        assert_eq!(session_of(&events), (SESSION.to_owned(), "new"));
        assert_eq!(text_of(&events), "one two");
        assert_eq!((error_of(&events), events.last()), (None, Some(&AgentEvent::Ended)));
        assert!(events.iter().any(|event| matches!(event, AgentEvent::Advertised(_))));
    })
    .await;
}

#[tokio::test]
async fn options_that_the_server_does_not_offer_are_not_pushed() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        let unknown = SessionOptions { mode: Some("helper".to_owned()), model: Some("p/c".to_owned()), ..options() };
        fake.answers("POST /session/ses_new/prompt_async", 400, json!({"data": {"message": "no"}}));
        let relay = Relay::start(turn(&fake.endpoint, None, unknown)).await;
        let _follower = fake.followed().await.unwrap();
        let asked = fake.asked("POST /session/ses_new/prompt_async").await.unwrap();
        assert_eq!((asked.body.get("agent"), asked.body.get("model")), (None, None));
        let events = relay.end().await;
        let labels = events.iter().filter(|event| matches!(event, AgentEvent::Status(_))).count();
        assert_eq!(labels, 2);
        assert_eq!(error_of(&events).unwrap().message, "opencode: HTTP status 400: no");
    })
    .await;
}

#[tokio::test]
async fn a_session_that_the_server_knows_is_gone_on_with() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        fake.answers("GET /session/ses_new", 200, json!({"id": SESSION}));
        fake.answers("GET /session/ses_new/message", 200, json!([{"info": {"id": "msg_0"}, "parts": []}]));
        let relay = Relay::start(turn(&fake.endpoint, Some(SESSION), options())).await;
        let follower = fake.followed().await.unwrap();
        fake.asked("POST /session/ses_new/prompt_async").await.unwrap();
        begins(&follower).await;
        ends(&follower, "one").await;
        assert_eq!(session_of(&relay.end().await), (SESSION.to_owned(), "resumed"));
    })
    .await;
}

#[tokio::test]
async fn a_session_that_the_server_does_not_know_is_replaced() {
    for known in ["ses_gone", "../../etc", "ses_?x=/"] {
        in_time(async {
            let mut fake = Server::start().await.unwrap();
            let relay = Relay::start(turn(&fake.endpoint, Some(known), options())).await;
            let follower = fake.followed().await.unwrap();
            begins(&follower).await;
            ends(&follower, "one").await;
            assert_eq!(session_of(&relay.end().await), (SESSION.to_owned(), "new"), "{known}");
            fake.asked("POST /session").await.unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn what_a_killed_relay_left_running_is_ended_before_the_next_prompt() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        fake.answers("GET /session/ses_new", 200, json!({"id": SESSION}));
        fake.answers("GET /session/ses_new/message", 200, json!([]));
        fake.answers("GET /session/status", 200, json!({"ses_new": {"type": "busy"}}));
        let relay = Relay::start(turn(&fake.endpoint, Some(SESSION), options())).await;
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        fake.answers("GET /session/status", 200, json!({}));
        let follower = fake.followed().await.unwrap();
        fake.asked("POST /session/ses_new/prompt_async").await.unwrap();
        begins(&follower).await;
        ends(&follower, "one").await;
        assert_eq!(text_of(&relay.end().await), "one ");
    })
    .await;
}

#[tokio::test]
async fn what_a_killed_relay_left_running_is_ended_when_an_engine_asks() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        let place = |agent_session: Option<&str>| TurnPlace {
            attempt: Attempt { run: RunId::generate(), number: 1 },
            session: "s".parse().unwrap(),
            slot: "w".to_owned(),
            workspace: "w".parse().unwrap(),
            dir: "/a dir".into(),
            agent_session: agent_session.map(str::to_owned),
            endpoint: Some(fake.endpoint.clone()),
        };
        let (known, unknown) = (place(Some(SESSION)), place(None));
        let backend = backend();
        fake.answers("GET /session/status", 200, json!({"ses_new": {"type": "busy"}}));
        let mut ended = tokio::spawn({
            let (backend, known) = (backend.clone(), known.clone());
            async move { backend.end_turn(&known).await }
        });
        // First in any case, then because it is busy.
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        assert!((&mut ended).now_or_never().is_none());
        fake.answers("GET /session/status", 200, json!({}));
        assert_eq!(ended.await.unwrap(), Ok(()));
        assert_eq!(backend.end_turn(&unknown).await, Ok(()), "its prompt was not sent");
        fake.answers("POST /session/ses_new/abort", 500, json!({}));
        assert!(backend.end_turn(&known).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn where_nobody_listens_the_agent_has_crashed() {
    in_time(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://opencode:secret@{}", listener.local_addr().unwrap());
        drop(listener);
        let events = Relay::start(turn(&endpoint, None, options())).await.end().await;
        let error = error_of(&events).unwrap();
        assert_eq!(error.class, Some(ErrorClass::Crashed));
        assert!(!error.message.contains("secret"), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_dies_in_mid_turn_has_crashed() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        let mut relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        relay.says("one ").await;
        fake.die().await;
        follower.cut().await;
        let events = relay.end().await;
        assert_eq!(text_of(&events), "one ");
        assert_eq!(error_of(&events).unwrap().class, Some(ErrorClass::Crashed));
        assert_eq!(events.last(), Some(&AgentEvent::Ended));
    })
    .await;
}

#[tokio::test]
async fn what_is_said_while_the_connection_is_broken_is_neither_lost_nor_doubled() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        let mut relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        relay.says("one ").await;
        let messages = json!([{"info": message("msg_1", "user", false), "parts": []},
            {"info": message("msg_2", "assistant", false), "parts": [text_part("", false),
                {"id": "prt_2", "messageID": "msg_2", "sessionID": SESSION, "type": "tool", "tool": "bash",
                 "callID": "call_1", "state": {"status": "completed", "input": {"command": "ls"}, "output": "a"}}]}]);
        fake.answers("GET /session/ses_new/message", 200, messages);
        let permission = json!({"id": "per_1", "sessionID": SESSION, "permission": "bash"});
        fake.answers("GET /permission", 200, json!([permission]));
        fake.answers("GET /session/status", 200, json!({"ses_new": {"type": "busy"}}));
        follower.cut().await;
        let follower = fake.followed().await.unwrap();
        relay.says("caught_up").await;
        follower.of_session("message.part.delta", delta("three ")).await;
        fake.answers("GET /session/status", 200, json!({}));
        ends(&follower, "one two three ").await;
        let events = relay.end().await;
        assert_eq!(text_of(&events), "one two three ");
        let tools = events.iter().filter(|event| matches!(event, AgentEvent::ToolFinished { .. })).count();
        let permissions = events.iter().filter(|event| matches!(event, AgentEvent::Permission(_))).count();
        assert_eq!((tools, permissions), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn a_turn_that_ended_while_the_connection_was_broken_is_over() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        let mut relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        relay.says("one ").await;
        let messages = json!([{"info": message("msg_2", "assistant", true), "parts": [text_part("one two", true)]}]);
        fake.answers("GET /session/ses_new/message", 200, messages);
        follower.cut().await;
        let _follower = fake.followed().await.unwrap();
        let events = relay.end().await;
        assert_eq!((text_of(&events).as_str(), error_of(&events)), ("one two", None));
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_turn_is_aborted_and_heard_to_its_end() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        let mut relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        let asked = json!({"id": "per_1", "permission": "bash"});
        follower.of_session("permission.asked", asked).await;
        relay.says("per_1").await;
        let go = fake.holds("POST /session/ses_new/abort");
        relay.terminate();
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        go.send(()).unwrap();
        let aborted = json!({"error": {"name": "MessageAbortedError", "data": {"message": "Aborted"}}});
        follower.of_session("session.error", aborted).await;
        follower.of_session("session.idle", json!({})).await;
        // What the server still has to say of the message comes behind its first idle.
        ends(&follower, "one two").await;
        let rejected = fake.asked("POST /permission/per_1/reply").await.unwrap();
        assert_eq!(rejected.body, json!({"reply": "reject"}));
        let events = relay.end().await;
        assert_eq!((text_of(&events).as_str(), error_of(&events)), ("one two", None));
        assert_eq!(events.last(), Some(&AgentEvent::Ended));
    })
    .await;
}

#[tokio::test]
async fn a_turn_is_aborted_also_while_nobody_reads_what_it_says() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        let mut relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        relay.says("one ").await;
        let flood = "x".repeat(1024 * 1024);
        for _ in 0..3 {
            follower.of_session("message.part.delta", delta(&flood)).await;
        }
        relay.says_more().await;
        relay.terminate();
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        let ended = tokio::spawn(relay.end());
        ends(&follower, &format!("one {}", flood.repeat(3))).await;
        let events = ended.await.unwrap();
        assert_eq!(text_of(&events).len(), "one ".len() + 3 * flood.len());
        assert_eq!(events.last(), Some(&AgentEvent::Ended));
    })
    .await;
}

#[tokio::test]
async fn a_relay_whose_host_is_gone_aborts_the_turn() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        let mut relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        relay.says("one ").await;
        drop(relay.lines);
        // Another process that is about to begin may hold the pipe open for a moment, so that the first word is taken.
        let talk = tokio::spawn(async move {
            loop {
                follower.of_session("message.part.delta", delta("two ")).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        talk.abort();
        drop(relay.stdin);
        relay.child.wait().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_server_that_accepts_and_never_answers_holds_up_no_cancel() {
    in_time(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let relay = Relay::start(turn(&endpoint, None, options())).await;
        let (_silent, _) = listener.accept().await.unwrap();
        relay.terminate();
        let events = relay.end().await;
        assert_eq!(events, [AgentEvent::Ended]);
    })
    .await;
}

#[tokio::test]
async fn a_turn_that_is_cancelled_while_it_is_prompted_is_aborted() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        let go = fake.holds("POST /session/ses_new/prompt_async");
        let relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        fake.asked("POST /session/ses_new/prompt_async").await.unwrap();
        relay.terminate();
        go.send(()).unwrap();
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        // The server begins only now: the abort was for nothing.
        begins(&follower).await;
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        ends(&follower, "one").await;
        assert_eq!(relay.end().await.last(), Some(&AgentEvent::Ended));
    })
    .await;
}

#[tokio::test]
async fn a_session_for_one_turn_is_removed() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        let relay = Relay::start(RelayedTurn { oneshot: true, ..turn(&fake.endpoint, None, options()) }).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        ends(&follower, "one").await;
        fake.asked("DELETE /session/ses_new").await.unwrap();
        relay.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_server_is_well_only_when_it_says_so_in_time() {
    in_time(async {
        let backend = backend();
        let fake = Server::start().await.unwrap();
        for (answer, is_well) in
            [(json!({"healthy": true}), true), (json!({"healthy": false}), false), (json!(1), false)]
        {
            fake.answers("GET /global/health", 200, answer);
            assert_eq!(backend.probe(&fake.endpoint).await.is_ok(), is_well);
        }
        fake.answers("GET /global/health", 401, json!({"healthy": true}));
        assert!(backend.probe(&fake.endpoint).await.is_err());
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for endpoint in [format!("http://{}", silent.local_addr().unwrap()), "/a/socket".to_owned(), String::new()] {
            assert!(backend.probe(&endpoint).await.is_err(), "{endpoint}");
        }
    })
    .await;
}

#[tokio::test]
async fn permissions_are_answered_and_questions_refused() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        let mut relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        follower.of_session("permission.asked", json!({"id": "per_1", "permission": "bash"})).await;
        relay.says("per_1").await;
        relay.stdin.write_all(b"nonsense\n{\"permission\":\"../x\",\"reply\":\"once\"}\n").await.unwrap();
        relay.stdin.write_all(b"{\"permission\":\"per_1\",\"reply\":\"once\"}\n").await.unwrap();
        let answered = fake.asked("POST /permission/per_1/reply").await.unwrap();
        assert_eq!(answered.body, json!({"reply": "once"}));
        follower.of_session("permission.replied", json!({"requestID": "per_1", "reply": "once"})).await;
        follower.of_session("question.asked", json!({"id": "que_1", "questions": []})).await;
        fake.asked("POST /question/que_1/reject").await.unwrap();
        ends(&follower, "one").await;
        relay.end().await;
    })
    .await;
}

#[tokio::test]
async fn half_a_character_costs_no_other_words() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        let relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        let properties = delta("HALF").to_string().replace("HALF", r"two \ud83d");
        let event = json!({"type": "message.part.delta", "properties": {"sessionID": "ses_new"}}).to_string();
        let event =
            event.replace(r#""sessionID":"ses_new"}"#, &format!(r#""sessionID":"ses_new",{}"#, &properties[1..]));
        follower.raw(&format!("data: {event}\n\n")).await;
        follower.of_session("message.part.delta", delta(" three")).await;
        ends(&follower, "one two \u{fffd} three").await;
        assert_eq!(text_of(&relay.end().await), "one two \u{fffd} three");
    })
    .await;
}

#[tokio::test]
async fn garbage_and_endless_events_are_passed_over_and_counted() {
    in_time(async {
        let mut fake = Server::start().await.unwrap();
        let relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        follower.raw("data: {\"type\":\n\ndata: [1,2\n\nevent: x\nid: 3\n: comment\n\u{0}\u{1}\r\r\ndata: 7\n\n").await;
        follower.raw("data: ").await;
        let piece = "x".repeat(1024 * 1024);
        for _ in 0..20 {
            follower.raw(&piece).await;
        }
        // One of another session is not ours to count.
        follower.raw("\n\ndata: {\"sessionID\":\"ses_other\",\n\n").await;
        follower.of_session("message.part.delta", delta("two ")).await;
        ends(&follower, "one two three").await;
        let (events, unread) = relay.ends().await;
        assert_eq!((text_of(&events).as_str(), error_of(&events)), ("one two three", None));
        assert_eq!(
            unread.iter().map(|line| line.chars().take(3).collect::<String>()).collect::<Vec<_>>(),
            ["{\"t", "[1,", "7…", "xxx"]
        );
        assert!(unread.iter().all(|line| line.len() < 1000));
    })
    .await;
}

#[tokio::test]
async fn an_endless_header_is_an_error() {
    in_time(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let relay = Relay::start(turn(&endpoint, None, options())).await;
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await.unwrap();
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        let events = relay.end().await;
        assert_eq!(error_of(&events).unwrap().class, Some(ErrorClass::Crashed));
    })
    .await;
}
