DROP VIEW tasker.dead_letter_list;
DROP FUNCTION tasker.acknowledge_dead_letter(bigint, text, text),
    tasker.find_stale_tasks(interval, interval, interval, interval, interval, int),
    tasker.close_dead_letters(int), tasker.held_by(bigint);
DROP VIEW tasker.quiet_tasks;
DROP INDEX tasker.tasks_failed;
DROP TABLE tasker.dead_letters;
