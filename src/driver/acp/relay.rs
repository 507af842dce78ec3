//! The relay of a turn to the bridge: the turn and answers in, the agent's output out.
//!
//! Always: SIGTERM cancels the turn, and the relay continues until the bridge reports its end. If the relay is killed,
//! its connection is closed, and the bridge cancels the turn.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::Signal;

use super::wire::{self, Own, ToBridge};
use crate::driver::relay::RelayedTurn;
use crate::driver::relay::pipes::{Input, Output};
use crate::failure::ErrorClass;

/// Runs as the relay of one turn.
///
/// # Errors
/// No turn arrives, the backend cannot be reached, or the output is not read.
pub(in crate::driver) async fn run(mut input: Input, mut output: Output, term: Signal) -> io::Result<ExitCode> {
    let turn: RelayedTurn = input.turn().await?;
    // Nothing was said yet, so the turn may be tried on another backend.
    let unreachable =
        |error: io::Error| io::Error::new(error.kind(), format!("the live agent cannot be reached: {error}"));
    let link = wire::connect(Path::new(&turn.endpoint)).await.map_err(unreachable)?;
    let (said, mut link) = link.into_split();
    let turn = format!("{}\n", wire::line(&ToBridge::Turn(Box::new(turn))));
    // A failed write needs no handling: the reading side notices a bridge that is gone.
    let _ = link.write_all(turn.as_bytes()).await;
    drop(turn);
    let end = tokio::select! {
        copied = copy_out(said, &mut output) => copied?,
        never = pass_in(input, link, term) => match never {},
    };
    if end.is_none() {
        let lost = Own::error(ErrorClass::Crashed, "The live agent ended in the middle of the turn.");
        output.say(&wire::line(&lost));
        output.write_all().await?;
    }
    Ok(if end == Some(Own::Ended) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Copies the bridge's output. Returns its last line, if that is one of those that end a turn.
async fn copy_out(mut said: OwnedReadHalf, output: &mut Output) -> io::Result<Option<Own>> {
    let ends = [Own::Ended, Own::Left].map(|own| (format!("{}\n", wire::line(&own)), own));
    let longest = ends.iter().map(|(line, _)| line.len()).max().unwrap_or_default();
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
        output.pass_on(piece);
        output.write_all().await?;
        tail.extend_from_slice(&piece[piece.len().saturating_sub(longest)..]);
        tail.drain(..tail.len().saturating_sub(longest));
    }
}

/// Passes answers and the cancellation to the bridge.
async fn pass_in(mut input: Input, mut link: OwnedWriteHalf, mut term: Signal) -> std::convert::Infallible {
    loop {
        let line = tokio::select! {
            // The engine sends only answers; any other line is dropped.
            line = input.next(), if input.is_open() => match line.map(|line| serde_json::from_str(&line)) {
                Some(Ok(answer @ ToBridge::Answer(_))) => wire::line(&answer),
                _ => continue,
            },
            _ = term.recv() => wire::line(&ToBridge::Cancel),
        };
        // As above.
        let _ = link.write_all(format!("{line}\n").as_bytes()).await;
    }
}
