//! Admission: a turn takes a running backend, waits for one that is starting, or creates one if there is room.

use std::time::Duration;

use crate::backend::BackendState;
use crate::clock::Timestamp;
use crate::failure::ErrorClass;
use crate::id::{AgentName, BackendId, WorkspaceName};
use crate::lease::{BackendKey, Lease, RunKey, SessionKey, WorkerKey};
use crate::store::tx::{Notice, Tx};
use crate::store::{Store, StoreError};

use super::{class_of, state_of};

/// A backend that has just started to run is not evicted for this long, so that the turn that waits for it can take it.
const SPARED_FOR: Duration = Duration::from_millis(500);

/// No backend stays given up for longer; a later time means that the clock went back.
const GIVEN_UP_FOR: Duration = Duration::from_secs(3600);

/// What a turn needs.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The run.
    pub lease: Lease,
    /// Its agent.
    pub agent: AgentName,
    /// Where it works.
    pub workspace: WorkspaceName,
    /// Its session, unless the backend is shared.
    pub session: Option<SessionKey>,
    /// The worker that supervises it, if it has to be created.
    pub worker: WorkerKey,
    /// Maximum number of live backends.
    pub most: u32,
    /// The backend that the turn has waited for so far.
    pub awaited: Option<BackendId>,
}

/// The backend that a turn is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its row.
    pub key: BackendKey,
    /// Its generation.
    pub generation: i64,
    /// Its endpoint; empty when its process has ended.
    pub endpoint: String,
}

/// A backend that a turn waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awaited {
    /// Its state.
    pub state: BackendState,
    /// Why it is in that state, for people.
    pub reason: Option<String>,
}

/// The result of looking for a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The turn is on it.
    Taken(Taken),
    /// The turn waits for this one: once it runs or ends, call again.
    Awaited(BackendId),
    /// The limit of live backends is reached: one is being closed, or all are needed.
    Full {
        /// Whether this call evicted one.
        evicted: bool,
    },
    /// The backend was given up and is not restarted for a while.
    GivenUp {
        /// Why, for people.
        reason: String,
        /// The class of the failure.
        class: Option<ErrorClass>,
        /// When it may be started again.
        until: Timestamp,
    },
    /// Another worker holds the run.
    LeaseLost,
}

struct Live {
    key: BackendKey,
    id: String,
    state: String,
    generation: i64,
    endpoint: Option<String>,
    close_when_idle: bool,
}

struct Before {
    id: String,
    reason: Option<String>,
    error_class: Option<String>,
    restarts: String,
    not_before: Option<i64>,
}

impl Store {
    /// Takes the backend of a turn, or creates it.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn take_backend(&self, wanted: Wanted) -> Result<Place, StoreError> {
        self.write(move |tx| {
            let wanted = wanted.clone();
            Box::pin(async move { take(tx, &wanted).await })
        })
        .await
    }

    /// Whether turns of other runs are on a backend, too.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn has_other_turns(&self, key: BackendKey, run: RunKey) -> Result<bool, StoreError> {
        let others = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT 1 FROM runs WHERE backend_key = ?1 AND status = 'running' AND key <> ?2) AS "others!: bool""#,
            key,
            run
        );
        Ok(others.fetch_one(&self.readers).await?)
    }

    /// The backend that a run is on, even if its process has ended.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn backend_of_run(&self, run: RunKey) -> Result<Option<Taken>, StoreError> {
        let found = sqlx::query!(
            r#"SELECT b.key AS "key!", b.generation, b.endpoint FROM runs r JOIN backends b ON b.key = r.backend_key
               WHERE r.key = ?1"#,
            run
        );
        let found = found.fetch_optional(&self.readers).await?;
        Ok(found.map(|row| Taken {
            key: row.key,
            generation: row.generation,
            endpoint: row.endpoint.unwrap_or_default(),
        }))
    }

    /// A backend that a turn waits for; none once it runs or has ended, so that the turn has to act.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn awaited_backend(&self, id: BackendId) -> Result<Option<Awaited>, StoreError> {
        let id = id.to_string();
        let awaited = sqlx::query!(
            "SELECT state, reason FROM backends WHERE id = ?1 AND state NOT IN ('stopped', 'running')",
            id
        );
        let awaited = awaited.fetch_optional(&self.readers).await?;
        awaited.map(|row| Ok(Awaited { state: state_of(&row.state)?, reason: row.reason })).transpose()
    }
}

async fn take(tx: &mut Tx<'_>, wanted: &Wanted) -> Result<Place, StoreError> {
    let (agent, workspace, session) = (wanted.agent.as_str(), wanted.workspace.as_str(), wanted.session.unwrap_or(0));
    let live = sqlx::query_as!(
        Live,
        r#"SELECT key, id, state, generation, endpoint, close_when_idle AS "close_when_idle: bool" FROM backends
           WHERE agent = ?1 AND workspace = ?2 AND coalesce(session_key, 0) = ?3 AND state <> 'stopped'"#,
        agent,
        workspace,
        session
    );
    if let Some(live) = live.fetch_optional(&mut *tx.conn).await? {
        let runs = state_of(&live.state)? == BackendState::Running && !live.close_when_idle;
        return match live.endpoint.filter(|_| runs) {
            Some(endpoint) => go_on(tx, wanted.lease, live.key, live.generation, endpoint).await,
            None => Ok(Place::Awaited(live.id.parse()?)),
        };
    }
    let before = sqlx::query_as!(
        Before,
        "SELECT id, reason, error_class, restarts, not_before FROM backends
         WHERE agent = ?1 AND workspace = ?2 AND coalesce(session_key, 0) = ?3 ORDER BY key DESC LIMIT 1",
        agent,
        workspace,
        session
    );
    let before = before.fetch_optional(&mut *tx.conn).await?;
    if let Some(before) = &before
        && let Some(until) = before.not_before.map(Timestamp::from_millis)
        && ((tx.now < until && until <= tx.now + GIVEN_UP_FOR)
            || wanted.awaited.map(|id| id.to_string()).as_ref() == Some(&before.id))
    {
        let reason = before.reason.clone().unwrap_or_else(|| "it was given up".to_owned());
        return Ok(Place::GivenUp { reason, class: class_of(before.error_class.clone())?, until });
    }
    if let Some(full) = find_room(tx, wanted.most).await? {
        return Ok(full);
    }
    let restarts = before.map_or_else(|| "[]".to_owned(), |before| before.restarts);
    create(tx, wanted, &restarts).await
}

/// Puts the turn on a backend that runs.
async fn go_on(
    tx: &mut Tx<'_>,
    lease: Lease,
    key: BackendKey,
    generation: i64,
    endpoint: String,
) -> Result<Place, StoreError> {
    let taken = sqlx::query!(
        "UPDATE runs SET backend_key = ?3 WHERE key = ?1 AND lease_token = ?2 AND status = 'running'",
        lease.run,
        lease.token,
        key
    );
    if taken.execute(&mut *tx.conn).await?.rows_affected() == 0 {
        return Ok(Place::LeaseLost);
    }
    let now = tx.now.as_millis();
    sqlx::query!("UPDATE backends SET used_at = ?2 WHERE key = ?1", key, now).execute(&mut *tx.conn).await?;
    tx.notices.push(Notice::Backends);
    Ok(Place::Taken(Taken { key, generation, endpoint }))
}

/// None if there is room for one more. Otherwise the least recently used backend without a turn is closed; one at a time, so
/// that no more are closed than necessary.
async fn find_room(tx: &mut Tx<'_>, most: u32) -> Result<Option<Place>, StoreError> {
    let count = sqlx::query!(
        r#"SELECT count(*) AS "live!: i64", coalesce(sum(state = 'stopping'), 0) AS "stopping!: i64"
           FROM backends INDEXED BY backends_live WHERE state <> 'stopped'"#
    );
    let count = count.fetch_one(&mut *tx.conn).await?;
    if count.live < i64::from(most) {
        return Ok(None);
    }
    if count.live - count.stopping < i64::from(most) {
        return Ok(Some(Place::Full { evicted: false }));
    }
    // A last use in the future means that the clock went back since.
    let (now, spared) = (tx.now.as_millis(), (tx.now - SPARED_FOR).as_millis());
    let evicted = sqlx::query!(
        "UPDATE backends SET state = iif(state = 'restarting', 'stopped', 'stopping'),
             stopped_at = iif(state = 'restarting', ?1, NULL), not_before = NULL,
             reason = 'closed to make room: it was not used for longest'
         WHERE key = (SELECT b.key FROM backends b INDEXED BY backends_live
             WHERE b.state <> 'stopped' AND b.state IN ('running', 'restarting') AND b.used_at NOT BETWEEN ?2 + 1 AND ?1
               AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.backend_key = b.key AND r.status = 'running')
             ORDER BY b.used_at LIMIT 1)",
        now,
        spared
    );
    let evicted = evicted.execute(&mut *tx.conn).await?.rows_affected() > 0;
    if evicted {
        tx.notices.push(Notice::Backends);
    }
    Ok(Some(Place::Full { evicted }))
}

async fn create(tx: &mut Tx<'_>, wanted: &Wanted, restarts: &str) -> Result<Place, StoreError> {
    let id = BackendId::generate();
    let (text, now) = (id.to_string(), tx.now.as_millis());
    let (agent, workspace) = (wanted.agent.as_str(), wanted.workspace.as_str());
    sqlx::query!(
        "INSERT INTO backends (id, agent, workspace, session_key, state, reason, worker_key, generation, restarts,
             created_at, started_at, used_at)
         VALUES (?1, ?2, ?3, ?4, 'starting', 'a turn needs it', ?5, 1, ?6, ?7, ?7, ?7)",
        text,
        agent,
        workspace,
        wanted.session,
        wanted.worker,
        restarts,
        now
    )
    .execute(&mut *tx.conn)
    .await?;
    tx.notices.push(Notice::Backends);
    Ok(Place::Awaited(id))
}
