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

DROP FUNCTION tasker.read_events(tasker.event_cursor, text[], int, text, text);
DROP FUNCTION tasker.event_cursor_since(timestamptz);
