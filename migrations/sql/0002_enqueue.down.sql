DROP TRIGGER expand_tasks ON tasker.tasks;
DROP TRIGGER prepare_task ON tasker.tasks;
DROP FUNCTION tasker.enqueue_task(text, text, jsonb, text, smallint, timestamptz, text, text, text, text[], text, text, text, text[]),
    tasker.schedule_runs(bigint[], double precision[]), tasker.notify_river(), tasker.expand_tasks(),
    tasker.river_state(timestamptz), tasker.prepare_task(),
    tasker.register_template(text, text, text, text, jsonb, text, int, jsonb);
