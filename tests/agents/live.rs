//! A backend that executes turns, as an engine has it: the driver, the agent under a shim, and a model server behind the
//! agent.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay::agent::{Agent, DriverConfig, OnInterrupt, Permissions};
use mainstay::agent_event::{AgentEvent, SessionOrigin};
use mainstay::driver::{Driver, WarmStart, open};
use mainstay::failure::ErrorClass;
use mainstay::id::RunId;
use mainstay::options::SessionOptions;
use mainstay::permission::{Decision, PermissionRequest};
use mainstay::process::Shims;
use mainstay::process::{Adoption, End, Prompt, Reply, TurnPlace};
use mainstay::run::{Attempt, Cause};
use mainstay::workspace::ClientAccess;

use crate::scene::{Model, TIMEOUT, within};

/// Poll interval for conditions that no event signals.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

pub struct Live {
    pub backend: Arc<dyn Driver>,
    pub model: Model,
    pub server: Reply,
    pub endpoint: String,
    pub dir: tempfile::TempDir,
    is_shared: bool,
}

impl Live {
    /// A backend of this driver, which works in `work` of its directory and has `home` for its home.
    pub async fn start(is_shared: bool, driver: impl FnOnce(&Path, &Model) -> DriverConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["work", "home"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let model = Model::start(dir.path());
        let agent = Agent {
            name: "it".parse().unwrap(),
            driver: driver(dir.path(), &model),
            turn_timeout: TIMEOUT,
            idle_timeout: TIMEOUT,
            kill_grace: Duration::from_secs(20),
            max_concurrent: 8,
            on_interrupt: OnInterrupt::Stop,
            permissions: Permissions::default(),
            allowed: Default::default(),
            keep_warm: TIMEOUT,
            restart_pause: None,
            max_restarts: None,
        };
        let shims = Shims::new(env!("CARGO_BIN_EXE_mainstay").into(), dir.path().join("agents"));
        let backend = open(&agent, &shims);
        let (server, endpoint) = serve(&*backend, dir.path(), is_shared).await;
        Self { backend, model, server, endpoint, dir, is_shared }
    }

    /// Starts another one after it has ended.
    pub async fn start_again(&mut self) {
        (self.server, self.endpoint) = serve(&*self.backend, self.dir.path(), self.is_shared).await;
    }

    /// Ends the server, and starts another one.
    pub async fn restart(&mut self) {
        self.server.control.stop(Cause::Finished);
        within(&mut self.server.end).await.unwrap();
        let before = self.endpoint.clone();
        self.start_again().await;
        assert_ne!(self.endpoint, before);
    }

    pub async fn begin(&self, agent_session: Option<&str>, message: &str) -> Turn {
        self.begin_at(&self.endpoint, agent_session, message).await
    }

    pub async fn begin_at(&self, endpoint: &str, agent_session: Option<&str>, message: &str) -> Turn {
        self.begin_of("s", endpoint, agent_session, message).await
    }

    async fn begin_of(&self, session: &str, endpoint: &str, agent_session: Option<&str>, message: &str) -> Turn {
        let attempt = Attempt { run: RunId::generate(), number: 1 };
        let prompt = Prompt {
            place: TurnPlace {
                attempt,
                session: session.parse().unwrap(),
                slot: "w".to_owned(),
                workspace: "w".parse().unwrap(),
                dir: self.dir.path().join("work"),
                agent_session: agent_session.map(str::to_owned),
                endpoint: Some(endpoint.to_owned()),
            },
            message: message.to_owned(),
            attachments: Vec::new(),
            options: SessionOptions::default(),
            rules: Default::default(),
            oneshot: false,
            start_by: Instant::now() + TIMEOUT,
            limit: TIMEOUT,
        };
        let reply = self.backend.prompt(prompt).await.unwrap();
        reply.control.begin();
        Turn { backend: self.backend.clone(), attempt, reply, offset: 0, events: Vec::new() }
    }

    /// A complete turn.
    pub async fn turn(&self, agent_session: Option<&str>, message: &str) -> Vec<AgentEvent> {
        self.begin(agent_session, message).await.end().await
    }

    /// The complete first turn of another session.
    pub async fn turn_of(&self, session: &str, message: &str) -> Vec<AgentEvent> {
        self.begin_of(session, &self.endpoint, None, message).await.end().await
    }

    /// The number of processes with these words in their command.
    pub fn running(&self, words: &str) -> usize {
        let command = |pid: &Path| std::fs::read(pid.join("cmdline")).unwrap_or_default();
        let is_it = |pid: &Path| String::from_utf8_lossy(&command(pid)).replace('\0', " ").trim() == words;
        std::fs::read_dir("/proc").unwrap().flatten().filter(|entry| is_it(&entry.path())).count()
    }

    pub async fn stop(mut self) {
        self.server.control.stop(Cause::Finished);
        within(&mut self.server.end).await.unwrap();
    }
}

async fn serve(backend: &dyn Driver, dir: &Path, is_shared: bool) -> (Reply, String) {
    let start = WarmStart {
        attempt: Attempt { run: RunId::generate(), number: 1 },
        workspace: "w".parse().unwrap(),
        dir: dir.join("work"),
        session: (!is_shared).then(|| "s".parse().unwrap()),
        client: ClientAccess::default(),
        alone: TIMEOUT,
    };
    let warm = backend.warm().unwrap();
    assert_eq!(warm.is_shared(), is_shared);
    let (server, endpoint) = warm.start(start).await.unwrap();
    server.control.begin();
    within(async {
        while warm.probe(&endpoint).await.is_err() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    })
    .await;
    (server, endpoint)
}

pub struct Turn {
    backend: Arc<dyn Driver>,
    attempt: Attempt,
    pub reply: Reply,
    offset: u64,
    events: Vec<AgentEvent>,
}

impl Turn {
    pub async fn hear(&mut self) -> bool {
        let Some(record) = within(self.reply.records.recv()).await else { return false };
        // An engine that adopts a turn gets the earlier output again.
        if record.offset > self.offset {
            self.offset = record.offset;
            self.events.extend(record.events);
        }
        true
    }

    pub async fn hear_until(&mut self, is_it: impl Fn(&AgentEvent) -> bool) -> AgentEvent {
        loop {
            if let Some(event) = self.events.iter().find(|event| is_it(event)) {
                return event.clone();
            }
            assert!(self.hear().await, "it ended: {:#?}", self.events);
        }
    }

    pub async fn hear_text(&mut self, text: &str) {
        self.hear_until(|event| matches!(event, AgentEvent::Text(said) if said.contains(text))).await;
    }

    pub async fn asked(&mut self) -> PermissionRequest {
        match self.hear_until(|event| matches!(event, AgentEvent::Permission(_))).await {
            AgentEvent::Permission(request) => request,
            other => panic!("{other:?}"),
        }
    }

    pub async fn answer(&self, request: &PermissionRequest, allow: bool) {
        let decision = Decision::Selected(request.option_for(allow).unwrap().clone());
        self.reply.control.write(&self.backend.answer(request, &decision).unwrap()).await;
    }

    pub async fn end(mut self) -> Vec<AgentEvent> {
        while self.hear().await {}
        match within(&mut self.reply.end).await.unwrap() {
            End::Exited(report) => assert_eq!(report.code, Some(0), "{report:?}"),
            other => panic!("{other:?}"),
        }
        let ended = self.events.iter().position(|event| *event == AgentEvent::Ended).expect("the turn says its end");
        // Agents may report a title, and the usage, after the end of a turn.
        let late = |event: &AgentEvent| matches!(event, AgentEvent::Title(_) | AgentEvent::Usage(_));
        assert!(self.events[ended + 1..].iter().all(late), "{:#?}", self.events);
        self.events
    }

    /// The errors of a turn whose agent is lost.
    pub async fn crashed(mut self) -> Vec<Option<ErrorClass>> {
        while self.hear().await {}
        within(&mut self.reply.end).await.unwrap();
        errors_of(&self.events)
    }

    /// As if the engine was killed and another one adopted the turn.
    pub async fn change_engine(&mut self) {
        let host = self.reply.host.clone().unwrap();
        self.reply.control.leave();
        within(&mut self.reply.end).await.unwrap();
        let attempt = Attempt { number: self.attempt.number + 1, ..self.attempt };
        let adoption = Adoption { attempt, host, offset: self.offset };
        (self.attempt, self.reply) = (attempt, self.backend.adopt(adoption).await.unwrap());
    }
}

pub fn text_of(events: &[AgentEvent]) -> String {
    let texts = events.iter().filter_map(|event| match event {
        AgentEvent::Text(text) => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

pub fn session_of(events: &[AgentEvent]) -> (String, SessionOrigin) {
    let found = events.iter().find_map(|event| match event {
        AgentEvent::Session { id, origin } => Some((id.clone(), *origin)),
        _ => None,
    });
    found.unwrap()
}

pub fn errors_of(events: &[AgentEvent]) -> Vec<Option<ErrorClass>> {
    let errors = events.iter().filter_map(|event| match event {
        AgentEvent::Error(error) => Some(error.class),
        _ => None,
    });
    errors.collect()
}
