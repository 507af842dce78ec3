//! An HTTP client of the engines: one connection per request, as on a bad network.
//!
//! Always: every wait and every buffer has a limit. A truncated response is an error, never a response.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::body::{Body, BodyDataStream, Bytes, to_bytes};
use futures_util::StreamExt;
use hyper::client::conn::http1;
use hyper::header;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// An engine that is stopped for longer than its lease answers too late.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest response, and the longest event, that is accepted.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Where an engine listens, and the token that it requires.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    pub(super) token: Arc<str>,
}

impl Endpoint {
    /// The value of the `Authorization` header.
    pub(super) fn authorization(&self) -> String {
        format!("Bearer {}", self.token)
    }
}

/// A complete response.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Answer {
    /// The text of a field.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.body.get(key)?.as_str()
    }

    /// The items of a list.
    pub(super) fn items(&self) -> &[Value] {
        self.body.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Sends a request and waits for the whole response.
pub(super) async fn ask(to: &Endpoint, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
    let request = request(to, method, path).header(header::CONTENT_TYPE, "application/json");
    let request = request.body(body.map_or_else(Body::empty, |body| Body::from(body.to_string())))?;
    let answered = exchange(to, request, async |response| {
        let status = response.status().as_u16();
        let bytes = to_bytes(Body::new(response.into_body()), MAX_BYTES).await?;
        Ok(Answer { status, body: serde_json::from_slice(&bytes)? })
    });
    timeout(REQUEST_TIMEOUT, answered).await?
}

pub(super) async fn get(to: &Endpoint, path: &str) -> anyhow::Result<Answer> {
    ask(to, Method::GET, path, None).await
}

/// One event of a stream.
pub(super) struct Frame {
    /// None if it is no event of the log, as for `[DONE]`.
    pub(super) seq: Option<i64>,
    pub(super) data: String,
}

/// Reads a stream from behind an event, frame by frame, for as long as `each` asks for more. Returns the status and whether
/// the stream ended cleanly.
pub(super) async fn follow(
    to: &Endpoint,
    path: &str,
    after: i64,
    mut each: impl FnMut(Frame) -> bool,
) -> anyhow::Result<(u16, bool)> {
    let request = request(to, Method::GET, path).header(header::ACCEPT, "text/event-stream");
    let request = request.header("last-event-id", after.to_string()).body(Body::empty())?;
    exchange(to, request, async |response| {
        let status = response.status().as_u16();
        if status != 200 {
            return Ok((status, true));
        }
        let mut frames = Frames { stream: Body::new(response.into_body()).into_data_stream(), buffer: Vec::new() };
        while let Some(frame) = frames.next().await? {
            if !each(frame) {
                return Ok((status, false));
            }
        }
        Ok((status, true))
    })
    .await
}

fn request(to: &Endpoint, method: Method, path: &str) -> hyper::http::request::Builder {
    let request = Request::builder().method(method).uri(path).header(header::HOST, to.address.to_string());
    request.header(header::AUTHORIZATION, to.authorization()).header(header::CONNECTION, "close")
}

/// One request on a connection of its own.
async fn exchange<T>(
    to: &Endpoint,
    request: Request<Body>,
    read: impl AsyncFnOnce(Response<hyper::body::Incoming>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let stream = timeout(REQUEST_TIMEOUT, TcpStream::connect(to.address)).await??;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answered = async {
        let response = timeout(REQUEST_TIMEOUT, sender.send_request(request)).await??;
        let read = read(response).await;
        // Closes the connection, and with it ends the wait for it.
        drop(sender);
        read
    };
    // An error of the connection shows in what is read from it.
    let (answered, _) = tokio::join!(answered, connection);
    answered
}

/// The frames of a stream of server-sent events.
struct Frames {
    stream: BodyDataStream,
    buffer: Vec<u8>,
}

impl Frames {
    /// The next frame; none at a clean end.
    async fn next(&mut self) -> anyhow::Result<Option<Frame>> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                match parse(&block)? {
                    Some(frame) => return Ok(Some(frame)),
                    None => continue,
                }
            }
            let Some(piece) = self.stream.next().await else { return Ok(None) };
            let piece: Bytes = piece?;
            if self.buffer.len() + piece.len() > MAX_BYTES {
                bail!("an event is longer than {MAX_BYTES} bytes");
            }
            self.buffer.extend_from_slice(&piece);
        }
    }
}

/// None for a block without data: a comment or `retry`.
fn parse(block: &[u8]) -> anyhow::Result<Option<Frame>> {
    let (mut seq, mut data) = (None, None);
    for line in std::str::from_utf8(block)?.lines() {
        if let Some(id) = line.strip_prefix("id: ") {
            seq = Some(id.parse().context("an event has an id that is no number")?);
        } else if let Some(text) = line.strip_prefix("data: ") {
            data = Some(text.to_owned());
        }
    }
    Ok(data.map(|data| Frame { seq, data }))
}
