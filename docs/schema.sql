-- The schema as `tasker migrate up` makes it, River's tables included.
-- Written by `make docs`; a test keeps it current.
--
-- PostgreSQL database dump
--

--
-- Name: tasker; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA tasker;

--
-- Name: event_cursor; Type: TYPE; Schema: tasker; Owner: -
--

CREATE TYPE tasker.event_cursor AS (
	passed bigint,
	missing int8multirange,
	writers text[],
	recent int8multirange
);

--
-- Name: river_job_state; Type: TYPE; Schema: tasker; Owner: -
--

CREATE TYPE tasker.river_job_state AS ENUM (
    'available',
    'cancelled',
    'completed',
    'discarded',
    'pending',
    'retryable',
    'running',
    'scheduled'
);

--
-- Name: acknowledge_dead_letter(bigint, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.acknowledge_dead_letter(task bigint, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

--
-- Name: acknowledge_events(text, text, tasker.event_cursor, bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.acknowledge_events(name text, holder text, cursor tasker.event_cursor, up_to bigint DEFAULT NULL::bigint) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
BEGIN
    PERFORM tasker.own_subscriber(name);
    UPDATE tasker.event_subscribers s
    SET cursor = CASE WHEN up_to IS NULL THEN $3 ELSE tasker.cursor_within(s.cursor, $3, up_to) END,
        acknowledged_at = clock_timestamp(), failed_event_id = NULL, failure = NULL,
        held_until = clock_timestamp() + interval '5 seconds'
    WHERE s.name = $1 AND s.holder = $2;
    RETURN FOUND;
END $_$;

--
-- Name: admit_waiters(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.admit_waiters() RETURNS double precision
    LANGUAGE plpgsql
    SET lock_timeout TO '20ms'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    g     tasker.gates;
    out   bigint;
    kept  bigint;
    stale bigint;
    room  bigint;
    ids   bigint[];
    woken bigint[] := '{}';
    owned record;
    again double precision;
BEGIN
    FOR g IN SELECT * FROM tasker.gates l
             WHERE EXISTS (SELECT FROM tasker.gate_waiters w WHERE w.gate_id = l.gate_id) ORDER BY l.gate_id
    LOOP
        again := least(again, 1);
        CONTINUE WHEN g.paused_at IS NOT NULL;
        -- Most calls find no room, and who makes some calls again. So they don't take
        -- the gate: claims would wait for it until that is on disk.
        SELECT count(*) INTO out FROM tasker.gate_slots o WHERE o.gate_id = g.gate_id;
        SELECT count(*), count(*) FILTER (WHERE w.admitted_until < clock_timestamp()) INTO kept, stale
        FROM tasker.gate_waiters w WHERE w.gate_id = g.gate_id AND w.admitted_until IS NOT NULL;
        room := least(g.max_attempts - out, floor(tasker.gate_tokens(g))::bigint, 1000) - kept;
        IF room <= 0 AND stale = 0 THEN
            again := least(again, tasker.next_token(g, out, kept));
            CONTINUE;
        END IF;
        BEGIN
            SELECT * INTO g FROM tasker.gates l WHERE l.gate_id = g.gate_id FOR NO KEY UPDATE;
        EXCEPTION WHEN lock_not_available THEN
            again := least(again, 0.05);
            CONTINUE;
        END;
        CONTINUE WHEN g.paused_at IS NOT NULL;
        UPDATE tasker.gate_waiters w SET admitted_until = NULL, missed = w.missed + 1,
            rank = CASE WHEN w.missed = 0 THEN w.rank ELSE
                greatest(clock_timestamp(), (SELECT max(o.rank) FROM tasker.gate_waiters o WHERE o.gate_id = g.gate_id AND o.admitted_until IS NULL) + interval '1 microsecond') END
        FROM (SELECT o.step_id FROM tasker.gate_waiters o WHERE o.gate_id = g.gate_id AND o.admitted_until < clock_timestamp() FOR UPDATE SKIP LOCKED) late
        WHERE w.step_id = late.step_id;
        LOOP
            SELECT count(*) INTO out FROM tasker.gate_slots o WHERE o.gate_id = g.gate_id;
            SELECT count(*) INTO kept FROM tasker.gate_waiters w WHERE w.gate_id = g.gate_id AND w.admitted_until IS NOT NULL;
            room := least(g.max_attempts - out, floor(tasker.gate_tokens(g))::bigint, 1000) - kept;
            EXIT WHEN room <= 0;
            SELECT array_agg(f.step_id) INTO ids FROM (
                SELECT w.step_id FROM tasker.gate_waiters w WHERE w.gate_id = g.gate_id AND w.admitted_until IS NULL
                ORDER BY w.rank, w.step_id LIMIT room FOR UPDATE SKIP LOCKED) f;
            EXIT WHEN ids IS NULL;
            -- Those that wait no more: cancelled, skipped, their task has ended, is paused or was deleted.
            DELETE FROM tasker.gate_waiters w WHERE w.step_id = ANY (ids) AND NOT EXISTS (
                SELECT FROM tasker.steps s JOIN tasker.tasks t USING (task_id) WHERE s.step_id = w.step_id
                  AND s.state IN ('pending', 'waiting_for_retry') AND t.state IN ('pending', 'in_progress') AND t.paused_at IS NULL);
            WITH admitted AS (
                UPDATE tasker.gate_waiters w SET admitted_until = clock_timestamp() + interval '5 seconds' WHERE w.step_id = ANY (ids) RETURNING w.task_id
            )
            SELECT woken || coalesce(array_agg(DISTINCT a.task_id), '{}') INTO woken FROM admitted a;
        END LOOP;
        IF room <= 0 THEN
            again := least(again, tasker.next_token(g, out, kept));
        END IF;
    END LOOP;

    IF cardinality(woken) > 0 THEN
        FOR owned IN SELECT t.owner, string_agg(t.task_id::text, ',') AS tasks
            FROM (SELECT u.owner, u.task_id, row_number() OVER (PARTITION BY u.owner) / 300 AS chunk FROM tasker.tasks u
                  WHERE u.task_id = ANY (woken) AND u.owner IS NOT NULL) t GROUP BY t.owner, t.chunk
        LOOP
            PERFORM pg_notify('tasker.worker_' || owned.owner, 'g' || owned.tasks);
        END LOOP;
        PERFORM tasker.schedule_runs(array_agg(t.task_id), array_agg(0::double precision))
        FROM tasker.tasks t WHERE t.task_id = ANY (woken) AND t.owner IS NULL HAVING count(*) > 0;
    END IF;
    RETURN again;
END $$;

--
-- Name: age_jobs(interval, integer); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.age_jobs(ageing interval, most integer DEFAULT 200) RETURNS integer
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

--
-- Name: assert_gates(bigint, bigint[], text[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.assert_gates(seen bigint, step_tasks bigint[], step_states text[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    faults text;
BEGIN
    IF seen <> (SELECT coalesce(sum(g.version), 0) FROM tasker.gates g) THEN
        SELECT string_agg(DISTINCT w.task_id::text, ',') INTO faults FROM unnest(step_tasks, step_states) AS w(task_id, state)
        WHERE w.state IN ('enqueued', 'in_progress');
        RAISE EXCEPTION 'the gates have changed' USING ERRCODE = 'TK009', DETAIL = coalesce(faults, '');
    END IF;
END $$;

--
-- Name: assert_worker(bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.assert_worker(worker bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM FROM tasker.worker_fences f WHERE f.worker_id = worker LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN -- all are taken, or another worker or this one's stop is about to end it
        PERFORM FROM tasker.worker_fences f WHERE f.worker_id = worker AND f.lane = 0 FOR NO KEY UPDATE;
    END IF;
    -- A statement of its own: its snapshot is taken after the lock is held.
    IF NOT EXISTS (SELECT FROM tasker.workers w WHERE w.worker_id = worker AND w.state = 'alive') THEN
        RAISE EXCEPTION 'worker % has been declared dead', worker USING ERRCODE = 'TK004';
    END IF;
END $$;

--
-- Name: await_task(bigint, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.await_task(task bigint, channel text) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    found_state text;
BEGIN
    PERFORM tasker.check_channel(channel);
    INSERT INTO tasker.task_waiters AS a (task_id, channel, until) VALUES ($1, $2, clock_timestamp() + interval '1 minute')
    ON CONFLICT ON CONSTRAINT task_waiters_pkey DO UPDATE SET until = excluded.until;
    -- A statement of its own: it sees what was committed until now.
    SELECT t.state INTO found_state FROM tasker.tasks t WHERE t.task_id = $1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no task %', coalesce(task::text, 'NULL')
        USING ERRCODE = 'no_data_found', HINT = 'a task can be waited for when the transaction that inserted it has committed';
    END IF;
    RETURN found_state NOT IN ('pending', 'in_progress');
END $_$;

--
-- Name: cancel_task(bigint, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.cancel_task(task bigint, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
BEGIN
    IF NOT tasker.task_may_become(t.state, 'cancelled') THEN
        RAISE EXCEPTION 'task % is %: it cannot be cancelled any more', task, t.state USING ERRCODE = 'TK008';
    END IF;
    PERFORM FROM tasker.steps s WHERE s.task_id = task ORDER BY s.step_id FOR UPDATE;
    WITH cancelled AS (
        UPDATE tasker.steps s SET state = 'cancelled', finished_at = clock_timestamp(), retry_at = NULL
        WHERE s.task_id = task AND s.state IN ('pending', 'enqueued', 'in_progress', 'waiting_for_retry')
        RETURNING s.step_id, s.attempts
    )
    INSERT INTO tasker.events (task_id, step_id, attempt, name)
    SELECT task, c.step_id, c.attempts, 'step.cancelled' FROM cancelled c ORDER BY c.step_id;
    DELETE FROM tasker.dispatches d WHERE d.task_id = task;
    UPDATE tasker.tasks u SET state = 'cancelled', owner = NULL, epoch = u.epoch + 1, finished_at = clock_timestamp(), paused_at = NULL
    WHERE u.task_id = task;
    PERFORM tasker.record_verb(task, NULL, 'task.cancelled', who, why);
    IF t.owner IS NOT NULL THEN
        PERFORM pg_notify('tasker.worker_' || t.owner, 't' || task);
    END IF;
END $$;

--
-- Name: check_channel(text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.check_channel(channel text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
BEGIN
    IF channel !~ '^[A-Za-z_][A-Za-z0-9_]*$' OR octet_length(channel) > 63 THEN
        RAISE EXCEPTION 'a channel has 1 to 63 of a-z, A-Z, 0-9 and _, and begins with no digit, unlike "%"', left(channel, 100) USING ERRCODE = 'TK003';
    END IF;
END $_$;

--
-- Name: check_gate(text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.check_gate(scope text, name text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
DECLARE
    known text;
BEGIN
    IF $1 IS NULL OR $1 NOT IN ('template', 'handler', 'queue', 'key') THEN
        RAISE EXCEPTION 'there are limits and pauses of a template, handler, queue or key, not of a %', coalesce($1, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    IF EXISTS (SELECT FROM tasker.task_templates t JOIN tasker.template_steps s USING (template_id)
               WHERE tasker.gate_is_for($1, $2, t.namespace, t.name, s.handler_class, s.handler, s.queue, s.limit_key)) THEN
        RETURN;
    END IF;
    SELECT string_agg(n.it, ', ') INTO known FROM (
        SELECT DISTINCT CASE $1 WHEN 'template' THEN t.namespace || '/' || t.name WHEN 'handler' THEN coalesce(s.handler_class, s.handler)
                   WHEN 'queue' THEN CASE WHEN s.handler_class IS NOT NULL THEN s.queue END ELSE s.limit_key END AS it
        FROM tasker.task_templates t JOIN tasker.template_steps s USING (template_id) ORDER BY 1 LIMIT 50) n WHERE n.it IS NOT NULL;
    RAISE EXCEPTION 'no registered template has the % %; there are: %', $1, coalesce($2, 'NULL'), coalesce(known, 'none')
    USING ERRCODE = 'no_data_found', HINT = 'register the template first: tasker template register FOLDER';
END $_$;

--
-- Name: check_new_context(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.check_new_context() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM tasker.refuse_context(NEW.namespace, NEW.name, NEW.version, tasker.schema_problem(t.context_schema, NEW.context))
    FROM tasker.task_templates t
    WHERE t.template_id = NEW.template_id AND t.context_schema IS NOT NULL
      AND tasker.schema_problem(t.context_schema, NEW.context) IS NOT NULL;
    RETURN NULL;
END $$;

--
-- Name: claim_tasks(bigint, bigint[], bigint[], bigint, bytea); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.claim_tasks(worker bigint, ids bigint[], opening bigint[] DEFAULT '{}'::bigint[], gates_seen bigint DEFAULT NULL::bigint, ticket_key bytea DEFAULT NULL::bytea) RETURNS TABLE(task_id bigint, template_id bigint, epoch integer, context jsonb, correlation_id text, fresh bigint[], begun boolean, due_in double precision, key_seed bigint)
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
        SELECT t.task_id, t.template_id, NULL::int, NULL::jsonb, NULL, NULL::bigint[], false, extract(epoch FROM t.run_at - clock_timestamp())::double precision, NULL::bigint
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
        SELECT t.task_id, t.template_id, t.epoch, t.context, t.correlation_id, t.key_seed, f.steps, f.untouched,
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
    SELECT m.task_id, m.template_id, m.epoch, m.context, m.correlation_id, CASE WHEN m.untouched THEN m.steps END, coalesce(m.opens, false), NULL::double precision, m.key_seed
    FROM mine m;
END $$;

--
-- Name: FUNCTION claim_tasks(worker bigint, ids bigint[], opening bigint[], gates_seen bigint, ticket_key bytea); Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON FUNCTION tasker.claim_tasks(worker bigint, ids bigint[], opening bigint[], gates_seen bigint, ticket_key bytea) IS 'The worker becomes owner of those tasks that are free and due. ids: ascending, each once. fresh: the ids of the steps, by position, of a task that no loop has touched; begun: their roots have been claimed too, as their template is one of those that are opening, with tickets made of ticket_key; due_in, with epoch NULL: seconds until the run_at of a task that was left alone';

--
-- Name: close_dead_letters(integer); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.close_dead_letters(most integer) RETURNS integer
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

--
-- Name: close_event_days(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.close_event_days() RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    open_now text[] := tasker.open_transactions();
    day      record;
    id       bigint;
    closed   int := 0;
BEGIN
    IF NOT tasker.take_duty('event_days') THEN
        RETURN 0;
    END IF;
    -- A prepared transaction has lost its old name (it is -1/xid): it may be any of them.
    IF NOT EXISTS (SELECT FROM unnest(tasker.event_writers()) AS w WHERE w LIKE '-1/%') THEN
        FOR day IN SELECT d.partition FROM tasker.event_days d WHERE d.last_id IS NULL AND NOT d.open_then && open_now ORDER BY d.until LOOP
            -- A statement of its own: it sees what those have written.
            EXECUTE format('SELECT coalesce(max(event_id), 0) FROM tasker.%I', day.partition) INTO id;
            UPDATE tasker.event_days d SET last_id = id WHERE d.partition = day.partition;
            closed := closed + 1;
        END LOOP;
    END IF;
    -- A transaction's time is taken a moment before others can see that it is open.
    UPDATE tasker.event_days d SET open_then = open_now
    WHERE d.open_then IS NULL AND d.until < clock_timestamp() - interval '1 minute';
    RETURN closed;
END $$;

--
-- Name: context_key(jsonb); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.context_key(context jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT 'context:' || encode(sha256(convert_to(context::text, 'UTF8')), 'hex')
$$;

--
-- Name: context_record(jsonb, jsonb); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.context_record(was jsonb, becomes jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT CASE WHEN greatest(octet_length(w.old), octet_length(w.new)) <= 4096
        THEN jsonb_build_object('from', was, 'to', becomes)
        ELSE jsonb_build_object(
            'from_sha256', encode(sha256(convert_to(w.old, 'UTF8')), 'hex'), 'from_bytes', octet_length(w.old),
            'to_sha256', encode(sha256(convert_to(w.new, 'UTF8')), 'hex'), 'to_bytes', octet_length(w.new)) END
    FROM (SELECT was::text AS old, becomes::text AS new) w
$$;

--
-- Name: cursor_after(tasker.event_cursor, int8multirange, bigint, boolean, boolean); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.cursor_after(c tasker.event_cursor, seen int8multirange, reached bigint, cut boolean, settled boolean) RETURNS tasker.event_cursor
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    passed bigint := greatest(c.passed, reached);
BEGIN
    c.recent := c.recent + int8multirange(int8range(c.passed, passed, '(]')) - seen;
    c.missing := c.missing - seen;
    IF settled THEN
        c.missing := CASE WHEN cut THEN c.missing * int8multirange(int8range(reached, NULL, '()')) ELSE '{}' END;
    END IF;
    c.passed := passed;
    IF isempty(c.missing) THEN
        c.missing := c.recent;
        c.recent := '{}';
        -- After the look: whoever may write what it did not see.
        c.writers := CASE WHEN isempty(c.missing) THEN '{}' ELSE tasker.event_writers() END;
    END IF;
    RETURN c;
END $$;

--
-- Name: cursor_within(tasker.event_cursor, tasker.event_cursor, bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.cursor_within(earlier tasker.event_cursor, later tasker.event_cursor, up_to bigint) RETURNS tasker.event_cursor
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT ROW (greatest(earlier.passed, up_to), int8multirange(), '{}'::text[],
                (later.missing + later.recent) * int8multirange(int8range(NULL, up_to, '(]'))
                + (earlier.missing + earlier.recent) * int8multirange(int8range(up_to, NULL, '()')))::tasker.event_cursor
$$;

--
-- Name: document_problem(jsonb, integer); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.document_problem(doc jsonb, most integer) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN CASE WHEN ((pg_column_size(doc) <= (most / 11000)) AND (pg_column_compression(doc) IS NULL)) THEN NULL::text WHEN (doc @? 'strict $.**?(@.type() == "number" && ((@ >= 10000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000 || @ <= -10000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000) || (@ < 0.0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000001 && @ > -0.0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000001) && @ != 0))'::jsonpath) THEN 'has a number of more than 400 digits'::text WHEN (((pg_column_size(doc) > 2000) OR (pg_column_compression(doc) IS NOT NULL)) AND (doc @? 'strict $.**{1000}'::jsonpath)) THEN 'is nested more than 1000 levels deep'::text WHEN ((pg_column_size(doc) <= (most / 1400)) AND (pg_column_compression(doc) IS NULL)) THEN NULL::text WHEN (octet_length((doc)::text) > most) THEN format('has %s bytes as text, at most %s are kept'::text, octet_length((doc)::text), most) ELSE NULL::text END;

--
-- Name: ended_tasks(bigint[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.ended_tasks(tasks bigint[]) RETURNS SETOF bigint
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT u.task_id FROM unnest(tasks) AS u(task_id)
    WHERE coalesce((SELECT t.state FROM tasker.tasks t WHERE t.task_id = u.task_id), '') NOT IN ('pending', 'in_progress')
$$;

--
-- Name: enqueue_task(text, text, jsonb, text, smallint, timestamp with time zone, text, text, text, text[], text, text, text, text[], timestamp with time zone, bigint, jsonb); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.enqueue_task(namespace text, name text, context jsonb DEFAULT '{}'::jsonb, version text DEFAULT NULL::text, priority smallint DEFAULT NULL::smallint, run_at timestamp with time zone DEFAULT NULL::timestamp with time zone, idempotency_key text DEFAULT NULL::text, on_duplicate text DEFAULT 'return_existing'::text, correlation_id text DEFAULT NULL::text, tags text[] DEFAULT '{}'::text[], initiator text DEFAULT NULL::text, source_system text DEFAULT NULL::text, reason text DEFAULT NULL::text, bypass_steps text[] DEFAULT '{}'::text[], deadline timestamp with time zone DEFAULT NULL::timestamp with time zone, parent_task_id bigint DEFAULT NULL::bigint, carrier jsonb DEFAULT NULL::jsonb) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
DECLARE
    id  bigint;
    key text := idempotency_key;
BEGIN
    IF on_duplicate IS NULL OR on_duplicate NOT IN ('return_existing', 'refuse') THEN
        RAISE EXCEPTION 'on_duplicate must be return_existing or refuse, not %', coalesce(on_duplicate, 'NULL')
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO tasker.tasks AS t (namespace, name, version, context, priority, run_at, idempotency_key,
                                   correlation_id, tags, initiator, source_system, reason, bypass_steps, deadline, parent_task_id, carrier)
    VALUES ($1, $2, $4, $3, coalesce($5, 2::smallint), $6, $7, $9, coalesce($10, '{}'), $11, $12, $13, coalesce($14, '{}'), $15, $16, $17)
    ON CONFLICT (namespace, name, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING t.task_id INTO id;

    IF id IS NULL THEN
        key := coalesce(key, tasker.context_key($3)); -- where none was given, the template asked for this one
        SELECT t.task_id INTO id FROM tasker.tasks t
        WHERE t.namespace = $1 AND t.name = $2 AND t.idempotency_key = key;
        IF id IS NULL THEN
            RAISE EXCEPTION 'task %/% with idempotency key % was inserted by a transaction that this one cannot see', $1, $2, key
            USING ERRCODE = 'serialization_failure', HINT = 'run the transaction again';
        ELSIF on_duplicate = 'refuse' THEN
            RAISE EXCEPTION 'task % of %/% has the idempotency key % already', id, $1, $2, key
            USING ERRCODE = 'unique_violation';
        END IF;
    END IF;
    RETURN id;
END $_$;

--
-- Name: event_cursor_since(timestamp with time zone); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.event_cursor_since(at timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS tasker.event_cursor
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

--
-- Name: event_failed(text, text, bigint, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.event_failed(name text, holder text, event_id bigint, failure text) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    SELECT tasker.own_subscriber($1);
    UPDATE tasker.event_subscribers s SET failed_event_id = $3, failure = left($4, 2000) WHERE s.name = $1 AND s.holder = $2
$_$;

--
-- Name: event_likes(text[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.event_likes(patterns text[]) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    wrong text;
BEGIN
    IF cardinality(patterns) > 100 OR octet_length(array_to_string(patterns, ' ')) > 10000 THEN
        RAISE EXCEPTION 'there may be 100 patterns of events, of 10000 bytes together' USING ERRCODE = 'TK003';
    END IF;
    SELECT p INTO wrong FROM unnest(patterns) AS p WHERE p IS NULL OR p !~ '^(\*|[a-z0-9_]+(\.[a-z0-9_]+)*(\.\*)?)$' LIMIT 1;
    IF FOUND OR coalesce(cardinality(patterns), 0) = 0 THEN
        RAISE EXCEPTION 'patterns of events must be like step.completed, task.* or *, not %', coalesce('"' || wrong || '"', 'none at all') USING ERRCODE = 'TK003';
    END IF;
    RETURN ARRAY(SELECT CASE WHEN p = '*' THEN '%' ELSE regexp_replace(replace(p, '_', '\_'), '\*$', '%') END FROM unnest(patterns) AS p);
END $_$;

--
-- Name: event_writers(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.event_writers() RETURNS text[]
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT coalesce(array_agg(DISTINCT coalesce(l.virtualtransaction, '')), '{}') FROM pg_locks l
    WHERE l.locktype = 'relation' AND l.relation = 'tasker.events'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
      AND l.pid IS DISTINCT FROM pg_backend_pid()
$$;

--
-- Name: events_beyond(tasker.event_cursor, text[], integer, timestamp with time zone, bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.events_beyond(c tasker.event_cursor, likes text[], most integer, since timestamp with time zone, up_to bigint DEFAULT '9223372036854775807'::bigint) RETURNS TABLE(event_id bigint, created_at timestamp with time zone, wanted boolean)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    (SELECT e.event_id, e.created_at, e.name LIKE ANY (likes)
     FROM unnest(c.missing + c.recent) AS m(ids)
     CROSS JOIN LATERAL (SELECT v.event_id, v.created_at, v.name FROM tasker.events v
                         WHERE v.created_at >= since AND v.event_id >= lower(m.ids) AND v.event_id < upper(m.ids) OFFSET 0) e
     WHERE e.event_id <= up_to ORDER BY e.event_id LIMIT most)
    UNION ALL
    (SELECT e.event_id, e.created_at, e.name LIKE ANY (likes) FROM tasker.events e
     WHERE e.created_at >= since AND e.event_id > c.passed AND e.event_id <= up_to ORDER BY e.event_id LIMIT most)
    ORDER BY 1 LIMIT most
$$;

--
-- Name: expand_tasks(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.expand_tasks() RETURNS trigger
    LANGUAGE plpgsql
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    bypassed boolean;
    due      boolean;
    tasks    int;
    task     bigint; -- one of them
BEGIN
    IF EXISTS (SELECT FROM tasker.task_templates t WHERE t.context_schema IS NOT NULL) THEN
        PERFORM tasker.refuse_context(n.namespace, n.name, n.version, tasker.schema_problem(t.context_schema, n.context))
        FROM new_tasks n JOIN tasker.task_templates t USING (template_id)
        WHERE t.context_schema IS NOT NULL AND tasker.schema_problem(t.context_schema, n.context) IS NOT NULL;
    END IF;

    -- Task by task, in the order in which they were numbered.
    INSERT INTO tasker.steps (task_id, position, name, state, finished_at)
    SELECT n.task_id, s.position, s.name,
           CASE WHEN s.name = ANY (n.bypass_steps) THEN 'skipped' ELSE 'pending' END,
           CASE WHEN s.name = ANY (n.bypass_steps) THEN now() END
    FROM new_tasks n
    CROSS JOIN LATERAL (SELECT t.position, t.name FROM tasker.template_steps t WHERE t.template_id = n.template_id ORDER BY t.position OFFSET 0) s;

    INSERT INTO tasker.events (task_id, name, data)
    SELECT task_id, 'task.initialize_requested',
           CASE WHEN correlation_id IS NOT NULL OR parent_task_id IS NOT NULL THEN
               jsonb_strip_nulls(jsonb_build_object('correlation_id', correlation_id, 'parent_task_id', parent_task_id)) END
    FROM new_tasks;
    SELECT bool_or(bypass_steps <> '{}'), bool_or(run_at IS NULL OR run_at <= now()), count(*), min(task_id)
    INTO bypassed, due, tasks, task FROM new_tasks;
    IF bypassed THEN
        INSERT INTO tasker.events (task_id, step_id, name, data)
        SELECT s.task_id, s.step_id, 'step.skipped', '{"reason": "bypassed at enqueue"}'
        FROM new_tasks n JOIN tasker.steps s USING (task_id)
        WHERE n.bypass_steps <> '{}' AND s.state = 'skipped' ORDER BY s.step_id;
    END IF;

    INSERT INTO tasker.river_job (kind, args, queue, priority, max_attempts, state, scheduled_at)
    SELECT 'task_execution', jsonb_build_object('task_id', task_id), 'default', priority, 1000,
           tasker.river_state(run_at), coalesce(run_at, now())
    FROM new_tasks;
    IF tasks = 1 AND due THEN
        -- River hears that there is a job; a worker that has time for it, which one.
        PERFORM pg_notify('tasker.river_insert', format('{"queue": "default", "task_id": %s, "job_id": %s}', task, currval('tasker.river_job_id_seq')));
    ELSIF due THEN
        PERFORM tasker.notify_river();
    END IF;
    RETURN NULL;
END $$;

--
-- Name: expire_tasks(integer); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.expire_tasks(most integer DEFAULT 1000) RETURNS integer
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_sort TO 'on'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_indexscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
DECLARE
    t     record;
    names text[];
    fault jsonb;
    n     int := 0;
    began timestamptz := clock_timestamp();
BEGIN
    FOR t IN SELECT u.task_id, u.owner, u.deadline, u.created_at FROM tasker.tasks u
             WHERE u.deadline < clock_timestamp() AND u.state IN ('pending', 'in_progress') AND u.paused_at IS NULL
             ORDER BY u.deadline LIMIT most FOR UPDATE SKIP LOCKED
    LOOP
        EXIT WHEN clock_timestamp() > began + interval '300 milliseconds';
        BEGIN
            fault := jsonb_build_object('class', 'task_deadline', 'code', 'task_deadline',
                'message', 'the deadline of the task passed' ||
                    CASE WHEN isfinite(t.deadline) THEN format(' (%s after it was enqueued)', date_trunc('milliseconds', t.deadline - t.created_at)) ELSE '' END);
            -- Also those that have not begun: a claim that is under way holds its steps,
            -- and is seen below, or waits for them, and sees that the task has ended.
            PERFORM FROM tasker.steps s WHERE s.task_id = t.task_id AND s.state IN ('pending', 'waiting_for_retry', 'enqueued', 'in_progress')
            ORDER BY s.step_id FOR NO KEY UPDATE;
            WITH failed AS (
                UPDATE tasker.steps s SET state = 'error', error = fault || jsonb_build_object('attempt', s.attempts), finished_at = clock_timestamp()
                WHERE s.task_id = t.task_id AND s.state IN ('enqueued', 'in_progress')
                RETURNING s.step_id, s.attempts, s.position, s.name
            ), recorded AS (
                INSERT INTO tasker.events (task_id, step_id, attempt, name, data)
                SELECT t.task_id, f.step_id, f.attempts, 'step.failed', fault FROM failed f ORDER BY f.step_id
            )
            SELECT coalesce(array_agg(f.name ORDER BY f.position), '{}') INTO names FROM failed f;
            DELETE FROM tasker.dispatches d WHERE d.task_id = t.task_id;
            fault := jsonb_build_object('code', 'task_deadline', 'steps', to_jsonb(names), 'message', fault ->> 'message');
            UPDATE tasker.tasks u SET state = 'error', error = fault, owner = NULL, epoch = u.epoch + 1, finished_at = clock_timestamp(), paused_at = NULL
            WHERE u.task_id = t.task_id;
            INSERT INTO tasker.events (task_id, name, data) VALUES (t.task_id, 'task.failed', fault);
            IF t.owner IS NOT NULL THEN
                PERFORM pg_notify('tasker.worker_' || t.owner, 't' || t.task_id);
            END IF;
            n := n + 1;
        EXCEPTION WHEN lock_not_available THEN
            NULL; -- somebody reports, in a transaction that stays open: next time
        END;
    END LOOP;
    RETURN n;
END $$;

--
-- Name: failure_in_words(jsonb); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.failure_in_words(failure jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN "left"(split_part(COALESCE(NULLIF((failure ->> 'message'::text), ''::text), (failure ->> 'class'::text), 'no message'::text), '
'::text, 1), 200);

--
-- Name: failure_kind(text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.failure_kind(class text, message text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ((COALESCE(class, ''::text) || ': '::text) || "left"(regexp_replace(COALESCE(message, ''::text), '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|0x[0-9a-f]+|"[^"]*"|''[^'']*''|[0-9]+([.:][0-9]+)*'::text, '?'::text, 'gi'::text), 200));

--
-- Name: failures(interval, text, text, integer); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.failures(period interval DEFAULT '24:00:00'::interval, of_namespace text DEFAULT NULL::text, of_name text DEFAULT NULL::text, most integer DEFAULT 10) RETURNS TABLE(fingerprint text, namespace text, name text, step text, n bigint, class text, message text, task_id bigint, last_at timestamp with time zone)
    LANGUAGE sql STABLE
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    SELECT e.fingerprint, t.namespace, t.name, st.name, sum(e.n)::bigint, (array_agg(e.class ORDER BY e.last_at DESC))[1],
           (array_agg(e.message ORDER BY e.last_at DESC))[1], (array_agg(e.task_id ORDER BY e.last_at DESC))[1], max(e.last_at)
    FROM (
        SELECT x.* FROM tasker.stats_errors x, date_bin('1 hour', tasker.stats_from($1) + interval '59 minutes 59.999999 seconds', timestamptz '2000-01-01 00:00+00') AS whole
        WHERE x.span = 60 AND x.since >= whole OR x.span = 5 AND x.since >= tasker.stats_from($1) AND x.since < whole) e
    JOIN tasker.task_templates t USING (template_id)
    LEFT JOIN tasker.template_steps st ON st.template_id = e.template_id AND st.position = e.position
    WHERE t.namespace = coalesce($2, t.namespace) AND t.name = coalesce($3, t.name)
    GROUP BY 1, 2, 3, 4
    ORDER BY 5 DESC, 9 DESC LIMIT most
$_$;

--
-- Name: fall_asleep(text, text, text[], boolean); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.fall_asleep(name text, channel text, likes text[], asleep boolean) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
BEGIN
    PERFORM tasker.check_channel(channel);
    IF NOT asleep THEN
        DELETE FROM tasker.event_sleepers s WHERE s.name = $1;
    ELSIF NOT EXISTS (SELECT FROM tasker.event_sleepers s WHERE s.name = $1 AND s.channel = $2 AND s.likes = $3
                      AND s.until > clock_timestamp() + interval '5 seconds') THEN
        IF (SELECT count(*) FROM (SELECT FROM tasker.event_sleepers s WHERE s.until > clock_timestamp() AND s.name <> $1 LIMIT 1000) l) = 1000 THEN
            RAISE EXCEPTION '1000 readers of events wait for a notification already' USING ERRCODE = 'TK003', HINT = 'leave channel out, and ask again after a while';
        END IF;
        INSERT INTO tasker.event_sleepers AS s (name, channel, likes, until) VALUES ($1, $2, $3, clock_timestamp() + interval '10 seconds')
        ON CONFLICT ON CONSTRAINT event_sleepers_pkey DO UPDATE SET channel = excluded.channel, likes = excluded.likes, until = excluded.until;
        DELETE FROM tasker.event_sleepers s USING (
            SELECT l.name FROM tasker.event_sleepers l WHERE l.until < clock_timestamp() FOR UPDATE SKIP LOCKED) dead
        WHERE s.name = dead.name;
    END IF;
END $_$;

--
-- Name: figures(interval, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.figures(period interval DEFAULT '24:00:00'::interval, of_namespace text DEFAULT NULL::text, of_name text DEFAULT NULL::text) RETURNS TABLE(namespace text, name text, step text, measure text, n bigint, mean double precision, p50 double precision, p90 double precision, p95 double precision, p99 double precision)
    LANGUAGE sql STABLE
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    WITH summed AS MATERIALIZED ( -- before anything is joined: there are many rows and few sums
        SELECT s.template_id, s.position, s.measure, s.bucket, sum(s.n) AS n, sum(s.seconds) AS seconds
        FROM tasker.stats_since(tasker.stats_from($1)) s
        WHERE s.measure IN ('run', 'wait', 'total', 'backoff')
          AND s.template_id = ANY (ARRAY(SELECT t.template_id FROM tasker.task_templates t WHERE t.namespace = coalesce($2, t.namespace) AND t.name = coalesce($3, t.name)))
        GROUP BY 1, 2, 3, 4
    ), counted AS MATERIALIZED (
        SELECT t.namespace, t.name, st.name AS step, s.measure, s.bucket, sum(s.n)::bigint AS n, sum(s.seconds) AS seconds
        FROM summed s
        JOIN tasker.task_templates t USING (template_id)
        LEFT JOIN tasker.template_steps st ON st.template_id = s.template_id AND st.position = s.position
        GROUP BY 1, 2, 3, 4, 5
    ), ranked AS (
        SELECT c.*, sum(c.n) OVER (one ORDER BY c.bucket) AS up_to, sum(c.n) OVER one AS total, sum(c.seconds) OVER one AS total_seconds
        FROM counted c WINDOW one AS (PARTITION BY c.namespace, c.name, c.step, c.measure)
    )
    SELECT r.namespace, r.name, r.step, r.measure, max(r.total)::bigint, max(r.total_seconds) / max(r.total),
           max(q.value) FILTER (WHERE q.p = 0.5), max(q.value) FILTER (WHERE q.p = 0.9), max(q.value) FILTER (WHERE q.p = 0.95), max(q.value) FILTER (WHERE q.p = 0.99)
    FROM ranked r
    LEFT JOIN LATERAL (
        SELECT p.p, power(2, (r.bucket + (p.p * r.total - (r.up_to - r.n)) / r.n) / 8.0) AS value
        FROM unnest(ARRAY[0.5, 0.9, 0.95, 0.99]) AS p(p)
        WHERE p.p * r.total > r.up_to - r.n AND p.p * r.total <= r.up_to) q ON true
    GROUP BY 1, 2, 3, 4
    ORDER BY 1, 2, 3 NULLS FIRST, 4
$_$;

--
-- Name: find_stale_tasks(interval, interval, interval, interval, interval, integer); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.find_stale_tasks(pending interval DEFAULT '01:00:00'::interval, in_progress interval DEFAULT '00:30:00'::interval, waiting interval DEFAULT '00:30:00'::interval, running interval DEFAULT '24:00:00'::interval, failed interval DEFAULT '00:00:00'::interval, most integer DEFAULT 200, OUT found_tasks integer, OUT closed_entries integer) RETURNS record
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

--
-- Name: first_unread(tasker.event_cursor); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.first_unread(c tasker.event_cursor) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    RETURN LEAST(((c).passed + 1), lower(((c).missing + (c).recent)));

--
-- Name: gate_is_for(text, text, text, text, text, text, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.gate_is_for(scope text, gate text, namespace text, name text, handler_class text, handler text, queue text, limit_key text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE scope WHEN 'template'::text THEN (gate = ((namespace || '/'::text) || name)) WHEN 'handler'::text THEN (gate = COALESCE(handler_class, handler)) WHEN 'queue'::text THEN ((handler_class IS NOT NULL) AND (gate = queue)) ELSE (gate = limit_key) END;

--
-- Name: gate_rank(timestamp with time zone, integer); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.gate_rank(since timestamp with time zone, priority integer) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (since + (((priority - 1))::double precision * '00:01:00'::interval));

--
-- Name: gates; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.gates (
    gate_id integer NOT NULL,
    scope text NOT NULL,
    name text NOT NULL,
    max_attempts integer,
    per_second double precision,
    burst double precision,
    tokens double precision DEFAULT 0 NOT NULL,
    filled_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    paused_at timestamp with time zone,
    version integer DEFAULT 1 NOT NULL,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    changed_by text,
    reason text,
    CONSTRAINT gates_max_attempts_check CHECK ((max_attempts > 0)),
    CONSTRAINT gates_per_second_check CHECK ((per_second > (0)::double precision)),
    CONSTRAINT gates_scope_check CHECK ((scope = ANY (ARRAY['template'::text, 'handler'::text, 'queue'::text, 'key'::text])))
)
WITH (fillfactor='50');

--
-- Name: TABLE gates; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON TABLE tasker.gates IS 'Limits and pauses that operators have set; a row stays when all of them are lifted';

--
-- Name: gate_tokens(tasker.gates); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.gate_tokens(g tasker.gates) RETURNS double precision
    LANGUAGE sql STABLE
    RETURN LEAST((g).burst, ((g).tokens + ((g).per_second * (GREATEST((0)::numeric, EXTRACT(epoch FROM (clock_timestamp() - (g).filled_at))))::double precision)));

--
-- Name: handler_missing(bigint[], integer[], bigint[], bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.handler_missing(step_ids bigint[], attempts integer[], tickets bigint[], process_id bigint) RETURNS integer
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_indexscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    free bigint[];
    n    int;
BEGIN
    IF array_ndims(step_ids) > 1 OR array_ndims(attempts) > 1 OR array_ndims(tickets) > 1
       OR cardinality(step_ids) IS DISTINCT FROM cardinality(attempts) OR cardinality(step_ids) IS DISTINCT FROM cardinality(tickets) THEN
        RAISE EXCEPTION 'handler_missing wants one attempt and one ticket for each step' USING ERRCODE = 'TK007';
    END IF;
    free := ARRAY(SELECT d.step_id FROM tasker.dispatches d WHERE d.step_id = ANY (step_ids) AND d.started_at IS NULL AND d.failure IS NULL
                  ORDER BY d.step_id FOR UPDATE SKIP LOCKED);
    -- Pushed again when it has not been looked after for a while; see take_unstarted.
    UPDATE tasker.dispatches d
    SET missing_since = coalesce(d.missing_since, clock_timestamp()), looked_at = clock_timestamp(),
        missing_in = (SELECT left(p.identity, 200) FROM tasker.processes p WHERE p.process_id = $4)
    WHERE d.step_id = ANY (free)
      AND EXISTS (SELECT FROM unnest(step_ids, attempts, tickets) AS w(step_id, attempt, ticket)
                  WHERE w.step_id = d.step_id AND w.attempt = d.attempt AND coalesce(d.ticket = w.ticket, d.ticket IS NULL));
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $_$;

--
-- Name: FUNCTION handler_missing(step_ids bigint[], attempts integer[], tickets bigint[], process_id bigint); Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON FUNCTION tasker.handler_missing(step_ids bigint[], attempts integer[], tickets bigint[], process_id bigint) IS 'Gives attempts back that have not started: this process does not have their handler. Returns how many';

--
-- Name: has_defaults(jsonb); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.has_defaults(schema jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN COALESCE(((schema)::text ~~ '%"default": %'::text), false);

--
-- Name: heartbeat(bigint, integer, jsonb, bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.heartbeat(step_id bigint, attempt integer, progress jsonb DEFAULT NULL::jsonb, secret bigint DEFAULT NULL::bigint) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
DECLARE
    problem text;
BEGIN
    IF $3 IS NOT NULL THEN
        problem := tasker.document_problem($3, 65536);
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'the progress of step % %', $1, problem
            USING ERRCODE = 'TK007', HINT = 'store the data and report a reference';
        END IF;
        UPDATE tasker.steps s SET progress = $3 WHERE s.step_id = $1 AND s.attempts = $2 AND s.state = 'in_progress'
          AND (SELECT coalesce(d.secret = $4, d.ticket IS NULL) FROM tasker.dispatches d WHERE d.step_id = $1 AND d.attempt = $2);
    END IF;
    UPDATE tasker.dispatches d SET beat_by = clock_timestamp() + d.heartbeat
    WHERE d.step_id = $1 AND d.attempt = $2 AND d.started_at IS NOT NULL AND d.failure IS NULL AND coalesce(d.secret = $4, d.ticket IS NULL);
    RETURN FOUND;
END $_$;

--
-- Name: held_by(bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.held_by(task bigint) RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT format('%s: %s', r.name, r.explanation) || CASE WHEN r.likewise > 1 THEN format(' (and %s more likewise)', r.likewise - 1) ELSE '' END
    FROM (SELECT s.name, s.explanation, s.position, count(*) OVER (PARTITION BY s.reason) AS likewise,
                 coalesce(array_position(ARRAY['no_process_alive', 'no_handler_alive', 'no_worker_alive', 'running', 'enqueued', 'ready'], s.reason),
                          array_position(ARRAY['at_limit', 'backoff', 'attempts_exhausted', 'failed', 'fail_fast', 'dependencies', 'blocked'], s.reason) + 100,
                          50) AS telling
          FROM tasker.step_readiness s WHERE s.task_id = task AND s.reason NOT IN ('finished', 'task_finished', 'task_cancelled')) r
    ORDER BY r.telling, r.position LIMIT 1
$$;

--
-- Name: histogram(interval, text, text, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.histogram(period interval, of_namespace text, of_name text, of_step text DEFAULT NULL::text, of_measure text DEFAULT 'run'::text) RETURNS TABLE(at_least double precision, below double precision, n bigint)
    LANGUAGE sql STABLE
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    SELECT power(2, s.bucket / 8.0)::double precision, power(2, (s.bucket + 1) / 8.0)::double precision, sum(s.n)::bigint
    FROM tasker.stats_since(tasker.stats_from($1)) s
    JOIN tasker.task_templates t USING (template_id)
    LEFT JOIN tasker.template_steps st ON st.template_id = s.template_id AND st.position = s.position
    WHERE t.namespace = $2 AND t.name = $3 AND st.name IS NOT DISTINCT FROM $4 AND s.measure = $5
    GROUP BY s.bucket ORDER BY s.bucket
$_$;

--
-- Name: hold_subscriber(text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.hold_subscriber(name text, holder text) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    s tasker.event_subscribers;
BEGIN
    SELECT * INTO s FROM tasker.event_subscribers u WHERE u.name = $1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no subscriber "%"', name USING ERRCODE = 'no_data_found', HINT = 'tasker.subscribe makes one';
    END IF;
    IF s.owner IS DISTINCT FROM session_user THEN
        PERFORM tasker.own_subscriber(name);
    END IF;
    IF s.holder = $2 AND s.held_until > clock_timestamp() + interval '3 seconds' THEN
        RETURN true;
    END IF;
    UPDATE tasker.event_subscribers u SET holder = $2, held_until = clock_timestamp() + interval '5 seconds'
    WHERE u.name = $1 AND (u.holder = $2 OR u.holder IS NULL OR u.held_until < clock_timestamp());
    RETURN FOUND;
END $_$;

--
-- Name: idempotency_key(bigint, bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.idempotency_key(key_seed bigint, step_id bigint) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN (key_seed IS NULL) THEN ('tasker-step-'::text || (step_id)::text) ELSE ((('tasker-'::text || lpad(to_hex(key_seed), 12, '0'::text)) || '-'::text) || (step_id)::text) END;

--
-- Name: FUNCTION idempotency_key(key_seed bigint, step_id bigint); Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON FUNCTION tasker.idempotency_key(key_seed bigint, step_id bigint) IS 'The key that a step passes to the service it calls: the same for all attempts, another in every other database';

--
-- Name: is_test_database(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.is_test_database() RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    -- Not current_setting: that any session can set for itself.
    SELECT EXISTS (SELECT FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) AS c(setting)
                   WHERE s.setdatabase = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()) AND s.setrole = 0
                     AND c.setting ~* '^tasker\.testing=(on|true|yes|1)$')
$_$;

--
-- Name: leave_gates(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.leave_gates() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF OLD.state IN ('enqueued', 'in_progress') AND NEW.state NOT IN ('enqueued', 'in_progress') THEN
        DELETE FROM tasker.gate_slots o WHERE o.step_id = NEW.step_id;
    END IF;
    RETURN NULL;
END $$;

--
-- Name: likes_are_safe(text[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.likes_are_safe(likes text[]) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    RETURN (array_to_string(likes, ' '::text) ~ '^(%|([a-z0-9.]|\\_)+%?)( (%|([a-z0-9.]|\\_)+%?))*$'::text);

--
-- Name: steps; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.steps (
    step_id bigint NOT NULL,
    task_id bigint NOT NULL,
    "position" integer NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    losses integer DEFAULT 0 NOT NULL,
    forgiven integer DEFAULT 0 NOT NULL,
    retry_at timestamp with time zone,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    name text NOT NULL,
    state text DEFAULT 'pending'::text NOT NULL,
    result jsonb,
    error jsonb,
    progress jsonb,
    gated boolean DEFAULT false NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_cost_delay='0', fillfactor='45');

--
-- Name: lock_step(bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.lock_step(step bigint) RETURNS tasker.steps
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    s tasker.steps;
BEGIN
    SELECT * INTO s FROM tasker.steps u WHERE u.step_id = step;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no step %', coalesce(step::text, 'NULL') USING ERRCODE = 'no_data_found';
    END IF;
    PERFORM tasker.lock_task(s.task_id);
    SELECT * INTO s FROM tasker.steps u WHERE u.step_id = step FOR UPDATE;
    RETURN s;
END $$;

--
-- Name: tasks; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.tasks (
    task_id bigint NOT NULL,
    template_id bigint NOT NULL,
    namespace text DEFAULT 'default'::text NOT NULL,
    name text NOT NULL,
    version text NOT NULL,
    state text DEFAULT 'pending'::text NOT NULL,
    context jsonb DEFAULT '{}'::jsonb NOT NULL,
    priority smallint DEFAULT 2 NOT NULL,
    run_at timestamp with time zone,
    idempotency_key text,
    correlation_id text,
    tags text[] DEFAULT '{}'::text[] NOT NULL,
    initiator text,
    source_system text,
    reason text,
    bypass_steps text[] DEFAULT '{}'::text[] NOT NULL,
    paused_at timestamp with time zone,
    error jsonb,
    owner bigint,
    epoch integer DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    deadline timestamp with time zone,
    parent_task_id bigint,
    carrier jsonb,
    key_seed bigint
)
WITH (fillfactor='80', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_cost_delay='0');

--
-- Name: TABLE tasks; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON TABLE tasker.tasks IS 'INSERT here to start a workflow';

--
-- Name: COLUMN tasks.key_seed; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON COLUMN tasker.tasks.key_seed IS 'random; part of the idempotency keys of its steps. NULL: made before 0051';

--
-- Name: lock_task(bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.lock_task(task bigint) RETURNS tasker.tasks
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    t tasker.tasks;
BEGIN
    SELECT * INTO t FROM tasker.tasks u WHERE u.task_id = task FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no task %', coalesce(task::text, 'NULL') USING ERRCODE = 'no_data_found';
    END IF;
    RETURN t;
END $$;

--
-- Name: make_event_days(integer); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.make_event_days(ahead integer DEFAULT 3) RETURNS integer
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    today timestamptz := date_trunc('day', now(), 'UTC');
    day   record;
    made  int := 0;
BEGIN
    FOR day IN
        SELECT 'events_' || to_char(u.since AT TIME ZONE 'UTC', 'YYYYMMDD') AS partition, u.since, u.since + interval '24 hours' AS until
        FROM (SELECT today + make_interval(hours => 24 * n) AS since FROM generate_series(0, ahead) AS n) u
        WHERE NOT EXISTS (SELECT FROM tasker.event_days d WHERE d.since <= u.since AND d.until > u.since)
        ORDER BY u.since
    LOOP
        IF NOT tasker.take_duty('event_days') THEN
            EXIT; -- another worker is about to
        END IF;
        -- Before the lock on it that looking for such rows takes.
        CONTINUE WHEN EXISTS (SELECT FROM tasker.events_default e WHERE e.created_at >= day.since AND e.created_at < day.until)
            OR EXISTS (SELECT FROM tasker.event_days d WHERE d.partition = day.partition);
        EXECUTE format('CREATE TABLE tasker.%I (LIKE tasker.events INCLUDING DEFAULTS, PRIMARY KEY (event_id))', day.partition);
        EXECUTE format('ALTER TABLE tasker.events ATTACH PARTITION tasker.%I FOR VALUES FROM (%L) TO (%L)', day.partition, day.since, day.until);
        INSERT INTO tasker.event_days (partition, since, until) VALUES (day.partition, day.since, day.until);
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;

--
-- Name: make_fences(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.make_fences() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    INSERT INTO tasker.worker_fences (worker_id, lane) SELECT NEW.worker_id, lane FROM generate_series(0, 7) AS lane;
    RETURN NULL;
END $$;

--
-- Name: new_secret(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.new_secret() RETURNS bigint
    LANGUAGE sql
    RETURN ((('x'::text || replace("left"((gen_random_uuid())::text, 13), '-'::text, ''::text)))::bit(48))::bigint;

--
-- Name: next_events(text, text, integer, tasker.event_cursor, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.next_events(name text, holder text, most integer DEFAULT 1000, acknowledged tasker.event_cursor DEFAULT NULL::tasker.event_cursor, channel text DEFAULT NULL::text) RETURNS TABLE(event_id bigint, occurred_at timestamp with time zone, event text, task_id bigint, step_id bigint, attempt integer, data jsonb, namespace text, task_name text, version text, step text, correlation_id text, parent_task_id bigint, cursor tasker.event_cursor)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
DECLARE
    s tasker.event_subscribers;
BEGIN
    IF acknowledged IS NOT NULL AND NOT tasker.acknowledge_events($1, $2, acknowledged) OR NOT tasker.hold_subscriber($1, $2) THEN
        RETURN;
    END IF;
    SELECT * INTO s FROM tasker.event_subscribers u WHERE u.name = $1;
    RETURN QUERY SELECT * FROM tasker.read_events(s.cursor, s.patterns, most, $1, channel);
END $_$;

--
-- Name: next_token(tasker.gates, bigint, bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.next_token(g tasker.gates, taken bigint, kept bigint) RETURNS double precision
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT greatest(0.001, (1 + kept - tasker.gate_tokens(g)) / g.per_second)
    WHERE g.per_second IS NOT NULL AND (g.max_attempts > taken + kept) IS NOT FALSE
$$;

--
-- Name: notify_river(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.notify_river() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM pg_notify('tasker.river_insert', '{"queue": "default"}');
END $$;

--
-- Name: old_events(timestamp with time zone); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.old_events(before timestamp with time zone) RETURNS TABLE(partition text, since timestamp with time zone, until timestamp with time zone, bytes bigint, held_by text)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
DECLARE
    day     record;
    highest bigint;
BEGIN
    FOR day IN
        SELECT d.partition, d.since, d.until, pg_total_relation_size(format('tasker.%I', d.partition)) AS bytes FROM tasker.event_days d WHERE d.until <= before
        UNION ALL
        SELECT 'events_default', min(e.created_at), max(e.created_at), NULL FROM tasker.events_default e WHERE e.created_at < before HAVING count(*) > 0
        ORDER BY 3, 1
    LOOP
        -- Not event_days.last_id: a day that isn't closed may be dropped too.
        EXECUTE format('SELECT coalesce(max(e.event_id), 0) FROM tasker.%I e WHERE e.created_at < $1', day.partition) INTO highest USING before;
        RETURN QUERY SELECT day.partition, day.since, day.until, day.bytes,
            (SELECT s.name FROM tasker.event_subscribers s WHERE tasker.first_unread(s.cursor) <= highest ORDER BY tasker.first_unread(s.cursor), s.name LIMIT 1);
    END LOOP;
END $_$;

--
-- Name: old_tasks(timestamp with time zone, integer, bigint, boolean); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.old_tasks(before timestamp with time zone, most integer, after bigint, failed boolean) RETURNS TABLE(task_id bigint, old boolean, done boolean)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT p.task_id, coalesce(p.finished_at < before, false)
               AND (p.state IN ('complete', 'cancelled', 'resolved_manually') OR failed AND p.state = 'error')
               AND NOT EXISTS (SELECT FROM tasker.tasks m WHERE m.task_id = p.parent_task_id AND m.state IN ('pending', 'in_progress'))
               AND NOT EXISTS (SELECT FROM tasker.tasks m WHERE m.parent_task_id = p.task_id AND m.state IN ('pending', 'in_progress')),
           p.created_at >= before
    FROM (SELECT * FROM tasker.tasks t WHERE t.task_id > after ORDER BY t.task_id LIMIT most) p
$$;

--
-- Name: open_gates(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.open_gates() RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ SELECT count(pg_notify('tasker.worker_' || w.worker_id, 'g')) FROM tasker.workers w WHERE w.state = 'alive' $$;

--
-- Name: open_transactions(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.open_transactions() RETURNS text[]
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT coalesce(array_agg(l.virtualtransaction), '{}') FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND a.datname = current_database()
      AND a.backend_type IS DISTINCT FROM 'autovacuum worker' -- for some it is hidden
$$;

--
-- Name: outcomes(interval, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.outcomes(period interval DEFAULT '24:00:00'::interval, of_namespace text DEFAULT NULL::text, of_name text DEFAULT NULL::text) RETURNS TABLE(namespace text, name text, step text, created bigint, completed bigint, failed bigint, cancelled bigint, resolved bigint, skipped bigint, retried bigint, recovered bigint, exhausted bigint, ran bigint, ran_seconds double precision, waited bigint, waited_seconds double precision, took bigint, took_seconds double precision)
    LANGUAGE sql STABLE
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    WITH summed AS MATERIALIZED (
        SELECT s.template_id, s.position, s.measure, sum(s.n) AS n, sum(s.seconds) AS seconds
        FROM tasker.stats_since(tasker.stats_from($1)) s
        WHERE s.measure NOT IN ('run', 'wait', 'total', 'backoff')
          AND s.template_id = ANY (ARRAY(SELECT t.template_id FROM tasker.task_templates t WHERE t.namespace = coalesce($2, t.namespace) AND t.name = coalesce($3, t.name)))
        GROUP BY 1, 2, 3
    )
    SELECT t.namespace, t.name, st.name,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'created'), 0)::bigint, coalesce(sum(s.n) FILTER (WHERE s.measure = 'completed'), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'failed'), 0)::bigint, coalesce(sum(s.n) FILTER (WHERE s.measure = 'cancelled'), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'resolved'), 0)::bigint, coalesce(sum(s.n) FILTER (WHERE s.measure = 'skipped'), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'retried'), 0)::bigint, coalesce(sum(s.n) FILTER (WHERE s.measure = 'recovered'), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'exhausted'), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'ran'), 0)::bigint, coalesce(sum(s.seconds) FILTER (WHERE s.measure = 'ran'), 0),
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'waited'), 0)::bigint, coalesce(sum(s.seconds) FILTER (WHERE s.measure = 'waited'), 0),
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'took'), 0)::bigint, coalesce(sum(s.seconds) FILTER (WHERE s.measure = 'took'), 0)
    FROM summed s
    JOIN tasker.task_templates t USING (template_id)
    LEFT JOIN tasker.template_steps st ON st.template_id = s.template_id AND st.position = s.position
    GROUP BY 1, 2, 3
    ORDER BY 1, 2, 3 NULLS FIRST
$_$;

--
-- Name: own_subscriber(text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.own_subscriber(name text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    owner text;
BEGIN
    SELECT s.owner INTO owner FROM tasker.event_subscribers s WHERE s.name = $1;
    IF NOT FOUND OR owner = session_user THEN
        RETURN;
    END IF;
    IF owner IS NULL THEN
        UPDATE tasker.event_subscribers s SET owner = session_user WHERE s.name = $1 AND s.owner IS NULL;
        IF FOUND THEN
            RETURN;
        END IF;
        -- Another login was first.
        SELECT s.owner INTO owner FROM tasker.event_subscribers s WHERE s.name = $1;
    END IF;
    IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = owner AND pg_has_role(session_user, r.oid, 'MEMBER')) OR tasker.steers_subscribers() THEN
        RETURN;
    END IF;
    RAISE EXCEPTION 'subscriber "%" belongs to %, and % may not use it', name, owner, session_user USING ERRCODE = 'insufficient_privilege',
        HINT = format('use another name, or let its owner or an operator call tasker.set_subscriber_owner(%L, ROLE)', name);
END $_$;

--
-- Name: pass_gates(bigint[], integer[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.pass_gates(steps bigint[], gate_ids integer[]) RETURNS bigint[]
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_indexscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $_$
DECLARE
    g      tasker.gates;
    denied bigint[] := '{}';
    passed bigint[];
    stopped bigint[];
    room   bigint;
    kept   bigint;
    stale  text;
BEGIN
    BEGIN
        PERFORM FROM tasker.gates l WHERE l.gate_id = ANY ($2) ORDER BY l.gate_id FOR NO KEY UPDATE;
    EXCEPTION WHEN lock_not_available THEN
        -- Somebody changes a gate in a transaction that stays open. Whose claims
        -- have to wait is said, so that the rest is not tried one by one, and each
        -- in vain for as long.
        RAISE EXCEPTION 'somebody changes a gate' USING ERRCODE = 'lock_not_available', DETAIL = (
            SELECT coalesce(string_agg(DISTINCT s.task_id::text, ','), '') FROM unnest($1, $2) AS a(step_id, gate_id) JOIN tasker.steps s USING (step_id)
            WHERE a.gate_id NOT IN (SELECT l.gate_id FROM tasker.gates l WHERE l.gate_id = ANY ($2) ORDER BY l.gate_id FOR NO KEY UPDATE SKIP LOCKED));
    END;
    -- A write whose answer was lost comes again, and finds its own attempts in the
    -- gates that they passed. They have begun; who denied them would have their loop
    -- forget them.
    SELECT string_agg(DISTINCT s.task_id::text, ',') INTO stale FROM tasker.steps s
    WHERE s.step_id = ANY ($1) AND s.state NOT IN ('pending', 'waiting_for_retry');
    IF stale IS NOT NULL THEN
        RAISE EXCEPTION 'a step is not in the state that its loop saw' USING ERRCODE = 'TK005', DETAIL = stale;
    END IF;
    FOR g IN SELECT * FROM tasker.gates l WHERE l.gate_id = ANY ($2) ORDER BY l.gate_id LOOP
        room := CASE WHEN g.paused_at IS NOT NULL THEN 0 ELSE least(
            g.max_attempts - (SELECT count(*) FROM tasker.gate_slots o WHERE o.gate_id = g.gate_id),
            floor(tasker.gate_tokens(g))::bigint, 1000000) END;
        -- Places that are kept for others.
        SELECT count(*) INTO kept FROM tasker.gate_waiters w
        WHERE w.gate_id = g.gate_id AND w.admitted_until > clock_timestamp() AND w.step_id <> ALL ($1);
        SELECT coalesce(array_agg(c.step_id), '{}') INTO stopped FROM (
            SELECT a.step_id, w.admitted_until > clock_timestamp() IS TRUE AS admitted,
                   row_number() OVER (ORDER BY w.admitted_until > clock_timestamp() IS TRUE DESC, w.rank NULLS LAST, a.step_id) AS nth
            FROM unnest($1, $2) AS a(step_id, gate_id)
            LEFT JOIN tasker.gate_waiters w ON w.step_id = a.step_id AND w.gate_id = g.gate_id
            WHERE a.gate_id = g.gate_id AND a.step_id <> ALL (denied)) c
        WHERE c.nth > CASE WHEN c.admitted THEN room ELSE room - kept END
           OR NOT c.admitted AND EXISTS (SELECT FROM tasker.gate_waiters o WHERE o.gate_id = g.gate_id AND o.admitted_until IS NULL AND o.step_id <> ALL ($1));
        IF cardinality(stopped) > 0 THEN
            INSERT INTO tasker.gate_waiters AS w (step_id, gate_id, task_id, rank)
            SELECT s.step_id, g.gate_id, s.task_id, tasker.gate_rank(clock_timestamp(), t.priority)
            FROM tasker.steps s JOIN tasker.tasks t USING (task_id) WHERE s.step_id = ANY (stopped) ORDER BY s.step_id
            ON CONFLICT (step_id) DO UPDATE SET gate_id = EXCLUDED.gate_id, admitted_until = NULL, missed = 0; -- it keeps its rank
            denied := denied || stopped;
        END IF;
    END LOOP;

    SELECT coalesce(array_agg(DISTINCT p), '{}') INTO passed FROM unnest($1) p WHERE p <> ALL (denied);
    IF cardinality(passed) > 0 THEN
        INSERT INTO tasker.gate_slots (step_id, gate_id, task_id)
        SELECT a.step_id, a.gate_id, s.task_id FROM unnest($1, $2) AS a(step_id, gate_id)
        JOIN tasker.gates l USING (gate_id) JOIN tasker.steps s USING (step_id)
        WHERE l.max_attempts IS NOT NULL AND a.step_id = ANY (passed);
        UPDATE tasker.gates l SET tokens = tasker.gate_tokens(l) - p.n, filled_at = clock_timestamp()
        FROM (SELECT a.gate_id, count(*) AS n FROM unnest($1, $2) AS a(step_id, gate_id) WHERE a.step_id = ANY (passed) GROUP BY a.gate_id) p
        WHERE l.gate_id = p.gate_id AND l.per_second IS NOT NULL;
    END IF;
    RETURN denied;
END $_$;

--
-- Name: pause(text, text, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.pause(scope text, name text, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
BEGIN
    PERFORM tasker.check_gate($1, $2);
    INSERT INTO tasker.gates AS g (scope, name, paused_at, changed_by, reason) VALUES ($1, $2, clock_timestamp(), $3, $4)
    ON CONFLICT (scope, name) DO UPDATE SET
        paused_at = clock_timestamp(), version = g.version + 1, changed_at = clock_timestamp(), changed_by = $3, reason = $4
    WHERE g.paused_at IS NULL;
    IF FOUND THEN
        INSERT INTO tasker.events (name, data) VALUES ('gate.paused', jsonb_strip_nulls(jsonb_build_object(
        'scope', $1, 'name', $2, 'by', $3, 'reason', $4, 'login', session_user)));
    END IF;
END $_$;

--
-- Name: pause_task(bigint, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.pause_task(task bigint, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
BEGIN
    IF t.state NOT IN ('pending', 'in_progress') THEN
        RAISE EXCEPTION 'task % is %: there is nothing to pause', task, t.state USING ERRCODE = 'TK008';
    ELSIF t.paused_at IS NOT NULL THEN
        RETURN;
    END IF;
    UPDATE tasker.tasks u SET paused_at = clock_timestamp() WHERE u.task_id = task;
    PERFORM tasker.record_verb(task, NULL, 'task.paused', who, why);
    PERFORM tasker.poke_task(task);
END $$;

--
-- Name: poke_task(bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.poke_task(task bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    t tasker.tasks;
BEGIN
    UPDATE tasker.tasks u SET epoch = u.epoch + 1 WHERE u.task_id = task RETURNING * INTO t;
    IF t.owner IS NOT NULL THEN
        PERFORM pg_notify('tasker.worker_' || t.owner, 't' || task);
    ELSIF t.state IN ('pending', 'in_progress') AND t.paused_at IS NULL AND (t.run_at IS NULL OR t.run_at <= now()) THEN
        PERFORM tasker.schedule_runs(ARRAY[task], ARRAY[0::double precision]);
    END IF;
END $$;

--
-- Name: prepare_task(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.prepare_task() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    found_id      bigint;
    found_version text;
    key_of        text;
    seconds       double precision;
    has_defaults  boolean;
    unused        boolean;
    known         text;
    unknown       text;
    problem       text;
BEGIN
    IF NEW.version IS NULL THEN
        SELECT t.template_id, t.version, t.idempotency, t.deadline_seconds, t.context_defaults, t.used_at IS NULL
        INTO found_id, found_version, key_of, seconds, has_defaults, unused
        FROM tasker.task_templates t
        WHERE t.namespace = NEW.namespace AND t.name = NEW.name
        ORDER BY t.version_key DESC LIMIT 1;
    ELSE
        SELECT t.template_id, t.version, t.idempotency, t.deadline_seconds, t.context_defaults, t.used_at IS NULL
        INTO found_id, found_version, key_of, seconds, has_defaults, unused
        FROM tasker.task_templates t
        WHERE t.namespace = NEW.namespace AND t.name = NEW.name AND t.version = NEW.version;
    END IF;
    IF found_id IS NULL THEN
        SELECT string_agg(t.version, ', ' ORDER BY t.version_key DESC) INTO known
        FROM tasker.task_templates t WHERE t.namespace = NEW.namespace AND t.name = NEW.name;
        IF known IS NOT NULL THEN
            RAISE EXCEPTION 'template %/% has no version %; it has: %', NEW.namespace, NEW.name, NEW.version, known
            USING ERRCODE = 'TK001', HINT = 'leave the version out for the latest, or register it: tasker template register FOLDER';
        END IF;
        -- Those that look like it first, by the three letters in a row that they share.
        SELECT string_agg(n.name, ', ' ORDER BY n.alike DESC, n.name) FILTER (WHERE n.place <= 10) || CASE WHEN count(*) > 10 THEN format(' and %s more', count(*) - 10) ELSE '' END
        INTO known
        FROM (SELECT m.name, a.alike, row_number() OVER (ORDER BY a.alike DESC, m.name) AS place
              FROM (SELECT DISTINCT t.namespace || '/' || t.name AS name FROM tasker.task_templates t) m
              CROSS JOIN LATERAL (
                  SELECT count(*) AS alike FROM generate_series(1, least(length(NEW.namespace || '/' || NEW.name), 200) - 2) AS i
                  WHERE position(lower(substr(NEW.namespace || '/' || NEW.name, i, 3)) IN lower(m.name)) > 0) a) n;
        RAISE EXCEPTION 'there is no template %/%; registered are: %',
            NEW.namespace, NEW.name, coalesce(known, 'none')
        USING ERRCODE = 'TK001', HINT = 'register it: tasker template register FOLDER; tasker template list shows all';
    END IF;
    IF unused THEN
        -- It is not replaced while this transaction is open. Waits for a registration
        -- that replaces it now, for no other transaction, and reads what it has written.
        SELECT t.idempotency, t.deadline_seconds, t.context_defaults INTO key_of, seconds, has_defaults
        FROM tasker.task_templates t WHERE t.template_id = found_id FOR KEY SHARE;
    END IF;
    IF (jsonb_typeof(NEW.context) = 'object' AND tasker.document_problem(NEW.context, 1048576) IS NULL AND NEW.priority BETWEEN 1 AND 4) IS NOT TRUE THEN
        IF jsonb_typeof(NEW.context) IS DISTINCT FROM 'object' THEN
            RAISE EXCEPTION 'the context of a task must be a JSON object, not %', coalesce(jsonb_typeof(NEW.context), 'NULL')
            USING ERRCODE = 'TK003', HINT = 'wrap the value: {"value": …}';
        END IF;
        problem := tasker.document_problem(NEW.context, 1048576);
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'the context of a task %', problem
            USING ERRCODE = 'TK003', HINT = 'store the data and put a reference to it into the context';
        END IF;
        IF NEW.priority NOT BETWEEN 1 AND 4 THEN
            RAISE EXCEPTION 'the priority of a task is a number from 1, which goes first, to 4, not %', NEW.priority USING ERRCODE = 'TK003';
        END IF;
        NEW.priority := 2; -- it is NULL
    END IF;
    IF NEW.bypass_steps IS DISTINCT FROM '{}' THEN
        NEW.bypass_steps := coalesce(NEW.bypass_steps, '{}');
        SELECT b INTO unknown FROM unnest(NEW.bypass_steps) b
        WHERE NOT EXISTS (SELECT FROM tasker.template_steps s WHERE s.template_id = found_id AND s.name = b) LIMIT 1;
        IF FOUND THEN
            SELECT string_agg(s.name, ', ' ORDER BY s.position) INTO known FROM tasker.template_steps s WHERE s.template_id = found_id;
            RAISE EXCEPTION 'bypass_steps names %, which is no step of %/%@%; its steps are: %',
                coalesce(unknown, 'NULL'), NEW.namespace, NEW.name, found_version, known USING ERRCODE = 'TK003';
        END IF;
        SELECT s.name INTO unknown FROM tasker.template_steps s
        WHERE s.template_id = found_id AND s.name = ANY (NEW.bypass_steps) AND NOT s.bypassable ORDER BY s.position LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'bypass_steps names %, which tasks of %/%@% must not leave out', unknown, NEW.namespace, NEW.name, found_version
            USING ERRCODE = 'TK003', HINT = 'a step that may be left out has bypassable: true in its template';
        END IF;
    END IF;
    IF coalesce(NEW.idempotency_key, NEW.correlation_id, NEW.initiator, NEW.source_system, NEW.reason) IS NOT NULL OR NEW.tags IS DISTINCT FROM '{}' THEN
        problem := CASE
            WHEN octet_length(NEW.idempotency_key) > 1000 THEN format('idempotency_key has %s bytes, at most 1000', octet_length(NEW.idempotency_key))
            WHEN octet_length(NEW.correlation_id) > 1000 THEN format('correlation_id has %s bytes, at most 1000', octet_length(NEW.correlation_id))
            WHEN octet_length(NEW.initiator) > 1000 THEN format('initiator has %s bytes, at most 1000', octet_length(NEW.initiator))
            WHEN octet_length(NEW.source_system) > 1000 THEN format('source_system has %s bytes, at most 1000', octet_length(NEW.source_system))
            WHEN octet_length(NEW.reason) > 4000 THEN format('reason has %s bytes, at most 4000', octet_length(NEW.reason))
            WHEN array_ndims(NEW.tags) > 1 THEN 'tags is a list of lists'
            WHEN cardinality(NEW.tags) > 100 THEN format('tags has %s members, at most 100', cardinality(NEW.tags))
            WHEN octet_length(array_to_string(NEW.tags, '')) > 10000 THEN format('tags has %s bytes, at most 10000', octet_length(array_to_string(NEW.tags, ''))) END;
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'a task can not be made: %', problem USING ERRCODE = 'TK003', HINT = 'data belongs into the context';
        END IF;
        NEW.tags := coalesce(NEW.tags, '{}');
    END IF;
    IF key_of = 'context' AND NEW.idempotency_key IS NULL THEN
        NEW.idempotency_key := tasker.context_key(NEW.context);
    END IF;
    IF has_defaults THEN -- after the key: that is of the document as it came
        SELECT tasker.with_defaults(t.context_schema, NEW.context) INTO NEW.context FROM tasker.task_templates t WHERE t.template_id = found_id;
    END IF;
    IF seconds IS NOT NULL OR NEW.run_at IS NOT NULL OR NEW.deadline IS NOT NULL OR NEW.carrier IS NOT NULL THEN
        NEW.deadline := coalesce(NEW.deadline, greatest(now(), NEW.run_at) + make_interval(secs => seconds));
        problem := CASE WHEN jsonb_typeof(NEW.carrier) <> 'object' THEN format('is a JSON object, not %s', jsonb_typeof(NEW.carrier))
                        ELSE tasker.document_problem(NEW.carrier, 65536) END;
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'the carrier of a task %', problem
            USING ERRCODE = 'TK003', HINT = 'it is for what travels with the task; what the task is about belongs into its context';
        END IF;
        -- River's client, in Go, can't read infinity: see 0012.
        IF NEW.deadline NOT BETWEEN '0001-01-02 00:00:00+00' AND '9999-12-30 00:00:00+00' THEN
            RAISE EXCEPTION 'deadline of a task is a time in the years 1 to 9999, not %', to_jsonb(NEW) ->> 'deadline'
            USING ERRCODE = 'TK003', HINT = 'leave deadline out for a task that has none; pause a task that shall not start';
        END IF;
        IF NEW.run_at NOT BETWEEN '0001-01-02 00:00:00+00' AND '9999-12-30 00:00:00+00' THEN
            RAISE EXCEPTION 'run_at of a task is a time in the years 1 to 9999, not %', to_jsonb(NEW) ->> 'run_at'
            USING ERRCODE = 'TK003', HINT = 'leave run_at out for a task that has none; pause a task that shall not start';
        END IF;
    END IF;
    IF (NEW.state = 'pending' AND NEW.epoch = 0 AND NEW.created_at = now()) IS NOT TRUE
       OR NEW.error IS NOT NULL OR NEW.owner IS NOT NULL OR NEW.paused_at IS NOT NULL OR NEW.started_at IS NOT NULL OR NEW.finished_at IS NOT NULL THEN
        NEW.state       := 'pending';
        NEW.error       := NULL;
        NEW.owner       := NULL;
        NEW.paused_at   := NULL;
        NEW.epoch       := 0;
        NEW.created_at  := now();
        NEW.started_at  := NULL;
        NEW.finished_at := NULL;
    END IF;
    NEW.key_seed    := tasker.new_secret();
    NEW.template_id := found_id;
    NEW.version     := found_version;
    RETURN NEW;
END $$;

--
-- Name: process_beat(bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.process_beat(process_id bigint) RETURNS boolean
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    WITH beat AS (
        UPDATE tasker.processes p SET last_seen_at = clock_timestamp()
        WHERE p.process_id = $1 AND p.stopped_at IS NULL AND p.secret IS NULL RETURNING 1)
    SELECT EXISTS (SELECT FROM beat)
$_$;

--
-- Name: process_beat(bigint, jsonb); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.process_beat(process_id bigint, seconds jsonb) RETURNS boolean
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    WITH beat AS (
        UPDATE tasker.processes p SET last_seen_at = clock_timestamp(), seconds = coalesce($2, '{}')
        WHERE p.process_id = $1 AND p.stopped_at IS NULL AND p.secret IS NULL RETURNING 1)
    SELECT EXISTS (SELECT FROM beat)
$_$;

--
-- Name: process_beat(bigint, jsonb, bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.process_beat(process_id bigint, seconds jsonb, secret bigint) RETURNS boolean
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    WITH beat AS (
        UPDATE tasker.processes p SET last_seen_at = clock_timestamp(), seconds = CASE WHEN tasker.document_problem($2, 65536) IS NULL AND jsonb_typeof($2) = 'object' THEN $2 ELSE '{}' END
        WHERE p.process_id = $1 AND p.stopped_at IS NULL AND coalesce(p.secret = $3, p.secret IS NULL) RETURNING 1)
    SELECT EXISTS (SELECT FROM beat)
$_$;

--
-- Name: process_stopped(bigint, bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.process_stopped(process_id bigint, secret bigint DEFAULT NULL::bigint) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    UPDATE tasker.processes p SET stopped_at = clock_timestamp() WHERE p.process_id = $1 AND coalesce(p.secret = $2, p.secret IS NULL)
$_$;

--
-- Name: prune_events(timestamp with time zone, boolean); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.prune_events(before timestamp with time zone, ignore_subscribers boolean DEFAULT false, OUT partition text, OUT rows bigint, OUT bytes bigint) RETURNS record
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
DECLARE
    unread bigint := 9223372036854775807;
BEGIN
    IF before IS NULL OR before > now() THEN
        RAISE EXCEPTION 'events are pruned before a time in the past, not %', coalesce(before::text, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    IF NOT tasker.take_duty('prune') THEN
        RAISE EXCEPTION 'somebody else is pruning' USING ERRCODE = 'object_in_use';
    END IF;
    SELECT o.partition, o.bytes INTO partition, bytes FROM tasker.old_events(before) o
    WHERE o.partition <> 'events_default' AND (ignore_subscribers OR o.held_by IS NULL) ORDER BY o.until LIMIT 1;
    IF FOUND THEN
        -- With the lock, so that what a writer has just committed is found.
        LOCK TABLE tasker.events IN ACCESS EXCLUSIVE MODE;
        IF NOT EXISTS (SELECT FROM tasker.event_days d WHERE d.partition = prune_events.partition)
            OR NOT ignore_subscribers AND EXISTS (SELECT FROM tasker.old_events(before) o WHERE o.partition = prune_events.partition AND o.held_by IS NOT NULL) THEN
            RAISE EXCEPTION '% has just been dropped or written to', partition USING ERRCODE = 'lock_not_available';
        END IF;
        EXECUTE format('DROP TABLE tasker.%I', partition);
        DELETE FROM tasker.event_days d WHERE d.partition = prune_events.partition;
        RETURN;
    END IF;
    IF NOT ignore_subscribers THEN
        SELECT coalesce(min(tasker.first_unread(s.cursor)), unread) INTO unread FROM tasker.event_subscribers s;
    END IF;
    DELETE FROM tasker.events_default e USING (
        SELECT l.event_id FROM tasker.events_default l WHERE l.created_at < before AND l.event_id < unread
        ORDER BY l.event_id LIMIT 10000 FOR UPDATE SKIP LOCKED) old
    WHERE e.event_id = old.event_id;
    GET DIAGNOSTICS rows = ROW_COUNT;
    IF rows > 0 THEN
        partition := 'events_default';
    END IF;
END $$;

--
-- Name: prune_stats(interval); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.prune_stats(keep interval DEFAULT '90 days'::interval) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    n     int;
    total int := 0;
BEGIN
    DELETE FROM tasker.stats s WHERE s.span = 5 AND s.since < now() - interval '26 hours' OR s.span = 60 AND s.since < now() - keep;
    GET DIAGNOSTICS total = ROW_COUNT;
    DELETE FROM tasker.stats_errors s WHERE s.span = 5 AND s.since < now() - interval '26 hours' OR s.span = 60 AND s.since < now() - keep;
    GET DIAGNOSTICS n = ROW_COUNT;
    total := total + n;
    DELETE FROM tasker.stats_slowest s WHERE s.since < now() - keep;
    GET DIAGNOSTICS n = ROW_COUNT;
    total := total + n;
    DELETE FROM tasker.stats_slowest s USING (
        SELECT l.ctid AS place, row_number() OVER (PARTITION BY l.since, l.template_id, l.position ORDER BY l.seconds DESC) AS rank
        FROM tasker.stats_slowest l WHERE l.since >= now() - interval '3 hours') r
    WHERE s.ctid = r.place AND r.rank > 10;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN total + n;
END $$;

--
-- Name: prune_tasks(timestamp with time zone, integer, bigint, boolean); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.prune_tasks(before timestamp with time zone, most integer DEFAULT 1000, after bigint DEFAULT 0, failed boolean DEFAULT false, OUT pruned integer, OUT page_end bigint) RETURNS record
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET lock_timeout TO '1s'
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_indexscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    AS $$
DECLARE
    ids bigint[];
BEGIN
    IF before IS NULL OR before > now() THEN
        RAISE EXCEPTION 'tasks are pruned that ended before a time in the past, not %', coalesce(before::text, 'NULL') USING ERRCODE = 'TK003';
    ELSIF most IS NULL OR most < 1 THEN
        RAISE EXCEPTION 'a page has 1 task or more, not %', coalesce(most::text, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    IF NOT tasker.take_duty('prune') THEN
        RAISE EXCEPTION 'somebody else is pruning' USING ERRCODE = 'object_in_use';
    END IF;
    SELECT coalesce(array_agg(o.task_id ORDER BY o.task_id) FILTER (WHERE o.old), '{}'),
           CASE WHEN count(*) = most AND NOT bool_and(o.done) THEN max(o.task_id) END
    INTO ids, page_end FROM tasker.old_tasks(before, most, after, failed) o;
    -- Locked, and looked at again: an operator may have opened one meanwhile.
    SELECT coalesce(array_agg(l.task_id), '{}') INTO ids FROM (
        SELECT t.task_id FROM tasker.tasks t WHERE t.task_id = ANY (ids) AND t.finished_at < before AND t.state NOT IN ('pending', 'in_progress')
            AND (failed OR t.state <> 'error')
            AND NOT EXISTS (SELECT FROM tasker.tasks m WHERE m.parent_task_id = t.task_id AND m.state IN ('pending', 'in_progress'))
        ORDER BY t.task_id FOR UPDATE SKIP LOCKED) l;
    DELETE FROM tasker.gate_waiters w WHERE w.task_id = ANY (ids);
    DELETE FROM tasker.gate_slots o USING tasker.steps s WHERE s.task_id = ANY (ids) AND o.step_id = s.step_id;
    DELETE FROM tasker.steps s WHERE s.task_id = ANY (ids);
    DELETE FROM tasker.dispatches d WHERE d.task_id = ANY (ids);
    DELETE FROM tasker.dead_letters d WHERE d.task_id = ANY (ids);
    DELETE FROM tasker.task_waiters w WHERE w.task_id = ANY (ids);
    DELETE FROM tasker.tasks t WHERE t.task_id = ANY (ids);
    GET DIAGNOSTICS pruned = ROW_COUNT;
END $$;

--
-- Name: publish_event(text, jsonb, bigint, bigint, integer); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.publish_event(name text, data jsonb DEFAULT '{}'::jsonb, task bigint DEFAULT NULL::bigint, step bigint DEFAULT NULL::bigint, attempt integer DEFAULT NULL::integer) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    of_task bigint := task;
    id      bigint;
    problem text;
BEGIN
    IF coalesce(name, '') !~ '^[a-z][a-z0-9_]*(\.[a-z0-9_]+)+$' OR length(name) > 200 THEN
        RAISE EXCEPTION 'the name of an event is like order.fulfilled (a-z, 0-9, _ and at least one dot), not "%"', coalesce(name, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    IF split_part(name, '.', 1) IN ('task', 'step', 'workflow', 'gate') THEN
        RAISE EXCEPTION 'event "%": names that begin with task., step., workflow. and gate. are the engine''s', name
        USING ERRCODE = 'TK003', HINT = 'name it after what happened in your domain, such as order.fulfilled';
    END IF;
    IF jsonb_typeof(data) <> 'object' THEN
        RAISE EXCEPTION 'the data of an event is a JSON object, not %', left(data::text, 100) USING ERRCODE = 'TK003';
    END IF;
    problem := tasker.document_problem(data, 65536);
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'the data of event "%" %', name, problem USING ERRCODE = 'TK003', HINT = 'store it elsewhere and carry a reference';
    END IF;
    IF step IS NOT NULL THEN
        SELECT s.task_id INTO of_task FROM tasker.steps s WHERE s.step_id = step AND (task IS NULL OR s.task_id = task);
        IF NOT FOUND THEN
            RAISE EXCEPTION 'there is no step %', step || coalesce(' of task ' || task, '') USING ERRCODE = 'TK003';
        END IF;
    ELSIF task IS NOT NULL AND NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.task_id = task) THEN
        RAISE EXCEPTION 'there is no task %', task USING ERRCODE = 'TK003';
    END IF;
    INSERT INTO tasker.events (task_id, step_id, attempt, name, data) VALUES (of_task, step, $5, $1, $2)
    RETURNING event_id INTO id;
    RETURN id;
END $_$;

--
-- Name: read_events(tasker.event_cursor, text[], integer, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.read_events(cursor tasker.event_cursor, patterns text[] DEFAULT '{*}'::text[], most integer DEFAULT 1000, sleeper text DEFAULT NULL::text, channel text DEFAULT NULL::text) RETURNS TABLE(event_id bigint, occurred_at timestamp with time zone, event text, task_id bigint, step_id bigint, attempt integer, data jsonb, namespace text, task_name text, version text, step text, correlation_id text, parent_task_id bigint, next tasker.event_cursor)
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

--
-- Name: reap_attempts(interval, integer, interval); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.reap_attempts(silence interval, most integer DEFAULT 1000, patience interval DEFAULT '00:10:00'::interval) RETURNS integer
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
        WHERE d.failure IS NULL AND (least(d.deadline, CASE WHEN silence IS NOT NULL THEN d.beat_by END, d.start_by,
                                                 CASE WHEN d.started_at IS NULL THEN d.missing_since + patience END) < clock_timestamp()
            OR d.started_at IS NOT NULL AND d.process_id = ANY (gone)) LIMIT most);
    IF overdue = '{}' THEN
        RETURN 0;
    END IF;
    SELECT array_agg(l.step_id) INTO overdue
    FROM (SELECT s.step_id FROM tasker.steps s WHERE s.step_id = ANY (overdue) ORDER BY s.step_id FOR NO KEY UPDATE SKIP LOCKED) l;
    -- What is up first tells the story.
    SELECT jsonb_agg(jsonb_build_object('step_id', d.step_id, 'attempt', d.attempt, 'secret', d.secret, 'ticket', d.ticket)
               || CASE WHEN least(d.deadline, CASE WHEN silence IS NOT NULL THEN d.beat_by END, d.start_by,
                                                 CASE WHEN d.started_at IS NULL THEN d.missing_since + patience END) < clock_timestamp() THEN jsonb_build_object('outcome', 'failure', 'failure', jsonb_build_object(
                          'class', up.code, 'code', up.code, 'attempt', d.attempt, 'message', up.message)
                          || CASE up.code WHEN 'handler_not_found' THEN '{"permanent": true}'::jsonb ELSE '{}' END)
                  ELSE '{"outcome": "lost"}' END) INTO reports
    FROM tasker.dispatches d
    CROSS JOIN LATERAL (
        SELECT 'schedule_to_start_timeout' AS code, d.start_by AS at,
               format('no process took it from queue %s within its schedule_to_start_seconds', d.queue) AS message
        UNION ALL SELECT 'heartbeat_timeout', CASE WHEN silence IS NOT NULL THEN d.beat_by END, format('no heartbeat within %s', d.heartbeat)
        UNION ALL SELECT 'handler_not_found', CASE WHEN d.started_at IS NULL THEN d.missing_since + patience END,
               format('no process had the class %s within %s; the last that looked for it was %s: deploy it there, or correct handler_class in the template',
                      (SELECT ts.handler_class FROM tasker.template_steps ts
                       WHERE ts.template_id = (SELECT q.template_id FROM tasker.tasks q WHERE q.task_id = d.task_id)
                         AND ts.position = (SELECT q.position FROM tasker.steps q WHERE q.step_id = d.step_id)), patience, d.missing_in)
        UNION ALL SELECT 'attempt_timeout', d.deadline, format('no result within %s', date_trunc('milliseconds', d.deadline - d.started_at))
        ORDER BY 2 LIMIT 1) up
    LEFT JOIN LATERAL (SELECT * FROM tasker.processes q WHERE q.process_id = d.process_id OFFSET 0) p ON true
    -- Once more: a heartbeat or a start may have come in between, or another attempt.
    WHERE d.step_id = ANY (overdue) AND d.failure IS NULL
      AND (least(d.deadline, CASE WHEN silence IS NOT NULL THEN d.beat_by END, d.start_by,
                                                 CASE WHEN d.started_at IS NULL THEN d.missing_since + patience END) < clock_timestamp()
           OR d.started_at IS NOT NULL AND d.process_id IS NOT NULL
              AND (p.process_id IS NULL OR p.stopped_at IS NOT NULL
                   OR greatest(p.last_seen_at, pg_postmaster_start_time()) < clock_timestamp() - silence));
    IF reports IS NULL THEN
        RETURN 0;
    END IF;
    SELECT count(*) FILTER (WHERE r.accepted) INTO n FROM tasker.report_results(reports) r;
    RETURN n;
END $$;

--
-- Name: FUNCTION reap_attempts(silence interval, most integer, patience interval); Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON FUNCTION tasker.reap_attempts(silence interval, most integer, patience interval) IS 'Ends attempts whose time is up, and takes those for lost whose process has been silent for so long; silence NULL: the caller has no healthy database and can''t tell, so only deadlines count. patience: how long an attempt waits for a process that has its handler';

--
-- Name: reap_worker(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.reap_worker() RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    w record;
BEGIN
    FOR w IN
        SELECT d.worker_id, d.client_id FROM tasker.workers d
        WHERE d.state = 'alive' AND greatest(d.last_seen_at, pg_postmaster_start_time()) < clock_timestamp() - d.lease
        ORDER BY d.worker_id
    LOOP
        -- Busy: one of its writes is in flight, or somebody else reaps it. Next time.
        CONTINUE WHEN (SELECT count(*) FROM (SELECT FROM tasker.worker_fences f WHERE f.worker_id = w.worker_id FOR UPDATE SKIP LOCKED) l)
            <> (SELECT count(*) FROM tasker.worker_fences f WHERE f.worker_id = w.worker_id);
        UPDATE tasker.workers d SET state = 'dead'
        WHERE d.worker_id = w.worker_id AND d.state = 'alive' AND d.last_seen_at < clock_timestamp() - d.lease;
        CONTINUE WHEN NOT FOUND;
        DELETE FROM tasker.worker_fences f WHERE f.worker_id = w.worker_id;
        RETURN tasker.release_worker(w.worker_id, w.client_id);
    END LOOP;
    FOR w IN
        SELECT d.worker_id, d.client_id FROM tasker.workers d
        WHERE d.state <> 'alive' AND EXISTS (SELECT FROM tasker.tasks t WHERE t.owner = d.worker_id)
        ORDER BY d.worker_id
    LOOP
        RETURN tasker.release_worker(w.worker_id, w.client_id);
    END LOOP;
    RETURN 0;
END $$;

--
-- Name: record_progress(bigint, bigint[], integer[], text[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.record_progress(worker bigint, step_ids bigint[], numbers integer[], docs text[]) RETURNS void
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM tasker.assert_worker(worker);
    UPDATE tasker.steps s SET progress = p.doc::jsonb
    FROM unnest(step_ids, numbers, docs) AS p(step_id, number, doc)
    JOIN (SELECT l.step_id FROM tasker.steps l WHERE l.step_id = ANY (step_ids) ORDER BY l.step_id
          FOR NO KEY UPDATE SKIP LOCKED) free USING (step_id) -- one that somebody's transaction holds keeps back no other
    WHERE s.step_id = p.step_id AND s.attempts = p.number AND s.state = 'in_progress';
END $$;

--
-- Name: record_verb(bigint, bigint, text, text, text, jsonb); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.record_verb(task bigint, step bigint, event text, who text, why text, more jsonb DEFAULT '{}'::jsonb) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    INSERT INTO tasker.events (task_id, step_id, attempt, name, data)
    SELECT task, step, (SELECT s.attempts FROM tasker.steps s WHERE s.step_id = step), event,
           jsonb_strip_nulls(jsonb_build_object('by', left(who, 1000), 'reason', left(why, 4000))) || more
           || jsonb_build_object('login', session_user)
$$;

--
-- Name: refuse_context(text, text, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.refuse_context(namespace text, name text, version text, problem text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RAISE EXCEPTION 'the context does not fit the schema of %/%@%: %', namespace, name, version, problem
    USING ERRCODE = 'TK003',
          HINT = format('see what it must look like: tasker template show %s/%s@%s -o json', namespace, name, version);
END $$;

--
-- Name: refuse_priority(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.refuse_priority() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RAISE EXCEPTION 'the priority of a task is a number from 1, which goes first, to 4, not %', coalesce(NEW.priority::text, 'NULL') USING ERRCODE = 'TK003';
END $$;

--
-- Name: refuse_transition(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.refuse_transition() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RAISE EXCEPTION '% % cannot go from % to %',
        CASE TG_TABLE_NAME WHEN 'tasks' THEN 'task' ELSE 'step' END,
        CASE TG_TABLE_NAME WHEN 'tasks' THEN to_jsonb(NEW) ->> 'task_id' ELSE to_jsonb(NEW) ->> 'step_id' END,
        OLD.state, NEW.state
    USING ERRCODE = 'TK006', HINT = 'docs/state_machine.md shows the transitions that exist';
END $$;

--
-- Name: register_process(text, jsonb, bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.register_process(identity text, details jsonb DEFAULT '{}'::jsonb, secret bigint DEFAULT NULL::bigint) RETURNS bigint
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
DECLARE
    id      bigint;
    problem text := tasker.document_problem($2, 65536);
BEGIN
    IF $1 IS NULL OR octet_length($1) > 1000 OR jsonb_typeof($2) IS DISTINCT FROM 'object' OR problem IS NOT NULL THEN
        RAISE EXCEPTION 'a process registers with an identity of up to 1000 bytes and with details, a JSON object%', coalesce(', which ' || problem, '')
        USING ERRCODE = 'TK003';
    END IF;
    INSERT INTO tasker.processes (identity, details, secret) VALUES ($1, $2, $3) RETURNING process_id INTO id;
    RETURN id;
END $_$;

--
-- Name: register_template(text, text, text, text, jsonb, text, integer, jsonb); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.register_template(namespace text, name text, version text, description text, definition jsonb, checksum text, max_parallel_steps integer, steps jsonb) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    known    tasker.task_templates;
    inserted bigint;
BEGIN
    INSERT INTO tasker.task_templates AS t
        (namespace, name, version, description, definition, checksum, max_parallel_steps, deadline_seconds, idempotency)
    VALUES ($1, $2, $3, $4, $5, $6, $7, ($5 ->> 'deadline_seconds')::double precision, $5 ->> 'idempotency')
    ON CONFLICT ON CONSTRAINT task_templates_namespace_name_version_key DO NOTHING
    RETURNING t.template_id INTO inserted;

    IF inserted IS NULL THEN
        SELECT t.* INTO known FROM tasker.task_templates t WHERE t.namespace = $1 AND t.name = $2 AND t.version = $3;
        IF known.checksum = $6 THEN -- which most are: what others do with it does not matter
            RETURN 'unchanged';
        END IF;
        BEGIN
            SELECT t.* INTO known FROM tasker.task_templates t WHERE t.template_id = known.template_id FOR UPDATE NOWAIT;
        EXCEPTION WHEN lock_not_available THEN
            RAISE EXCEPTION 'template %/%@% has changed, but an open transaction has inserted a task of this version, or registers it too', $1, $2, $3
            USING ERRCODE = 'TK002', HINT = 'give the changed template a new version; running tasks keep the old one';
        END;
        IF known.checksum = $6 THEN
            RETURN 'unchanged';
        END IF;
        -- A worker notes the use when it has read the template; before that, its tasks tell.
        known.used_at := coalesce(known.used_at, (SELECT min(t.created_at) FROM tasker.tasks t WHERE t.template_id = known.template_id));
        IF known.used_at IS NOT NULL THEN
            RAISE EXCEPTION 'template %/%@% has changed, but tasks have used this version since %',
                $1, $2, $3, to_char(known.used_at, 'YYYY-MM-DD HH24:MI')
            USING ERRCODE = 'TK002', HINT = 'give the changed template a new version; running tasks keep the old one';
        END IF;
        -- Locked: an INSERT of a task waits for us, and then sees the new steps.
        UPDATE tasker.task_templates t
        SET description = $4, definition = $5, checksum = $6, max_parallel_steps = $7, registered_at = now(),
            deadline_seconds = ($5 ->> 'deadline_seconds')::double precision, idempotency = $5 ->> 'idempotency'
        WHERE t.template_id = known.template_id;
        DELETE FROM tasker.template_steps s WHERE s.template_id = known.template_id;
    END IF;

    INSERT INTO tasker.template_steps
        (template_id, position, name, handler_class, handler, queue, depends_on, attempt_limit, timeout_seconds,
         schedule_to_start_seconds, heartbeat_seconds, limit_key, handler_config, result_schema, bypassable)
    SELECT coalesce(inserted, known.template_id), s.position, s.name, s.handler_class, s.handler,
           coalesce(s.queue, 'default'), coalesce(s.depends_on, '{}'), s.attempt_limit, s.timeout_seconds,
           s.schedule_to_start_seconds, s.heartbeat_seconds, s.limit_key, coalesce(s.handler_config, '{}'), s.result_schema, coalesce(s.bypassable, false)
    FROM jsonb_to_recordset($8) AS s(position int, name text, handler_class text, handler text, queue text,
                                    depends_on int[], attempt_limit int, timeout_seconds double precision,
                                    schedule_to_start_seconds double precision, heartbeat_seconds double precision,
                                    limit_key text, handler_config jsonb, result_schema jsonb, bypassable boolean);
    RETURN CASE WHEN inserted IS NULL THEN 'replaced' ELSE 'registered' END;
END $_$;

--
-- Name: release_subscriber(text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.release_subscriber(name text, holder text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
BEGIN
    PERFORM tasker.own_subscriber(name);
    DELETE FROM tasker.event_sleepers s USING tasker.event_subscribers u WHERE u.name = $1 AND u.holder = $2 AND s.name = $1;
    UPDATE tasker.event_subscribers u SET holder = NULL, held_until = NULL WHERE u.name = $1 AND u.holder = $2;
END $_$;

--
-- Name: release_worker(bigint, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.release_worker(worker bigint, client text) RETURNS integer
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
    freed   bigint[];
    rescued bigint[];
BEGIN
    WITH held AS (
        SELECT t.task_id FROM tasker.tasks t WHERE t.owner = worker ORDER BY t.task_id FOR NO KEY UPDATE SKIP LOCKED -- the sweep takes the rest
    ), released AS (
        UPDATE tasker.tasks t SET owner = NULL, epoch = t.epoch + 1
        FROM held WHERE t.task_id = held.task_id RETURNING t.task_id
    )
    SELECT coalesce(array_agg(r.task_id), '{}') INTO freed FROM released r;

    UPDATE tasker.dispatches d SET awaited_by = NULL
    FROM (SELECT l.step_id FROM tasker.dispatches l WHERE l.awaited_by = worker ORDER BY l.step_id FOR UPDATE SKIP LOCKED) free
    WHERE d.step_id = free.step_id;

    rescued := tasker.rescue_jobs(client);
    PERFORM tasker.schedule_runs(array_agg(f.task_id), array_agg(0::double precision))
    FROM unnest(freed) AS f(task_id) WHERE f.task_id <> ALL (rescued)
    HAVING count(*) > 0;
    RETURN cardinality(freed);
END $$;

--
-- Name: remove_webhook(text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.remove_webhook(name text) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
BEGIN
    DELETE FROM tasker.webhooks w WHERE w.name = $1;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM tasker.unsubscribe('webhook:' || $1);
    INSERT INTO tasker.events (name, data) VALUES ('workflow.webhook_removed', jsonb_build_object('name', $1, 'login', session_user));
    RETURN true;
END $_$;

--
-- Name: renew_waiters(text, bigint[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.renew_waiters(channel text, tasks bigint[]) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
BEGIN
    PERFORM tasker.check_channel(channel);
    DELETE FROM tasker.task_waiters a USING (
        SELECT l.task_id, l.channel FROM tasker.task_waiters l
        WHERE l.until < clock_timestamp() OR l.channel = $1 AND l.task_id <> ALL (tasks) AND l.until < clock_timestamp() + interval '50 seconds'
        FOR UPDATE SKIP LOCKED) gone
    WHERE a.task_id = gone.task_id AND a.channel = gone.channel;
    INSERT INTO tasker.task_waiters AS a (task_id, channel, until)
    SELECT u.task_id, $1, clock_timestamp() + interval '1 minute' FROM (SELECT DISTINCT t FROM unnest(tasks) t) AS u(task_id) ORDER BY u.task_id
    ON CONFLICT ON CONSTRAINT task_waiters_pkey DO UPDATE SET until = excluded.until;
    RETURN EXISTS (SELECT FROM tasker.task_waiters a WHERE a.channel = $1);
END $_$;

--
-- Name: reopen_task(bigint, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.reopen_task(task bigint, who text, why text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    UPDATE tasker.tasks u SET state = 'in_progress', finished_at = NULL, error = NULL,
        deadline = CASE WHEN u.deadline > clock_timestamp() THEN u.deadline ELSE (
            SELECT clock_timestamp() + make_interval(secs => m.deadline_seconds) FROM tasker.task_templates m WHERE m.template_id = u.template_id) END
    WHERE u.task_id = task AND u.state = 'error';
    IF FOUND THEN
        PERFORM tasker.record_verb(task, NULL, 'task.retry_requested', who, why);
    END IF;
    PERFORM tasker.poke_task(task);
END $$;

--
-- Name: replace_context(bigint, jsonb, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.replace_context(task bigint, new_context jsonb, who text, why text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    was     jsonb;
    becomes jsonb;
    problem text;
BEGIN
    IF new_context IS NULL THEN
        RETURN;
    END IF;
    IF jsonb_typeof(new_context) <> 'object' THEN
        RAISE EXCEPTION 'the context of a task must be a JSON object, not %', jsonb_typeof(new_context) USING ERRCODE = 'TK003';
    END IF;
    problem := tasker.document_problem(new_context, 1048576);
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'the context of a task %', problem USING ERRCODE = 'TK003', HINT = 'store the data and put a reference to it into the context';
    END IF;
    SELECT u.context INTO was FROM tasker.tasks u WHERE u.task_id = task; -- the caller has locked the task
    UPDATE tasker.tasks u
    SET context = CASE WHEN m.context_defaults THEN tasker.with_defaults(m.context_schema, new_context) ELSE new_context END,
        key_seed = CASE WHEN u.context IS DISTINCT FROM new_context THEN tasker.new_secret() ELSE u.key_seed END -- another amount is another charge
    FROM tasker.task_templates m WHERE u.task_id = task AND m.template_id = u.template_id
    RETURNING u.context INTO becomes;
    PERFORM tasker.record_verb(task, NULL, 'task.context_replaced', who, why, tasker.context_record(was, becomes));
END $$;

--
-- Name: report_results(jsonb); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.report_results(reports jsonb) RETURNS TABLE(step_id bigint, attempt integer, accepted boolean, reason text)
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RETURN QUERY SELECT * FROM tasker.report_results(reports, true);
END $$;

--
-- Name: report_results(jsonb, boolean); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.report_results(reports jsonb, wait boolean) RETURNS TABLE(step_id bigint, attempt integer, accepted boolean, reason text)
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

--
-- Name: FUNCTION report_results(reports jsonb, wait boolean); Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON FUNCTION tasker.report_results(reports jsonb, wait boolean) IS 'With wait false, a report whose step an open transaction holds is left for later: accepted is NULL';

--
-- Name: reports_of(bigint[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.reports_of(step_ids bigint[]) RETURNS TABLE(task_id bigint, step_id bigint, state text, attempts integer, failure jsonb)
    LANGUAGE plpgsql STABLE
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_indexscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT s.task_id, s.step_id, s.state, s.attempts, d.failure
    FROM tasker.steps s LEFT JOIN tasker.dispatches d ON d.step_id = s.step_id
    WHERE s.step_id = ANY (step_ids) ORDER BY s.step_id;
END $$;

--
-- Name: rescue_jobs(text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.rescue_jobs(client text) RETURNS bigint[]
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
    rescued bigint[];
BEGIN
    WITH again AS (
        UPDATE tasker.river_job j
        SET state = 'available', scheduled_at = now(),
            errors = array_append(j.errors, jsonb_build_object('at', now(), 'attempt', j.attempt, 'error', 'the worker that ran it died', 'trace', ''))
        WHERE j.state = 'running' AND j.kind = 'task_execution' AND j.attempted_by[cardinality(j.attempted_by)] = client
        RETURNING (j.args ->> 'task_id')::bigint AS task_id
    )
    SELECT coalesce(array_agg(a.task_id), '{}') INTO rescued FROM again a;
    IF cardinality(rescued) > 0 THEN
        PERFORM tasker.notify_river();
    END IF;
    RETURN rescued;
END $$;

--
-- Name: rescue_unheard(text, bigint[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.rescue_unheard(client text, known bigint[]) RETURNS integer
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
    n int;
BEGIN
    UPDATE tasker.river_job j
    SET state = 'available', scheduled_at = now(),
        errors = array_append(j.errors, jsonb_build_object('at', now(), 'attempt', j.attempt, 'error', 'its worker never heard of it', 'trace', ''))
    WHERE j.state = 'running' AND j.kind = 'task_execution' AND j.attempted_by[cardinality(j.attempted_by)] = client
      AND j.attempted_at < clock_timestamp() - interval '3 seconds' -- a younger one may be on its way
      AND j.id <> ALL (known);
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n > 0 THEN
        PERFORM tasker.notify_river();
    END IF;
    RETURN n;
END $$;

--
-- Name: reset_steps(bigint, bigint[], text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.reset_steps(task bigint, ids bigint[], who text, why text) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    n int;
BEGIN
    WITH reset AS (
        UPDATE tasker.steps s
        SET state = 'pending', forgiven = s.attempts, losses = 0, retry_at = NULL, finished_at = NULL
        WHERE s.step_id = ANY (ids) AND s.state = 'error' RETURNING s.step_id
    ), recorded AS (
        INSERT INTO tasker.events (task_id, step_id, name, data)
        SELECT task, r.step_id, 'step.initialize_requested', jsonb_strip_nulls(jsonb_build_object('by', who, 'reason', why, 'login', session_user))
        FROM reset r ORDER BY r.step_id
    )
    SELECT count(*) INTO n FROM reset;
    RETURN n;
END $$;

--
-- Name: resolve_step(bigint, jsonb, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.resolve_step(step bigint, result jsonb DEFAULT 'null'::jsonb, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ SELECT tasker.settle_step(step, 'resolved_manually', coalesce(result, 'null'), who, why) $$;

--
-- Name: resolve_task(bigint, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.resolve_task(task bigint, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
BEGIN
    IF t.state <> 'error' THEN
        RAISE EXCEPTION 'task % is %: only a task in error can be resolved by hand', task, t.state USING ERRCODE = 'TK008';
    END IF;
    UPDATE tasker.tasks u SET state = 'resolved_manually', epoch = u.epoch + 1, finished_at = clock_timestamp() WHERE u.task_id = task;
    PERFORM tasker.record_verb(task, NULL, 'task.resolved_manually', who, why);
END $$;

--
-- Name: resume(text, text, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.resume(scope text, name text, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
BEGIN
    UPDATE tasker.gates g SET paused_at = NULL, version = g.version + 1, changed_at = clock_timestamp(), changed_by = $3, reason = $4
    WHERE g.scope = $1 AND g.name = $2 AND g.paused_at IS NOT NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION '% % is not paused', $1, $2 USING ERRCODE = 'TK008';
    END IF;
    INSERT INTO tasker.events (name, data) VALUES ('gate.resumed', jsonb_strip_nulls(jsonb_build_object(
        'scope', $1, 'name', $2, 'by', $3, 'reason', $4, 'login', session_user)));
    -- Workers grant the permits. A grant here would lock the limits until the caller's
    -- transaction ends.
    PERFORM tasker.open_gates();
END $_$;

--
-- Name: resume_task(bigint, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.resume_task(task bigint, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
BEGIN
    IF t.paused_at IS NULL THEN
        RAISE EXCEPTION 'task % is not paused', task USING ERRCODE = 'TK008';
    END IF;
    UPDATE tasker.tasks u SET paused_at = NULL, deadline = u.deadline + (clock_timestamp() - u.paused_at) WHERE u.task_id = task;
    PERFORM tasker.record_verb(task, NULL, 'task.resumed', who, why);
    PERFORM tasker.poke_task(task);
END $$;

--
-- Name: retry_step(bigint, text, text, jsonb); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.retry_step(step bigint, who text DEFAULT NULL::text, why text DEFAULT NULL::text, new_context jsonb DEFAULT NULL::jsonb) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    s tasker.steps := tasker.lock_step(step);
    t tasker.tasks := tasker.lock_task(s.task_id);
BEGIN
    IF t.state IN ('complete', 'cancelled', 'resolved_manually') THEN
        RAISE EXCEPTION 'step % (%) belongs to task %, which is %', step, s.name, s.task_id, t.state USING ERRCODE = 'TK008';
    ELSIF s.state NOT IN ('error', 'waiting_for_retry') THEN
        RAISE EXCEPTION 'step % (%) is %: only one in error, or waiting for its retry, can be retried', step, s.name, s.state USING ERRCODE = 'TK008';
    END IF;
    PERFORM tasker.replace_context(s.task_id, new_context, who, why);
    IF s.state = 'error' THEN
        PERFORM tasker.reset_steps(s.task_id, ARRAY[step], who, why);
    ELSE
        UPDATE tasker.steps u SET retry_at = clock_timestamp() WHERE u.step_id = step;
        PERFORM tasker.record_verb(s.task_id, step, 'step.run_now', who, why);
    END IF;
    PERFORM tasker.reopen_task(s.task_id, who, why);
END $$;

--
-- Name: retry_task(bigint, text, text, jsonb); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.retry_task(task bigint, who text DEFAULT NULL::text, why text DEFAULT NULL::text, new_context jsonb DEFAULT NULL::jsonb) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
    n int;
BEGIN
    IF t.state <> 'error' THEN
        RAISE EXCEPTION 'task % is %: only a task in error can be retried', task, t.state USING ERRCODE = 'TK008';
    END IF;
    PERFORM tasker.replace_context(task, new_context, who, why);
    n := tasker.reset_steps(task, ARRAY(SELECT s.step_id FROM tasker.steps s WHERE s.task_id = task AND s.state = 'error' ORDER BY s.step_id FOR UPDATE), who, why);
    IF n = 0 AND t.error ->> 'code' IS DISTINCT FROM 'task_deadline' THEN
        RAISE EXCEPTION 'task % has no step in error: it failed because steps were cancelled; resolve the task, or cancel it', task USING ERRCODE = 'TK008';
    END IF;
    PERFORM tasker.reopen_task(task, who, why);
    RETURN n;
END $$;

--
-- Name: retry_webhook(text, bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.retry_webhook(name text, of_event bigint DEFAULT NULL::bigint) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    n int;
BEGIN
    UPDATE tasker.webhook_failures f SET again = true WHERE f.webhook = $1 AND f.event_id = coalesce(of_event, f.event_id) AND NOT f.again;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $_$;

--
-- Name: ring(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.ring() RETURNS trigger
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    sleepers boolean;
    waiters  boolean;
    names    text[];
BEGIN
    SELECT EXISTS (SELECT FROM tasker.event_sleepers s WHERE s.until > statement_timestamp()),
           EXISTS (SELECT FROM tasker.task_waiters a WHERE a.until > statement_timestamp()) INTO sleepers, waiters;
    IF sleepers THEN
        names := ARRAY(SELECT DISTINCT w.name FROM written w);
        PERFORM pg_notify(s.channel, 'events ' || s.name) FROM tasker.event_sleepers s
        WHERE s.until > statement_timestamp() AND EXISTS (SELECT FROM unnest(names) AS n(name) WHERE n.name LIKE ANY (s.likes));
    END IF;
    IF waiters THEN
        PERFORM pg_notify(a.channel, 'task ' || a.task_id) FROM written w JOIN tasker.task_waiters a USING (task_id)
        WHERE w.name IN ('task.completed', 'task.failed', 'task.cancelled', 'task.resolved_manually');
    END IF;
    RETURN NULL;
END $$;

--
-- Name: river_job_state_in_bitmask(bit, tasker.river_job_state); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.river_job_state_in_bitmask(bitmask bit, state tasker.river_job_state) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT CASE state
        WHEN 'available' THEN get_bit(bitmask, 7)
        WHEN 'cancelled' THEN get_bit(bitmask, 6)
        WHEN 'completed' THEN get_bit(bitmask, 5)
        WHEN 'discarded' THEN get_bit(bitmask, 4)
        WHEN 'pending'   THEN get_bit(bitmask, 3)
        WHEN 'retryable' THEN get_bit(bitmask, 2)
        WHEN 'running'   THEN get_bit(bitmask, 1)
        WHEN 'scheduled' THEN get_bit(bitmask, 0)
        ELSE 0
    END = 1;
$$;

--
-- Name: river_state(timestamp with time zone); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.river_state(due timestamp with time zone) RETURNS tasker.river_job_state
    LANGUAGE sql STABLE
    RETURN (CASE WHEN (due > (now() + '00:00:05'::interval)) THEN 'scheduled'::text ELSE 'available'::text END)::tasker.river_job_state;

--
-- Name: roll_up(integer, double precision); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.roll_up(most integer DEFAULT 5000, rest double precision DEFAULT 19) RETURNS integer
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

--
-- Name: run_task_now(bigint, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.run_task_now(task bigint, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
BEGIN
    IF t.state NOT IN ('pending', 'in_progress') THEN
        RAISE EXCEPTION 'task % is %: there is nothing to run', task, t.state USING ERRCODE = 'TK008';
    END IF;
    UPDATE tasker.tasks u SET run_at = NULL WHERE u.task_id = task AND u.run_at IS NOT NULL;
    UPDATE tasker.steps s SET retry_at = clock_timestamp() WHERE s.task_id = task AND s.state = 'waiting_for_retry';
    PERFORM tasker.record_verb(task, NULL, 'task.run_now', who, why);
    PERFORM tasker.poke_task(task);
END $$;

--
-- Name: schedule_runs(bigint[], double precision[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.schedule_runs(task_ids bigint[], delays double precision[]) RETURNS void
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
BEGIN
    INSERT INTO tasker.river_job (kind, args, queue, priority, max_attempts, state, scheduled_at)
    SELECT 'task_execution', jsonb_build_object('task_id', t.task_id), 'default', t.priority, 1000,
           tasker.river_state(due.at), due.at
    FROM unnest(task_ids, delays) AS r(task_id, delay)
    JOIN tasker.tasks t USING (task_id)
    CROSS JOIN LATERAL (SELECT clock_timestamp() + make_interval(secs => r.delay) AS at) due
    ORDER BY t.task_id;
    IF EXISTS (SELECT FROM unnest(delays) d WHERE d <= 0) THEN
        PERFORM tasker.notify_river();
    END IF;
END $$;

--
-- Name: schema_path(text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.schema_path(path text, key text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    SELECT path || CASE WHEN key ~ '^[A-Za-z_][A-Za-z0-9_]*$' THEN '.' || key ELSE '[' || to_json(key) || ']' END
$_$;

--
-- Name: schema_problem(jsonb, jsonb, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.schema_problem(schema jsonb, value jsonb, path text DEFAULT '$'::text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    budget int;
    answer text;
BEGIN
    IF schema IS NULL THEN
        RETURN NULL;
    END IF;
    -- Nearly all values fit, and paths are only for messages: the first look
    -- does without them. #> '{}' is the value itself, read from where large
    -- values are kept: once, not at each look at a part of it.
    value := coalesce(value, 'null') #> '{}';
    schema := schema #> '{}';
    -- A level takes 8 bytes at least, so small documents need no search.
    IF pg_column_size(value) > 1600 AND jsonb_path_exists(value, 'strict $.**{201}') THEN
        RETURN path || ' is nested more than 200 levels deep';
    END IF;
    budget := 50000 + least(pg_column_size(value) / 4, 700000);
    answer := tasker.schema_problem_within(schema, schema, value, '', 0, budget);
    IF NOT starts_with(answer, '!') THEN
        RETURN NULL;
    ELSIF substr(answer, 2, 7)::int = 0 THEN -- the check did not come to an end
        RETURN path || substr(answer, 9);
    END IF;
    RETURN substr(tasker.schema_problem_within(schema, schema, value, path, 0, budget), 9);
END $_$;

--
-- Name: schema_problem_within(jsonb, jsonb, jsonb, text, integer, integer); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.schema_problem_within(root jsonb, rule jsonb, given jsonb, path text, depth integer, budget integer) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    kind       text := jsonb_typeof(given);
    answer     text;
    fits       boolean;
    properties jsonb;
    part       record;
    part_rule  jsonb;
    name       text;
    n          numeric;
    words      text;
    matched    int;
BEGIN
    budget := budget - 1 - pg_column_size(given) / 1024;
    IF budget <= 0 THEN
        RETURN tasker.schema_refusal(0, path || ' is where the check ran out of steps; simplify the oneOf, anyOf and allOf of the schema that lead back to themselves');
    ELSIF depth > 250 THEN
        RETURN tasker.schema_refusal(0, path || ' is behind more than 250 nested rules of the schema; nest the document or the schema less');
    ELSIF jsonb_typeof(rule) = 'boolean' THEN
        RETURN CASE WHEN rule = 'false' THEN tasker.schema_refusal(budget, path || ' is not allowed') ELSE budget::text END;
    END IF;

    -- Of any kind.
    IF rule ? 'type' THEN
        fits := rule -> 'type' ? kind;
        IF NOT fits AND kind = 'number' AND rule -> 'type' ? 'integer' THEN
            n := (given #>> '{}')::numeric;
            fits := n = trunc(n);
        END IF;
        IF NOT fits THEN
            IF path = '' THEN
                RETURN tasker.schema_refusal(budget, '');
            END IF;
            SELECT string_agg(tasker.schema_word(t #>> '{}'), ' or ' ORDER BY i) INTO words
            FROM jsonb_array_elements(CASE jsonb_typeof(rule -> 'type') WHEN 'array' THEN rule -> 'type' ELSE jsonb_build_array(rule -> 'type') END)
                WITH ORDINALITY AS types(t, i);
            RETURN tasker.schema_refusal(budget, format('%s must be %s, not %s', path, words, tasker.schema_shown(given)));
        END IF;
    END IF;
    IF rule ? 'enum' THEN
        budget := budget - jsonb_array_length(rule -> 'enum') / 32;
        IF EXISTS (SELECT FROM jsonb_array_elements(rule -> 'enum') AS e(allowed) WHERE e.allowed = given) THEN
            NULL;
        ELSIF path = '' THEN
            RETURN tasker.schema_refusal(budget, '');
        ELSE
            SELECT string_agg(tasker.schema_shown(e.allowed), ', ' ORDER BY i) INTO words
            FROM jsonb_array_elements(rule -> 'enum') WITH ORDINALITY AS e(allowed, i) WHERE i <= 20;
            RETURN tasker.schema_refusal(budget, format('%s must be one of %s%s, not %s', path, words,
                CASE WHEN jsonb_array_length(rule -> 'enum') > 20 THEN format(' and %s more', jsonb_array_length(rule -> 'enum') - 20) END,
                tasker.schema_shown(given)));
        END IF;
    END IF;
    IF rule ? 'const' AND given <> rule -> 'const' THEN
        RETURN tasker.schema_refusal(budget, format('%s must be %s, not %s', path, tasker.schema_shown(rule -> 'const'), tasker.schema_shown(given)));
    END IF;

    CASE kind
    WHEN 'number' THEN
        IF rule ?| '{minimum,maximum,exclusiveMinimum,exclusiveMaximum,multipleOf}' THEN
            n := (given #>> '{}')::numeric;
            IF n < (rule ->> 'minimum')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must be at least %s, not %s', path, rule ->> 'minimum', tasker.schema_shown(given)));
            ELSIF n > (rule ->> 'maximum')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must be at most %s, not %s', path, rule ->> 'maximum', tasker.schema_shown(given)));
            ELSIF n <= (rule ->> 'exclusiveMinimum')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must be more than %s, not %s', path, rule ->> 'exclusiveMinimum', tasker.schema_shown(given)));
            ELSIF n >= (rule ->> 'exclusiveMaximum')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must be less than %s, not %s', path, rule ->> 'exclusiveMaximum', tasker.schema_shown(given)));
            ELSIF n % (rule ->> 'multipleOf')::numeric <> 0 THEN
                RETURN tasker.schema_refusal(budget, format('%s must be a multiple of %s, not %s', path, rule ->> 'multipleOf', tasker.schema_shown(given)));
            END IF;
        END IF;
    WHEN 'string' THEN
        IF rule ?| '{minLength,maxLength}' THEN
            n := char_length(given #>> '{}');
            IF n < (rule ->> 'minLength')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must have at least %s characters, not %s', path, rule ->> 'minLength', n));
            ELSIF n > (rule ->> 'maxLength')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must have at most %s characters, not %s', path, rule ->> 'maxLength', n));
            END IF;
        END IF;
        IF rule ? 'pattern' THEN
            budget := budget - pg_column_size(given) / 128;
            IF (given #>> '{}') !~ (rule ->> 'pattern') THEN
                RETURN tasker.schema_refusal(budget, format('%s must match the pattern %s, and %s does not', path, rule ->> 'pattern', tasker.schema_shown(given)));
            END IF;
        END IF;
    WHEN 'array' THEN
        IF rule ?| '{minItems,maxItems}' THEN
            n := jsonb_array_length(given);
            IF n < (rule ->> 'minItems')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must have at least %s items, not %s', path, rule ->> 'minItems', n));
            ELSIF n > (rule ->> 'maxItems')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must have at most %s items, not %s', path, rule ->> 'maxItems', n));
            END IF;
        END IF;
        IF rule -> 'uniqueItems' = 'true' THEN
            budget := budget - pg_column_size(given) / 128;
            SELECT i.item, min(i.at) - 1 AS first, max(i.at) - 1 AS again INTO part
            FROM jsonb_array_elements(given) WITH ORDINALITY AS i(item, at)
            GROUP BY i.item HAVING count(*) > 1 ORDER BY min(i.at) LIMIT 1;
            IF FOUND THEN
                RETURN tasker.schema_refusal(budget, format('%s must not hold an item twice: [%s] and [%s] are %s', path, part.first, part.again, tasker.schema_shown(part.item)));
            END IF;
        END IF;
        IF rule ? 'items' THEN
            part_rule := rule -> 'items';
            FOR at IN 0 .. jsonb_array_length(given) - 1 LOOP
                answer := tasker.schema_problem_within(root, part_rule, given -> at,
                    CASE path WHEN '' THEN '' ELSE path || '[' || at || ']' END, depth + 1, budget);
                IF starts_with(answer, '!') THEN
                    RETURN CASE path WHEN '' THEN overlay(answer PLACING '[' || at || ']' FROM 9 FOR 0) ELSE answer END;
                END IF;
                budget := answer;
            END LOOP;
        END IF;
    WHEN 'object' THEN
        IF rule ? 'required' THEN
            budget := budget - 1;
            SELECT r.name INTO words FROM jsonb_array_elements_text(rule -> 'required') WITH ORDINALITY AS r(name, at)
            WHERE NOT given ? r.name ORDER BY r.at LIMIT 1;
            IF FOUND THEN
                RETURN tasker.schema_refusal(budget, tasker.schema_path(path, words) || ' is missing');
            END IF;
        END IF;
        IF rule ?| '{minProperties,maxProperties}' THEN
            SELECT count(*) INTO n FROM jsonb_object_keys(given);
            IF n < (rule ->> 'minProperties')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must have at least %s keys, not %s', path, rule ->> 'minProperties', n));
            ELSIF n > (rule ->> 'maxProperties')::numeric THEN
                RETURN tasker.schema_refusal(budget, format('%s must have at most %s keys, not %s', path, rule ->> 'maxProperties', n));
            END IF;
        END IF;
        properties := rule -> 'properties';
        IF properties IS NOT NULL THEN
            budget := budget - 1 - pg_column_size(properties) / 256;
            FOR name, part_rule IN SELECT p.key, p.value FROM jsonb_each(properties) p LOOP
                CONTINUE WHEN NOT given ? name;
                answer := tasker.schema_problem_within(root, part_rule, given -> name,
                    CASE path WHEN '' THEN '' ELSE tasker.schema_path(path, name) END, depth + 1, budget);
                IF starts_with(answer, '!') THEN
                    RETURN CASE path WHEN '' THEN overlay(answer PLACING tasker.schema_path('', name) FROM 9 FOR 0) ELSE answer END;
                END IF;
                budget := answer;
            END LOOP;
        END IF;
        IF rule ? 'patternProperties' THEN
            budget := budget - 1 - pg_column_size(given) / 128;
            FOR part IN SELECT g.key, p.value AS rule, g.value AS given
                FROM jsonb_each(given) g JOIN jsonb_each(rule -> 'patternProperties') p ON g.key ~ p.key ORDER BY g.key COLLATE "C", p.key COLLATE "C"
            LOOP
                answer := tasker.schema_problem_within(root, part.rule, part.given,
                    CASE path WHEN '' THEN '' ELSE tasker.schema_path(path, part.key) END, depth + 1, budget);
                IF starts_with(answer, '!') THEN
                    RETURN CASE path WHEN '' THEN overlay(answer PLACING tasker.schema_path('', part.key) FROM 9 FOR 0) ELSE answer END;
                END IF;
                budget := answer;
            END LOOP;
        END IF;
        IF rule ? 'additionalProperties' AND rule -> 'additionalProperties' <> 'true' THEN
            budget := budget - 1 - pg_column_size(given) / 128;
            FOR part IN SELECT g.key, g.value AS given FROM jsonb_each(given) g
                WHERE NOT coalesce(properties ? g.key, false)
                  AND NOT EXISTS (SELECT FROM jsonb_object_keys(coalesce(rule -> 'patternProperties', '{}')) AS p(pattern) WHERE g.key ~ p.pattern)
                ORDER BY g.key COLLATE "C"
            LOOP
                IF rule -> 'additionalProperties' = 'false' THEN
                    SELECT string_agg(k.key, ', ' ORDER BY k.key COLLATE "C") INTO words
                    FROM (SELECT key FROM jsonb_object_keys(coalesce(properties, '{}')) AS p(key) ORDER BY key COLLATE "C" LIMIT 50) k;
                    RETURN tasker.schema_refusal(budget, tasker.schema_path(path, part.key) || ' is not allowed' || coalesce('; there may be: ' || words, ''));
                END IF;
                answer := tasker.schema_problem_within(root, rule -> 'additionalProperties', part.given,
                    CASE path WHEN '' THEN '' ELSE tasker.schema_path(path, part.key) END, depth + 1, budget);
                IF starts_with(answer, '!') THEN
                    RETURN CASE path WHEN '' THEN overlay(answer PLACING tasker.schema_path('', part.key) FROM 9 FOR 0) ELSE answer END;
                END IF;
                budget := answer;
            END LOOP;
        END IF;
    ELSE
        NULL; -- true, false and null have no keywords of their own
    END CASE;

    -- Other schemas for the same value.
    IF NOT rule ?| '{$ref,allOf,anyOf,oneOf,not}' THEN
        RETURN budget;
    END IF;
    IF rule ? '$ref' THEN
        IF rule ->> '$ref' = '#' THEN
            answer := tasker.schema_problem_within(root, root, given, path, depth + 1, budget);
        ELSE
            answer := tasker.schema_problem_within(root, root #> string_to_array(substr(rule ->> '$ref', 3), '/'), given, path, depth + 1, budget);
        END IF;
        IF starts_with(answer, '!') THEN
            RETURN answer;
        END IF;
        budget := answer;
    END IF;
    IF rule ? 'allOf' THEN
        FOR at IN 0 .. jsonb_array_length(rule -> 'allOf') - 1 LOOP
            answer := tasker.schema_problem_within(root, rule -> 'allOf' -> at, given, path, depth + 1, budget);
            IF starts_with(answer, '!') THEN
                RETURN answer;
            END IF;
            budget := answer;
        END LOOP;
    END IF;
    IF rule ? 'anyOf' THEN
        words := NULL;
        FOR at IN 0 .. jsonb_array_length(rule -> 'anyOf') - 1 LOOP
            answer := tasker.schema_problem_within(root, rule -> 'anyOf' -> at, given, path, depth + 1, budget);
            EXIT WHEN NOT starts_with(answer, '!');
            budget := substr(answer, 2, 7);
            IF budget = 0 THEN
                RETURN answer;
            END IF;
            words := concat_ws('; or: ', words, substr(answer, 9));
        END LOOP;
        IF NOT starts_with(answer, '!') THEN
            budget := answer;
        ELSE
            RETURN tasker.schema_refusal(budget, format('%s fits none of the %s schemas of anyOf: %s', path, jsonb_array_length(rule -> 'anyOf'), left(words, 500)));
        END IF;
    END IF;
    IF rule ? 'oneOf' THEN
        matched := 0;
        words := NULL;
        FOR at IN 0 .. jsonb_array_length(rule -> 'oneOf') - 1 LOOP
            answer := tasker.schema_problem_within(root, rule -> 'oneOf' -> at, given, path, depth + 1, budget);
            IF NOT starts_with(answer, '!') THEN
                matched := matched + 1;
                budget := answer;
                CONTINUE;
            END IF;
            budget := substr(answer, 2, 7);
            IF budget = 0 THEN
                RETURN answer;
            END IF;
            words := concat_ws('; or: ', words, substr(answer, 9));
        END LOOP;
        IF matched = 0 THEN
            RETURN tasker.schema_refusal(budget, format('%s fits none of the %s schemas of oneOf: %s', path, jsonb_array_length(rule -> 'oneOf'), left(words, 500)));
        ELSIF matched > 1 THEN
            RETURN tasker.schema_refusal(budget, format('%s fits %s of the %s schemas of oneOf, and may fit one', path, matched, jsonb_array_length(rule -> 'oneOf')));
        END IF;
    END IF;
    IF rule ? 'not' THEN
        answer := tasker.schema_problem_within(root, rule -> 'not', given, path, depth + 1, budget);
        IF NOT starts_with(answer, '!') THEN
            budget := answer;
            RETURN tasker.schema_refusal(budget, format('%s must not fit the schema %s', path, left((rule -> 'not')::text, 200)));
        END IF;
        budget := substr(answer, 2, 7);
        IF budget = 0 THEN
            RETURN answer;
        END IF;
    END IF;
    RETURN budget;
END $_$;

--
-- Name: schema_refusal(integer, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.schema_refusal(budget integer, problem text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT '!' || lpad(CASE WHEN budget = 0 THEN 0 ELSE greatest(budget, 1) END::text, 7) || problem
$$;

--
-- Name: schema_shown(jsonb); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.schema_shown(given jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT CASE WHEN char_length(given::text) <= 60 AND jsonb_typeof(given) NOT IN ('array', 'object') THEN given::text
        WHEN given IN ('[]', '{}') THEN given::text
        WHEN jsonb_typeof(given) IN ('array', 'object') THEN tasker.schema_word(jsonb_typeof(given))
        ELSE left(given::text, 60) || '…' END
$$;

--
-- Name: schema_word(text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.schema_word(type text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT CASE type WHEN 'null' THEN 'null' WHEN 'boolean' THEN 'true or false' WHEN 'integer' THEN 'a whole number'
        WHEN 'array' THEN 'an array' WHEN 'object' THEN 'an object' ELSE 'a ' || type END
$$;

--
-- Name: set_limit(text, text, integer, double precision, double precision, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.set_limit(scope text, name text, max_attempts integer DEFAULT NULL::integer, per_second double precision DEFAULT NULL::double precision, burst double precision DEFAULT NULL::double precision, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_column
DECLARE
    -- A tenth of a second's worth may start at once: less would waste the rate
    -- on the time that waking takes, more would show as a burst.
    b double precision := CASE WHEN $4 IS NOT NULL THEN coalesce($5, greatest(1, ceil($4 / 10))) END;
BEGIN
    IF $3 < 1 OR $3 > 1000000 THEN
        RAISE EXCEPTION 'a limit on attempts is a number from 1 to 1000000, not %', $3 USING ERRCODE = 'TK003', HINT = 'to stop all of them, pause';
    ELSIF $4 < 1e-6 OR $4 > 1000000 OR $4 = 'NaN' THEN -- beyond, the arithmetic of the line overflows
        RAISE EXCEPTION 'a rate is a number of attempts per second from 0.000001 to 1000000, not %', $4 USING ERRCODE = 'TK003', HINT = 'to stop all of them, pause';
    ELSIF $5 < 1 OR $5 > 1000000 OR $5 = 'NaN' OR $5 IS NOT NULL AND $4 IS NULL THEN
        RAISE EXCEPTION 'a burst is a number of attempts from 1 to 1000000, and goes with a rate' USING ERRCODE = 'TK003';
    END IF;
    PERFORM tasker.check_gate($1, $2);
    INSERT INTO tasker.gates AS g (scope, name, max_attempts, per_second, burst, tokens, changed_by, reason)
    VALUES ($1, $2, $3, $4, b, coalesce(b, 0), $6, $7)
    ON CONFLICT (scope, name) DO UPDATE SET
        max_attempts = $3, per_second = $4, burst = b, tokens = coalesce(b, 0), filled_at = clock_timestamp(),
        version = g.version + 1, changed_at = clock_timestamp(), changed_by = $6, reason = $7;
    INSERT INTO tasker.events (name, data) VALUES ('gate.limited', jsonb_strip_nulls(jsonb_build_object(
        'scope', $1, 'name', $2, 'max_attempts', $3, 'per_second', $4, 'burst', b, 'by', $6, 'reason', $7, 'login', session_user)));
    PERFORM tasker.open_gates();
END $_$;

--
-- Name: set_subscriber_owner(text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.set_subscriber_owner(name text, owner text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
BEGIN
    PERFORM tasker.own_subscriber(name);
    IF owner IS NOT NULL AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = $2) THEN
        RAISE EXCEPTION 'there is no role "%"', owner USING ERRCODE = 'no_data_found';
    END IF;
    UPDATE tasker.event_subscribers s SET owner = $2 WHERE s.name = $1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no subscriber "%"', name USING ERRCODE = 'no_data_found', HINT = 'tasker.subscribe makes one';
    END IF;
END $_$;

--
-- Name: set_task_priority(bigint, smallint, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.set_task_priority(task bigint, priority smallint, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
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
    WHERE (j.args ->> 'task_id')::bigint = task AND j.kind = 'task_execution' AND j.state IN ('available', 'scheduled', 'retryable');
    UPDATE tasker.gate_waiters w SET rank = tasker.gate_rank(w.since, $2) WHERE w.task_id = task;
    PERFORM tasker.record_verb(task, NULL, 'task.priority_changed', who, why, jsonb_build_object('from', t.priority, 'to', $2));
END $_$;

--
-- Name: set_webhook(text, text, text[], text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.set_webhook(name text, url text, patterns text[], secret_env text, by text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
BEGIN
    IF name IS NULL OR name !~ '^[a-z0-9][a-z0-9_-]{0,62}$' THEN
        RAISE EXCEPTION 'the name of a webhook has up to 63 of a-z, 0-9, _ and -, and begins with a letter or number, not %', coalesce(quote_literal(left(name, 80)), 'null') USING ERRCODE = 'TK003';
    ELSIF url IS NULL OR url !~* '^https?://[^/@\s]+(/\S*)?$' OR length(url) > 2000 THEN
        RAISE EXCEPTION 'the URL of webhook % must be like https://host/path, without a user or password, and at most 2000 characters', quote_literal(name) USING ERRCODE = 'TK003';
    ELSIF secret_env IS NULL OR secret_env !~ '^[A-Za-z_][A-Za-z0-9_]*$' THEN
        RAISE EXCEPTION 'secret_env of webhook % must be the name of an environment variable, not %', quote_literal(name), coalesce(quote_literal(left(secret_env, 80)), 'null') USING ERRCODE = 'TK003';
    END IF;
    INSERT INTO tasker.webhooks AS w (name, url, patterns, secret_env, changed_by) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT ON CONSTRAINT webhooks_pkey DO UPDATE SET url = excluded.url, patterns = excluded.patterns, secret_env = excluded.secret_env, changed_at = now(), changed_by = excluded.changed_by;
    PERFORM tasker.subscribe('webhook:' || name, patterns);
    UPDATE tasker.event_subscribers s SET owner = r.rolname
    FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner
    WHERE n.nspname = 'tasker' AND s.name = 'webhook:' || $1 AND s.owner IS DISTINCT FROM r.rolname;
    -- Of the URL the host alone: others hold a secret.
    INSERT INTO tasker.events (name, data) VALUES ('workflow.webhook_set', jsonb_strip_nulls(jsonb_build_object(
        'name', $1, 'host', substring(url FROM '^[^:]+://([^/?#]+)'), 'patterns', $3, 'secret_env', $4, 'by', $5, 'login', session_user)));
END $_$;

--
-- Name: settle_step(bigint, text, jsonb, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.settle_step(step bigint, becomes text, outcome jsonb, who text, why text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    s tasker.steps := tasker.lock_step(step);
    t tasker.tasks := tasker.lock_task(s.task_id);
BEGIN
    IF t.state IN ('complete', 'cancelled', 'resolved_manually') THEN
        RAISE EXCEPTION 'step % (%) belongs to task %, which is %', step, s.name, s.task_id, t.state USING ERRCODE = 'TK008';
    ELSIF NOT tasker.step_may_become(s.state, becomes) THEN
        RAISE EXCEPTION 'step % (%) is %: it cannot become %', step, s.name, s.state, becomes USING ERRCODE = 'TK008';
    ELSIF tasker.document_problem(outcome, 4194304) IS NOT NULL THEN
        RAISE EXCEPTION 'the result %', tasker.document_problem(outcome, 4194304) USING ERRCODE = 'TK003', HINT = 'store the data and give a reference';
    END IF;
    UPDATE tasker.steps u SET state = becomes, result = coalesce(outcome, u.result), retry_at = NULL, finished_at = clock_timestamp()
    WHERE u.step_id = step;
    DELETE FROM tasker.dispatches d WHERE d.step_id = step;
    PERFORM tasker.record_verb(s.task_id, step, 'step.' || becomes, who, why);
    PERFORM tasker.reopen_task(s.task_id, who, why);
END $$;

--
-- Name: skip_step(bigint, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.skip_step(step bigint, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ SELECT tasker.settle_step(step, 'skipped', NULL, who, why) $$;

--
-- Name: slowest(interval, text, text, boolean, integer); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.slowest(period interval DEFAULT '24:00:00'::interval, of_namespace text DEFAULT NULL::text, of_name text DEFAULT NULL::text, of_steps boolean DEFAULT false, most integer DEFAULT 10) RETURNS TABLE(namespace text, name text, version text, step text, task_id bigint, seconds double precision, ended_at timestamp with time zone)
    LANGUAGE sql STABLE
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    SELECT t.namespace, t.name, t.version, st.name, s.task_id, s.seconds, s.ended_at
    FROM tasker.stats_slowest s
    JOIN tasker.task_templates t USING (template_id)
    LEFT JOIN tasker.template_steps st ON st.template_id = s.template_id AND st.position = s.position
    WHERE s.since >= date_bin('1 hour', now() - $1, timestamptz '2000-01-01 00:00+00') AND (s.position >= 0) = of_steps
      AND t.namespace = coalesce($2, t.namespace) AND t.name = coalesce($3, t.name)
    ORDER BY s.seconds DESC, s.task_id LIMIT most
$_$;

--
-- Name: start_attempt(bigint, integer, bigint, bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.start_attempt(step_id bigint, attempt integer, process_id bigint DEFAULT NULL::bigint, ticket bigint DEFAULT NULL::bigint) RETURNS jsonb
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    SELECT CASE WHEN a.refusal IS NOT NULL THEN jsonb_build_object('status', 'refused', 'reason', a.refusal) ELSE jsonb_build_object(
        'status', 'started', 'secret', a.secret_of_attempt::text,
        'task', jsonb_build_object(
            'task_id', a.task_id, 'namespace', a.namespace, 'name', a.name, 'version', a.version,
            'context', a.context, 'priority', a.priority, 'correlation_id', a.correlation_id, 'parent_task_id', a.parent_task_id, 'tags', a.tags,
            'initiator', a.initiator, 'source_system', a.source_system, 'reason', a.reason, 'carrier', a.carrier,
            'created_at', to_char(a.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')),
        'step', jsonb_build_object(
            'step_id', a.step_id, 'idempotency_key', a.idempotency_key, 'name', a.step_name, 'attempt', a.attempt, 'attempts_used', a.attempts_used, 'attempt_limit', a.attempt_limit,
            'handler_class', a.handler_class, 'config', a.config, 'timeout_seconds', a.timeout_seconds, 'heartbeat_seconds', a.heartbeat_seconds,
            'progress', a.progress, 'depends_on', coalesce((SELECT jsonb_agg(k) FROM json_object_keys(a.dependencies) k), '[]')),
        'dependencies', coalesce(a.dependencies::jsonb, '{}')) END
    FROM tasker.start_attempts(ARRAY[$1], ARRAY[$2], $3, NULL, ARRAY[$4]) a
$_$;

--
-- Name: start_attempts(bigint[], integer[], bigint, bigint, bigint[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.start_attempts(step_ids bigint[], attempts integer[], process_id bigint DEFAULT NULL::bigint, secret bigint DEFAULT NULL::bigint, tickets bigint[] DEFAULT NULL::bigint[]) RETURNS TABLE(step_id bigint, attempt integer, refusal text, task_id bigint, namespace text, name text, version text, context jsonb, priority smallint, correlation_id text, parent_task_id bigint, tags text[], initiator text, source_system text, reason text, created_at timestamp with time zone, step_name text, attempts_used integer, attempt_limit integer, handler_class text, config jsonb, timeout_seconds double precision, heartbeat_seconds double precision, progress jsonb, dependencies json, carrier jsonb, secret_of_attempt bigint, idempotency_key text)
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
           t.carrier, CASE WHEN j.refusal IS NULL THEN bound END, CASE WHEN j.refusal IS NULL THEN tasker.idempotency_key(t.key_seed, j.step_id) END
    FROM judged j
    LEFT JOIN LATERAL (SELECT * FROM tasker.tasks u WHERE u.task_id = j.task_id AND j.refusal IS NULL OFFSET 0) t ON true
    LEFT JOIN LATERAL (SELECT * FROM tasker.template_steps s WHERE s.template_id = t.template_id AND s.position = j.position OFFSET 0) spec ON true
    ORDER BY j.ord;
END $_$;

--
-- Name: FUNCTION start_attempts(step_ids bigint[], attempts integer[], process_id bigint, secret bigint, tickets bigint[]); Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON FUNCTION tasker.start_attempts(step_ids bigint[], attempts integer[], process_id bigint, secret bigint, tickets bigint[]) IS 'Starts attempts that the engine has dispatched, all that may start: one row for each, in the order of the question. tickets: from the Sidekiq job. secret: any number that only the caller knows, NULL: one is made; reports and heartbeats must show it, and the same call may be repeated with it';

--
-- Name: stats_bucket(double precision); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.stats_bucket(seconds double precision) RETURNS smallint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (floor((((8)::double precision * ln(GREATEST(seconds, (0.000001)::double precision))) / ln((2)::double precision))))::smallint;

--
-- Name: stats_from(interval); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.stats_from(period interval) RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    RETURN CASE WHEN (period <= '25:00:00'::interval) THEN date_bin('00:05:00'::interval, (now() - period), '2000-01-01 00:00:00+00'::timestamp with time zone) ELSE date_bin('01:00:00'::interval, (now() - period), '2000-01-01 00:00:00+00'::timestamp with time zone) END;

--
-- Name: stats; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.stats (
    span smallint NOT NULL,
    since timestamp with time zone NOT NULL,
    template_id bigint NOT NULL,
    "position" integer NOT NULL,
    measure text NOT NULL,
    bucket smallint NOT NULL,
    n bigint NOT NULL,
    seconds double precision NOT NULL
)
WITH (fillfactor='50', autovacuum_vacuum_scale_factor='0.05');

--
-- Name: TABLE stats; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON TABLE tasker.stats IS 'Counts and durations of what has ended, by span, template and step; read them by tasker.figures and tasker.outcomes';

--
-- Name: stats_since(timestamp with time zone); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.stats_since(since timestamp with time zone) RETURNS SETOF tasker.stats
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    SELECT s.* FROM tasker.stats s WHERE s.span = 60 AND s.since >= date_bin('1 hour', $1 + interval '59 minutes 59.999999 seconds', timestamptz '2000-01-01 00:00+00')
    UNION ALL
    SELECT s.* FROM tasker.stats s WHERE s.span = 5 AND s.since >= $1 AND s.since < date_bin('1 hour', $1 + interval '59 minutes 59.999999 seconds', timestamptz '2000-01-01 00:00+00')
$_$;

--
-- Name: steers_subscribers(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.steers_subscribers() RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT EXISTS (SELECT FROM pg_roles r
                   WHERE (r.rolname IN ('tasker_operator', 'tasker_worker')
                          OR r.oid = (SELECT n.nspowner FROM pg_namespace n WHERE n.nspname = 'tasker'))
                     AND pg_has_role(session_user, r.oid, 'MEMBER'))
$$;

--
-- Name: step_ids(bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.step_ids(task bigint) RETURNS json
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RETURN (SELECT coalesce(json_object_agg(s.name, s.step_id ORDER BY s.position), '{}') FROM tasker.steps s WHERE s.task_id = task);
END $$;

--
-- Name: FUNCTION step_ids(task bigint); Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON FUNCTION tasker.step_ids(task bigint) IS 'Name to step_id of a task''s steps, in the template''s order';

--
-- Name: step_may_become(text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.step_may_become(was text, becomes text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RETURN was || '>' || becomes = ANY ('{
        pending>in_progress,in_progress>complete,pending>enqueued,enqueued>in_progress,enqueued>complete,
        pending>cancelled,pending>skipped,pending>resolved_manually,
        enqueued>waiting_for_retry,enqueued>error,
        enqueued>cancelled,enqueued>skipped,enqueued>resolved_manually,
        in_progress>waiting_for_retry,in_progress>error,
        in_progress>cancelled,in_progress>skipped,in_progress>resolved_manually,
        waiting_for_retry>enqueued,waiting_for_retry>in_progress,
        waiting_for_retry>cancelled,waiting_for_retry>skipped,waiting_for_retry>resolved_manually,
        error>pending,error>cancelled,error>skipped,error>resolved_manually}'::text[]);
END $$;

--
-- Name: steps_of(bigint[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.steps_of(task_ids bigint[]) RETURNS TABLE(task_id bigint, step_id bigint, state text, attempts integer, losses integer, forgiven integer, retry_in double precision, dispatched boolean, progress jsonb, failure jsonb)
    LANGUAGE plpgsql STABLE
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT s.task_id, s.step_id, s.state, s.attempts, s.losses, s.forgiven,
           coalesce(extract(epoch FROM s.retry_at - clock_timestamp()), 0)::double precision, d.step_id IS NOT NULL, s.progress, d.failure
    FROM tasker.steps s LEFT JOIN LATERAL ( -- only where there may be one
        SELECT l.step_id, l.failure FROM tasker.dispatches l WHERE l.step_id = s.step_id AND s.state IN ('enqueued', 'in_progress') OFFSET 0) d ON true
    WHERE s.task_id = ANY (task_ids) ORDER BY s.task_id, s.position;
END $$;

--
-- Name: steps_of_tasks(bigint[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.steps_of_tasks(task_ids bigint[]) RETURNS TABLE(task_id bigint, step_id bigint, state text, attempts integer, losses integer, forgiven integer, retry_in double precision, dispatched boolean, progress jsonb, failure jsonb, ticket bigint)
    LANGUAGE plpgsql STABLE
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_indexscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT s.task_id, s.step_id, s.state, s.attempts, s.losses, s.forgiven,
           coalesce(extract(epoch FROM s.retry_at - clock_timestamp()), 0)::double precision, d.step_id IS NOT NULL, s.progress, d.failure, d.ticket
    FROM tasker.steps s LEFT JOIN LATERAL ( -- only where there may be one
        SELECT l.step_id, l.failure, l.ticket FROM tasker.dispatches l WHERE l.step_id = s.step_id AND s.state IN ('enqueued', 'in_progress') OFFSET 0) d ON true
    WHERE s.task_id = ANY (task_ids) ORDER BY s.task_id, s.position;
END $$;

--
-- Name: still_writing(text[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.still_writing(writers text[]) RETURNS boolean
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT coalesce(bool_or(w = ANY (writers) OR w LIKE '-1/%'), false) FROM unnest(tasker.event_writers()) AS w
$$;

--
-- Name: stop_worker(bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.stop_worker(worker bigint) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    client text;
BEGIN
    PERFORM FROM tasker.worker_fences f WHERE f.worker_id = worker ORDER BY f.lane FOR UPDATE;
    UPDATE tasker.workers d SET state = 'stopped' WHERE d.worker_id = worker AND d.state = 'alive' RETURNING d.client_id INTO client;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    DELETE FROM tasker.worker_fences f WHERE f.worker_id = worker;
    RETURN tasker.release_worker(worker, client);
END $$;

--
-- Name: subscribe(text, text[], text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.subscribe(name text, patterns text[] DEFAULT '{*}'::text[], start text DEFAULT 'now'::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    new_likes text[] := tasker.event_likes(patterns);
BEGIN
    IF coalesce(name, '') !~ '^\S(.{0,198}\S)?$' THEN
        RAISE EXCEPTION 'the name of a subscriber has 1 to 200 characters and no space at its ends, unlike "%"', name USING ERRCODE = 'TK003';
    END IF;
    IF start IS NULL OR start NOT IN ('now', 'beginning') THEN
        RAISE EXCEPTION 'a subscriber starts at now or beginning, not at %', coalesce(start, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    IF starts_with(name, 'webhook:')
       AND NOT (EXISTS (SELECT FROM tasker.webhooks w WHERE w.name = substr($1, 9)) AND tasker.steers_subscribers()) THEN
        RAISE EXCEPTION 'names of subscribers that begin with webhook: belong to webhooks, so "%" is refused', name
        USING ERRCODE = 'insufficient_privilege', HINT = 'an operator makes a webhook: tasker webhook set';
    END IF;
    INSERT INTO tasker.event_subscribers AS s (name, owner, patterns, likes, cursor)
    VALUES ($1, session_user, $2, new_likes, ROW (CASE start WHEN 'now' THEN (SELECT coalesce(max(e.event_id), 0) FROM tasker.events e) ELSE 0 END, '{}', '{}', '{}'))
    ON CONFLICT ON CONSTRAINT event_subscribers_pkey DO UPDATE SET patterns = excluded.patterns, likes = excluded.likes
    WHERE s.patterns <> excluded.patterns;
    PERFORM tasker.own_subscriber(name); -- its error takes back the patterns
END $_$;

--
-- Name: sweep(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.sweep() RETURNS integer
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
    found_tasks bigint[];
    w record;
    n int := 0;
BEGIN
    IF NOT tasker.take_duty('sweep') THEN
        RETURN 0;
    END IF;
    -- Jobs that run in clients which are gone.
    FOR w IN
        SELECT DISTINCT j.attempted_by[cardinality(j.attempted_by)] AS client FROM tasker.river_job j
        WHERE j.state = 'running' AND j.kind = 'task_execution'
          -- A worker that doesn't know yet that it is dead puts off what it fetches.
          AND j.attempted_at < clock_timestamp() - interval '5 seconds'
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
            AND NOT EXISTS (SELECT FROM tasker.gate_waiters l JOIN tasker.steps s USING (step_id)
                            WHERE l.task_id = o.task_id AND s.state IN ('pending', 'waiting_for_retry'))
          EXCEPT
          SELECT (j.args ->> 'task_id')::bigint FROM tasker.river_job j
          WHERE j.kind = 'task_execution' AND j.state IN ('available', 'running', 'scheduled', 'retryable', 'pending')
            -- One that runs for so long without an owner of its task was fetched by
            -- a client whose connection broke before the answer came: it never ran.
            AND (j.state <> 'running' OR j.attempted_at > now() - interval '30 seconds')
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

--
-- Name: take_duty(text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.take_duty(duty text) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM FROM tasker.duties d WHERE d.name = duty FOR NO KEY UPDATE SKIP LOCKED;
    RETURN FOUND;
END $$;

--
-- Name: take_unstarted(interval, integer, double precision); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.take_unstarted(age interval, most integer, shared double precision) RETURNS TABLE(task_id bigint, step_id bigint, attempt integer, handler_class text, queue text, correlation_id text, alone boolean, ticket bigint)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_indexscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'pg_catalog', 'pg_temp'
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
           s.losses > 0 OR d.missing_since IS NOT NULL OR coalesce(least(ts.timeout_seconds, ts.heartbeat_seconds) < shared, false), coalesce(d.ticket, 0)
    FROM unnest(ids) AS u(id)
    CROSS JOIN LATERAL (SELECT * FROM tasker.dispatches q WHERE q.step_id = u.id OFFSET 0) d
    CROSS JOIN LATERAL (SELECT q.position, q.losses FROM tasker.steps q WHERE q.step_id = u.id OFFSET 0) s
    CROSS JOIN LATERAL (SELECT q.template_id, q.correlation_id FROM tasker.tasks q WHERE q.task_id = d.task_id OFFSET 0) t
    CROSS JOIN LATERAL (SELECT q.handler_class, q.timeout_seconds, q.heartbeat_seconds FROM tasker.template_steps q
                        WHERE q.template_id = t.template_id AND q.position = s.position OFFSET 0) ts
    ORDER BY d.step_id;
END $$;

--
-- Name: FUNCTION take_unstarted(age interval, most integer, shared double precision); Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON FUNCTION tasker.take_unstarted(age interval, most integer, shared double precision) IS 'Attempts that no process has started and no worker has looked after for so long; the caller looks after them now. alone: none that shares a job with others';

--
-- Name: task_may_become(text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.task_may_become(was text, becomes text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RETURN was || '>' || becomes = ANY ('{
        pending>in_progress,in_progress>complete,in_progress>error,in_progress>cancelled,
        pending>error,pending>cancelled,
        error>in_progress,error>resolved_manually,error>cancelled}'::text[]);
END $$;

--
-- Name: ticket(bytea, bigint, integer); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.ticket(key bytea, step_id bigint, attempt integer) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    RETURN ((('x'::text || "left"(encode(sha256((key || convert_to(((step_id || '.'::text) || attempt), 'UTF8'::name))), 'hex'::text), 12)))::bit(48))::bigint;

--
-- Name: totals(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.totals() RETURNS TABLE(namespace text, name text, step text, measure text, bucket integer, n bigint, seconds double precision)
    LANGUAGE sql STABLE
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT t.namespace, t.name, st.name, s.measure, s.bucket::int, sum(s.n)::bigint, sum(s.seconds)
    FROM tasker.stats s
    JOIN tasker.task_templates t USING (template_id)
    LEFT JOIN tasker.template_steps st ON st.template_id = s.template_id AND st.position = s.position
    WHERE s.span = 0
    GROUP BY 1, 2, 3, 4, 5
    ORDER BY 1, 2, 3 NULLS FIRST, 4, 5
$$;

--
-- Name: travel(interval); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.travel(span interval) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    timed bigint[];
    owned record;
BEGIN
    IF NOT tasker.is_test_database() THEN
        RAISE EXCEPTION 'time travel is for test databases, and % is not marked as one', current_database()
        USING ERRCODE = 'TK008', HINT = format('ALTER DATABASE %I SET tasker.testing = on', current_database());
    ELSIF span IS NULL OR span < interval '0' OR span > interval '100 years' THEN
        RAISE EXCEPTION 'time goes forward, by up to 100 years, and not by %', coalesce(span::text, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    span := make_interval(secs => extract(epoch FROM span)); -- a day is as long wherever a row stands in the calendar

    -- Everything is held first, in the lock order.
    PERFORM FROM tasker.tasks t ORDER BY t.task_id FOR UPDATE;
    PERFORM FROM tasker.gates g ORDER BY g.gate_id FOR UPDATE;
    PERFORM FROM tasker.steps s ORDER BY s.step_id FOR NO KEY UPDATE;
    PERFORM FROM tasker.dispatches d ORDER BY d.step_id FOR UPDATE;

    -- Loops that keep the time of a retry in memory read it again, as after an
    -- operator's verb. All others are left alone.
    SELECT coalesce(array_agg(DISTINCT t.task_id), '{}') INTO timed FROM tasker.tasks t JOIN tasker.steps s USING (task_id)
    WHERE t.owner IS NOT NULL AND s.state = 'waiting_for_retry';
    UPDATE tasker.tasks t SET run_at = t.run_at - span, deadline = t.deadline - span, paused_at = t.paused_at - span,
        created_at = t.created_at - span, started_at = t.started_at - span, finished_at = t.finished_at - span,
        epoch = t.epoch + CASE WHEN t.task_id = ANY (timed) THEN 1 ELSE 0 END;
    UPDATE tasker.gates g SET filled_at = g.filled_at - span, paused_at = g.paused_at - span, changed_at = g.changed_at - span;
    UPDATE tasker.gate_slots o SET taken_at = o.taken_at - span;
    UPDATE tasker.gate_waiters w SET since = w.since - span, rank = w.rank - span, admitted_until = w.admitted_until - span;
    UPDATE tasker.steps s SET retry_at = s.retry_at - span, started_at = s.started_at - span, finished_at = s.finished_at - span;
    UPDATE tasker.dispatches d SET looked_at = d.looked_at - span, missing_since = d.missing_since - span, started_at = d.started_at - span, deadline = d.deadline - span,
        start_by = d.start_by - span, beat_by = d.beat_by - span;
    UPDATE tasker.event_days d SET last_id = NULL; -- closed days get events
    UPDATE tasker.events e SET created_at = e.created_at - span;
    UPDATE tasker.dead_letters d SET found_at = d.found_at - span, since = d.since - span, resolved_at = d.resolved_at - span;
    UPDATE tasker.river_job j SET scheduled_at = j.scheduled_at - span, state = tasker.river_state(j.scheduled_at - span)
    FROM (SELECT l.id FROM tasker.river_job l
          WHERE l.kind = 'task_execution' AND l.state IN ('available', 'scheduled', 'retryable') ORDER BY l.id FOR UPDATE) due
    WHERE j.id = due.id;

    -- What would be found within seconds is found here and now.
    WHILE tasker.expire_tasks() > 0 LOOP
    END LOOP;
    PERFORM tasker.reap_attempts(interval '100 years'); -- whose process is silent is for workers to say
    FOR owned IN SELECT t.owner, string_agg(t.task_id::text, ',') AS tasks
        FROM (SELECT u.owner, u.task_id, row_number() OVER (PARTITION BY u.owner) / 300 AS chunk FROM tasker.tasks u
              WHERE u.task_id = ANY (timed) AND u.owner IS NOT NULL) t
        GROUP BY t.owner, t.chunk
    LOOP
        PERFORM pg_notify('tasker.worker_' || owned.owner, 't' || owned.tasks);
    END LOOP;
    PERFORM tasker.notify_river();
    PERFORM tasker.open_gates();
END $$;

--
-- Name: trend(interval, text, text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.trend(period interval DEFAULT '24:00:00'::interval, of_namespace text DEFAULT NULL::text, of_name text DEFAULT NULL::text) RETURNS TABLE(since timestamp with time zone, minutes integer, created bigint, completed bigint, failed bigint, mean_total double precision, attempts bigint, retried bigint)
    LANGUAGE sql STABLE
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    SELECT s.since, s.span::int,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'created'), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'completed' AND s.position < 0), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'failed' AND s.position < 0), 0)::bigint,
           sum(s.seconds) FILTER (WHERE s.measure = 'took') / sum(s.n) FILTER (WHERE s.measure = 'took'),
           coalesce(sum(s.n) FILTER (WHERE s.measure IN ('completed', 'failed', 'retried') AND s.position >= 0), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'retried'), 0)::bigint
    FROM tasker.stats s
    JOIN tasker.task_templates t USING (template_id)
    WHERE s.span = CASE WHEN period <= interval '4 hours' THEN 5 ELSE 60 END
      AND s.since >= CASE WHEN period <= interval '4 hours' THEN tasker.stats_from(period) ELSE date_bin('1 hour', now() - period, timestamptz '2000-01-01 00:00+00') END
      AND s.measure IN ('created', 'completed', 'failed', 'retried', 'took')
      AND t.namespace = coalesce($2, t.namespace) AND t.name = coalesce($3, t.name)
    GROUP BY 1, 2 ORDER BY 1
$_$;

--
-- Name: unread_since(bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.unread_since(id bigint) RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT least(coalesce((SELECT min(d.since) FROM tasker.event_days d WHERE d.last_id IS NULL OR d.last_id >= id),
                          (SELECT max(d.until) FROM tasker.event_days d), '-infinity'),
                 (SELECT min(e.created_at) FROM tasker.events_default e WHERE e.event_id >= id))
$$;

--
-- Name: unsubscribe(text); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.unsubscribe(name text) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
BEGIN
    IF EXISTS (SELECT FROM tasker.webhooks w WHERE 'webhook:' || w.name = $1) AND tasker.steers_subscribers() THEN
        RAISE EXCEPTION 'subscriber "%" belongs to a webhook', name USING ERRCODE = 'TK008',
            HINT = format('remove the webhook: tasker webhook remove %s', substr(name, 9));
    END IF;
    PERFORM tasker.own_subscriber(name);
    DELETE FROM tasker.event_sleepers s WHERE s.name = $1;
    DELETE FROM tasker.event_subscribers s WHERE s.name = $1;
    RETURN FOUND;
END $_$;

--
-- Name: waiting_now(integer); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.waiting_now(most integer DEFAULT 2000) RETURNS TABLE(namespace text, name text, step text, reason text, of text, tasks bigint, oldest_seconds double precision, task_id bigint)
    LANGUAGE sql STABLE
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_indexscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
    WITH open AS MATERIALIZED (
        SELECT t.* FROM tasker.tasks t WHERE t.state IN ('pending', 'in_progress') ORDER BY t.task_id LIMIT most
    ), waits AS (
        SELECT t.namespace, t.name, t.task_id, w.step, w.reason, w.of, w.since
        FROM open t CROSS JOIN LATERAL (
            (SELECT NULL AS step, 'paused' AS reason, NULL AS of, t.paused_at AS since, 0 AS rank WHERE t.paused_at IS NOT NULL)
            UNION ALL
            (SELECT NULL, CASE WHEN t.run_at > now() THEN 'scheduled' ELSE 'worker' END, NULL, greatest(t.created_at, least(t.run_at, now())), 1
             WHERE t.state = 'pending')
            UNION ALL
            (SELECT s.name, k.reason, k.of, k.since, k.rank
             FROM tasker.steps s
             JOIN tasker.template_steps ts ON ts.template_id = t.template_id AND ts.position = s.position
             LEFT JOIN tasker.gate_waiters g ON g.step_id = s.step_id AND g.admitted_until IS NULL
             LEFT JOIN tasker.gates l ON l.gate_id = g.gate_id
             CROSS JOIN LATERAL (
                 SELECT CASE WHEN g.step_id IS NOT NULL THEN 'limit' WHEN s.state = 'enqueued' THEN 'queue' WHEN s.state = 'in_progress' THEN 'handler'
                             WHEN s.state = 'waiting_for_retry' THEN 'retry' END AS reason,
                        CASE WHEN g.step_id IS NOT NULL THEN l.scope || ' ' || l.name WHEN s.state = 'enqueued' THEN ts.queue
                             ELSE coalesce(ts.handler_class, ts.handler) END AS of,
                        CASE WHEN g.step_id IS NOT NULL THEN g.since WHEN s.state = 'in_progress' THEN s.started_at
                             WHEN s.state = 'enqueued' THEN (SELECT d.looked_at FROM tasker.dispatches d WHERE d.step_id = s.step_id) END AS since,
                        CASE WHEN g.step_id IS NOT NULL THEN 2 WHEN s.state = 'enqueued' THEN 3 WHEN s.state = 'waiting_for_retry' THEN 4 ELSE 5 END AS rank) k
             WHERE s.task_id = t.task_id AND (s.state IN ('enqueued', 'in_progress', 'waiting_for_retry') OR g.step_id IS NOT NULL)
               AND t.state = 'in_progress')
            UNION ALL
            (SELECT NULL, 'worker', NULL, NULL, 9)  -- between two steps
            ORDER BY rank LIMIT 1) w
    )
    SELECT w.namespace, w.name, w.step, w.reason, w.of, count(*), extract(epoch FROM now() - min(w.since))::double precision, min(w.task_id)
    FROM waits w GROUP BY 1, 2, 3, 4, 5 ORDER BY 6 DESC, 7 DESC NULLS LAST
$$;

--
-- Name: wake_admitted(); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.wake_admitted() RETURNS trigger
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM FROM tasker.gate_waiters w WHERE w.task_id = NEW.task_id ORDER BY w.step_id FOR UPDATE;
    IF EXISTS (SELECT FROM tasker.gate_waiters w WHERE w.task_id = NEW.task_id AND w.admitted_until IS NOT NULL) THEN
        PERFORM tasker.schedule_runs(ARRAY[NEW.task_id], ARRAY[0::double precision]);
    END IF;
    RETURN NULL;
END $$;

--
-- Name: wake_handled(bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.wake_handled(worker bigint) RETURNS integer
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

--
-- Name: FUNCTION wake_handled(worker bigint); Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON FUNCTION tasker.wake_handled(worker bigint) IS 'Makes the jobs of tasks due now that wait for a Go handler which this worker has and none before it had; returns how many';

--
-- Name: with_defaults(jsonb, jsonb); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.with_defaults(schema jsonb, value jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    part record;
BEGIN
    IF jsonb_typeof(value) IS DISTINCT FROM 'object' OR jsonb_typeof(schema -> 'properties') IS DISTINCT FROM 'object' THEN
        RETURN value;
    END IF;
    FOR part IN SELECT p.key AS name, p.value AS rule FROM jsonb_each(schema -> 'properties') p LOOP
        IF value ? part.name THEN
            value := jsonb_set(value, ARRAY[part.name], tasker.with_defaults(part.rule, value -> part.name));
        ELSIF part.rule ? 'default' THEN
            value := value || jsonb_build_object(part.name, part.rule -> 'default');
        END IF;
    END LOOP;
    RETURN value;
END $$;

--
-- Name: write_batch(bigint, bigint[], integer[], text[], text[], boolean[], double precision[], bigint[], bigint[], text[], integer[], text[], integer[], integer[], text[], text[], double precision[], text[], bigint[], bigint[], double precision[], bigint[], integer[], bigint, bigint[], bigint[]); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.write_batch(worker bigint, task_ids bigint[], task_epochs integer[], task_states text[], task_errors text[], task_release boolean[], task_rerun double precision[], step_ids bigint[], step_tasks bigint[], step_was text[], step_was_attempt integer[], step_states text[], step_attempts integer[], step_losses integer[], step_results text[], step_errors text[], step_retry_in double precision[], step_queues text[], settled bigint[], parked bigint[], step_start_in double precision[], gate_steps bigint[], gate_ids integer[], gates_seen bigint, needs bigint[] DEFAULT '{}'::bigint[], step_tickets bigint[] DEFAULT '{}'::bigint[]) RETURNS bigint[]
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

--
-- Name: written_after(bigint); Type: FUNCTION; Schema: tasker; Owner: -
--

CREATE FUNCTION tasker.written_after(id bigint) RETURNS timestamp with time zone
    LANGUAGE plpgsql STABLE
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    since timestamptz := tasker.unread_since(id + 1);
BEGIN
    RETURN (SELECT e.created_at FROM tasker.events e WHERE e.event_id > id AND e.created_at >= since ORDER BY e.event_id LIMIT 1);
END $$;

--
-- Name: FUNCTION written_after(id bigint); Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON FUNCTION tasker.written_after(id bigint) IS 'When the first event after this one was written';

--
-- Name: dead_letters; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.dead_letters (
    dead_letter_id bigint NOT NULL,
    task_id bigint NOT NULL,
    found_at timestamp with time zone DEFAULT now() NOT NULL,
    reason text NOT NULL,
    since timestamp with time zone NOT NULL,
    detail text NOT NULL,
    resolved_at timestamp with time zone,
    resolution text,
    resolved_by text,
    note text,
    CONSTRAINT dead_letters_check CHECK (((resolved_at IS NULL) = (resolution IS NULL))),
    CONSTRAINT dead_letters_reason_check CHECK ((reason = ANY (ARRAY['stale_pending'::text, 'stale_in_progress'::text, 'stale_waiting'::text, 'stale_running'::text, 'failed'::text]))),
    CONSTRAINT dead_letters_resolution_check CHECK ((resolution = ANY (ARRAY['acknowledged'::text, 'retried'::text, 'cancelled'::text, 'resolved'::text, 'moved_on'::text])))
);

--
-- Name: TABLE dead_letters; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON TABLE tasker.dead_letters IS 'Tasks that stand still or have failed, why, and what was done about it';

--
-- Name: dead_letter_list; Type: VIEW; Schema: tasker; Owner: -
--

CREATE VIEW tasker.dead_letter_list AS
 SELECT d.dead_letter_id,
    d.task_id,
    t.namespace,
    t.name,
    t.version,
    t.state,
    d.reason,
    d.detail,
    d.since,
    d.found_at,
    (COALESCE(d.resolved_at, now()) - d.since) AS age,
    d.resolved_at,
    d.resolution,
    d.resolved_by,
    d.note
   FROM (tasker.dead_letters d
     LEFT JOIN tasker.tasks t USING (task_id));

--
-- Name: VIEW dead_letter_list; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON VIEW tasker.dead_letter_list IS 'tasker.dead_letters with their tasks; the open ones have no resolved_at';

--
-- Name: dead_letters_dead_letter_id_seq; Type: SEQUENCE; Schema: tasker; Owner: -
--

ALTER TABLE tasker.dead_letters ALTER COLUMN dead_letter_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tasker.dead_letters_dead_letter_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

--
-- Name: dispatches; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.dispatches (
    step_id bigint NOT NULL,
    task_id bigint NOT NULL,
    attempt integer NOT NULL,
    queue text NOT NULL,
    awaited_by bigint,
    looked_at timestamp with time zone DEFAULT now() NOT NULL,
    process_id bigint,
    started_at timestamp with time zone,
    deadline timestamp with time zone,
    failure jsonb,
    start_by timestamp with time zone,
    heartbeat interval,
    beat_by timestamp with time zone,
    secret bigint,
    ticket bigint,
    missing_since timestamp with time zone,
    missing_in text
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_cost_delay='0');

--
-- Name: COLUMN dispatches.secret; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON COLUMN tasker.dispatches.secret IS 'of the call that started the attempt: its reports must show it, and asked again it gets the same answer';

--
-- Name: COLUMN dispatches.ticket; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON COLUMN tasker.dispatches.ticket IS 'goes with the Sidekiq job; NULL: a worker of an earlier version made it';

--
-- Name: COLUMN dispatches.missing_since; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON COLUMN tasker.dispatches.missing_since IS 'since when processes have not had the handler''s class; NULL: none has said so';

--
-- Name: COLUMN dispatches.missing_in; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON COLUMN tasker.dispatches.missing_in IS 'the process that said so last';

--
-- Name: duties; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.duties (
    name text NOT NULL
);

--
-- Name: TABLE duties; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON TABLE tasker.duties IS 'What one worker at a time does: it locks the row';

--
-- Name: event_days; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.event_days (
    partition text NOT NULL,
    since timestamp with time zone NOT NULL,
    until timestamp with time zone NOT NULL,
    open_then text[],
    last_id bigint,
    CONSTRAINT event_days_partition CHECK ((partition ~ '^events_([0-9]{8}|old)$'::text))
);

--
-- Name: TABLE event_days; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON TABLE tasker.event_days IS 'The partitions of tasker.events, but for events_default';

--
-- Name: event_subscribers; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.event_subscribers (
    name text NOT NULL,
    patterns text[] NOT NULL,
    likes text[] NOT NULL,
    cursor tasker.event_cursor NOT NULL,
    holder text,
    held_until timestamp with time zone,
    failed_event_id bigint,
    failure text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    acknowledged_at timestamp with time zone,
    owner text
)
WITH (fillfactor='50', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='1000');

--
-- Name: TABLE event_subscribers; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON TABLE tasker.event_subscribers IS 'Durable subscribers of tasker.events and how far each has got; tasker.event_lag is for reading';

--
-- Name: COLUMN event_subscribers.owner; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON COLUMN tasker.event_subscribers.owner IS 'Role that may use it, with its members; NULL: the first login that uses it becomes the owner';

--
-- Name: event_lag; Type: VIEW; Schema: tasker; Owner: -
--

CREATE VIEW tasker.event_lag AS
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

--
-- Name: VIEW event_lag; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON VIEW tasker.event_lag IS 'Subscribers of events, how far behind each is, and what keeps it';

--
-- Name: events; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.events (
    event_id bigint NOT NULL,
    task_id bigint,
    step_id bigint,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    attempt integer,
    name text NOT NULL,
    data jsonb
)
PARTITION BY RANGE (created_at);

--
-- Name: TABLE events; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON TABLE tasker.events IS 'One row per transition, written in its transaction; append-only; a partition per day';

--
-- Name: event_log; Type: VIEW; Schema: tasker; Owner: -
--

CREATE VIEW tasker.event_log AS
 SELECT e.event_id,
    e.created_at,
    e.name,
    e.task_id,
    e.step_id,
    s.name AS step,
    e.attempt,
    e.data,
    t.namespace,
    t.name AS task_name,
    t.version,
    t.correlation_id,
    t.parent_task_id
   FROM ((tasker.events e
     LEFT JOIN tasker.tasks t USING (task_id))
     LEFT JOIN tasker.steps s ON ((s.step_id = e.step_id)));

--
-- Name: VIEW event_log; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON VIEW tasker.event_log IS 'tasker.events with names, correlation_id and parent_task_id; filter by task_id or correlation_id';

--
-- Name: event_sleepers; Type: TABLE; Schema: tasker; Owner: -
--

CREATE UNLOGGED TABLE tasker.event_sleepers (
    name text NOT NULL,
    channel text NOT NULL,
    likes text[] NOT NULL,
    until timestamp with time zone NOT NULL,
    CONSTRAINT event_sleepers_channel CHECK (((octet_length(channel) >= 1) AND (octet_length(channel) <= 63))),
    CONSTRAINT event_sleepers_likes CHECK ((tasker.likes_are_safe(likes) AND (cardinality(likes) <= 100))),
    CONSTRAINT event_sleepers_name CHECK ((octet_length(name) <= 1000))
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='500');

--
-- Name: events_event_id_seq; Type: SEQUENCE; Schema: tasker; Owner: -
--

CREATE SEQUENCE tasker.events_event_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

--
-- Name: events_event_id_seq; Type: SEQUENCE OWNED BY; Schema: tasker; Owner: -
--

ALTER SEQUENCE tasker.events_event_id_seq OWNED BY tasker.events.event_id;

--
-- Name: events_default; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.events_default (
    event_id bigint DEFAULT nextval('tasker.events_event_id_seq'::regclass) NOT NULL,
    task_id bigint,
    step_id bigint,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    attempt integer,
    name text NOT NULL,
    data jsonb
);

--
-- Name: gate_slots; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.gate_slots (
    step_id bigint NOT NULL,
    gate_id integer NOT NULL,
    task_id bigint NOT NULL,
    taken_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_cost_delay='0');

--
-- Name: gate_waiters; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.gate_waiters (
    step_id bigint NOT NULL,
    gate_id integer NOT NULL,
    task_id bigint NOT NULL,
    since timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    rank timestamp with time zone NOT NULL,
    admitted_until timestamp with time zone,
    missed integer DEFAULT 0 NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_cost_delay='0');

--
-- Name: gates_gate_id_seq; Type: SEQUENCE; Schema: tasker; Owner: -
--

ALTER TABLE tasker.gates ALTER COLUMN gate_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tasker.gates_gate_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

--
-- Name: processes; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.processes (
    process_id bigint NOT NULL,
    identity text NOT NULL,
    details jsonb DEFAULT '{}'::jsonb NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    last_seen_at timestamp with time zone DEFAULT now() NOT NULL,
    stopped_at timestamp with time zone,
    seconds jsonb,
    secret bigint
)
WITH (fillfactor='50');

--
-- Name: TABLE processes; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON TABLE tasker.processes IS 'Sidekiq and other processes that run attempts, and their heartbeats';

--
-- Name: COLUMN processes.seconds; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON COLUMN tasker.processes.seconds IS 'how long the handlers take that the process has run of late, by class, in seconds; NULL: it takes one attempt per Sidekiq job';

--
-- Name: COLUMN processes.secret; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON COLUMN tasker.processes.secret IS 'that the process shows with each heartbeat; NULL: its gem is of an earlier version';

--
-- Name: processes_process_id_seq; Type: SEQUENCE; Schema: tasker; Owner: -
--

ALTER TABLE tasker.processes ALTER COLUMN process_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tasker.processes_process_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

--
-- Name: template_steps; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.template_steps (
    template_id bigint NOT NULL,
    "position" integer NOT NULL,
    name text NOT NULL,
    handler_class text,
    handler text,
    queue text DEFAULT 'default'::text NOT NULL,
    depends_on integer[] DEFAULT '{}'::integer[] NOT NULL,
    attempt_limit integer NOT NULL,
    timeout_seconds double precision,
    handler_config jsonb DEFAULT '{}'::jsonb NOT NULL,
    result_schema jsonb,
    schedule_to_start_seconds double precision,
    heartbeat_seconds double precision,
    limit_key text,
    bypassable boolean DEFAULT false NOT NULL,
    CONSTRAINT template_steps_attempt_limit_check CHECK ((attempt_limit > 0)),
    CONSTRAINT template_steps_check CHECK (((handler_class IS NULL) <> (handler IS NULL)))
);

--
-- Name: COLUMN template_steps.bypassable; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON COLUMN tasker.template_steps.bypassable IS 'whether a task may name it in bypass_steps';

--
-- Name: workers; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.workers (
    worker_id bigint NOT NULL,
    name text NOT NULL,
    client_id text NOT NULL,
    state text DEFAULT 'alive'::text NOT NULL,
    lease interval DEFAULT '00:00:04'::interval NOT NULL,
    details jsonb DEFAULT '{}'::jsonb NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    last_seen_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT workers_state_check CHECK ((state = ANY (ARRAY['alive'::text, 'stopped'::text, 'dead'::text])))
)
WITH (fillfactor='50');

--
-- Name: quiet_tasks; Type: VIEW; Schema: tasker; Owner: -
--

CREATE VIEW tasker.quiet_tasks AS
 SELECT t.task_id,
        CASE
            WHEN (t.state = 'pending'::text) THEN 'stale_pending'::text
            WHEN s.running THEN 'stale_running'::text
            WHEN s.enqueued THEN 'stale_waiting'::text
            ELSE 'stale_in_progress'::text
        END AS reason,
    GREATEST(q.since, s.moved_at,
        CASE
            WHEN ((NOT s.running) AND (NOT s.enqueued)) THEN s.retry_at
            ELSE NULL::timestamp with time zone
        END) AS since,
    s.watched,
    t.created_at,
    q.since AS task_since
   FROM ((tasker.tasks t
     CROSS JOIN LATERAL ( SELECT GREATEST(t.created_at, t.started_at, t.run_at, ( SELECT l.created_at
                   FROM ( SELECT e.event_id,
                            e.created_at,
                            e.name
                           FROM tasker.events e
                          WHERE ((e.task_id = t.task_id) AND (e.created_at >= t.created_at))
                          ORDER BY e.event_id DESC
                         LIMIT 100) l
                  WHERE (l.name <> ALL (ARRAY['workflow.task_reenqueue_delayed'::text, 'step.report_refused'::text, 'task.priority_changed'::text, 'task.stale'::text, 'task.dead_lettered'::text, 'task.dead_letter_acknowledged'::text]))
                  ORDER BY l.event_id DESC
                 LIMIT 1)) AS since
         OFFSET 0) q)
     CROSS JOIN LATERAL ( SELECT max(GREATEST(p.started_at, p.finished_at)) AS moved_at,
            min(p.retry_at) FILTER (WHERE (p.state = 'waiting_for_retry'::text)) AS retry_at,
            COALESCE(bool_or((p.state = 'enqueued'::text)), false) AS enqueued,
            COALESCE(bool_or(r.runs), false) AS running,
            COALESCE(bool_or(((r.runs AND COALESCE(d.timed, x.timed)) OR ((p.state = 'enqueued'::text) AND (d.start_by IS NOT NULL)) OR (EXISTS ( SELECT
                   FROM (tasker.gate_waiters l
                     JOIN tasker.gates g USING (gate_id))
                  WHERE ((l.step_id = p.step_id) AND (g.paused_at IS NOT NULL)))))), false) AS watched
           FROM (((tasker.steps p
             CROSS JOIN LATERAL ( SELECT u.handler,
                    (COALESCE(u.timeout_seconds, u.heartbeat_seconds) IS NOT NULL) AS timed
                   FROM tasker.template_steps u
                  WHERE ((u.template_id = t.template_id) AND (u."position" = p."position"))
                 OFFSET 0) x)
             LEFT JOIN LATERAL ( SELECT u.step_id,
                    u.process_id,
                    u.start_by,
                    (COALESCE(u.deadline, u.beat_by) IS NOT NULL) AS timed
                   FROM tasker.dispatches u
                  WHERE ((u.step_id = p.step_id) AND (u.failure IS NULL))
                 OFFSET 0) d ON (true))
             CROSS JOIN LATERAL ( SELECT ((p.state = 'in_progress'::text) AND
                        CASE
                            WHEN (x.handler IS NOT NULL) THEN (EXISTS ( SELECT
                               FROM tasker.workers w
                              WHERE ((w.worker_id = t.owner) AND (w.state = 'alive'::text))))
                            WHEN (d.process_id IS NOT NULL) THEN (EXISTS ( SELECT
                               FROM tasker.processes o
                              WHERE ((o.process_id = d.process_id) AND (o.stopped_at IS NULL) AND (GREATEST(o.last_seen_at, pg_postmaster_start_time()) > (now() - '00:00:10'::interval)))))
                            ELSE (d.step_id IS NOT NULL)
                        END) AS runs) r)
          WHERE ((p.task_id = t.task_id) AND (q.since IS NOT NULL))) s)
  WHERE ((t.state = ANY (ARRAY['pending'::text, 'in_progress'::text])) AND (t.paused_at IS NULL));

--
-- Name: VIEW quiet_tasks; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON VIEW tasker.quiet_tasks IS 'Open tasks, and since when nothing has happened to them; paused ones are left out';

--
-- Name: river_job; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.river_job (
    id bigint NOT NULL,
    state tasker.river_job_state DEFAULT 'available'::tasker.river_job_state NOT NULL,
    attempt smallint DEFAULT 0 NOT NULL,
    max_attempts smallint DEFAULT 25 NOT NULL,
    attempted_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    finalized_at timestamp with time zone,
    scheduled_at timestamp with time zone DEFAULT now() NOT NULL,
    priority smallint DEFAULT 1 NOT NULL,
    args jsonb NOT NULL,
    attempted_by text[],
    errors jsonb[],
    kind text NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    queue text DEFAULT 'default'::text NOT NULL,
    tags character varying(255)[] DEFAULT '{}'::character varying[] NOT NULL,
    unique_key bytea,
    unique_states bit(8),
    CONSTRAINT finalized_or_finalized_at_null CHECK ((((finalized_at IS NULL) AND (state <> ALL (ARRAY['cancelled'::tasker.river_job_state, 'completed'::tasker.river_job_state, 'discarded'::tasker.river_job_state]))) OR ((finalized_at IS NOT NULL) AND (state = ANY (ARRAY['cancelled'::tasker.river_job_state, 'completed'::tasker.river_job_state, 'discarded'::tasker.river_job_state]))))),
    CONSTRAINT kind_length CHECK (((char_length(kind) > 0) AND (char_length(kind) < 128))),
    CONSTRAINT max_attempts_is_positive CHECK ((max_attempts > 0)),
    CONSTRAINT priority_in_range CHECK (((priority >= 1) AND (priority <= 4))),
    CONSTRAINT queue_length CHECK (((char_length(queue) > 0) AND (char_length(queue) < 128)))
);

--
-- Name: river_job_id_seq; Type: SEQUENCE; Schema: tasker; Owner: -
--

CREATE SEQUENCE tasker.river_job_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

--
-- Name: river_job_id_seq; Type: SEQUENCE OWNED BY; Schema: tasker; Owner: -
--

ALTER SEQUENCE tasker.river_job_id_seq OWNED BY tasker.river_job.id;

--
-- Name: river_leader; Type: TABLE; Schema: tasker; Owner: -
--

CREATE UNLOGGED TABLE tasker.river_leader (
    elected_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    leader_id text NOT NULL,
    name text DEFAULT 'default'::text NOT NULL,
    CONSTRAINT leader_id_length CHECK (((char_length(leader_id) > 0) AND (char_length(leader_id) < 128))),
    CONSTRAINT name_length CHECK ((name = 'default'::text))
);

--
-- Name: river_migration; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.river_migration (
    line text NOT NULL,
    version bigint NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT line_length CHECK (((char_length(line) > 0) AND (char_length(line) < 128))),
    CONSTRAINT version_gte_1 CHECK ((version >= 1))
);

--
-- Name: river_notification; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.river_notification (
    id bigint NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    payload text NOT NULL,
    topic text NOT NULL,
    CONSTRAINT topic_length CHECK (((length(topic) > 0) AND (length(topic) < 128)))
);

--
-- Name: river_notification_id_seq; Type: SEQUENCE; Schema: tasker; Owner: -
--

CREATE SEQUENCE tasker.river_notification_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

--
-- Name: river_notification_id_seq; Type: SEQUENCE OWNED BY; Schema: tasker; Owner: -
--

ALTER SEQUENCE tasker.river_notification_id_seq OWNED BY tasker.river_notification.id;

--
-- Name: river_queue; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.river_queue (
    name text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    paused_at timestamp with time zone,
    updated_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP NOT NULL
);

--
-- Name: schema_migrations; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.schema_migrations (
    version integer NOT NULL,
    name text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

--
-- Name: stats_errors; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.stats_errors (
    span smallint NOT NULL,
    since timestamp with time zone NOT NULL,
    template_id bigint NOT NULL,
    "position" integer NOT NULL,
    fingerprint text NOT NULL,
    class text NOT NULL,
    message text NOT NULL,
    n bigint NOT NULL,
    task_id bigint NOT NULL,
    last_at timestamp with time zone NOT NULL
)
WITH (fillfactor='50');

--
-- Name: stats_progress; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.stats_progress (
    one boolean DEFAULT true NOT NULL,
    cursor tasker.event_cursor,
    as_of timestamp with time zone,
    rest_until timestamp with time zone,
    CONSTRAINT stats_progress_one_check CHECK (one)
);

--
-- Name: stats_slowest; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.stats_slowest (
    since timestamp with time zone NOT NULL,
    template_id bigint NOT NULL,
    "position" integer NOT NULL,
    seconds double precision NOT NULL,
    task_id bigint NOT NULL,
    ended_at timestamp with time zone NOT NULL
);

--
-- Name: step_dependencies; Type: VIEW; Schema: tasker; Owner: -
--

CREATE VIEW tasker.step_dependencies AS
 SELECT s.task_id,
    s.step_id,
    s.name,
    p.step_id AS depends_on_step_id,
    p.name AS depends_on_name
   FROM (((tasker.steps s
     JOIN tasker.tasks t USING (task_id))
     JOIN tasker.template_steps d ON (((d.template_id = t.template_id) AND (d."position" = s."position"))))
     JOIN tasker.steps p ON (((p.task_id = s.task_id) AND (p."position" = ANY (d.depends_on)))));

--
-- Name: VIEW step_dependencies; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON VIEW tasker.step_dependencies IS 'The edges of a task''s DAG';

--
-- Name: task_templates; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.task_templates (
    template_id bigint NOT NULL,
    namespace text NOT NULL,
    name text NOT NULL,
    version text NOT NULL,
    version_key integer[] GENERATED ALWAYS AS ((string_to_array(version, '.'::text))::integer[]) STORED,
    description text,
    definition jsonb NOT NULL,
    checksum text NOT NULL,
    max_parallel_steps integer NOT NULL,
    used_at timestamp with time zone,
    registered_at timestamp with time zone DEFAULT now() NOT NULL,
    context_schema jsonb GENERATED ALWAYS AS (NULLIF((definition -> 'schema'::text), 'null'::jsonb)) STORED,
    deadline_seconds double precision,
    idempotency text,
    context_defaults boolean GENERATED ALWAYS AS (tasker.has_defaults(NULLIF((definition -> 'schema'::text), 'null'::jsonb))) STORED,
    CONSTRAINT task_templates_idempotency_check CHECK ((idempotency = ANY (ARRAY['key'::text, 'context'::text]))),
    CONSTRAINT task_templates_max_parallel_steps_check CHECK ((max_parallel_steps > 0)),
    CONSTRAINT task_templates_version_check CHECK ((version ~ '^\d{1,9}\.\d{1,9}\.\d{1,9}$'::text))
);

--
-- Name: TABLE task_templates; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON TABLE tasker.task_templates IS 'Registered workflow definitions; immutable once a task has used them';

--
-- Name: step_readiness; Type: VIEW; Schema: tasker; Owner: -
--

CREATE VIEW tasker.step_readiness AS
 SELECT t.task_id,
    s.step_id,
    s."position",
    s.name,
    s.state,
    (r.reason = 'ready'::text) AS ready,
    r.reason,
        CASE r.reason
            WHEN 'finished'::text THEN
            CASE s.state
                WHEN 'complete'::text THEN format('completed with attempt %s'::text, s.attempts)
                WHEN 'cancelled'::text THEN 'was cancelled: what depends on it can''t run'::text
                WHEN 'skipped'::text THEN 'was skipped: what depends on it goes on without its result'::text
                ELSE 'was resolved by an operator'::text
            END
            WHEN 'attempts_exhausted'::text THEN format('used up its %s, the last one failed: %s'::text,
            CASE s.attempt_limit
                WHEN 1 THEN 'only attempt'::text
                ELSE (s.attempt_limit || ' attempts'::text)
            END, tasker.failure_in_words(s.error))
            WHEN 'failed'::text THEN format('failed for good with attempt %s: %s'::text, s.attempts, tasker.failure_in_words(s.error))
            WHEN 'running'::text THEN format('attempt %s of %s runs%s%s%s'::text, s.attempts_used, s.attempt_limit, COALESCE(format(' for %s s'::text, round(EXTRACT(epoch FROM (now() - s.started_at)), 1)), ''::text),
            CASE
                WHEN (s.handler IS NOT NULL) THEN ( SELECT format(' in worker %s'::text, w.name) AS format
                   FROM tasker.workers w
                  WHERE (w.worker_id = t.owner))
                ELSE ( SELECT format(' in process %s'::text, p.identity) AS format
                   FROM (tasker.dispatches o
                     JOIN tasker.processes p USING (process_id))
                  WHERE (o.step_id = s.step_id))
            END, (', progress '::text || "left"((s.progress)::text, 100)))
            WHEN 'enqueued'::text THEN COALESCE(( SELECT format('attempt %s of %s waits since %s s for a Sidekiq process that has the class %s: %s, which took it last, has not; deploy it there, or correct handler_class in the template'::text, s.attempts_used, s.attempt_limit, round(EXTRACT(epoch FROM (now() - o.missing_since)), 1), s.handler_class, COALESCE(o.missing_in, 'a process that is gone'::text)) AS format
               FROM tasker.dispatches o
              WHERE ((o.step_id = s.step_id) AND (o.missing_since IS NOT NULL))), format('attempt %s of %s is in Sidekiq''s queue %s and has not begun'::text, s.attempts_used, s.attempt_limit, s.queue))
            WHEN 'no_process_alive'::text THEN format('attempt %s of %s is in Sidekiq''s queue %s, and no Sidekiq process with tasker has given a sign of life for 10 s'::text, s.attempts_used, s.attempt_limit, s.queue)
            WHEN 'task_cancelled'::text THEN 'its task was cancelled'::text
            WHEN 'blocked'::text THEN format('can''t run as things stand: %s%s'::text, d.words,
            CASE
                WHEN (NOT d.failed) THEN format(', behind %s'::text, c.failed_words)
                ELSE NULL::text
            END)
            WHEN 'task_finished'::text THEN format('its task has ended as %s'::text, t.state)
            WHEN 'paused'::text THEN format('its task was paused %s s ago'::text, round(EXTRACT(epoch FROM (now() - t.paused_at)), 1))
            WHEN 'scheduled'::text THEN format('its task starts in %s s'::text, round(EXTRACT(epoch FROM (t.run_at - now())), 1))
            WHEN 'dependencies'::text THEN format('waits for %s of %s dependencies: %s'::text, (s.dependencies - d.satisfied), s.dependencies, d.words)
            WHEN 'fail_fast'::text THEN format('nothing new starts (on_failure: fail_fast) after %s'::text, c.failed_words)
            WHEN 'backoff'::text THEN format('attempt %s of %s begins in %s s, the last one failed: %s'::text, (s.attempts_used + 1), s.attempt_limit, round(EXTRACT(epoch FROM (s.retry_at - now())), 1), tasker.failure_in_words(s.error))
            WHEN 'at_limit'::text THEN format('starts when one of the %s attempts that are out has ended: max_parallel_steps is %s'::text, c.outstanding, m.max_parallel_steps)
            WHEN 'gate_paused'::text THEN format('%s %s was paused %s s ago%s'::text, gate.scope, gate.name, round(EXTRACT(epoch FROM (now() - gate.paused_at)), 1), COALESCE((' by '::text || gate.changed_by), ''::text))
            WHEN 'limited'::text THEN format('waits since %s s at the limit of %s %s (%s); %s before it'::text, round(EXTRACT(epoch FROM (now() - gate.since)), 1), gate.scope, gate.name, concat_ws(', '::text, (((gate."out" || ' of '::text) || gate.max_attempts) || ' attempts are out'::text), (gate.per_second || ' per second'::text)),
            CASE gate.ahead
                WHEN 0 THEN 'no step is'::text
                WHEN 1 THEN '1 step is'::text
                ELSE (gate.ahead || ' steps are'::text)
            END)
            WHEN 'no_handler_alive'::text THEN format('needs the Go handler %s, and %s'::text, s.handler,
            CASE alive.workers
                WHEN 0 THEN 'no worker is alive'::text
                ELSE format('none of the workers alive (%s) has it'::text, alive.workers)
            END)
            WHEN 'no_worker_alive'::text THEN 'may start, and no worker is alive that would start it'::text
            ELSE format('attempt %s of %s may start now'::text, (s.attempts_used + 1), s.attempt_limit)
        END AS explanation,
    s.dependencies AS dependencies_total,
    d.satisfied AS dependencies_satisfied,
    d.waiting_on,
    s.attempts,
    s.attempts_used,
    s.attempt_limit,
        CASE
            WHEN (s.state = 'waiting_for_retry'::text) THEN s.retry_at
            ELSE NULL::timestamp with time zone
        END AS retry_at,
        CASE
            WHEN (s.state = 'waiting_for_retry'::text) THEN (GREATEST(EXTRACT(epoch FROM (s.retry_at - now())), (0)::numeric))::double precision
            ELSE NULL::double precision
        END AS seconds_until_retry,
    gate.scope AS gate_scope,
    gate.name AS gate_name
   FROM (((((((tasker.tasks t
     JOIN tasker.task_templates m USING (template_id))
     CROSS JOIN ( SELECT ( SELECT count(*) AS count
                   FROM tasker.workers w
                  WHERE ((w.state = 'alive'::text) AND (GREATEST(w.last_seen_at, pg_postmaster_start_time()) > (now() - '00:00:10'::interval)))) AS workers,
            ARRAY( SELECT jsonb_array_elements_text((w.details -> 'handlers'::text)) AS jsonb_array_elements_text
                   FROM tasker.workers w
                  WHERE ((w.state = 'alive'::text) AND (GREATEST(w.last_seen_at, pg_postmaster_start_time()) > (now() - '00:00:10'::interval)) AND (jsonb_typeof((w.details -> 'handlers'::text)) = 'array'::text))) AS handlers,
            (EXISTS ( SELECT
                   FROM tasker.processes p
                  WHERE ((p.stopped_at IS NULL) AND (GREATEST(p.last_seen_at, pg_postmaster_start_time()) > (now() - '00:00:10'::interval))))) AS process
         OFFSET 0) alive)
     CROSS JOIN LATERAL ( SELECT count(*) FILTER (WHERE (s_1.state = ANY (ARRAY['enqueued'::text, 'in_progress'::text]))) AS outstanding,
            count(*) FILTER (WHERE (s_1.state = 'error'::text)) AS failed,
            array_to_string((array_agg((s_1.name ||
                CASE s_1.state
                    WHEN 'error'::text THEN format(' (error: %s)'::text, tasker.failure_in_words(s_1.error))
                    ELSE ' (cancelled)'::text
                END) ORDER BY s_1."position") FILTER (WHERE (s_1.state = ANY (ARRAY['error'::text, 'cancelled'::text]))))[1:3], ', '::text) AS failed_words
           FROM tasker.steps s_1
          WHERE (s_1.task_id = t.task_id)) c)
     CROSS JOIN LATERAL ( WITH RECURSIVE edges AS MATERIALIZED (
                 SELECT jsonb_object_agg(g.dependency, g.dependents) AS below
                   FROM ( SELECT e.dependency,
                            jsonb_agg(w_1."position") AS dependents
                           FROM ((tasker.steps w_1
                             JOIN tasker.template_steps x_1 ON (((x_1.template_id = t.template_id) AND (x_1."position" = w_1."position"))))
                             CROSS JOIN LATERAL unnest(x_1.depends_on) e(dependency))
                          WHERE ((w_1.task_id = t.task_id) AND (w_1.state = ANY (ARRAY['pending'::text, 'waiting_for_retry'::text])))
                          GROUP BY e.dependency) g
                ), barred("position") AS (
                 SELECT b_1."position"
                   FROM tasker.steps b_1
                  WHERE ((b_1.task_id = t.task_id) AND (b_1.state = ANY (ARRAY['error'::text, 'cancelled'::text])))
                UNION
                 SELECT (e."position")::integer AS "position"
                   FROM (barred b_1
                     CROSS JOIN LATERAL jsonb_array_elements_text((( SELECT edges.below
                           FROM edges) -> (b_1."position")::text)) e("position"))
                )
         SELECT w.step_id,
            w."position",
            w.name,
            w.state,
            w.attempts,
            w.retry_at,
            w.started_at,
            w.error,
            w.progress,
            ((w.attempts - w.losses) - w.forgiven) AS attempts_used,
            x.attempt_limit,
            x.handler,
            x.handler_class,
            x.queue,
            x.limit_key,
            x.depends_on,
            cardinality(x.depends_on) AS dependencies,
            (b."position" IS NOT NULL) AS barred
           FROM ((tasker.steps w
             JOIN tasker.template_steps x ON (((x.template_id = t.template_id) AND (x."position" = w."position"))))
             LEFT JOIN barred b ON ((b."position" = w."position")))
          WHERE (w.task_id = t.task_id)) s)
     CROSS JOIN LATERAL ( SELECT (count(*) FILTER (WHERE u.satisfied))::integer AS satisfied,
            COALESCE(bool_or((u.state = ANY (ARRAY['error'::text, 'cancelled'::text]))), false) AS failed,
            COALESCE(array_agg(u.name ORDER BY u."position") FILTER (WHERE (NOT u.satisfied)), '{}'::text[]) AS waiting_on,
            (array_to_string((array_agg(format('%s (%s%s)'::text, u.name, replace(u.state, '_'::text, ' '::text),
                CASE
                    WHEN (u.state = 'error'::text) THEN (': '::text || tasker.failure_in_words(u.error))
                    ELSE NULL::text
                END) ORDER BY (u.state <> ALL (ARRAY['error'::text, 'cancelled'::text])), u."position") FILTER (WHERE (NOT u.satisfied)))[1:5], ', '::text) ||
                CASE
                    WHEN (count(*) FILTER (WHERE (NOT u.satisfied)) > 5) THEN format(' and %s more'::text, (count(*) FILTER (WHERE (NOT u.satisfied)) - 5))
                    ELSE ''::text
                END) AS words
           FROM (unnest(s.depends_on) e(dependency)
             CROSS JOIN LATERAL ( SELECT p."position",
                    p.name,
                    p.state,
                    p.error,
                    (p.state = ANY (ARRAY['complete'::text, 'skipped'::text, 'resolved_manually'::text])) AS satisfied
                   FROM tasker.steps p
                  WHERE ((p.task_id = t.task_id) AND (p."position" = e.dependency))
                 OFFSET 0) u)) d)
     LEFT JOIN LATERAL ( SELECT g.scope,
            g.name,
            g.paused_at,
            g.changed_by,
            g.max_attempts,
            g.per_second,
            w.since,
            ( SELECT count(*) AS count
                   FROM tasker.gate_slots o
                  WHERE (o.gate_id = g.gate_id)) AS "out",
            ( SELECT count(*) AS count
                   FROM tasker.gate_waiters a
                  WHERE ((a.gate_id = g.gate_id) AND (ROW(a.rank, a.step_id) < ROW(w.rank, w.step_id)))) AS ahead
           FROM (tasker.gates g
             LEFT JOIN tasker.gate_waiters w ON (((w.gate_id = g.gate_id) AND (w.step_id = s.step_id))))
          WHERE ((s.state = ANY (ARRAY['pending'::text, 'waiting_for_retry'::text])) AND (((g.paused_at IS NOT NULL) AND tasker.gate_is_for(g.scope, g.name, t.namespace, t.name, s.handler_class, s.handler, s.queue, s.limit_key)) OR ((w.step_id IS NOT NULL) AND (w.admitted_until IS NULL))))
          ORDER BY (g.paused_at IS NULL), g.gate_id
         LIMIT 1) gate ON (true))
     CROSS JOIN LATERAL ( SELECT
                CASE
                    WHEN (s.state = ANY (ARRAY['complete'::text, 'skipped'::text, 'resolved_manually'::text, 'cancelled'::text])) THEN 'finished'::text
                    WHEN ((s.state = 'error'::text) AND (s.attempts_used >= s.attempt_limit) AND (COALESCE((s.error ->> 'permanent'::text), ''::text) <> 'true'::text)) THEN 'attempts_exhausted'::text
                    WHEN (s.state = 'error'::text) THEN 'failed'::text
                    WHEN (t.state = 'cancelled'::text) THEN 'task_cancelled'::text
                    WHEN (s.state = 'in_progress'::text) THEN 'running'::text
                    WHEN (s.state = 'enqueued'::text) THEN
                    CASE
                        WHEN alive.process THEN 'enqueued'::text
                        ELSE 'no_process_alive'::text
                    END
                    WHEN (t.state <> ALL (ARRAY['pending'::text, 'in_progress'::text, 'error'::text])) THEN 'task_finished'::text
                    WHEN s.barred THEN 'blocked'::text
                    WHEN (t.state = 'error'::text) THEN 'task_finished'::text
                    WHEN (t.paused_at IS NOT NULL) THEN 'paused'::text
                    WHEN ((t.state = 'pending'::text) AND (t.run_at > now())) THEN 'scheduled'::text
                    WHEN (d.satisfied < s.dependencies) THEN 'dependencies'::text
                    WHEN ((c.failed > 0) AND ((m.definition ->> 'on_failure'::text) = 'fail_fast'::text)) THEN 'fail_fast'::text
                    WHEN ((s.state = 'waiting_for_retry'::text) AND (s.retry_at > now())) THEN 'backoff'::text
                    WHEN (c.outstanding >= m.max_parallel_steps) THEN 'at_limit'::text
                    WHEN (gate.paused_at IS NOT NULL) THEN 'gate_paused'::text
                    WHEN (gate.scope IS NOT NULL) THEN 'limited'::text
                    WHEN ((s.handler IS NOT NULL) AND (s.handler <> ALL (alive.handlers))) THEN 'no_handler_alive'::text
                    WHEN (alive.workers = 0) THEN 'no_worker_alive'::text
                    ELSE 'ready'::text
                END AS reason) r);

--
-- Name: VIEW step_readiness; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON VIEW tasker.step_readiness IS 'Per step: whether it may start now, and if not, why; filter by task_id';

--
-- Name: steps_step_id_seq; Type: SEQUENCE; Schema: tasker; Owner: -
--

ALTER TABLE tasker.steps ALTER COLUMN step_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tasker.steps_step_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

--
-- Name: task_summaries; Type: VIEW; Schema: tasker; Owner: -
--

CREATE VIEW tasker.task_summaries AS
 SELECT t.task_id,
    t.namespace,
    t.name,
    t.version,
    t.state,
        CASE
            WHEN (t.state = ANY (ARRAY['cancelled'::text, 'resolved_manually'::text])) THEN t.state
            WHEN (s.satisfied = s.total) THEN 'all_complete'::text
            WHEN (s.outstanding > 0) THEN 'processing'::text
            WHEN (s.ready > 0) THEN 'has_ready_steps'::text
            WHEN (s.waiting > 0) THEN 'waiting_for_retry'::text
            WHEN ((s.failed + s.cancelled) > 0) THEN 'blocked_by_failures'::text
            ELSE 'waiting_for_dependencies'::text
        END AS execution_status,
    s.total AS steps_total,
    s.satisfied AS steps_satisfied,
    s.outstanding AS steps_outstanding,
    s.ready AS steps_ready,
    s.waiting AS steps_waiting_for_retry,
    s.failed AS steps_failed,
    s.attempts,
    s.next_retry_at,
    t.priority,
    t.run_at,
    t.correlation_id,
    t.tags,
    t.initiator,
    t.source_system,
    t.reason,
    t.error,
    t.created_at,
    t.started_at,
    t.finished_at,
    (t.finished_at - t.created_at) AS duration
   FROM (tasker.tasks t
     CROSS JOIN LATERAL ( SELECT (count(*))::integer AS total,
            (count(*) FILTER (WHERE (s_1.state = ANY (ARRAY['complete'::text, 'skipped'::text, 'resolved_manually'::text]))))::integer AS satisfied,
            (count(*) FILTER (WHERE (s_1.state = ANY (ARRAY['enqueued'::text, 'in_progress'::text]))))::integer AS outstanding,
            (count(*) FILTER (WHERE (s_1.state = 'waiting_for_retry'::text)))::integer AS waiting,
            (count(*) FILTER (WHERE (s_1.state = 'error'::text)))::integer AS failed,
            (count(*) FILTER (WHERE (s_1.state = 'cancelled'::text)))::integer AS cancelled,
            (count(*) FILTER (WHERE ((s_1.state = 'pending'::text) AND (NOT (EXISTS ( SELECT
                   FROM (tasker.template_steps d
                     JOIN tasker.steps p ON (((p.task_id = s_1.task_id) AND (p."position" = ANY (d.depends_on)))))
                  WHERE ((d.template_id = t.template_id) AND (d."position" = s_1."position") AND (p.state <> ALL (ARRAY['complete'::text, 'skipped'::text, 'resolved_manually'::text])))))))))::integer AS ready,
            (COALESCE(sum(s_1.attempts), (0)::bigint))::integer AS attempts,
            min(s_1.retry_at) FILTER (WHERE (s_1.state = 'waiting_for_retry'::text)) AS next_retry_at
           FROM tasker.steps s_1
          WHERE (s_1.task_id = t.task_id)) s);

--
-- Name: VIEW task_summaries; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON VIEW tasker.task_summaries IS 'A task with its steps counted; execution_status says what it is doing';

--
-- Name: task_templates_template_id_seq; Type: SEQUENCE; Schema: tasker; Owner: -
--

ALTER TABLE tasker.task_templates ALTER COLUMN template_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tasker.task_templates_template_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

--
-- Name: task_waiters; Type: TABLE; Schema: tasker; Owner: -
--

CREATE UNLOGGED TABLE tasker.task_waiters (
    task_id bigint NOT NULL,
    channel text NOT NULL,
    until timestamp with time zone NOT NULL,
    CONSTRAINT task_waiters_channel CHECK (((octet_length(channel) >= 1) AND (octet_length(channel) <= 63)))
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='500');

--
-- Name: tasks_task_id_seq; Type: SEQUENCE; Schema: tasker; Owner: -
--

ALTER TABLE tasker.tasks ALTER COLUMN task_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tasker.tasks_task_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

--
-- Name: webhook_failures; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.webhook_failures (
    webhook text NOT NULL,
    event_id bigint NOT NULL,
    event jsonb NOT NULL,
    tries integer NOT NULL,
    failure text NOT NULL,
    failed_at timestamp with time zone DEFAULT now() NOT NULL,
    again boolean DEFAULT false NOT NULL
);

--
-- Name: webhooks; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.webhooks (
    name text NOT NULL,
    url text NOT NULL,
    patterns text[] NOT NULL,
    secret_env text NOT NULL,
    changed_at timestamp with time zone DEFAULT now() NOT NULL,
    changed_by text,
    CONSTRAINT webhooks_name_check CHECK ((name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'::text))
);

--
-- Name: worker_fences; Type: TABLE; Schema: tasker; Owner: -
--

CREATE TABLE tasker.worker_fences (
    worker_id bigint NOT NULL,
    lane smallint NOT NULL
);

--
-- Name: TABLE worker_fences; Type: COMMENT; Schema: tasker; Owner: -
--

COMMENT ON TABLE tasker.worker_fences IS 'Rows that a living worker locks while it writes, and that are gone when it is dead';

--
-- Name: workers_worker_id_seq; Type: SEQUENCE; Schema: tasker; Owner: -
--

ALTER TABLE tasker.workers ALTER COLUMN worker_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME tasker.workers_worker_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

--
-- Name: events_default; Type: TABLE ATTACH; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.events ATTACH PARTITION tasker.events_default DEFAULT;

--
-- Name: events event_id; Type: DEFAULT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.events ALTER COLUMN event_id SET DEFAULT nextval('tasker.events_event_id_seq'::regclass);

--
-- Name: river_job id; Type: DEFAULT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.river_job ALTER COLUMN id SET DEFAULT nextval('tasker.river_job_id_seq'::regclass);

--
-- Name: river_notification id; Type: DEFAULT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.river_notification ALTER COLUMN id SET DEFAULT nextval('tasker.river_notification_id_seq'::regclass);

--
-- Name: dead_letters dead_letters_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY (dead_letter_id);

--
-- Name: dispatches dispatches_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.dispatches
    ADD CONSTRAINT dispatches_pkey PRIMARY KEY (step_id);

--
-- Name: duties duties_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.duties
    ADD CONSTRAINT duties_pkey PRIMARY KEY (name);

--
-- Name: event_days event_days_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.event_days
    ADD CONSTRAINT event_days_pkey PRIMARY KEY (partition);

--
-- Name: event_sleepers event_sleepers_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.event_sleepers
    ADD CONSTRAINT event_sleepers_pkey PRIMARY KEY (name);

--
-- Name: event_subscribers event_subscribers_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.event_subscribers
    ADD CONSTRAINT event_subscribers_pkey PRIMARY KEY (name);

--
-- Name: events_default events_default_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.events_default
    ADD CONSTRAINT events_default_pkey PRIMARY KEY (event_id);

--
-- Name: gate_slots gate_slots_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.gate_slots
    ADD CONSTRAINT gate_slots_pkey PRIMARY KEY (step_id, gate_id);

--
-- Name: gate_waiters gate_waiters_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.gate_waiters
    ADD CONSTRAINT gate_waiters_pkey PRIMARY KEY (step_id);

--
-- Name: gates gates_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.gates
    ADD CONSTRAINT gates_pkey PRIMARY KEY (gate_id);

--
-- Name: gates gates_scope_name_key; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.gates
    ADD CONSTRAINT gates_scope_name_key UNIQUE (scope, name);

--
-- Name: processes processes_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.processes
    ADD CONSTRAINT processes_pkey PRIMARY KEY (process_id);

--
-- Name: river_job river_job_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.river_job
    ADD CONSTRAINT river_job_pkey PRIMARY KEY (id);

--
-- Name: river_leader river_leader_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.river_leader
    ADD CONSTRAINT river_leader_pkey PRIMARY KEY (name);

--
-- Name: river_migration river_migration_pkey1; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.river_migration
    ADD CONSTRAINT river_migration_pkey1 PRIMARY KEY (line, version);

--
-- Name: river_notification river_notification_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.river_notification
    ADD CONSTRAINT river_notification_pkey PRIMARY KEY (id);

--
-- Name: river_queue river_queue_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.river_queue
    ADD CONSTRAINT river_queue_pkey PRIMARY KEY (name);

--
-- Name: schema_migrations schema_migrations_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.schema_migrations
    ADD CONSTRAINT schema_migrations_pkey PRIMARY KEY (version);

--
-- Name: stats_errors stats_errors_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.stats_errors
    ADD CONSTRAINT stats_errors_pkey PRIMARY KEY (span, since, template_id, "position", fingerprint);

--
-- Name: stats stats_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.stats
    ADD CONSTRAINT stats_pkey PRIMARY KEY (span, since, template_id, "position", measure, bucket);

--
-- Name: stats_progress stats_progress_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.stats_progress
    ADD CONSTRAINT stats_progress_pkey PRIMARY KEY (one);

--
-- Name: stats_slowest stats_slowest_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.stats_slowest
    ADD CONSTRAINT stats_slowest_pkey PRIMARY KEY (since, template_id, "position", seconds, task_id);

--
-- Name: steps steps_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.steps
    ADD CONSTRAINT steps_pkey PRIMARY KEY (step_id);

--
-- Name: task_templates task_templates_namespace_name_version_key; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.task_templates
    ADD CONSTRAINT task_templates_namespace_name_version_key UNIQUE (namespace, name, version);

--
-- Name: task_templates task_templates_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.task_templates
    ADD CONSTRAINT task_templates_pkey PRIMARY KEY (template_id);

--
-- Name: task_waiters task_waiters_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.task_waiters
    ADD CONSTRAINT task_waiters_pkey PRIMARY KEY (task_id, channel);

--
-- Name: tasks tasks_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.tasks
    ADD CONSTRAINT tasks_pkey PRIMARY KEY (task_id);

--
-- Name: template_steps template_steps_name_template_id_key; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.template_steps
    ADD CONSTRAINT template_steps_name_template_id_key UNIQUE (name, template_id);

--
-- Name: template_steps template_steps_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.template_steps
    ADD CONSTRAINT template_steps_pkey PRIMARY KEY (template_id, "position");

--
-- Name: webhook_failures webhook_failures_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.webhook_failures
    ADD CONSTRAINT webhook_failures_pkey PRIMARY KEY (webhook, event_id);

--
-- Name: webhooks webhooks_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.webhooks
    ADD CONSTRAINT webhooks_pkey PRIMARY KEY (name);

--
-- Name: worker_fences worker_fences_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.worker_fences
    ADD CONSTRAINT worker_fences_pkey PRIMARY KEY (worker_id, lane);

--
-- Name: workers workers_client_id_key; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.workers
    ADD CONSTRAINT workers_client_id_key UNIQUE (client_id);

--
-- Name: workers workers_pkey; Type: CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (worker_id);

--
-- Name: dead_letters_of_task; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX dead_letters_of_task ON tasker.dead_letters USING btree (task_id, dead_letter_id);

--
-- Name: dead_letters_open; Type: INDEX; Schema: tasker; Owner: -
--

CREATE UNIQUE INDEX dead_letters_open ON tasker.dead_letters USING btree (task_id) WHERE (resolved_at IS NULL);

--
-- Name: dispatches_of_task; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX dispatches_of_task ON tasker.dispatches USING btree (task_id);

--
-- Name: event_sleepers_until; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX event_sleepers_until ON tasker.event_sleepers USING btree (until);

--
-- Name: events_of_task; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX events_of_task ON ONLY tasker.events USING btree (task_id, event_id);

--
-- Name: events_default_task_id_event_id_idx; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX events_default_task_id_event_id_idx ON tasker.events_default USING btree (task_id, event_id);

--
-- Name: gate_slots_of_gate; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX gate_slots_of_gate ON tasker.gate_slots USING btree (gate_id);

--
-- Name: gate_waiters_admitted; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX gate_waiters_admitted ON tasker.gate_waiters USING btree (gate_id, admitted_until) WHERE (admitted_until IS NOT NULL);

--
-- Name: gate_waiters_in_line; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX gate_waiters_in_line ON tasker.gate_waiters USING btree (gate_id, rank, step_id) WHERE (admitted_until IS NULL);

--
-- Name: gate_waiters_of_task; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX gate_waiters_of_task ON tasker.gate_waiters USING btree (task_id);

--
-- Name: river_job_later; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX river_job_later ON tasker.river_job USING btree (scheduled_at) WHERE (state = ANY (ARRAY['retryable'::tasker.river_job_state, 'scheduled'::tasker.river_job_state]));

--
-- Name: river_job_of_task; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX river_job_of_task ON tasker.river_job USING btree ((((args ->> 'task_id'::text))::bigint)) WHERE ((kind = 'task_execution'::text) AND (state = ANY (ARRAY['available'::tasker.river_job_state, 'scheduled'::tasker.river_job_state, 'retryable'::tasker.river_job_state])));

--
-- Name: river_job_prioritized_fetching_index; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX river_job_prioritized_fetching_index ON tasker.river_job USING btree (state, queue, priority, scheduled_at, id);

--
-- Name: river_job_state_and_finalized_at_index; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX river_job_state_and_finalized_at_index ON tasker.river_job USING btree (state, finalized_at) WHERE (finalized_at IS NOT NULL);

--
-- Name: river_job_unique_idx; Type: INDEX; Schema: tasker; Owner: -
--

CREATE UNIQUE INDEX river_job_unique_idx ON tasker.river_job USING btree (unique_key) WHERE ((unique_key IS NOT NULL) AND (unique_states IS NOT NULL) AND tasker.river_job_state_in_bitmask(unique_states, state));

--
-- Name: river_notification_created_at_idx; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX river_notification_created_at_idx ON tasker.river_notification USING btree (created_at);

--
-- Name: river_notification_topic_id_idx; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX river_notification_topic_id_idx ON tasker.river_notification USING btree (topic, id);

--
-- Name: steps_of_task; Type: INDEX; Schema: tasker; Owner: -
--

CREATE UNIQUE INDEX steps_of_task ON tasker.steps USING btree (task_id, "position");

--
-- Name: task_templates_with_schema; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX task_templates_with_schema ON tasker.task_templates USING btree (template_id) WHERE (context_schema IS NOT NULL);

--
-- Name: task_waiters_until; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX task_waiters_until ON tasker.task_waiters USING btree (until);

--
-- Name: tasks_correlation; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX tasks_correlation ON tasker.tasks USING btree (correlation_id) WHERE (correlation_id IS NOT NULL);

--
-- Name: tasks_deadline; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX tasks_deadline ON tasker.tasks USING btree (deadline) WHERE ((deadline IS NOT NULL) AND (state = ANY (ARRAY['pending'::text, 'in_progress'::text])));

--
-- Name: tasks_failed; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX tasks_failed ON tasker.tasks USING btree (finished_at) WHERE (state = 'error'::text);

--
-- Name: tasks_idempotency; Type: INDEX; Schema: tasker; Owner: -
--

CREATE UNIQUE INDEX tasks_idempotency ON tasker.tasks USING btree (namespace, name, idempotency_key) WHERE (idempotency_key IS NOT NULL);

--
-- Name: tasks_open; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX tasks_open ON tasker.tasks USING btree (task_id) WHERE (state = ANY (ARRAY['pending'::text, 'in_progress'::text]));

--
-- Name: tasks_owned; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX tasks_owned ON tasker.tasks USING btree (owner) WHERE (owner IS NOT NULL);

--
-- Name: tasks_parent; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX tasks_parent ON tasker.tasks USING btree (parent_task_id) WHERE (parent_task_id IS NOT NULL);

--
-- Name: template_roots; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX template_roots ON tasker.template_steps USING btree (template_id, "position") WHERE (depends_on = '{}'::integer[]);

--
-- Name: template_steps_with_schema; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX template_steps_with_schema ON tasker.template_steps USING btree (template_id) WHERE (result_schema IS NOT NULL);

--
-- Name: webhook_failures_again; Type: INDEX; Schema: tasker; Owner: -
--

CREATE INDEX webhook_failures_again ON tasker.webhook_failures USING btree (webhook, event_id) WHERE again;

--
-- Name: events_default_task_id_event_id_idx; Type: INDEX ATTACH; Schema: tasker; Owner: -
--

ALTER INDEX tasker.events_of_task ATTACH PARTITION tasker.events_default_task_id_event_id_idx;

--
-- Name: tasks check_new_context; Type: TRIGGER; Schema: tasker; Owner: -
--

CREATE TRIGGER check_new_context AFTER UPDATE OF context ON tasker.tasks FOR EACH ROW EXECUTE FUNCTION tasker.check_new_context();

--
-- Name: tasks expand_tasks; Type: TRIGGER; Schema: tasker; Owner: -
--

CREATE TRIGGER expand_tasks AFTER INSERT ON tasker.tasks REFERENCING NEW TABLE AS new_tasks FOR EACH STATEMENT EXECUTE FUNCTION tasker.expand_tasks();

--
-- Name: steps leave_gates; Type: TRIGGER; Schema: tasker; Owner: -
--

CREATE TRIGGER leave_gates AFTER UPDATE ON tasker.steps FOR EACH ROW WHEN ((old.gated AND (old.state <> new.state))) EXECUTE FUNCTION tasker.leave_gates();

--
-- Name: workers make_fences; Type: TRIGGER; Schema: tasker; Owner: -
--

CREATE TRIGGER make_fences AFTER INSERT ON tasker.workers FOR EACH ROW WHEN ((new.state = 'alive'::text)) EXECUTE FUNCTION tasker.make_fences();

--
-- Name: tasks prepare_task; Type: TRIGGER; Schema: tasker; Owner: -
--

CREATE TRIGGER prepare_task BEFORE INSERT ON tasker.tasks FOR EACH ROW EXECUTE FUNCTION tasker.prepare_task();

--
-- Name: tasks refuse_priority; Type: TRIGGER; Schema: tasker; Owner: -
--

CREATE TRIGGER refuse_priority AFTER UPDATE OF priority ON tasker.tasks FOR EACH ROW WHEN (((new.priority < 1) OR (new.priority > 4))) EXECUTE FUNCTION tasker.refuse_priority();

--
-- Name: steps refuse_transition; Type: TRIGGER; Schema: tasker; Owner: -
--

CREATE TRIGGER refuse_transition AFTER UPDATE ON tasker.steps FOR EACH ROW WHEN (((old.state <> new.state) AND (NOT (((old.state = 'pending'::text) AND (new.state = ANY (ARRAY['in_progress'::text, 'enqueued'::text]))) OR ((old.state = 'enqueued'::text) AND (new.state = 'in_progress'::text)) OR ((old.state = 'in_progress'::text) AND (new.state = 'complete'::text)))) AND (NOT tasker.step_may_become(old.state, new.state)))) EXECUTE FUNCTION tasker.refuse_transition();

--
-- Name: tasks refuse_transition; Type: TRIGGER; Schema: tasker; Owner: -
--

CREATE TRIGGER refuse_transition AFTER UPDATE ON tasker.tasks FOR EACH ROW WHEN (((old.state <> new.state) AND (NOT (((old.state = 'pending'::text) AND (new.state = 'in_progress'::text)) OR ((old.state = 'in_progress'::text) AND (new.state = 'complete'::text)))) AND (NOT tasker.task_may_become(old.state, new.state)))) EXECUTE FUNCTION tasker.refuse_transition();

--
-- Name: events ring; Type: TRIGGER; Schema: tasker; Owner: -
--

CREATE TRIGGER ring AFTER INSERT ON tasker.events REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION tasker.ring();

--
-- Name: tasks wake_admitted; Type: TRIGGER; Schema: tasker; Owner: -
--

CREATE TRIGGER wake_admitted AFTER UPDATE OF owner ON tasker.tasks FOR EACH ROW WHEN (((old.owner IS NOT NULL) AND (new.owner IS NULL) AND (new.state = 'in_progress'::text) AND (new.paused_at IS NULL))) EXECUTE FUNCTION tasker.wake_admitted();

--
-- Name: template_steps template_steps_template_id_fkey; Type: FK CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.template_steps
    ADD CONSTRAINT template_steps_template_id_fkey FOREIGN KEY (template_id) REFERENCES tasker.task_templates(template_id) ON DELETE CASCADE;

--
-- Name: webhook_failures webhook_failures_webhook_fkey; Type: FK CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.webhook_failures
    ADD CONSTRAINT webhook_failures_webhook_fkey FOREIGN KEY (webhook) REFERENCES tasker.webhooks(name) ON DELETE CASCADE;

--
-- Name: worker_fences worker_fences_worker_id_fkey; Type: FK CONSTRAINT; Schema: tasker; Owner: -
--

ALTER TABLE ONLY tasker.worker_fences
    ADD CONSTRAINT worker_fences_worker_id_fkey FOREIGN KEY (worker_id) REFERENCES tasker.workers(worker_id) ON DELETE CASCADE;

--
-- PostgreSQL database dump complete
--

