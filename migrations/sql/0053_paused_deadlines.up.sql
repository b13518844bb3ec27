-- tasker: a paused task's deadline waits with it.
--
-- A task that an operator paused overnight failed by its deadline. Now it does not expire
-- while it is paused, and gets the time of the pause when it is resumed. The pause of a
-- limit, a queue or a handler stops no deadline: its tasks go on with other steps.
--
-- And a call that ends many tasks stops by itself before its time is up, so that what it has
-- done stays done, however slow the machine is.

CREATE OR REPLACE FUNCTION tasker.expire_tasks(most integer DEFAULT 1000) RETURNS integer
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_sort TO 'on'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_indexscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
DECLARE
    t     record;
    names text[];
    fault jsonb;
    n     int := 0;
    began timestamptz := clock_timestamp();
BEGIN
    FOR t IN SELECT u.task_id, u.owner, u.deadline, u.created_at FROM tasker.tasks u
             WHERE u.deadline < clock_timestamp() AND u.state IN ('pending', 'in_progress') AND u.paused_at IS NULL
             ORDER BY u.deadline LIMIT most FOR UPDATE SKIP LOCKED
    LOOP
        EXIT WHEN clock_timestamp() > began + interval '300 milliseconds';
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

CREATE OR REPLACE FUNCTION tasker.resume_task(task bigint, who text DEFAULT NULL::text, why text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
BEGIN
    IF t.paused_at IS NULL THEN
        RAISE EXCEPTION 'task % is not paused', task USING ERRCODE = 'TK008';
    END IF;
    UPDATE tasker.tasks u SET paused_at = NULL, deadline = u.deadline + (clock_timestamp() - u.paused_at) WHERE u.task_id = task;
    PERFORM tasker.record_verb(task, NULL, 'task.resumed', who, why);
    PERFORM tasker.poke_task(task);
END $$;
