//! The torture: engines, agents, writers and readers as real processes and connections, on one database, under faults
//! drawn from a seed; afterwards the checks whether anything was lost, duplicated, or left behind.
//!
//! Always: everything is observed from outside. What clients, readers and agents recorded is compared with what the
//! engine stored, so that no bug of the engine can hide itself.
//!
//! Phases: begin, trouble (`chaos.rs` against `writer.rs` and `reader.rs`), calm (every run ends), stop, check
//! (`check.rs`).

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use mainstay::engine::{Depth, Engine};
use mainstay::id::RunId;

use super::chaos::Chaos;
use super::check::Evidence;
use super::fleet::Fleet;
use super::gateway::supervisor::{self, GatewaySupervisor};
use super::journal::{Count, Journal, Report};
use super::reader::Reader;
use super::workdir::Workdir;
use super::writer::{Sent, Writer};
use super::{backend_cap, check, client, workdir};

/// With all engines back and no more faults, every run is settled within this time.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Poll interval for conditions that are only visible from outside.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Time between two progress lines.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(3);

/// The parameters of a torture.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) mainstay: PathBuf,
    /// The program whose `agent` subcommand is an agent.
    pub(super) agent: PathBuf,
    /// The seed of all draws.
    pub(super) seed: u64,
    /// The trouble ends after this many kills.
    pub(super) kills: u64,
    /// The trouble ends after this time at the latest.
    pub(super) limit: Duration,
    pub(super) engines: usize,
    /// Sessions; each has a writer.
    pub(super) sessions: usize,
    pub(super) readers: usize,
    /// Where the torture's directory is created.
    pub(super) dir: PathBuf,
    /// Keep that directory even if no promise was broken.
    pub(super) keep: bool,
}

/// Runs a torture. `tell` gets a progress line now and then. None if it was interrupted.
pub(super) async fn run(
    plan: &Plan,
    interrupted: CancellationToken,
    tell: impl Fn(&str),
) -> anyhow::Result<Option<Report>> {
    let began = Instant::now();
    let workdir = Arc::new(Workdir::create(plan)?);
    let journal = Arc::new(Journal::default());
    tell(&format!("seed {}, in {}", plan.seed, workdir.dir.display()));
    let torture = async {
        let gateway = Arc::new(Mutex::new(GatewaySupervisor::new(&workdir, &journal)));
        let stop_supervising = CancellationToken::new();
        gateway.lock().await.start().await?;
        let supervising = tokio::spawn(supervisor::run(gateway.clone(), stop_supervising.clone()));
        let (fleet, mut evidence) = trouble(plan, &workdir, &journal, &gateway, &tell).await?;
        tell("calm: waiting for every run to settle");
        let watcher = Engine::open(&workdir.database(), workdir.load_config()?).await?;
        settle(&watcher, &evidence.sent, &journal).await?;
        fleet.stop().await;
        stop_supervising.cancel();
        supervising.await??;
        evidence.gateway_down = journal.gateway_down();
        for left in workdir.wait_until_empty().await {
            journal.violation("nothing is left behind", left);
        }
        tell("checking");
        let found = check::all(&watcher, &workdir, &evidence, &journal).await?;
        for (check, finding) in watcher.audit(Depth::Full).await?.findings() {
            journal.violation("the file is sound", format!("{check}: {}: {}", finding.subject, finding.detail));
        }
        watcher.close().await;
        for line in workdir.panics() {
            journal.violation("an engine does not panic", line);
        }
        Ok::<_, anyhow::Error>(found)
    };
    let found = tokio::select! {
        found = torture => found.map(Some),
        () = interrupted.cancelled() => Ok(None),
    };
    workdir.clear().await;
    let keep = plan.keep || journal.violations() > 0 || found.is_err();
    if keep {
        tell(&format!("kept {}", workdir.dir.display()));
    } else {
        fs::remove_dir_all(&workdir.dir).with_context(|| format!("failed to remove {}", workdir.dir.display()))?;
    }
    let kept_in = keep.then(|| workdir.dir.display().to_string());
    Ok(found?.map(|found| Report { kept_in, ..journal.report(plan.seed, began.elapsed(), found) }))
}

/// Starts everything, causes faults until there were enough, and brings all engines back.
async fn trouble(
    plan: &Plan,
    workdir: &Arc<Workdir>,
    journal: &Arc<Journal>,
    gateway: &Arc<Mutex<GatewaySupervisor>>,
    tell: impl Fn(&str),
) -> anyhow::Result<(Arc<Fleet>, Evidence)> {
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    let fleet = Arc::new(Fleet::new(workdir, journal, plan.engines));
    fleet.start().await;
    let sessions: Vec<String> = (0..plan.sessions).map(|number| format!("session-{number}")).collect();
    create_sessions(&sessions, &fleet).await?;
    let (stop_chaos, stop_writers, stop_readers) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let most = workdir::max_backends(plan.sessions);

    let chaos = Chaos {
        rng: rng.fork(),
        workdir: workdir.clone(),
        fleet: fleet.clone(),
        gateway: gateway.clone(),
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

    let looking = backend_cap::watch(most, fleet.addresses(), rng.fork(), journal.clone(), stop_readers.clone());
    let looking = tokio::spawn(looking);

    let (began, mut told) = (Instant::now(), Instant::now());
    while journal.kills() < plan.kills && began.elapsed() < plan.limit {
        if told.elapsed() >= PROGRESS_INTERVAL {
            told = Instant::now();
            tell(&progress(journal, began.elapsed()));
        }
        sleep(POLL_INTERVAL).await;
    }
    stop_chaos.cancel();
    chaoses.join_all().await;
    fleet.start().await;
    stop_writers.cancel();
    let sent = writers.join_all().await.into_iter().flatten().collect();
    stop_readers.cancel();
    let read = readers.join_all().await;
    looking.await?;
    tell(&progress(journal, began.elapsed()));
    Ok((fleet, Evidence { sent, read, without_shim: journal.runs_without_shim(), ..Evidence::default() }))
}

/// Creates the sessions, each with one of the agents.
async fn create_sessions(sessions: &[String], fleet: &Fleet) -> anyhow::Result<()> {
    let to = fleet.addresses().any(&mut fastrand::Rng::new()).context("no engine listens")?;
    for (session, agent) in sessions.iter().zip(workdir::agents().cycle()) {
        let body = serde_json::json!({"id": session, "agent": agent});
        let answer = client::ask(&to, hyper::Method::POST, "/v1/sessions", Some(&body)).await?;
        anyhow::ensure!(answer.status == 201, "{session} could not be made: {} {}", answer.status, answer.body);
    }
    Ok(())
}

fn progress(journal: &Journal, elapsed: Duration) -> String {
    let [engines, agents, hosts] =
        [Count::EngineKills, Count::AgentKills, Count::HostKills].map(|kills| journal.counted(kills));
    let others = journal.kills() - engines - agents - hosts;
    format!(
        "{} s: {} kills ({engines} engines, {agents} agents, {hosts} hosts, {others} relays, bridges and gateways), {} messages acknowledged, {} events read, \
         {} violations",
        elapsed.as_secs(),
        journal.kills(),
        journal.counted(Count::MessagesAcknowledged),
        journal.counted(Count::EventsRead),
        journal.violations(),
    )
}

/// Waits until every run that a writer got is settled.
async fn settle(watcher: &Engine, sent: &[Sent], journal: &Journal) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
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
