-- tasker: what a worker writes names no table of others.
--
-- Partitions are dropped and read by the names in event_days, with the owner's rights.

ALTER TABLE tasker.event_days ADD CONSTRAINT event_days_partition CHECK (partition ~ '^events_([0-9]{8}|old)$');

CREATE OR REPLACE FUNCTION tasker.find_stale_tasks(pending interval DEFAULT '01:00:00'::interval, in_progress interval DEFAULT '00:30:00'::interval, waiting interval DEFAULT '00:30:00'::interval, running interval DEFAULT '24:00:00'::interval, failed interval DEFAULT '00:00:00'::interval, most integer DEFAULT 200, OUT found_tasks integer, OUT closed_entries integer) RETURNS record
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET lock_timeout TO '100ms'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    shortest interval := least(pending, in_progress, waiting, running);
BEGIN
    found_tasks := 0;
    closed_entries := 0;
    IF coalesce(least(shortest, failed), interval '0') < interval '0' THEN
        RAISE EXCEPTION 'tasks are stale after a time from 0, not %', least(shortest, failed) USING ERRCODE = 'TK003';
    END IF;
    IF NOT tasker.take_duty('find_stale') THEN
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
