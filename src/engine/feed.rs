//! The feed: committed events for live readers. A [`Follower`] subscribes first, then pages rows from the store up to the
//! newest, then follows the commits; if it lags, or another process wrote, it returns to the store.
//!
//! Always: nothing is shown before it is committed. Memory is a ring of shared rows for each session, bounded in bytes, and
//! one piece for each reader, whatever their number and speed. A signal only shortens a follower's wait; it also polls.
//!
//! Proof: `tests/it/feed.rs`.

mod live;
mod pause;
mod pieces;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, broadcast, watch};
use tokio::time::Instant;

use crate::chunk::Chunk;
use crate::clock::Timestamp;
use crate::event::{Event, Seq};
use crate::id::RunId;
use crate::lease::{RunKey, SessionKey};
use crate::memory::{Memory, Pool};
use crate::metrics::METRICS;
use crate::store::event::{EventPage, Range};
use crate::store::{Committed, Notice, Store, StoreError};

use live::Live;
pub use pause::Pause;
use pause::Pausing;
use pieces::Part;

/// Commits that a reader may be behind before it goes back to the store.
const RING: usize = 64;
/// Events in one read of the store: one page takes well under a millisecond.
const PAGE: i64 = 1000;
/// Poll interval of a follower, in case a signal was lost.
const FEED_POLL_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
enum Signal {
    Events(Arc<Live>),
    Look,
}

struct Channel {
    signals: broadcast::Sender<Signal>,
    /// The newest event that the readers were given, or signalled to read.
    published: Seq,
    /// The bytes that its readers may still keep.
    room: Arc<Semaphore>,
}

/// The live readers of this process, by session.
pub struct Feed {
    /// The memory that its readers take.
    memory: Pool,
    channels: Mutex<HashMap<SessionKey, Channel>>,
    /// Wakes the watcher: this process now needs to know what other processes commit.
    pub(super) wanted: Notify,
    /// Marked whenever the database has changed, for readers that wait for a session to appear.
    changes: watch::Sender<()>,
}

impl Default for Feed {
    /// A feed whose readers take memory without a limit.
    fn default() -> Self {
        Self::within(&Memory::default())
    }
}

impl Feed {
    /// A feed whose readers take a part of this memory.
    pub fn within(memory: &Memory) -> Self {
        Self {
            memory: memory.readers().clone(),
            channels: Mutex::default(),
            wanted: Notify::new(),
            changes: watch::Sender::default(),
        }
    }

    fn channels(&self) -> MutexGuard<'_, HashMap<SessionKey, Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscribe(&self, session: SessionKey) -> broadcast::Receiver<Signal> {
        let receiver = {
            let mut channels = self.channels();
            let channel = channels.entry(session).or_insert_with(|| Channel {
                signals: broadcast::channel(RING).0,
                published: 0,
                room: Arc::new(Semaphore::new(live::SESSION_BYTES)),
            });
            channel.signals.subscribe()
        };
        self.wanted.notify_one();
        receiver
    }

    /// Passes a commit to the readers of its session. Called by the writer, in commit order.
    pub fn publish(&self, notice: &Notice) {
        let (session, committed) = match notice {
            Notice::EventsCommitted(committed) => (committed.session, Some(committed)),
            Notice::EventsAppended(session) => (*session, None),
            Notice::Ready
            | Notice::Closing
            | Notice::Backends
            | Notice::CancelRequested(_)
            | Notice::PermissionAnswered(_) => return,
        };
        let mut channels = self.channels();
        let Some(channel) = channels.get_mut(&session) else { return };
        if let Some(committed) = committed {
            channel.published = channel.published.max(live::last_seq(committed));
        }
        let signal = committed.map_or(Signal::Look, |committed| self.signal(channel, committed.clone()));
        if channel.signals.send(signal).is_err() {
            // The last reader has gone.
            channels.remove(&session);
        }
    }

    fn signal(&self, channel: &Channel, committed: Arc<Committed>) -> Signal {
        let live = Live::new(committed, &channel.room, &self.memory);
        live.map_or(Signal::Look, |live| Signal::Events(Arc::new(live)))
    }

    /// The sessions that are being followed.
    fn followed_sessions(&self) -> Vec<SessionKey> {
        let mut channels = self.channels();
        channels.retain(|_, channel| channel.signals.receiver_count() > 0);
        channels.keys().copied().collect()
    }

    /// The number of live readers.
    pub(super) fn followers(&self) -> usize {
        self.channels().values().map(|channel| channel.signals.receiver_count()).sum()
    }

    /// Whether a reader follows a session, or waits for one to appear.
    pub(super) fn is_followed(&self) -> bool {
        self.changes.receiver_count() > 0 || !self.followed_sessions().is_empty()
    }

    /// A receiver that is marked whenever the database changes, by whichever process.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        let changes = self.changes.subscribe();
        self.wanted.notify_one();
        changes
    }

    /// Passes the commits of other processes to the readers. Called when the database has changed.
    pub(super) async fn look(&self, store: &Store) -> Result<(), StoreError> {
        self.changes.send_replace(());
        let sessions = self.followed_sessions();
        if sessions.is_empty() {
            return Ok(());
        }
        for (session, last_seq) in store.last_seqs(&sessions).await? {
            let published = self.channels().get(&session).map(|channel| channel.published);
            let Some(published) = published.filter(|published| *published < last_seq) else { continue };
            // Readers that just subscribed are still reading from the store, and a reader that is far behind is better off
            // there. Otherwise the rows are read once for all readers of this process.
            let is_near = published != 0 && last_seq - published <= PAGE;
            let range = Range { session, run: None, after: published, limit: last_seq - published };
            let page = if is_near { store.event_page_without_large(range).await? } else { EventPage::default() };
            // A large event is not read here either: it would keep the other readers waiting.
            let look = page.more || !is_near || page.large.is_some();
            let commits = if page.large.is_some() { Vec::new() } else { regroup(session, page.events) };
            if let Some(channel) = self.channels().get_mut(&session) {
                channel.published = channel.published.max(last_seq);
                let commits = commits.into_iter().map(|committed| self.signal(channel, committed));
                // Each reader reads for itself what does not fit into a page.
                for signal in commits.chain(look.then_some(Signal::Look)) {
                    // No readers are left: the next commit removes the channel.
                    let _ = channel.signals.send(signal);
                }
            }
        }
        Ok(())
    }
}

/// Groups rows of the store into commits as they could have been: one for consecutive events of a run.
fn regroup(session: SessionKey, events: Vec<Event>) -> Vec<Arc<Committed>> {
    let mut groups: Vec<Committed> = Vec::new();
    for event in events {
        let json = event.event.get();
        let ends_run = is_finish(json);
        match groups.last_mut().filter(|group| group.run_id == event.run_id) {
            Some(group) => {
                Arc::make_mut(&mut group.events).push(json.to_owned());
                group.ends_run |= ends_run;
            }
            None => {
                let events = vec![json.to_owned()];
                groups.push(Committed::new(session, event.run_id, event.at, event.seq, events, ends_run));
            }
        }
    }
    groups.into_iter().map(Arc::new).collect()
}

fn is_finish(json: &str) -> bool {
    json.starts_with(r#"{"type":"finish","#)
}

/// What is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One run, to its end.
    Run {
        /// Its row.
        key: RunKey,
        /// Its id.
        id: RunId,
    },
    /// A session, across its runs, for ever.
    Session,
}

/// Follows a run or a session from a cursor: replay, then live.
pub struct Follower {
    store: Store,
    session: SessionKey,
    scope: Scope,
    cursor: Seq,
    signals: broadcast::Receiver<Signal>,
    state: State,
    /// For a chat: the stream ends where a person has to answer.
    pausing: Option<Pausing>,
    /// A large event that is given out in pieces.
    part: Option<Part>,
    memory: Pool,
    /// When the next poll of the store is due. Kept between calls, because a caller may drop them more often than that.
    look_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There may be more in the store.
    CatchingUp,
    /// All that was committed is given out; the feed brings the rest.
    Live,
    /// The run was cancelled in the queue, and its span has to wait for the run before it.
    NeverBegun,
    /// The run is over, and all of it is given out.
    Finished,
}

enum Step {
    /// There may be more in the store.
    Stored(Range),
    /// The tail of what was just committed, from this index on.
    Live(Arc<Live>, usize),
    /// The end of a run that never began.
    NeverBegun(RunId),
}

/// An event as a follower gets it.
#[derive(Debug, Clone)]
pub struct Followed {
    /// Its place in the session's log; none for the end of a run that never began, which is written later.
    pub seq: Option<Seq>,
    /// When it was committed.
    pub at: Timestamp,
    /// The run that it belongs to.
    pub run_id: RunId,
    /// The chunk, as JSON.
    pub event: String,
}

impl Follower {
    /// A follower of the commits that `feed` publishes for `store`, and of what is stored already. [`super::Engine`] has
    /// methods that return one.
    pub fn new(feed: &Feed, store: Store, session: SessionKey, scope: Scope, after: Seq) -> Self {
        let signals = feed.subscribe(session);
        let (state, look_at) = (State::CatchingUp, Instant::now());
        let memory = feed.memory.clone();
        Self { store, session, scope, cursor: after, signals, state, pausing: None, part: None, memory, look_at }
    }

    /// The newest event that was given out, or the cursor that it began with.
    pub fn cursor(&self) -> Seq {
        self.cursor
    }

    /// The next events of the stream. `None` after the end of a run.
    ///
    /// Cancel safe: a dropped call loses nothing.
    ///
    /// # Errors
    /// Any failure of the database.
    pub async fn next_events(&mut self) -> Result<Option<Vec<Followed>>, StoreError> {
        loop {
            match self.step().await? {
                None => return Ok(None),
                Some(Step::Stored(range)) => {
                    let events = self.store.event_page(range).await?.events;
                    let events = events.last().map(|last| last.seq).map(|last_seq| (last_seq, events));
                    if let Some(events) = self.advance(events).await? {
                        let followed = events.into_iter().map(|event| Followed {
                            seq: Some(event.seq),
                            at: event.at,
                            run_id: event.run_id,
                            event: event.event.get().to_owned(),
                        });
                        return Ok(Some(followed.collect()));
                    }
                }
                Some(Step::Live(live, from)) => return Ok(Some(live.followed(from))),
                Some(Step::NeverBegun(id)) => return Ok(Some(self.never_begun(id).await?)),
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Step>, StoreError> {
        loop {
            match self.state {
                State::Finished => return Ok(None),
                State::CatchingUp => {
                    let run = match self.scope {
                        Scope::Run { key, .. } => Some(key),
                        Scope::Session => None,
                    };
                    return Ok(Some(Step::Stored(Range {
                        session: self.session,
                        run,
                        after: self.cursor,
                        limit: PAGE,
                    })));
                }
                State::NeverBegun => match self.scope {
                    Scope::Run { id, .. } => return Ok(Some(Step::NeverBegun(id))),
                    Scope::Session => self.state = State::Live,
                },
                State::Live => match tokio::time::timeout_at(self.look_at, self.signals.recv()).await {
                    Ok(Ok(Signal::Events(live))) => {
                        if let Some(step) = self.take_live(live) {
                            return Ok(Some(step));
                        }
                    }
                    Err(_) | Ok(Ok(Signal::Look)) => self.state = State::CatchingUp,
                    Ok(Err(broadcast::error::RecvError::Lagged(commits))) => {
                        METRICS.readers_lagged.inc();
                        // Logged at debug only: how often it happens is up to the reader.
                        tracing::debug!(commits, scope = ?self.scope, "a reader fell behind, and reads on from the store");
                        self.state = State::CatchingUp;
                    }
                    Ok(Err(broadcast::error::RecvError::Closed)) => {
                        // Only while the process shuts down; until then the store is polled at the usual interval.
                        tokio::time::sleep(FEED_POLL_INTERVAL).await;
                        self.state = State::CatchingUp;
                    }
                },
            }
        }
    }

    /// Rows that were just committed, unless they are known, belong to another run, or leave a gap.
    fn take_live(&mut self, committed: Arc<Live>) -> Option<Step> {
        if let Scope::Run { id, .. } = self.scope
            && committed.run_id != id
        {
            return None;
        }
        let last_seq = committed.last_seq();
        if last_seq <= self.cursor {
            return None;
        }
        if committed.first_seq > self.cursor + 1 {
            self.state = State::CatchingUp;
            return None;
        }
        let from = usize::try_from(self.cursor + 1 - committed.first_seq).unwrap_or_default();
        self.cursor = last_seq;
        if committed.ends_run && self.scope != Scope::Session {
            self.state = State::Finished;
        }
        Some(Step::Live(committed, from))
    }

    /// Moves the cursor past a page; an empty page means that all is read, or that the run is over.
    async fn advance<T>(&mut self, page: Option<(Seq, T)>) -> Result<Option<T>, StoreError> {
        if let Some((last_seq, content)) = page {
            self.cursor = last_seq;
            return Ok(Some(content));
        }
        let run = match self.scope {
            Scope::Run { id, .. } => self.store.find_run(id).await?,
            Scope::Session => None,
        };
        // No await from here on: a dropped call has either changed the state, or the next call repeats the query.
        self.state = match run {
            Some(run) if run.run.status.is_settled() => match run.run.last_seq {
                Some(last_seq) if last_seq > self.cursor => State::CatchingUp,
                Some(_) => State::Finished,
                None => State::NeverBegun,
            },
            _ => State::Live,
        };
        self.look_at = Instant::now() + FEED_POLL_INTERVAL;
        Ok(None)
    }

    /// The events that will be written for a run that was cancelled in the queue, without waiting for the run before it.
    async fn never_begun(&mut self, id: RunId) -> Result<Vec<Followed>, StoreError> {
        let run = self.store.find_run(id).await?;
        self.state = State::Finished;
        let Some(run) = run else { return Ok(Vec::new()) };
        let at = run.run.settled_at.unwrap_or(run.run.queued_at);
        let start = Chunk::start(id, &run.run.session_id, &run.run.response_id);
        let end = Chunk::end_of_a_run_cancelled_in_the_queue();
        let chunks = std::iter::once(start).chain(end);
        Ok(chunks.map(|chunk| Followed { seq: None, at, run_id: id, event: chunk.to_json() }).collect())
    }
}
