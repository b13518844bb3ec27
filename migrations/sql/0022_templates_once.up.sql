-- tasker: a template is found once per INSERT.
--
-- Where many tasks are inserted at once, looking for the template was a quarter
-- of what each of them costs.

-- tasker.template is the template of the row before, for the rows of one INSERT:
-- expand_tasks, which comes after the last of them, forgets it, and so does a
-- statement that fails. It holds what was asked for, as literals, then what was
-- found, such as "'shop','fulfil_order',NULL:17:1.2.0"; only of templates for whose
-- tasks there is nothing else to do. Who sets it by hand may insert tasks anyway,
-- of any template.
CREATE OR REPLACE FUNCTION tasker.prepare_task() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    found_id      bigint;
    found_version text;
    key_of        text;
    seconds       double precision;
    has_defaults  boolean;
    unused        boolean;
    known         text;
    unknown       text;
    carried       int;
    asked         text := concat(quote_nullable(NEW.namespace), ',', quote_nullable(NEW.name), ',', quote_nullable(NEW.version), ':');
    before        text := current_setting('tasker.template', true);
BEGIN
    IF starts_with(before, asked) THEN
        before        := substr(before, length(asked) + 1);
        found_id      := split_part(before, ':', 1);
        found_version := split_part(before, ':', 2);
    ELSIF NEW.version IS NULL THEN
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
    IF NOT (unused OR has_defaults OR seconds IS NOT NULL OR key_of IS NOT DISTINCT FROM 'context') THEN
        before := set_config('tasker.template', concat(asked, found_id, ':', found_version), true);
    END IF;
    IF (jsonb_typeof(NEW.context) = 'object' AND pg_column_size(NEW.context) <= 1048576 AND NEW.priority BETWEEN 1 AND 4) IS NOT TRUE THEN
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
    END IF;
    IF key_of = 'context' AND NEW.idempotency_key IS NULL THEN
        NEW.idempotency_key := tasker.context_key(NEW.context);
    END IF;
    IF has_defaults THEN -- after the key: that is of the document as it came
        SELECT tasker.with_defaults(t.context_schema, NEW.context) INTO NEW.context FROM tasker.task_templates t WHERE t.template_id = found_id;
    END IF;
    IF unused THEN
        -- Freezes the template. Waits for a registration that is replacing it.
        UPDATE tasker.task_templates t SET used_at = now() WHERE t.template_id = found_id AND t.used_at IS NULL;
    END IF;
    IF seconds IS NOT NULL OR NEW.run_at IS NOT NULL OR NEW.deadline IS NOT NULL OR NEW.carrier IS NOT NULL THEN
        NEW.deadline := coalesce(NEW.deadline, greatest(now(), NEW.run_at) + make_interval(secs => seconds));
        carried := pg_column_size(NEW.carrier);
        IF jsonb_typeof(NEW.carrier) <> 'object' OR carried > 65536 THEN
            RAISE EXCEPTION 'the carrier of a task is a JSON object of at most 64 KiB, not % of % bytes',
                CASE WHEN jsonb_typeof(NEW.carrier) = 'object' THEN 'one' ELSE jsonb_typeof(NEW.carrier) END, carried
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
    NEW.template_id := found_id;
    NEW.version     := found_version;
    RETURN NEW;
END $$;

-- As it was, but for what it forgets.
CREATE OR REPLACE FUNCTION tasker.expand_tasks() RETURNS trigger
LANGUAGE plpgsql
SET jit = off AS $$
DECLARE
    bypassed boolean;
    due      boolean;
    tasks    int;
    task     bigint; -- one of them
    template text := set_config('tasker.template', '', true); -- see prepare_task
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
