//! The memory limit for data in flight in this process: `engine.memory_limit`, in three parts without circular waits between
//! them.
//!
//! - messages: what a running turn keeps until its end: its message, and the line that is being read. Three eighths.
//! - output: the output of agents, from the line to the committed row. Three eighths.
//! - readers: data that waits for clients, and what clients send. A quarter.
//!
//! Always: waiters are served in order, as memory is released. A request for more than a whole part is granted when nothing else
//! is held, so that nothing is too large. Of the messages, enough stays free for the largest one to be completed, so two turns
//! cannot each hold half and wait for each other. The largest is chosen among the turns that are reading or waiting: a turn
//! whose agent is silent blocks no other one. A turn reserves for its message first and for its output second; output is
//! released by a commit, which waits for neither.

mod piece;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

pub use self::piece::{Allowed, PIECE_BYTES};

/// The part of a run's message that is not counted: an ordinary answer never waits for a large one.
const FREE_BYTES: usize = 1024 * 1024;
/// A turn that has not read for this long (its agent is silent, or waits for an answer) blocks no other turn.
const PARKED_AFTER: Duration = Duration::from_secs(5);
/// The most that one turn can hold: the largest message, and the default limit of a line.
const LARGEST_TURN_BYTES: usize = 80 * 1024 * 1024;
/// The output and the readers are counted in KiB.
const UNIT: usize = 1024;

/// The memory budget of a process. Clones share it.
#[derive(Debug, Clone)]
pub struct Memory {
    limit: usize,
    messages: Arc<Messages>,
    output: Pool,
    readers: Pool,
}

impl Memory {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        let eighth = limit / 8;
        Self {
            limit,
            messages: Arc::new(Messages { capacity: 3 * eighth, turns: Mutex::default(), changed: Notify::new() }),
            output: Pool::new(3 * eighth),
            readers: Pool::new(2 * eighth),
        }
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The part for data that waits for clients, and for what they send.
    pub fn readers(&self) -> &Pool {
        &self.readers
    }

    /// Opens the account of a turn.
    pub fn open_account(&self) -> Account {
        let key = self.messages.open();
        let (memory, waits, hurries) = (self.clone(), Mutex::default(), AtomicBool::new(false));
        Account(Arc::new(Turn { key, memory, waits, hurries }))
    }

    /// The bytes in use and the number of waiters, by part.
    pub(crate) fn parts(&self) -> [(&'static str, usize, usize); 3] {
        let messages = &self.messages;
        [
            ("messages", messages.used(), messages.turns().waiting),
            ("output", self.output.used(), self.output.waiting()),
            ("readers", self.readers.used(), self.readers.waiting()),
        ]
    }
}

impl Default for Memory {
    /// A budget without a limit.
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

/// A part whose memory is taken for a while. Clones share it.
#[derive(Debug, Clone)]
pub struct Pool {
    semaphore: Arc<Semaphore>,
    capacity: u32,
    waiting: Arc<AtomicUsize>,
}

/// A reservation, released when dropped.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    held: Option<OwnedSemaphorePermit>,
}

impl Permit {
    /// Releases all but `bytes`.
    pub fn shrink_to(mut self, bytes: usize) -> Self {
        if let Some(held) = &mut self.held {
            drop(held.split(held.num_permits().saturating_sub(bytes.div_ceil(UNIT))));
        }
        self
    }
}

impl Pool {
    fn new(bytes: usize) -> Self {
        let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
        let capacity = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).min(most);
        Self { semaphore: Arc::new(Semaphore::new(capacity as usize)), capacity, waiting: Arc::default() }
    }

    /// Reserves `bytes` once they are free: first come, first served. A caller that needs more than the whole part waits until
    /// all of it is free.
    ///
    /// Cancel safe. Reserving more while holding some may wait for ever.
    pub async fn acquire(&self, bytes: usize) -> Permit {
        if let Some(permit) = self.try_acquire(bytes) {
            return permit;
        }
        let _waiting = Counted::new(&self.waiting);
        // Fails only if the semaphore is closed, which it never is.
        Permit { held: self.semaphore.clone().acquire_many_owned(self.units(bytes)).await.ok() }
    }

    /// Reserves `bytes` if they are free and no other caller waits.
    pub fn try_acquire(&self, bytes: usize) -> Option<Permit> {
        let held = self.semaphore.clone().try_acquire_many_owned(self.units(bytes)).ok()?;
        Some(Permit { held: Some(held) })
    }

    fn units(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.capacity)
    }

    fn used(&self) -> usize {
        (self.capacity as usize).saturating_sub(self.semaphore.available_permits()).saturating_mul(UNIT)
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The memory that running turns keep.
#[derive(Debug)]
struct Messages {
    capacity: usize,
    turns: Mutex<Turns>,
    /// Notified when memory was released.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Turns {
    next: u64,
    waiting: usize,
    kept: BTreeMap<u64, Kept>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    /// Bytes of the message so far.
    message: usize,
    /// Bytes that were read and are not part of the message yet.
    read: usize,
    /// When it was last allowed to read.
    last_read: Option<Instant>,
    /// Whether it waits for memory.
    waits: bool,
}

impl Kept {
    /// The bytes that count against the limit.
    fn counted(self) -> usize {
        self.message.saturating_add(self.read).saturating_sub(FREE_BYTES)
    }

    fn is_parked(self) -> bool {
        !self.waits && self.last_read.is_none_or(|at| at.elapsed() >= PARKED_AFTER)
    }
}

impl Messages {
    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> u64 {
        let mut turns = self.turns();
        turns.next += 1;
        let key = turns.next;
        turns.kept.insert(key, Kept::default());
        key
    }

    fn used(&self) -> usize {
        self.turns().kept.values().map(|kept| kept.counted()).fold(0, usize::saturating_add)
    }

    /// Lets a turn read if there is memory, if it is the largest of the turns that are not parked (which always proceeds), or if
    /// it hurries.
    fn try_read(&self, key: u64, bytes: usize, hurries: bool) -> bool {
        let mut turns = self.turns();
        let Some(own) = turns.kept.get(&key).copied() else { return true };
        let last_read = Some(Instant::now());
        let grown = Kept { read: own.read.saturating_add(bytes), last_read, waits: false, ..own };
        if !hurries && grown.counted() > 0 && !self.may_grow(&turns.kept, key, own, grown) {
            turns.kept.insert(key, Kept { waits: true, ..own });
            return false;
        }
        turns.kept.insert(key, grown);
        true
    }

    fn may_grow(&self, kept: &BTreeMap<u64, Kept>, key: u64, own: Kept, grown: Kept) -> bool {
        let (mut sum, mut largest, mut is_largest) = (grown.counted(), grown.counted(), true);
        for (other, kept) in kept.iter().filter(|(other, _)| **other != key) {
            let counted = kept.counted();
            sum = sum.saturating_add(counted);
            largest = largest.max(counted);
            // Of two equally large ones, the older one counts as the largest.
            is_largest &= kept.is_parked() || counted < own.counted() || (counted == own.counted() && *other > key);
        }
        let to_its_end = LARGEST_TURN_BYTES.min(self.capacity).saturating_sub(largest);
        is_largest || self.capacity.checked_sub(sum).is_some_and(|free| free >= to_its_end)
    }

    fn change(&self, key: u64, change: impl FnOnce(&mut Kept)) {
        if let Some(kept) = self.turns().kept.get_mut(&key) {
            change(kept);
        }
        self.changed.notify_waiters();
    }
}

/// The account of one turn, shared by the task that reads its agent and the task that stores the output.
#[derive(Debug, Clone)]
pub struct Account(Arc<Turn>);

#[derive(Debug)]
struct Turn {
    key: u64,
    memory: Memory,
    waits: Mutex<Waits>,
    /// Whether it is to end, and therefore waits for no other turn.
    hurries: AtomicBool,
}

#[derive(Debug, Default)]
struct Waits {
    now: usize,
    ended: Option<Instant>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.memory.messages.turns().kept.remove(&self.key);
        self.memory.messages.changed.notify_waiters();
    }
}

/// Bytes read from an agent; they count until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Unsettled {
    account: Account,
    bytes: usize,
}

impl Account {
    /// Reserves memory for `bytes` that are to be read; waits until there is some.
    pub async fn read(&self, bytes: usize) -> Unsettled {
        let messages = &self.0.memory.messages;
        let try_read = || messages.try_read(self.0.key, bytes, self.hurries());
        if !try_read() {
            let _wait = self.wait();
            messages.turns().waiting += 1;
            let _counted = Waiting { messages, key: self.0.key };
            loop {
                let mut changed = std::pin::pin!(messages.changed.notified());
                changed.as_mut().enable();
                if try_read() {
                    break;
                }
                // Another turn becoming parked sends no notification, hence the timeout.
                let _ = timeout(PARKED_AFTER, changed).await;
            }
        }
        Unsettled { account: self.clone(), bytes }
    }

    /// An empty reservation of this account.
    pub fn nothing_read(&self) -> Unsettled {
        Unsettled { account: self.clone(), bytes: 0 }
    }

    /// Sets the current size of the turn's message.
    pub fn set_message(&self, bytes: usize) {
        self.0.memory.messages.change(self.0.key, |kept| kept.message = bytes);
    }

    /// Reserves memory for output that becomes rows.
    pub async fn output(&self, bytes: usize) -> Permit {
        let output = &self.0.memory.output;
        match output.try_acquire(bytes) {
            Some(permit) => permit,
            None => {
                let _wait = self.wait();
                output.acquire(bytes).await
            }
        }
    }

    /// The same, if the memory is free now and no other caller waits.
    pub fn try_output(&self, bytes: usize) -> Option<Permit> {
        self.0.memory.output.try_acquire(bytes)
    }

    /// Marks the turn as about to end: it reads without waiting for others, so that its memory is freed soon. For a turn that
    /// has little left to read.
    pub fn hurry(&self) {
        self.0.hurries.store(true, Ordering::Relaxed);
        self.0.memory.messages.changed.notify_waiters();
    }

    /// Whether the turn is marked so.
    pub fn hurries(&self) -> bool {
        self.0.hurries.load(Ordering::Relaxed)
    }

    /// Until when the turn last waited for memory: that time must not count as silence of its agent.
    pub fn waited_until(&self) -> Option<Instant> {
        let waits = self.waits();
        if waits.now > 0 { Some(Instant::now()) } else { waits.ended }
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.0.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) -> Wait<'_> {
        crate::metrics::METRICS.memory_waits.inc();
        self.waits().now += 1;
        Wait(self)
    }
}

struct Wait<'a>(&'a Account);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut waits = self.0.waits();
        waits.now -= 1;
        waits.ended = Some(Instant::now());
    }
}

struct Waiting<'a> {
    messages: &'a Messages,
    key: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut turns = self.messages.turns();
        turns.waiting -= 1;
        if let Some(kept) = turns.kept.get_mut(&self.key) {
            kept.waits = false;
        }
    }
}

/// The memory that a piece of an agent's output takes until it is stored; none by default.
#[derive(Debug, Clone, Default)]
pub struct Held {
    _output: Option<Arc<Permit>>,
    _read: Option<Arc<Unsettled>>,
}

impl Held {
    /// Holds both reservations.
    pub fn new(output: Option<Arc<Permit>>, read: Unsettled) -> Self {
        Self { _output: output, _read: Some(Arc::new(read)) }
    }
}

impl PartialEq for Held {
    /// Memory is not part of the value that is compared.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Unsettled {
    /// Splits off all but `rest` bytes.
    pub fn split_off(&mut self, rest: usize) -> Self {
        let bytes = self.bytes.saturating_sub(rest);
        self.bytes -= bytes;
        Self { account: self.account.clone(), bytes }
    }

    /// Merges another reservation of the same account.
    pub fn add(&mut self, mut more: Self) {
        self.bytes += std::mem::take(&mut more.bytes);
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.account.0.memory.messages.change(self.account.0.key, |kept| kept.read -= self.bytes);
        }
    }
}
