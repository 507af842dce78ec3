//! The preload shim (`shim.c`): compiled once, controlled through a mapped file, and its record.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The size of `struct control` in `shim.c`.
const CONTROL_BYTES: usize = 96;
const SEEN_AT: u64 = 24;
const FILES_AT: usize = 32;

pub const OPEN: u32 = 1;
pub const WRITE: u32 = 2;
pub const TRUNCATE: u32 = 4;
pub const SYNC: u32 = 8;
pub const REMOVE: u32 = 16;
pub const SPAWN: u32 = 32;

pub const EIO: i32 = 5;
pub const EAGAIN: i32 = 11;
pub const ENOMEM: i32 = 12;
pub const EMFILE: i32 = 24;
pub const ENOSPC: i32 = 28;
pub const EROFS: i32 = 30;

/// Which operations fail, and how.
#[derive(Clone, Copy)]
pub struct Fault {
    pub operations: u32,
    /// 0: nothing fails, the operation is only delayed.
    pub error: i32,
    /// How many operations succeed first.
    pub let_through: u32,
    /// How many fail then.
    pub times: u32,
    /// How many bytes a failing write still writes.
    pub kept_bytes: u32,
    pub delay_ms: u32,
    /// A pattern for file names.
    pub files: &'static str,
}

impl Fault {
    /// Each of these operations fails, on the database and its companion files.
    pub const fn all(operations: u32, error: i32) -> Self {
        Self { operations, error, let_through: 0, times: u32::MAX, kept_bytes: 0, delay_ms: 0, files: "m.db*" }
    }
}

/// The shim as a library, compiled once per test process.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (made, library) = (target.join(format!("shim-{}.so", std::process::id())), target.join("shim.so"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/shim.c");
        let mut cc = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(&made)
            .arg(source)
            .args(["-ldl", "-lpthread"]);
        assert!(cc.status().unwrap().success(), "the shim does not compile");
        std::fs::rename(&made, &library).unwrap();
        library
    })
}

/// The shim for the files of one directory.
pub struct Shim {
    dir: PathBuf,
    control: File,
    control_path: PathBuf,
    log_path: Option<PathBuf>,
}

impl Shim {
    /// For the files below `dir`; its own files are in `aside`.
    pub fn new(dir: &Path, aside: &Path) -> Self {
        let control_path = aside.join("control");
        let control =
            OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&control_path).unwrap();
        control.write_all_at(&[0; CONTROL_BYTES], 0).unwrap();
        Self { dir: dir.canonicalize().unwrap(), control, control_path, log_path: None }
    }

    /// Records the file operations from now on.
    pub fn recording(mut self, log: &Path) -> Self {
        File::create(log).unwrap();
        self.log_path = Some(log.to_owned());
        self
    }

    /// Makes a program run with the shim.
    pub fn around(&self, command: &mut Command) {
        command.env("LD_PRELOAD", library()).env("FAULTS_DIR", &self.dir).env("FAULTS_CONTROL", &self.control_path);
        if let Some(log) = &self.log_path {
            command.env("FAULTS_LOG", log);
        }
    }

    /// Makes these operations fail from now on.
    pub fn fail(&self, fault: Fault) {
        self.heal();
        let mut control = [0; CONTROL_BYTES];
        let numbers = [fault.let_through, fault.times, fault.kept_bytes, fault.delay_ms].map(u32::to_ne_bytes).concat();
        control[4..8].copy_from_slice(&fault.error.to_ne_bytes());
        control[8..24].copy_from_slice(&numbers);
        control[FILES_AT..][..fault.files.len()].copy_from_slice(fault.files.as_bytes());
        self.control.write_all_at(&control, 0).unwrap();
        self.control.write_all_at(&fault.operations.to_ne_bytes(), 0).unwrap();
    }

    /// Makes all operations succeed from now on.
    pub fn heal(&self) {
        self.control.write_all_at(&0_u32.to_ne_bytes(), 0).unwrap();
    }

    /// How many operations have failed since [`Shim::fail`].
    pub fn hits(&self) -> u32 {
        let mut counts = [0; 8];
        self.control.read_exact_at(&mut counts, SEEN_AT).unwrap();
        u32::from_ne_bytes(counts[4..].try_into().unwrap())
    }
}
