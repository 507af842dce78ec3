//! The sockets: one accept loop, one task per connection, and their orderly shutdown.
//!
//! Always: each connection has a place ([`Places`]); none outlives [`serve`]; a client that reads nothing of its response is
//! disconnected; a truncated response is recognizable as such (see [`end`]).

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use futures_util::{FutureExt, TryFutureExt};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::answer::Holding;
use super::decider::Ends;
use super::observe;
use super::places::{LogLimit, Place, Places};
use super::socket::{Ended, Exchange, Socket};
use super::{Access, Shared, Timeouts, router};
use crate::config::ServerConfig;
use crate::engine::Engine;
use crate::metrics::METRICS;

/// Pause after a failed accept: most likely the process is out of file descriptors, which takes a moment to pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Longest head of a request, and how much of a response is collected before it is written. Clients send a few KiB.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;
/// How much of a response the kernel holds for a client that does not read; its overhead is as much again.
const SEND_BUFFER_BYTES: usize = 256 * 1024;
/// How long, and how much, is still read from a connection after a body was refused.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 64 * 1024 * 1024;

/// Serves HTTP to those who have `access` until `shutdown`, then ends: idle connections at once, requests in progress within a
/// few seconds, streams as interrupted, so that their clients reconnect.
///
/// # Errors
/// If the listener has no address, or other machines can reach it and no token is required. A failed accept is logged and
/// retried.
pub async fn serve(
    engine: Engine,
    config: &ServerConfig,
    access: Access,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_with(engine, config, access, listener, shutdown, Timeouts::default()).await
}

/// Like [`serve`], with other timeouts.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(
    engine: Engine,
    config: &ServerConfig,
    access: Access,
    listener: TcpListener,
    shutdown: CancellationToken,
    timeouts: Timeouts,
) -> io::Result<()> {
    let listen = listener.local_addr()?.ip();
    if matches!(access, Access::Open) && !listen.to_canonical().is_loopback() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "without a token only this machine may be served"));
    }
    // Accepted connections inherit it.
    rustix::net::sockopt::set_socket_send_buffer_size(&listener, SEND_BUFFER_BYTES)?;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(timeouts.idle).half_close(false).max_buf_size(BUFFER_BYTES);
    http.max_header_size(BUFFER_BYTES);
    let dropped = CancellationToken::new();
    let places = Places::new(config.max_connections);
    let (patience, first_head, stall) = (timeouts.shutdown, timeouts.header, timeouts.stall);
    let app = Shared::new(engine, config, access, listen, timeouts, places.clone(), shutdown.clone());
    let server = Arc::new(Server {
        http,
        first_head,
        stall,
        stalls: LogLimit::default(),
        failures: LogLimit::default(),
        router: router(Arc::new(app)),
        places,
        shutdown,
        dropped: dropped.clone(),
    });

    let connections = TaskTracker::new();
    accept(&server, &listener, &connections).await;
    drop(listener);
    connections.close();
    if tokio::time::timeout(patience, connections.wait()).await.is_err() {
        tracing::info!(connections = connections.len(), "dropping connections that did not end in time");
        dropped.cancel();
        connections.wait().await;
    }
    Ok(())
}

/// What the connections share.
struct Server {
    router: Router,
    http: http1::Builder,
    places: Arc<Places>,
    /// How long a client may go without reading anything of its response.
    stall: Duration,
    stalls: LogLimit,
    failures: LogLimit,
    /// How long a new connection may take until its first request.
    first_head: Duration,
    /// No further requests are accepted.
    shutdown: CancellationToken,
    /// Requests in progress are dropped.
    dropped: CancellationToken,
}

async fn accept(server: &Arc<Server>, listener: &TcpListener, connections: &TaskTracker) {
    let accepted = async {
        loop {
            match listener.accept().await {
                Ok((stream, remote)) => {
                    let (server, place) = (server.clone(), server.places.take().await);
                    connections.spawn(async move { server.connection(stream, remote, place.into()).await });
                }
                // The client disconnected before it was served; the next one may be waiting already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    METRICS.accepts_failed.inc();
                    if server.failures.is_due() {
                        tracing::warn!(%error, "failed to accept a connection; trying again");
                    }
                    server.places.close_idle();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = server.shutdown.cancelled() => {}
        () = accepted => {}
    }
}

impl Server {
    async fn connection(&self, stream: TcpStream, remote: SocketAddr, place: Arc<Place>) {
        // None if the client has disconnected.
        let ends = stream.local_addr().ok().map(|local| Ends { local, remote });
        // Deltas are small and are to arrive at once.
        let _ = stream.set_nodelay(true);
        // Whether the last request had a body and was refused, perhaps before all of the body was read.
        let refused = AtomicBool::new(false);
        let asked = CancellationToken::new();
        let exchange = Exchange::default();
        let service = service_fn(|mut request: hyper::Request<Incoming>| {
            asked.cancel();
            exchange.begin();
            ends.map(|ends| request.extensions_mut().insert(ends));
            if let Some(crowded) = place.begin() {
                request.extensions_mut().insert(crowded);
            }
            let answering = Answering { place: place.clone(), exchange: exchange.clone() };
            let (refused, has_body) = (&refused, !request.body().is_end_stream());
            let answered = move |response: Response| {
                refused.store(has_body && !response.status().is_success(), Relaxed);
                // hyper drops the body once it has taken all of it.
                response.map(|body| Holding { body, _holds: answering })
            };
            self.router.clone().oneshot(request).map_ok(answered).boxed()
        });
        let socket = Socket::new(stream, exchange.clone(), self.stall);
        let mut connection = self.http.serve_connection(TokioIo::new(socket), service);
        // Does not shut the socket down: `end` does that in more steps than hyper.
        let ended = tokio::select! {
            outcome = poll_fn(|cx| connection.poll_without_shutdown(cx)) => Some(outcome),
            () = self.shutdown.cancelled() => None,
            () = place.given_up() => None,
            () = says_nothing(&asked, self.first_head) => return,
        };
        let outcome = match ended {
            Some(outcome) => outcome,
            // hyper would wait for the rest of a first head.
            None if place.is_given_up() && !asked.is_cancelled() => return,
            None => {
                Pin::new(&mut connection).graceful_shutdown();
                tokio::select! {
                    outcome = poll_fn(|cx| connection.poll_without_shutdown(cx)) => outcome,
                    () = self.dropped.cancelled() => return,
                }
            }
        };
        let ended = connection.into_parts().io.into_inner().into_ended(&outcome);
        if ended.is_stalled {
            METRICS.readers_dropped.inc();
            if self.stalls.is_due() {
                tracing::warn!(patience = ?self.stall, "a client took nothing of its answer, and was dropped");
            }
        }
        tokio::select! {
            () = end(ended, outcome, refused.load(Relaxed)) => {}
            () = self.dropped.cancelled() => {}
        }
    }
}

/// A request in progress, until the last piece of its response.
struct Answering {
    place: Arc<Place>,
    exchange: Exchange,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.exchange.end();
        self.place.end();
    }
}

/// Returns once the time for the first request has passed without one.
async fn says_nothing(asked: &CancellationToken, first_head: Duration) {
    if tokio::time::timeout(first_head, asked.cancelled()).await.is_ok() {
        std::future::pending().await
    }
}

/// Closes a connection so that the client can tell how its last response ended.
///
/// The connection is reset after a response that failed midway: an HTTP/1.0 client, such as an older proxy, would take a plain
/// close for the end of the response, and so an interrupted stream for a complete one. It is also reset if its client read
/// nothing of the response, because the kernel would keep the rest. After a refused body, what the client is still sending is
/// read for a moment: closing a socket with unread data resets it, and the client would see that instead of the refusal.
async fn end(ended: Ended, outcome: hyper::Result<()>, refused: bool) {
    let Ended { mut stream, is_stalled, unreadable } = ended;
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended early");
        if error.is_user() || is_stalled {
            let _ = stream.set_zero_linger();
            return;
        }
    }
    if let Some(status) = unreadable {
        let answer = observe::unreadable(status);
        let _ = tokio::time::timeout(LINGER, stream.write_all(answer.as_bytes())).await;
    }
    // Whether or not the rest succeeds, the connection is over.
    if stream.shutdown().await.is_ok() && (refused || unreadable.is_some()) {
        let mut rest = stream.take(LINGER_BYTES);
        let _ = tokio::time::timeout(LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    }
}
