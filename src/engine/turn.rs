//! stub
use super::fold::Fold;
use crate::backend::AgentEvent;
use crate::chunk::Chunk;
use crate::run::*;
/// stub
#[derive(Clone, Default)]
pub struct Turn(Fold);
impl Turn {
    pub fn replay(_: impl Iterator<Item = Chunk>) -> Self {
        Self::default()
    }
    pub fn hear(&mut self, _: AgentEvent) -> Vec<Chunk> {
        vec![]
    }
    pub fn close(&mut self, _: &Outcome) -> Vec<Chunk> {
        vec![]
    }
    pub fn has_said(&self) -> bool {
        false
    }
    pub fn is_tool_running(&self) -> bool {
        false
    }
    pub fn has_ended(&self) -> bool {
        false
    }
    pub fn fold(&self) -> &Fold {
        &self.0
    }
}
pub fn decide(_: Option<Cause>, _: &Turn, _: &ExitReport) -> Outcome {
    Outcome::completed()
}
