//! Turns that follow their prompts, for tests: `say WORDS`, `wait`, `hang`, `crash`, and so on, below.
//!
//! Always: output is queued in memory, so that an agent whose output is not read still receives a cancel.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

use super::{Client, Output, Prompt, Traits, Turns, serve, text_of, to_stdout};

/// Poll interval for a file that a test creates.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Runs as an agent that follows its prompts, until its stdin is closed. Its traits are in the environment: `STUB_CAN` has
/// words of [`Traits::words`], `STUB_STORE` and `STUB_LOG` name files.
///
/// # Errors
/// If its environment or a prompt is invalid.
pub fn run() -> anyhow::Result<()> {
    let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is needed"));
    let traits = Traits {
        words: std::env::var("STUB_CAN").unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        store: Some(variable("STUB_STORE")?.into()),
        log: Some(variable("STUB_LOG")?.into()),
        read_back: "told again".to_owned(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut script = Script::default();
    let output = queued_stdout(script.unwritten.clone());
    LocalSet::new().block_on(&runtime, serve(traits, &mut script, output))
}

/// Writes to stdout from a thread of its own, which ends with the process. Counts unwritten texts.
fn queued_stdout(unwritten: Arc<AtomicUsize>) -> Output {
    let (sender, texts) = mpsc::channel::<String>();
    let left = unwritten.clone();
    std::thread::spawn(move || {
        texts.into_iter().try_for_each(|text| {
            to_stdout(&text)?;
            left.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, io::Error>(())
        })
    });
    Rc::new(move |text: &str| -> io::Result<()> {
        unwritten.fetch_add(1, Ordering::SeqCst);
        sender.send(text.to_owned()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    })
}

/// State that all turns share.
#[derive(Clone, Default)]
struct Script {
    /// Whether the turn of a session is cancelled.
    cancelled: Rc<RefCell<HashMap<String, watch::Sender<bool>>>>,
    /// Open requests to the client, by id as JSON.
    asked: Rc<RefCell<HashMap<String, oneshot::Sender<Value>>>>,
    evicted: Rc<RefCell<HashSet<String>>>,
    failed: Rc<RefCell<Option<anyhow::Error>>>,
    unwritten: Arc<AtomicUsize>,
}

impl Turns for Script {
    fn begin(&mut self, client: &Client, prompt: Prompt, past: &mut Vec<String>) -> anyhow::Result<()> {
        let Prompt { id, session, params } = prompt;
        if self.evicted.borrow().contains(&session) {
            let data = json!({"details": format!("Session not found: {session}")});
            return Ok(client.refuse(&id, json!({"code": -32603, "message": "Internal error", "data": data}))?);
        }
        let text = text_of(&params)?.to_owned();
        let before = past.join(" | ");
        past.push(text.clone());
        let (sender, cancelled) = watch::channel(false);
        self.cancelled.borrow_mut().insert(session.clone(), sender);
        let turn = Turn { script: self.clone(), client: client.clone(), id, session, cancelled };
        spawn_local(async move {
            let failed = turn.script.failed.clone();
            if let Err(error) = turn.run(&text, &before, &params).await {
                // `go_on` reports it.
                *failed.borrow_mut() = Some(error);
            }
        });
        Ok(())
    }

    fn cancel(&mut self, session: &str) -> anyhow::Result<()> {
        if let Some(cancelled) = self.cancelled.borrow().get(session) {
            cancelled.send_replace(true);
        }
        Ok(())
    }

    fn answered(&mut self, answer: &Value) -> anyhow::Result<()> {
        if let Some(asked) = self.asked.borrow_mut().remove(&answer["id"].to_string()) {
            let _ = asked.send(answer.clone());
        }
        Ok(())
    }

    fn reopened(&mut self, session: &str) {
        self.evicted.borrow_mut().remove(session);
    }

    async fn go_on(&mut self, _: &Client) -> anyhow::Result<()> {
        sleep(POLL_INTERVAL).await;
        self.failed.borrow_mut().take().map_or(Ok(()), Err)
    }
}

/// A running turn.
struct Turn {
    script: Script,
    client: Client,
    id: Value,
    session: String,
    cancelled: watch::Receiver<bool>,
}

impl Turn {
    async fn run(mut self, text: &str, past: &str, params: &Value) -> anyhow::Result<()> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut stop = "end_turn";
        match word {
            "say" => self.say(rest)?,
            "blocks" => {
                let blocks = params["prompt"].as_array().map(Vec::as_slice).unwrap_or_default();
                self.say(&sorted(blocks.iter().skip(1).cloned().collect()))?;
            }
            "history" => self.say(past)?,
            "wait" => {
                self.say("waiting")?;
                self.cancel().await;
                self.say("stopping")?;
                stop = "cancelled";
            }
            // Waits until a second turn has begun.
            "meet" => {
                let (own, other) = two(rest)?;
                touch(own)?;
                exists(other).await;
                self.say("met")?;
            }
            // While two turns run: lines that name one of them, and one that names none.
            "meet-badly" => {
                let (own, other) = two(rest)?;
                touch(own)?;
                exists(other).await;
                self.say(&"x".repeat(3_000_000))?;
                self.client.write("no JSON")?;
                touch(&format!("{own}-done"))?;
                exists(&format!("{other}-done")).await;
                self.say("met")?;
            }
            "flood" => {
                self.say("flooding")?;
                self.say(&"x".repeat(1_000_000))?;
                self.cancel().await;
                stop = "cancelled";
            }
            "hang" => return self.say("hanging"),
            // Says the first argument unless it is `-`, and responds with the second, which is JSON.
            "answer" => {
                let (said, answer) = two(rest)?;
                if said != "-" {
                    self.say(said)?;
                }
                return Ok(self.client.answer(&self.id, serde_json::from_str(answer)?)?);
            }
            "crash" => {
                self.say("crashing")?;
                self.leave(Some("out of luck"), 3).await;
            }
            "bye" => {
                self.say("bye")?;
                self.client.answer(&self.id, json!({"stopReason": stop}))?;
                self.leave(None, 0).await;
            }
            "big" => self.say(&"x".repeat(rest.parse()?))?,
            "garbage" => self.garbage()?,
            "permission" => {
                let answer = self.permission(&self.session, &serde_json::from_str(rest)?, 1).await?;
                self.say(&told(&answer))?;
                stop = if *self.cancelled.borrow() { "cancelled" } else { stop };
            }
            "permissions" => {
                let [first, second] = [json!(0), json!(1)];
                let (first, second) =
                    tokio::join!(self.permission(&self.session, &first, 0), self.permission(&self.session, &second, 1));
                first.and(second)?;
                stop = "cancelled";
            }
            "ask" => {
                let (method, mut params): (String, Value) = serde_json::from_str(rest)?;
                params["sessionId"] = self.session.as_str().into();
                let answer = self.ask(&json!("a"), &method, params).await?;
                self.say(&told(&answer))?;
            }
            "terminal" => self.terminal(rest).await?,
            // A tool that outlives the turn.
            "forget" => {
                let mut tool = Command::new("setsid");
                let tool = tool.args(["tail", "-f", "/dev/null"]).stdin(Stdio::null()).spawn()?;
                self.say(&format!("tool {}.", tool.id()))?;
                self.cancel().await;
                stop = "cancelled";
            }
            "late" => {
                self.say_in("m1", "in time")?;
                self.call("tool_call", json!({"title": "look", "status": "in_progress"}))?;
                self.client.answer(&self.id, json!({"stopReason": stop}))?;
                let seen = json!([{"type": "content", "content": {"type": "text", "text": "seen"}}]);
                self.call("tool_call_update", json!({"status": "completed", "content": seen}))?;
                return self.say_in("m1", ", and late");
            }
            // Once the file exists, which may be during the next turn, or between turns.
            "later" => {
                self.say_in("m1", "in time")?;
                self.client.answer(&self.id, json!({"stopReason": stop}))?;
                exists(rest).await;
                self.say_in("m1", "too late")?;
                self.client.update(&self.session, "session_info_update", json!({"title": "A late title"}))?;
                return touch(&format!("{rest}-said"));
            }
            "meanwhile" => {
                self.say_in("m2", "one ")?;
                touch(rest)?;
                exists(&format!("{rest}-said")).await;
                self.say_in("m2", "two")?;
            }
            "again" => {
                for piece in ["Hello ", "world! "].repeat(3) {
                    self.say_in("m1", piece)?;
                }
            }
            "evict" => {
                self.say("evicting")?;
                self.script.evicted.borrow_mut().insert(self.session.clone());
            }
            "child" => {
                let answer = self.permission(&format!("child-of-{}", self.session), &json!(7), 1).await?;
                self.say(&told(&answer))?;
            }
            "same-id" => {
                let first = self.permission(&self.session, &json!(7), 1).await?;
                let second = self.permission(&self.session, &json!(7), 2).await?;
                self.say(&(told(&first) + &told(&second)))?;
            }
            "request" => {
                let answer = self.expect(&json!("odd"));
                self.client.write(&rest.replace("SESSION", &self.session))?;
                self.say(&told(&answer.await?))?;
            }
            "fail" => return Ok(self.client.refuse(&self.id, serde_json::from_str(rest)?)?),
            "switch" => self.client.update(&self.session, "current_mode_update", json!({"currentModeId": rest}))?,
            "cost" => {
                let cost = json!({"amount": rest.parse::<f64>()?, "currency": "USD"});
                self.client.update(&self.session, "usage_update", json!({"used": 1, "size": 2, "cost": cost}))?;
            }
            _ => {}
        }
        Ok(self.client.answer(&self.id, json!({"stopReason": stop}))?)
    }

    fn say(&self, text: &str) -> anyhow::Result<()> {
        Ok(self.client.say(&self.session, text)?)
    }

    fn say_in(&self, message: &str, text: &str) -> anyhow::Result<()> {
        let said = json!({"content": {"type": "text", "text": text}, "messageId": message});
        Ok(self.client.update(&self.session, "agent_message_chunk", said)?)
    }

    fn call(&self, kind: &str, mut fields: Value) -> anyhow::Result<()> {
        fields["toolCallId"] = "t".into();
        Ok(self.client.update(&self.session, kind, fields)?)
    }

    /// Waits until the turn is cancelled.
    async fn cancel(&mut self) {
        let _ = self.cancelled.wait_for(|cancelled| *cancelled).await;
    }

    /// Waits for the response to the request with this id. The response counts from this call on.
    fn expect(&self, id: &Value) -> impl Future<Output = anyhow::Result<Value>> + use<> {
        let (sender, answer) = oneshot::channel();
        self.script.asked.borrow_mut().insert(id.to_string(), sender);
        async move { answer.await.context("another request has the same id") }
    }

    /// Sends a request to the client, and waits for its response.
    async fn ask(&self, id: &Value, method: &str, params: Value) -> anyhow::Result<Value> {
        let answer = self.expect(id);
        self.client.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))?;
        answer.await
    }

    async fn permission(&self, session: &str, id: &Value, number: u32) -> anyhow::Result<Value> {
        let call = json!({"toolCallId": format!("c{number}"), "title": "touch a", "kind": "execute",
            "rawInput": {"command": "touch a"}});
        let option = |id: &str, name: &str, kind: &str| json!({"optionId": id, "name": name, "kind": kind});
        let options = [option("yes", "Yes", "allow_once"), option("no", "No", "reject_once")];
        let params = json!({"sessionId": session, "toolCall": call, "options": options});
        self.ask(id, "session/request_permission", params).await
    }

    async fn terminal(&self, command: &str) -> anyhow::Result<()> {
        let of_session = |mut params: Value| {
            params["sessionId"] = self.session.as_str().into();
            params
        };
        let create = of_session(json!({"command": "sh", "args": ["-c", command]}));
        let created = self.ask(&json!("t"), "terminal/create", create).await?;
        let terminal = of_session(json!({"terminalId": created["result"]["terminalId"]}));
        let exited = self.ask(&json!("u"), "terminal/wait_for_exit", terminal.clone()).await?;
        let output = self.ask(&json!("v"), "terminal/output", terminal).await?;
        self.say(&(told(&exited) + &told(&output)))
    }

    fn garbage(&self) -> anyhow::Result<()> {
        for line in ["no JSON", "", "  ", r#"{"cut"#, r#"{"level": "info"}"#, "[1]", r#"{"half": "\ud83d"#] {
            self.client.write(line)?;
        }
        let text = json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "nobody's"}});
        let notify = |session: Value, update: &Value| {
            let params = json!({"sessionId": session, "update": update});
            self.client.send(&json!({"jsonrpc": "2.0", "method": "session/update", "params": params}))
        };
        for wrong in [json!(5), Value::Null, json!(["a"])] {
            notify(wrong, &text)?;
        }
        notify(self.session.as_str().into(), &json!({"sessionUpdate": 5}))?;
        self.say("still here")
    }

    /// Exits once everything was written.
    async fn leave(&self, last_words: Option<&str>, code: i32) {
        // The writing thread may still hold a line.
        while self.script.unwritten.load(Ordering::SeqCst) > 0 {
            sleep(POLL_INTERVAL).await;
        }
        if let Some(words) = last_words {
            eprintln!("{words}");
        }
        std::process::exit(code)
    }
}

/// The client's response: its result, or the code of its error.
fn told(answer: &Value) -> String {
    let error = || json!({"error": answer["error"]["code"]});
    sorted(answer.get("result").cloned().unwrap_or_else(error))
}

fn sorted(mut value: Value) -> String {
    value.sort_all_objects();
    value.to_string()
}

fn two(words: &str) -> anyhow::Result<(&str, &str)> {
    words.split_once(' ').context("two words are needed")
}

fn touch(path: &str) -> anyhow::Result<()> {
    Ok(std::fs::write(path, "")?)
}

async fn exists(path: &str) {
    while !Path::new(path).exists() {
        sleep(POLL_INTERVAL).await;
    }
}
