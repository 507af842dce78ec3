//! Shared by the tests: a server on a free port with a database of its own, and a client.

use std::net::SocketAddr;
use std::path::Path;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mainstay::config::Config;
use mainstay::engine::{Engine, token_file};
use mainstay::http::{Access, Timeouts, serve_with};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;
use testkit::Api;
pub use testkit::{Answer, read, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub struct Scene {
    pub address: SocketAddr,
    pub stop: CancellationToken,
    pub server: JoinHandle<std::io::Result<()>>,
    pub engine: Engine,
    api: Api,
    _dir: tempfile::TempDir,
}

impl Scene {
    pub async fn new() -> Self {
        Self::with("", Timeouts::default()).await
    }

    /// With an engine that executes runs.
    pub async fn executing() -> Self {
        let scene = Self::new().await;
        scene.execute().await;
        scene
    }

    /// Executes runs from now on.
    pub async fn execute(&self) {
        self.engine.start().await.unwrap();
    }

    /// With this text in the config file.
    pub async fn with(config: &str, timeouts: Timeouts) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::load(config, Path::new("test.toml"), dir.path()).unwrap();
        config.engine.shim_program = env!("CARGO_BIN_EXE_mainstay").into();
        let server = config.server.clone();
        let db = dir.path().join("m.db");
        let engine = Engine::open(&db, config).await.unwrap();
        let access = Access::configured(&server, engine.path(), &token_file(&db).unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let token = testkit::token(&db);
        let stop = CancellationToken::new();
        let serving = {
            let (engine, stop) = (engine.clone(), stop.clone());
            tokio::spawn(async move { serve_with(engine, &server, access, listener, stop, timeouts).await })
        };
        Self { address, stop, server: serving, engine, api: Api::new(format!("http://{address}"), token), _dir: dir }
    }

    pub fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.api.request(method, path)
    }

    /// The headers that every hand-written request needs, each with its line end.
    pub fn head(&self) -> String {
        let token = self.api.token().map(|token| format!("authorization: Bearer {token}\r\n"));
        format!("host: localhost\r\n{}", token.unwrap_or_default())
    }

    pub async fn cancel(&self, run: &str) {
        assert_eq!(self.post_nothing(&format!("/v1/runs/{run}/cancel")).await.status, 202);
    }

    pub async fn stream(&self, path: &str) -> Streaming {
        Streaming::open(self.ask(Method::GET, path).header("accept", "text/event-stream")).await
    }

    /// Sends raw bytes, and reads until the server closes the connection.
    pub async fn raw(&self, request: impl AsRef<[u8]>) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(request.as_ref()).await?;
        let mut answer = Vec::new();
        within(stream.read_to_end(&mut answer)).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// The status of a GET of an unchanged path, which HTTP clients would normalize.
    pub async fn raw_status(&self, path: &str) -> u16 {
        let answer = self.raw(format!("GET {path} HTTP/1.1\r\n{}connection: close\r\n\r\n", self.head())).await;
        status_of(&answer.unwrap())
    }
}

impl std::ops::Deref for Scene {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

pub fn status_of(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

/// A stream that is being read.
pub struct Streaming {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
    bytes: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
}

impl Streaming {
    pub async fn open(request: RequestBuilder) -> Self {
        let response: Response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, text: String::new(), bytes: response.bytes_stream().boxed() }
    }

    /// Reads until this has occurred `times` times.
    pub async fn until(&mut self, what: &str, times: usize) {
        while self.text.matches(what).count() < times {
            let piece =
                within(self.bytes.next()).await.unwrap_or_else(|| panic!("ended without {what}: {}", self.text));
            self.text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
        }
    }

    /// Reads to the end: everything that came, or an error if the end was not clean.
    pub async fn rest(mut self) -> Result<String, String> {
        while let Some(piece) = within(self.bytes.next()).await {
            self.text.push_str(std::str::from_utf8(&piece.map_err(|_| self.text.clone())?).unwrap());
        }
        Ok(self.text)
    }
}

/// A stream in one line: the ids and types of its chunks.
pub fn tell(stream: &str) -> String {
    let told = stream.split_terminator("\n\n").map(|block| {
        let mut words = Vec::new();
        for line in block.lines() {
            match line.split_once(": ").unwrap() {
                ("data", "[DONE]") => words.push("[DONE]".to_owned()),
                ("data", json) => {
                    let chunk: Value = serde_json::from_str(json).unwrap();
                    words.push(chunk["type"].as_str().unwrap().to_owned());
                }
                ("id", id) => words.push(format!("{id}:")),
                // It applies to the whole stream, although it is in the first event.
                ("retry", _) => words.push("retry ".to_owned()),
                (other, _) => words.push(other.to_owned()),
            }
        }
        words.concat()
    });
    told.collect::<Vec<_>>().join(" ")
}

/// The chunks of a stream.
pub fn chunks(stream: &str) -> Vec<Value> {
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    data.map(|json| serde_json::from_str(json).unwrap()).collect()
}

/// The text of a stream.
pub fn said(stream: &str) -> String {
    let chunks = chunks(stream);
    let texts = chunks.iter().filter(|chunk| chunk["type"] == "text-delta");
    texts.filter_map(|chunk| chunk["delta"].as_str()).collect()
}
