//! What the tests, the benchmarks and `mainstay-torture` stand on.
//!
//! Always: it uses no type of `mainstay`, so that what it says of a daemon was seen from outside; which binary is meant is
//! handed to it, because only the crate of a test knows `CARGO_BIN_EXE_mainstay`.

pub mod fake;
