CREATE OR REPLACE FUNCTION tasker.age_jobs(ageing interval, most integer DEFAULT 10000) RETURNS integer
    LANGUAGE plpgsql
    AS $$
DECLARE
    n     int := 0;
    moved int;
BEGIN
    FOR p IN 2..4 LOOP -- from the top, so that none is moved twice
        UPDATE tasker.river_job j SET priority = p - 1
        FROM (SELECT o.id FROM tasker.river_job o
              WHERE o.state = 'available' AND o.queue = 'default' AND o.priority = p AND o.scheduled_at < clock_timestamp() - ageing * (5 - p)
                AND o.kind = 'task_execution'
              ORDER BY o.scheduled_at LIMIT most FOR UPDATE SKIP LOCKED) due
        WHERE j.id = due.id;
        GET DIAGNOSTICS moved = ROW_COUNT;
        n := n + moved;
    END LOOP;
    RETURN n;
END $$;
