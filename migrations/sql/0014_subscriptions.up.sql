-- tasker: events for subscribers, and waiting for the end of a task.
--
-- Who is authoritative. tasker.events is the record, and nothing about writing
-- it changes: no column, no index, no lock. A subscriber's cursor says what it
-- has handled; everything else here (who sleeps, who waits) may get lost and is
-- made again within seconds.
--
-- Nothing is skipped. An event's id is drawn before its transaction commits, so
-- a reader at id 10 may see 9 only later, or never. A cursor therefore holds,
-- beside how far it has got, the ids below that were missing when it passed.
-- They are looked for in every batch. One is given up when every transaction
-- that was writing events when it was found missing has ended: an INSERT holds
-- RowExclusiveLock on tasker.events from before it draws an id until after its
-- rows can be seen, and pg_locks names who holds it. So a transaction that stays
-- open for an hour keeps back its own events, nobody else's.
--
-- Order. A batch is in order of ids, and whatever could see an event's commit
-- wrote its own events with higher ids. So no event comes before one that it
-- followed from; what happened to one step, and the end of a task after all its
-- steps, is in the order in which it happened.
--
-- Waking. Who has read everything says that it sleeps, and the trigger below
-- notifies it. A writer takes no lock for that. While subscribers are busy
-- nobody sleeps and no commit carries a NOTIFY, of which there can be one at a
-- time. A transaction that wrote its events before somebody fell asleep, and
-- commits after, rings for nobody: who sleeps looks again after 5 ms, and then
-- ever more rarely, up to every 2 s.

-- How far a subscriber has got. Opaque to clients: they hand it back.
CREATE TYPE tasker.event_cursor AS (
    passed  bigint,         -- all events up to this id were seen, but for
    missing int8multirange, -- these, which may come until
    writers text[],         -- all these transactions (virtualtransaction in pg_locks) have ended, and
    recent  int8multirange  -- these, found missing since
);

CREATE TABLE tasker.event_subscribers (
    name            text PRIMARY KEY,
    patterns        text[] NOT NULL,  -- names of events; task.* is all of task., * is all
    likes           text[] NOT NULL,  -- the same for LIKE
    cursor          tasker.event_cursor NOT NULL,
    holder          text,             -- the process that reads for it
    held_until      timestamptz,      -- not renewed until then, another process takes over
    failed_event_id bigint,           -- the event at which it stands, because its handler fails
    failure         text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    acknowledged_at timestamptz
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE tasker.event_subscribers IS 'Durable subscribers of tasker.events and how far each has got; tasker.event_lag is for reading';

-- Unlogged: after a crash they are empty, and whoever still sleeps or waits
-- enters itself again.
CREATE UNLOGGED TABLE tasker.event_sleepers (
    name    text PRIMARY KEY, -- of the subscriber
    channel text NOT NULL,    -- to notify
    likes   text[] NOT NULL,
    until   timestamptz NOT NULL -- not renewed until then, its process is dead
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
CREATE INDEX event_sleepers_until ON tasker.event_sleepers (until);

CREATE UNLOGGED TABLE tasker.task_waiters (
    task_id bigint NOT NULL,
    channel text NOT NULL,
    until   timestamptz NOT NULL,
    PRIMARY KEY (task_id, channel)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
CREATE INDEX task_waiters_until ON tasker.task_waiters (until);

-- Rings for those who sleep and wait. It only reads: what commits here waits
-- for nobody. Where nobody does, it costs two looks into indexes.
--
-- until is what it looks them up by, and always by an index: while an old
-- snapshot (a long query, a backup) is there, rows that were deleted since are
-- still in the way, but only the latest of them are in this range.
CREATE FUNCTION tasker.ring() RETURNS trigger
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
BEGIN
    IF EXISTS (SELECT FROM tasker.event_sleepers s WHERE s.until > statement_timestamp()) THEN
        PERFORM pg_notify(s.channel, 'events ' || s.name) FROM tasker.event_sleepers s
        WHERE s.until > statement_timestamp() AND EXISTS (SELECT FROM written w WHERE w.name LIKE ANY (s.likes));
    END IF;
    IF EXISTS (SELECT FROM tasker.task_waiters a WHERE a.until > statement_timestamp()) THEN
        PERFORM pg_notify(a.channel, 'task ' || a.task_id) FROM written w JOIN tasker.task_waiters a USING (task_id)
        WHERE w.name IN ('task.completed', 'task.failed', 'task.cancelled', 'task.resolved_manually');
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER ring AFTER INSERT ON tasker.events
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION tasker.ring();

-- Waiting for the end of a task: complete, error, cancelled, resolved_manually.
--
-- True: it has ended. False: when it ends, "task <id>" is sent on the channel;
-- look again after a few milliseconds, and now and then (tasker.ended_tasks).
CREATE FUNCTION tasker.await_task(task bigint, channel text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    found_state text;
BEGIN
    INSERT INTO tasker.task_waiters AS a (task_id, channel, until) VALUES ($1, $2, clock_timestamp() + interval '1 minute')
    ON CONFLICT ON CONSTRAINT task_waiters_pkey DO UPDATE SET until = excluded.until;
    -- A statement of its own: it sees what was committed until now.
    SELECT t.state INTO found_state FROM tasker.tasks t WHERE t.task_id = $1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no task %', coalesce(task::text, 'NULL')
        USING ERRCODE = 'no_data_found', HINT = 'a task can be waited for when the transaction that inserted it has committed';
    END IF;
    RETURN found_state NOT IN ('pending', 'in_progress');
END $$;

-- Those that are not open any more: ended, or deleted.
CREATE FUNCTION tasker.ended_tasks(tasks bigint[]) RETURNS SETOF bigint
LANGUAGE sql STABLE AS $$
    SELECT u.task_id FROM unnest(tasks) AS u(task_id)
    WHERE coalesce((SELECT t.state FROM tasker.tasks t WHERE t.task_id = u.task_id), '') NOT IN ('pending', 'in_progress')
$$;

-- Says, every 20 seconds, which tasks are still waited for on a channel, and
-- strikes off the others; not those of the last seconds, as somebody may have
-- entered them meanwhile. What isn't renewed for a minute was waited for by a
-- process that is dead. Returns whether any are left on the channel.
CREATE FUNCTION tasker.renew_waiters(channel text, tasks bigint[]) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM tasker.task_waiters a USING (
        SELECT l.task_id, l.channel FROM tasker.task_waiters l
        WHERE l.until < clock_timestamp() OR l.channel = $1 AND l.task_id <> ALL (tasks) AND l.until < clock_timestamp() + interval '50 seconds'
        FOR UPDATE SKIP LOCKED) gone
    WHERE a.task_id = gone.task_id AND a.channel = gone.channel;
    INSERT INTO tasker.task_waiters AS a (task_id, channel, until)
    SELECT DISTINCT u.task_id, $1, clock_timestamp() + interval '1 minute' FROM unnest(tasks) AS u(task_id) ORDER BY u.task_id
    ON CONFLICT ON CONSTRAINT task_waiters_pkey DO UPDATE SET until = excluded.until;
    RETURN EXISTS (SELECT FROM tasker.task_waiters a WHERE a.channel = $1);
END $$;

-- The transactions that are writing events.
CREATE FUNCTION tasker.event_writers() RETURNS text[]
LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(array_agg(DISTINCT coalesce(l.virtualtransaction, '')), '{}') FROM pg_locks l
    WHERE l.locktype = 'relation' AND l.relation = 'tasker.events'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
      AND l.pid IS DISTINCT FROM pg_backend_pid()
$$;

-- Whether one of them is among those. A prepared transaction has lost its old
-- name (it is -1/xid): it may be any of them.
CREATE FUNCTION tasker.still_writing(writers text[]) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(bool_or(w = ANY (writers) OR w LIKE '-1/%'), false) FROM unnest(tasker.event_writers()) AS w
$$;

CREATE FUNCTION tasker.event_likes(patterns text[]) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    wrong text;
BEGIN
    SELECT p INTO wrong FROM unnest(patterns) AS p WHERE p IS NULL OR p !~ '^(\*|[a-z0-9_]+(\.[a-z0-9_]+)*(\.\*)?)$' LIMIT 1;
    IF FOUND OR coalesce(cardinality(patterns), 0) = 0 THEN
        RAISE EXCEPTION 'patterns of events must be like step.completed, task.* or *, not %', coalesce('"' || wrong || '"', 'none at all') USING ERRCODE = 'TK003';
    END IF;
    RETURN ARRAY(SELECT CASE WHEN p = '*' THEN '%' ELSE regexp_replace(replace(p, '_', '\_'), '\*$', '%') END FROM unnest(patterns) AS p);
END $$;

-- Makes a subscriber, or gives the one of that name other patterns: its cursor
-- stays. A new one starts at start: now (what commits from now on; of
-- transactions that are open just now, all or part), or beginning.
CREATE FUNCTION tasker.subscribe(name text, patterns text[] DEFAULT '{*}', start text DEFAULT 'now') RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    new_likes text[] := tasker.event_likes(patterns);
BEGIN
    IF coalesce(name, '') !~ '^\S(.{0,198}\S)?$' THEN
        RAISE EXCEPTION 'the name of a subscriber has 1 to 200 characters and no space at its ends, unlike "%"', name USING ERRCODE = 'TK003';
    END IF;
    IF start IS NULL OR start NOT IN ('now', 'beginning') THEN
        RAISE EXCEPTION 'a subscriber starts at now or beginning, not at %', coalesce(start, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    INSERT INTO tasker.event_subscribers AS s (name, patterns, likes, cursor)
    VALUES ($1, $2, new_likes, ROW (CASE start WHEN 'now' THEN (SELECT coalesce(max(e.event_id), 0) FROM tasker.events e) ELSE 0 END, '{}', '{}', '{}'))
    ON CONFLICT ON CONSTRAINT event_subscribers_pkey DO UPDATE SET patterns = excluded.patterns, likes = excluded.likes
    WHERE s.patterns <> excluded.patterns;
END $$;

-- Takes back a subscriber and its cursor. False: there is none of that name.
CREATE FUNCTION tasker.unsubscribe(name text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM tasker.event_sleepers s WHERE s.name = $1;
    DELETE FROM tasker.event_subscribers s WHERE s.name = $1;
    RETURN FOUND;
END $$;

-- Takes the subscriber for a process, or keeps it, for 5 seconds. False: another
-- process holds it.
CREATE FUNCTION tasker.hold_subscriber(name text, holder text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    s tasker.event_subscribers;
BEGIN
    SELECT * INTO s FROM tasker.event_subscribers u WHERE u.name = $1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no subscriber "%"', name USING ERRCODE = 'no_data_found', HINT = 'tasker.subscribe makes one';
    END IF;
    IF s.holder = $2 AND s.held_until > clock_timestamp() + interval '3 seconds' THEN
        RETURN true;
    END IF;
    UPDATE tasker.event_subscribers u SET holder = $2, held_until = clock_timestamp() + interval '5 seconds'
    WHERE u.name = $1 AND (u.holder = $2 OR u.holder IS NULL OR u.held_until < clock_timestamp());
    RETURN FOUND;
END $$;

-- Gives up what a process holds: another need not wait for 5 seconds.
CREATE FUNCTION tasker.release_subscriber(name text, holder text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM tasker.event_sleepers s USING tasker.event_subscribers u WHERE u.name = $1 AND u.holder = $2 AND s.name = $1;
    UPDATE tasker.event_subscribers u SET holder = NULL, held_until = NULL WHERE u.name = $1 AND u.holder = $2;
END $$;

-- Moves the subscriber to the cursor that came with a batch; with up_to only as
-- far as that event of the batch. False: another process holds it by now.
CREATE FUNCTION tasker.acknowledge_events(name text, holder text, cursor tasker.event_cursor, up_to bigint DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tasker.event_subscribers s
    SET cursor = CASE WHEN up_to IS NULL THEN $3 ELSE tasker.cursor_within(s.cursor, $3, up_to) END,
        acknowledged_at = clock_timestamp(), failed_event_id = NULL, failure = NULL,
        held_until = clock_timestamp() + interval '5 seconds'
    WHERE s.name = $1 AND s.holder = $2;
    RETURN FOUND;
END $$;

-- Between two cursors: up to an id as in the later one, above it as in the
-- earlier. Who may still write what is missing is found out anew.
CREATE FUNCTION tasker.cursor_within(earlier tasker.event_cursor, later tasker.event_cursor, up_to bigint) RETURNS tasker.event_cursor
LANGUAGE sql IMMUTABLE AS $$
    SELECT ROW (greatest(earlier.passed, up_to), int8multirange(), '{}'::text[],
                (later.missing + later.recent) * int8multirange(int8range(NULL, up_to, '(]'))
                + (earlier.missing + earlier.recent) * int8multirange(int8range(up_to, NULL, '()')))::tasker.event_cursor
$$;

-- Says at which event a subscriber stands, for people.
CREATE FUNCTION tasker.event_failed(name text, holder text, event_id bigint, failure text) RETURNS void
LANGUAGE sql AS $$
    UPDATE tasker.event_subscribers s SET failed_event_id = $3, failure = left($4, 2000) WHERE s.name = $1 AND s.holder = $2
$$;

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
CREATE FUNCTION tasker.next_events(name text, holder text, most int DEFAULT 1000, acknowledged tasker.event_cursor DEFAULT NULL, channel text DEFAULT NULL)
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

-- The cursor after a look that saw these ids, the last of them reached. cut: it
-- stopped there, otherwise it has looked for everything.
CREATE FUNCTION tasker.cursor_after(c tasker.event_cursor, seen int8multirange, reached bigint, cut boolean, settled boolean) RETURNS tasker.event_cursor
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    passed bigint := greatest(c.passed, reached);
BEGIN
    c.recent := c.recent + int8multirange(int8range(c.passed, passed, '(]')) - seen;
    c.missing := c.missing - seen;
    IF settled THEN
        c.missing := CASE WHEN cut THEN c.missing * int8multirange(int8range(reached, NULL, '()')) ELSE '{}' END;
    END IF;
    c.passed := passed;
    IF isempty(c.missing) THEN
        c.missing := c.recent;
        c.recent := '{}';
        -- After the look: whoever may write what it did not see.
        c.writers := CASE WHEN isempty(c.missing) THEN '{}' ELSE tasker.event_writers() END;
    END IF;
    RETURN c;
END $$;

-- Enters or strikes off one who sleeps; writes only when that changes something.
CREATE FUNCTION tasker.fall_asleep(name text, channel text, likes text[], asleep boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT asleep THEN
        DELETE FROM tasker.event_sleepers s WHERE s.name = $1;
    ELSIF NOT EXISTS (SELECT FROM tasker.event_sleepers s WHERE s.name = $1 AND s.channel = $2 AND s.likes = $3
                      AND s.until > clock_timestamp() + interval '5 seconds') THEN
        INSERT INTO tasker.event_sleepers AS s (name, channel, likes, until) VALUES ($1, $2, $3, clock_timestamp() + interval '10 seconds')
        ON CONFLICT ON CONSTRAINT event_sleepers_pkey DO UPDATE SET channel = excluded.channel, likes = excluded.likes, until = excluded.until;
        DELETE FROM tasker.event_sleepers s USING (
            SELECT l.name FROM tasker.event_sleepers l WHERE l.until < clock_timestamp() FOR UPDATE SKIP LOCKED) dead
        WHERE s.name = dead.name;
    END IF;
END $$;

-- An event of the app's own, in its transaction. Returns its id.
CREATE FUNCTION tasker.publish_event(name text, data jsonb DEFAULT '{}', task bigint DEFAULT NULL, step bigint DEFAULT NULL, attempt int DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    of_task bigint := task;
    id      bigint;
BEGIN
    IF coalesce(name, '') !~ '^[a-z][a-z0-9_]*(\.[a-z0-9_]+)+$' OR length(name) > 200 THEN
        RAISE EXCEPTION 'the name of an event is like order.fulfilled (a-z, 0-9, _ and at least one dot), not "%"', coalesce(name, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    IF split_part(name, '.', 1) IN ('task', 'step', 'workflow', 'gate') THEN
        RAISE EXCEPTION 'event "%": names that begin with task., step., workflow. and gate. are the engine''s', name
        USING ERRCODE = 'TK003', HINT = 'name it after what happened in your domain, such as order.fulfilled';
    END IF;
    IF jsonb_typeof(data) <> 'object' THEN
        RAISE EXCEPTION 'the data of an event is a JSON object, not %', left(data::text, 100) USING ERRCODE = 'TK003';
    END IF;
    IF pg_column_size(data) > 65536 THEN
        RAISE EXCEPTION 'the data of event "%" has more than 64 KiB: store it elsewhere and carry a reference', name USING ERRCODE = 'TK003';
    END IF;
    IF step IS NOT NULL THEN
        SELECT s.task_id INTO of_task FROM tasker.steps s WHERE s.step_id = step AND (task IS NULL OR s.task_id = task);
        IF NOT FOUND THEN
            RAISE EXCEPTION 'there is no step %', step || coalesce(' of task ' || task, '') USING ERRCODE = 'TK003';
        END IF;
    ELSIF task IS NOT NULL AND NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.task_id = task) THEN
        RAISE EXCEPTION 'there is no task %', task USING ERRCODE = 'TK003';
    END IF;
    INSERT INTO tasker.events (task_id, step_id, attempt, name, data) VALUES (of_task, step, $5, $1, $2)
    RETURNING event_id INTO id;
    RETURN id;
END $$;

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
