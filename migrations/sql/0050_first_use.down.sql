-- A template that has tasks, and that no worker has read yet, is noted as used.
UPDATE tasker.task_templates m SET used_at = now() WHERE m.used_at IS NULL AND EXISTS (SELECT FROM tasker.tasks t WHERE t.template_id = m.template_id);

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
    IF unused THEN
        -- Freezes the template. Waits for a registration that is replacing it.
        UPDATE tasker.task_templates t SET used_at = now() WHERE t.template_id = found_id AND t.used_at IS NULL;
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
    NEW.template_id := found_id;
    NEW.version     := found_version;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION tasker.register_template(namespace text, name text, version text, description text, definition jsonb, checksum text, max_parallel_steps integer, steps jsonb) RETURNS text
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
