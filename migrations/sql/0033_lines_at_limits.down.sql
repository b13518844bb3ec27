DROP TRIGGER wake_admitted ON tasker.tasks;
DROP FUNCTION tasker.wake_admitted();

CREATE OR REPLACE FUNCTION tasker.admit_waiters() RETURNS double precision
LANGUAGE plpgsql SET lock_timeout = '20ms' -- other gates are held meanwhile
AS $$
DECLARE
    g     tasker.gates;
    gate  int;
    out   bigint;
    kept  bigint;
    room  bigint;
    ids   bigint[];
    woken bigint[] := '{}';
    owned record;
    again double precision;
BEGIN
    FOR gate IN SELECT l.gate_id FROM tasker.gates l
                WHERE EXISTS (SELECT FROM tasker.gate_waiters w WHERE w.gate_id = l.gate_id) ORDER BY l.gate_id
    LOOP
        BEGIN
            SELECT * INTO g FROM tasker.gates l WHERE l.gate_id = gate FOR NO KEY UPDATE;
        EXCEPTION WHEN lock_not_available THEN
            again := least(again, 0.05);
            CONTINUE;
        END;
        again := least(again, 1);
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
        -- When the next token comes that is not spoken for; where no place is free,
        -- the end of an attempt comes first.
        IF room <= 0 AND g.per_second IS NOT NULL AND (g.max_attempts > out + kept) IS NOT FALSE THEN
            again := least(again, greatest(0.001, (1 + kept - tasker.gate_tokens(g)) / g.per_second));
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

DROP FUNCTION tasker.next_token(tasker.gates, bigint, bigint);
