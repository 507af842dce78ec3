//! Facts: what an agent reports besides its message, such as its own session, the usage of the turn, or its options. Stored in
//! the transaction that stores the events made from the same output, so that each fact is stored once.

use super::permission::{self, NewPermission};
use super::text::shown;
use super::tx::Tx;
use super::{StoreError, agent_session};
use crate::clock::Timestamp;
use crate::failure::ErrorClass;
use crate::id::PermissionId;
use crate::lease::{RunKey, SessionKey};
use crate::text::AgentSessionId;
use crate::usage::Usage;

/// A fact to store with the events of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// The agent's own id of the conversation, and how the turn came by it.
    AgentSession {
        /// The id.
        id: AgentSessionId,
        /// `new`, `reused`, `resumed` or `loaded`.
        origin: &'static str,
    },
    /// The usage of the turn so far.
    Usage(Usage),
    /// The usage of the agent's session so far, earlier turns included.
    TotalUsage(Usage),
    /// An error that it reported. The first one counts: the others follow from it.
    Failure {
        /// The class of the error.
        class: ErrorClass,
        /// When a retry makes sense.
        retry_at: Option<Timestamp>,
    },
    /// The modes and options that the agent offers, as JSON.
    Advertised(String),
    /// The agent's title of the conversation, on one line.
    Title(String),
    /// The tail of its text so far.
    Progress(String),
    /// A request to use a tool.
    Permission(Box<NewPermission>),
    /// The agent continued without an answer to this request.
    PermissionOver(PermissionId),
}

/// Stores the facts of a run. The transaction has verified the run's lease.
pub(super) async fn store(tx: &mut Tx<'_>, run: RunKey, session: SessionKey, facts: &[Fact]) -> Result<(), StoreError> {
    for fact in facts {
        match fact {
            Fact::AgentSession { id, origin } => agent_session::record(tx, run, session, id.as_str(), origin).await?,
            Fact::Usage(usage) => store_usage(tx, run, usage).await?,
            Fact::TotalUsage(total) => {
                let earlier = earlier_usage(tx, run, session).await?;
                store_usage(tx, run, &total.since(&earlier)).await?;
            }
            Fact::Permission(new) => permission::insert(tx, run, new).await?,
            Fact::PermissionOver(id) => permission::close(tx, *id).await?,
            Fact::Failure { class, retry_at } => {
                let (class, retry_at) = (class.as_str(), retry_at.map(Timestamp::as_millis));
                sqlx::query!(
                    "UPDATE runs SET error_class = ?2, retry_at = ?3 WHERE key = ?1 AND error_class IS NULL",
                    run,
                    class,
                    retry_at
                )
                .execute(&mut *tx.conn)
                .await?;
            }
            Fact::Advertised(advertised) => {
                // An absent key means unchanged.
                sqlx::query!(
                    "UPDATE sessions SET advertised = json_patch(coalesce(advertised, '{}'), ?2) WHERE key = ?1",
                    session,
                    advertised
                )
                .execute(&mut *tx.conn)
                .await?;
            }
            Fact::Progress(progress) => {
                let progress = shown(progress);
                sqlx::query!("UPDATE runs SET progress = ?2 WHERE key = ?1", run, progress)
                    .execute(&mut *tx.conn)
                    .await?;
            }
            Fact::Title(title) => {
                let title = shown(title);
                // A title that a person gave is not overwritten by the agent.
                sqlx::query!("UPDATE sessions SET title = ?2 WHERE key = ?1 AND title_given = 0", session, title)
                    .execute(&mut *tx.conn)
                    .await?;
            }
        }
    }
    Ok(())
}

/// The usage of earlier turns in the agent's current session.
async fn earlier_usage(tx: &mut Tx<'_>, run: RunKey, session: SessionKey) -> Result<Usage, StoreError> {
    let sums = sqlx::query!(
        r#"SELECT sum(input_tokens) AS "input: i64", sum(output_tokens) AS "output: i64",
               sum(cache_read_tokens) AS "cache_read: i64", sum(cache_write_tokens) AS "cache_write: i64",
               sum(reasoning_tokens) AS "reasoning: i64", sum(cost_usd) AS "cost: f64"
           FROM runs WHERE session_key = ?1 AND key <> ?2
               AND settled_at >= (SELECT began_at FROM agent_sessions WHERE session_key = ?1 ORDER BY key DESC LIMIT 1)"#,
        session,
        run
    );
    let sums = sums.fetch_one(&mut *tx.conn).await?;
    Ok(Usage {
        input_tokens: sums.input,
        output_tokens: sums.output,
        cache_read_tokens: sums.cache_read,
        cache_write_tokens: sums.cache_write,
        reasoning_tokens: sums.reasoning,
        cost_usd: sums.cost,
        ..Usage::default()
    })
}

async fn store_usage(tx: &mut Tx<'_>, run: RunKey, usage: &Usage) -> Result<(), StoreError> {
    let usage = usage.clamped();
    sqlx::query!(
        "UPDATE runs SET input_tokens = coalesce(?2, input_tokens), output_tokens = coalesce(?3, output_tokens),
             cache_read_tokens = coalesce(?4, cache_read_tokens), cache_write_tokens = coalesce(?5, cache_write_tokens),
             reasoning_tokens = coalesce(?6, reasoning_tokens), cost_usd = coalesce(?7, cost_usd),
             context_tokens = coalesce(?8, context_tokens), context_size = coalesce(?9, context_size) WHERE key = ?1",
        run,
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
        usage.cost_usd,
        usage.context_tokens,
        usage.context_size
    )
    .execute(&mut *tx.conn)
    .await?;
    Ok(())
}
