//! opencode: a backend that is a server, and turns that are relayed to it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mainstay::agent::{DEFAULT_MAX_LINE_BYTES, DriverConfig, ProcessSpec};
use mainstay::agent_event::{Again, AgentEvent, SessionOrigin};
use mainstay::failure::ErrorClass;
use mainstay::permission::ToolKind;
use mainstay::run::{Cause, Status};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use testkit::until;

use crate::live::{Live, errors_of, session_of, text_of};
use crate::scene::{Scene, installed, slow_words, within};

/// A server takes 600 MB: the tests run one at a time.
pub static ONE: Mutex<()> = Mutex::const_new(());

/// A running server of a workspace.
async fn start() -> Option<(Live, MutexGuard<'static, ()>)> {
    let program = installed("opencode")?;
    let one = ONE.lock().await;
    let live = Live::start(true, |dir, model| {
        configure(dir, &model.url);
        DriverConfig::Opencode(ProcessSpec {
            command: vec![program.display().to_string()],
            env: environment(dir),
            max_line_bytes: DEFAULT_MAX_LINE_BYTES,
        })
    });
    Some((live.await, one))
}

/// Configures opencode, in its working directory, with the model and the tools that need permission.
pub fn configure(dir: &Path, model: &str) {
    let options = json!({"baseURL": format!("{model}/v1"), "apiKey": "none"});
    let models = json!({"m": {"tool_call": true, "reasoning": true, "limit": {"context": 100_000, "output": 8000}}});
    let config = json!({"autoupdate": false, "share": "disabled", "snapshot": false, "model": "it/m",
        "small_model": "it/m", "permission": {"bash": "ask", "edit": "ask"},
        "provider": {"it": {"npm": "@ai-sdk/openai-compatible", "options": options, "models": models}}});
    std::fs::write(dir.join("work/opencode.json"), config.to_string()).unwrap();
}

/// Environment that keeps opencode's files in a directory.
pub fn environment(dir: &Path) -> BTreeMap<String, String> {
    let off = ["AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS"];
    let off = off.map(|what| (format!("OPENCODE_DISABLE_{what}"), "1".to_owned()));
    off.into_iter().chain([("HOME".to_owned(), dir.join("home").display().to_string())]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_goes_on_in_one_session_with_tools_that_ask_and_also_on_another_server() {
    let Some((mut live, _one)) = start().await else { return };
    let events = live.turn(None, "[[reasoning]]").await;
    let (id, origin) = session_of(&events);
    assert_eq!((origin, text_of(&events).as_str()), (SessionOrigin::New, "The answer is 42."));
    let reasoning = events.iter().filter_map(|event| match event {
        AgentEvent::Reasoning(text) => Some(text.as_str()),
        _ => None,
    });
    assert_eq!(reasoning.collect::<String>(), "First I think about it. Then I think again. ");
    let usage = events.iter().rev().find_map(|event| match event {
        AgentEvent::Usage(usage) => Some(usage),
        _ => None,
    });
    let usage = usage.unwrap();
    assert_eq!((usage.input_tokens, usage.output_tokens, usage.context_tokens), (Some(11), Some(7), Some(18)));
    let before = live.model.turns("reasoning");

    let mut turn = live.begin(Some(&id), "[[tool:echo tool-ran]]").await;
    let request = turn.asked().await;
    assert_eq!((request.kind, request.tool.as_str()), (ToolKind::Execute, "bash"));
    assert_eq!(request.input["command"], "echo tool-ran");
    turn.answer(&request, true).await;
    // A second answer does no harm.
    turn.answer(&request, true).await;
    let events = turn.end().await;
    assert_eq!(session_of(&events), (id.clone(), SessionOrigin::Resumed));
    let finished = AgentEvent::ToolFinished {
        id: request.tool_call.clone(),
        name: Some("bash".to_owned()),
        result: Ok("tool-ran\n".into()),
    };
    assert!(events.contains(&finished), "{events:#?}");
    assert_eq!(text_of(&events), "I will run a command. Done. The tool said: tool-ran\n");

    let mut turn = live.begin(Some(&id), "[[write:made.txt]]").await;
    let request = turn.asked().await;
    assert_eq!(request.kind, ToolKind::Edit);
    turn.answer(&request, false).await;
    let events = turn.end().await;
    assert!(events.iter().any(|event| matches!(event, AgentEvent::ToolFinished { result: Err(_), .. })));
    assert!(!live.dir.path().join("work/made.txt").exists());

    live.restart().await;
    let events = live.turn(Some(&id), "[[reasoning]]").await;
    assert_eq!(session_of(&events), (id.clone(), SessionOrigin::Resumed));
    assert_eq!(text_of(&events), "The answer is 42.");
    assert!(live.model.turns("reasoning") > before + 4, "the model was told what was before");

    let events = live.turn(Some("ses_000000000000unknown"), "[[text:new]]").await;
    assert_eq!((session_of(&events).1, text_of(&events).as_str()), (SessionOrigin::New, "new"));
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_share_a_server_and_what_a_provider_refuses_is_tried_again() {
    let Some((live, _one)) = start().await else { return };
    let (one, two, again) = tokio::join!(
        live.turn(None, "[[slow:20:20]]"),
        live.turn(None, "[[slow:30:20]]"),
        live.turn(None, "[[429:1:here]]")
    );
    assert_eq!((text_of(&one), text_of(&two)), (slow_words(20), slow_words(30)));
    assert_eq!(text_of(&again), "Recovered after 1 failures.");
    assert!(again.contains(&AgentEvent::Status("Trying again: fake 429".to_owned())), "{again:#?}");
    assert_eq!(errors_of(&again), []);

    // The conversation is compacted, and continues.
    let events = live.turn(None, "[[ctx]]").await;
    assert_eq!((errors_of(&events), text_of(&events).is_empty()), (vec![], false));

    // A broken stream begins again: the text of the message so far is void.
    let mut turn = live.begin(None, "[[disconnect]]").await;
    turn.hear_until(|event| *event == AgentEvent::MessageBegan(Again::Yes)).await;
    turn.reply.control.stop(Cause::IdleTimeout);
    turn.end().await;

    let mut turn = live.begin(None, "[[429:always:there]]").await;
    turn.hear_until(|event| matches!(event, AgentEvent::Status(_))).await;
    turn.reply.control.stop(Cause::IdleTimeout);
    let events = turn.end().await;
    let error = events.iter().find_map(|event| match event {
        AgentEvent::Error(error) => Some(error),
        _ => None,
    });
    let error = error.expect("why nothing came of it");
    assert_eq!(error.message, "fake 429");
    assert!(error.retry_at.is_some());

    // Without the password a client gets nothing.
    let bare = format!("http://{}/session", live.endpoint.rsplit('@').next().unwrap());
    assert_eq!(reqwest::get(bare).await.unwrap().status(), 401);
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_turn_is_aborted_with_its_tool() {
    let Some((live, _one)) = start().await else { return };
    let mut turn = live.begin(None, "[[slow:1000:50]]").await;
    turn.hear_text("w3 ").await;
    turn.reply.control.stop(Cause::Cancelled);
    let events = turn.end().await;
    assert!(text_of(&events).starts_with("w0 w1 w2 w3 "));
    assert_eq!(errors_of(&events), []);

    let id = session_of(&events).0;
    let words = format!("tail -f /dev/null {}", live.dir.path().join("never").display());
    let mut turn = live.begin(Some(&id), &format!("[[tool:echo up; {words}]]")).await;
    let request = turn.asked().await;
    turn.answer(&request, true).await;
    turn.hear_until(|event| matches!(event, AgentEvent::ToolProgress { .. })).await;
    until(|| live.running(&words) > 0).await;
    turn.reply.control.stop(Cause::Cancelled);
    turn.end().await;
    until(|| live.running(&words) == 0).await;

    // Cancelled while a question is open; the session can be used afterwards.
    let mut turn = live.begin(Some(&id), "[[tool]]").await;
    turn.asked().await;
    turn.reply.control.stop(Cause::Cancelled);
    turn.end().await;
    let events = live.turn(Some(&id), "[[text:after]]").await;
    assert_eq!((session_of(&events).1, text_of(&events).as_str()), (SessionOrigin::Resumed, "after"));

    // A killed relay cannot abort its turn: the next one does.
    let mut turn = live.begin(Some(&id), "[[slow:1000:50]]").await;
    turn.hear_text("w3 ").await;
    turn.reply.control.kill(Cause::Cancelled);
    within(&mut turn.reply.end).await.unwrap();
    let events = live.turn(Some(&id), "[[text:at last]]").await;
    assert_eq!(text_of(&events), "at last");
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_engines_cost_no_word_and_a_killed_server_is_a_crash() {
    let Some((mut live, _one)) = start().await else { return };
    let mut turn = live.begin(None, "[[slow:60:50]]").await;
    for word in ["w5 ", "w20 ", "w40 "] {
        turn.hear_text(word).await;
        turn.change_engine().await;
    }
    let events = turn.end().await;
    assert_eq!(text_of(&events), slow_words(60));

    let id = session_of(&events).0;
    let mut turn = live.begin(Some(&id), "[[slow:1000:50]]").await;
    turn.hear_text("w3 ").await;
    live.server.control.kill(Cause::Internal);
    within(&mut live.server.end).await.unwrap();
    let events = turn.end().await;
    assert_eq!(errors_of(&events), [Some(ErrorClass::Crashed)]);
    live.start_again().await;
    let events = live.turn(Some(&id), "[[text:again]]").await;
    assert_eq!((session_of(&events).1, text_of(&events).as_str()), (SessionOrigin::Resumed, "again"));
    live.stop().await;
}

/// Forwards connections, and breaks them all on request.
async fn proxy(to: String, cut: Arc<std::sync::Mutex<CancellationToken>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let (to, cut) = (to.clone(), cut.lock().unwrap().clone());
            tokio::spawn(cut.run_until_cancelled_owned(async move {
                let mut to = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            }));
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_in_mid_turn_costs_no_word() {
    let Some((live, _one)) = start().await else { return };
    let cut = Arc::new(std::sync::Mutex::new(CancellationToken::new()));
    let (credentials, address) = live.endpoint.rsplit_once('@').unwrap();
    let endpoint = format!("{credentials}@{}", proxy(address.to_owned(), cut.clone()).await);
    let mut turn = live.begin_at(&endpoint, None, "[[slow:60:50]]").await;
    turn.hear_text("w5 ").await;
    std::mem::take(&mut *cut.lock().unwrap()).cancel();
    let events = turn.end().await;
    assert_eq!(text_of(&events), slow_words(60));
    assert_eq!(errors_of(&events), []);

    // A tool that waits for an answer keeps waiting.
    let id = session_of(&events).0;
    let mut turn = live.begin_at(&endpoint, Some(&id), "[[tool:echo tool-ran]]").await;
    let request = turn.asked().await;
    std::mem::take(&mut *cut.lock().unwrap()).cancel();
    turn.answer(&request, true).await;
    let events = turn.end().await;
    assert_eq!(text_of(&events), "I will run a command. Done. The tool said: tool-ran\n");
    let permissions = events.iter().filter(|event| matches!(event, AgentEvent::Permission(_))).count();
    assert_eq!(permissions, 1);
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_restarted_daemons_go_on_with_the_server_and_its_sessions() {
    let Some(program) = installed("opencode") else { return };
    let _one = ONE.lock().await;
    let keys = |dir: &Path, model: &str| {
        configure(dir, model);
        let env: Vec<_> = environment(dir).iter().map(|(name, value)| format!("{name} = {value:?}")).collect();
        format!("driver = \"opencode\"\ncommand = [{program:?}]\nenv = {{ {} }}", env.join(", "))
    };
    let mut scene = Scene::new(keys).await;
    let run = scene.send("s", "[[slow:100:50]]").await;
    for word in ["w5 ", "w30 ", "w60 "] {
        scene.chunks_until(run, word).await;
        scene.kill();
        scene.start();
    }
    let settled = scene.settled(run).await;
    assert_eq!(settled.status, Status::Completed, "{:?}\n{}", settled.error, scene.log());
    assert_eq!(scene.text(run).await, slow_words(100));

    let before = scene.model.turns("slow");
    scene.stop();
    scene.start();
    let run = scene.turn("s", "[[slow:3:1]]").await;
    assert_eq!((run.status, scene.text(run.id).await), (Status::Completed, slow_words(3)), "{:?}", run.error);
    assert!(scene.model.turns("slow") > before, "the model was told what was before");
    assert_eq!(scene.value("SELECT count(*) FROM v_agent_sessions"), "1");
    scene.stop();
}
