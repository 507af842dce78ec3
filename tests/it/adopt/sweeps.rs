//! Sweeps by hand.

use std::path::Path;

use mainstay::run::Status;

use super::{ends_well, host_of, leaves_nothing, speaking};
use crate::scene::{NOTHING, marked, until};

#[tokio::test(flavor = "multi_thread")]
async fn manual_sweep_ends_a_cancelled_agent() {
    let (camp, daemon, run, _) = speaking("", 50).await;
    daemon.kill();
    camp.watcher.cancel_run(run).await.unwrap();
    camp.watcher.sweep().await.unwrap();
    assert_eq!(camp.watcher.run(run).await.unwrap().status, Status::Cancelled);
    leaves_nothing(&camp, run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn manual_sweep_spares_live_agents_and_settles_ended_ones() {
    let (camp, daemon, run, reader) = speaking("", 50).await;
    let host = host_of(run);
    daemon.kill();
    let report = camp.watcher.sweep().await.unwrap();
    assert_eq!((report.runs_left, report.runs_settled, report.processes_ended), (1, 0, 0));
    assert_ne!(marked(run), NOTHING);
    std::fs::write(camp.dir.path().join("stop"), "").unwrap();
    until(|| !Path::new(&format!("/proc/{host}")).exists()).await;
    assert_eq!(camp.watcher.sweep().await.unwrap().runs_settled, 1);
    ends_well(&camp, run).await;
    reader.end(&camp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sweep_ends_the_agent_of_a_run_settled_elsewhere() {
    let (camp, daemon, run, _) = speaking("", 50).await;
    daemon.kill();
    // As in a copy of the database without this run's outcome.
    let db = rusqlite::Connection::open(&camp.db).unwrap();
    let settle = "UPDATE runs SET status = 'interrupted', cause = 'worker_lost', settled_at = 1, lease_worker = NULL, \
                  lease_expires_at = NULL";
    assert_eq!(db.execute(settle, []).unwrap(), 1);
    drop(db);
    let report = camp.watcher.sweep().await.unwrap();
    assert!(report.processes_ended >= 2 && report.homes_removed == 1, "{report:?}");
    leaves_nothing(&camp, run).await;
}
