//! Backends: small scripts that crash, hang and idle, under the supervisor of a real engine.

mod engines;
mod turns;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use mainstay::agent::{Agent, ProcessSpec};
use mainstay::backend::{BackendState, HealthPolicy};
use mainstay::config::Config;
use mainstay::driver::backend::BackendProcess;
use mainstay::driver::per_turn::{Dialect, PerTurn};
use mainstay::driver::{Driver, ProbeError, Warm, WarmStart, openclaw};
use mainstay::engine::{Engine, SendMessage};
use mainstay::id::{BackendId, MessageId, RunId};
use mainstay::message::UserMessage;
use mainstay::process::{Adoption, Prompt, Reply, Shims, StartError, TurnPlace};
use mainstay::run::Run;

use crate::scene::{marked, settled, within};

/// Answers each line on a pipe with a file, as long as it is healthy. Its endpoint is its directory.
const LIVE: &str = r#"echo "$1" >> started; if [ -e broken ]; then echo 'Error: it is broken' >&2; exit 3; fi
mkdir -p "$1" && mkfifo "$1/ping" && exec 3<>"$1/ping" && echo $$ > "$1/pid" || exit 4
while read -r n <&3; do : > "$1/pong-$n"; done"#;

/// One turn on the backend: what the message says, then a word. It detects a second turn in the same session.
const TURN: &str = r#"live=$(cat "$2/pid") || exit 7
mkdir "$2/busy-$MAINSTAY_SESSION" || { echo "$MAINSTAY_SESSION" >> doubled; exit 9; }
trap 'rmdir "$2/busy-$MAINSTAY_SESSION"' EXIT
say() { echo '{"event":"agent","stream":"assistant","data":{"delta":"'"$1"'"}}'; }
case "$1" in
crash-once) if [ ! -e "crashed-$MAINSTAY_RUN" ]; then : > "crashed-$MAINSTAY_RUN"; kill -9 "$live"; exit 1; fi ;;
crash-later) say "so far"; kill -9 "$live"; exit 1 ;;
hang) kill -STOP "$live" ;;
hold) echo $$ > turn-pid; say "held"; while [ ! -e release ]; do sleep 0.02; done ;;
esac
say "on $live"; echo "$MAINSTAY_RUN" >> said"#;

/// The driver of an agent whose backends are scripts.
struct Scripted {
    turns: PerTurn,
    live: BackendProcess,
    dir: PathBuf,
    shared: bool,
    care: HealthPolicy,
    pings: AtomicU64,
}

fn spec(script: &str, name: &str, more: &[&str]) -> ProcessSpec {
    let command = ["sh", "-c", script, name].iter().chain(more).map(|word| (*word).to_owned()).collect();
    ProcessSpec { command, env: Default::default(), max_line_bytes: 64 * 1024 }
}

impl Scripted {
    fn new(agent: &Agent, shims: &Shims, dir: &Path, care: HealthPolicy) -> Self {
        let arguments = |prompt: &Prompt| vec![prompt.place.endpoint.clone().map_or_else(OsString::new, Into::into)];
        let dialect = Dialect { arguments, ..Dialect::of_lines(openclaw::parser) };
        Self {
            turns: PerTurn::new(spec(TURN, "turn", &["{message}"]), agent.kill_grace, dialect, shims.clone()),
            live: BackendProcess::new(spec(LIVE, "live", &[]), agent.kill_grace, shims.clone()),
            dir: dir.to_owned(),
            shared: agent.name.as_str() == "shared",
            care,
            pings: AtomicU64::new(0),
        }
    }
}

impl Driver for Scripted {
    fn prompt(&self, prompt: Prompt) -> BoxFuture<'_, Result<Reply, StartError>> {
        self.turns.prompt(prompt)
    }

    fn says_end(&self) -> bool {
        false
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Option<Reply>> {
        self.turns.adopt(adoption)
    }

    /// Fails while the file `goes-on` exists: the turn cannot be ended.
    fn end_turn<'a>(&'a self, place: &'a TurnPlace) -> BoxFuture<'a, Result<(), String>> {
        async move {
            let place = format!("{} {} {}", place.attempt.number, place.session, place.endpoint.is_some());
            std::fs::write(self.dir.join("ending"), place).unwrap();
            match self.dir.join("goes-on").exists() {
                true => Err("it goes on".to_owned()),
                false => Ok(()),
            }
        }
        .boxed()
    }

    fn warm(&self) -> Option<&dyn Warm> {
        Some(self)
    }
}

impl Warm for Scripted {
    fn is_shared(&self) -> bool {
        self.shared
    }

    fn care(&self) -> HealthPolicy {
        self.care
    }

    fn start(&self, start: WarmStart) -> BoxFuture<'_, Result<(Reply, String), StartError>> {
        let endpoint = self.dir.join("live").join(start.attempt.to_string());
        async move {
            let reply = self.live.start(&start, vec![endpoint.clone().into()]).await?;
            Ok((reply, endpoint.display().to_string()))
        }
        .boxed()
    }

    fn adopt(&self, adoption: Adoption) -> BoxFuture<'_, Reply> {
        self.live.adopt(adoption).boxed()
    }

    fn probe<'a>(&'a self, endpoint: &'a str) -> BoxFuture<'a, Result<(), ProbeError>> {
        async move {
            let ping = format!("{}-{}", std::process::id(), self.pings.fetch_add(1, Ordering::Relaxed));
            let failed = |error: std::io::Error| ProbeError::from(error.to_string());
            // For reading and writing, so that the open does not wait for a reader.
            let mut pipe =
                std::fs::File::options().read(true).write(true).open(format!("{endpoint}/ping")).map_err(failed)?;
            writeln!(pipe, "{ping}").map_err(failed)?;
            let pong = format!("{endpoint}/pong-{ping}");
            while !Path::new(&pong).exists() {
                let pid = std::fs::read_to_string(format!("{endpoint}/pid")).map_err(failed)?;
                if !Path::new("/proc").join(pid.trim()).exists() {
                    return Err("it is gone".into());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            std::fs::remove_file(pong).map_err(failed)
        }
        .boxed()
    }
}

const QUICK: HealthPolicy = HealthPolicy {
    ready_within: Duration::from_secs(30),
    probe_until_ready: Duration::from_millis(10),
    probe_every: Duration::from_millis(100),
    probe_again: Duration::from_millis(20),
    probe_within: Duration::from_secs(2),
    failures: 2,
    spare_busy_for: Duration::from_secs(60),
    first_pause: Duration::from_millis(10),
    longest_pause: Duration::from_millis(100),
    most_restarts: 100,
    window: Duration::from_secs(300),
    most_first_starts: 3,
};

async fn open(dir: &Path, more: &str, care: HealthPolicy) -> Engine {
    let home = serde_json::Value::from(dir.display().to_string());
    let mut text = more.replace("keep_warm\n", "");
    for name in ["live", "shared"] {
        text.push_str(&format!(
            "\n[agents.{name}]\ndriver = \"openclaw\"\ncommand = [\"true\"]\nkill_grace = \"300ms\"\nmax_concurrent = 100\n\
             [workspaces.{name}]\nagent = \"{name}\"\ndir = {home}\nslots = 60\n"
        ));
    }
    let mut config = Config::load(&text, Path::new("test.toml"), dir).unwrap();
    config.engine.shim_program = env!("CARGO_BIN_EXE_mainstay").into();
    if more.contains("keep_warm") {
        config.agents.values_mut().for_each(|agent| agent.keep_warm = Duration::from_secs(1));
    }
    let base = dir.to_owned();
    let scripted = move |agent: &Agent, shims: &Shims| {
        let is_live = ["live", "shared"].contains(&agent.name.as_str());
        is_live.then(|| Arc::new(Scripted::new(agent, shims, &base, care)) as Arc<dyn Driver>)
    };
    let engine = Engine::open_with_backends(&dir.join("m.db"), config, scripted).await.unwrap();
    engine.start().await.unwrap();
    engine
}

async fn send(engine: &Engine, workspace: &str, session: &str, text: &str) -> RunId {
    let message = UserMessage::text(MessageId::generate(), text).unwrap();
    let mut send = SendMessage::new(session.parse().unwrap(), message);
    send.workspace = Some(workspace.parse().unwrap());
    engine.send(send).await.unwrap().run.id
}

async fn turn(engine: &Engine, workspace: &str, session: &str, text: &str) -> Run {
    settled(engine, send(engine, workspace, session, text).await).await
}

async fn close(engine: Engine) {
    engine.drain(Duration::ZERO).await;
    engine.close().await;
}

/// Waits until a backend is in a state.
async fn reaches(engine: &Engine, id: BackendId, state: BackendState) {
    within(async {
        while engine.list_backends().await.unwrap().iter().find(|b| b.id == id).unwrap().state != state {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn left_of(engine: &[BackendId]) -> Vec<i32> {
    engine.iter().flat_map(|id| marked(RunId::from(*id))).collect()
}
