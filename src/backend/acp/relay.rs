//! The relay of a turn to the bridge that holds the agent: the turn and answers in, what the agent says out.
//!
//! Always: SIGTERM cancels the turn, and the relay goes on until the bridge says that it ended. When the relay is killed,
//! its connection is gone, and the bridge cancels the turn.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::wire::{self, MAX_LINE_BYTES, Own, ToBridge};
use crate::backend::relay::RelayedTurn;
use crate::failure::ErrorClass;

type Input = BufReader<tokio::io::Stdin>;

/// Is the relay of one turn.
pub(in crate::backend) fn run() -> io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(relay())?;
    // Somebody may hold our stdin open, which is read in a thread of its own.
    runtime.shutdown_background();
    Ok(code)
}

async fn relay() -> io::Result<ExitCode> {
    let term = signal(SignalKind::terminate())?;
    let mut input = BufReader::new(tokio::io::stdin());
    let line = read_line(&mut input).await?.unwrap_or_default();
    let turn: RelayedTurn = serde_json::from_str(&line).map_err(io::Error::other)?;
    // Nothing was said: the turn may be tried on another live agent.
    let unreachable =
        |error: io::Error| io::Error::new(error.kind(), format!("the live agent cannot be reached: {error}"));
    let link = wire::connect(Path::new(&turn.endpoint)).await.map_err(unreachable)?;
    let (said, mut link) = link.into_split();
    let turn = format!("{}\n", wire::line(&ToBridge::Turn(Box::new(turn))));
    // That the bridge is gone shows where it is listened to.
    let _ = link.write_all(turn.as_bytes()).await;
    drop(turn);
    let end = tokio::select! {
        copied = copy_out(said) => copied?,
        never = pass_in(input, link, term) => match never {},
    };
    match end {
        Some(Own::Ended) => Ok(ExitCode::SUCCESS),
        Some(_) => Ok(ExitCode::FAILURE),
        None => say_lost("The live agent ended in the middle of the turn.").await,
    }
}

/// Copies out what the bridge says. Answers with its last line, when that is one of those that end a turn.
async fn copy_out(mut said: OwnedReadHalf) -> io::Result<Option<Own>> {
    let ends = [Own::Ended, Own::Left].map(|own| (format!("{}\n", wire::line(&own)), own));
    let longest = ends.iter().map(|(line, _)| line.len()).max().unwrap_or_default();
    let mut output = tokio::io::stdout();
    let mut piece = vec![0; 64 * 1024];
    let mut tail = Vec::new();
    loop {
        let read = said.read(&mut piece).await.unwrap_or(0);
        if read == 0 && tail.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the live agent ended before it said anything"));
        }
        if read == 0 {
            let end = ends.into_iter().find(|(line, _)| tail.ends_with(line.as_bytes()));
            return Ok(end.map(|(_, own)| own));
        }
        let piece = &piece[..read];
        output.write_all(piece).await?;
        output.flush().await?;
        tail.extend_from_slice(&piece[piece.len().saturating_sub(longest)..]);
        tail.drain(..tail.len().saturating_sub(longest));
    }
}

/// Passes answers on to the bridge, and that the turn is to end.
async fn pass_in(mut input: Input, mut link: OwnedWriteHalf, mut term: Signal) -> std::convert::Infallible {
    let mut open = true;
    loop {
        let line = tokio::select! {
            line = read_line(&mut input), if open => match line {
                // Answers come from us, but what is no answer goes nowhere.
                Ok(Some(line)) => match serde_json::from_str(&line) {
                    Ok(answer @ ToBridge::Answer(_)) => wire::line(&answer),
                    _ => continue,
                },
                Ok(None) | Err(_) => {
                    open = false;
                    continue;
                }
            },
            _ = term.recv() => wire::line(&ToBridge::Cancel),
        };
        // As above.
        let _ = link.write_all(format!("{line}\n").as_bytes()).await;
    }
}

async fn read_line(input: &mut Input) -> io::Result<Option<String>> {
    let mut line = String::new();
    let read = input.take(MAX_LINE_BYTES).read_line(&mut line).await?;
    Ok((read > 0).then_some(line))
}

async fn say_lost(message: &str) -> io::Result<ExitCode> {
    let line = format!("{}\n", wire::line(&Own::error(ErrorClass::Crashed, message)));
    let mut output = tokio::io::stdout();
    output.write_all(line.as_bytes()).await?;
    output.flush().await?;
    Ok(ExitCode::FAILURE)
}
