//! The socket of a connection: it detects a client that reads nothing of a response, and holds back a response that hyper would
//! send by itself, so that it can be replaced by one of the usual shape.
//!
//! Always: a client that takes anything within `patience` stays connected, however slow it is. The socket accepts further bytes
//! only when a third of its buffer is free, which is minutes apart for a slow reader; so what counts is what the client
//! acknowledged ([`unacknowledged`]).
//! Proof: `tests/http/places.rs`, the tests below.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::unacknowledged;

/// The state of a connection's current request.
#[derive(Clone, Default)]
pub(super) struct Exchange(Arc<AtomicU8>);

/// No request was handed over since the last response: what is written now is hyper's own.
const NONE: u8 = 0;
const UNDER_WAY: u8 = 1;
/// The response is complete, but perhaps not written yet.
const ANSWERED: u8 = 2;

impl Exchange {
    /// A request is handed to its handler.
    pub(super) fn begin(&self) {
        self.0.store(UNDER_WAY, Relaxed);
    }

    /// The last piece of its response is handed to hyper.
    pub(super) fn end(&self) {
        self.0.store(ANSWERED, Relaxed);
    }

    fn is_none(&self) -> bool {
        self.0.load(Relaxed) == NONE
    }
}

pub(super) struct Socket {
    stream: TcpStream,
    exchange: Exchange,
    /// How long a client may go without taking anything.
    patience: Duration,
    stall: Option<Stall>,
    is_stalled: bool,
    /// What hyper would have answered to bytes that are no request.
    unreadable: Option<StatusCode>,
}

/// How a connection ended.
pub(super) struct Ended {
    pub stream: TcpStream,
    /// Its client took nothing of the response for too long.
    pub is_stalled: bool,
    /// The status for bytes that were no request; the response was not sent yet.
    pub unreadable: Option<StatusCode>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, exchange: Exchange, patience: Duration) -> Self {
        Self { stream, exchange, patience, stall: None, is_stalled: false, unreadable: None }
    }

    pub(super) fn into_ended(self, outcome: &hyper::Result<()>) -> Ended {
        // hyper has no response at all to the preface of HTTP/2.
        let is_unreadable = outcome.as_ref().is_err_and(hyper::Error::is_parse) && self.exchange.is_none();
        let unreadable = self.unreadable.or(is_unreadable.then_some(StatusCode::BAD_REQUEST));
        Ended { stream: self.stream, is_stalled: self.is_stalled, unreadable }
    }

    /// Whether these bytes are hyper's own response, which is then held back.
    fn holds_back(&mut self, bytes: &[u8]) -> bool {
        if !self.exchange.is_none() {
            return false;
        }
        // "HTTP/1.1 400 …"
        let status = bytes.get(9..12).and_then(|digits| StatusCode::from_bytes(digits).ok());
        self.unreadable = self.unreadable.or(status).or(Some(StatusCode::BAD_REQUEST));
        true
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, attempt: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if attempt.is_ready() {
            self.stall = None;
            return attempt;
        }
        let Self { stream, patience, stall, .. } = self;
        let stall = stall.get_or_insert_with(|| Stall::new(*patience));
        ready!(stall.poll(cx, || unacknowledged::bytes(stream)));
        self.is_stalled = true;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of its answer")))
    }
}

/// How often within `patience` the kernel is asked what the client has taken.
const LOOKS: u32 = 8;

/// A socket that accepts no further bytes.
struct Stall {
    silence: Silence,
    look: Pin<Box<Sleep>>,
}

impl Stall {
    fn new(patience: Duration) -> Self {
        let silence = Silence { patience, since: Instant::now(), left: None };
        Self { look: Box::pin(sleep_until(silence.since + patience / LOOKS)), silence }
    }

    /// Ready once the client has taken nothing for longer than `patience`.
    fn poll(&mut self, cx: &mut Context<'_>, left: impl Fn() -> Option<u32>) -> Poll<()> {
        loop {
            ready!(self.look.as_mut().poll(cx));
            match self.silence.look(Instant::now(), left()) {
                Some(next) => self.look.as_mut().reset(next),
                None => return Poll::Ready(()),
            }
        }
    }
}

/// How long a client has taken nothing.
struct Silence {
    patience: Duration,
    /// When it was last seen to take something.
    since: Instant,
    /// How many bytes it had not acknowledged then.
    left: Option<u32>,
}

impl Silence {
    /// When to check next; `None` once the client has taken nothing for longer than `patience`. If the kernel does not report
    /// what is unacknowledged, that time begins when the socket accepted no further bytes.
    fn look(&mut self, now: Instant, left: Option<u32>) -> Option<Instant> {
        // The first check only sets the starting point.
        if left.is_some() && left != self.left {
            (self.since, self.left) = (now, left);
        }
        let end = self.since + self.patience;
        (now < end).then(|| end.min(now + self.patience / LOOKS))
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.holds_back(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        let attempt = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, attempt)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.holds_back(bufs.first().map_or(&[], |first| first)) {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        let attempt = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, attempt)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes the socket when it has nothing left to write.
        let _ = self.exchange.0.compare_exchange(ANSWERED, NONE, Relaxed, Relaxed);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// After how long a client is disconnected, given how many unacknowledged bytes are left after how long.
    fn given_up_after(left: impl Fn(Duration) -> Option<u32>) -> Duration {
        let begun = Instant::now();
        let mut silence = Silence { patience: PATIENCE, since: begun, left: None };
        let mut now = begun + PATIENCE / LOOKS;
        while let Some(next) = silence.look(now, left(now - begun)) {
            assert!(next > now);
            now = next;
        }
        now - begun
    }

    #[test]
    fn client_that_takes_a_byte_at_a_time_is_kept() {
        // The client acknowledges a byte every 25 seconds for an hour, and then none.
        let taken = |after: Duration| u32::try_from(after.as_secs().min(3600) / 25).unwrap();
        let after = given_up_after(|after| Some(100_000 - taken(after)));
        assert!((3600 + 30..=3600 + 34).contains(&after.as_secs()), "{after:?}");
    }

    #[test]
    fn client_that_takes_nothing_is_given_up_in_time() {
        assert_eq!(given_up_after(|_| None), PATIENCE);
        assert_eq!(given_up_after(|_| Some(7)), PATIENCE + PATIENCE / LOOKS);
    }
}
