//! What is at a database path, determined before anything is changed there.
//!
//! Always: nothing is created, locked, written or given another mode. Only SQLite opens the database file: closing our own
//! descriptor would drop the POSIX locks that this process holds on the same file.
//!
//! Proof: `tests/faults/files.rs`.

use std::fs::{self, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags, StatxAttributes, StatxFlags};
use sqlx::ConnectOptions;
use sqlx::Connection;

use super::companion::{beside, with_owner};
use super::connect::options;
use super::{StoreError, migrate};
use crate::file_access::{is_known_member, kind_of};

/// Length of the header of every database.
const HEADER_BYTES: u64 = 100;
/// The kernel's own limit on symlinks in a path.
const MAX_SYMLINKS: usize = 40;

/// What is at the path of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing, or an empty file: a database may be created there.
    Nothing,
    /// A regular file with content; whether it is ours is not known yet.
    File,
}

/// The path with all symlinks resolved. Companions are named after it, so every process has to use the same one.
///
/// # Errors
/// [`StoreError::NotReadable`] when a part of the path cannot be inspected; [`StoreError::NoDirectory`].
pub(super) fn resolve(path: &Path) -> Result<PathBuf, StoreError> {
    let unseen = |error: io::Error| not_readable(path, &error);
    let mut at = std::path::absolute(path).map_err(unseen)?;
    for _ in 0..MAX_SYMLINKS {
        match fs::canonicalize(&at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            resolved => return resolved.map_err(unseen),
        }
        let (Some(dir), Some(name)) = (at.parent(), at.file_name()) else { break };
        let dir = fs::canonicalize(dir).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::NoDirectory(dir.to_owned()),
            _ => not_readable(dir, &error),
        })?;
        let file = dir.join(name);
        match fs::read_link(&file) {
            Ok(target) => at = dir.join(target),
            // Not a symlink, or nothing there.
            Err(_) => return Ok(file),
        }
    }
    Err(unseen(io::Error::from(rustix::io::Errno::LOOP)))
}

/// Inspects a resolved path.
///
/// # Errors
/// Why it cannot be used: it is not a regular file, has several hard links, is a mount point, or lost its beginning; or another
/// user put a companion beside it.
pub(super) fn look(path: &Path) -> Result<Found, StoreError> {
    for companion in ["-wal", "-shm", "-journal"].map(|suffix| beside(path, suffix)) {
        check_companion(path, &companion)?;
    }
    let wal_bytes = || length(&beside(path, "-wal"));
    let damaged = |detail: &str| Err(StoreError::Damaged { path: path.to_owned(), detail: detail.to_owned() });
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        // SQLite would remove the WAL, which may be the only trace of a file that was moved away.
        Err(error) if error.kind() == io::ErrorKind::NotFound && wal_bytes()? > 0 => {
            return damaged("it is gone, but its WAL is there");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(not_readable(path, &error)),
    };
    if !meta.is_file() {
        return Err(StoreError::NotAFile { path: path.to_owned(), kind: kind_of(meta.file_type()) });
    }
    if meta.nlink() > 1 {
        return Err(StoreError::HardLinked { path: path.to_owned(), names: meta.nlink() });
    }
    if is_mount_point(path, &meta) {
        return Err(StoreError::MountPoint(path.to_owned()));
    }
    match meta.len() {
        0 if wal_bytes()? > 0 => damaged("it is empty but its WAL is not"),
        0 => Ok(Found::Nothing),
        // SQLite treats a file of a few bytes as empty.
        1..HEADER_BYTES => Err(StoreError::NotOurs(path.to_owned())),
        _ => Ok(Found::File),
    }
}

/// Checks that a companion, if it exists, is a regular file of a user who may write to the database. Any other owner could read
/// stored data in it, or have SQLite store what they wrote.
fn check_companion(path: &Path, companion: &Path) -> Result<(), StoreError> {
    match fs::symlink_metadata(companion) {
        Ok(meta) if meta.is_file() => check_owner(path, companion, &meta),
        Ok(meta) => Err(StoreError::foreign(companion, format!("is {}", kind_of(meta.file_type())))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(not_readable(companion, &error)),
    }
}

/// Checks that a file beside a database belongs to a user who may write to the database: this one, root, the owner of the
/// database, or a member of its group if the group may write. Membership is known from the group of the file or from the
/// system's group files: outside a directory with the set-group-ID bit, a member's file has the member's own group.
pub(super) fn check_owner(path: &Path, companion: &Path, meta: &Metadata) -> Result<(), StoreError> {
    let owner = meta.uid();
    if owner == 0 || owner == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    let database = fs::symlink_metadata(path).ok();
    if database.as_ref().is_some_and(|database| owner == database.uid()) {
        return Ok(());
    }
    let group = database.filter(|database| database.mode() & 0o020 != 0).map(|database| database.gid());
    let Some(group) = group else { return Err(StoreError::foreign(companion, format!("belongs to uid {owner}"))) };
    if meta.gid() == group || is_known_member(owner, group) {
        return Ok(());
    }
    let detail = format!(
        "belongs to uid {owner}, who is not known as a member of the database's group {group} (if it is one: `chgrp {group}` \
         the file)"
    );
    Err(StoreError::foreign(companion, detail))
}

/// Checks that the file at a resolved path is a database of ours, or an empty one that may become ours.
///
/// # Errors
/// [`StoreError::NotOurs`], or why it cannot be read.
pub(super) async fn check_ours(path: &Path) -> Result<(), StoreError> {
    let identity = match identity_in_file(path).await {
        // The content of the WAL takes precedence over that of the file, which may be blank or torn without it.
        Ok(Identity::Blank) | Err(StoreError::NotOurs(_) | StoreError::Damaged { .. }) => {
            let in_wal = identity_in_wal(&beside(path, "-wal"));
            match in_wal.map_err(|error| not_readable(&beside(path, "-wal"), &error))? {
                Some(identity) => identity,
                None => identity_in_file(path).await?,
            }
        }
        identity => identity?,
    };
    match identity {
        Identity::Ours | Identity::Blank => Ok(()),
        Identity::Foreign => Err(StoreError::NotOurs(path.to_owned())),
    }
}

/// Whose a database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    Ours,
    Foreign,
    /// An empty database without an application id.
    Blank,
}

impl Identity {
    fn of(application_id: i32, is_empty: bool) -> Self {
        match application_id {
            migrate::APPLICATION_ID => Self::Ours,
            0 if is_empty => Self::Blank,
            _ => Self::Foreign,
        }
    }
}

async fn identity_in_file(path: &Path) -> Result<Identity, StoreError> {
    let failed = |error| StoreError::at_open_to_read(path, error);
    // Immutable: takes no locks and ignores the WAL or a journal, which another program may still need unchanged.
    let mut conn = options(path).read_only(true).immutable(true).connect().await.map_err(failed)?;
    let id: i32 = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut conn).await.map_err(failed)?;
    let mut tables = 0;
    if id == 0 {
        let count = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema");
        tables = count.fetch_one(&mut conn).await.map_err(failed)?;
    }
    conn.close().await.map_err(failed)?;
    Ok(Identity::of(id, tables == 0))
}

/// The identity according to the newest committed first page in a WAL, if the WAL has one
/// (<https://sqlite.org/fileformat2.html#walformat>).
///
/// After a loss of power a WAL may hold frames without their content, and frames of a transaction that never ended. As SQLite
/// does, reading stops at the first frame whose checksum is wrong, and a frame counts once its transaction is committed.
fn identity_in_wal(wal: &Path) -> io::Result<Option<Identity>> {
    const WAL_HEADER: u64 = 32;
    const FRAME_HEADER: u64 = 24;
    const PAGE_SIZES: std::ops::RangeInclusive<u32> = 512..=65536;
    let file = match OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(wal) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let number = |bytes: &[u8], at: usize| bytes[at..].first_chunk().map_or(0, |four| u32::from_be_bytes(*four));
    let mut header = [0; WAL_HEADER as usize];
    if file.read_exact_at(&mut header, 0).is_err() {
        return Ok(None);
    }
    let page_bytes = number(&header, 8);
    let mut sum = WalSum { big_endian: number(&header, 0) & 1 == 1, state: (0, 0) };
    sum.add(&header[..24]);
    if !sum.is(&header[24..]) || !PAGE_SIZES.contains(&page_bytes) {
        return Ok(None);
    }
    let (mut committed, mut newest, mut at) = (None, None, WAL_HEADER);
    let mut frame = [0; FRAME_HEADER as usize];
    let mut page = vec![0; page_bytes as usize];
    while file.read_exact_at(&mut frame, at).is_ok() && file.read_exact_at(&mut page, at + FRAME_HEADER).is_ok() {
        sum.add(&frame[..8]);
        sum.add(&page);
        // The salt identifies frames of an older WAL.
        if frame[8..16] != header[16..24] || !sum.is(&frame[16..]) {
            break;
        }
        if number(&frame, 0) == 1 {
            let id = i32::from_be_bytes([page[68], page[69], page[70], page[71]]);
            // The first page is the root of the schema: a leaf without cells means an empty schema.
            newest = Some(Identity::of(id, page[100] == 0x0d && page[103..105] == [0, 0]));
        }
        if number(&frame, 4) != 0 {
            committed = newest;
        }
        at += FRAME_HEADER + u64::from(page_bytes);
    }
    Ok(committed)
}

/// The running checksum of a WAL (<https://sqlite.org/fileformat2.html#checksum_algorithm>).
struct WalSum {
    big_endian: bool,
    state: (u32, u32),
}

impl WalSum {
    fn add(&mut self, bytes: &[u8]) {
        let word = |four: [u8; 4]| if self.big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) };
        let (mut first, mut second) = self.state;
        for pair in bytes.chunks_exact(8) {
            first = first.wrapping_add(word([pair[0], pair[1], pair[2], pair[3]])).wrapping_add(second);
            second = second.wrapping_add(word([pair[4], pair[5], pair[6], pair[7]])).wrapping_add(first);
        }
        self.state = (first, second);
    }

    /// Whether these bytes of a header begin with the checksum so far.
    fn is(&self, stored: &[u8]) -> bool {
        stored.starts_with(&[self.state.0.to_be_bytes(), self.state.1.to_be_bytes()].concat())
    }
}

/// The length of a companion; zero when there is none.
pub(super) fn length(companion: &Path) -> Result<u64, StoreError> {
    match fs::metadata(companion) {
        Ok(meta) => Ok(meta.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(not_readable(companion, &error)),
    }
}

pub(super) fn not_readable(path: &Path, error: &io::Error) -> StoreError {
    StoreError::NotReadable { path: path.to_owned(), detail: with_owner(path, error) }
}

/// Whether a file is a mount point. Kernels before 5.8 do not report that; there a device other than that of its directory
/// indicates it.
fn is_mount_point(path: &Path, meta: &Metadata) -> bool {
    let said = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()).ok();
    let said = said.filter(|stat| stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT));
    match said {
        Some(stat) => stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        None => path.parent().and_then(|dir| fs::metadata(dir).ok()).is_some_and(|dir| dir.dev() != meta.dev()),
    }
}
