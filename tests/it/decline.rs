//! A message that is sent while an agent asks: open questions are declined once the run waits for nothing else.

use mainstay::engine::{PermissionFilter, SendMessage};
use mainstay::id::{MessageId, RunId};
use mainstay::message::UserMessage;
use mainstay::permission::{Permission, PermissionState};
use mainstay::run::{Run, Status};
use serde_json::{Value, json};

use crate::claude_lines::{asks, done, says, tool};
use crate::scene::{Scene, within};

/// An agent that runs one tool until a file `go` exists, and asks for two others, one after the other.
fn agent() -> String {
    [
        "read -r message\n",
        &says(json!({"type": "system", "subtype": "init", "session_id": "c1"})),
        "case $message in *ask*)\n",
        &[tool("working"), tool("a"), asks("a")].concat(),
        "while [ ! -e go ]; do sleep 0.02; done\n",
        &done("working"),
        &["read -r one\n".to_owned(), done("a"), tool("b"), asks("b")].concat(),
        &("read -r two\n".to_owned() + &done("b")),
        ";; esac\n",
        &says(json!({"type": "result", "subtype": "success", "is_error": false, "result": "done"})),
    ]
    .concat()
}

impl Scene {
    /// Sends as a chat does.
    async fn chat(&self, text: &str) -> Run {
        let message = UserMessage::text(MessageId::generate(), text).unwrap();
        let send = SendMessage {
            declined_by: Some("test".into()),
            workspace: Some("asking".parse().unwrap()),
            ..SendMessage::new("s".parse().unwrap(), message)
        };
        self.engine.send(send).await.unwrap().run
    }

    /// The questions of a run, oldest first.
    async fn questions(&self, run: RunId) -> Vec<Permission> {
        let filter = PermissionFilter { run: Some(run), ..PermissionFilter::default() };
        let asked = self.engine.list_permissions(&filter, 100).await.unwrap();
        asked.into_iter().rev().map(|(_, permission)| permission).collect()
    }

    async fn until_told(&self, run: RunId, what: &str) {
        let mut follower = self.engine.follow_run(run, 0).await.unwrap();
        loop {
            let events = within(follower.next_events()).await.unwrap().expect("the run ended before");
            if events.iter().any(|event| event.event.contains(what)) {
                return;
            }
        }
    }
}

#[tokio::test]
async fn questions_are_declined_when_only_answers_are_waited_for() {
    let script = Value::from(agent());
    let more = format!(
        "[agents.asking]\ndriver = \"claude\"\ncommand = [\"sh\", \"-c\", {script}, \"agent\"]\n\
         [workspaces.asking]\nagent = \"asking\"\n"
    );
    let scene = Scene::new(&[], &more).await;
    let asking = scene.chat("ask").await;
    scene.until_told(asking.id, r#""type":"tool-approval-request""#).await;
    // Another tool is running: the run may still continue by itself.
    let early = scene.chat("early").await;
    assert_eq!(scene.questions(asking.id).await[0].state, PermissionState::Pending);
    std::fs::write(scene.dir.path().join("go"), "").unwrap();
    scene.until_told(asking.id, r#""type":"tool-output-available","toolCallId":"working""#).await;
    let late = scene.chat("late").await;
    let (asking, early, late) =
        (scene.settled(asking.id).await, scene.settled(early.id).await, scene.settled(late.id).await);
    assert_eq!((asking.status, early.status, late.status), (Status::Completed, Status::Completed, Status::Completed));
    assert!(late.first_seq < early.first_seq, "what declines goes next");
    // Including later questions, which the sender of the new message had not seen.
    for question in scene.questions(asking.id).await {
        assert_eq!(question.state, PermissionState::Denied);
        assert_eq!(question.reason.as_deref(), Some("declined: a new message was sent"));
    }
    assert_eq!(scene.questions(asking.id).await.len(), 2);
}
