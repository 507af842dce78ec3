//! Places: how many connections, requests and streams are served at once, and which of them give way.
//!
//! Always: a connection is accepted while fewer than `max_connections` and [`reserved_connections`] are open; beyond
//! `max_connections` the one that has been idle longest is closed. Once `max_connections` requests are in progress,
//! only [urgent](admit) ones are served, and others get a 503. Streams leave some places to short requests. A stream takes
//! its place when it is about to begin: a request whose body is still arriving holds none.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::App;
use super::error::{Error, TOO_MANY_CONNECTIONS};
use super::roles::{Needs, Urgency};
use crate::config::reserved_connections;
use crate::metrics::METRICS;

/// Beyond `max_connections`, a connection that has been idle for this long is closed at once; not sooner, because a client that
/// has just connected is about to send its request.
const IDLE: Duration = Duration::from_millis(500);
/// One place in this many is not given to streams, up to [`MAX_WITHOUT_STREAMS`].
const SHARE_WITHOUT_STREAMS: usize = 8;
/// This many short requests at once keep a few cores busy.
const MAX_WITHOUT_STREAMS: usize = 256;
/// How often the log repeats that there is no room: clients decide how often that happens. Counters have the number.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The places of a server.
pub(super) struct Places {
    max_connections: usize,
    /// Places beyond `max_connections`, for urgent requests, and to answer the others with 503.
    reserved: usize,
    streams: Arc<Semaphore>,
    open: Mutex<Open>,
    freed: Notify,
    crowded: LogLimit,
}

#[derive(Default)]
struct Open {
    connections: usize,
    /// Connections with a request in progress.
    busy: usize,
    /// Connections without one; the one that has been idle longest comes first.
    idle: BTreeMap<u64, Idle>,
    /// The key of the place that became idle last.
    newest: u64,
    /// An accepted connection waits until an open one ends or becomes idle.
    is_awaited: bool,
}

struct Idle {
    since: Instant,
    given_up: CancellationToken,
}

/// One connection's place.
pub(super) struct Place {
    places: Arc<Places>,
    /// Cancelled when another connection needs the place.
    given_up: CancellationToken,
    /// Its key in `Open::idle`; 0 while a request is in progress.
    idle_key: AtomicU64,
}

/// Marks a request that arrived when all places were taken.
#[derive(Clone)]
pub(super) struct Crowded(Arc<Places>);

impl Places {
    pub(super) fn new(max_connections: usize) -> Arc<Self> {
        let without_streams = (max_connections / SHARE_WITHOUT_STREAMS).min(MAX_WITHOUT_STREAMS);
        let streams = (max_connections - without_streams).min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            max_connections,
            reserved: reserved_connections(max_connections),
            streams: Arc::new(Semaphore::new(streams)),
            open: Mutex::default(),
            freed: Notify::new(),
            crowded: LogLimit::default(),
        })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for an accepted connection. Waits only while all places and the reserve are busy with requests.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        loop {
            {
                let mut open = self.open();
                let has_room = open.connections < self.max_connections + self.reserved;
                if open.connections >= self.max_connections {
                    open.close_idle(if has_room { IDLE } else { Duration::ZERO });
                }
                if has_room {
                    open.connections += 1;
                    METRICS.connections_open.inc();
                    let given_up = CancellationToken::new();
                    let idle_key = AtomicU64::new(open.turn_idle(given_up.clone()));
                    open.is_awaited = false;
                    return Place { places: self.clone(), given_up, idle_key };
                }
                open.is_awaited = true;
            }
            self.log_crowded("all connections are taken; a further one waits");
            self.freed.notified().await;
        }
    }

    /// Closes the connection that has been idle longest, to free its file descriptor.
    pub(super) fn close_idle(&self) {
        self.open().close_idle(Duration::ZERO);
    }

    fn log_crowded(&self, what: &str) {
        if self.crowded.is_due() {
            tracing::warn!(
                max_connections = self.max_connections,
                streams_free = self.streams.available_permits(),
                "{what}"
            );
        }
    }
}

impl Open {
    fn turn_idle(&mut self, given_up: CancellationToken) -> u64 {
        self.newest += 1;
        self.idle.insert(self.newest, Idle { since: Instant::now(), given_up });
        self.newest
    }

    fn close_idle(&mut self, for_at_least: Duration) {
        if self.idle.first_entry().is_some_and(|first| first.get().since.elapsed() >= for_at_least)
            && let Some((_, idle)) = self.idle.pop_first()
        {
            METRICS.connections_given_up.inc();
            idle.given_up.cancel();
        }
    }
}

impl Place {
    /// A request begins. Returns a mark if all places are taken.
    pub(super) fn begin(&self) -> Option<Crowded> {
        let mut open = self.places.open();
        open.idle.remove(&self.idle_key.swap(0, Relaxed));
        open.busy += 1;
        (open.busy > self.places.max_connections).then(|| Crowded(self.places.clone()))
    }

    /// The request is over.
    pub(super) fn end(&self) {
        let mut open = self.places.open();
        open.busy -= 1;
        self.idle_key.store(open.turn_idle(self.given_up.clone()), Relaxed);
        // This connection can give way now.
        if open.is_awaited {
            self.places.freed.notify_one();
        }
    }

    /// Waits until another connection needs the place.
    pub(super) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }

    /// Whether another connection needs the place.
    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.is_cancelled()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.open();
        open.connections -= 1;
        match self.idle_key.load(Relaxed) {
            0 => open.busy -= 1,
            key => drop(open.idle.remove(&key)),
        }
        METRICS.connections_open.dec();
        if open.is_awaited {
            self.places.freed.notify_one();
        }
    }
}

/// Refuses a request that has no place, unless it is urgent.
pub(super) async fn admit(State(needs): State<Arc<Needs>>, request: Request, next: Next) -> Response {
    match request.extensions().get::<Crowded>() {
        Some(crowded) if needs.urgency(&request) == Some(Urgency::Ordinary) => crowded.refuse().into_response(),
        _ => next.run(request).await,
    }
}

impl Crowded {
    /// The response to it; its connection is closed afterwards.
    pub(super) fn refuse(&self) -> Error {
        METRICS.requests_crowded.inc();
        self.0.log_crowded("requests refused: max_connections of them are under way");
        let message = "too many requests are under way: try again soon, or raise max_connections under [server]";
        Error::unavailable(TOO_MANY_CONNECTIONS, message)
    }
}

/// The place of a stream, or of another response that may take minutes.
pub(super) struct StreamPlace {
    _permit: OwnedSemaphorePermit,
}

impl StreamPlace {
    /// Takes a place, unless streams have as many as they may.
    pub(super) fn take(app: &App) -> Result<Self, Error> {
        let places = &app.places;
        if let Ok(permit) = places.streams.clone().try_acquire_owned() {
            METRICS.streams_open.inc();
            return Ok(Self { _permit: permit });
        }
        METRICS.streams_crowded.inc();
        places.log_crowded("streams refused: there are as many as max_connections allows");
        let message = "too many streams are open: try again soon, or raise max_connections under [server]";
        Err(Error::unavailable("too_many_streams", message))
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        METRICS.streams_open.dec();
    }
}

impl FromRequestParts<App> for StreamPlace {
    type Rejection = Error;

    async fn from_request_parts(_: &mut Parts, app: &App) -> Result<Self, Error> {
        Self::take(app)
    }
}

/// Limits a log line to one per interval.
#[derive(Default)]
pub(super) struct LogLimit(Mutex<Option<Instant>>);

impl LogLimit {
    pub(super) fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| last.elapsed() >= LOG_INTERVAL);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn take(places: &Arc<Places>) -> Option<Place> {
        places.take().now_or_never()
    }

    #[test]
    fn the_connection_idle_longest_gives_way() {
        let places = Places::new(2);
        let mut taken: Vec<_> = (0..2 + places.reserved).map(|_| take(&places).unwrap()).collect();
        assert!(taken[0].begin().is_none());
        taken[0].end();
        assert!(take(&places).is_none(), "one has to end first");
        let given_up: Vec<_> = taken.iter().map(|place| place.given_up.is_cancelled()).collect();
        assert!(given_up[1] && given_up.iter().filter(|given_up| **given_up).count() == 1, "the first was used since");
        taken.remove(1);
        taken.push(take(&places).unwrap());
        drop(taken);
        let open = places.open();
        assert_eq!((open.connections, open.busy, open.idle.len()), (0, 0, 0));
    }

    #[test]
    fn requests_beyond_the_limit_are_known_and_end() {
        let places = Places::new(1);
        let taken: Vec<_> = (0..=places.reserved).map(|_| take(&places).unwrap()).collect();
        let crowded = taken.iter().map(|place| place.begin().is_some()).filter(|crowded| *crowded).count();
        assert_eq!(crowded, places.reserved);
        assert!(take(&places).is_none(), "there is no room at all");
        taken[1].end();
        let last = take(&places);
        assert!(last.is_none() && taken[1].given_up.is_cancelled(), "an idle one has to end first");
        drop(taken);
        assert!(take(&places).unwrap().begin().is_none());
    }

    #[tokio::test]
    async fn a_request_that_ends_lets_a_waiting_connection_in() {
        let places = Places::new(1);
        let mut taken: Vec<_> = (0..=places.reserved).map(|_| take(&places).unwrap()).collect();
        let _all: Vec<_> = taken.iter().map(Place::begin).collect();
        let mut waiting = Box::pin(places.take());
        assert!(waiting.as_mut().now_or_never().is_none(), "there is no room");
        let ended = taken.pop().unwrap();
        ended.end();
        assert!(waiting.as_mut().now_or_never().is_none() && ended.is_given_up(), "the idle one is asked to end");
        drop(ended);
        assert!(waiting.now_or_never().is_some());
    }

    #[test]
    fn streams_leave_places_to_short_requests() {
        for (max_connections, streams) in [(1, 1), (7, 7), (8, 7), (256, 224), (4096, 3840), (65_535, 65_279)] {
            assert_eq!(Places::new(max_connections).streams.available_permits(), streams);
        }
    }
}
