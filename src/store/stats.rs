//! Counts over the tables, each from its own index.

use std::collections::BTreeMap;

use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::run::Status;
use crate::stats::{BackendStats, LatencyStats, SessionStats, Stats, TurnStats};

impl Store {
    /// Current totals, and what happened since `since`.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn stats(&self, since: Timestamp) -> Result<Stats, StoreError> {
        let from = since.as_millis();
        let now = sqlx::query!(
            r#"SELECT (SELECT count(*) FROM runs WHERE status = 'running') AS "active!: i64",
                   (SELECT count(*) FROM runs WHERE status = 'queued') AS "queued!: i64",
                   (SELECT count(*) FROM assignments WHERE state IN ('active', 'idle')) AS "placed!: i64",
                   (SELECT count(*) FROM permissions WHERE state = 'pending') AS "pending!: i64",
                   (SELECT count(*) FROM sessions WHERE updated_at >= ?1) AS "used!: i64",
                   (SELECT count(*) FROM backends WHERE stopped_at >= ?1) AS "stopped!: i64",
                   (SELECT max(stopped_at) FROM backends WHERE stopped_at >= ?1) AS "last_stopped_at: i64""#,
            from
        )
        .fetch_one(&self.readers)
        .await?;
        let backends = sqlx::query!(
            r#"SELECT state, count(*) AS "count!: i64" FROM backends INDEXED BY backends_live WHERE state <> 'stopped'
               GROUP BY state"#
        );
        let live = backends.fetch_all(&self.readers).await?.into_iter().map(|row| (row.state, row.count)).collect();
        let ended = sqlx::query!(
            r#"SELECT status AS "status!", error_class, count(*) AS "count!: i64", sum(max(0, settled_at - claimed_at)) AS "sum_ms: i64",
                   max(settled_at - claimed_at) AS "max_ms: i64"
               FROM runs INDEXED BY runs_settled WHERE settled_at >= ?1 GROUP BY status, error_class"#,
            from
        );
        let mut turns = TurnStats { active: now.active, queued: now.queued, ended: BTreeMap::new() };
        turns.ended.extend(Status::ALL.iter().filter(|s| s.is_settled()).map(|s| (s.as_str().to_owned(), 0)));
        let (mut errors, mut latency_ms) = (BTreeMap::new(), LatencyStats { average: None, max: None });
        for row in ended.fetch_all(&self.readers).await? {
            if row.status == Status::Completed.as_str() {
                let average = row.sum_ms.map(|sum| (sum + row.count / 2) / row.count.max(1));
                latency_ms = LatencyStats { average, max: row.max_ms.map(|max| max.max(0)) };
            }
            if row.status == Status::Failed.as_str() {
                errors.insert(row.error_class.unwrap_or_else(|| "other".to_owned()), row.count);
            }
            *turns.ended.entry(row.status).or_default() += row.count;
        }
        Ok(Stats {
            since,
            sessions: SessionStats { placed: now.placed, used: now.used },
            turns,
            latency_ms,
            errors,
            backends: BackendStats {
                live,
                stopped: now.stopped,
                last_stopped_at: now.last_stopped_at.map(Timestamp::from_millis),
            },
            permissions_pending: now.pending,
        })
    }
}
