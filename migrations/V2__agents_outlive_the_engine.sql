-- Agents outlive the engine that started them: a run says which process holds its agent, so that whoever comes next can go
-- on with it.

ALTER TABLE runs ADD COLUMN process_host TEXT;          -- boot id and pid namespace: where `pid` means something
ALTER TABLE runs ADD COLUMN host_attempt INTEGER CHECK (host_attempt >= 1); -- the lease under which the agent host was started
ALTER TABLE runs ADD COLUMN host_secret TEXT;           -- what the host asks of whoever wants to go on with it

-- How long this worker's leases last: others wait for at least so long before they take one for lost. A worker of a version
-- that did not say has the default length.
ALTER TABLE workers ADD COLUMN lease_ms INTEGER NOT NULL DEFAULT 30000 CHECK (lease_ms > 0);

-- An interrupted run is gone on from once.
CREATE UNIQUE INDEX one_successor_per_run ON runs (resumes) WHERE resumes IS NOT NULL;

DROP VIEW v_runs;
CREATE VIEW v_runs AS
    SELECT r.id, s.id AS session_id, m.id AS message_id, r.response_id, r.workspace, r.agent, p.id AS slot, r.status,
        r.cause, r.error, r.priority, r.attempts, w.id AS worker, r.pid, r.exit_code, r.exit_signal,
        (SELECT b.id FROM runs b WHERE b.key = r.resumes) AS resumes,
        r.first_seq, r.last_seq, r.malformed_lines, r.malformed_sample, r.stderr,
        max(0, r.claimed_at - r.queued_at) AS waited_ms, max(0, r.settled_at - r.claimed_at) AS ran_ms, -- clocks go back, too
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
