-- tasker: a lock that fences off a worker, or makes a duty one worker's, needs a
-- right.
--
-- They were advisory locks, which any login of the database may hold: a reader could
-- stop a worker, and keep a dead one from being reaped.

-- Each write and claim of a worker locks one of these rows; a worker that declares it
-- dead, or stops, locks them all. There are several because one that was locked in
-- share mode would cost a multixact for each two writes side by side.
CREATE TABLE tasker.worker_fences (
    worker_id bigint NOT NULL REFERENCES tasker.workers ON DELETE CASCADE,
    lane      smallint NOT NULL,
    PRIMARY KEY (worker_id, lane)
);
COMMENT ON TABLE tasker.worker_fences IS 'Rows that a living worker locks while it writes, and that are gone when it is dead';

CREATE FUNCTION tasker.make_fences() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tasker.worker_fences (worker_id, lane) SELECT NEW.worker_id, lane FROM generate_series(0, 7) AS lane;
    RETURN NULL;
END $$;
CREATE TRIGGER make_fences AFTER INSERT ON tasker.workers FOR EACH ROW WHEN (NEW.state = 'alive') EXECUTE FUNCTION tasker.make_fences();
INSERT INTO tasker.worker_fences (worker_id, lane)
SELECT w.worker_id, lane FROM tasker.workers w CROSS JOIN generate_series(0, 7) AS lane WHERE w.state = 'alive';

CREATE TABLE tasker.duties (
    name text PRIMARY KEY
);
COMMENT ON TABLE tasker.duties IS 'What one worker at a time does: it locks the row';
INSERT INTO tasker.duties (name) VALUES ('sweep'), ('find_stale'), ('event_days'), ('prune');

-- Whether the duty is the caller's until its transaction ends.
CREATE FUNCTION tasker.take_duty(duty text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM tasker.duties d WHERE d.name = duty FOR NO KEY UPDATE SKIP LOCKED;
    RETURN FOUND;
END $$;

CREATE OR REPLACE FUNCTION tasker.assert_worker(worker bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM FROM tasker.worker_fences f WHERE f.worker_id = worker LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN -- all are taken, or another worker or this one's stop is about to end it
        PERFORM FROM tasker.worker_fences f WHERE f.worker_id = worker AND f.lane = 0 FOR NO KEY UPDATE;
    END IF;
    -- A statement of its own: its snapshot is taken after the lock is held.
    IF NOT EXISTS (SELECT FROM tasker.workers w WHERE w.worker_id = worker AND w.state = 'alive') THEN
        RAISE EXCEPTION 'worker % has been declared dead', worker USING ERRCODE = 'TK004';
    END IF;
END $$;

CREATE OR REPLACE FUNCTION tasker.claim_tasks(worker bigint, ids bigint[], opening bigint[] DEFAULT '{}'::bigint[], gates_seen bigint DEFAULT NULL::bigint) RETURNS TABLE(task_id bigint, template_id bigint, epoch integer, context jsonb, correlation_id text, fresh bigint[], begun boolean, due_in double precision)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET lock_timeout TO '100ms'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
DECLARE
    wanted bigint[] := ids;   -- ascending, each once: the lock order
    locked boolean  := false; -- whether all that are wanted are
    taken  bigint[] := '{}';
    again  bigint[] := '{}';  -- of those: claimed before, by whomever
BEGIN
    -- As tasker.assert_worker does it; whether the worker is alive is asked below.
    PERFORM FROM tasker.worker_fences f WHERE f.worker_id = worker LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        PERFORM tasker.assert_worker(worker);
    END IF;

    LOOP
        WITH claimed AS (
            UPDATE tasker.tasks t
            SET owner = worker, epoch = t.epoch + 1, state = 'in_progress', started_at = coalesce(t.started_at, now())
            FROM unnest(wanted) AS l(id)
            WHERE t.task_id = l.id AND coalesce(t.owner, worker) = worker AND t.paused_at IS NULL
              AND CASE t.state WHEN 'pending' THEN coalesce(t.run_at <= clock_timestamp(), true) WHEN 'in_progress' THEN true ELSE false END
              AND coalesce(t.deadline > clock_timestamp(), true)
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
    IF cardinality(taken) < cardinality(ids) THEN
        -- The job that led here is not to be ticked off: it comes back when they are due.
        RETURN QUERY
        SELECT t.task_id, t.template_id, NULL::int, NULL::jsonb, NULL, NULL::bigint[], false, extract(epoch FROM t.run_at - clock_timestamp())::double precision
        FROM tasker.tasks t
        WHERE t.task_id = ANY (ids) AND t.task_id <> ALL (taken) AND t.state = 'pending' AND t.owner IS NULL AND t.paused_at IS NULL
          AND t.run_at > clock_timestamp();
    END IF;
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
    SELECT m.task_id, m.template_id, m.epoch, m.context, m.correlation_id, CASE WHEN m.untouched THEN m.steps END, coalesce(m.opens, false), NULL::double precision
    FROM mine m;
END $$;

CREATE OR REPLACE FUNCTION tasker.close_event_days() RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    open_now text[] := tasker.open_transactions();
    day      record;
    id       bigint;
    closed   int := 0;
BEGIN
    IF NOT tasker.take_duty('event_days') THEN
        RETURN 0;
    END IF;
    -- A prepared transaction has lost its old name (it is -1/xid): it may be any of them.
    IF NOT EXISTS (SELECT FROM unnest(tasker.event_writers()) AS w WHERE w LIKE '-1/%') THEN
        FOR day IN SELECT d.partition FROM tasker.event_days d WHERE d.last_id IS NULL AND NOT d.open_then && open_now ORDER BY d.until LOOP
            -- A statement of its own: it sees what those have written.
            EXECUTE format('SELECT coalesce(max(event_id), 0) FROM tasker.%I', day.partition) INTO id;
            UPDATE tasker.event_days d SET last_id = id WHERE d.partition = day.partition;
            closed := closed + 1;
        END LOOP;
    END IF;
    -- A transaction's time is taken a moment before others can see that it is open.
    UPDATE tasker.event_days d SET open_then = open_now
    WHERE d.open_then IS NULL AND d.until < clock_timestamp() - interval '1 minute';
    RETURN closed;
END $$;

CREATE OR REPLACE FUNCTION tasker.find_stale_tasks(pending interval DEFAULT '01:00:00'::interval, in_progress interval DEFAULT '00:30:00'::interval, waiting interval DEFAULT '00:30:00'::interval, running interval DEFAULT '24:00:00'::interval, failed interval DEFAULT '00:00:00'::interval, most integer DEFAULT 200, OUT found_tasks integer, OUT closed_entries integer) RETURNS record
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET lock_timeout TO '100ms'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    shortest interval := least(pending, in_progress, waiting, running);
BEGIN
    found_tasks := 0;
    closed_entries := 0;
    IF NOT tasker.take_duty('find_stale') THEN
        RETURN;
    END IF;
    closed_entries := tasker.close_dead_letters(most); -- first: a task may have one open entry
    WITH candidates AS (
        (SELECT q.task_id, q.reason, q.since
         FROM (SELECT t.task_id FROM tasker.tasks t
               WHERE t.state IN ('pending', 'in_progress') AND t.paused_at IS NULL
                 AND t.created_at < now() - shortest AND coalesce(t.run_at, t.created_at) < now() - shortest
                 -- Most that are open for long wait for a retry: of them no more needs to be known.
                 AND NOT (SELECT coalesce(bool_or(s.state = 'waiting_for_retry' AND s.retry_at > now() - shortest), false)
                             AND NOT bool_or(s.state IN ('enqueued', 'in_progress')) FROM tasker.steps s WHERE s.task_id = t.task_id)
               OFFSET 0) open
         CROSS JOIN LATERAL (SELECT * FROM tasker.quiet_tasks u WHERE u.task_id = open.task_id OFFSET 0) q
         WHERE q.created_at < now() - shortest AND q.task_since < now() - shortest AND NOT q.watched
           AND q.since < now() - CASE q.reason WHEN 'stale_pending' THEN pending WHEN 'stale_running' THEN running
                                               WHEN 'stale_waiting' THEN waiting ELSE in_progress END
           AND NOT EXISTS (SELECT FROM tasker.dead_letters d WHERE d.task_id = q.task_id
                           AND (d.resolved_at IS NULL OR d.resolution = 'acknowledged' AND d.since >= q.since) OFFSET 0)
         ORDER BY q.since LIMIT most)
        UNION ALL
        (SELECT t.task_id, 'failed', t.finished_at
         FROM tasker.tasks t
         WHERE t.state = 'error' AND t.finished_at <= now() - failed
           AND NOT EXISTS (SELECT FROM tasker.dead_letters d WHERE d.task_id = t.task_id
                           AND (d.resolved_at IS NULL OR d.resolution = 'acknowledged' AND d.since >= t.finished_at) OFFSET 0)
         ORDER BY t.finished_at LIMIT most)
    ), listed AS (
        INSERT INTO tasker.dead_letters (task_id, reason, since, detail)
        SELECT c.task_id, c.reason, c.since, coalesce(
            CASE WHEN t.error ->> 'code' = 'task_deadline' THEN t.error ->> 'message' END,
            tasker.held_by(c.task_id), t.error ->> 'message',
            'all its steps have ended, and no worker has ended the task')
        FROM candidates c JOIN tasker.tasks t USING (task_id)
        ORDER BY c.since LIMIT most
        RETURNING dead_letter_id, task_id, reason, since, detail
    )
    INSERT INTO tasker.events (task_id, name, data)
    SELECT l.task_id, CASE l.reason WHEN 'failed' THEN 'task.dead_lettered' ELSE 'task.stale' END,
           jsonb_build_object('dead_letter_id', l.dead_letter_id, 'reason', l.reason, 'since', l.since, 'detail', l.detail)
    FROM listed l ORDER BY l.dead_letter_id;
    GET DIAGNOSTICS found_tasks = ROW_COUNT;
END $$;

CREATE OR REPLACE FUNCTION tasker.make_event_days(ahead integer DEFAULT 3) RETURNS integer
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    today timestamptz := date_trunc('day', now(), 'UTC');
    day   record;
    made  int := 0;
BEGIN
    FOR day IN
        SELECT 'events_' || to_char(u.since AT TIME ZONE 'UTC', 'YYYYMMDD') AS partition, u.since, u.since + interval '24 hours' AS until
        FROM (SELECT today + make_interval(hours => 24 * n) AS since FROM generate_series(0, ahead) AS n) u
        WHERE NOT EXISTS (SELECT FROM tasker.event_days d WHERE d.since <= u.since AND d.until > u.since)
        ORDER BY u.since
    LOOP
        IF NOT tasker.take_duty('event_days') THEN
            EXIT; -- another worker is about to
        END IF;
        -- Before the lock on it that looking for such rows takes.
        CONTINUE WHEN EXISTS (SELECT FROM tasker.events_default e WHERE e.created_at >= day.since AND e.created_at < day.until)
            OR EXISTS (SELECT FROM tasker.event_days d WHERE d.partition = day.partition);
        EXECUTE format('CREATE TABLE tasker.%I (LIKE tasker.events INCLUDING DEFAULTS, PRIMARY KEY (event_id))', day.partition);
        EXECUTE format('ALTER TABLE tasker.events ATTACH PARTITION tasker.%I FOR VALUES FROM (%L) TO (%L)', day.partition, day.since, day.until);
        INSERT INTO tasker.event_days (partition, since, until) VALUES (day.partition, day.since, day.until);
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;

CREATE OR REPLACE FUNCTION tasker.prune_events(before timestamp with time zone, ignore_subscribers boolean DEFAULT false, OUT partition text, OUT rows bigint, OUT bytes bigint) RETURNS record
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
DECLARE
    unread bigint := 9223372036854775807;
BEGIN
    IF before IS NULL OR before > now() THEN
        RAISE EXCEPTION 'events are pruned before a time in the past, not %', coalesce(before::text, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    IF NOT tasker.take_duty('prune') THEN
        RAISE EXCEPTION 'somebody else is pruning' USING ERRCODE = 'object_in_use';
    END IF;
    SELECT o.partition, o.bytes INTO partition, bytes FROM tasker.old_events(before) o
    WHERE o.partition <> 'events_default' AND (ignore_subscribers OR o.held_by IS NULL) ORDER BY o.until LIMIT 1;
    IF FOUND THEN
        -- With the lock, so that what a writer has just committed is found.
        LOCK TABLE tasker.events IN ACCESS EXCLUSIVE MODE;
        IF NOT EXISTS (SELECT FROM tasker.event_days d WHERE d.partition = prune_events.partition)
            OR NOT ignore_subscribers AND EXISTS (SELECT FROM tasker.old_events(before) o WHERE o.partition = prune_events.partition AND o.held_by IS NOT NULL) THEN
            RAISE EXCEPTION '% has just been dropped or written to', partition USING ERRCODE = 'lock_not_available';
        END IF;
        EXECUTE format('DROP TABLE tasker.%I', partition);
        DELETE FROM tasker.event_days d WHERE d.partition = prune_events.partition;
        RETURN;
    END IF;
    IF NOT ignore_subscribers THEN
        SELECT coalesce(min(tasker.first_unread(s.cursor)), unread) INTO unread FROM tasker.event_subscribers s;
    END IF;
    DELETE FROM tasker.events_default e USING (
        SELECT l.event_id FROM tasker.events_default l WHERE l.created_at < before AND l.event_id < unread
        ORDER BY l.event_id LIMIT 10000 FOR UPDATE SKIP LOCKED) old
    WHERE e.event_id = old.event_id;
    GET DIAGNOSTICS rows = ROW_COUNT;
    IF rows > 0 THEN
        partition := 'events_default';
    END IF;
END $$;

CREATE OR REPLACE FUNCTION tasker.prune_tasks(before timestamp with time zone, most integer DEFAULT 1000, after bigint DEFAULT 0, failed boolean DEFAULT false, OUT pruned integer, OUT page_end bigint) RETURNS record
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET lock_timeout TO '1s'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    ids bigint[];
BEGIN
    IF before IS NULL OR before > now() THEN
        RAISE EXCEPTION 'tasks are pruned that ended before a time in the past, not %', coalesce(before::text, 'NULL') USING ERRCODE = 'TK003';
    ELSIF most IS NULL OR most < 1 THEN
        RAISE EXCEPTION 'a page has 1 task or more, not %', coalesce(most::text, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    IF NOT tasker.take_duty('prune') THEN
        RAISE EXCEPTION 'somebody else is pruning' USING ERRCODE = 'object_in_use';
    END IF;
    SELECT coalesce(array_agg(o.task_id ORDER BY o.task_id) FILTER (WHERE o.old), '{}'),
           CASE WHEN count(*) = most AND NOT bool_and(o.done) THEN max(o.task_id) END
    INTO ids, page_end FROM tasker.old_tasks(before, most, after, failed) o;
    -- Locked, and looked at again: an operator may have opened one meanwhile.
    SELECT coalesce(array_agg(l.task_id), '{}') INTO ids FROM (
        SELECT t.task_id FROM tasker.tasks t WHERE t.task_id = ANY (ids) AND t.finished_at < before AND t.state NOT IN ('pending', 'in_progress')
            AND (failed OR t.state <> 'error')
            AND NOT EXISTS (SELECT FROM tasker.tasks m WHERE m.parent_task_id = t.task_id AND m.state IN ('pending', 'in_progress'))
        ORDER BY t.task_id FOR UPDATE SKIP LOCKED) l;
    DELETE FROM tasker.gate_waiters w WHERE w.task_id = ANY (ids);
    DELETE FROM tasker.gate_slots o USING tasker.steps s WHERE s.task_id = ANY (ids) AND o.step_id = s.step_id;
    DELETE FROM tasker.steps s WHERE s.task_id = ANY (ids);
    DELETE FROM tasker.dispatches d WHERE d.task_id = ANY (ids);
    DELETE FROM tasker.dead_letters d WHERE d.task_id = ANY (ids);
    DELETE FROM tasker.task_waiters w WHERE w.task_id = ANY (ids);
    DELETE FROM tasker.tasks t WHERE t.task_id = ANY (ids);
    GET DIAGNOSTICS pruned = ROW_COUNT;
END $$;

CREATE OR REPLACE FUNCTION tasker.reap_worker() RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    w record;
BEGIN
    FOR w IN
        SELECT d.worker_id, d.client_id FROM tasker.workers d
        WHERE d.state = 'alive' AND greatest(d.last_seen_at, pg_postmaster_start_time()) < clock_timestamp() - d.lease
        ORDER BY d.worker_id
    LOOP
        -- Busy: one of its writes is in flight, or somebody else reaps it. Next time.
        CONTINUE WHEN (SELECT count(*) FROM (SELECT FROM tasker.worker_fences f WHERE f.worker_id = w.worker_id FOR UPDATE SKIP LOCKED) l)
            <> (SELECT count(*) FROM tasker.worker_fences f WHERE f.worker_id = w.worker_id);
        UPDATE tasker.workers d SET state = 'dead'
        WHERE d.worker_id = w.worker_id AND d.state = 'alive' AND d.last_seen_at < clock_timestamp() - d.lease;
        CONTINUE WHEN NOT FOUND;
        DELETE FROM tasker.worker_fences f WHERE f.worker_id = w.worker_id;
        RETURN tasker.release_worker(w.worker_id, w.client_id);
    END LOOP;
    FOR w IN
        SELECT d.worker_id, d.client_id FROM tasker.workers d
        WHERE d.state <> 'alive' AND EXISTS (SELECT FROM tasker.tasks t WHERE t.owner = d.worker_id)
        ORDER BY d.worker_id
    LOOP
        RETURN tasker.release_worker(w.worker_id, w.client_id);
    END LOOP;
    RETURN 0;
END $$;

CREATE OR REPLACE FUNCTION tasker.stop_worker(worker bigint) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    client text;
BEGIN
    PERFORM FROM tasker.worker_fences f WHERE f.worker_id = worker ORDER BY f.lane FOR UPDATE;
    UPDATE tasker.workers d SET state = 'stopped' WHERE d.worker_id = worker AND d.state = 'alive' RETURNING d.client_id INTO client;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    DELETE FROM tasker.worker_fences f WHERE f.worker_id = worker;
    RETURN tasker.release_worker(worker, client);
END $$;

CREATE OR REPLACE FUNCTION tasker.sweep() RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    found_tasks bigint[];
    w record;
    n int := 0;
BEGIN
    IF NOT tasker.take_duty('sweep') THEN
        RETURN 0;
    END IF;
    -- Jobs that run in clients which are gone.
    FOR w IN
        SELECT DISTINCT j.attempted_by[cardinality(j.attempted_by)] AS client FROM tasker.river_job j
        WHERE j.state = 'running' AND j.kind = 'task_execution'
          -- A worker that doesn't know yet that it is dead puts off what it fetches.
          AND j.attempted_at < clock_timestamp() - interval '5 seconds'
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
            AND NOT EXISTS (SELECT FROM tasker.gate_waiters l JOIN tasker.steps s USING (step_id)
                            WHERE l.task_id = o.task_id AND s.state IN ('pending', 'waiting_for_retry'))
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

CREATE OR REPLACE FUNCTION tasker.write_batch(worker bigint, task_ids bigint[], task_epochs integer[], task_states text[], task_errors text[], task_release boolean[], task_rerun double precision[], step_ids bigint[], step_tasks bigint[], step_was text[], step_was_attempt integer[], step_states text[], step_attempts integer[], step_losses integer[], step_results text[], step_errors text[], step_retry_in double precision[], step_queues text[], settled bigint[], parked bigint[], step_start_in double precision[], gate_steps bigint[], gate_ids integer[], gates_seen bigint, needs bigint[] DEFAULT '{}'::bigint[]) RETURNS bigint[]
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_bitmapscan TO 'off'
    SET lock_timeout TO '100ms'
    SET plan_cache_mode TO 'force_generic_plan'
    SET jit TO 'off'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    n      int;
    faults text;
    denied bigint[] := '{}'; -- claims that a gate did not let pass
    moved  bigint[];         -- tasks that were given a state, or given up
    alive  boolean;
    gates  bigint;
    lost   int;
    unmet  int;
    unended int;
BEGIN
    -- As tasker.assert_worker does it; whether the worker is alive is asked below.
    PERFORM FROM tasker.worker_fences f WHERE f.worker_id = worker LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
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
            FROM (SELECT u.id AS task_id, task_epochs[i] AS epoch, task_states[i] AS state, task_errors[i] AS error, task_release[i] AS release
                  FROM unnest(task_ids) WITH ORDINALITY AS u(id, i)) l
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
        FROM (SELECT u.id AS step_id, step_was[i] AS was, step_was_attempt[i] AS was_attempt, step_states[i] AS state, step_attempts[i] AS attempt,
                     step_losses[i] AS losses, step_results[i] AS result, step_errors[i] AS error, step_retry_in[i] AS retry_in
              FROM unnest(step_ids) WITH ORDINALITY AS u(id, i)) w
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
            FROM (SELECT u.id AS step_id, step_tasks[i] AS task_id, step_attempts[i] AS attempt, step_states[i] AS state,
                         step_queues[i] AS queue, step_start_in[i] AS start_in
                  FROM unnest(step_ids) WITH ORDINALITY AS u(id, i)) w
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
        FROM (SELECT u.id AS step_id, step_tasks[i] AS task_id, step_attempts[i] AS attempt, step_states[i] AS state,
                     step_errors[i] AS error, step_retry_in[i] AS retry_in
              FROM unnest(step_ids) WITH ORDINALITY AS u(id, i)) w
        WHERE w.step_id <> ALL (denied)
        UNION ALL
        SELECT l.task_id, NULL, NULL, CASE l.state WHEN 'complete' THEN 'task.completed' WHEN 'error' THEN 'task.failed' WHEN 'cancelled' THEN 'task.cancelled' END,
               l.error::jsonb
        FROM (SELECT u.id AS task_id, task_states[i] AS state, task_errors[i] AS error
              FROM unnest(task_ids) WITH ORDINALITY AS u(id, i)) l
        WHERE l.state IS NOT NULL;
    END IF;

    -- Looked at now that the steps are held: a deadline that passed meanwhile
    -- has left steps alone that had not begun, and who claims must know the
    -- gates as they are.
    SELECT (SELECT w.state = 'alive' FROM tasker.workers w WHERE w.worker_id = worker),
           CASE WHEN gates_seen IS NOT NULL THEN (SELECT coalesce(sum(g.version), 0) FROM tasker.gates g) END,
           (SELECT count(*)
            FROM (SELECT u.id AS task_id, task_epochs[i] AS epoch, task_states[i] AS state, task_release[i] AS release
                  FROM unnest(task_ids) WITH ORDINALITY AS u(id, i)) l
            WHERE l.state IS NULL AND NOT l.release
              AND worker IS DISTINCT FROM (SELECT t.owner FROM tasker.tasks t WHERE t.task_id = l.task_id AND t.epoch = l.epoch)),
           -- A loop may have been told of a result that does not exist: any login of
           -- the database may send notifications.
           cardinality(needs) - (SELECT count(*) FROM unnest(needs) AS n(id)
               WHERE (SELECT s.state IN ('complete', 'skipped', 'resolved_manually') FROM tasker.steps s WHERE s.step_id = n.id)),
           (SELECT count(*)
            FROM (SELECT u.id AS task_id, task_states[i] AS state
                  FROM unnest(task_ids) WITH ORDINALITY AS u(id, i)) l
            WHERE l.state IS NOT NULL
              AND NOT (SELECT bool_and(CASE l.state WHEN 'complete' THEN s.state IN ('complete', 'skipped', 'resolved_manually')
                                       ELSE s.state NOT IN ('enqueued', 'in_progress') END) FROM tasker.steps s WHERE s.task_id = l.task_id))
    INTO alive, gates, lost, unmet, unended;
    IF alive IS NOT TRUE THEN
        PERFORM tasker.assert_worker(worker);
    ELSIF gates <> gates_seen THEN
        PERFORM tasker.assert_gates(gates_seen, step_tasks, step_states);
    ELSIF lost > 0 THEN
        SELECT string_agg(l.task_id::text, ',') INTO faults FROM unnest(task_ids, task_epochs, task_states, task_release) AS l(task_id, epoch, state, release)
        WHERE l.state IS NULL AND NOT l.release
          AND worker IS DISTINCT FROM (SELECT t.owner FROM tasker.tasks t WHERE t.task_id = l.task_id AND t.epoch = l.epoch);
        RAISE EXCEPTION 'a loop has lost its task' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
    ELSIF unmet > 0 THEN
        SELECT string_agg(DISTINCT s.task_id::text, ',') INTO faults FROM tasker.steps s
        WHERE s.step_id = ANY (needs) AND s.state NOT IN ('complete', 'skipped', 'resolved_manually');
        RAISE EXCEPTION 'a step is claimed before its dependencies are satisfied' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
    ELSIF unended > 0 THEN
        SELECT string_agg(l.task_id::text, ',') INTO faults FROM unnest(task_ids, task_states) AS l(task_id, state)
        WHERE l.state IS NOT NULL AND EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = l.task_id
            AND (s.state IN ('enqueued', 'in_progress') OR l.state = 'complete' AND s.state NOT IN ('complete', 'skipped', 'resolved_manually')));
        RAISE EXCEPTION 'a task is ended before its steps' USING ERRCODE = 'TK005', DETAIL = coalesce(faults, '');
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

DROP FUNCTION tasker.fence_class();
