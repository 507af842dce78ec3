//! The keys of `mainstay.toml`, and how their values become a checked [`Config`].
//!
//! Always: an error names the file, the line and the key, whatever the text
//! (`never_panics_and_names_a_line_of_the_file`). The known keys are the fields of the structs below and are written
//! nowhere else; a test holds `docs/config.md` to them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::allowed::{self, AllowedKeys};
use super::document::Document;
use super::driver::{self, DriverKeys};
use super::origin::{Origin, is_host};
use super::section::{Period, Section, Size, Whole, Words};
use super::{
    AuthMode, Config, ConfigError, Durability, EngineConfig, NamedToken, OnShutdown, Role, ServerConfig, Token,
    TokenName, TokenSource, fields, limits,
};
use crate::agent::{Agent, OnInterrupt, Permissions, RESUME_MESSAGE};
use crate::id::{AgentName, WorkspaceName};
use crate::nearest::nearest;
use crate::permission::{Policy, ToolKind};
use crate::workspace::{WhenFull, Workspace};

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct File {
    server: ServerSection,
    tokens: BTreeMap<String, TokenSection>,
    engine: EngineSection,
    agents: BTreeMap<String, AgentSection>,
    workspaces: BTreeMap<String, WorkspaceSection>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct ServerSection {
    listen: Option<String>,
    auth: Option<String>,
    token: Option<String>,
    allowed_origins: Option<Words>,
    allowed_hosts: Option<Words>,
    max_body_bytes: Option<Whole>,
    max_connections: Option<Whole>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct TokenSection {
    token: Option<String>,
    token_file: Option<String>,
    role: Option<String>,
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
    memory_limit: Option<Size>,
    max_queued: Option<Whole>,
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
    permissions: Option<PermissionsSection>,
    allow_modes: Option<Words>,
    allow_models: Option<Words>,
    allow_options: Option<Words>,
    cwd_roots: Option<Words>,
    // Of drivers whose agents are kept warm:
    keep_warm: Option<Period>,
    restart_pause: Option<Period>,
    max_restarts: Option<Whole>,
    // Of drivers that start a process:
    command: Option<Words>,
    env: Option<BTreeMap<String, String>>,
    max_line_bytes: Option<Whole>,
    // Of `acp`:
    shared: Option<bool>,
    // Of `openclaw-gateway`:
    url: Option<String>,
    token: Option<String>,
    gateway_agent: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct PermissionsSection {
    default: Option<String>,
    timeout: Option<Period>,
    read: Option<String>,
    edit: Option<String>,
    delete: Option<String>,
    #[serde(rename = "move")]
    move_: Option<String>,
    search: Option<String>,
    execute: Option<String>,
    think: Option<String>,
    fetch: Option<String>,
    switch_mode: Option<String>,
    other: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
struct WorkspaceSection {
    dir: Option<String>,
    agent: Option<String>,
    slots: Option<Whole>,
    when_full: Option<String>,
    client: Option<Words>,
    allow_modes: Option<Words>,
    allow_models: Option<Words>,
    allow_options: Option<Words>,
    cwd_roots: Option<Words>,
}

/// The keys that both an agent and a workspace have for the options of their sessions. Not a nested struct, because serde
/// supports no `flatten` together with `deny_unknown_fields`.
macro_rules! allowed_keys {
    ($given:ident) => {
        AllowedKeys {
            modes: $given.allow_modes,
            models: $given.allow_models,
            options: $given.allow_options,
            cwd_roots: $given.cwd_roots,
        }
    };
}

/// The keys of the table at a path; none where the user chooses the keys (names of agents, of variables).
pub(super) fn known_keys(path: &[&str]) -> Option<&'static [&'static str]> {
    match path {
        [] => Some(fields::of::<File>()),
        ["server"] => Some(fields::of::<ServerSection>()),
        ["tokens", _] => Some(fields::of::<TokenSection>()),
        ["engine"] => Some(fields::of::<EngineSection>()),
        ["agents", _] => Some(fields::of::<AgentSection>()),
        ["agents", _, "permissions"] => Some(fields::of::<PermissionsSection>()),
        ["workspaces", _] => Some(fields::of::<WorkspaceSection>()),
        _ => None,
    }
}

/// See [`Config::load`].
pub(super) fn read(text: &str, origin: &Path, base_dir: &Path) -> Result<Config, ConfigError> {
    let document = Document::parse(text, origin)?;
    document.check_keys(known_keys)?;
    let file: File = toml::from_str(text).map_err(|error| document.invalid(&error))?;

    let mut config = Config::builtin(base_dir);
    server(&Section::new(&document, &["server"]), file.server, &mut config.server)?;
    engine(&Section::new(&document, &["engine"]), file.engine, &mut config.engine)?;
    for (name, given) in file.tokens {
        let section = Section::new(&document, &["tokens", &name]);
        let name = name.parse::<TokenName>().map_err(|error| section.error(&[], error))?;
        config.server.tokens.insert(name, token(&section, given, base_dir)?);
    }
    for (name, given) in file.agents {
        let section = Section::new(&document, &["agents", &name]);
        let name: AgentName = name.parse().map_err(|error| section.error(&[], error))?;
        let builtin = config.agents.remove(&name);
        let mut new = Agent::with_defaults(name.clone());
        agent(&section, given, base_dir, builtin.as_ref().map(|agent| agent.driver.as_str()), &mut new)?;
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
    section.choice("auth", given.auth, [("token", AuthMode::Token), ("none", AuthMode::None)], &mut server.auth)?;
    if let Some(text) = given.token {
        server.token = Some(text.parse::<Token>().map_err(|error| section.error(&["token"], error))?);
    }
    let origin = "a web origin as browsers send it is needed, such as https://chat.example.com";
    let is_origin = |text: &str| text.parse::<Origin>().is_ok();
    section.list("allowed_origins", given.allowed_origins, is_origin, origin, &mut server.allowed_origins)?;
    let host = "a host name without scheme and port is needed, such as chat.example.com";
    section.list("allowed_hosts", given.allowed_hosts, is_host, host, &mut server.allowed_hosts)?;
    section.number("max_body_bytes", given.max_body_bytes, limits::MAX_BODY_BYTES, &mut server.max_body_bytes)?;
    section.number("max_connections", given.max_connections, limits::MAX_CONNECTIONS, &mut server.max_connections)
}

fn token(section: &Section<'_>, given: TokenSection, base_dir: &Path) -> Result<NamedToken, ConfigError> {
    let Some(role) = given.role else {
        return Err(section.error(&["role"], "is missing: use one of viewer, operator, admin"));
    };
    let mut named = Role::Viewer;
    section.choice("role", Some(role), Role::ALL.map(|role| (role.as_str(), role)), &mut named)?;
    let secret = match (given.token, given.token_file) {
        (Some(text), None) => TokenSource::Inline(text.parse().map_err(|error| section.error(&["token"], error))?),
        (None, Some(path)) if path.is_empty() || path.contains('\0') => {
            return Err(section.error(&["token_file"], format!("{path:?} is not a file")));
        }
        (None, Some(path)) => TokenSource::File(base_dir.join(path)),
        _ => return Err(section.error(&[], "has either token or token_file")),
    };
    Ok(NamedToken { secret, role: named })
}

fn engine(section: &Section<'_>, given: EngineSection, engine: &mut EngineConfig) -> Result<(), ConfigError> {
    let durability = [("full", Durability::Full), ("process", Durability::Process)];
    section.choice("durability", given.durability, durability, &mut engine.durability)?;
    let on_shutdown = [("end", OnShutdown::End), ("leave", OnShutdown::Leave)];
    section.choice("on_shutdown", given.on_shutdown, on_shutdown, &mut engine.on_shutdown)?;
    section.number("workers", given.workers, limits::WORKERS, &mut engine.workers)?;
    section.number("max_queued", given.max_queued, limits::MAX_QUEUED, &mut engine.max_queued)?;
    section.number("max_backends", given.max_backends, limits::MAX_BACKENDS, &mut engine.max_backends)?;
    section.size("memory_limit", given.memory_limit, limits::MEMORY_LIMIT, &mut engine.memory_limit)?;
    section.period("lease", given.lease, limits::LEASE, &mut engine.lease)?;
    section.period("sweep_interval", given.sweep_interval, limits::SWEEP_INTERVAL, &mut engine.sweep_interval)?;
    section.period("shutdown_grace", given.shutdown_grace, limits::SHUTDOWN_GRACE, &mut engine.shutdown_grace)?;
    section.period("idle_ttl", given.idle_ttl, limits::IDLE_TTL, &mut engine.idle_ttl)?;
    let retention = &mut engine.assignment_retention;
    section.period("assignment_retention", given.assignment_retention, limits::ASSIGNMENT_RETENTION, retention)
}

fn agent(
    section: &Section<'_>,
    given: AgentSection,
    base_dir: &Path,
    builtin: Option<&str>,
    agent: &mut Agent,
) -> Result<(), ConfigError> {
    section.period("turn_timeout", given.turn_timeout, limits::TURN_TIMEOUT, &mut agent.turn_timeout)?;
    section.period("idle_timeout", given.idle_timeout, limits::IDLE_TIMEOUT, &mut agent.idle_timeout)?;
    section.period("kill_grace", given.kill_grace, limits::KILL_GRACE, &mut agent.kill_grace)?;
    section.number("max_concurrent", given.max_concurrent, limits::MAX_CONCURRENT, &mut agent.max_concurrent)?;
    agent.on_interrupt = on_interrupt(section, given.on_interrupt, given.max_resumes, given.resume_message)?;
    let warm = [
        ("keep_warm", given.keep_warm.is_some()),
        ("restart_pause", given.restart_pause.is_some()),
        ("max_restarts", given.max_restarts.is_some()),
    ];
    section.period("keep_warm", given.keep_warm, limits::KEEP_WARM, &mut agent.keep_warm)?;
    if given.restart_pause.is_some() {
        let pause = agent.restart_pause.insert(Duration::ZERO);
        section.period("restart_pause", given.restart_pause, limits::RESTART_PAUSE, pause)?;
    }
    if given.max_restarts.is_some() {
        let most = agent.max_restarts.insert(0);
        section.number("max_restarts", given.max_restarts, limits::MAX_RESTARTS, most)?;
    }
    permissions(section, given.permissions.unwrap_or_default(), &mut agent.permissions)?;
    agent.allowed = allowed::read(section, allowed_keys!(given), base_dir)?;
    let keys = DriverKeys {
        command: given.command.map(|Words(words)| words),
        env: given.env,
        max_line_bytes: given.max_line_bytes,
        shared: given.shared,
        url: given.url,
        token: given.token,
        gateway_agent: given.gateway_agent,
        warm,
    };
    agent.driver = driver::read(section, given.driver.as_deref().or(builtin), keys)?;
    Ok(())
}

fn permissions(
    section: &Section<'_>,
    given: PermissionsSection,
    permissions: &mut Permissions,
) -> Result<(), ConfigError> {
    let words = [("ask", Policy::Ask), ("allow", Policy::Allow), ("deny", Policy::Deny)];
    let section = section.below("permissions");
    section.period("timeout", given.timeout, limits::PERMISSION_TIMEOUT, &mut permissions.timeout)?;
    section.choice("default", given.default, words, &mut permissions.otherwise)?;
    let by_kind = [
        (ToolKind::Read, given.read),
        (ToolKind::Edit, given.edit),
        (ToolKind::Delete, given.delete),
        (ToolKind::Move, given.move_),
        (ToolKind::Search, given.search),
        (ToolKind::Execute, given.execute),
        (ToolKind::Think, given.think),
        (ToolKind::Fetch, given.fetch),
        (ToolKind::SwitchMode, given.switch_mode),
        (ToolKind::Other, given.other),
    ];
    for (kind, given) in by_kind.into_iter().filter(|(_, given)| given.is_some()) {
        let mut policy = Policy::Ask;
        section.choice(kind.as_str(), given, words, &mut policy)?;
        permissions.by_kind.insert(kind, policy);
    }
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
        workspace.dir = allowed::directory(base_dir, &dir);
    }
    if let Some(name) = given.agent {
        workspace.agent = match name.parse() {
            Ok(name) if agents.contains_key(&name) => name,
            _ => {
                let known: Vec<&str> = agents.keys().map(AgentName::as_str).collect();
                let hint = match nearest(&name, &known) {
                    Some(nearest) => format!("the nearest is [agents.{nearest}]"),
                    None => format!("there are {}", known.join(", ")),
                };
                return Err(section.error(&["agent"], format!("no agent {name:?}: {hint}")));
            }
        };
    }
    section.number("slots", given.slots, limits::SLOTS, &mut workspace.slots)?;
    let when_full = [
        ("reclaim", WhenFull::Reclaim),
        ("share", WhenFull::Share),
        ("wait", WhenFull::Wait),
        ("reject", WhenFull::Reject),
    ];
    section.choice("when_full", given.when_full, when_full, &mut workspace.when_full)?;
    workspace.allowed = allowed::read(section, allowed_keys!(given), base_dir)?;
    for word in given.client.into_iter().flat_map(|Words(words)| words) {
        match word.as_str() {
            "read_files" => workspace.client.read_files = true,
            "write_files" => workspace.client.write_files = true,
            "terminals" => workspace.client.terminals = true,
            _ => {
                let problem = format!("{word:?} is not allowed: use some of read_files, write_files, terminals");
                return Err(section.error(&["client"], problem));
            }
        }
    }
    Ok(())
}
