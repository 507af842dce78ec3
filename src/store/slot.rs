//! The table `slots`: the pools, created from the config.

use super::tx::{Notice, Tx};
use super::{Store, StoreError, assignment};
use crate::clock::Timestamp;
use crate::slot::Slot;
use crate::workspace::{WhenFull, Workspace};

impl Store {
    /// Creates the pool of a workspace that has none yet.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn make_pool(&self, workspace: Workspace) -> Result<(), StoreError> {
        let name = workspace.name.as_str();
        let exists =
            sqlx::query_scalar!(r#"SELECT EXISTS (SELECT 1 FROM slots WHERE workspace = ?1) AS "exists!: bool""#, name);
        if workspace.slots == 0 || exists.fetch_one(&self.readers).await? {
            return Ok(());
        }
        self.sync_slots(workspace).await
    }

    /// Updates the pool of a workspace to the config: missing slots are created, surplus ones are disabled and not assigned any
    /// more. New slots go to the sessions that have waited longest.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn sync_slots(&self, workspace: Workspace) -> Result<(), StoreError> {
        self.write(move |tx| {
            let workspace = workspace.clone();
            Box::pin(async move {
                let (name, now) = (workspace.name.as_str(), tx.now.as_millis());
                for number in 1..=workspace.slots {
                    let id = workspace.slot_id(number);
                    sqlx::query!(
                        "INSERT INTO slots (id, workspace, number) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                        id,
                        name,
                        number
                    )
                    .execute(&mut *tx.conn)
                    .await?;
                }
                sqlx::query!(
                    "UPDATE slots SET enabled = (number <= ?2) WHERE workspace = ?1 AND enabled <> (number <= ?2)",
                    name,
                    workspace.slots
                )
                .execute(&mut *tx.conn)
                .await?;
                // Waiting sessions get the free slots, longest wait first.
                sqlx::query!(
                    "INSERT INTO assignments (session_key, workspace, slot_key, state, idle_ttl_ms, created_at, last_active_at)
                     SELECT w.key, w.workspace, f.key, 'active', w.idle_ttl_ms, ?2, ?2
                     FROM (SELECT key, workspace, idle_ttl_ms, row_number() OVER (ORDER BY waiting_since, key) AS n
                           FROM sessions WHERE workspace = ?1 AND waiting_since IS NOT NULL) w
                     JOIN (SELECT p.key, row_number() OVER (ORDER BY p.number) AS n FROM slots p
                           WHERE p.workspace = ?1 AND p.enabled = 1 AND NOT EXISTS (SELECT 1 FROM assignments a
                               WHERE a.slot_key = p.key AND a.state IN ('active', 'idle'))) f ON f.n = w.n",
                    name,
                    now
                )
                .execute(&mut *tx.conn)
                .await?;
                if workspace.when_full == WhenFull::Reclaim {
                    let reclaims =
                        sqlx::query!("UPDATE sessions SET reclaims = 1 WHERE workspace = ?1 AND waiting_since IS NOT NULL", name);
                    reclaims.execute(&mut *tx.conn).await?;
                }
                serve_reclaimers(tx, name).await?;
                tx.notices.push(Notice::Ready);
                Ok(())
            })
        })
        .await
    }

    /// The slots of all pools.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn list_slots(&self) -> Result<Vec<Slot>, StoreError> {
        let rows = sqlx::query!(
            r#"SELECT p.id, p.workspace, p.number, p.enabled AS "enabled!: bool", coalesce(a.state, 'free') AS "state!: String",
                   s.id AS "session_id?", r.id AS "run_id?", a.last_active_at AS "last_active_at?"
               FROM slots p
               LEFT JOIN assignments a ON a.slot_key = p.key AND a.state IN ('active', 'idle')
               LEFT JOIN sessions s ON s.key = a.session_key
               LEFT JOIN runs r ON r.slot_key = p.key AND r.status = 'running'
               ORDER BY p.workspace, p.number"#
        )
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(Slot {
                    id: row.id,
                    workspace: row.workspace.parse()?,
                    number: row.number,
                    enabled: row.enabled,
                    state: row.state,
                    session_id: row.session_id.map(|id| id.parse()).transpose()?,
                    run_id: row.run_id.map(|id| id.parse()).transpose()?,
                    last_active_at: row.last_active_at.map(Timestamp::from_millis),
                })
            })
            .collect()
    }
}

/// Gives idle slots to sessions that wait to reclaim one: the pool, or the policy, may have changed since they began to wait. If
/// no slot can ever become free for them, they share the workspace's resident agent.
async fn serve_reclaimers(tx: &mut Tx<'_>, workspace: &str) -> Result<(), StoreError> {
    while has_reclaimers(tx, workspace).await? && assignment::reclaim(tx, workspace).await? {}
    if assignment::can_reclaim_later(tx, workspace).await? {
        return Ok(());
    }
    let now = tx.now.as_millis();
    sqlx::query!(
        "INSERT INTO assignments (session_key, workspace, slot_key, state, idle_ttl_ms, created_at, last_active_at)
         SELECT key, workspace, NULL, 'active', idle_ttl_ms, ?2, ?2 FROM sessions
         WHERE workspace = ?1 AND waiting_since IS NOT NULL AND reclaims = 1 ORDER BY waiting_since, key",
        workspace,
        now
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(())
}

async fn has_reclaimers(tx: &mut Tx<'_>, workspace: &str) -> Result<bool, StoreError> {
    let waiting = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM sessions WHERE workspace = ?1 AND waiting_since IS NOT NULL AND reclaims = 1)
               AS "waiting!: bool""#,
        workspace
    );
    Ok(waiting.fetch_one(&mut *tx.conn).await?)
}
