//! Codex, as `codex exec`.

use std::path::Path;

use mainstay::options::Effect;
use mainstay::run::Status;
use serde_json::json;

use crate::scene::{Scene, first, installed, left_of};

async fn scene() -> Option<Scene> {
    let program = installed("codex")?;
    let keys = |dir: &Path, model: &str| {
        let home = dir.join("home");
        let config = format!(
            "model = \"gpt-5.5\"\nmodel_provider = \"fake\"\napproval_policy = \"never\"\nsandbox_mode = \"danger-full-access\"\n\
             [model_providers.fake]\nname = \"fake\"\nbase_url = \"{model}/v1\"\nenv_key = \"FAKE_API_KEY\"\n\
             wire_api = \"responses\"\nrequest_max_retries = 1\nstream_max_retries = 1\n"
        );
        std::fs::write(home.join("config.toml"), config).unwrap();
        format!(
            "driver = \"codex\"\ncommand = [{program:?}]\nenv = {{ HOME = {home:?}, CODEX_HOME = {home:?}, FAKE_API_KEY = \"none\" }}"
        )
    };
    Some(Scene::new(keys).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn text_reasoning_commands_and_usage_reach_the_reader() {
    let Some(scene) = scene().await else { return };
    let run = scene.turn("s", "[[reasoning]]").await;
    assert_eq!(run.status, Status::Completed, "{:?}\n{}", run.error, scene.log());
    let chunks = scene.chunks(run.id).await;
    assert_eq!(first(&chunks, "reasoning-delta")["delta"], "First I think about it. Then I think again. ");
    assert_eq!(scene.text(run.id).await, "The answer is 42.");

    let run = scene.turn("s", "[[tool:echo tool-ran]]").await;
    assert_eq!(run.status, Status::Completed, "{:?}", run.error);
    let chunks = scene.chunks(run.id).await;
    assert!(first(&chunks, "tool-input-available")["input"]["command"].as_str().unwrap().contains("echo tool-ran"));
    assert_eq!(first(&chunks, "tool-output-available")["output"]["aggregated_output"], "tool-ran\n");
    assert!(scene.text(run.id).await.starts_with("I will run a command. Done."));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_where_it_was_also_after_a_restart() {
    let Some(mut scene) = scene().await else { return };
    scene.turn("s", "[[text:one]]").await;
    let id = scene.value("SELECT id || ' ' || origin FROM v_agent_sessions");
    let before = scene.model.turns("text");
    scene.turn("s", "[[text:two]]").await;
    let between = scene.model.turns("text");
    assert!(between > before, "the model saw {before}, then {between} turns");
    scene.stop();
    scene.start();
    let run = scene.turn("s", "[[text:three]]").await;
    assert_eq!(scene.text(run.id).await, "three");
    assert!(scene.model.turns("text") > between);
    assert_eq!(scene.value("SELECT id || ' ' || origin FROM v_agent_sessions"), id.replace(" new", " resumed"));
    // It reports the usage of the whole thread; a run has only its own.
    assert_eq!(scene.value("SELECT group_concat(input_tokens) FROM v_runs"), "11,11,11");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_provider_refuses_ends_the_turn_and_what_it_overcomes_does_not() {
    let Some(scene) = scene().await else { return };
    let run = scene.turn("a", "[[429:always]]").await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::Failed, Some("agent_error")), "{}", scene.log());
    assert!(run.error.unwrap().contains("429"));
    let run = scene.turn("b", "[[ctx]]").await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::Failed, Some("agent_error")));
    let run = scene.turn("c", "[[500:1:recovers]]").await;
    assert_eq!(run.status, Status::Completed, "{:?}", run.error);
    assert_eq!(scene.text(run.id).await, "Recovered after 1 failures.");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_turn_keeps_what_was_said_and_leaves_no_process() {
    let Some(scene) = scene().await else { return };
    let run = scene.send("s", "[[tool:tail -f /dev/null]]").await;
    scene.chunks_until(run, "tail -f").await;
    assert!(left_of(run) > 0);
    scene.engine.cancel_run(run).await.unwrap();
    assert_eq!(scene.settled(run).await.status, Status::Cancelled);
    assert_eq!(scene.text(run).await, "I will run a command. ");
    assert_eq!(left_of(run), 0);
    let run = scene.turn("s", "[[text:still here]]").await;
    assert_eq!(scene.text(run.id).await, "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_that_it_does_not_know_any_more_is_begun_anew() {
    let Some(scene) = scene().await else { return };
    scene.turn("s", "[[text:one]]").await;
    std::fs::remove_dir_all(scene.dir.path().join("home/sessions")).unwrap();
    let run = scene.turn("s", "[[text:two]]").await;
    assert_eq!(run.status, Status::Completed, "{:?}\n{}", run.error, scene.log());
    assert_eq!(scene.text(run.id).await, "two");
    assert_eq!(scene.value("SELECT group_concat(origin) FROM v_agent_sessions"), "new,new");
    assert_eq!(scene.value("SELECT group_concat(input_tokens) FROM v_runs"), "11,11");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_options_of_the_session_are_told() {
    let Some(scene) = scene().await else { return };
    scene.turn("s", "[[text:one]]").await;
    let options = json!({"model": "some-model", "extra": {"model_reasoning_effort": "low"}});
    let session = "s".parse().unwrap();
    let report = scene.engine.update_options(&session, options.as_object().unwrap().clone()).await.unwrap();
    assert!(report.effects.values().all(|effect| *effect == Effect::Applied), "{:?}", report.effects);
    let run = scene.turn("s", "[[text:two]]").await;
    assert_eq!(run.status, Status::Completed, "{:?}\n{}", run.error, scene.log());
    let asked = scene.model.asked("text");
    assert_eq!(asked["model"], "some-model");
    assert_eq!(asked["body"]["reasoning"]["effort"], "low", "{asked}");
}

/// The person's newest message in a request to the model.
fn newest_message(asked: &serde_json::Value) -> String {
    let input = asked["body"]["input"].as_array().unwrap();
    let said = input.iter().rfind(|item| item["role"] == "user").unwrap();
    said["content"][0]["text"].as_str().unwrap().to_owned()
}

/// In the first turn of a thread and in one that resumes it.
#[tokio::test(flavor = "multi_thread")]
async fn message_that_reads_as_an_argument_means_itself() {
    let Some(scene) = scene().await else { return };
    for message in ["-", "--help", "-"] {
        let run = scene.turn("s", message).await;
        assert_eq!(run.status, Status::Completed, "{message}: {:?}\n{}", run.error, scene.log());
        assert_eq!(newest_message(&scene.model.asked("default")), message);
    }
    assert_eq!(scene.value("SELECT count(*) FROM v_agent_sessions"), "1");
}

/// A message that is too long for an argument.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_message_arrives_whole() {
    let Some(scene) = scene().await else { return };
    let run = scene.turn("s", &format!("{} [[text:read it all]]", "word ".repeat(60_000))).await;
    assert_eq!(scene.text(run.id).await, "read it all", "{:?}", run.error);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_may_be_killed_three_times_in_a_turn() {
    let Some(mut scene) = scene().await else { return };
    let go = scene.dir.path().join("work/go");
    let run = scene.send("s", "[[tool:until test -e go; do sleep 0.1; done; echo went]]").await;
    scene.chunks_until(run, "until test").await;
    for _ in 0..3 {
        scene.kill();
        scene.start();
    }
    std::fs::write(go, "").unwrap();
    let run = scene.settled(run).await;
    assert_eq!(run.status, Status::Completed, "{:?}\n{}", run.error, scene.log());
    let chunks = scene.chunks(run.id).await;
    let inputs = chunks.iter().filter(|chunk| chunk["type"] == "tool-input-available").count();
    assert_eq!(
        (inputs, first(&chunks, "tool-output-available")["output"]["aggregated_output"].as_str()),
        (1, Some("went\n"))
    );
    assert!(scene.text(run.id).await.starts_with("I will run a command. Done."));
    assert_eq!(left_of(run.id), 0);
}
