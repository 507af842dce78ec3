//! The wire protocol of an OpenClaw gateway: the connection of a client, and the frames that it carries.
//!
//! Deliberately absent: what the gateway does with a request. A test sends one frame after the other; the torture keeps runs.

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async};

/// The protocol version that the gateway speaks.
pub const PROTOCOL: u32 = 4;

/// A connection, from the gateway's side.
#[derive(Debug)]
pub struct Connection {
    pub socket: WebSocketStream<TcpStream>,
}

impl Connection {
    /// Accepts a WebSocket.
    ///
    /// # Errors
    /// If the client does not open one.
    pub async fn accept(stream: TcpStream) -> anyhow::Result<Self> {
        Ok(Self { socket: accept_async(stream).await? })
    }

    /// Sends a frame. A JSON string is sent as it is.
    ///
    /// # Errors
    /// If the client has gone.
    pub async fn send(&mut self, frame: &Value) -> anyhow::Result<()> {
        self.send_text(frame.as_str().map_or_else(|| frame.to_string(), str::to_owned)).await
    }

    /// Sends any text.
    ///
    /// # Errors
    /// If the client has gone.
    pub async fn send_text(&mut self, text: String) -> anyhow::Result<()> {
        Ok(self.socket.send(Message::text(text)).await?)
    }

    /// The next request. None if the client has gone.
    ///
    /// # Errors
    /// If the connection broke, or the frame is no JSON.
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
    /// If the client has gone.
    pub async fn close(mut self) -> anyhow::Result<()> {
        Ok(self.socket.close(None).await?)
    }
}

/// The first frame of a connection.
pub fn challenge() -> Value {
    json!({"type": "event", "event": "connect.challenge", "payload": {"nonce": "n", "ts": 1}})
}

/// The response to `connect`, by the gateway's process `boot`.
pub fn hello(boot: &str) -> Value {
    json!({"type": "hello-ok", "protocol": PROTOCOL, "server": {"version": "1", "bootId": boot}})
}

/// The first response to `agent`: the run is accepted.
pub fn accepted(run: &str, session: &str) -> Value {
    json!({"runId": run, "sessionKey": session, "status": "accepted", "acceptedAt": 1})
}

/// A successful response.
pub fn answer(id: &Value, payload: Value) -> Value {
    json!({"type": "res", "id": id, "ok": true, "payload": payload})
}

/// An error response.
pub fn refusal(id: &Value, code: &str, message: &str) -> Value {
    json!({"type": "res", "id": id, "ok": false, "error": {"code": code, "message": message}})
}

/// The run of an event, and the session and agent that it belongs to.
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
