CREATE OR REPLACE FUNCTION tasker.steps_of(task_ids bigint[]) RETURNS TABLE (task_id bigint, step_id bigint, state text, attempts int, losses int, forgiven int, retry_in double precision, dispatched boolean, progress jsonb, failure jsonb)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT s.task_id, s.step_id, s.state, s.attempts, s.losses, s.forgiven,
           coalesce(extract(epoch FROM s.retry_at - clock_timestamp()), 0)::double precision, d.step_id IS NOT NULL, s.progress, d.failure
    FROM tasker.steps s LEFT JOIN tasker.dispatches d ON d.step_id = s.step_id
    WHERE s.task_id = ANY (task_ids) ORDER BY s.task_id, s.position;
END $$;
