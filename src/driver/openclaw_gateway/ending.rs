//! Ends a run whose relay was killed: the gateway continues it until it is told to abort.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::connection::{Connection, Refused};
use super::relay::goes_on;
use crate::agent::GatewaySpec;

/// How long the gateway is to wait for the end of an aborted run.
const WAIT_MS: u64 = 5_000;
/// How soon a requested run begins.
const BEGINS_WITHIN: Duration = Duration::from_millis(200);
/// Frames of other runs that may come before an answer.
const MAX_FRAMES: usize = 100_000;
/// Limit for everything, the gateway's own wait included.
const ANSWERS_WITHIN: Duration = Duration::from_millis(WAIT_MS + 3_000);

/// Aborts a run and waits for its end.
///
/// # Errors
/// Why the run may continue.
pub(super) async fn end(spec: &GatewaySpec, session_key: &str, run: &str) -> Result<(), String> {
    let mut connection = match Connection::open(&spec.url, spec.token.as_deref()).await {
        Ok(connection) => connection,
        // The runs of a gateway end with it.
        Err(Refused::Absent(_)) => return Ok(()),
        Err(refused) => return Err(refused.error().message),
    };
    let abort = json!({"sessionKey": session_key, "runId": run});
    let wait = json!({"runId": run, "timeoutMs": WAIT_MS});
    let ended = async {
        let mut is_there = is_aborted(&mut connection, &abort).await?;
        if !is_there {
            // A run that was requested just now may be about to begin.
            sleep(BEGINS_WITHIN).await;
            is_there = is_aborted(&mut connection, &abort).await?;
        }
        if !is_there {
            return Some(true);
        }
        let waited = answer(&mut connection, "wait", "agent.wait", wait).await?;
        Some(waited["ok"] == true && !goes_on(&waited["payload"]))
    };
    match timeout(ANSWERS_WITHIN, ended).await {
        Ok(Some(true)) => Ok(()),
        Ok(Some(false)) => Err("the gateway does not end the run".to_owned()),
        Ok(None) => Err("the connection to the gateway broke".to_owned()),
        Err(_) => Err("the gateway does not answer".to_owned()),
    }
}

/// Aborts the run. Returns whether it existed; `None` if the connection is broken.
async fn is_aborted(connection: &mut Connection, abort: &Value) -> Option<bool> {
    let answer = answer(connection, "abort", "chat.abort", abort.clone()).await?;
    Some(answer["payload"]["aborted"] != false)
}

/// Sends a request and skips all frames but its answer. `None` if the connection is broken.
async fn answer(connection: &mut Connection, id: &str, method: &str, params: Value) -> Option<Value> {
    connection.request(id, method, params).await?;
    for _ in 0..MAX_FRAMES {
        let frame = crate::driver::json::parse(&connection.next_frame().await?).unwrap_or_default();
        if frame["type"] == "res" && frame["id"] == id {
            return Some(frame);
        }
    }
    None
}
