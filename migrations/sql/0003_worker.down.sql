DROP FUNCTION tasker.sweep(), tasker.rescue_jobs(text), tasker.release_worker(bigint, text), tasker.stop_worker(bigint),
    tasker.reap_worker(),
    tasker.write_batch(bigint, bigint[], int[], text[], text[], boolean[], double precision[],
        bigint[], bigint[], text[], int[], text[], int[], int[], text[], text[], double precision[], text[], bigint[], bigint[]),
    tasker.claim_tasks(bigint, bigint[]), tasker.assert_worker(bigint), tasker.fence_class();
