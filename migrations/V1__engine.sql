-- The engine's schema. What design calls an invariant is written down here as a constraint, so that neither a bug nor a
-- second process can store an illegal state.
--
-- `key` is an integer that never leaves this file; `id` is the public text id. Times (`*_at`) are milliseconds since
-- 1970 UTC, durations (`*_ms`) milliseconds, payloads JSON text. Before SQLite 3.45 `json_valid(NULL)` is 0 and not NULL, so
-- a column that may be NULL says `x IS NULL OR json_valid(x)`: older shells check and restore these files too.

-- ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE slots (
    key        INTEGER NOT NULL PRIMARY KEY,
    id         TEXT    NOT NULL UNIQUE,                 -- chat-slot-<workspace>-<number>
    workspace  TEXT    NOT NULL,
    number     INTEGER NOT NULL CHECK (number >= 1),
    enabled    INTEGER NOT NULL DEFAULT 1 CHECK (enabled IN (0, 1)), -- 0: the config has fewer slots now
    UNIQUE (workspace, number)
) STRICT;

CREATE TABLE sessions (
    key           INTEGER NOT NULL PRIMARY KEY,
    id            TEXT    NOT NULL UNIQUE CHECK (length(id) BETWEEN 1 AND 200 AND id NOT GLOB '*[^A-Za-z0-9._:-]*'),
    workspace     TEXT    NOT NULL,
    agent         TEXT    NOT NULL,
    title         TEXT,
    idle_ttl_ms   INTEGER NOT NULL CHECK (idle_ttl_ms > 0),
    agent_session TEXT,                                 -- the agent's own id of this conversation, for resuming it
    last_seq      INTEGER NOT NULL DEFAULT 0 CHECK (last_seq >= 0),
    slot_bound    INTEGER NOT NULL DEFAULT 0 CHECK (slot_bound IN (0, 1)), -- its agent is keyed by slot: never reclaimed
    waiting_since INTEGER,                              -- has a queued run and waits for a slot
    reclaims      INTEGER NOT NULL DEFAULT 0 CHECK (reclaims IN (0, 1)), -- the slot of an idle session will do
    close_when_idle INTEGER NOT NULL DEFAULT 0 CHECK (close_when_idle IN (0, 1)),
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX sessions_by_update ON sessions (updated_at, key);
CREATE INDEX sessions_waiting ON sessions (workspace, waiting_since, key) WHERE waiting_since IS NOT NULL;

-- Which session sits where. Rows are history: a session has at most one that is live (active or idle).
CREATE TABLE assignments (
    key            INTEGER NOT NULL PRIMARY KEY,
    session_key    INTEGER NOT NULL REFERENCES sessions (key),
    workspace      TEXT    NOT NULL,
    slot_key       INTEGER REFERENCES slots (key),      -- NULL: shares the workspace's resident agent
    state          TEXT    NOT NULL CHECK (state IN ('active', 'idle', 'expired', 'reclaimed', 'deleted')),
    idle_ttl_ms    INTEGER NOT NULL CHECK (idle_ttl_ms > 0),
    created_at     INTEGER NOT NULL,
    last_active_at INTEGER NOT NULL,
    ended_at       INTEGER,
    CHECK ((state IN ('active', 'idle')) = (ended_at IS NULL))
) STRICT;
CREATE UNIQUE INDEX one_live_assignment_per_session ON assignments (session_key) WHERE state IN ('active', 'idle');
CREATE UNIQUE INDEX one_live_session_per_slot ON assignments (slot_key) WHERE state IN ('active', 'idle');
CREATE INDEX assignments_by_session ON assignments (session_key, key);
CREATE INDEX assignments_idle ON assignments (last_active_at) WHERE state = 'idle';
CREATE INDEX assignments_ended ON assignments (ended_at) WHERE ended_at IS NOT NULL;

-- One row for every process that may execute runs. A key is never given twice: a process that was removed while it slept
-- must not come back as another one.
CREATE TABLE workers (
    key            INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id             TEXT    NOT NULL UNIQUE,
    host           TEXT    NOT NULL,                    -- boot id and pid namespace: where `pid` means something
    hostname       TEXT    NOT NULL,
    pid            INTEGER NOT NULL,
    pid_started_at INTEGER NOT NULL,                    -- clock ticks since boot: tells a reused pid from the process
    capacity       INTEGER NOT NULL CHECK (capacity >= 0),
    version        TEXT    NOT NULL,
    started_at     INTEGER NOT NULL,
    heartbeat_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE messages (
    key           INTEGER NOT NULL PRIMARY KEY,
    session_key   INTEGER NOT NULL REFERENCES sessions (key),
    id            TEXT    NOT NULL CHECK (length(id) BETWEEN 1 AND 200 AND id NOT GLOB '*[^A-Za-z0-9._:-]*'),
    role          TEXT    NOT NULL CHECK (role IN ('user', 'assistant', 'system')),
    run_key       INTEGER REFERENCES runs (key),        -- the run that said it; NULL for what a person said
    parts         TEXT    NOT NULL CHECK (json_type(parts) = 'array'),
    metadata      TEXT    CHECK (metadata IS NULL OR json_valid(metadata)),
    position      INTEGER,                              -- seq of the first event of its turn; NULL while that is queued
    superseded_at INTEGER,                              -- replaced by an edit or a regeneration: kept, not shown
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    UNIQUE (session_key, id),
    CHECK (run_key IS NULL OR role = 'assistant')
) STRICT;
CREATE INDEX messages_in_order ON messages (session_key, position);
CREATE INDEX messages_of_run ON messages (run_key) WHERE run_key IS NOT NULL;

CREATE TABLE runs (
    key                 INTEGER NOT NULL PRIMARY KEY,
    id                  TEXT    NOT NULL UNIQUE CHECK (length(id) = 36),  -- UUIDv7
    session_key         INTEGER NOT NULL REFERENCES sessions (key),
    message_key         INTEGER NOT NULL REFERENCES messages (key),       -- the message that is answered
    response_id         TEXT    NOT NULL,                                 -- id of the message that answers
    workspace           TEXT    NOT NULL,
    agent               TEXT    NOT NULL,
    slot_key            INTEGER REFERENCES slots (key),  -- where it ran; NULL: the shared resident agent, or not begun
    status              TEXT    NOT NULL CHECK (status IN
                            ('queued', 'running', 'completed', 'failed', 'cancelled', 'timed_out', 'interrupted')),
    priority            INTEGER NOT NULL DEFAULT 0 CHECK (priority BETWEEN -1000 AND 1000),
    front               INTEGER NOT NULL DEFAULT 0 CHECK (front >= 0), -- goes next, whatever its priority: the highest first
    not_before          INTEGER,
    timeout_ms          INTEGER CHECK (timeout_ms > 0),
    ready               INTEGER NOT NULL DEFAULT 0 CHECK (ready IN (0, 1)), -- first in the queue of a session that could go on
    queued_at           INTEGER NOT NULL,
    claimed_at          INTEGER,
    settled_at          INTEGER,
    cancel_requested_at INTEGER,
    lease_worker        INTEGER REFERENCES workers (key),
    lease_token         INTEGER NOT NULL DEFAULT 0,      -- fencing: counts the grants; a writer must name the newest
    lease_expires_at    INTEGER,
    attempts            INTEGER NOT NULL DEFAULT 0,      -- how often it was claimed
    pid                 INTEGER,                         -- the agent process, on the host of the worker
    pid_started_at      INTEGER,
    source_offset       INTEGER NOT NULL DEFAULT 0,      -- bytes of the agent's output that have become events
    first_seq           INTEGER,                         -- its span in the session's log
    last_seq            INTEGER,
    said                INTEGER NOT NULL DEFAULT 0 CHECK (said IN (0, 1)), -- any chunk that is neither start nor transient
    cause               TEXT,                            -- why it ended, one word; docs/sql.md lists them
    error               TEXT,                            -- for people
    exit_code           INTEGER,
    exit_signal         INTEGER,
    stderr              TEXT,                            -- head and tail of what the agent wrote there
    malformed_lines     INTEGER NOT NULL DEFAULT 0,
    malformed_sample    TEXT,
    resumes             INTEGER REFERENCES runs (key),   -- the interrupted run that this one goes on from
    CHECK ((status = 'running') = (lease_worker IS NOT NULL)),
    CHECK ((status = 'running') = (lease_expires_at IS NOT NULL)),
    CHECK ((status IN ('queued', 'running')) = (settled_at IS NULL)),
    CHECK (status <> 'running' OR (claimed_at IS NOT NULL AND first_seq IS NOT NULL)),
    CHECK ((first_seq IS NULL) = (last_seq IS NULL)),
    CHECK (first_seq IS NULL OR (first_seq >= 1 AND last_seq >= first_seq)),
    CHECK (ready = 0 OR status = 'queued'),
    CHECK (said = 0 OR status <> 'queued'),              -- what has spoken is never run again
    CHECK (settled_at IS NULL OR cause IS NOT NULL)
) STRICT;
CREATE UNIQUE INDEX one_running_run_per_session ON runs (session_key) WHERE status = 'running';
CREATE UNIQUE INDEX one_running_run_per_slot ON runs (slot_key) WHERE status = 'running';
CREATE UNIQUE INDEX one_running_run_per_shared_agent ON runs (workspace) WHERE status = 'running' AND slot_key IS NULL;
CREATE UNIQUE INDEX one_ready_run_per_session ON runs (session_key) WHERE ready = 1;
CREATE INDEX runs_ready ON runs (priority DESC, key) WHERE ready = 1;
CREATE INDEX runs_queued ON runs (session_key, (first_seq IS NULL), front DESC, priority DESC, key) WHERE status = 'queued';
CREATE INDEX runs_running ON runs (agent) WHERE status = 'running';
CREATE INDEX runs_leased ON runs (lease_worker) WHERE lease_worker IS NOT NULL;
CREATE INDEX runs_unwritten ON runs (session_key) WHERE settled_at IS NOT NULL AND first_seq IS NULL;
CREATE INDEX runs_by_session ON runs (session_key, key);
CREATE INDEX runs_by_message ON runs (message_key, key);

-- The log. Clustered by its cursor, so that a replay reads neighbours. No foreign keys and no CHECK on the payload: they
-- cost a third of the append rate; both keys come from the guarded run row and the payload from the JSON parser.
CREATE TABLE events (
    session_key INTEGER NOT NULL,
    seq         INTEGER NOT NULL CHECK (seq >= 1),
    run_key     INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    event       TEXT    NOT NULL,                       -- one AI SDK UI message chunk
    PRIMARY KEY (session_key, seq)
) STRICT, WITHOUT ROWID;

-- ── what is always true of them ─────────────────────────────────────────────────────────────────────────────────────

CREATE TRIGGER events_are_append_only BEFORE UPDATE ON events BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;

-- Checked once a batch, which is why it hangs on the counter and not on the rows.
CREATE TRIGGER seq_has_no_gap BEFORE UPDATE OF last_seq ON sessions WHEN NEW.last_seq <> OLD.last_seq BEGIN
    SELECT RAISE(ABORT, 'seq would have a gap') WHERE NEW.last_seq - OLD.last_seq <>
        (SELECT count(*) FROM events WHERE session_key = NEW.key AND seq > OLD.last_seq AND seq <= NEW.last_seq);
END;

CREATE TRIGGER settled_is_final BEFORE UPDATE ON runs WHEN OLD.settled_at IS NOT NULL BEGIN
    SELECT RAISE(ABORT, 'a settled run does not change')
        WHERE NEW.status <> OLD.status OR NEW.settled_at IS NOT OLD.settled_at
           -- A run that was cancelled in the queue gets its span once the run before it has ended.
           OR (OLD.first_seq IS NOT NULL AND (NEW.first_seq IS NOT OLD.first_seq OR NEW.last_seq IS NOT OLD.last_seq));
END;

CREATE TRIGGER cancel_is_not_withdrawn BEFORE UPDATE OF cancel_requested_at ON runs
    WHEN OLD.cancel_requested_at IS NOT NULL AND NEW.cancel_requested_at IS NOT OLD.cancel_requested_at BEGIN
    SELECT RAISE(ABORT, 'a cancel request is not withdrawn');
END;

CREATE TRIGGER busy_never_expires BEFORE UPDATE OF state ON assignments WHEN NEW.state IN ('expired', 'reclaimed', 'deleted') BEGIN
    SELECT RAISE(ABORT, 'the session is busy')
        WHERE EXISTS (SELECT 1 FROM runs WHERE session_key = NEW.session_key AND status = 'queued')
           OR EXISTS (SELECT 1 FROM runs WHERE session_key = NEW.session_key AND status = 'running');
END;

-- ── what follows from a change, in the same transaction, whoever makes it ───────────────────────────────────────────
-- Conditions repeat the words of the partial indexes ("status = 'queued'", "state IN ('active', 'idle')"), so that these
-- answer them; otherwise the whole history of the session is read.

-- A run's span grows: its first event is `start`, and the session's cursor moves with it.
CREATE TRIGGER run_span_grows AFTER UPDATE OF last_seq ON runs WHEN NEW.last_seq IS NOT OLD.last_seq BEGIN
    INSERT INTO events (session_key, seq, run_key, at, event)
        SELECT NEW.session_key, NEW.first_seq, NEW.key, coalesce(NEW.settled_at, NEW.claimed_at),
               json_object('type', 'start', 'messageId', NEW.response_id,
                           'messageMetadata', json_object('run_id', NEW.id, 'session_id', s.id))
        FROM sessions s WHERE s.key = NEW.session_key AND OLD.first_seq IS NULL;
    UPDATE messages SET position = NEW.first_seq WHERE key = NEW.message_key AND OLD.first_seq IS NULL;
    UPDATE sessions SET last_seq = NEW.last_seq WHERE key = NEW.session_key;
END;

-- The head of a session's queue is ready when the session runs nothing and has its place. A run that was begun and put
-- back comes first, so that its span stays in one piece.
CREATE TRIGGER queue_head_after_enqueue AFTER INSERT ON runs WHEN NEW.status = 'queued' BEGIN
    UPDATE runs SET ready = 0 WHERE session_key = NEW.session_key AND ready = 1 AND first_seq IS NULL
        AND (front, priority) < (NEW.front, NEW.priority);
    UPDATE runs SET ready = 1 WHERE key = NEW.key
        AND NOT EXISTS (SELECT 1 FROM runs WHERE session_key = NEW.session_key AND (ready = 1 OR status = 'running'))
        AND key = (SELECT key FROM runs WHERE session_key = NEW.session_key AND status = 'queued'
                   ORDER BY (first_seq IS NULL), front DESC, priority DESC, key LIMIT 1)
        AND EXISTS (SELECT 1 FROM assignments WHERE session_key = NEW.session_key AND state IN ('active', 'idle'));
    UPDATE assignments SET state = 'active', last_active_at = NEW.queued_at
        WHERE session_key = NEW.session_key AND state IN ('active', 'idle');
    -- A message opens a session that was to be closed, other than a run that resumes an interrupted one.
    UPDATE sessions SET updated_at = NEW.queued_at, close_when_idle = iif(NEW.resumes IS NULL, 0, close_when_idle)
        WHERE key = NEW.session_key;
END;

CREATE TRIGGER place_after_assignment AFTER INSERT ON assignments WHEN NEW.state IN ('active', 'idle') BEGIN
    UPDATE sessions SET waiting_since = NULL WHERE key = NEW.session_key AND waiting_since IS NOT NULL;
    UPDATE runs SET ready = 1 WHERE key = (SELECT key FROM runs WHERE session_key = NEW.session_key AND status = 'queued'
            ORDER BY (first_seq IS NULL), front DESC, priority DESC, key LIMIT 1)
        AND NOT EXISTS (SELECT 1 FROM runs WHERE session_key = NEW.session_key AND (ready = 1 OR status = 'running'));
END;

CREATE TRIGGER place_after_claim AFTER UPDATE OF status ON runs WHEN NEW.status = 'running' AND OLD.status <> 'running' BEGIN
    UPDATE assignments SET state = 'active', last_active_at = NEW.claimed_at
        WHERE session_key = NEW.session_key AND state IN ('active', 'idle');
    UPDATE sessions SET updated_at = NEW.claimed_at WHERE key = NEW.session_key;
END;

CREATE TRIGGER next_after_settle AFTER UPDATE OF status ON runs
    WHEN NEW.settled_at IS NOT NULL AND OLD.settled_at IS NULL BEGIN
    UPDATE runs SET ready = 1 WHERE key = (SELECT key FROM runs WHERE session_key = NEW.session_key AND status = 'queued'
            ORDER BY (first_seq IS NULL), front DESC, priority DESC, key LIMIT 1)
        AND NOT EXISTS (SELECT 1 FROM runs WHERE session_key = NEW.session_key AND (ready = 1 OR status = 'running'))
        AND EXISTS (SELECT 1 FROM assignments WHERE session_key = NEW.session_key AND state IN ('active', 'idle'));
    UPDATE sessions SET updated_at = NEW.settled_at,
        waiting_since = CASE WHEN EXISTS (SELECT 1 FROM runs WHERE session_key = NEW.session_key AND status = 'queued')
                        THEN waiting_since END
        WHERE key = NEW.session_key;
    UPDATE assignments SET last_active_at = NEW.settled_at, state = 'idle'
        WHERE session_key = NEW.session_key AND state IN ('active', 'idle') AND state = 'active'
          AND NOT EXISTS (SELECT 1 FROM runs WHERE session_key = NEW.session_key AND status = 'queued')
          AND NOT EXISTS (SELECT 1 FROM runs WHERE session_key = NEW.session_key AND status = 'running');
    UPDATE assignments SET state = 'deleted', ended_at = NEW.settled_at
        WHERE session_key = NEW.session_key AND state IN ('active', 'idle') AND state = 'idle'
          AND (SELECT close_when_idle FROM sessions WHERE key = NEW.session_key) = 1;
END;

-- With when_full = "reclaim", a slot whose session turns idle goes to a session that waits. A session that is to be closed
-- frees its slot by itself.
CREATE TRIGGER idle_slot_is_reclaimed AFTER UPDATE OF state ON assignments
    WHEN NEW.state = 'idle' AND NEW.slot_key IS NOT NULL BEGIN
    UPDATE assignments SET state = 'reclaimed', ended_at = NEW.last_active_at WHERE key = NEW.key
        AND EXISTS (SELECT 1 FROM sessions WHERE workspace = NEW.workspace AND waiting_since IS NOT NULL AND reclaims = 1)
        AND (SELECT slot_bound = 0 AND close_when_idle = 0 FROM sessions WHERE key = NEW.session_key)
        AND (SELECT enabled FROM slots WHERE key = NEW.slot_key);
END;

-- A freed slot goes to the session that has waited longest; a reclaimed one to the longest waiting that reclaims.
CREATE TRIGGER hand_over_slot AFTER UPDATE OF state ON assignments
    WHEN NEW.ended_at IS NOT NULL AND OLD.ended_at IS NULL AND NEW.slot_key IS NOT NULL BEGIN
    INSERT INTO assignments (session_key, workspace, slot_key, state, idle_ttl_ms, created_at, last_active_at)
        SELECT s.key, s.workspace, NEW.slot_key, 'active', s.idle_ttl_ms, NEW.ended_at, NEW.ended_at
        FROM sessions s JOIN slots p ON p.key = NEW.slot_key AND p.enabled = 1
        WHERE s.workspace = NEW.workspace AND s.waiting_since IS NOT NULL AND (NEW.state <> 'reclaimed' OR s.reclaims = 1)
        ORDER BY s.waiting_since, s.key LIMIT 1;
END;

-- What a worker may claim now, apart from what it asks for itself: the heads of queues whose place nobody is using.
CREATE VIEW claimable_runs AS
    SELECT r.key, r.session_key, r.priority, r.workspace, r.agent, r.not_before, a.slot_key,
        (SELECT count(*) FROM runs b WHERE b.status = 'running' AND b.agent = r.agent) AS agent_running
    FROM runs r
    JOIN assignments a ON a.session_key = r.session_key AND a.state IN ('active', 'idle')
    WHERE r.ready = 1
      AND NOT EXISTS (SELECT 1 FROM runs x WHERE x.status = 'running' AND x.slot_key = a.slot_key)
      AND NOT (a.slot_key IS NULL AND EXISTS (SELECT 1 FROM runs x WHERE x.status = 'running' AND x.slot_key IS NULL
                                              AND x.workspace = r.workspace));

-- ── the public face: names instead of keys, RFC 3339 times ──────────────────────────────────────────────────────────

CREATE VIEW v_sessions AS
    SELECT s.id, s.workspace, s.agent, s.title,
        CASE WHEN EXISTS (SELECT 1 FROM runs r WHERE r.session_key = s.key AND r.status = 'running') THEN 'streaming'
             WHEN q.key IS NULL THEN 'idle'
             WHEN q.not_before > (julianday('now') - 2440587.5) * 86400000 THEN 'parked' ELSE 'queued' END AS execution,
        a.state AS assignment, p.id AS slot, s.last_seq, s.idle_ttl_ms, s.agent_session,
        (SELECT count(*) FROM messages m WHERE m.session_key = s.key AND m.superseded_at IS NULL) AS messages,
        (SELECT count(*) FROM runs r WHERE r.session_key = s.key) AS runs,
        strftime('%Y-%m-%dT%H:%M:%fZ', s.created_at / 1000.0, 'unixepoch') AS created_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', s.updated_at / 1000.0, 'unixepoch') AS updated_at
    FROM sessions s
    LEFT JOIN assignments a ON a.session_key = s.key AND a.state IN ('active', 'idle')
    LEFT JOIN slots p ON p.key = a.slot_key
    LEFT JOIN runs q ON q.key = (SELECT key FROM runs WHERE session_key = s.key AND status = 'queued'
        ORDER BY (first_seq IS NULL), front DESC, priority DESC, key LIMIT 1);

CREATE VIEW v_runs AS
    SELECT r.id, s.id AS session_id, m.id AS message_id, r.response_id, r.workspace, r.agent, p.id AS slot, r.status,
        r.cause, r.error, r.priority, r.attempts, w.id AS worker, r.pid, r.exit_code, r.exit_signal,
        r.first_seq, r.last_seq, r.malformed_lines, r.malformed_sample, r.stderr,
        r.claimed_at - r.queued_at AS waited_ms, r.settled_at - r.claimed_at AS ran_ms,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.queued_at / 1000.0, 'unixepoch') AS queued_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.not_before / 1000.0, 'unixepoch') AS not_before,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.claimed_at / 1000.0, 'unixepoch') AS claimed_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.cancel_requested_at / 1000.0, 'unixepoch') AS cancel_requested_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.settled_at / 1000.0, 'unixepoch') AS settled_at
    FROM runs r
    JOIN sessions s ON s.key = r.session_key
    JOIN messages m ON m.key = r.message_key
    LEFT JOIN slots p ON p.key = r.slot_key
    LEFT JOIN workers w ON w.key = r.lease_worker;

CREATE VIEW v_events AS
    SELECT s.id AS session_id, e.seq, r.id AS run_id, e.event ->> '$.type' AS type, e.event,
        strftime('%Y-%m-%dT%H:%M:%fZ', e.at / 1000.0, 'unixepoch') AS at
    FROM events e JOIN sessions s ON s.key = e.session_key JOIN runs r ON r.key = e.run_key;

CREATE VIEW v_messages AS
    SELECT s.id AS session_id, m.id, m.role, r.id AS run_id, r.status AS run_status, m.position AS seq,
        (SELECT group_concat(p.value ->> '$.text', '') FROM json_each(m.parts) p
            WHERE p.value ->> '$.type' = 'text') AS text,
        m.parts, m.metadata,
        strftime('%Y-%m-%dT%H:%M:%fZ', m.created_at / 1000.0, 'unixepoch') AS created_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', m.updated_at / 1000.0, 'unixepoch') AS updated_at
    FROM messages m JOIN sessions s ON s.key = m.session_key LEFT JOIN runs r ON r.key = m.run_key
    WHERE m.superseded_at IS NULL;

CREATE VIEW v_slots AS
    SELECT p.id, p.workspace, p.number, p.enabled, coalesce(a.state, 'free') AS state, s.id AS session_id, r.id AS run_id,
        strftime('%Y-%m-%dT%H:%M:%fZ', a.last_active_at / 1000.0, 'unixepoch') AS last_active_at
    FROM slots p
    LEFT JOIN assignments a ON a.slot_key = p.key AND a.state IN ('active', 'idle')
    LEFT JOIN sessions s ON s.key = a.session_key
    LEFT JOIN runs r ON r.slot_key = p.key AND r.status = 'running';

CREATE VIEW v_workers AS
    SELECT w.id, w.hostname, w.pid, w.capacity, w.version,
        (SELECT count(*) FROM runs r WHERE r.lease_worker = w.key) AS running,
        strftime('%Y-%m-%dT%H:%M:%fZ', w.started_at / 1000.0, 'unixepoch') AS started_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', w.heartbeat_at / 1000.0, 'unixepoch') AS heartbeat_at
    FROM workers w;
