-- tasker: time travel, for tests.
--
-- A test that waits for a retry in five minutes, a deadline in an hour or a task
-- of tomorrow moves the past instead of the clock: every point in time that
-- belongs to tasks goes back by as much, as if all had happened earlier. So no
-- function needs a clock of its own, and nothing costs anything in production.
--
-- What stays is what living processes say of themselves: beats, leases, the
-- elections of River. Nobody dies of a journey. Timers in the memory of a worker
-- that time a Go attempt which runs stay too. A test holds the list of
-- columns against the schema: whoever adds a point in time has to say what it is.
--
-- A database that nobody has marked refuses. The mark is a setting of the
-- database itself, which neither a dump nor a copy takes along:
--
--     ALTER DATABASE my_app_test SET tasker.testing = on

CREATE FUNCTION tasker.is_test_database() RETURNS boolean
LANGUAGE sql STABLE AS $$
    -- Not current_setting: that any session can set for itself.
    SELECT EXISTS (SELECT FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) AS c(setting)
                   WHERE s.setdatabase = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()) AND s.setrole = 0
                     AND c.setting ~* '^tasker\.testing=(on|true|yes|1)$')
$$;

CREATE FUNCTION tasker.travel(span interval) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    timed bigint[];
    owned record;
BEGIN
    IF NOT tasker.is_test_database() THEN
        RAISE EXCEPTION 'time travel is for test databases, and % is not marked as one', current_database()
        USING ERRCODE = 'TK008', HINT = format('ALTER DATABASE %I SET tasker.testing = on', current_database());
    ELSIF span IS NULL OR span < interval '0' OR span > interval '100 years' THEN
        RAISE EXCEPTION 'time goes forward, by up to 100 years, and not by %', coalesce(span::text, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    span := make_interval(secs => extract(epoch FROM span)); -- a day is as long wherever a row stands in the calendar

    -- Everything is held first, in the lock order.
    PERFORM FROM tasker.tasks t ORDER BY t.task_id FOR UPDATE;
    PERFORM FROM tasker.gates g ORDER BY g.gate_id FOR UPDATE;
    PERFORM FROM tasker.steps s ORDER BY s.step_id FOR NO KEY UPDATE;
    PERFORM FROM tasker.dispatches d ORDER BY d.step_id FOR UPDATE;

    -- Loops that keep the time of a retry in memory read it again, as after an
    -- operator's verb. All others are left alone.
    SELECT coalesce(array_agg(DISTINCT t.task_id), '{}') INTO timed FROM tasker.tasks t JOIN tasker.steps s USING (task_id)
    WHERE t.owner IS NOT NULL AND s.state = 'waiting_for_retry';
    UPDATE tasker.tasks t SET run_at = t.run_at - span, deadline = t.deadline - span, paused_at = t.paused_at - span,
        created_at = t.created_at - span, started_at = t.started_at - span, finished_at = t.finished_at - span,
        epoch = t.epoch + CASE WHEN t.task_id = ANY (timed) THEN 1 ELSE 0 END;
    UPDATE tasker.gates g SET filled_at = g.filled_at - span, paused_at = g.paused_at - span, changed_at = g.changed_at - span;
    UPDATE tasker.gate_slots o SET taken_at = o.taken_at - span;
    UPDATE tasker.gate_waiters w SET since = w.since - span, rank = w.rank - span, admitted_until = w.admitted_until - span;
    UPDATE tasker.steps s SET retry_at = s.retry_at - span, started_at = s.started_at - span, finished_at = s.finished_at - span;
    UPDATE tasker.dispatches d SET looked_at = d.looked_at - span, started_at = d.started_at - span, deadline = d.deadline - span,
        start_by = d.start_by - span, beat_by = d.beat_by - span;
    UPDATE tasker.events e SET created_at = e.created_at - span;
    UPDATE tasker.dead_letters d SET found_at = d.found_at - span, since = d.since - span, resolved_at = d.resolved_at - span;
    UPDATE tasker.river_job j SET scheduled_at = j.scheduled_at - span, state = tasker.river_state(j.scheduled_at - span)
    FROM (SELECT l.id FROM tasker.river_job l
          WHERE l.kind = 'task_execution' AND l.state IN ('available', 'scheduled', 'retryable') ORDER BY l.id FOR UPDATE) due
    WHERE j.id = due.id;

    -- What would be found within seconds is found here and now.
    WHILE tasker.expire_tasks() > 0 LOOP
    END LOOP;
    PERFORM tasker.reap_attempts(interval '100 years'); -- whose process is silent is for workers to say
    FOR owned IN SELECT t.owner, string_agg(t.task_id::text, ',') AS tasks
        FROM (SELECT u.owner, u.task_id, row_number() OVER (PARTITION BY u.owner) / 300 AS chunk FROM tasker.tasks u
              WHERE u.task_id = ANY (timed) AND u.owner IS NOT NULL) t
        GROUP BY t.owner, t.chunk
    LOOP
        PERFORM pg_notify('tasker.worker_' || owned.owner, 't' || owned.tasks);
    END LOOP;
    PERFORM tasker.notify_river();
    PERFORM tasker.open_gates();
END $$;
