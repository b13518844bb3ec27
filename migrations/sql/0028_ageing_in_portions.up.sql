-- tasker: jobs that wait move up in portions, so that a flood does not overtake what is urgent.

-- At every level at most so many stand before those that belong there: all that
-- waits for long would come before the urgent, as long as there is more to do than
-- can be done. A tenth of them move up in any case, so that nobody waits for ever
-- behind a level that never empties.
CREATE OR REPLACE FUNCTION tasker.age_jobs(ageing interval, most integer DEFAULT 200) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    n     int := 0;
    moved int;
    room  int;
BEGIN
    FOR p IN 2..4 LOOP -- from the top, so that none is moved twice
        SELECT greatest(most - count(*), most / 10, 1) INTO room FROM (
            SELECT FROM tasker.river_job o
            WHERE o.state = 'available' AND o.queue = 'default' AND o.priority = p - 1 AND o.scheduled_at < clock_timestamp() - ageing * (5 - p)
            LIMIT most) there;
        UPDATE tasker.river_job j SET priority = p - 1
        FROM (SELECT o.id FROM tasker.river_job o
              WHERE o.state = 'available' AND o.queue = 'default' AND o.priority = p AND o.scheduled_at < clock_timestamp() - ageing * (5 - p)
                AND o.kind = 'task_execution'
              ORDER BY o.scheduled_at LIMIT room FOR UPDATE SKIP LOCKED) due
        WHERE j.id = due.id;
        GET DIAGNOSTICS moved = ROW_COUNT;
        n := n + moved;
    END LOOP;
    RETURN n;
END $$;
