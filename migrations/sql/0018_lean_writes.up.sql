-- What a step costs: fewer statements per call, plans that go by a task's key
-- whatever the planner believes of the table's size, rows that stay on their page.

-- A finished step's row is about twice as long as a new one's. With less room its
-- new versions move to other pages, with new entries in both indexes.
ALTER TABLE tasker.steps SET (fillfactor = 45);

-- A step of a template is looked up by its position. To the planner of a small
-- table the key of the names, that begins with the template, is as good as the
-- primary key; of a template of many steps it would read all.
ALTER TABLE tasker.template_steps ADD CONSTRAINT template_steps_name_template_id_key UNIQUE (name, template_id);
ALTER TABLE tasker.template_steps DROP CONSTRAINT template_steps_template_id_name_key;

-- BEFORE triggers lock each row before they look at it, which costs as much as
-- half an update; AFTER triggers refuse the same statements. Conditions of
-- triggers, and CHECKs, are read from their text by every statement, functions
-- in SQL are parsed besides: so these are short, and call PL/pgSQL.
DROP TRIGGER refuse_transition ON tasker.steps;
DROP TRIGGER refuse_transition ON tasker.tasks;
DROP TRIGGER leave_gates ON tasker.steps;

-- The commonest first: the list is searched from its beginning.
CREATE OR REPLACE FUNCTION tasker.step_may_become(was text, becomes text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN was || '>' || becomes = ANY ('{
        pending>in_progress,in_progress>complete,pending>enqueued,enqueued>in_progress,enqueued>complete,
        pending>cancelled,pending>skipped,pending>resolved_manually,
        enqueued>waiting_for_retry,enqueued>error,
        enqueued>cancelled,enqueued>skipped,enqueued>resolved_manually,
        in_progress>waiting_for_retry,in_progress>error,
        in_progress>cancelled,in_progress>skipped,in_progress>resolved_manually,
        waiting_for_retry>enqueued,waiting_for_retry>in_progress,
        waiting_for_retry>cancelled,waiting_for_retry>skipped,waiting_for_retry>resolved_manually,
        error>pending,error>cancelled,error>skipped,error>resolved_manually}'::text[]);
END $$;

CREATE OR REPLACE FUNCTION tasker.task_may_become(was text, becomes text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN was || '>' || becomes = ANY ('{
        pending>in_progress,in_progress>complete,in_progress>error,in_progress>cancelled,
        pending>error,pending>cancelled,
        error>in_progress,error>resolved_manually,error>cancelled}'::text[]);
END $$;

CREATE OR REPLACE FUNCTION tasker.leave_gates() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state IN ('enqueued', 'in_progress') AND NEW.state NOT IN ('enqueued', 'in_progress') THEN
        DELETE FROM tasker.gate_slots o WHERE o.step_id = NEW.step_id;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER refuse_transition AFTER UPDATE ON tasker.tasks FOR EACH ROW
    WHEN (OLD.state <> NEW.state AND NOT tasker.task_may_become(OLD.state, NEW.state)) EXECUTE FUNCTION tasker.refuse_transition();
CREATE TRIGGER refuse_transition AFTER UPDATE ON tasker.steps FOR EACH ROW
    WHEN (OLD.state <> NEW.state AND NOT tasker.step_may_become(OLD.state, NEW.state)) EXECUTE FUNCTION tasker.refuse_transition();
CREATE TRIGGER leave_gates AFTER UPDATE ON tasker.steps FOR EACH ROW
    WHEN (OLD.gated AND OLD.state <> NEW.state) EXECUTE FUNCTION tasker.leave_gates();

-- A task begins as pending, whatever is inserted, and the engine alone inserts
-- steps; from there on only transitions that exist pass.
ALTER TABLE tasker.tasks DROP CONSTRAINT tasks_state_check;
ALTER TABLE tasker.steps DROP CONSTRAINT steps_state_check;

-- Holds the worker's fence to the end of the transaction, so that nobody can
-- declare it dead meanwhile, and looks whether it is alive.
CREATE OR REPLACE FUNCTION tasker.assert_worker(worker bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(tasker.fence_class(), worker::int) THEN -- an expression costs less than a statement
        PERFORM pg_advisory_xact_lock_shared(tasker.fence_class(), worker::int);
    END IF;
    -- A statement of its own: its snapshot is taken after the lock is held.
    IF NOT EXISTS (SELECT FROM tasker.workers w WHERE w.worker_id = worker AND w.state = 'alive') THEN
        RAISE EXCEPTION 'worker % has been declared dead', worker USING ERRCODE = 'TK004';
    END IF;
END $$;

CREATE OR REPLACE FUNCTION tasker.ring() RETURNS trigger
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    sleepers boolean;
    waiters  boolean;
BEGIN
    SELECT EXISTS (SELECT FROM tasker.event_sleepers s WHERE s.until > statement_timestamp()),
           EXISTS (SELECT FROM tasker.task_waiters a WHERE a.until > statement_timestamp()) INTO sleepers, waiters;
    IF sleepers THEN
        PERFORM pg_notify(s.channel, 'events ' || s.name) FROM tasker.event_sleepers s
        WHERE s.until > statement_timestamp() AND EXISTS (SELECT FROM written w WHERE w.name LIKE ANY (s.likes));
    END IF;
    IF waiters THEN
        PERFORM pg_notify(a.channel, 'task ' || a.task_id) FROM written w JOIN tasker.task_waiters a USING (task_id)
        WHERE w.name IN ('task.completed', 'task.failed', 'task.cancelled', 'task.resolved_manually');
    END IF;
    RETURN NULL;
END $$;

-- What is asked of tasks is dressed (coalesce, CASE) where a partial index could
-- answer it: the planner would read that index whole, having seen the table when
-- it was nearly empty, and once for each task.
DROP FUNCTION tasker.claim_tasks(bigint, bigint[]);
CREATE FUNCTION tasker.claim_tasks(worker bigint, ids bigint[], opening bigint[] DEFAULT '{}', gates_seen bigint DEFAULT NULL)
RETURNS TABLE (task_id bigint, template_id bigint, epoch int, context jsonb, correlation_id text, fresh bigint[], begun boolean)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan
SET lock_timeout = '100ms' AS $$
#variable_conflict use_column
DECLARE
    wanted bigint[] := ARRAY(SELECT DISTINCT u FROM unnest(ids) AS u ORDER BY u); -- the lock order
    locked boolean  := false; -- whether all that are wanted are
    taken  bigint[] := '{}';
    again  bigint[] := '{}';  -- of those: claimed before, by whomever
BEGIN
    PERFORM tasker.assert_worker(worker);

    LOOP
        WITH claimed AS (
            UPDATE tasker.tasks t
            SET owner = worker, epoch = t.epoch + 1, state = 'in_progress', started_at = coalesce(t.started_at, now())
            FROM unnest(wanted) AS l(id)
            WHERE t.task_id = l.id AND coalesce(t.owner, worker) = worker AND t.paused_at IS NULL
              AND CASE t.state WHEN 'pending' THEN true WHEN 'in_progress' THEN true ELSE false END
            RETURNING t.task_id, t.started_at = now() AS first
        ), told AS (
            INSERT INTO tasker.events (task_id, name) SELECT c.task_id, 'task.start_requested' FROM claimed c WHERE c.first
        )
        SELECT taken || array_agg(c.task_id), again || array_agg(c.task_id) FILTER (WHERE NOT c.first) INTO taken, again FROM claimed c;
        EXIT WHEN locked OR cardinality(taken) = cardinality(wanted);
        -- Somebody's, or finished. But whoever relied on the job that led here may be
        -- giving a task up at this moment: that is waited for, or the claim is
        -- refused, and the job comes back.
        wanted := ARRAY(SELECT w FROM unnest(wanted) AS w WHERE w <> ALL (taken));
        PERFORM FROM tasker.tasks t WHERE t.task_id = ANY (wanted) ORDER BY t.task_id FOR NO KEY UPDATE;
        locked := true;
    END LOOP;

    -- Reports of these attempts ring here from now on. One whose row is locked
    -- is being reported by a transaction that may stay open for long: it rings
    -- where it rang before, and this worker finds it by looking (CatchUp).
    IF cardinality(again) > 0 THEN
        UPDATE tasker.dispatches d SET awaited_by = worker
        FROM (SELECT l.step_id FROM tasker.dispatches l WHERE l.task_id = ANY (again) ORDER BY l.step_id FOR UPDATE SKIP LOCKED) free
        WHERE d.step_id = free.step_id;
    END IF;

    -- What their loops would write first, for tasks that nobody has touched.
    IF cardinality(opening) > 0 AND gates_seen = (SELECT coalesce(sum(g.version), 0) FROM tasker.gates g) THEN
        WITH untouched AS MATERIALIZED ( -- once for each task, not for each of its roots
            SELECT t.task_id, t.template_id
            FROM unnest(taken) AS l(id)
            CROSS JOIN LATERAL (SELECT * FROM tasker.tasks u WHERE u.task_id = l.id OFFSET 0) t
            WHERE t.epoch = 1 AND t.template_id = ANY (opening)
              AND (SELECT bool_and(x.state = 'pending' AND x.attempts = 0) FROM tasker.steps x WHERE x.task_id = t.task_id)
        ), first AS MATERIALIZED (
            SELECT r.template_id, r.position, r.queue, r.schedule_to_start_seconds, CASE WHEN r.handler IS NULL THEN 'enqueued' ELSE 'in_progress' END AS state
            FROM tasker.template_steps r WHERE r.template_id = ANY (opening) AND r.depends_on = '{}'
        ), roots AS (
            SELECT s.step_id, r.queue, r.schedule_to_start_seconds, r.state
            FROM untouched t JOIN first r USING (template_id)
            CROSS JOIN LATERAL (SELECT u.step_id FROM tasker.steps u WHERE u.task_id = t.task_id AND u.position = r.position OFFSET 0) s
            ORDER BY s.step_id -- the lock order
        ), started AS (
            UPDATE tasker.steps s
            SET state = r.state, attempts = 1, started_at = CASE WHEN r.state = 'in_progress' THEN clock_timestamp() END
            FROM roots r WHERE s.step_id = r.step_id
            RETURNING s.step_id, s.task_id, r.queue, r.schedule_to_start_seconds, r.state
        ), sent AS (
            INSERT INTO tasker.dispatches (step_id, task_id, attempt, queue, awaited_by, start_by)
            SELECT n.step_id, n.task_id, 1, n.queue, worker, clock_timestamp() + make_interval(secs => n.schedule_to_start_seconds)
            FROM started n WHERE n.state = 'enqueued'
        )
        INSERT INTO tasker.events (task_id, step_id, attempt, name)
        SELECT n.task_id, n.step_id, 1, CASE n.state WHEN 'enqueued' THEN 'step.execution_requested' ELSE 'step.handle' END FROM started n;
    END IF;

    -- At the first claim of all, an attempt can only be one that has just begun.
    RETURN QUERY
    SELECT t.task_id, t.template_id, t.epoch, t.context, t.correlation_id, f.steps, coalesce(f.begun, false)
    FROM unnest(taken) AS l(id)
    CROSS JOIN LATERAL (SELECT * FROM tasker.tasks u WHERE u.task_id = l.id OFFSET 0) t -- by its key, one by one
    CROSS JOIN LATERAL (
        SELECT CASE WHEN bool_and(s.state = 'pending' OR s.attempts = 1) THEN array_agg(s.step_id ORDER BY s.position) END AS steps, bool_or(s.attempts = 1) AS begun
        FROM tasker.steps s WHERE t.epoch = 1 AND s.task_id = t.task_id) f;
END $$;
COMMENT ON FUNCTION tasker.claim_tasks IS 'The worker becomes owner of those tasks that are free. fresh: the ids of the steps, by position, of a task that nobody has touched; begun: their roots have been claimed too, as their template is one of those that are opening';

-- Refuses claims whose loops know other gates than there are.
CREATE FUNCTION tasker.assert_gates(seen bigint, step_tasks bigint[], step_states text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    faults text;
BEGIN
    IF seen <> (SELECT coalesce(sum(g.version), 0) FROM tasker.gates g) THEN
        SELECT string_agg(DISTINCT w.task_id::text, ',') INTO faults FROM unnest(step_tasks, step_states) AS w(task_id, state)
        WHERE w.state IN ('enqueued', 'in_progress');
        RAISE EXCEPTION 'the gates have changed' USING ERRCODE = 'TK009', DETAIL = coalesce(faults, '');
    END IF;
END $$;

CREATE OR REPLACE FUNCTION tasker.write_batch(
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
SET plan_cache_mode = force_generic_plan
SET jit = off -- a scan of the few gates has the price of a forbidden one, and that would have it compiled, for 90 ms
AS $$
DECLARE
    n      int;
    faults text;
    denied bigint[] := '{}'; -- claims that a gate did not let pass
    moved  bigint[];         -- tasks that were given a state, or given up
    alive  boolean;
    gates  bigint;
    lost   int;
BEGIN
    -- As tasker.assert_worker does it; whether the worker is alive is asked below.
    IF NOT pg_try_advisory_xact_lock_shared(tasker.fence_class(), worker::int) THEN
        PERFORM tasker.assert_worker(worker);
    END IF;
    IF gates_seen > 0 THEN
        PERFORM tasker.assert_gates(gates_seen, step_tasks, step_states);
    END IF;

    -- Only tasks that change are locked; of the others it is enough that the
    -- loop still owns them, as only this worker or its reaper can change that.
    IF true = ANY (task_release) OR cardinality(array_remove(task_states, NULL)) > 0 THEN
        WITH changed AS (
            UPDATE tasker.tasks t
            SET state       = coalesce(l.state, t.state),
                error       = coalesce(l.error::jsonb, t.error),
                owner       = CASE WHEN l.release THEN NULL ELSE t.owner END,
                finished_at = CASE WHEN l.state IS NOT NULL THEN clock_timestamp() ELSE t.finished_at END,
                paused_at   = CASE WHEN l.state IS NOT NULL THEN NULL ELSE t.paused_at END
            FROM unnest(task_ids, task_epochs, task_states, task_errors, task_release)
                 AS l(task_id, epoch, state, error, release)
            WHERE t.task_id = l.task_id AND coalesce(t.owner, 0) = worker AND t.epoch = l.epoch AND (l.state IS NOT NULL OR l.release)
            RETURNING t.task_id)
        SELECT coalesce(array_agg(c.task_id), '{}'),
               (SELECT count(*) FROM unnest(task_states, task_release) AS l(state, release) WHERE l.state IS NOT NULL OR l.release)
        INTO moved, n FROM changed c;
        IF n <> cardinality(moved) THEN
            PERFORM tasker.assert_worker(worker);
            SELECT string_agg(l.task_id::text, ',') INTO faults FROM unnest(task_ids, task_states, task_release) AS l(task_id, state, release)
            WHERE (l.state IS NOT NULL OR l.release) AND l.task_id <> ALL (moved);
            RAISE EXCEPTION 'a loop has lost its task' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
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
            PERFORM tasker.assert_worker(worker);
            -- What was written has its new state by now; the rest has not.
            SELECT string_agg(DISTINCT w.task_id::text, ',') INTO faults
            FROM unnest(step_ids, step_tasks, step_states, step_attempts) AS w(step_id, task_id, state, attempt)
            WHERE w.step_id <> ALL (denied)
              AND NOT EXISTS (SELECT FROM tasker.steps s WHERE s.step_id = w.step_id AND s.state = w.state AND s.attempts = w.attempt);
            RAISE EXCEPTION 'a step is not in the state that its loop saw' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
        END IF;

        IF 'enqueued' = ANY (step_states) THEN
            INSERT INTO tasker.dispatches AS d (step_id, task_id, attempt, queue, awaited_by, start_by)
            SELECT w.step_id, w.task_id, w.attempt, w.queue, worker, clock_timestamp() + make_interval(secs => w.start_in)
            FROM unnest(step_ids, step_tasks, step_attempts, step_states, step_queues, step_start_in) AS w(step_id, task_id, attempt, state, queue, start_in)
            WHERE w.state = 'enqueued' AND w.step_id <> ALL (denied);
        END IF;
    END IF;

    -- In the order of the arrays, as that is how they are read, and the tasks
    -- last: events of a task read in the order of what happened.
    IF cardinality(step_ids) > 0 OR cardinality(moved) > 0 THEN
        INSERT INTO tasker.events (task_id, step_id, attempt, name, data)
        SELECT w.task_id, w.step_id, w.attempt,
               CASE w.state WHEN 'in_progress' THEN 'step.handle' WHEN 'complete' THEN 'step.completed'
                   WHEN 'enqueued' THEN 'step.execution_requested' WHEN 'waiting_for_retry' THEN 'step.retry_requested'
                   WHEN 'error' THEN 'step.failed' WHEN 'cancelled' THEN 'step.cancelled' WHEN 'skipped' THEN 'step.skipped' END,
               CASE WHEN w.error IS NOT NULL THEN
                   jsonb_strip_nulls(jsonb_build_object('class', w.error::jsonb ->> 'class', 'message', left(w.error::jsonb ->> 'message', 500),
                                                        'code', w.error::jsonb ->> 'code', 'retry_in_seconds', w.retry_in)) END
        FROM unnest(step_ids, step_tasks, step_attempts, step_states, step_errors, step_retry_in)
             AS w(step_id, task_id, attempt, state, error, retry_in)
        WHERE w.step_id <> ALL (denied)
        UNION ALL
        SELECT l.task_id, NULL, NULL, CASE l.state WHEN 'complete' THEN 'task.completed' WHEN 'error' THEN 'task.failed' WHEN 'cancelled' THEN 'task.cancelled' END,
               l.error::jsonb
        FROM unnest(task_ids, task_states, task_errors) AS l(task_id, state, error) WHERE l.state IS NOT NULL;
    END IF;

    -- Looked at now that the steps are held: a deadline that passed meanwhile
    -- has left steps alone that had not begun, and who claims must know the
    -- gates as they are.
    SELECT (SELECT w.state = 'alive' FROM tasker.workers w WHERE w.worker_id = worker),
           CASE WHEN gates_seen IS NOT NULL THEN (SELECT coalesce(sum(g.version), 0) FROM tasker.gates g) END,
           (SELECT count(*) FROM unnest(task_ids, task_epochs, task_states, task_release) AS l(task_id, epoch, state, release)
            WHERE l.state IS NULL AND NOT l.release
              AND worker IS DISTINCT FROM (SELECT t.owner FROM tasker.tasks t WHERE t.task_id = l.task_id AND t.epoch = l.epoch))
    INTO alive, gates, lost;
    IF alive IS NOT TRUE THEN
        PERFORM tasker.assert_worker(worker);
    ELSIF gates <> gates_seen THEN
        PERFORM tasker.assert_gates(gates_seen, step_tasks, step_states);
    ELSIF lost > 0 THEN
        SELECT string_agg(l.task_id::text, ',') INTO faults FROM unnest(task_ids, task_epochs, task_states, task_release) AS l(task_id, epoch, state, release)
        WHERE l.state IS NULL AND NOT l.release
          AND worker IS DISTINCT FROM (SELECT t.owner FROM tasker.tasks t WHERE t.task_id = l.task_id AND t.epoch = l.epoch);
        RAISE EXCEPTION 'a loop has lost its task' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
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

    IF cardinality(array_remove(task_rerun, NULL)) > 0 THEN
        INSERT INTO tasker.events (task_id, name, data)
        SELECT l.task_id, 'workflow.task_reenqueue_delayed', jsonb_build_object('delay_seconds', l.rerun)
        FROM unnest(task_ids, task_rerun) AS l(task_id, rerun) WHERE l.rerun >= 1; -- shorter ones are hand-overs between workers
        -- A job that is due no later will do.
        PERFORM tasker.schedule_runs(array_agg(l.task_id), array_agg(l.rerun))
        FROM unnest(task_ids, task_rerun) AS l(task_id, rerun)
        WHERE l.rerun IS NOT NULL AND NOT EXISTS (
            SELECT FROM tasker.river_job j
            WHERE (j.args ->> 'task_id')::bigint = l.task_id AND j.kind = 'task_execution'
              AND j.state IN ('available', 'scheduled', 'retryable') AND j.scheduled_at <= clock_timestamp() + make_interval(secs => l.rerun))
        HAVING count(*) > 0;
    END IF;
    RETURN denied;
END $$;

-- As it was, with plans that hold for templates of many steps.
CREATE OR REPLACE FUNCTION tasker.start_attempts(step_ids bigint[], attempts int[], process_id bigint DEFAULT NULL, call_id bigint DEFAULT NULL)
RETURNS TABLE (
    step_id bigint, attempt int, refusal text,
    task_id bigint, namespace text, name text, version text, context jsonb, priority smallint, correlation_id text, parent_task_id bigint,
    tags text[], initiator text, source_system text, reason text, created_at timestamptz,
    step_name text, attempts_used int, attempt_limit int, handler_class text, config jsonb, timeout_seconds double precision,
    heartbeat_seconds double precision, progress jsonb, dependencies json, carrier jsonb)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $_$
#variable_conflict use_column
DECLARE
    free bigint[];
BEGIN
    IF array_ndims(step_ids) > 1 OR cardinality(step_ids) IS DISTINCT FROM cardinality(attempts)
       OR (SELECT count(DISTINCT u) FROM unnest(step_ids) u) IS DISTINCT FROM cardinality(step_ids) THEN
        RAISE EXCEPTION 'start_attempts wants one attempt for each step, and each step once' USING ERRCODE = 'TK007';
    END IF;

    -- Locked first, looked at afterwards: a report that gives the attempt up
    -- holds the same lock. Several don't wait for one that somebody's open
    -- transaction holds: it stays enqueued, and is found and pushed again.
    IF cardinality(step_ids) = 1 THEN
        PERFORM FROM tasker.steps u WHERE u.step_id = step_ids[1] FOR NO KEY UPDATE;
        free := step_ids;
    ELSE
        SELECT coalesce(array_agg(l.step_id), '{}') INTO free
        FROM (SELECT u.step_id FROM tasker.steps u WHERE u.step_id = ANY (step_ids) ORDER BY u.step_id FOR NO KEY UPDATE SKIP LOCKED) l;
    END IF;

    RETURN QUERY
    WITH wanted AS MATERIALIZED (
        SELECT w.step_id, w.attempt, w.ord FROM unnest(step_ids, attempts) WITH ORDINALITY AS w(step_id, attempt, ord)
    ), begun AS (
        UPDATE tasker.steps u SET state = 'in_progress', started_at = clock_timestamp()
        FROM wanted w
        WHERE u.step_id = w.step_id AND u.attempts = w.attempt AND u.state = 'enqueued' AND w.step_id = ANY (free)
          AND (SELECT d.failure IS NULL FROM tasker.dispatches d WHERE d.step_id = w.step_id)
        RETURNING u.step_id, u.task_id, u.position, u.started_at, w.attempt, w.ord, u.name, u.progress, u.attempts - u.losses - u.forgiven AS used
    ), marked AS (
        -- An attempt that no process answers for has an hour, if nothing else is said.
        UPDATE tasker.dispatches d
        SET process_id = $3, call_id = $4, started_at = b.started_at, start_by = NULL,
            deadline = b.started_at + make_interval(secs => coalesce(spec.timeout_seconds, CASE WHEN $3 IS NULL AND spec.heartbeat_seconds IS NULL THEN 3600 END)),
            heartbeat = make_interval(secs => spec.heartbeat_seconds), beat_by = b.started_at + make_interval(secs => spec.heartbeat_seconds)
        FROM begun b CROSS JOIN LATERAL (
            SELECT s.timeout_seconds, s.heartbeat_seconds FROM tasker.tasks t JOIN tasker.template_steps s ON s.template_id = t.template_id AND s.position = b.position
            WHERE t.task_id = b.task_id OFFSET 0) spec -- by its key, one by one, here and below
        WHERE d.step_id = b.step_id
    ), recorded AS (
        INSERT INTO tasker.events (task_id, step_id, attempt, name)
        SELECT b.task_id, b.step_id, b.attempt, 'step.handle' FROM begun b ORDER BY b.ord
    ), judged AS (
        SELECT b.step_id, b.attempt, b.ord, b.task_id, b.position, b.name AS step_name, b.progress, b.used, NULL AS refusal FROM begun b
        UNION ALL
        SELECT w.step_id, w.attempt, w.ord, s.task_id, s.position, s.name, s.progress, s.attempts - s.losses - s.forgiven, CASE
            WHEN s.step_id IS NULL THEN format('there is no step %s', w.step_id)
            WHEN s.attempts <> w.attempt THEN format('step %s (%s) is at attempt %s, not %s', w.step_id, s.name, s.attempts, w.attempt)
            -- Begun by this very call, whose answer was lost.
            WHEN s.state = 'in_progress' AND EXISTS (SELECT FROM tasker.dispatches d WHERE d.step_id = w.step_id AND d.call_id = $4 AND d.failure IS NULL) THEN NULL
            WHEN s.state = 'enqueued' AND w.step_id <> ALL (free) THEN format('step %s (%s) is held by another transaction', w.step_id, s.name)
            WHEN s.state = 'enqueued' THEN format('attempt %s of step %s (%s) has been reported', w.attempt, w.step_id, s.name)
            ELSE format('attempt %s of step %s (%s) is %s', w.attempt, w.step_id, s.name, s.state) END
        FROM wanted w LEFT JOIN tasker.steps s ON s.step_id = w.step_id
        WHERE w.step_id <> ALL (ARRAY(SELECT b.step_id FROM begun b))
    )
    SELECT j.step_id, j.attempt, j.refusal,
           t.task_id, t.namespace, t.name, t.version, t.context, t.priority, t.correlation_id, t.parent_task_id, t.tags,
           t.initiator, t.source_system, t.reason, t.created_at,
           j.step_name, j.used, spec.attempt_limit, spec.handler_class, spec.handler_config, spec.timeout_seconds::double precision,
           spec.heartbeat_seconds::double precision, j.progress,
           CASE WHEN cardinality(spec.depends_on) > 0 THEN (
               SELECT json_object_agg(u.name, u.result ORDER BY d.position)
               FROM unnest(spec.depends_on) AS d(position)
               CROSS JOIN LATERAL (SELECT s.name, s.result FROM tasker.steps s WHERE s.task_id = j.task_id AND s.position = d.position OFFSET 0) u) END,
           t.carrier
    FROM judged j
    LEFT JOIN LATERAL (SELECT * FROM tasker.tasks u WHERE u.task_id = j.task_id AND j.refusal IS NULL OFFSET 0) t ON true
    LEFT JOIN LATERAL (SELECT * FROM tasker.template_steps s WHERE s.template_id = t.template_id AND s.position = j.position OFFSET 0) spec ON true
    ORDER BY j.ord;
END $_$;

-- ── Enqueuing ──

-- River asks none of these; its jobs here are all of one kind, and the arguments
-- are one number. Each job is written three times, with all of its indexes.
DROP INDEX tasker.river_job_args_index;
DROP INDEX tasker.river_job_metadata_index;
DROP INDEX tasker.river_job_kind;
CREATE INDEX river_job_of_task ON tasker.river_job (((args ->> 'task_id')::bigint))
    WHERE kind = 'task_execution' AND state IN ('available', 'scheduled', 'retryable');

-- Whether there is any is asked with every INSERT of tasks.
CREATE INDEX task_templates_with_schema ON tasker.task_templates (template_id) WHERE context_schema IS NOT NULL;

-- One trigger before each row instead of four, one after the statement instead
-- of two: each costs, whether it has something to do or not.
DROP TRIGGER refuse_carrier ON tasker.tasks;
DROP TRIGGER refuse_deadline ON tasker.tasks;
DROP TRIGGER refuse_run_at ON tasker.tasks;
DROP FUNCTION tasker.refuse_carrier(), tasker.refuse_time();
DROP TRIGGER check_contexts ON tasker.tasks;
DROP FUNCTION tasker.check_contexts();
ALTER TABLE tasker.tasks DROP CONSTRAINT tasks_priority_check;
CREATE FUNCTION tasker.refuse_priority() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the priority of a task is a number from 1, which goes first, to 4, not %', coalesce(NEW.priority::text, 'NULL') USING ERRCODE = 'TK003';
END $$;
CREATE TRIGGER refuse_priority AFTER UPDATE OF priority ON tasker.tasks FOR EACH ROW
    WHEN (NEW.priority < 1 OR NEW.priority > 4) EXECUTE FUNCTION tasker.refuse_priority();

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

-- In PL/pgSQL: a function in SQL that returns nothing is planned anew by each call.
CREATE OR REPLACE FUNCTION tasker.notify_river() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('tasker.river_insert', '{"queue": "default"}');
END $$;

CREATE OR REPLACE FUNCTION tasker.expand_tasks() RETURNS trigger
LANGUAGE plpgsql
SET jit = off AS $$
DECLARE
    bypassed boolean;
    due      boolean;
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
    SELECT bool_or(bypass_steps <> '{}'), bool_or(run_at IS NULL OR run_at <= now()) INTO bypassed, due FROM new_tasks;
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
    IF due THEN
        PERFORM tasker.notify_river();
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION tasker.set_task_priority(task bigint, priority smallint, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    AS $_$
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
    WHERE (j.args ->> 'task_id')::bigint = task AND j.kind = 'task_execution' AND j.state IN ('available', 'scheduled', 'retryable');
    UPDATE tasker.gate_waiters w SET rank = tasker.gate_rank(w.since, $2) WHERE w.task_id = task;
    PERFORM tasker.record_verb(task, NULL, 'task.priority_changed', who, why, jsonb_build_object('from', t.priority, 'to', $2));
END $_$;
