//! What runs wait for, according to the rows.

use std::collections::BTreeMap;

use crate::id::AgentName;
use crate::lease::RunKey;
use crate::store::{Store, StoreError};
use crate::waiting::WaitsFor;

impl Store {
    /// What each of these runs waits for; runs that wait for nothing are left out. `most` is the maximum number of concurrent
    /// turns of each agent. The rows cannot tell whether the registered workers are alive.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn waits_for(
        &self,
        runs: &[RunKey],
        most: &BTreeMap<AgentName, u32>,
    ) -> Result<BTreeMap<RunKey, WaitsFor>, StoreError> {
        let json = |error: serde_json::Error| StoreError::Invalid(error.to_string());
        let runs = serde_json::to_string(runs).map_err(json)?;
        let most = serde_json::to_string(most).map_err(json)?;
        let now = self.clock.now().as_millis();
        // A queued run that is not ready waits for its turn if its session has an assignment, or if it is not the next one.
        let rows = sqlx::query!(
            r#"SELECT r.key AS "key!", CASE
                   WHEN r.status = 'running' THEN 'answer'
                   WHEN r.ready = 0 AND (a.key IS NOT NULL OR r.key <> (SELECT key FROM runs q
                       WHERE q.session_key = r.session_key AND q.status = 'queued'
                       ORDER BY (q.first_seq IS NULL), q.front DESC, q.priority DESC, q.key LIMIT 1)) THEN 'turn'
                   WHEN a.key IS NULL THEN 'slot'
                   WHEN r.not_before > ?3 THEN iif(r.short_of IS NULL, 'not_before', 'resources')
                   WHEN EXISTS (SELECT 1 FROM runs x WHERE x.status = 'running' AND x.slot_key = a.slot_key) THEN 'slot'
                   WHEN a.slot_key IS NULL AND EXISTS (SELECT 1 FROM runs x WHERE x.status = 'running' AND x.slot_key IS NULL
                       AND x.workspace = r.workspace) THEN 'shared_agent'
                   WHEN (SELECT count(*) FROM runs b WHERE b.status = 'running' AND b.agent = r.agent)
                       >= (SELECT value FROM json_each(?2) WHERE key = r.agent) THEN 'agent_limit'
                   ELSE 'worker' END AS "reason!: String"
               FROM runs r LEFT JOIN assignments a ON a.session_key = r.session_key AND a.state IN ('active', 'idle')
               WHERE r.key IN (SELECT value FROM json_each(?1))
                 AND (r.status = 'queued' OR (r.status = 'running'
                      AND EXISTS (SELECT 1 FROM permissions p WHERE p.run_key = r.key AND p.state = 'pending')))"#,
            runs,
            most,
            now
        )
        .fetch_all(&self.readers)
        .await?;
        let parse =
            |word: &str| word.parse().map_err(|e: crate::waiting::UnknownReason| StoreError::Invalid(e.to_string()));
        rows.into_iter().map(|row| Ok((row.key, parse(&row.reason)?))).collect()
    }
}
