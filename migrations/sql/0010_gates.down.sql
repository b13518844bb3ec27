DROP VIEW tasker.step_readiness;
DROP TRIGGER leave_gates ON tasker.steps;
DROP FUNCTION tasker.write_batch(bigint, bigint[], int[], text[], text[], boolean[], double precision[],
    bigint[], bigint[], text[], int[], text[], int[], int[], text[], text[], double precision[], text[], bigint[], bigint[], double precision[], bigint[], int[], bigint);
DROP FUNCTION tasker.age_jobs(interval, int), tasker.resume(text, text, text, text), tasker.open_gates(), tasker.pause(text, text, text, text),
    tasker.set_limit(text, text, int, double precision, double precision, text, text), tasker.check_gate(text, text),
    tasker.admit_waiters(), tasker.leave_gates(), tasker.pass_gates(bigint[], int[]), tasker.gate_tokens(tasker.gates),
    tasker.gate_is_for(text, text, text, text, text, text, text, text);

CREATE OR REPLACE FUNCTION tasker.write_batch(
    worker bigint,
    task_ids bigint[], task_epochs int[], task_states text[], task_errors text[], task_release boolean[], task_rerun double precision[],
    step_ids bigint[], step_tasks bigint[], step_was text[], step_was_attempt int[],
    step_states text[], step_attempts int[], step_losses int[], step_results text[], step_errors text[],
    step_retry_in double precision[], step_queues text[],
    settled bigint[], parked bigint[])
RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET lock_timeout = '100ms'
AS $$
DECLARE
    n      int;
    faults text;
BEGIN
    PERFORM tasker.assert_worker(worker);

    -- Only tasks that change are locked; of the others it is enough that the
    -- loop still owns them, as only this worker or its reaper can change that.
    SELECT count(*) INTO n FROM unnest(task_ids, task_epochs) AS l(task_id, epoch)
    JOIN tasker.tasks t ON t.task_id = l.task_id AND t.owner = worker AND t.epoch = l.epoch;
    IF n <> cardinality(task_ids) THEN
        SELECT string_agg(l.task_id::text, ',') INTO faults FROM unnest(task_ids, task_epochs) AS l(task_id, epoch)
        WHERE NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.task_id = l.task_id AND t.owner = worker AND t.epoch = l.epoch);
        RAISE EXCEPTION 'a loop has lost its task' USING ERRCODE = 'TK005', DETAIL = faults;
    END IF;

    IF EXISTS (SELECT FROM unnest(task_states, task_release) AS l(state, release) WHERE l.state IS NOT NULL OR l.release) THEN
        UPDATE tasker.tasks t
        SET state       = coalesce(l.state, t.state),
            error       = coalesce(l.error::jsonb, t.error),
            owner       = CASE WHEN l.release THEN NULL ELSE t.owner END,
            finished_at = CASE WHEN l.state IS NOT NULL THEN clock_timestamp() ELSE t.finished_at END,
            paused_at   = CASE WHEN l.state IS NOT NULL THEN NULL ELSE t.paused_at END
        FROM unnest(task_ids, task_epochs, task_states, task_errors, task_release)
             AS l(task_id, epoch, state, error, release)
        WHERE t.task_id = l.task_id AND t.owner = worker AND t.epoch = l.epoch AND (l.state IS NOT NULL OR l.release);
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> (SELECT count(*) FROM unnest(task_states, task_release) AS l(state, release) WHERE l.state IS NOT NULL OR l.release) THEN
            RAISE EXCEPTION 'a loop has lost its task' USING ERRCODE = 'TK005';
        END IF;
    END IF;

    IF cardinality(step_ids) > 0 THEN
        UPDATE tasker.steps s
        SET state       = w.state,
            attempts    = w.attempt,
            losses      = w.losses,
            result      = coalesce(w.result::jsonb, s.result),
            error       = coalesce(w.error::jsonb, s.error),
            retry_at    = CASE WHEN w.retry_in IS NOT NULL THEN clock_timestamp() + make_interval(secs => w.retry_in) END,
            started_at  = CASE WHEN w.state = 'in_progress' THEN clock_timestamp() WHEN w.state = 'enqueued' THEN NULL ELSE s.started_at END,
            finished_at = CASE WHEN w.state IN ('complete', 'error', 'cancelled', 'skipped') THEN clock_timestamp() END
        FROM unnest(step_ids, step_was, step_was_attempt, step_states, step_attempts, step_losses, step_results, step_errors, step_retry_in)
             AS w(step_id, was, was_attempt, state, attempt, losses, result, error, retry_in)
        WHERE s.step_id = w.step_id AND s.state = w.was AND s.attempts = w.was_attempt;
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> cardinality(step_ids) THEN
            -- What was written has its new state by now; the rest has not.
            SELECT string_agg(DISTINCT w.task_id::text, ',') INTO faults
            FROM unnest(step_ids, step_tasks, step_states, step_attempts) AS w(step_id, task_id, state, attempt)
            WHERE NOT EXISTS (SELECT FROM tasker.steps s WHERE s.step_id = w.step_id AND s.state = w.state AND s.attempts = w.attempt);
            RAISE EXCEPTION 'a step is not in the state that its loop saw' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
        END IF;

        INSERT INTO tasker.dispatches AS d (step_id, task_id, attempt, queue, awaited_by)
        SELECT w.step_id, w.task_id, w.attempt, w.queue, worker
        FROM unnest(step_ids, step_tasks, step_attempts, step_states, step_queues) AS w(step_id, task_id, attempt, state, queue)
        WHERE w.state = 'enqueued';

        INSERT INTO tasker.events (task_id, step_id, attempt, name, data)
        SELECT w.task_id, w.step_id, w.attempt,
               CASE w.state WHEN 'in_progress' THEN 'step.handle' WHEN 'complete' THEN 'step.completed'
                   WHEN 'enqueued' THEN 'step.execution_requested' WHEN 'waiting_for_retry' THEN 'step.retry_requested'
                   WHEN 'error' THEN 'step.failed' WHEN 'cancelled' THEN 'step.cancelled' WHEN 'skipped' THEN 'step.skipped' END,
               CASE WHEN w.error IS NOT NULL THEN
                   jsonb_strip_nulls(jsonb_build_object('class', w.error::jsonb ->> 'class', 'message', left(w.error::jsonb ->> 'message', 500),
                                                        'code', w.error::jsonb ->> 'code', 'retry_in_seconds', w.retry_in)) END
        FROM unnest(step_ids, step_tasks, step_attempts, step_states, step_errors, step_retry_in) WITH ORDINALITY
             AS w(step_id, task_id, attempt, state, error, retry_in, ord)
        ORDER BY w.ord;
    END IF;

    IF cardinality(settled) > 0 THEN
        PERFORM FROM tasker.dispatches d WHERE d.step_id = ANY (settled) ORDER BY d.step_id FOR UPDATE;
        DELETE FROM tasker.dispatches d WHERE d.step_id = ANY (settled);
    END IF;

    IF cardinality(parked) > 0 THEN
        -- A locked row is being reported. Waiting for it could take as long as
        -- the reporter's transaction; to its loop it is a report that came.
        UPDATE tasker.dispatches d SET awaited_by = NULL
        FROM (SELECT l.step_id FROM tasker.dispatches l WHERE l.step_id = ANY (parked) AND l.failure IS NULL
              ORDER BY l.step_id FOR UPDATE SKIP LOCKED) free
        WHERE d.step_id = free.step_id AND d.failure IS NULL;
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> cardinality(parked) THEN
            SELECT string_agg(DISTINCT s.task_id::text, ',') INTO faults
            FROM tasker.steps s LEFT JOIN tasker.dispatches d USING (step_id)
            WHERE s.step_id = ANY (parked) AND (d.step_id IS NULL OR d.awaited_by IS NOT NULL OR d.failure IS NOT NULL);
            RAISE EXCEPTION 'a report came while its loop parked' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
        END IF;
    END IF;

    -- After the steps: events of a task read in the order of what happened.
    IF EXISTS (SELECT FROM unnest(task_states, task_rerun) AS l(state, rerun) WHERE l.state IS NOT NULL OR l.rerun IS NOT NULL) THEN
        INSERT INTO tasker.events (task_id, name, data)
        SELECT l.task_id, CASE l.state WHEN 'complete' THEN 'task.completed' WHEN 'error' THEN 'task.failed' WHEN 'cancelled' THEN 'task.cancelled' END,
               l.error::jsonb
        FROM unnest(task_ids, task_states, task_errors) AS l(task_id, state, error) WHERE l.state IS NOT NULL;
        INSERT INTO tasker.events (task_id, name, data)
        SELECT l.task_id, 'workflow.task_reenqueue_delayed', jsonb_build_object('delay_seconds', l.rerun)
        FROM unnest(task_ids, task_rerun) AS l(task_id, rerun) WHERE l.rerun >= 1; -- shorter ones are hand-overs between workers
        -- A job that is due no later will do.
        PERFORM tasker.schedule_runs(array_agg(l.task_id), array_agg(l.rerun))
        FROM unnest(task_ids, task_rerun) AS l(task_id, rerun)
        WHERE l.rerun IS NOT NULL AND NOT EXISTS (
            SELECT FROM tasker.river_job j
            WHERE j.kind = 'task_execution' AND j.args @> jsonb_build_object('task_id', l.task_id)
              AND j.state IN ('available', 'scheduled', 'retryable') AND j.scheduled_at <= clock_timestamp() + make_interval(secs => l.rerun))
        HAVING count(*) > 0;
    END IF;
END $$;

CREATE OR REPLACE FUNCTION tasker.set_task_priority(task bigint, priority smallint, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
BEGIN
    IF $2 IS NULL OR $2 NOT BETWEEN 1 AND 4 THEN
        RAISE EXCEPTION 'a priority is a number from 1, which goes first, to 4, not %', coalesce($2::text, 'NULL') USING ERRCODE = 'TK003';
    ELSIF t.state NOT IN ('pending', 'in_progress') THEN
        RAISE EXCEPTION 'task % is %: its priority does not matter any more', task, t.state USING ERRCODE = 'TK008';
    END IF;
    UPDATE tasker.tasks u SET priority = $2 WHERE u.task_id = task;
    UPDATE tasker.river_job j SET priority = $2
    WHERE j.kind = 'task_execution' AND j.args @> jsonb_build_object('task_id', task) AND j.state IN ('available', 'scheduled', 'retryable');
    PERFORM tasker.record_verb(task, NULL, 'task.priority_changed', who, why, jsonb_build_object('from', t.priority, 'to', $2));
END $$;

CREATE VIEW tasker.step_readiness AS
SELECT t.task_id, s.step_id, s.position, s.name, s.state,
       r.reason = 'ready' AS ready,
       r.reason,
       CASE r.reason
           WHEN 'finished' THEN CASE s.state
               WHEN 'complete' THEN format('completed with attempt %s', s.attempts)
               WHEN 'cancelled' THEN 'was cancelled: what depends on it can''t run'
               WHEN 'skipped' THEN 'was skipped: what depends on it goes on without its result'
               ELSE 'was resolved by an operator' END
           WHEN 'attempts_exhausted' THEN format('used up its %s, the last one failed: %s',
               CASE s.attempt_limit WHEN 1 THEN 'only attempt' ELSE s.attempt_limit || ' attempts' END, tasker.failure_in_words(s.error))
           WHEN 'failed' THEN format('failed for good with attempt %s: %s', s.attempts, tasker.failure_in_words(s.error))
           WHEN 'running' THEN format('attempt %s of %s runs%s%s', s.attempts_used, s.attempt_limit,
               coalesce(format(' for %s s', round(extract(epoch FROM now() - s.started_at), 1)), ''),
               CASE WHEN s.handler IS NOT NULL
                   THEN (SELECT format(' in worker %s', w.name) FROM tasker.workers w WHERE w.worker_id = t.owner)
                   ELSE (SELECT format(' in process %s', p.identity) FROM tasker.dispatches o JOIN tasker.processes p USING (process_id)
                         WHERE o.step_id = s.step_id) END)
           WHEN 'enqueued' THEN format('attempt %s of %s is in Sidekiq''s queue %s and has not begun', s.attempts_used, s.attempt_limit, s.queue)
           WHEN 'no_process_alive' THEN format('attempt %s of %s is in Sidekiq''s queue %s, and no Sidekiq process with tasker has given a sign of life for 10 s',
               s.attempts_used, s.attempt_limit, s.queue)
           WHEN 'task_cancelled' THEN 'its task was cancelled'
           WHEN 'blocked' THEN format('can''t run as things stand: %s%s', d.words,
               CASE WHEN NOT d.failed THEN format(', behind %s', c.failed_words) END)
           WHEN 'task_finished' THEN format('its task has ended as %s', t.state)
           WHEN 'paused' THEN format('its task was paused %s s ago', round(extract(epoch FROM now() - t.paused_at), 1))
           WHEN 'scheduled' THEN format('its task starts in %s s', round(extract(epoch FROM t.run_at - now()), 1))
           WHEN 'dependencies' THEN format('waits for %s of %s dependencies: %s',
               s.dependencies - d.satisfied, s.dependencies, d.words)
           WHEN 'fail_fast' THEN format('nothing new starts (on_failure: fail_fast) after %s', c.failed_words)
           WHEN 'backoff' THEN format('attempt %s of %s begins in %s s, the last one failed: %s',
               s.attempts_used + 1, s.attempt_limit, round(extract(epoch FROM s.retry_at - now()), 1), tasker.failure_in_words(s.error))
           WHEN 'at_limit' THEN format('starts when one of the %s attempts that are out has ended: max_parallel_steps is %s',
               c.outstanding, m.max_parallel_steps)
           WHEN 'no_handler_alive' THEN format('needs the Go handler %s, and %s', s.handler,
               CASE alive.workers WHEN 0 THEN 'no worker is alive' ELSE format('none of the workers alive (%s) has it', alive.workers) END)
           WHEN 'no_worker_alive' THEN 'may start, and no worker is alive that would start it'
           ELSE format('attempt %s of %s may start now', s.attempts_used + 1, s.attempt_limit)
       END AS explanation,
       s.dependencies AS dependencies_total,
       d.satisfied AS dependencies_satisfied,
       d.waiting_on,
       s.attempts, s.attempts_used, s.attempt_limit,
       CASE WHEN s.state = 'waiting_for_retry' THEN s.retry_at END AS retry_at,
       CASE WHEN s.state = 'waiting_for_retry' THEN greatest(extract(epoch FROM s.retry_at - now()), 0)::double precision END AS seconds_until_retry
FROM tasker.tasks t
JOIN tasker.task_templates m USING (template_id)
-- Who is alive. OFFSET 0 keeps each of these subqueries whole, so that it is
-- computed once: per query here, per task below.
CROSS JOIN (
    SELECT (SELECT count(*) FROM tasker.workers w
            WHERE w.state = 'alive' AND greatest(w.last_seen_at, pg_postmaster_start_time()) > now() - interval '10 seconds') AS workers,
           ARRAY(SELECT jsonb_array_elements_text(w.details -> 'handlers') FROM tasker.workers w
                 WHERE w.state = 'alive' AND greatest(w.last_seen_at, pg_postmaster_start_time()) > now() - interval '10 seconds'
                   AND jsonb_typeof(w.details -> 'handlers') = 'array') AS handlers,
           EXISTS (SELECT FROM tasker.processes p
                   WHERE p.stopped_at IS NULL AND greatest(p.last_seen_at, pg_postmaster_start_time()) > now() - interval '10 seconds') AS process
    OFFSET 0) alive
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE s.state IN ('enqueued', 'in_progress')) AS outstanding,
           count(*) FILTER (WHERE s.state = 'error') AS failed,
           array_to_string((array_agg(s.name || CASE s.state WHEN 'error' THEN format(' (error: %s)', tasker.failure_in_words(s.error)) ELSE ' (cancelled)' END
               ORDER BY s.position) FILTER (WHERE s.state IN ('error', 'cancelled')))[1:3], ', ') AS failed_words
    FROM tasker.steps s WHERE s.task_id = t.task_id) c
CROSS JOIN LATERAL (
    -- barred: what fails or is cancelled bars what depends on it, and so on
    -- down, through steps that are yet to start. A step that was skipped,
    -- resolved, or whose attempt is out passes it on to nobody. The edges are
    -- one JSON object, {dependency: [dependents]}, so that each round of the
    -- recursion looks up what it needs instead of reading them all: a chain of
    -- 10,000 steps takes as many rounds.
    WITH RECURSIVE edges AS MATERIALIZED (
        SELECT jsonb_object_agg(g.dependency, g.dependents) AS below
        FROM (SELECT e.dependency, jsonb_agg(w.position) AS dependents
              FROM tasker.steps w
              JOIN tasker.template_steps x ON x.template_id = t.template_id AND x.position = w.position
              CROSS JOIN LATERAL unnest(x.depends_on) AS e(dependency)
              WHERE w.task_id = t.task_id AND w.state IN ('pending', 'waiting_for_retry')
              GROUP BY e.dependency) g
    ), barred(position) AS (
        SELECT b.position FROM tasker.steps b WHERE b.task_id = t.task_id AND b.state IN ('error', 'cancelled')
        UNION
        SELECT e.position::int
        FROM barred b CROSS JOIN LATERAL jsonb_array_elements_text((SELECT below FROM edges) -> b.position::text) AS e(position)
    )
    SELECT w.step_id, w.position, w.name, w.state, w.attempts, w.retry_at, w.started_at, w.error,
           w.attempts - w.losses - w.forgiven AS attempts_used,
           x.attempt_limit, x.handler, x.queue, x.depends_on, cardinality(x.depends_on) AS dependencies,
           b.position IS NOT NULL AS barred
    FROM tasker.steps w
    JOIN tasker.template_steps x ON x.template_id = t.template_id AND x.position = w.position
    LEFT JOIN barred b ON b.position = w.position
    WHERE w.task_id = t.task_id) s
CROSS JOIN LATERAL (
    SELECT (count(*) FILTER (WHERE u.satisfied))::int AS satisfied,
           coalesce(bool_or(u.state IN ('error', 'cancelled')), false) AS failed,
           coalesce(array_agg(u.name ORDER BY u.position) FILTER (WHERE NOT u.satisfied), '{}') AS waiting_on,
           array_to_string((array_agg(format('%s (%s%s)', u.name, replace(u.state, '_', ' '),
                   CASE WHEN u.state = 'error' THEN ': ' || tasker.failure_in_words(u.error) END)
               ORDER BY u.state NOT IN ('error', 'cancelled'), u.position) FILTER (WHERE NOT u.satisfied))[1:5], ', ')
           || CASE WHEN count(*) FILTER (WHERE NOT u.satisfied) > 5
              THEN format(' and %s more', count(*) FILTER (WHERE NOT u.satisfied) - 5) ELSE '' END AS words
    FROM unnest(s.depends_on) AS e(dependency)
    CROSS JOIN LATERAL (
        -- OFFSET 0: by index, one by one, however few steps a task has on average.
        SELECT p.position, p.name, p.state, p.error, p.state IN ('complete', 'skipped', 'resolved_manually') AS satisfied
        FROM tasker.steps p WHERE p.task_id = t.task_id AND p.position = e.dependency OFFSET 0) u) d
-- The first reason that holds. What ends the matter comes first, then what the
-- step waits for, then what merely delays a start that is due.
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN s.state IN ('complete', 'skipped', 'resolved_manually', 'cancelled') THEN 'finished'
        WHEN s.state = 'error' AND s.attempts_used >= s.attempt_limit AND coalesce(s.error ->> 'permanent', '') <> 'true' THEN 'attempts_exhausted'
        WHEN s.state = 'error' THEN 'failed'
        WHEN t.state = 'cancelled' THEN 'task_cancelled'
        WHEN s.state = 'in_progress' THEN 'running'
        WHEN s.state = 'enqueued' THEN CASE WHEN alive.process THEN 'enqueued' ELSE 'no_process_alive' END
        WHEN t.state NOT IN ('pending', 'in_progress', 'error') THEN 'task_finished'
        WHEN s.barred THEN 'blocked'
        WHEN t.state = 'error' THEN 'task_finished'
        WHEN t.paused_at IS NOT NULL THEN 'paused'
        WHEN t.state = 'pending' AND t.run_at > now() THEN 'scheduled'
        WHEN d.satisfied < s.dependencies THEN 'dependencies'
        WHEN c.failed > 0 AND m.definition ->> 'on_failure' = 'fail_fast' THEN 'fail_fast'
        WHEN s.state = 'waiting_for_retry' AND s.retry_at > now() THEN 'backoff'
        WHEN c.outstanding >= m.max_parallel_steps THEN 'at_limit'
        WHEN s.handler IS NOT NULL AND s.handler <> ALL (alive.handlers) THEN 'no_handler_alive'
        WHEN alive.workers = 0 THEN 'no_worker_alive'
        ELSE 'ready' END AS reason) r;
COMMENT ON VIEW tasker.step_readiness IS 'Per step: whether it may start now, and if not, why; filter by task_id';

CREATE OR REPLACE FUNCTION tasker.sweep() RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    found_tasks bigint[];
    w record;
    n int := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(tasker.fence_class(), 0) THEN
        RETURN 0;
    END IF;
    -- Jobs that run in clients which are gone.
    FOR w IN
        SELECT DISTINCT j.attempted_by[cardinality(j.attempted_by)] AS client FROM tasker.river_job j
        WHERE j.state = 'running' AND j.kind = 'task_execution'
          AND NOT EXISTS (SELECT FROM tasker.workers d WHERE d.client_id = j.attempted_by[cardinality(j.attempted_by)] AND d.state = 'alive')
    LOOP
        n := n + cardinality(tasker.rescue_jobs(w.client));
    END LOOP;
    -- Tasks of workers that are gone.
    FOR w IN
        SELECT DISTINCT t.owner FROM tasker.tasks t
        WHERE t.owner IS NOT NULL AND NOT EXISTS (SELECT FROM tasker.workers d WHERE d.worker_id = t.owner AND d.state = 'alive')
    LOOP
        n := n + tasker.release_worker(w.owner, '');
    END LOOP;
    -- Open tasks that nobody owns and nothing would bring back.
    SELECT array_agg(t.task_id) INTO found_tasks
    FROM (SELECT o.task_id FROM tasker.tasks o
          WHERE o.state IN ('pending', 'in_progress') AND o.owner IS NULL AND o.paused_at IS NULL
            AND NOT EXISTS (SELECT FROM tasker.dispatches d WHERE d.task_id = o.task_id AND d.failure IS NULL)
          EXCEPT
          SELECT (j.args ->> 'task_id')::bigint FROM tasker.river_job j
          WHERE j.kind = 'task_execution' AND j.state IN ('available', 'running', 'scheduled', 'retryable', 'pending')
          LIMIT 10000) t;
    IF found_tasks IS NOT NULL THEN
        PERFORM tasker.schedule_runs(array_agg(t.task_id), array_agg(greatest(0, coalesce(extract(epoch FROM t.run_at - clock_timestamp()), 0))::double precision))
        FROM tasker.tasks t WHERE t.task_id = ANY (found_tasks);
        n := n + cardinality(found_tasks);
    END IF;
    -- What nobody will ask about any more.
    DELETE FROM tasker.workers d WHERE d.state <> 'alive' AND d.last_seen_at < now() - interval '7 days'
        AND NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.owner = d.worker_id);
    DELETE FROM tasker.processes p WHERE p.last_seen_at < now() - interval '7 days'
        AND NOT EXISTS (SELECT FROM tasker.dispatches d WHERE d.process_id = p.process_id);
    RETURN n;
END $$;

DROP FUNCTION tasker.gate_rank(timestamptz, int);
DELETE FROM tasker.events WHERE task_id IS NULL;
ALTER TABLE tasker.events ALTER COLUMN task_id SET NOT NULL;
ALTER TABLE tasker.steps DROP COLUMN gated;
DROP TABLE tasker.gate_waiters, tasker.gate_slots, tasker.gates;
