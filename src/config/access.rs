//! Access, as configured: tokens, their names and their roles.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::MAX_ID_CHARS;

/// The secret that a request shows. Never printed, not even by `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// The text cannot be sent as a bearer token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a token is 1 to 512 printable ASCII characters without spaces")]
pub struct InvalidToken;

impl Token {
    /// Maximum length in bytes.
    pub const MAX_BYTES: usize = 512;

    /// The secret, for comparing it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for Token {
    type Err = InvalidToken;
    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let legal = (1..=Self::MAX_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if legal { Ok(Self(text.to_owned())) } else { Err(InvalidToken) }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Whether requests need a token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AuthMode {
    /// They do. If no token is configured, one is generated beside the database.
    #[default]
    Token,
    /// They do not: every process on this machine is an administrator.
    None,
}

/// What a caller may do. Each role includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read everything.
    Viewer,
    /// Send, cancel, stop, close, and answer what agents ask.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// All roles, the least powerful first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// The word in the config and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// The name of a caller that shows the token of `[server]` or of the file beside the database.
pub const ADMIN: &str = "admin";
/// The name of a caller where no token is needed.
pub const ANONYMOUS: &str = "anonymous";

/// All values that `answered_by` has otherwise: no token may have these names.
const RESERVED: [&str; 4] = [ADMIN, ANONYMOUS, "chat", "policy"];

/// The name of a token, and so of its holder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenName(String);

/// The text cannot name a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name of a token has 1 to {MAX_ID_CHARS} characters of A–Z a–z 0–9 . _ - and is none of {}",
    RESERVED.join(", ")
)]
pub struct InvalidTokenName;

impl TokenName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TokenName {
    type Err = InvalidTokenName;
    fn from_str(text: &str) -> Result<Self, InvalidTokenName> {
        // No colon: `cli:NAME` is a user of this machine.
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let fits = (1..=MAX_ID_CHARS).contains(&text.len()) && text.bytes().all(legal);
        if fits && !RESERVED.contains(&text) { Ok(Self(text.to_owned())) } else { Err(InvalidTokenName) }
    }
}

/// `[tokens.NAME]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedToken {
    /// The secret, or the file that holds it.
    pub secret: TokenSource,
    /// What its holder may do.
    pub role: Role,
}

/// Where the secret of a token is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// In the config itself.
    Inline(Token),
    /// In this file, as its only line.
    File(PathBuf),
}
