package worker_test

// standIn is a schema with the calls of a process that runs attempts, for tests that
// do its work in SQL: it shows the tickets and secrets that a process has from its
// jobs and starts. A report of an attempt that has not been started starts it first.
const standIn = `
CREATE SCHEMA standin;
CREATE FUNCTION standin.start_attempt(step bigint, attempt int, process bigint DEFAULT NULL) RETURNS jsonb LANGUAGE sql AS $$
    SELECT tasker.start_attempt($1, $2, $3, (SELECT d.ticket FROM tasker.dispatches d WHERE d.step_id = $1))
$$;
CREATE FUNCTION standin.heartbeat(step bigint, attempt int, progress jsonb DEFAULT NULL) RETURNS boolean LANGUAGE sql AS $$
    SELECT tasker.heartbeat($1, $2, $3, (SELECT d.secret FROM tasker.dispatches d WHERE d.step_id = $1))
$$;
CREATE FUNCTION standin.report_results(reports jsonb, wait boolean DEFAULT true)
RETURNS TABLE (step_id bigint, attempt int, accepted boolean, reason text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF jsonb_typeof(reports) = 'array' THEN
        PERFORM tasker.start_attempts(array_agg(d.step_id), array_agg(d.attempt), NULL, tickets => array_agg(d.ticket))
        FROM tasker.dispatches d WHERE d.started_at IS NULL AND d.failure IS NULL AND d.ticket IS NOT NULL
          AND EXISTS (SELECT FROM jsonb_array_elements(reports) e WHERE (e ->> 'step_id')::bigint = d.step_id AND (e ->> 'attempt')::int = d.attempt)
        HAVING count(*) > 0;
        SELECT coalesce(jsonb_agg(e || coalesce((SELECT jsonb_build_object('secret', d.secret) FROM tasker.dispatches d
            WHERE d.step_id = (e ->> 'step_id')::bigint), '{}')), '[]') INTO reports FROM jsonb_array_elements(reports) e;
    END IF;
    RETURN QUERY SELECT * FROM tasker.report_results(reports, wait);
END $$;
`
