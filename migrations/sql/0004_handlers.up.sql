-- tasker: what a process that runs handlers may do: start an attempt, report
-- results, say that it lives. docs/protocol.md describes these calls for
-- people who write handlers; they are a public contract.

CREATE FUNCTION tasker.start_attempt(step_id bigint, attempt int, process_id bigint DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    s      tasker.steps;
    t      tasker.tasks;
    spec   tasker.template_steps;
    deps   jsonb;
    d_list jsonb;
BEGIN
    -- Locked first, looked at afterwards: a report that gives the attempt up
    -- holds the same lock.
    PERFORM FROM tasker.steps u WHERE u.step_id = $1 FOR NO KEY UPDATE;
    UPDATE tasker.steps u SET state = 'in_progress', started_at = clock_timestamp()
    WHERE u.step_id = $1 AND u.attempts = $2 AND u.state = 'enqueued'
      AND NOT EXISTS (SELECT FROM tasker.dispatches d WHERE d.step_id = $1 AND d.failure IS NOT NULL)
    RETURNING u.* INTO s;
    IF NOT FOUND THEN
        SELECT u.* INTO s FROM tasker.steps u WHERE u.step_id = $1;
        RETURN jsonb_build_object('status', 'refused', 'reason', CASE
            WHEN NOT FOUND THEN format('there is no step %s', $1)
            WHEN s.attempts <> $2 THEN format('step %s (%s) is at attempt %s, not %s', $1, s.name, s.attempts, $2)
            WHEN s.state = 'enqueued' THEN format('attempt %s of step %s (%s) has been reported', $2, $1, s.name)
            ELSE format('attempt %s of step %s (%s) is %s', $2, $1, s.name, s.state) END);
    END IF;

    SELECT u.* INTO t FROM tasker.tasks u WHERE u.task_id = s.task_id;
    SELECT u.* INTO spec FROM tasker.template_steps u WHERE u.template_id = t.template_id AND u.position = s.position;
    -- An attempt that no process answers for has an hour, if nothing else is said.
    UPDATE tasker.dispatches d
    SET process_id = $3, started_at = s.started_at,
        deadline = s.started_at + make_interval(secs => coalesce(spec.timeout_seconds, CASE WHEN $3 IS NULL THEN 3600 END))
    WHERE d.step_id = $1;
    INSERT INTO tasker.events (task_id, step_id, attempt, name) VALUES (s.task_id, $1, $2, 'step.handle');
    SELECT coalesce(jsonb_object_agg(u.name, u.result), '{}'), coalesce(jsonb_agg(u.name ORDER BY u.position), '[]')
    INTO deps, d_list
    FROM tasker.steps u WHERE u.task_id = s.task_id AND u.position = ANY (spec.depends_on);

    RETURN jsonb_build_object(
        'status', 'started',
        'task', jsonb_build_object(
            'task_id', t.task_id, 'namespace', t.namespace, 'name', t.name, 'version', t.version,
            'context', t.context, 'priority', t.priority, 'correlation_id', t.correlation_id, 'tags', t.tags,
            'initiator', t.initiator, 'source_system', t.source_system, 'reason', t.reason,
            'created_at', to_char(t.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')),
        'step', jsonb_build_object(
            'step_id', $1, 'name', s.name, 'attempt', $2, 'attempts_used', $2 - s.losses - s.forgiven, 'attempt_limit', spec.attempt_limit,
            'handler_class', spec.handler_class, 'config', spec.handler_config, 'timeout_seconds', spec.timeout_seconds,
            'depends_on', d_list),
        'dependencies', deps);
END $$;

CREATE FUNCTION tasker.report_results(reports jsonb)
RETURNS TABLE (step_id bigint, attempt int, accepted boolean, reason text)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    bad jsonb;
BEGIN
    IF jsonb_typeof(reports) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION 'reports must be a JSON array, not %', coalesce(jsonb_typeof(reports), 'NULL') USING ERRCODE = 'TK007';
    END IF;
    SELECT e INTO bad FROM jsonb_array_elements(reports) e
    WHERE NOT coalesce(jsonb_typeof(e) = 'object' AND e ->> 'step_id' ~ '^\d{1,18}$' AND e ->> 'attempt' ~ '^\d{1,9}$'
        AND (e ->> 'outcome' IN ('success', 'lost') OR e ->> 'outcome' = 'failure' AND jsonb_typeof(e -> 'failure') = 'object'), false)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'malformed report %', left(bad::text, 200)
        USING ERRCODE = 'TK007',
              HINT = 'a report has step_id, attempt, outcome (success, failure, lost), and with failure an object of that name';
    END IF;

    SELECT e INTO bad FROM jsonb_array_elements(reports) e WHERE pg_column_size(e -> 'result') > 4194304 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the result of step % has % bytes, at most 4 MiB are kept', bad ->> 'step_id', pg_column_size(bad -> 'result')
        USING ERRCODE = 'TK007', HINT = 'store the data and report a reference';
    END IF;
    SELECT e INTO bad FROM jsonb_array_elements(reports) e WHERE pg_column_size(e -> 'failure') > 1048576 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the failure of step % has % bytes, at most 1 MiB are kept', bad ->> 'step_id', pg_column_size(bad -> 'failure')
        USING ERRCODE = 'TK007', HINT = 'shorten the message, the backtrace or the context';
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
    PERFORM FROM tasker.steps s
    WHERE s.step_id = ANY (ARRAY(SELECT (e ->> 'step_id')::bigint FROM jsonb_array_elements(reports) e))
    ORDER BY s.step_id FOR NO KEY UPDATE;

    PERFORM FROM tasker.dispatches d
    WHERE d.step_id = ANY (ARRAY(SELECT (e ->> 'step_id')::bigint FROM jsonb_array_elements(reports) e))
    ORDER BY d.step_id FOR UPDATE;

    -- A new snapshot from here on: what the locks waited for is visible.
    RETURN QUERY
    WITH r AS (
        SELECT (e ->> 'step_id')::bigint AS step_id, (e ->> 'attempt')::int AS attempt, e ->> 'outcome' AS outcome,
               coalesce(e -> 'result', 'null') AS result, e -> 'failure' AS failure, ord,
               row_number() OVER (PARTITION BY (e ->> 'step_id')::bigint, (e ->> 'attempt')::int ORDER BY ord) AS nth
        FROM jsonb_array_elements(reports) WITH ORDINALITY AS x(e, ord)
    ), judged AS MATERIALIZED (
        SELECT r.*, s.task_id, CASE
            WHEN s.step_id IS NULL THEN format('there is no step %s', r.step_id)
            WHEN s.attempts <> r.attempt THEN format('step %s (%s) is at attempt %s, not %s', r.step_id, s.name, s.attempts, r.attempt)
            WHEN s.state NOT IN ('enqueued', 'in_progress') THEN format('step %s (%s) is %s', r.step_id, s.name, s.state)
            WHEN d.step_id IS NULL THEN format('step %s (%s) was not given to a process', r.step_id, s.name)
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
        RETURNING d.step_id, d.task_id, d.awaited_by
    ), failed AS (
        -- Kept here until the finalizer, which alone decides on retries, takes it.
        UPDATE tasker.dispatches d SET failure = CASE j.outcome WHEN 'lost' THEN '{"lost": true}'::jsonb ELSE j.failure END
        FROM judged j WHERE d.step_id = j.step_id AND j.refusal IS NULL AND j.outcome <> 'success'
        RETURNING d.step_id, d.task_id, d.awaited_by
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
        FROM (SELECT w.awaited_by, string_agg(w.step_id::text, ',') AS ids
              FROM (SELECT u.*, row_number() OVER (PARTITION BY u.awaited_by) / 300 AS chunk FROM woken u WHERE u.awaited_by IS NOT NULL) w -- a payload has less than 8,000 bytes
              GROUP BY w.awaited_by, w.chunk) c
    )
    SELECT j.step_id, j.attempt, j.refusal IS NULL, j.refusal
    FROM judged j, rung ORDER BY j.ord;
END $$;

CREATE FUNCTION tasker.register_process(identity text, details jsonb DEFAULT '{}') RETURNS bigint
LANGUAGE sql AS $$
    INSERT INTO tasker.processes (identity, details) VALUES ($1, $2) RETURNING process_id
$$;

CREATE FUNCTION tasker.process_beat(process_id bigint) RETURNS boolean
LANGUAGE sql AS $$
    WITH beat AS (
        UPDATE tasker.processes p SET last_seen_at = clock_timestamp()
        WHERE p.process_id = $1 AND p.stopped_at IS NULL RETURNING 1)
    SELECT EXISTS (SELECT FROM beat)
$$;

CREATE FUNCTION tasker.process_stopped(process_id bigint) RETURNS void
LANGUAGE sql AS $$
    UPDATE tasker.processes p SET stopped_at = clock_timestamp() WHERE p.process_id = $1
$$;

-- Reports as lost the attempts that run in processes which have stopped, or
-- have not been seen for the given time, and as failed those whose time is up.
-- Returns how many. A step whose row is locked is being reported: not ours.
CREATE FUNCTION tasker.reap_attempts(silence interval) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    overdue bigint[];
    reports jsonb;
    n       int;
BEGIN
    SELECT array_agg(d.step_id) INTO overdue
    FROM tasker.dispatches d LEFT JOIN tasker.processes p USING (process_id)
    WHERE d.failure IS NULL AND d.started_at IS NOT NULL
      AND (d.deadline < clock_timestamp()
           OR d.process_id IS NOT NULL
              AND (p.process_id IS NULL OR p.stopped_at IS NOT NULL
                   OR greatest(p.last_seen_at, pg_postmaster_start_time()) < clock_timestamp() - silence));
    IF overdue IS NULL THEN
        RETURN 0;
    END IF;
    SELECT array_agg(l.step_id) INTO overdue
    FROM (SELECT s.step_id FROM tasker.steps s WHERE s.step_id = ANY (overdue) ORDER BY s.step_id FOR NO KEY UPDATE SKIP LOCKED) l;
    SELECT jsonb_agg(jsonb_build_object('step_id', d.step_id, 'attempt', d.attempt)
               || CASE WHEN d.deadline < clock_timestamp() THEN jsonb_build_object('outcome', 'failure', 'failure', jsonb_build_object(
                          'class', 'attempt_timeout', 'code', 'attempt_timeout', 'attempt', d.attempt,
                          'message', format('no result within %s', date_trunc('milliseconds', d.deadline - d.started_at))))
                  ELSE '{"outcome": "lost"}' END) INTO reports
    FROM tasker.dispatches d WHERE d.step_id = ANY (overdue) AND d.failure IS NULL;
    IF reports IS NULL THEN
        RETURN 0;
    END IF;
    SELECT count(*) FILTER (WHERE r.accepted) INTO n FROM tasker.report_results(reports) r;
    RETURN n;
END $$;
