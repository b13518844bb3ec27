DROP VIEW tasker.step_readiness;
DROP FUNCTION tasker.failure_in_words(jsonb);
