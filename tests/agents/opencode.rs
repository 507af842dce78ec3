//! opencode: a live server, and turns that are relayed to it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay::agent::{Agent, DEFAULT_MAX_LINE_BYTES, Driver, OnInterrupt, Permissions, ProcessSpec};
use mainstay::backend::process::Hosts;
use mainstay::backend::{Adoption, Again, AgentEvent, Backend, End, Prompt, Reply, SessionOrigin, WarmStart, open};
use mainstay::failure::ErrorClass;
use mainstay::id::RunId;
use mainstay::options::SessionOptions;
use mainstay::permission::{Decision, PermissionRequest, ToolKind};
use mainstay::run::{Attempt, Cause};
use mainstay::workspace::ClientAccess;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use crate::scene::{Model, PATIENCE, installed, slow_words, within};

/// A server takes 600 MB: one at a time is enough.
static ONE: Mutex<()> = Mutex::const_new(());

/// Between two looks at what tells nobody that it changed.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A live server of a workspace, and the model behind it.
struct Live {
    backend: Arc<dyn Backend>,
    model: Model,
    server: Reply,
    endpoint: String,
    dir: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Live {
    async fn start() -> Option<Self> {
        let program = installed("opencode")?;
        let one = ONE.lock().await;
        let dir = tempfile::tempdir().unwrap();
        for name in ["work", "home"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let model = Model::start(dir.path());
        let options = json!({"baseURL": format!("{}/v1", model.url), "apiKey": "none"});
        let models =
            json!({"m": {"tool_call": true, "reasoning": true, "limit": {"context": 100_000, "output": 8000}}});
        let config = json!({"autoupdate": false, "share": "disabled", "snapshot": false, "model": "it/m",
            "small_model": "it/m", "permission": {"bash": "ask", "edit": "ask"},
            "provider": {"it": {"npm": "@ai-sdk/openai-compatible", "options": options, "models": models}}});
        std::fs::write(dir.path().join("work/opencode.json"), config.to_string()).unwrap();
        let mut env = ["AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS"]
            .map(|what| (format!("OPENCODE_DISABLE_{what}"), "1".to_owned()))
            .to_vec();
        env.push(("HOME".to_owned(), dir.path().join("home").display().to_string()));
        let process = ProcessSpec {
            command: vec![program.display().to_string()],
            env: env.into_iter().collect(),
            max_line_bytes: DEFAULT_MAX_LINE_BYTES,
        };
        let agent = Agent {
            name: "it".parse().unwrap(),
            driver: Driver::Opencode(process),
            turn_timeout: PATIENCE,
            idle_timeout: PATIENCE,
            kill_grace: Duration::from_secs(20),
            max_concurrent: 8,
            on_interrupt: OnInterrupt::Stop,
            permissions: Permissions::default(),
            keep_warm: PATIENCE,
        };
        let hosts = Hosts::new(env!("CARGO_BIN_EXE_mainstay").into(), dir.path().join("agents"));
        let backend = open(&agent, &hosts);
        let (server, endpoint) = serve(&*backend, dir.path()).await;
        Some(Self { backend, model, server, endpoint, dir, _one: one })
    }

    /// Ends the server, and starts another.
    async fn restart(&mut self) {
        self.server.control.stop(Cause::Finished);
        within(&mut self.server.end).await.unwrap();
        let before = self.endpoint.clone();
        (self.server, self.endpoint) = serve(&*self.backend, self.dir.path()).await;
        assert_ne!(self.endpoint, before);
    }

    async fn begin(&self, agent_session: Option<&str>, message: &str) -> Turn {
        self.begin_at(&self.endpoint, agent_session, message).await
    }

    async fn begin_at(&self, endpoint: &str, agent_session: Option<&str>, message: &str) -> Turn {
        let attempt = Attempt { run: RunId::generate(), number: 1 };
        let prompt = Prompt {
            attempt,
            session: "s".parse().unwrap(),
            slot: "w".to_owned(),
            workspace: "w".parse().unwrap(),
            dir: self.dir.path().join("work"),
            agent_session: agent_session.map(str::to_owned),
            message: message.to_owned(),
            attachments: Vec::new(),
            options: SessionOptions::default(),
            oneshot: false,
            endpoint: Some(endpoint.to_owned()),
            start_by: Instant::now() + PATIENCE,
            limit: PATIENCE,
        };
        let reply = self.backend.prompt(prompt).await.unwrap();
        reply.control.begin();
        Turn { backend: self.backend.clone(), attempt, reply, offset: 0, events: Vec::new() }
    }

    /// A turn to its end.
    async fn turn(&self, agent_session: Option<&str>, message: &str) -> Vec<AgentEvent> {
        self.begin(agent_session, message).await.end().await
    }

    /// Processes with these words in their command.
    fn running(&self, words: &str) -> usize {
        let command = |pid: &Path| std::fs::read(pid.join("cmdline")).unwrap_or_default();
        let is_it = |pid: &Path| String::from_utf8_lossy(&command(pid)).replace('\0', " ").trim() == words;
        std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| is_it(&entry.path())).count()
    }

    async fn stop(mut self) {
        self.server.control.stop(Cause::Finished);
        within(&mut self.server.end).await.unwrap();
    }
}

async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    })
    .await;
}

async fn serve(backend: &dyn Backend, dir: &Path) -> (Reply, String) {
    let start = WarmStart {
        attempt: Attempt { run: RunId::generate(), number: 1 },
        workspace: "w".parse().unwrap(),
        dir: dir.join("work"),
        session: None,
        client: ClientAccess::default(),
        alone: PATIENCE,
    };
    let warm = backend.warm().unwrap();
    assert!(warm.is_shared());
    let (server, endpoint) = warm.start(start).await.unwrap();
    server.control.begin();
    within(async {
        while warm.probe(&endpoint).await.is_err() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    })
    .await;
    (server, endpoint)
}

struct Turn {
    backend: Arc<dyn Backend>,
    attempt: Attempt,
    reply: Reply,
    offset: u64,
    events: Vec<AgentEvent>,
}

impl Turn {
    async fn hear(&mut self) -> bool {
        let Some(record) = within(self.reply.records.recv()).await else { return false };
        self.offset = record.offset;
        self.events.extend(record.events);
        true
    }

    async fn hear_until(&mut self, is_it: impl Fn(&AgentEvent) -> bool) -> AgentEvent {
        loop {
            if let Some(event) = self.events.iter().find(|event| is_it(event)) {
                return event.clone();
            }
            assert!(self.hear().await, "it ended: {:#?}", self.events);
        }
    }

    async fn hear_text(&mut self, text: &str) {
        self.hear_until(|event| matches!(event, AgentEvent::Text(said) if said.contains(text))).await;
    }

    async fn asked(&mut self) -> PermissionRequest {
        match self.hear_until(|event| matches!(event, AgentEvent::Permission(_))).await {
            AgentEvent::Permission(request) => request,
            other => panic!("{other:?}"),
        }
    }

    async fn answer(&self, request: &PermissionRequest, allow: bool) {
        let decision = Decision::Selected(request.option_for(allow).unwrap().clone());
        self.reply.control.write(&self.backend.answer(request, &decision).unwrap()).await;
    }

    async fn end(mut self) -> Vec<AgentEvent> {
        while self.hear().await {}
        match within(&mut self.reply.end).await.unwrap() {
            End::Exited(report) => assert_eq!(report.code, Some(0), "{report:?}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(self.events.last(), Some(&AgentEvent::Ended), "{:#?}", self.events);
        self.events
    }

    /// As when the engine is killed and another one goes on.
    async fn change_engine(&mut self) {
        let host = self.reply.host.clone().unwrap();
        self.reply.control.leave();
        within(&mut self.reply.end).await.unwrap();
        let attempt = Attempt { number: self.attempt.number + 1, ..self.attempt };
        let adoption = Adoption { attempt, host, offset: self.offset };
        (self.attempt, self.reply) = (attempt, self.backend.adopt(adoption).await.unwrap());
    }
}

fn text_of(events: &[AgentEvent]) -> String {
    let texts = events.iter().filter_map(|event| match event {
        AgentEvent::Text(text) => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

fn session_of(events: &[AgentEvent]) -> (String, SessionOrigin) {
    let found = events.iter().find_map(|event| match event {
        AgentEvent::Session { id, origin } => Some((id.clone(), *origin)),
        _ => None,
    });
    found.unwrap()
}

fn errors_of(events: &[AgentEvent]) -> Vec<Option<ErrorClass>> {
    let errors = events.iter().filter_map(|event| match event {
        AgentEvent::Error(error) => Some(error.class),
        _ => None,
    });
    errors.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_goes_on_in_one_session_with_tools_that_ask_and_also_on_another_server() {
    let Some(mut live) = Live::start().await else { return };
    let events = live.turn(None, "[[reasoning]]").await;
    let (id, origin) = session_of(&events);
    assert_eq!((origin, text_of(&events).as_str()), (SessionOrigin::New, "The answer is 42."));
    let reasoning = events.iter().filter_map(|event| match event {
        AgentEvent::Reasoning(text) => Some(text.as_str()),
        _ => None,
    });
    assert_eq!(reasoning.collect::<String>(), "First I think about it. Then I think again. ");
    let usage = events.iter().rev().find_map(|event| match event {
        AgentEvent::Usage(usage) => Some(usage),
        _ => None,
    });
    let usage = usage.unwrap();
    assert_eq!((usage.input_tokens, usage.output_tokens, usage.context_tokens), (Some(11), Some(7), Some(18)));
    let before = live.model.turns("reasoning");

    let mut turn = live.begin(Some(&id), "[[tool:echo tool-ran]]").await;
    let request = turn.asked().await;
    assert_eq!((request.kind, request.tool.as_str()), (ToolKind::Execute, "bash"));
    assert_eq!(request.input["command"], "echo tool-ran");
    turn.answer(&request, true).await;
    // To be told twice does no harm.
    turn.answer(&request, true).await;
    let events = turn.end().await;
    assert_eq!(session_of(&events), (id.clone(), SessionOrigin::Resumed));
    let finished = AgentEvent::ToolFinished {
        id: request.tool_call.clone(),
        name: Some("bash".to_owned()),
        result: Ok("tool-ran\n".into()),
    };
    assert!(events.contains(&finished), "{events:#?}");
    assert_eq!(text_of(&events), "I will run a command. Done. The tool said: tool-ran\n");

    let mut turn = live.begin(Some(&id), "[[write:made.txt]]").await;
    let request = turn.asked().await;
    assert_eq!(request.kind, ToolKind::Edit);
    turn.answer(&request, false).await;
    let events = turn.end().await;
    assert!(events.iter().any(|event| matches!(event, AgentEvent::ToolFinished { result: Err(_), .. })));
    assert!(!live.dir.path().join("work/made.txt").exists());

    live.restart().await;
    let events = live.turn(Some(&id), "[[reasoning]]").await;
    assert_eq!(session_of(&events), (id.clone(), SessionOrigin::Resumed));
    assert_eq!(text_of(&events), "The answer is 42.");
    assert!(live.model.turns("reasoning") > before + 4, "the model was told what was before");

    let events = live.turn(Some("ses_000000000000unknown"), "[[text:new]]").await;
    assert_eq!((session_of(&events).1, text_of(&events).as_str()), (SessionOrigin::New, "new"));
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_share_a_server_and_what_a_provider_refuses_is_tried_again() {
    let Some(live) = Live::start().await else { return };
    let (one, two, again) = tokio::join!(
        live.turn(None, "[[slow:20:20]]"),
        live.turn(None, "[[slow:30:20]]"),
        live.turn(None, "[[429:1:here]]")
    );
    assert_eq!((text_of(&one), text_of(&two)), (slow_words(20), slow_words(30)));
    assert_eq!(text_of(&again), "Recovered after 1 failures.");
    assert!(again.contains(&AgentEvent::Status("Trying again: fake 429".to_owned())), "{again:#?}");
    assert_eq!(errors_of(&again), []);

    // The conversation is made shorter, and goes on.
    let events = live.turn(None, "[[ctx]]").await;
    assert_eq!((errors_of(&events), text_of(&events).is_empty()), (vec![], false));

    // A stream that is cut begins again: what was said of the message is void.
    let mut turn = live.begin(None, "[[disconnect]]").await;
    turn.hear_until(|event| *event == AgentEvent::MessageBegan(Again::Yes)).await;
    turn.reply.control.stop(Cause::IdleTimeout);
    turn.end().await;

    let mut turn = live.begin(None, "[[429:always:there]]").await;
    turn.hear_until(|event| matches!(event, AgentEvent::Status(_))).await;
    turn.reply.control.stop(Cause::IdleTimeout);
    let events = turn.end().await;
    let error = events.iter().find_map(|event| match event {
        AgentEvent::Error(error) => Some(error),
        _ => None,
    });
    let error = error.expect("why nothing came of it");
    assert_eq!(error.message, "fake 429");
    assert!(error.retry_at.is_some());

    // Whoever does not know the password gets nothing.
    let bare = format!("http://{}/session", live.endpoint.rsplit('@').next().unwrap());
    assert_eq!(reqwest::get(bare).await.unwrap().status(), 401);
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_turn_is_aborted_with_its_tool() {
    let Some(live) = Live::start().await else { return };
    let mut turn = live.begin(None, "[[slow:1000:50]]").await;
    turn.hear_text("w3 ").await;
    turn.reply.control.stop(Cause::Cancelled);
    let events = turn.end().await;
    assert!(text_of(&events).starts_with("w0 w1 w2 w3 "));
    assert_eq!(errors_of(&events), []);

    let id = session_of(&events).0;
    let words = format!("tail -f /dev/null {}", live.dir.path().join("never").display());
    let mut turn = live.begin(Some(&id), &format!("[[tool:echo up; {words}]]")).await;
    let request = turn.asked().await;
    turn.answer(&request, true).await;
    turn.hear_until(|event| matches!(event, AgentEvent::ToolProgress { .. })).await;
    until(|| live.running(&words) > 0).await;
    turn.reply.control.stop(Cause::Cancelled);
    turn.end().await;
    until(|| live.running(&words) == 0).await;

    // Cancelled while somebody is asked; the session goes on afterwards.
    let mut turn = live.begin(Some(&id), "[[tool]]").await;
    turn.asked().await;
    turn.reply.control.stop(Cause::Cancelled);
    turn.end().await;
    let events = live.turn(Some(&id), "[[text:after]]").await;
    assert_eq!((session_of(&events).1, text_of(&events).as_str()), (SessionOrigin::Resumed, "after"));

    // A relay that is killed cannot abort its turn: the next one does.
    let mut turn = live.begin(Some(&id), "[[slow:1000:50]]").await;
    turn.hear_text("w3 ").await;
    turn.reply.control.kill(Cause::Cancelled);
    within(&mut turn.reply.end).await.unwrap();
    let events = live.turn(Some(&id), "[[text:at last]]").await;
    assert_eq!(text_of(&events), "at last");
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_engines_cost_no_word_and_a_killed_server_is_a_crash() {
    let Some(mut live) = Live::start().await else { return };
    let mut turn = live.begin(None, "[[slow:60:50]]").await;
    for word in ["w5 ", "w20 ", "w40 "] {
        turn.hear_text(word).await;
        turn.change_engine().await;
    }
    let events = turn.end().await;
    assert_eq!(text_of(&events), slow_words(60));

    let id = session_of(&events).0;
    let mut turn = live.begin(Some(&id), "[[slow:1000:50]]").await;
    turn.hear_text("w3 ").await;
    live.server.control.kill(Cause::Internal);
    within(&mut live.server.end).await.unwrap();
    let events = turn.end().await;
    assert_eq!(errors_of(&events), [Some(ErrorClass::Crashed)]);
    (live.server, live.endpoint) = serve(&*live.backend, live.dir.path()).await;
    let events = live.turn(Some(&id), "[[text:again]]").await;
    assert_eq!((session_of(&events).1, text_of(&events).as_str()), (SessionOrigin::Resumed, "again"));
    live.stop().await;
}

/// Passes connections on, and breaks them all when asked to.
async fn proxy(to: String, cut: Arc<std::sync::Mutex<CancellationToken>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let (to, cut) = (to.clone(), cut.lock().unwrap().clone());
            tokio::spawn(cut.run_until_cancelled_owned(async move {
                let mut to = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            }));
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_in_mid_turn_costs_no_word() {
    let Some(live) = Live::start().await else { return };
    let cut = Arc::new(std::sync::Mutex::new(CancellationToken::new()));
    let (credentials, address) = live.endpoint.rsplit_once('@').unwrap();
    let endpoint = format!("{credentials}@{}", proxy(address.to_owned(), cut.clone()).await);
    let mut turn = live.begin_at(&endpoint, None, "[[slow:60:50]]").await;
    turn.hear_text("w5 ").await;
    std::mem::take(&mut *cut.lock().unwrap()).cancel();
    let events = turn.end().await;
    assert_eq!(text_of(&events), slow_words(60));
    assert_eq!(errors_of(&events), []);

    // A tool that waits for an answer goes on waiting.
    let id = session_of(&events).0;
    let mut turn = live.begin_at(&endpoint, Some(&id), "[[tool:echo tool-ran]]").await;
    let request = turn.asked().await;
    std::mem::take(&mut *cut.lock().unwrap()).cancel();
    turn.answer(&request, true).await;
    let events = turn.end().await;
    assert_eq!(text_of(&events), "I will run a command. Done. The tool said: tool-ran\n");
    let permissions = events.iter().filter(|event| matches!(event, AgentEvent::Permission(_))).count();
    assert_eq!(permissions, 1);
    live.stop().await;
}
