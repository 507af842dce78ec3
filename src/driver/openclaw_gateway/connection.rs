//! A connection to a gateway: the handshake, requests, and incoming frames.
//!
//! Always: every wait has a limit, and no frame may be longer than [`MAX_FRAME_BYTES`].

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

use crate::failure::{AgentError, ErrorClass};

/// Somewhat more than gateways send (25 MiB).
const MAX_FRAME_BYTES: usize = 32 * 1024 * 1024;
/// Limit from the first packet to the answer of `connect`; the gateway's own limit for that.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// A gateway sends something at least every 30 s. After this long a silence it counts as gone.
const SILENCE: Duration = Duration::from_secs(90);

/// A connection that a gateway has accepted.
pub(super) struct Connection {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Identifies the gateway's process, if the gateway reports it.
    pub boot: Option<String>,
    /// The gateway's version, as it reports it.
    pub version: Option<String>,
}

/// Why there is no connection.
pub(super) enum Refused {
    /// A retry may succeed: the gateway cannot be reached, or is not ready.
    NotNow(AgentError),
    /// A retry may succeed, but earlier runs are over: the connection is refused, so no gateway runs.
    Absent(AgentError),
    /// A retry would not succeed.
    ForGood(AgentError),
}

impl Refused {
    pub(super) fn error(self) -> AgentError {
        match self {
            Self::NotNow(error) | Self::Absent(error) | Self::ForGood(error) => error,
        }
    }
}

impl Connection {
    /// Connects, and sends `connect` when challenged.
    pub(super) async fn open(url: &str, token: Option<&str>) -> Result<Self, Refused> {
        let until = Instant::now() + HANDSHAKE;
        let stranger = || {
            let message = format!("what listens at {url} does not answer as an OpenClaw gateway does");
            Refused::ForGood(AgentError::of(ErrorClass::Protocol, message))
        };
        let config =
            WebSocketConfig::default().max_message_size(Some(MAX_FRAME_BYTES)).max_frame_size(Some(MAX_FRAME_BYTES));
        let socket = match timeout_at(until, connect_async_with_config(url, Some(config), true)).await {
            Ok(Ok((socket, _))) => socket,
            Ok(Err(error)) => return Err(not_connected(url, error)),
            Err(_) => return Err(stranger()),
        };
        let mut connection = Self { socket, boot: None, version: None };
        let mut asked = false;
        loop {
            match timeout_at(until, connection.socket.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => {
                    let Ok(frame) = serde_json::from_str::<Value>(&text) else { continue };
                    if frame["event"] == "connect.challenge" && !asked {
                        asked = true;
                        // A failed send needs no handling: waiting for the answer fails then.
                        let _ = connection.request("connect", "connect", introduction(token)).await;
                    } else if frame["type"] == "res" && frame["id"] == "connect" {
                        if frame["ok"] != true {
                            return Err(refused(&frame["error"]));
                        }
                        let server = &frame["payload"]["server"];
                        connection.boot = server["bootId"].as_str().map(str::to_owned);
                        connection.version = server["version"].as_str().map(str::to_owned);
                        return Ok(connection);
                    }
                }
                Ok(Some(Ok(Message::Close(Some(close))))) if close.code == CloseCode::Policy => {
                    let message = format!("the gateway refuses the connection: {}", close.reason);
                    return Err(Refused::ForGood(AgentError::of(ErrorClass::Authentication, message)));
                }
                Ok(Some(Ok(_))) => {}
                Ok(None | Some(Err(_))) => return Err(broken_off(url)),
                Err(_) => return Err(stranger()),
            }
        }
    }

    /// Sends a request; its answer is one of the incoming frames. `None` if the connection is broken, or the gateway
    /// does not read.
    pub(super) async fn request(&mut self, id: &str, method: &str, params: Value) -> Option<()> {
        let frame = json!({"type": "req", "id": id, "method": method, "params": params});
        timeout_at(Instant::now() + SILENCE, self.socket.send(Message::text(frame.to_string()))).await.ok()?.ok()
    }

    /// The next frame; `None` if the connection is broken.
    pub(super) async fn next_frame(&mut self) -> Option<String> {
        loop {
            match timeout_at(Instant::now() + SILENCE, self.socket.next()).await.ok()?? {
                Ok(Message::Text(text)) => return Some(text.to_string()),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}

fn introduction(token: Option<&str>) -> Value {
    let mut params = json!({
        "minProtocol": 3,
        "maxProtocol": 4,
        // How local programs identify themselves: the gateway requires no pairing of them if they present its token.
        "client": {
            "id": "gateway-client",
            "displayName": "mainstay",
            "version": env!("CARGO_PKG_VERSION"),
            "platform": "linux",
            "mode": "backend",
        },
        "role": "operator",
        "scopes": ["operator.read", "operator.write", "operator.admin"],
        "caps": ["tool-events"],
    });
    if let Some(token) = token {
        params["auth"] = json!({"token": token});
    }
    params
}

fn not_connected(url: &str, error: tungstenite::Error) -> Refused {
    match error {
        tungstenite::Error::Io(error) => {
            let is_absent = error.kind() == std::io::ErrorKind::ConnectionRefused;
            let advice = "start it with `openclaw gateway run`, or correct `url` of the agent";
            let message = format!("no OpenClaw gateway can be reached at {url}: {error}; {advice}");
            let refused = AgentError::of(ErrorClass::AgentMissing, message);
            if is_absent { Refused::Absent(refused) } else { Refused::NotNow(refused) }
        }
        tungstenite::Error::Protocol(ProtocolError::HandshakeIncomplete) | tungstenite::Error::ConnectionClosed => {
            broken_off(url)
        }
        tungstenite::Error::Http(response) => {
            let status = response.status().as_u16();
            let class = if matches!(status, 401 | 403) { ErrorClass::Authentication } else { ErrorClass::Protocol };
            let message = format!("what listens at {url} answered with HTTP status {status}, not with a WebSocket");
            Refused::ForGood(AgentError::of(class, message))
        }
        error => {
            let message = format!("what listens at {url} is no OpenClaw gateway: {error}");
            Refused::ForGood(AgentError::of(ErrorClass::Protocol, message))
        }
    }
}

/// The gateway has just ended, or is about to.
fn broken_off(url: &str) -> Refused {
    let message = format!("the gateway at {url} closed the connection before it took us in");
    Refused::NotNow(AgentError::of(ErrorClass::Crashed, message))
}

/// The gateway refused `connect`.
fn refused(error: &Value) -> Refused {
    let words = error["message"].as_str().unwrap_or("no reason given");
    let error = AgentError {
        message: format!("the gateway refuses the connection: {words}"),
        class: class_of(error),
        retry_at: None,
    };
    // It is still starting.
    if error.class == Some(ErrorClass::Overloaded) { Refused::NotNow(error) } else { Refused::ForGood(error) }
}

/// The class of a gateway error, from its codes.
pub(super) fn class_of(error: &Value) -> Option<ErrorClass> {
    let reason = error["details"]["code"].as_str().unwrap_or_default();
    let needs = ["AUTH_", "DEVICE_", "CONTROL_UI_", "PAIRING_"];
    if reason == "AUTH_RATE_LIMITED" {
        return Some(ErrorClass::RateLimit);
    }
    if needs.iter().any(|prefix| reason.starts_with(prefix)) {
        return Some(ErrorClass::Authentication);
    }
    match error["code"].as_str()? {
        "UNAUTHORIZED" | "NOT_PAIRED" | "NOT_LINKED" => Some(ErrorClass::Authentication),
        "UNAVAILABLE" if error["retryable"] == true => Some(ErrorClass::Overloaded),
        _ => None,
    }
}
