-- tasker: an idempotency key is unique over databases and restores.
--
-- "tasker-step-5" was unique in one database's one history. Two databases collided from
-- the first step on, and after a restore from a backup a new order got the key of an old
-- charge: the gateway answered with the other order's charge. A task gets a random number
-- when it is inserted, which is part of the keys of its steps: it stays the same over all
-- attempts, and over a restore. A new context gets a new one, as another amount is another
-- charge.

-- Tasks that there are keep their keys.
ALTER TABLE tasker.tasks ADD COLUMN key_seed bigint;
COMMENT ON COLUMN tasker.tasks.key_seed IS 'random; part of the idempotency keys of its steps. NULL: made before 0051';

CREATE FUNCTION tasker.idempotency_key(key_seed bigint, step_id bigint) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN key_seed IS NULL THEN 'tasker-step-' || step_id::text ELSE 'tasker-' || lpad(to_hex(key_seed), 12, '0') || '-' || step_id::text END;
COMMENT ON FUNCTION tasker.idempotency_key(key_seed bigint, step_id bigint) IS 'The key that a step passes to the service it calls: the same for all attempts, another in every other database';

DROP FUNCTION tasker.claim_tasks(bigint, bigint[], bigint[], bigint, bytea);
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
COMMENT ON FUNCTION tasker.claim_tasks(worker bigint, ids bigint[], opening bigint[], gates_seen bigint, ticket_key bytea) IS 'The worker becomes owner of those tasks that are free and due. ids: ascending, each once. fresh: the ids of the steps, by position, of a task that no loop has touched; begun: their roots have been claimed too, as their template is one of those that are opening, with tickets made of ticket_key; due_in, with epoch NULL: seconds until the run_at of a task that was left alone';

DROP FUNCTION tasker.start_attempts(bigint[], integer[], bigint, bigint, bigint[]);
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
COMMENT ON FUNCTION tasker.start_attempts(step_ids bigint[], attempts integer[], process_id bigint, secret bigint, tickets bigint[]) IS 'Starts attempts that the engine has dispatched, all that may start: one row for each, in the order of the question. tickets: from the Sidekiq job. secret: any number that only the caller knows, NULL: one is made; reports and heartbeats must show it, and the same call may be repeated with it';

CREATE OR REPLACE FUNCTION tasker.prepare_task() RETURNS trigger
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
        SELECT string_agg(n, ', ') INTO known FROM (
            SELECT DISTINCT t.namespace || '/' || t.name AS n FROM tasker.task_templates t ORDER BY n LIMIT 50) names;
        RAISE EXCEPTION 'there is no template %/%; registered are: %',
            NEW.namespace, NEW.name, coalesce(known, 'none')
        USING ERRCODE = 'TK001', HINT = 'register it: tasker template register FOLDER';
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

CREATE OR REPLACE FUNCTION tasker.start_attempt(step_id bigint, attempt integer, process_id bigint DEFAULT NULL::bigint, ticket bigint DEFAULT NULL::bigint) RETURNS jsonb
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

CREATE OR REPLACE FUNCTION tasker.replace_context(task bigint, new_context jsonb, who text, why text) RETURNS void
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
