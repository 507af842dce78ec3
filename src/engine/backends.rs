//! Warm backends, as operators list and stop them. What starts and watches them is the supervisor.

use super::{Engine, EngineError, not_found};
use crate::backend::Backend;
use crate::id::BackendId;
use crate::store::backend::StopRequest;

/// Backends that end are history, which `v_backends` shows whole.
const BACKENDS_LISTED: i64 = 100;

impl Engine {
    /// The warm backends that live, then those that ended last: 100 at most, or as many as live.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn list_backends(&self) -> Result<Vec<Backend>, EngineError> {
        Ok(self.shared.store.list_backends(BACKENDS_LISTED).await?)
    }

    /// Asks for a warm backend to end. With `force` also one that a turn is on: it ends as soon as none is.
    ///
    /// # Errors
    /// [`EngineError::BackendBusy`], [`EngineError::NotFound`], [`EngineError::Store`].
    pub async fn stop_backend(&self, id: BackendId, force: bool) -> Result<Backend, EngineError> {
        match self.shared.store.stop_backend(id, force).await? {
            StopRequest::Unknown => return Err(not_found("backend", id)),
            StopRequest::Busy => return Err(EngineError::BackendBusy(id)),
            StopRequest::Asked => {}
        }
        let found = self.shared.store.find_backend(id).await?;
        found.ok_or_else(|| not_found("backend", id))
    }
}
