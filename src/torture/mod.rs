//! The torture: engines, agents, writers and readers as real processes and connections, on one database, under faults
//! drawn from a seed; and then the question whether anything was lost, doubled, or left behind.
//!
//! Always: everything is seen from outside. What clients, readers and agents noted for themselves is held against what the
//! engine stored, so that no mistake of the engine can hide itself.
//!
//! Phases: begin, trouble (`chaos.rs` against `writer.rs` and `reader.rs`), calm (every run comes to its end), stop, check
//! (`check.rs`).

pub mod agent;
mod chaos;
mod check;
mod client;
mod fleet;
mod journal;
mod processes;
mod reader;
mod record;
mod writer;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::engine::Engine;
use crate::id::RunId;
use chaos::Chaos;
use check::Evidence;
use fleet::Fleet;
use journal::Journal;
pub use journal::{Count, Found, Report, Violation};
use reader::Reader;
use writer::{Sent, Writer};

/// The lease of the engines: the shortest there is, so that one can be stopped past it.
const LEASE: Duration = Duration::from_secs(1);
/// With all engines back and nobody in their way, every run is settled within this time.
const TO_SETTLE: Duration = Duration::from_secs(90);
/// Once the engines have stopped, nothing of theirs is left after this time.
const TO_VANISH: Duration = Duration::from_secs(5);
/// Between two looks at something that shows only from outside.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Between two lines about the progress.
const TELL_AGAIN: Duration = Duration::from_secs(3);

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What all is drawn from.
    pub seed: u64,
    /// The trouble is over after so many kills.
    pub kills: u64,
    /// And after this time at the latest.
    pub limit: Duration,
    /// Engines on the one database.
    pub engines: usize,
    /// Sessions, each with a writer.
    pub sessions: usize,
    /// Readers.
    pub readers: usize,
    /// Where a directory for it is made.
    pub dir: PathBuf,
    /// Keep that directory also when all is well.
    pub keep: bool,
}

/// Where a torture takes place.
struct Camp {
    dir: PathBuf,
    binary: PathBuf,
}

impl Camp {
    /// Makes the directory, with a config in it.
    fn pitch(plan: &Plan) -> anyhow::Result<Self> {
        let parent = plan.dir.canonicalize().with_context(|| format!("failed to find {}", plan.dir.display()))?;
        let dir = parent.join(format!("torture-{}-{}", plan.seed, std::process::id()));
        let camp = Self { dir, binary: std::env::current_exe().context("failed to find this program")? };
        fs::create_dir(&camp.dir).with_context(|| format!("failed to make {}", camp.dir.display()))?;
        fs::create_dir(camp.records())?;
        fs::write(camp.config(), camp.config_text(plan.sessions))?;
        Ok(camp)
    }

    /// Times are short, so that much happens; slots are fewer than sessions, so that some have to share.
    fn config_text(&self, sessions: usize) -> String {
        // A JSON string is a TOML string.
        let quoted = |path: &Path| Value::from(path.display().to_string());
        format!(
            "[engine]\nlease = \"{}s\"\nsweep_interval = \"1s\"\nshutdown_grace = \"300ms\"\nidle_ttl = \"500ms\"\n\
             [agents.torture]\ndriver = \"openclaw\"\nmax_concurrent = 1000\nkill_grace = \"200ms\"\n\
             idle_timeout = \"3s\"\nturn_timeout = \"10s\"\ncommand = [{}, \"torture-agent\", \"--record\", {}, \"--seed\", \"{{message}}\"]\n\
             [workspaces.default]\nagent = \"torture\"\nslots = {}\ndir = {}\n",
            LEASE.as_secs(),
            quoted(&self.binary),
            quoted(&self.records()),
            sessions.div_ceil(3) * 2,
            quoted(&self.dir),
        )
    }

    fn load_config(&self) -> anyhow::Result<Config> {
        Ok(Config::load(&fs::read_to_string(self.config())?, &self.config(), &self.dir)?)
    }

    /// What of the torture still runs.
    async fn processes(self: &Arc<Self>) -> Vec<processes::Found> {
        let camp = self.clone();
        // It fails only when the runtime goes down.
        tokio::task::spawn_blocking(move || processes::find(&camp.dir)).await.unwrap_or_default()
    }

    /// Ends all of it.
    async fn clear(self: &Arc<Self>) {
        for process in self.processes().await {
            processes::kill(&process, &self.dir);
        }
    }
}

/// Does it. `tell` is given a line about the progress now and then. None when it was interrupted.
///
/// # Errors
/// When it could not be done; what the engines do wrong is in the report.
pub async fn run(plan: &Plan, interrupted: CancellationToken, tell: impl Fn(&str)) -> anyhow::Result<Option<Report>> {
    let began = Instant::now();
    let camp = Arc::new(Camp::pitch(plan)?);
    let journal = Arc::new(Journal::default());
    tell(&format!("seed {}, in {}", plan.seed, camp.dir.display()));
    let torture = async {
        let (fleet, evidence) = trouble(plan, &camp, &journal, &tell).await?;
        tell("calm: waiting for every run to settle");
        let watcher = Engine::open(&camp.database(), camp.load_config()?).await?;
        settle(&watcher, &evidence.sent, &journal).await?;
        fleet.stop().await;
        vanish(&camp, &journal).await;
        tell("checking");
        let found = check::all(&watcher, &camp, &evidence, &journal).await?;
        watcher.close().await;
        for line in camp.panics() {
            journal.violation("an engine does not panic", line);
        }
        Ok::<_, anyhow::Error>(found)
    };
    let found = tokio::select! {
        found = torture => found.map(Some),
        () = interrupted.cancelled() => Ok(None),
    };
    camp.clear().await;
    let well = journal.violations() == 0 && found.is_ok();
    let mut report = found?.map(|found| journal.report(plan.seed, began.elapsed(), found));
    if well && !plan.keep {
        fs::remove_dir_all(&camp.dir).with_context(|| format!("failed to remove {}", camp.dir.display()))?;
    } else if let Some(report) = &mut report {
        report.kept_in = Some(camp.dir.display().to_string());
    }
    Ok(report)
}

/// Begins everything, lets chaos loose until there was enough of it, and brings all engines back.
async fn trouble(
    plan: &Plan,
    camp: &Arc<Camp>,
    journal: &Arc<Journal>,
    tell: impl Fn(&str),
) -> anyhow::Result<(Arc<Fleet>, Evidence)> {
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    let fleet = Arc::new(Fleet::new(camp, journal, plan.engines));
    fleet.start().await;
    let sessions: Vec<String> = (0..plan.sessions).map(|number| format!("session-{number}")).collect();
    let (stop_chaos, stop_writers, stop_readers) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());

    let chaos = Chaos {
        rng: rng.fork(),
        camp: camp.clone(),
        fleet: fleet.clone(),
        sessions: sessions.clone(),
        journal: journal.clone(),
    };
    let (mut chaoses, mut writers, mut readers) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    chaoses.spawn(chaos.run(stop_chaos.clone()));
    for session in &sessions {
        let (session, rng) = (session.clone(), rng.fork());
        let writer = Writer { session, rng, addresses: fleet.addresses(), journal: journal.clone() };
        writers.spawn(writer.run(stop_writers.clone()));
    }
    for _ in 0..plan.readers {
        let (sessions, rng) = (sessions.clone(), rng.fork());
        let reader = Reader { sessions, rng, addresses: fleet.addresses(), journal: journal.clone() };
        readers.spawn(reader.run(stop_readers.clone()));
    }

    let (began, mut told) = (Instant::now(), Instant::now());
    while journal.kills() < plan.kills && began.elapsed() < plan.limit {
        if told.elapsed() >= TELL_AGAIN {
            told = Instant::now();
            tell(&progress(journal, began.elapsed()));
        }
        sleep(LOOK_AGAIN).await;
    }
    stop_chaos.cancel();
    chaoses.join_all().await;
    fleet.start().await;
    stop_writers.cancel();
    let sent = writers.join_all().await.into_iter().flatten().collect();
    stop_readers.cancel();
    let heard = readers.join_all().await;
    tell(&progress(journal, began.elapsed()));
    Ok((fleet, Evidence { sent, heard, without_host: journal.runs_without_host() }))
}

fn progress(journal: &Journal, elapsed: Duration) -> String {
    let [engines, agents, hosts] =
        [Count::EngineKills, Count::AgentKills, Count::HostKills].map(|kills| journal.counted(kills));
    format!(
        "{} s: {} kills ({engines} engines, {agents} agents, {hosts} hosts), {} messages acknowledged, {} events read, \
         {} violations",
        elapsed.as_secs(),
        journal.kills(),
        journal.counted(Count::MessagesAcknowledged),
        journal.counted(Count::EventsRead),
        journal.violations(),
    )
}

/// Waits until every run that a writer was told of is settled.
async fn settle(watcher: &Engine, sent: &[Sent], journal: &Journal) -> anyhow::Result<()> {
    let deadline = Instant::now() + TO_SETTLE;
    for run in sent.iter().filter_map(|sent| sent.run.as_deref()) {
        let run: RunId = run.parse()?;
        match timeout_at(deadline, watcher.wait_settled(run)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => journal.violation("an acknowledged run is there", format!("{run}: {error}")),
            Err(_) => {
                let run = watcher.run(run).await?;
                if !run.status.is_settled() {
                    journal.violation("every run is settled", serde_json::to_string(&run)?);
                }
            }
        }
    }
    Ok(())
}

/// Waits until nothing is left of the engines and their agents.
async fn vanish(camp: &Arc<Camp>, journal: &Journal) {
    let began = Instant::now();
    loop {
        let left = camp.processes().await;
        if left.is_empty() {
            return;
        }
        if began.elapsed() >= TO_VANISH {
            for process in left {
                let processes::Found { pid, command, run, .. } = process;
                journal.violation("no process is left behind", format!("{pid} of run {run:?}: {command}"));
            }
            return;
        }
        sleep(LOOK_AGAIN).await;
    }
}
