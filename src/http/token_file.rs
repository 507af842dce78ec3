//! A token in a file of its own: created, read, and replaced while the daemon runs.
//!
//! Always: only a regular file is read that its owner alone may read or write, and the generated token beside a
//! database is never reached through a link. A new token is complete at its path or absent (written to a temporary file, synced,
//! renamed), also after a crash.
//! Proof: `tests/security/token.rs`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::fs::OFlags;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::config::Token;

/// Entropy of a generated token, in bytes.
const TOKEN_BYTES: usize = 32;
/// The longest file: a token and a line end.
const MAX_FILE_BYTES: u64 = Token::MAX_BYTES as u64 + 2;
/// The permission bits of group and others.
const NOT_OWNER: u32 = 0o077;

/// A token cannot be read from its file, or not be written to it.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what the fields are")]
pub enum TokenFileError {
    /// The file cannot be created, read or written.
    #[error("failed to {what} {path}: {error}", path = path.display())]
    Io { what: &'static str, path: PathBuf, error: io::Error },
    /// The path is a link, a directory, a FIFO, …
    #[error("{path} is not a regular file: a token is read from nothing else. Remove it, and check who put it there", path = path.display())]
    NotRegular { path: PathBuf },
    /// Other users may read or write the file.
    #[error(
        "{path} has mode {mode:o}, so others may know the token in it: `chmod 600` it, and make a new token \
         (`mainstay token rotate`, or write one into it)", path = path.display()
    )]
    Open { path: PathBuf, mode: u32 },
    /// The file belongs to another user.
    #[error(
        "{path} belongs to user {owner}, who is neither this user, nor root, nor the owner of the database: `chown` it",
        path = path.display()
    )]
    Foreign { path: PathBuf, owner: u32 },
    /// The file contains no token.
    #[error(
        "{path} holds no token (1 to 512 printable ASCII characters without spaces, on one line): make one with \
         `mainstay token rotate`, or write one into it", path = path.display()
    )]
    Malformed { path: PathBuf },
    /// Two callers share a token and could not be told apart.
    #[error("{} and {} have the same token: give each one of its own", names[0], names[1])]
    Twice { names: [String; 2] },
}

/// A file that contains a token, and what was last read from it.
#[derive(Debug)]
pub struct TokenFile {
    place: Place,
    known: Mutex<Known>,
}

/// Where a token is, and who may own the file.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// The database that the file is beside. The database's owner may own the file, and no link is followed. None for a file that
    /// the operator has configured: that one may be a link.
    database: Option<PathBuf>,
}

#[derive(Debug)]
struct Known {
    token: Token,
    /// The file that was checked last, whether it contained a token or not.
    seen: Option<Stamp>,
}

/// Tells one version of a file from the next.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64, u64);

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        Self(meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec(), meta.len())
    }
}

impl TokenFile {
    /// The token in a file that the operator has configured. Blocking work.
    ///
    /// # Errors
    /// [`TokenFileError`]
    pub fn named(path: &Path) -> Result<Self, TokenFileError> {
        Self::of(Place { path: path.to_owned(), database: None })
    }

    /// The token beside a database, created if there is none. Blocking work.
    ///
    /// # Errors
    /// [`TokenFileError`]
    pub fn beside(database: &Path, path: &Path) -> Result<Self, TokenFileError> {
        let place = Place::beside(database, path);
        if place.read()?.is_none() {
            place.write_new(database, false)?;
        }
        Self::of(place)
    }

    fn of(place: Place) -> Result<Self, TokenFileError> {
        let (token, seen) = place.read()?.ok_or_else(|| place.missing())?;
        Ok(Self { place, known: Mutex::new(Known { token, seen: Some(seen) }) })
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// The current token. The file is read again if `stat` shows a change; if it can no longer be used, that is logged and the
    /// last good token stays valid. Blocking work.
    pub fn current(&self) -> Token {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.place.metadata().as_ref().map(Stamp::of).ok();
        if now == known.seen {
            return known.token.clone();
        }
        match self.place.read() {
            Ok(Some((token, seen))) => {
                tracing::info!(path = %self.path().display(), "token read anew");
                *known = Known { token, seen: Some(seen) };
            }
            unusable => {
                let error = unusable.err().unwrap_or_else(|| self.place.missing());
                tracing::warn!(%error, "token file unusable; the last token holds until it is replaced");
                known.seen = now;
            }
        }
        known.token.clone()
    }
}

/// The token beside a database, as its owner reads it. Blocking work.
///
/// # Errors
/// [`TokenFileError`], also if there is none.
pub fn show(database: &Path, path: &Path) -> Result<Token, TokenFileError> {
    let place = Place::beside(database, path);
    place.read()?.map(|(token, _)| token).ok_or_else(|| place.missing())
}

/// Replaces the token beside a database. Running daemons use the new one from the next request on. Blocking work.
///
/// # Errors
/// [`TokenFileError`]; the old token then stays valid.
pub fn rotate(database: &Path, path: &Path) -> Result<(), TokenFileError> {
    Place::beside(database, path).write_new(database, true)
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TokenFileError {
    move |error| TokenFileError::Io { what, path: path.to_owned(), error }
}

impl Place {
    fn beside(database: &Path, path: &Path) -> Self {
        Self { path: path.to_owned(), database: Some(database.to_owned()) }
    }

    fn missing(&self) -> TokenFileError {
        failed("read", &self.path)(io::ErrorKind::NotFound.into())
    }

    fn follows_links(&self) -> bool {
        self.database.is_none()
    }

    fn metadata(&self) -> io::Result<fs::Metadata> {
        if self.follows_links() { fs::metadata(&self.path) } else { fs::symlink_metadata(&self.path) }
    }

    /// Opens a file at exactly this path, without blocking on a FIFO or a device.
    fn open(&self, options: &mut OpenOptions) -> Result<Option<File>, TokenFileError> {
        let links = if self.follows_links() { OFlags::empty() } else { OFlags::NOFOLLOW };
        let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | links;
        match options.custom_flags(flags.bits().cast_signed()).open(&self.path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // A link where links are not followed, or a socket.
            Err(_) if self.metadata().is_ok_and(|meta| !meta.is_file()) => {
                Err(TokenFileError::NotRegular { path: self.path.clone() })
            }
            Err(error) => Err(failed("open", &self.path)(error)),
        }
    }

    /// The token and the file's version; none if there is no file.
    fn read(&self) -> Result<Option<(Token, Stamp)>, TokenFileError> {
        let Some(file) = self.open(OpenOptions::new().read(true))? else { return Ok(None) };
        let meta = file.metadata().map_err(failed("read", &self.path))?;
        self.check(&meta)?;
        let mut text = String::new();
        let malformed = || TokenFileError::Malformed { path: self.path.clone() };
        match file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(malformed()),
            read => read.map_err(failed("read", &self.path))?,
        };
        let token = text.trim_end_matches(['\n', '\r']).parse().map_err(|_| malformed())?;
        Ok(Some((token, Stamp::of(&meta))))
    }

    /// Checks that only the owner may read and write the file, and that the owner is one who may know the token.
    fn check(&self, meta: &fs::Metadata) -> Result<(), TokenFileError> {
        let (path, owner) = (self.path.clone(), meta.uid());
        if !meta.is_file() {
            return Err(TokenFileError::NotRegular { path });
        }
        let mode = meta.mode() & 0o7777;
        if mode & NOT_OWNER != 0 {
            return Err(TokenFileError::Open { path, mode });
        }
        let of_database = || self.database.as_ref().and_then(|database| fs::metadata(database).ok());
        let is_known = owner == rustix::process::geteuid().as_raw() || owner == 0;
        if is_known || of_database().is_some_and(|meta| meta.uid() == owner) {
            return Ok(());
        }
        Err(TokenFileError::Foreign { path, owner })
    }

    /// Writes a new token. Without `replacing`, an existing one stays. Processes that do so at the same time take turns by
    /// locking the temporary file that becomes the token.
    fn write_new(&self, database: &Path, replacing: bool) -> Result<(), TokenFileError> {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".new");
        let new = Self { path: name.into(), database: self.database.clone() };
        let failed_to_write = || failed("write", &new.path);
        let mut file = loop {
            let mut options = OpenOptions::new();
            let Some(file) = new.open(options.read(true).write(true).create(true).truncate(false).mode(0o600))? else {
                return Err(failed_to_write()(io::ErrorKind::NotFound.into()));
            };
            file.lock().map_err(failed_to_write())?;
            let held = file.metadata().map_err(failed_to_write())?;
            // Another process may have renamed the file while this one waited for its lock.
            if new.metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) == (held.dev(), held.ino())) {
                new.check(&held)?;
                break file;
            }
        };
        match self.metadata() {
            Ok(_) if !replacing => return fs::remove_file(&new.path).map_err(failed_to_write()),
            Ok(meta) if !meta.is_file() => return Err(TokenFileError::NotRegular { path: self.path.clone() }),
            _ => {}
        }
        let mut write = || {
            // Root creates it for the owner of the database.
            let owner = fs::metadata(database)?;
            if rustix::process::geteuid().is_root() && owner.uid() != file.metadata()?.uid() {
                fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
            }
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(format!("{}\n", random()?).as_bytes())?;
            file.sync_all()
        };
        write().map_err(failed_to_write())?;
        fs::rename(&new.path, &self.path).map_err(failed("write", &self.path))?;
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))
    }
}

/// 256 bits, so that it cannot be guessed.
fn random() -> io::Result<String> {
    let mut bytes = [0; TOKEN_BYTES];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += getrandom(rest, GetRandomFlags::empty())?;
    }
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
