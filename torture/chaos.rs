//! The faults, drawn from the seed one after the other: which, on which process, and how long until the next.
//!
//! Always: the same seed draws the same faults in the same order; which processes they hit depends on the machine. An engine has
//! at most one fault in progress, so that each is up again after a bounded time.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::client::{ask, get};
use super::fleet::{EngineProcess, Fleet};
use super::gateway::supervisor::GatewaySupervisor;
use super::journal::{Count, Journal};
use super::processes::{self, MarkedProcess, ProcessKind};
use super::workdir::{LEASE, Workdir};

/// Makes an engine leave its agents running and exit.
const HAND_OVER: Signal = Signal::USR2;

/// The mean pause between two faults.
const PAUSE_MS: u64 = 90;
/// The longest time that an engine stays down.
const MAX_DOWN_MS: u64 = 400;

/// The faults.
#[derive(Debug, Clone, Copy)]
enum Fault {
    KillEngine,
    KillEngineOnItsWayUp,
    KillAllEngines,
    PauseEngine,
    Drain,
    HandOver,
    KillAgent,
    KillHost,
    KillRelay,
    KillBridge,
    KillBridgeHost,
    PauseBridge,
    KillGateway,
    StopBackend,
    Cancel,
    Close,
    Sweep,
    Calm,
}

/// The relative frequency of each fault.
const WEIGHTS: [(Fault, usize); 18] = [
    (Fault::KillEngine, 42),
    (Fault::KillEngineOnItsWayUp, 4),
    (Fault::KillAllEngines, 2),
    (Fault::PauseEngine, 6),
    (Fault::Drain, 4),
    (Fault::HandOver, 5),
    (Fault::KillAgent, 14),
    (Fault::KillHost, 8),
    (Fault::KillRelay, 4),
    (Fault::KillBridge, 2),
    (Fault::KillBridgeHost, 2),
    (Fault::PauseBridge, 3),
    (Fault::KillGateway, 3),
    (Fault::StopBackend, 3),
    (Fault::Cancel, 8),
    (Fault::Close, 4),
    (Fault::Sweep, 3),
    (Fault::Calm, 3),
];

impl Fault {
    fn draw(rng: &mut fastrand::Rng) -> Self {
        let all = WEIGHTS.iter().flat_map(|(fault, weight)| std::iter::repeat_n(*fault, *weight));
        // The list is not empty.
        rng.choice(all.collect::<Vec<_>>()).unwrap_or(Self::Calm)
    }
}

/// Draws and executes the faults.
pub(super) struct Chaos {
    pub(super) rng: fastrand::Rng,
    pub(super) workdir: Arc<Workdir>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) gateway: Arc<Mutex<GatewaySupervisor>>,
    pub(super) sessions: Vec<String>,
    pub(super) journal: Arc<Journal>,
}

impl Chaos {
    /// Runs until it is asked to stop, and leaves nothing stopped or half done.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut under_way = JoinSet::new();
        while !stop.is_cancelled() {
            self.next(&mut under_way).await;
            while under_way.try_join_next().is_some() {}
            let pause = Duration::from_millis(self.rng.u64(..2 * PAUSE_MS));
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        under_way.join_all().await;
    }

    async fn next(&mut self, under_way: &mut JoinSet<()>) {
        let fault = Fault::draw(&mut self.rng);
        let number = self.rng.usize(..self.fleet.engines.len());
        // Drawn for every fault, so that the next draws do not depend on what this one finds.
        let down = Duration::from_millis(if self.rng.bool() { 0 } else { self.rng.u64(..MAX_DOWN_MS) });
        let mut fork = self.rng.fork();
        match fault {
            Fault::KillEngine => {
                let Some(mut engine) = self.engine(number) else { return };
                under_way.spawn(async move {
                    engine.kill().await;
                    sleep(down).await;
                    engine.start().await;
                });
            }
            Fault::KillEngineOnItsWayUp => {
                let Some(mut engine) = self.engine(number) else { return };
                under_way.spawn(async move {
                    engine.kill().await;
                    engine.begin_to_start();
                    sleep(down / 4).await;
                    engine.kill().await;
                    engine.start().await;
                });
            }
            Fault::KillAllEngines => {
                let engines: Vec<_> = (0..self.fleet.engines.len()).filter_map(|number| self.engine(number)).collect();
                under_way.spawn(kill_together(engines, down));
            }
            Fault::PauseEngine => {
                let Some(engine) = self.engine(number) else { return };
                self.journal.count(Count::EnginePauses);
                under_way.spawn(async move {
                    engine.signal(Signal::STOP);
                    // Long enough that other engines have adopted its runs when it resumes, with unread output of their agents.
                    sleep(2 * LEASE + 2 * down).await;
                    engine.signal(Signal::CONT);
                });
            }
            Fault::Drain => self.restart(number, Signal::TERM, Count::Drains, under_way),
            Fault::HandOver => self.restart(number, HAND_OVER, Count::HandOvers, under_way),
            Fault::KillAgent => self.kill(&[ProcessKind::Agent, ProcessKind::Server], Count::AgentKills).await,
            Fault::KillHost => self.kill(&[ProcessKind::Host], Count::HostKills).await,
            Fault::KillRelay => self.kill(&[ProcessKind::Relay], Count::RelayKills).await,
            Fault::KillBridge => self.kill(&[ProcessKind::Bridge], Count::BridgeKills).await,
            Fault::KillBridgeHost => self.kill(&[ProcessKind::BridgeHost], Count::BridgeHostKills).await,
            Fault::PauseBridge => self.pause_bridge(4 * down, under_way).await,
            Fault::KillGateway => {
                let gateway = self.gateway.clone();
                under_way.spawn(async move {
                    let mut gateway = gateway.lock().await;
                    gateway.kill().await;
                    sleep(down).await;
                });
            }
            Fault::StopBackend => self.stop_backend(&mut fork).await,
            Fault::Cancel => self.cancel(&mut fork).await,
            Fault::Close => self.close(&mut fork).await,
            Fault::Sweep => {
                let mut command = self.workdir.command(&["--quiet", "sweep"]);
                self.journal.count(Count::Sweeps);
                // Its output is not needed, and it may fail on a busy database.
                under_way.spawn(async move { drop(command.output().await) });
            }
            Fault::Calm => sleep(4 * down).await,
        }
    }

    /// An engine without a fault in progress.
    fn engine(&self, number: usize) -> Option<OwnedMutexGuard<EngineProcess>> {
        self.fleet.engines.get(number)?.clone().try_lock_owned().ok()
    }

    fn restart(&self, number: usize, signal: Signal, count: Count, under_way: &mut JoinSet<()>) {
        let Some(mut engine) = self.engine(number) else { return };
        self.journal.count(count);
        under_way.spawn(async move {
            engine.stop(signal).await;
            engine.start().await;
        });
    }

    /// A random process of one of these kinds.
    async fn find(&self, kinds: &[ProcessKind]) -> Option<MarkedProcess> {
        let dir = self.workdir.dir.clone();
        // Reads /proc; it fails only when the runtime shuts down.
        let found = tokio::task::spawn_blocking(move || processes::find(&dir)).await.unwrap_or_default();
        let found = found.into_iter().filter(|process| kinds.contains(&process.kind)).collect::<Vec<_>>();
        // Not drawn from the seed: how many there are depends on the machine.
        fastrand::Rng::new().choice(found)
    }

    async fn kill(&self, kinds: &[ProcessKind], count: Count) {
        let Some(process) = self.find(kinds).await else { return };
        // Noted before the kill: otherwise a run could be interrupted before the journal has the reason.
        if process.kind == ProcessKind::Host
            && let Some(run) = process.run.clone()
        {
            self.journal.shim_killed(run);
        }
        if processes::send(&process, &self.workdir.dir, Signal::KILL) {
            self.journal.count(count);
        }
    }

    async fn pause_bridge(&self, pause: Duration, under_way: &mut JoinSet<()>) {
        let Some(bridge) = self.find(&[ProcessKind::Bridge, ProcessKind::Server]).await else { return };
        if processes::send(&bridge, &self.workdir.dir, Signal::STOP) {
            self.journal.count(Count::BridgePauses);
            let dir = self.workdir.dir.clone();
            under_way.spawn(async move {
                sleep(pause).await;
                // It may have been killed meanwhile.
                processes::send(&bridge, &dir, Signal::CONT);
            });
        }
    }

    async fn stop_backend(&self, rng: &mut fastrand::Rng) {
        let Some(to) = self.fleet.addresses().any(rng) else { return };
        let Ok(answer) = get(&to, "/v1/backends?limit=20").await else { return };
        let Some(id) = rng.choice(answer.items()).and_then(|backend| backend["id"].as_str()) else { return };
        let path = format!("/v1/backends/{id}/stop");
        if ask(&to, Method::POST, &path, Some(&json!({"force": rng.bool()}))).await.is_ok() {
            self.journal.count(Count::BackendStops);
        }
    }

    async fn cancel(&self, rng: &mut fastrand::Rng) {
        let Some(to) = self.fleet.addresses().any(rng) else { return };
        let status = if rng.u8(..4) == 0 { "queued" } else { "running" };
        let Ok(answer) = get(&to, &format!("/v1/runs?status={status}&limit=20")).await else { return };
        let Some(run) = rng.choice(answer.items()) else { return };
        let key = if rng.bool() { "id" } else { "session_id" };
        let Some(id) = run[key].as_str() else { return };
        let kind = if key == "id" { "runs" } else { "sessions" };
        if ask(&to, Method::POST, &format!("/v1/{kind}/{id}/cancel"), None).await.is_ok() {
            self.journal.count(Count::Cancels);
        }
    }

    async fn close(&self, rng: &mut fastrand::Rng) {
        let (Some(to), Some(session)) = (self.fleet.addresses().any(rng), rng.choice(&self.sessions)) else { return };
        let path = format!("/v1/sessions/{session}/close");
        if ask(&to, Method::POST, &path, Some(&json!({"cancel": rng.bool()}))).await.is_ok() {
            self.journal.count(Count::Closes);
        }
    }
}

async fn kill_together(mut engines: Vec<OwnedMutexGuard<EngineProcess>>, down: Duration) {
    for engine in &mut engines {
        engine.kill().await;
    }
    sleep(down).await;
    for engine in &mut engines {
        engine.start().await;
    }
}
