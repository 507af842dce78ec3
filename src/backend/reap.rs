//! stub
use crate::id::RunId;
use crate::worker::ProcessIdentity;
use std::time::Duration;
#[derive(PartialEq)]
pub enum Liveness {
    Alive,
    Dead,
    Unknown,
}
pub struct Ended {
    pub ended: usize,
    pub remaining: usize,
}
pub fn own_identity() -> std::io::Result<ProcessIdentity> {
    Err(std::io::ErrorKind::Other.into())
}
pub fn is_alive(_: &ProcessIdentity) -> Liveness {
    Liveness::Unknown
}
pub async fn end(_: RunId, _: Option<ProcessIdentity>, _: Duration) -> Ended {
    Ended { ended: 0, remaining: 0 }
}
