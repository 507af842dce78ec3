//! Output of an agent of which nothing can be stored any more.

use super::Drive;
use super::abandoned::Abandoned;
use crate::process::Reply;
use crate::run::Cause;

impl Drive<'_> {
    /// Asks the agent to stop and drops its output until that ends.
    pub(super) async fn drop_rest(&self, reply: &mut Reply, cause: Cause) -> Result<(), Abandoned> {
        reply.control.stop(cause);
        reply.memory.hurry();
        loop {
            let left = tokio::select! {
                biased;
                () = self.signals.lost.cancelled() => Abandoned::LeaseLost,
                () = self.shared.leaving.cancelled(), if reply.host.is_some() => Abandoned::HandedOver,
                () = self.shared.killing.cancelled(), if !reply.control.is_killed() => {
                    reply.control.kill(cause);
                    continue;
                }
                record = reply.records.recv() => match record {
                    Some(_) => continue,
                    None => return Ok(()),
                },
            };
            reply.control.leave();
            return Err(left);
        }
    }
}
