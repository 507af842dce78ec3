-- Real agents: live ones that are kept warm, what they ask before they use a tool, what a turn used, and how a session
-- goes on in the agent's own memory.

-- ── warm backends ───────────────────────────────────────────────────────────────────────────────────────────────────

-- A live agent that several turns use. Rows are history: a key (agent, workspace and, unless it is shared, session) has at
-- most one that is not stopped.
CREATE TABLE backends (
    key            INTEGER NOT NULL PRIMARY KEY,
    id             TEXT    NOT NULL UNIQUE CHECK (length(id) = 36),  -- UUIDv7
    agent          TEXT    NOT NULL,
    workspace      TEXT    NOT NULL,
    session_key    INTEGER REFERENCES sessions (key),   -- NULL: shared by the sessions of the workspace
    state          TEXT    NOT NULL CHECK (state IN
                       ('stopped', 'starting', 'running', 'crashed', 'restarting', 'stopping')),
    reason         TEXT,                                -- why it is in this state, for people
    error_class    TEXT CHECK (error_class IN ('authentication', 'rate_limit', 'overloaded', 'context_too_long',
                       'agent_missing', 'protocol', 'crashed')), -- what kind of failure it was given up for
    worker_key     INTEGER REFERENCES workers (key),    -- who watches over it; NULL: whoever sweeps next
    generation     INTEGER NOT NULL DEFAULT 0,          -- counts its starts; an event of an older one is stale
    process_host   TEXT,                                -- boot id and pid namespace: where `pid` means something
    pid            INTEGER,                             -- the process that holds it
    pid_started_at INTEGER,
    host_secret    TEXT,                                -- what that process asks of whoever wants to go on with it
    endpoint       TEXT,                                -- where turns reach it
    close_when_idle INTEGER NOT NULL DEFAULT 0 CHECK (close_when_idle IN (0, 1)),
    restarts       TEXT    NOT NULL DEFAULT '[]' CHECK (json_type(restarts) = 'array'), -- times of the recent ones
    not_before     INTEGER,                             -- it is not started again before this
    healthy_at     INTEGER,                             -- when it last answered
    created_at     INTEGER NOT NULL,
    started_at     INTEGER,                             -- of this generation
    used_at        INTEGER NOT NULL,                    -- when a turn last began or ended on it
    stopped_at     INTEGER,
    CHECK ((state = 'stopped') = (stopped_at IS NOT NULL)),
    CHECK ((pid IS NULL) = (pid_started_at IS NULL) AND (pid IS NULL) = (process_host IS NULL))
) STRICT;
CREATE UNIQUE INDEX one_live_backend_per_key ON backends (agent, workspace, coalesce(session_key, 0))
    WHERE state <> 'stopped';
CREATE INDEX backends_live ON backends (used_at) WHERE state <> 'stopped';
CREATE INDEX backends_watched ON backends (worker_key) WHERE worker_key IS NOT NULL;
CREATE INDEX backends_by_place ON backends (agent, workspace, coalesce(session_key, 0), key);
CREATE INDEX backends_stopped ON backends (stopped_at) WHERE stopped_at IS NOT NULL;

ALTER TABLE runs ADD COLUMN backend_key INTEGER REFERENCES backends (key); -- the live agent that its turn is on
ALTER TABLE runs ADD COLUMN dir TEXT;                   -- where its turn works, from when its process is started
CREATE INDEX runs_on_backend ON runs (backend_key) WHERE backend_key IS NOT NULL AND status = 'running';

-- A turn takes a backend that runs, and a backend that has a turn is not asked to end: one of the two comes first.
CREATE TRIGGER turns_take_running_backends BEFORE UPDATE OF backend_key ON runs
    WHEN NEW.backend_key IS NOT NULL AND NEW.backend_key IS NOT OLD.backend_key BEGIN
    SELECT RAISE(ABORT, 'the backend does not run')
        WHERE NOT EXISTS (SELECT 1 FROM backends WHERE key = NEW.backend_key AND state = 'running');
END;
CREATE TRIGGER busy_backends_are_not_stopped BEFORE UPDATE OF state ON backends
    WHEN NEW.state = 'stopping' AND OLD.state = 'running' BEGIN
    SELECT RAISE(ABORT, 'the backend is busy')
        WHERE EXISTS (SELECT 1 FROM runs WHERE backend_key = NEW.key AND status = 'running');
END;
CREATE TRIGGER backends_end_with_their_session AFTER UPDATE OF state ON assignments
    WHEN NEW.ended_at IS NOT NULL AND OLD.ended_at IS NULL BEGIN
    UPDATE backends SET close_when_idle = 1 WHERE key IN
        (SELECT key FROM backends INDEXED BY backends_live WHERE state <> 'stopped' AND session_key = NEW.session_key);
END;
CREATE TRIGGER backend_is_used AFTER UPDATE OF status ON runs
    WHEN NEW.settled_at IS NOT NULL AND OLD.settled_at IS NULL AND NEW.backend_key IS NOT NULL BEGIN
    UPDATE backends SET used_at = NEW.settled_at WHERE key = NEW.backend_key;
END;

-- ── permissions ─────────────────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE permissions (
    key          INTEGER NOT NULL PRIMARY KEY,
    id           TEXT    NOT NULL UNIQUE CHECK (length(id) = 36), -- UUIDv7; the approvalId of the AI SDK
    run_key      INTEGER NOT NULL REFERENCES runs (key),
    request      TEXT    NOT NULL,                      -- by which the agent knows it
    tool_call    TEXT    NOT NULL,                      -- the toolCallId of the AI SDK
    tool         TEXT    NOT NULL,
    kind         TEXT    NOT NULL CHECK (kind IN ('read', 'edit', 'delete', 'move', 'search', 'execute', 'think', 'fetch',
                                                  'switch_mode', 'other')),
    title        TEXT    NOT NULL,
    input        TEXT    NOT NULL CHECK (json_valid(input)),
    options      TEXT    NOT NULL CHECK (json_type(options) = 'array'),
    state        TEXT    NOT NULL CHECK (state IN ('pending', 'allowed', 'denied', 'expired', 'cancelled')),
    option_id    TEXT,                                  -- the option that was chosen
    answered_by  TEXT,
    reason       TEXT,
    requested_at INTEGER NOT NULL,
    expires_at   INTEGER,
    answered_at  INTEGER,
    UNIQUE (run_key, request),
    CHECK ((state = 'pending') = (answered_at IS NULL)),
    CHECK (state <> 'allowed' OR option_id IS NOT NULL)
) STRICT;
CREATE INDEX permissions_pending ON permissions (run_key) WHERE state = 'pending';

CREATE TRIGGER the_first_answer_counts BEFORE UPDATE OF state, option_id ON permissions WHEN OLD.state <> 'pending' BEGIN
    SELECT RAISE(ABORT, 'the permission is decided');
END;
CREATE TRIGGER permissions_end_with_their_run AFTER UPDATE OF status ON runs
    WHEN NEW.settled_at IS NOT NULL AND OLD.settled_at IS NULL BEGIN
    UPDATE permissions SET state = 'cancelled', answered_at = NEW.settled_at WHERE run_key = NEW.key AND state = 'pending';
END;

-- ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────────────

-- The ids under which agents have known a session, newest last. The newest is the one to resume.
CREATE TABLE agent_sessions (
    key         INTEGER NOT NULL PRIMARY KEY,
    session_key INTEGER NOT NULL REFERENCES sessions (key),
    agent       TEXT    NOT NULL,
    id          TEXT    NOT NULL,
    origin      TEXT    NOT NULL CHECK (origin IN ('new', 'reused', 'resumed', 'loaded')), -- how the newest turn came by it
    run_key     INTEGER NOT NULL REFERENCES runs (key), -- the newest turn in it
    lost_in     INTEGER REFERENCES runs (key),          -- the turn that found it lost, and began a new one
    began_at    INTEGER NOT NULL,
    used_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX agent_sessions_in_order ON agent_sessions (session_key, key);
CREATE INDEX agent_sessions_of_run ON agent_sessions (run_key);
CREATE UNIQUE INDEX a_turn_gives_up_one_agent_session ON agent_sessions (lost_in) WHERE lost_in IS NOT NULL;

ALTER TABLE sessions ADD COLUMN options TEXT NOT NULL DEFAULT '{}' CHECK (json_type(options) = 'object');
ALTER TABLE sessions ADD COLUMN advertised TEXT CHECK (advertised IS NULL OR json_valid(advertised)); -- modes and options that its agent offers
ALTER TABLE sessions ADD COLUMN oneshot INTEGER NOT NULL DEFAULT 0 CHECK (oneshot IN (0, 1)); -- its agent forgets it after each turn
-- The session that it works for; an older one, so that there are no circles.
ALTER TABLE sessions ADD COLUMN spawned_by INTEGER REFERENCES sessions (key) CHECK (spawned_by < key);
ALTER TABLE sessions ADD COLUMN label TEXT;
-- Somebody gave it its title, which its agent does not change then.
ALTER TABLE sessions ADD COLUMN title_given INTEGER NOT NULL DEFAULT 0
    CHECK (title_given IN (0, 1) AND (title_given = 0 OR title IS NOT NULL));
CREATE INDEX sessions_spawned ON sessions (spawned_by) WHERE spawned_by IS NOT NULL;

CREATE TRIGGER children_keep_their_parent BEFORE UPDATE OF spawned_by ON sessions
    WHEN NEW.spawned_by IS NOT OLD.spawned_by BEGIN
    SELECT RAISE(ABORT, 'a session keeps its parent');
END;

-- The turn came to nothing in the new one as well, or was ended before it could: nobody knows that the old one is lost.
CREATE TRIGGER agent_session_is_kept AFTER UPDATE OF status ON runs
    WHEN NEW.settled_at IS NOT NULL AND OLD.settled_at IS NULL AND NEW.status <> 'completed' AND NEW.said = 0 BEGIN
    UPDATE sessions SET agent_session = (SELECT id FROM agent_sessions WHERE lost_in = NEW.key)
        WHERE key = NEW.session_key AND EXISTS (SELECT 1 FROM agent_sessions WHERE lost_in = NEW.key);
    UPDATE agent_sessions SET lost_in = NULL WHERE lost_in = NEW.key;
END;

-- ── what a turn reports ─────────────────────────────────────────────────────────────────────────────────────────────

ALTER TABLE runs ADD COLUMN input_tokens INTEGER;
ALTER TABLE runs ADD COLUMN output_tokens INTEGER;
ALTER TABLE runs ADD COLUMN cache_read_tokens INTEGER;
ALTER TABLE runs ADD COLUMN cache_write_tokens INTEGER;
ALTER TABLE runs ADD COLUMN reasoning_tokens INTEGER;
ALTER TABLE runs ADD COLUMN cost_usd REAL;
ALTER TABLE runs ADD COLUMN context_tokens INTEGER;
ALTER TABLE runs ADD COLUMN context_size INTEGER;
ALTER TABLE runs ADD COLUMN error_class TEXT CHECK (error_class IN ('authentication', 'rate_limit', 'overloaded',
    'context_too_long', 'agent_missing', 'protocol', 'crashed'));
ALTER TABLE runs ADD COLUMN retry_at INTEGER;           -- when it makes sense to try again, if anybody said so
ALTER TABLE runs ADD COLUMN progress TEXT;              -- the tail of what it said, for whoever watches many
-- Answers how the last day went without reading the runs themselves, which may be wide.
CREATE INDEX runs_settled ON runs (settled_at, claimed_at, status, error_class) WHERE settled_at IS NOT NULL;

-- ── the public face ─────────────────────────────────────────────────────────────────────────────────────────────────

DROP VIEW v_sessions;
CREATE VIEW v_sessions AS
    SELECT s.id, s.workspace, s.agent, s.title, s.title_given,
        CASE WHEN EXISTS (SELECT 1 FROM runs r WHERE r.session_key = s.key AND r.status = 'running') THEN 'streaming'
             WHEN q.key IS NULL THEN 'idle'
             WHEN q.not_before > (julianday('now') - 2440587.5) * 86400000 THEN 'parked' ELSE 'queued' END AS execution,
        a.state AS assignment, p.id AS slot, s.last_seq, s.idle_ttl_ms, iif(s.oneshot, 'oneshot', 'persistent') AS mode,
        s.options, s.advertised, s.agent_session, o.id AS spawned_by, s.label,
        (SELECT count(*) FROM messages m WHERE m.session_key = s.key AND m.superseded_at IS NULL) AS messages,
        (SELECT count(*) FROM runs r WHERE r.session_key = s.key) AS runs,
        strftime('%Y-%m-%dT%H:%M:%fZ', s.created_at / 1000.0, 'unixepoch') AS created_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', s.updated_at / 1000.0, 'unixepoch') AS updated_at
    FROM sessions s
    LEFT JOIN sessions o ON o.key = s.spawned_by
    LEFT JOIN assignments a ON a.session_key = s.key AND a.state IN ('active', 'idle')
    LEFT JOIN slots p ON p.key = a.slot_key
    LEFT JOIN runs q ON q.key = (SELECT key FROM runs WHERE session_key = s.key AND status = 'queued'
        ORDER BY (first_seq IS NULL), front DESC, priority DESC, key LIMIT 1);

DROP VIEW v_runs;
CREATE VIEW v_runs AS
    SELECT r.id, s.id AS session_id, m.id AS message_id, r.response_id, r.workspace, r.agent, p.id AS slot, r.status,
        r.cause, r.error, r.error_class, r.priority, r.attempts, w.id AS worker, k.id AS backend, r.pid, r.exit_code, r.exit_signal,
        (SELECT b.id FROM runs b WHERE b.key = r.resumes) AS resumes,
        (SELECT o.id FROM sessions o WHERE o.key = s.spawned_by) AS spawned_by, s.label, r.progress,
        r.input_tokens, r.output_tokens, r.cache_read_tokens, r.cache_write_tokens, r.reasoning_tokens, r.cost_usd,
        r.context_tokens, r.context_size,
        r.first_seq, r.last_seq, r.malformed_lines, r.malformed_sample, r.stderr,
        max(0, r.claimed_at - r.queued_at) AS waited_ms, max(0, r.settled_at - r.claimed_at) AS ran_ms, -- clocks go back, too
        strftime('%Y-%m-%dT%H:%M:%fZ', r.queued_at / 1000.0, 'unixepoch') AS queued_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.not_before / 1000.0, 'unixepoch') AS not_before,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.claimed_at / 1000.0, 'unixepoch') AS claimed_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.cancel_requested_at / 1000.0, 'unixepoch') AS cancel_requested_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.settled_at / 1000.0, 'unixepoch') AS settled_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.retry_at / 1000.0, 'unixepoch') AS retry_at
    FROM runs r
    JOIN sessions s ON s.key = r.session_key
    JOIN messages m ON m.key = r.message_key
    LEFT JOIN slots p ON p.key = r.slot_key
    LEFT JOIN workers w ON w.key = r.lease_worker
    LEFT JOIN backends k ON k.key = r.backend_key;

-- `text` without what a model took back when it was asked again, its parts a line apart. U+0000, at which a text ends in
-- SQLite's shell, is shown as U+FFFD; backslashes are spelled out before, because `\\u0000` in JSON is no U+0000.
DROP VIEW v_messages;
CREATE VIEW v_messages AS
    SELECT s.id AS session_id, m.id, m.role, r.id AS run_id, r.status AS run_status, m.position AS seq,
        (SELECT group_concat(replace(replace(p.value -> '$.text', '\\', '\u005c'), '\u0000', '\ufffd') ->> '$',
                             char(10) || char(10))
            FROM (SELECT json_group_array(part.value) AS parts FROM json_each(m.parts) d, json_each(d.value, '$.data.parts') part
                    WHERE d.value ->> '$.type' = 'data-retracted' AND m.role = 'assistant') retracted
            CROSS JOIN json_each(m.parts) p
            WHERE p.value ->> '$.type' = 'text' AND p.value ->> '$.text' <> ''
                AND NOT EXISTS (SELECT 1 FROM json_each(retracted.parts) void WHERE void.value = p.key)) AS text,
        m.parts, m.metadata,
        strftime('%Y-%m-%dT%H:%M:%fZ', m.created_at / 1000.0, 'unixepoch') AS created_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', m.updated_at / 1000.0, 'unixepoch') AS updated_at
    FROM messages m JOIN sessions s ON s.key = m.session_key LEFT JOIN runs r ON r.key = m.run_key
    WHERE m.superseded_at IS NULL;

CREATE VIEW v_backends AS
    SELECT b.id, b.agent, b.workspace, s.id AS session_id, b.state, b.reason, b.error_class, w.id AS worker, b.generation, b.pid,
        iif(b.endpoint LIKE 'http://%@%', 'http://' || substr(b.endpoint, instr(b.endpoint, '@') + 1), b.endpoint) AS endpoint,
        (SELECT count(*) FROM runs r WHERE r.backend_key = b.key AND r.status = 'running') AS running,
        b.close_when_idle, json_array_length(b.restarts) AS recent_restarts,
        strftime('%Y-%m-%dT%H:%M:%fZ', b.created_at / 1000.0, 'unixepoch') AS created_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', b.started_at / 1000.0, 'unixepoch') AS started_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', b.healthy_at / 1000.0, 'unixepoch') AS healthy_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', b.used_at / 1000.0, 'unixepoch') AS used_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', b.not_before / 1000.0, 'unixepoch') AS not_before,
        strftime('%Y-%m-%dT%H:%M:%fZ', b.stopped_at / 1000.0, 'unixepoch') AS stopped_at
    FROM backends b
    LEFT JOIN sessions s ON s.key = b.session_key
    LEFT JOIN workers w ON w.key = b.worker_key;

CREATE VIEW v_permissions AS
    SELECT p.id, r.id AS run_id, s.id AS session_id, p.request, p.tool_call, p.tool, p.kind, p.title, p.input, p.options, p.state,
        p.option_id AS option, p.answered_by, p.reason,
        strftime('%Y-%m-%dT%H:%M:%fZ', p.requested_at / 1000.0, 'unixepoch') AS requested_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', p.expires_at / 1000.0, 'unixepoch') AS expires_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', p.answered_at / 1000.0, 'unixepoch') AS answered_at
    FROM permissions p JOIN runs r ON r.key = p.run_key JOIN sessions s ON s.key = r.session_key;

CREATE VIEW v_agent_sessions AS
    SELECT s.id AS session_id, a.agent, a.id, a.origin, r.id AS run_id, l.id AS lost_in,
        strftime('%Y-%m-%dT%H:%M:%fZ', a.began_at / 1000.0, 'unixepoch') AS began_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', a.used_at / 1000.0, 'unixepoch') AS used_at
    FROM agent_sessions a JOIN sessions s ON s.key = a.session_key JOIN runs r ON r.key = a.run_key
    LEFT JOIN runs l ON l.key = a.lost_in;

CREATE VIEW v_usage AS
    SELECT s.id AS session_id, r.agent, count(*) AS runs, sum(r.input_tokens) AS input_tokens,
        sum(r.output_tokens) AS output_tokens, sum(r.cache_read_tokens) AS cache_read_tokens,
        sum(r.cache_write_tokens) AS cache_write_tokens, sum(r.reasoning_tokens) AS reasoning_tokens,
        sum(r.cost_usd) AS cost_usd
    FROM runs r JOIN sessions s ON s.key = r.session_key
    GROUP BY s.key, r.agent;
