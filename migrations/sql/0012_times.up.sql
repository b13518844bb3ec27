-- tasker: a task's times are such that everybody can read them.
--
-- River's client, in Go, can't read infinity: one such row made it lose the
-- whole batch of jobs that it was fetching, other tasks' jobs included.

CREATE FUNCTION tasker.refuse_time() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of a task is a time in the years 1 to 9999, not %', TG_ARGV[0], to_jsonb(NEW) ->> TG_ARGV[0]
    USING ERRCODE = 'TK003', HINT = format('leave %s out for a task that has none; pause a task that shall not start', TG_ARGV[0]);
END $$;

-- The condition is part of the trigger: an ordinary INSERT pays nothing.
CREATE TRIGGER refuse_run_at BEFORE INSERT ON tasker.tasks
    FOR EACH ROW WHEN (NEW.run_at < '0001-01-02 00:00:00+00' OR NEW.run_at > '9999-12-30 00:00:00+00')
    EXECUTE FUNCTION tasker.refuse_time('run_at');
CREATE TRIGGER refuse_deadline BEFORE INSERT ON tasker.tasks
    FOR EACH ROW WHEN (NEW.deadline < '0001-01-02 00:00:00+00' OR NEW.deadline > '9999-12-30 00:00:00+00')
    EXECUTE FUNCTION tasker.refuse_time('deadline');
