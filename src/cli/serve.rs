//! `serve`: the daemon. HTTP, workers and the sweep in one process, until it is asked to stop.

use std::io::Write;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::exit::Exit;
use super::signals::{HandOverSignal, StopSignals};
use super::supervisor;
use crate::engine::Engine;
use crate::http;

pub(super) async fn run(engine: Engine) -> anyhow::Result<Exit> {
    tokio::select! {
        done = serve(engine.clone()) => done,
        never = supervisor::watch(engine) => match never {},
    }
}

async fn serve(engine: Engine) -> anyhow::Result<Exit> {
    let config = engine.config().clone();
    let listen = config.server.listen;
    let (mut signals, mut hand_over) = (StopSignals::new()?, HandOverSignal::new()?);
    let listener = TcpListener::bind(listen).await.with_context(|| format!("failed to listen on {listen}"))?;
    let address = listener.local_addr().context("failed to learn the address that we listen on")?;
    engine.start().await.context("failed to start executing runs")?;
    let stop = CancellationToken::new();
    let server = {
        let (engine, server, stop) = (engine.clone(), config.server.clone(), stop.clone());
        tokio::spawn(async move { http::serve(engine, &server, listener, stop).await })
    };
    let mut out = std::io::stdout();
    // Whoever started us may have gone: that is no reason to stop serving.
    let _ = writeln!(out, "listening on http://{address}").and_then(|()| out.flush());
    tracing::info!(%address, workers = config.engine.workers, "serving");
    supervisor::ready(&format!("serving on http://{address}, {} runs at once", config.engine.workers));

    tokio::select! {
        () = signals.next() => {
            tracing::info!(grace = ?config.engine.shutdown_grace, "stopping; a second signal ends running turns at once");
            supervisor::stopping(&config, "waiting for running turns to finish");
        }
        () = hand_over.next() => {
            tracing::info!("stopping; running turns are left to the next process");
            supervisor::stopping(&config, "leaving running turns to the next process");
            engine.hand_over();
        }
    }
    {
        // Readers are served until the last turn has ended: they get its last events.
        let drain = engine.drain(config.engine.shutdown_grace);
        tokio::pin!(drain);
        let mut asked_again = false;
        loop {
            tokio::select! {
                () = &mut drain => break,
                () = hand_over.next() => engine.hand_over(),
                () = signals.next() => {
                    if asked_again {
                        engine.kill_now();
                    }
                    engine.end_now();
                    asked_again = true;
                }
            }
        }
    }
    stop.cancel();
    server.await.context("the server ended abnormally")?.context("failed to serve")?;
    engine.close().await;
    tracing::info!("stopped");
    Ok(Exit::Done)
}
