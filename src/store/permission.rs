//! The table `permissions`: what agents asked before they used a tool, and how it was decided. The first answer counts; the
//! schema refuses a second one.

mod decline;
mod page;

use super::text::{shown, shown_if_any};
use super::tx::{Notice, Tx};
use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::id::{PermissionId, RunId, SessionId};
use crate::lease::RunKey;
use crate::permission::{Answer, Decision, Permission, PermissionRequest, PermissionState};

pub(super) use decline::decline;
pub use page::PermissionPage;

/// A permission request to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct NewPermission {
    /// Its id.
    pub id: PermissionId,
    /// What is asked.
    pub request: PermissionRequest,
    /// When it expires, if a person has to answer.
    pub expires_at: Option<Timestamp>,
    /// How the policy decided, if it did.
    pub decision: Option<Decision>,
}

/// An answer to what an agent asks.
#[derive(Debug, Clone)]
pub struct GiveAnswer {
    /// Which permission.
    pub id: PermissionId,
    /// The answer.
    pub answer: Answer,
    /// Who answers.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
}

/// The result of an answer.
#[derive(Debug, Clone)]
pub enum Answered {
    /// It decided the permission.
    Decided(Permission),
    /// The permission was decided before.
    Before(Permission),
    /// The agent does not offer it; the permission is still pending.
    NotOffered(Permission),
}

/// Which permissions to list.
#[derive(Debug, Clone, Default)]
pub struct PermissionFilter {
    /// Only those in this state.
    pub state: Option<PermissionState>,
    /// Only those of this session.
    pub session: Option<SessionId>,
    /// Only those of this run.
    pub run: Option<RunId>,
    /// Only those that were requested before this one (a cursor from the previous page).
    pub before: Option<i64>,
}

struct Row {
    key: i64,
    run_key: RunKey,
    id: String,
    run_id: String,
    session_id: String,
    request: String,
    tool_call: String,
    tool: String,
    kind: String,
    title: String,
    input: String,
    options: String,
    state: String,
    option_id: Option<String>,
    answered_by: Option<String>,
    reason: Option<String>,
    requested_at: i64,
    expires_at: Option<i64>,
    answered_at: Option<i64>,
}

struct Located {
    key: i64,
    run: RunKey,
    permission: Permission,
}

impl TryFrom<Row> for Located {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let invalid =
            |error: serde_json::Error| StoreError::Invalid(format!("a permission that cannot be read ({error})"));
        let permission = Permission {
            id: row.id.parse()?,
            run_id: row.run_id.parse()?,
            session_id: row.session_id.parse()?,
            request: PermissionRequest {
                request: row.request,
                tool_call: row.tool_call,
                tool: row.tool,
                kind: serde_json::from_value(row.kind.into()).map_err(invalid)?,
                title: row.title,
                input: serde_json::from_str(&row.input).map_err(invalid)?,
                options: serde_json::from_str(&row.options).map_err(invalid)?,
            },
            state: serde_json::from_value(row.state.into()).map_err(invalid)?,
            option: row.option_id,
            answered_by: row.answered_by,
            reason: row.reason,
            requested_at: Timestamp::from_millis(row.requested_at),
            expires_at: row.expires_at.map(Timestamp::from_millis),
            answered_at: row.answered_at.map(Timestamp::from_millis),
        };
        Ok(Self { key: row.key, run: row.run_key, permission })
    }
}

/// Permissions by their keys, newest first. The one place that knows the columns of [`Permission`].
async fn load<'e>(executor: impl sqlx::SqliteExecutor<'e>, keys: &str) -> Result<Vec<Located>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT p.key, p.run_key, p.id, r.id AS run_id, s.id AS session_id, p.request, p.tool_call, p.tool, p.kind, p.title,
               p.input, p.options, p.state, p.option_id, p.answered_by, p.reason, p.requested_at, p.expires_at, p.answered_at
           FROM permissions p JOIN runs r ON r.key = p.run_key JOIN sessions s ON s.key = r.session_key
           WHERE p.key IN (SELECT value FROM json_each(?1)) ORDER BY p.key DESC"#,
        keys
    )
    .fetch_all(executor)
    .await?;
    rows.into_iter().map(Located::try_from).collect()
}

/// Stores a permission request. An agent that repeats a request is still waiting for the answer to the first one.
pub(super) async fn insert(tx: &mut Tx<'_>, run: RunKey, new: &NewPermission) -> Result<(), StoreError> {
    let (id, request, now) = (new.id.to_string(), &new.request, tx.now.as_millis());
    let (kind, input) = (request.kind.as_str(), request.input.to_string());
    let options = serde_json::to_string(&request.options).map_err(|error| StoreError::Invalid(error.to_string()))?;
    let state = new.decision.as_ref().map_or(PermissionState::Pending, Decision::state).as_str();
    let option = new.decision.as_ref().and_then(Decision::option);
    let answered = new.decision.as_ref().map(|_| (BY_POLICY, now)).unzip();
    let (tool, title) = (shown(&request.tool), shown(&request.title));
    let (answered_by, answered_at, expires_at) = (answered.0, answered.1, new.expires_at.map(Timestamp::as_millis));
    sqlx::query!(
        "INSERT INTO permissions (id, run_key, request, tool_call, tool, kind, title, input, options, state, option_id,
             answered_by, requested_at, expires_at, answered_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
         ON CONFLICT (run_key, request) DO NOTHING",
        id,
        run,
        request.request,
        request.tool_call,
        tool,
        kind,
        title,
        input,
        options,
        state,
        option,
        answered_by,
        now,
        expires_at,
        answered_at
    )
    .execute(&mut *tx.conn)
    .await?;
    if new.decision.is_none() {
        decline::decline_if_passed(tx, run, new.id).await?;
    }
    Ok(())
}

/// The `answered_by` of decisions by the config's policy.
const BY_POLICY: &str = "policy";

/// Closes an unanswered permission: its agent continued without an answer.
pub(super) async fn close(tx: &mut Tx<'_>, id: PermissionId) -> Result<(), StoreError> {
    let (id, now) = (id.to_string(), tx.now.as_millis());
    sqlx::query!(
        "UPDATE permissions SET state = 'cancelled', answered_at = ?2 WHERE id = ?1 AND state = 'pending'",
        id,
        now
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(())
}

async fn find(tx: &mut Tx<'_>, id: &str) -> Result<Option<Located>, StoreError> {
    let keys = sqlx::query_scalar!(r#"SELECT json_array(key) AS "keys!: String" FROM permissions WHERE id = ?1"#, id);
    match keys.fetch_optional(&mut *tx.conn).await? {
        Some(keys) => Ok(load(&mut *tx.conn, &keys).await?.pop()),
        None => Ok(None),
    }
}

/// Expires the pending permissions of a run whose time is over; they count as denied.
async fn expire(tx: &mut Tx<'_>, run: RunKey) -> Result<u64, StoreError> {
    let now = tx.now.as_millis();
    let expired = sqlx::query!(
        "UPDATE permissions SET state = 'expired', answered_at = ?2
         WHERE run_key = ?1 AND state = 'pending' AND expires_at <= ?2",
        run,
        now
    );
    let expired = expired.execute(&mut *tx.conn).await?.rows_affected();
    if expired > 0 {
        tx.notices.push(Notice::PermissionAnswered(run));
    }
    Ok(expired)
}

async fn answer(tx: &mut Tx<'_>, given: &GiveAnswer) -> Result<Option<Answered>, StoreError> {
    let id = given.id.to_string();
    let Some(asked) = find(tx, &id).await? else { return Ok(None) };
    // The worker that executes the run may not have expired it yet.
    expire(tx, asked.run).await?;
    let Some(asked) = find(tx, &id).await? else { return Ok(None) };
    if asked.permission.state != PermissionState::Pending {
        return Ok(Some(Answered::Before(asked.permission)));
    }
    let Some(decision) = asked.permission.request.decide(&given.answer) else {
        return Ok(Some(Answered::NotOffered(asked.permission)));
    };
    let (state, option, now) = (decision.state().as_str(), decision.option(), tx.now.as_millis());
    let (by, reason) = (shown(&given.by), shown_if_any(given.reason.as_ref()));
    sqlx::query!(
        "UPDATE permissions SET state = ?2, option_id = ?3, answered_by = ?4, reason = ?5, answered_at = ?6
         WHERE id = ?1 AND state = 'pending'",
        id,
        state,
        option,
        by,
        reason,
        now
    )
    .execute(&mut *tx.conn)
    .await?;
    tx.notices.push(Notice::PermissionAnswered(asked.run));
    Ok(find(tx, &id).await?.map(|decided| Answered::Decided(decided.permission)))
}

impl Store {
    /// Answers a permission; the first answer counts. `None` when there is no such permission.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn answer_permission(&self, given: GiveAnswer) -> Result<Option<Answered>, StoreError> {
        self.write(move |tx| {
            let given = given.clone();
            Box::pin(async move { answer(tx, &given).await })
        })
        .await
    }

    /// Expires the permissions of a run that were not answered in time. Returns their number.
    ///
    /// # Errors
    /// Why nothing was stored.
    pub async fn expire_permissions(&self, run: RunKey) -> Result<u64, StoreError> {
        self.write(move |tx| Box::pin(async move { expire(tx, run).await })).await
    }

    /// The permissions of a run, oldest first.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn permissions_of_run(&self, run: RunKey) -> Result<Vec<Permission>, StoreError> {
        let keys = sqlx::query_scalar!(
            r#"SELECT json_group_array(key) AS "keys!: String" FROM permissions WHERE run_key = ?1"#,
            run
        );
        let keys = keys.fetch_one(&self.readers).await?;
        let rows = load(&self.readers, &keys).await?;
        Ok(rows.into_iter().rev().map(|located| located.permission).collect())
    }

    /// Permissions by their ids.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn permissions(&self, ids: &[PermissionId]) -> Result<Vec<Permission>, StoreError> {
        let ids = serde_json::to_string(ids).map_err(|error| StoreError::Invalid(error.to_string()))?;
        let keys = sqlx::query_scalar!(
            r#"SELECT json_group_array(key) AS "keys!: String" FROM permissions WHERE id IN (SELECT value FROM json_each(?1))"#,
            ids
        );
        let keys = keys.fetch_one(&self.readers).await?;
        Ok(load(&self.readers, &keys).await?.into_iter().map(|located| located.permission).collect())
    }

    /// Whether one of these permissions is pending.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn are_pending(&self, ids: &[String]) -> Result<bool, StoreError> {
        let ids = serde_json::to_string(ids).map_err(|error| StoreError::Invalid(error.to_string()))?;
        let pending = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT 1 FROM permissions WHERE id IN (SELECT value FROM json_each(?1))
                   AND state = 'pending') AS "pending!: bool""#,
            ids
        );
        Ok(pending.fetch_one(&self.readers).await?)
    }

    /// A permission by its id.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn find_permission(&self, id: PermissionId) -> Result<Option<Permission>, StoreError> {
        let id = id.to_string();
        let keys =
            sqlx::query_scalar!(r#"SELECT json_array(key) AS "keys!: String" FROM permissions WHERE id = ?1"#, id);
        match keys.fetch_optional(&self.readers).await? {
            Some(keys) => Ok(load(&self.readers, &keys).await?.pop().map(|located| located.permission)),
            None => Ok(None),
        }
    }
}
