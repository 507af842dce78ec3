//! Chunks, and the message that a client has of them.

use super::*;
use serde_json::json;

/// The parts after some chunks, which are given as stored events are.
fn fold(chunks: &[Value]) -> Fold {
    let mut fold = Fold::default();
    for chunk in chunks {
        fold.apply(&serde_json::from_value(chunk.clone()).unwrap());
    }
    fold
}

fn parts(fold: &Fold) -> Value {
    serde_json::from_str(&fold.parts_json()).unwrap()
}

#[test]
fn blocks_grow_by_deltas_until_they_end() {
    let fold = fold(&[
        json!({"type": "start-step"}),
        json!({"type": "reasoning-start", "id": "reasoning-1"}),
        json!({"type": "reasoning-delta", "id": "reasoning-1", "delta": "hm"}),
        json!({"type": "reasoning-end", "id": "reasoning-1"}),
        json!({"type": "text-start", "id": "text-2"}),
        json!({"type": "text-delta", "id": "text-2", "delta": "He"}),
        json!({"type": "data-status", "data": {"label": "Thinking"}, "transient": true}),
        json!({"type": "text-delta", "id": "text-2", "delta": "llo"}),
        json!({"type": "text-delta", "id": "text-9", "delta": "refused"}),
    ]);
    let expected = json!([
        {"type": "step-start"},
        {"type": "reasoning", "id": "reasoning-1", "text": "hm", "state": "done"},
        {"type": "text", "text": "Hello", "state": "streaming"},
    ]);
    assert_eq!(parts(&fold), expected);
    assert_eq!((fold.len(), fold.open_block()), (3, Some((Block::Text, "text-2"))));
    assert_eq!(fold.bytes(), 3 * PART_BYTES + "hmHello".len());
    assert!(fold.is_step_open() && !fold.is_finished());
}

#[test]
fn a_tool_is_one_part_whatever_becomes_of_it() {
    let tool = json!({"toolCallId": "t", "toolName": "bash", "providerExecuted": true, "dynamic": true});
    let chunk = |kind: &str, more: Value| {
        let mut chunk = tool.clone();
        chunk["type"] = kind.into();
        for (key, value) in more.as_object().unwrap() {
            chunk[key] = value.clone();
        }
        chunk
    };
    let part = |state: &str, more: Value| {
        let mut part = json!({"type": "dynamic-tool", "toolCallId": "t", "toolName": "bash",
            "providerExecuted": true, "state": state});
        for (key, value) in more.as_object().unwrap() {
            part[key] = value.clone();
        }
        json!([part])
    };
    let input = json!({"cmd": "ls"});
    let mut chunks = Vec::new();
    for (next, expected, finished) in [
        (
            chunk("tool-input-available", json!({"input": input})),
            part("input-available", json!({"input": input})),
            false,
        ),
        (
            chunk("tool-output-available", json!({"output": 1, "preliminary": true})),
            part("output-available", json!({"input": input, "output": 1, "preliminary": true})),
            false,
        ),
        (
            chunk("tool-output-error", json!({"errorText": "e"})),
            part("output-error", json!({"input": input, "errorText": "e"})),
            true,
        ),
        (
            chunk("tool-output-available", json!({"output": null})),
            part("output-available", json!({"input": input, "output": null})),
            true,
        ),
        (chunk("tool-input-available", json!({"input": []})), part("input-available", json!({"input": []})), false),
    ] {
        chunks.push(next);
        let fold = fold(&chunks);
        assert_eq!(parts(&fold), expected);
        assert_eq!(fold.unfinished_tools().count(), usize::from(!finished));
        assert_eq!(fold.tool("t").unwrap().is_finished(), finished);
    }
}

#[test]
fn files_plans_and_retractions_are_parts() {
    let chunks = [
        json!({"type": "start-step"}),
        json!({"type": "data-plan", "id": "plan", "data": [{"content": "look"}]}),
        json!({"type": "file", "url": "data:,x", "mediaType": "text/plain"}),
        json!({"type": "data-plan", "id": "plan", "data": []}),
        json!({"type": "data-retracted", "id": "retracted-3", "data": {"parts": [2]}}),
    ];
    let fold = fold(&chunks);
    let expected = json!([
        {"type": "step-start"},
        {"type": "data-plan", "id": "plan", "data": []},
        {"type": "file", "url": "data:,x", "mediaType": "text/plain"},
        {"type": "data-retracted", "id": "retracted-3", "data": {"parts": [2]}},
    ]);
    assert_eq!(parts(&fold), expected);
    assert_eq!(fold.plan_of("plan"), Some(&json!([])));
    assert_eq!(fold.bytes(), 4 * PART_BYTES + "data:,xtext/plain".len() + size_of::<usize>());
}

#[test]
fn a_tool_keeps_whose_it_is() {
    let tool = |kind: &str| {
        json!({"type": kind, "toolCallId": "t", "toolName": "n", "providerExecuted": true, "dynamic": true,
               "input": {}, "output": 1})
    };
    let metadata = json!({"mainstay": {"parentToolCallId": "p"}});
    let mut given = tool("tool-input-available");
    given["providerMetadata"] = metadata.clone();
    let again = [given, tool("tool-input-available"), tool("tool-output-available")];
    let fold = fold(&again);
    assert_eq!(parts(&fold)[0]["callProviderMetadata"], metadata);
}

#[test]
fn what_is_retracted_was_not_said() {
    let text = |id: &str| {
        [json!({"type": "text-start", "id": id}), json!({"type": "text-delta", "id": id, "delta": id})].into_iter()
    };
    let retracted = [json!({"type": "data-retracted", "id": "r", "data": {"parts": [0]}})];
    let fold = fold(&text("a").chain(retracted).chain(text("b")).collect::<Vec<_>>());
    assert_eq!(fold.texts().collect::<Vec<_>>(), ["b"]);
    assert_eq!(parts(&fold)[0], json!({"type": "text", "text": "", "state": "streaming"}));
}
