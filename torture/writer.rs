//! The writers: one per session. A writer sends messages with ids of its own, to any engine that answers, and resends
//! with the same id until it has an answer.
//!
//! Always: it returns the messages that were answered, and with which run; none of those may be missing.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::client::{Answer, ask, get};
use super::fleet::Addresses;
use super::journal::{Count, Journal};

/// Pause between two attempts to send.
const RETRY_INTERVAL: Duration = Duration::from_millis(25);
/// With all engines back, a message is answered within this time.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Queued runs in a session beyond which its writer pauses.
const MAX_QUEUED: usize = 3;

/// A message with its final answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) session: String,
    pub(super) message: String,
    /// Its run; none if it was refused.
    pub(super) run: Option<String>,
}

pub(super) struct Writer {
    pub(super) session: String,
    pub(super) rng: fastrand::Rng,
    pub(super) addresses: Addresses,
    pub(super) journal: Arc<Journal>,
}

/// The result of one attempt to send.
enum Try {
    Taken(String),
    Refused,
    Again,
}

impl Writer {
    /// Writes until it is asked to stop; a message in progress is still sent until it is answered.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Vec<Sent> {
        let mut sent = Vec::new();
        while !stop.is_cancelled() {
            let message = format!("{}-{}", self.session, sent.len());
            let Some(run) = self.send(&message, &stop).await else { break };
            let what = if run.is_some() { Count::MessagesAcknowledged } else { Count::MessagesRefused };
            self.journal.count(what);
            sent.push(Sent { session: self.session.clone(), message, run });
            sleep(Duration::from_millis(self.rng.u64(..300))).await;
            while self.queued().await >= MAX_QUEUED && !stop.is_cancelled() {
                sleep(RETRY_INTERVAL * 4).await;
            }
        }
        sent
    }

    /// Sends a message until it is answered: with its run, or with none if it was refused. None if it never was.
    async fn send(&mut self, message: &str, stop: &CancellationToken) -> Option<Option<String>> {
        let when_busy = match self.rng.u8(..100) {
            0..85 => "enqueue",
            85..93 => "interrupt",
            _ => "reject",
        };
        let text = self.rng.u64(..).to_string();
        let body = json!({"message": {"id": message, "text": text}, "when_busy": when_busy});
        match self.rng.u8(..20) {
            0 => self.hang_up(&body).await,
            1 => return Some(Some(self.send_twice(&body).await?)),
            _ => {}
        }
        let mut give_up = None;
        loop {
            match self.try_to_send(&body).await {
                Try::Taken(run) => return Some(Some(run)),
                Try::Refused => return Some(None),
                Try::Again => self.journal.count(Count::SendsRetried),
            }
            if stop.is_cancelled()
                && Instant::now() >= *give_up.get_or_insert_with(|| Instant::now() + ACKNOWLEDGE_TIMEOUT)
            {
                self.journal
                    .violation("a message is answered", format!("{message} was not within {ACKNOWLEDGE_TIMEOUT:?}"));
                return None;
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    async fn try_to_send(&mut self, body: &Value) -> Try {
        let Some(to) = self.addresses.any(&mut self.rng) else { return Try::Again };
        let path = format!("/v1/sessions/{}/runs", self.session);
        self.judge(ask(&to, Method::POST, &path, Some(body)).await, body)
    }

    fn judge(&self, answered: anyhow::Result<Answer>, body: &Value) -> Try {
        // Perhaps it was accepted, and only the answer was lost: the same id finds out.
        let Ok(answer) = answered else { return Try::Again };
        match (answer.status, answer.text("id")) {
            (200 | 202, Some(run)) => Try::Taken(run.to_owned()),
            (409, _) if body["when_busy"] == "reject" => Try::Refused,
            (503, _) => Try::Again,
            (status, _) => {
                self.journal.violation("a good request is taken", format!("{body}: {status} {}", answer.body));
                Try::Again
            }
        }
    }

    /// Sends the same message through two engines at the same time, until both have answered: with the same run.
    async fn send_twice(&mut self, body: &Value) -> Option<String> {
        let mut body = body.clone();
        body["when_busy"] = "enqueue".into();
        let (mut twin, begun) = (self.twin(), Instant::now());
        let answered = async |writer: &mut Self| loop {
            if let Try::Taken(run) = writer.try_to_send(&body).await {
                return Some(run);
            }
            if begun.elapsed() > ACKNOWLEDGE_TIMEOUT * 2 {
                writer
                    .journal
                    .violation("a message is answered", format!("{body} was not within {:?}", ACKNOWLEDGE_TIMEOUT * 2));
                return None;
            }
            sleep(RETRY_INTERVAL).await;
        };
        let (one, other) = tokio::join!(answered(self), answered(&mut twin));
        self.journal.count(Count::SendsDoubled);
        if one != other {
            self.journal.violation("the same message id is the same run", format!("{body}: {one:?} and {other:?}"));
        }
        one
    }

    fn twin(&mut self) -> Self {
        Self {
            session: self.session.clone(),
            rng: self.rng.fork(),
            addresses: self.addresses.clone(),
            journal: self.journal.clone(),
        }
    }

    /// Sends a request, or the beginning of one, and does not wait for the answer.
    async fn hang_up(&mut self, body: &Value) {
        let Some(to) = self.addresses.any(&mut self.rng) else { return };
        let body = body.to_string();
        let head = format!(
            "POST /v1/sessions/{}/runs HTTP/1.1\r\nhost: {}\r\nauthorization: {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            self.session,
            to.address,
            to.authorization(),
            body.len()
        );
        let request = head + &body;
        let sent = if self.rng.bool() { request.len() } else { self.rng.usize(..request.len()) };
        if let Ok(mut stream) = TcpStream::connect(to.address).await {
            // The engine may be gone already, which is no violation: only the moment was wrong.
            let _ = stream.write_all(&request.as_bytes()[..sent]).await;
            self.journal.count(Count::SendsHungUp);
        }
    }

    async fn queued(&mut self) -> usize {
        let Some(to) = self.addresses.any(&mut self.rng) else { return 0 };
        let path = format!("/v1/sessions/{}/runs?status=queued&limit={MAX_QUEUED}", self.session);
        get(&to, &path).await.map_or(0, |answer| answer.items().len())
    }
}
