-- One table again, with all rows under their ids.

LOCK TABLE tasker.events IN ACCESS EXCLUSIVE MODE;
DROP VIEW tasker.event_log, tasker.event_lag, tasker.quiet_tasks;

CREATE TABLE tasker.events_plain (
    event_id   bigint GENERATED ALWAYS AS IDENTITY,
    task_id    bigint,
    step_id    bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    attempt    int,
    name       text NOT NULL,
    data       jsonb
);
INSERT INTO tasker.events_plain (event_id, task_id, step_id, created_at, attempt, name, data) OVERRIDING SYSTEM VALUE
SELECT e.event_id, e.task_id, e.step_id, e.created_at, e.attempt, e.name, e.data FROM tasker.events e;
SELECT setval('tasker.events_plain_event_id_seq', s.last_value, s.is_called) FROM tasker.events_event_id_seq s;
DROP TABLE tasker.events, tasker.event_days;
ALTER TABLE tasker.events_plain RENAME TO events;
ALTER SEQUENCE tasker.events_plain_event_id_seq RENAME TO events_event_id_seq;
ALTER TABLE tasker.events ADD CONSTRAINT events_pkey PRIMARY KEY (event_id);
COMMENT ON TABLE tasker.events IS 'One row per transition, written in its transaction; append-only';
CREATE INDEX events_of_task ON tasker.events (task_id, event_id);
CREATE TRIGGER ring AFTER INSERT ON tasker.events
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION tasker.ring();

DROP FUNCTION tasker.old_events(timestamptz), tasker.prune_events(timestamptz, boolean),
    tasker.old_tasks(timestamptz, int, bigint, boolean), tasker.prune_tasks(timestamptz, int, bigint, boolean),
    tasker.make_event_days(int), tasker.close_event_days(), tasker.open_transactions(),
    tasker.unread_since(bigint), tasker.first_unread(tasker.event_cursor),
    tasker.events_beyond(tasker.event_cursor, text[], int, timestamptz, bigint);

-- Events with what links them to the world outside.
CREATE VIEW tasker.event_log AS
SELECT e.event_id, e.created_at, e.name, e.task_id, e.step_id, s.name AS step, e.attempt, e.data,
       t.namespace, t.name AS task_name, t.version, t.correlation_id, t.parent_task_id
FROM tasker.events e
LEFT JOIN tasker.tasks t USING (task_id) -- events of gates have none
LEFT JOIN tasker.steps s ON s.step_id = e.step_id;
COMMENT ON VIEW tasker.event_log IS 'tasker.events with names, correlation_id and parent_task_id; filter by task_id or correlation_id';

-- For people: who has got how far. behind counts ids, wanted or not.
CREATE VIEW tasker.event_lag AS
SELECT s.name, s.patterns, (s.cursor).passed AS cursor,
       greatest(l.last_id - (s.cursor).passed, 0) AS behind,
       CASE WHEN l.last_id > (s.cursor).passed THEN
           now() - (SELECT e.created_at FROM tasker.events e WHERE e.event_id > (s.cursor).passed ORDER BY e.event_id LIMIT 1) END AS lag,
       (SELECT coalesce(sum(upper(m) - lower(m)), 0)::bigint FROM unnest((s.cursor).missing + (s.cursor).recent) AS m) AS awaited, -- ids of transactions that may be open
       CASE WHEN s.held_until > now() THEN s.holder END AS holder,
       s.failed_event_id, s.failure, s.acknowledged_at, s.created_at
FROM tasker.event_subscribers s
CROSS JOIN (SELECT coalesce(max(e.event_id), 0) AS last_id FROM tasker.events e) l;
COMMENT ON VIEW tasker.event_lag IS 'Subscribers of events, how far behind each is, and what keeps it';

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
        FROM (SELECT e.event_id, e.created_at, e.name FROM tasker.events e WHERE e.task_id = t.task_id ORDER BY e.event_id DESC LIMIT 100) l
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

-- What a cursor has not passed, the first so many of all events, in order.
-- STABLE and plain SQL: it becomes part of the query that uses it, which so
-- reads no more of it than it needs.
CREATE FUNCTION tasker.events_beyond(c tasker.event_cursor, likes text[], most int, up_to bigint DEFAULT 9223372036854775807) RETURNS TABLE (event_id bigint, wanted boolean)
LANGUAGE sql STABLE AS $$
    (SELECT e.event_id, e.name LIKE ANY (likes)
     FROM unnest(c.missing + c.recent) AS m(ids)
     CROSS JOIN LATERAL (SELECT v.event_id, v.name FROM tasker.events v WHERE v.event_id >= lower(m.ids) AND v.event_id < upper(m.ids) OFFSET 0) e
     WHERE e.event_id <= up_to ORDER BY e.event_id LIMIT most)
    UNION ALL
    (SELECT e.event_id, e.name LIKE ANY (likes) FROM tasker.events e WHERE e.event_id > c.passed AND e.event_id <= up_to ORDER BY e.event_id LIMIT most)
    ORDER BY 1 LIMIT most
$$;

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

    IF '%' <> ALL (s.likes) THEN
        scan := most * 10;
        SELECT b.event_id INTO edge FROM tasker.events_beyond(c, s.likes, scan) b WHERE b.wanted ORDER BY b.event_id OFFSET most - 1 LIMIT 1;
    END IF;
    WITH looked AS (
        SELECT b.event_id, b.wanted, row_number() OVER (ORDER BY b.event_id) AS r
        FROM tasker.events_beyond(c, s.likes, scan, coalesce(edge, 9223372036854775807)) b
    )
    SELECT ARRAY(SELECT l.event_id FROM looked l WHERE l.wanted),
           -- ids that follow on one another have the same difference to their rank
           coalesce((SELECT range_agg(i.ids) FROM (SELECT int8range(min(l.event_id), max(l.event_id), '[]') AS ids FROM looked l GROUP BY l.event_id - l.r) i), '{}'),
           max(k.event_id), edge IS NOT NULL OR count(*) = scan
    INTO wanted, seen, reached, cut FROM looked k;

    RETURN QUERY
    SELECT l.event_id, l.created_at, l.name, l.task_id, l.step_id, l.attempt, l.data,
           l.namespace, l.task_name, l.version, l.step, l.correlation_id, l.parent_task_id, NULL::tasker.event_cursor
    FROM tasker.event_log l WHERE l.event_id = ANY (wanted) ORDER BY l.event_id;

    c := tasker.cursor_after(c, seen, reached, cut, settled);
    IF channel IS NOT NULL THEN
        PERFORM tasker.fall_asleep($1, channel, s.likes, cardinality(wanted) = 0 AND NOT cut);
    END IF;
    RETURN QUERY SELECT NULL::bigint, NULL::timestamptz, NULL, NULL::bigint, NULL::bigint, NULL::int, NULL::jsonb, NULL, NULL, NULL, NULL, NULL, NULL::bigint, c;
END $$;

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
