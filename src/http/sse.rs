//! Streams: the output of a [`Follower`] as server-sent events.
//!
//! Always: the body of a stream ends cleanly only after the end of its run; any other end is an error of the body, which
//! resets the connection. The AI SDK takes a clean end for a complete answer. Nothing is read ahead: the next piece is
//! requested once the client has taken the previous one.

use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};

use super::places::StreamPlace;
use super::{App, Shared};
use crate::engine::{EngineError, Follower};
use crate::metrics::METRICS;

/// How long a browser waits before it reconnects. It is a field of the first event, because some clients take a block without
/// data for an event.
const RETRY: Bytes = Bytes::from_static(b"retry: 1000\n");
/// A comment line without the empty line after it that would end an event.
const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n");
const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
    // `no-transform`: a proxy that compressed the stream would buffer it.
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform")),
    (HeaderName::from_static("x-vercel-ai-ui-message-stream"), HeaderValue::from_static("v1")),
    // Tells nginx not to buffer the stream.
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
];

/// Why a stream ended before its run.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error("the server is shutting down")]
    Shutdown,
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The stream of a run, until its end, or of a session, for ever.
pub(super) fn respond(app: &App, place: StreamPlace, follower: Follower) -> Response {
    respond_when(app, place, async { Ok(follower) })
}

/// Like `respond`, once there is something to follow. The response begins at once.
pub(super) fn respond_when(
    app: &App,
    place: StreamPlace,
    follower: impl Future<Output = Result<Follower, EngineError>> + Send + 'static,
) -> Response {
    let opening = stream::once(async { Ok(RETRY) });
    (HEADERS, Body::from_stream(opening.chain(pieces(app.clone(), place, follower)))).into_response()
}

/// An open stream.
struct Open<S> {
    frames: Pin<Box<S>>,
    /// The last bytes sent end within an event, where a comment is not allowed.
    is_within_event: bool,
    _place: StreamPlace,
}

fn pieces(
    app: Arc<Shared>,
    place: StreamPlace,
    follower: impl Future<Output = Result<Follower, EngineError>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, Interrupted>> {
    // A separate stream, so that a read in progress is not restarted when a comment is due.
    let frames = stream::once(follower).map_ok(|follower| {
        stream::try_unfold(follower, |mut follower| async move {
            let frames = follower.next_frames().await?;
            Ok::<_, EngineError>(frames.map(|frames| ((frames, follower.is_within_event()), follower)))
        })
    });
    let open = Open { frames: Box::pin(frames.try_flatten()), is_within_event: false, _place: place };
    stream::unfold(Some(open), move |open| {
        let app = app.clone();
        async move {
            let mut open = open?;
            tokio::select! {
                // Events that are ready are sent even when the server stops: they may be the end of the run.
                biased;
                next = open.frames.next() => Some(match next {
                    Some(Ok((piece, is_within_event))) => (Ok(piece), Some(Open { is_within_event, ..open })),
                    Some(Err(error)) => {
                        METRICS.streams_failed.inc();
                        tracing::warn!(%error, "failed to read on for a stream; its client has to come back");
                        (Err(Interrupted::Engine(error)), None)
                    }
                    None => (Ok(DONE), None),
                }),
                () = app.shutdown.cancelled() => {
                    // Lets the connection flush its buffer before the error ends it.
                    tokio::task::yield_now().await;
                    Some((Err(Interrupted::Shutdown), None))
                }
                () = tokio::time::sleep(app.timeouts.keep_alive), if !open.is_within_event => {
                    Some((Ok(KEEP_ALIVE), Some(open)))
                }
            }
        }
    })
}
