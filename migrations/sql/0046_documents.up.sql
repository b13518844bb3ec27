-- tasker: one measure of documents, at every door.
--
-- What is measured is what a reader gets: the text. Stored bytes were: 379 of them,
-- 1,200 numbers such as 1e131071, are 157 MB for each reader, and what Postgres has
-- compressed is larger than it looks.

-- Why a document is refused: 'has 2000000 bytes as text, at most 1048576 are kept'; NULL:
-- it is not. The text is made only where it may be too long: a number that is stored in
-- 12 bytes has 131,072 digits at most, and 16,783 once the first test has passed.
-- contract/documents.json has examples.
CREATE FUNCTION tasker.document_problem(doc jsonb, most int) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE -- not immutable, as its parts are not: so it becomes part of the query that calls it
RETURN CASE
    WHEN pg_column_size(doc) <= most / 11000 AND pg_column_compression(doc) IS NULL THEN NULL
    WHEN doc @? 'strict $.** ? (@.type() == "number" && (@ >= 1e400 || @ <= -1e400 || @ < 1e-400 && @ > -1e-400 && @ != 0))' THEN
        'has a number of more than 400 digits'
    WHEN (pg_column_size(doc) > 2000 OR pg_column_compression(doc) IS NOT NULL) AND doc @? 'strict $.**{1000}' THEN
        'is nested more than 1000 levels deep'
    WHEN pg_column_size(doc) <= most / 1400 AND pg_column_compression(doc) IS NULL THEN NULL
    WHEN octet_length(doc::text) > most THEN format('has %s bytes as text, at most %s are kept', octet_length(doc::text), most)
END;

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
    SET context = CASE WHEN m.context_defaults THEN tasker.with_defaults(m.context_schema, new_context) ELSE new_context END
    FROM tasker.task_templates m WHERE u.task_id = task AND m.template_id = u.template_id
    RETURNING u.context INTO becomes;
    PERFORM tasker.record_verb(task, NULL, 'task.context_replaced', who, why, tasker.context_record(was, becomes));
END $$;

CREATE OR REPLACE FUNCTION tasker.report_results(reports jsonb, wait boolean) RETURNS TABLE(step_id bigint, attempt integer, accepted boolean, reason text)
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
            FROM tasker.steps s JOIN tasker.tasks t USING (task_id)
            JOIN tasker.template_steps ts ON ts.template_id = t.template_id AND ts.position = s.position
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
        FROM r LEFT JOIN tasker.steps s ON s.step_id = r.step_id
               LEFT JOIN tasker.dispatches d ON d.step_id = r.step_id
    ), completed AS (
        UPDATE tasker.steps s SET state = 'complete', result = j.result, finished_at = clock_timestamp()
        FROM judged j WHERE s.step_id = j.step_id AND j.refusal IS NULL AND j.outcome = 'success'
    ), done AS (
        DELETE FROM tasker.dispatches d USING judged j
        WHERE d.step_id = j.step_id AND j.refusal IS NULL AND j.outcome = 'success'
        RETURNING d.step_id, d.task_id, d.awaited_by, d.step_id || '.' || d.attempt || '.' || d.task_id || coalesce('.' || d.ticket, '') AS word, d.ticket IS NOT NULL AS told
    ), failed AS (
        -- Kept here until the finalizer, which alone decides on retries, takes it.
        UPDATE tasker.dispatches d SET failure = CASE j.outcome WHEN 'lost' THEN '{"lost": true}'::jsonb ELSE j.failure END
        FROM judged j WHERE d.step_id = j.step_id AND j.refusal IS NULL AND j.outcome <> 'success'
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

CREATE OR REPLACE FUNCTION tasker.heartbeat(step_id bigint, attempt integer, progress jsonb DEFAULT NULL::jsonb, secret bigint DEFAULT NULL::bigint) RETURNS boolean
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

CREATE OR REPLACE FUNCTION tasker.publish_event(name text, data jsonb DEFAULT '{}'::jsonb, task bigint DEFAULT NULL::bigint, step bigint DEFAULT NULL::bigint, attempt integer DEFAULT NULL::integer) RETURNS bigint
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

CREATE OR REPLACE FUNCTION tasker.settle_step(step bigint, becomes text, outcome jsonb, who text, why text) RETURNS void
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

CREATE OR REPLACE FUNCTION tasker.register_process(identity text, details jsonb DEFAULT '{}'::jsonb, secret bigint DEFAULT NULL::bigint) RETURNS bigint
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

CREATE OR REPLACE FUNCTION tasker.process_beat(process_id bigint, seconds jsonb, secret bigint) RETURNS boolean
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    WITH beat AS (
        UPDATE tasker.processes p SET last_seen_at = clock_timestamp(), seconds = CASE WHEN tasker.document_problem($2, 65536) IS NULL AND jsonb_typeof($2) = 'object' THEN $2 ELSE '{}' END
        WHERE p.process_id = $1 AND p.stopped_at IS NULL AND coalesce(p.secret = $3, p.secret IS NULL) RETURNING 1)
    SELECT EXISTS (SELECT FROM beat)
$_$;

CREATE OR REPLACE FUNCTION tasker.record_verb(task bigint, step bigint, event text, who text, why text, more jsonb DEFAULT '{}'::jsonb) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    INSERT INTO tasker.events (task_id, step_id, attempt, name, data)
    SELECT task, step, (SELECT s.attempts FROM tasker.steps s WHERE s.step_id = step), event,
           jsonb_strip_nulls(jsonb_build_object('by', left(who, 1000), 'reason', left(why, 4000))) || more
           || jsonb_build_object('login', session_user)
$$;
