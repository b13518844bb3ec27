-- tasker: how long things may take, who a task is, and what it is given.
--
-- An attempt has three clocks, all of them the database's: schedule_to_start
-- (it lies in its queue), start_to_close (it runs) and the heartbeat (it says
-- that it gets on). Whichever is up first fails the attempt with a code of its
-- own; whether another follows is the finalizer's to say. A task has one, its
-- deadline; what it ends is not cancelled but in error, so that an operator may
-- have the task go on from where it was.
--
-- The clocks of attempts in Sidekiq are in dispatches and looked at by
-- reap_attempts; those of Go attempts are timers of their loop.

ALTER TABLE tasker.task_templates
    ADD COLUMN deadline_seconds double precision,
    ADD COLUMN idempotency      text CHECK (idempotency IN ('key', 'context')); -- null: as key

ALTER TABLE tasker.template_steps
    ADD COLUMN schedule_to_start_seconds double precision,
    ADD COLUMN heartbeat_seconds         double precision,
    ADD COLUMN limit_key                 text;

ALTER TABLE tasker.tasks
    ADD COLUMN deadline       timestamptz, -- after this, what is not done is in error; null: none
    ADD COLUMN parent_task_id bigint;      -- the task whose step enqueued this one
CREATE INDEX tasks_deadline ON tasker.tasks (deadline) WHERE deadline IS NOT NULL AND state IN ('pending', 'in_progress');
CREATE INDEX tasks_parent ON tasker.tasks (parent_task_id) WHERE parent_task_id IS NOT NULL;
CREATE INDEX tasks_correlation ON tasker.tasks (correlation_id) WHERE correlation_id IS NOT NULL;

ALTER TABLE tasker.steps ADD COLUMN progress jsonb; -- what the last heartbeat carried; the next attempt may go on from there

ALTER TABLE tasker.dispatches
    ADD COLUMN start_by  timestamptz, -- schedule_to_start; null once started
    ADD COLUMN heartbeat interval,
    ADD COLUMN beat_by   timestamptz; -- the next heartbeat is due

-- The idempotency key of a task whose template takes tasks of the same context
-- for the same task. jsonb writes equal documents alike: sorted keys, no spaces.
CREATE FUNCTION tasker.context_key(context jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT 'context:' || encode(sha256(convert_to(context::text, 'UTF8')), 'hex')
$$;

-- A value with the defaults that its schema has for members that are missing,
-- also within members that are there. Only properties are followed: what lies
-- behind $ref, anyOf and the like may be there or not.
CREATE FUNCTION tasker.with_defaults(schema jsonb, value jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
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

CREATE FUNCTION tasker.has_defaults(schema jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT coalesce(schema::text LIKE '%"default": %', false) $$;

ALTER TABLE tasker.task_templates
    ADD COLUMN context_defaults boolean GENERATED ALWAYS AS (tasker.has_defaults(nullif(definition -> 'schema', 'null'))) STORED;

-- As in 0002, with the template's deadline and idempotency.
CREATE OR REPLACE FUNCTION tasker.register_template(
    namespace text, name text, version text, description text,
    definition jsonb, checksum text, max_parallel_steps int, steps jsonb)
RETURNS text
LANGUAGE plpgsql AS $$
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
         schedule_to_start_seconds, heartbeat_seconds, limit_key, handler_config, result_schema)
    SELECT coalesce(inserted, known.template_id), s.position, s.name, s.handler_class, s.handler,
           coalesce(s.queue, 'default'), coalesce(s.depends_on, '{}'), s.attempt_limit, s.timeout_seconds,
           s.schedule_to_start_seconds, s.heartbeat_seconds, s.limit_key, coalesce(s.handler_config, '{}'), s.result_schema
    FROM jsonb_to_recordset($8) AS s(position int, name text, handler_class text, handler text, queue text,
                                    depends_on int[], attempt_limit int, timeout_seconds double precision,
                                    schedule_to_start_seconds double precision, heartbeat_seconds double precision,
                                    limit_key text, handler_config jsonb, result_schema jsonb);
    RETURN CASE WHEN inserted IS NULL THEN 'replaced' ELSE 'registered' END;
END $$;

-- As in 0002, with the deadline, the key and the defaults that the template asks for.
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
    IF template.context_defaults THEN -- after the key: that is of the document as it came
        NEW.context := tasker.with_defaults(template.context_schema, NEW.context);
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

-- As in 0002; the first event carries the ids that link the task to others.
CREATE OR REPLACE FUNCTION tasker.expand_tasks() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tasker.steps (task_id, position, name, state, finished_at)
    SELECT n.task_id, s.position, s.name,
           CASE WHEN s.name = ANY (n.bypass_steps) THEN 'skipped' ELSE 'pending' END,
           CASE WHEN s.name = ANY (n.bypass_steps) THEN now() END
    FROM new_tasks n JOIN tasker.template_steps s USING (template_id)
    ORDER BY n.task_id, s.position;

    INSERT INTO tasker.events (task_id, name, data)
    SELECT task_id, 'task.initialize_requested',
           CASE WHEN correlation_id IS NOT NULL OR parent_task_id IS NOT NULL THEN
               jsonb_strip_nulls(jsonb_build_object('correlation_id', correlation_id, 'parent_task_id', parent_task_id)) END
    FROM new_tasks ORDER BY task_id;
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

-- As in 0002, with deadline and parent_task_id.
DROP FUNCTION tasker.enqueue_task(text, text, jsonb, text, smallint, timestamptz, text, text, text, text[], text, text, text, text[]);
CREATE FUNCTION tasker.enqueue_task(
    namespace text, name text, context jsonb DEFAULT '{}', version text DEFAULT NULL,
    priority smallint DEFAULT NULL, run_at timestamptz DEFAULT NULL,
    idempotency_key text DEFAULT NULL, on_duplicate text DEFAULT 'return_existing',
    correlation_id text DEFAULT NULL, tags text[] DEFAULT '{}',
    initiator text DEFAULT NULL, source_system text DEFAULT NULL, reason text DEFAULT NULL,
    bypass_steps text[] DEFAULT '{}',
    deadline timestamptz DEFAULT NULL, parent_task_id bigint DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql AS $$
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
                                   correlation_id, tags, initiator, source_system, reason, bypass_steps, deadline, parent_task_id)
    VALUES ($1, $2, $4, $3, coalesce($5, 2::smallint), $6, $7, $9, coalesce($10, '{}'), $11, $12, $13, coalesce($14, '{}'), $15, $16)
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
END $$;

-- As in 0004, with heartbeat and progress.
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
    SET process_id = $3, started_at = s.started_at, start_by = NULL,
        deadline = s.started_at + make_interval(secs => coalesce(spec.timeout_seconds, CASE WHEN $3 IS NULL AND spec.heartbeat_seconds IS NULL THEN 3600 END)),
        heartbeat = make_interval(secs => spec.heartbeat_seconds), beat_by = s.started_at + make_interval(secs => spec.heartbeat_seconds)
    WHERE d.step_id = $1;
    INSERT INTO tasker.events (task_id, step_id, attempt, name) VALUES (s.task_id, $1, $2, 'step.handle');
    SELECT coalesce(jsonb_object_agg(u.name, u.result), '{}'), coalesce(jsonb_agg(u.name ORDER BY u.position), '[]')
    INTO deps, d_list
    FROM tasker.steps u WHERE u.task_id = s.task_id AND u.position = ANY (spec.depends_on);

    RETURN jsonb_build_object(
        'status', 'started',
        'task', jsonb_build_object(
            'task_id', t.task_id, 'namespace', t.namespace, 'name', t.name, 'version', t.version,
            'context', t.context, 'priority', t.priority, 'correlation_id', t.correlation_id, 'parent_task_id', t.parent_task_id, 'tags', t.tags,
            'initiator', t.initiator, 'source_system', t.source_system, 'reason', t.reason,
            'created_at', to_char(t.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')),
        'step', jsonb_build_object(
            'step_id', $1, 'name', s.name, 'attempt', $2, 'attempts_used', $2 - s.losses - s.forgiven, 'attempt_limit', spec.attempt_limit,
            'handler_class', spec.handler_class, 'config', spec.handler_config, 'timeout_seconds', spec.timeout_seconds,
            'heartbeat_seconds', spec.heartbeat_seconds, 'progress', s.progress, 'depends_on', d_list),
        'dependencies', deps);
END $$;

-- Says that an attempt gets on, and keeps how far it has come. False: it is not
-- the current attempt any more (cancelled, timed out, taken for lost), and its
-- handler had better stop.
CREATE FUNCTION tasker.heartbeat(step_id bigint, attempt int, progress jsonb DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF pg_column_size($3) > 65536 THEN
        RAISE EXCEPTION 'the progress of step % has % bytes, at most 64 KiB are kept', $1, pg_column_size($3)
        USING ERRCODE = 'TK007', HINT = 'store the data and report a reference';
    END IF;
    IF $3 IS NOT NULL THEN
        UPDATE tasker.steps s SET progress = $3 WHERE s.step_id = $1 AND s.attempts = $2 AND s.state = 'in_progress';
    END IF;
    UPDATE tasker.dispatches d SET beat_by = clock_timestamp() + d.heartbeat
    WHERE d.step_id = $1 AND d.attempt = $2 AND d.started_at IS NOT NULL AND d.failure IS NULL;
    RETURN FOUND;
END $$;

-- The same for attempts of Go steps, many at once: their loops watch their
-- heartbeats, here is only kept how far they have come.
CREATE FUNCTION tasker.record_progress(worker bigint, step_ids bigint[], numbers int[], docs text[]) RETURNS void
LANGUAGE plpgsql SET lock_timeout = '100ms' AS $$
BEGIN
    PERFORM tasker.assert_worker(worker);
    UPDATE tasker.steps s SET progress = p.doc::jsonb
    FROM unnest(step_ids, numbers, docs) AS p(step_id, number, doc)
    JOIN (SELECT l.step_id FROM tasker.steps l WHERE l.step_id = ANY (step_ids) ORDER BY l.step_id
          FOR NO KEY UPDATE SKIP LOCKED) free USING (step_id) -- one that somebody's transaction holds keeps back no other
    WHERE s.step_id = p.step_id AND s.attempts = p.number AND s.state = 'in_progress';
END $$;

-- As in 0004, with all three clocks of an attempt.
CREATE OR REPLACE FUNCTION tasker.reap_attempts(silence interval) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    overdue bigint[];
    reports jsonb;
    n       int;
BEGIN
    SELECT array_agg(d.step_id) INTO overdue
    FROM tasker.dispatches d LEFT JOIN tasker.processes p USING (process_id)
    WHERE d.failure IS NULL
      AND (least(d.deadline, d.beat_by, d.start_by) < clock_timestamp()
           OR d.started_at IS NOT NULL AND d.process_id IS NOT NULL
              AND (p.process_id IS NULL OR p.stopped_at IS NOT NULL
                   OR greatest(p.last_seen_at, pg_postmaster_start_time()) < clock_timestamp() - silence));
    IF overdue IS NULL THEN
        RETURN 0;
    END IF;
    SELECT array_agg(l.step_id) INTO overdue
    FROM (SELECT s.step_id FROM tasker.steps s WHERE s.step_id = ANY (overdue) ORDER BY s.step_id FOR NO KEY UPDATE SKIP LOCKED) l;
    -- What is up first tells the story.
    SELECT jsonb_agg(jsonb_build_object('step_id', d.step_id, 'attempt', d.attempt)
               || CASE WHEN least(d.deadline, d.beat_by, d.start_by) < clock_timestamp() THEN jsonb_build_object('outcome', 'failure', 'failure', jsonb_build_object(
                          'class', up.code, 'code', up.code, 'attempt', d.attempt, 'message', up.message))
                  ELSE '{"outcome": "lost"}' END) INTO reports
    FROM tasker.dispatches d
    CROSS JOIN LATERAL (
        SELECT 'schedule_to_start_timeout' AS code, d.start_by AS at,
               format('no process took it from queue %s within its schedule_to_start_seconds', d.queue) AS message
        UNION ALL SELECT 'heartbeat_timeout', d.beat_by, format('no heartbeat within %s', d.heartbeat)
        UNION ALL SELECT 'attempt_timeout', d.deadline, format('no result within %s', date_trunc('milliseconds', d.deadline - d.started_at))
        ORDER BY 2 LIMIT 1) up
    LEFT JOIN tasker.processes p USING (process_id)
    -- Once more: a heartbeat or a start may have come in between, or another attempt.
    WHERE d.step_id = ANY (overdue) AND d.failure IS NULL
      AND (least(d.deadline, d.beat_by, d.start_by) < clock_timestamp()
           OR d.started_at IS NOT NULL AND d.process_id IS NOT NULL
              AND (p.process_id IS NULL OR p.stopped_at IS NOT NULL
                   OR greatest(p.last_seen_at, pg_postmaster_start_time()) < clock_timestamp() - silence));
    IF reports IS NULL THEN
        RETURN 0;
    END IF;
    SELECT count(*) FILTER (WHERE r.accepted) INTO n FROM tasker.report_results(reports) r;
    RETURN n;
END $$;

-- Ends open tasks whose deadline has passed. Attempts that are out fail, at
-- once and for good: what they still report is refused. Steps that have not
-- begun stay as they are, so that the task can go on from here if an operator
-- retries it. Returns how many. A task that somebody's open transaction holds
-- is left for the next time.
CREATE FUNCTION tasker.expire_tasks(most int DEFAULT 1000) RETURNS int
LANGUAGE plpgsql SET lock_timeout = '100ms' AS $$
DECLARE
    t     record;
    names text[];
    fault jsonb;
    n     int := 0;
BEGIN
    FOR t IN SELECT u.task_id, u.owner, u.deadline, u.created_at FROM tasker.tasks u
             WHERE u.deadline < clock_timestamp() AND u.state IN ('pending', 'in_progress')
             ORDER BY u.deadline LIMIT most FOR UPDATE SKIP LOCKED
    LOOP
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

-- Has a task go on with another context, which check_new_context holds against
-- the schema. Null: it keeps its own.
CREATE FUNCTION tasker.replace_context(task bigint, new_context jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF new_context IS NULL THEN
        RETURN;
    END IF;
    IF jsonb_typeof(new_context) <> 'object' THEN
        RAISE EXCEPTION 'the context of a task must be a JSON object, not %', jsonb_typeof(new_context) USING ERRCODE = 'TK003';
    END IF;
    IF pg_column_size(new_context) > 1048576 THEN
        RAISE EXCEPTION 'the context of a task may have 1 MiB, this one has % bytes', pg_column_size(new_context) USING ERRCODE = 'TK003';
    END IF;
    UPDATE tasker.tasks u
    SET context = CASE WHEN m.context_defaults THEN tasker.with_defaults(m.context_schema, new_context) ELSE new_context END
    FROM tasker.task_templates m WHERE u.task_id = task AND m.template_id = u.template_id;
END $$;

-- As in 0008; a task that its deadline ended may have no step in error.
CREATE OR REPLACE FUNCTION tasker.retry_task(task bigint, who text DEFAULT NULL, why text DEFAULT NULL, new_context jsonb DEFAULT NULL) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
    n int;
BEGIN
    IF t.state <> 'error' THEN
        RAISE EXCEPTION 'task % is %: only a task in error can be retried', task, t.state USING ERRCODE = 'TK008';
    END IF;
    PERFORM tasker.replace_context(task, new_context);
    n := tasker.reset_steps(task, ARRAY(SELECT s.step_id FROM tasker.steps s WHERE s.task_id = task AND s.state = 'error' ORDER BY s.step_id FOR UPDATE), who, why);
    IF n = 0 AND t.error ->> 'code' IS DISTINCT FROM 'task_deadline' THEN
        RAISE EXCEPTION 'task % has no step in error: it failed because steps were cancelled; resolve the task, or cancel it', task USING ERRCODE = 'TK008';
    END IF;
    PERFORM tasker.reopen_task(task, who, why);
    RETURN n;
END $$;

-- As in 0008, with another context: it is the task's, so steps that start later
-- have it too.
DROP FUNCTION tasker.retry_step(bigint, text, text);
CREATE FUNCTION tasker.retry_step(step bigint, who text DEFAULT NULL, why text DEFAULT NULL, new_context jsonb DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    s tasker.steps := tasker.lock_step(step);
    t tasker.tasks := tasker.lock_task(s.task_id);
BEGIN
    IF t.state IN ('complete', 'cancelled', 'resolved_manually') THEN
        RAISE EXCEPTION 'step % (%) belongs to task %, which is %', step, s.name, s.task_id, t.state USING ERRCODE = 'TK008';
    ELSIF s.state NOT IN ('error', 'waiting_for_retry') THEN
        RAISE EXCEPTION 'step % (%) is %: only one in error, or waiting for its retry, can be retried', step, s.name, s.state USING ERRCODE = 'TK008';
    END IF;
    PERFORM tasker.replace_context(s.task_id, new_context);
    IF s.state = 'error' THEN
        PERFORM tasker.reset_steps(s.task_id, ARRAY[step], who, why);
    ELSE
        UPDATE tasker.steps u SET retry_at = clock_timestamp() WHERE u.step_id = step;
        PERFORM tasker.record_verb(s.task_id, step, 'step.run_now', who, why);
    END IF;
    PERFORM tasker.reopen_task(s.task_id, who, why);
END $$;

-- As in 0008; a task whose deadline has passed gets its template's anew, or none.
CREATE OR REPLACE FUNCTION tasker.reopen_task(task bigint, who text, why text) RETURNS void
LANGUAGE plpgsql AS $$
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

-- Events with what links them to the world outside.
CREATE VIEW tasker.event_log AS
SELECT e.event_id, e.created_at, e.name, e.task_id, e.step_id, s.name AS step, e.attempt, e.data,
       t.namespace, t.name AS task_name, t.version, t.correlation_id, t.parent_task_id
FROM tasker.events e
LEFT JOIN tasker.tasks t USING (task_id) -- events of gates have none
LEFT JOIN tasker.steps s ON s.step_id = e.step_id;
COMMENT ON VIEW tasker.event_log IS 'tasker.events with names, correlation_id and parent_task_id; filter by task_id or correlation_id';
