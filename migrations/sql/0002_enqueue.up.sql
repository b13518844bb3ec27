-- tasker: templates and the door that tasks come in by.

-- Puts a template in place. Says what it did: 'registered', 'unchanged' or
-- 'replaced' (same version, changed, and no task had used it). A version that
-- a task has used can't change: tasks keep the template they started with.
CREATE FUNCTION tasker.register_template(
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

-- Finds the template of a new task and refuses what can't become one. What the
-- engine owns is set here, whatever the INSERT says.
CREATE FUNCTION tasker.prepare_task() RETURNS trigger
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

CREATE TRIGGER prepare_task BEFORE INSERT ON tasker.tasks
    FOR EACH ROW EXECUTE FUNCTION tasker.prepare_task();

-- Expands all tasks of one INSERT at once: their steps, their events, a River
-- job for each, one notification. A few statements however many rows came.
CREATE FUNCTION tasker.expand_tasks() RETURNS trigger
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

CREATE TRIGGER expand_tasks AFTER INSERT ON tasker.tasks
    REFERENCING NEW TABLE AS new_tasks
    FOR EACH STATEMENT EXECUTE FUNCTION tasker.expand_tasks();

-- River moves 'scheduled' jobs every 5 seconds; an 'available' job with a time
-- in the near future is taken at the next poll, which is nearer.
CREATE FUNCTION tasker.river_state(due timestamptz) RETURNS tasker.river_job_state
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN due > now() + interval '5 seconds' THEN 'scheduled' ELSE 'available' END::tasker.river_job_state
$$;

-- Wakes the workers when this transaction commits. Channel and payload are
-- River's own, to the letter: equal payloads of a transaction become one. A
-- test holds this against what River's client itself sends.
CREATE FUNCTION tasker.notify_river() RETURNS void
LANGUAGE sql AS $$
    SELECT pg_notify('tasker.river_insert', '{"queue": "default"}')
$$;

-- Asks for a run of each task, after a delay in seconds (0: at once).
CREATE FUNCTION tasker.schedule_runs(task_ids bigint[], delays double precision[]) RETURNS void
LANGUAGE plpgsql AS $$
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

-- The same as INSERT INTO tasker.tasks, for callers who want the latest version
-- and an answer for a repeated idempotency_key: on_duplicate 'return_existing'
-- gives the id of the task that is there, 'refuse' raises unique_violation.
CREATE FUNCTION tasker.enqueue_task(
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
