-- tasker: gates. Limits on how many attempts are out at once, and on how many
-- start per second, across all workers; and pauses of whole templates, queues,
-- handlers.
--
-- A gate stands before claims: write_batch lets a claim pass or denies it, and
-- what was denied waits in line. Who decides: pass_gates, holding the gates'
-- rows, so that two workers can't both take the last place. A place is a row in
-- gate_slots, from the claim until the step is neither enqueued nor in progress,
-- whoever ends the attempt: a trigger sees to that, and counts nothing, so that
-- no count can drift. Places are given back without the gate's row: a report in
-- a transaction that stays open holds up nobody.
--
-- The line. A denied step waits in gate_waiters by rank: when it came, plus a
-- head start for each level of priority. So urgent steps overtake, and none
-- waits for ever. admit_waiters admits the first in line as places get free; an
-- admission keeps the place for a few seconds and wakes the task. While anybody
-- waits, nobody who comes later passes.
--
-- Where no gate has been set, none of this is entered: write_batch compares one
-- number, the sum of the gates' versions, with what the worker has seen. A
-- worker that does not know the gates as they are is refused (TK009), so that a
-- pause holds from the moment it is committed.
--
-- Lock order: gates come after tasks and before steps, by ascending id, and a
-- waiter's row after its gate; admit_waiters waits for no waiter's row.

CREATE TABLE tasker.gates (
    gate_id      int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope        text NOT NULL CHECK (scope IN ('template', 'handler', 'queue', 'key')),
    name         text NOT NULL,        -- namespace/name; a handler of either language; a Sidekiq queue; a limit_key
    max_attempts int CHECK (max_attempts > 0), -- out at once; null: any number
    per_second   double precision CHECK (per_second > 0), -- attempts that may start; null: any number
    burst        double precision,     -- with per_second: as many may start at once after a lull
    tokens       double precision NOT NULL DEFAULT 0, -- of the burst, what was left at filled_at
    filled_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    paused_at    timestamptz,
    version      int NOT NULL DEFAULT 1, -- grows with each change of a setting
    changed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_by   text,
    reason       text,
    UNIQUE (scope, name)
) WITH (fillfactor = 50);
COMMENT ON TABLE tasker.gates IS 'Limits and pauses that operators have set; a row stays when all of them are lifted';

CREATE TABLE tasker.gate_slots (
    step_id  bigint NOT NULL,
    gate_id  int NOT NULL,
    task_id  bigint NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (step_id, gate_id)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX gate_slots_of_gate ON tasker.gate_slots (gate_id);

CREATE TABLE tasker.gate_waiters (
    step_id        bigint PRIMARY KEY, -- a step waits at one gate at a time
    gate_id        int NOT NULL,
    task_id        bigint NOT NULL,
    since          timestamptz NOT NULL DEFAULT clock_timestamp(),
    rank           timestamptz NOT NULL,
    admitted_until timestamptz,        -- set: its place is kept until then
    missed         int NOT NULL DEFAULT 0 -- admissions in a row that nobody used
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX gate_waiters_in_line ON tasker.gate_waiters (gate_id, rank, step_id) WHERE admitted_until IS NULL;
CREATE INDEX gate_waiters_admitted ON tasker.gate_waiters (gate_id, admitted_until) WHERE admitted_until IS NOT NULL;
CREATE INDEX gate_waiters_of_task ON tasker.gate_waiters (task_id);

ALTER TABLE tasker.events ALTER COLUMN task_id DROP NOT NULL; -- events of gates have none

-- A minute of waiting is worth a level of priority.
CREATE FUNCTION tasker.gate_rank(since timestamptz, priority int) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT since + (priority - 1) * interval '1 minute' $$;

CREATE FUNCTION tasker.gate_is_for(scope text, gate text, namespace text, name text, handler_class text, handler text, queue text, limit_key text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE scope WHEN 'template' THEN gate = namespace || '/' || name
        WHEN 'handler' THEN gate = coalesce(handler_class, handler)
        WHEN 'queue' THEN handler_class IS NOT NULL AND gate = queue
        ELSE gate = limit_key END
$$;

-- The tokens of a gate as of now. The row is locked.
CREATE FUNCTION tasker.gate_tokens(g tasker.gates) RETURNS double precision
LANGUAGE sql STABLE AS $$
    SELECT least(g.burst, g.tokens + g.per_second * greatest(0, extract(epoch FROM clock_timestamp() - g.filled_at)))
$$;

-- Which of these claims are denied. A pair is a step and a gate before it; a
-- step passes all its gates or none. What passes has its place when this
-- transaction commits; what is denied stands in line.
CREATE FUNCTION tasker.pass_gates(steps bigint[], gate_ids int[]) RETURNS bigint[]
LANGUAGE plpgsql AS $$
DECLARE
    g      tasker.gates;
    denied bigint[] := '{}';
    passed bigint[];
    stopped bigint[];
    room   bigint;
    kept   bigint;
BEGIN
    BEGIN
        PERFORM FROM tasker.gates l WHERE l.gate_id = ANY ($2) ORDER BY l.gate_id FOR NO KEY UPDATE;
    EXCEPTION WHEN lock_not_available THEN
        -- Somebody changes a gate in a transaction that stays open. Whose claims
        -- have to wait is said, so that the rest is not tried one by one, and each
        -- in vain for as long.
        RAISE EXCEPTION 'somebody changes a gate' USING ERRCODE = 'lock_not_available', DETAIL = (
            SELECT string_agg(DISTINCT s.task_id::text, ',') FROM unnest($1, $2) AS a(step_id, gate_id) JOIN tasker.steps s USING (step_id)
            WHERE a.gate_id NOT IN (SELECT l.gate_id FROM tasker.gates l WHERE l.gate_id = ANY ($2) ORDER BY l.gate_id FOR NO KEY UPDATE SKIP LOCKED));
    END;
    FOR g IN SELECT * FROM tasker.gates l WHERE l.gate_id = ANY ($2) ORDER BY l.gate_id LOOP
        room := CASE WHEN g.paused_at IS NOT NULL THEN 0 ELSE least(
            g.max_attempts - (SELECT count(*) FROM tasker.gate_slots o WHERE o.gate_id = g.gate_id),
            floor(tasker.gate_tokens(g))::bigint, 1000000) END;
        -- Places that are kept for others.
        SELECT count(*) INTO kept FROM tasker.gate_waiters w
        WHERE w.gate_id = g.gate_id AND w.admitted_until > clock_timestamp() AND w.step_id <> ALL ($1);
        SELECT coalesce(array_agg(c.step_id), '{}') INTO stopped FROM (
            SELECT a.step_id, w.admitted_until > clock_timestamp() IS TRUE AS admitted,
                   row_number() OVER (ORDER BY w.admitted_until > clock_timestamp() IS TRUE DESC, w.rank NULLS LAST, a.step_id) AS nth
            FROM unnest($1, $2) AS a(step_id, gate_id)
            LEFT JOIN tasker.gate_waiters w ON w.step_id = a.step_id AND w.gate_id = g.gate_id
            WHERE a.gate_id = g.gate_id AND a.step_id <> ALL (denied)) c
        WHERE c.nth > CASE WHEN c.admitted THEN room ELSE room - kept END
           OR NOT c.admitted AND EXISTS (SELECT FROM tasker.gate_waiters o WHERE o.gate_id = g.gate_id AND o.admitted_until IS NULL AND o.step_id <> ALL ($1));
        IF cardinality(stopped) > 0 THEN
            INSERT INTO tasker.gate_waiters AS w (step_id, gate_id, task_id, rank)
            SELECT s.step_id, g.gate_id, s.task_id, tasker.gate_rank(clock_timestamp(), t.priority)
            FROM tasker.steps s JOIN tasker.tasks t USING (task_id) WHERE s.step_id = ANY (stopped) ORDER BY s.step_id
            ON CONFLICT (step_id) DO UPDATE SET gate_id = EXCLUDED.gate_id, admitted_until = NULL, missed = 0; -- it keeps its rank
            denied := denied || stopped;
        END IF;
    END LOOP;

    SELECT coalesce(array_agg(DISTINCT p), '{}') INTO passed FROM unnest($1) p WHERE p <> ALL (denied);
    IF cardinality(passed) > 0 THEN
        INSERT INTO tasker.gate_slots (step_id, gate_id, task_id)
        SELECT a.step_id, a.gate_id, s.task_id FROM unnest($1, $2) AS a(step_id, gate_id)
        JOIN tasker.gates l USING (gate_id) JOIN tasker.steps s USING (step_id)
        WHERE l.max_attempts IS NOT NULL AND a.step_id = ANY (passed);
        UPDATE tasker.gates l SET tokens = tasker.gate_tokens(l) - p.n, filled_at = clock_timestamp()
        FROM (SELECT a.gate_id, count(*) AS n FROM unnest($1, $2) AS a(step_id, gate_id) WHERE a.step_id = ANY (passed) GROUP BY a.gate_id) p
        WHERE l.gate_id = p.gate_id AND l.per_second IS NOT NULL;
    END IF;
    RETURN denied;
END $$;

-- Gives places back, whoever ended the attempt.
ALTER TABLE tasker.steps ADD COLUMN gated boolean NOT NULL DEFAULT false; -- has passed a gate: it may hold places

CREATE FUNCTION tasker.leave_gates() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM tasker.gate_slots o WHERE o.step_id = NEW.step_id;
    RETURN NULL;
END $$;
CREATE TRIGGER leave_gates AFTER UPDATE ON tasker.steps FOR EACH ROW
    WHEN (OLD.gated AND OLD.state IN ('enqueued', 'in_progress') AND NEW.state NOT IN ('enqueued', 'in_progress'))
    EXECUTE FUNCTION tasker.leave_gates();

-- Admits the first in line at every gate where there is room, and wakes their
-- tasks. An admission that nobody has used in time goes back into the line: its
-- worker died, or its task was parked just then. If that happens again, the step
-- can't start for a reason of its task's (max_parallel_steps, fail_fast, no
-- worker has its handler) and goes to the end, so that it keeps no place from
-- others. A gate that somebody's open transaction holds is left out. Returns in
-- how many seconds it is worth calling again; null: nobody waits.
CREATE FUNCTION tasker.admit_waiters() RETURNS double precision
LANGUAGE plpgsql SET lock_timeout = '20ms' -- other gates are held meanwhile
AS $$
DECLARE
    g     tasker.gates;
    gate  int;
    out   bigint;
    kept  bigint;
    room  bigint;
    ids   bigint[];
    woken bigint[] := '{}';
    owned record;
    again double precision;
BEGIN
    FOR gate IN SELECT l.gate_id FROM tasker.gates l
                WHERE EXISTS (SELECT FROM tasker.gate_waiters w WHERE w.gate_id = l.gate_id) ORDER BY l.gate_id
    LOOP
        BEGIN
            SELECT * INTO g FROM tasker.gates l WHERE l.gate_id = gate FOR NO KEY UPDATE;
        EXCEPTION WHEN lock_not_available THEN
            again := least(again, 0.05);
            CONTINUE;
        END;
        again := least(again, 1);
        CONTINUE WHEN g.paused_at IS NOT NULL;
        UPDATE tasker.gate_waiters w SET admitted_until = NULL, missed = w.missed + 1,
            rank = CASE WHEN w.missed = 0 THEN w.rank ELSE
                greatest(clock_timestamp(), (SELECT max(o.rank) FROM tasker.gate_waiters o WHERE o.gate_id = g.gate_id AND o.admitted_until IS NULL) + interval '1 microsecond') END
        FROM (SELECT o.step_id FROM tasker.gate_waiters o WHERE o.gate_id = g.gate_id AND o.admitted_until < clock_timestamp() FOR UPDATE SKIP LOCKED) late
        WHERE w.step_id = late.step_id;
        LOOP
            SELECT count(*) INTO out FROM tasker.gate_slots o WHERE o.gate_id = g.gate_id;
            SELECT count(*) INTO kept FROM tasker.gate_waiters w WHERE w.gate_id = g.gate_id AND w.admitted_until IS NOT NULL;
            room := least(g.max_attempts - out, floor(tasker.gate_tokens(g))::bigint, 1000) - kept;
            EXIT WHEN room <= 0;
            SELECT array_agg(f.step_id) INTO ids FROM (
                SELECT w.step_id FROM tasker.gate_waiters w WHERE w.gate_id = g.gate_id AND w.admitted_until IS NULL
                ORDER BY w.rank, w.step_id LIMIT room FOR UPDATE SKIP LOCKED) f;
            EXIT WHEN ids IS NULL;
            -- Those that wait no more: cancelled, skipped, their task has ended, is paused or was deleted.
            DELETE FROM tasker.gate_waiters w WHERE w.step_id = ANY (ids) AND NOT EXISTS (
                SELECT FROM tasker.steps s JOIN tasker.tasks t USING (task_id) WHERE s.step_id = w.step_id
                  AND s.state IN ('pending', 'waiting_for_retry') AND t.state IN ('pending', 'in_progress') AND t.paused_at IS NULL);
            WITH admitted AS (
                UPDATE tasker.gate_waiters w SET admitted_until = clock_timestamp() + interval '5 seconds' WHERE w.step_id = ANY (ids) RETURNING w.task_id
            )
            SELECT woken || coalesce(array_agg(DISTINCT a.task_id), '{}') INTO woken FROM admitted a;
        END LOOP;
        -- When the next token comes that is not spoken for; where no place is free,
        -- the end of an attempt comes first.
        IF room <= 0 AND g.per_second IS NOT NULL AND (g.max_attempts > out + kept) IS NOT FALSE THEN
            again := least(again, greatest(0.001, (1 + kept - tasker.gate_tokens(g)) / g.per_second));
        END IF;
    END LOOP;

    IF cardinality(woken) > 0 THEN
        FOR owned IN SELECT t.owner, string_agg(t.task_id::text, ',') AS tasks
            FROM (SELECT u.owner, u.task_id, row_number() OVER (PARTITION BY u.owner) / 300 AS chunk FROM tasker.tasks u
                  WHERE u.task_id = ANY (woken) AND u.owner IS NOT NULL) t GROUP BY t.owner, t.chunk
        LOOP
            PERFORM pg_notify('tasker.worker_' || owned.owner, 'g' || owned.tasks);
        END LOOP;
        PERFORM tasker.schedule_runs(array_agg(t.task_id), array_agg(0::double precision))
        FROM tasker.tasks t WHERE t.task_id = ANY (woken) AND t.owner IS NULL HAVING count(*) > 0;
    END IF;
    RETURN again;
END $$;

-- Sets the limits of a gate; null lifts one. What is out stays out.
CREATE FUNCTION tasker.set_limit(scope text, name text, max_attempts int DEFAULT NULL, per_second double precision DEFAULT NULL,
                                 burst double precision DEFAULT NULL, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
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
        'scope', $1, 'name', $2, 'max_attempts', $3, 'per_second', $4, 'burst', b, 'by', $6, 'reason', $7)));
    PERFORM tasker.open_gates();
END $$;

-- Lets nothing start behind a gate, from the moment this commits; attempts that
-- are out may end. A queue is paused before Redis: jobs that are in it already run.
CREATE FUNCTION tasker.pause(scope text, name text, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM tasker.check_gate($1, $2);
    INSERT INTO tasker.gates AS g (scope, name, paused_at, changed_by, reason) VALUES ($1, $2, clock_timestamp(), $3, $4)
    ON CONFLICT (scope, name) DO UPDATE SET
        paused_at = clock_timestamp(), version = g.version + 1, changed_at = clock_timestamp(), changed_by = $3, reason = $4
    WHERE g.paused_at IS NULL;
    IF FOUND THEN
        INSERT INTO tasker.events (name, data) VALUES ('gate.paused', jsonb_strip_nulls(jsonb_build_object('scope', $1, 'name', $2, 'by', $3, 'reason', $4)));
    END IF;
END $$;

-- Has every worker look at the lines when this transaction commits.
CREATE FUNCTION tasker.open_gates() RETURNS void
LANGUAGE sql AS $$ SELECT count(pg_notify('tasker.worker_' || w.worker_id, 'g')) FROM tasker.workers w WHERE w.state = 'alive' $$;

CREATE FUNCTION tasker.resume(scope text, name text, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    UPDATE tasker.gates g SET paused_at = NULL, version = g.version + 1, changed_at = clock_timestamp(), changed_by = $3, reason = $4
    WHERE g.scope = $1 AND g.name = $2 AND g.paused_at IS NOT NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION '% % is not paused', $1, $2 USING ERRCODE = 'TK008';
    END IF;
    INSERT INTO tasker.events (name, data) VALUES ('gate.resumed', jsonb_strip_nulls(jsonb_build_object('scope', $1, 'name', $2, 'by', $3, 'reason', $4)));
    -- Workers admit whom it lets pass: doing so here would hold the gates until
    -- the caller's transaction ends.
    PERFORM tasker.open_gates();
END $$;

-- Refuses a gate that no step stands behind: a limit on a misspelt name would
-- limit nothing, and nobody would notice.
CREATE FUNCTION tasker.check_gate(scope text, name text) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    known text;
BEGIN
    IF $1 IS NULL OR $1 NOT IN ('template', 'handler', 'queue', 'key') THEN
        RAISE EXCEPTION 'there are limits and pauses of a template, handler, queue or key, not of a %', coalesce($1, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    IF EXISTS (SELECT FROM tasker.task_templates t JOIN tasker.template_steps s USING (template_id)
               WHERE tasker.gate_is_for($1, $2, t.namespace, t.name, s.handler_class, s.handler, s.queue, s.limit_key)) THEN
        RETURN;
    END IF;
    SELECT string_agg(n.it, ', ') INTO known FROM (
        SELECT DISTINCT CASE $1 WHEN 'template' THEN t.namespace || '/' || t.name WHEN 'handler' THEN coalesce(s.handler_class, s.handler)
                   WHEN 'queue' THEN CASE WHEN s.handler_class IS NOT NULL THEN s.queue END ELSE s.limit_key END AS it
        FROM tasker.task_templates t JOIN tasker.template_steps s USING (template_id) ORDER BY 1 LIMIT 50) n WHERE n.it IS NOT NULL;
    RAISE EXCEPTION 'no registered template has the % %; there are: %', $1, coalesce($2, 'NULL'), coalesce(known, 'none')
    USING ERRCODE = 'no_data_found', HINT = 'register the template first: tasker template register FOLDER';
END $$;

-- Priorities age: a job that has waited for one interval counts as 3 at most,
-- after two as 2, after three as 1. River serves equal priorities in the order
-- in which they were due, so nothing starves. Returns how many were moved up.
CREATE FUNCTION tasker.age_jobs(ageing interval, most int DEFAULT 10000) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    n     int := 0;
    moved int;
BEGIN
    FOR p IN 2..4 LOOP -- from the top, so that none is moved twice
        UPDATE tasker.river_job j SET priority = p - 1
        FROM (SELECT o.id FROM tasker.river_job o
              WHERE o.state = 'available' AND o.queue = 'default' AND o.priority = p AND o.scheduled_at < clock_timestamp() - ageing * (5 - p)
                AND o.kind = 'task_execution'
              ORDER BY o.scheduled_at LIMIT most FOR UPDATE SKIP LOCKED) due
        WHERE j.id = due.id;
        GET DIAGNOSTICS moved = ROW_COUNT;
        n := n + moved;
    END LOOP;
    RETURN n;
END $$;

-- As in 0003, with the time by which an attempt has to start, and with gates:
-- gate_steps and gate_ids are pairs of a claim and a gate before it, gates_seen
-- is what the claimer knows of the gates (null: it claims nothing). Returns the
-- steps whose claim was denied; all else is written.
DROP FUNCTION tasker.write_batch(bigint, bigint[], int[], text[], text[], boolean[], double precision[],
    bigint[], bigint[], text[], int[], text[], int[], int[], text[], text[], double precision[], text[], bigint[], bigint[]);
CREATE FUNCTION tasker.write_batch(
    worker bigint,
    task_ids bigint[], task_epochs int[], task_states text[], task_errors text[], task_release boolean[], task_rerun double precision[],
    step_ids bigint[], step_tasks bigint[], step_was text[], step_was_attempt int[],
    step_states text[], step_attempts int[], step_losses int[], step_results text[], step_errors text[],
    step_retry_in double precision[], step_queues text[],
    settled bigint[], parked bigint[],
    step_start_in double precision[], gate_steps bigint[], gate_ids int[], gates_seen bigint)
RETURNS bigint[]
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET lock_timeout = '100ms'
SET jit = off -- a scan of the few gates has the price of a forbidden one, and that would have it compiled, for 90 ms
AS $$
DECLARE
    n      int;
    faults text;
    denied bigint[] := '{}'; -- claims that a gate did not let pass
BEGIN
    PERFORM tasker.assert_worker(worker);

    -- Who claims must know the gates as they are.
    IF gates_seen <> (SELECT coalesce(sum(g.version), 0) FROM tasker.gates g) THEN
        SELECT string_agg(DISTINCT w.task_id::text, ',') INTO faults FROM unnest(step_tasks, step_states) AS w(task_id, state)
        WHERE w.state IN ('enqueued', 'in_progress');
        RAISE EXCEPTION 'the gates have changed' USING ERRCODE = 'TK009', DETAIL = coalesce(faults, '');
    END IF;

    -- Only tasks that change are locked; of the others it is enough that the
    -- loop still owns them, as only this worker or its reaper can change that.
    SELECT count(*) INTO n FROM unnest(task_ids, task_epochs) AS l(task_id, epoch)
    JOIN tasker.tasks t ON t.task_id = l.task_id AND t.owner = worker AND t.epoch = l.epoch;
    IF n <> cardinality(task_ids) THEN
        SELECT string_agg(l.task_id::text, ',') INTO faults FROM unnest(task_ids, task_epochs) AS l(task_id, epoch)
        WHERE NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.task_id = l.task_id AND t.owner = worker AND t.epoch = l.epoch);
        RAISE EXCEPTION 'a loop has lost its task' USING ERRCODE = 'TK005', DETAIL = faults;
    END IF;

    IF EXISTS (SELECT FROM unnest(task_states, task_release) AS l(state, release) WHERE l.state IS NOT NULL OR l.release) THEN
        UPDATE tasker.tasks t
        SET state       = coalesce(l.state, t.state),
            error       = coalesce(l.error::jsonb, t.error),
            owner       = CASE WHEN l.release THEN NULL ELSE t.owner END,
            finished_at = CASE WHEN l.state IS NOT NULL THEN clock_timestamp() ELSE t.finished_at END,
            paused_at   = CASE WHEN l.state IS NOT NULL THEN NULL ELSE t.paused_at END
        FROM unnest(task_ids, task_epochs, task_states, task_errors, task_release)
             AS l(task_id, epoch, state, error, release)
        WHERE t.task_id = l.task_id AND t.owner = worker AND t.epoch = l.epoch AND (l.state IS NOT NULL OR l.release);
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> (SELECT count(*) FROM unnest(task_states, task_release) AS l(state, release) WHERE l.state IS NOT NULL OR l.release) THEN
            RAISE EXCEPTION 'a loop has lost its task' USING ERRCODE = 'TK005';
        END IF;
    END IF;

    IF cardinality(gate_steps) > 0 THEN
        denied := tasker.pass_gates(gate_steps, gate_ids);
    END IF;
    IF gates_seen > 0 THEN -- who starts waits no more, also where its gate has been lifted
        DELETE FROM tasker.gate_waiters l WHERE l.step_id = ANY (step_ids) AND l.step_id <> ALL (denied);
    END IF;

    IF cardinality(step_ids) > 0 THEN
        UPDATE tasker.steps s
        SET state       = w.state,
            gated       = s.gated OR w.step_id = ANY (gate_steps),
            attempts    = w.attempt,
            losses      = w.losses,
            result      = coalesce(w.result::jsonb, s.result),
            error       = coalesce(w.error::jsonb, s.error),
            retry_at    = CASE WHEN w.retry_in IS NOT NULL THEN clock_timestamp() + make_interval(secs => w.retry_in) END,
            started_at  = CASE WHEN w.state = 'in_progress' THEN clock_timestamp() WHEN w.state = 'enqueued' THEN NULL ELSE s.started_at END,
            finished_at = CASE WHEN w.state IN ('complete', 'error', 'cancelled', 'skipped') THEN clock_timestamp() END
        FROM unnest(step_ids, step_was, step_was_attempt, step_states, step_attempts, step_losses, step_results, step_errors, step_retry_in)
             AS w(step_id, was, was_attempt, state, attempt, losses, result, error, retry_in)
        WHERE s.step_id = w.step_id AND s.state = w.was AND s.attempts = w.was_attempt AND w.step_id <> ALL (denied);
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> cardinality(step_ids) - cardinality(denied) THEN
            -- What was written has its new state by now; the rest has not.
            SELECT string_agg(DISTINCT w.task_id::text, ',') INTO faults
            FROM unnest(step_ids, step_tasks, step_states, step_attempts) AS w(step_id, task_id, state, attempt)
            WHERE w.step_id <> ALL (denied)
              AND NOT EXISTS (SELECT FROM tasker.steps s WHERE s.step_id = w.step_id AND s.state = w.state AND s.attempts = w.attempt);
            RAISE EXCEPTION 'a step is not in the state that its loop saw' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
        END IF;

        -- Looked at again now that the steps are held: a deadline that passed
        -- meanwhile has left steps alone that had not begun.
        IF gates_seen IS NOT NULL THEN
            SELECT count(*) - count(t.epoch) INTO n
            FROM unnest(task_ids, task_epochs, task_states, task_release) AS l(task_id, epoch, state, release)
            CROSS JOIN LATERAL (SELECT (SELECT u.epoch FROM tasker.tasks u WHERE u.task_id = l.task_id AND u.epoch = l.epoch)) AS t(epoch) -- by its key, one by one
            WHERE l.state IS NULL AND NOT l.release;
            IF n > 0 THEN
                SELECT string_agg(l.task_id::text, ',') INTO faults FROM unnest(task_ids, task_epochs, task_states, task_release) AS l(task_id, epoch, state, release)
                WHERE l.state IS NULL AND NOT l.release AND NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.task_id = l.task_id AND t.epoch = l.epoch);
                RAISE EXCEPTION 'a loop has lost its task' USING ERRCODE = 'TK005', DETAIL = faults;
            END IF;
        END IF;

        INSERT INTO tasker.dispatches AS d (step_id, task_id, attempt, queue, awaited_by, start_by)
        SELECT w.step_id, w.task_id, w.attempt, w.queue, worker, clock_timestamp() + make_interval(secs => w.start_in)
        FROM unnest(step_ids, step_tasks, step_attempts, step_states, step_queues, step_start_in) AS w(step_id, task_id, attempt, state, queue, start_in)
        WHERE w.state = 'enqueued' AND w.step_id <> ALL (denied);

        INSERT INTO tasker.events (task_id, step_id, attempt, name, data)
        SELECT w.task_id, w.step_id, w.attempt,
               CASE w.state WHEN 'in_progress' THEN 'step.handle' WHEN 'complete' THEN 'step.completed'
                   WHEN 'enqueued' THEN 'step.execution_requested' WHEN 'waiting_for_retry' THEN 'step.retry_requested'
                   WHEN 'error' THEN 'step.failed' WHEN 'cancelled' THEN 'step.cancelled' WHEN 'skipped' THEN 'step.skipped' END,
               CASE WHEN w.error IS NOT NULL THEN
                   jsonb_strip_nulls(jsonb_build_object('class', w.error::jsonb ->> 'class', 'message', left(w.error::jsonb ->> 'message', 500),
                                                        'code', w.error::jsonb ->> 'code', 'retry_in_seconds', w.retry_in)) END
        FROM unnest(step_ids, step_tasks, step_attempts, step_states, step_errors, step_retry_in) WITH ORDINALITY
             AS w(step_id, task_id, attempt, state, error, retry_in, ord)
        WHERE w.step_id <> ALL (denied)
        ORDER BY w.ord;
    END IF;

    IF cardinality(settled) > 0 THEN
        PERFORM FROM tasker.dispatches d WHERE d.step_id = ANY (settled) ORDER BY d.step_id FOR UPDATE;
        DELETE FROM tasker.dispatches d WHERE d.step_id = ANY (settled);
    END IF;

    IF cardinality(parked) > 0 THEN
        -- A locked row is being reported. Waiting for it could take as long as
        -- the reporter's transaction; to its loop it is a report that came.
        UPDATE tasker.dispatches d SET awaited_by = NULL
        FROM (SELECT l.step_id FROM tasker.dispatches l WHERE l.step_id = ANY (parked) AND l.failure IS NULL
              ORDER BY l.step_id FOR UPDATE SKIP LOCKED) free
        WHERE d.step_id = free.step_id AND d.failure IS NULL;
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> cardinality(parked) THEN
            SELECT string_agg(DISTINCT s.task_id::text, ',') INTO faults
            FROM tasker.steps s LEFT JOIN tasker.dispatches d USING (step_id)
            WHERE s.step_id = ANY (parked) AND (d.step_id IS NULL OR d.awaited_by IS NOT NULL OR d.failure IS NOT NULL);
            RAISE EXCEPTION 'a report came while its loop parked' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
        END IF;
    END IF;

    -- After the steps: events of a task read in the order of what happened.
    IF EXISTS (SELECT FROM unnest(task_states, task_rerun) AS l(state, rerun) WHERE l.state IS NOT NULL OR l.rerun IS NOT NULL) THEN
        INSERT INTO tasker.events (task_id, name, data)
        SELECT l.task_id, CASE l.state WHEN 'complete' THEN 'task.completed' WHEN 'error' THEN 'task.failed' WHEN 'cancelled' THEN 'task.cancelled' END,
               l.error::jsonb
        FROM unnest(task_ids, task_states, task_errors) AS l(task_id, state, error) WHERE l.state IS NOT NULL;
        INSERT INTO tasker.events (task_id, name, data)
        SELECT l.task_id, 'workflow.task_reenqueue_delayed', jsonb_build_object('delay_seconds', l.rerun)
        FROM unnest(task_ids, task_rerun) AS l(task_id, rerun) WHERE l.rerun >= 1; -- shorter ones are hand-overs between workers
        -- A job that is due no later will do.
        PERFORM tasker.schedule_runs(array_agg(l.task_id), array_agg(l.rerun))
        FROM unnest(task_ids, task_rerun) AS l(task_id, rerun)
        WHERE l.rerun IS NOT NULL AND NOT EXISTS (
            SELECT FROM tasker.river_job j
            WHERE j.kind = 'task_execution' AND j.args @> jsonb_build_object('task_id', l.task_id)
              AND j.state IN ('available', 'scheduled', 'retryable') AND j.scheduled_at <= clock_timestamp() + make_interval(secs => l.rerun))
        HAVING count(*) > 0;
    END IF;
    RETURN denied;
END $$;

-- As in 0003; who stands in line at a gate is not forgotten, and whose job was
-- lost on its way to a worker is.
CREATE OR REPLACE FUNCTION tasker.sweep() RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    found_tasks bigint[];
    w record;
    n int := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(tasker.fence_class(), 0) THEN
        RETURN 0;
    END IF;
    -- Jobs that run in clients which are gone.
    FOR w IN
        SELECT DISTINCT j.attempted_by[cardinality(j.attempted_by)] AS client FROM tasker.river_job j
        WHERE j.state = 'running' AND j.kind = 'task_execution'
          AND NOT EXISTS (SELECT FROM tasker.workers d WHERE d.client_id = j.attempted_by[cardinality(j.attempted_by)] AND d.state = 'alive')
    LOOP
        n := n + cardinality(tasker.rescue_jobs(w.client));
    END LOOP;
    -- Tasks of workers that are gone.
    FOR w IN
        SELECT DISTINCT t.owner FROM tasker.tasks t
        WHERE t.owner IS NOT NULL AND NOT EXISTS (SELECT FROM tasker.workers d WHERE d.worker_id = t.owner AND d.state = 'alive')
    LOOP
        n := n + tasker.release_worker(w.owner, '');
    END LOOP;
    -- Open tasks that nobody owns and nothing would bring back.
    SELECT array_agg(t.task_id) INTO found_tasks
    FROM (SELECT o.task_id FROM tasker.tasks o
          WHERE o.state IN ('pending', 'in_progress') AND o.owner IS NULL AND o.paused_at IS NULL
            AND NOT EXISTS (SELECT FROM tasker.dispatches d WHERE d.task_id = o.task_id AND d.failure IS NULL)
            AND NOT EXISTS (SELECT FROM tasker.gate_waiters l WHERE l.task_id = o.task_id)
          EXCEPT
          SELECT (j.args ->> 'task_id')::bigint FROM tasker.river_job j
          WHERE j.kind = 'task_execution' AND j.state IN ('available', 'running', 'scheduled', 'retryable', 'pending')
            -- One that runs for so long without an owner of its task was fetched by
            -- a client whose connection broke before the answer came: it never ran.
            AND (j.state <> 'running' OR j.attempted_at > now() - interval '30 seconds')
          LIMIT 10000) t;
    IF found_tasks IS NOT NULL THEN
        PERFORM tasker.schedule_runs(array_agg(t.task_id), array_agg(greatest(0, coalesce(extract(epoch FROM t.run_at - clock_timestamp()), 0))::double precision))
        FROM tasker.tasks t WHERE t.task_id = ANY (found_tasks);
        n := n + cardinality(found_tasks);
    END IF;
    -- What nobody will ask about any more.
    DELETE FROM tasker.workers d WHERE d.state <> 'alive' AND d.last_seen_at < now() - interval '7 days'
        AND NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.owner = d.worker_id);
    DELETE FROM tasker.processes p WHERE p.last_seen_at < now() - interval '7 days'
        AND NOT EXISTS (SELECT FROM tasker.dispatches d WHERE d.process_id = p.process_id);
    RETURN n;
END $$;

-- As in 0008; the place in line changes with the priority.
CREATE OR REPLACE FUNCTION tasker.set_task_priority(task bigint, priority smallint, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
BEGIN
    IF $2 IS NULL OR $2 NOT BETWEEN 1 AND 4 THEN
        RAISE EXCEPTION 'a priority is a number from 1, which goes first, to 4, not %', coalesce($2::text, 'NULL') USING ERRCODE = 'TK003';
    ELSIF t.state NOT IN ('pending', 'in_progress') THEN
        RAISE EXCEPTION 'task % is %: its priority does not matter any more', task, t.state USING ERRCODE = 'TK008';
    END IF;
    UPDATE tasker.tasks u SET priority = $2 WHERE u.task_id = task;
    UPDATE tasker.river_job j SET priority = $2
    WHERE j.kind = 'task_execution' AND j.args @> jsonb_build_object('task_id', task) AND j.state IN ('available', 'scheduled', 'retryable');
    UPDATE tasker.gate_waiters w SET rank = tasker.gate_rank(w.since, $2) WHERE w.task_id = task;
    PERFORM tasker.record_verb(task, NULL, 'task.priority_changed', who, why, jsonb_build_object('from', t.priority, 'to', $2));
END $$;

-- As in 0007, with gates and progress.
CREATE OR REPLACE VIEW tasker.step_readiness AS
SELECT t.task_id, s.step_id, s.position, s.name, s.state,
       r.reason = 'ready' AS ready,
       r.reason,
       CASE r.reason
           WHEN 'finished' THEN CASE s.state
               WHEN 'complete' THEN format('completed with attempt %s', s.attempts)
               WHEN 'cancelled' THEN 'was cancelled: what depends on it can''t run'
               WHEN 'skipped' THEN 'was skipped: what depends on it goes on without its result'
               ELSE 'was resolved by an operator' END
           WHEN 'attempts_exhausted' THEN format('used up its %s, the last one failed: %s',
               CASE s.attempt_limit WHEN 1 THEN 'only attempt' ELSE s.attempt_limit || ' attempts' END, tasker.failure_in_words(s.error))
           WHEN 'failed' THEN format('failed for good with attempt %s: %s', s.attempts, tasker.failure_in_words(s.error))
           WHEN 'running' THEN format('attempt %s of %s runs%s%s%s', s.attempts_used, s.attempt_limit,
               coalesce(format(' for %s s', round(extract(epoch FROM now() - s.started_at), 1)), ''),
               CASE WHEN s.handler IS NOT NULL
                   THEN (SELECT format(' in worker %s', w.name) FROM tasker.workers w WHERE w.worker_id = t.owner)
                   ELSE (SELECT format(' in process %s', p.identity) FROM tasker.dispatches o JOIN tasker.processes p USING (process_id)
                         WHERE o.step_id = s.step_id) END,
               ', progress ' || left(s.progress::text, 100))
           WHEN 'enqueued' THEN format('attempt %s of %s is in Sidekiq''s queue %s and has not begun', s.attempts_used, s.attempt_limit, s.queue)
           WHEN 'no_process_alive' THEN format('attempt %s of %s is in Sidekiq''s queue %s, and no Sidekiq process with tasker has given a sign of life for 10 s',
               s.attempts_used, s.attempt_limit, s.queue)
           WHEN 'task_cancelled' THEN 'its task was cancelled'
           WHEN 'blocked' THEN format('can''t run as things stand: %s%s', d.words,
               CASE WHEN NOT d.failed THEN format(', behind %s', c.failed_words) END)
           WHEN 'task_finished' THEN format('its task has ended as %s', t.state)
           WHEN 'paused' THEN format('its task was paused %s s ago', round(extract(epoch FROM now() - t.paused_at), 1))
           WHEN 'scheduled' THEN format('its task starts in %s s', round(extract(epoch FROM t.run_at - now()), 1))
           WHEN 'dependencies' THEN format('waits for %s of %s dependencies: %s',
               s.dependencies - d.satisfied, s.dependencies, d.words)
           WHEN 'fail_fast' THEN format('nothing new starts (on_failure: fail_fast) after %s', c.failed_words)
           WHEN 'backoff' THEN format('attempt %s of %s begins in %s s, the last one failed: %s',
               s.attempts_used + 1, s.attempt_limit, round(extract(epoch FROM s.retry_at - now()), 1), tasker.failure_in_words(s.error))
           WHEN 'at_limit' THEN format('starts when one of the %s attempts that are out has ended: max_parallel_steps is %s',
               c.outstanding, m.max_parallel_steps)
           WHEN 'gate_paused' THEN format('%s %s was paused %s s ago%s', gate.scope, gate.name, round(extract(epoch FROM now() - gate.paused_at), 1),
               coalesce(' by ' || gate.changed_by, ''))
           WHEN 'limited' THEN format('waits since %s s at the limit of %s %s (%s); %s before it', round(extract(epoch FROM now() - gate.since), 1), gate.scope, gate.name,
               concat_ws(', ', gate.out || ' of ' || gate.max_attempts || ' attempts are out', gate.per_second || ' per second'),
               CASE gate.ahead WHEN 0 THEN 'no step is' WHEN 1 THEN '1 step is' ELSE gate.ahead || ' steps are' END)
           WHEN 'no_handler_alive' THEN format('needs the Go handler %s, and %s', s.handler,
               CASE alive.workers WHEN 0 THEN 'no worker is alive' ELSE format('none of the workers alive (%s) has it', alive.workers) END)
           WHEN 'no_worker_alive' THEN 'may start, and no worker is alive that would start it'
           ELSE format('attempt %s of %s may start now', s.attempts_used + 1, s.attempt_limit)
       END AS explanation,
       s.dependencies AS dependencies_total,
       d.satisfied AS dependencies_satisfied,
       d.waiting_on,
       s.attempts, s.attempts_used, s.attempt_limit,
       CASE WHEN s.state = 'waiting_for_retry' THEN s.retry_at END AS retry_at,
       CASE WHEN s.state = 'waiting_for_retry' THEN greatest(extract(epoch FROM s.retry_at - now()), 0)::double precision END AS seconds_until_retry,
       gate.scope AS gate_scope, gate.name AS gate_name
FROM tasker.tasks t
JOIN tasker.task_templates m USING (template_id)
-- Who is alive. OFFSET 0 keeps each of these subqueries whole, so that it is
-- computed once: per query here, per task below.
CROSS JOIN (
    SELECT (SELECT count(*) FROM tasker.workers w
            WHERE w.state = 'alive' AND greatest(w.last_seen_at, pg_postmaster_start_time()) > now() - interval '10 seconds') AS workers,
           ARRAY(SELECT jsonb_array_elements_text(w.details -> 'handlers') FROM tasker.workers w
                 WHERE w.state = 'alive' AND greatest(w.last_seen_at, pg_postmaster_start_time()) > now() - interval '10 seconds'
                   AND jsonb_typeof(w.details -> 'handlers') = 'array') AS handlers,
           EXISTS (SELECT FROM tasker.processes p
                   WHERE p.stopped_at IS NULL AND greatest(p.last_seen_at, pg_postmaster_start_time()) > now() - interval '10 seconds') AS process
    OFFSET 0) alive
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE s.state IN ('enqueued', 'in_progress')) AS outstanding,
           count(*) FILTER (WHERE s.state = 'error') AS failed,
           array_to_string((array_agg(s.name || CASE s.state WHEN 'error' THEN format(' (error: %s)', tasker.failure_in_words(s.error)) ELSE ' (cancelled)' END
               ORDER BY s.position) FILTER (WHERE s.state IN ('error', 'cancelled')))[1:3], ', ') AS failed_words
    FROM tasker.steps s WHERE s.task_id = t.task_id) c
CROSS JOIN LATERAL (
    -- barred: what fails or is cancelled bars what depends on it, and so on
    -- down, through steps that are yet to start. A step that was skipped,
    -- resolved, or whose attempt is out passes it on to nobody. The edges are
    -- one JSON object, {dependency: [dependents]}, so that each round of the
    -- recursion looks up what it needs instead of reading them all: a chain of
    -- 10,000 steps takes as many rounds.
    WITH RECURSIVE edges AS MATERIALIZED (
        SELECT jsonb_object_agg(g.dependency, g.dependents) AS below
        FROM (SELECT e.dependency, jsonb_agg(w.position) AS dependents
              FROM tasker.steps w
              JOIN tasker.template_steps x ON x.template_id = t.template_id AND x.position = w.position
              CROSS JOIN LATERAL unnest(x.depends_on) AS e(dependency)
              WHERE w.task_id = t.task_id AND w.state IN ('pending', 'waiting_for_retry')
              GROUP BY e.dependency) g
    ), barred(position) AS (
        SELECT b.position FROM tasker.steps b WHERE b.task_id = t.task_id AND b.state IN ('error', 'cancelled')
        UNION
        SELECT e.position::int
        FROM barred b CROSS JOIN LATERAL jsonb_array_elements_text((SELECT below FROM edges) -> b.position::text) AS e(position)
    )
    SELECT w.step_id, w.position, w.name, w.state, w.attempts, w.retry_at, w.started_at, w.error, w.progress,
           w.attempts - w.losses - w.forgiven AS attempts_used,
           x.attempt_limit, x.handler, x.handler_class, x.queue, x.limit_key, x.depends_on, cardinality(x.depends_on) AS dependencies,
           b.position IS NOT NULL AS barred
    FROM tasker.steps w
    JOIN tasker.template_steps x ON x.template_id = t.template_id AND x.position = w.position
    LEFT JOIN barred b ON b.position = w.position
    WHERE w.task_id = t.task_id) s
CROSS JOIN LATERAL (
    SELECT (count(*) FILTER (WHERE u.satisfied))::int AS satisfied,
           coalesce(bool_or(u.state IN ('error', 'cancelled')), false) AS failed,
           coalesce(array_agg(u.name ORDER BY u.position) FILTER (WHERE NOT u.satisfied), '{}') AS waiting_on,
           array_to_string((array_agg(format('%s (%s%s)', u.name, replace(u.state, '_', ' '),
                   CASE WHEN u.state = 'error' THEN ': ' || tasker.failure_in_words(u.error) END)
               ORDER BY u.state NOT IN ('error', 'cancelled'), u.position) FILTER (WHERE NOT u.satisfied))[1:5], ', ')
           || CASE WHEN count(*) FILTER (WHERE NOT u.satisfied) > 5
              THEN format(' and %s more', count(*) FILTER (WHERE NOT u.satisfied) - 5) ELSE '' END AS words
    FROM unnest(s.depends_on) AS e(dependency)
    CROSS JOIN LATERAL (
        -- OFFSET 0: by index, one by one, however few steps a task has on average.
        SELECT p.position, p.name, p.state, p.error, p.state IN ('complete', 'skipped', 'resolved_manually') AS satisfied
        FROM tasker.steps p WHERE p.task_id = t.task_id AND p.position = e.dependency OFFSET 0) u) d
-- The gate that holds it, if one does: paused, or one that it waits at.
LEFT JOIN LATERAL (
    SELECT g.scope, g.name, g.paused_at, g.changed_by, g.max_attempts, g.per_second, w.since,
           (SELECT count(*) FROM tasker.gate_slots o WHERE o.gate_id = g.gate_id) AS out,
           (SELECT count(*) FROM tasker.gate_waiters a WHERE a.gate_id = g.gate_id AND (a.rank, a.step_id) < (w.rank, w.step_id)) AS ahead
    FROM tasker.gates g LEFT JOIN tasker.gate_waiters w ON w.gate_id = g.gate_id AND w.step_id = s.step_id
    WHERE s.state IN ('pending', 'waiting_for_retry')
      AND (g.paused_at IS NOT NULL AND tasker.gate_is_for(g.scope, g.name, t.namespace, t.name, s.handler_class, s.handler, s.queue, s.limit_key)
           OR w.step_id IS NOT NULL AND w.admitted_until IS NULL)
    ORDER BY g.paused_at IS NULL, g.gate_id LIMIT 1) gate ON true
-- The first reason that holds. What ends the matter comes first, then what the
-- step waits for, then what merely delays a start that is due.
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN s.state IN ('complete', 'skipped', 'resolved_manually', 'cancelled') THEN 'finished'
        WHEN s.state = 'error' AND s.attempts_used >= s.attempt_limit AND coalesce(s.error ->> 'permanent', '') <> 'true' THEN 'attempts_exhausted'
        WHEN s.state = 'error' THEN 'failed'
        WHEN t.state = 'cancelled' THEN 'task_cancelled'
        WHEN s.state = 'in_progress' THEN 'running'
        WHEN s.state = 'enqueued' THEN CASE WHEN alive.process THEN 'enqueued' ELSE 'no_process_alive' END
        WHEN t.state NOT IN ('pending', 'in_progress', 'error') THEN 'task_finished'
        WHEN s.barred THEN 'blocked'
        WHEN t.state = 'error' THEN 'task_finished'
        WHEN t.paused_at IS NOT NULL THEN 'paused'
        WHEN t.state = 'pending' AND t.run_at > now() THEN 'scheduled'
        WHEN d.satisfied < s.dependencies THEN 'dependencies'
        WHEN c.failed > 0 AND m.definition ->> 'on_failure' = 'fail_fast' THEN 'fail_fast'
        WHEN s.state = 'waiting_for_retry' AND s.retry_at > now() THEN 'backoff'
        WHEN c.outstanding >= m.max_parallel_steps THEN 'at_limit'
        WHEN gate.paused_at IS NOT NULL THEN 'gate_paused'
        WHEN gate.scope IS NOT NULL THEN 'limited'
        WHEN s.handler IS NOT NULL AND s.handler <> ALL (alive.handlers) THEN 'no_handler_alive'
        WHEN alive.workers = 0 THEN 'no_worker_alive'
        ELSE 'ready' END AS reason) r;
COMMENT ON VIEW tasker.step_readiness IS 'Per step: whether it may start now, and if not, why; filter by task_id';
