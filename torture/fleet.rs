//! The engines: real processes of the tortured program on one database file.
//!
//! Always: a signal goes to a child that was not waited for, so its pid cannot be another process's. An engine that exits
//! unasked, does not start, or does not stop when asked to, breaks a promise.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::time::timeout;

use super::client::Endpoint;
use super::journal::{Count, Journal};
use super::workdir::Workdir;

/// An engine that takes longer to listen or to stop hangs: even on a loaded machine both take well under a second.
const START_STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// All engines.
pub(super) struct Fleet {
    pub(super) engines: Vec<Arc<tokio::sync::Mutex<EngineProcess>>>,
    addresses: Addresses,
}

/// The known addresses of engines: one may be gone by the time it is asked.
#[derive(Clone)]
pub(super) struct Addresses(Arc<Mutex<Vec<Option<Endpoint>>>>);

impl Addresses {
    /// The address of a random engine.
    pub(super) fn any(&self, rng: &mut fastrand::Rng) -> Option<Endpoint> {
        let addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let living: Vec<_> = addresses.iter().flatten().collect();
        rng.choice(living).cloned()
    }

    fn set(&self, number: usize, address: Option<Endpoint>) {
        if let Some(place) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(number) {
            *place = address;
        }
    }
}

impl Fleet {
    pub(super) fn new(workdir: &Arc<Workdir>, journal: &Arc<Journal>, size: usize) -> Self {
        let addresses = Addresses(Arc::new(Mutex::new(vec![None; size])));
        let engine = |number| {
            let (workdir, journal, addresses) = (workdir.clone(), journal.clone(), addresses.clone());
            Arc::new(tokio::sync::Mutex::new(EngineProcess { number, child: None, workdir, journal, addresses }))
        };
        Self { engines: (0..size).map(engine).collect(), addresses: addresses.clone() }
    }

    pub(super) fn addresses(&self) -> Addresses {
        self.addresses.clone()
    }

    /// Starts every engine that is down.
    pub(super) async fn start(&self) {
        for engine in &self.engines {
            engine.lock().await.start().await;
        }
    }

    /// Stops all engines, one after the other, and waits for each.
    pub(super) async fn stop(&self) {
        for engine in &self.engines {
            engine.lock().await.stop(Signal::TERM).await;
        }
    }
}

/// One engine, running or down.
pub(super) struct EngineProcess {
    number: usize,
    child: Option<Child>,
    workdir: Arc<Workdir>,
    journal: Arc<Journal>,
    addresses: Addresses,
}

impl EngineProcess {
    /// Starts it if it is down, and waits until it listens.
    pub(super) async fn start(&mut self) {
        if self.child.is_some() {
            return;
        }
        let started = async {
            let mut child = self.spawn()?;
            let stdout = child.stdout.take().context("it has no stdout")?;
            let mut line = String::new();
            let listening = timeout(START_STOP_TIMEOUT, BufReader::new(stdout).read_line(&mut line)).await;
            self.child = Some(child);
            listening.context("it did not listen in time")??;
            let address = line.trim_end().strip_prefix("listening on http://").context("it ended while starting")?;
            let token = std::fs::read_to_string(self.workdir.token_file()).context("it has made no token")?;
            Ok::<Endpoint, anyhow::Error>(Endpoint { address: address.parse()?, token: token.trim_end().into() })
        };
        match started.await {
            Ok(address) => self.addresses.set(self.number, Some(address)),
            Err(error) => {
                self.journal.violation("an engine starts", format!("engine {}: {error:#}", self.number));
                self.end().await;
            }
        }
    }

    /// Starts it without waiting, to be killed while it starts.
    pub(super) fn begin_to_start(&mut self) {
        self.child = self.spawn().ok();
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.workdir.log(self.number))?;
        let mut command = self.workdir.command(&["serve", "--listen", "127.0.0.1:0", "--log-format", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        Ok(command.spawn()?)
    }

    /// SIGKILL.
    pub(super) async fn kill(&mut self) {
        if self.is_running() {
            self.journal.count(Count::EngineKills);
        }
        self.end().await;
    }

    /// Makes it stop with this signal, and waits until it has exited.
    pub(super) async fn stop(&mut self, signal: Signal) {
        if !self.is_running() {
            return;
        }
        self.signal(signal);
        self.addresses.set(self.number, None);
        let Some(child) = &mut self.child else { return };
        match timeout(START_STOP_TIMEOUT, child.wait()).await {
            Ok(Ok(status)) if status.success() => self.child = None,
            Ok(status) => {
                let detail = format!("engine {} ended with {status:?} after {signal:?}", self.number);
                self.journal.violation("an engine stops when it is asked to", detail);
                self.child = None;
            }
            Err(_) => {
                let detail = format!("engine {} was there {START_STOP_TIMEOUT:?} after {signal:?}", self.number);
                self.journal.violation("an engine stops when it is asked to", detail);
                self.end().await;
            }
        }
    }

    /// Sends a signal that does not end it.
    pub(super) fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(Child::id).and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // It was not waited for, so this can only hit a process that has just ended.
            let _ = kill_process(pid, signal);
        }
    }

    /// Whether it lives. Nothing else ends engines: if it is gone, it has failed.
    fn is_running(&mut self) -> bool {
        let Some(child) = &mut self.child else { return false };
        let Ok(Some(status)) = child.try_wait() else { return true };
        self.journal.violation("an engine ends only when it is told to", format!("engine {}: {status}", self.number));
        self.child = None;
        false
    }

    async fn end(&mut self) {
        self.addresses.set(self.number, None);
        if let Some(mut child) = self.child.take() {
            // Also waits for it. It fails if the process was gone already.
            let _ = child.kill().await;
        }
    }
}
