DROP VIEW tasker.step_dependencies, tasker.task_summaries;
