-- tasker: what one role writes can't fail in another's transaction, and no
-- session setting is believed.
--
-- The trigger on tasker.events notifies readers that wait, at channels and by
-- patterns that they chose: a channel without a name, or a pattern that ends in
-- a backslash, failed every write of every session. And the template of a task came
-- from a setting that any session can set.

CREATE FUNCTION tasker.check_channel(channel text) RETURNS void
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF channel !~ '^[A-Za-z_][A-Za-z0-9_]*$' OR octet_length(channel) > 63 THEN
        RAISE EXCEPTION 'a channel has 1 to 63 of a-z, A-Z, 0-9 and _, and begins with no digit, unlike "%"', left(channel, 100) USING ERRCODE = 'TK003';
    END IF;
END $$;

-- LIKE fails for a pattern that ends in a backslash.
CREATE FUNCTION tasker.likes_are_safe(likes text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN array_to_string(likes, ' ') ~ '^(%|([a-z0-9.]|\\_)+%?)( (%|([a-z0-9.]|\\_)+%?))*$';

DELETE FROM tasker.event_sleepers; -- they say again within seconds that they wait
DELETE FROM tasker.task_waiters WHERE octet_length(channel) NOT BETWEEN 1 AND 63;
ALTER TABLE tasker.event_sleepers
    ADD CONSTRAINT event_sleepers_name CHECK (octet_length(name) <= 1000),
    ADD CONSTRAINT event_sleepers_channel CHECK (octet_length(channel) BETWEEN 1 AND 63),
    ADD CONSTRAINT event_sleepers_likes CHECK (tasker.likes_are_safe(likes) AND cardinality(likes) <= 100);
ALTER TABLE tasker.task_waiters ADD CONSTRAINT task_waiters_channel CHECK (octet_length(channel) BETWEEN 1 AND 63);

CREATE OR REPLACE FUNCTION tasker.fall_asleep(name text, channel text, likes text[], asleep boolean) RETURNS void
    LANGUAGE plpgsql
    AS $_$
BEGIN
    PERFORM tasker.check_channel(channel);
    IF NOT asleep THEN
        DELETE FROM tasker.event_sleepers s WHERE s.name = $1;
    ELSIF NOT EXISTS (SELECT FROM tasker.event_sleepers s WHERE s.name = $1 AND s.channel = $2 AND s.likes = $3
                      AND s.until > clock_timestamp() + interval '5 seconds') THEN
        IF (SELECT count(*) FROM (SELECT FROM tasker.event_sleepers s WHERE s.until > clock_timestamp() AND s.name <> $1 LIMIT 1000) l) = 1000 THEN
            RAISE EXCEPTION '1000 readers of events wait for a notification already' USING ERRCODE = 'TK003', HINT = 'leave channel out, and ask again after a while';
        END IF;
        INSERT INTO tasker.event_sleepers AS s (name, channel, likes, until) VALUES ($1, $2, $3, clock_timestamp() + interval '10 seconds')
        ON CONFLICT ON CONSTRAINT event_sleepers_pkey DO UPDATE SET channel = excluded.channel, likes = excluded.likes, until = excluded.until;
        DELETE FROM tasker.event_sleepers s USING (
            SELECT l.name FROM tasker.event_sleepers l WHERE l.until < clock_timestamp() FOR UPDATE SKIP LOCKED) dead
        WHERE s.name = dead.name;
    END IF;
END $_$;

CREATE OR REPLACE FUNCTION tasker.ring() RETURNS trigger
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    sleepers boolean;
    waiters  boolean;
    names    text[];
BEGIN
    SELECT EXISTS (SELECT FROM tasker.event_sleepers s WHERE s.until > statement_timestamp()),
           EXISTS (SELECT FROM tasker.task_waiters a WHERE a.until > statement_timestamp()) INTO sleepers, waiters;
    IF sleepers THEN
        names := ARRAY(SELECT DISTINCT w.name FROM written w);
        PERFORM pg_notify(s.channel, 'events ' || s.name) FROM tasker.event_sleepers s
        WHERE s.until > statement_timestamp() AND EXISTS (SELECT FROM unnest(names) AS n(name) WHERE n.name LIKE ANY (s.likes));
    END IF;
    IF waiters THEN
        PERFORM pg_notify(a.channel, 'task ' || a.task_id) FROM written w JOIN tasker.task_waiters a USING (task_id)
        WHERE w.name IN ('task.completed', 'task.failed', 'task.cancelled', 'task.resolved_manually');
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION tasker.read_events(cursor tasker.event_cursor, patterns text[] DEFAULT '{*}'::text[], most integer DEFAULT 1000, sleeper text DEFAULT NULL::text, channel text DEFAULT NULL::text) RETURNS TABLE(event_id bigint, occurred_at timestamp with time zone, event text, task_id bigint, step_id bigint, attempt integer, data jsonb, namespace text, task_name text, version text, step text, correlation_id text, parent_task_id bigint, next tasker.event_cursor)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
#variable_conflict use_column
DECLARE
    c       tasker.event_cursor := cursor;
    likes   text[] := tasker.event_likes(patterns);
    settled boolean := true;  -- c.missing: what isn't seen now will never be
    scan    int := most;      -- rows to look at, wanted or not
    edge    bigint;           -- the last that is wanted, if there are enough of them
    wanted  bigint[];
    since   timestamptz;
    earliest timestamptz;     -- of those that are wanted
    latest  timestamptz;
    seen    int8multirange;
    reached bigint;
    cut     boolean;          -- there is more than was looked at
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'whoever reads events must see what commits while it runs: call it in a read committed transaction' USING ERRCODE = 'TK003';
    END IF;
    IF channel IS NOT NULL THEN
        PERFORM tasker.check_channel(channel);
        IF sleeper IS NULL OR octet_length(sleeper) > 1000 THEN
            RAISE EXCEPTION 'a reader that wants to be notified has a name of 1 to 1000 bytes' USING ERRCODE = 'TK003';
        END IF;
    END IF;
    -- Before the look: what ended until here is seen by it.
    IF NOT isempty(c.missing) THEN
        settled := NOT tasker.still_writing(c.writers);
    END IF;

    since := tasker.unread_since(tasker.first_unread(c));
    IF '%' <> ALL (likes) THEN
        scan := most * 10;
        SELECT b.event_id INTO edge FROM tasker.events_beyond(c, likes, scan, since) b WHERE b.wanted ORDER BY b.event_id OFFSET most - 1 LIMIT 1;
    END IF;
    WITH looked AS (
        SELECT b.event_id, b.created_at, b.wanted, row_number() OVER (ORDER BY b.event_id) AS r
        FROM tasker.events_beyond(c, likes, scan, since, coalesce(edge, 9223372036854775807)) b
    )
    SELECT ARRAY(SELECT l.event_id FROM looked l WHERE l.wanted),
           -- ids that follow on one another have the same difference to their rank
           coalesce((SELECT range_agg(i.ids) FROM (SELECT int8range(min(l.event_id), max(l.event_id), '[]') AS ids FROM looked l GROUP BY l.event_id - l.r) i), '{}'),
           max(k.event_id), edge IS NOT NULL OR count(*) = scan,
           min(k.created_at) FILTER (WHERE k.wanted), max(k.created_at) FILTER (WHERE k.wanted)
    INTO wanted, seen, reached, cut, earliest, latest FROM looked k;

    RETURN QUERY
    SELECT l.event_id, l.created_at, l.name, l.task_id, l.step_id, l.attempt, l.data,
           l.namespace, l.task_name, l.version, l.step, l.correlation_id, l.parent_task_id, NULL::tasker.event_cursor
    FROM tasker.event_log l
    WHERE l.event_id = ANY (wanted) AND l.created_at >= earliest AND l.created_at <= latest ORDER BY l.event_id;

    c := tasker.cursor_after(c, seen, reached, cut, settled);
    IF channel IS NOT NULL THEN
        PERFORM tasker.fall_asleep(sleeper, channel, likes, cardinality(wanted) = 0 AND NOT cut);
    END IF;
    RETURN QUERY SELECT NULL::bigint, NULL::timestamptz, NULL, NULL::bigint, NULL::bigint, NULL::int, NULL::jsonb, NULL, NULL, NULL, NULL, NULL, NULL::bigint, c;
END $$;

CREATE OR REPLACE FUNCTION tasker.await_task(task bigint, channel text) RETURNS boolean
    LANGUAGE plpgsql
    AS $_$
DECLARE
    found_state text;
BEGIN
    PERFORM tasker.check_channel(channel);
    INSERT INTO tasker.task_waiters AS a (task_id, channel, until) VALUES ($1, $2, clock_timestamp() + interval '1 minute')
    ON CONFLICT ON CONSTRAINT task_waiters_pkey DO UPDATE SET until = excluded.until;
    -- A statement of its own: it sees what was committed until now.
    SELECT t.state INTO found_state FROM tasker.tasks t WHERE t.task_id = $1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no task %', coalesce(task::text, 'NULL')
        USING ERRCODE = 'no_data_found', HINT = 'a task can be waited for when the transaction that inserted it has committed';
    END IF;
    RETURN found_state NOT IN ('pending', 'in_progress');
END $_$;

CREATE OR REPLACE FUNCTION tasker.renew_waiters(channel text, tasks bigint[]) RETURNS boolean
    LANGUAGE plpgsql
    AS $_$
BEGIN
    PERFORM tasker.check_channel(channel);
    DELETE FROM tasker.task_waiters a USING (
        SELECT l.task_id, l.channel FROM tasker.task_waiters l
        WHERE l.until < clock_timestamp() OR l.channel = $1 AND l.task_id <> ALL (tasks) AND l.until < clock_timestamp() + interval '50 seconds'
        FOR UPDATE SKIP LOCKED) gone
    WHERE a.task_id = gone.task_id AND a.channel = gone.channel;
    INSERT INTO tasker.task_waiters AS a (task_id, channel, until)
    SELECT u.task_id, $1, clock_timestamp() + interval '1 minute' FROM (SELECT DISTINCT t FROM unnest(tasks) t) AS u(task_id) ORDER BY u.task_id
    ON CONFLICT ON CONSTRAINT task_waiters_pkey DO UPDATE SET until = excluded.until;
    RETURN EXISTS (SELECT FROM tasker.task_waiters a WHERE a.channel = $1);
END $_$;

CREATE OR REPLACE FUNCTION tasker.event_likes(patterns text[]) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE
    AS $_$
DECLARE
    wrong text;
BEGIN
    IF cardinality(patterns) > 100 OR octet_length(array_to_string(patterns, ' ')) > 10000 THEN
        RAISE EXCEPTION 'there may be 100 patterns of events, of 10000 bytes together' USING ERRCODE = 'TK003';
    END IF;
    SELECT p INTO wrong FROM unnest(patterns) AS p WHERE p IS NULL OR p !~ '^(\*|[a-z0-9_]+(\.[a-z0-9_]+)*(\.\*)?)$' LIMIT 1;
    IF FOUND OR coalesce(cardinality(patterns), 0) = 0 THEN
        RAISE EXCEPTION 'patterns of events must be like step.completed, task.* or *, not %', coalesce('"' || wrong || '"', 'none at all') USING ERRCODE = 'TK003';
    END IF;
    RETURN ARRAY(SELECT CASE WHEN p = '*' THEN '%' ELSE regexp_replace(replace(p, '_', '\_'), '\*$', '%') END FROM unnest(patterns) AS p);
END $_$;

CREATE OR REPLACE FUNCTION tasker.prepare_task() RETURNS trigger
    LANGUAGE plpgsql
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
    carried       int;
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

CREATE OR REPLACE FUNCTION tasker.expand_tasks() RETURNS trigger
    LANGUAGE plpgsql
    SET jit TO 'off'
    AS $$
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
