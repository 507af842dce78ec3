//! Turns with output that no recorded agent produced: each part that a message can have, and how it ends.

use mainstay::agent_event::{Again, AgentEvent};
use mainstay::chunk::{Chunk, Notice};
use mainstay::engine::turn::Turn;
use mainstay::permission::{PermissionRequest, ToolKind};
use serde_json::json;

fn text(text: &str) -> AgentEvent {
    AgentEvent::Text(text.to_owned())
}

fn reasoning(text: &str) -> AgentEvent {
    AgentEvent::Reasoning(text.to_owned())
}

fn tool(id: &str, parent: Option<&str>) -> AgentEvent {
    let parent = parent.map(str::to_owned);
    AgentEvent::ToolStarted {
        id: id.to_owned(),
        name: "bash".to_owned(),
        title: None,
        input: json!({"command": "ls"}),
        parent,
    }
}

fn progress(id: &str) -> AgentEvent {
    AgentEvent::ToolProgress { id: id.to_owned(), output: json!("half") }
}

fn finished(id: &str) -> AgentEvent {
    AgentEvent::ToolFinished { id: id.to_owned(), name: None, result: Ok(json!("done")) }
}

fn refused(id: &str) -> AgentEvent {
    AgentEvent::ToolFinished { id: id.to_owned(), name: None, result: Err("not allowed".to_owned()) }
}

fn plan(status: &str) -> AgentEvent {
    AgentEvent::Plan(json!([{"content": "look", "status": status}, {"content": "write", "status": "pending"}]))
}

fn asks(tool_call: &str) -> AgentEvent {
    AgentEvent::Permission(PermissionRequest {
        request: format!("request of {tool_call}"),
        tool_call: tool_call.to_owned(),
        tool: "bash".to_owned(),
        kind: ToolKind::Execute,
        title: "ls".to_owned(),
        input: json!({"command": "ls"}),
        options: Vec::new(),
    })
}

/// The chunks for an event in an engine that passes each question on, and allows all but `denied`.
pub fn hear(turn: &mut Turn, event: AgentEvent) -> Vec<Chunk> {
    let AgentEvent::Permission(request) = event else { return turn.hear(event) };
    let id = format!("approval of {}", request.tool_call);
    let (_, mut said) = turn.ask(&request, id.clone());
    said.extend(turn.answered(&id, request.tool_call != "denied"));
    said
}

/// The turns, each with its name.
pub fn turns() -> Vec<(&'static str, Vec<AgentEvent>)> {
    let began = AgentEvent::MessageBegan;
    let file = || AgentEvent::File { media_type: "image/png".to_owned(), url: "data:image/png;base64,AA==".to_owned() };
    vec![
        ("made/repeated", vec![text("This will "), began(Again::Yes), text("This "), text("will end.")]),
        (
            "made/retracted",
            vec![
                began(Again::No),
                reasoning("Hm."),
                text("This will "),
                began(Again::Yes),
                reasoning("Hm."),
                text("That "),
                text("will end."),
                began(Again::Yes),
                text("It ends."),
            ],
        ),
        ("made/another", vec![text("This will "), began(Again::No), text("This "), text("does.")]),
        (
            "made/withdrawn",
            vec![
                began(Again::No),
                AgentEvent::BlockBegan(1),
                reasoning("Hm."),
                AgentEvent::BlockBegan(2),
                text("This will "),
                tool("t", None),
                finished("t"),
                text("not do."),
                AgentEvent::Notice(Notice::warning("The model was changed.")),
                AgentEvent::Withdrawn(vec![2]),
                AgentEvent::BlockBegan(3),
                text("This does."),
            ],
        ),
        ("made/plan", vec![text("I plan."), plan("pending"), text("I do."), plan("completed"), text("Done.")]),
        ("made/file", vec![text("See:"), file(), text("Nice.")]),
        (
            "made/sub-agent",
            vec![
                tool("task", None),
                tool("inner", Some("task")),
                progress("task"),
                finished("inner"),
                finished("task"),
            ],
        ),
        ("made/allowed", vec![tool("t", None), asks("t"), progress("t"), finished("t"), text("Done.")]),
        ("made/denied", vec![tool("denied", None), asks("denied"), refused("denied"), text("Then not.")]),
        ("made/asked-of-no-tool", vec![text("May I?"), asks(""), text("Thanks.")]),
    ]
}
