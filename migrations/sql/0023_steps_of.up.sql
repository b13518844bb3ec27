-- tasker: when a task is loaded, only what is out is looked for among the dispatches.

-- As it was, otherwise; half the time for a task of 1,000 steps.
CREATE OR REPLACE FUNCTION tasker.steps_of(task_ids bigint[]) RETURNS TABLE (task_id bigint, step_id bigint, state text, attempts int, losses int, forgiven int, retry_in double precision, dispatched boolean, progress jsonb, failure jsonb)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT s.task_id, s.step_id, s.state, s.attempts, s.losses, s.forgiven,
           coalesce(extract(epoch FROM s.retry_at - clock_timestamp()), 0)::double precision, d.step_id IS NOT NULL, s.progress, d.failure
    FROM tasker.steps s LEFT JOIN LATERAL ( -- only where there may be one
        SELECT l.step_id, l.failure FROM tasker.dispatches l WHERE l.step_id = s.step_id AND s.state IN ('enqueued', 'in_progress') OFFSET 0) d ON true
    WHERE s.task_id = ANY (task_ids) ORDER BY s.task_id, s.position;
END $$;
