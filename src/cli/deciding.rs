//! Who may decide on the command line: a person, by their system user name, and never an agent.

use std::fs::File;
use std::io::Read;

use crate::engine::callers;

/// A larger file is not taken for a list of users.
const MAX_PASSWD_BYTES: u64 = 4 * 1024 * 1024;

/// Why a command may not decide.
#[derive(Debug, thiserror::Error)]
pub enum MayNotDecide {
    /// An agent gave the command.
    #[error(
        "this command was started by an agent{}, and agents neither answer what agents ask, nor change what they are told, nor \
         make tokens: leave it to a person",
        _0.map(|run| format!(" (run {run})")).unwrap_or_default()
    )]
    Agent(Option<crate::id::RunId>),
    /// It is not known who gave the command.
    #[error("cannot tell whether this command runs inside a run: {0}; try again")]
    Unknown(std::io::Error),
}

/// Refuses to decide from within the processes of a run.
///
/// # Errors
/// [`MayNotDecide`]
pub(super) async fn check() -> Result<(), MayNotDecide> {
    match callers::of_self().await {
        Ok(Some(process)) => Err(MayNotDecide::Agent(process.run)),
        Ok(None) => Ok(()),
        Err(error) => Err(MayNotDecide::Unknown(error)),
    }
}

/// The user of this process, as stored with an answer: `cli:` and the name, or the number if there is no name. No token has a
/// name with a colon.
pub(super) fn user() -> String {
    let uid = rustix::process::getuid().as_raw();
    let mut passwd = String::new();
    // If it cannot be read, the number is enough.
    let _ = File::open("/etc/passwd").and_then(|file| file.take(MAX_PASSWD_BYTES).read_to_string(&mut passwd));
    format!("cli:{}", name_of(uid, &passwd).unwrap_or(&uid.to_string()))
}

fn name_of(uid: u32, passwd: &str) -> Option<&str> {
    let is_it = |number: &str| number.parse() == Ok(uid);
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.chars().any(char::is_control))?;
        fields.nth(1).is_some_and(is_it).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_named_as_the_system_does() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\n\nbroken\n:x:7:7::/:\nalice:x:1000:1000:Alice,,,:/home/alice:/bin/sh\n";
        assert_eq!([name_of(0, passwd), name_of(1000, passwd)], [Some("root"), Some("alice")]);
        assert_eq!([name_of(7, passwd), name_of(1001, passwd)], [None, None]);
        assert!(user().starts_with("cli:"));
    }
}
