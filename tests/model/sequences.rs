//! How a sequence of operations is generated: mostly what a well-behaved engine would do next, often enough something stale,
//! repeated or unknown.

use std::collections::{BTreeMap, BTreeSet};

use mainstay::lease::{Lease, RunKey};
use mainstay::run::{Cause, Status, WhenBusy};
use mainstay::store::run::Purpose;
use mainstay::workspace::WhenFull;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;
use proptest_state_machine::ReferenceStateMachine;

use crate::ops::{Append, Ask, Claim, Enqueue, Op, SESSIONS, START_MS, Seen, Settle, TTL_MS};
use crate::reference::{MessageName, Model, index, key};

fn enqueue(model: &Model) -> BoxedStrategy<Op> {
    let sent = model.messages.iter().filter_map(|message| match message.name {
        MessageName::Sent(name) => Some((model.sessions[message.session].name, name)),
        MessageName::AnswerOf(_) => None,
    });
    let again: Vec<_> = sent.chain([(0, 0)]).collect();
    let target = prop_oneof![
        6 => (0..SESSIONS, 0..30_usize).prop_map(|to| (to, Purpose::Send)),
        1 => select(again.clone()).prop_map(|to| (to, Purpose::Send)),
        1 => select(again.clone()).prop_map(|to| (to, Purpose::Regenerate)),
        1 => select(again).prop_map(|to| (to, Purpose::Edit)),
    ];
    let when_busy = prop_oneof![
        6 => Just(WhenBusy::Enqueue),
        1 => Just(WhenBusy::Reject),
        2 => Just(WhenBusy::Interrupt)
    ];
    let priority = select(vec![0, 0, 0, -1, 5, 1000]);
    let seldom = || prop::bool::weighted(0.1);
    let options = (when_busy, when_full(), priority, seldom(), seldom(), seldom());
    (target, 0..2_usize, 0..2_usize, 0..3_u8, options)
        .prop_map(|((target, purpose), workspace, agent, text, options)| {
            let (session, message) = target;
            let (when_busy, when_full, priority, named, close_when_idle, goes_next) = options;
            Op::Enqueue(Enqueue {
                session,
                workspace,
                agent,
                named,
                message,
                text,
                purpose,
                when_busy,
                when_full,
                priority,
                close_when_idle,
                goes_next,
            })
        })
        .boxed()
}

/// Mostly what lets sessions wait.
fn when_full() -> impl Strategy<Value = WhenFull> {
    use WhenFull::{Reclaim, Reject, Share, Wait};
    select(vec![Reclaim, Reclaim, Reclaim, Share, Wait, Wait, Reject])
}

fn claim() -> BoxedStrategy<Op> {
    let most = || prop_oneof![1 => Just(None), 3 => Just(Some(1)), 5 => (2..4_u32).prop_map(Some)];
    let session = prop_oneof![4 => Just(None), 1 => (1..=key(SESSIONS)).prop_map(Some)];
    (0..2_usize, select(vec![1, 2, 8]), [most(), most()], session)
        .prop_map(|(worker, limit, places, session)| Op::Claim(Claim { worker, limit, places, session }))
        .boxed()
}

/// A worker that claims one particular run knows that run: its claim is not handed in together with the send. A worker that has
/// handed in output of an agent waits for that write before it hands in more.
fn together(mut ops: Vec<Op>) -> Op {
    let mut speaking = std::collections::HashSet::new();
    ops.retain(|op| match op {
        Op::Append(append) => speaking.insert(append.lease),
        _ => true,
    });
    for op in &mut ops {
        if let Op::Claim(claim) = op {
            claim.session = None;
        }
    }
    Op::Together(ops)
}

/// Mostly the newest lease of a running run; sometimes one that is lost, not granted yet, or of no run at all.
fn lease(model: &Model) -> BoxedStrategy<Lease> {
    let all = (1..).zip(&model.runs).map(|(run, row)| (Lease { run, token: row.token }, row.status));
    let (running, other): (Vec<_>, Vec<_>) = all.partition(|(_, status)| *status == Status::Running);
    let any_of = |from: Vec<(Lease, Status)>| {
        let none = Lease { run: 1, token: 1 };
        select(if from.is_empty() { vec![none] } else { from.into_iter().map(|(lease, _)| lease).collect() })
    };
    let moved = any_of(running.clone()).prop_flat_map(|lease| {
        select(vec![-1, 1]).prop_map(move |by| Lease { run: lease.run, token: lease.token + by })
    });
    prop_oneof![8 => any_of(running), 1 => any_of(other), 1 => moved].boxed()
}

/// Mostly a lease as it is now; sometimes one that was renewed since it was seen, or lost.
fn seen(model: &Model) -> BoxedStrategy<Seen> {
    let ends: BTreeMap<_, _> =
        (1..).zip(&model.runs).filter_map(|(run, row)| Some((run, row.lease.map(|(_, end)| end)?))).collect();
    (lease(model), select(vec![0, 0, 0, 0, -1, 1000]))
        .prop_map(move |(lease, by)| Seen { lease, expires_at: ends.get(&lease.run).copied().unwrap_or(0) + by })
        .boxed()
}

fn parts() -> impl Strategy<Value = Option<u8>> {
    prop_oneof![Just(None), (0..3_u8).prop_map(Some)]
}

fn append(model: &Model) -> BoxedStrategy<Op> {
    let what = (0..4_usize, select(vec![1, 5000]), prop::bool::weighted(0.6), parts(), prop::bool::weighted(0.05));
    let ask = (0..3_u8, prop::bool::weighted(0.2)).prop_map(|(request, by_policy)| Ask { request, by_policy });
    (lease(model), what, prop::option::weighted(0.7, ask))
        .prop_map(|(lease, (count, bytes, said, parts, broken), asks)| {
            let parts = parts.filter(|_| said && count > 0);
            Op::Append(Append { lease, count, bytes, said, parts, asks, broken })
        })
        .boxed()
}

/// Mostly to an open question; sometimes to one that is decided, or that no agent asked.
fn answer(model: &Model) -> BoxedStrategy<Op> {
    let open: Vec<_> =
        (1..).zip(&model.permissions).filter(|(_, asked)| asked.state == "pending").map(|(key, _)| key).collect();
    let every = 1..=key(model.permissions.len());
    let which = prop_oneof![4 => select(if open.is_empty() { vec![1] } else { open }), 1 => every];
    (which, any::<bool>()).prop_map(|(permission, approved)| Op::Answer { permission, approved }).boxed()
}

fn settle(model: &Model) -> BoxedStrategy<Op> {
    // A worker mostly knows of the cancel, which is then the only outcome that is accepted.
    let to_cancel: BTreeSet<_> =
        (1..).zip(&model.runs).filter(|(_, run)| run.cancel_requested_at.is_some()).map(|(key, _)| key).collect();
    (lease(model), select(Cause::ALL.to_vec()), parts(), prop::bool::weighted(0.8))
        .prop_map(move |(lease, cause, parts, knows)| {
            let cause = if knows && to_cancel.contains(&lease.run) { Cause::Cancelled } else { cause };
            Op::Settle(Settle { lease, cause, parts })
        })
        .boxed()
}

fn run(model: &Model) -> impl Strategy<Value = RunKey> + use<> {
    let last = key(model.runs.len());
    let unsettled: Vec<_> = (1..last).filter(|run| !model.runs[index(*run)].status.is_settled()).collect();
    prop_oneof![4 => select(if unsettled.is_empty() { vec![1] } else { unsettled }), 1 => 1..=last]
}

/// What may be handed in together with other writes. What cannot have an effect now is rare.
fn write(model: &Model) -> BoxedStrategy<Op> {
    let leases = || prop::collection::vec(lease(model), 0..3);
    let subset = || prop::sample::subsequence(vec![0_usize, 1], 0..=2);
    let limit = || select(vec![1_usize, 100]);
    let known: Vec<_> = model.sessions.iter().map(|session| session.name).chain([0]).collect();
    let session = || prop_oneof![6 => select(known.clone()), 1 => 0..SESSIONS];
    let running = model.runs.iter().any(|run| run.status == Status::Running);
    let ready = (1..key(model.runs.len())).any(|run| model.is_ready(run));
    let asking = model.permissions.iter().any(|asked| asked.state == "pending");
    let when = |possible: bool, weight: u32| if possible { weight } else { 1 };
    let idle = model.places.iter().any(|place| place.ended.is_none() && !model.is_busy(place.session));
    let ran_out = prop::collection::vec(seen(model), 0..3);
    let take_over = (0..2_usize, subset(), ran_out, prop::collection::vec(run(model), 0..2), limit());
    Union::new_weighted(vec![
        (20, enqueue(model)),
        (when(ready, 16), claim()),
        (when(running, 12), append(model)),
        (when(running, 12), settle(model)),
        (when(running, 3), (0..2_usize, leases()).prop_map(|(worker, leases)| Op::Renew { worker, leases }).boxed()),
        (5, run(model).prop_map(|run| Op::Cancel { run }).boxed()),
        (when(asking, 16), answer(model)),
        (when(asking, 3), run(model).prop_map(|run| Op::ExpireQuestions { run }).boxed()),
        (when(running, 5), lease(model).prop_map(|lease| Op::PutBack { lease }).boxed()),
        (when(running, 2), lease(model).prop_map(|lease| Op::GiveBack { lease }).boxed()),
        (
            when(running, 5),
            take_over
                .prop_map(|(worker, dead, ran_out, own, limit)| Op::TakeOver { worker, dead, ran_out, own, limit })
                .boxed(),
        ),
        (when(idle, 4), limit().prop_map(|limit| Op::ExpireIdle { limit }).boxed()),
        (2, (select(vec![0, 1000, 100_000]), limit()).prop_map(|(age, limit)| Op::Purge { age, limit }).boxed()),
        (4, (session(), any::<bool>()).prop_map(|(session, cancel)| Op::Close { session, cancel }).boxed()),
        (
            3,
            (0..2_usize, 0..4_u32, when_full())
                .prop_map(|(workspace, slots, when_full)| Op::SyncSlots { workspace, slots, when_full })
                .boxed(),
        ),
        (1, (session(), select(vec![1, TTL_MS])).prop_map(|(session, ttl)| Op::Update { session, ttl }).boxed()),
    ])
    .boxed()
}

impl ReferenceStateMachine for Model {
    type State = Model;
    type Transition = Op;

    fn init_state() -> BoxedStrategy<Model> {
        Just(Model::new(START_MS)).boxed()
    }

    fn transitions(model: &Model) -> BoxedStrategy<Op> {
        let tick = select(vec![1, 1000, 31_000, 31_000, 70_000, 2_000_000, -1, -1000, -40_000]);
        let worker = 0..2_usize;
        let workers = prop::sample::subsequence(vec![0, 1], 0..=2);
        Union::new_weighted(vec![
            (90, write(model)),
            (8, prop::collection::vec(write(model), 2..6).prop_map(together).boxed()),
            (6, tick.prop_map(Op::Tick).boxed()),
            (2, (run(model), select(vec![0, 1000, 50_000])).prop_map(|(run, until)| Op::Park { run, until }).boxed()),
            (1, any::<bool>().prop_map(|close| Op::Reopen { close }).boxed()),
            (1, worker.clone().prop_map(|worker| Op::Register { worker }).boxed()),
            (1, worker.prop_map(|worker| Op::Deregister { worker }).boxed()),
            (1, workers.prop_map(|workers| Op::RemoveWorkers { workers }).boxed()),
        ])
        .boxed()
    }

    /// No worker writes under a lease whose grant is handed in at the same time: it cannot know of it.
    fn preconditions(model: &Model, op: &Op) -> bool {
        let was_granted = |lease: Lease| model.runs.get(index(lease.run)).is_some_and(|run| lease.token <= run.token);
        match op {
            Op::Together(ops) => ops.iter().all(|op| match op {
                Op::Append(append) => was_granted(append.lease),
                _ => true,
            }),
            _ => true,
        }
    }

    fn apply(mut model: Model, op: &Op) -> Model {
        model.answer = Model::apply(&mut model, op);
        model
    }
}
