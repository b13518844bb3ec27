-- tasker: events by the day, and what is old goes.
--
-- tasker.events is partitioned by created_at, a partition per day (UTC), so that
-- old events go by dropping tables: no row is read, nothing is left to vacuum.
-- Whoever writes needs no partition to be there: what has no day's partition goes
-- into events_default, and stays there. Workers make the days to come
-- (tasker.make_event_days).
--
-- Who is authoritative. The partitions are. event_days says of each which days it
-- has, and spares readers the old ones: once all transactions have ended that were
-- open at the end of a day, no event of that day can come any more, and the highest
-- id is noted. A reader that is past it need not look there (tasker.unread_since).
-- Without that note it looks, and is slower.
--
-- So created_at is the time of the transaction. Who sets it by hand may do that
-- where subscribers don't matter: a day that is closed is looked at no more.
--
-- An event's id is unique within its partition, and drawn from one sequence: a
-- unique index over all of them would have to have created_at in it.
--
-- Lock order: event partitions come after everything else, and are taken for
-- 100 ms at most: one is made, or dropped, when nobody has the table for long.

LOCK TABLE tasker.events IN ACCESS EXCLUSIVE MODE;

-- Views keep the table they were made on, whatever its name.
DROP VIEW tasker.event_log, tasker.event_lag, tasker.quiet_tasks;
DROP TRIGGER ring ON tasker.events;

CREATE TABLE tasker.event_days (
    partition text PRIMARY KEY, -- in this schema
    since     timestamptz NOT NULL,
    until     timestamptz NOT NULL, -- not included
    open_then text[],  -- transactions (virtualtransaction in pg_locks) that were open after its end: while one is, events may come
    last_id   bigint   -- of the events in it, once no more can come; null: it isn't closed
);
COMMENT ON TABLE tasker.event_days IS 'The partitions of tasker.events, but for events_default';

CREATE SEQUENCE tasker.new_event_id AS bigint;
SELECT setval('tasker.new_event_id', s.last_value, s.is_called) FROM tasker.events_event_id_seq s;
ALTER TABLE tasker.events ALTER COLUMN event_id DROP IDENTITY;
ALTER SEQUENCE tasker.new_event_id RENAME TO events_event_id_seq;
ALTER TABLE tasker.events ALTER COLUMN event_id SET DEFAULT nextval('tasker.events_event_id_seq');

ALTER TABLE tasker.events RENAME TO events_old;
ALTER INDEX tasker.events_pkey RENAME TO events_old_pkey;
ALTER INDEX tasker.events_of_task RENAME TO events_old_of_task;

CREATE TABLE tasker.events (
    event_id   bigint NOT NULL DEFAULT nextval('tasker.events_event_id_seq'),
    task_id    bigint,
    step_id    bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    attempt    int,
    name       text NOT NULL,
    data       jsonb
) PARTITION BY RANGE (created_at);
COMMENT ON TABLE tasker.events IS 'One row per transition, written in its transaction; append-only; a partition per day';
ALTER SEQUENCE tasker.events_event_id_seq OWNED BY tasker.events.event_id;
CREATE INDEX events_of_task ON tasker.events (task_id, event_id);
CREATE TABLE tasker.events_default PARTITION OF tasker.events (PRIMARY KEY (event_id)) DEFAULT;
CREATE TRIGGER ring AFTER INSERT ON tasker.events
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION tasker.ring();

-- The partitions of today and the next days, where they are not there. A day
-- that has rows in events_default has to do without. Returns how many were made.
CREATE FUNCTION tasker.make_event_days(ahead int DEFAULT 3) RETURNS int
LANGUAGE plpgsql SET lock_timeout = '100ms' AS $$
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
        IF NOT pg_try_advisory_xact_lock(tasker.fence_class(), -2) THEN
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

-- What was written until now becomes the partition of all days until tomorrow.
-- Whether its rows are of those days is looked up once, here.
DO $$
DECLARE
    until timestamptz := date_trunc('day', now(), 'UTC') + interval '24 hours';
BEGIN
    IF NOT EXISTS (SELECT FROM tasker.events_old) THEN
        DROP TABLE tasker.events_old;
    ELSE
        BEGIN
            EXECUTE format('ALTER TABLE tasker.events ATTACH PARTITION tasker.events_old FOR VALUES FROM (MINVALUE) TO (%L)', until);
        EXCEPTION WHEN check_violation THEN -- some are of the future
            SELECT date_trunc('day', max(e.created_at), 'UTC') + interval '24 hours' INTO until FROM tasker.events_old e;
            EXECUTE format('ALTER TABLE tasker.events ATTACH PARTITION tasker.events_old FOR VALUES FROM (MINVALUE) TO (%L)', until);
        END;
        INSERT INTO tasker.event_days (partition, since, until) VALUES ('events_old', '-infinity', until);
    END IF;
    PERFORM tasker.make_event_days();
END $$;

-- Transactions that are open in this database, this one included, whatever they do.
CREATE FUNCTION tasker.open_transactions() RETURNS text[]
LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(array_agg(l.virtualtransaction), '{}') FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND a.datname = current_database()
      AND a.backend_type IS DISTINCT FROM 'autovacuum worker' -- for some it is hidden
$$;

-- Notes the highest id of days of which no event can come any more. Returns how
-- many it closed.
CREATE FUNCTION tasker.close_event_days() RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    open_now text[] := tasker.open_transactions();
    day      record;
    id       bigint;
    closed   int := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(tasker.fence_class(), -2) THEN
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

-- No event with this id or a higher one is older than that; a filter by it spares
-- a reader the partitions of old days.
CREATE FUNCTION tasker.unread_since(id bigint) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT least(coalesce((SELECT min(d.since) FROM tasker.event_days d WHERE d.last_id IS NULL OR d.last_id >= id),
                          (SELECT max(d.until) FROM tasker.event_days d), '-infinity'),
                 (SELECT min(e.created_at) FROM tasker.events_default e WHERE e.event_id >= id))
$$;

-- The lowest id that a cursor has not passed for good.
CREATE FUNCTION tasker.first_unread(c tasker.event_cursor) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT least(c.passed + 1, lower(c.missing + c.recent))
$$;

-- As in 0009.
CREATE VIEW tasker.event_log AS
SELECT e.event_id, e.created_at, e.name, e.task_id, e.step_id, s.name AS step, e.attempt, e.data,
       t.namespace, t.name AS task_name, t.version, t.correlation_id, t.parent_task_id
FROM tasker.events e
LEFT JOIN tasker.tasks t USING (task_id) -- events of gates have none
LEFT JOIN tasker.steps s ON s.step_id = e.step_id;
COMMENT ON VIEW tasker.event_log IS 'tasker.events with names, correlation_id and parent_task_id; filter by task_id or correlation_id';

-- As in 0014; for people: who has got how far. behind counts ids, wanted or not.
CREATE VIEW tasker.event_lag AS
SELECT s.name, s.patterns, (s.cursor).passed AS cursor,
       greatest(l.last_id - (s.cursor).passed, 0) AS behind,
       CASE WHEN l.last_id > (s.cursor).passed THEN
           now() - (SELECT e.created_at FROM tasker.events e WHERE e.event_id > (s.cursor).passed AND e.created_at >= tasker.unread_since((s.cursor).passed + 1) ORDER BY e.event_id LIMIT 1) END AS lag,
       (SELECT coalesce(sum(upper(m) - lower(m)), 0)::bigint FROM unnest((s.cursor).missing + (s.cursor).recent) AS m) AS awaited, -- ids of transactions that may be open
       CASE WHEN s.held_until > now() THEN s.holder END AS holder,
       s.failed_event_id, s.failure, s.acknowledged_at, s.created_at
FROM tasker.event_subscribers s
CROSS JOIN (SELECT coalesce(max(e.event_id), 0) AS last_id FROM tasker.events e) l;
COMMENT ON VIEW tasker.event_lag IS 'Subscribers of events, how far behind each is, and what keeps it';

-- As in 0011, but for the partitions of days before the task, which can't say more
-- than created_at does.
CREATE VIEW tasker.quiet_tasks AS
SELECT t.task_id,
       CASE WHEN t.state = 'pending' THEN 'stale_pending'
            WHEN s.running THEN 'stale_running'
            WHEN s.enqueued THEN 'stale_waiting'
            ELSE 'stale_in_progress' END AS reason,
       greatest(q.since, s.moved_at, CASE WHEN NOT s.running AND NOT s.enqueued THEN s.retry_at END) AS since,
       s.watched,
       t.created_at,
       q.since AS task_since -- the same without its steps; never later than since
FROM tasker.tasks t
CROSS JOIN LATERAL (
    SELECT greatest(t.created_at, t.started_at, t.run_at, (
        SELECT l.created_at
        FROM (SELECT e.event_id, e.created_at, e.name FROM tasker.events e
              WHERE e.task_id = t.task_id AND e.created_at >= t.created_at ORDER BY e.event_id DESC LIMIT 100) l
        WHERE l.name NOT IN ('workflow.task_reenqueue_delayed', 'step.report_refused', 'task.priority_changed',
                             'task.stale', 'task.dead_lettered', 'task.dead_letter_acknowledged')
        ORDER BY l.event_id DESC LIMIT 1)) AS since
    OFFSET 0) q
CROSS JOIN LATERAL (
    SELECT max(greatest(p.started_at, p.finished_at)) AS moved_at,
           min(p.retry_at) FILTER (WHERE p.state = 'waiting_for_retry') AS retry_at, -- the others may wait for their turn
           coalesce(bool_or(p.state = 'enqueued'), false) AS enqueued,
           coalesce(bool_or(r.runs), false) AS running,
           coalesce(bool_or(r.runs AND coalesce(d.timed, x.timed) OR p.state = 'enqueued' AND d.start_by IS NOT NULL
                            -- what an operator has paused stands still, and it is known why
                            OR EXISTS (SELECT FROM tasker.gate_waiters l JOIN tasker.gates g USING (gate_id)
                                       WHERE l.step_id = p.step_id AND g.paused_at IS NOT NULL)), false) AS watched
    FROM tasker.steps p
    CROSS JOIN LATERAL (
        SELECT u.handler, coalesce(u.timeout_seconds, u.heartbeat_seconds) IS NOT NULL AS timed
        FROM tasker.template_steps u WHERE u.template_id = t.template_id AND u.position = p.position OFFSET 0) x
    LEFT JOIN LATERAL (
        SELECT u.step_id, u.process_id, u.start_by, coalesce(u.deadline, u.beat_by) IS NOT NULL AS timed
        FROM tasker.dispatches u WHERE u.step_id = p.step_id AND u.failure IS NULL OFFSET 0) d ON true
    -- Whether somebody who is alive runs it: its loop, or a process; of one that
    -- no process answers for nobody can tell.
    CROSS JOIN LATERAL (SELECT p.state = 'in_progress' AND CASE
        WHEN x.handler IS NOT NULL THEN EXISTS (SELECT FROM tasker.workers w WHERE w.worker_id = t.owner AND w.state = 'alive')
        WHEN d.process_id IS NOT NULL THEN EXISTS (
            SELECT FROM tasker.processes o WHERE o.process_id = d.process_id AND o.stopped_at IS NULL
            AND greatest(o.last_seen_at, pg_postmaster_start_time()) > now() - interval '10 seconds')
        ELSE d.step_id IS NOT NULL END AS runs) r
    WHERE p.task_id = t.task_id AND q.since IS NOT NULL) s
WHERE t.state IN ('pending', 'in_progress') AND t.paused_at IS NULL;
COMMENT ON VIEW tasker.quiet_tasks IS 'Open tasks, and since when nothing has happened to them; paused ones are left out';

DROP FUNCTION tasker.events_beyond(tasker.event_cursor, text[], int, bigint);

-- What a cursor has not passed, the first so many of all events, in order. since:
-- tasker.unread_since of it.
-- STABLE and plain SQL: it becomes part of the query that uses it, which so
-- reads no more of it than it needs.
CREATE FUNCTION tasker.events_beyond(c tasker.event_cursor, likes text[], most int, since timestamptz, up_to bigint DEFAULT 9223372036854775807) RETURNS TABLE (event_id bigint, created_at timestamptz, wanted boolean)
LANGUAGE sql STABLE AS $$
    (SELECT e.event_id, e.created_at, e.name LIKE ANY (likes)
     FROM unnest(c.missing + c.recent) AS m(ids)
     CROSS JOIN LATERAL (SELECT v.event_id, v.created_at, v.name FROM tasker.events v
                         WHERE v.created_at >= since AND v.event_id >= lower(m.ids) AND v.event_id < upper(m.ids) OFFSET 0) e
     WHERE e.event_id <= up_to ORDER BY e.event_id LIMIT most)
    UNION ALL
    (SELECT e.event_id, e.created_at, e.name LIKE ANY (likes) FROM tasker.events e
     WHERE e.created_at >= since AND e.event_id > c.passed AND e.event_id <= up_to ORDER BY e.event_id LIMIT most)
    ORDER BY 1 LIMIT most
$$;

-- As in 0014, of the partitions that matter.
-- The next events of a subscriber, at most so many, in order; the last row has
-- no event, and the cursor to acknowledge once they are handled. No row at all:
-- another process holds the subscriber.
--
-- acknowledged: cursor of the batch before. channel: when there is nothing, the
-- subscriber counts as asleep, and the next event for it sends "events <name>".
CREATE OR REPLACE FUNCTION tasker.next_events(name text, holder text, most int DEFAULT 1000, acknowledged tasker.event_cursor DEFAULT NULL, channel text DEFAULT NULL)
RETURNS TABLE (event_id bigint, occurred_at timestamptz, event text, task_id bigint, step_id bigint, attempt int, data jsonb,
               namespace text, task_name text, version text, step text, correlation_id text, parent_task_id bigint, cursor tasker.event_cursor)
LANGUAGE plpgsql
-- Plans must not depend on tables being small when first planned.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    s       tasker.event_subscribers;
    c       tasker.event_cursor;
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
        RAISE EXCEPTION 'next_events must see what commits while it runs: call it in a read committed transaction' USING ERRCODE = 'TK003';
    END IF;
    IF acknowledged IS NOT NULL AND NOT tasker.acknowledge_events($1, $2, acknowledged) OR NOT tasker.hold_subscriber($1, $2) THEN
        RETURN;
    END IF;
    SELECT * INTO s FROM tasker.event_subscribers u WHERE u.name = $1;
    c := s.cursor;
    -- Before the look: what ended until here is seen by it.
    IF NOT isempty(c.missing) THEN
        settled := NOT tasker.still_writing(c.writers);
    END IF;

    since := tasker.unread_since(tasker.first_unread(c));
    IF '%' <> ALL (s.likes) THEN
        scan := most * 10;
        SELECT b.event_id INTO edge FROM tasker.events_beyond(c, s.likes, scan, since) b WHERE b.wanted ORDER BY b.event_id OFFSET most - 1 LIMIT 1;
    END IF;
    WITH looked AS (
        SELECT b.event_id, b.created_at, b.wanted, row_number() OVER (ORDER BY b.event_id) AS r
        FROM tasker.events_beyond(c, s.likes, scan, since, coalesce(edge, 9223372036854775807)) b
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
        PERFORM tasker.fall_asleep($1, channel, s.likes, cardinality(wanted) = 0 AND NOT cut);
    END IF;
    RETURN QUERY SELECT NULL::bigint, NULL::timestamptz, NULL, NULL::bigint, NULL::bigint, NULL::int, NULL::jsonb, NULL, NULL, NULL, NULL, NULL, NULL::bigint, c;
END $$;

-- As in 0017; a day's highest id does not hold any more.
CREATE OR REPLACE FUNCTION tasker.travel(span interval) RETURNS void
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
    UPDATE tasker.event_days d SET last_id = NULL; -- closed days get events
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

-- Event partitions that end before that time, the oldest first, and events_default
-- when it has older rows. held_by: the subscriber that has not read all of it and
-- is furthest behind.
CREATE FUNCTION tasker.old_events(before timestamptz)
RETURNS TABLE (partition text, since timestamptz, until timestamptz, bytes bigint, held_by text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    day     record;
    highest bigint;
BEGIN
    FOR day IN
        SELECT d.partition, d.since, d.until, pg_total_relation_size(format('tasker.%I', d.partition)) AS bytes FROM tasker.event_days d WHERE d.until <= before
        UNION ALL
        SELECT 'events_default', min(e.created_at), max(e.created_at), NULL FROM tasker.events_default e WHERE e.created_at < before HAVING count(*) > 0
        ORDER BY 3, 1
    LOOP
        -- Not event_days.last_id: a day that isn't closed may be dropped too.
        EXECUTE format('SELECT coalesce(max(e.event_id), 0) FROM tasker.%I e WHERE e.created_at < $1', day.partition) INTO highest USING before;
        RETURN QUERY SELECT day.partition, day.since, day.until, day.bytes,
            (SELECT s.name FROM tasker.event_subscribers s WHERE tasker.first_unread(s.cursor) <= highest ORDER BY tasker.first_unread(s.cursor), s.name LIMIT 1);
    END LOOP;
END $$;

-- Drops the oldest partition that ends before that time and that all subscribers
-- have read; when there is none left, deletes up to 10,000 older rows of
-- events_default. No partition: there was nothing to do. One at a time: dropping
-- holds up all writers of events until the transaction ends, and gives up after
-- 100 ms, with lock_not_available, when one of them has been at it for longer.
-- ignore_subscribers: they lose what they have not read. object_in_use: somebody
-- else is pruning.
CREATE FUNCTION tasker.prune_events(before timestamptz, ignore_subscribers boolean DEFAULT false,
    OUT partition text, OUT rows bigint, OUT bytes bigint) -- rows: of those that were deleted; bytes: of the partition that was dropped
LANGUAGE plpgsql SET lock_timeout = '100ms' AS $$
#variable_conflict use_column
DECLARE
    unread bigint := 9223372036854775807;
BEGIN
    IF before IS NULL OR before > now() THEN
        RAISE EXCEPTION 'events are pruned before a time in the past, not %', coalesce(before::text, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    IF NOT pg_try_advisory_xact_lock(tasker.fence_class(), -3) THEN
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

-- Which tasks of a page are old: finished before that time, with no open parent
-- or child. failed: those in error too. after, most: the page, of as many tasks,
-- old or not.
CREATE FUNCTION tasker.old_tasks(before timestamptz, most int, after bigint, failed boolean) RETURNS TABLE (task_id bigint, old boolean, done boolean)
LANGUAGE sql STABLE AS $$
    SELECT p.task_id, coalesce(p.finished_at < before, false)
               AND (p.state IN ('complete', 'cancelled', 'resolved_manually') OR failed AND p.state = 'error')
               AND NOT EXISTS (SELECT FROM tasker.tasks m WHERE m.task_id = p.parent_task_id AND m.state IN ('pending', 'in_progress'))
               AND NOT EXISTS (SELECT FROM tasker.tasks m WHERE m.parent_task_id = p.task_id AND m.state IN ('pending', 'in_progress')),
           p.created_at >= before
    FROM (SELECT * FROM tasker.tasks t WHERE t.task_id > after ORDER BY t.task_id LIMIT most) p
$$;

-- Deletes old tasks, with all that belongs to them but their events, among the
-- next most tasks after that id. page_end: where the next page begins; null: there
-- is no next page, as this one was not full or all in it were inserted later than
-- before. What is locked is left out, and found the next time.
CREATE FUNCTION tasker.prune_tasks(before timestamptz, most int DEFAULT 1000, after bigint DEFAULT 0, failed boolean DEFAULT false,
    OUT pruned int, OUT page_end bigint)
LANGUAGE plpgsql
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan SET lock_timeout = '1s'
AS $$
DECLARE
    ids bigint[];
BEGIN
    IF before IS NULL OR before > now() THEN
        RAISE EXCEPTION 'tasks are pruned that ended before a time in the past, not %', coalesce(before::text, 'NULL') USING ERRCODE = 'TK003';
    ELSIF most IS NULL OR most < 1 THEN
        RAISE EXCEPTION 'a page has 1 task or more, not %', coalesce(most::text, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    IF NOT pg_try_advisory_xact_lock(tasker.fence_class(), -3) THEN
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
