-- A task that comes alone is started by one worker as soon as it hears of it, and
-- a claim costs less.

-- The steps that a task begins with, whatever its size.
CREATE INDEX template_roots ON tasker.template_steps (template_id, position) WHERE depends_on = '{}';

-- As it was, in two statements where nobody else is at the tasks. What is asked
-- of tasks is dressed (coalesce, CASE) where a partial index could answer it: see
-- 0018.
CREATE OR REPLACE FUNCTION tasker.claim_tasks(worker bigint, ids bigint[], opening bigint[] DEFAULT '{}', gates_seen bigint DEFAULT NULL)
RETURNS TABLE (task_id bigint, template_id bigint, epoch int, context jsonb, correlation_id text, fresh bigint[], begun boolean)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan
SET lock_timeout = '100ms' AS $$
#variable_conflict use_column
DECLARE
    wanted bigint[] := ids;   -- ascending, each once: the lock order
    locked boolean  := false; -- whether all that are wanted are
    taken  bigint[] := '{}';
    again  bigint[] := '{}';  -- of those: claimed before, by whomever
BEGIN
    -- As tasker.assert_worker does it; whether the worker is alive is asked below.
    IF NOT pg_try_advisory_xact_lock_shared(tasker.fence_class(), worker::int) THEN
        PERFORM tasker.assert_worker(worker);
    END IF;

    LOOP
        WITH claimed AS (
            UPDATE tasker.tasks t
            SET owner = worker, epoch = t.epoch + 1, state = 'in_progress', started_at = coalesce(t.started_at, now())
            FROM unnest(wanted) AS l(id)
            WHERE t.task_id = l.id AND coalesce(t.owner, worker) = worker AND t.paused_at IS NULL
              AND CASE t.state WHEN 'pending' THEN true WHEN 'in_progress' THEN true ELSE false END
              AND (SELECT w.state = 'alive' FROM tasker.workers w WHERE w.worker_id = worker)
            RETURNING t.task_id, t.started_at = now() AS first
        ), told AS (
            INSERT INTO tasker.events (task_id, name) SELECT c.task_id, 'task.start_requested' FROM claimed c WHERE c.first
        )
        SELECT taken || array_agg(c.task_id), again || array_agg(c.task_id) FILTER (WHERE NOT c.first) INTO taken, again FROM claimed c;
        EXIT WHEN cardinality(taken) = cardinality(ids);
        PERFORM tasker.assert_worker(worker);
        EXIT WHEN locked;
        -- Somebody's, or finished. But whoever relied on the job that led here may be
        -- giving a task up at this moment: that is waited for, or the claim is
        -- refused, and the job comes back.
        wanted := ARRAY(SELECT w FROM unnest(wanted) AS w WHERE w <> ALL (taken));
        PERFORM FROM tasker.tasks t WHERE t.task_id = ANY (wanted) ORDER BY t.task_id FOR NO KEY UPDATE;
        locked := true;
    END LOOP;
    IF cardinality(taken) = 0 THEN
        RETURN;
    END IF;

    -- Reports of these attempts ring here from now on. One whose row is locked
    -- is being reported by a transaction that may stay open for long: it rings
    -- where it rang before, and this worker finds it by looking (CatchUp).
    IF cardinality(again) > 0 THEN
        UPDATE tasker.dispatches d SET awaited_by = worker
        FROM (SELECT l.step_id FROM tasker.dispatches l WHERE l.task_id = ANY (again) ORDER BY l.step_id FOR UPDATE SKIP LOCKED) free
        WHERE d.step_id = free.step_id;
    END IF;

    RETURN QUERY
    WITH mine AS MATERIALIZED (
        SELECT t.task_id, t.template_id, t.epoch, t.context, t.correlation_id, f.steps, f.untouched,
               f.untouched AND t.template_id = ANY (opening) AND gates_seen = (SELECT coalesce(sum(g.version), 0) FROM tasker.gates g) AS opens
        FROM unnest(taken) AS l(id)
        CROSS JOIN LATERAL (SELECT * FROM tasker.tasks u WHERE u.task_id = l.id OFFSET 0) t -- by its key, one by one
        CROSS JOIN LATERAL (
            SELECT array_agg(p.step_id) AS steps, bool_and(p.state = 'pending' AND p.attempts = 0) AS untouched
            FROM (SELECT s.step_id, s.state, s.attempts FROM tasker.steps s WHERE s.task_id = t.task_id AND t.epoch = 1 ORDER BY s.position OFFSET 0) p
        ) f
    ), roots AS MATERIALIZED ( -- what their loops would write first; by task and position, which is the lock order
        SELECT m.task_id, m.steps[r.position + 1] AS step_id, r.queue, r.schedule_to_start_seconds,
               CASE WHEN r.handler IS NULL THEN 'enqueued' ELSE 'in_progress' END AS state
        FROM mine m
        CROSS JOIN LATERAL (SELECT * FROM tasker.template_steps q WHERE q.template_id = m.template_id AND q.depends_on = '{}' ORDER BY q.position OFFSET 0) r
        WHERE m.opens
    ), started AS (
        UPDATE tasker.steps s
        SET state = r.state, attempts = 1, started_at = CASE WHEN r.state = 'in_progress' THEN clock_timestamp() END
        FROM roots r WHERE s.step_id = r.step_id
    ), sent AS (
        INSERT INTO tasker.dispatches (step_id, task_id, attempt, queue, awaited_by, start_by)
        SELECT n.step_id, n.task_id, 1, n.queue, worker, clock_timestamp() + make_interval(secs => n.schedule_to_start_seconds)
        FROM roots n WHERE n.state = 'enqueued'
    ), told AS (
        INSERT INTO tasker.events (task_id, step_id, attempt, name)
        SELECT n.task_id, n.step_id, 1, CASE n.state WHEN 'enqueued' THEN 'step.execution_requested' ELSE 'step.handle' END FROM roots n
    )
    SELECT m.task_id, m.template_id, m.epoch, m.context, m.correlation_id, CASE WHEN m.untouched THEN m.steps END, coalesce(m.opens, false)
    FROM mine m;
END $$;
COMMENT ON FUNCTION tasker.claim_tasks IS 'The worker becomes owner of those tasks that are free. ids: ascending, each once. fresh: the ids of the steps, by position, of a task that nobody has touched; begun: their roots have been claimed too, as their template is one of those that are opening';

-- As it was; the notification of a lone task says which one it is.
CREATE OR REPLACE FUNCTION tasker.expand_tasks() RETURNS trigger
LANGUAGE plpgsql
SET jit = off AS $$
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
