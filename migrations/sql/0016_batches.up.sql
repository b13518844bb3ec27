-- Many attempts are started by one call, as their results are reported by one.

ALTER TABLE tasker.dispatches ADD COLUMN call_id bigint;
COMMENT ON COLUMN tasker.dispatches.call_id IS 'the call that started the attempt: asked again, it gets the same answer';

CREATE FUNCTION tasker.start_attempts(step_ids bigint[], attempts int[], process_id bigint DEFAULT NULL, call_id bigint DEFAULT NULL)
RETURNS TABLE (
    step_id bigint, attempt int, refusal text,
    task_id bigint, namespace text, name text, version text, context jsonb, priority smallint, correlation_id text, parent_task_id bigint,
    tags text[], initiator text, source_system text, reason text, created_at timestamptz,
    step_name text, attempts_used int, attempt_limit int, handler_class text, config jsonb, timeout_seconds double precision,
    heartbeat_seconds double precision, progress jsonb, dependencies json, carrier jsonb)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off 
SET plan_cache_mode = force_generic_plan -- planning would cost more than all the rest
AS $$
#variable_conflict use_column
DECLARE
    free bigint[];
BEGIN
    IF array_ndims(step_ids) > 1 OR cardinality(step_ids) IS DISTINCT FROM cardinality(attempts)
       OR (SELECT count(DISTINCT u) FROM unnest(step_ids) u) IS DISTINCT FROM cardinality(step_ids) THEN
        RAISE EXCEPTION 'start_attempts wants one attempt for each step, and each step once' USING ERRCODE = 'TK007';
    END IF;

    -- Locked first, looked at afterwards: a report that gives the attempt up
    -- holds the same lock. Several don't wait for one that somebody's open
    -- transaction holds: it stays enqueued, and is found and pushed again.
    IF cardinality(step_ids) = 1 THEN
        PERFORM FROM tasker.steps u WHERE u.step_id = step_ids[1] FOR NO KEY UPDATE;
        free := step_ids;
    ELSE
        SELECT coalesce(array_agg(l.step_id), '{}') INTO free
        FROM (SELECT u.step_id FROM tasker.steps u WHERE u.step_id = ANY (step_ids) ORDER BY u.step_id FOR NO KEY UPDATE SKIP LOCKED) l;
    END IF;

    RETURN QUERY
    WITH wanted AS MATERIALIZED (
        SELECT w.step_id, w.attempt, w.ord FROM unnest(step_ids, attempts) WITH ORDINALITY AS w(step_id, attempt, ord)
    ), begun AS (
        UPDATE tasker.steps u SET state = 'in_progress', started_at = clock_timestamp()
        FROM wanted w
        WHERE u.step_id = w.step_id AND u.attempts = w.attempt AND u.state = 'enqueued' AND w.step_id = ANY (free)
          AND (SELECT d.failure IS NULL FROM tasker.dispatches d WHERE d.step_id = w.step_id)
        RETURNING u.step_id, u.task_id, u.position, u.started_at, w.attempt, w.ord
    ), marked AS (
        -- An attempt that no process answers for has an hour, if nothing else is said.
        UPDATE tasker.dispatches d
        SET process_id = $3, call_id = $4, started_at = b.started_at, start_by = NULL,
            deadline = b.started_at + make_interval(secs => coalesce(spec.timeout_seconds, CASE WHEN $3 IS NULL AND spec.heartbeat_seconds IS NULL THEN 3600 END)),
            heartbeat = make_interval(secs => spec.heartbeat_seconds), beat_by = b.started_at + make_interval(secs => spec.heartbeat_seconds)
        FROM begun b JOIN tasker.tasks t ON t.task_id = b.task_id
        JOIN tasker.template_steps spec ON spec.template_id = t.template_id AND spec.position = b.position
        WHERE d.step_id = b.step_id
    ), recorded AS (
        INSERT INTO tasker.events (task_id, step_id, attempt, name)
        SELECT b.task_id, b.step_id, b.attempt, 'step.handle' FROM begun b ORDER BY b.ord
    ), judged AS (
        SELECT w.step_id, w.attempt, w.ord, s.task_id, s.position, s.name AS step_name, s.progress, s.attempts - s.losses - s.forgiven AS used, CASE
            WHEN b.step_id IS NOT NULL THEN NULL
            WHEN s.step_id IS NULL THEN format('there is no step %s', w.step_id)
            WHEN s.attempts <> w.attempt THEN format('step %s (%s) is at attempt %s, not %s', w.step_id, s.name, s.attempts, w.attempt)
            -- Begun by this very call, whose answer was lost.
            WHEN s.state = 'in_progress' AND EXISTS (SELECT FROM tasker.dispatches d WHERE d.step_id = w.step_id AND d.call_id = $4 AND d.failure IS NULL) THEN NULL
            WHEN s.state = 'enqueued' AND w.step_id <> ALL (free) THEN format('step %s (%s) is held by another transaction', w.step_id, s.name)
            WHEN s.state = 'enqueued' THEN format('attempt %s of step %s (%s) has been reported', w.attempt, w.step_id, s.name)
            ELSE format('attempt %s of step %s (%s) is %s', w.attempt, w.step_id, s.name, s.state) END AS refusal
        FROM wanted w LEFT JOIN begun b ON b.step_id = w.step_id
        LEFT JOIN tasker.steps s ON s.step_id = w.step_id
    )
    SELECT j.step_id, j.attempt, j.refusal,
           t.task_id, t.namespace, t.name, t.version, t.context, t.priority, t.correlation_id, t.parent_task_id, t.tags,
           t.initiator, t.source_system, t.reason, t.created_at,
           j.step_name, j.used, spec.attempt_limit, spec.handler_class, spec.handler_config, spec.timeout_seconds::double precision,
           spec.heartbeat_seconds::double precision, j.progress,
           CASE WHEN cardinality(spec.depends_on) > 0 THEN (
               SELECT json_object_agg(u.name, u.result ORDER BY u.position)
               FROM tasker.steps u WHERE u.task_id = j.task_id AND u.position = ANY (spec.depends_on)) END,
           t.carrier
    FROM judged j
    LEFT JOIN tasker.tasks t ON t.task_id = j.task_id AND j.refusal IS NULL
    LEFT JOIN tasker.template_steps spec ON spec.template_id = t.template_id AND spec.position = j.position
    ORDER BY j.ord;
END $$;

COMMENT ON FUNCTION tasker.start_attempts IS
    'Starts attempts that the engine has dispatched, all that may start: one row for each, in the order of the question. With a call_id, the same call may be repeated';

-- The same, of one, as a document.
CREATE OR REPLACE FUNCTION tasker.start_attempt(step_id bigint, attempt int, process_id bigint DEFAULT NULL) RETURNS jsonb
LANGUAGE sql AS $$
    SELECT CASE WHEN a.refusal IS NOT NULL THEN jsonb_build_object('status', 'refused', 'reason', a.refusal) ELSE jsonb_build_object(
        'status', 'started',
        'task', jsonb_build_object(
            'task_id', a.task_id, 'namespace', a.namespace, 'name', a.name, 'version', a.version,
            'context', a.context, 'priority', a.priority, 'correlation_id', a.correlation_id, 'parent_task_id', a.parent_task_id, 'tags', a.tags,
            'initiator', a.initiator, 'source_system', a.source_system, 'reason', a.reason, 'carrier', a.carrier,
            'created_at', to_char(a.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')),
        'step', jsonb_build_object(
            'step_id', a.step_id, 'name', a.step_name, 'attempt', a.attempt, 'attempts_used', a.attempts_used, 'attempt_limit', a.attempt_limit,
            'handler_class', a.handler_class, 'config', a.config, 'timeout_seconds', a.timeout_seconds, 'heartbeat_seconds', a.heartbeat_seconds,
            'progress', a.progress, 'depends_on', coalesce((SELECT jsonb_agg(k) FROM json_object_keys(a.dependencies) k), '[]')),
        'dependencies', coalesce(a.dependencies::jsonb, '{}')) END
    FROM tasker.start_attempts(ARRAY[$1], ARRAY[$2], $3) a
$$;

-- As it was, but looked through once, planned once, and on request without waiting
-- for anybody.
CREATE FUNCTION tasker.report_results(reports jsonb, wait boolean)
RETURNS TABLE (step_id bigint, attempt int, accepted boolean, reason text)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    bad jsonb;
    ids  bigint[];
    free bigint[];
    held bigint[] := '{}';
BEGIN
    IF jsonb_typeof(reports) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION 'reports must be a JSON array, not %', coalesce(jsonb_typeof(reports), 'NULL') USING ERRCODE = 'TK007';
    END IF;
    SELECT j.e INTO bad FROM jsonb_array_elements(reports) AS j(e)
    WHERE NOT coalesce(jsonb_typeof(j.e) = 'object' AND j.e ->> 'step_id' ~ '^\d{1,18}$' AND j.e ->> 'attempt' ~ '^\d{1,9}$'
            AND coalesce(j.e ->> 'call_id', '0') ~ '^\d{1,18}$'
            AND (j.e ->> 'outcome' IN ('success', 'lost') OR j.e ->> 'outcome' = 'failure' AND jsonb_typeof(j.e -> 'failure') = 'object'), false)
        OR pg_column_size(j.e) > 1048576 AND (pg_column_size(j.e -> 'result') > 4194304 OR pg_column_size(j.e -> 'failure') > 1048576)
    LIMIT 1;
    IF pg_column_size(bad -> 'result') > 4194304 THEN
        RAISE EXCEPTION 'the result of step % has % bytes, at most 4 MiB are kept', bad ->> 'step_id', pg_column_size(bad -> 'result')
        USING ERRCODE = 'TK007', HINT = 'store the data and report a reference';
    ELSIF pg_column_size(bad -> 'failure') > 1048576 THEN
        RAISE EXCEPTION 'the failure of step % has % bytes, at most 1 MiB are kept', bad ->> 'step_id', pg_column_size(bad -> 'failure')
        USING ERRCODE = 'TK007', HINT = 'shorten the message, the backtrace or the context';
    ELSIF bad IS NOT NULL THEN
        RAISE EXCEPTION 'malformed report %', left(bad::text, 200)
        USING ERRCODE = 'TK007',
              HINT = 'a report has step_id, attempt, outcome (success, failure, lost), and with failure an object of that name';
    END IF;

    -- A result that doesn't fit its schema is a failure that no retry mends.
    IF EXISTS (SELECT FROM tasker.template_steps ts WHERE ts.result_schema IS NOT NULL) THEN
        SELECT jsonb_agg(CASE WHEN misfit.problem IS NULL THEN x.e ELSE x.e - 'result' || jsonb_build_object('outcome', 'failure', 'failure',
                   jsonb_build_object('class', 'Result', 'code', 'result_schema', 'permanent', true, 'attempt', x.e -> 'attempt',
                                      'message', 'the result does not fit the result_schema of its step: ' || misfit.problem)) END ORDER BY x.ord)
        INTO reports
        FROM jsonb_array_elements(reports) WITH ORDINALITY AS x(e, ord)
        LEFT JOIN LATERAL (
            SELECT tasker.schema_problem(ts.result_schema, coalesce(x.e -> 'result', 'null')) AS problem
            FROM tasker.steps s JOIN tasker.tasks t USING (task_id)
            JOIN tasker.template_steps ts ON ts.template_id = t.template_id AND ts.position = s.position
            WHERE s.step_id = (x.e ->> 'step_id')::bigint AND ts.result_schema IS NOT NULL AND x.e ->> 'outcome' = 'success') misfit ON true;
        reports := coalesce(reports, '[]');
    END IF;

    -- Serialises reports of one step with each other and with the loop's
    -- writes, in the order of ids.
    ids := ARRAY(SELECT (j.e ->> 'step_id')::bigint FROM jsonb_array_elements(reports) AS j(e));
    IF wait THEN
        PERFORM FROM tasker.steps s WHERE s.step_id = ANY (ids) ORDER BY s.step_id FOR NO KEY UPDATE;
    ELSE
        SELECT coalesce(array_agg(l.step_id), '{}') INTO free
        FROM (SELECT s.step_id FROM tasker.steps s WHERE s.step_id = ANY (ids) ORDER BY s.step_id FOR NO KEY UPDATE SKIP LOCKED) l;
        -- Of those that are not free, none that could be accepted is judged.
        held := ARRAY(SELECT s.step_id FROM tasker.steps s WHERE s.step_id = ANY (ids) AND s.step_id <> ALL (free));
        ids := free;
    END IF;
    PERFORM FROM tasker.dispatches d WHERE d.step_id = ANY (ids) ORDER BY d.step_id FOR UPDATE;

    -- A new snapshot from here on: what the locks waited for is visible.
    RETURN QUERY
    WITH r AS (
        SELECT (e ->> 'step_id')::bigint AS step_id, (e ->> 'attempt')::int AS attempt, e ->> 'outcome' AS outcome,
               coalesce(e -> 'result', 'null') AS result, e -> 'failure' AS failure, (e ->> 'call_id')::bigint AS call_id, ord,
               row_number() OVER (PARTITION BY (e ->> 'step_id')::bigint, (e ->> 'attempt')::int ORDER BY ord) AS nth
        FROM jsonb_array_elements(reports) WITH ORDINALITY AS x(e, ord)
        WHERE (e ->> 'step_id')::bigint <> ALL (held)
    ), judged AS MATERIALIZED (
        SELECT r.*, s.task_id, CASE
            WHEN s.step_id IS NULL THEN format('there is no step %s', r.step_id)
            WHEN s.attempts <> r.attempt THEN format('step %s (%s) is at attempt %s, not %s', r.step_id, s.name, s.attempts, r.attempt)
            WHEN s.state NOT IN ('enqueued', 'in_progress') THEN format('step %s (%s) is %s', r.step_id, s.name, s.state)
            WHEN d.step_id IS NULL THEN format('step %s (%s) was not given to a process', r.step_id, s.name)
            WHEN r.call_id IS NOT NULL AND d.call_id IS DISTINCT FROM r.call_id THEN
                format('attempt %s of step %s (%s) was not started by call %s', r.attempt, r.step_id, s.name, r.call_id)
            WHEN d.failure IS NOT NULL OR r.nth > 1 THEN format('attempt %s of step %s (%s) has been reported', r.attempt, r.step_id, s.name)
        END AS refusal
        FROM r LEFT JOIN tasker.steps s ON s.step_id = r.step_id
               LEFT JOIN tasker.dispatches d ON d.step_id = r.step_id
    ), completed AS (
        UPDATE tasker.steps s SET state = 'complete', result = j.result, finished_at = clock_timestamp()
        FROM judged j WHERE s.step_id = j.step_id AND j.refusal IS NULL AND j.outcome = 'success'
    ), done AS (
        DELETE FROM tasker.dispatches d USING judged j
        WHERE d.step_id = j.step_id AND j.refusal IS NULL AND j.outcome = 'success'
        RETURNING d.step_id, d.task_id, d.awaited_by, d.step_id || '.' || d.attempt || '.' || d.task_id AS word
    ), failed AS (
        -- Kept here until the finalizer, which alone decides on retries, takes it.
        UPDATE tasker.dispatches d SET failure = CASE j.outcome WHEN 'lost' THEN '{"lost": true}'::jsonb ELSE j.failure END
        FROM judged j WHERE d.step_id = j.step_id AND j.refusal IS NULL AND j.outcome <> 'success'
        RETURNING d.step_id, d.task_id, d.awaited_by, d.step_id::text AS word
    ), recorded AS (
        INSERT INTO tasker.events (task_id, step_id, attempt, name, data)
        SELECT j.task_id, j.step_id, j.attempt,
               CASE WHEN j.refusal IS NULL THEN 'step.completed' ELSE 'step.report_refused' END,
               CASE WHEN j.refusal IS NOT NULL THEN jsonb_build_object('reason', j.refusal, 'outcome', j.outcome) END
        FROM judged j WHERE j.task_id IS NOT NULL AND (j.refusal IS NOT NULL OR j.outcome = 'success')
        ORDER BY j.ord
    ), woken AS (
        SELECT * FROM done UNION ALL SELECT * FROM failed
    ), parked AS (
        -- Nobody holds these tasks: a River job makes a worker take them.
        INSERT INTO tasker.river_job (kind, args, queue, priority, max_attempts)
        SELECT 'task_execution', jsonb_build_object('task_id', t.task_id), 'default', t.priority, 1000
        FROM tasker.tasks t
        WHERE t.task_id = ANY (ARRAY(SELECT w.task_id FROM woken w WHERE w.awaited_by IS NULL)) ORDER BY t.task_id
    ), rung AS (
        SELECT count(pg_notify('tasker.worker_' || c.awaited_by, c.ids)) + (
                   SELECT count(tasker.notify_river()) FROM (SELECT 1 FROM woken w WHERE w.awaited_by IS NULL LIMIT 1) one) AS n
        -- What is complete is told whole; a failure is to be read.
        FROM (SELECT w.awaited_by, CASE WHEN w.complete THEN 'c' ELSE '' END || string_agg(w.word, ',') AS ids
              FROM (SELECT u.*, position('.' IN u.word) > 0 AS complete,
                           row_number() OVER (PARTITION BY u.awaited_by, position('.' IN u.word) > 0) / 150 AS chunk -- a payload has less than 8,000 bytes
                    FROM woken u WHERE u.awaited_by IS NOT NULL) w
              GROUP BY w.awaited_by, w.complete, w.chunk) c
    )
    SELECT a.step_id, a.attempt, a.accepted, a.reason FROM (
        SELECT j.step_id, j.attempt, j.refusal IS NULL AS accepted, j.refusal AS reason, j.ord FROM judged j, rung
        UNION ALL
        SELECT (e ->> 'step_id')::bigint, (e ->> 'attempt')::int, NULL, format('step %s is held by another transaction', e ->> 'step_id'), ord
        FROM jsonb_array_elements(reports) WITH ORDINALITY AS x(e, ord) WHERE (e ->> 'step_id')::bigint = ANY (held)) a
    ORDER BY a.ord;
END $$;

COMMENT ON FUNCTION tasker.report_results(jsonb, boolean) IS
    'With wait false, a report whose step an open transaction holds is left for later: accepted is NULL';

CREATE OR REPLACE FUNCTION tasker.report_results(reports jsonb)
RETURNS TABLE (step_id bigint, attempt int, accepted boolean, reason text)
LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT * FROM tasker.report_results(reports, true);
END $$;

ALTER TABLE tasker.processes ADD COLUMN seconds jsonb;
COMMENT ON COLUMN tasker.processes.seconds IS
    'how long the handlers take that the process has run of late, by class, in seconds; NULL: it takes one attempt per Sidekiq job';

-- The beat of a process that takes several attempts in one job.
CREATE FUNCTION tasker.process_beat(process_id bigint, seconds jsonb) RETURNS boolean
LANGUAGE sql AS $$
    WITH beat AS (
        UPDATE tasker.processes p SET last_seen_at = clock_timestamp(), seconds = coalesce($2, '{}')
        WHERE p.process_id = $1 AND p.stopped_at IS NULL RETURNING 1)
    SELECT EXISTS (SELECT FROM beat)
$$;

-- As it was, but for one thing: a task is found by its key. All tasks of the
-- worker, compared with all units of the batch, cost most of it under load.
CREATE OR REPLACE FUNCTION tasker.write_batch(
    worker bigint,
    task_ids bigint[], task_epochs int[], task_states text[], task_errors text[], task_release boolean[], task_rerun double precision[],
    step_ids bigint[], step_tasks bigint[], step_was text[], step_was_attempt int[],
    step_states text[], step_attempts int[], step_losses int[], step_results text[], step_errors text[],
    step_retry_in double precision[], step_queues text[],
    settled bigint[], parked bigint[],
    step_start_in double precision[], gate_steps bigint[], gate_ids int[], gates_seen bigint)
RETURNS bigint[]
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET lock_timeout = '100ms'
SET plan_cache_mode = force_generic_plan
SET jit = off -- a scan of the few gates has the price of a forbidden one, and that would have it compiled, for 90 ms
AS $$
DECLARE
    n      int;
    faults text;
    denied bigint[] := '{}'; -- claims that a gate did not let pass
BEGIN
    PERFORM tasker.assert_worker(worker);

    -- Who claims must know the gates as they are.
    IF gates_seen <> (SELECT coalesce(sum(g.version), 0) FROM tasker.gates g) THEN
        SELECT string_agg(DISTINCT w.task_id::text, ',') INTO faults FROM unnest(step_tasks, step_states) AS w(task_id, state)
        WHERE w.state IN ('enqueued', 'in_progress');
        RAISE EXCEPTION 'the gates have changed' USING ERRCODE = 'TK009', DETAIL = coalesce(faults, '');
    END IF;

    -- Only tasks that change are locked; of the others it is enough that the
    -- loop still owns them, as only this worker or its reaper can change that.
    SELECT count(*) INTO n FROM unnest(task_ids, task_epochs) AS l(task_id, epoch)
    JOIN tasker.tasks t ON t.task_id = l.task_id AND t.owner + 0 = worker AND t.epoch = l.epoch; -- by the task's key, not by its owner's
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
        WHERE t.task_id = l.task_id AND t.owner + 0 = worker AND t.epoch = l.epoch AND (l.state IS NOT NULL OR l.release);
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> (SELECT count(*) FROM unnest(task_states, task_release) AS l(state, release) WHERE l.state IS NOT NULL OR l.release) THEN
            RAISE EXCEPTION 'a loop has lost its task' USING ERRCODE = 'TK005';
        END IF;
    END IF;

    IF cardinality(gate_steps) > 0 THEN
        denied := tasker.pass_gates(gate_steps, gate_ids);
    END IF;
    IF gates_seen > 0 THEN -- who starts waits no more, also where its gate has been lifted
        DELETE FROM tasker.gate_waiters l WHERE l.step_id = ANY (step_ids) AND l.step_id <> ALL (denied);
    END IF;

    IF cardinality(step_ids) > 0 THEN
        UPDATE tasker.steps s
        SET state       = w.state,
            gated       = s.gated OR w.step_id = ANY (gate_steps),
            attempts    = w.attempt,
            losses      = w.losses,
            result      = coalesce(w.result::jsonb, s.result),
            error       = coalesce(w.error::jsonb, s.error),
            retry_at    = CASE WHEN w.retry_in IS NOT NULL THEN clock_timestamp() + make_interval(secs => w.retry_in) END,
            started_at  = CASE WHEN w.state = 'in_progress' THEN clock_timestamp() WHEN w.state = 'enqueued' THEN NULL ELSE s.started_at END,
            finished_at = CASE WHEN w.state IN ('complete', 'error', 'cancelled', 'skipped') THEN clock_timestamp() END
        FROM unnest(step_ids, step_was, step_was_attempt, step_states, step_attempts, step_losses, step_results, step_errors, step_retry_in)
             AS w(step_id, was, was_attempt, state, attempt, losses, result, error, retry_in)
        WHERE s.step_id = w.step_id AND s.state = w.was AND s.attempts = w.was_attempt AND w.step_id <> ALL (denied);
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> cardinality(step_ids) - cardinality(denied) THEN
            -- What was written has its new state by now; the rest has not.
            SELECT string_agg(DISTINCT w.task_id::text, ',') INTO faults
            FROM unnest(step_ids, step_tasks, step_states, step_attempts) AS w(step_id, task_id, state, attempt)
            WHERE w.step_id <> ALL (denied)
              AND NOT EXISTS (SELECT FROM tasker.steps s WHERE s.step_id = w.step_id AND s.state = w.state AND s.attempts = w.attempt);
            RAISE EXCEPTION 'a step is not in the state that its loop saw' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
        END IF;

        -- Looked at again now that the steps are held: a deadline that passed
        -- meanwhile has left steps alone that had not begun.
        IF gates_seen IS NOT NULL THEN
            SELECT count(*) - count(t.epoch) INTO n
            FROM unnest(task_ids, task_epochs, task_states, task_release) AS l(task_id, epoch, state, release)
            CROSS JOIN LATERAL (SELECT (SELECT u.epoch FROM tasker.tasks u WHERE u.task_id = l.task_id AND u.epoch = l.epoch)) AS t(epoch) -- by its key, one by one
            WHERE l.state IS NULL AND NOT l.release;
            IF n > 0 THEN
                SELECT string_agg(l.task_id::text, ',') INTO faults FROM unnest(task_ids, task_epochs, task_states, task_release) AS l(task_id, epoch, state, release)
                WHERE l.state IS NULL AND NOT l.release AND NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.task_id = l.task_id AND t.epoch = l.epoch);
                RAISE EXCEPTION 'a loop has lost its task' USING ERRCODE = 'TK005', DETAIL = faults;
            END IF;
        END IF;

        INSERT INTO tasker.dispatches AS d (step_id, task_id, attempt, queue, awaited_by, start_by)
        SELECT w.step_id, w.task_id, w.attempt, w.queue, worker, clock_timestamp() + make_interval(secs => w.start_in)
        FROM unnest(step_ids, step_tasks, step_attempts, step_states, step_queues, step_start_in) AS w(step_id, task_id, attempt, state, queue, start_in)
        WHERE w.state = 'enqueued' AND w.step_id <> ALL (denied);

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
        WHERE w.step_id <> ALL (denied)
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
    RETURN denied;
END $$;

-- Where steps stand. Functions, because of their settings: a plan made while
-- nothing was out at Sidekiq would read all of dispatches for each step.
CREATE FUNCTION tasker.steps_of(task_ids bigint[])
RETURNS TABLE (task_id bigint, step_id bigint, state text, attempts int, losses int, forgiven int, retry_in double precision, dispatched boolean,
               progress jsonb, failure jsonb)
LANGUAGE plpgsql STABLE SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT s.task_id, s.step_id, s.state, s.attempts, s.losses, s.forgiven,
           coalesce(extract(epoch FROM s.retry_at - clock_timestamp()), 0)::double precision, d.step_id IS NOT NULL, s.progress, d.failure
    FROM tasker.steps s LEFT JOIN tasker.dispatches d ON d.step_id = s.step_id
    WHERE s.task_id = ANY (task_ids) ORDER BY s.task_id, s.position;
END $$;

CREATE FUNCTION tasker.reports_of(step_ids bigint[])
RETURNS TABLE (task_id bigint, step_id bigint, state text, attempts int, failure jsonb)
LANGUAGE plpgsql STABLE SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT s.task_id, s.step_id, s.state, s.attempts, d.failure
    FROM tasker.steps s LEFT JOIN tasker.dispatches d ON d.step_id = s.step_id
    WHERE s.step_id = ANY (step_ids) ORDER BY s.step_id;
END $$;
