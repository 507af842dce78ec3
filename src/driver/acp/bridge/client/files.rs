//! Files in a session's directory, read and written for the agent.
//!
//! Always: the kernel confines every path to the directory (`openat2`), whatever links are on the way and even if they
//! change meanwhile. Only regular files, of bounded size.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use agent_client_protocol::Error;
use agent_client_protocol::v1::schema::{
    ReadTextFileRequest, ReadTextFileResponse, WriteTextFileRequest, WriteTextFileResponse,
};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::{SessionDir, failed, refused};

/// The largest file that is read or written for an agent.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Reads a file, or some of its lines.
pub(super) fn read(dir: &SessionDir, request: &ReadTextFileRequest) -> Result<ReadTextFileResponse, Error> {
    let file = open(dir, &request.path, OFlags::RDONLY)?;
    let mut text = String::new();
    let read = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(refused(format!("the file has more than {MAX_FILE_BYTES} bytes")));
    }
    if request.line.is_none() && request.limit.is_none() {
        return Ok(ReadTextFileResponse::new(text));
    }
    let before = request.line.map_or(0, |line| line.saturating_sub(1) as usize);
    let limit = request.limit.map_or(usize::MAX, |limit| limit as usize);
    Ok(ReadTextFileResponse::new(text.split_inclusive('\n').skip(before).take(limit).collect::<String>()))
}

/// Replaces a file's content.
pub(super) fn write(dir: &SessionDir, request: &WriteTextFileRequest) -> Result<WriteTextFileResponse, Error> {
    if request.content.len() as u64 > MAX_FILE_BYTES {
        return Err(refused(format!("a file may have {MAX_FILE_BYTES} bytes")));
    }
    let mut file = open(dir, &request.path, OFlags::WRONLY | OFlags::CREATE)?;
    file.set_len(0).map_err(failed)?;
    file.write_all(request.content.as_bytes()).map_err(failed)?;
    Ok(WriteTextFileResponse::new())
}

fn open(dir: &SessionDir, path: &Path, flags: OFlags) -> Result<File, Error> {
    let inside = path.strip_prefix(&dir.path).map_err(|_| outside(path))?;
    let root = dir.open().map_err(failed)?;
    // Opening a pipe or a device must not block.
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o666) } else { Mode::empty() };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let opened = openat2(root.as_fd(), inside, flags, mode, resolve);
    let file = File::from(opened.map_err(|errno| match errno {
        Errno::XDEV => outside(path),
        Errno::NOENT => {
            agent_client_protocol::v1::schema::Error::resource_not_found(Some(path.display().to_string())).into()
        }
        errno => failed(errno),
    })?);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(refused(format!("{} is no regular file", path.display())));
    }
    Ok(file)
}

fn outside(path: &Path) -> Error {
    refused(format!("{} is not in the directory of the session", path.display()))
}
