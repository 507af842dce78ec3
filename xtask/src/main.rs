//! `cargo xtask prepare [--check]`: regenerates (or verifies) `sqlx-data/` from `migrations/`. Needs no server and no
//! other tool.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, exit};
use std::{fs, time::SystemTime};

use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};

// Only the migrator: it contains no checked query, so it compiles while query data is stale or missing.
#[path = "../../src/store/migrate.rs"]
#[allow(dead_code, reason = "the store reads, too, what was applied to a file")]
mod migrate;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The query data in a folder: file name → content.
fn query_data(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".json")) {
            files.insert(name.to_owned(), fs::read_to_string(&path)?);
        }
    }
    Ok(files)
}

/// Expands every query macro against a freshly migrated database.
async fn prepare(root: &Path, check: bool) -> Result<()> {
    let work = root.join("target/xtask");
    let fresh = work.join("sqlx-data");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir_all(&fresh)?;
    let database = work.join("schema.db");
    if database.exists() {
        fs::remove_file(&database)?;
    }
    let mut conn = SqliteConnectOptions::new().filename(&database).create_if_missing(true).connect().await?;
    let migrations = refinery::load_sql_migrations(root.join("migrations"))?;
    migrate::migrate(&mut conn, &refinery::Runner::new(&migrations)).await?;
    conn.close().await?;

    // cargo expands the macros again only if a file has changed.
    #[expect(clippy::disallowed_methods, reason = "the time of a file, not of the engine")]
    let now = SystemTime::now();
    fs::File::options().append(true).open(root.join("src/lib.rs"))?.set_modified(now)?;
    let checked = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["check", "--quiet", "--package", "mainstay", "--lib"])
        .env("SQLX_OFFLINE", "false")
        .env("SQLX_OFFLINE_DIR", &fresh)
        .env("DATABASE_URL", format!("sqlite://{}", database.display()))
        .status()?;
    if !checked.success() {
        exit(1)
    }
    let committed = root.join("sqlx-data");
    let (new, old) = (query_data(&fresh)?, query_data(&committed)?);
    if check {
        if new != old {
            eprintln!("sqlx-data/ is stale: run `cargo xtask prepare` and commit what it writes");
            exit(1)
        }
    } else {
        for name in old.keys() {
            fs::remove_file(committed.join(name))?;
        }
        for (name, text) in &new {
            fs::write(committed.join(name), text)?;
        }
    }
    println!("{} queries", new.len());
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let check = match std::env::args().skip(1).collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["prepare"] => false,
        ["prepare", "--check"] => true,
        _ => {
            eprintln!("usage: cargo xtask prepare [--check]");
            exit(2)
        }
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("xtask has no parent folder")?;
    prepare(root, check).await
}
