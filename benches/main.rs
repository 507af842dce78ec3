//! The cost of the store and the feed, each measurement beside a hand-written reference that does the same job in the same run:
//! see `docs/performance.md`. `cargo bench -- NAME …` measures only the topics whose name contains one of the words.
//!
//! Always: the two sides of a pair are measured in turn, several times, on files of the same disk, and compared by the
//! median of the rounds' ratios. Absolute figures are for orientation: they vary by a factor of two with the machine's load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation ends the measurement")]

mod append;
mod claim;
mod drivers;
mod fanout;
mod hosts;
mod latency;
mod raw;
mod redis;
mod replay;
mod sample;
mod scene;

use std::time::Instant;

/// Name, and what it measures.
type Topic = (&'static str, fn(&tokio::runtime::Runtime));

const TOPICS: [Topic; 7] = [
    ("append", append::measure),
    ("claim", claim::measure),
    ("replay", replay::measure),
    ("latency", latency::measure),
    ("fanout", fanout::measure),
    ("hosts", hosts::measure),
    ("drivers", drivers::measure),
];

fn main() {
    let mut words = std::env::args().skip(1);
    if words.next().is_some_and(|word| word == drivers::AGENT) {
        return drivers::agent(&words.next().unwrap());
    }
    // cargo adds `--bench`; any other word that begins with a dash is meant for another harness.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    println!("{cores} cores; SQLite {}; durability full unless said", rusqlite::version());
    for (name, measure) in TOPICS {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            let began = Instant::now();
            println!("\n{name}");
            measure(&runtime);
            println!("  ({:.0} s)", began.elapsed().as_secs_f64());
        }
    }
}
