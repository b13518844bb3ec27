DROP FUNCTION tasker.step_ids(bigint);
