DROP FUNCTION tasker.reap_attempts(interval), tasker.process_stopped(bigint), tasker.process_beat(bigint),
    tasker.register_process(text, jsonb), tasker.report_results(jsonb), tasker.start_attempt(bigint, int, bigint);
