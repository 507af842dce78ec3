//! Which agents there are: those that can be used, those that are known by name, and what is found of each here.
//!
//! Always: nobody has to be configured or installed for an answer, and no more than a few programs are asked at once.

use std::collections::HashMap;
use std::path::Path;

use futures_util::StreamExt;
use tokio::sync::Mutex;

use super::{Engine, EngineError};
use crate::agent::{Agent, Driver};
use crate::backend::probe;
use crate::catalogue::{AgentReport, Found, KNOWN, KnownAgent};
use crate::config::Config;

/// Programs that are asked for their version at once: each may be an interpreter with a large package.
const AT_ONCE: usize = 4;

/// One survey at a time, whoever asks.
static SURVEYING: Mutex<()> = Mutex::const_new(());

impl Engine {
    /// All agents: first those that sessions can name, then those that are known and not configured. Starts the program of
    /// each for its version.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn list_agents(&self) -> Result<Vec<AgentReport>, EngineError> {
        let running: HashMap<_, _> = self.shared.store.running_by_agent().await?.into_iter().collect();
        let mut reports = survey(&self.shared.config).await;
        for report in reports.iter_mut().filter(|report| report.configured) {
            report.running = running.get(&report.name).copied().unwrap_or_default();
        }
        Ok(reports)
    }
}

/// The same without a database: nothing is known of what runs.
pub async fn survey(config: &Config) -> Vec<AgentReport> {
    let _alone = SURVEYING.lock().await;
    let configured = config.agents.values().map(|agent| Candidate::configured(agent, config));
    let is_configured = |known: &KnownAgent| {
        let names = |agent: &Agent| {
            let program = agent.driver.process().and_then(|spec| spec.command.first());
            program.and_then(|program| KnownAgent::of_program(program)) == Some(known)
        };
        config.agents.values().any(|agent| agent.name.as_str() == known.name || names(agent))
    };
    let known = KNOWN.iter().filter(|known| !is_configured(known)).filter_map(Candidate::known);
    let looks = configured.chain(known).map(Candidate::look);
    futures_util::stream::iter(looks.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await
}

/// An agent that is looked for.
struct Candidate {
    driver: Driver,
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
        let is_gateway = matches!(agent.driver, Driver::OpenclawGateway(_));
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
        let driver = Driver::Openclaw(crate::agent::ProcessSpec::of(known.command));
        let dir = alone.workspaces.into_values().next()?.dir;
        Some(Self { driver, dir, known: Some(known), name, configured: false })
    }

    async fn look(self) -> AgentReport {
        let found: Result<Found, String> = probe::look(&self.driver, &self.dir).await;
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

/// Where an agent works first of all: in a workspace that it lives in, or in any.
pub(super) fn working_dir<'a>(agent: &Agent, config: &'a Config) -> &'a Path {
    let resident = config.workspaces.values().find(|workspace| workspace.agent == agent.name);
    let any = || config.workspaces.values().next();
    resident.or_else(any).map_or(Path::new("/"), |workspace| &workspace.dir)
}
