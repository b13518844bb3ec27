-- tasker: an unknown template is answered with those that look like it, and how many more there are.

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
