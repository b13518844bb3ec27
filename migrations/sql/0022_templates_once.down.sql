CREATE OR REPLACE FUNCTION tasker.prepare_task() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    template record;
    known    text;
    unknown  text;
BEGIN
    IF NEW.version IS NULL THEN
        SELECT t.template_id, t.version, t.idempotency, t.context_defaults, t.used_at, t.deadline_seconds INTO template FROM tasker.task_templates t
        WHERE t.namespace = NEW.namespace AND t.name = NEW.name
        ORDER BY t.version_key DESC LIMIT 1;
    ELSE
        SELECT t.template_id, t.version, t.idempotency, t.context_defaults, t.used_at, t.deadline_seconds INTO template FROM tasker.task_templates t
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
    IF NEW.bypass_steps IS NULL THEN
        NEW.bypass_steps := '{}';
    END IF;
    IF cardinality(NEW.bypass_steps) > 0 THEN
        SELECT b INTO unknown FROM unnest(NEW.bypass_steps) b
        WHERE NOT EXISTS (SELECT FROM tasker.template_steps s WHERE s.template_id = template.template_id AND s.name = b) LIMIT 1;
        IF FOUND THEN
            SELECT string_agg(s.name, ', ' ORDER BY s.position) INTO known FROM tasker.template_steps s WHERE s.template_id = template.template_id;
            RAISE EXCEPTION 'bypass_steps names %, which is no step of %/%@%; its steps are: %',
                coalesce(unknown, 'NULL'), NEW.namespace, NEW.name, template.version, known USING ERRCODE = 'TK003';
        END IF;
    END IF;
    IF NEW.idempotency_key IS NULL AND template.idempotency = 'context' THEN
        NEW.idempotency_key := tasker.context_key(NEW.context);
    END IF;
    IF template.context_defaults THEN -- after the key: that is of the document as it came
        NEW.context := tasker.with_defaults((SELECT t.context_schema FROM tasker.task_templates t WHERE t.template_id = template.template_id), NEW.context);
    END IF;
    IF template.used_at IS NULL THEN
        -- Freezes the template. Waits for a registration that is replacing it.
        UPDATE tasker.task_templates t SET used_at = now() WHERE t.template_id = template.template_id AND t.used_at IS NULL;
    END IF;
    IF template.deadline_seconds IS NOT NULL AND NEW.deadline IS NULL THEN
        NEW.deadline := greatest(now(), NEW.run_at) + make_interval(secs => template.deadline_seconds);
    END IF;
    IF NEW.carrier IS NOT NULL AND (jsonb_typeof(NEW.carrier) <> 'object' OR pg_column_size(NEW.carrier) > 65536) THEN
        RAISE EXCEPTION 'the carrier of a task is a JSON object of at most 64 KiB, not % of % bytes',
            CASE WHEN jsonb_typeof(NEW.carrier) = 'object' THEN 'one' ELSE jsonb_typeof(NEW.carrier) END, pg_column_size(NEW.carrier)
        USING ERRCODE = 'TK003', HINT = 'it is for what travels with the task; what the task is about belongs into its context';
    END IF;
    -- River can't read others, and infinity least of all.
    IF NEW.deadline NOT BETWEEN '0001-01-02 00:00:00+00' AND '9999-12-30 00:00:00+00' THEN
        RAISE EXCEPTION 'deadline of a task is a time in the years 1 to 9999, not %', to_jsonb(NEW) ->> 'deadline'
        USING ERRCODE = 'TK003', HINT = 'leave deadline out for a task that has none; pause a task that shall not start';
    END IF;
    IF NEW.run_at NOT BETWEEN '0001-01-02 00:00:00+00' AND '9999-12-30 00:00:00+00' THEN
        RAISE EXCEPTION 'run_at of a task is a time in the years 1 to 9999, not %', to_jsonb(NEW) ->> 'run_at'
        USING ERRCODE = 'TK003', HINT = 'leave run_at out for a task that has none; pause a task that shall not start';
    END IF;
    NEW.template_id := template.template_id;
    NEW.version     := template.version;
    -- What nobody should give. Asked first: each assignment costs as much as all of the questions.
    IF NEW.state <> 'pending' OR NEW.state IS NULL OR NEW.priority IS NULL OR NEW.error IS NOT NULL OR NEW.owner IS NOT NULL OR NEW.paused_at IS NOT NULL
       OR NEW.epoch <> 0 OR NEW.epoch IS NULL OR NEW.created_at IS DISTINCT FROM now() OR NEW.started_at IS NOT NULL OR NEW.finished_at IS NOT NULL THEN
        NEW.state       := 'pending';
        NEW.priority    := coalesce(NEW.priority, 2);
        NEW.error       := NULL;
        NEW.owner       := NULL;
        NEW.paused_at   := NULL;
        NEW.epoch       := 0;
        NEW.created_at  := now();
        NEW.started_at  := NULL;
        NEW.finished_at := NULL;
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION tasker.expand_tasks() RETURNS trigger
LANGUAGE plpgsql
SET jit = off AS $$
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
