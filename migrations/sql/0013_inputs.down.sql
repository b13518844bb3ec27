DROP FUNCTION tasker.retry_step(bigint, text, text, jsonb);
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
    IF n = 0 AND t.error ->> 'code' IS DISTINCT FROM 'task_deadline' THEN
        RAISE EXCEPTION 'task % has no step in error: it failed because steps were cancelled; resolve the task, or cancel it', task USING ERRCODE = 'TK008';
    END IF;
    PERFORM tasker.reopen_task(task, who, why);
    RETURN n;
END $$;

DROP FUNCTION tasker.replace_context(bigint, jsonb);
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
    IF NEW.idempotency_key IS NULL AND template.idempotency = 'context' THEN
        NEW.idempotency_key := tasker.context_key(NEW.context);
    END IF;
    IF template.used_at IS NULL THEN
        -- Freezes the template. Waits for a registration that is replacing it.
        UPDATE tasker.task_templates t SET used_at = now() WHERE t.template_id = template.template_id AND t.used_at IS NULL;
    END IF;
    NEW.template_id := template.template_id;
    NEW.version     := template.version;
    NEW.state       := 'pending';
    NEW.priority    := coalesce(NEW.priority, 2);
    NEW.deadline    := coalesce(NEW.deadline, greatest(now(), NEW.run_at) + make_interval(secs => template.deadline_seconds));
    NEW.error       := NULL;
    NEW.owner       := NULL;
    NEW.paused_at   := NULL;
    NEW.epoch       := 0;
    NEW.created_at  := now();
    NEW.started_at  := NULL;
    NEW.finished_at := NULL;
    RETURN NEW;
END $$;

ALTER TABLE tasker.task_templates DROP COLUMN context_defaults;
DROP FUNCTION tasker.has_defaults(jsonb), tasker.with_defaults(jsonb, jsonb);
