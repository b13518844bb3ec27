-- tasker: what operators do. Each function names who and why in its event.
--
-- They work on any task, owned or not. An owned task stays with its worker: the
-- function gives it a new epoch, so the loop's next write is refused and it
-- reads the task again, keeping the attempts that it runs; a notification makes
-- it do so at once. A task that nobody owns gets a River job.
--
-- Errors: TK008 the verb does not fit the state, no_data_found there is no such
-- task or step.

CREATE FUNCTION tasker.lock_task(task bigint) RETURNS tasker.tasks
LANGUAGE plpgsql AS $$
DECLARE
    t tasker.tasks;
BEGIN
    SELECT * INTO t FROM tasker.tasks u WHERE u.task_id = task FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no task %', coalesce(task::text, 'NULL') USING ERRCODE = 'no_data_found';
    END IF;
    RETURN t;
END $$;

-- Finds the step, then locks its task and it, in the lock order.
CREATE FUNCTION tasker.lock_step(step bigint) RETURNS tasker.steps
LANGUAGE plpgsql AS $$
DECLARE
    s tasker.steps;
BEGIN
    SELECT * INTO s FROM tasker.steps u WHERE u.step_id = step;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no step %', coalesce(step::text, 'NULL') USING ERRCODE = 'no_data_found';
    END IF;
    PERFORM tasker.lock_task(s.task_id);
    SELECT * INTO s FROM tasker.steps u WHERE u.step_id = step FOR UPDATE;
    RETURN s;
END $$;

-- Makes somebody look at the task: its loop, or a worker that takes it.
CREATE FUNCTION tasker.poke_task(task bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    t tasker.tasks;
BEGIN
    UPDATE tasker.tasks u SET epoch = u.epoch + 1 WHERE u.task_id = task RETURNING * INTO t;
    IF t.owner IS NOT NULL THEN
        PERFORM pg_notify('tasker.worker_' || t.owner, 't' || task);
    ELSIF t.state IN ('pending', 'in_progress') AND t.paused_at IS NULL AND (t.run_at IS NULL OR t.run_at <= now()) THEN
        PERFORM tasker.schedule_runs(ARRAY[task], ARRAY[0::double precision]);
    END IF;
END $$;

-- An event of an operator's verb.
CREATE FUNCTION tasker.record_verb(task bigint, step bigint, event text, who text, why text, more jsonb DEFAULT '{}') RETURNS void
LANGUAGE sql AS $$
    INSERT INTO tasker.events (task_id, step_id, attempt, name, data)
    SELECT task, step, (SELECT s.attempts FROM tasker.steps s WHERE s.step_id = step), event,
           jsonb_strip_nulls(jsonb_build_object('by', who, 'reason', why)) || more
$$;

-- Stops a task for good. Steps that are not finished are cancelled; handlers
-- that run are told, and what they report is refused.
CREATE FUNCTION tasker.cancel_task(task bigint, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
BEGIN
    IF NOT tasker.task_may_become(t.state, 'cancelled') THEN
        RAISE EXCEPTION 'task % is %: it cannot be cancelled any more', task, t.state USING ERRCODE = 'TK008';
    END IF;
    PERFORM FROM tasker.steps s WHERE s.task_id = task ORDER BY s.step_id FOR UPDATE;
    WITH cancelled AS (
        UPDATE tasker.steps s SET state = 'cancelled', finished_at = clock_timestamp(), retry_at = NULL
        WHERE s.task_id = task AND s.state IN ('pending', 'enqueued', 'in_progress', 'waiting_for_retry')
        RETURNING s.step_id, s.attempts
    )
    INSERT INTO tasker.events (task_id, step_id, attempt, name)
    SELECT task, c.step_id, c.attempts, 'step.cancelled' FROM cancelled c ORDER BY c.step_id;
    DELETE FROM tasker.dispatches d WHERE d.task_id = task;
    UPDATE tasker.tasks u SET state = 'cancelled', owner = NULL, epoch = u.epoch + 1, finished_at = clock_timestamp(), paused_at = NULL
    WHERE u.task_id = task;
    PERFORM tasker.record_verb(task, NULL, 'task.cancelled', who, why);
    IF t.owner IS NOT NULL THEN
        PERFORM pg_notify('tasker.worker_' || t.owner, 't' || task);
    END IF;
END $$;

-- Puts steps that failed for good back to pending, with all their attempts
-- anew. Attempts go on being numbered: the old ones stay refused.
CREATE FUNCTION tasker.reset_steps(task bigint, ids bigint[], who text, why text) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    n int;
BEGIN
    WITH reset AS (
        UPDATE tasker.steps s
        SET state = 'pending', forgiven = s.attempts, losses = 0, retry_at = NULL, finished_at = NULL
        WHERE s.step_id = ANY (ids) AND s.state = 'error' RETURNING s.step_id
    ), recorded AS (
        INSERT INTO tasker.events (task_id, step_id, name, data)
        SELECT task, r.step_id, 'step.initialize_requested', jsonb_strip_nulls(jsonb_build_object('by', who, 'reason', why))
        FROM reset r ORDER BY r.step_id
    )
    SELECT count(*) INTO n FROM reset;
    RETURN n;
END $$;

-- Lets a task in error go on, after one of its steps was mended.
CREATE FUNCTION tasker.reopen_task(task bigint, who text, why text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tasker.tasks u SET state = 'in_progress', finished_at = NULL, error = NULL WHERE u.task_id = task AND u.state = 'error';
    IF FOUND THEN
        PERFORM tasker.record_verb(task, NULL, 'task.retry_requested', who, why);
    END IF;
    PERFORM tasker.poke_task(task);
END $$;

-- Runs the failed steps of a task in error again. What has finished stays
-- finished. With a context, the task goes on with that one.
CREATE FUNCTION tasker.retry_task(task bigint, who text DEFAULT NULL, why text DEFAULT NULL, new_context jsonb DEFAULT NULL) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
    n int;
BEGIN
    IF t.state <> 'error' THEN
        RAISE EXCEPTION 'task % is %: only a task in error can be retried', task, t.state USING ERRCODE = 'TK008';
    END IF;
    IF new_context IS NOT NULL THEN
        IF jsonb_typeof(new_context) <> 'object' THEN
            RAISE EXCEPTION 'the context of a task must be a JSON object, not %', jsonb_typeof(new_context) USING ERRCODE = 'TK003';
        END IF;
        IF pg_column_size(new_context) > 1048576 THEN
            RAISE EXCEPTION 'the context of a task may have 1 MiB, this one has % bytes', pg_column_size(new_context) USING ERRCODE = 'TK003';
        END IF;
        UPDATE tasker.tasks u SET context = new_context WHERE u.task_id = task;
    END IF;
    n := tasker.reset_steps(task, ARRAY(SELECT s.step_id FROM tasker.steps s WHERE s.task_id = task AND s.state = 'error' ORDER BY s.step_id FOR UPDATE), who, why);
    IF n = 0 THEN
        RAISE EXCEPTION 'task % has no step in error: it failed because steps were cancelled; resolve the task, or cancel it', task USING ERRCODE = 'TK008';
    END IF;
    PERFORM tasker.reopen_task(task, who, why);
    RETURN n;
END $$;

-- Runs a failed step again, or one that waits for its retry at once.
CREATE FUNCTION tasker.retry_step(step bigint, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    s tasker.steps := tasker.lock_step(step);
    t tasker.tasks := tasker.lock_task(s.task_id);
BEGIN
    IF t.state IN ('complete', 'cancelled', 'resolved_manually') THEN
        RAISE EXCEPTION 'step % (%) belongs to task %, which is %', step, s.name, s.task_id, t.state USING ERRCODE = 'TK008';
    ELSIF s.state = 'error' THEN
        PERFORM tasker.reset_steps(s.task_id, ARRAY[step], who, why);
    ELSIF s.state = 'waiting_for_retry' THEN
        UPDATE tasker.steps u SET retry_at = clock_timestamp() WHERE u.step_id = step;
        PERFORM tasker.record_verb(s.task_id, step, 'step.run_now', who, why);
    ELSE
        RAISE EXCEPTION 'step % (%) is %: only one in error, or waiting for its retry, can be retried', step, s.name, s.state USING ERRCODE = 'TK008';
    END IF;
    PERFORM tasker.reopen_task(s.task_id, who, why);
END $$;

-- Settles a step by hand: skipped, without a result, or resolved with the given
-- one. Steps behind it may start.
CREATE FUNCTION tasker.settle_step(step bigint, becomes text, outcome jsonb, who text, why text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    s tasker.steps := tasker.lock_step(step);
    t tasker.tasks := tasker.lock_task(s.task_id);
BEGIN
    IF t.state IN ('complete', 'cancelled', 'resolved_manually') THEN
        RAISE EXCEPTION 'step % (%) belongs to task %, which is %', step, s.name, s.task_id, t.state USING ERRCODE = 'TK008';
    ELSIF NOT tasker.step_may_become(s.state, becomes) THEN
        RAISE EXCEPTION 'step % (%) is %: it cannot become %', step, s.name, s.state, becomes USING ERRCODE = 'TK008';
    ELSIF pg_column_size(outcome) > 4194304 THEN
        RAISE EXCEPTION 'a result may have 4 MiB' USING ERRCODE = 'TK003';
    END IF;
    UPDATE tasker.steps u SET state = becomes, result = coalesce(outcome, u.result), retry_at = NULL, finished_at = clock_timestamp()
    WHERE u.step_id = step;
    DELETE FROM tasker.dispatches d WHERE d.step_id = step;
    PERFORM tasker.record_verb(s.task_id, step, 'step.' || becomes, who, why);
    PERFORM tasker.reopen_task(s.task_id, who, why);
END $$;

CREATE FUNCTION tasker.skip_step(step bigint, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE sql AS $$ SELECT tasker.settle_step(step, 'skipped', NULL, who, why) $$;

CREATE FUNCTION tasker.resolve_step(step bigint, result jsonb DEFAULT 'null', who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE sql AS $$ SELECT tasker.settle_step(step, 'resolved_manually', coalesce(result, 'null'), who, why) $$;

-- Declares a task in error done: somebody did its work by other means.
CREATE FUNCTION tasker.resolve_task(task bigint, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
BEGIN
    IF t.state <> 'error' THEN
        RAISE EXCEPTION 'task % is %: only a task in error can be resolved by hand', task, t.state USING ERRCODE = 'TK008';
    END IF;
    UPDATE tasker.tasks u SET state = 'resolved_manually', epoch = u.epoch + 1, finished_at = clock_timestamp() WHERE u.task_id = task;
    PERFORM tasker.record_verb(task, NULL, 'task.resolved_manually', who, why);
END $$;

-- A paused task starts no attempt. Those that are out may end and are recorded.
CREATE FUNCTION tasker.pause_task(task bigint, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
BEGIN
    IF t.state NOT IN ('pending', 'in_progress') THEN
        RAISE EXCEPTION 'task % is %: there is nothing to pause', task, t.state USING ERRCODE = 'TK008';
    ELSIF t.paused_at IS NOT NULL THEN
        RETURN;
    END IF;
    UPDATE tasker.tasks u SET paused_at = clock_timestamp() WHERE u.task_id = task;
    PERFORM tasker.record_verb(task, NULL, 'task.paused', who, why);
    PERFORM tasker.poke_task(task);
END $$;

CREATE FUNCTION tasker.resume_task(task bigint, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
BEGIN
    IF t.paused_at IS NULL THEN
        RAISE EXCEPTION 'task % is not paused', task USING ERRCODE = 'TK008';
    END IF;
    UPDATE tasker.tasks u SET paused_at = NULL WHERE u.task_id = task;
    PERFORM tasker.record_verb(task, NULL, 'task.resumed', who, why);
    PERFORM tasker.poke_task(task);
END $$;

-- Starts a task now that was enqueued for later, and attempts that wait for
-- their retry.
CREATE FUNCTION tasker.run_task_now(task bigint, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    t tasker.tasks := tasker.lock_task(task);
BEGIN
    IF t.state NOT IN ('pending', 'in_progress') THEN
        RAISE EXCEPTION 'task % is %: there is nothing to run', task, t.state USING ERRCODE = 'TK008';
    END IF;
    UPDATE tasker.tasks u SET run_at = NULL WHERE u.task_id = task AND u.run_at IS NOT NULL;
    UPDATE tasker.steps s SET retry_at = clock_timestamp() WHERE s.task_id = task AND s.state = 'waiting_for_retry';
    PERFORM tasker.record_verb(task, NULL, 'task.run_now', who, why);
    PERFORM tasker.poke_task(task);
END $$;

CREATE FUNCTION tasker.set_task_priority(task bigint, priority smallint, who text DEFAULT NULL, why text DEFAULT NULL) RETURNS void
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
    PERFORM tasker.record_verb(task, NULL, 'task.priority_changed', who, why, jsonb_build_object('from', t.priority, 'to', $2));
END $$;
