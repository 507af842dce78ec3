//! Applies Mainstay's session options to a session of the agent.
//!
//! Always: what the agent does not offer is not sent, and what the operator forbids is not set, whatever the agent
//! calls it. A mode that is no longer wanted is replaced by the one that the session began in. No turn begins in a
//! forbidden mode, unless the agent begins its sessions in it.

use agent_client_protocol::Error;
use agent_client_protocol::v1::schema::{SetSessionConfigOptionRequest, SetSessionModeRequest};
use serde_json::Value;

use super::{Bridge, Session};
use crate::options::{InvalidOption, SessionOptions};
use crate::policy::OptionRules;

impl Session {
    /// The requests that bring a session to the wanted options. What the agent does not offer is skipped.
    fn settings(&self, id: &str, wanted: &SessionOptions, rules: &OptionRules) -> Result<Vec<Setting>, InvalidOption> {
        let mut settings = Vec::new();
        let known = &self.options;
        // A mode that is no longer wanted, or a forbidden one that the agent chose by itself.
        let is_left = self.mode_now().is_some_and(|now| {
            Some(now) != wanted.mode.as_deref() && (known.mode != wanted.mode || rules.check_mode("mode", now).is_err())
        });
        if let Some(mode) = wanted.mode.as_ref().filter(|_| is_left || known.mode != wanted.mode) {
            settings.extend(self.config_option(id, "mode", mode, rules)?.or_else(|| self.mode(id, mode)));
        } else if let Some(first) = self.first_mode.as_deref().filter(|first| is_left && self.mode_now() != Some(first))
        {
            // The mode that an agent begins in is the operator's choice.
            let of_option = self.offered("mode").and_then(|option| offered_setting(option, id, first));
            settings.extend(of_option.or_else(|| self.mode(id, first)));
        }
        if let Some(model) = wanted.model.as_ref().filter(|_| known.model != wanted.model) {
            settings.extend(self.config_option(id, "model", model, rules)?);
        }
        if let Some(profile) =
            wanted.permission_profile.as_ref().filter(|_| known.permission_profile != wanted.permission_profile)
        {
            settings.extend(self.config_option(id, "permission_profile", profile, rules)?);
        }
        for (key, value) in wanted.extra.iter().filter(|(key, value)| known.extra.get(*key) != Some(*value)) {
            settings.extend(self.config_option(id, key, value, rules)?);
        }
        // A restored session may be in a forbidden mode; the mode that it began in is unknown then.
        if let Some(now) = self.mode_now()
            && self.first_mode.as_deref() != Some(now)
            && !settings.iter().any(|setting| self.sets_mode(setting))
        {
            rules.check_mode("mode", now)?;
        }
        Ok(settings)
    }

    fn sets_mode(&self, setting: &Setting) -> bool {
        match setting {
            Setting::Mode(_) => true,
            Setting::ConfigOption(request) => {
                self.offered("mode").is_some_and(|option| option["id"] == *request.config_id.0)
            }
        }
    }

    fn mode(&self, id: &str, mode: &str) -> Option<Setting> {
        let offered = self.modes.as_ref()?["availableModes"].as_array()?;
        let is_offered = offered.iter().any(|offered| offered["id"] == mode);
        is_offered.then(|| Setting::Mode(SetSessionModeRequest::new(id.to_owned(), mode.to_owned())))
    }

    /// The setting for an option, which is found by its id or its category.
    fn config_option(
        &self,
        id: &str,
        key: &str,
        value: &str,
        rules: &OptionRules,
    ) -> Result<Option<Setting>, InvalidOption> {
        let Some(option) = self.offered(key) else { return Ok(None) };
        let setting = offered_setting(option, id, value);
        if setting.is_some() {
            for name in [Some(key), option["id"].as_str()].into_iter().flatten() {
                rules.check_offered(name, value, option["category"].as_str())?;
            }
        }
        Ok(setting)
    }

    fn offered(&self, key: &str) -> Option<&Value> {
        let options = self.config_options.as_ref()?.as_array()?;
        let by = |field: &str| options.iter().find(|option| option[field] == key);
        by("id").or_else(|| by("category"))
    }

    /// The current mode, if the agent reports it.
    pub(super) fn mode_now(&self) -> Option<&str> {
        let of_option = self.offered("mode").and_then(|option| option["currentValue"].as_str());
        of_option.or_else(|| self.modes.as_ref()?["currentModeId"].as_str())
    }
}

/// The setting for an offered option; none if this value is not offered.
fn offered_setting(option: &Value, id: &str, value: &str) -> Option<Setting> {
    let config_id = option["id"].as_str()?.to_owned();
    let request = if option["type"] == "boolean" {
        SetSessionConfigOptionRequest::new(id.to_owned(), config_id, value.parse::<bool>().ok()?)
    } else {
        let entries = option["options"].as_array()?.iter();
        let values = entries.flat_map(|entry| match entry["options"].as_array() {
            Some(group) => group.iter().collect::<Vec<_>>(),
            None => vec![entry],
        });
        values.into_iter().find(|offered| offered["value"] == value)?;
        SetSessionConfigOptionRequest::new(id.to_owned(), config_id, value)
    };
    Some(Setting::ConfigOption(request))
}

/// A request that changes a session of the agent.
enum Setting {
    Mode(SetSessionModeRequest),
    ConfigOption(SetSessionConfigOptionRequest),
}

impl Setting {
    /// The mode, if it is set by `session/set_mode`.
    fn mode(&self) -> Option<String> {
        match self {
            Self::Mode(request) => Some(request.mode_id.to_string()),
            Self::ConfigOption(_) => None,
        }
    }
}

impl Bridge {
    /// Brings a session to the wanted options.
    pub(in super::super) async fn apply(
        &self,
        id: &str,
        wanted: &SessionOptions,
        rules: &OptionRules,
    ) -> Result<(), Error> {
        let settings = match self.state().sessions.get_mut(id) {
            Some(session) => {
                let refused = |refused: InvalidOption| Error::invalid_params().data(refused.to_string());
                let settings = session.settings(id, wanted, rules).map_err(refused)?;
                if !settings.is_empty() {
                    // Until all requests have succeeded, the state of the agent is unknown.
                    session.options = SessionOptions::default();
                }
                settings
            }
            None => Vec::new(),
        };
        for setting in settings {
            let mode = setting.mode();
            let answer = match setting {
                Setting::Mode(request) => self.ask("session/set_mode", request).await?,
                Setting::ConfigOption(request) => self.ask("session/set_config_option", request).await?,
            };
            if let Some(session) = self.state().sessions.get_mut(id) {
                session.told(&answer);
                if let (Some(mode), Some(modes)) = (mode, session.modes.as_mut().and_then(Value::as_object_mut)) {
                    modes.insert("currentModeId".to_owned(), mode.into());
                }
            }
        }
        if let Some(session) = self.state().sessions.get_mut(id) {
            session.options = wanted.clone();
        }
        Ok(())
    }
}
