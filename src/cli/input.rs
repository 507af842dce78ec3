//! What a command reads before it begins: the config that holds for it, and the message that it sends.
//!
//! Always: nothing is read without a limit.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use anyhow::Context;

use super::exit::Usage;
use super::{Cli, Command, RunArgs, SendArgs, ServeArgs};
use crate::config::{Config, Token, limits};

impl Cli {
    /// The config that holds for this command.
    ///
    /// # Errors
    /// When a file that was named does not exist, a file cannot be read, or what it says cannot be used.
    pub fn load_config(&self) -> anyhow::Result<Config> {
        const DEFAULT_FILE: &str = "mainstay.toml";
        let named = self.config.as_deref();
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        let working_dir = || std::env::current_dir().context("failed to find the working directory");
        let file = File::open(path).and_then(|file| read_text(file, limits::MAX_FILE_BYTES));
        let mut config = match file {
            Ok(text) => {
                let path_from_root = working_dir()?.join(path);
                Config::load(&text, path, path_from_root.parent().unwrap_or(Path::new("/")))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => {
                Config::builtin(&working_dir()?)
            }
            Err(error) => return Err(error).context(Usage(format!("failed to read config {}", path.display()))),
        };
        if let Command::Serve(args) = &self.command {
            args.apply(&mut config)?;
        }
        Ok(config)
    }
}

impl ServeArgs {
    /// Puts flags and variables over what the file says, and checks what came of it.
    fn apply(&self, config: &mut Config) -> anyhow::Result<()> {
        config.server.listen = self.listen.unwrap_or(config.server.listen);
        config.engine.workers = self.workers.unwrap_or(config.engine.workers);
        if let Some(token) = &self.token {
            // Not read by clap, whose errors show the value.
            config.server.token = Some(token.parse::<Token>().context(Usage("failed to read the token".into()))?);
        }
        Ok(config.server.check_exposure()?)
    }
}

impl RunArgs {
    /// The message, from the argument or from stdin.
    ///
    /// # Errors
    /// When there is none, or when stdin is no UTF-8 text or longer than any message may be.
    pub fn message(&self) -> anyhow::Result<String> {
        message_text(self.text.as_deref(), io::stdin().lock(), io::stdin().is_terminal())
    }
}

impl SendArgs {
    /// The message, from the argument or from stdin.
    ///
    /// # Errors
    /// When there is none, or when stdin is no UTF-8 text or longer than any message may be.
    pub fn message(&self) -> anyhow::Result<String> {
        message_text(Some(&self.text), io::stdin().lock(), io::stdin().is_terminal())
    }
}

/// A message given as text, as `-`, or not at all: then it is on stdin, unless a person sits there.
fn message_text(given: Option<&str>, stdin: impl Read, stdin_is_terminal: bool) -> anyhow::Result<String> {
    // As much as the daemon takes in a request by default.
    const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
    let text = match given {
        Some(text) if text != "-" => text.to_owned(),
        None if stdin_is_terminal => {
            return Err(Usage("no message: give it as TEXT, or `-` to write it on stdin".into()).into());
        }
        _ => read_text(stdin, MAX_MESSAGE_BYTES).context("failed to read the message from stdin")?,
    };
    // The engine refuses it too, in words for those who send JSON.
    if text.trim().is_empty() {
        return Err(Usage("the message is empty".into()).into());
    }
    Ok(text)
}

/// Reads no further than what shows that it is too much.
fn read_text(source: impl Read, max_bytes: usize) -> io::Result<String> {
    let mut bytes = Vec::new();
    source.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max_bytes {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {max_bytes} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::exit::Exit;
    use crate::config::ConfigError;
    use crate::id::WorkspaceName;

    fn cli(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn a_flag_goes_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.toml");
        std::fs::write(&path, "[server]\nlisten = \"0.0.0.0:80\"\n[engine]\nworkers = 3").unwrap();
        let with = |flags: &str| cli(&format!("mainstay --config {} {flags}", path.display())).unwrap().load_config();

        let config = with("serve --token t").unwrap();
        assert_eq!((config.server.listen.port(), config.engine.workers), (80, 3));
        assert_eq!(config.workspaces[&WorkspaceName::builtin()].dir, dir.path());
        let config = with("serve --listen 127.0.0.1:0 --workers 1").unwrap();
        assert_eq!((config.server.listen.port(), config.engine.workers), (0, 1));

        let error = with("serve").unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(ConfigError::Exposed { .. })), "{error:#}");
        assert!(with("slots").is_ok(), "only a daemon listens");
        let error = with("serve --token hünter2").unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Usage);
        assert!(!format!("{error:#}").contains("nter2"), "{error:#}");
        assert!(with("serve --token ").is_err(), "an empty token is none");
    }

    #[test]
    fn a_config_that_was_named_must_exist_and_be_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broken.toml");
        std::fs::write(&path, "[engine]\nlease = 1").unwrap();
        for (name, expected) in [("none.toml", "failed to read config"), ("broken.toml", "broken.toml:2: engine.lease")]
        {
            let path = dir.path().join(name);
            let error = cli(&format!("mainstay slots --config {}", path.display())).unwrap().load_config().unwrap_err();
            assert!(error.to_string().contains(expected), "{error:#}");
            assert_eq!(Exit::of(&error), Exit::Usage);
        }
        let error = cli(&format!("mainstay slots --config {}", dir.path().display())).unwrap().load_config();
        assert!(error.is_err(), "a directory is no file");
    }

    #[test]
    fn a_message_comes_from_the_argument_or_from_stdin() {
        let stdin = || "from stdin".as_bytes();
        assert_eq!(message_text(Some("hi"), stdin(), true).unwrap(), "hi");
        assert_eq!(message_text(Some("-"), stdin(), true).unwrap(), "from stdin");
        assert_eq!(message_text(None, stdin(), false).unwrap(), "from stdin");
        assert_eq!(Exit::of(&message_text(None, stdin(), true).unwrap_err()), Exit::Usage);
        for (given, stdin) in [(Some(""), "x"), (Some(" \n"), "x"), (Some("-"), ""), (None, "\n")] {
            let error = message_text(given, stdin.as_bytes(), false).unwrap_err();
            assert_eq!((Exit::of(&error), error.to_string().as_str()), (Exit::Usage, "the message is empty"));
        }
        assert!(message_text(Some("-"), &b"\xff"[..], false).is_err());
        assert!(message_text(Some("-"), io::repeat(b'x'), false).is_err(), "an endless message is not read to its end");
    }
}
