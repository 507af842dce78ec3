//! A disk that loses power: the record of the shim, replayed up to any point, and what may remain on the disk then.
//!
//! The rules are those that a file system promises and no more. What was written before a sync of its file is there. Each later
//! write may be there or not, independently of the others, and so may each of its sectors. Names come and go in order, and
//! are certain once the directory was synced. A failed sync promises nothing, and a later sync does not save its data
//! either: the kernel believes it to be clean.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

const SECTOR_BYTES: usize = 512;

/// `struct record` in `shim.c`.
const HEAD_BYTES: usize = 24;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Wrote {
        offset: usize,
        data: Range<usize>,
    },
    Truncated {
        bytes: usize,
    },
    Synced,
    SyncFailed,
    Created,
    Removed,
    /// The client has noted this many answers.
    Noted {
        known: usize,
    },
}

#[derive(Debug, Clone)]
pub struct Op {
    pub kind: Kind,
    /// Empty for the directory.
    pub file: String,
}

/// All operations, in order.
pub struct Record {
    bytes: Vec<u8>,
    pub ops: Vec<Op>,
}

/// A record entry: how many answers a client has noted.
pub fn note(known: usize) -> Vec<u8> {
    [&7_u32.to_ne_bytes()[..], &0_u32.to_ne_bytes(), &(known as u64).to_ne_bytes(), &0_u64.to_ne_bytes()].concat()
}

impl Record {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let mut ops = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let u32_at = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            let usize_at =
                |at: usize| usize::try_from(u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap();
            let (kind, name_bytes, number) = (u32_at(at), u32_at(at + 4) as usize, usize_at(at + 8));
            let name = at + HEAD_BYTES..at + HEAD_BYTES + name_bytes;
            let data = name.end..name.end + usize_at(at + 16);
            at = data.end;
            let kind = match kind {
                1 => Kind::Wrote { offset: number, data },
                2 => Kind::Truncated { bytes: number },
                3 => Kind::Synced,
                4 => Kind::SyncFailed,
                5 => Kind::Created,
                6 => Kind::Removed,
                7 => Kind::Noted { known: number },
                other => panic!("the shim does not write records of kind {other}"),
            };
            let file = std::str::from_utf8(&bytes[name]).unwrap().to_owned();
            // The WAL index is shared memory, not a file, and is rebuilt by the first process that opens the database. What the
            // shims of agents write is not synced: no agent survives a loss of power.
            if !file.ends_with("-shm") && !file.ends_with("-lock") && !file.contains("-agents") {
                ops.push(Op { kind, file });
            }
        }
        Self { bytes, ops }
    }

    /// As if a file had never been synced.
    pub fn without_syncs_of(mut self, file: &str) -> Self {
        self.ops.retain(|op| op.kind != Kind::Synced || op.file != file);
        self
    }

    /// How often this was done to a file.
    pub fn count(&self, file: &str, kind: impl Fn(&Kind) -> bool) -> usize {
        self.ops.iter().filter(|op| op.file == file && kind(&op.kind)).count()
    }
}

/// Numbers from a seed (splitmix64).
pub struct Draw(pub u64);

impl Draw {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }

    fn is_lucky(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What is lost of unsynced changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nothing is lost: only the process died.
    Nothing,
    /// This percentage of the changes is kept, drawn from this seed.
    Some { kept_percent: u64, seed: u64 },
    /// Everything is lost.
    Everything,
}

#[derive(Default)]
struct File {
    /// The content on the disk.
    synced: Vec<u8>,
    pending: Vec<Kind>,
}

#[derive(Clone)]
enum NameChange {
    Created(String, usize),
    Removed(String),
}

/// The files as the system sees them, and what of them is on the disk.
pub struct Disk<'r> {
    record: &'r Record,
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    pending_names: Vec<NameChange>,
    draw: Draw,
}

impl<'r> Disk<'r> {
    pub fn new(record: &'r Record, seed: u64) -> Self {
        let (names, synced_names) = Default::default();
        Self { record, files: vec![], names, synced_names, pending_names: vec![], draw: Draw(seed) }
    }

    pub fn apply(&mut self, op: &Op) {
        match &op.kind {
            Kind::Noted { .. } => {}
            Kind::Created => {
                self.files.push(File::default());
                self.names.insert(op.file.clone(), self.files.len() - 1);
                self.pending_names.push(NameChange::Created(op.file.clone(), self.files.len() - 1));
            }
            Kind::Removed => {
                self.names.remove(&op.file);
                self.pending_names.push(NameChange::Removed(op.file.clone()));
            }
            Kind::Synced if op.file.is_empty() => {
                for change in self.pending_names.drain(..) {
                    rename(&mut self.synced_names, change);
                }
            }
            kind => {
                let Some(file) = self.names.get(&op.file).map(|file| &mut self.files[*file]) else {
                    panic!("{op:?} on a file that was never created");
                };
                match kind {
                    Kind::Synced => {
                        for change in file.pending.drain(..) {
                            write(&mut file.synced, &change, self.record, |_| true);
                        }
                    }
                    // Some of it has reached the disk, and the rest never will.
                    Kind::SyncFailed => {
                        for change in file.pending.drain(..) {
                            let kept = self.draw.is_lucky(50);
                            write(&mut file.synced, &change, self.record, |_| kept);
                        }
                    }
                    change => file.pending.push(change.clone()),
                }
            }
        }
    }

    /// The files after the power is back.
    pub fn after(&self, loss: Loss) -> BTreeMap<String, Vec<u8>> {
        let (percent, seed) = match loss {
            Loss::Nothing => (100, 0),
            Loss::Some { kept_percent, seed } => (kept_percent, seed),
            Loss::Everything => (0, 0),
        };
        let mut draw = Draw(seed);
        let mut names = self.synced_names.clone();
        for change in &self.pending_names {
            if !draw.is_lucky(percent) {
                break;
            }
            rename(&mut names, change.clone());
        }
        let found = names.into_iter().map(|(name, file)| {
            let file = &self.files[file];
            let mut bytes = file.synced.clone();
            for change in &file.pending {
                let whole = draw.is_lucky(percent);
                let torn = !whole && draw.is_lucky(percent);
                write(&mut bytes, change, self.record, |_| whole || (torn && draw.is_lucky(50)));
            }
            (name, bytes)
        });
        found.collect()
    }
}

fn rename(names: &mut BTreeMap<String, usize>, change: NameChange) {
    match change {
        NameChange::Created(name, file) => names.insert(name, file),
        NameChange::Removed(name) => names.remove(&name),
    };
}

/// Applies the sectors of a change that are `kept`; a change of length is one piece.
fn write(bytes: &mut Vec<u8>, change: &Kind, record: &Record, mut kept: impl FnMut(usize) -> bool) {
    match change {
        Kind::Wrote { offset, data } => {
            let (mut at, end, data) = (*offset, offset + data.len(), &record.bytes[data.clone()]);
            while at < end {
                let next = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
                if kept(at / SECTOR_BYTES) {
                    if bytes.len() < next {
                        bytes.resize(next, 0);
                    }
                    bytes[at..next].copy_from_slice(&data[at - offset..next - offset]);
                }
                at = next;
            }
        }
        Kind::Truncated { bytes: length } if kept(0) => bytes.resize(*length, 0),
        _ => {}
    }
}
