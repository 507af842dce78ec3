//! What a config file may and may not contain, and that hostile text causes an error and nothing else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::file::known_keys;
use super::*;

const DOCS: &str = include_str!("../../docs/config.md");

/// The example block of the documentation.
fn example() -> &'static str {
    DOCS.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap()
}

fn load(text: &str) -> Result<Config, ConfigError> {
    Config::load(text, Path::new("mainstay.toml"), Path::new("/srv/chat"))
}

#[track_caller]
fn good(text: &str) -> Config {
    load(text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn an_empty_file_changes_nothing() {
    assert_eq!(good(""), Config::builtin(Path::new("/srv/chat")));
}

#[test]
fn the_documented_example_is_the_default_and_names_every_key() {
    let mut config = good(example());
    for (name, driver) in
        [("openclaw", "openclaw"), ("words", "text"), ("goose", "acp"), ("gateway", "openclaw-gateway")]
    {
        assert_eq!(config.agents.remove(&name.parse().unwrap()).unwrap().driver.as_str(), driver);
    }
    assert_eq!(config, Config::builtin(Path::new("/srv/chat")));

    for path in [&["server"] as &[&str], &["engine"], &["tokens", "x"], &["agents", "x"], &["workspaces", "x"]] {
        // `permissions` is a nested section, which the example shows under its own name.
        for key in known_keys(path).unwrap().iter().filter(|key| **key != "permissions") {
            let written = example().lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
            assert!(written, "the example does not show {key} of {path:?}");
            let section = path[0];
            let explained = DOCS.contains(&format!("`{section}.{key}`"))
                || DOCS.contains(&format!("`{section}.NAME.{key}`"))
                || DOCS.contains(&format!(", `{key}` |"));
            assert!(explained, "the table of limits does not have {key} of {path:?}");
        }
    }
}

#[test]
fn says_what_the_file_says() {
    let config = good(
        r#"
        [server]
        listen = "[::1]:0"
        token = "s3cret"
        allowed_origins = ["https://chat.example.com", "http://localhost:3000", "http://[::1]:80"]
        allowed_hosts = ["chat.example.com", "[::1]"]
        [engine]
        workers = 0
        lease = "1m30s"
        durability = "process"
        [agents.claw]
        driver = "openclaw"
        command = ["claw", "", "{message}"]
        env = { A = "", B = "{slot}=x" }
        kill_grace = "0s"
        [workspaces.docs]
        dir = "./a/./b/../c"
        agent = "claw"
        slots = 0
        when_full = "reject"
        [workspaces.elsewhere]
        dir = "/data"
        "#,
    );
    assert_eq!(config.server.listen, "[::1]:0".parse().unwrap());
    assert_eq!(config.server.token.unwrap().reveal(), "s3cret");
    assert_eq!((config.server.allowed_origins.len(), config.server.allowed_hosts.len()), (3, 2));
    assert_eq!(config.engine.workers, 0);
    assert_eq!(config.engine.lease, Duration::from_secs(90));
    assert_eq!(config.engine.durability, Durability::Process);
    assert_eq!(config.agents.len(), 5, "those that are built in are still there");
    assert_eq!(config.workspaces.len(), 3, "default is still there");
    let claw = &config.agents[&"claw".parse().unwrap()];
    assert_eq!(claw.kill_grace, Duration::ZERO);
    let DriverConfig::Openclaw(spec) = &claw.driver else { panic!("{claw:?}") };
    assert_eq!(spec.command, ["claw", "", "{message}"]);
    assert_eq!(spec.env["B"], "{slot}=x");
    let docs = &config.workspaces[&"docs".parse().unwrap()];
    assert_eq!(docs.dir, PathBuf::from("/srv/chat/a/b/../c"));
    assert_eq!((docs.agent.as_str(), docs.slots, docs.when_full), ("claw", 0, WhenFull::Reject));
    let elsewhere = &config.workspaces[&"elsewhere".parse().unwrap()];
    assert_eq!((elsewhere.dir.as_path(), elsewhere.agent.as_str()), (Path::new("/data"), "demo"));
}

#[test]
fn the_built_in_ones_change_only_where_they_are_named() {
    let config = good("[workspaces.default]\nslots = 2\n[agents.demo]\nmax_concurrent = 1");
    let builtin = Config::builtin(Path::new("/srv/chat"));
    let mut workspace = builtin.workspaces[&WorkspaceName::builtin()].clone();
    workspace.slots = 2;
    assert_eq!(config.workspaces[&WorkspaceName::builtin()], workspace);
    let mut agent = builtin.agents[&AgentName::builtin()].clone();
    agent.max_concurrent = 1;
    assert_eq!(config.agents[&AgentName::builtin()], agent);
}

/// The whole text of the error, so that a change of it is noticed here.
#[test]
fn errors_name_file_line_key_and_what_is_allowed() {
    let duration = r#"expected a duration such as "500ms", "30s", "1m30s", "2h" or "7d""#;
    let table = [
        ("[engine]\n\nleese = 1", "3: unknown key engine.leese: the nearest known one is lease"),
        ("[engines]", "1: unknown key engines: the nearest known one is engine"),
        (
            "[server]\ncolour = 1",
            "2: unknown key server.colour: the known ones are listen, auth, token, allowed_origins, \
             allowed_hosts, max_body_bytes, max_connections",
        ),
        (
            "[agents.x]\ndriver = \"text\"\ncommand = \"./a.sh\"",
            "3: agents.x.command: a list of texts is needed: write it as [\"./a.sh\"]",
        ),
        (
            "[agents.x]\ndriver = \"text\"\ncommand = \"python3 a.py {message}\"",
            "3: agents.x.command: a list of texts is needed: write it as [\"python3\", \"a.py\", \"{message}\"]",
        ),
        (
            "[server]\nallowed_hosts = \"a.lan\"",
            "2: server.allowed_hosts: a list of texts is needed: write it as [\"a.lan\"]",
        ),
        (
            "[agents.x]\ndriver = \"text\"\ncommand = [\"a\", \"{mesage}\"]",
            "3: agents.x.command: {mesage} is no placeholder: the nearest is {message}",
        ),
        (
            "[agents.x]\ndriver = \"text\"\ncommand = [\"a\"]\nenv = { A = \"{sesion}\" }",
            "4: agents.x.env.A: {sesion} is no placeholder: the nearest is {session}",
        ),
        (
            "[workspaces.x]\nagent = \"helper\"",
            "2: workspaces.x.agent: no agent \"helper\": there are claude, codex, demo, opencode",
        ),
        ("[server]\nworkers = 3", "2: unknown key server.workers: it belongs in [engine]"),
        ("listen = \"x\"", "1: unknown key listen: it belongs in [server]"),
        ("[agents.x]\ncomand = []", "2: unknown key agents.x.comand: the nearest known one is command"),
        (
            "[workspaces.\"ö\\u001b\"]\ndirr = 1",
            "2: unknown key workspaces.\"ö\\u{1b}\".dirr: the nearest known one is dir",
        ),
        (
            "[agents.x]\ndriver = \"openclaw-gateway\"\nurl = \"wss://x\"",
            "3: agents.x.url: \"wss://x\": TLS is not built in; reach a gateway on another machine through a tunnel, such \
             as `ssh -L 18789:127.0.0.1:18789`",
        ),
        ("[server]\nlisten = 80", "2: server.listen: invalid type: integer `80`, expected a string"),
        (
            "[server]\nlisten = \"localhost\"",
            "2: server.listen: \"localhost\": an IP address with a port, such as 127.0.0.1:7717 or [::1]:7717, is \
             needed",
        ),
        ("server.token = \"\"", "1: server.token: a token is 1 to 512 printable ASCII characters without spaces"),
        (
            "[server]\nallowed_origins = [\"https://x/\"]",
            "2: server.allowed_origins: \"https://x/\": a web origin as browsers send it is needed, such as \
             https://chat.example.com",
        ),
        (
            "[server]\nallowed_hosts = [\"x:80\"]",
            "2: server.allowed_hosts: \"x:80\": a host name without scheme and port is needed, such as \
             chat.example.com",
        ),
        ("[engine]\nworkers = 1025", "2: engine.workers: 1025 is not allowed: use 0 to 1024"),
        ("[engine]\nworkers = -1", "2: engine.workers: -1 is not allowed: use 0 to 1024"),
        ("[engine]\nworkers = 1.5", "2: engine.workers: invalid type: floating point `1.5`, expected a whole number"),
        ("[engine]\nlease = 30", &format!("2: engine.lease: invalid type: integer `30`, {duration}")),
        ("[engine]\nlease = \"30\"", &format!("2: engine.lease: invalid value: string \"30\", {duration}")),
        ("[engine]\nlease = \"500ms\"", "2: engine.lease: 500ms is not allowed: use 1s to 1h"),
        ("[engine]\ndurability = \"none\"", "2: engine.durability: \"none\" is not allowed: use one of full, process"),
        ("engine = [8]", "1: engine: a table is needed here"),
        ("[[agents.x]]", "1: agents.x: a table is needed here"),
        ("agents = 1", "1: agents: invalid type: integer `1`, expected a map"),
        (
            "\n[agents.x]\nmax_concurrent = 1",
            "2: agents.x.driver: is missing: use one of demo, text, openclaw, claude, codex, acp, opencode, openclaw-gateway",
        ),
        (
            "agents.x.driver = \"claud\"",
            "1: agents.x.driver: \"claud\" is not a driver: use one of demo, text, openclaw, claude, codex, acp, opencode, openclaw-gateway",
        ),
        (
            "agents.x.driver = \"openclaw\"",
            "1: agents.x.command: is missing: this driver needs the program and its arguments, such as [\"openclaw\", \
             …]",
        ),
        ("[agents.x]\ndriver = \"openclaw\"\ncommand = []", "3: agents.x.command: begins with no program"),
        ("[agents.x]\ndriver = \"openclaw\"\ncommand = [\"\"]", "3: agents.x.command: begins with no program"),
        (
            "[agents.x]\ndriver = \"openclaw\"\ncommand = [\"a\", \"\\u0000\"]",
            "3: agents.x.command: has a NUL character in it",
        ),
        (
            "[agents.x]\ndriver = \"acp\"\ncommand = [\"x\", \"--for={slot}\"]",
            "3: agents.x.command: {slot} is not known when an agent is started that is kept for many turns: use {session}, \
             {workspace} or {dir}",
        ),
        (
            "[agents.opencode]\nenv = { A = \"{workspace}\", B = \"{session}\" }",
            "2: agents.opencode.env.B: {session} is not known when an agent is started that is kept for many turns: use \
             {workspace} or {dir}",
        ),
        (
            "[agents.codex]\ncommand = [\"codex\", \"{message}\"]",
            "2: agents.codex.command: has {message} in it, which this driver writes to the agent's stdin: take it out",
        ),
        (
            "[agents.claude.env]\nTEXT = \"{message}\"",
            "2: agents.claude.env.TEXT: has {message} in it, which this driver writes to the agent's stdin: take it out",
        ),
        ("[agents.demo]\ncommand = [\"x\"]", "2: agents.demo.command: does not fit the driver demo"),
        ("[agents.demo]\nkeep_warm = \"1m\"", "2: agents.demo.keep_warm: does not fit the driver demo"),
        ("[agents.claude]\nkeep_warm = \"1m\"", "2: agents.claude.keep_warm: does not fit the driver claude"),
        ("[agents.codex]\nmax_restarts = 1", "2: agents.codex.max_restarts: does not fit the driver codex"),
        (
            "[agents.x]\ndriver = \"openclaw-gateway\"\nrestart_pause = \"1s\"",
            "3: agents.x.restart_pause: does not fit the driver openclaw-gateway",
        ),
        (
            "[agents.x]\ndriver = \"openclaw\"\ncommand = [\"x\"]\n[agents.x.env]\n\"A=B\" = \"\"",
            "5: agents.x.env.\"A=B\": is not a name that a variable can have: no =, no NUL, not empty",
        ),
        (
            "[agents.x]\ndriver = \"openclaw\"\ncommand = [\"x\"]\nenv.MAINSTAY_RUN = \"\"",
            "4: agents.x.env.MAINSTAY_RUN: is reserved: names that begin with MAINSTAY_ are set by Mainstay",
        ),
        (
            "[agents.\"a b\"]",
            "1: agents.\"a b\": agent name \"a b\" is not valid: use 1–200 characters of A–Z a–z 0–9 . _ : -",
        ),
        (
            "[workspaces.x]\nagent = \"demmo\"",
            "2: workspaces.x.agent: no agent \"demmo\": the nearest is [agents.demo]",
        ),
        ("[workspaces.x]\nslots = 1001", "2: workspaces.x.slots: 1001 is not allowed: use 0 to 1000"),
        ("[workspaces.x]\ndir = \"\"", "2: workspaces.x.dir: \"\" is not a directory"),
        (
            "[workspaces.x]\nwhen_full = \"queue\"",
            "2: workspaces.x.when_full: \"queue\" is not allowed: use one of reclaim, share, wait, reject",
        ),
        ("[engine]\nlease = \"1s\"\nlease = \"2s\"", "3: duplicate key"),
        ("a = = 1", "1: "),
    ];
    for (text, expected) in table {
        let error = load(text).expect_err(text).to_string();
        let expected = format!("mainstay.toml:{expected}");
        if expected.ends_with(": ") {
            assert!(error.starts_with(&expected), "{text}\n{error}");
        } else {
            assert_eq!(error, expected, "{text}");
        }
    }
}

#[test]
fn a_live_agent_is_told_only_what_holds_for_all_its_turns() {
    let acp = |word: &str, shared: bool| {
        load(&format!("[agents.x]\ndriver = \"acp\"\nshared = {shared}\ncommand = [\"x\", \"{word}\"]")).is_ok()
    };
    for word in ["{message}", "{agent_session}", "{run}", "{slot}"] {
        assert!(!acp(word, false) && !acp(word, true), "{word}");
        assert!(load(&format!("[agents.x]\ndriver = \"openclaw\"\ncommand = [\"x\", \"{word}\"]")).is_ok());
    }
    assert!(acp("{session}", false) && !acp("{session}", true));
    assert!(acp("{workspace}{dir}{nobody}", true));
}

#[test]
fn every_key_is_checked_under_its_own_name() {
    for path in [&["server"] as &[&str], &["engine"], &["agents", "demo"], &["workspaces", "default"]] {
        for key in known_keys(path).unwrap() {
            let name = format!("{}.{key}", path.join("."));
            let error = load(&format!("\n[{}]\n{key} = false", path.join("."))).expect_err(&name).to_string();
            let problem = match *key {
                // The only boolean key; it does not fit this driver.
                "shared" => "does not fit",
                "permissions" => "a table is needed",
                _ => "invalid type: boolean",
            };
            assert!(error.starts_with(&format!("mainstay.toml:3: {name}: {problem}")), "{error}");
            // Numbers and durations out of their limits pass serde and are refused later, under a hand-written name.
            for illegal in ["-1", "\"99999d\""] {
                let Err(error) = load(&format!("\n[{}]\n{key} = {illegal}", path.join("."))) else { continue };
                assert!(error.to_string().starts_with(&format!("mainstay.toml:3: {name}: ")), "{error}");
            }
        }
    }
}

#[test]
fn what_a_terminal_would_obey_is_escaped() {
    for text in ["[\"\\u001b[2J\"]", "[engine]\ndurability = \"\\u001b[2J\\u009b\"", "\u{1b}", "[agents.\"\\r\"]\nx=1"]
    {
        let error = load(text).expect_err(text).to_string();
        assert!(!error.contains(char::is_control), "{error:?}");
    }
}

#[test]
fn a_huge_file_is_not_read() {
    let text = "#".repeat(limits::MAX_FILE_BYTES + 1);
    assert!(matches!(load(&text), Err(ConfigError::TooLarge { .. })));
}

#[test]
fn auth_none_is_for_loopback_and_beside_no_token() {
    let mut server = Config::builtin(Path::new("/")).server;
    for (listen, is_local) in [
        ("127.0.0.1:7717", true),
        ("127.9.9.9:0", true),
        ("[::1]:7717", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("0.0.0.0:7717", false),
        ("[::]:7717", false),
        ("192.168.1.5:80", false),
    ] {
        server.listen = listen.parse().unwrap();
        server.auth = AuthMode::None;
        assert_eq!(server.check_access().is_ok(), is_local, "{listen}");
        // One is generated if none is configured.
        server.auth = AuthMode::Token;
        assert_eq!(server.check_access(), Ok(()), "{listen}");
    }
    server.auth = AuthMode::None;
    let text = server.check_access().unwrap_err().to_string();
    assert!(text.contains("auth = \"none\"") && text.contains("127.0.0.1"), "both ways out: {text}");
    server.listen = "127.0.0.1:7717".parse().unwrap();
    server.token = Some("s3cret".parse().unwrap());
    assert_eq!(server.check_access(), Err(ConfigError::TokenUnused));
}

#[test]
fn a_named_token_has_a_role_and_one_secret() {
    let config = good(
        "[tokens.ci]\nrole = \"operator\"\ntoken = \"a\"\n[tokens.prometheus]\nrole = \"viewer\"\ntoken_file = \"p\"",
    );
    let tokens: Vec<_> = config.server.tokens.iter().map(|(name, token)| (name.as_str(), token)).collect();
    let (ci, prometheus) = (tokens[0], tokens[1]);
    assert_eq!((ci.0, ci.1.role), ("ci", Role::Operator));
    assert_eq!(ci.1.secret, TokenSource::Inline("a".parse().unwrap()));
    assert_eq!((prometheus.0, prometheus.1.role), ("prometheus", Role::Viewer));
    assert_eq!(prometheus.1.secret, TokenSource::File("/srv/chat/p".into()));
    for (text, problem) in [
        ("[tokens.x]\ntoken = \"a\"", "1: tokens.x.role: is missing: use one of viewer, operator, admin"),
        ("[tokens.x]\nrole = \"root\"\ntoken = \"a\"", "2: tokens.x.role: \"root\" is not allowed"),
        ("[tokens.x]\nrole = \"admin\"", "1: tokens.x: has either token or token_file"),
        (
            "[tokens.x]\nrole = \"admin\"\ntoken = \"a\"\ntoken_file = \"b\"",
            "1: tokens.x: has either token or token_file",
        ),
        ("[tokens.x]\nrole = \"admin\"\ntoken_file = \"\"", "3: tokens.x.token_file: \"\" is not a file"),
        ("[tokens.x]\nrole = \"admin\"\ntoken = \"two words\"", "3: tokens.x.token: a token is 1 to 512"),
        ("[tokens.admin]\nrole = \"admin\"\ntoken = \"a\"", "1: tokens.admin: the name of a token"),
        ("[tokens.\"cli:root\"]\nrole = \"admin\"\ntoken = \"a\"", "1: tokens.\"cli:root\": the name of a token"),
    ] {
        let error = load(text).expect_err(text).to_string();
        assert!(error.starts_with(&format!("mainstay.toml:{problem}")), "{error}");
    }
}

#[test]
fn a_token_is_not_printed() {
    let mut config = Config::builtin(Path::new("/"));
    config.server.token = Some("hunter2".parse().unwrap());
    assert!(!format!("{config:?}").contains("hunter2"));
    for bad in ["", "two words", "ü", "a\n", &"x".repeat(513)] {
        assert_eq!(bad.parse::<Token>(), Err(InvalidToken), "{bad:?}");
    }
}

/// The line that an error points at.
fn line(error: &ConfigError) -> usize {
    match error {
        ConfigError::Syntax { line, .. } | ConfigError::UnknownKey { line, .. } | ConfigError::Value { line, .. } => {
            *line
        }
        ConfigError::TooLarge { .. } | ConfigError::Exposed { .. } | ConfigError::TokenUnused => 1,
    }
}

/// The documented example with some text inserted, removed and replaced.
fn mutated() -> impl Strategy<Value = String> {
    let pieces = [
        "\"",
        "'''",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        ".",
        ",",
        "\n",
        "\r",
        "#",
        "\0",
        "\u{1b}",
        "\u{feff}",
        "é",
        "-1",
        "9223372036854775808",
        "1e400",
        "nan",
        "true",
        "\"1s\"",
        "\"\"",
        "[]",
        "{}",
        "1979-05-27T07:32:00Z",
        "\\u0000",
        "[agents]",
        "[workspaces.default]",
        "x = 1",
        "0x",
        "engine.lease",
        "\"99999999999999999999d\"",
    ];
    let change = (any::<prop::sample::Index>(), 0..12_usize, prop::sample::select(pieces.to_vec()));
    prop::collection::vec(change, 1..6).prop_map(|changes| {
        let mut chars: Vec<char> = example().chars().collect();
        for (at, removed, inserted) in changes {
            let at = at.index(chars.len() + 1);
            let end = chars.len().min(at + removed);
            chars.splice(at..end, inserted.chars());
        }
        chars.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn never_panics_and_names_a_line_of_the_file(
        text in prop_oneof!["(?s).{0,200}", "[\\[\\]{}=.,\"'a-z0-9\n ]{0,80}", mutated()]
    ) {
        match load(&text) {
            Ok(config) => prop_assert!(config.workspaces.values().all(|w| config.agents.contains_key(&w.agent))),
            Err(error) => {
                prop_assert!((1..=1 + text.matches('\n').count()).contains(&line(&error)), "{error}");
                prop_assert!(!error.to_string().contains(char::is_control), "{error:?}");
            }
        }
    }
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow() {
    for text in [
        "a = ".to_owned() + &"[".repeat(300_000),
        "[".to_owned() + &"a.".repeat(300_000) + "a]",
        "a=".to_owned() + &"{a=".repeat(200_000),
    ] {
        assert!(load(&text).is_err());
    }
}

/// The limits of the table in `docs/config.md`, against those that are checked.
#[test]
fn documented_limits_are_those_that_are_checked() {
    let row = |key: &str| {
        let name = key.rsplit('.').next().unwrap();
        let of_key = |line: &&str| {
            line.starts_with("| ") && (line.contains(&format!("`{key}`")) || line.contains(&format!(", `{name}` |")))
        };
        DOCS.lines().find(of_key).unwrap_or_else(|| panic!("{key} is not in the table"))
    };
    let durations = [
        ("engine.lease", limits::LEASE),
        ("engine.sweep_interval", limits::SWEEP_INTERVAL),
        ("engine.shutdown_grace", limits::SHUTDOWN_GRACE),
        ("engine.idle_ttl", limits::IDLE_TTL),
        ("engine.assignment_retention", limits::ASSIGNMENT_RETENTION),
        ("agents.NAME.turn_timeout", limits::TURN_TIMEOUT),
        ("agents.NAME.idle_timeout", limits::IDLE_TIMEOUT),
        ("agents.NAME.kill_grace", limits::KILL_GRACE),
        ("agents.NAME.keep_warm", limits::KEEP_WARM),
        ("agents.NAME.restart_pause", limits::RESTART_PAUSE),
        ("agents.NAME.permissions.timeout", limits::PERMISSION_TIMEOUT),
    ];
    for (key, allowed) in durations {
        let [least, most] = [*allowed.start(), *allowed.end()].map(duration::show);
        assert!(row(key).contains(&format!("{least} to {most}")), "{key}: {least} to {most}");
    }
    let [least, most] = [*limits::MEMORY_LIMIT.start(), *limits::MEMORY_LIMIT.end()].map(size::show);
    assert!(row("engine.memory_limit").contains(&format!("{least} to {most}")));
    let small = |allowed: std::ops::RangeInclusive<u32>| (u64::from(*allowed.start()), u64::from(*allowed.end()));
    let large = |allowed: std::ops::RangeInclusive<usize>| (*allowed.start() as u64, *allowed.end() as u64);
    for (key, (least, most)) in [
        ("server.max_body_bytes", large(limits::MAX_BODY_BYTES)),
        ("server.max_connections", large(limits::MAX_CONNECTIONS)),
        ("engine.workers", small(limits::WORKERS)),
        ("engine.max_backends", small(limits::MAX_BACKENDS)),
        ("agents.NAME.max_concurrent", small(limits::MAX_CONCURRENT)),
        ("agents.NAME.max_resumes", small(limits::MAX_RESUMES)),
        ("agents.NAME.max_restarts", small(limits::MAX_RESTARTS)),
        ("agents.NAME.max_line_bytes", large(limits::MAX_LINE_BYTES)),
        ("workspaces.NAME.slots", small(limits::SLOTS)),
    ] {
        assert!(row(key).contains(&format!("{least} to {most}")), "{key}: {least} to {most}");
    }
    for key in ["server.allowed_origins", "server.allowed_hosts"] {
        assert!(row(key).contains(&format!("up to {}", limits::MAX_ALLOWED)), "{key}");
    }
}
