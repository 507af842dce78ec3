//! Warm backends, as operators list and stop them. The supervisor starts and watches them.

use super::{Engine, EngineError, not_found};
use crate::backend::Backend;
use crate::id::BackendId;
use crate::store::backend::StopRequest;

/// Ended backends are history, which `v_backends` shows in full.
const BACKENDS_LISTED: i64 = 100;

impl Engine {
    /// The warm backends that live, then those that ended last: 100 at most, or as many as live.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub async fn list_backends(&self) -> Result<Vec<Backend>, EngineError> {
        Ok(self.shared.store.list_backends(BACKENDS_LISTED).await?)
    }

    /// Requests a backend to end. One with a turn on it is refused, or with `force` ends as soon as no turn is on it.
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
