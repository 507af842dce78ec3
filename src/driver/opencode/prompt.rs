//! The prompt for the server: the message, its files, and the options of the session as far as the server supports them.

use serde_json::{Value, json};

use super::own::{Origin, Own};
use super::server::Server;
use super::trouble::{ANSWERS_WITHIN, Trouble};
use super::watch::text;
use crate::driver::relay::RelayedTurn;
use crate::driver::relay::pipes::Output;

/// The body of the prompt, and notices about options that could not be applied. For a new session, also reports what
/// the server offers.
pub(super) async fn of(
    server: &Server,
    turn: &RelayedTurn,
    origin: Origin,
    output: &mut Output,
) -> Result<(Value, Vec<String>), Trouble> {
    // Models refuse an empty text; the message has files then.
    let message = Some(&turn.message).filter(|text| !text.trim().is_empty());
    let part = |text| json!({"type": "text", "text": text, "metadata": turn.marker()});
    let mut parts: Vec<_> = message.map(part).into_iter().collect();
    for file in &turn.attachments {
        let mut part = json!({"type": "file", "mime": file.media_type, "url": file.url});
        if let Some(name) = &file.filename {
            part["filename"] = name.as_str().into();
        }
        parts.push(part);
    }
    let mut prompt = json!({"parts": parts});
    let mut advice = Vec::new();
    let options = &turn.options;
    if origin == Origin::Resumed && options.mode.is_none() && options.model.is_none() && options.extra.is_empty() {
        return Ok((prompt, advice));
    }
    let modes = modes(&server.get("/agent", ANSWERS_WITHIN).await?);
    let models = models(&server.get("/config/providers", ANSWERS_WITHIN).await?);
    if let Some(mode) = &options.mode {
        if modes.iter().any(|known| text(known, "/id") == Some(mode)) {
            prompt["agent"] = mode.as_str().into();
        } else {
            advice.push(format!("opencode has no mode {mode:?}: its own choice is used."));
        }
    }
    if let Some(model) = &options.model {
        match model.split_once('/').filter(|_| models.iter().any(|known| text(known, "/value") == Some(model))) {
            Some((provider, id)) => prompt["model"] = json!({"providerID": provider, "modelID": id}),
            None => advice.push(format!("opencode has no model {model:?}: its own choice is used.")),
        }
    }
    if let Some(variant) = options.extra.get("variant") {
        prompt["variant"] = variant.as_str().into();
    }
    if origin == Origin::New {
        let model = json!({"id": "model", "name": "Model", "category": "model", "type": "select", "options": models});
        let offer = json!({"modes": {"availableModes": modes}, "config_options": [model]});
        output.say(&Own::Advertised { offer }.to_line());
    }
    Ok((prompt, advice))
}

/// The server's agents that a user can talk to, as modes.
fn modes(agents: &Value) -> Vec<Value> {
    let agents = agents.as_array().into_iter().flatten();
    let agents =
        agents.filter(|agent| text(agent, "/mode") != Some("subagent") && agent.get("hidden") != Some(&true.into()));
    agents
        .filter_map(|agent| {
            let name = text(agent, "/name")?;
            let description = text(agent, "/description").unwrap_or_default();
            Some(json!({"id": name, "name": name, "description": description}))
        })
        .collect()
}

/// The models of all providers, as `provider/model`.
fn models(config: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    for provider in config.get("providers").and_then(Value::as_array).into_iter().flatten() {
        let Some(provider_id) = text(provider, "/id") else { continue };
        for (id, model) in provider.get("models").and_then(Value::as_object).into_iter().flatten() {
            let name = text(model, "/name").unwrap_or(id);
            found.push(json!({"value": format!("{provider_id}/{id}"), "name": name}));
        }
    }
    found
}
