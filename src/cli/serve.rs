//! `serve`: the daemon. HTTP, workers and the sweep in one process, until it is asked to stop.

use std::io::Write;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::exit::Exit;
use super::signals::{HandOverSignal, StopSignals};
use super::supervisor;
use crate::config::{Config, ServerConfig};
use crate::engine::{Engine, EngineError, StoreError, descriptors, token_file};
use crate::http::{self, Access};
use crate::telemetry::NOTICE;

/// How long a start waits for another process that keeps the database locked: a daemon may be started together with other
/// processes, and a long write, a copy or an upgrade takes less.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// Opens the database, as soon as it is not locked any more.
pub(super) async fn open(db: &Path, config: Config) -> Result<Engine, EngineError> {
    patiently(async || Engine::open(db, config.clone()).await).await
}

/// Retries while the database is locked: each attempt waits for the lock by itself, for the busy timeout.
async fn patiently<T>(mut attempt: impl AsyncFnMut() -> Result<T, EngineError>) -> Result<T, EngineError> {
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match attempt().await {
            Err(EngineError::Store(StoreError::Busy)) if Instant::now() < give_up => {
                tracing::warn!("the database is locked by another process; waiting");
            }
            done => return done,
        }
    }
}

/// Prints a line on stdout in a thread of its own: the daemon neither waits for a reader nor needs one.
fn announce(line: String) {
    let print = move || {
        let mut out = std::io::stdout();
        // The reader may have closed the pipe.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    };
    if let Err(error) = std::thread::Builder::new().name("stdout".into()).spawn(print) {
        tracing::warn!(%error, "failed to start the thread that prints the address");
    }
}

/// As many connections as leave the engine enough file descriptors.
fn max_connections(config: &Config) -> usize {
    let limit = descriptors::limit();
    let (wanted, most) = (config.server.max_connections, descriptors::max_connections(config, limit));
    if most < wanted {
        tracing::warn!(
            max_connections = wanted,
            served = most,
            limit,
            "fewer connections than max_connections: raise the hard limit of file descriptors (ulimit -Hn, LimitNOFILE=), or \
             lower max_connections"
        );
    }
    most
}

pub(super) async fn run(engine: Engine) -> anyhow::Result<Exit> {
    tokio::select! {
        done = serve(engine.clone()) => done,
        failure = engine.failed() => Err(failure.into()),
        never = supervisor::watch(engine.clone()) => match never {},
    }
}

/// Who has access; tells the operator how to get it.
async fn access(engine: &Engine) -> anyhow::Result<Access> {
    let (server, database) = (engine.config().server.clone(), engine.path().to_owned());
    let file = token_file(&database)?;
    let configured = tokio::task::spawn_blocking(move || Access::configured(&server, &database, &file));
    let access = configured.await?.context("failed to find out who may ask")?;
    match (&access, access.made_file()) {
        (Access::Open, _) => {
            tracing::warn!("auth = \"none\": every process of this machine may do everything here, agents included");
        }
        (_, Some(file)) => {
            let file = file.path().display();
            // Logged even by a daemon that is to log less: without the token no client can connect.
            tracing::info!(
                target: NOTICE,
                %file,
                "requests need the token in this file; `mainstay token show` prints it"
            );
        }
        (Access::Tokens(tokens), None) => tracing::info!(tokens = tokens.len(), "requests need a token of the config"),
    }
    Ok(access)
}

async fn serve(engine: Engine) -> anyhow::Result<Exit> {
    let config = engine.config().clone();
    let listen = config.server.listen;
    let (mut signals, mut hand_over) = (StopSignals::of_daemon()?, HandOverSignal::new()?);
    let access = access(&engine).await?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("failed to listen on {listen}"))?;
    let address = listener.local_addr().context("failed to learn the address that we listen on")?;
    patiently(|| engine.start()).await.context("failed to start executing runs")?;
    let stop = CancellationToken::new();
    let server = {
        let server = ServerConfig { max_connections: max_connections(&config), ..config.server.clone() };
        let (engine, stop) = (engine.clone(), stop.clone());
        tokio::spawn(async move { http::serve(engine, &server, access, listener, stop).await })
    };
    let mut server = pin!(server);
    announce(format!("listening on http://{address}"));
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
        ended = &mut server => {
            ended.context("the server ended abnormally")?.context("failed to serve")?;
            anyhow::bail!("the server ended without being asked to");
        }
    }
    {
        // Readers are served until the last turn has ended, so that they get its last events.
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
