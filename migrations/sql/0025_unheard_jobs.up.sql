-- tasker: jobs whose fetch was committed and never heard of come back within seconds.

-- The answer of River's fetch got lost with its connection: the jobs run, as far as
-- the table knows, and nobody has them. Their client says which it knows.
CREATE FUNCTION tasker.rescue_unheard(client text, known bigint[]) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    n int;
BEGIN
    UPDATE tasker.river_job j
    SET state = 'available', scheduled_at = now(),
        errors = array_append(j.errors, jsonb_build_object('at', now(), 'attempt', j.attempt, 'error', 'its worker never heard of it', 'trace', ''))
    WHERE j.state = 'running' AND j.kind = 'task_execution' AND j.attempted_by[cardinality(j.attempted_by)] = client
      AND j.attempted_at < clock_timestamp() - interval '3 seconds' -- a younger one may be on its way
      AND j.id <> ALL (known);
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n > 0 THEN
        PERFORM tasker.notify_river();
    END IF;
    RETURN n;
END $$;
