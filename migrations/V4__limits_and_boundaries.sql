-- Limits and boundaries: what comes from outside is legal before it is stored, and no transaction touches more rows than it may.

-- ── texts of agents ─────────────────────────────────────────────────────────────────────────────────────────────────

-- Ids that could be no argument of a process, which earlier versions stored.
UPDATE sessions SET agent_session = NULL
    WHERE agent_session = '' OR substr(agent_session, 1, 1) = '-' OR agent_session GLOB '*[' || char(1) || '-' || char(32) || char(127) || '-' || char(160) || ']*'
       OR instr(CAST(agent_session AS BLOB), x'00') > 0;
UPDATE sessions SET title = NULL, title_given = 0 WHERE trim(title) = '';

CREATE TRIGGER agent_sessions_can_be_arguments BEFORE UPDATE OF agent_session ON sessions
    WHEN NEW.agent_session IS NOT NULL AND (substr(NEW.agent_session, 1, 1) IN ('', '-')
        OR instr(CAST(NEW.agent_session AS BLOB), x'00') > 0) BEGIN
    SELECT RAISE(ABORT, 'the agent''s id of a session can be no argument');
END;
