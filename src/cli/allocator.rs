//! Limits how much freed memory the C library's allocator keeps.
//!
//! Once blocks of up to 32 MiB have been freed, glibc serves blocks of that size from its heaps. It has several heaps, used by
//! different threads, and never returns the middle of one. A daemon with one turn of 60 MiB in lines of 15 MiB then peaked at
//! 437 MiB and kept 197; with a fixed threshold it peaks at 288 and keeps 48. The threshold is read when a process starts, and
//! setting it later would need unsafe code.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Blocks of 1 MiB or more are returned to the kernel at once, and so is the end of a heap once 8 MiB of it are free.
const VARIABLES: [(&str, &str); 2] = [("MALLOC_MMAP_THRESHOLD_", "1048576"), ("MALLOC_TRIM_THRESHOLD_", "8388608")];

/// Marks a process that was restarted. The dynamic linker removes the other variables from the environment of a program with
/// more rights than its caller, which would otherwise restart itself for ever.
const STARTED_ANEW: &str = "MAINSTAY_STARTED_ANEW";

/// Re-executes this program, as the same process, with an allocator that returns freed memory, unless the environment
/// configures the allocator already. Called before anything but the arguments exists.
pub(super) fn give_back_what_is_freed() {
    if VARIABLES.iter().map(|(name, _)| *name).chain([STARTED_ANEW]).any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    // By its own path, from which the process gets its name. If the program file was replaced meanwhile, this one keeps running.
    let Ok(program) = std::env::current_exe().and_then(|path| path.canonicalize()) else { return };
    let mut arguments = std::env::args_os();
    let own_name = arguments.next().unwrap_or_else(|| program.clone().into_os_string());
    let mut command = Command::new(program);
    command.arg0::<&OsStr>(own_name.as_ref()).args(arguments).envs(VARIABLES).env(STARTED_ANEW, "1");
    // Returns only on failure: then more memory is kept, and nothing else is different.
    let _ = command.exec();
}
