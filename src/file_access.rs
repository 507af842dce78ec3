//! Files that other users may have created: opened without blocking, and judged by which users could change them.
//!
//! Always: a path is judged by the rules of ssh. A file is as trustworthy as its owner, its mode and every directory above it: a
//! user who may write to one of those could replace the file. Root is trusted like the user of this process; a writable group is
//! not, unless it is known to hold no other user.
//!
//! Proof: the tests below, `tests/security/directories.rs`.

use std::fmt;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Write permission for others.
const OTHERS_WRITE: u32 = 0o002;
/// Write permission for the group.
const GROUP_WRITES: u32 = 0o020;
/// In a directory with this bit only the owner of an entry may replace it.
const STICKY: u32 = 0o1000;

/// Opens a regular file for reading. Anything else is refused at once: a pipe without a writer would block, a device may never
/// end, and opening some devices has side effects.
///
/// # Errors
/// Any failure to open it, or what it is instead of a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    check_regular(&fs::metadata(path)?)?;
    // The file may have been replaced since the check.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    check_regular(&file.metadata()?)?;
    Ok(file)
}

fn check_regular(meta: &Metadata) -> io::Result<()> {
    if meta.is_file() {
        return Ok(());
    }
    let kind = kind_of(meta.file_type());
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {kind}, and a regular file is needed")))
}

/// The name of a file type, for an error message.
pub fn kind_of(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a named pipe",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_char_device() || kind.is_block_device() => "a device",
        kind if kind.is_symlink() => "a symbolic link",
        _ => "no regular file",
    }
}

/// Why another user could change or replace a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exposure {
    /// It, or a directory above it, belongs to another user.
    Owner {
        /// What belongs to the other user.
        path: PathBuf,
        /// The other user.
        uid: u32,
    },
    /// Others may write to it, or to a directory above it.
    Mode {
        /// What may be written to.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner { path, uid } => write!(f, "{} belongs to uid {uid}", path.display()),
            Self::Mode { path, mode } => {
                let who = if mode & OTHERS_WRITE != 0 { "every user" } else { "its group" };
                write!(f, "{who} may write to {} (mode {:o})", path.display(), mode & 0o7777)
            }
        }
    }
}

/// Whether a user other than that of this process and root could change or replace the file at `path`; returns the first reason
/// found. Both a symbolic link and its target are judged.
///
/// # Errors
/// The file, or a directory above it, cannot be inspected.
pub fn exposure_of(path: &Path) -> io::Result<Option<Exposure>> {
    let user = rustix::process::geteuid().as_raw();
    let named = std::path::absolute(path)?;
    let real = fs::canonicalize(path)?;
    if fs::symlink_metadata(&named)?.is_symlink() {
        let dir = fs::canonicalize(named.parent().unwrap_or(Path::new("/")))?;
        let link = dir.join(named.file_name().unwrap_or_default());
        // The mode of a link has no meaning.
        let owner = owner_exposure(&link, &fs::symlink_metadata(&link)?, user);
        if let Some(found) = owner.map_or_else(|| exposure_of_directories(&link, user), |found| Ok(Some(found)))? {
            return Ok(Some(found));
        }
    }
    let meta = fs::symlink_metadata(&real)?;
    let own = owner_exposure(&real, &meta, user).or_else(|| mode_exposure(&real, &meta, user));
    own.map_or_else(|| exposure_of_directories(&real, user), |found| Ok(Some(found)))
}

/// The same for files that this process creates in a directory.
///
/// # Errors
/// The directory, or one above it, cannot be inspected.
pub fn exposure_of_entries(dir: &Path) -> io::Result<Option<Exposure>> {
    exposure_of_directories(&fs::canonicalize(dir)?.join("entry"), rustix::process::geteuid().as_raw())
}

/// The same for the directories above a path that has no links in it.
fn exposure_of_directories(path: &Path, user: u32) -> io::Result<Option<Exposure>> {
    for dir in path.ancestors().skip(1) {
        let meta = fs::symlink_metadata(dir)?;
        let found = owner_exposure(dir, &meta, user).filter(|_| !is_of_the_host(&meta));
        // The entries on the way belong to this user or to root: that has been checked.
        let found = found.or_else(|| mode_exposure(dir, &meta, user).filter(|_| meta.mode() & STICKY == 0));
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn owner_exposure(path: &Path, meta: &Metadata, user: u32) -> Option<Exposure> {
    let is_trusted = meta.uid() == user || meta.uid() == 0;
    (!is_trusted).then(|| Exposure::Owner { path: path.to_owned(), uid: meta.uid() })
}

/// Whether a directory belongs to a user without an id in the namespace of this process, and no user of this namespace may write
/// to it. So do directories above a container, which are owned by the host's root.
fn is_of_the_host(meta: &Metadata) -> bool {
    if meta.mode() & (OTHERS_WRITE | GROUP_WRITES) != 0 {
        return false;
    }
    let read = |path: &str| fs::read_to_string(path).ok();
    let (overflow, map) = (read("/proc/sys/kernel/overflowuid"), read("/proc/self/uid_map"));
    let is_unmapped = |map: String| !is_mapped_in(&map, meta.uid());
    overflow.is_some_and(|uid| uid.trim().parse() == Ok(meta.uid())) && map.is_some_and(is_unmapped)
}

/// Parses the format of `user_namespaces(7)`. In any other format, every user counts as mapped.
fn is_mapped_in(map: &str, uid: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(first)), _, Some(Ok(count))) => uid.checked_sub(first).is_some_and(|at| at < count),
            _ => true,
        }
    })
}

fn mode_exposure(path: &Path, meta: &Metadata, user: u32) -> Option<Exposure> {
    let others = meta.mode() & OTHERS_WRITE != 0;
    let exposed = others || meta.mode() & GROUP_WRITES != 0 && !is_private_group(meta.gid(), user);
    exposed.then(|| Exposure::Mode { path: path.to_owned(), mode: meta.mode() })
}

/// Whether a group has no members but `user` and root: many systems give each user such a group, with write permission. A group
/// that is not in the system's files (of a directory service) does not count as private.
fn is_private_group(gid: u32, user: u32) -> bool {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    is_private_group_in(&read("/etc/group"), &read("/etc/passwd"), gid, user)
}

/// Parses the formats of `group(5)` and `passwd(5)`.
fn is_private_group_in(groups: &str, users: &str, gid: u32, user: u32) -> bool {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let number = |fields: &[String], at: usize| fields.get(at).and_then(|field| field.parse::<u32>().ok());
    let users: Vec<_> = users.lines().map(fields).collect();
    // Root may write everywhere anyway.
    let is_trusted = |fields: &Vec<String>| number(fields, 2).is_some_and(|uid| uid == user || uid == 0);
    let is_primary_of_another = users.iter().any(|fields| number(fields, 3) == Some(gid) && !is_trusted(fields));
    let names: Vec<_> = users.iter().filter(|fields| is_trusted(fields)).filter_map(|fields| fields.first()).collect();
    let mut known = groups.lines().map(fields).filter(|fields| number(fields, 2) == Some(gid)).peekable();
    let is_known = known.peek().is_some();
    let has_another = known.any(|fields| {
        let members = fields.get(3).map_or("", String::as_str).split(',').filter(|name| !name.is_empty());
        members.into_iter().any(|name| !names.iter().any(|own| own.as_str() == name))
    });
    is_known && !is_primary_of_another && !has_another
}

/// Whether a user is a member of a group according to the system's files: by its primary group, or by name.
pub fn is_known_member(uid: u32, gid: u32) -> bool {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    is_member_in(&read("/etc/group"), &read("/etc/passwd"), uid, gid)
}

/// Parses the formats of `group(5)` and `passwd(5)`.
fn is_member_in(groups: &str, users: &str, uid: u32, gid: u32) -> bool {
    let is = |field: Option<&str>, number: u32| field.and_then(|field| field.parse().ok()) == Some(number);
    let users = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let same: Vec<_> = users.filter(|fields| is(fields.get(2).copied(), uid)).collect();
    let is_named = |member: &str| !member.is_empty() && same.iter().any(|fields| fields.first() == Some(&member));
    same.iter().any(|fields| is(fields.get(3).copied(), gid))
        || groups.lines().map(|line| line.split(':').collect::<Vec<_>>()).any(|fields| {
            is(fields.get(2).copied(), gid) && fields.get(3).is_some_and(|members| members.split(',').any(is_named))
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "x").unwrap();
        symlink(path("file"), path("link")).unwrap();
        assert!(open_regular(&path("file")).is_ok() && open_regular(&path("link")).is_ok());
        // Opening it for reading would wait for a writer.
        mkfifoat(CWD, path("pipe"), Mode::from_raw_mode(0o600)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for (what, kind) in [
            (path("pipe"), "a named pipe"),
            (path("socket"), "a socket"),
            (dir.path().to_owned(), "a directory"),
            ("/dev/zero".into(), "a device"),
        ] {
            let error = open_regular(&what).unwrap_err();
            assert_eq!(error.to_string(), format!("it is {kind}, and a regular file is needed"));
        }
    }

    #[test]
    fn writers_of_a_directory_above_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        let (above, file) = (home.join("above"), home.join("above/below/file"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        let set = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        for path in [&above, file.parent().unwrap()] {
            set(path, 0o755);
        }
        set(&file, 0o600);
        assert_eq!(exposure_of(&file).unwrap(), None);
        symlink(&file, home.join("link")).unwrap();
        assert_eq!(exposure_of(&home.join("link")).unwrap(), None);
        for (path, mode) in [(&file, 0o602), (&above, 0o777)] {
            let before = fs::metadata(path).unwrap().permissions();
            set(path, mode);
            for named in [&file, &home.join("link")] {
                let found = exposure_of(named).unwrap().unwrap().to_string();
                assert_eq!(found, format!("every user may write to {} (mode {mode:o})", path.display()));
            }
            fs::set_permissions(path, before).unwrap();
        }
        // As in /tmp: others can add entries, but not replace any.
        set(&above, 0o1777);
        assert_eq!(exposure_of(&file).unwrap(), None);
    }

    #[test]
    fn users_without_an_id_in_a_namespace_are_known() {
        for (map, mapped) in [
            ("         0          0 4294967295\n", true),
            ("         0       1000          1\n", false),
            ("         0       1000          1\n         1     100000      65536\n", true),
            ("         0       1000      65534\n", false),
            ("", false),
            ("what\n", true),
        ] {
            assert_eq!(is_mapped_in(map, 65_534), mapped, "{map}");
        }
    }

    #[test]
    fn a_group_of_one_user_is_private() {
        let users =
            "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:100::/home/bob:/bin/sh\n";
        let groups = "root:x:0:\nann:x:1000:\nusers:x:100:\nteam:x:200:ann,bob\nown:x:201:ann,root\n";
        for (gid, private) in [(1000, true), (201, true), (100, false), (200, false), (0, true), (999, false)] {
            assert_eq!(is_private_group_in(groups, users, gid, 1000), private, "{gid}");
        }
    }
    #[test]
    fn members_of_a_group_are_known_by_name_or_own_group() {
        let users = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\nbob:x:1001:200::/:/bin/sh\n:x:1002:7::/:\n";
        let groups = "team:x:200:ann,,eve\nempty:x:201:\nbroken\n";
        for (uid, gid, member) in [
            (1000, 200, true),
            (1001, 200, true),
            (1000, 1000, true),
            (1000, 201, false),
            (1001, 1000, false),
            (1002, 200, false),
            (1003, 200, false),
        ] {
            assert_eq!(is_member_in(groups, users, uid, gid), member, "{uid} in {gid}");
        }
    }
}
