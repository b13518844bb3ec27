-- tasker: what a worker does to tasks.
--
-- The fence has two parts. (1) A worker writes only while its row in workers
-- is alive. Each write holds a shared advisory lock on the worker; whoever
-- declares the worker dead takes the exclusive one first. So after the verdict
-- nothing of the dead worker's can still be in flight, and what it sends later
-- (it was only paused) is refused. One lock in memory per write, however many
-- tasks the write is about. (2) A task's owner and epoch must be those that
-- the loop was given, and each step must be in the state and attempt that the
-- loop saw.
--
-- SQLSTATEs that the worker acts on: TK004 the worker is dead, every loop must
-- stop; lock_not_available somebody else's open transaction (an operator's, an
-- app's that reports) holds a row: no worker may stand still for it; TK005 one of the loops in this write lost its ground. TK005 rolls the
-- whole write back and names the tasks in its detail, where it can: the worker
-- tells their loops and sends the rest again.

-- The space of advisory locks that fence workers ("tskr").
CREATE FUNCTION tasker.fence_class() RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT 1953721202';

CREATE FUNCTION tasker.assert_worker(worker bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(tasker.fence_class(), worker::int);
    -- A statement of its own: its snapshot is taken after the lock is held.
    IF NOT EXISTS (SELECT FROM tasker.workers w WHERE w.worker_id = worker AND w.state = 'alive') THEN
        RAISE EXCEPTION 'worker % has been declared dead', worker USING ERRCODE = 'TK004';
    END IF;
END $$;

-- Takes tasks that nobody owns, or that this worker owns without a loop: the
-- answer to its claim was lost, or its loop ended in an error. (It never runs
-- two loops of a task.) A task that isn't returned is finished, or owned by
-- another worker, which then also gets its reports, or by a dead one, which
-- reap_workers will find.
CREATE FUNCTION tasker.claim_tasks(worker bigint, ids bigint[])
RETURNS TABLE (task_id bigint, template_id bigint, epoch int, first boolean, priority smallint,
               context jsonb, correlation_id text, created_at timestamptz)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET lock_timeout = '100ms' -- plans must not depend on tables being small when first planned
AS $$
#variable_conflict use_column
DECLARE
    again bigint[]; -- claimed before, by whomever
BEGIN
    PERFORM tasker.assert_worker(worker);
    PERFORM FROM tasker.tasks t WHERE t.task_id = ANY (ids) ORDER BY t.task_id FOR NO KEY UPDATE;

    SELECT coalesce(array_agg(t.task_id), '{}') INTO again FROM tasker.tasks t
    WHERE t.task_id = ANY (ids) AND (t.owner IS NULL OR t.owner = worker) AND t.state = 'in_progress' AND t.paused_at IS NULL;

    INSERT INTO tasker.events (task_id, name)
    SELECT t.task_id, 'task.start_requested' FROM tasker.tasks t WHERE t.task_id = ANY (ids) AND t.state = 'pending' AND t.paused_at IS NULL ORDER BY t.task_id;

    RETURN QUERY
    UPDATE tasker.tasks t
    SET owner = worker, epoch = t.epoch + 1, state = 'in_progress', started_at = coalesce(t.started_at, now())
    WHERE t.task_id = ANY (ids) AND (t.owner IS NULL OR t.owner = worker) AND t.state IN ('pending', 'in_progress') AND t.paused_at IS NULL
    RETURNING t.task_id, t.template_id, t.epoch, t.task_id <> ALL (again), t.priority, t.context, t.correlation_id, t.created_at;

    -- Reports of these attempts ring here from now on. One whose row is locked
    -- is being reported by a transaction that may stay open for long: it rings
    -- where it rang before, and this worker finds it by looking (CatchUp).
    IF cardinality(again) > 0 THEN
        UPDATE tasker.dispatches d SET awaited_by = worker
        FROM (SELECT l.step_id FROM tasker.dispatches l WHERE l.task_id = ANY (again) ORDER BY l.step_id FOR UPDATE SKIP LOCKED) free
        WHERE d.step_id = free.step_id;
    END IF;
END $$;

-- One write of many loops: results of the last wave and claims of the next.
--
-- tasks:  every task that this write is about, with the epoch of its loop.
--         state: null keeps it. release: give the task up. rerun: ask for a
--         River job after so many seconds (null: none).
-- steps:  one transition each, from the state and attempt that the loop saw.
--         queue: for a step that becomes enqueued. retry_in: seconds, for one
--         that becomes waiting_for_retry.
-- settled: dispatches whose report is hereby taken.
-- parked: dispatches whose report shall insert a River job from now on. A
--         report that came in the meantime makes the count wrong, and the
--         loop, refused, looks again: the race is closed here.
CREATE FUNCTION tasker.write_batch(
    worker bigint,
    task_ids bigint[], task_epochs int[], task_states text[], task_errors text[], task_release boolean[], task_rerun double precision[],
    step_ids bigint[], step_tasks bigint[], step_was text[], step_was_attempt int[],
    step_states text[], step_attempts int[], step_losses int[], step_results text[], step_errors text[],
    step_retry_in double precision[], step_queues text[],
    settled bigint[], parked bigint[])
RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET lock_timeout = '100ms'
AS $$
DECLARE
    n      int;
    faults text;
BEGIN
    PERFORM tasker.assert_worker(worker);

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

    IF cardinality(step_ids) > 0 THEN
        UPDATE tasker.steps s
        SET state       = w.state,
            attempts    = w.attempt,
            losses      = w.losses,
            result      = coalesce(w.result::jsonb, s.result),
            error       = coalesce(w.error::jsonb, s.error),
            retry_at    = CASE WHEN w.retry_in IS NOT NULL THEN clock_timestamp() + make_interval(secs => w.retry_in) END,
            started_at  = CASE WHEN w.state = 'in_progress' THEN clock_timestamp() WHEN w.state = 'enqueued' THEN NULL ELSE s.started_at END,
            finished_at = CASE WHEN w.state IN ('complete', 'error', 'cancelled', 'skipped') THEN clock_timestamp() END
        FROM unnest(step_ids, step_was, step_was_attempt, step_states, step_attempts, step_losses, step_results, step_errors, step_retry_in)
             AS w(step_id, was, was_attempt, state, attempt, losses, result, error, retry_in)
        WHERE s.step_id = w.step_id AND s.state = w.was AND s.attempts = w.was_attempt;
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> cardinality(step_ids) THEN
            -- What was written has its new state by now; the rest has not.
            SELECT string_agg(DISTINCT w.task_id::text, ',') INTO faults
            FROM unnest(step_ids, step_tasks, step_states, step_attempts) AS w(step_id, task_id, state, attempt)
            WHERE NOT EXISTS (SELECT FROM tasker.steps s WHERE s.step_id = w.step_id AND s.state = w.state AND s.attempts = w.attempt);
            RAISE EXCEPTION 'a step is not in the state that its loop saw' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
        END IF;

        INSERT INTO tasker.dispatches AS d (step_id, task_id, attempt, queue, awaited_by)
        SELECT w.step_id, w.task_id, w.attempt, w.queue, worker
        FROM unnest(step_ids, step_tasks, step_attempts, step_states, step_queues) AS w(step_id, task_id, attempt, state, queue)
        WHERE w.state = 'enqueued';

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
END $$;

-- Declares a worker dead that has not been seen for the length of its lease,
-- and sets free what they held: their tasks, and the River jobs that they left
-- running (River itself would wait for an hour). Returns how many tasks. One
-- dead worker per call, so that each is a transaction of its own.
-- A restart of the server is not held against the workers: their lease starts
-- anew. Who was itself silent must not judge: it may be the one that was cut off.
CREATE FUNCTION tasker.reap_worker() RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    w record;
BEGIN
    FOR w IN
        SELECT d.worker_id, d.client_id FROM tasker.workers d
        WHERE d.state = 'alive' AND greatest(d.last_seen_at, pg_postmaster_start_time()) < clock_timestamp() - d.lease
        ORDER BY d.worker_id
    LOOP
        -- Busy: one of its writes is in flight, or somebody else reaps it. Next time.
        CONTINUE WHEN NOT pg_try_advisory_xact_lock(tasker.fence_class(), w.worker_id::int);
        UPDATE tasker.workers d SET state = 'dead'
        WHERE d.worker_id = w.worker_id AND d.state = 'alive' AND d.last_seen_at < clock_timestamp() - d.lease;
        CONTINUE WHEN NOT FOUND;
        RETURN tasker.release_worker(w.worker_id, w.client_id);
    END LOOP;
    RETURN 0;
END $$;

-- Signs a worker off. The exclusive lock waits for its writes that are still in
-- flight; a write that comes later is refused.
CREATE FUNCTION tasker.stop_worker(worker bigint) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    client text;
BEGIN
    PERFORM pg_advisory_xact_lock(tasker.fence_class(), worker::int);
    UPDATE tasker.workers d SET state = 'stopped' WHERE d.worker_id = worker AND d.state = 'alive' RETURNING d.client_id INTO client;
    RETURN CASE WHEN FOUND THEN tasker.release_worker(worker, client) ELSE 0 END;
END $$;

-- Sets free what a worker held that is dead or has stopped. The caller holds
-- the exclusive lock and has changed the worker's state in this transaction.
-- Waits for nobody's transaction: a dispatch that is locked is being reported,
-- and whoever owns the task next finds that report by looking.
CREATE FUNCTION tasker.release_worker(worker bigint, client text) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    freed   bigint[];
    rescued bigint[];
BEGIN
    WITH held AS (
        SELECT t.task_id FROM tasker.tasks t WHERE t.owner = worker ORDER BY t.task_id FOR NO KEY UPDATE SKIP LOCKED -- the sweep takes the rest
    ), released AS (
        UPDATE tasker.tasks t SET owner = NULL, epoch = t.epoch + 1
        FROM held WHERE t.task_id = held.task_id RETURNING t.task_id
    )
    SELECT coalesce(array_agg(r.task_id), '{}') INTO freed FROM released r;

    UPDATE tasker.dispatches d SET awaited_by = NULL
    FROM (SELECT l.step_id FROM tasker.dispatches l WHERE l.awaited_by = worker ORDER BY l.step_id FOR UPDATE SKIP LOCKED) free
    WHERE d.step_id = free.step_id;

    rescued := tasker.rescue_jobs(client);
    PERFORM tasker.schedule_runs(array_agg(f.task_id), array_agg(0::double precision))
    FROM unnest(freed) AS f(task_id) WHERE f.task_id <> ALL (rescued)
    HAVING count(*) > 0;
    RETURN cardinality(freed);
END $$;

-- Makes River jobs available again that a client left running. Returns their tasks.
CREATE FUNCTION tasker.rescue_jobs(client text) RETURNS bigint[]
LANGUAGE plpgsql AS $$
DECLARE
    rescued bigint[];
BEGIN
    WITH again AS (
        UPDATE tasker.river_job j
        SET state = 'available', scheduled_at = now(),
            errors = array_append(j.errors, jsonb_build_object('at', now(), 'attempt', j.attempt, 'error', 'the worker that ran it died', 'trace', ''))
        WHERE j.state = 'running' AND j.kind = 'task_execution' AND j.attempted_by[cardinality(j.attempted_by)] = client
        RETURNING (j.args ->> 'task_id')::bigint AS task_id
    )
    SELECT coalesce(array_agg(a.task_id), '{}') INTO rescued FROM again a;
    IF cardinality(rescued) > 0 THEN
        PERFORM tasker.notify_river();
    END IF;
    RETURN rescued;
END $$;

-- The last net, cast every now and then by one worker at a time. Nothing should
-- ever be in it; what is in it, whatever the reason (a job deleted by hand, a
-- truncated table, a bug), goes on. Returns how many tasks it found.
CREATE FUNCTION tasker.sweep() RETURNS int
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
          EXCEPT
          SELECT (j.args ->> 'task_id')::bigint FROM tasker.river_job j
          WHERE j.kind = 'task_execution' AND j.state IN ('available', 'running', 'scheduled', 'retryable', 'pending')
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
