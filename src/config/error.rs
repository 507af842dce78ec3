//! Errors of a config, which name the line.
//!
//! Always: text from the file is escaped and shortened in an error, so that the error is safe to print.

use std::net::SocketAddr;

/// A config that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what the fields are")]
pub enum ConfigError {
    /// Larger than any config.
    #[error("{file} has {bytes} bytes: a config has {max} at most", max = super::limits::MAX_FILE_BYTES)]
    TooLarge { file: String, bytes: usize },
    /// Not TOML.
    #[error("{file}:{line}: {problem}")]
    Syntax { file: String, line: usize, problem: String },
    /// A key that is unknown at this place.
    #[error("{file}:{line}: unknown key {key}: {hint}")]
    UnknownKey { file: String, line: usize, key: String, hint: String },
    /// A value of the wrong type, out of its limits, or inconsistent with others.
    #[error("{file}:{line}: {key}: {problem}")]
    Value { file: String, line: usize, key: String, problem: String },
    /// Listening for other machines without a token.
    #[error(
        "{listen} can be reached from other machines, which needs a token: take auth = \"none\" out of [server], or listen \
         on this machine only (such as 127.0.0.1:{port})", port = listen.port()
    )]
    Exposed { listen: SocketAddr },
    /// A token that would have no effect.
    #[error(
        "auth = \"none\" in [server] lets every request in, so the token that is named (--token, MAINSTAY_TOKEN, token in \
         [server], or [tokens]) would protect nothing: take one of the two out"
    )]
    TokenUnused,
}

/// Text from the file, made safe for an error: one short line without control characters.
pub(super) fn excerpt(text: &str) -> String {
    const MAX_CHARS: usize = 300;
    let escape = |c: char| if c.is_control() { c.escape_default().collect() } else { String::from(c) };
    let mut short: String = text.trim_end().chars().take(MAX_CHARS).map(escape).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        short.push('…');
    }
    short
}
