DROP INDEX tasker.river_job_later;
DROP FUNCTION tasker.wake_handled(bigint);
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
         FROM tasker.quiet_tasks q
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
