DROP TRIGGER refuse_deadline ON tasker.tasks;
DROP TRIGGER refuse_run_at ON tasker.tasks;
DROP FUNCTION tasker.refuse_time();
