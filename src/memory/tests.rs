//! Which caller gets memory, which one waits, and that none waits for ever.

use futures_util::FutureExt;

use super::*;

const MIB: usize = 1024 * 1024;

#[test]
fn a_pool_gives_more_than_it_has_to_one_who_is_alone() {
    let pool = Pool::new(10 * MIB);
    let small = pool.try_acquire(MIB).unwrap();
    let mut large = Box::pin(pool.acquire(100 * MIB));
    assert!(large.as_mut().now_or_never().is_none());
    // First come, first served: what is free is kept for who waits.
    assert_eq!((pool.used(), pool.waiting()), (10 * MIB, 1));
    assert!(pool.try_acquire(1).is_none());
    drop(small);
    let held = large.as_mut().now_or_never().unwrap();
    assert_eq!((pool.used(), pool.waiting()), (10 * MIB, 0));
    assert!(pool.try_acquire(1).is_none());
    drop(held);
    assert_eq!(pool.used(), 0);
}

fn read(account: &Account, bytes: usize) -> Option<Unsettled> {
    account.read(bytes).now_or_never()
}

#[tokio::test]
async fn the_largest_message_always_gets_to_its_end() {
    let memory = Memory::new(256 * MIB);
    let (first, second, small) = (memory.open_account(), memory.open_account(), memory.open_account());
    let half = (read(&first, 41 * MIB).unwrap(), read(&second, 15 * MIB).unwrap());
    // 96 MiB of 256 are for messages; what the first one may still need of its 80 stays free.
    assert!(read(&second, 10 * MIB).is_none());
    let more = read(&first, 39 * MIB).unwrap();
    assert!(read(&second, 10 * MIB).is_none());
    let own = read(&small, MIB).unwrap();
    assert!(read(&small, 10 * MIB).is_none());
    drop((half.0, more));
    let more = read(&second, 60 * MIB).unwrap();
    drop((first, second, half.1, more, small, own));
    assert_eq!(memory.messages.used(), 0);
    assert!(memory.messages.turns().kept.is_empty());
}

#[tokio::test]
async fn a_parked_turn_holds_no_other_up() {
    let memory = Memory::new(256 * MIB);
    let (parked, other) = (memory.open_account(), memory.open_account());
    let _held = read(&parked, 60 * MIB).unwrap();
    assert!(read(&other, 30 * MIB).is_none());
    // It stays as large as it is, and reads nothing.
    let began = Instant::now();
    let _more = other.read(30 * MIB).await;
    assert!(began.elapsed() >= PARKED_AFTER);
}

#[tokio::test]
async fn who_waits_is_woken_and_known_to_have_waited() {
    let memory = Memory::new(256 * MIB);
    let (large, other) = (memory.open_account(), memory.open_account());
    let mut held = read(&large, 90 * MIB).unwrap();
    assert_eq!(other.waited_until(), None);
    let waiting = tokio::spawn({
        let other = other.clone();
        async move { other.read(30 * MIB).await }
    });
    while memory.parts()[0].2 == 0 {
        tokio::task::yield_now().await;
    }
    assert!(other.waited_until().is_some());
    drop(held.split_off(10 * MIB));
    let _held = waiting.await.unwrap();
    assert_eq!(memory.parts()[0].2, 0);
    assert!(other.waited_until().is_some_and(|at| at <= Instant::now()));
}

#[tokio::test]
async fn who_is_to_end_waits_for_no_other_turn() {
    let memory = Memory::new(256 * MIB);
    let (large, other) = (memory.open_account(), memory.open_account());
    let _held = read(&large, 90 * MIB).unwrap();
    let waiting = tokio::spawn({
        let other = other.clone();
        async move { other.read(30 * MIB).await }
    });
    while memory.parts()[0].2 == 0 {
        tokio::task::yield_now().await;
    }
    other.hurry();
    let _more = waiting.await.unwrap();
    assert!(memory.parts()[0].2 == 0 && read(&other, 30 * MIB).is_some());
    assert!(read(&memory.open_account(), 30 * MIB).is_none(), "others wait on");
}
