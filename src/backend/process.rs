//! process
use super::*;
/// A backend that starts one process per turn.
pub struct PerTurn {}
impl PerTurn {
    /// new
    pub fn new(_: crate::agent::ProcessSpec, _: std::time::Duration, _: fn() -> LineParser) -> Self {
        Self {}
    }
}
impl Backend for PerTurn {
    fn prompt(&self, _: Prompt) -> BoxFuture<'_, Result<Reply, StartError>> {
        Box::pin(async { Err(StartError("stub".into())) })
    }
}
/// stub
pub fn remove_temp_dir(_: crate::id::RunId) {}
