//! A backend: a warm agent process (a child process that speaks ACP, an HTTP server) that serves one session, or all sessions of
//! a workspace. Its life cycle is a total function.
//!
//! Always: every event in every state is a move, a documented no-op, or a refusal. An event names the start that it is about
//! (the generation); an event of an older generation changes nothing. A requested end is not a crash. A process is started only
//! by a move to `starting`, which is possible only from states in which no process is left.
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

/// The state of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// It has no process.
    Stopped,
    /// Its process runs and has not answered yet.
    Starting,
    /// It answers.
    Running,
    /// It exited unexpectedly, or hung; its remaining processes are being ended.
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
    /// A turn needs it.
    Start,
    /// Its process was started; its shim was stored before that.
    Started,
    /// It could not be started: no process is left, and an immediate retry would fail the same way.
    NotStarted,
    /// It answered a probe.
    Healthy,
    /// It failed a probe.
    Unhealthy,
    /// It has not answered for longer than the [`HealthPolicy`] allows.
    Hung,
    /// None of its processes is left.
    Exited,
    /// It is to end: a person asked, its session was closed, another backend needs the room, or the engine shuts down.
    Stop,
    /// It has been idle for as long as it is kept warm.
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

/// How a kind of backend is probed and restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthPolicy {
    /// A backend that has not answered this long after its start counts as hung.
    pub ready_within: Duration,
    /// Probe interval until the first answer.
    pub probe_until_ready: Duration,
    /// Probe interval while it is healthy.
    pub probe_every: Duration,
    /// Probe interval after a failed probe.
    pub probe_again: Duration,
    /// Timeout of one probe.
    pub probe_within: Duration,
    /// Consecutive failed probes after which it counts as hung.
    pub failures: u32,
    /// For this long, a hung backend with a turn on it is not restarted.
    pub spare_busy_for: Duration,
    /// The pause before the first restart; it doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// Restarts within [`HealthPolicy::window`] after which it is given up.
    pub most_restarts: usize,
    /// The window of [`HealthPolicy::most_restarts`]; also how long a backend that was given up is not started again.
    pub window: Duration,
    /// Starts after which a backend that has never answered is given up, for [`HealthPolicy::longest_pause`]: a turn waits for
    /// it.
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
    /// The same policy with another first pause (the longest becomes thirty times that) and another limit of restarts.
    pub fn with_restarts(self, first_pause: Option<Duration>, most: Option<u32>) -> Self {
        let longest_pause = first_pause.map_or(self.longest_pause, |pause| pause.saturating_mul(30));
        let most_restarts = most.and_then(|most| most.try_into().ok()).unwrap_or(self.most_restarts);
        Self { first_pause: first_pause.unwrap_or(self.first_pause), longest_pause, most_restarts, ..self }
    }

    /// The pause before a restart, after `restarts` of them in the window.
    pub fn pause(&self, restarts: usize) -> Duration {
        let doubled = u32::try_from(restarts).ok().and_then(|exponent| 2_u32.checked_pow(exponent));
        doubled.and_then(|factor| self.first_pause.checked_mul(factor)).unwrap_or(Duration::MAX).min(self.longest_pause)
    }
}

/// What a transition depends on besides state and event.
#[derive(Debug, Clone, Copy)]
pub struct TransitionContext<'a> {
    /// The time.
    pub now: Timestamp,
    /// The newest known generation.
    pub generation: i64,
    /// When it was restarted, oldest first.
    pub restarts: &'a [Timestamp],
    /// Whether it has answered since it was made.
    pub was_well: bool,
    /// Earliest time of the next start.
    pub not_before: Option<Timestamp>,
    /// Whether a turn is on it, according to the engine and not to the agent.
    pub is_busy: bool,
    /// For how long it has not answered.
    pub hung_for: Duration,
    /// Whether it is to be closed as soon as no turn is on it.
    pub close_when_idle: bool,
}

/// What the supervisor has to do after a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Start a process, under the next generation.
    Begin,
    /// End its process and confirm that none of its descendants is left.
    End,
    /// Wait until then, and start it again.
    Pause(Timestamp),
    /// It is not started again before then.
    GiveUp(Timestamp),
}

/// The result of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// It is in this state from now on; this may be the state that it was in.
    Move(BackendState, Effect),
    /// The event changes nothing.
    Nothing(Why),
    /// The request is refused for now.
    Refused(Refusal),
}

/// Why an event changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is about an older generation.
    Stale,
    /// The request is fulfilled already, or under way.
    Already,
    /// It came too late to matter in this state.
    Late,
    /// It has not answered yet and still has time.
    NotYet,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It was given up, and is not started before then.
    Closed(Timestamp),
    /// A turn is on it.
    Busy,
}

/// The transition of a backend in `state` on an event of the start `generation`.
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
        // The caller counts failed probes and reports `Hung` after enough of them.
        (S::Running, E::Unhealthy) => Transition::Move(S::Running, Effect::None),
        (S::Running, E::Hung) if about.is_busy && about.hung_for < care.spare_busy_for => {
            Transition::Refused(Refusal::Busy)
        }
        (S::Starting | S::Running, E::Hung) => Transition::Move(S::Crashed, Effect::End),

        // A backend that cannot be started is not retried automatically: it would fail again. A turn that needs it may start it.
        (S::Starting, E::NotStarted) => Transition::Move(S::Stopped, Effect::GiveUp(about.now + care.first_pause)),
        (S::Starting | S::Running | S::Crashed, E::Exited) => after_a_crash(care, about),
        (S::Stopping, E::Exited | E::NotStarted) => Transition::Move(S::Stopped, Effect::None),

        (S::Running, E::Stop | E::IdleTimeout) if about.is_busy => Transition::Refused(Refusal::Busy),
        (S::Starting | S::Running | S::Crashed, E::Stop | E::IdleTimeout) => Transition::Move(S::Stopping, Effect::End),
        (S::Restarting, E::Stop | E::IdleTimeout) => Transition::Move(S::Stopped, Effect::None),
        (S::Stopped | S::Stopping, E::Stop | E::IdleTimeout) => Transition::Nothing(Why::Already),

        (S::Starting | S::Running | S::Restarting, E::Start) => Transition::Nothing(Why::Already),
        // The turn that needs it waits until it is gone or restarted.
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

/// The restarts within the window of the policy.
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
    /// Its state.
    pub state: BackendState,
    /// Why it is in that state, for people.
    pub reason: Option<String>,
    /// What kind of failure it was given up for.
    pub error_class: Option<ErrorClass>,
    /// The worker that supervises it.
    pub worker: Option<String>,
    /// How often it was started.
    pub generation: i64,
    /// Pid of its shim, on the machine of its worker.
    pub pid: Option<i64>,
    /// Turns that are on it now.
    pub running: i64,
    /// It ends as soon as no turn is on it.
    pub close_when_idle: bool,
    /// When its row was created.
    pub created_at: Timestamp,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// When it last answered.
    pub healthy_at: Option<Timestamp>,
    /// When a turn last began or ended on it.
    pub used_at: Timestamp,
    /// It is not started again before this.
    pub not_before: Option<Timestamp>,
    /// When it ended for good; a new backend takes its place.
    pub stopped_at: Option<Timestamp>,
}
