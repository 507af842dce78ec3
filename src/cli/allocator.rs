//! What the allocator of the C library keeps for later.
//!
//! glibc takes blocks of up to 32 MiB out of its heaps once blocks of that size were freed, and gives the middle of a heap
//! back never, with a heap for each thread. A daemon of one turn of 60 MiB in lines of 15 MiB then peaked at 437 MiB and kept
//! 197; with a fixed threshold it peaks at 288 and keeps 48. The threshold is read when a process starts, and a call that
//! sets it later would need unsafe code.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Blocks from 1 MiB on are given back at once, and so is the end of a heap with 8 MiB.
const VARIABLES: [(&str, &str); 2] = [("MALLOC_MMAP_THRESHOLD_", "1048576"), ("MALLOC_TRIM_THRESHOLD_", "8388608")];

/// Says that this has been done. The dynamic linker takes the other variables out of the environment of a program with more
/// rights than its caller, which would start itself for ever.
const STARTED_ANEW: &str = "MAINSTAY_STARTED_ANEW";

/// Starts this program anew, as the same process, with an allocator that gives back what is freed; unless the environment
/// says already what it is to do. Called before there is anything but arguments.
pub(super) fn give_back_what_is_freed() {
    if VARIABLES.iter().map(|(name, _)| *name).chain([STARTED_ANEW]).any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    // Under its own name, which the name of the process comes from. A program that was replaced meanwhile goes on as it is.
    let Ok(program) = std::env::current_exe().and_then(|path| path.canonicalize()) else { return };
    let mut arguments = std::env::args_os();
    let own_name = arguments.next().unwrap_or_else(|| program.clone().into_os_string());
    let mut command = Command::new(program);
    command.arg0::<&OsStr>(own_name.as_ref()).args(arguments).envs(VARIABLES).env(STARTED_ANEW, "1");
    // It comes back only when that failed: then more memory is kept, and nothing else is different.
    let _ = command.exec();
}
