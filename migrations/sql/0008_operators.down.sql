DROP FUNCTION tasker.set_task_priority(bigint, smallint, text, text), tasker.run_task_now(bigint, text, text),
    tasker.resume_task(bigint, text, text), tasker.pause_task(bigint, text, text), tasker.resolve_task(bigint, text, text),
    tasker.resolve_step(bigint, jsonb, text, text), tasker.skip_step(bigint, text, text),
    tasker.settle_step(bigint, text, jsonb, text, text), tasker.retry_step(bigint, text, text),
    tasker.retry_task(bigint, text, text, jsonb), tasker.reopen_task(bigint, text, text),
    tasker.reset_steps(bigint, bigint[], text, text), tasker.cancel_task(bigint, text, text),
    tasker.record_verb(bigint, bigint, text, text, text, jsonb), tasker.poke_task(bigint),
    tasker.lock_step(bigint), tasker.lock_task(bigint);
