//! The schema of a file is that of this build, or the file is left alone.

use mainstay::config::Config;
use mainstay::engine::Engine;

#[tokio::test]
async fn a_file_of_an_earlier_build_is_refused_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mainstay.db");
    Engine::open(&path, Config::builtin(dir.path())).await.unwrap().close().await;
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch(
        "UPDATE refinery_schema_history SET checksum = '1' WHERE version = 1;
         INSERT INTO refinery_schema_history SELECT 4, 'later', applied_on, '4' FROM refinery_schema_history;
         PRAGMA user_version = 4",
    )
    .unwrap();
    drop(db);
    let before = std::fs::read(&path).unwrap();
    let error = Engine::open(&path, Config::builtin(dir.path())).await.unwrap_err().to_string();
    for said in ["mainstay.db cannot be used", "an earlier build", "mainstay messages", "another --db"] {
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
}
