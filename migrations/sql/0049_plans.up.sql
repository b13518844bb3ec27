-- tasker: no plan depends on what Postgres believes of its tables.
--
-- Where autovacuum looked at tables in an idle minute, their statistics say "no rows, on
-- many pages" until it looks again. For a table of which it expects one row Postgres reads
-- an index from one end to the other, as the inner side of a join, for each row of the
-- other side: what is in order with a thousand rows took minutes in the flood after an
-- idle moment, and held its locks meanwhile. So, in functions that a step, a worker or an
-- alert waits for:
--
-- * Rows are found by keys: by "= ANY (array)", or by LATERAL (… OFFSET 0), which can't be
--   turned round.
-- * Where rows of a join are changed, on the way of a step, they are found by such an
--   array too, and joined by hash: that costs what the nested loop did.
-- * Other functions are allowed bitmap scans alone: these need a condition on their index.
--   A bitmap of one row costs a microsecond more than an index scan.

DO $plans$
DECLARE
    f record;
    s text;
BEGIN
    FOR f IN SELECT p.oid::regprocedure AS signature FROM pg_proc p
             WHERE p.pronamespace = 'tasker'::regnamespace AND p.proname IN (
                 'reports_of', 'steps_of_tasks', 'pass_gates', 'schedule_runs',
                 'release_worker', 'rescue_jobs', 'rescue_unheard', 'expire_tasks', 'wake_handled', 'waiting_now', 'prune_tasks', 'close_dead_letters')
              OR p.oid = 'tasker.sweep()'::regprocedure
    LOOP
        FOREACH s IN ARRAY '{enable_seqscan,enable_hashjoin,enable_mergejoin,enable_indexscan,enable_indexonlyscan,jit}'::text[] LOOP
            EXECUTE format('ALTER FUNCTION %s SET %I = off', f.signature, s);
        END LOOP;
        EXECUTE format('ALTER FUNCTION %s SET plan_cache_mode = force_generic_plan', f.signature);
    END LOOP;
END $plans$;

ALTER FUNCTION tasker.expire_tasks(integer) SET enable_sort = on; -- with none it would find the steps of a task in the order of their ids

CREATE OR REPLACE FUNCTION tasker.write_batch(worker bigint, task_ids bigint[], task_epochs integer[], task_states text[], task_errors text[], task_release boolean[], task_rerun double precision[], step_ids bigint[], step_tasks bigint[], step_was text[], step_was_attempt integer[], step_states text[], step_attempts integer[], step_losses integer[], step_results text[], step_errors text[], step_retry_in double precision[], step_queues text[], settled bigint[], parked bigint[], step_start_in double precision[], gate_steps bigint[], gate_ids integer[], gates_seen bigint, needs bigint[] DEFAULT '{}'::bigint[], step_tickets bigint[] DEFAULT '{}'::bigint[]) RETURNS bigint[]
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_mergejoin TO 'off'
    SET lock_timeout TO '100ms'
    SET plan_cache_mode TO 'force_generic_plan'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    n      int;
    faults text;
    denied bigint[] := '{}'; -- claims that a gate did not let pass
    free   bigint[];         -- attempts that are not being reported
    moved  bigint[];         -- tasks that were given a state, or given up
    alive  boolean;
    gates  bigint;
    lost   int;
    unmet  int;
    unended int;
BEGIN
    -- As tasker.assert_worker does it; whether the worker is alive is asked below.
    PERFORM FROM tasker.worker_fences f WHERE f.worker_id = worker LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        PERFORM tasker.assert_worker(worker);
    END IF;
    IF gates_seen > 0 THEN
        PERFORM tasker.assert_gates(gates_seen, step_tasks, step_states);
    END IF;

    -- Only tasks that change are locked; of the others it is enough that the
    -- loop still owns them, as only this worker or its reaper can change that.
    IF true = ANY (task_release) OR cardinality(array_remove(task_states, NULL)) > 0 THEN
        WITH changed AS (
            UPDATE tasker.tasks t
            SET state       = coalesce(l.state, t.state),
                error       = coalesce(l.error::jsonb, t.error),
                owner       = CASE WHEN l.release THEN NULL ELSE t.owner END,
                finished_at = CASE WHEN l.state IS NOT NULL THEN clock_timestamp() ELSE t.finished_at END,
                paused_at   = CASE WHEN l.state IS NOT NULL THEN NULL ELSE t.paused_at END
            FROM (SELECT u.id AS task_id, task_epochs[i] AS epoch, task_states[i] AS state, task_errors[i] AS error, task_release[i] AS release
                  FROM unnest(task_ids) WITH ORDINALITY AS u(id, i)) l
            WHERE t.task_id = ANY (task_ids) AND t.task_id = l.task_id AND coalesce(t.owner, 0) = worker AND t.epoch = l.epoch AND (l.state IS NOT NULL OR l.release)
            RETURNING t.task_id)
        SELECT coalesce(array_agg(c.task_id), '{}'),
               (SELECT count(*) FROM unnest(task_states, task_release) AS l(state, release) WHERE l.state IS NOT NULL OR l.release)
        INTO moved, n FROM changed c;
        IF n <> cardinality(moved) THEN
            PERFORM tasker.assert_worker(worker);
            SELECT string_agg(l.task_id::text, ',') INTO faults FROM unnest(task_ids, task_states, task_release) AS l(task_id, state, release)
            WHERE (l.state IS NOT NULL OR l.release) AND l.task_id <> ALL (moved);
            RAISE EXCEPTION 'a loop has lost its task' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
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
        FROM (SELECT u.id AS step_id, step_was[i] AS was, step_was_attempt[i] AS was_attempt, step_states[i] AS state, step_attempts[i] AS attempt,
                     step_losses[i] AS losses, step_results[i] AS result, step_errors[i] AS error, step_retry_in[i] AS retry_in
              FROM unnest(step_ids) WITH ORDINALITY AS u(id, i)) w
        WHERE s.step_id = ANY (step_ids) AND s.step_id = w.step_id AND s.state = w.was AND s.attempts = w.was_attempt AND w.step_id <> ALL (denied);
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> cardinality(step_ids) - cardinality(denied) THEN
            PERFORM tasker.assert_worker(worker);
            -- What was written has its new state by now; the rest has not.
            SELECT string_agg(DISTINCT w.task_id::text, ',') INTO faults
            FROM unnest(step_ids, step_tasks, step_states, step_attempts) AS w(step_id, task_id, state, attempt)
            WHERE w.step_id <> ALL (denied)
              AND NOT EXISTS (SELECT FROM tasker.steps s WHERE s.step_id = w.step_id AND s.state = w.state AND s.attempts = w.attempt);
            RAISE EXCEPTION 'a step is not in the state that its loop saw' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
        END IF;

        IF 'enqueued' = ANY (step_states) THEN
            INSERT INTO tasker.dispatches AS d (step_id, task_id, attempt, queue, awaited_by, start_by, ticket)
            SELECT w.step_id, w.task_id, w.attempt, w.queue, worker, clock_timestamp() + make_interval(secs => w.start_in), w.ticket
            FROM (SELECT u.id AS step_id, step_tasks[i] AS task_id, step_attempts[i] AS attempt, step_states[i] AS state,
                         step_queues[i] AS queue, step_start_in[i] AS start_in, step_tickets[i] AS ticket
                  FROM unnest(step_ids) WITH ORDINALITY AS u(id, i)) w
            WHERE w.state = 'enqueued' AND w.step_id <> ALL (denied);
        END IF;
    END IF;

    -- In the order of the arrays, as that is how they are read, and the tasks
    -- last: events of a task read in the order of what happened.
    IF cardinality(step_ids) > 0 OR cardinality(moved) > 0 THEN
        INSERT INTO tasker.events (task_id, step_id, attempt, name, data)
        SELECT w.task_id, w.step_id, w.attempt,
               CASE w.state WHEN 'in_progress' THEN 'step.handle' WHEN 'complete' THEN 'step.completed'
                   WHEN 'enqueued' THEN 'step.execution_requested' WHEN 'waiting_for_retry' THEN 'step.retry_requested'
                   WHEN 'error' THEN 'step.failed' WHEN 'cancelled' THEN 'step.cancelled' WHEN 'skipped' THEN 'step.skipped' END,
               CASE WHEN w.error IS NOT NULL THEN
                   jsonb_strip_nulls(jsonb_build_object('class', w.error::jsonb ->> 'class', 'message', left(w.error::jsonb ->> 'message', 500),
                                                        'code', w.error::jsonb ->> 'code', 'retry_in_seconds', w.retry_in)) END
        FROM (SELECT u.id AS step_id, step_tasks[i] AS task_id, step_attempts[i] AS attempt, step_states[i] AS state,
                     step_errors[i] AS error, step_retry_in[i] AS retry_in
              FROM unnest(step_ids) WITH ORDINALITY AS u(id, i)) w
        WHERE w.step_id <> ALL (denied)
        UNION ALL
        SELECT l.task_id, NULL, NULL, CASE l.state WHEN 'complete' THEN 'task.completed' WHEN 'error' THEN 'task.failed' WHEN 'cancelled' THEN 'task.cancelled' END,
               l.error::jsonb
        FROM (SELECT u.id AS task_id, task_states[i] AS state, task_errors[i] AS error
              FROM unnest(task_ids) WITH ORDINALITY AS u(id, i)) l
        WHERE l.state IS NOT NULL;
    END IF;

    -- Looked at now that the steps are held: a deadline that passed meanwhile
    -- has left steps alone that had not begun, and who claims must know the
    -- gates as they are.
    SELECT (SELECT w.state = 'alive' FROM tasker.workers w WHERE w.worker_id = worker),
           CASE WHEN gates_seen IS NOT NULL THEN (SELECT coalesce(sum(g.version), 0) FROM tasker.gates g) END,
           (SELECT count(*)
            FROM (SELECT u.id AS task_id, task_epochs[i] AS epoch, task_states[i] AS state, task_release[i] AS release
                  FROM unnest(task_ids) WITH ORDINALITY AS u(id, i)) l
            WHERE l.state IS NULL AND NOT l.release
              AND worker IS DISTINCT FROM (SELECT t.owner FROM tasker.tasks t WHERE t.task_id = l.task_id AND t.epoch = l.epoch)),
           -- A loop may have been told of a result that does not exist: any login of
           -- the database may send notifications.
           cardinality(needs) - (SELECT count(*) FROM unnest(needs) AS n(id)
               WHERE (SELECT s.state IN ('complete', 'skipped', 'resolved_manually') FROM tasker.steps s WHERE s.step_id = n.id)),
           (SELECT count(*)
            FROM (SELECT u.id AS task_id, task_states[i] AS state
                  FROM unnest(task_ids) WITH ORDINALITY AS u(id, i)) l
            WHERE l.state IS NOT NULL
              AND NOT (SELECT bool_and(CASE l.state WHEN 'complete' THEN s.state IN ('complete', 'skipped', 'resolved_manually')
                                       ELSE s.state NOT IN ('enqueued', 'in_progress') END) FROM tasker.steps s WHERE s.task_id = l.task_id))
    INTO alive, gates, lost, unmet, unended;
    IF alive IS NOT TRUE THEN
        PERFORM tasker.assert_worker(worker);
    ELSIF gates <> gates_seen THEN
        PERFORM tasker.assert_gates(gates_seen, step_tasks, step_states);
    ELSIF lost > 0 THEN
        SELECT string_agg(l.task_id::text, ',') INTO faults FROM unnest(task_ids, task_epochs, task_states, task_release) AS l(task_id, epoch, state, release)
        WHERE l.state IS NULL AND NOT l.release
          AND worker IS DISTINCT FROM (SELECT t.owner FROM tasker.tasks t WHERE t.task_id = l.task_id AND t.epoch = l.epoch);
        RAISE EXCEPTION 'a loop has lost its task' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
    ELSIF unmet > 0 THEN
        SELECT string_agg(DISTINCT s.task_id::text, ',') INTO faults FROM tasker.steps s
        WHERE s.step_id = ANY (needs) AND s.state NOT IN ('complete', 'skipped', 'resolved_manually');
        RAISE EXCEPTION 'a step is claimed before its dependencies are satisfied' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
    ELSIF unended > 0 THEN
        SELECT string_agg(l.task_id::text, ',') INTO faults FROM unnest(task_ids, task_states) AS l(task_id, state)
        WHERE l.state IS NOT NULL AND EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = l.task_id
            AND (s.state IN ('enqueued', 'in_progress') OR l.state = 'complete' AND s.state NOT IN ('complete', 'skipped', 'resolved_manually')));
        RAISE EXCEPTION 'a task is ended before its steps' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
    END IF;

    IF cardinality(settled) > 0 THEN
        PERFORM FROM tasker.dispatches d WHERE d.step_id = ANY (settled) ORDER BY d.step_id FOR UPDATE;
        DELETE FROM tasker.dispatches d WHERE d.step_id = ANY (settled);
    END IF;

    IF cardinality(parked) > 0 THEN
        -- A locked row is being reported. Waiting for it could take as long as
        -- the reporter's transaction; to its loop it is a report that came.
        free := ARRAY(SELECT l.step_id FROM tasker.dispatches l WHERE l.step_id = ANY (parked) AND l.failure IS NULL ORDER BY l.step_id FOR UPDATE SKIP LOCKED);
        UPDATE tasker.dispatches d SET awaited_by = NULL WHERE d.step_id = ANY (free) AND d.failure IS NULL;
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> cardinality(parked) THEN
            SELECT string_agg(DISTINCT s.task_id::text, ',') INTO faults
            FROM tasker.steps s LEFT JOIN (SELECT * FROM tasker.dispatches l WHERE l.step_id = ANY (parked)) d USING (step_id)
            WHERE s.step_id = ANY (parked) AND (d.step_id IS NULL OR d.awaited_by IS NOT NULL OR d.failure IS NOT NULL);
            RAISE EXCEPTION 'a report came while its loop parked' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
        END IF;
    END IF;

    IF cardinality(array_remove(task_rerun, NULL)) > 0 THEN
        INSERT INTO tasker.events (task_id, name, data)
        SELECT l.task_id, 'workflow.task_reenqueue_delayed', jsonb_build_object('delay_seconds', l.rerun)
        FROM unnest(task_ids, task_rerun) AS l(task_id, rerun) WHERE l.rerun >= 1; -- shorter ones are hand-overs between workers
        -- A job that is due no later will do.
        PERFORM tasker.schedule_runs(array_agg(l.task_id), array_agg(l.rerun))
        FROM unnest(task_ids, task_rerun) AS l(task_id, rerun)
        WHERE l.rerun IS NOT NULL AND NOT EXISTS (
            SELECT FROM tasker.river_job j
            WHERE (j.args ->> 'task_id')::bigint = l.task_id AND j.kind = 'task_execution'
              AND j.state IN ('available', 'scheduled', 'retryable') AND j.scheduled_at <= clock_timestamp() + make_interval(secs => l.rerun))
        HAVING count(*) > 0;
    END IF;
    RETURN denied;
END $$;

CREATE OR REPLACE FUNCTION tasker.claim_tasks(worker bigint, ids bigint[], opening bigint[] DEFAULT '{}'::bigint[], gates_seen bigint DEFAULT NULL::bigint, ticket_key bytea DEFAULT NULL::bytea) RETURNS TABLE(task_id bigint, template_id bigint, epoch integer, context jsonb, correlation_id text, fresh bigint[], begun boolean, due_in double precision)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET lock_timeout TO '100ms'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
DECLARE
    wanted bigint[] := ids;   -- ascending, each once: the lock order
    locked boolean  := false; -- whether all that are wanted are
    taken  bigint[] := '{}';
    again  bigint[] := '{}';  -- of those: claimed before, by this worker or another
    free   bigint[];
BEGIN
    -- As tasker.assert_worker does it; whether the worker is alive is asked below.
    PERFORM FROM tasker.worker_fences f WHERE f.worker_id = worker LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        PERFORM tasker.assert_worker(worker);
    END IF;

    LOOP
        WITH claimed AS (
            UPDATE tasker.tasks t
            SET owner = worker, epoch = t.epoch + 1, state = 'in_progress', started_at = coalesce(t.started_at, now())
            FROM unnest(wanted) AS l(id)
            WHERE t.task_id = ANY (wanted) AND t.task_id = l.id AND coalesce(t.owner, worker) = worker AND t.paused_at IS NULL
              AND CASE t.state WHEN 'pending' THEN coalesce(t.run_at <= clock_timestamp(), true) WHEN 'in_progress' THEN true ELSE false END
              AND coalesce(t.deadline > clock_timestamp(), true)
              AND (SELECT w.state = 'alive' FROM tasker.workers w WHERE w.worker_id = worker)
            RETURNING t.task_id, t.started_at = now() AS first
        ), told AS (
            INSERT INTO tasker.events (task_id, name) SELECT c.task_id, 'task.start_requested' FROM claimed c WHERE c.first
        )
        SELECT taken || array_agg(c.task_id), again || array_agg(c.task_id) FILTER (WHERE NOT c.first) INTO taken, again FROM claimed c;
        EXIT WHEN cardinality(taken) = cardinality(ids);
        PERFORM tasker.assert_worker(worker);
        EXIT WHEN locked;
        -- Somebody's, or finished. But whoever relied on the job that led here may be
        -- giving a task up at this moment: that is waited for, or the claim is
        -- refused, and the job comes back.
        wanted := ARRAY(SELECT w FROM unnest(wanted) AS w WHERE w <> ALL (taken));
        PERFORM FROM tasker.tasks t WHERE t.task_id = ANY (wanted) ORDER BY t.task_id FOR NO KEY UPDATE;
        locked := true;
    END LOOP;
    IF cardinality(taken) < cardinality(ids) THEN
        -- The job that led here is not to be ticked off: it comes back when they are due.
        RETURN QUERY
        SELECT t.task_id, t.template_id, NULL::int, NULL::jsonb, NULL, NULL::bigint[], false, extract(epoch FROM t.run_at - clock_timestamp())::double precision
        FROM tasker.tasks t
        WHERE t.task_id = ANY (ids) AND t.task_id <> ALL (taken) AND t.state = 'pending' AND t.owner IS NULL AND t.paused_at IS NULL
          AND t.run_at > clock_timestamp();
    END IF;
    IF cardinality(taken) = 0 THEN
        RETURN;
    END IF;

    -- Reports of these attempts ring here from now on. One whose row is locked
    -- is being reported by a transaction that may stay open for long: it rings
    -- where it rang before, and this worker finds it by looking (CatchUp).
    IF cardinality(again) > 0 THEN
        free := ARRAY(SELECT l.step_id FROM tasker.dispatches l WHERE l.task_id = ANY (again) ORDER BY l.step_id FOR UPDATE SKIP LOCKED);
        UPDATE tasker.dispatches d SET awaited_by = worker WHERE d.step_id = ANY (free);
    END IF;

    RETURN QUERY
    WITH mine AS MATERIALIZED (
        SELECT t.task_id, t.template_id, t.epoch, t.context, t.correlation_id, f.steps, f.untouched,
               f.untouched AND t.template_id = ANY (opening) AND gates_seen = (SELECT coalesce(sum(g.version), 0) FROM tasker.gates g) AS opens
        FROM unnest(taken) AS l(id)
        CROSS JOIN LATERAL (SELECT * FROM tasker.tasks u WHERE u.task_id = l.id OFFSET 0) t -- by its key, one by one
        CROSS JOIN LATERAL (
            SELECT array_agg(p.step_id) AS steps, bool_and(p.state = 'pending' AND p.attempts = 0) AS untouched
            FROM (SELECT s.step_id, s.state, s.attempts FROM tasker.steps s WHERE s.task_id = t.task_id AND t.epoch = 1 ORDER BY s.position OFFSET 0) p
        ) f
    ), roots AS MATERIALIZED ( -- what their loops would write first; by task and position, which is the lock order
        SELECT m.task_id, m.steps[r.position + 1] AS step_id, r.queue, r.schedule_to_start_seconds,
               CASE WHEN r.handler IS NULL THEN 'enqueued' ELSE 'in_progress' END AS state
        FROM mine m
        CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps q WHERE q.template_id = m.template_id AND q.depends_on = '{}' ORDER BY q.position OFFSET 0) r
        WHERE m.opens
    ), started AS (
        UPDATE tasker.steps s
        SET state = r.state, attempts = 1, started_at = CASE WHEN r.state = 'in_progress' THEN clock_timestamp() END
        FROM roots r WHERE s.step_id = ANY (ARRAY(SELECT n.step_id FROM roots n)) AND s.step_id = r.step_id
    ), sent AS (
        INSERT INTO tasker.dispatches (step_id, task_id, attempt, queue, awaited_by, start_by, ticket)
        SELECT n.step_id, n.task_id, 1, n.queue, worker, clock_timestamp() + make_interval(secs => n.schedule_to_start_seconds), tasker.ticket(ticket_key, n.step_id, 1)
        FROM roots n WHERE n.state = 'enqueued'
    ), told AS (
        INSERT INTO tasker.events (task_id, step_id, attempt, name)
        SELECT n.task_id, n.step_id, 1, CASE n.state WHEN 'enqueued' THEN 'step.execution_requested' ELSE 'step.handle' END FROM roots n
    )
    SELECT m.task_id, m.template_id, m.epoch, m.context, m.correlation_id, CASE WHEN m.untouched THEN m.steps END, coalesce(m.opens, false), NULL::double precision
    FROM mine m;
END $$;

CREATE OR REPLACE FUNCTION tasker.start_attempts(step_ids bigint[], attempts integer[], process_id bigint DEFAULT NULL::bigint, secret bigint DEFAULT NULL::bigint, tickets bigint[] DEFAULT NULL::bigint[]) RETURNS TABLE(step_id bigint, attempt integer, refusal text, task_id bigint, namespace text, name text, version text, context jsonb, priority smallint, correlation_id text, parent_task_id bigint, tags text[], initiator text, source_system text, reason text, created_at timestamp with time zone, step_name text, attempts_used integer, attempt_limit integer, handler_class text, config jsonb, timeout_seconds double precision, heartbeat_seconds double precision, progress jsonb, dependencies json, carrier jsonb, secret_of_attempt bigint)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
DECLARE
    free  bigint[];
    bound bigint := coalesce(secret, tasker.new_secret());
    takes jsonb; -- queues; NULL: any
BEGIN
    IF array_ndims(step_ids) > 1 OR cardinality(step_ids) IS DISTINCT FROM cardinality(attempts)
       OR array_ndims(attempts) > 1 OR array_ndims(tickets) > 1 OR cardinality(tickets) <> cardinality(step_ids)
       OR (SELECT count(DISTINCT u) FROM unnest(step_ids) u) IS DISTINCT FROM cardinality(step_ids) THEN
        RAISE EXCEPTION 'start_attempts wants one attempt for each step, and each step once' USING ERRCODE = 'TK007';
    END IF;

    SELECT nullif(p.details -> 'queues', '[]') INTO takes FROM tasker.processes p
    WHERE p.process_id = $3 AND jsonb_typeof(p.details -> 'queues') = 'array';

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
        SELECT w.step_id, w.attempt, w.ticket, w.ord FROM unnest(step_ids, attempts, coalesce(tickets, '{}')) WITH ORDINALITY AS w(step_id, attempt, ticket, ord)
    ), begun AS (
        UPDATE tasker.steps u SET state = 'in_progress', started_at = clock_timestamp()
        FROM wanted w
        WHERE u.step_id = ANY (free) AND u.step_id = w.step_id AND u.attempts = w.attempt AND u.state = 'enqueued'
          AND (SELECT d.failure IS NULL AND coalesce(d.ticket = w.ticket, d.ticket IS NULL) AND (takes IS NULL OR takes ? d.queue)
               FROM tasker.dispatches d WHERE d.step_id = w.step_id)
        RETURNING u.step_id, u.task_id, u.position, u.started_at, w.attempt, w.ord, u.name, u.progress, u.attempts - u.losses - u.forgiven AS used
    ), marked AS (
        -- An attempt that no process answers for has an hour, if nothing else is said.
        UPDATE tasker.dispatches d
        SET process_id = $3, secret = bound, started_at = b.started_at, start_by = NULL,
            deadline = b.started_at + make_interval(secs => coalesce(spec.timeout_seconds, CASE WHEN $3 IS NULL AND spec.heartbeat_seconds IS NULL THEN 3600 END)),
            heartbeat = make_interval(secs => spec.heartbeat_seconds), beat_by = b.started_at + make_interval(secs => spec.heartbeat_seconds)
        FROM begun b CROSS JOIN LATERAL (
            SELECT s.timeout_seconds, s.heartbeat_seconds FROM tasker.template_steps s
            WHERE s.template_id = (SELECT t.template_id FROM tasker.tasks t WHERE t.task_id = b.task_id) AND s.position = b.position OFFSET 0) spec -- by its key, one by one, here and below
        WHERE d.step_id = ANY (free) AND d.step_id = b.step_id
    ), recorded AS (
        INSERT INTO tasker.events (task_id, step_id, attempt, name)
        SELECT b.task_id, b.step_id, b.attempt, 'step.handle' FROM begun b ORDER BY b.ord
    ), judged AS (
        SELECT b.step_id, b.attempt, b.ord, b.task_id, b.position, b.name AS step_name, b.progress, b.used, NULL AS refusal FROM begun b
        UNION ALL
        SELECT w.step_id, w.attempt, w.ord, s.task_id, s.position, s.name, s.progress, s.attempts - s.losses - s.forgiven, CASE
            WHEN s.step_id IS NULL THEN format('there is no step %s', w.step_id)
            WHEN s.attempts <> w.attempt THEN format('step %s (%s) is at attempt %s, not %s', w.step_id, s.name, s.attempts, w.attempt)
            -- Begun by this very call, whose answer was lost.
            WHEN s.state = 'in_progress' AND EXISTS (SELECT FROM tasker.dispatches d WHERE d.step_id = w.step_id AND d.secret = $4 AND d.failure IS NULL) THEN NULL
            WHEN s.state = 'enqueued' AND w.step_id <> ALL (free) THEN format('step %s (%s) is held by another transaction', w.step_id, s.name)
            WHEN s.state = 'enqueued' AND (SELECT coalesce(d.ticket <> w.ticket, d.ticket IS NOT NULL) FROM tasker.dispatches d WHERE d.step_id = w.step_id) THEN
                format('attempt %s of step %s (%s) was not given to this job: its ticket is another', w.attempt, w.step_id, s.name)
            WHEN s.state = 'enqueued' AND takes IS NOT NULL AND (SELECT NOT takes ? d.queue FROM tasker.dispatches d WHERE d.step_id = w.step_id) THEN
                format('attempt %s of step %s (%s) is for a queue that process %s does not take', w.attempt, w.step_id, s.name, $3)
            WHEN s.state = 'enqueued' THEN format('attempt %s of step %s (%s) has been reported', w.attempt, w.step_id, s.name)
            ELSE format('attempt %s of step %s (%s) is %s', w.attempt, w.step_id, s.name, s.state) END
        FROM wanted w LEFT JOIN LATERAL (SELECT * FROM tasker.steps q WHERE q.step_id = w.step_id OFFSET 0) s ON true
        WHERE w.step_id <> ALL (ARRAY(SELECT b.step_id FROM begun b))
    )
    SELECT j.step_id, j.attempt, j.refusal,
           t.task_id, t.namespace, t.name, t.version, t.context, t.priority, t.correlation_id, t.parent_task_id, t.tags,
           t.initiator, t.source_system, t.reason, t.created_at,
           j.step_name, j.used, spec.attempt_limit, spec.handler_class, spec.handler_config, spec.timeout_seconds::double precision,
           spec.heartbeat_seconds::double precision, j.progress,
           CASE WHEN cardinality(spec.depends_on) > 0 THEN (
               SELECT json_object_agg(u.name, u.result ORDER BY d.position)
               FROM unnest(spec.depends_on) AS d(position)
               CROSS JOIN LATERAL (SELECT s.name, s.result FROM tasker.steps s WHERE s.task_id = j.task_id AND s.position = d.position OFFSET 0) u) END,
           t.carrier, CASE WHEN j.refusal IS NULL THEN bound END
    FROM judged j
    LEFT JOIN LATERAL (SELECT * FROM tasker.tasks u WHERE u.task_id = j.task_id AND j.refusal IS NULL OFFSET 0) t ON true
    LEFT JOIN LATERAL (SELECT * FROM tasker.template_steps s WHERE s.template_id = t.template_id AND s.position = j.position OFFSET 0) spec ON true
    ORDER BY j.ord;
END $_$;

CREATE OR REPLACE FUNCTION tasker.report_results(reports jsonb, wait boolean) RETURNS TABLE(step_id bigint, attempt integer, accepted boolean, reason text)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
DECLARE
    bad jsonb;
    problem text;
    ids  bigint[];
    free bigint[];
    held bigint[] := '{}';
BEGIN
    IF jsonb_typeof(reports) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION 'reports must be a JSON array, not %', coalesce(jsonb_typeof(reports), 'NULL') USING ERRCODE = 'TK007';
    END IF;
    SELECT j.e INTO bad FROM jsonb_array_elements(reports) AS j(e)
    CROSS JOIN LATERAL (SELECT j.e -> 'result' AS result, j.e -> 'failure' AS failure OFFSET 0) x
    WHERE NOT coalesce(jsonb_typeof(j.e) = 'object' AND j.e ->> 'step_id' ~ '^\d{1,18}$' AND j.e ->> 'attempt' ~ '^\d{1,9}$'
            AND coalesce(j.e ->> 'call_id', '0') ~ '^\d{1,18}$' AND coalesce(j.e ->> 'secret', '0') ~ '^\d{1,18}$' AND coalesce(j.e ->> 'ticket', '0') ~ '^\d{1,18}$'
            AND (j.e ->> 'outcome' IN ('success', 'lost') OR j.e ->> 'outcome' = 'failure' AND jsonb_typeof(j.e -> 'failure') = 'object'), false)
        OR tasker.document_problem(x.result, 4194304) IS NOT NULL OR tasker.document_problem(x.failure, 1048576) IS NOT NULL
    LIMIT 1;
    IF bad IS NOT NULL THEN
        problem := tasker.document_problem(bad -> 'result', 4194304);
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'the result of step % %', left(bad ->> 'step_id', 30), problem
            USING ERRCODE = 'TK007', HINT = 'store the data and report a reference';
        END IF;
        problem := tasker.document_problem(bad -> 'failure', 1048576);
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'the failure of step % %', left(bad ->> 'step_id', 30), problem
            USING ERRCODE = 'TK007', HINT = 'shorten the message, the backtrace or the context';
        END IF;
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
            FROM tasker.steps s
            CROSS JOIN LATERAL (SELECT q.template_id FROM tasker.tasks q WHERE q.task_id = s.task_id OFFSET 0) t
            CROSS JOIN LATERAL (SELECT q.result_schema FROM tasker.template_steps q WHERE q.template_id = t.template_id AND q.position = s.position OFFSET 0) ts
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
               coalesce(e -> 'result', 'null') AS result, e -> 'failure' AS failure, (e ->> 'call_id')::bigint AS call_id, (e ->> 'secret')::bigint AS secret, (e ->> 'ticket')::bigint AS ticket, ord,
               row_number() OVER (PARTITION BY (e ->> 'step_id')::bigint, (e ->> 'attempt')::int ORDER BY ord) AS nth
        FROM jsonb_array_elements(reports) WITH ORDINALITY AS x(e, ord)
        WHERE (e ->> 'step_id')::bigint <> ALL (held)
    ), judged AS MATERIALIZED (
        SELECT r.*, s.task_id, CASE
            WHEN s.step_id IS NULL THEN format('there is no step %s', r.step_id)
            WHEN s.attempts <> r.attempt THEN format('step %s (%s) is at attempt %s, not %s', r.step_id, s.name, s.attempts, r.attempt)
            WHEN s.state NOT IN ('enqueued', 'in_progress') THEN format('step %s (%s) is %s', r.step_id, s.name, s.state)
            WHEN d.step_id IS NULL THEN format('step %s (%s) was not given to a process', r.step_id, s.name)
            WHEN coalesce(r.call_id, d.secret) IS DISTINCT FROM d.secret THEN
                format('attempt %s of step %s (%s) was not started by call %s', r.attempt, r.step_id, s.name, r.call_id)
            WHEN d.ticket IS NOT NULL AND d.started_at IS NULL AND (r.outcome <> 'failure' OR r.ticket IS DISTINCT FROM d.ticket) THEN
                format('attempt %s of step %s (%s) has not been started', r.attempt, r.step_id, s.name)
            WHEN d.ticket IS NOT NULL AND d.started_at IS NOT NULL AND r.secret IS DISTINCT FROM d.secret THEN
                format('attempt %s of step %s (%s) was started by another process, or the secret of its start is missing', r.attempt, r.step_id, s.name)
            WHEN d.failure IS NOT NULL OR r.nth > 1 THEN format('attempt %s of step %s (%s) has been reported', r.attempt, r.step_id, s.name)
        END AS refusal
        FROM r LEFT JOIN LATERAL (SELECT * FROM tasker.steps q WHERE q.step_id = r.step_id OFFSET 0) s ON true
               LEFT JOIN LATERAL (SELECT * FROM tasker.dispatches q WHERE q.step_id = r.step_id OFFSET 0) d ON true
    ), completed AS (
        UPDATE tasker.steps s SET state = 'complete', result = j.result, finished_at = clock_timestamp()
        FROM judged j WHERE s.step_id = ANY (ids) AND s.step_id = j.step_id AND j.refusal IS NULL AND j.outcome = 'success'
    ), done AS (
        DELETE FROM tasker.dispatches d USING judged j
        WHERE d.step_id = ANY (ids) AND d.step_id = j.step_id AND j.refusal IS NULL AND j.outcome = 'success'
        RETURNING d.step_id, d.task_id, d.awaited_by, d.step_id || '.' || d.attempt || '.' || d.task_id || coalesce('.' || d.ticket, '') AS word, d.ticket IS NOT NULL AS told
    ), failed AS (
        -- Kept here until the finalizer, which alone decides on retries, takes it.
        UPDATE tasker.dispatches d SET failure = CASE j.outcome WHEN 'lost' THEN '{"lost": true}'::jsonb ELSE j.failure END
        FROM judged j WHERE d.step_id = ANY (ids) AND d.step_id = j.step_id AND j.refusal IS NULL AND j.outcome <> 'success'
        RETURNING d.step_id, d.task_id, d.awaited_by, d.step_id::text AS word, false AS told
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
        -- What is complete is told whole, with the ticket that the engine gave out, which
        -- shows that it is true; a failure is to be read.
        FROM (SELECT w.awaited_by, CASE WHEN w.told THEN 'd' ELSE '' END || string_agg(CASE WHEN w.told THEN w.word ELSE w.step_id::text END, ',') AS ids
              FROM (SELECT u.*, row_number() OVER (PARTITION BY u.awaited_by, u.told) / 110 AS chunk -- a payload has less than 8,000 bytes
                    FROM woken u WHERE u.awaited_by IS NOT NULL) w
              GROUP BY w.awaited_by, w.told, w.chunk) c
    )
    SELECT a.step_id, a.attempt, a.accepted, a.reason FROM (
        SELECT j.step_id, j.attempt, j.refusal IS NULL AS accepted, j.refusal AS reason, j.ord FROM judged j, rung
        UNION ALL
        SELECT (e ->> 'step_id')::bigint, (e ->> 'attempt')::int, NULL, format('step %s is held by another transaction', e ->> 'step_id'), ord
        FROM jsonb_array_elements(reports) WITH ORDINALITY AS x(e, ord) WHERE (e ->> 'step_id')::bigint = ANY (held)) a
    ORDER BY a.ord;
END $_$;

CREATE FUNCTION tasker.take_unstarted(age interval, most integer, shared double precision)
    RETURNS TABLE(task_id bigint, step_id bigint, attempt integer, handler_class text, queue text, correlation_id text, alone boolean, ticket bigint)
    LANGUAGE plpgsql
    SET enable_seqscan = off
    SET enable_hashjoin = off
    SET enable_mergejoin = off
    SET enable_indexscan = off
    SET enable_indexonlyscan = off
    SET jit = off
    SET plan_cache_mode = force_generic_plan
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    ids bigint[];
BEGIN
    -- Looked for first, and locked by their keys: what is locked must not depend on a plan.
    ids := ARRAY(SELECT d.step_id FROM tasker.dispatches d
                 WHERE d.started_at IS NULL AND d.failure IS NULL AND d.looked_at < clock_timestamp() - age ORDER BY d.looked_at LIMIT most);
    ids := ARRAY(SELECT d.step_id FROM tasker.dispatches d WHERE d.step_id = ANY (ids) AND d.started_at IS NULL AND d.failure IS NULL
                 AND d.looked_at < clock_timestamp() - age ORDER BY d.step_id FOR UPDATE SKIP LOCKED);
    UPDATE tasker.dispatches d SET looked_at = clock_timestamp() WHERE d.step_id = ANY (ids);
    RETURN QUERY
    SELECT d.task_id, d.step_id, d.attempt, coalesce(ts.handler_class, ''), d.queue, coalesce(t.correlation_id, ''),
           s.losses > 0 OR coalesce(least(ts.timeout_seconds, ts.heartbeat_seconds) < shared, false), coalesce(d.ticket, 0)
    FROM unnest(ids) AS u(id)
    CROSS JOIN LATERAL (SELECT * FROM tasker.dispatches q WHERE q.step_id = u.id OFFSET 0) d
    CROSS JOIN LATERAL (SELECT q.position, q.losses FROM tasker.steps q WHERE q.step_id = u.id OFFSET 0) s
    CROSS JOIN LATERAL (SELECT q.template_id, q.correlation_id FROM tasker.tasks q WHERE q.task_id = d.task_id OFFSET 0) t
    CROSS JOIN LATERAL (SELECT q.handler_class, q.timeout_seconds, q.heartbeat_seconds FROM tasker.template_steps q
                        WHERE q.template_id = t.template_id AND q.position = s.position OFFSET 0) ts
    ORDER BY d.step_id;
END $$;
COMMENT ON FUNCTION tasker.take_unstarted(age interval, most integer, shared double precision) IS 'Attempts that no process has started and no worker has looked after for so long; the caller looks after them now. alone: none that shares a job with others';

DROP FUNCTION tasker.reap_attempts(interval);
CREATE FUNCTION tasker.reap_attempts(silence interval, most integer DEFAULT 1000) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_indexscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
DECLARE
    gone    bigint[]; -- processes with attempts
    overdue bigint[];
    reports jsonb;
    n       int;
BEGIN
    gone := ARRAY(
        SELECT o.process_id FROM (SELECT DISTINCT d.process_id FROM tasker.dispatches d WHERE d.started_at IS NOT NULL AND d.process_id IS NOT NULL) o
        LEFT JOIN LATERAL (SELECT * FROM tasker.processes q WHERE q.process_id = o.process_id OFFSET 0) p ON true
        WHERE p.process_id IS NULL OR p.stopped_at IS NOT NULL OR greatest(p.last_seen_at, pg_postmaster_start_time()) < clock_timestamp() - silence);
    overdue := ARRAY(
        SELECT d.step_id FROM tasker.dispatches d
        WHERE d.failure IS NULL AND (least(d.deadline, CASE WHEN silence IS NOT NULL THEN d.beat_by END, d.start_by) < clock_timestamp()
            OR d.started_at IS NOT NULL AND d.process_id = ANY (gone)) LIMIT most);
    IF overdue = '{}' THEN
        RETURN 0;
    END IF;
    SELECT array_agg(l.step_id) INTO overdue
    FROM (SELECT s.step_id FROM tasker.steps s WHERE s.step_id = ANY (overdue) ORDER BY s.step_id FOR NO KEY UPDATE SKIP LOCKED) l;
    -- What is up first tells the story.
    SELECT jsonb_agg(jsonb_build_object('step_id', d.step_id, 'attempt', d.attempt, 'secret', d.secret, 'ticket', d.ticket)
               || CASE WHEN least(d.deadline, CASE WHEN silence IS NOT NULL THEN d.beat_by END, d.start_by) < clock_timestamp() THEN jsonb_build_object('outcome', 'failure', 'failure', jsonb_build_object(
                          'class', up.code, 'code', up.code, 'attempt', d.attempt, 'message', up.message))
                  ELSE '{"outcome": "lost"}' END) INTO reports
    FROM tasker.dispatches d
    CROSS JOIN LATERAL (
        SELECT 'schedule_to_start_timeout' AS code, d.start_by AS at,
               format('no process took it from queue %s within its schedule_to_start_seconds', d.queue) AS message
        UNION ALL SELECT 'heartbeat_timeout', CASE WHEN silence IS NOT NULL THEN d.beat_by END, format('no heartbeat within %s', d.heartbeat)
        UNION ALL SELECT 'attempt_timeout', d.deadline, format('no result within %s', date_trunc('milliseconds', d.deadline - d.started_at))
        ORDER BY 2 LIMIT 1) up
    LEFT JOIN LATERAL (SELECT * FROM tasker.processes q WHERE q.process_id = d.process_id OFFSET 0) p ON true
    -- Once more: a heartbeat or a start may have come in between, or another attempt.
    WHERE d.step_id = ANY (overdue) AND d.failure IS NULL
      AND (least(d.deadline, CASE WHEN silence IS NOT NULL THEN d.beat_by END, d.start_by) < clock_timestamp()
           OR d.started_at IS NOT NULL AND d.process_id IS NOT NULL
              AND (p.process_id IS NULL OR p.stopped_at IS NOT NULL
                   OR greatest(p.last_seen_at, pg_postmaster_start_time()) < clock_timestamp() - silence));
    IF reports IS NULL THEN
        RETURN 0;
    END IF;
    SELECT count(*) FILTER (WHERE r.accepted) INTO n FROM tasker.report_results(reports) r;
    RETURN n;
END $$;
COMMENT ON FUNCTION tasker.reap_attempts(silence interval, most integer) IS 'Ends attempts whose time is up, and takes those for lost whose process has been silent for so long; silence NULL: the caller has no healthy database and can''t tell, so only deadlines count';

CREATE OR REPLACE FUNCTION tasker.age_jobs(ageing interval, most integer DEFAULT 200) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
DECLARE
    n     int := 0;
    moved int;
    room  int;
    ids   bigint[];
BEGIN
    FOR p IN 2..4 LOOP -- from the top, so that none is moved twice
        -- Not clock_timestamp(): what may change during a statement is no condition of an index.
        SELECT greatest(most - count(*), most / 10, 1) INTO room FROM (
            SELECT FROM tasker.river_job o
            WHERE o.state = 'available' AND o.queue = 'default' AND o.priority = p - 1 AND o.scheduled_at < now() - ageing * (5 - p)
            LIMIT most) there;
        ids := ARRAY(
            SELECT o.id FROM tasker.river_job o
            WHERE o.state = 'available' AND o.queue = 'default' AND o.priority = p AND o.scheduled_at < now() - ageing * (5 - p)
              AND o.kind = 'task_execution'
            ORDER BY o.scheduled_at LIMIT room FOR UPDATE SKIP LOCKED);
        UPDATE tasker.river_job j SET priority = p - 1 WHERE j.id = ANY (ids);
        GET DIAGNOSTICS moved = ROW_COUNT;
        n := n + moved;
    END LOOP;
    RETURN n;
END $$;

CREATE OR REPLACE FUNCTION tasker.read_events(cursor tasker.event_cursor, patterns text[] DEFAULT '{*}'::text[], most integer DEFAULT 1000, sleeper text DEFAULT NULL::text, channel text DEFAULT NULL::text) RETURNS TABLE(event_id bigint, occurred_at timestamp with time zone, event text, task_id bigint, step_id bigint, attempt integer, data jsonb, namespace text, task_name text, version text, step text, correlation_id text, parent_task_id bigint, next tasker.event_cursor)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET enable_sort TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
DECLARE
    c       tasker.event_cursor := cursor;
    likes   text[] := tasker.event_likes(patterns);
    settled boolean := true;  -- c.missing: what isn't seen now will never be
    scan    int := most;      -- rows to look at, wanted or not
    edge    bigint;           -- the last that is wanted, if there are enough of them
    wanted  bigint[];
    since   timestamptz;
    earliest timestamptz;     -- of those that are wanted
    latest  timestamptz;
    seen    int8multirange;
    reached bigint;
    cut     boolean;          -- there is more than was looked at
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'whoever reads events must see what commits while it runs: call it in a read committed transaction' USING ERRCODE = 'TK003';
    END IF;
    IF channel IS NOT NULL THEN
        PERFORM tasker.check_channel(channel);
        IF sleeper IS NULL OR octet_length(sleeper) > 1000 THEN
            RAISE EXCEPTION 'a reader that wants to be notified has a name of 1 to 1000 bytes' USING ERRCODE = 'TK003';
        END IF;
    END IF;
    -- Before the look: what ended until here is seen by it.
    IF NOT isempty(c.missing) THEN
        settled := NOT tasker.still_writing(c.writers);
    END IF;

    since := tasker.unread_since(tasker.first_unread(c));
    IF '%' <> ALL (likes) THEN
        scan := most * 10;
        SELECT b.event_id INTO edge FROM tasker.events_beyond(c, likes, scan, since) b WHERE b.wanted ORDER BY b.event_id OFFSET most - 1 LIMIT 1;
    END IF;
    WITH looked AS (
        SELECT b.event_id, b.created_at, b.wanted, row_number() OVER (ORDER BY b.event_id) AS r
        FROM tasker.events_beyond(c, likes, scan, since, coalesce(edge, 9223372036854775807)) b
    )
    SELECT ARRAY(SELECT l.event_id FROM looked l WHERE l.wanted),
           -- ids that follow on one another have the same difference to their rank
           coalesce((SELECT range_agg(i.ids) FROM (SELECT int8range(min(l.event_id), max(l.event_id), '[]') AS ids FROM looked l GROUP BY l.event_id - l.r) i), '{}'),
           max(k.event_id), edge IS NOT NULL OR count(*) = scan,
           min(k.created_at) FILTER (WHERE k.wanted), max(k.created_at) FILTER (WHERE k.wanted)
    INTO wanted, seen, reached, cut, earliest, latest FROM looked k;

    RETURN QUERY
    SELECT e.event_id, e.created_at, e.name, e.task_id, e.step_id, e.attempt, e.data,
           t.namespace, t.name, t.version, s.name, t.correlation_id, t.parent_task_id, NULL::tasker.event_cursor
    FROM unnest(wanted) AS w(id)
    CROSS JOIN LATERAL (SELECT * FROM tasker.events v WHERE v.event_id = w.id AND v.created_at >= earliest AND v.created_at <= latest
                        ORDER BY v.event_id LIMIT 1) e -- in this order, so that it is found by event_id alone
    LEFT JOIN LATERAL (SELECT * FROM tasker.tasks q WHERE q.task_id = e.task_id OFFSET 0) t ON true
    LEFT JOIN LATERAL (SELECT q.name FROM tasker.steps q WHERE q.step_id = e.step_id OFFSET 0) s ON true
    ORDER BY e.event_id;

    c := tasker.cursor_after(c, seen, reached, cut, settled);
    IF channel IS NOT NULL THEN
        PERFORM tasker.fall_asleep(sleeper, channel, likes, cardinality(wanted) = 0 AND NOT cut);
    END IF;
    RETURN QUERY SELECT NULL::bigint, NULL::timestamptz, NULL, NULL::bigint, NULL::bigint, NULL::int, NULL::jsonb, NULL, NULL, NULL, NULL, NULL, NULL::bigint, c;
END $$;

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
        FROM candidates c CROSS JOIN LATERAL (SELECT q.error FROM tasker.tasks q WHERE q.task_id = c.task_id OFFSET 0) t
        ORDER BY c.since LIMIT most
        RETURNING dead_letter_id, task_id, reason, since, detail
    )
    INSERT INTO tasker.events (task_id, name, data)
    SELECT l.task_id, CASE l.reason WHEN 'failed' THEN 'task.dead_lettered' ELSE 'task.stale' END,
           jsonb_build_object('dead_letter_id', l.dead_letter_id, 'reason', l.reason, 'since', l.since, 'detail', l.detail)
    FROM listed l ORDER BY l.dead_letter_id;
    GET DIAGNOSTICS found_tasks = ROW_COUNT;
END $$;

CREATE OR REPLACE FUNCTION tasker.roll_up(most integer DEFAULT 5000, rest double precision DEFAULT 19) RETURNS integer
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    c       tasker.event_cursor;
    settled boolean := true;
    oldest  timestamptz;
    seen    int8multirange;
    reached bigint;
    n       int;
    latest  timestamptz;
    began   timestamptz := clock_timestamp();
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'whoever reads events must see what commits while it runs: call roll_up in a read committed transaction' USING ERRCODE = 'TK003';
    END IF;
    SELECT (p.cursor).* INTO c FROM tasker.stats_progress p
    WHERE p.rest_until IS NULL OR p.rest_until <= clock_timestamp() OR rest = 0 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF c IS NULL OR c.passed IS NULL THEN -- a database that had events before it had counts: its last day is enough
        c := tasker.event_cursor_since(now() - interval '1 day');
    END IF;
    -- Before the look: what ended until here is seen by it.
    IF NOT isempty(c.missing) THEN
        settled := NOT tasker.still_writing(c.writers);
    END IF;
    oldest := tasker.unread_since(tasker.first_unread(c));

    WITH looked AS MATERIALIZED (
        (SELECT e.event_id, e.created_at, e.name, e.task_id, e.step_id, e.attempt, e.data
         FROM unnest(c.missing + c.recent) AS m(ids)
         CROSS JOIN LATERAL (SELECT v.* FROM tasker.events v
                             WHERE v.created_at >= oldest AND v.event_id >= lower(m.ids) AND v.event_id < upper(m.ids) OFFSET 0) e
         ORDER BY e.event_id LIMIT most)
        UNION ALL
        (SELECT e.event_id, e.created_at, e.name, e.task_id, e.step_id, e.attempt, e.data FROM tasker.events e
         WHERE e.created_at >= oldest AND e.event_id > c.passed ORDER BY e.event_id LIMIT most)
        ORDER BY 1 LIMIT most
    ), ends AS MATERIALIZED (
        SELECT e.event_id, e.created_at AS at, split_part(e.name, '.', 2) AS what, e.attempt, e.data, t.template_id, t.task_id,
               coalesce(s.position, -1) AS position, ready.at AS ready, begun.at AS begun,
               CASE WHEN s.step_id IS NULL THEN coalesce(t.finished_at, e.created_at)
                    WHEN s.attempts = e.attempt AND e.name <> 'step.retry_requested' THEN coalesce(s.finished_at, e.created_at)
                    ELSE e.created_at END AS ended,
               CASE WHEN s.step_id IS NULL THEN t.created_at END AS created
        FROM looked e
        CROSS JOIN LATERAL (SELECT * FROM tasker.tasks q WHERE q.task_id = e.task_id OFFSET 0) t
        LEFT JOIN LATERAL (SELECT * FROM tasker.steps q WHERE q.step_id = e.step_id OFFSET 0) s ON true
        CROSS JOIN LATERAL (
            SELECT CASE WHEN s.step_id IS NULL THEN t.started_at
                        WHEN e.attempt IS NULL THEN NULL
                        WHEN s.attempts = e.attempt AND s.started_at IS NOT NULL THEN s.started_at
                        -- A later attempt has begun, or it is to be made again: when this one began is in the events.
                        ELSE (SELECT h.created_at FROM tasker.events h
                              WHERE h.task_id = e.task_id AND h.event_id < e.event_id AND h.step_id = e.step_id AND h.attempt = e.attempt AND h.name = 'step.handle'
                              ORDER BY h.event_id DESC LIMIT 1) END AS at OFFSET 0) begun
        CROSS JOIN LATERAL (
            SELECT CASE WHEN s.step_id IS NULL THEN greatest(t.created_at, t.run_at)
                        WHEN e.attempt = 1 THEN greatest(t.started_at, (
                            SELECT max(d.finished_at) FROM tasker.template_steps ts CROSS JOIN LATERAL unnest(ts.depends_on) AS o(position)
                            CROSS JOIN LATERAL (SELECT q.finished_at FROM tasker.steps q WHERE q.task_id = s.task_id AND q.position = o.position OFFSET 0) d
                            WHERE ts.template_id = t.template_id AND ts.position = s.position)) END AS at OFFSET 0) ready
        WHERE e.name IN ('step.completed', 'step.failed', 'step.retry_requested', 'step.cancelled', 'step.skipped', 'step.resolved_manually',
                         'task.initialize_requested', 'task.completed', 'task.failed', 'task.cancelled', 'task.resolved_manually')
    ), measured AS (
        SELECT e.at, e.template_id, e.position, m.measure, m.seconds
        FROM ends e CROSS JOIN LATERAL (
            SELECT 'run' AS measure, extract(epoch FROM e.ended - e.begun)::double precision AS seconds
            WHERE e.begun IS NOT NULL AND (e.what IN ('completed', 'failed', 'retry_requested') OR e.position < 0 AND e.what IN ('cancelled', 'resolved_manually'))
            UNION ALL
            SELECT 'wait', extract(epoch FROM e.begun - e.ready)::double precision
            WHERE e.begun IS NOT NULL AND e.ready IS NOT NULL AND e.what IN ('completed', 'failed', 'retry_requested')
            UNION ALL
            SELECT 'total', extract(epoch FROM e.ended - e.created)::double precision WHERE e.created IS NOT NULL AND e.what <> 'initialize_requested'
            UNION ALL
            SELECT 'backoff', (e.data ->> 'retry_in_seconds')::double precision WHERE e.what = 'retry_requested' AND e.data ? 'retry_in_seconds'
        ) m
    ), counted AS (
        SELECT m.at, m.template_id, m.position, m.measure, tasker.stats_bucket(m.seconds) AS bucket, greatest(m.seconds, 0) AS seconds FROM measured m
        UNION ALL
        SELECT e.at, e.template_id, e.position,
               CASE e.what WHEN 'initialize_requested' THEN 'created' WHEN 'retry_requested' THEN 'retried' WHEN 'resolved_manually' THEN 'resolved' ELSE e.what END, 0, 0
        FROM ends e
        UNION ALL
        SELECT e.at, e.template_id, e.position, CASE e.what WHEN 'completed' THEN 'recovered' ELSE 'exhausted' END, 0, 0
        FROM ends e WHERE e.position >= 0 AND e.attempt > 1 AND e.what IN ('completed', 'failed')
    ), summed AS MATERIALIZED ( -- before it is made three of: there are many rows and few sums
        SELECT date_bin('5 minutes', k.at, timestamptz '2000-01-01 00:00+00') AS since, k.template_id, k.position, k.measure, k.bucket, count(*) AS n, sum(k.seconds) AS seconds
        FROM counted k GROUP BY 1, 2, 3, 4, 5
    ), added AS (
        INSERT INTO tasker.stats AS s (span, since, template_id, position, measure, bucket, n, seconds)
        SELECT g.span, CASE g.span WHEN 0 THEN '-infinity' WHEN 5 THEN k.since ELSE date_bin('1 hour', k.since, timestamptz '2000-01-01 00:00+00') END,
               k.template_id, k.position, k.measure, k.bucket, sum(k.n), sum(k.seconds)
        FROM (SELECT * FROM summed
              UNION ALL
              SELECT d.since, d.template_id, d.position, CASE d.measure WHEN 'run' THEN 'ran' WHEN 'wait' THEN 'waited' ELSE 'took' END, 0, sum(d.n), sum(d.seconds)
              FROM summed d WHERE d.measure IN ('run', 'wait', 'total') GROUP BY 1, 2, 3, 4) k
        CROSS JOIN (VALUES (0), (5), (60)) AS g(span)
        GROUP BY 1, 2, 3, 4, 5, 6
        ON CONFLICT (span, since, template_id, position, measure, bucket) DO UPDATE SET n = s.n + excluded.n, seconds = s.seconds + excluded.seconds
    ), slow AS (
        INSERT INTO tasker.stats_slowest (since, template_id, position, seconds, task_id, ended_at)
        SELECT r.since, r.template_id, r.position, r.seconds, r.task_id, r.ended FROM (
            SELECT h.since, e.template_id, e.position, x.seconds, e.task_id, e.ended,
                   row_number() OVER (PARTITION BY h.since, e.template_id, e.position ORDER BY x.seconds DESC) AS place
            FROM ends e
            CROSS JOIN LATERAL (SELECT date_bin('1 hour', e.at, timestamptz '2000-01-01 00:00+00') AS since) h
            CROSS JOIN LATERAL (SELECT extract(epoch FROM e.ended - coalesce(e.created, e.begun))::double precision AS seconds) x
            WHERE e.what IN ('completed', 'failed') AND x.seconds IS NOT NULL) r
        WHERE r.place <= 10
          -- Slower than the tenth of its hour, or it is not among the ten.
          AND r.seconds > coalesce((SELECT l.seconds FROM tasker.stats_slowest l WHERE l.since = r.since AND l.template_id = r.template_id AND l.position = r.position
                                    ORDER BY l.seconds DESC OFFSET 9 LIMIT 1), -1)
        ON CONFLICT DO NOTHING
    ), failures AS (
        INSERT INTO tasker.stats_errors AS x (span, since, template_id, position, fingerprint, class, message, n, task_id, last_at)
        SELECT g.span, date_bin(make_interval(mins => g.span), f.at, timestamptz '2000-01-01 00:00+00'), f.template_id, f.position,
               left(md5(tasker.failure_kind(f.class, f.message)), 12),
               (array_agg(f.class ORDER BY f.event_id DESC))[1], (array_agg(f.message ORDER BY f.event_id DESC))[1], count(*),
               (array_agg(f.task_id ORDER BY f.event_id DESC))[1], max(f.at)
        FROM (SELECT e.*, coalesce(e.data ->> 'class', '') AS class, left(coalesce(e.data ->> 'message', ''), 500) AS message
              FROM ends e WHERE e.position >= 0 AND e.what IN ('failed', 'retry_requested')) f
        CROSS JOIN (VALUES (5), (60)) AS g(span)
        GROUP BY 1, 2, 3, 4, 5
        ON CONFLICT (span, since, template_id, position, fingerprint)
        DO UPDATE SET n = x.n + excluded.n, last_at = greatest(x.last_at, excluded.last_at),
                      message = CASE WHEN excluded.last_at >= x.last_at THEN excluded.message ELSE x.message END,
                      task_id = CASE WHEN excluded.last_at >= x.last_at THEN excluded.task_id ELSE x.task_id END
    )
    SELECT coalesce((SELECT range_agg(i.ids) FROM (
               -- ids that follow on one another have the same difference to their rank
               SELECT int8range(min(l.event_id), max(l.event_id), '[]') AS ids
               FROM (SELECT k.event_id, row_number() OVER (ORDER BY k.event_id) AS r FROM looked k) l GROUP BY l.event_id - l.r) i), '{}'),
           max(k.event_id), count(*), max(k.created_at)
    INTO seen, reached, n, latest FROM looked k;

    c := tasker.cursor_after(c, seen, reached, n = most, settled);
    UPDATE tasker.stats_progress p
    SET cursor = c, as_of = CASE WHEN n < most THEN now() ELSE greatest(latest, p.as_of) END,
        rest_until = CASE WHEN n = most THEN clock_timestamp() + rest * (clock_timestamp() - began) END;
    RETURN n;
END $$;

CREATE OR REPLACE FUNCTION tasker.event_cursor_since(at timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS tasker.event_cursor
    LANGUAGE plpgsql STABLE
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET enable_sort TO 'off'
    SET enable_bitmapscan TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    low  bigint := 0;  -- began before it, as far as is known
    high bigint := coalesce((SELECT e.event_id FROM tasker.events e ORDER BY e.event_id DESC LIMIT 1), 0);
    mid  bigint;
    era  timestamptz;
BEGIN
    IF at IS NULL THEN
        low := high;
    END IF;
    WHILE low < high LOOP -- ids and times go up together
        mid := (low + high) / 2;
        SELECT e.created_at INTO era FROM tasker.events e WHERE e.event_id > mid ORDER BY e.event_id LIMIT 1;
        IF era < at THEN
            low := mid + 1;
        ELSE
            high := mid;
        END IF;
    END LOOP;
    RETURN ROW (low, '{}', '{}', '{}')::tasker.event_cursor;
END $$;

CREATE FUNCTION tasker.written_after(id bigint) RETURNS timestamptz
    LANGUAGE plpgsql STABLE
    SET enable_seqscan = off
    SET enable_bitmapscan = off
    SET enable_sort = off
    SET jit = off
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    since timestamptz := tasker.unread_since(id + 1);
BEGIN
    RETURN (SELECT e.created_at FROM tasker.events e WHERE e.event_id > id AND e.created_at >= since ORDER BY e.event_id LIMIT 1);
END $$;
COMMENT ON FUNCTION tasker.written_after(id bigint) IS 'When the first event after this one was written';

CREATE OR REPLACE VIEW tasker.event_lag AS
 SELECT s.name,
    s.patterns,
    (s.cursor).passed AS cursor,
    GREATEST((l.last_id - (s.cursor).passed), (0)::bigint) AS behind,
        CASE
            WHEN (l.last_id > (s.cursor).passed) THEN (now() - tasker.written_after((s.cursor).passed))
            ELSE NULL::interval
        END AS lag,
    ( SELECT (COALESCE(sum((upper(m.m) - lower(m.m))), (0)::numeric))::bigint AS "coalesce"
           FROM unnest(((s.cursor).missing + (s.cursor).recent)) m(m)) AS awaited,
        CASE
            WHEN (s.held_until > now()) THEN s.holder
            ELSE NULL::text
        END AS holder,
    s.failed_event_id,
    s.failure,
    s.acknowledged_at,
    s.created_at
   FROM (tasker.event_subscribers s
     CROSS JOIN ( SELECT (tasker.event_cursor_since()).passed AS last_id) l);

-- The transitions of most steps, in Go and in Ruby, are decided without a call: with the
-- path of names that every function has set, one costs two microseconds.
CREATE OR REPLACE TRIGGER refuse_transition AFTER UPDATE ON tasker.steps FOR EACH ROW WHEN (OLD.state <> NEW.state
    AND NOT (OLD.state = 'pending' AND NEW.state IN ('in_progress', 'enqueued') OR OLD.state = 'enqueued' AND NEW.state = 'in_progress' OR OLD.state = 'in_progress' AND NEW.state = 'complete')
    AND NOT tasker.step_may_become(OLD.state, NEW.state)) EXECUTE FUNCTION tasker.refuse_transition();
