//! What a command reads before it begins: its config, and the message that it sends.
//!
//! Always: nothing is read without a limit.

use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::exit::Usage;
use super::{Cli, Command, DEFAULT_DATABASE, RunArgs, SendArgs, ServeArgs};
use crate::config::{Config, Token, limits};
use crate::file_access;
use crate::id::MessageId;
use crate::message::{Attachment, UserMessage};

impl Cli {
    /// The config of this command. A config file that was not named is only read from a place where no other user could have
    /// written or changed it, because it names programs to start.
    ///
    /// # Errors
    /// If a named file does not exist, a file cannot be read or belongs to another user, or its content is invalid.
    pub fn load_config(&self) -> anyhow::Result<Config> {
        const DEFAULT_FILE: &str = "mainstay.toml";
        let named = self.global.config.as_deref();
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        let working_dir = || std::env::current_dir().context("failed to find the working directory");
        let failed = || Usage(format!("failed to read config {}", path.display()));
        let mut config = match file_access::open_regular(path) {
            Ok(file) => {
                let exposure = file_access::exposure_of(path).with_context(failed)?;
                match exposure {
                    Some(exposure) if named.is_none() => {
                        let problem = format!(
                            "config {path} was found here, but {exposure}, so that another user may choose which programs \
                             it starts: read it, and then name it: --config ./{path}",
                            path = path.display()
                        );
                        return Err(Usage(problem).into());
                    }
                    Some(exposure) => {
                        tracing::warn!(path = %path.display(), %exposure, "another user could change the config");
                    }
                    None => {}
                }
                let text = read_text(file, limits::MAX_FILE_BYTES).with_context(failed)?;
                let path_from_root = working_dir()?.join(path);
                Config::load(&text, path, path_from_root.parent().unwrap_or(Path::new("/")))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => {
                Config::builtin(&working_dir()?)
            }
            Err(error) => return Err(error).with_context(failed),
        };
        if let Command::Serve(args) = &self.command {
            args.apply(&mut config)?;
        }
        Ok(config)
    }

    /// Refuses to use a database that was found, not named, in a place where another user could have written or replaced it: its
    /// queued runs are not executed, the leftovers that it names are not removed, and no message is written to it. This holds for
    /// every command that writes, so that none creates a database which the next one refuses.
    ///
    /// # Errors
    /// If it is such a database.
    pub fn check_found_database(&self) -> anyhow::Result<()> {
        let is_named = self.global.db.is_some();
        if is_named || !self.command.writes() {
            return Ok(());
        }
        let database = Path::new(DEFAULT_DATABASE);
        let (found, exposure) = match file_access::exposure_of(database) {
            // The next command would refuse a database that is created here.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                ("would be made here", file_access::exposure_of_entries(Path::new(".")))
            }
            exposure => ("was found here", exposure),
        };
        // Opening the database reports what cannot be checked here.
        let Ok(Some(exposure)) = exposure else { return Ok(()) };
        let problem = format!(
            "database {DEFAULT_DATABASE} {found}, but {exposure}, so that another user may choose what agents are told, and \
             read what you say: name it, if you trust it: --db ./{DEFAULT_DATABASE}"
        );
        Err(Usage(problem).into())
    }
}

impl ServeArgs {
    /// Applies flags and variables over the config file, and checks the result.
    fn apply(&self, config: &mut Config) -> anyhow::Result<()> {
        config.server.listen = self.listen.unwrap_or(config.server.listen);
        config.engine.workers = self.workers.unwrap_or(config.engine.workers);
        if let Some(token) = &self.token {
            // Not parsed by clap, whose errors show the value.
            config.server.token = Some(token.parse::<Token>().context(Usage("failed to read the token".into()))?);
        }
        Ok(config.server.check_access()?)
    }
}

impl RunArgs {
    /// The message, from the argument or from stdin, and its files.
    ///
    /// # Errors
    /// If there is none, stdin is not UTF-8, or it all is longer than `max_bytes`.
    pub fn message(&self, max_bytes: usize) -> anyhow::Result<UserMessage> {
        message(self.text.as_deref(), &self.attach, max_bytes)
    }
}

impl SendArgs {
    /// The message, from the argument or from stdin, and its files.
    ///
    /// # Errors
    /// If there is none, stdin is not UTF-8, or it all is longer than `max_bytes`.
    pub fn message(&self, max_bytes: usize) -> anyhow::Result<UserMessage> {
        message(Some(&self.text), &self.attach, max_bytes)
    }
}

/// Limited to what the daemon would accept in a request.
fn message(text: Option<&str>, files: &[PathBuf], max_bytes: usize) -> anyhow::Result<UserMessage> {
    let (stdin, has_files) = (io::stdin(), !files.is_empty());
    let text = message_text(text, stdin.lock(), stdin.is_terminal(), has_files, max_bytes)?;
    let mut left = max_bytes.saturating_sub(text.len());
    let mut attached = Vec::new();
    for path in files {
        let file = attachment(path, left).with_context(|| format!("failed to attach {}", path.display()))?;
        left = left.saturating_sub(file.url.len());
        attached.push(file);
    }
    Ok(UserMessage::with_files(MessageId::generate(), &text, &attached)?)
}

/// A message given as text, as `-`, or not at all: then it is read from stdin, unless that is a terminal.
fn message_text(
    given: Option<&str>,
    stdin: impl Read,
    stdin_is_terminal: bool,
    has_files: bool,
    max_bytes: usize,
) -> anyhow::Result<String> {
    let text = match given {
        Some(text) if text != "-" => text.to_owned(),
        None if stdin_is_terminal && has_files => String::new(),
        None if stdin_is_terminal => {
            return Err(Usage("no message: give it as TEXT, or `-` to write it on stdin".into()).into());
        }
        _ => read_text(stdin, max_bytes).context("failed to read the message from stdin")?,
    };
    // The engine refuses it too, in words for clients that send JSON.
    if text.trim().is_empty() && !has_files {
        return Err(Usage("the message is empty".into()).into());
    }
    Ok(text)
}

/// A file as it is sent: complete, within the message.
fn attachment(path: &Path, max_bytes: usize) -> anyhow::Result<Attachment> {
    let bytes = read(file_access::open_regular(path)?, max_bytes / 4 * 3)?;
    Ok(Attachment::from_bytes(path.file_name().map(|name| name.to_string_lossy().into_owned()), &bytes))
}

/// Stops reading as soon as the limit is exceeded.
fn read_text(source: impl Read, max_bytes: usize) -> io::Result<String> {
    String::from_utf8(read(source, max_bytes)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

fn read(source: impl Read, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max_bytes {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {max_bytes} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
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

        assert!(with("serve").is_ok(), "a token is made where none is named");
        std::fs::write(&path, "[server]\nlisten = \"0.0.0.0:80\"\nauth = \"none\"").unwrap();
        let error = with("serve").unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(ConfigError::Exposed { .. })), "{error:#}");
        assert!(with("slots").is_ok(), "only a daemon listens");
        let error = with("serve --listen 127.0.0.1:0 --token t").unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(ConfigError::TokenUnused)), "{error:#}");
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
        let read = |given, stdin: &[u8], terminal| message_text(given, stdin, terminal, false, 64);
        assert_eq!(read(Some("hi"), stdin(), true).unwrap(), "hi");
        assert_eq!(read(Some("-"), stdin(), true).unwrap(), "from stdin");
        assert_eq!(read(None, stdin(), false).unwrap(), "from stdin");
        assert_eq!(Exit::of(&read(None, stdin(), true).unwrap_err()), Exit::Usage);
        for (given, stdin) in [(Some(""), "x"), (Some(" \n"), "x"), (Some("-"), ""), (None, "\n")] {
            let error = read(given, stdin.as_bytes(), false).unwrap_err();
            assert_eq!((Exit::of(&error), error.to_string().as_str()), (Exit::Usage, "the message is empty"));
            assert!(message_text(given, stdin.as_bytes(), true, true, 64).is_ok(), "a file says enough");
        }
        assert!(read(Some("-"), b"\xff", false).is_err());
        let endless = message_text(Some("-"), io::repeat(b'x'), false, false, 64);
        assert!(endless.is_err(), "an endless message is not read to its end");
    }

    #[test]
    fn a_file_is_sent_whole_as_what_it_is_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content, media_type) in [
            ("a.png", &b"\x89PNG"[..], "image/png"),
            ("a.ts", b"let x: number;", "text/plain"),
            ("a.md", b"# a", "text/markdown"),
            ("a.json", b"{}", "text/plain"),
            ("a.pdf", b"%PDF-\xff", "application/pdf"),
            ("a", b"\xff\xfe", "application/octet-stream"),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            let message = message(Some(""), &[path], 1024).unwrap();
            let (_, file) = message.files().next().unwrap();
            assert_eq!((file.label(), file.media_type.as_str()), (name, media_type));
            assert_eq!(file.url, format!("data:{media_type};base64,{}", STANDARD.encode(content)));
        }
        let large = dir.path().join("large");
        std::fs::write(&large, [b'x'; 500]).unwrap();
        assert!(message(Some(""), std::slice::from_ref(&large), 1024).is_ok());
        for refused in [
            vec![large.clone(), large],
            vec![dir.path().join("none")],
            vec![dir.path().to_owned()],
            vec!["/dev/zero".into()],
        ] {
            let error = message(Some("hi"), &refused, 1024).unwrap_err().to_string();
            assert!(error.starts_with("failed to attach "), "{error}");
        }
    }
}
