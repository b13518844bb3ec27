-- tasker: each event of an operator's verb names the login beside "by", which is free text.
-- Within functions that run with the rights of the schema's owner, session_user is the login.
CREATE OR REPLACE FUNCTION tasker.record_verb(task bigint, step bigint, event text, who text, why text, more jsonb DEFAULT '{}'::jsonb) RETURNS void
    LANGUAGE sql
    AS $$
    INSERT INTO tasker.events (task_id, step_id, attempt, name, data)
    SELECT task, step, (SELECT s.attempts FROM tasker.steps s WHERE s.step_id = step), event,
           jsonb_strip_nulls(jsonb_build_object('by', who, 'reason', why)) || more
           || jsonb_build_object('login', session_user)
$$;

CREATE OR REPLACE FUNCTION tasker.reset_steps(task bigint, ids bigint[], who text, why text) RETURNS integer
    LANGUAGE plpgsql
    AS $$
DECLARE
    n int;
BEGIN
    WITH reset AS (
        UPDATE tasker.steps s
        SET state = 'pending', forgiven = s.attempts, losses = 0, retry_at = NULL, finished_at = NULL
        WHERE s.step_id = ANY (ids) AND s.state = 'error' RETURNING s.step_id
    ), recorded AS (
        INSERT INTO tasker.events (task_id, step_id, name, data)
        SELECT task, r.step_id, 'step.initialize_requested', jsonb_strip_nulls(jsonb_build_object('by', who, 'reason', why, 'login', session_user))
        FROM reset r ORDER BY r.step_id
    )
    SELECT count(*) INTO n FROM reset;
    RETURN n;
END $$;

CREATE OR REPLACE FUNCTION tasker.set_limit(scope text, name text, max_attempts integer DEFAULT NULL::integer, per_second double precision DEFAULT NULL::double precision, burst double precision DEFAULT NULL::double precision, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    AS $_$
#variable_conflict use_column
DECLARE
    -- A tenth of a second's worth may start at once: less would waste the rate
    -- on the time that waking takes, more would show as a burst.
    b double precision := CASE WHEN $4 IS NOT NULL THEN coalesce($5, greatest(1, ceil($4 / 10))) END;
BEGIN
    IF $3 < 1 OR $3 > 1000000 THEN
        RAISE EXCEPTION 'a limit on attempts is a number from 1 to 1000000, not %', $3 USING ERRCODE = 'TK003', HINT = 'to stop all of them, pause';
    ELSIF $4 < 1e-6 OR $4 > 1000000 OR $4 = 'NaN' THEN -- beyond, the arithmetic of the line overflows
        RAISE EXCEPTION 'a rate is a number of attempts per second from 0.000001 to 1000000, not %', $4 USING ERRCODE = 'TK003', HINT = 'to stop all of them, pause';
    ELSIF $5 < 1 OR $5 > 1000000 OR $5 = 'NaN' OR $5 IS NOT NULL AND $4 IS NULL THEN
        RAISE EXCEPTION 'a burst is a number of attempts from 1 to 1000000, and goes with a rate' USING ERRCODE = 'TK003';
    END IF;
    PERFORM tasker.check_gate($1, $2);
    INSERT INTO tasker.gates AS g (scope, name, max_attempts, per_second, burst, tokens, changed_by, reason)
    VALUES ($1, $2, $3, $4, b, coalesce(b, 0), $6, $7)
    ON CONFLICT (scope, name) DO UPDATE SET
        max_attempts = $3, per_second = $4, burst = b, tokens = coalesce(b, 0), filled_at = clock_timestamp(),
        version = g.version + 1, changed_at = clock_timestamp(), changed_by = $6, reason = $7;
    INSERT INTO tasker.events (name, data) VALUES ('gate.limited', jsonb_strip_nulls(jsonb_build_object(
        'scope', $1, 'name', $2, 'max_attempts', $3, 'per_second', $4, 'burst', b, 'by', $6, 'reason', $7, 'login', session_user)));
    PERFORM tasker.open_gates();
END $_$;

CREATE OR REPLACE FUNCTION tasker.pause(scope text, name text, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    AS $_$
#variable_conflict use_column
BEGIN
    PERFORM tasker.check_gate($1, $2);
    INSERT INTO tasker.gates AS g (scope, name, paused_at, changed_by, reason) VALUES ($1, $2, clock_timestamp(), $3, $4)
    ON CONFLICT (scope, name) DO UPDATE SET
        paused_at = clock_timestamp(), version = g.version + 1, changed_at = clock_timestamp(), changed_by = $3, reason = $4
    WHERE g.paused_at IS NULL;
    IF FOUND THEN
        INSERT INTO tasker.events (name, data) VALUES ('gate.paused', jsonb_strip_nulls(jsonb_build_object(
        'scope', $1, 'name', $2, 'by', $3, 'reason', $4, 'login', session_user)));
    END IF;
END $_$;

CREATE OR REPLACE FUNCTION tasker.resume(scope text, name text, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    AS $_$
#variable_conflict use_column
BEGIN
    UPDATE tasker.gates g SET paused_at = NULL, version = g.version + 1, changed_at = clock_timestamp(), changed_by = $3, reason = $4
    WHERE g.scope = $1 AND g.name = $2 AND g.paused_at IS NOT NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION '% % is not paused', $1, $2 USING ERRCODE = 'TK008';
    END IF;
    INSERT INTO tasker.events (name, data) VALUES ('gate.resumed', jsonb_strip_nulls(jsonb_build_object(
        'scope', $1, 'name', $2, 'by', $3, 'reason', $4, 'login', session_user)));
    -- Workers grant the permits. A grant here would lock the limits until the caller's
    -- transaction ends.
    PERFORM tasker.open_gates();
END $_$;

-- What a changed context was and is. Readers of events get both where they are small, and can
-- compare longer ones by their hashes.
CREATE FUNCTION tasker.context_record(was jsonb, becomes jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN greatest(octet_length(w.old), octet_length(w.new)) <= 4096
        THEN jsonb_build_object('from', was, 'to', becomes)
        ELSE jsonb_build_object(
            'from_sha256', encode(sha256(convert_to(w.old, 'UTF8')), 'hex'), 'from_bytes', octet_length(w.old),
            'to_sha256', encode(sha256(convert_to(w.new, 'UTF8')), 'hex'), 'to_bytes', octet_length(w.new)) END
    FROM (SELECT was::text AS old, becomes::text AS new) w
$$;

DROP FUNCTION tasker.replace_context(bigint, jsonb);
CREATE FUNCTION tasker.replace_context(task bigint, new_context jsonb, who text, why text) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    was     jsonb;
    becomes jsonb;
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
    SELECT u.context INTO was FROM tasker.tasks u WHERE u.task_id = task; -- the caller has locked the task
    UPDATE tasker.tasks u
    SET context = CASE WHEN m.context_defaults THEN tasker.with_defaults(m.context_schema, new_context) ELSE new_context END
    FROM tasker.task_templates m WHERE u.task_id = task AND m.template_id = u.template_id
    RETURNING u.context INTO becomes;
    PERFORM tasker.record_verb(task, NULL, 'task.context_replaced', who, why, tasker.context_record(was, becomes));
END $$;

CREATE OR REPLACE FUNCTION tasker.retry_task(task bigint, who text DEFAULT NULL::text, why text DEFAULT NULL::text, new_context jsonb DEFAULT NULL::jsonb) RETURNS integer
    LANGUAGE plpgsql
    AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
    n int;
BEGIN
    IF t.state <> 'error' THEN
        RAISE EXCEPTION 'task % is %: only a task in error can be retried', task, t.state USING ERRCODE = 'TK008';
    END IF;
    PERFORM tasker.replace_context(task, new_context, who, why);
    n := tasker.reset_steps(task, ARRAY(SELECT s.step_id FROM tasker.steps s WHERE s.task_id = task AND s.state = 'error' ORDER BY s.step_id FOR UPDATE), who, why);
    IF n = 0 AND t.error ->> 'code' IS DISTINCT FROM 'task_deadline' THEN
        RAISE EXCEPTION 'task % has no step in error: it failed because steps were cancelled; resolve the task, or cancel it', task USING ERRCODE = 'TK008';
    END IF;
    PERFORM tasker.reopen_task(task, who, why);
    RETURN n;
END $$;

CREATE OR REPLACE FUNCTION tasker.retry_step(step bigint, who text DEFAULT NULL::text, why text DEFAULT NULL::text, new_context jsonb DEFAULT NULL::jsonb) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    s tasker.steps := tasker.lock_step(step);
    t tasker.tasks := tasker.lock_task(s.task_id);
BEGIN
    IF t.state IN ('complete', 'cancelled', 'resolved_manually') THEN
        RAISE EXCEPTION 'step % (%) belongs to task %, which is %', step, s.name, s.task_id, t.state USING ERRCODE = 'TK008';
    ELSIF s.state NOT IN ('error', 'waiting_for_retry') THEN
        RAISE EXCEPTION 'step % (%) is %: only one in error, or waiting for its retry, can be retried', step, s.name, s.state USING ERRCODE = 'TK008';
    END IF;
    PERFORM tasker.replace_context(s.task_id, new_context, who, why);
    IF s.state = 'error' THEN
        PERFORM tasker.reset_steps(s.task_id, ARRAY[step], who, why);
    ELSE
        UPDATE tasker.steps u SET retry_at = clock_timestamp() WHERE u.step_id = step;
        PERFORM tasker.record_verb(s.task_id, step, 'step.run_now', who, why);
    END IF;
    PERFORM tasker.reopen_task(s.task_id, who, why);
END $$;

CREATE OR REPLACE FUNCTION tasker.set_webhook(name text, url text, patterns text[], secret_env text, by text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    AS $_$
BEGIN
    IF name IS NULL OR name !~ '^[a-z0-9][a-z0-9_-]{0,62}$' THEN
        RAISE EXCEPTION 'the name of a webhook has up to 63 of a-z, 0-9, _ and -, and begins with a letter or number, not %', coalesce(quote_literal(left(name, 80)), 'null') USING ERRCODE = 'TK003';
    ELSIF url IS NULL OR url !~* '^https?://[^/@\s]+(/\S*)?$' OR length(url) > 2000 THEN
        RAISE EXCEPTION 'the URL of webhook % must be like https://host/path, without a user or password, and at most 2000 characters', quote_literal(name) USING ERRCODE = 'TK003';
    ELSIF secret_env IS NULL OR secret_env !~ '^[A-Za-z_][A-Za-z0-9_]*$' THEN
        RAISE EXCEPTION 'secret_env of webhook % must be the name of an environment variable, not %', quote_literal(name), coalesce(quote_literal(left(secret_env, 80)), 'null') USING ERRCODE = 'TK003';
    END IF;
    INSERT INTO tasker.webhooks AS w (name, url, patterns, secret_env, changed_by) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT ON CONSTRAINT webhooks_pkey DO UPDATE SET url = excluded.url, patterns = excluded.patterns, secret_env = excluded.secret_env, changed_at = now(), changed_by = excluded.changed_by;
    PERFORM tasker.subscribe('webhook:' || name, patterns);
    UPDATE tasker.event_subscribers s SET owner = r.rolname
    FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner
    WHERE n.nspname = 'tasker' AND s.name = 'webhook:' || $1 AND s.owner IS DISTINCT FROM r.rolname;
    -- Of the URL the host alone: others hold a secret.
    INSERT INTO tasker.events (name, data) VALUES ('workflow.webhook_set', jsonb_strip_nulls(jsonb_build_object(
        'name', $1, 'host', substring(url FROM '^[^:]+://([^/?#]+)'), 'patterns', $3, 'secret_env', $4, 'by', $5, 'login', session_user)));
END $_$;

CREATE OR REPLACE FUNCTION tasker.remove_webhook(name text) RETURNS boolean
    LANGUAGE plpgsql
    AS $_$
BEGIN
    DELETE FROM tasker.webhooks w WHERE w.name = $1;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM tasker.unsubscribe('webhook:' || $1);
    INSERT INTO tasker.events (name, data) VALUES ('workflow.webhook_removed', jsonb_build_object('name', $1, 'login', session_user));
    RETURN true;
END $_$;
