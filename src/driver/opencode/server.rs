//! The HTTP interface of a running server: requests, and its stream of events.
//!
//! Always: the other end is not trusted: answers, events and headers have limits, and so has every wait. Connections
//! are direct, never through a proxy.

use std::pin::pin;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, Uri, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::agent::DEFAULT_MAX_LINE_BYTES;
use crate::driver::{ProbeError, json};
use crate::failure::is_shortage;
use crate::process::lines::{Line, Splitter, unreadable};

/// The user name that goes with a server's password.
pub(super) const USER: &str = "opencode";
/// A longer answer is an error: a conversation of this length fits into no model.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Maximum size of an answer's headers.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// A server sends a heartbeat every 10 s. After this long a silence it counts as gone.
const SILENCE: Duration = Duration::from_secs(35);
/// How much of an answer an error shows.
const SHOWN_CHARS: usize = 300;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// The connection was refused.
    #[error("nobody listens at {0}: the server has ended")]
    Gone(String),
    /// The server accepts the connection, but does not answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The connection broke, or the answer is not HTTP.
    #[error("the connection broke: {}", .0.message)]
    Broken(ProbeError),
    /// The server refuses the request, or cannot execute it.
    #[error("HTTP status {status}: {message}")]
    Refused { status: u16, message: String },
}

/// A server, for requests about one directory.
#[derive(Debug, Clone)]
pub(super) struct Server {
    address: String,
    authorization: Option<String>,
    directory: Option<String>,
}

impl Server {
    /// The server at `http://[name:password@]host:port`, or why the address is wrong.
    pub(super) fn at(endpoint: &str) -> Result<Self, String> {
        // The address is shown without the password.
        let shown = || endpoint.rsplit('@').next().unwrap_or_default().chars().take(80).collect::<String>();
        let wrong = || format!("{:?} is no address of a server", shown());
        let uri: Uri = endpoint.parse().map_err(|_| wrong())?;
        let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(wrong()) };
        let (credentials, address) = match authority.as_str().rsplit_once('@') {
            Some((credentials, address)) => (Some(credentials), address),
            None => (None, authority.as_str()),
        };
        if authority.port_u16().is_none() {
            return Err(wrong());
        }
        let authorization = credentials.map(|credentials| format!("Basic {}", STANDARD.encode(credentials)));
        Ok(Self { address: address.to_owned(), authorization, directory: None })
    }

    /// The same server, for requests about a directory.
    pub(super) fn in_directory(self, directory: &str) -> Self {
        Self { directory: Some(utf8_percent_encode(directory, NON_ALPHANUMERIC).to_string()), ..self }
    }

    /// Sends a GET request.
    pub(super) async fn get(&self, path: &str, within: Duration) -> Result<Value, Failure> {
        self.ask(Method::GET, path, None, within).await
    }

    /// Sends a POST request.
    pub(super) async fn post(&self, path: &str, body: Option<&Value>, within: Duration) -> Result<Value, Failure> {
        self.ask(Method::POST, path, body, within).await
    }

    /// Sends a DELETE request.
    pub(super) async fn delete(&self, path: &str, within: Duration) -> Result<Value, Failure> {
        self.ask(Method::DELETE, path, None, within).await
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>, within: Duration) -> Result<Value, Failure> {
        let asked = async {
            let (response, mut connection) = self.send(method, path, body).await?;
            let status = response.status();
            let mut answer = pin!(Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect());
            let answer = loop {
                tokio::select! {
                    biased;
                    answer = &mut answer => break answer,
                    () = &mut connection.0, if connection.1 => connection.1 = false,
                }
            };
            let answer = answer.map_err(|error| Failure::Broken(error.to_string().into()))?.to_bytes();
            // An accepted request may have an empty answer.
            let value = json::parse(&String::from_utf8_lossy(&answer)).unwrap_or(Value::Null);
            if status.is_success() {
                return Ok(value);
            }
            let message = value.pointer("/data/message").or_else(|| value.get("message")).and_then(Value::as_str);
            let message = message.map_or_else(|| String::from_utf8_lossy(&answer).into_owned(), str::to_owned);
            Err(Failure::Refused { status: status.as_u16(), message: message.chars().take(SHOWN_CHARS).collect() })
        };
        timeout(within, asked).await.unwrap_or(Err(Failure::Silent(within)))
    }

    /// Follows the events in the directory. From its return on, no event is missed.
    pub(super) async fn events(&self, within: Duration) -> Result<Events, Failure> {
        let follow = async {
            let (response, connection) = self.send(Method::GET, "/event", None).await?;
            if !response.status().is_success() {
                let status = response.status().as_u16();
                return Err(Failure::Refused { status, message: "no events are told".to_owned() });
            }
            let mut events = Events::new(response.into_body(), connection);
            // The first event is a greeting.
            events.next().await?;
            Ok(events)
        };
        timeout(within, follow).await.unwrap_or(Err(Failure::Silent(within)))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(Response<Incoming>, Connection), Failure> {
        let broken = |error: hyper::Error| Failure::Broken(error.to_string().into());
        let stream = TcpStream::connect(&self.address).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => Failure::Gone(self.address.clone()),
            _ => Failure::Broken(ProbeError { message: error.to_string(), is_shortage: is_shortage(&error) }),
        })?;
        let mut builder = http1::Builder::new();
        let (mut sender, connection) =
            builder.max_buf_size(MAX_HEADER_BYTES).handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut connection = Connection(
            Box::pin(async move {
                // The answer fails with the same error.
                let _ = connection.await;
            }),
            true,
        );
        let path = match &self.directory {
            Some(directory) => {
                let more = if path.contains('?') { '&' } else { '?' };
                format!("{path}{more}directory={directory}")
            }
            None => path.to_owned(),
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.address);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Full::new(Bytes::from(body.to_string()))
            }
            None => Full::default(),
        };
        let request = request.body(body).map_err(|error| Failure::Broken(error.to_string().into()))?;
        let mut response = pin!(sender.send_request(request));
        loop {
            tokio::select! {
                biased;
                response = &mut response => return Ok((response.map_err(broken)?, connection)),
                () = &mut connection.0, if connection.1 => connection.1 = false,
            }
        }
    }
}

/// The task that moves an answer's bytes, and whether it still runs.
struct Connection(BoxFuture<'static, ()>, bool);

/// The events of a server.
pub(super) struct Events {
    body: Incoming,
    connection: Connection,
    splitter: Splitter,
    piece: Bytes,
    data: String,
    is_too_long: bool,
}

impl Events {
    fn new(body: Incoming, connection: Connection) -> Self {
        let splitter = Splitter::new(DEFAULT_MAX_LINE_BYTES);
        Self { body, connection, splitter, piece: Bytes::new(), data: String::new(), is_too_long: false }
    }

    /// The data of the next event. Of an event longer than a line may be, only a marked beginning that is not JSON.
    /// Cancel-safe: no event is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(data) = self.next_read() {
                return Ok(data);
            }
            let frame = timeout(SILENCE, async {
                loop {
                    tokio::select! {
                        biased;
                        frame = self.body.frame() => break frame,
                        () = &mut self.connection.0, if self.connection.1 => self.connection.1 = false,
                    }
                }
            });
            match frame.await {
                Err(_) => return Err(Failure::Silent(SILENCE)),
                Ok(None) => return Err(Failure::Broken("the stream of events ended".into())),
                Ok(Some(Err(error))) => return Err(Failure::Broken(error.to_string().into())),
                Ok(Some(Ok(frame))) => self.piece = frame.into_data().unwrap_or_default(),
            }
        }
    }

    /// The next event in the bytes read so far.
    fn next_read(&mut self) -> Option<String> {
        let mut rest = &self.piece[..];
        let mut whole = None;
        while let Some(line) = self.splitter.next_line(&mut rest) {
            let (line, is_cut) = match line {
                Line::Whole(line) => (line, false),
                Line::TooLong(beginning) => (beginning, true),
            };
            if line.is_empty() {
                let mut data = std::mem::take(&mut self.data);
                if std::mem::take(&mut self.is_too_long) {
                    data = unreadable(&data);
                }
                if !data.is_empty() {
                    whole = Some(data);
                    break;
                }
                continue;
            }
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            let data = String::from_utf8_lossy(data.strip_prefix(b" ").unwrap_or(data));
            if !self.is_too_long {
                // JSON strings contain no line ends, so a space does as well, and the event stays one line.
                self.data.push_str(if self.data.is_empty() { "" } else { " " });
                self.data.push_str(&data);
            }
            self.is_too_long |= is_cut || self.data.len() > DEFAULT_MAX_LINE_BYTES;
        }
        let read = self.piece.len() - rest.len();
        self.piece = self.piece.slice(read..);
        whole
    }
}
