//! demo
use super::*;
/// demo
pub struct Demo;
impl Backend for Demo {
    fn prompt(&self, _: Prompt) -> BoxFuture<'_, Result<Reply, StartError>> {
        Box::pin(async { Err(StartError("stub".into())) })
    }
}
