-- tasker: limits, when many wait. A task that is given up just as a gate lets one of
-- its steps pass comes back at once. Who admits wakes the task's owner, and that one
-- may be giving it up in this moment: then nobody looked at it until the admission was
-- over, and the place stood empty for five seconds. A deployment gives up all tasks of
-- a worker. And who looks whom to admit, and finds no room, doesn't hold up those who
-- claim.

-- It waits for an admission that isn't committed yet, which in turn waits for no
-- waiter's row; one that comes later sees that nobody owns the task.
CREATE FUNCTION tasker.wake_admitted() RETURNS trigger
LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
BEGIN
    PERFORM FROM tasker.gate_waiters w WHERE w.task_id = NEW.task_id ORDER BY w.step_id FOR UPDATE;
    IF EXISTS (SELECT FROM tasker.gate_waiters w WHERE w.task_id = NEW.task_id AND w.admitted_until IS NOT NULL) THEN
        PERFORM tasker.schedule_runs(ARRAY[NEW.task_id], ARRAY[0::double precision]);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER wake_admitted AFTER UPDATE OF owner ON tasker.tasks FOR EACH ROW
    WHEN (OLD.owner IS NOT NULL AND NEW.owner IS NULL AND NEW.state = 'in_progress' AND NEW.paused_at IS NULL)
    EXECUTE FUNCTION tasker.wake_admitted();

-- When the next token comes that is not spoken for; null where none comes: no rate is
-- set, or no place is free, and the end of an attempt comes first.
CREATE FUNCTION tasker.next_token(g tasker.gates, taken bigint, kept bigint) RETURNS double precision
LANGUAGE sql STABLE
AS $$
    SELECT greatest(0.001, (1 + kept - tasker.gate_tokens(g)) / g.per_second)
    WHERE g.per_second IS NOT NULL AND (g.max_attempts > taken + kept) IS NOT FALSE
$$;

CREATE OR REPLACE FUNCTION tasker.admit_waiters() RETURNS double precision
LANGUAGE plpgsql SET lock_timeout = '20ms' -- other gates are held meanwhile
AS $$
DECLARE
    g     tasker.gates;
    out   bigint;
    kept  bigint;
    stale bigint;
    room  bigint;
    ids   bigint[];
    woken bigint[] := '{}';
    owned record;
    again double precision;
BEGIN
    FOR g IN SELECT * FROM tasker.gates l
             WHERE EXISTS (SELECT FROM tasker.gate_waiters w WHERE w.gate_id = l.gate_id) ORDER BY l.gate_id
    LOOP
        again := least(again, 1);
        CONTINUE WHEN g.paused_at IS NOT NULL;
        -- Most calls find no room, and who makes some calls again. So they don't take
        -- the gate: claims would wait for it until that is on disk.
        SELECT count(*) INTO out FROM tasker.gate_slots o WHERE o.gate_id = g.gate_id;
        SELECT count(*), count(*) FILTER (WHERE w.admitted_until < clock_timestamp()) INTO kept, stale
        FROM tasker.gate_waiters w WHERE w.gate_id = g.gate_id AND w.admitted_until IS NOT NULL;
        room := least(g.max_attempts - out, floor(tasker.gate_tokens(g))::bigint, 1000) - kept;
        IF room <= 0 AND stale = 0 THEN
            again := least(again, tasker.next_token(g, out, kept));
            CONTINUE;
        END IF;
        BEGIN
            SELECT * INTO g FROM tasker.gates l WHERE l.gate_id = g.gate_id FOR NO KEY UPDATE;
        EXCEPTION WHEN lock_not_available THEN
            again := least(again, 0.05);
            CONTINUE;
        END;
        CONTINUE WHEN g.paused_at IS NOT NULL;
        UPDATE tasker.gate_waiters w SET admitted_until = NULL, missed = w.missed + 1,
            rank = CASE WHEN w.missed = 0 THEN w.rank ELSE
                greatest(clock_timestamp(), (SELECT max(o.rank) FROM tasker.gate_waiters o WHERE o.gate_id = g.gate_id AND o.admitted_until IS NULL) + interval '1 microsecond') END
        FROM (SELECT o.step_id FROM tasker.gate_waiters o WHERE o.gate_id = g.gate_id AND o.admitted_until < clock_timestamp() FOR UPDATE SKIP LOCKED) late
        WHERE w.step_id = late.step_id;
        LOOP
            SELECT count(*) INTO out FROM tasker.gate_slots o WHERE o.gate_id = g.gate_id;
            SELECT count(*) INTO kept FROM tasker.gate_waiters w WHERE w.gate_id = g.gate_id AND w.admitted_until IS NOT NULL;
            room := least(g.max_attempts - out, floor(tasker.gate_tokens(g))::bigint, 1000) - kept;
            EXIT WHEN room <= 0;
            SELECT array_agg(f.step_id) INTO ids FROM (
                SELECT w.step_id FROM tasker.gate_waiters w WHERE w.gate_id = g.gate_id AND w.admitted_until IS NULL
                ORDER BY w.rank, w.step_id LIMIT room FOR UPDATE SKIP LOCKED) f;
            EXIT WHEN ids IS NULL;
            -- Those that wait no more: cancelled, skipped, their task has ended, is paused or was deleted.
            DELETE FROM tasker.gate_waiters w WHERE w.step_id = ANY (ids) AND NOT EXISTS (
                SELECT FROM tasker.steps s JOIN tasker.tasks t USING (task_id) WHERE s.step_id = w.step_id
                  AND s.state IN ('pending', 'waiting_for_retry') AND t.state IN ('pending', 'in_progress') AND t.paused_at IS NULL);
            WITH admitted AS (
                UPDATE tasker.gate_waiters w SET admitted_until = clock_timestamp() + interval '5 seconds' WHERE w.step_id = ANY (ids) RETURNING w.task_id
            )
            SELECT woken || coalesce(array_agg(DISTINCT a.task_id), '{}') INTO woken FROM admitted a;
        END LOOP;
        IF room <= 0 THEN
            again := least(again, tasker.next_token(g, out, kept));
        END IF;
    END LOOP;

    IF cardinality(woken) > 0 THEN
        FOR owned IN SELECT t.owner, string_agg(t.task_id::text, ',') AS tasks
            FROM (SELECT u.owner, u.task_id, row_number() OVER (PARTITION BY u.owner) / 300 AS chunk FROM tasker.tasks u
                  WHERE u.task_id = ANY (woken) AND u.owner IS NOT NULL) t GROUP BY t.owner, t.chunk
        LOOP
            PERFORM pg_notify('tasker.worker_' || owned.owner, 'g' || owned.tasks);
        END LOOP;
        PERFORM tasker.schedule_runs(array_agg(t.task_id), array_agg(0::double precision))
        FROM tasker.tasks t WHERE t.task_id = ANY (woken) AND t.owner IS NULL HAVING count(*) > 0;
    END IF;
    RETURN again;
END $$;
