//! Work on large texts that would block the executor: parsing 60 MiB takes a good part of a second.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Work on this many bytes takes a few milliseconds.
const LARGE_BYTES: usize = 256 * 1024;

/// Does work on `bytes` bytes. Meanwhile another thread takes over the other tasks of the executor. There are no more such
/// threads than callers, which are turns and requests.
pub(crate) fn off_executor<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let has_threads = || Handle::try_current().is_ok_and(|now| now.runtime_flavor() == RuntimeFlavor::MultiThread);
    if bytes >= LARGE_BYTES && has_threads() { tokio::task::block_in_place(work) } else { work() }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn work_on_what_is_large_holds_no_other_task_up() {
        let (sender, receiver) = mpsc::channel();
        let busy = tokio::spawn(async move {
            let other = tokio::spawn(async move { sender.send(()) });
            // This blocks the executor's only thread: another one has to run the other task.
            off_executor(LARGE_BYTES, || receiver.recv()).unwrap();
            other.await.unwrap().unwrap();
        });
        busy.await.unwrap();
    }

    #[tokio::test]
    async fn without_other_threads_it_is_done_at_once() {
        assert_eq!(off_executor(LARGE_BYTES, || 1), 1);
    }
}
