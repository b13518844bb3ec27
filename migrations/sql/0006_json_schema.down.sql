DROP TRIGGER check_contexts ON tasker.tasks;
DROP TRIGGER check_new_context ON tasker.tasks;
ALTER TABLE tasker.task_templates DROP COLUMN context_schema;
DROP FUNCTION tasker.check_contexts(), tasker.check_new_context(), tasker.refuse_context(text, text, text, text),
    tasker.schema_problem(jsonb, jsonb, text),
    tasker.schema_problem_within(jsonb, jsonb, jsonb, text, int),
    tasker.schema_word(text), tasker.schema_shown(jsonb), tasker.schema_path(text, text);
