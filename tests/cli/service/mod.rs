//! The daemon as a service: PID 1 of a container, supervised by systemd, watched by Prometheus. Real processes.

mod container;
mod log;
mod metrics;
mod readme;
pub mod scene;
mod systemd;
