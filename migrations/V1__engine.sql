-- The schema. Every invariant that SQLite can check is a constraint, a partial unique index or a trigger, so that neither a
-- bug nor a second process can store an illegal state.
--
-- Conventions
--   key     an integer that never leaves this file; `id` is the public text id.
--   *_at    milliseconds since 1970-01-01 UTC.      *_ms    a duration in milliseconds.
--   AUTOINCREMENT where a key is also what a sleeping process may still hold: a deleted row's key is never given to another.
--   x IS NULL OR json_valid(x)    because json_valid(NULL) is 0 before SQLite 3.45, whose shells read these files too.
--
-- Contents
--   places      slots, sessions, assignments: which session has which slot
--   work        workers, messages, runs, events: what is executed, and the log of what agents say
--   agents      backends, permissions, agent_sessions: warm agent processes, their questions, their own conversation ids
--   guards      triggers that refuse a change
--   effects     triggers that complete a change in the same transaction
--   views       v_*: the public interface; docs/sql.md is its reference

-- ── places ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CREATE TABLE slots (
    key        INTEGER NOT NULL PRIMARY KEY,
    id         TEXT    NOT NULL UNIQUE,                 -- chat-slot-<workspace>-<number>
    workspace  TEXT    NOT NULL,
    number     INTEGER NOT NULL CHECK (number >= 1),
    enabled    INTEGER NOT NULL DEFAULT 1 CHECK (enabled IN (0, 1)), -- 0: the config has fewer slots now
    UNIQUE (workspace, number)
) STRICT;

CREATE TABLE sessions (
    key             INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id              TEXT    NOT NULL UNIQUE CHECK (length(id) BETWEEN 1 AND 200 AND id NOT GLOB '*[^A-Za-z0-9._:-]*'),
    workspace       TEXT    NOT NULL,
    agent           TEXT    NOT NULL,
    title           TEXT    CHECK (title IS NULL OR trim(title) <> ''),
    title_given     INTEGER NOT NULL DEFAULT 0          -- 1: a client set the title, so the agent does not change it
                        CHECK (title_given IN (0, 1) AND (title_given = 0 OR title IS NOT NULL)),
    label           TEXT,
    idle_ttl_ms     INTEGER NOT NULL CHECK (idle_ttl_ms > 0),
    oneshot         INTEGER NOT NULL DEFAULT 0 CHECK (oneshot IN (0, 1)), -- 1: its agent forgets each turn
    options         TEXT    NOT NULL DEFAULT '{}' CHECK (json_type(options) = 'object'),
    advertised      TEXT    CHECK (advertised IS NULL OR json_valid(advertised)), -- modes and options its agent offers
    -- The agent's id of the conversation, which the next turn resumes. It is an argument of a process, never an option.
    agent_session   TEXT    CHECK (agent_session IS NULL OR (substr(agent_session, 1, 1) NOT IN ('', '-')
                        AND instr(CAST(agent_session AS BLOB), x'00') = 0)),
    -- The session that it works for: an older one, so that there are no circles.
    spawned_by      INTEGER REFERENCES sessions (key) CHECK (spawned_by < key),
    last_seq        INTEGER NOT NULL DEFAULT 0 CHECK (last_seq >= 0), -- the newest event of its log
    slot_bound      INTEGER NOT NULL DEFAULT 0 CHECK (slot_bound IN (0, 1)), -- 1: its agent is keyed by slot, so it keeps it
    waiting_since   INTEGER,                            -- has a queued run and waits for a slot
    reclaims        INTEGER NOT NULL DEFAULT 0 CHECK (reclaims IN (0, 1)), -- 1: takes the slot of an idle session
    close_when_idle INTEGER NOT NULL DEFAULT 0 CHECK (close_when_idle IN (0, 1)),
    cancel_through  INTEGER,                            -- queued runs up to this key are being cancelled in batches
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL
) STRICT;
CREATE INDEX sessions_by_update ON sessions (updated_at, key);
CREATE INDEX sessions_waiting ON sessions (workspace, waiting_since, key) WHERE waiting_since IS NOT NULL;
CREATE INDEX sessions_spawned ON sessions (spawned_by) WHERE spawned_by IS NOT NULL;
CREATE INDEX sessions_cancelling ON sessions (key) WHERE cancel_through IS NOT NULL;

-- Which session has which slot. Rows are history: a session has at most one that is live (active or idle).
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

-- ── work ────────────────────────────────────────────────────────────────────────────────────────────────────────────

-- One row for each process that may execute runs.
CREATE TABLE workers (
    key            INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id             TEXT    NOT NULL UNIQUE,
    pid_scope      TEXT    NOT NULL,                    -- boot id and pid namespace, in which `pid` has a meaning
    pid            INTEGER NOT NULL,
    pid_started_at INTEGER NOT NULL,                    -- clock ticks since boot: tells the process from a later one of its pid
    hostname       TEXT    NOT NULL,
    version        TEXT    NOT NULL,
    capacity       INTEGER NOT NULL CHECK (capacity >= 0),
    lease_ms       INTEGER NOT NULL CHECK (lease_ms > 0), -- length of its leases: others wait at least this long
    started_at     INTEGER NOT NULL,
    heartbeat_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE messages (
    key           INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    session_key   INTEGER NOT NULL REFERENCES sessions (key),
    id            TEXT    NOT NULL CHECK (length(id) BETWEEN 1 AND 200 AND id NOT GLOB '*[^A-Za-z0-9._:-]*'),
    role          TEXT    NOT NULL CHECK (role IN ('user', 'assistant', 'system')),
    run_key       INTEGER REFERENCES runs (key),        -- the run that wrote it; NULL for a person's message
    position      INTEGER,                              -- seq of the first event of its turn; NULL while that is queued
    superseded_at INTEGER,                              -- replaced by an edit or a regeneration: kept, not shown
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    metadata      TEXT    CHECK (metadata IS NULL OR json_valid(metadata)),
    parts         TEXT    NOT NULL CHECK (json_type(parts) = 'array'),
    UNIQUE (session_key, id),
    CHECK (run_key IS NULL OR role = 'assistant')
) STRICT;
CREATE INDEX messages_in_order ON messages (session_key, position);
CREATE INDEX messages_of_run ON messages (run_key) WHERE run_key IS NOT NULL;

-- One turn of a session: queued → running → one of five final states. A run that has said nothing may go back to queued.
CREATE TABLE runs (
    key                 INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id                  TEXT    NOT NULL UNIQUE CHECK (length(id) = 36),  -- UUIDv7
    session_key         INTEGER NOT NULL REFERENCES sessions (key),
    message_key         INTEGER NOT NULL REFERENCES messages (key),       -- the message that it answers
    response_id         TEXT    NOT NULL,                                 -- id of the message that it writes
    resumes             INTEGER REFERENCES runs (key),                    -- the interrupted run that it continues
    workspace           TEXT    NOT NULL,
    agent               TEXT    NOT NULL,
    status              TEXT    NOT NULL CHECK (status IN
                            ('queued', 'running', 'completed', 'failed', 'cancelled', 'timed_out', 'interrupted')),
    -- the queue
    priority            INTEGER NOT NULL DEFAULT 0 CHECK (priority BETWEEN -1000 AND 1000),
    front               INTEGER NOT NULL DEFAULT 0 CHECK (front >= 0), -- goes before every priority, the highest first
    ready               INTEGER NOT NULL DEFAULT 0 CHECK (ready IN (0, 1)), -- head of the queue of a session that runs nothing
    not_before          INTEGER,
    timeout_ms          INTEGER CHECK (timeout_ms > 0),
    queued_at           INTEGER NOT NULL,
    claimed_at          INTEGER,
    cancel_requested_at INTEGER,
    settled_at          INTEGER,
    -- the lease: each grant increments the fencing token, and each write names it
    lease_worker        INTEGER REFERENCES workers (key),
    lease_token         INTEGER NOT NULL DEFAULT 0,
    lease_expires_at    INTEGER,
    attempts            INTEGER NOT NULL DEFAULT 0,      -- number of claims
    -- Adoptions in a row that failed or lost their worker before they had read all output. One under way counts until its end.
    failures            INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0),
    shortages           INTEGER NOT NULL DEFAULT 0 CHECK (shortages >= 0), -- put back because the system was short of a resource
    short_of            TEXT,                            -- which one; NULL from the next claim on
    -- the agent's process: the shim that holds it
    slot_key            INTEGER REFERENCES slots (key),  -- NULL: the workspace's resident agent, or not begun
    backend_key         INTEGER REFERENCES backends (key), -- the warm agent that its turn is on
    dir                 TEXT,                            -- working directory
    pid_scope           TEXT,                            -- boot id and pid namespace, in which `pid` has a meaning
    pid                 INTEGER,
    pid_started_at      INTEGER,
    shim_attempt        INTEGER CHECK (shim_attempt >= 1), -- fencing token under which the shim was started
    shim_secret         TEXT,                            -- proves to the shim who may take it over
    source_offset       INTEGER NOT NULL DEFAULT 0,      -- bytes of its output that have become events
    -- its span in the session's log
    first_seq           INTEGER,
    last_seq            INTEGER,
    said                INTEGER NOT NULL DEFAULT 0 CHECK (said IN (0, 1)), -- 1: has a chunk other than start or a transient one
    -- the outcome
    cause               TEXT,
    error_class         TEXT CHECK (error_class IN ('authentication', 'rate_limit', 'overloaded', 'context_too_long',
                            'agent_missing', 'protocol', 'crashed')),
    retry_at            INTEGER,                         -- when a retry makes sense, if the agent or its provider says so
    exit_code           INTEGER,
    exit_signal         INTEGER,
    malformed_lines     INTEGER NOT NULL DEFAULT 0,      -- lines of output that are not in the agent's protocol
    -- usage, as the agent reports it
    input_tokens        INTEGER,
    output_tokens       INTEGER,
    cache_read_tokens   INTEGER,
    cache_write_tokens  INTEGER,
    reasoning_tokens    INTEGER,
    cost_usd            REAL,
    context_tokens      INTEGER,
    context_size        INTEGER,
    -- texts, last because they are long
    error               TEXT,
    progress            TEXT,                            -- the end of what it said, on one line
    malformed_sample    TEXT,
    stderr              TEXT,                            -- head and tail
    CHECK ((status = 'running') = (lease_worker IS NOT NULL)),
    CHECK ((status = 'running') = (lease_expires_at IS NOT NULL)),
    CHECK (status <> 'running' OR (claimed_at IS NOT NULL AND first_seq IS NOT NULL)),
    CHECK ((status IN ('queued', 'running')) = (settled_at IS NULL)),
    CHECK (ready = 0 OR status = 'queued'),
    CHECK (said = 0 OR status <> 'queued'),              -- a run that has spoken is never run again
    CHECK ((first_seq IS NULL) = (last_seq IS NULL)),
    CHECK (first_seq IS NULL OR (first_seq >= 1 AND last_seq >= first_seq)),
    CHECK ((pid IS NULL) = (pid_started_at IS NULL) AND (pid IS NULL) = (pid_scope IS NULL)),
    CHECK ((settled_at IS NULL) = (cause IS NULL)),
    CHECK (cause IS NULL OR status = CASE                -- the cause decides the status
        WHEN cause = 'finished' THEN 'completed'
        WHEN cause IN ('agent_error', 'exit_code', 'signal', 'no_output', 'incomplete', 'output_limit', 'spawn_failed',
                       'unconfigured', 'not_allowed', 'unstorable', 'internal') THEN 'failed'
        WHEN cause = 'cancelled' THEN 'cancelled'
        WHEN cause IN ('turn_timeout', 'idle_timeout') THEN 'timed_out'
        WHEN cause IN ('worker_lost', 'shim_lost', 'shutdown') THEN 'interrupted'
        ELSE '' END)
) STRICT;
CREATE UNIQUE INDEX one_running_run_per_session ON runs (session_key) WHERE status = 'running';
CREATE UNIQUE INDEX one_running_run_per_slot ON runs (slot_key) WHERE status = 'running';
CREATE UNIQUE INDEX one_running_run_per_shared_agent ON runs (workspace) WHERE status = 'running' AND slot_key IS NULL;
CREATE UNIQUE INDEX one_ready_run_per_session ON runs (session_key) WHERE ready = 1;
CREATE UNIQUE INDEX one_successor_per_run ON runs (resumes) WHERE resumes IS NOT NULL;
CREATE INDEX runs_ready ON runs (priority DESC, key) WHERE ready = 1;
CREATE INDEX runs_queued ON runs (session_key, (first_seq IS NULL), front DESC, priority DESC, key) WHERE status = 'queued';
CREATE INDEX runs_running ON runs (agent) WHERE status = 'running';
CREATE INDEX runs_leased ON runs (lease_worker) WHERE lease_worker IS NOT NULL;
CREATE INDEX runs_on_backend ON runs (backend_key) WHERE backend_key IS NOT NULL AND status = 'running';
CREATE INDEX runs_unwritten ON runs (session_key) WHERE settled_at IS NOT NULL AND first_seq IS NULL;
CREATE INDEX runs_by_session ON runs (session_key, key);
CREATE INDEX runs_by_message ON runs (message_key, key);
CREATE INDEX runs_settled ON runs (settled_at, claimed_at, status, error_class) WHERE settled_at IS NOT NULL; -- covers statistics

-- The log, clustered by its cursor so that a replay reads neighbours. No foreign keys and no CHECK on the payload: they cost
-- a third of the append rate; the keys come from the guarded run row and the payload from the JSON parser.
CREATE TABLE events (
    session_key INTEGER NOT NULL,
    seq         INTEGER NOT NULL CHECK (seq >= 1),
    run_key     INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    event       TEXT    NOT NULL,                       -- one AI SDK UI message chunk
    PRIMARY KEY (session_key, seq)
) STRICT, WITHOUT ROWID;

-- ── agents ──────────────────────────────────────────────────────────────────────────────────────────────────────────

-- A warm agent process, used by several turns. Rows are history: a place (agent, workspace and, unless the agent is shared,
-- session) has at most one that is not stopped.
CREATE TABLE backends (
    key             INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id              TEXT    NOT NULL UNIQUE CHECK (length(id) = 36), -- UUIDv7
    agent           TEXT    NOT NULL,
    workspace       TEXT    NOT NULL,
    session_key     INTEGER REFERENCES sessions (key),  -- NULL: shared by the sessions of the workspace
    state           TEXT    NOT NULL CHECK (state IN
                        ('stopped', 'starting', 'running', 'crashed', 'restarting', 'stopping')),
    reason          TEXT,                               -- of the state, for people
    error_class     TEXT CHECK (error_class IN ('authentication', 'rate_limit', 'overloaded', 'context_too_long',
                        'agent_missing', 'protocol', 'crashed')),
    worker_key      INTEGER REFERENCES workers (key),   -- the supervisor; NULL: the next sweep takes it
    generation      INTEGER NOT NULL DEFAULT 0,         -- number of starts: an event of an older one is stale
    pid_scope       TEXT,                               -- boot id and pid namespace, in which `pid` has a meaning
    pid             INTEGER,                            -- the shim
    pid_started_at  INTEGER,
    shim_secret     TEXT,                               -- proves to the shim who may take it over
    endpoint        TEXT,                               -- where turns connect
    close_when_idle INTEGER NOT NULL DEFAULT 0 CHECK (close_when_idle IN (0, 1)),
    restarts        TEXT    NOT NULL DEFAULT '[]' CHECK (json_type(restarts) = 'array'), -- times of the recent ones
    not_before      INTEGER,                            -- no restart before this
    healthy_at      INTEGER,                            -- last answer to a health check
    created_at      INTEGER NOT NULL,
    started_at      INTEGER,                            -- of this generation
    used_at         INTEGER NOT NULL,                   -- last begin or end of a turn
    stopped_at      INTEGER,
    CHECK ((state = 'stopped') = (stopped_at IS NOT NULL)),
    CHECK ((pid IS NULL) = (pid_started_at IS NULL) AND (pid IS NULL) = (pid_scope IS NULL))
) STRICT;
CREATE UNIQUE INDEX one_live_backend_per_key ON backends (agent, workspace, coalesce(session_key, 0))
    WHERE state <> 'stopped';
CREATE INDEX backends_live ON backends (used_at) WHERE state <> 'stopped';
CREATE INDEX backends_watched ON backends (worker_key) WHERE worker_key IS NOT NULL;
CREATE INDEX backends_by_place ON backends (agent, workspace, coalesce(session_key, 0), key);
CREATE INDEX backends_stopped ON backends (stopped_at) WHERE stopped_at IS NOT NULL;

-- What an agent asks before it uses a tool, and the answer.
CREATE TABLE permissions (
    key          INTEGER NOT NULL PRIMARY KEY,
    id           TEXT    NOT NULL UNIQUE CHECK (length(id) = 36), -- UUIDv7; the approvalId of the AI SDK
    run_key      INTEGER NOT NULL REFERENCES runs (key),
    request      TEXT    NOT NULL,                      -- the agent's id of the question
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

-- The ids under which agents have known a session. The newest is the one to resume.
CREATE TABLE agent_sessions (
    key         INTEGER NOT NULL PRIMARY KEY,
    session_key INTEGER NOT NULL REFERENCES sessions (key),
    agent       TEXT    NOT NULL,
    id          TEXT    NOT NULL CHECK (substr(id, 1, 1) NOT IN ('', '-') AND instr(CAST(id AS BLOB), x'00') = 0),
    origin      TEXT    NOT NULL CHECK (origin IN ('new', 'reused', 'resumed', 'loaded')), -- in its newest turn
    run_key     INTEGER NOT NULL REFERENCES runs (key), -- its newest turn
    lost_in     INTEGER REFERENCES runs (key),          -- the turn that found it lost and began another
    began_at    INTEGER NOT NULL,
    used_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX agent_sessions_in_order ON agent_sessions (session_key, key);
CREATE INDEX agent_sessions_of_run ON agent_sessions (run_key);
CREATE UNIQUE INDEX a_turn_gives_up_one_agent_session ON agent_sessions (lost_in) WHERE lost_in IS NOT NULL;

-- ── guards: triggers that refuse a change ───────────────────────────────────────────────────────────────────────────

CREATE TRIGGER events_are_append_only BEFORE UPDATE ON events BEGIN
    SELECT RAISE(ABORT, 'events are append-only');
END;

-- On the counter and not on the rows, so that it is checked once a batch.
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

CREATE TRIGGER children_keep_their_parent BEFORE UPDATE OF spawned_by ON sessions
    WHEN NEW.spawned_by IS NOT OLD.spawned_by BEGIN
    SELECT RAISE(ABORT, 'a session keeps its parent');
END;

-- A turn starts only on a running backend, and a backend with a running turn is not stopped.
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

CREATE TRIGGER the_first_answer_counts BEFORE UPDATE OF state, option_id ON permissions WHEN OLD.state <> 'pending' BEGIN
    SELECT RAISE(ABORT, 'the permission is decided');
END;

-- ── effects: triggers that complete a change in the same transaction ────────────────────────────────────────────────
-- Their conditions repeat the words of the partial indexes ("status = 'queued'", "state IN ('active', 'idle')"): otherwise
-- SQLite reads the session's whole history.

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

-- The head of a session's queue is ready when the session runs nothing and is assigned. A run that was begun and put back
-- comes first, so that its span stays in one piece.
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

CREATE TRIGGER permissions_end_with_their_run AFTER UPDATE OF status ON runs
    WHEN NEW.settled_at IS NOT NULL AND OLD.settled_at IS NULL BEGIN
    UPDATE permissions SET state = 'cancelled', answered_at = NEW.settled_at WHERE run_key = NEW.key AND state = 'pending';
END;

CREATE TRIGGER backend_is_used AFTER UPDATE OF status ON runs
    WHEN NEW.settled_at IS NOT NULL AND OLD.settled_at IS NULL AND NEW.backend_key IS NOT NULL BEGIN
    UPDATE backends SET used_at = NEW.settled_at WHERE key = NEW.backend_key;
END;

-- A run that gave up the agent's conversation, and then said nothing, has not shown that the conversation is lost.
CREATE TRIGGER agent_session_is_kept AFTER UPDATE OF status ON runs
    WHEN NEW.settled_at IS NOT NULL AND OLD.settled_at IS NULL AND NEW.status <> 'completed' AND NEW.said = 0 BEGIN
    UPDATE sessions SET agent_session = (SELECT id FROM agent_sessions WHERE lost_in = NEW.key)
        WHERE key = NEW.session_key AND EXISTS (SELECT 1 FROM agent_sessions WHERE lost_in = NEW.key);
    UPDATE agent_sessions SET lost_in = NULL WHERE lost_in = NEW.key;
END;

-- With when_full = "reclaim", the slot of a session that turns idle goes to a waiting session. A session that is to be closed
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

CREATE TRIGGER backends_end_with_their_session AFTER UPDATE OF state ON assignments
    WHEN NEW.ended_at IS NOT NULL AND OLD.ended_at IS NULL BEGIN
    UPDATE backends SET close_when_idle = 1 WHERE key IN
        (SELECT key FROM backends INDEXED BY backends_live WHERE state <> 'stopped' AND session_key = NEW.session_key);
END;

-- ── views ───────────────────────────────────────────────────────────────────────────────────────────────────────────

-- Not public: the runs that a worker may claim now, which are the heads of queues whose place is free.
CREATE VIEW claimable_runs AS
    SELECT r.key, r.session_key, r.priority, r.workspace, r.agent, r.not_before, r.short_of, a.slot_key,
        (SELECT count(*) FROM runs b WHERE b.status = 'running' AND b.agent = r.agent) AS agent_running
    FROM runs r
    JOIN assignments a ON a.session_key = r.session_key AND a.state IN ('active', 'idle')
    WHERE r.ready = 1
      AND r.key > (SELECT coalesce(s.cancel_through, 0) FROM sessions s WHERE s.key = r.session_key)
      AND NOT EXISTS (SELECT 1 FROM runs x WHERE x.status = 'running' AND x.slot_key = a.slot_key)
      AND NOT (a.slot_key IS NULL AND EXISTS (SELECT 1 FROM runs x WHERE x.status = 'running' AND x.slot_key IS NULL
                                              AND x.workspace = r.workspace));

CREATE VIEW v_sessions AS
    SELECT s.id, s.workspace, s.agent, s.title, s.title_given,
        CASE WHEN EXISTS (SELECT 1 FROM runs r WHERE r.session_key = s.key AND r.status = 'running') THEN 'streaming'
             WHEN q.key IS NULL THEN 'idle'
             WHEN q.not_before > (julianday('now') - 2440587.5) * 86400000 THEN 'parked' ELSE 'queued' END AS execution,
        a.state AS assignment, p.id AS slot,
        s.cancel_through IS NOT NULL OR (s.close_when_idle = 1 AND a.key IS NOT NULL) AS closing, s.last_seq, s.idle_ttl_ms,
        iif(s.oneshot, 'oneshot', 'persistent') AS mode,
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

CREATE VIEW v_runs AS
    SELECT r.id, s.id AS session_id, m.id AS message_id, r.response_id, r.workspace, r.agent, p.id AS slot, r.status,
        r.cause, r.error, r.error_class, r.short_of, r.priority, r.attempts, w.id AS worker, k.id AS backend, r.pid,
        r.exit_code, r.exit_signal,
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

CREATE VIEW v_events AS
    SELECT s.id AS session_id, e.seq, r.id AS run_id, e.event ->> '$.type' AS type, e.event,
        strftime('%Y-%m-%dT%H:%M:%fZ', e.at / 1000.0, 'unixepoch') AS at
    FROM events e JOIN sessions s ON s.key = e.session_key JOIN runs r ON r.key = e.run_key;

-- `text` leaves out what a model retracted; an empty line separates its parts. SQLite's shell ends a text at U+0000, so that
-- is shown as U+FFFD; backslashes are spelled out first, because `\\u0000` in JSON is not U+0000.
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
