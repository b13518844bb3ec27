-- tasker: a claim that is written twice, as its answer was lost, is stale at every gate, and never denied.

-- As it was, but for what has begun.
CREATE OR REPLACE FUNCTION tasker.pass_gates(steps bigint[], gate_ids integer[]) RETURNS bigint[]
    LANGUAGE plpgsql
    AS $_$
DECLARE
    g      tasker.gates;
    denied bigint[] := '{}';
    passed bigint[];
    stopped bigint[];
    room   bigint;
    kept   bigint;
    stale  text;
BEGIN
    BEGIN
        PERFORM FROM tasker.gates l WHERE l.gate_id = ANY ($2) ORDER BY l.gate_id FOR NO KEY UPDATE;
    EXCEPTION WHEN lock_not_available THEN
        -- Somebody changes a gate in a transaction that stays open. Whose claims
        -- have to wait is said, so that the rest is not tried one by one, and each
        -- in vain for as long.
        RAISE EXCEPTION 'somebody changes a gate' USING ERRCODE = 'lock_not_available', DETAIL = (
            SELECT coalesce(string_agg(DISTINCT s.task_id::text, ','), '') FROM unnest($1, $2) AS a(step_id, gate_id) JOIN tasker.steps s USING (step_id)
            WHERE a.gate_id NOT IN (SELECT l.gate_id FROM tasker.gates l WHERE l.gate_id = ANY ($2) ORDER BY l.gate_id FOR NO KEY UPDATE SKIP LOCKED));
    END;
    -- A write whose answer was lost comes again, and finds its own attempts in the
    -- gates that they passed. They have begun; who denied them would have their loop
    -- forget them.
    SELECT string_agg(DISTINCT s.task_id::text, ',') INTO stale FROM tasker.steps s
    WHERE s.step_id = ANY ($1) AND s.state NOT IN ('pending', 'waiting_for_retry');
    IF stale IS NOT NULL THEN
        RAISE EXCEPTION 'a step is not in the state that its loop saw' USING ERRCODE = 'TK005', DETAIL = stale;
    END IF;
    FOR g IN SELECT * FROM tasker.gates l WHERE l.gate_id = ANY ($2) ORDER BY l.gate_id LOOP
        room := CASE WHEN g.paused_at IS NOT NULL THEN 0 ELSE least(
            g.max_attempts - (SELECT count(*) FROM tasker.gate_slots o WHERE o.gate_id = g.gate_id),
            floor(tasker.gate_tokens(g))::bigint, 1000000) END;
        -- Places that are kept for others.
        SELECT count(*) INTO kept FROM tasker.gate_waiters w
        WHERE w.gate_id = g.gate_id AND w.admitted_until > clock_timestamp() AND w.step_id <> ALL ($1);
        SELECT coalesce(array_agg(c.step_id), '{}') INTO stopped FROM (
            SELECT a.step_id, w.admitted_until > clock_timestamp() IS TRUE AS admitted,
                   row_number() OVER (ORDER BY w.admitted_until > clock_timestamp() IS TRUE DESC, w.rank NULLS LAST, a.step_id) AS nth
            FROM unnest($1, $2) AS a(step_id, gate_id)
            LEFT JOIN tasker.gate_waiters w ON w.step_id = a.step_id AND w.gate_id = g.gate_id
            WHERE a.gate_id = g.gate_id AND a.step_id <> ALL (denied)) c
        WHERE c.nth > CASE WHEN c.admitted THEN room ELSE room - kept END
           OR NOT c.admitted AND EXISTS (SELECT FROM tasker.gate_waiters o WHERE o.gate_id = g.gate_id AND o.admitted_until IS NULL AND o.step_id <> ALL ($1));
        IF cardinality(stopped) > 0 THEN
            INSERT INTO tasker.gate_waiters AS w (step_id, gate_id, task_id, rank)
            SELECT s.step_id, g.gate_id, s.task_id, tasker.gate_rank(clock_timestamp(), t.priority)
            FROM tasker.steps s JOIN tasker.tasks t USING (task_id) WHERE s.step_id = ANY (stopped) ORDER BY s.step_id
            ON CONFLICT (step_id) DO UPDATE SET gate_id = EXCLUDED.gate_id, admitted_until = NULL, missed = 0; -- it keeps its rank
            denied := denied || stopped;
        END IF;
    END LOOP;

    SELECT coalesce(array_agg(DISTINCT p), '{}') INTO passed FROM unnest($1) p WHERE p <> ALL (denied);
    IF cardinality(passed) > 0 THEN
        INSERT INTO tasker.gate_slots (step_id, gate_id, task_id)
        SELECT a.step_id, a.gate_id, s.task_id FROM unnest($1, $2) AS a(step_id, gate_id)
        JOIN tasker.gates l USING (gate_id) JOIN tasker.steps s USING (step_id)
        WHERE l.max_attempts IS NOT NULL AND a.step_id = ANY (passed);
        UPDATE tasker.gates l SET tokens = tasker.gate_tokens(l) - p.n, filled_at = clock_timestamp()
        FROM (SELECT a.gate_id, count(*) AS n FROM unnest($1, $2) AS a(step_id, gate_id) WHERE a.step_id = ANY (passed) GROUP BY a.gate_id) p
        WHERE l.gate_id = p.gate_id AND l.per_second IS NOT NULL;
    END IF;
    RETURN denied;
END $_$;
