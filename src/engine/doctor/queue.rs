//! The queue: ready runs that no worker claims, and runs that wait for something that is missing.
//!
//! Always: a run is called stuck only after it was watched for as long as a claim may take, while a worker had room.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use crate::audit::{Check, Finding, Verdict};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::engine::EngineError;
use crate::engine::health::STARVED_AFTER;
use crate::id::RunId;
use crate::process::reap::{self, Liveness};
use crate::store::reading::{Claimable, Reading};

/// Poll interval while ready runs are watched.
const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);

/// Whether ready runs are claimed, and whether there is what they wait for.
pub(super) async fn checks(reading: &mut Reading, config: &Config) -> Result<[Check; 2], EngineError> {
    let waiting = reading.claimable(SystemClock.now()).await?;
    let (known, unknown): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|run| is_known(run, config));
    let mut absent: Vec<_> = unknown.iter().map(|run| Finding::new(run.id, unknown_detail(run, config))).collect();
    if !known.is_empty() && !has_worker(reading).await? {
        let detail = |run: &Claimable| Finding::new(run.id, "it is ready, and no process executes runs on this file");
        absent.extend(known.iter().map(detail));
    }
    let stuck = stuck(reading, config, known).await?.into_iter().map(|run| {
        let detail = format!("a worker has room for it, but did not take it for {} s", STARVED_AFTER.as_secs());
        Finding::new(run, detail)
    });
    let advice = "the daemon does not do its work: look at its log, then restart it";
    let queue = Check::new("queue", Verdict::Error, advice, stuck.collect());
    let advice = "start the daemon (`mainstay serve`) with a config that has the agent and the workspace";
    Ok([queue, Check::new("waiting", Verdict::Warning, advice, absent)])
}

/// The runs that stay ready for as long as a claim may take, while a worker has room.
async fn stuck(reading: &mut Reading, config: &Config, mut runs: Vec<Claimable>) -> Result<Vec<RunId>, EngineError> {
    let begun = Instant::now();
    loop {
        runs.retain(|run| has_place(run, config));
        if runs.is_empty() || !has_room(reading).await? {
            return Ok(Vec::new());
        }
        if begun.elapsed() > STARVED_AFTER {
            return Ok(runs.into_iter().map(|run| run.id).collect());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        let now: BTreeMap<_, _> =
            reading.claimable(SystemClock.now()).await?.into_iter().map(|run| (run.id, run)).collect();
        runs = runs.into_iter().filter_map(|run| now.get(&run.id).cloned()).collect();
    }
}

fn is_known(run: &Claimable, config: &Config) -> bool {
    config.agents.contains_key(&run.agent) && config.workspaces.contains_key(&run.workspace)
}

fn unknown_detail(run: &Claimable, config: &Config) -> String {
    if config.agents.contains_key(&run.agent) {
        format!("it is ready, and its workspace {} is not in this config", run.workspace)
    } else {
        format!("it is ready, and its agent {} is not in this config", run.agent)
    }
}

fn has_place(run: &Claimable, config: &Config) -> bool {
    let most = config.agents.get(&run.agent).map_or(0, |agent| agent.max_concurrent);
    run.agent_running < i64::from(most)
}

/// Whether a process that lives, as far as this can be known, executes runs.
async fn has_worker(reading: &mut Reading) -> Result<bool, EngineError> {
    let workers = reading.workers().await?;
    Ok(workers.iter().any(|worker| worker.capacity > 0 && reap::is_alive(&worker.process) != Liveness::Dead))
}

/// Whether a worker that is proven to live executes fewer runs than its capacity.
async fn has_room(reading: &mut Reading) -> Result<bool, EngineError> {
    let mut running: HashMap<_, i64> = HashMap::new();
    for held in reading.held().await? {
        *running.entry(held.worker).or_default() += 1;
    }
    let workers = reading.workers().await?;
    Ok(workers.iter().any(|worker| {
        running.get(&worker.key).copied().unwrap_or_default() < worker.capacity
            && reap::is_alive(&worker.process) == Liveness::Alive
    }))
}
