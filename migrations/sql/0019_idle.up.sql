-- What a system costs in which nothing happens, however many tasks wait in it.

-- River's scheduler asks every five seconds which jobs are due by now. Its own
-- index begins with the priority, so it went over all jobs that are for later.
CREATE INDEX river_job_later ON tasker.river_job (scheduled_at) WHERE state IN ('retryable', 'scheduled');

-- A worker has come whose handlers nobody had before: tasks that wait for them
-- are looked at now, not when their job was scheduled for, which may be in
-- minutes. Tasks that wait for something else are left alone.
CREATE FUNCTION tasker.wake_handled(worker bigint) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    wanted text[];
    n      int := 0;
BEGIN
    SELECT array_agg(DISTINCT h.name) INTO wanted
    FROM tasker.workers w CROSS JOIN LATERAL jsonb_array_elements_text(w.details -> 'handlers') AS h(name)
    WHERE w.worker_id = worker
      AND EXISTS (SELECT FROM tasker.template_steps s WHERE s.handler = h.name)
      -- Of workers that come together, the first one wakes.
      AND NOT EXISTS (SELECT FROM tasker.workers o WHERE o.worker_id < worker AND o.state = 'alive' AND o.details -> 'handlers' ? h.name);
    IF wanted IS NULL THEN
        RETURN 0;
    END IF;
    WITH ready AS (
        SELECT DISTINCT t.task_id
        FROM tasker.tasks t
        JOIN tasker.template_steps r ON r.template_id = t.template_id AND r.handler = ANY (wanted)
        JOIN tasker.steps s ON s.task_id = t.task_id AND s.position = r.position
        WHERE t.state IN ('pending', 'in_progress') AND t.owner IS NULL AND t.paused_at IS NULL AND (t.run_at IS NULL OR t.run_at <= now())
          AND (s.state = 'pending' OR s.state = 'waiting_for_retry' AND s.retry_at <= now())
          AND NOT EXISTS (SELECT FROM tasker.steps q WHERE q.task_id = t.task_id AND q.position = ANY (r.depends_on)
                          AND q.state NOT IN ('complete', 'skipped', 'resolved_manually'))
    ), due AS (
        SELECT j.id FROM tasker.river_job j JOIN ready ON (j.args ->> 'task_id')::bigint = ready.task_id
        WHERE j.kind = 'task_execution' AND j.state IN ('available', 'scheduled') AND j.scheduled_at > now()
        ORDER BY j.id FOR UPDATE OF j SKIP LOCKED
    )
    UPDATE tasker.river_job j SET state = 'available', scheduled_at = now() FROM due WHERE j.id = due.id;
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n > 0 THEN
        PERFORM tasker.notify_river();
    END IF;
    RETURN n;
END $$;

COMMENT ON FUNCTION tasker.wake_handled(worker bigint) IS 'Makes the jobs of tasks due now that wait for a Go handler which this worker has and none before it had; returns how many';

-- As it was, but looks less closely at tasks that wait for a retry: 100,000 of
-- them took it 2.7 s, now 0.3 s.
CREATE OR REPLACE FUNCTION tasker.find_stale_tasks(
    pending interval DEFAULT '60 minutes', in_progress interval DEFAULT '30 minutes', waiting interval DEFAULT '30 minutes',
    running interval DEFAULT '24 hours', failed interval DEFAULT '0', most int DEFAULT 200,
    OUT found_tasks int, OUT closed_entries int)
LANGUAGE plpgsql
-- Plans must not depend on tables being small when first planned. step_readiness
-- can't do without a scan of workers, which then seems dear enough to compile.
SET enable_seqscan = off SET enable_mergejoin = off SET jit = off SET lock_timeout = '100ms'
AS $$
DECLARE
    shortest interval := least(pending, in_progress, waiting, running);
BEGIN
    found_tasks := 0;
    closed_entries := 0;
    IF NOT pg_try_advisory_xact_lock(tasker.fence_class(), -1) THEN
        RETURN;
    END IF;
    closed_entries := tasker.close_dead_letters(most); -- first: a task may have one open entry
    WITH candidates AS (
        (SELECT q.task_id, q.reason, q.since
         FROM (SELECT t.task_id FROM tasker.tasks t
               WHERE t.state IN ('pending', 'in_progress') AND t.paused_at IS NULL
                 AND t.created_at < now() - shortest AND coalesce(t.run_at, t.created_at) < now() - shortest
                 -- Most that are open for long wait for a retry: of them no more needs to be known.
                 AND NOT (SELECT coalesce(bool_or(s.state = 'waiting_for_retry' AND s.retry_at > now() - shortest), false)
                             AND NOT bool_or(s.state IN ('enqueued', 'in_progress')) FROM tasker.steps s WHERE s.task_id = t.task_id)
               OFFSET 0) open
         CROSS JOIN LATERAL (SELECT * FROM tasker.quiet_tasks u WHERE u.task_id = open.task_id OFFSET 0) q
         WHERE q.created_at < now() - shortest AND q.task_since < now() - shortest AND NOT q.watched
           AND q.since < now() - CASE q.reason WHEN 'stale_pending' THEN pending WHEN 'stale_running' THEN running
                                               WHEN 'stale_waiting' THEN waiting ELSE in_progress END
           AND NOT EXISTS (SELECT FROM tasker.dead_letters d WHERE d.task_id = q.task_id
                           AND (d.resolved_at IS NULL OR d.resolution = 'acknowledged' AND d.since >= q.since) OFFSET 0)
         ORDER BY q.since LIMIT most)
        UNION ALL
        (SELECT t.task_id, 'failed', t.finished_at
         FROM tasker.tasks t
         WHERE t.state = 'error' AND t.finished_at <= now() - failed
           AND NOT EXISTS (SELECT FROM tasker.dead_letters d WHERE d.task_id = t.task_id
                           AND (d.resolved_at IS NULL OR d.resolution = 'acknowledged' AND d.since >= t.finished_at) OFFSET 0)
         ORDER BY t.finished_at LIMIT most)
    ), listed AS (
        INSERT INTO tasker.dead_letters (task_id, reason, since, detail)
        SELECT c.task_id, c.reason, c.since, coalesce(
            CASE WHEN t.error ->> 'code' = 'task_deadline' THEN t.error ->> 'message' END,
            tasker.held_by(c.task_id), t.error ->> 'message',
            'all its steps have ended, and no worker has ended the task')
        FROM candidates c JOIN tasker.tasks t USING (task_id)
        ORDER BY c.since LIMIT most
        RETURNING dead_letter_id, task_id, reason, since, detail
    )
    INSERT INTO tasker.events (task_id, name, data)
    SELECT l.task_id, CASE l.reason WHEN 'failed' THEN 'task.dead_lettered' ELSE 'task.stale' END,
           jsonb_build_object('dead_letter_id', l.dead_letter_id, 'reason', l.reason, 'since', l.since, 'detail', l.detail)
    FROM listed l ORDER BY l.dead_letter_id;
    GET DIAGNOSTICS found_tasks = ROW_COUNT;
END $$;
