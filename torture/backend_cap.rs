//! Checks that no more backends are alive than `max_backends` allows: it polls any engine that answers.
//!
//! Always: each count is taken from one answer of one engine.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::client::get;
use super::fleet::Addresses;
use super::journal::Journal;

/// Ten counts per second.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Polls until it is asked to stop.
pub(super) async fn watch(
    most: usize,
    addresses: Addresses,
    mut rng: fastrand::Rng,
    journal: Arc<Journal>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let Some(to) = addresses.any(&mut rng) else {
            sleep(POLL_INTERVAL).await;
            continue;
        };
        if let Ok(answer) = get(&to, "/v1/backends?limit=100").await {
            let live: Vec<_> = answer.items().iter().filter(|backend| backend["state"] != "stopped").collect();
            journal.saw_backends(live.len());
            if live.len() > most {
                journal.violation("no more agents are kept warm than may be", format!("{most} may: {live:?}"));
            }
        }
        sleep(POLL_INTERVAL).await;
    }
}
