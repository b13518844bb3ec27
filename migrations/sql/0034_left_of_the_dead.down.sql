CREATE OR REPLACE FUNCTION tasker.reap_worker() RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    w record;
BEGIN
    FOR w IN
        SELECT d.worker_id, d.client_id FROM tasker.workers d
        WHERE d.state = 'alive' AND greatest(d.last_seen_at, pg_postmaster_start_time()) < clock_timestamp() - d.lease
        ORDER BY d.worker_id
    LOOP
        -- Busy: one of its writes is in flight, or somebody else reaps it. Next time.
        CONTINUE WHEN NOT pg_try_advisory_xact_lock(tasker.fence_class(), w.worker_id::int);
        UPDATE tasker.workers d SET state = 'dead'
        WHERE d.worker_id = w.worker_id AND d.state = 'alive' AND d.last_seen_at < clock_timestamp() - d.lease;
        CONTINUE WHEN NOT FOUND;
        RETURN tasker.release_worker(w.worker_id, w.client_id);
    END LOOP;
    RETURN 0;
END $$;

CREATE OR REPLACE FUNCTION tasker.sweep() RETURNS integer
    LANGUAGE plpgsql
    AS $$
DECLARE
    found_tasks bigint[];
    w record;
    n int := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(tasker.fence_class(), 0) THEN
        RETURN 0;
    END IF;
    -- Jobs that run in clients which are gone.
    FOR w IN
        SELECT DISTINCT j.attempted_by[cardinality(j.attempted_by)] AS client FROM tasker.river_job j
        WHERE j.state = 'running' AND j.kind = 'task_execution'
          AND NOT EXISTS (SELECT FROM tasker.workers d WHERE d.client_id = j.attempted_by[cardinality(j.attempted_by)] AND d.state = 'alive')
    LOOP
        n := n + cardinality(tasker.rescue_jobs(w.client));
    END LOOP;
    -- Tasks of workers that are gone.
    FOR w IN
        SELECT DISTINCT t.owner FROM tasker.tasks t
        WHERE t.owner IS NOT NULL AND NOT EXISTS (SELECT FROM tasker.workers d WHERE d.worker_id = t.owner AND d.state = 'alive')
    LOOP
        n := n + tasker.release_worker(w.owner, '');
    END LOOP;
    -- Open tasks that nobody owns and nothing would bring back.
    SELECT array_agg(t.task_id) INTO found_tasks
    FROM (SELECT o.task_id FROM tasker.tasks o
          WHERE o.state IN ('pending', 'in_progress') AND o.owner IS NULL AND o.paused_at IS NULL
            AND NOT EXISTS (SELECT FROM tasker.dispatches d WHERE d.task_id = o.task_id AND d.failure IS NULL)
            AND NOT EXISTS (SELECT FROM tasker.gate_waiters l JOIN tasker.steps s USING (step_id)
                            WHERE l.task_id = o.task_id AND s.state IN ('pending', 'waiting_for_retry'))
          EXCEPT
          SELECT (j.args ->> 'task_id')::bigint FROM tasker.river_job j
          WHERE j.kind = 'task_execution' AND j.state IN ('available', 'running', 'scheduled', 'retryable', 'pending')
            -- One that runs for so long without an owner of its task was fetched by
            -- a client whose connection broke before the answer came: it never ran.
            AND (j.state <> 'running' OR j.attempted_at > now() - interval '30 seconds')
          LIMIT 10000) t;
    IF found_tasks IS NOT NULL THEN
        PERFORM tasker.schedule_runs(array_agg(t.task_id), array_agg(greatest(0, coalesce(extract(epoch FROM t.run_at - clock_timestamp()), 0))::double precision))
        FROM tasker.tasks t WHERE t.task_id = ANY (found_tasks);
        n := n + cardinality(found_tasks);
    END IF;
    -- What nobody will ask about any more.
    DELETE FROM tasker.workers d WHERE d.state <> 'alive' AND d.last_seen_at < now() - interval '7 days'
        AND NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.owner = d.worker_id);
    DELETE FROM tasker.processes p WHERE p.last_seen_at < now() - interval '7 days'
        AND NOT EXISTS (SELECT FROM tasker.dispatches d WHERE d.process_id = p.process_id);
    RETURN n;
END $$;
