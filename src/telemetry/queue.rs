//! Log lines on their way to a stream that may be slow, full or closed: a bounded queue and one thread that writes them.
//!
//! Always: pushing a line never blocks, fails or panics, whatever the reader of the stream does. A line that cannot be
//! queued or written is dropped and counted in `mainstay_log_lines_dropped_total`.
//!
//! Proof: the tests below, and `tests/faults/stderr.rs`.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::METRICS;

/// Most text that is queued: seconds of a busy daemon at debug level. Further lines are dropped.
const MAX_QUEUED_BYTES: usize = 1024 * 1024;
/// Pause before writing again to a full stream that another process has made non-blocking.
const FULL_STREAM_PAUSE: Duration = Duration::from_millis(10);

/// The queue.
#[derive(Debug, Default)]
pub(super) struct LineQueue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    is_writing: bool,
}

impl LineQueue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a line, which includes its line end.
    pub(super) fn push(&self, line: Vec<u8>) {
        let mut state = self.state();
        // An empty queue accepts a line of any length.
        if !state.lines.is_empty() && state.bytes + line.len() > MAX_QUEUED_BYTES {
            drop(state);
            METRICS.log_lines_dropped.inc();
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until all queued lines are written or dropped, but no longer than `timeout`.
    pub(super) fn flush(&self, timeout: Duration) {
        let give_up = Instant::now() + timeout;
        let mut state = self.state();
        while !state.lines.is_empty() || state.is_writing {
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes queued lines, for ever. Calls `recovered` with the number of dropped lines, once the stream accepts lines again
    /// and the queue is empty.
    pub(super) fn write_to(&self, mut out: impl Write, recovered: impl Fn(u64)) {
        let mut reported = METRICS.log_lines_dropped.get();
        // A line that was written in part is ended before the next one.
        let mut is_torn = false;
        loop {
            let line = self.next_line();
            let written = write_line(&mut out, &line, &mut is_torn);
            if written.is_err() {
                METRICS.log_lines_dropped.inc();
            }
            let is_idle = self.written();
            let dropped = METRICS.log_lines_dropped.get();
            if written.is_ok() && is_idle && dropped > reported {
                recovered(dropped - reported);
                reported = dropped;
            }
        }
    }

    fn next_line(&self) -> Vec<u8> {
        let mut state = self.state();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.bytes -= line.len();
                state.is_writing = true;
                return line;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The line was written. Returns whether the queue is empty.
    fn written(&self) -> bool {
        let mut state = self.state();
        state.is_writing = false;
        let is_idle = state.lines.is_empty();
        drop(state);
        self.changed.notify_all();
        is_idle
    }
}

fn write_line(out: &mut impl Write, line: &[u8], is_torn: &mut bool) -> io::Result<()> {
    if *is_torn {
        write_all(out, b"\n", &mut false)?;
        *is_torn = false;
    }
    write_all(out, line, is_torn)
}

/// Like `Write::write_all`, but waits while a non-blocking stream is full, and reports whether only a part was written.
fn write_all(out: &mut impl Write, mut rest: &[u8], is_torn: &mut bool) -> io::Result<()> {
    let length = rest.len();
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(FULL_STREAM_PAUSE),
            Err(error) => {
                *is_torn = rest.len() < length;
                return Err(error);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    /// A stream that returns one answer of the test for each write.
    struct Stream {
        answers: mpsc::Receiver<io::Result<usize>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stream {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let most = self.answers.recv().unwrap_or(Ok(usize::MAX))?;
            let count = most.min(bytes.len());
            self.written.lock().unwrap().extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Scene {
        queue: Arc<LineQueue>,
        answers: mpsc::Sender<io::Result<usize>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    fn scene() -> Scene {
        let (answers, receiver) = mpsc::channel();
        let (queue, written) = (Arc::new(LineQueue::default()), Arc::new(Mutex::new(Vec::new())));
        let stream = Stream { answers: receiver, written: written.clone() };
        let writing = queue.clone();
        std::thread::spawn(move || writing.write_to(stream, |_| ()));
        Scene { queue, answers, written }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_stream_that_is_not_read_blocks_no_one() {
        let scene = scene();
        let before = METRICS.log_lines_dropped.get();
        for _ in 0..3 * MAX_QUEUED_BYTES / 1000 {
            scene.queue.push(vec![b'x'; 1000]);
        }
        assert!(scene.queue.state().bytes <= MAX_QUEUED_BYTES);
        assert!(METRICS.log_lines_dropped.get() - before >= 1000);
        let begun = Instant::now();
        scene.queue.flush(Duration::from_millis(20));
        assert!(begun.elapsed() >= Duration::from_millis(20), "there was something left to write");
        // Dropping the sender lets every write through.
        drop(scene.answers);
        scene.queue.flush(LONG);
        assert!(scene.written.lock().unwrap().len() > MAX_QUEUED_BYTES - 1000);
    }

    #[test]
    fn line_that_has_the_queue_to_itself_is_taken() {
        let scene = scene();
        drop(scene.answers);
        scene.queue.push(vec![b'x'; MAX_QUEUED_BYTES + 1]);
        scene.queue.flush(LONG);
        assert_eq!(scene.written.lock().unwrap().len(), MAX_QUEUED_BYTES + 1);
    }

    #[test]
    fn a_line_that_fails_is_dropped_and_the_next_is_whole() {
        let scene = scene();
        let before = METRICS.log_lines_dropped.get();
        for line in ["one\n", "two\n", "three\n"] {
            scene.queue.push(line.into());
        }
        let full = || Err(ErrorKind::StorageFull.into());
        for answer in [full(), Ok(2), full(), Err(ErrorKind::WouldBlock.into()), Ok(1), Ok(3), Ok(100)] {
            scene.answers.send(answer).unwrap();
        }
        scene.queue.flush(LONG);
        assert_eq!(*scene.written.lock().unwrap(), b"tw\nthree\n");
        assert!(METRICS.log_lines_dropped.get() - before >= 2);
    }
}
