//! Ids by prefix, as people type them, in the four tables whose ids commands accept.

use super::{Store, StoreError};

/// What an id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdKind {
    /// A run.
    Run,
    /// A session.
    Session,
    /// A permission.
    Permission,
    /// A backend.
    Backend,
}

/// Sorts after every character of an id.
const BEHIND: &str = "~";

impl Store {
    /// The first ids with this prefix, in order, at most `limit` of each kind.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn ids_beginning_with(&self, prefix: &str, limit: i64) -> Result<Vec<(IdKind, String)>, StoreError> {
        let end = format!("{prefix}{BEHIND}");
        let rows = sqlx::query!(
            r#"SELECT 0 AS "kind!: i64", id AS "id!: String" FROM
                   (SELECT id FROM runs WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3 + 0)
               UNION ALL SELECT 1, id FROM (SELECT id FROM sessions WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3 + 0)
               UNION ALL SELECT 2, id FROM (SELECT id FROM permissions WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3 + 0)
               UNION ALL SELECT 3, id FROM (SELECT id FROM backends WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3 + 0)"#,
            prefix,
            end,
            limit
        )
        .fetch_all(&self.readers)
        .await?;
        let kinds = [IdKind::Run, IdKind::Session, IdKind::Permission, IdKind::Backend];
        let kind = |kind: i64| usize::try_from(kind).ok().and_then(|kind| kinds.get(kind)).copied();
        Ok(rows.into_iter().filter_map(|row| Some((kind(row.kind)?, row.id))).collect())
    }

    /// Each of these ids with its neighbours in each table: the ids that a short form has to be distinguished from.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn neighbours_of_ids(&self, ids: &[String]) -> Result<Vec<(String, String)>, StoreError> {
        let shown = serde_json::to_string(ids).unwrap_or_default();
        let rows = sqlx::query!(
            r#"SELECT coalesce(j.value, '') AS "id!: String", json_array(
                   (SELECT max(id) FROM runs WHERE id < j.value), (SELECT min(id) FROM runs WHERE id > j.value),
                   (SELECT max(id) FROM sessions WHERE id < j.value), (SELECT min(id) FROM sessions WHERE id > j.value),
                   (SELECT max(id) FROM permissions WHERE id < j.value),
                   (SELECT min(id) FROM permissions WHERE id > j.value),
                   (SELECT max(id) FROM backends WHERE id < j.value),
                   (SELECT min(id) FROM backends WHERE id > j.value)) AS "neighbours!: String"
               FROM json_each(?1) j"#,
            shown
        )
        .fetch_all(&self.readers)
        .await?;
        let pairs = rows.into_iter().flat_map(|row| {
            let neighbours: Vec<Option<String>> = serde_json::from_str(&row.neighbours).unwrap_or_default();
            neighbours.into_iter().flatten().map(move |neighbour| (row.id.clone(), neighbour))
        });
        Ok(pairs.collect())
    }
}
