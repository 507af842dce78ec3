//! Who may ask, as the config says it: tokens, the names they go by, and what each of them may do.

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
    /// The longest.
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
    /// They do. Where none is named, one is made beside the database.
    #[default]
    Token,
    /// They do not: every process of this machine is an administrator.
    None,
}

/// What a caller may do. Each role may do what the ones before it may.
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
    /// All of them, the least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// The word for it in the config and in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// Who a caller is called that shows the one token of `[server]` or of the file beside the database.
pub const ADMIN: &str = "admin";
/// Who a caller is called where no token is needed.
pub const ANONYMOUS: &str = "anonymous";

/// Other words that `answered_by` may have: no token goes by them.
const RESERVED: [&str; 4] = [ADMIN, ANONYMOUS, "chat", "policy"];

/// Names a token, and so who shows it.
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
        // Without a colon: `cli:NAME` is a user of this machine.
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let fits = (1..=MAX_ID_CHARS).contains(&text.len()) && text.bytes().all(legal);
        if fits && !RESERVED.contains(&text) { Ok(Self(text.to_owned())) } else { Err(InvalidTokenName) }
    }
}

/// `[tokens.NAME]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedToken {
    /// The secret, or where it is.
    pub secret: TokenSource,
    /// What its holder may do.
    pub role: Role,
}

/// Where the secret of a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// In the config itself.
    Inline(Token),
    /// In this file, alone on its one line.
    File(PathBuf),
}
