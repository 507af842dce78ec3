//! The keys of an agent that depend on its driver: each driver accepts its own keys and no others.

use std::collections::BTreeMap;

use super::section::{Section, Whole};
use super::{ConfigError, limits, placeholder};
use crate::agent::{DEFAULT_MAX_LINE_BYTES, DriverConfig, GatewaySpec, ProcessSpec};
use crate::catalogue::KNOWN;
use crate::id::AgentName;

/// The keys that only some drivers accept.
pub(super) struct DriverKeys {
    pub command: Option<Vec<String>>,
    pub env: Option<BTreeMap<String, String>>,
    pub max_line_bytes: Option<Whole>,
    pub shared: Option<bool>,
    pub url: Option<String>,
    pub token: Option<String>,
    pub gateway_agent: Option<String>,
    /// The keys for backends (how long they are kept warm, how they are restarted), and whether each is given.
    pub warm: [(&'static str, bool); 3],
}

const DRIVERS: &str = "use one of demo, text, openclaw, claude, codex, acp, opencode, openclaw-gateway";

/// Without `max_line_bytes`: its output is not read by lines.
const TEXT_KEYS: [&str; 2] = ["command", "env"];
const PROCESS_KEYS: [&str; 3] = ["command", "env", "max_line_bytes"];
const OPENCODE_KEYS: [&str; 6] = ["command", "env", "max_line_bytes", "keep_warm", "restart_pause", "max_restarts"];
const ACP_KEYS: [&str; 7] =
    ["command", "env", "max_line_bytes", "keep_warm", "restart_pause", "max_restarts", "shared"];

/// The agents that need no config: the demo agent, and the known agents that are named after their driver.
pub(super) fn builtin() -> impl Iterator<Item = (AgentName, DriverConfig)> {
    let known = KNOWN.iter().filter(|known| known.is_builtin()).filter_map(|known| {
        let process = ProcessSpec::of(known.command);
        let driver = match known.driver {
            "claude" => DriverConfig::Claude(process),
            "codex" => DriverConfig::Codex(process),
            "opencode" => DriverConfig::Opencode(process),
            _ => return None,
        };
        Some((known.name.parse().ok()?, driver))
    });
    std::iter::once((AgentName::builtin(), DriverConfig::Demo)).chain(known)
}

/// The driver of an agent, with its settings; `word` names it, unless the agent is built in.
pub(super) fn read(section: &Section<'_>, word: Option<&str>, given: DriverKeys) -> Result<DriverConfig, ConfigError> {
    let word = match word {
        Some(word) => word,
        None => return Err(section.error(&["driver"], format!("is missing: {DRIVERS}"))),
    };
    let takes: &[&str] = match word {
        "demo" => &[],
        "text" => &TEXT_KEYS,
        "openclaw" | "claude" | "codex" => &PROCESS_KEYS,
        "opencode" => &OPENCODE_KEYS,
        "acp" => &ACP_KEYS,
        "openclaw-gateway" => &["url", "token", "gateway_agent"],
        other => return Err(section.error(&["driver"], format!("{other:?} is not a driver: {DRIVERS}"))),
    };
    let keys = [
        ("command", given.command.is_some()),
        ("env", given.env.is_some()),
        ("max_line_bytes", given.max_line_bytes.is_some()),
        ("shared", given.shared.is_some()),
        ("url", given.url.is_some()),
        ("token", given.token.is_some()),
        ("gateway_agent", given.gateway_agent.is_some()),
    ];
    if let Some((key, _)) = keys.into_iter().chain(given.warm).find(|(key, given)| *given && !takes.contains(key)) {
        return Err(section.error(&[key], format!("does not fit the driver {word}")));
    }
    let or_default = |mut given: DriverKeys, program: &str| {
        given.command.get_or_insert_with(|| vec![program.to_owned()]);
        process_spec(section, given, "")
    };
    Ok(match word {
        "openclaw" => DriverConfig::Openclaw(process_spec(section, given, "[\"openclaw\", …]")?),
        "text" => DriverConfig::Text(process_spec(section, given, "[\"./answer.sh\"]")?),
        "claude" => DriverConfig::Claude(told_by_driver(section, or_default(given, "claude")?)?),
        "codex" => DriverConfig::Codex(told_by_driver(section, or_default(given, "codex")?)?),
        "opencode" => DriverConfig::Opencode(kept_warm(section, or_default(given, "opencode")?, true)?),
        "acp" => {
            let shared = given.shared.unwrap_or_default();
            let process = process_spec(section, given, "[\"goose\", \"acp\"]")?;
            DriverConfig::Acp { process: kept_warm(section, process, shared)?, shared }
        }
        "openclaw-gateway" => DriverConfig::OpenclawGateway(gateway(section, given)?),
        _ => DriverConfig::Demo,
    })
}

/// The driver writes the message to the agent's stdin; in the command it would be passed twice, and shown by `ps`.
fn told_by_driver(section: &Section<'_>, process: ProcessSpec) -> Result<ProcessSpec, ConfigError> {
    let problem = "has {message} in it, which this driver writes to the agent's stdin: take it out";
    if let Some((key, _)) = texts(&process).find(|(_, text)| text.contains("{message}")) {
        return Err(section.error(&key, problem));
    }
    Ok(process)
}

/// The texts that may contain placeholders: the path of each key, and its text.
fn texts(process: &ProcessSpec) -> impl Iterator<Item = (Vec<&str>, &str)> {
    let command = process.command.iter().map(|word| (vec!["command"], word.as_str()));
    command.chain(process.env.iter().map(|(name, value)| (vec!["env", name.as_str()], value.as_str())))
}

/// A backend is started once for many turns: the values of a single turn are unknown then, and its session may get another slot.
fn kept_warm(section: &Section<'_>, process: ProcessSpec, shared: bool) -> Result<ProcessSpec, ConfigError> {
    let unknown = ["{message}", "{agent_session}", "{run}", "{slot}"].into_iter().chain(shared.then_some("{session}"));
    for (key, text) in texts(&process) {
        if let Some(placeholder) = unknown.clone().find(|placeholder| text.contains(placeholder)) {
            let known = if shared { "{workspace} or {dir}" } else { "{session}, {workspace} or {dir}" };
            let problem =
                format!("{placeholder} is not known when an agent is started that is kept for many turns: use {known}");
            return Err(section.error(&key, problem));
        }
    }
    Ok(process)
}

fn gateway(section: &Section<'_>, given: DriverKeys) -> Result<GatewaySpec, ConfigError> {
    let url = given.url.unwrap_or_else(|| "ws://127.0.0.1:18789".to_owned());
    if url.starts_with("wss://") {
        let advice = "reach a gateway on another machine through a tunnel, such as `ssh -L 18789:127.0.0.1:18789`";
        return Err(section.error(&["url"], format!("{url:?}: TLS is not built in; {advice}")));
    }
    let host = url.strip_prefix("ws://");
    if !host.is_some_and(|host| !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic())) {
        return Err(section.error(&["url"], format!("{url:?}: an address such as ws://127.0.0.1:18789 is needed")));
    }
    let agent = given.gateway_agent.unwrap_or_else(|| "{slot}".to_owned());
    if agent.is_empty() || agent.contains('\0') {
        return Err(section.error(&["gateway_agent"], "names no agent"));
    }
    check_placeholders(section, &["gateway_agent"], &agent)?;
    Ok(GatewaySpec { url, token: given.token, agent })
}

fn process_spec(section: &Section<'_>, given: DriverKeys, example: &str) -> Result<ProcessSpec, ConfigError> {
    let wrong = |problem: &str| Err(section.error(&["command"], problem));
    let command = match given.command {
        None => {
            return wrong(&format!("is missing: this driver needs the program and its arguments, such as {example}"));
        }
        Some(command) if command.first().is_none_or(String::is_empty) => return wrong("begins with no program"),
        Some(command) if command.iter().any(|arg| arg.contains('\0')) => return wrong("has a NUL character in it"),
        Some(command) => command,
    };
    for word in &command {
        check_placeholders(section, &["command"], word)?;
    }
    let env = given.env.unwrap_or_default();
    for (name, value) in &env {
        let problem = if name.is_empty() || name.contains(['=', '\0']) {
            "is not a name that a variable can have: no =, no NUL, not empty"
        } else if name.starts_with("MAINSTAY_") {
            "is reserved: names that begin with MAINSTAY_ are set by Mainstay"
        } else if value.contains('\0') {
            "has a NUL character in its value"
        } else {
            check_placeholders(section, &["env", name], value)?;
            continue;
        };
        return Err(section.error(&["env", name], problem));
    }
    let mut max_line_bytes = DEFAULT_MAX_LINE_BYTES;
    section.number("max_line_bytes", given.max_line_bytes, limits::MAX_LINE_BYTES, &mut max_line_bytes)?;
    Ok(ProcessSpec { command, env, max_line_bytes })
}

/// Refuses a misspelt placeholder: an agent that gets `{mesage}` would have nothing to work on. Other braces are left alone.
fn check_placeholders(section: &Section<'_>, key: &[&str], text: &str) -> Result<(), ConfigError> {
    match placeholder::mistyped(text) {
        Some((word, meant)) => {
            Err(section.error(key, format!("{{{word}}} is no placeholder: the nearest is {{{meant}}}")))
        }
        None => Ok(()),
    }
}
