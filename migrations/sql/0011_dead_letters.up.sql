-- tasker: tasks that stay too long where they are, and tasks that failed and
-- that nobody has dealt with.
--
-- A dead letter is an entry in a list for people; it changes nothing about its
-- task. find_stale_tasks writes entries and closes them, every now and then, for
-- one worker at a time; what operators did it takes from the events that their
-- verbs left. So nothing here is in the way of work: no trigger, no lock on a
-- task, no column that the loop writes.
--
-- What counts is movement, not age: a task of a thousand steps may be open for
-- days. A paused task stands still because somebody wants it to, and so does
-- one whose run_at or retry lies ahead.

CREATE TABLE tasker.dead_letters (
    dead_letter_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id        bigint NOT NULL,
    found_at       timestamptz NOT NULL DEFAULT now(),
    reason         text NOT NULL CHECK (reason IN (
                       'stale_pending',     -- nobody has taken it
                       'stale_in_progress', -- taken, and nothing is out that could bring it on
                       'stale_waiting',     -- an attempt lies in Sidekiq's queue and nobody begins it
                       'stale_running',     -- an attempt runs, without timeout or heartbeat that would end it
                       'failed')),          -- in error
    since          timestamptz NOT NULL,    -- the last movement before it was found; of a failed task, when it failed
    detail         text NOT NULL,           -- why, in words
    resolved_at    timestamptz,
    resolution     text CHECK (resolution IN (
                       'acknowledged',      -- somebody knows, and leaves it as it is
                       'retried',           -- its failed steps, or what it waited for, were started again
                       'cancelled', 'resolved',
                       'moved_on')),        -- it went on, ended or was paused
    resolved_by    text,
    note           text,                    -- the operator's reason, or what became of the task
    CHECK ((resolved_at IS NULL) = (resolution IS NULL))
);
COMMENT ON TABLE tasker.dead_letters IS 'Tasks that stand still or have failed, why, and what was done about it';
CREATE UNIQUE INDEX dead_letters_open ON tasker.dead_letters (task_id) WHERE resolved_at IS NULL;
CREATE INDEX dead_letters_of_task ON tasker.dead_letters (task_id, dead_letter_id);

-- Finds failed tasks without looking at the many that are finished. A task gets
-- into it only by failing.
CREATE INDEX tasks_failed ON tasker.tasks (finished_at) WHERE state = 'error';

-- Open tasks that are not paused, and since when nothing has happened to them.
-- watched: an attempt that is out has a clock (a timeout, a heartbeat), which
-- will bring the task on whatever becomes of the attempt.
--
-- since has two sources. Events tell all that happened, but some of them tell
-- that nothing did: a task that is looked at again and again, because no worker
-- has its handler, leaves nothing else. So only the last hundred are looked at;
-- where none of them counts, the timestamps of the task and its steps do.
--
-- OFFSET 0: by index, one by one, however small the tables were when this was
-- planned. What is dear comes last: steps are read of those tasks whose
-- task_since passes the reader's filter.
CREATE VIEW tasker.quiet_tasks AS
SELECT t.task_id,
       CASE WHEN t.state = 'pending' THEN 'stale_pending'
            WHEN s.running THEN 'stale_running'
            WHEN s.enqueued THEN 'stale_waiting'
            ELSE 'stale_in_progress' END AS reason,
       greatest(q.since, s.moved_at, CASE WHEN NOT s.running AND NOT s.enqueued THEN s.retry_at END) AS since,
       s.watched,
       t.created_at,
       q.since AS task_since -- the same without its steps; never later than since
FROM tasker.tasks t
CROSS JOIN LATERAL (
    SELECT greatest(t.created_at, t.started_at, t.run_at, (
        SELECT l.created_at
        FROM (SELECT e.event_id, e.created_at, e.name FROM tasker.events e WHERE e.task_id = t.task_id ORDER BY e.event_id DESC LIMIT 100) l
        WHERE l.name NOT IN ('workflow.task_reenqueue_delayed', 'step.report_refused', 'task.priority_changed',
                             'task.stale', 'task.dead_lettered', 'task.dead_letter_acknowledged')
        ORDER BY l.event_id DESC LIMIT 1)) AS since
    OFFSET 0) q
CROSS JOIN LATERAL (
    SELECT max(greatest(p.started_at, p.finished_at)) AS moved_at,
           min(p.retry_at) FILTER (WHERE p.state = 'waiting_for_retry') AS retry_at, -- the others may wait for their turn
           coalesce(bool_or(p.state = 'enqueued'), false) AS enqueued,
           coalesce(bool_or(r.runs), false) AS running,
           coalesce(bool_or(r.runs AND coalesce(d.timed, x.timed) OR p.state = 'enqueued' AND d.start_by IS NOT NULL
                            -- what an operator has paused stands still, and it is known why
                            OR EXISTS (SELECT FROM tasker.gate_waiters l JOIN tasker.gates g USING (gate_id)
                                       WHERE l.step_id = p.step_id AND g.paused_at IS NOT NULL)), false) AS watched
    FROM tasker.steps p
    CROSS JOIN LATERAL (
        SELECT u.handler, coalesce(u.timeout_seconds, u.heartbeat_seconds) IS NOT NULL AS timed
        FROM tasker.template_steps u WHERE u.template_id = t.template_id AND u.position = p.position OFFSET 0) x
    LEFT JOIN LATERAL (
        SELECT u.step_id, u.process_id, u.start_by, coalesce(u.deadline, u.beat_by) IS NOT NULL AS timed
        FROM tasker.dispatches u WHERE u.step_id = p.step_id AND u.failure IS NULL OFFSET 0) d ON true
    -- Whether somebody who is alive runs it: its loop, or a process; of one that
    -- no process answers for nobody can tell.
    CROSS JOIN LATERAL (SELECT p.state = 'in_progress' AND CASE
        WHEN x.handler IS NOT NULL THEN EXISTS (SELECT FROM tasker.workers w WHERE w.worker_id = t.owner AND w.state = 'alive')
        WHEN d.process_id IS NOT NULL THEN EXISTS (
            SELECT FROM tasker.processes o WHERE o.process_id = d.process_id AND o.stopped_at IS NULL
            AND greatest(o.last_seen_at, pg_postmaster_start_time()) > now() - interval '10 seconds')
        ELSE d.step_id IS NOT NULL END AS runs) r
    WHERE p.task_id = t.task_id AND q.since IS NOT NULL) s
WHERE t.state IN ('pending', 'in_progress') AND t.paused_at IS NULL;
COMMENT ON VIEW tasker.quiet_tasks IS 'Open tasks, and since when nothing has happened to them; paused ones are left out';

-- What holds a task, in a sentence: the step that tells most, in the words of
-- step_readiness, and how many others are held for the same reason. What nobody
-- but people can mend comes first, what only follows from other steps last, and
-- reasons that are named in neither list between them.
CREATE FUNCTION tasker.held_by(task bigint) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT format('%s: %s', r.name, r.explanation) || CASE WHEN r.likewise > 1 THEN format(' (and %s more likewise)', r.likewise - 1) ELSE '' END
    FROM (SELECT s.name, s.explanation, s.position, count(*) OVER (PARTITION BY s.reason) AS likewise,
                 coalesce(array_position(ARRAY['no_process_alive', 'no_handler_alive', 'no_worker_alive', 'running', 'enqueued', 'ready'], s.reason),
                          array_position(ARRAY['at_limit', 'backoff', 'attempts_exhausted', 'failed', 'fail_fast', 'dependencies', 'blocked'], s.reason) + 100,
                          50) AS telling
          FROM tasker.step_readiness s WHERE s.task_id = task AND s.reason NOT IN ('finished', 'task_finished', 'task_cancelled')) r
    ORDER BY r.telling, r.position LIMIT 1
$$;

-- Closes entries whose task is not where it was found any more. Whose doing that
-- was is in the events since then: an operator's verb, or nobody's.
CREATE FUNCTION tasker.close_dead_letters(most int) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    n int;
BEGIN
    WITH moved AS (
        SELECT d.dead_letter_id, d.task_id, d.since, t.state, t.paused_at
        FROM tasker.dead_letters d
        LEFT JOIN LATERAL (SELECT u.state, u.finished_at, u.paused_at FROM tasker.tasks u WHERE u.task_id = d.task_id OFFSET 0) t ON true
        WHERE d.resolved_at IS NULL AND CASE d.reason
            WHEN 'failed' THEN t.state IS DISTINCT FROM 'error' OR t.finished_at > d.since
            ELSE NOT EXISTS (SELECT FROM tasker.quiet_tasks q WHERE q.task_id = d.task_id AND q.since <= d.since) END
        ORDER BY d.task_id LIMIT most
        FOR UPDATE OF d SKIP LOCKED -- somebody acknowledges it
    )
    UPDATE tasker.dead_letters d
    SET resolved_at = now(),
        resolution  = coalesce(v.resolution, 'moved_on'),
        resolved_by = v.who,
        note        = CASE WHEN v.name IS NOT NULL THEN v.why
                           WHEN moved.state IS NULL THEN 'the task was deleted'
                           WHEN moved.paused_at IS NOT NULL THEN 'the task was paused'
                           WHEN moved.state = 'in_progress' THEN 'the task went on by itself'
                           ELSE format('the task is %s', replace(moved.state, '_', ' ')) END
    FROM moved LEFT JOIN LATERAL (
        -- How it ended tells most, then what was done first: other verbs follow from it.
        SELECT e.name, e.data ->> 'by' AS who, e.data ->> 'reason' AS why,
               CASE WHEN e.name = 'task.cancelled' THEN 'cancelled'
                    WHEN e.name IN ('task.resolved_manually', 'step.resolved_manually', 'step.skipped') THEN 'resolved'
                    WHEN e.name NOT IN ('task.paused', 'task.resumed') THEN 'retried' END AS resolution
        FROM tasker.events e
        WHERE e.task_id = moved.task_id AND e.created_at > moved.since
          AND (e.name IN ('task.cancelled', 'task.resolved_manually', 'task.retry_requested', 'task.run_now', 'task.paused', 'task.resumed',
                          'step.resolved_manually', 'step.initialize_requested', 'step.run_now')
               OR e.name = 'step.skipped' AND e.data ? 'by') -- the engine skips too
        ORDER BY e.name IN ('task.cancelled', 'task.resolved_manually') DESC, e.event_id LIMIT 1) v ON true
    WHERE d.dead_letter_id = moved.dead_letter_id;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;

-- Lists tasks to which nothing has happened for longer than the interval of
-- their condition, and tasks that have been in error for longer than failed;
-- closes the entries of those that have moved; most of each at a time, those
-- first that have waited longest. One worker at a time.
--
-- It costs what open and failed tasks cost, not what there are finished: it reads
-- an open task's row, of those old enough the last event, and of those quiet for
-- long enough the steps.
CREATE FUNCTION tasker.find_stale_tasks(
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

-- Takes a task off the list without doing anything to it: somebody knows. It is
-- listed again when it stands still, or fails, another time.
CREATE FUNCTION tasker.acknowledge_dead_letter(task bigint, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tasker.dead_letters d SET resolved_at = now(), resolution = 'acknowledged', resolved_by = who, note = why
    WHERE d.task_id = task AND d.resolved_at IS NULL;
    IF FOUND THEN
        PERFORM tasker.record_verb(task, NULL, 'task.dead_letter_acknowledged', who, why);
    ELSIF NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.task_id = task) THEN
        RAISE EXCEPTION 'there is no task %', coalesce(task::text, 'NULL') USING ERRCODE = 'no_data_found';
    ELSE
        RAISE EXCEPTION 'task % has no open dead letter: there is nothing to acknowledge', task
        USING ERRCODE = 'TK008', HINT = 'the open ones: tasker dead-letter list';
    END IF;
END $$;

CREATE VIEW tasker.dead_letter_list AS
SELECT d.dead_letter_id, d.task_id, t.namespace, t.name, t.version, t.state, d.reason, d.detail, d.since, d.found_at,
       coalesce(d.resolved_at, now()) - d.since AS age,
       d.resolved_at, d.resolution, d.resolved_by, d.note
FROM tasker.dead_letters d
LEFT JOIN tasker.tasks t USING (task_id);
COMMENT ON VIEW tasker.dead_letter_list IS 'tasker.dead_letters with their tasks; the open ones have no resolved_at';
