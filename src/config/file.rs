//! What `mainstay.toml` may say: its keys, and from what they say to a checked [`Config`].
//!
//! Always: an error names the file, the line and the key, whatever the text
//! (`never_panics_and_names_a_line_of_the_file`). The known keys are the fields of the structs below and are written
//! nowhere else; a test holds `docs/config.md` to them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Component, Path};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Unexpected, Visitor};

use super::document::{Document, nearest};
use super::{Config, ConfigError, Durability, EngineConfig, OnShutdown, ServerConfig, Token, duration, fields, limits};
use crate::agent::{Agent, DEFAULT_MAX_LINE_BYTES, Driver, OnInterrupt, ProcessSpec, RESUME_MESSAGE};
use crate::id::{AgentName, WorkspaceName};
use crate::workspace::{WhenFull, Workspace};

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct File {
    server: ServerSection,
    engine: EngineSection,
    agents: BTreeMap<String, AgentSection>,
    workspaces: BTreeMap<String, WorkspaceSection>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct ServerSection {
    listen: Option<String>,
    token: Option<String>,
    allowed_origins: Option<Vec<String>>,
    allowed_hosts: Option<Vec<String>>,
    max_body_bytes: Option<Whole>,
    max_connections: Option<Whole>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct EngineSection {
    workers: Option<Whole>,
    lease: Option<Period>,
    sweep_interval: Option<Period>,
    shutdown_grace: Option<Period>,
    durability: Option<String>,
    idle_ttl: Option<Period>,
    assignment_retention: Option<Period>,
    max_backends: Option<Whole>,
    on_shutdown: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct AgentSection {
    driver: Option<String>,
    turn_timeout: Option<Period>,
    idle_timeout: Option<Period>,
    kill_grace: Option<Period>,
    max_concurrent: Option<Whole>,
    on_interrupt: Option<String>,
    max_resumes: Option<Whole>,
    resume_message: Option<String>,
    // Of drivers that start a process:
    command: Option<Vec<String>>,
    env: Option<BTreeMap<String, String>>,
    max_line_bytes: Option<Whole>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct WorkspaceSection {
    dir: Option<String>,
    agent: Option<String>,
    slots: Option<Whole>,
    when_full: Option<String>,
}

/// The keys of the table at a path; none where the keys are the user's own (names of agents, of variables).
pub(super) fn known_keys(path: &[&str]) -> Option<&'static [&'static str]> {
    match path {
        [] => Some(fields::of::<File>()),
        ["server"] => Some(fields::of::<ServerSection>()),
        ["engine"] => Some(fields::of::<EngineSection>()),
        ["agents", _] => Some(fields::of::<AgentSection>()),
        ["workspaces", _] => Some(fields::of::<WorkspaceSection>()),
        _ => None,
    }
}

/// A whole number; its limits are checked later, where its key is known.
struct Whole(i64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WholeVisitor;
        impl Visitor<'_> for WholeVisitor {
            type Value = Whole;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Whole, E> {
                Ok(Whole(number))
            }
        }
        deserializer.deserialize_i64(WholeVisitor)
    }
}

/// A duration; its limits are checked later, where its key is known.
struct Period(Duration);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PeriodVisitor;
        impl Visitor<'_> for PeriodVisitor {
            type Value = Period;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(r#"a duration such as "500ms", "30s", "1m30s", "2h" or "7d""#)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Period, E> {
                duration::parse(text).map(Period).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(PeriodVisitor)
    }
}

/// See [`Config::load`].
pub(super) fn read(text: &str, origin: &Path, base_dir: &Path) -> Result<Config, ConfigError> {
    let document = Document::parse(text, origin)?;
    document.check_keys()?;
    let file: File = toml::from_str(text).map_err(|error| document.invalid(&error))?;

    let mut config = Config::builtin(base_dir);
    server(&Section::new(&document, &["server"]), file.server, &mut config.server)?;
    engine(&Section::new(&document, &["engine"]), file.engine, &mut config.engine)?;
    for (name, given) in file.agents {
        let section = Section::new(&document, &["agents", &name]);
        let name: AgentName = name.parse().map_err(|error| section.error(&[], error))?;
        let mut new = Agent::with_defaults(name.clone());
        agent(&section, given, &mut new)?;
        config.agents.insert(name, new);
    }
    for (name, given) in file.workspaces {
        let section = Section::new(&document, &["workspaces", &name]);
        let name: WorkspaceName = name.parse().map_err(|error| section.error(&[], error))?;
        let mut new = Workspace::with_defaults(name.clone(), base_dir);
        workspace(&section, given, base_dir, &config.agents, &mut new)?;
        config.workspaces.insert(name, new);
    }
    Ok(config)
}

fn server(section: &Section<'_>, given: ServerSection, server: &mut ServerConfig) -> Result<(), ConfigError> {
    if let Some(text) = given.listen {
        let want = "an IP address with a port, such as 127.0.0.1:7717 or [::1]:7717, is needed";
        server.listen = text.parse().map_err(|_| section.error(&["listen"], format!("{text:?}: {want}")))?;
    }
    if let Some(text) = given.token {
        server.token = Some(text.parse::<Token>().map_err(|error| section.error(&["token"], error))?);
    }
    let origin = "a web origin as browsers send it is needed, such as https://chat.example.com";
    section.list("allowed_origins", given.allowed_origins, is_origin, origin, &mut server.allowed_origins)?;
    let host = "a host name without scheme and port is needed, such as chat.example.com";
    section.list("allowed_hosts", given.allowed_hosts, is_host, host, &mut server.allowed_hosts)?;
    section.number("max_body_bytes", given.max_body_bytes, limits::MAX_BODY_BYTES, &mut server.max_body_bytes)?;
    section.number("max_connections", given.max_connections, limits::MAX_CONNECTIONS, &mut server.max_connections)
}

fn engine(section: &Section<'_>, given: EngineSection, engine: &mut EngineConfig) -> Result<(), ConfigError> {
    let durability = [("full", Durability::Full), ("process", Durability::Process)];
    section.choice("durability", given.durability, durability, &mut engine.durability)?;
    let on_shutdown = [("end", OnShutdown::End), ("leave", OnShutdown::Leave)];
    section.choice("on_shutdown", given.on_shutdown, on_shutdown, &mut engine.on_shutdown)?;
    section.number("workers", given.workers, limits::WORKERS, &mut engine.workers)?;
    section.number("max_backends", given.max_backends, limits::MAX_BACKENDS, &mut engine.max_backends)?;
    section.period("lease", given.lease, limits::LEASE, &mut engine.lease)?;
    section.period("sweep_interval", given.sweep_interval, limits::SWEEP_INTERVAL, &mut engine.sweep_interval)?;
    section.period("shutdown_grace", given.shutdown_grace, limits::SHUTDOWN_GRACE, &mut engine.shutdown_grace)?;
    section.period("idle_ttl", given.idle_ttl, limits::IDLE_TTL, &mut engine.idle_ttl)?;
    let retention = &mut engine.assignment_retention;
    section.period("assignment_retention", given.assignment_retention, limits::ASSIGNMENT_RETENTION, retention)
}

fn agent(section: &Section<'_>, given: AgentSection, agent: &mut Agent) -> Result<(), ConfigError> {
    section.period("turn_timeout", given.turn_timeout, limits::TURN_TIMEOUT, &mut agent.turn_timeout)?;
    section.period("idle_timeout", given.idle_timeout, limits::IDLE_TIMEOUT, &mut agent.idle_timeout)?;
    section.period("kill_grace", given.kill_grace, limits::KILL_GRACE, &mut agent.kill_grace)?;
    section.number("max_concurrent", given.max_concurrent, limits::MAX_CONCURRENT, &mut agent.max_concurrent)?;
    agent.on_interrupt = on_interrupt(section, given.on_interrupt, given.max_resumes, given.resume_message)?;
    let process = ProcessSection { command: given.command, env: given.env, max_line_bytes: given.max_line_bytes };
    agent.driver = match given.driver.as_deref() {
        Some("demo") => demo(section, &process)?,
        Some("openclaw") => Driver::Openclaw(process_spec(section, process)?),
        Some(other) => return Err(section.error(&["driver"], format!("{other:?} is not a driver: {DRIVERS}"))),
        // Only the built-in agent has a driver of its own accord.
        None if agent.name == AgentName::builtin() => demo(section, &process)?,
        None => return Err(section.error(&["driver"], format!("is missing: {DRIVERS}"))),
    };
    Ok(())
}

fn on_interrupt(
    section: &Section<'_>,
    given: Option<String>,
    max_resumes: Option<Whole>,
    message: Option<String>,
) -> Result<OnInterrupt, ConfigError> {
    let mut resume = false;
    section.choice("on_interrupt", given, [("stop", false), ("resume", true)], &mut resume)?;
    if !resume {
        let given = [("max_resumes", max_resumes.is_some()), ("resume_message", message.is_some())];
        return match given.into_iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(section.error(&[key], "needs on_interrupt = \"resume\" beside it")),
            None => Ok(OnInterrupt::Stop),
        };
    }
    let mut at_most = 1;
    section.number("max_resumes", max_resumes, limits::MAX_RESUMES, &mut at_most)?;
    let message = message.unwrap_or_else(|| RESUME_MESSAGE.to_owned());
    if message.trim().is_empty() || message.contains('\0') {
        return Err(section.error(&["resume_message"], "says nothing that an agent could be told"));
    }
    Ok(OnInterrupt::Resume { at_most, message })
}

const DRIVERS: &str = "use one of demo, openclaw";

/// The keys of drivers that start a process.
struct ProcessSection {
    command: Option<Vec<String>>,
    env: Option<BTreeMap<String, String>>,
    max_line_bytes: Option<Whole>,
}

fn demo(section: &Section<'_>, process: &ProcessSection) -> Result<Driver, ConfigError> {
    let ProcessSection { command, env, max_line_bytes } = process;
    let keys = [("command", command.is_some()), ("env", env.is_some()), ("max_line_bytes", max_line_bytes.is_some())];
    match keys.into_iter().find(|(_, given)| *given) {
        Some((key, _)) => Err(section.error(&[key], "does not fit the driver demo, which starts no process")),
        None => Ok(Driver::Demo),
    }
}

fn process_spec(section: &Section<'_>, given: ProcessSection) -> Result<ProcessSpec, ConfigError> {
    let wrong = |problem: &str| Err(section.error(&["command"], problem));
    let command = match given.command {
        None => return wrong("is missing: this driver needs the program and its arguments, such as [\"openclaw\", …]"),
        Some(command) if command.first().is_none_or(String::is_empty) => return wrong("begins with no program"),
        Some(command) if command.iter().any(|arg| arg.contains('\0')) => return wrong("has a NUL character in it"),
        Some(command) => command,
    };
    let env = given.env.unwrap_or_default();
    for (name, value) in &env {
        let problem = if name.is_empty() || name.contains(['=', '\0']) {
            "is not a name that a variable can have: no =, no NUL, not empty"
        } else if name.starts_with("MAINSTAY_") {
            "is reserved: names that begin with MAINSTAY_ are set by Mainstay"
        } else if value.contains('\0') {
            "has a NUL character in its value"
        } else {
            continue;
        };
        return Err(section.error(&["env", name], problem));
    }
    let mut max_line_bytes = DEFAULT_MAX_LINE_BYTES;
    section.number("max_line_bytes", given.max_line_bytes, limits::MAX_LINE_BYTES, &mut max_line_bytes)?;
    Ok(ProcessSpec { command, env, max_line_bytes })
}

fn workspace(
    section: &Section<'_>,
    given: WorkspaceSection,
    base_dir: &Path,
    agents: &BTreeMap<AgentName, Agent>,
    workspace: &mut Workspace,
) -> Result<(), ConfigError> {
    if let Some(dir) = given.dir {
        if dir.is_empty() || dir.contains('\0') {
            return Err(section.error(&["dir"], format!("{dir:?} is not a directory")));
        }
        // Without the dots of "./x", so that a path reads the same wherever it is shown; ".." may pass a link: it stays.
        workspace.dir = base_dir.join(dir).components().filter(|part| *part != Component::CurDir).collect();
    }
    if let Some(name) = given.agent {
        workspace.agent = match name.parse() {
            Ok(name) if agents.contains_key(&name) => name,
            _ => {
                let known: Vec<&str> = agents.keys().map(AgentName::as_str).collect();
                let nearest = nearest(&name, &known);
                return Err(section.error(&["agent"], format!("no agent {name:?}: the nearest is [agents.{nearest}]")));
            }
        };
    }
    section.number("slots", given.slots, limits::SLOTS, &mut workspace.slots)?;
    let when_full = [("share", WhenFull::Share), ("wait", WhenFull::Wait), ("reject", WhenFull::Reject)];
    section.choice("when_full", given.when_full, when_full, &mut workspace.when_full)
}

/// `https://chat.example.com:8443`: what a browser writes into the `Origin` header.
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    host.is_some_and(|host| match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => {
            is_host(name) && !port.starts_with('+') && port.parse::<u16>().is_ok()
        }
        _ => is_host(host),
    })
}

/// A name or an address, as the `Host` header has it before the port.
fn is_host(text: &str) -> bool {
    const MAX_HOST_BYTES: usize = 253;
    let name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
    let v6 = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match v6 {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => (1..=MAX_HOST_BYTES).contains(&text.len()) && text.bytes().all(name),
    }
}

/// A table of the file, for checking the values in it.
struct Section<'s> {
    document: &'s Document<'s>,
    path: Vec<&'s str>,
}

impl<'s> Section<'s> {
    fn new(document: &'s Document<'s>, path: &[&'s str]) -> Self {
        Self { document, path: path.to_vec() }
    }

    fn error(&self, key: &[&str], problem: impl Display) -> ConfigError {
        self.document.error(&[&self.path, key].concat(), &problem.to_string())
    }

    /// Takes a duration within its limits.
    fn period(
        &self,
        key: &str,
        given: Option<Period>,
        limits: RangeInclusive<Duration>,
        value: &mut Duration,
    ) -> Result<(), ConfigError> {
        let Some(Period(given)) = given else { return Ok(()) };
        if !limits.contains(&given) {
            let [given, least, most] = [given, *limits.start(), *limits.end()].map(duration::show);
            return Err(self.error(&[key], format!("{given} is not allowed: use {least} to {most}")));
        }
        *value = given;
        Ok(())
    }

    /// Takes a number within its limits.
    fn number<T: TryFrom<i64> + PartialOrd + Display>(
        &self,
        key: &str,
        given: Option<Whole>,
        limits: RangeInclusive<T>,
        value: &mut T,
    ) -> Result<(), ConfigError> {
        let Some(Whole(given)) = given else { return Ok(()) };
        *value = T::try_from(given).ok().filter(|number| limits.contains(number)).ok_or_else(|| {
            self.error(&[key], format!("{given} is not allowed: use {} to {}", limits.start(), limits.end()))
        })?;
        Ok(())
    }

    /// Takes one of some words.
    fn choice<T: Copy, const N: usize>(
        &self,
        key: &str,
        given: Option<String>,
        words: [(&str, T); N],
        value: &mut T,
    ) -> Result<(), ConfigError> {
        let Some(given) = given else { return Ok(()) };
        let Some((_, chosen)) = words.iter().find(|(word, _)| *word == given) else {
            let words = words.map(|(word, _)| word).join(", ");
            return Err(self.error(&[key], format!("{given:?} is not allowed: use one of {words}")));
        };
        *value = *chosen;
        Ok(())
    }

    /// Takes a list of which every entry is `legal`, which is what `want` says.
    fn list(
        &self,
        key: &str,
        given: Option<Vec<String>>,
        legal: fn(&str) -> bool,
        want: &str,
        value: &mut Vec<String>,
    ) -> Result<(), ConfigError> {
        let Some(given) = given else { return Ok(()) };
        if given.len() > limits::MAX_ALLOWED {
            let (count, most) = (given.len(), limits::MAX_ALLOWED);
            return Err(self.error(&[key], format!("{count} entries are not allowed: use {most} at most")));
        }
        if let Some(bad) = given.iter().find(|entry| !legal(entry)) {
            return Err(self.error(&[key], format!("{bad:?}: {want}")));
        }
        *value = given;
        Ok(())
    }
}
