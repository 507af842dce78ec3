//! The life of a backend as a function: total, ignoring stale events, with bounded restarts, and never with two processes
//! at once.

use std::time::Duration;

use mainstay::backend::{
    BackendEvent, BackendState, Effect, HealthPolicy, Refusal, Transition, TransitionContext, Why, transition,
};
use mainstay::clock::Timestamp;
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_millis(second * 1000)
}

fn calm(generation: i64, now: i64) -> TransitionContext<'static> {
    TransitionContext {
        now: at(now),
        generation,
        restarts: &[],
        was_well: true,
        not_before: None,
        is_busy: false,
        hung_for: Duration::ZERO,
        close_when_idle: false,
    }
}

fn states() -> impl Strategy<Value = BackendState> {
    prop::sample::select(BackendState::ALL.to_vec())
}

fn events() -> impl Strategy<Value = BackendEvent> {
    prop::sample::select(BackendEvent::ALL.to_vec())
}

#[test]
fn every_event_in_every_state_is_as_written_down() {
    // S starting, R running, C crashed, P restarting (pause), E stopping (end), X stopped; · nothing.
    //         Start Started NotStarted Healthy Unhealthy Hung Exited Stop Idle RetryDue
    let table = [
        (BackendState::Stopped, "S·········"),
        (BackendState::Starting, "·SXR·CPEE·"),
        (BackendState::Running, "···RRCPEE·"),
        (BackendState::Crashed, "······PEE·"),
        (BackendState::Restarting, "·······XXS"),
        (BackendState::Stopping, "··X···X···"),
    ];
    for (state, row) in table {
        let said: String = BackendEvent::ALL
            .into_iter()
            .map(|event| match transition(state, 1, event, &HealthPolicy::default(), &calm(1, 0)) {
                Transition::Nothing(_) => '·',
                Transition::Refused(refusal) => panic!("{state:?} {event:?}: {refusal:?}"),
                Transition::Move(to, _) => match to {
                    BackendState::Starting => 'S',
                    BackendState::Running => 'R',
                    BackendState::Crashed => 'C',
                    BackendState::Restarting => 'P',
                    BackendState::Stopping => 'E',
                    BackendState::Stopped => 'X',
                },
            })
            .collect();
        assert_eq!(said, row, "{state:?}");
    }
}

#[test]
fn one_that_a_turn_is_on_is_neither_ended_nor_restarted_unless_it_hangs_for_long() {
    let (care, busy) = (HealthPolicy::default(), TransitionContext { is_busy: true, ..calm(1, 0) });
    for event in [BackendEvent::Stop, BackendEvent::IdleTimeout, BackendEvent::Hung] {
        let refused = transition(BackendState::Running, 1, event, &care, &busy);
        assert_eq!(refused, Transition::Refused(Refusal::Busy), "{event:?}");
    }
    let long = TransitionContext { hung_for: care.spare_busy_for, ..busy };
    let restarted = transition(BackendState::Running, 1, BackendEvent::Hung, &care, &long);
    assert_eq!(restarted, Transition::Move(BackendState::Crashed, Effect::End));
}

#[test]
fn the_pause_doubles_and_then_it_is_given_up_for_a_while() {
    let care = HealthPolicy::default();
    let pauses: Vec<_> = (0..=10).map(|restarts| care.pause(restarts).as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30]);
    assert_eq!(care.pause(usize::MAX), care.longest_pause);

    let restarts: Vec<_> = (0..10).map(at).collect();
    let crash = |now| {
        let about = TransitionContext { restarts: &restarts, ..calm(1, now) };
        transition(BackendState::Running, 1, BackendEvent::Exited, &care, &about)
    };
    assert_eq!(crash(10), Transition::Move(BackendState::Stopped, Effect::GiveUp(at(310))));
    // The oldest crash no longer counts.
    assert_eq!(crash(300), Transition::Move(BackendState::Restarting, Effect::Pause(at(330))));

    let closed = TransitionContext { not_before: Some(at(310)), ..calm(1, 309) };
    let start = |about: &TransitionContext<'_>| transition(BackendState::Stopped, 1, BackendEvent::Start, &care, about);
    assert_eq!(start(&closed), Transition::Refused(Refusal::Closed(at(310))));
    let open = TransitionContext { now: at(310), ..closed };
    assert_eq!(start(&open), Transition::Move(BackendState::Starting, Effect::Begin));
}

#[test]
fn one_that_never_answered_is_given_up_after_few_starts_and_not_for_long() {
    let care = HealthPolicy::default();
    let crash = |generation, was_well| {
        let about = TransitionContext { was_well, ..calm(generation, 10) };
        transition(BackendState::Starting, generation, BackendEvent::Exited, &care, &about)
    };
    let again = Transition::Move(BackendState::Restarting, Effect::Pause(at(11)));
    assert_eq!([crash(1, false), crash(2, false), crash(3, true), crash(100, true)], [again; 4]);
    let given_up = Transition::Move(BackendState::Stopped, Effect::GiveUp(at(40)));
    assert_eq!([crash(3, false), crash(4, false)], [given_up; 2]);
}

proptest! {
    #[test]
    fn what_an_older_start_left_behind_changes_nothing(
        state in states(), event in events(), generation in 0..100_i64, newer in 1..100_i64, is_busy: bool
    ) {
        let about = TransitionContext { is_busy, ..calm(generation + newer, 0) };
        let said = transition(state, generation, event, &HealthPolicy::default(), &about);
        prop_assert_eq!(said, Transition::Nothing(Why::Stale));
    }

    /// A life of random events, with a process that exists from each start to its confirmed end.
    #[test]
    fn a_life_has_one_process_at_a_time_and_few_restarts(
        happenings in prop::collection::vec((events(), any::<bool>(), 0..40_i64, any::<bool>()), 0..300)
    ) {
        let care = HealthPolicy::default();
        let (mut state, mut generation, mut now) = (BackendState::Stopped, 0, 0);
        let (mut has_process, mut not_before, mut was_well) = (false, None, false);
        let mut restarts: Vec<Timestamp> = Vec::new();
        for (event, is_busy, passed, is_stale) in happenings {
            now += passed;
            // Only an existing process ends, and one that did not start does not exist.
            if matches!(event, BackendEvent::Exited | BackendEvent::NotStarted) && !is_stale && !has_process {
                continue;
            }
            let about = TransitionContext { is_busy, restarts: &restarts, was_well, not_before, ..calm(generation, now) };
            let of = if is_stale { generation - 1 } else { generation };
            if matches!(event, BackendEvent::Exited | BackendEvent::NotStarted) && !is_stale {
                has_process = false;
            }
            let Transition::Move(to, effect) = transition(state, of, event, &care, &about) else { continue };
            prop_assert!(!is_stale);
            match effect {
                Effect::Begin => {
                    prop_assert!(!has_process, "{state:?} {event:?}");
                    prop_assert!(not_before.is_none_or(|until| state == BackendState::Restarting || at(now) >= until));
                    (has_process, generation) = (true, generation + 1);
                }
                Effect::Pause(until) => {
                    prop_assert!(was_well || generation < care.most_first_starts);
                    prop_assert!(until >= at(now) + care.first_pause && until <= at(now) + care.longest_pause);
                    restarts.push(at(now));
                    let recent = restarts.iter().filter(|restart| at(now).since(**restart) < care.window).count();
                    prop_assert!(recent <= care.most_restarts);
                }
                Effect::None | Effect::End | Effect::GiveUp(_) => {}
            }
            not_before = match effect {
                Effect::Pause(until) | Effect::GiveUp(until) => Some(until),
                Effect::None | Effect::Begin | Effect::End => None,
            };
            was_well |= event == BackendEvent::Healthy;
            state = to;
            let may_be_without = matches!(state, BackendState::Stopped | BackendState::Restarting);
            prop_assert!(!(may_be_without && has_process), "{state:?} after {event:?} with a process");
        }
    }
}
