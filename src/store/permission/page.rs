//! Lists of permissions.

use super::super::large::PAGE_BYTES;
use super::super::{Store, StoreError};
use super::{PermissionFilter, load};
use crate::id::SessionId;
use crate::permission::{Permission, PermissionState};

/// A page of permissions.
#[derive(Debug)]
pub struct PermissionPage {
    /// Newest first, each with the cursor that continues after it.
    pub permissions: Vec<(i64, Permission)>,
    /// Whether there are more.
    pub more: bool,
}

impl Store {
    /// The newest permissions, each with the cursor that continues after it.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn list_permissions(
        &self,
        filter: &PermissionFilter,
        limit: i64,
    ) -> Result<Vec<(i64, Permission)>, StoreError> {
        let keys = self.permission_keys(filter, limit).await?;
        let rows = load(&self.readers, &keys).await?;
        Ok(rows.into_iter().map(|located| (located.key, located.permission)).collect())
    }

    /// A page of permissions, newest first: one, or as many as fit.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn permission_page(&self, filter: &PermissionFilter, limit: i64) -> Result<PermissionPage, StoreError> {
        let found = self.permission_keys(filter, limit.saturating_add(1)).await?;
        let page = sqlx::query!(
            r#"SELECT json_group_array(key) FILTER (WHERE fits) AS "keys!: String",
                   coalesce(max(bytes) FILTER (WHERE fits), 0) AS "bytes!: i64", coalesce(max(NOT fits), 0) AS "more!: bool"
               FROM (SELECT key, bytes, number = 1 OR (bytes <= ?3 AND number <= ?2) AS fits
                     FROM (SELECT key, row_number() OVER newest AS number,
                                  sum(octet_length(input) + octet_length(options)) OVER newest AS bytes
                           FROM permissions WHERE key IN (SELECT value FROM json_each(?1))
                           WINDOW newest AS (ORDER BY key DESC ROWS UNBOUNDED PRECEDING)))"#,
            found,
            limit,
            PAGE_BYTES
        )
        .fetch_one(&self.readers)
        .await?;
        let _turn = self.large.turn_for(page.bytes).await;
        let rows = load(&self.readers, &page.keys).await?;
        let permissions = rows.into_iter().map(|located| (located.key, located.permission)).collect();
        Ok(PermissionPage { permissions, more: page.more })
    }

    /// The rows of the newest permissions, as JSON.
    async fn permission_keys(&self, filter: &PermissionFilter, limit: i64) -> Result<String, StoreError> {
        let (state, session) =
            (filter.state.map(PermissionState::as_str), filter.session.as_ref().map(SessionId::as_str));
        let run = filter.run.map(|run| run.to_string());
        let keys = if run.is_some() {
            sqlx::query_scalar!(
                r#"SELECT json_group_array(key) AS "keys!: String" FROM (SELECT p.key FROM permissions p
                   JOIN runs r ON r.key = p.run_key
                   WHERE p.run_key = (SELECT key FROM runs WHERE id = ?1) AND (?2 IS NULL OR p.state = ?2)
                     AND (?3 IS NULL OR r.session_key = (SELECT key FROM sessions WHERE id = ?3))
                     AND (?4 IS NULL OR p.key < ?4) ORDER BY p.key DESC LIMIT ?5 + 0)"#,
                run,
                state,
                session,
                filter.before,
                limit
            )
            .fetch_one(&self.readers)
            .await?
        } else if filter.state == Some(PermissionState::Pending) {
            // There are few of these, however long the history is.
            sqlx::query_scalar!(
                r#"SELECT json_group_array(key) AS "keys!: String" FROM (SELECT p.key
                   FROM permissions p INDEXED BY permissions_pending JOIN runs r ON r.key = p.run_key
                   WHERE p.state = 'pending' AND (?1 IS NULL OR r.session_key = (SELECT key FROM sessions WHERE id = ?1))
                     AND (?2 IS NULL OR p.key < ?2) ORDER BY p.key DESC LIMIT ?3 + 0)"#,
                session,
                filter.before,
                limit
            )
            .fetch_one(&self.readers)
            .await?
        } else {
            sqlx::query_scalar!(
                r#"SELECT json_group_array(key) AS "keys!: String" FROM (SELECT p.key FROM permissions p
                       JOIN runs r ON r.key = p.run_key
                   WHERE (?1 IS NULL OR p.state = ?1)
                     AND (?2 IS NULL OR r.session_key = (SELECT key FROM sessions WHERE id = ?2))
                     AND (?3 IS NULL OR p.key < ?3) ORDER BY p.key DESC LIMIT ?4 + 0)"#,
                state,
                session,
                filter.before,
                limit
            )
            .fetch_one(&self.readers)
            .await?
        };
        Ok(keys)
    }
}
