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

-- How often a worker began to go on with the run and was lost, or failed, before it had read what there was: a run that takes
-- its workers down is settled after some of them.
ALTER TABLE runs ADD COLUMN failures INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0);
