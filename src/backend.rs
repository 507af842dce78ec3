//! A warm backend: a live agent (a child process that speaks ACP, an HTTP server) that is kept for a session, or shared by
//! the sessions of a workspace, and its life as a total function.
//!
//! Always: every event in every state is a move, a documented nothing, or a refusal. An event names the start that it is
//! about (the generation); what an older one left behind changes nothing. An end that was asked for is no crash. A process
//! is begun only by a move to `starting`, which comes only from states where none is left.
//!
//! ```text
//! stopped ─start→ starting ─healthy→ running ─stop, idle→ stopping ─exited→ stopped
//!                    └──────── hung ────┴→ crashed ─exited→ restarting ─due→ starting
//!                                                     └ too many → stopped, closed for a while
//! ```
//!
//! Proof: `tests/it/warm_life.rs`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::failure::ErrorClass;
use crate::id::{AgentName, BackendId, SessionId, WorkspaceName};

/// Where a backend is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// Nothing of it runs.
    Stopped,
    /// Its process is there and does not answer so far.
    Starting,
    /// It answers.
    Running,
    /// It ended without being asked to, or hung; what is left of it is being ended.
    Crashed,
    /// It will be started again after a pause.
    Restarting,
    /// It was asked to end.
    Stopping,
}

impl BackendState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Stopped, Self::Starting, Self::Running, Self::Crashed, Self::Restarting, Self::Stopping];

    /// The word in the database, in JSON and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Crashed => "crashed",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
        }
    }
}

impl std::str::FromStr for BackendState {
    type Err = UnknownState;
    fn from_str(text: &str) -> Result<Self, UnknownState> {
        let found = Self::ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| UnknownState(text.chars().take(40).collect()))
    }
}

/// The word names no state of a backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a state of a backend")]
pub struct UnknownState(String);

/// What happens to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackendEvent {
    /// A turn wants it.
    Start,
    /// Its process was begun, and which one that is was stored before.
    Started,
    /// It could not be started: nothing of it runs, and the same would happen again.
    NotStarted,
    /// It answered a probe.
    Healthy,
    /// It did not.
    Unhealthy,
    /// It has not answered for too long.
    Hung,
    /// Nothing is left of its process.
    Exited,
    /// Somebody wants it to end: a person, a session that was closed, a place that is needed, a shutdown.
    Stop,
    /// Nobody has used it for as long as it is kept warm.
    IdleTimeout,
    /// The pause before its next start is over.
    RetryDue,
}

impl BackendEvent {
    /// Every event.
    pub const ALL: [Self; 10] = [
        Self::Start,
        Self::Started,
        Self::NotStarted,
        Self::Healthy,
        Self::Unhealthy,
        Self::Hung,
        Self::Exited,
        Self::Stop,
        Self::IdleTimeout,
        Self::RetryDue,
    ];
}

/// How a kind of live agent is looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthPolicy {
    /// One that does not answer so long after its start hangs.
    pub ready_within: Duration,
    /// Between two probes until it answers.
    pub probe_until_ready: Duration,
    /// Between two probes of one that is well.
    pub probe_every: Duration,
    /// Between two probes of one that failed the last.
    pub probe_again: Duration,
    /// A probe that takes longer has failed.
    pub probe_within: Duration,
    /// So many failed probes in a row make it hang.
    pub failures: u32,
    /// One that hangs is not restarted while a turn is on it, for so long.
    pub spare_busy_for: Duration,
    /// The pause before the first restart; each further one takes twice as long.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// Restarts within [`HealthPolicy::window`] after which it is given up.
    pub most_restarts: usize,
    /// See there; and so long is it not started again once it was given up.
    pub window: Duration,
    /// Starts after which one that has never answered is given up, for [`HealthPolicy::longest_pause`]: somebody waits for it.
    pub most_first_starts: i64,
}

impl Default for HealthPolicy {
    fn default() -> Self {
        Self {
            ready_within: Duration::from_secs(60),
            probe_until_ready: Duration::from_millis(100),
            probe_every: Duration::from_secs(30),
            probe_again: Duration::from_secs(5),
            probe_within: Duration::from_secs(5),
            failures: 5,
            spare_busy_for: Duration::from_secs(30 * 60),
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(30),
            most_restarts: 10,
            window: Duration::from_secs(5 * 60),
            most_first_starts: 3,
        }
    }
}

impl HealthPolicy {
    /// The same, but with another first pause, of which the longest is thirty, and with other restarts until it is given up.
    pub fn with_restarts(self, first_pause: Option<Duration>, most: Option<u32>) -> Self {
        let longest_pause = first_pause.map_or(self.longest_pause, |pause| pause.saturating_mul(30));
        let most_restarts = most.and_then(|most| most.try_into().ok()).unwrap_or(self.most_restarts);
        Self { first_pause: first_pause.unwrap_or(self.first_pause), longest_pause, most_restarts, ..self }
    }

    /// The pause before a restart, when there were so many in the window before it.
    pub fn pause(&self, restarts: usize) -> Duration {
        let doubled = u32::try_from(restarts).ok().and_then(|exponent| 2_u32.checked_pow(exponent));
        doubled.and_then(|factor| self.first_pause.checked_mul(factor)).unwrap_or(Duration::MAX).min(self.longest_pause)
    }
}

/// What a move depends on beside state and event.
#[derive(Debug, Clone, Copy)]
pub struct TransitionContext<'a> {
    /// The time.
    pub now: Timestamp,
    /// The newest start that is known.
    pub generation: i64,
    /// When it was restarted, oldest first.
    pub restarts: &'a [Timestamp],
    /// Whether it has answered since it was made.
    pub was_well: bool,
    /// It is not to be started before this.
    pub not_before: Option<Timestamp>,
    /// Whether a turn is on it: what the engine knows, not what the agent says.
    pub is_busy: bool,
    /// Since when it has not answered.
    pub hung_for: Duration,
    /// Whether it is to be closed as soon as no turn is on it.
    pub close_when_idle: bool,
}

/// What is to be done about a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Start a process, under the next generation.
    Begin,
    /// End its process, and make sure that nothing is left.
    End,
    /// Wait until then, and start it again.
    Pause(Timestamp),
    /// It is not started again before then.
    GiveUp(Timestamp),
}

/// What comes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// It goes on in this state; perhaps the one that it was in.
    Move(BackendState, Effect),
    /// The event has nothing to say here.
    Nothing(Why),
    /// What it asks for is not possible now.
    Refused(Refusal),
}

/// Why an event changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is about an earlier start.
    Stale,
    /// What it asks for is so, or under way.
    Already,
    /// It came too late: what it tells does not matter in this state.
    Late,
    /// It does not answer so far, and has still time.
    NotYet,
}

/// Why what an event asks for is not possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It was given up, and is not started before then.
    Closed(Timestamp),
    /// A turn is on it.
    Busy,
}

/// What becomes of a backend in `state` by an event of the start `generation`.
pub fn transition(
    state: BackendState,
    generation: i64,
    event: BackendEvent,
    care: &HealthPolicy,
    about: &TransitionContext<'_>,
) -> Transition {
    use BackendEvent as E;
    use BackendState as S;
    if generation != about.generation {
        return Transition::Nothing(Why::Stale);
    }
    match (state, event) {
        (S::Stopped, E::Start) => match about.not_before {
            Some(until) if about.now < until => Transition::Refused(Refusal::Closed(until)),
            _ => Transition::Move(S::Starting, Effect::Begin),
        },
        (S::Restarting, E::RetryDue) => Transition::Move(S::Starting, Effect::Begin),
        (S::Starting, E::Started) => Transition::Move(S::Starting, Effect::None),
        (S::Starting | S::Running, E::Healthy) => Transition::Move(S::Running, Effect::None),

        (S::Starting, E::Unhealthy) => Transition::Nothing(Why::NotYet),
        // Counted by whoever asks; enough of them are `Hung`.
        (S::Running, E::Unhealthy) => Transition::Move(S::Running, Effect::None),
        (S::Running, E::Hung) if about.is_busy && about.hung_for < care.spare_busy_for => {
            Transition::Refused(Refusal::Busy)
        }
        (S::Starting | S::Running, E::Hung) => Transition::Move(S::Crashed, Effect::End),

        // One that cannot be started is not tried again by itself: the same would happen. A turn that wants it may.
        (S::Starting, E::NotStarted) => Transition::Move(S::Stopped, Effect::GiveUp(about.now + care.first_pause)),
        (S::Starting | S::Running | S::Crashed, E::Exited) => after_a_crash(care, about),
        (S::Stopping, E::Exited | E::NotStarted) => Transition::Move(S::Stopped, Effect::None),

        (S::Running, E::Stop | E::IdleTimeout) if about.is_busy => Transition::Refused(Refusal::Busy),
        (S::Starting | S::Running | S::Crashed, E::Stop | E::IdleTimeout) => Transition::Move(S::Stopping, Effect::End),
        (S::Restarting, E::Stop | E::IdleTimeout) => Transition::Move(S::Stopped, Effect::None),
        (S::Stopped | S::Stopping, E::Stop | E::IdleTimeout) => Transition::Nothing(Why::Already),

        (S::Starting | S::Running | S::Restarting, E::Start) => Transition::Nothing(Why::Already),
        // Whoever wants it waits until it is gone, or restarted.
        (S::Crashed | S::Stopping, E::Start) => Transition::Nothing(Why::Late),
        (S::Crashed, E::Hung) => Transition::Nothing(Why::Already),
        (S::Stopped | S::Running | S::Crashed | S::Restarting | S::Stopping, E::Started) => {
            Transition::Nothing(Why::Late)
        }
        (S::Stopped | S::Running | S::Crashed | S::Restarting, E::NotStarted) => Transition::Nothing(Why::Late),
        (S::Stopped | S::Crashed | S::Restarting | S::Stopping, E::Healthy | E::Unhealthy) => {
            Transition::Nothing(Why::Late)
        }
        (S::Stopped | S::Restarting | S::Stopping, E::Hung) => Transition::Nothing(Why::Late),
        (S::Stopped | S::Restarting, E::Exited) => Transition::Nothing(Why::Late),
        (S::Stopped | S::Starting | S::Running | S::Crashed | S::Stopping, E::RetryDue) => {
            Transition::Nothing(Why::Late)
        }
    }
}

fn after_a_crash(care: &HealthPolicy, about: &TransitionContext<'_>) -> Transition {
    if about.close_when_idle {
        return Transition::Move(BackendState::Stopped, Effect::None);
    }
    let recent = recent(care, about.restarts, about.now).count();
    if recent >= care.most_restarts {
        return Transition::Move(BackendState::Stopped, Effect::GiveUp(about.now + care.window));
    }
    if !about.was_well && about.generation >= care.most_first_starts {
        return Transition::Move(BackendState::Stopped, Effect::GiveUp(about.now + care.longest_pause));
    }
    Transition::Move(BackendState::Restarting, Effect::Pause(about.now + care.pause(recent)))
}

/// The restarts that count.
pub fn recent<'a>(
    care: &'a HealthPolicy,
    restarts: &'a [Timestamp],
    now: Timestamp,
) -> impl Iterator<Item = Timestamp> + use<'a> {
    restarts.iter().copied().filter(move |at| now.since(*at) < care.window)
}

/// A backend, as readers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Its id.
    pub id: BackendId,
    /// Its agent.
    pub agent: AgentName,
    /// Where it works.
    pub workspace: WorkspaceName,
    /// The session that it is kept for; none when the sessions of the workspace share it.
    pub session_id: Option<SessionId>,
    /// Where it is in its life.
    pub state: BackendState,
    /// Why it is in that state, for people.
    pub reason: Option<String>,
    /// What kind of failure it was given up for.
    pub error_class: Option<ErrorClass>,
    /// The process that watches over it.
    pub worker: Option<String>,
    /// How often it was started.
    pub generation: i64,
    /// The process that holds it, on the machine of its worker.
    pub pid: Option<i64>,
    /// Turns that are on it now.
    pub running: i64,
    /// It ends as soon as no turn is on it.
    pub close_when_idle: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// When it last answered.
    pub healthy_at: Option<Timestamp>,
    /// When a turn last began or ended on it.
    pub used_at: Timestamp,
    /// It is not started again before this.
    pub not_before: Option<Timestamp>,
    /// When it ended for good; another one takes its place.
    pub stopped_at: Option<Timestamp>,
}
