//! Whatever an agent does and whenever the process dies: readers get one well-formed stream, and its message can be
//! rebuilt from what is stored.

use mainstay::agent_event::{Again, AgentEvent};
use mainstay::chunk::Chunk;
use mainstay::engine::fold::Fold;
use mainstay::engine::turn::Turn;
use mainstay::permission::{PermissionRequest, ToolKind};
use mainstay::run::{Cause, Outcome, Status};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::rules;

/// Few ids and words, so that they collide.
fn event() -> impl Strategy<Value = AgentEvent> {
    let id = || prop::sample::select(vec!["", "a", "b", "tool-2", "tool-3", "text-1"]).prop_map(str::to_owned);
    let name = || prop::sample::select(vec!["", "x", "y"]).prop_map(str::to_owned);
    let text = || prop::sample::select(vec!["", "one", "two", "[error] one", "é\n\u{0}"]).prop_map(str::to_owned);
    let value = || prop::sample::select(vec![json!(null), json!({}), json!({"b": [1.5, "x"], "a": null}), json!("s")]);
    let result = prop_oneof![value().prop_map(Ok), text().prop_map(Err)];
    let parent = prop::option::of(id());
    let title = || prop::option::of(prop::sample::select(vec!["", "x", "Look"]).prop_map(str::to_owned));
    let again = || prop::sample::select(vec![Again::No, Again::Yes]);
    prop_oneof![
        again().prop_map(AgentEvent::MessageBegan),
        again().prop_map(AgentEvent::MessageBegan),
        (text(), text()).prop_map(|(media_type, url)| AgentEvent::File { media_type, url }),
        value().prop_map(AgentEvent::Plan),
        text().prop_map(AgentEvent::Status),
        text().prop_map(AgentEvent::Reasoning),
        text().prop_map(AgentEvent::Text),
        ("[a-b]{1,2}", title()).prop_map(|(url, title)| AgentEvent::Source { url, title }),
        (id(), name(), title(), value(), parent).prop_map(|(id, name, title, input, parent)| AgentEvent::ToolStarted {
            id,
            name,
            title,
            input,
            parent
        }),
        (id(), value()).prop_map(|(id, output)| AgentEvent::ToolProgress { id, output }),
        (id(), prop::option::of(name()), result).prop_map(|(id, name, result)| AgentEvent::ToolFinished {
            id,
            name,
            result
        }),
        text().prop_map(|text| AgentEvent::Error(text.into())),
        Just(AgentEvent::Ended),
    ]
}

/// A question, an answer to one, or output.
#[derive(Debug, Clone)]
enum Step {
    Hear(AgentEvent),
    Ask(String, String),
    Answer(String, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let id = || prop::sample::select(vec!["", "a", "b", "tool-2", "permission-1"]).prop_map(str::to_owned);
    let question = || prop::sample::select(vec!["p", "q"]).prop_map(str::to_owned);
    prop_oneof![
        3 => event().prop_map(Step::Hear),
        1 => (id(), question()).prop_map(|(tool_call, id)| Step::Ask(tool_call, id)),
        1 => (question(), any::<bool>()).prop_map(|(id, allowed)| Step::Answer(id, allowed)),
    ]
}

fn take(turn: &mut Turn, step: Step) -> Vec<Chunk> {
    match step {
        Step::Hear(event) => turn.hear(event),
        Step::Ask(tool_call, id) => {
            let (tool, title, input) = ("x".to_owned(), String::new(), json!({}));
            let request = id.clone();
            let kind = ToolKind::Other;
            turn.ask(&PermissionRequest { request, tool_call, tool, kind, title, input, options: Vec::new() }, id).1
        }
        Step::Answer(id, allowed) => turn.answered(&id, allowed),
    }
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let cause = prop::sample::select(Cause::ALL.to_vec());
    (cause, prop::option::of(Just("why".to_owned()))).prop_map(|(cause, error)| Outcome::of(cause, error))
}

fn hear(turn: &mut Turn, events: &[AgentEvent]) -> Vec<Chunk> {
    events.iter().flat_map(|event| turn.hear(event.clone())).collect()
}

/// The chunks as they are read from the store.
fn stored(chunks: &[Chunk]) -> impl Iterator<Item = Chunk> {
    chunks.iter().map(|chunk| serde_json::from_str(&chunk.to_json()).expect("a stored chunk is a chunk"))
}

proptest! {
    #[test]
    fn every_stream_is_well_formed(events in prop::collection::vec(event(), 0..40), outcome in outcome()) {
        let mut turn = Turn::default();
        let mut chunks = hear(&mut turn, &events);
        chunks.extend(turn.close(&outcome));
        prop_assert_eq!(rules::check(&chunks), Ok(()), "{:#?}", chunks);
        prop_assert_eq!(turn.close(&Outcome::completed()), vec![]);
        prop_assert_eq!(hear(&mut turn, &events), vec![]);
        // The message also shows a later reader that the run failed.
        let parts = turn.fold().parts_json();
        prop_assert!(outcome.status() != Status::Failed || parts.contains("[error] "));
    }

    #[test]
    fn a_message_is_folded_again_from_what_is_stored(
        events in prop::collection::vec(event(), 0..40),
        outcome in prop::option::of(outcome()),
    ) {
        let mut turn = Turn::default();
        let mut chunks = hear(&mut turn, &events);
        chunks.extend(outcome.iter().flat_map(|outcome| turn.close(outcome)));
        let mut fold = Fold::default();
        stored(&chunks).for_each(|chunk| fold.apply(&chunk));
        prop_assert_eq!(&fold, turn.fold());
        let parts: Value = serde_json::from_str(&fold.parts_json()).expect("parts are JSON");
        prop_assert_eq!(parts.as_array().map(Vec::len), Some(fold.len()));
    }

    #[test]
    fn a_stream_with_questions_is_well_formed(steps in prop::collection::vec(step(), 0..40), outcome in outcome()) {
        let mut turn = Turn::default();
        let mut chunks: Vec<Chunk> = steps.into_iter().flat_map(|step| take(&mut turn, step)).collect();
        chunks.extend(turn.close(&outcome));
        prop_assert_eq!(rules::check(&chunks), Ok(()), "{:#?}", chunks);
        let mut fold = Fold::default();
        stored(&chunks).for_each(|chunk| fold.apply(&chunk));
        prop_assert_eq!(&fold, turn.fold());
        let parts = fold.parts_json();
        prop_assert!(!parts.contains("approval-requested"));
        // The AI SDK refuses a message with a question that has no answer.
        prop_assert_eq!(parts.matches(r#""approval":"#).count(), parts.matches(r#""approved":"#).count());
    }

    /// Wherever the process dies, its successor says what it would have said.
    #[test]
    fn a_turn_goes_on_as_if_nothing_had_happened(
        before in prop::collection::vec(event(), 0..20),
        after in prop::collection::vec(event(), 0..20),
        outcome in outcome(),
    ) {
        let mut whole = Turn::default();
        let first = hear(&mut whole, &before);
        let mut successor = Turn::replay(stored(&first));
        successor.hear_again(before, true);
        prop_assert_eq!(&successor, &whole);
        let mut second = hear(&mut whole, &after);
        second.extend(whole.close(&outcome));
        let mut again = hear(&mut successor, &after);
        again.extend(successor.close(&outcome));
        prop_assert_eq!(again, second);
        prop_assert_eq!(successor.fold(), whole.fold());
        prop_assert_eq!(successor.agent_error(), whole.agent_error());
    }

    /// Text that is repeated in other pieces is not emitted twice, and what follows it continues in the same parts.
    #[test]
    fn what_a_model_repeats_is_said_once(
        message in message(),
        broken_at in prop::collection::vec(0..20_usize, 1..4),
        pieces in prop::collection::vec(1..4_usize, 1..10),
    ) {
        let mut once = Turn::default();
        hear(&mut once, &message);
        let mut retried = Turn::default();
        for length in broken_at {
            hear(&mut retried, &cut(&message, &pieces).into_iter().take(length).collect::<Vec<_>>());
            retried.hear(AgentEvent::MessageBegan(Again::Yes));
        }
        hear(&mut retried, &cut(&message, &pieces));
        for outcome in [Outcome::completed(), Outcome::cancelled()] {
            let (mut once, mut retried) = (once.clone(), retried.clone());
            once.close(&outcome);
            retried.close(&outcome);
            prop_assert_eq!(retried.fold().parts_json(), once.fold().parts_json());
        }
    }

    /// Whatever a model says when it is asked again, only its last message counts in the end.
    #[test]
    fn what_counts_is_the_last_message(first in message(), last in message()) {
        let mut turn = Turn::default();
        hear(&mut turn, &first);
        turn.hear(AgentEvent::MessageBegan(Again::Yes));
        hear(&mut turn, &last);
        turn.close(&Outcome::completed());
        let mut only = Turn::default();
        hear(&mut only, &last);
        only.close(&Outcome::completed());
        prop_assert_eq!(counting(&turn), counting(&only));
    }

    /// Unless the protocol says that a message is requested again, every word of it is emitted.
    #[test]
    fn nothing_is_dropped_without_a_sign(first in message(), last in message(), is_other in any::<bool>()) {
        let mut turn = Turn::default();
        hear(&mut turn, &first);
        if is_other {
            turn.hear(AgentEvent::MessageBegan(Again::No));
        }
        hear(&mut turn, &last);
        turn.close(&Outcome::completed());
        let said = counting(&turn);
        let said: Vec<_> = said.iter().flat_map(|(kind, text)| text.chars().map(move |c| (kind == "text", c))).collect();
        prop_assert_eq!(said, [letters(&first), letters(&last)].concat());
    }

    /// Agents use one id for several calls: each is a part of its own, and has its own result.
    #[test]
    fn calls_with_one_id_keep_their_results(results in prop::collection::vec(0..100_u32, 1..8)) {
        let mut turn = Turn::default();
        let started = |input: u32| AgentEvent::ToolStarted {
            id: "a".into(),
            name: "x".into(),
            title: None,
            input: json!(input),
            parent: None,
        };
        for result in &results {
            hear(&mut turn, &[started(*result)]);
            hear(&mut turn, &[AgentEvent::ToolFinished { id: "a".into(), name: None, result: Ok(json!(result)) }]);
        }
        let parts: Value = serde_json::from_str(&turn.fold().parts_json()).expect("parts are JSON");
        let calls: Vec<_> = parts.as_array().into_iter().flatten().filter(|part| part["type"] == "dynamic-tool").collect();
        prop_assert!(calls.iter().all(|call| call["input"] == call["output"]), "{:?}", calls);
        prop_assert_eq!(calls.len(), results.len());
    }
}

/// Each letter of a message, and whether it is text.
fn letters(message: &[AgentEvent]) -> Vec<(bool, char)> {
    let mut letters = Vec::new();
    for event in message {
        if let AgentEvent::Text(words) | AgentEvent::Reasoning(words) = event {
            letters.extend(words.chars().map(|c| (matches!(event, AgentEvent::Text(_)), c)));
        }
    }
    letters
}

/// A message of a model: reasoning and text. Few letters, so that two messages begin alike.
fn message() -> impl Strategy<Value = Vec<AgentEvent>> {
    let words = "[ab\u{e9}]{1,6}";
    prop::collection::vec((any::<bool>(), words), 1..5).prop_map(|blocks| {
        let block = |(thinks, words)| if thinks { AgentEvent::Reasoning(words) } else { AgentEvent::Text(words) };
        blocks.into_iter().map(block).collect()
    })
}

/// The same text in other pieces.
fn cut(message: &[AgentEvent], pieces: &[usize]) -> Vec<AgentEvent> {
    let letters = letters(message);
    let mut sizes = pieces.iter().copied().cycle();
    let mut cut = Vec::new();
    for block in letters.chunk_by(|(one, _), (next, _)| one == next) {
        let mut rest = block;
        while let [(is_text, _), ..] = rest {
            let (piece, behind) = rest.split_at(sizes.next().unwrap_or(1).min(rest.len()));
            let words = piece.iter().map(|(_, letter)| letter).collect();
            cut.push(if *is_text { AgentEvent::Text(words) } else { AgentEvent::Reasoning(words) });
            rest = behind;
        }
    }
    cut
}

/// The text that counts for a reader: the parts of the message, joined by kind.
fn counting(turn: &Turn) -> Vec<(String, String)> {
    let parts: Vec<Value> = serde_json::from_str(&turn.fold().parts_json()).expect("parts are JSON");
    let mut counting: Vec<(String, String)> = Vec::new();
    for part in &parts {
        let (Some(kind), Some(text)) = (part["type"].as_str(), part["text"].as_str()) else { continue };
        if text.is_empty() {
            continue;
        }
        match counting.last_mut() {
            Some((last, said)) if last == kind => said.push_str(text),
            _ => counting.push((kind.to_owned(), text.to_owned())),
        }
    }
    counting
}
