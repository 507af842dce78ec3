//! The agents that are known by name: how each is reached, installed and logged in, and whether it is installed on this machine.
//!
//! Always: the commands are those of the vendors. An agent whose name is that of a driver is available without any config.

use serde::Serialize;

/// A well-known agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownAgent {
    /// Its name in the config.
    pub name: &'static str,
    /// The driver that reaches it.
    pub driver: &'static str,
    /// The program and its arguments.
    pub command: &'static [&'static str],
    /// The command that installs it.
    pub install: &'static str,
    /// How it is given access to a model.
    pub log_in: &'static str,
}

/// A mode in which an agent neither asks for permission nor is sandboxed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnrestrictedMode {
    /// The agent that uses the word.
    pub agent: &'static str,
    /// The word.
    pub word: &'static str,
    /// Whether the word counts as unrestricted for every agent. False if it names an ordinary mode of other agents.
    pub for_all: bool,
}

/// The modes that the operator has to allow by name. The words come from each agent's command line, config or list of modes.
pub const UNRESTRICTED: [UnrestrictedMode; 19] = [
    // `--permission-mode`, and the flags that have the same effect.
    unrestricted("claude", "bypassPermissions"),
    unrestricted("claude", "dangerously-skip-permissions"),
    unrestricted("claude", "allow-dangerously-skip-permissions"),
    // `sandbox_mode` in its config, and flags.
    unrestricted("codex", "danger-full-access"),
    unrestricted("codex", "dangerously-bypass-approvals-and-sandbox"),
    unrestricted("codex", "full-auto"),
    unrestricted("codex-acp", "full-access"),
    // `--approval-mode`; both are modes in ACP as well.
    unrestricted("gemini", "yolo"),
    unrestricted("qwen", "yolo"),
    // Its agents, which are modes in ACP.
    unrestricted("vibe", "auto-approve"),
    // Copilot's flags and modes in ACP.
    unrestricted("copilot", "allow-all"),
    unrestricted("copilot", "allow-all-tools"),
    unrestricted("copilot", "autopilot"),
    // Flags and settings of agents that are not in this catalogue: Amp, Kiro, Droid, and others.
    unrestricted("amp", "dangerously-allow-all"),
    unrestricted("kiro", "trust-all-tools"),
    unrestricted("droid", "skip-permissions-unsafe"),
    unrestricted("any", "auto-approve-all"),
    unrestricted("any", "unrestricted"),
    // `GOOSE_MODE`. The `auto` of other agents asks or is sandboxed.
    UnrestrictedMode { agent: "goose", word: "auto", for_all: false },
];

const fn unrestricted(agent: &'static str, word: &'static str) -> UnrestrictedMode {
    UnrestrictedMode { agent, word, for_all: true }
}

/// All known agents; first those that need no config.
pub const KNOWN: [KnownAgent; 10] = [
    KnownAgent {
        name: "claude",
        driver: "claude",
        command: &["claude"],
        install: "npm install -g @anthropic-ai/claude-code",
        log_in: "run `claude` and type /login, or set ANTHROPIC_API_KEY",
    },
    KnownAgent {
        name: "codex",
        driver: "codex",
        command: &["codex"],
        install: "npm install -g @openai/codex",
        log_in: "run `codex login`",
    },
    KnownAgent {
        name: "opencode",
        driver: "opencode",
        command: &["opencode"],
        install: "npm install -g opencode-ai",
        log_in: "run `opencode auth login`",
    },
    KnownAgent {
        name: "goose",
        driver: "acp",
        command: &["goose", "acp"],
        install: "npm install -g @aaif/goose",
        log_in: "run `goose configure`",
    },
    KnownAgent {
        name: "gemini",
        driver: "acp",
        command: &["gemini", "--experimental-acp"],
        install: "npm install -g @google/gemini-cli",
        log_in: "run `gemini` once, or set GEMINI_API_KEY",
    },
    KnownAgent {
        name: "qwen",
        driver: "acp",
        command: &["qwen", "--acp"],
        install: "npm install -g @qwen-code/qwen-code",
        log_in: "run `qwen` and type /auth",
    },
    KnownAgent {
        name: "vibe",
        driver: "acp",
        command: &["vibe-acp"],
        install: "pip install mistral-vibe",
        log_in: "run `vibe` once, or set MISTRAL_API_KEY",
    },
    KnownAgent {
        name: "claude-agent-acp",
        driver: "acp",
        command: &["claude-agent-acp"],
        install: "npm install -g @agentclientprotocol/claude-agent-acp",
        log_in: "run `claude` and type /login, or set ANTHROPIC_API_KEY",
    },
    KnownAgent {
        name: "codex-acp",
        driver: "acp",
        command: &["codex-acp"],
        install: "npm install -g @zed-industries/codex-acp",
        log_in: "run `codex login`, or set OPENAI_API_KEY",
    },
    KnownAgent {
        name: "openclaw",
        driver: "openclaw-gateway",
        command: &["openclaw", "gateway", "run"],
        install: "npm install -g openclaw",
        log_in: "run `openclaw onboard`, then keep `openclaw gateway run` running",
    },
];

impl KnownAgent {
    /// The agent whose program this is, which may be given as a path.
    pub fn of_program(program: &str) -> Option<&'static Self> {
        let name = program.rsplit('/').next()?;
        KNOWN.iter().find(|known| known.command.first() == Some(&name))
    }

    /// Whether it can be used without any config.
    pub fn is_builtin(&self) -> bool {
        self.name == self.driver
    }

    /// The lines of `mainstay.toml` that configure it.
    pub fn config(&self) -> String {
        let Self { name, driver, command, .. } = self;
        match *driver {
            "openclaw-gateway" => {
                format!("[agents.{name}]\ndriver = \"{driver}\"\nurl = \"ws://127.0.0.1:18789\"\ntoken = \"…\"\n")
            }
            _ => format!("[agents.{name}]\ndriver = \"{driver}\"\ncommand = {command:?}\n"),
        }
    }
}

/// An installed agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The path of its program, or the address at which it answers.
    pub at: String,
    /// The version that it reports.
    pub version: Option<String>,
}

/// An agent that can be used, or could be after installing or configuring it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentReport {
    /// Its name.
    pub name: String,
    /// The driver that reaches it.
    pub driver: &'static str,
    /// The program and its arguments; empty for one that is not started by us.
    pub command: Vec<String>,
    /// Whether a session can name it.
    pub configured: bool,
    /// Where it was found, if it is installed.
    pub found: Option<Found>,
    /// What is missing, for people.
    pub missing: Option<String>,
    /// How it is installed, if known.
    pub install: Option<&'static str>,
    /// How it is given access to a model, if known.
    pub log_in: Option<&'static str>,
    /// What to add to `mainstay.toml`, when it is not configured.
    pub config: Option<String>,
    /// Number of its running turns.
    pub running: i64,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    #[test]
    fn what_is_to_be_added_to_the_config_can_be_read_there() {
        for known in KNOWN {
            let config = Config::load(&known.config().replace('…', "t"), Path::new("mainstay.toml"), Path::new("/"));
            let config = config.unwrap_or_else(|error| panic!("{error}"));
            let agent = &config.agents[&known.name.parse().unwrap()];
            assert_eq!(agent.driver.as_str(), known.driver, "{}", known.name);
            let builtin = Config::builtin(Path::new("/"));
            assert_eq!(builtin.agents.contains_key(&agent.name), known.is_builtin(), "{}", known.name);
            if known.is_builtin() {
                assert_eq!(builtin.agents[&agent.name], *agent);
            }
        }
    }

    #[test]
    fn an_agent_is_known_by_its_program() {
        let name = |program| KnownAgent::of_program(program).map(|known| known.name);
        for (program, known) in
            [("claude", Some("claude")), ("/opt/x/vibe-acp", Some("vibe")), ("sh", None), ("", None)]
        {
            assert_eq!(name(program), known, "{program}");
        }
    }

    #[test]
    fn unrestricted_modes_are_documented() {
        let docs = include_str!("../docs/agents.md");
        let section = docs.split("## Unrestricted modes").nth(1).unwrap().split("\n## ").next().unwrap();
        for UnrestrictedMode { word, .. } in UNRESTRICTED {
            assert!(section.contains(&format!("`{word}`")), "{word}");
        }
    }
}
