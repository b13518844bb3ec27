DROP TABLE tasker.processes, tasker.workers, tasker.events, tasker.dispatches,
    tasker.steps, tasker.tasks, tasker.template_steps, tasker.task_templates;
DROP FUNCTION tasker.refuse_transition(), tasker.task_may_become(text, text), tasker.step_may_become(text, text);
