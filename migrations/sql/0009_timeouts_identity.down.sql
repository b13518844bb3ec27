DROP VIEW tasker.event_log;
DROP FUNCTION tasker.retry_step(bigint, text, text, jsonb), tasker.expire_tasks(int), tasker.record_progress(bigint, bigint[], int[], text[]), tasker.heartbeat(bigint, int, jsonb),
    tasker.enqueue_task(text, text, jsonb, text, smallint, timestamptz, text, text, text, text[], text, text, text, text[], timestamptz, bigint);

CREATE OR REPLACE FUNCTION tasker.register_template(
    namespace text, name text, version text, description text,
    definition jsonb, checksum text, max_parallel_steps int, steps jsonb)
RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    known    tasker.task_templates;
    inserted bigint;
BEGIN
    INSERT INTO tasker.task_templates AS t (namespace, name, version, description, definition, checksum, max_parallel_steps)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT ON CONSTRAINT task_templates_namespace_name_version_key DO NOTHING
    RETURNING t.template_id INTO inserted;

    IF inserted IS NULL THEN
        SELECT t.* INTO known FROM tasker.task_templates t
        WHERE t.namespace = $1 AND t.name = $2 AND t.version = $3 FOR UPDATE;
        IF known.checksum = $6 THEN
            RETURN 'unchanged';
        END IF;
        IF known.used_at IS NOT NULL THEN
            RAISE EXCEPTION 'template %/%@% has changed, but tasks have used this version since %',
                $1, $2, $3, to_char(known.used_at, 'YYYY-MM-DD HH24:MI')
            USING ERRCODE = 'TK002', HINT = 'give the changed template a new version; running tasks keep the old one';
        END IF;
        -- used_at is still null and the row is locked: the first insert of a
        -- task, which sets it, waits for us and then sees the new steps.
        UPDATE tasker.task_templates t
        SET description = $4, definition = $5, checksum = $6, max_parallel_steps = $7, registered_at = now()
        WHERE t.template_id = known.template_id;
        DELETE FROM tasker.template_steps s WHERE s.template_id = known.template_id;
    END IF;

    INSERT INTO tasker.template_steps
        (template_id, position, name, handler_class, handler, queue, depends_on, attempt_limit, timeout_seconds, handler_config, result_schema)
    SELECT coalesce(inserted, known.template_id), s.position, s.name, s.handler_class, s.handler,
           coalesce(s.queue, 'default'), coalesce(s.depends_on, '{}'), s.attempt_limit, s.timeout_seconds,
           coalesce(s.handler_config, '{}'), s.result_schema
    FROM jsonb_to_recordset($8) AS s(position int, name text, handler_class text, handler text, queue text,
                                    depends_on int[], attempt_limit int, timeout_seconds double precision, handler_config jsonb,
                                    result_schema jsonb);
    RETURN CASE WHEN inserted IS NULL THEN 'replaced' ELSE 'registered' END;
END $$;

CREATE OR REPLACE FUNCTION tasker.prepare_task() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    template tasker.task_templates;
    known    text;
    unknown  text;
BEGIN
    IF NEW.version IS NULL THEN
        SELECT t.* INTO template FROM tasker.task_templates t
        WHERE t.namespace = NEW.namespace AND t.name = NEW.name
        ORDER BY t.version_key DESC LIMIT 1;
    ELSE
        SELECT t.* INTO template FROM tasker.task_templates t
        WHERE t.namespace = NEW.namespace AND t.name = NEW.name AND t.version = NEW.version;
    END IF;
    IF NOT FOUND THEN
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
    IF jsonb_typeof(NEW.context) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'the context of a task must be a JSON object, not %', coalesce(jsonb_typeof(NEW.context), 'NULL')
        USING ERRCODE = 'TK003', HINT = 'wrap the value: {"value": …}';
    END IF;
    IF pg_column_size(NEW.context) > 1048576 THEN
        RAISE EXCEPTION 'the context of a task may have 1 MiB, this one has % bytes', pg_column_size(NEW.context)
        USING ERRCODE = 'TK003', HINT = 'store the data and put a reference to it into the context';
    END IF;
    IF NEW.priority NOT BETWEEN 1 AND 4 THEN
        RAISE EXCEPTION 'the priority of a task is a number from 1, which goes first, to 4, not %', NEW.priority USING ERRCODE = 'TK003';
    END IF;
    NEW.bypass_steps := coalesce(NEW.bypass_steps, '{}');
    IF cardinality(NEW.bypass_steps) > 0 THEN
        SELECT b INTO unknown FROM unnest(NEW.bypass_steps) b
        WHERE NOT EXISTS (SELECT FROM tasker.template_steps s WHERE s.template_id = template.template_id AND s.name = b) LIMIT 1;
        IF FOUND THEN
            SELECT string_agg(s.name, ', ' ORDER BY s.position) INTO known FROM tasker.template_steps s WHERE s.template_id = template.template_id;
            RAISE EXCEPTION 'bypass_steps names %, which is no step of %/%@%; its steps are: %',
                coalesce(unknown, 'NULL'), template.namespace, template.name, template.version, known USING ERRCODE = 'TK003';
        END IF;
    END IF;
    IF template.used_at IS NULL THEN
        -- Freezes the template. Waits for a registration that is replacing it.
        UPDATE tasker.task_templates t SET used_at = now() WHERE t.template_id = template.template_id AND t.used_at IS NULL;
    END IF;
    NEW.template_id := template.template_id;
    NEW.version     := template.version;
    NEW.state       := 'pending';
    NEW.priority    := coalesce(NEW.priority, 2);
    NEW.error       := NULL;
    NEW.owner       := NULL;
    NEW.paused_at   := NULL;
    NEW.epoch       := 0;
    NEW.created_at  := now();
    NEW.started_at  := NULL;
    NEW.finished_at := NULL;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION tasker.expand_tasks() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tasker.steps (task_id, position, name, state, finished_at)
    SELECT n.task_id, s.position, s.name,
           CASE WHEN s.name = ANY (n.bypass_steps) THEN 'skipped' ELSE 'pending' END,
           CASE WHEN s.name = ANY (n.bypass_steps) THEN now() END
    FROM new_tasks n JOIN tasker.template_steps s USING (template_id)
    ORDER BY n.task_id, s.position;

    INSERT INTO tasker.events (task_id, name)
    SELECT task_id, 'task.initialize_requested' FROM new_tasks ORDER BY task_id;
    IF EXISTS (SELECT FROM new_tasks WHERE bypass_steps <> '{}') THEN
        INSERT INTO tasker.events (task_id, step_id, name, data)
        SELECT s.task_id, s.step_id, 'step.skipped', '{"reason": "bypassed at enqueue"}'
        FROM new_tasks n JOIN tasker.steps s USING (task_id)
        WHERE n.bypass_steps <> '{}' AND s.state = 'skipped' ORDER BY s.step_id;
    END IF;

    INSERT INTO tasker.river_job (kind, args, queue, priority, max_attempts, state, scheduled_at)
    SELECT 'task_execution', jsonb_build_object('task_id', task_id), 'default', priority, 1000,
           tasker.river_state(run_at), coalesce(run_at, now())
    FROM new_tasks ORDER BY task_id;

    IF EXISTS (SELECT FROM new_tasks WHERE run_at IS NULL OR run_at <= now()) THEN
        PERFORM tasker.notify_river();
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION tasker.enqueue_task(
    namespace text, name text, context jsonb DEFAULT '{}', version text DEFAULT NULL,
    priority smallint DEFAULT NULL, run_at timestamptz DEFAULT NULL,
    idempotency_key text DEFAULT NULL, on_duplicate text DEFAULT 'return_existing',
    correlation_id text DEFAULT NULL, tags text[] DEFAULT '{}',
    initiator text DEFAULT NULL, source_system text DEFAULT NULL, reason text DEFAULT NULL,
    bypass_steps text[] DEFAULT '{}')
RETURNS bigint
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    id bigint;
BEGIN
    IF on_duplicate IS NULL OR on_duplicate NOT IN ('return_existing', 'refuse') THEN
        RAISE EXCEPTION 'on_duplicate must be return_existing or refuse, not %', coalesce(on_duplicate, 'NULL')
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO tasker.tasks AS t (namespace, name, version, context, priority, run_at, idempotency_key,
                                   correlation_id, tags, initiator, source_system, reason, bypass_steps)
    VALUES ($1, $2, $4, $3, coalesce($5, 2::smallint), $6, $7, $9, coalesce($10, '{}'), $11, $12, $13, coalesce($14, '{}'))
    ON CONFLICT (namespace, name, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING t.task_id INTO id;

    IF id IS NULL THEN
        SELECT t.task_id INTO id FROM tasker.tasks t
        WHERE t.namespace = $1 AND t.name = $2 AND t.idempotency_key = $7;
        IF id IS NULL THEN
            RAISE EXCEPTION 'task %/% with idempotency key % was inserted by a transaction that this one cannot see', $1, $2, $7
            USING ERRCODE = 'serialization_failure', HINT = 'run the transaction again';
        ELSIF on_duplicate = 'refuse' THEN
            RAISE EXCEPTION 'task % of %/% has the idempotency key % already', id, $1, $2, $7
            USING ERRCODE = 'unique_violation';
        END IF;
    END IF;
    RETURN id;
END $$;

CREATE OR REPLACE FUNCTION tasker.start_attempt(step_id bigint, attempt int, process_id bigint DEFAULT NULL) RETURNS jsonb
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

CREATE OR REPLACE FUNCTION tasker.reap_attempts(silence interval) RETURNS int
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

CREATE OR REPLACE FUNCTION tasker.retry_task(task bigint, who text DEFAULT NULL, why text DEFAULT NULL, new_context jsonb DEFAULT NULL) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
    n int;
BEGIN
    IF t.state <> 'error' THEN
        RAISE EXCEPTION 'task % is %: only a task in error can be retried', task, t.state USING ERRCODE = 'TK008';
    END IF;
    IF new_context IS NOT NULL THEN
        IF jsonb_typeof(new_context) <> 'object' THEN
            RAISE EXCEPTION 'the context of a task must be a JSON object, not %', jsonb_typeof(new_context) USING ERRCODE = 'TK003';
        END IF;
        IF pg_column_size(new_context) > 1048576 THEN
            RAISE EXCEPTION 'the context of a task may have 1 MiB, this one has % bytes', pg_column_size(new_context) USING ERRCODE = 'TK003';
        END IF;
        UPDATE tasker.tasks u SET context = new_context WHERE u.task_id = task;
    END IF;
    n := tasker.reset_steps(task, ARRAY(SELECT s.step_id FROM tasker.steps s WHERE s.task_id = task AND s.state = 'error' ORDER BY s.step_id FOR UPDATE), who, why);
    IF n = 0 THEN
        RAISE EXCEPTION 'task % has no step in error: it failed because steps were cancelled; resolve the task, or cancel it', task USING ERRCODE = 'TK008';
    END IF;
    PERFORM tasker.reopen_task(task, who, why);
    RETURN n;
END $$;

CREATE OR REPLACE FUNCTION tasker.reopen_task(task bigint, who text, why text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tasker.tasks u SET state = 'in_progress', finished_at = NULL, error = NULL WHERE u.task_id = task AND u.state = 'error';
    IF FOUND THEN
        PERFORM tasker.record_verb(task, NULL, 'task.retry_requested', who, why);
    END IF;
    PERFORM tasker.poke_task(task);
END $$;

CREATE OR REPLACE FUNCTION tasker.retry_step(step bigint, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    s tasker.steps := tasker.lock_step(step);
    t tasker.tasks := tasker.lock_task(s.task_id);
BEGIN
    IF t.state IN ('complete', 'cancelled', 'resolved_manually') THEN
        RAISE EXCEPTION 'step % (%) belongs to task %, which is %', step, s.name, s.task_id, t.state USING ERRCODE = 'TK008';
    ELSIF s.state = 'error' THEN
        PERFORM tasker.reset_steps(s.task_id, ARRAY[step], who, why);
    ELSIF s.state = 'waiting_for_retry' THEN
        UPDATE tasker.steps u SET retry_at = clock_timestamp() WHERE u.step_id = step;
        PERFORM tasker.record_verb(s.task_id, step, 'step.run_now', who, why);
    ELSE
        RAISE EXCEPTION 'step % (%) is %: only one in error, or waiting for its retry, can be retried', step, s.name, s.state USING ERRCODE = 'TK008';
    END IF;
    PERFORM tasker.reopen_task(s.task_id, who, why);
END $$;

DROP FUNCTION tasker.replace_context(bigint, jsonb), tasker.context_key(jsonb);
ALTER TABLE tasker.dispatches DROP COLUMN start_by, DROP COLUMN heartbeat, DROP COLUMN beat_by;
ALTER TABLE tasker.steps DROP COLUMN progress;
ALTER TABLE tasker.tasks DROP COLUMN deadline, DROP COLUMN parent_task_id;
DROP INDEX tasker.tasks_correlation;
ALTER TABLE tasker.template_steps DROP COLUMN schedule_to_start_seconds, DROP COLUMN heartbeat_seconds, DROP COLUMN limit_key;
ALTER TABLE tasker.task_templates DROP COLUMN deadline_seconds, DROP COLUMN idempotency, DROP COLUMN context_defaults;
DROP FUNCTION tasker.has_defaults(jsonb), tasker.with_defaults(jsonb, jsonb);
