//! The sockets: one accept loop, one task a connection, and their orderly end.
//!
//! Always: no more connections than configured, a further one waits in the kernel's queue; no connection outlives
//! [`serve`]; a response that is cut short is cut visibly (see [`end`]).

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
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::decider::Ends;
use super::{Access, Shared, Timeouts, router};
use crate::config::ServerConfig;
use crate::engine::Engine;
use crate::metrics::METRICS;

/// Pause after a failed accept: out of file descriptors, most likely, and that takes a moment to pass.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long, and how much, a connection is still read after a body was refused.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 64 * 1024 * 1024;

/// Serves HTTP to those who have `access` until `shutdown`, then ends: idle connections at once, requests under way within a few seconds, streams
/// as interrupted, so that their clients come back.
///
/// # Errors
/// When the listener has no address. A failed accept is logged and tried again.
pub async fn serve(
    engine: Engine,
    config: &ServerConfig,
    access: Access,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_with(engine, config, access, listener, shutdown, Timeouts::default()).await
}

/// The same with other timeouts.
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
    let (patience, first_head) = (timeouts.shutdown, timeouts.header);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(timeouts.idle).half_close(false);
    let dropped = CancellationToken::new();
    let server = Arc::new(Server {
        router: router(Arc::new(Shared::new(engine, config, access, listen, timeouts, shutdown.clone()))),
        http,
        first_head,
        shutdown,
        dropped: dropped.clone(),
    });

    let connections = TaskTracker::new();
    accept(&server, &listener, config.max_connections, &connections).await;
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
    /// How long a new connection may take to its first request.
    first_head: Duration,
    /// No further requests.
    shutdown: CancellationToken,
    /// Not even the rest of those under way.
    dropped: CancellationToken,
}

async fn accept(server: &Arc<Server>, listener: &TcpListener, max_connections: usize, connections: &TaskTracker) {
    let room = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
    let accepted = async {
        // The semaphore is never closed.
        while let Ok(permit) = room.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, remote)) => {
                    let server = server.clone();
                    connections.spawn(async move {
                        server.connection(stream, remote).await;
                        drop(permit);
                    });
                }
                // The client has gone before it was served; the next one may be there already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    METRICS.accepts_failed.inc();
                    tracing::warn!(%error, "failed to accept a connection; trying again");
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
    async fn connection(&self, stream: TcpStream, remote: SocketAddr) {
        // None when the client has gone.
        let ends = stream.local_addr().ok().map(|local| Ends { local, remote });
        // Deltas are small and are wanted at once.
        let _ = stream.set_nodelay(true);
        // Whether the last request had a body and was refused, perhaps before all of it was read.
        let refused = AtomicBool::new(false);
        let asked = CancellationToken::new();
        let service = service_fn(|mut request: hyper::Request<Incoming>| {
            asked.cancel();
            ends.map(|ends| request.extensions_mut().insert(ends));
            let (refused, has_body) = (&refused, !request.body().is_end_stream());
            let answered = move |response: &Response| {
                refused.store(has_body && !response.status().is_success(), Relaxed);
            };
            self.router.clone().oneshot(request).inspect_ok(answered).boxed()
        });
        let mut connection = self.http.serve_connection(TokioIo::new(stream), service);
        // Without the shutdown of the socket, which `end` does in more steps than hyper.
        let ended = tokio::select! {
            outcome = poll_fn(|cx| connection.poll_without_shutdown(cx)) => Some(outcome),
            () = self.shutdown.cancelled() => None,
            () = says_nothing(&asked, self.first_head) => return,
        };
        let outcome = match ended {
            Some(outcome) => outcome,
            None => {
                Pin::new(&mut connection).graceful_shutdown();
                tokio::select! {
                    outcome = poll_fn(|cx| connection.poll_without_shutdown(cx)) => outcome,
                    () = self.dropped.cancelled() => return,
                }
            }
        };
        let stream = connection.into_parts().io.into_inner();
        tokio::select! {
            () = end(stream, outcome, refused.load(Relaxed)) => {}
            () = self.dropped.cancelled() => {}
        }
    }
}

/// Ends when the time is over in which the first request should have come.
async fn says_nothing(asked: &CancellationToken, first_head: Duration) {
    if tokio::time::timeout(first_head, asked.cancelled()).await.is_ok() {
        std::future::pending().await
    }
}

/// Closes a connection so that the client can tell how its last response ended.
///
/// A response that failed midway is reset: an HTTP/1.0 client, such as an older proxy, would take a mere close for the
/// end of the response, and so a stream that was interrupted for one that is complete. Where a body was refused, what the
/// client is still sending is read for a moment: closing a socket with unread data resets it, and the client would see
/// that instead of the answer that says why.
async fn end(mut stream: TcpStream, outcome: hyper::Result<()>, refused: bool) {
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended early");
        if error.is_user() {
            let _ = stream.set_zero_linger();
            return;
        }
    }
    // Whatever comes of the rest, the connection is over.
    if stream.shutdown().await.is_ok() && refused {
        let mut rest = stream.take(LINGER_BYTES);
        let _ = tokio::time::timeout(LINGER, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    }
}
