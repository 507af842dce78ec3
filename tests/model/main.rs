//! The real store against a model of it: random sequences of everything that the engine may ask of it, in any order, by
//! two workers, with a clock that also runs backwards and with a file that is closed and opened again. Agents say the lines
//! of a script; a worker that claims or takes over a run reads on at the stored offset. After each operation its answer and every
//! row are those of the model, and the invariants of the file hold: each line is there once.
//!
//! `PROPTEST_CASES=20000 cargo test --release --test model` tries a million operations more. A failure is shrunk, and
//! printed with the `PROPTEST_RNG_SEED` that reproduces it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod invariants;
mod ops;
mod picture;
mod reference;
mod sequences;
mod system;

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use mainstay::lease::Lease;
use mainstay::run::Cause;
use mainstay::workspace::WhenFull;
use ops::{Answer, Claim, Op, SCRIPT_LINES, Seen, Taken};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use proptest_state_machine::{StateMachineTest, prop_state_machine};
use reference::{Model, key};
use system::System;

/// Enough for every push, in a few seconds.
const CASES: u32 = 64;

static CONFIG: LazyLock<ProptestConfig> = LazyLock::new(|| {
    let given = ProptestConfig { failure_persistence: None, max_shrink_iters: 5000, ..ProptestConfig::default() };
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { given.cases } else { CASES };
    let seed = match given.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => RandomState::new().hash_one(cases),
    };
    // Printed if the test fails.
    println!("PROPTEST_RNG_SEED={seed} PROPTEST_CASES={cases}");
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(seed), ..given }
});

prop_state_machine! {
    #![proptest_config(CONFIG.clone())]
    #[test]
    fn the_store_does_what_the_model_says(sequential 40..=60 => System);
}

impl StateMachineTest for System {
    type SystemUnderTest = System;
    type Reference = Model;

    fn init_test(model: &Model) -> System {
        System::new(model)
    }

    fn apply(mut system: System, model: &Model, op: Op) -> System {
        system.step(&op, model);
        system
    }

    /// Nothing is stuck: the runs of lost workers are recovered, every session with a place gets its turn, and so do all others
    /// once idle sessions make room.
    fn teardown(mut system: System, mut model: Model) {
        system.recover(&mut model);
        system.drain(&mut model);
        for session in 0..model.sessions.len() {
            let waits = model.live_place(session).is_none();
            assert!(waits || !model.is_busy(session), "session {} is stuck", key(session));
        }
        // Each pool has a slot again, and idle places expire: the line moves up.
        for _ in 0..=model.sessions.len() {
            system.go(&mut model, Op::Tick(10_000_000));
            system.go(&mut model, Op::SyncSlots { workspace: 0, slots: 1, when_full: WhenFull::Share });
            system.go(&mut model, Op::SyncSlots { workspace: 1, slots: 1, when_full: WhenFull::Share });
            system.go(&mut model, Op::ExpireIdle { limit: 100 });
            system.drain(&mut model);
        }
        let left: Vec<_> = system.observer.seen.runs.iter().filter(|run| run.is_unsettled()).collect();
        assert!(left.is_empty(), "never settled: {left:?}");
        system.observer.is_undamaged();
    }
}

impl System {
    fn go(&mut self, model: &mut Model, op: Op) -> Answer {
        model.answer = model.apply(&op);
        self.step(&op, model);
        model.answer.clone()
    }

    /// What a sweep does with the runs of dead workers: the worker that takes one over reads its agent's output to the end.
    fn recover(&mut self, model: &mut Model) {
        for worker in [0, 1] {
            self.go(model, Op::Register { worker });
        }
        // No run is parked by then, whatever the clock did.
        self.go(model, Op::Tick(100_000_000));
        let seen = (1..)
            .zip(&model.runs)
            .filter_map(|(run, row)| Some(Seen { lease: Lease { run, token: row.token }, expires_at: row.lease?.1 }));
        let take_over = Op::TakeOver { worker: 0, dead: vec![], ran_out: seen.collect(), own: vec![], limit: 1000 };
        let taken = self.go(model, take_over);
        let Answer::Orphans(orphans) = taken else { panic!("{taken:?}") };
        for Taken { lease, said, cancel_requested, .. } in orphans {
            match (said, cancel_requested) {
                (_, true) => self.go(model, Op::Settle(ops::Settle { lease, cause: Cause::Cancelled, parts: None })),
                (true, false) => self.finish(model, lease),
                (false, false) => self.go(model, Op::PutBack { lease }),
            };
        }
    }

    fn drain(&mut self, model: &mut Model) {
        loop {
            let claim = Claim { worker: 1, limit: 3, places: [Some(2), Some(2)], session: None };
            let answer = self.go(model, Op::Claim(claim));
            let Answer::Claimed(claimed) = answer else { panic!("{answer:?}") };
            if claimed.is_empty() {
                return;
            }
            for (run, (token, _)) in claimed {
                self.finish(model, Lease { run, token });
            }
        }
    }

    /// Reads an agent's output to its end, and settles the run: then all of its script is stored.
    fn finish(&mut self, model: &mut Model, lease: Lease) -> Answer {
        let rest = ops::Append { lease, count: 100, bytes: 1, said: true, parts: None, asks: None, broken: false };
        self.go(model, Op::Append(rest));
        let answer = self.go(model, Op::Settle(ops::Settle { lease, cause: Cause::Finished, parts: Some(0) }));
        let said = &self.observer.seen.lines[&lease.run];
        let agent = model.runs[reference::index(lease.run)].agent;
        let whole: Vec<_> = (0..SCRIPT_LINES).map(|line| format!("{agent}:{line}")).collect();
        assert!(said.ends_with(&whole), "agent {agent} of run {} said {said:?}", lease.run);
        answer
    }
}
