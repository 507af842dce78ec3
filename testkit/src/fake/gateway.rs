//! An OpenClaw gateway, as far as its wire goes: the connection of a client, and the frames that go over it.
//!
//! Deliberately absent: what the gateway does with a request. A test sends one frame after the other; the torture keeps runs.

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};

/// The protocol that the gateway speaks.
pub const PROTOCOL: u32 = 4;

/// A connection, as the gateway has it.
#[derive(Debug)]
pub struct Connection {
    pub socket: WebSocketStream<TcpStream>,
}

impl Connection {
    /// Becomes a WebSocket.
    ///
    /// # Errors
    /// When the client does not want one.
    pub async fn accept(stream: TcpStream) -> anyhow::Result<Self> {
        Ok(Self { socket: accept_async(stream).await? })
    }

    /// Sends a frame. A text is sent as it is.
    ///
    /// # Errors
    /// When the client has gone.
    pub async fn send(&mut self, frame: &Value) -> anyhow::Result<()> {
        self.send_text(frame.as_str().map_or_else(|| frame.to_string(), str::to_owned)).await
    }

    /// Sends a text of any kind.
    ///
    /// # Errors
    /// When the client has gone.
    pub async fn send_text(&mut self, text: String) -> anyhow::Result<()> {
        Ok(self.socket.send(Message::text(text)).await?)
    }

    /// The next request. None when the client has gone.
    ///
    /// # Errors
    /// When the connection broke, or what came is no JSON.
    pub async fn next(&mut self) -> anyhow::Result<Option<Value>> {
        while let Some(message) = self.socket.next().await.transpose()? {
            if let Message::Text(text) = message {
                return Ok(Some(serde_json::from_str(&text).context("a request is JSON")?));
            }
        }
        Ok(None)
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// When the client has gone.
    pub async fn close(mut self) -> anyhow::Result<()> {
        Ok(self.socket.close(None).await?)
    }
}

/// What is sent first of all.
pub fn challenge() -> Value {
    json!({"type": "event", "event": "connect.challenge", "payload": {"nonce": "n", "ts": 1}})
}

/// The answer to `connect`, by the gateway's process `boot`.
pub fn hello(boot: &str) -> Value {
    json!({"type": "hello-ok", "protocol": PROTOCOL, "server": {"version": "1", "bootId": boot}})
}

/// The answer to `agent`: the run is taken on.
pub fn accepted(run: &str, session: &str) -> Value {
    json!({"runId": run, "sessionKey": session, "status": "accepted", "acceptedAt": 1})
}

/// A good answer to a request.
pub fn answer(id: &Value, payload: Value) -> Value {
    json!({"type": "res", "id": id, "ok": true, "payload": payload})
}

/// A bad answer to a request.
pub fn refusal(id: &Value, code: &str, message: &str) -> Value {
    json!({"type": "res", "id": id, "ok": false, "error": {"code": code, "message": message}})
}

/// Of which run an event is, and in which session of which agent.
#[derive(Debug)]
pub struct RunOf<'a> {
    pub run: &'a str,
    pub agent: &'a str,
    pub session: &'a str,
    pub session_id: &'a str,
}

/// An event of a run.
pub fn agent_event(of: &RunOf<'_>, seq: u64, stream: &str, data: Value) -> Value {
    let RunOf { run, agent, session, session_id } = of;
    let payload = json!({"runId": run, "sessionKey": session, "sessionId": session_id, "agentId": agent,
        "stream": stream, "data": data, "seq": seq, "ts": 1});
    json!({"type": "event", "event": "agent", "payload": payload})
}
