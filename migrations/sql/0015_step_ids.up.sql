-- tasker: who makes a task learns its steps' ids in the same round trip.
--
--   SELECT t.task_id, tasker.step_ids(t.task_id)
--   FROM (SELECT tasker.enqueue_task('shop', 'fulfil_order') AS task_id OFFSET 0) t;
--
-- Volatile, and no subquery of that statement: only so it sees what the
-- statement has just written.
CREATE FUNCTION tasker.step_ids(task bigint) RETURNS json
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN (SELECT coalesce(json_object_agg(s.name, s.step_id ORDER BY s.position), '{}') FROM tasker.steps s WHERE s.task_id = task);
END $$;
COMMENT ON FUNCTION tasker.step_ids IS 'Name to step_id of a task''s steps, in the template''s order';
