//! Warm backends: real live agents (small scripts) that crash, hang and idle, under the supervisor of a real engine.

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
use mainstay::engine::{Depth, Engine, EngineError, SendMessage};
use mainstay::id::{BackendId, MessageId, RunId};
use mainstay::message::UserMessage;
use mainstay::process::Shims;
use mainstay::process::{Adoption, Prompt, Reply, StartError, TurnPlace};
use mainstay::run::{Run, Status};

use crate::scene::{NOTHING, counts, marked, settled, story, until, within};

/// Answers each line on a pipe with a file, as long as it is well. Its endpoint is its directory.
const LIVE: &str = r#"echo "$1" >> started; if [ -e broken ]; then echo 'Error: it is broken' >&2; exit 3; fi
mkdir -p "$1" && mkfifo "$1/ping" && exec 3<>"$1/ping" && echo $$ > "$1/pid" || exit 4
while read -r n <&3; do : > "$1/pong-$n"; done"#;

/// One turn on it: what it is told to do, then a word. It notices a second one in the same session.
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

/// The backend of an agent whose live agents are scripts.
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

    /// A turn goes on as long as somebody wants that.
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
            // Both ways, so that it opens whether anybody listens or not.
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

#[tokio::test]
async fn turns_of_a_session_are_on_one_live_agent_that_ends_with_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), "", QUICK).await;
    let (first, second) = (turn(&engine, "live", "a", "x").await, turn(&engine, "live", "a", "x").await);
    assert_eq!((first.status, second.status), (Status::Completed, Status::Completed), "{first:?}");
    assert_eq!(first.progress, second.progress, "another process");
    turn(&engine, "live", "b", "x").await;
    turn(&engine, "shared", "c", "x").await;
    turn(&engine, "shared", "d", "x").await;
    let backends = engine.list_backends().await.unwrap();
    assert_eq!(backends.len(), 3, "{backends:#?}");
    let of_a = backends.iter().find(|b| b.session_id.as_ref().is_some_and(|id| id.as_str() == "a")).unwrap();

    let held = send(&engine, "live", "a", "hold").await;
    within(async {
        while !story(&engine, held).await.contains("held") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(matches!(engine.stop_backend(of_a.id, false).await, Err(EngineError::BackendBusy(_))));
    engine.close_session(&"a".parse().unwrap(), true).await.unwrap();
    assert_eq!(settled(&engine, held).await.status, Status::Cancelled);
    reaches(&engine, of_a.id, BackendState::Stopped).await;
    assert_eq!(left_of(&[of_a.id]), NOTHING);

    let ids: Vec<_> = backends.iter().map(|backend| backend.id).collect();
    close(engine).await;
    assert_eq!(left_of(&ids), NOTHING);
}

#[tokio::test]
async fn a_run_whose_turn_outlived_its_process_is_settled_when_the_turn_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), "", QUICK).await;
    std::fs::write(dir.path().join("goes-on"), "").unwrap();
    let run = send(&engine, "live", "s", "hold").await;
    let pid = || std::fs::read_to_string(dir.path().join("turn-pid")).unwrap_or_default();
    until(|| pid().ends_with('\n')).await;
    let pid = pid();
    assert!(std::process::Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap().success());
    until(|| dir.path().join("ending").exists()).await;
    assert_eq!(std::fs::read_to_string(dir.path().join("ending")).unwrap(), "1 s true");
    assert_eq!(engine.run(run).await.unwrap().status, Status::Running);
    std::fs::remove_file(dir.path().join("goes-on")).unwrap();
    assert_eq!(settled(&engine, run).await.cause.as_deref(), Some("signal"));
    close(engine).await;
}

#[tokio::test]
async fn a_turn_whose_live_agent_dies_before_a_word_is_tried_once_more_on_a_fresh_one() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), "", QUICK).await;
    let run = turn(&engine, "live", "a", "crash-once").await;
    assert_eq!((run.status, run.attempts), (Status::Completed, 2), "{run:?}");
    let backends = engine.list_backends().await.unwrap();
    assert_eq!((backends.len(), backends[0].generation), (1, 2), "{backends:#?}");
    // What it has said is not said again.
    let run = turn(&engine, "live", "a", "crash-later").await;
    assert_eq!((run.status, run.attempts), (Status::Failed, 1), "{run:?}");
    close(engine).await;
}

#[tokio::test]
async fn what_crashes_again_and_again_is_given_up_for_a_while_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), "", HealthPolicy { most_restarts: 2, ..QUICK }).await;
    std::fs::write(dir.path().join("broken"), "").unwrap();
    let run = turn(&engine, "live", "a", "x").await;
    assert_eq!(run.status, Status::Failed);
    assert_eq!(run.error.as_deref(), Some("Failed to start agent: it ended with code 3: it is broken"));
    assert_eq!(lines(&dir.path().join("started")).len(), 3, "once, and two restarts");
    // It is told at once, and nothing is started.
    assert_eq!(turn(&engine, "live", "a", "x").await.status, Status::Failed);
    assert_eq!(lines(&dir.path().join("started")).len(), 3);
    let backends = engine.list_backends().await.unwrap();
    assert_eq!((backends.len(), backends[0].state), (1, BackendState::Stopped));
    assert!(backends[0].not_before.is_some());
    close(engine).await;
}

#[tokio::test]
async fn what_was_closed_to_make_room_before_its_restart_was_not_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let pause = Duration::from_secs(600);
    let care = HealthPolicy { first_pause: pause, longest_pause: pause, ..QUICK };
    let engine = open(dir.path(), "[engine]\nmax_backends = 1", care).await;
    assert_eq!(turn(&engine, "live", "a", "crash-later").await.status, Status::Failed);
    let crashed = engine.list_backends().await.unwrap()[0].id;
    reaches(&engine, crashed, BackendState::Restarting).await;
    assert_eq!(turn(&engine, "live", "b", "x").await.status, Status::Completed);
    let run = turn(&engine, "live", "a", "x").await;
    assert_eq!(run.status, Status::Completed, "{run:?}");
    close(engine).await;
}

#[tokio::test]
async fn a_live_agent_is_left_to_the_next_engine_which_goes_on_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), "[engine]\non_shutdown = \"leave\"", QUICK).await;
    let first = turn(&engine, "live", "a", "x").await;
    close(engine).await;

    let engine = open(dir.path(), "", QUICK).await;
    let second = turn(&engine, "live", "a", "x").await;
    assert!(first.progress.is_some() && first.progress == second.progress, "{first:?}");
    let backends = engine.list_backends().await.unwrap();
    assert_eq!((backends.len(), backends[0].generation), (1, 1));
    close(engine).await;
    assert_eq!(left_of(&[backends[0].id]), NOTHING);
}

#[tokio::test]
async fn what_an_engine_leaves_is_watched_over_at_once_by_one_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (leave, stay) = ("[engine]\non_shutdown = \"leave\"", "[engine]\nsweep_interval = \"1d\"");
    let engine = open(dir.path(), leave, QUICK).await;
    turn(&engine, "live", "a", "x").await;
    let before = engine.list_backends().await.unwrap().remove(0);
    let next = open(dir.path(), stay, QUICK).await;
    next.sweep().await.unwrap();
    close(engine).await;
    within(async {
        while next.list_backends().await.unwrap()[0]
            .worker
            .as_ref()
            .is_none_or(|worker| before.worker.as_ref() == Some(worker))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    close(next).await;
    assert_eq!(left_of(&[before.id]), NOTHING);
}

#[tokio::test]
async fn a_live_agent_that_died_unwatched_is_not_started_again_and_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    for workspace in ["live", "gone"] {
        let engine = open(dir.path(), "[engine]\non_shutdown = \"leave\"", QUICK).await;
        turn(&engine, "live", workspace, "x").await;
        let backend = engine.list_backends().await.unwrap().remove(0);
        close(engine).await;
        // As if the workspace was called otherwise in an older config.
        let db = rusqlite::Connection::open(dir.path().join("m.db")).unwrap();
        db.execute("UPDATE backends SET workspace = ?1", [workspace]).unwrap();
        drop(db);
        let started = lines(&dir.path().join("started")).len();
        if workspace == "gone" {
            let engine = open(dir.path(), "", QUICK).await;
            engine.sweep().await.unwrap();
            let left = engine.list_backends().await.unwrap().remove(0);
            assert_eq!((left.state, left.worker), (BackendState::Running, None), "nobody here can watch over it");
            close(engine).await;
        }
        let host = i32::try_from(backend.pid.unwrap()).unwrap();
        for pid in [vec![host], marked(RunId::from(backend.id))].concat() {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            // Gone with its host, perhaps.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        until(|| left_of(&[backend.id]).is_empty()).await;
        let engine = open(dir.path(), "", QUICK).await;
        reaches(&engine, backend.id, BackendState::Stopped).await;
        assert_eq!(lines(&dir.path().join("started")).len(), started);
        close(engine).await;
    }
}

#[tokio::test]
async fn nobody_waits_for_a_turn_in_a_live_agent_that_died_with_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("goes-on"), "").unwrap();
    let engine = open(dir.path(), "[engine]\non_shutdown = \"leave\"", QUICK).await;
    let run = send(&engine, "live", "s", "hold").await;
    until(|| dir.path().join("turn-pid").exists()).await;
    let backend = engine.list_backends().await.unwrap().remove(0);
    close(engine).await;
    let db = rusqlite::Connection::open(dir.path().join("m.db")).unwrap();
    let host_of_turn: i32 = db.query_row("SELECT pid FROM runs", [], |row| row.get(0)).unwrap();
    let shims = vec![host_of_turn, i32::try_from(backend.pid.unwrap()).unwrap()];
    let marked = || [run, RunId::from(backend.id)].map(marked).concat();
    for pid in [shims, marked()].concat() {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        // Gone with its host, perhaps.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    until(|| marked().is_empty()).await;
    // It comes up as another one.
    for table in ["runs", "backends"] {
        db.execute(&format!("UPDATE {table} SET pid_scope = 'former'"), []).unwrap();
    }
    db.execute("UPDATE workers SET pid_scope = 'former'", []).unwrap();
    drop(db);
    let engine = open(dir.path(), "", QUICK).await;
    assert_eq!(settled(&engine, run).await.cause.as_deref(), Some("shim_lost"));
    assert!(!dir.path().join("ending").exists(), "it is known to be dead");
    close(engine).await;
}

#[tokio::test]
async fn sessions_beyond_the_cap_take_the_place_of_idle_ones_whatever_happens_to_live_agents() {
    let seed = std::env::var("WARM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("WARM_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), "keep_warm\n[engine]\nmax_backends = 10", QUICK).await;
    let mut runs = Vec::new();
    for _ in 0..2 {
        for session in 0..50 {
            let what = *random.choice(["x", "x", "x", "crash-once", "crash-later", "hang"].iter()).unwrap();
            runs.push((what, send(&engine, "live", &format!("s{session}"), what).await));
        }
    }
    let (done, db) = (tokio_util::sync::CancellationToken::new(), dir.path().join("m.db"));
    let watching = {
        let done = done.clone();
        tokio::task::spawn_blocking(move || {
            let db = rusqlite::Connection::open(db).unwrap();
            let mut most = 0;
            while !done.is_cancelled() {
                let live = "SELECT count(*) FROM backends WHERE state <> 'stopped'";
                most = most.max(db.query_row(live, [], |row| row.get::<_, i64>(0)).unwrap());
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        })
    };
    for (what, id) in &runs {
        let run = settled(&engine, *id).await;
        // One that hung when the next turn came to it, or died with the turn before, is not this turn's doing.
        let expected: &[Status] = match *what {
            "crash-later" => &[Status::Failed],
            _ => &[Status::Completed, Status::Failed],
        };
        assert!(expected.contains(&run.status), "{what}: {run:?}");
        assert!(run.attempts <= 2, "{what}: {run:?}");
    }
    done.cancel();
    assert!(watching.await.unwrap() <= 10, "more live agents than may live");
    let said = counts(lines(&dir.path().join("said")));
    assert!(said.values().all(|times| *times == 1), "a turn was taken twice: {said:?}");
    for (what, id) in &runs {
        let run = engine.run(*id).await.unwrap();
        let was_said = said.contains_key(&id.to_string());
        assert_eq!(was_said, run.status == Status::Completed, "{what}: {run:?}");
    }
    assert!(!dir.path().join("doubled").exists(), "two turns at once in one session of an agent");

    // Nobody uses them any more.
    within(async {
        while engine.list_backends().await.unwrap().iter().any(|backend| backend.state != BackendState::Stopped) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let audit = engine.audit(Depth::Full).await.unwrap();
    assert_eq!(audit.findings().collect::<Vec<_>>(), []);
    close(engine).await;
    until(|| {
        let left = std::fs::read_dir(dir.path().join("m.db-agents")).map_or(0, Iterator::count);
        left == 0
    })
    .await;
    let db = rusqlite::Connection::open(dir.path().join("m.db")).unwrap();
    let mut ids = db.prepare("SELECT id FROM backends").unwrap();
    let ids: Vec<BackendId> =
        ids.query_map([], |row| row.get::<_, String>(0)).unwrap().map(|id| id.unwrap().parse().unwrap()).collect();
    assert_eq!(left_of(&ids), NOTHING);
}
