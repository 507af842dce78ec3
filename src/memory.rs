//! The memory that what is in flight may take in this process: `engine.memory_limit`, in three parts that never wait for
//! each other in a circle.
//!
//! - messages: what a running turn keeps until its end, its message and the line that is being read. Three eighths.
//! - output: what an agent said, from its line to its row. Three eighths.
//! - readers: what waits for clients, and what they send. A quarter.
//!
//! Always: who has to wait is served, in order, once others have given back. More than a whole part is given to one who is
//! alone, so that nothing is too large to be done. Of the messages, so much stays free that the largest one can grow to its
//! end; so the turns cannot each hold a half and wait for the other. The largest means among those that read or wait: one whose agent
//! is silent holds none up. A turn takes of its message first and of the output
//! second; a part of the output is given back by a commit, which waits for neither.

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

/// What a run keeps of its message without asking: an ordinary answer never waits for a large one.
const FREE_BYTES: usize = 1024 * 1024;
/// A turn that has not read for this long (its agent is silent, or waits for an answer) holds no other one up.
const PARKED_AFTER: Duration = Duration::from_secs(5);
/// What one turn may come to hold: the greatest message, and the longest line by default.
const LARGEST_TURN_BYTES: usize = 80 * 1024 * 1024;
/// The output and the readers count in KiB.
const UNIT: usize = 1024;

/// The memory of a process. Clones share it.
#[derive(Debug, Clone)]
pub struct Memory {
    limit: usize,
    messages: Arc<Messages>,
    output: Pool,
    readers: Pool,
}

impl Memory {
    /// Memory of which so many bytes may be taken.
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

    /// What waits for clients, and what they send.
    pub fn readers(&self) -> &Pool {
        &self.readers
    }

    /// The account of a turn.
    pub fn open_account(&self) -> Account {
        let key = self.messages.open();
        let (memory, waits, hurries) = (self.clone(), Mutex::default(), AtomicBool::new(false));
        Account(Arc::new(Turn { key, memory, waits, hurries }))
    }

    /// How much is taken, and how many wait for more, by part.
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
    /// Without a limit.
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

/// A part that is taken for a while. Clones share it.
#[derive(Debug, Clone)]
pub struct Pool {
    semaphore: Arc<Semaphore>,
    capacity: u32,
    waiting: Arc<AtomicUsize>,
}

/// Memory that is taken until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    held: Option<OwnedSemaphorePermit>,
}

impl Permit {
    /// Gives back all but so many bytes.
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

    /// Takes so many bytes, once they are free: first come, first served. A caller that wants more than the whole waits to be alone.
    ///
    /// Cancel safe. To take more while something is held may wait for ever.
    pub async fn acquire(&self, bytes: usize) -> Permit {
        if let Some(permit) = self.try_acquire(bytes) {
            return permit;
        }
        let _waiting = Counted::new(&self.waiting);
        // It fails only when the semaphore is closed, which it never is.
        Permit { held: self.semaphore.clone().acquire_many_owned(self.units(bytes)).await.ok() }
    }

    /// Takes so many bytes if they are free and no other caller waits.
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

/// What the running turns keep.
#[derive(Debug)]
struct Messages {
    capacity: usize,
    turns: Mutex<Turns>,
    /// Something was given back.
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
    /// The message as far as it has got.
    message: usize,
    /// What was read and has not become a part of it.
    read: usize,
    /// When it was last given room.
    last_read: Option<Instant>,
    /// It waits for room.
    waits: bool,
}

impl Kept {
    /// What counts of it.
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

    /// Lets a turn read on when there is room, or when it is the largest of those that are not parked, which always gets on;
    /// and one that hurries.
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
            // Of two that are equally large the older one is.
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

/// What one turn takes, shared by who reads its agent and who stores what that says.
#[derive(Debug, Clone)]
pub struct Account(Arc<Turn>);

#[derive(Debug)]
struct Turn {
    key: u64,
    memory: Memory,
    waits: Mutex<Waits>,
    /// It is to end, and waits for no other turn.
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

/// Bytes that were read of an agent and count until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Unsettled {
    account: Account,
    bytes: usize,
}

impl Account {
    /// Takes room for bytes that are to be read, once there is.
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
                // That another turn is parked tells itself by nothing.
                let _ = timeout(PARKED_AFTER, changed).await;
            }
        }
        Unsettled { account: self.clone(), bytes }
    }

    /// Nothing so far.
    pub fn nothing_read(&self) -> Unsettled {
        Unsettled { account: self.clone(), bytes: 0 }
    }

    /// What the message of the turn has come to.
    pub fn set_message(&self, bytes: usize) {
        self.0.memory.messages.change(self.0.key, |kept| kept.message = bytes);
    }

    /// Takes memory for what becomes rows.
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

    /// The same, if it is free now and no other caller waits.
    pub fn try_output(&self, bytes: usize) -> Option<Permit> {
        self.0.memory.output.try_acquire(bytes)
    }

    /// The turn is to end: it reads on without waiting for others, which frees what it keeps. For a turn of which little is
    /// left to be read.
    pub fn hurry(&self) {
        self.0.hurries.store(true, Ordering::Relaxed);
        self.0.memory.messages.changed.notify_waiters();
    }

    /// Whether it does.
    pub fn hurries(&self) -> bool {
        self.0.hurries.load(Ordering::Relaxed)
    }

    /// Until when the turn was last kept waiting: what its agent does not say meanwhile is no silence of its own.
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

/// What a piece of an agent's output takes until it is stored; nothing by default.
#[derive(Debug, Clone, Default)]
pub struct Held {
    _output: Option<Arc<Permit>>,
    _read: Option<Arc<Unsettled>>,
}

impl Held {
    /// Holds both.
    pub fn new(output: Option<Arc<Permit>>, read: Unsettled) -> Self {
        Self { _output: output, _read: Some(Arc::new(read)) }
    }
}

impl PartialEq for Held {
    /// What it takes says nothing of what it is.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Unsettled {
    /// Takes all but `rest` bytes out of it.
    pub fn split_off(&mut self, rest: usize) -> Self {
        let bytes = self.bytes.saturating_sub(rest);
        self.bytes -= bytes;
        Self { account: self.account.clone(), bytes }
    }

    /// Adds what was taken of the same account.
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
