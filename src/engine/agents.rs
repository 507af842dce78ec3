//! Which agents there are: those that can be used, those that are known by name, and what is installed of each here.
//!
//! Always: an answer needs nothing configured or installed. A survey starts programs, so there is one at a time; it answers
//! all requests that come meanwhile and for a while after, and continues when the first requester has gone.
//!
//! Proof: `tests/http/agents.rs`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::watch;

use super::{Engine, EngineError, Shared};
use crate::agent::{Agent, DriverConfig};
use crate::catalogue::{AgentReport, Found, KNOWN, KnownAgent};
use crate::config::Config;
use crate::driver::open;

/// Programs that are asked for their version concurrently: each may be an interpreter with a large package.
const AT_ONCE: usize = 4;
/// A survey answers all requests until it is this old, counted from its beginning.
pub const SURVEY_MAX_AGE: Duration = Duration::from_secs(60);
/// Programs are started for a survey for this long; agents that come later are only searched for. Well below the limit of an
/// HTTP handler.
const SURVEY_LIMIT: Duration = Duration::from_secs(20);

/// The newest survey.
#[derive(Debug, Default)]
pub(super) struct Surveys {
    newest: Mutex<Option<Survey>>,
}

#[derive(Debug, Clone)]
struct Survey {
    begun: Instant,
    /// `None` while the survey runs.
    reports: watch::Receiver<Option<Arc<[AgentReport]>>>,
}

impl Survey {
    /// Whether it runs, or ended recently. One whose task ended without reports answers nothing.
    fn is_fresh(&self) -> bool {
        let has_ended = self.reports.borrow().is_some();
        if has_ended { self.begun.elapsed() < SURVEY_MAX_AGE } else { self.reports.has_changed().is_ok() }
    }
}

impl Surveys {
    fn current(&self, shared: &Arc<Shared>) -> Survey {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(survey) = newest.as_ref().filter(|survey| survey.is_fresh()) {
            return survey.clone();
        }
        let (done, reports) = watch::channel(None);
        let survey = Survey { begun: Instant::now(), reports };
        *newest = Some(survey.clone());
        let task = shared.clone();
        shared.tasks.spawn(async move {
            tokio::select! {
                reports = self::survey(&task.config) => drop(done.send_replace(Some(reports.into()))),
                // Dropping the survey ends what it has started.
                () = task.closed.cancelled() => {}
            }
        });
        survey
    }
}

impl Engine {
    /// All agents: first those that sessions can name, then those that are known and not configured. Starts the program of
    /// each for its version, at most once in [`SURVEY_MAX_AGE`]; the numbers of running turns are always current.
    ///
    /// # Errors
    /// [`EngineError::Store`]; [`EngineError::ShuttingDown`].
    pub async fn list_agents(&self) -> Result<Vec<AgentReport>, EngineError> {
        let mut survey = self.shared.surveys.current(&self.shared);
        let surveyed = survey.reports.wait_for(Option::is_some).await.map_err(|_| EngineError::ShuttingDown)?.clone();
        let mut reports = surveyed.as_deref().unwrap_or_default().to_vec();
        let running: HashMap<_, _> = self.shared.store.running_by_agent().await?.into_iter().collect();
        for report in reports.iter_mut().filter(|report| report.configured) {
            report.running = running.get(&report.name).copied().unwrap_or_default();
        }
        Ok(reports)
    }
}

/// A survey without a database: the numbers of running turns are unknown. Dropping it ends what it has started.
pub async fn survey(config: &Config) -> Vec<AgentReport> {
    let until = Instant::now() + SURVEY_LIMIT;
    let configured = config.agents.values().map(|agent| Candidate::configured(agent, config));
    let is_configured = |known: &KnownAgent| {
        let names = |agent: &Agent| {
            let program = agent.driver.process().and_then(|spec| spec.command.first());
            program.and_then(|program| KnownAgent::of_program(program)) == Some(known)
        };
        config.agents.values().any(|agent| agent.name.as_str() == known.name || names(agent))
    };
    let known = KNOWN.iter().filter(|known| !is_configured(known)).filter_map(Candidate::known);
    let looks = configured.chain(known).map(|candidate| candidate.look(until));
    futures_util::stream::iter(looks.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await
}

/// An agent to search for.
struct Candidate {
    driver: DriverConfig,
    dir: std::path::PathBuf,
    known: Option<&'static KnownAgent>,
    name: String,
    configured: bool,
}

impl Candidate {
    fn configured(agent: &Agent, config: &Config) -> Self {
        let program = agent.driver.process().and_then(|spec| spec.command.first());
        let by_name = KNOWN.iter().find(|known| known.name == agent.name.as_str());
        let by_program = program.and_then(|program| KnownAgent::of_program(program));
        let is_gateway = matches!(agent.driver, DriverConfig::OpenclawGateway(_));
        let gateway = KNOWN.iter().find(|known| is_gateway && known.driver == "openclaw-gateway");
        Self {
            driver: agent.driver.clone(),
            dir: working_dir(agent, config).to_owned(),
            known: by_program.or(gateway).or(by_name.filter(|known| known.driver == agent.driver.as_str())),
            name: agent.name.to_string(),
            configured: true,
        }
    }

    /// One that is not configured: its program is looked for, whatever the driver.
    fn known(known: &'static KnownAgent) -> Option<Self> {
        let alone = Config::builtin(Path::new("/"));
        let name = known.name.to_owned();
        let driver = DriverConfig::Openclaw(crate::agent::ProcessSpec::of(known.command));
        let dir = alone.workspaces.into_values().next()?.dir;
        Some(Self { driver, dir, known: Some(known), name, configured: false })
    }

    async fn look(self, until: Instant) -> AgentReport {
        let found: Result<Found, String> = open::look(&self.driver, &self.dir, until).await;
        let (found, missing) = match found {
            Ok(found) => (Some(found), None),
            Err(missing) => (None, Some(missing)),
        };
        AgentReport {
            name: self.name,
            driver: self.known.filter(|_| !self.configured).map_or(self.driver.as_str(), |known| known.driver),
            command: self.driver.process().map(|spec| spec.command.clone()).unwrap_or_default(),
            configured: self.configured,
            found,
            missing,
            install: self.known.map(|known| known.install),
            log_in: self.known.map(|known| known.log_in),
            config: self.known.filter(|_| !self.configured).map(KnownAgent::config),
            running: 0,
        }
    }
}

/// The default working directory of an agent: that of a workspace that it lives in, or of any.
pub(super) fn working_dir<'a>(agent: &Agent, config: &'a Config) -> &'a Path {
    let resident = config.workspaces.values().find(|workspace| workspace.agent == agent.name);
    let any = || config.workspaces.values().next();
    resident.or_else(any).map_or(Path::new("/"), |workspace| &workspace.dir)
}
