-- Limits and boundaries: what comes from outside is legal before it is stored, and no transaction touches more rows than it may.

-- ── texts of agents ─────────────────────────────────────────────────────────────────────────────────────────────────

-- Ids that could be no argument of a process, which earlier versions stored. '' stands for one: the next turn cannot go on in that
-- conversation, and says so.
UPDATE sessions SET agent_session = ''
    WHERE substr(agent_session, 1, 1) = '-' OR trim(agent_session) <> agent_session
       OR agent_session GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(160) || ']*'
       OR instr(CAST(agent_session AS BLOB), x'00') > 0;
-- A run under way would give the session such an id back when it fails.
UPDATE agent_sessions SET lost_in = NULL
    WHERE lost_in IN (SELECT key FROM runs WHERE settled_at IS NULL)
      AND (substr(id, 1, 1) IN ('', '-') OR trim(id) <> id
        OR id GLOB '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(160) || ']*'
        OR instr(CAST(id AS BLOB), x'00') > 0);
UPDATE sessions SET title = NULL, title_given = 0 WHERE trim(title) = '';

CREATE TRIGGER agent_sessions_can_be_arguments BEFORE UPDATE OF agent_session ON sessions
    WHEN NEW.agent_session IS NOT NULL AND (substr(NEW.agent_session, 1, 1) IN ('', '-')
        OR instr(CAST(NEW.agent_session AS BLOB), x'00') > 0) BEGIN
    SELECT RAISE(ABORT, 'the agent''s id of a session can be no argument');
END;

-- ── long queues ─────────────────────────────────────────────────────────────────────────────────────────────────────

-- The queued runs of the session up to this key are to be cancelled, some at a time; none of them is claimed any more.
ALTER TABLE sessions ADD COLUMN cancel_through INTEGER;
CREATE INDEX sessions_cancelling ON sessions (key) WHERE cancel_through IS NOT NULL;

DROP VIEW claimable_runs;
CREATE VIEW claimable_runs AS
    SELECT r.key, r.session_key, r.priority, r.workspace, r.agent, r.not_before, a.slot_key,
        (SELECT count(*) FROM runs b WHERE b.status = 'running' AND b.agent = r.agent) AS agent_running
    FROM runs r
    JOIN assignments a ON a.session_key = r.session_key AND a.state IN ('active', 'idle')
    WHERE r.ready = 1
      AND r.key > (SELECT coalesce(s.cancel_through, 0) FROM sessions s WHERE s.key = r.session_key)
      AND NOT EXISTS (SELECT 1 FROM runs x WHERE x.status = 'running' AND x.slot_key = a.slot_key)
      AND NOT (a.slot_key IS NULL AND EXISTS (SELECT 1 FROM runs x WHERE x.status = 'running' AND x.slot_key IS NULL
                                              AND x.workspace = r.workspace));

DROP VIEW v_sessions;
CREATE VIEW v_sessions AS
    SELECT s.id, s.workspace, s.agent, s.title, s.title_given,
        CASE WHEN EXISTS (SELECT 1 FROM runs r WHERE r.session_key = s.key AND r.status = 'running') THEN 'streaming'
             WHEN q.key IS NULL THEN 'idle'
             WHEN q.not_before > (julianday('now') - 2440587.5) * 86400000 THEN 'parked' ELSE 'queued' END AS execution,
        a.state AS assignment, p.id AS slot,
        s.cancel_through IS NOT NULL OR (s.close_when_idle = 1 AND a.key IS NOT NULL) AS closing, s.last_seq, s.idle_ttl_ms, iif(s.oneshot, 'oneshot', 'persistent') AS mode,
        s.options, s.advertised, nullif(s.agent_session, '') AS agent_session, o.id AS spawned_by, s.label,
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

-- ── runs that cannot be gone on with ────────────────────────────────────────────────────────────────────────────────

-- How many workers in a row were lost, or failed, while they went on with the run, before they had read what there was: a run
-- that takes its workers down is settled after some of them. One that is at it counts until it is known how it ends.
ALTER TABLE runs ADD COLUMN failures INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0);

-- ── runs that wait for resources ────────────────────────────────────────────────────────────────────────────────────

-- How often the run was put back because the system was short of something that its agent's start needs: these claims are
-- among `attempts`, and no tries of the agent. And what that was; NULL once it is claimed again.
ALTER TABLE runs ADD COLUMN shortages INTEGER NOT NULL DEFAULT 0 CHECK (shortages >= 0);
ALTER TABLE runs ADD COLUMN short_of TEXT;

DROP VIEW v_runs;
CREATE VIEW v_runs AS
    SELECT r.id, s.id AS session_id, m.id AS message_id, r.response_id, r.workspace, r.agent, p.id AS slot, r.status,
        r.cause, r.error, r.error_class, r.short_of, r.priority, r.attempts, w.id AS worker, k.id AS backend, r.pid, r.exit_code, r.exit_signal,
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
