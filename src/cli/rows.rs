//! The row of each table: no more than fits a terminal of 80 columns. The rest is in `--json` and `show`.

use serde_json::Value;

use super::cell::{or_dash, relative, span, used};
use super::columns::Column;
use super::table::{Listed, Sight};
use crate::backend::Backend;
use crate::message::{Message, attachments, prompt};
use crate::permission::{Permission, PermissionState};
use crate::run::Run;
use crate::session::Session;
use crate::slot::Slot;
use crate::worker::Worker;

impl Listed for Session {
    const COLUMNS: &'static [Column] = &[
        Column::id("SESSION"),
        Column::whole("DOING"),
        Column::narrow("AGENT", 8),
        Column::narrow("SLOT", 19),
        Column::whole("UPDATED"),
        Column::extra("USED").spare(),
        Column::narrow("TITLE", 12),
    ];

    fn cells(&self, sight: Sight) -> Vec<String> {
        let slot = self.assignment.as_ref().map(|place| place.slot.clone().unwrap_or_else(|| "shared".to_owned()));
        vec![
            sight.id(&self.id),
            self.execution.as_str().to_owned(),
            self.agent.to_string(),
            or_dash(slot),
            relative(self.updated_at, sight.now),
            or_dash(used(&self.usage)),
            or_dash(self.title.clone()),
        ]
    }

    fn ids(&self) -> Vec<String> {
        vec![self.id.to_string()]
    }
}

impl Listed for Run {
    const COLUMNS: &'static [Column] = &[
        Column::whole("RUN"),
        Column::id("SESSION"),
        Column::whole("STATUS"),
        Column::extra("AGENT"),
        Column::whole("QUEUED"),
        Column::whole("TOOK"),
        Column::extra("USED").spare(),
        Column::narrow("ERROR", 20).spare(),
    ];

    fn cells(&self, sight: Sight) -> Vec<String> {
        let took = self.claimed_at.map(|claimed_at| span(self.settled_at.unwrap_or(sight.now).since(claimed_at)));
        vec![
            sight.id(self.id),
            sight.id(&self.session_id),
            self.status.to_string(),
            self.agent.to_string(),
            relative(self.queued_at, sight.now),
            or_dash(took),
            or_dash(used(&self.usage)),
            or_dash(self.error.clone().or_else(|| self.short_of.clone())),
        ]
    }

    fn ids(&self) -> Vec<String> {
        vec![self.id.to_string(), self.session_id.to_string()]
    }
}

impl Listed for Slot {
    const COLUMNS: &'static [Column] = &[
        Column::narrow("SLOT", 19),
        Column::whole("STATE"),
        Column::id("SESSION"),
        Column::whole("RUN"),
        Column::narrow("LAST ACTIVE", 11),
    ];

    fn cells(&self, sight: Sight) -> Vec<String> {
        let state = if self.enabled { self.state.clone() } else { format!("{}, removed", self.state) };
        vec![
            self.id.clone(),
            state,
            or_dash(self.session_id.as_ref().map(|id| sight.id(id))),
            or_dash(self.run_id.map(|id| sight.id(id))),
            or_dash(self.last_active_at.map(|at| relative(at, sight.now))),
        ]
    }

    fn ids(&self) -> Vec<String> {
        let session = self.session_id.iter().map(ToString::to_string);
        session.chain(self.run_id.iter().map(ToString::to_string)).collect()
    }
}

impl Listed for Worker {
    const COLUMNS: &'static [Column] = &[
        Column::whole("WORKER"),
        Column::narrow("HOST", 8),
        Column::whole("PID"),
        Column::whole("RUNS"),
        Column::extra("VERSION"),
        Column::whole("STARTED"),
        Column::whole("SEEN"),
    ];

    fn cells(&self, sight: Sight) -> Vec<String> {
        // A process that claims no queued runs may still execute one of its own, as `run` does.
        let runs = match self.capacity {
            0 => self.running.to_string(),
            capacity => format!("{} of {capacity}", self.running),
        };
        vec![
            sight.id(self.id),
            self.hostname.clone(),
            self.pid.to_string(),
            runs,
            self.version.clone(),
            relative(self.started_at, sight.now),
            relative(self.heartbeat_at, sight.now),
        ]
    }
}

impl Listed for Backend {
    const COLUMNS: &'static [Column] = &[
        Column::whole("BACKEND"),
        Column::whole("STATE"),
        Column::narrow("AGENT", 8),
        Column::extra("SESSION"),
        Column::extra("WORKSPACE"),
        Column::extra("TURNS"),
        Column::whole("USED"),
        Column::narrow("WHY", 32).spare(),
    ];

    fn cells(&self, sight: Sight) -> Vec<String> {
        let state = if self.close_when_idle && self.stopped_at.is_none() {
            format!("{}, closes", self.state.as_str())
        } else {
            self.state.as_str().to_owned()
        };
        vec![
            sight.id(self.id),
            state,
            self.agent.to_string(),
            self.session_id.as_ref().map_or_else(|| "shared".to_owned(), |id| sight.id(id)),
            self.workspace.to_string(),
            self.running.to_string(),
            relative(self.used_at, sight.now),
            or_dash(self.reason.clone()),
        ]
    }

    fn ids(&self) -> Vec<String> {
        let session = self.session_id.iter().map(ToString::to_string);
        session.chain([self.id.to_string()]).collect()
    }
}

impl Listed for Permission {
    const COLUMNS: &'static [Column] = &[
        Column::whole("PERMISSION"),
        Column::whole("STATE"),
        Column::id("SESSION"),
        Column::whole("ASKED"),
        Column::extra("EXPIRES").spare(),
        Column::extra("TOOL"),
        Column::narrow("ASKS", 20),
    ];

    fn cells(&self, sight: Sight) -> Vec<String> {
        let expires_at = self.expires_at.filter(|_| self.state == PermissionState::Pending);
        vec![
            sight.id(self.id),
            self.state.as_str().to_owned(),
            sight.id(&self.session_id),
            relative(self.requested_at, sight.now),
            or_dash(expires_at.map(|at| relative(at, sight.now))),
            self.request.tool.clone(),
            format!("{} {}", self.request.title, self.request.input),
        ]
    }

    fn ids(&self) -> Vec<String> {
        vec![self.id.to_string(), self.session_id.to_string()]
    }
}

impl Listed for Message {
    const COLUMNS: &'static [Column] = &[Column::whole("ROLE"), Column::narrow("TEXT", 20)];

    fn cells(&self, _: Sight) -> Vec<String> {
        let parts: Vec<Value> = serde_json::from_str(self.parts.get()).unwrap_or_default();
        let files = attachments(&parts).into_iter().map(|file| format!("[{}]", file.label()));
        let said = files.chain([prompt(&parts)]).collect::<Vec<_>>().join(" ");
        vec![self.role.as_str().to_owned(), said]
    }
}
