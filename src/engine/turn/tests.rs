//! Tables of events and what readers hear of them.

use serde_json::json;

use super::*;
use crate::chunk::Ending;
use crate::permission::PermissionRequest;
use crate::permission::ToolKind;
use crate::run::Cause;
use crate::usage::Usage;

fn text(text: &str) -> AgentEvent {
    AgentEvent::Text(text.into())
}

fn reasoning(text: &str) -> AgentEvent {
    AgentEvent::Reasoning(text.into())
}

fn status(label: &str) -> AgentEvent {
    AgentEvent::Status(label.into())
}

fn error(message: &str) -> AgentEvent {
    AgentEvent::Error(message.into())
}

fn started(id: &str, name: &str) -> AgentEvent {
    AgentEvent::ToolStarted { id: id.into(), name: name.into(), title: None, input: json!({}), parent: None }
}

fn given(id: &str, input: Value) -> AgentEvent {
    AgentEvent::ToolStarted { id: id.into(), name: "n".into(), title: None, input, parent: None }
}

fn progress(id: &str) -> AgentEvent {
    AgentEvent::ToolProgress { id: id.into(), output: json!("half") }
}

fn finished(id: &str, name: &str) -> AgentEvent {
    let name = (!name.is_empty()).then(|| name.to_owned());
    AgentEvent::ToolFinished { id: id.into(), name, result: Ok(json!("out")) }
}

fn empty(id: &str) -> AgentEvent {
    AgentEvent::ToolFinished { id: id.into(), name: None, result: Ok(json!(null)) }
}

fn failed(id: &str) -> AgentEvent {
    AgentEvent::ToolFinished { id: id.into(), name: None, result: Err("bad".into()) }
}

/// A chunk in a word or three: `text-1+Hello` is a delta, `!` an error, `~` a preliminary output.
fn short(chunk: &Chunk) -> String {
    match chunk {
        Chunk::TextDelta { id, delta } | Chunk::ReasoningDelta { id, delta } => format!("{id}+{delta}"),
        Chunk::TextStart { id } | Chunk::ReasoningStart { id } => format!("({id}"),
        Chunk::TextEnd { id } | Chunk::ReasoningEnd { id } => format!("{id})"),
        Chunk::ToolInputAvailable { tool_call_id, tool_name, input, provider_metadata, .. } => {
            let origin = provider_metadata.as_ref().map(|metadata| &metadata.mainstay);
            let parent = origin.and_then(|origin| origin.parent_tool_call_id.as_deref());
            format!("{tool_name}:{tool_call_id}<{input}{}", parent.map_or(String::new(), |parent| format!("^{parent}")))
        }
        Chunk::ToolOutputAvailable { tool_call_id, preliminary: None, .. } => format!("{tool_call_id}>"),
        Chunk::ToolOutputAvailable { tool_call_id, .. } => format!("{tool_call_id}~"),
        Chunk::ToolApprovalRequest { approval_id, tool_call_id } => format!("{tool_call_id}?{approval_id}"),
        Chunk::ToolOutputDenied { tool_call_id } => format!("{tool_call_id}-"),
        Chunk::ToolOutputError { tool_call_id, error_text, .. } => format!("{tool_call_id}!{error_text}"),
        Chunk::File { url, media_type } => format!("file={media_type},{url}"),
        Chunk::SourceUrl { source_id, url, title } => format!("{source_id}={url},{}", title.as_deref().unwrap_or("")),
        Chunk::DataPlan { id, data } => format!("{id}={data}"),
        Chunk::DataToolOutput { data, .. } => format!("{}+{}", data.tool_call_id, data.delta),
        Chunk::DataNotice { id, data } => format!("{id}:{}", data.text),
        Chunk::DataRetracted { id, data } => format!("{id}={:?}", data.parts),
        Chunk::DataStatus { data, .. } => format!("status={}", data.label),
        Chunk::MessageMetadata { message_metadata } => format!("metadata={message_metadata}"),
        Chunk::Error { error_text } => format!("error={error_text}"),
        Chunk::Finish { finish_reason, .. } => format!("finish={finish_reason:?}"),
        Chunk::Start { .. } => "start".into(),
        Chunk::StartStep => "[".into(),
        Chunk::FinishStep => "]".into(),
        Chunk::Abort => "abort".into(),
    }
}

fn shorts(chunks: &[Chunk]) -> String {
    chunks.iter().map(short).collect::<Vec<_>>().join(" ")
}

/// What is said of some events after an open text `a`.
fn after_text(events: Vec<AgentEvent>) -> String {
    let mut turn = Turn::default();
    assert_eq!(shorts(&turn.hear(text("a"))), "[ (text-1 text-1+a");
    shorts(&events.into_iter().flat_map(|event| turn.hear(event)).collect::<Vec<_>>())
}

#[test]
fn what_is_said_of_an_event() {
    for (events, expected) in [
        (vec![text("b"), text(""), text("c")], "text-1+b text-1+c"),
        (vec![reasoning("b"), text("c")], "text-1) (reasoning-2 reasoning-2+b reasoning-2) (text-3 text-3+c"),
        (vec![status("s"), status("s"), status(""), text("b"), status("s")], "status=s text-1+b status=s"),
        (vec![error("e"), error("e"), error("f"), text("b")], {
            "text-1) (error-2 error-2+[error] e error-2) (error-3 error-3+[error] f error-3) (text-4 text-4+b"
        }),
        // A result closes nothing.
        (vec![started("t", "n"), text("b"), finished("t", ""), text("c")], {
            "text-1) n:t<{} (text-3 text-3+b t> text-3+c"
        }),
        // The first result counts, and progress ends with it.
        (vec![started("t", "n"), progress("t"), failed("t"), finished("t", ""), progress("t")], {
            "text-1) n:t<{} t~ t!bad"
        }),
        // A result without a start gets one.
        (vec![finished("t", ""), progress("u")], "text-1) tool:t<{} t>"),
        // A repeated start says what is new in it.
        (vec![started("t", "n"), given("t", json!({})), given("t", json!([1])), finished("t", "")], {
            "text-1) n:t<{} n:t<[1] t>"
        }),
        (vec![finished("t", "n"), given("t", json!([1]))], "text-1) n:t<{} t>"),
        // An id that comes again is another call, and from then on means that.
        (vec![started("t", "n"), finished("t", ""), started("t", "n"), progress("t"), finished("t", "")], {
            "text-1) n:t<{} t> n:t#2<{} t#2~ t#2>"
        }),
        (vec![started("t", "n"), failed("t"), started("t", "n"), by("t", "u"), failed("t"), started("t", "n")], {
            "text-1) n:t<{} t!bad n:t#2<{} n:u<{}^t#2 t#2!bad n:t#3<{}"
        }),
        (vec![started("t#2", "n"), started("t", "n"), finished("t", ""), started("t", "n"), progress("t#2")], {
            "text-1) n:t#2<{} n:t<{} t> n:t#3<{} t#2~"
        }),
        // What announces a call whose result came first is late, and only the first time.
        (vec![finished("t", ""), started("t", "n"), started("t", "n")], "text-1) tool:t<{} t> n:t#2<{}"),
        // An output that comes behind the first result takes its place.
        (vec![started("t", "n"), empty("t"), finished("t", ""), finished("t", ""), empty("t")], {
            "text-1) n:t<{} t> t>"
        }),
        // Tools without an id: the newest of the name, else of any name, else a new one.
        (
            vec![started("", "a"), started("", "b"), progress(""), finished("", "a"), finished("", "")],
            "text-1) a:tool-2<{} b:tool-3<{} tool-3~ tool-2> tool-3>",
        ),
        (vec![started("t", "a"), finished("", "a")], "text-1) a:t<{} a:tool-3<{} tool-3>"),
        (vec![started("tool-3", "a"), started("", "b"), finished("", "")], {
            "text-1) a:tool-3<{} b:tool-3_<{} tool-3_>"
        }),
    ] {
        assert_eq!(after_text(events.clone()), expected, "{events:?}");
    }
}

fn began(again: Again) -> AgentEvent {
    AgentEvent::MessageBegan(again)
}

fn by(parent: &str, id: &str) -> AgentEvent {
    AgentEvent::ToolStarted {
        id: id.into(),
        name: "n".into(),
        title: None,
        input: json!({}),
        parent: Some(parent.into()),
    }
}

fn plan(content: &str) -> AgentEvent {
    AgentEvent::Plan(json!([content]))
}

#[test]
fn what_is_said_of_plans_files_and_sub_agents() {
    let file = || AgentEvent::File { media_type: "image/png".into(), url: "data:,".into() };
    let source = || AgentEvent::Source { url: "u".into(), title: Some("t".into()) };
    for (events, expected) in [
        // One plan, which changes; between two words it changes nothing else.
        (vec![plan("a"), plan("a"), text("b"), plan("c"), text("d")], {
            r#"text-1) plan=["a"] (text-3 text-3+b plan=["c"] text-3+d"#
        }),
        (vec![file(), text("b")], "text-1) file=image/png,data:, (text-3 text-3+b"),
        (vec![source(), text("b")], "text-1) source-2=u,t (text-3 text-3+b"),
        (vec![started("t", "n"), by("t", "u"), progress("t"), finished("u", ""), by("", "v")], {
            "text-1) n:t<{} n:u<{}^t t~ u> n:v<{}"
        }),
    ] {
        assert_eq!(after_text(events.clone()), expected, "{events:?}");
    }
}

/// Behind `[ (text-1 text-1+a`.
#[test]
fn what_is_said_of_a_message_that_comes_again() {
    use Again::{No, Yes};
    for (events, expected) in [
        (vec![began(No), text("a")], "text-1) (text-2 text-2+a"),
        // In other pieces, and beyond.
        (vec![text("bc"), began(Yes), text("ab"), text("cd")], "text-1+bc text-1+d"),
        // Broken again and again.
        (vec![began(Yes), began(Yes), text("a"), began(Yes), text("a"), text("b")], "text-1+b"),
        // Thoughts and words.
        (vec![reasoning("b"), began(Yes), text("a"), reasoning("b"), text("c")], {
            "text-1) (reasoning-2 reasoning-2+b reasoning-2) (text-3 text-3+c"
        }),
        // It says something else: what was said is void.
        (vec![text("b"), began(Yes), text("a"), text("c"), text("d")], {
            "text-1+b text-1) retracted-2=[1] (text-3 text-3+a text-3+c text-3+d"
        }),
        (vec![reasoning("b"), began(Yes), text("a"), reasoning("c")], {
            "text-1) (reasoning-2 reasoning-2+b reasoning-2) retracted-3=[1, 2] (text-4 text-4+a text-4) \
             (reasoning-5 reasoning-5+c"
        }),
        // A block that was whole, and another kind than before behind it.
        (vec![reasoning("b"), began(Yes), text("ac")], {
            "text-1) (reasoning-2 reasoning-2+b reasoning-2) retracted-3=[1, 2] (text-4 text-4+ac"
        }),
        // A second retraction names only what the first left.
        (vec![began(Yes), text("b"), began(Yes), text("c")], {
            "text-1) retracted-2=[1] (text-3 text-3+b text-3) retracted-4=[3] (text-5 text-5+c"
        }),
        // Only the newest message is void.
        (vec![began(No), text("b"), began(Yes), text("c")], {
            "text-1) (text-2 text-2+b text-2) retracted-3=[2] (text-4 text-4+c"
        }),
        // Words that come twice without a sign are said twice.
        (vec![text("a"), text("a"), began(No), text("a")], "text-1+a text-1+a text-1) (text-2 text-2+a"),
        // A tool: the message has shrunk, or it comes where it came.
        (vec![text("b"), began(Yes), text("a"), started("t", "n")], {
            "text-1+b text-1) retracted-2=[1] (text-3 text-3+a text-3) n:t<{}"
        }),
        (vec![began(Yes), text("a"), started("t", "n")], "text-1) n:t<{}"),
        (vec![started("t", "n"), began(Yes), text("a"), started("u", "n")], "text-1) n:t<{} n:u<{}"),
        // A message whose tool gave its result was whole: the next is another one, even if it begins alike.
        (vec![started("t", "n"), finished("t", ""), began(Yes), text("a")], "text-1) n:t<{} t> (text-3 text-3+a"),
        // What is not the model's does not count.
        (vec![began(Yes), status("s"), plan("p"), text("a"), by("x", "t"), text("b")], {
            r#"status=s text-1) plan=["p"] n:t<{}^x (text-4 text-4+b"#
        }),
        (vec![began(Yes), error("e"), text("ab")], { "text-1) (error-2 error-2+[error] e error-2) (text-3 text-3+b" }),
    ] {
        assert_eq!(after_text(events.clone()), expected, "{events:?}");
    }
}

#[test]
fn a_message_that_ends_in_mid_repetition_counts_when_the_run_is_completed() {
    for (again, outcome, expected) in [
        (Again::Yes, Outcome::completed(), "text-1) retracted-2=[1] (text-3 text-3+a text-3) ] finish=Stop"),
        (Again::Yes, Outcome::cancelled(), "text-1) ] abort finish=Other"),
    ] {
        let mut turn = Turn::default();
        for event in [text("ab"), began(again), text("a")] {
            turn.hear(event);
        }
        assert_eq!(shorts(&turn.close(&outcome)), expected);
    }
}

#[test]
fn what_no_chunk_says_is_heard_again() {
    let known = [text("ab"), began(Again::Yes), text("a"), AgentEvent::Ended];
    let mut turn = Turn::default();
    let said: Vec<_> = known.iter().flat_map(|event| turn.hear(event.clone())).collect();
    let mut successor = Turn::replay(said.iter().cloned());
    successor.hear_again(known[..2].to_vec(), false);
    successor.hear_again(known[2..].to_vec(), true);
    assert_eq!(successor, turn);
    assert!(successor.has_ended());
    assert_eq!(shorts(&successor.hear(text("bc"))), "text-1+c");

    // What is read makes another message than what is stored: another version of the parser read it. Nothing is void.
    let mut successor = Turn::replay(said.into_iter());
    successor.hear_again(vec![text("x"), began(Again::Yes)], true);
    assert_eq!(shorts(&successor.hear(text("c"))), "text-1+c");
}

#[test]
fn the_end_says_what_became_of_the_run() {
    let because = |cause| Outcome::because(cause, "why");
    for (events, outcome, expected) in [
        (vec![], Outcome::completed(), "finish=Stop"),
        (vec![], Outcome::cancelled(), "abort finish=Other"),
        (vec![status("s")], because(Cause::SpawnFailed), {
            "[ (text-1 text-1+[error] why text-1) ] error=why finish=Error"
        }),
        (vec![text("a")], Outcome::completed(), "text-1) ] finish=Stop"),
        (vec![text("a")], because(Cause::Signal), {
            "text-1) (text-2 text-2+[error] why text-2) ] error=why finish=Error"
        }),
        (vec![error("e")], because(Cause::AgentError), "] error=why finish=Error"),
        (vec![text("a")], because(Cause::IdleTimeout), "text-1) ] error=why finish=Error"),
        (vec![started("t", "n")], Outcome::completed(), "t!The tool reported no result. ] finish=Stop"),
        // What a tool has shown stays.
        (vec![started("t", "n"), progress("t")], Outcome::cancelled(), "t> ] abort finish=Other"),
        (vec![started("t", "n"), progress("t"), started("u", "n")], Outcome::completed(), {
            "t> u!The tool reported no result. ] finish=Stop"
        }),
        (vec![started("t", "n"), started("u", "n"), finished("t", "")], because(Cause::WorkerLost), {
            "u!The run was interrupted. ] error=why finish=Error"
        }),
    ] {
        let mut turn = Turn::default();
        for event in events {
            turn.hear(event);
        }
        assert_eq!(shorts(&turn.close(&outcome)), expected);
        assert_eq!(turn.close(&Outcome::completed()), []);
        assert_eq!(turn.hear(text("late")), []);
    }
}

#[test]
fn a_run_that_never_began_only_ends() {
    let end = Turn::default().close(&Outcome::cancelled());
    assert_eq!(shorts(&end), "abort finish=Other");
    let labelled = Ending::new(Cause::Cancelled, None, Usage::default()).label(end);
    assert_eq!(labelled, Chunk::end_of_a_run_cancelled_in_the_queue());
}

#[test]
fn the_turn_knows_what_the_engine_asks() {
    let mut turn = Turn::default();
    turn.hear(status("s"));
    assert!(!turn.has_said() && !turn.heard_anything());
    turn.hear(started("t", "n"));
    assert!(turn.has_said() && turn.heard_anything() && turn.is_tool_running());
    turn.hear(finished("t", ""));
    turn.hear(error("first"));
    turn.hear(error("second"));
    assert!(!turn.is_tool_running() && !turn.has_ended());
    assert_eq!(turn.agent_error(), Some("first"));
    turn.hear(AgentEvent::Ended);
    assert!(turn.has_ended());
}

#[test]
fn a_turn_goes_on_from_what_is_stored() {
    let mut turn = Turn::default();
    let events = [error("e"), started("", "n"), text("a"), status("s")];
    let said: Vec<_> = events.into_iter().flat_map(|event| turn.hear(event)).collect();
    let mut again = Turn::replay(said.into_iter());
    assert_eq!(again.fold(), turn.fold());
    let more = [status("s"), error("e"), text("b"), finished("", "n"), reasoning("c")];
    let more: Vec<_> = more.into_iter().flat_map(|event| again.hear(event)).collect();
    assert_eq!(shorts(&more), "text-3+b tool-2> text-3) (reasoning-4 reasoning-4+c");
    assert_eq!(again.agent_error(), Some("e"));
}

fn asks(tool_call: &str) -> PermissionRequest {
    PermissionRequest {
        request: "1".into(),
        tool_call: tool_call.into(),
        tool: "n".into(),
        kind: ToolKind::Other,
        title: "May it?".into(),
        input: json!(1),
        options: Vec::new(),
    }
}

/// A turn that has heard some events and a question, and what was said of the question.
fn asked(events: Vec<AgentEvent>, tool_call: &str) -> (Turn, String) {
    let mut turn = Turn::default();
    events.into_iter().for_each(|event| drop(turn.hear(event)));
    let (_, said) = turn.ask(&asks(tool_call), "q".into());
    (turn, shorts(&said))
}

#[test]
fn a_question_is_shown_on_a_tool_and_with_nothing_open() {
    let table = [
        (vec![given("t", json!(1)), text("a")], "t", "text-2) t?q"),
        (vec![text("a")], "t", "text-1) n:t<1 t?q"),
        (vec![], "", "[ n:permission-1<1 permission-1?q"),
        // The call is over: it is about another one with its id.
        (vec![given("t", json!(1)), finished("t", "")], "t", "n:t#2<1 t#2?q"),
    ];
    for (events, tool_call, expected) in table {
        assert_eq!(asked(events, tool_call).1, expected);
    }
}

#[test]
fn a_tool_shows_its_newest_title() {
    let titled = |title: &str| AgentEvent::ToolStarted {
        id: "t".into(),
        name: "n".into(),
        title: Some(title.into()),
        input: json!({}),
        parent: None,
    };
    let mut turn = Turn::default();
    assert_eq!(shorts(&turn.hear(titled("n"))), "[ n:t<{}");
    assert_eq!(turn.fold().tool("t").unwrap().title, None, "it says nothing new");
    assert_eq!(shorts(&turn.hear(titled("Look around"))), "n:t<{}");
    assert_eq!(shorts(&turn.hear(titled("Look around"))), "");
    assert_eq!(shorts(&turn.hear(given("t", json!(1)))), "n:t<1");
    assert_eq!(turn.fold().tool("t").unwrap().title.as_deref(), Some("Look around"));
}

#[test]
fn two_questions_about_one_call_are_both_shown() {
    let (mut turn, _) = asked(vec![given("t", json!(1))], "t");
    assert_eq!(shorts(&turn.ask(&asks("t"), "r".into()).1), "n:permission-2<1 permission-2?r");
    assert_eq!(shorts(&turn.answered("q", true)), "n:t<1");
    assert_eq!(shorts(&turn.answered("r", true)), "permission-2>");
}

#[test]
fn a_question_about_a_reused_id_goes_on_in_its_call() {
    let (mut turn, _) = asked(vec![given("t", json!(1)), finished("t", "")], "t");
    assert_eq!(turn.call_id("t"), "t#2");
    assert_eq!(shorts(&turn.answered("q", true)), "n:t#2<1");
    assert_eq!(shorts(&turn.hear(given("t", json!(1)))), "", "it is announced after the question");
    assert_eq!(shorts(&turn.hear(finished("t", ""))), "t#2>");
}

/// The bytes that readers are sent while a tool shows these outputs.
fn sent(outputs: impl IntoIterator<Item = Value>) -> (usize, Turn) {
    let mut turn = Turn::default();
    turn.hear(started("t", "n"));
    let events = outputs.into_iter().map(|output| AgentEvent::ToolProgress { id: "t".into(), output });
    let said: Vec<_> = events.flat_map(|event| turn.hear(event)).collect();
    (said.iter().map(|chunk| chunk.to_json().len()).sum(), turn)
}

#[test]
fn progress_costs_what_is_new_in_it() {
    let line = "a line of the output of a build that takes its time and says a lot\n";
    let grown: Vec<_> = (1..=1000).map(|lines| json!(line.repeat(lines))).collect();
    let whole = line.len() * 1000;
    let (bytes, turn) = sent(grown.clone());
    assert!(bytes < 6 * whole, "{bytes} bytes for {whole}");
    assert_eq!(turn.fold().tool("t").unwrap().output(), grown.last(), "nothing is missing");
    // The same in an object, where it is no text that grows.
    let (bytes, _) = sent(grown.into_iter().map(|output| json!({"stdout": output})));
    assert!(bytes < 6 * whole + 600 * 1024, "{bytes} bytes for {whole}");
    let (bytes, _) = sent((0..100_000).map(|step| json!(format!("{} {step}", "x".repeat(10_000)))));
    assert!(bytes < 600 * 1024, "{bytes} bytes");
}

#[test]
fn progress_is_a_difference_until_the_output_has_doubled() {
    let mut turn = Turn::default();
    turn.hear(started("t", "n"));
    let mut told = Vec::new();
    for output in ["a", "ab", "ab", "abc", "x", &"x".repeat(600)] {
        told.push(shorts(&turn.hear(AgentEvent::ToolProgress { id: "t".into(), output: output.into() })));
    }
    assert_eq!(told, ["t~", "t+b", "", "t+c", "t~", "t~"]);
    assert_eq!(shorts(&turn.hear(given("t", json!(2)))), "n:t<2 t~", "a new input takes nothing away");
}

#[test]
fn a_tool_that_was_asked_for_goes_on_or_is_denied() {
    for (tool_call, allowed, expected) in
        [("t", true, "n:t<1"), ("t", false, "t-"), ("", true, "permission-1>"), ("", false, "permission-1-")]
    {
        let (mut turn, _) = asked(vec![], tool_call);
        assert_eq!(shorts(&turn.answered("other", allowed)), "");
        assert_eq!(shorts(&turn.answered("q", allowed)), expected);
        assert_eq!(shorts(&turn.answered("q", !allowed)), "", "once");
        assert!(!turn.fold().parts_json().contains("approval-requested"));
    }
}

#[test]
fn nothing_but_its_end_takes_a_question_away() {
    let (mut turn, _) = asked(vec![given("t", json!(1))], "t");
    let kept = [given("t", json!(2)), progress("t"), text("a")];
    assert_eq!(shorts(&kept.into_iter().flat_map(|event| turn.hear(event)).collect::<Vec<_>>()), "(text-2 text-2+a");
    let mut other = turn.clone();
    // The stream of a chat ends at the first of these chunks.
    assert_eq!(shorts(&turn.hear(failed("t"))), "text-2) t-");
    assert_eq!(shorts(&other.hear(finished("t", ""))), "text-2) t>");
    let (mut turn, _) = asked(vec![given("t", json!(1)), given("u", json!(1))], "t");
    assert_eq!(shorts(&turn.close(&Outcome::cancelled())), "t- u!The run was cancelled. ] abort finish=Other");
    assert!(turn.fold().parts_json().contains(r#""approval":{"id":"q","approved":false}"#));
}
