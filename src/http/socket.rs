//! The socket of a connection: a client that takes nothing of an answer is noticed, and an answer that hyper would give by
//! itself is held back, so that it can have the shape of all others.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// How far the connection is with the request that it is at.
#[derive(Clone, Default)]
pub(super) struct Exchange(Arc<AtomicU8>);

/// No request was handed over since the last answer: what is written now is hyper's own.
const NONE: u8 = 0;
const UNDER_WAY: u8 = 1;
/// The answer is complete, and perhaps not yet written to its end.
const ANSWERED: u8 = 2;

impl Exchange {
    /// A request is handed over.
    pub(super) fn begin(&self) {
        self.0.store(UNDER_WAY, Relaxed);
    }

    /// The last piece of its answer is given out.
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
    /// The longest time in which a client takes nothing.
    patience: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
    /// What hyper would have answered to bytes that are no request.
    unreadable: Option<StatusCode>,
}

/// What became of a connection that has ended.
pub(super) struct Ended {
    pub stream: TcpStream,
    /// Its client took nothing of the answer for too long.
    pub is_stalled: bool,
    /// The status for what was no request; not answered yet.
    pub unreadable: Option<StatusCode>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, exchange: Exchange, patience: Duration) -> Self {
        Self { stream, exchange, patience, stall: None, is_stalled: false, unreadable: None }
    }

    pub(super) fn into_ended(self, outcome: &hyper::Result<()>) -> Ended {
        // hyper has no answer at all to the first words of HTTP/2.
        let is_unreadable = outcome.as_ref().is_err_and(hyper::Error::is_parse) && self.exchange.is_none();
        let unreadable = self.unreadable.or(is_unreadable.then_some(StatusCode::BAD_REQUEST));
        Ended { stream: self.stream, is_stalled: self.is_stalled, unreadable }
    }

    /// Whether these bytes are hyper's own answer, which is held back then.
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
        let patience = self.patience;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stall.as_mut().poll(cx));
        self.is_stalled = true;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of its answer")))
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
