//! A client of a daemon's HTTP API.

use std::path::{Path, PathBuf};
use std::time::Instant;

use futures_util::StreamExt;
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};

use crate::wait::TIMEOUT;

/// The file of the token that a daemon creates beside its database.
#[must_use]
pub fn token_file(db: &Path) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push("-token");
    name.into()
}

/// The token of a database. None if the daemon has created none.
#[must_use]
pub fn token(db: &Path) -> Option<String> {
    Some(std::fs::read_to_string(token_file(db)).ok()?.trim_end().to_owned())
}

/// A complete response.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// Its JSON, or its text if it is no JSON.
    pub body: Value,
}

impl Answer {
    /// The code of a refusal, all of which have the same shape.
    #[must_use]
    #[track_caller]
    pub fn code(&self) -> &str {
        let error = &self.body["error"];
        let message = error["message"].as_str().unwrap_or_else(|| panic!("no refusal: {self:?}"));
        assert!(!message.is_empty(), "{self:?}");
        assert_eq!(self.body.as_object().map(serde_json::Map::len), Some(1), "{self:?}");
        assert!(self.header("content-type").starts_with("application/json"), "{self:?}");
        error["code"].as_str().unwrap_or_else(|| panic!("no code: {self:?}"))
    }

    /// Status and code of a refusal; the code is `none` if nothing was refused.
    #[must_use]
    #[track_caller]
    pub fn refused(&self) -> (u16, &str) {
        let is_refusal = self.body.get("error").is_some();
        (self.status, if is_refusal { self.code() } else { "none" })
    }

    /// A string field of the body.
    #[must_use]
    #[track_caller]
    pub fn text(&self, key: &str) -> &str {
        self.body[key].as_str().unwrap_or_else(|| panic!("no {key} in {}", self.body))
    }

    /// The id of the run of an accepted message.
    #[track_caller]
    pub fn run(&self) -> String {
        assert_eq!(self.status, 202, "{}", self.body);
        self.text("id").to_owned()
    }

    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// One field of each item of a list.
    #[must_use]
    #[track_caller]
    pub fn each(&self, key: &str) -> Vec<String> {
        let items = self.body["items"].as_array().unwrap_or_else(|| panic!("no list: {}", self.body));
        items.iter().map(|item| item[key].as_str().map_or_else(|| item[key].to_string(), str::to_owned)).collect()
    }
}

/// Sends a request and reads the response.
///
/// # Panics
/// If there is none.
pub async fn read(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap_or_else(|error| panic!("no answer: {error:?}"));
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap_or_else(|error| panic!("no whole answer: {error:?}"));
    Answer { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

/// A daemon as seen by one client.
#[derive(Debug, Clone)]
pub struct Api {
    pub url: String,
    client: Client,
    token: Option<String>,
}

impl Api {
    /// Requests carry the token, if there is one.
    #[must_use]
    pub fn new(url: String, token: Option<String>) -> Self {
        Self { url, client: Client::new(), token }
    }

    /// The same client with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.request_without_token(method, path);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub fn request_without_token(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).timeout(TIMEOUT)
    }

    pub async fn get(&self, path: &str) -> Answer {
        read(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        read(self.request(Method::POST, path).json(&body)).await
    }

    /// Posts without body and content type.
    pub async fn post_nothing(&self, path: &str) -> Answer {
        read(self.request(Method::POST, path)).await
    }

    /// Sends a message with an id of its own to a session.
    pub async fn post_message(&self, session: &str, id: &str, text: &str) -> Answer {
        self.post(&format!("/v1/sessions/{session}/runs"), json!({"message": {"id": id, "text": text}})).await
    }

    /// Sends a message to a session, and returns its run.
    pub async fn send(&self, session: &str, text: &str) -> String {
        self.post(&format!("/v1/sessions/{session}/runs"), json!({"message": {"text": text}})).await.run()
    }

    /// Has the demo agent ask a question in a session, and returns the question's id.
    ///
    /// # Panics
    /// If it asks nothing.
    pub async fn question(&self, session: &str) -> String {
        self.send(session, "/ask").await;
        let begun = Instant::now();
        loop {
            let asked = self.get(&format!("/v1/permissions?state=pending&session={session}")).await;
            if let Some(id) = asked.body["items"][0]["id"].as_str() {
                return id.to_owned();
            }
            assert!(begun.elapsed() < TIMEOUT, "nothing is asked: {asked:?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Follows a run to its end, calls `heard` for each event, and returns the run's text.
    ///
    /// # Panics
    /// If the stream ends before the run.
    pub async fn follow(&self, run: &str, mut heard: impl FnMut(i64, &str)) -> String {
        let request = self.request(Method::GET, &format!("/v1/runs/{run}/events"));
        let response = request.header("accept", "text/event-stream").send().await;
        let mut stream = response.unwrap_or_else(|error| panic!("no stream: {error:?}")).bytes_stream();
        let (mut unread, mut said) = (Vec::new(), String::new());
        while let Some(piece) = stream.next().await {
            unread.extend_from_slice(&piece.unwrap_or_else(|error| panic!("the stream broke: {error:?}")));
            while let Some(end) = unread.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = unread.drain(..end + 2).collect();
                let block = String::from_utf8_lossy(&block);
                let field = |name| block.lines().find_map(|line| line.strip_prefix(name));
                if field("data: ") == Some("[DONE]") {
                    return said;
                }
                if let (Some(id), Some(data)) = (field("id: "), field("data: ")) {
                    heard(id.parse().unwrap_or_else(|_| panic!("no number: {id}")), data);
                    let chunk: Value = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"));
                    said.push_str(chunk["delta"].as_str().unwrap_or_default());
                }
            }
        }
        panic!("the stream of run {run} ended before the run: {said}");
    }

    /// A run after its end.
    pub async fn settled(&self, run: &str) -> Value {
        self.follow(run, |_, _| ()).await;
        self.get(&format!("/v1/runs/{run}")).await.body
    }
}
