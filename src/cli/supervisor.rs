//! Notifications to a service manager: the daemon is ready, its status, it is alive, and it is about to end. They use systemd's
//! `sd_notify`; without a service manager they do nothing.

use std::convert::Infallible;
use std::sync::LazyLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::MissedTickBehavior;

use crate::config::Config;
use crate::engine::Engine;

/// What a stop takes besides the time for turns and agents: last writes that are retried for a while, connections that
/// end, the WAL checkpoint.
const CLOSING: Duration = Duration::from_secs(30);

/// The daemon serves.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The daemon was asked to stop. The manager has to wait for as long as the config allows, whatever its own limit is.
pub(super) fn stopping(config: &Config, status: &str) {
    let slowest = config.agents.values().map(|agent| agent.kill_grace).max().unwrap_or_default();
    let limit = config.engine.shutdown_grace + slowest + CLOSING;
    let limit = u32::try_from(limit.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::Status(status), NotifyState::ExtendTimeoutUsec(limit)]);
}

/// Sends the watchdog's keep-alive, twice within its limit, for as long as the engine makes progress. A database that is
/// locked or full is no reason to restart, a loop that hangs is.
pub(super) async fn watch(engine: Engine) -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut ticks = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let pulse = engine.pulse();
        tokio::pin!(pulse);
        if tokio::time::timeout(ticks.period(), &mut pulse).await.is_err() {
            tracing::warn!(?limit, "the engine does not answer: the service manager may restart this process");
            pulse.await;
            tracing::info!("the engine answers again");
        }
        tell(&[NotifyState::Watchdog]);
    }
}

/// Queued messages for a service manager that does not read; further ones are dropped.
const WAITING_MESSAGES: usize = 16;

/// The queue of the thread that sends to the service manager: its socket blocks while the manager does not read.
static MANAGER: LazyLock<SyncSender<String>> = LazyLock::new(|| {
    let (sender, messages) = sync_channel::<String>(WAITING_MESSAGES);
    let thread = std::thread::Builder::new().name("sd-notify".into());
    let started = thread.spawn(move || {
        for message in messages {
            if let Err(error) = sd_notify::notify(&[NotifyState::Custom(&message)]) {
                tracing::warn!(%error, "failed to tell the service manager how we are");
            }
        }
    });
    if let Err(error) = started {
        tracing::warn!(%error, "failed to start the thread that tells the service manager how we are");
    }
    sender
});

fn tell(states: &[NotifyState<'_>]) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let lines: Vec<_> = states.iter().map(ToString::to_string).collect();
    if MANAGER.try_send(lines.join("\n")).is_err() {
        tracing::warn!("the service manager does not read what it is told");
    }
}
