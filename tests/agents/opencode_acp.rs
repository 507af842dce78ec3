//! opencode over ACP: one process for all sessions of a workspace.

use mainstay::agent::{DEFAULT_MAX_LINE_BYTES, DriverConfig, ProcessSpec};
use mainstay::agent_event::{AgentEvent, SessionOrigin};
use mainstay::permission::ToolKind;
use mainstay::run::Cause;
use tokio::sync::MutexGuard;

use testkit::until;

use crate::live::{Live, errors_of, session_of, text_of};
use crate::opencode::{ONE, configure, environment};
use crate::scene::{installed, slow_words, within};

async fn start() -> Option<(Live, MutexGuard<'static, ()>)> {
    let program = installed("opencode")?;
    let one = ONE.lock().await;
    let live = Live::start(true, |dir, model| {
        configure(dir, &model.url);
        let process = ProcessSpec {
            command: vec![program.display().to_string(), "acp".to_owned()],
            env: environment(dir),
            max_line_bytes: DEFAULT_MAX_LINE_BYTES,
        };
        DriverConfig::Acp { process, shared: true }
    });
    Some((live.await, one))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_goes_on_in_one_session_also_in_another_process() {
    let Some((mut live, _one)) = start().await else { return };
    let events = live.turn(None, "[[reasoning]]").await;
    let (id, origin) = session_of(&events);
    assert_eq!((origin, text_of(&events).as_str()), (SessionOrigin::New, "The answer is 42."));
    let mut turn = live.begin(Some(&id), "[[tool:echo tool-ran]]").await;
    let request = turn.asked().await;
    assert_eq!((request.kind, request.tool.as_str()), (ToolKind::Execute, "bash"));
    turn.answer(&request, true).await;
    let events = turn.end().await;
    assert_eq!(session_of(&events), (id.clone(), SessionOrigin::Reused));
    assert_eq!(text_of(&events), "I will run a command. Done. The tool said: tool-ran\n");

    let before = live.model.turns("reasoning");
    live.restart().await;
    let events = live.turn(Some(&id), "[[reasoning]]").await;
    assert_eq!(session_of(&events), (id, SessionOrigin::Resumed));
    assert_eq!(text_of(&events), "The answer is 42.");
    assert!(live.model.turns("reasoning") > before + 3, "the model was told what was before");
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_share_a_process_and_engines_come_and_go() {
    let Some((live, _one)) = start().await else { return };
    let mut turn = live.begin(None, "[[slow:60:50]]").await;
    let others = async { tokio::join!(live.turn_of("b", "[[slow:20:20]]"), live.turn_of("c", "[[429:1:acp]]")) };
    let ((b, c), ()) = tokio::join!(others, async {
        for word in ["w5 ", "w20 ", "w40 "] {
            turn.hear_text(word).await;
            turn.change_engine().await;
        }
    });
    assert_eq!(text_of(&turn.end().await), slow_words(60));
    assert_eq!((text_of(&b), text_of(&c).as_str()), (slow_words(20), "Recovered after 1 failures."));

    // A broken stream begins again, without a report from the agent, and without end.
    let mut turn = live.begin(None, "[[disconnect]]").await;
    turn.hear_until(|event| matches!(event, AgentEvent::Text(_))).await;
    turn.reply.control.stop(Cause::IdleTimeout);
    turn.end().await;
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_turn_ends_with_its_tool() {
    let Some((live, _one)) = start().await else { return };
    let mut turn = live.begin(None, "[[slow:1000:50]]").await;
    turn.hear_text("w3 ").await;
    turn.reply.control.stop(Cause::Cancelled);
    let events = turn.end().await;
    assert_eq!(errors_of(&events), []);
    let id = session_of(&events).0;
    let words = format!("tail -f /dev/null {}", live.dir.path().join("never").display());
    let mut turn = live.begin(Some(&id), &format!("[[tool:{words}]]")).await;
    let request = turn.asked().await;
    turn.answer(&request, true).await;
    until(|| live.running(&words) > 0).await;
    turn.reply.control.stop(Cause::Cancelled);
    let events = within(turn.end()).await;
    // The agent reports it as done.
    assert!(!events.iter().any(|event| matches!(event, AgentEvent::ToolFinished { result: Ok(_), .. })), "{events:#?}");
    until(|| live.running(&words) == 0).await;
    live.stop().await;
}
