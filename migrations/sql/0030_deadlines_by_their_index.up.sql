-- tasker: what has passed its deadline is found by the index of deadlines. Planned
-- for the few tasks that were open when statistics were made, it was found by the
-- index of open tasks, which holds all that ended since, while anybody holds a
-- snapshot open: 150 ms every two seconds after four minutes under load.
ALTER FUNCTION tasker.expire_tasks(int) SET enable_sort = off;
ALTER FUNCTION tasker.expire_tasks(int) SET enable_seqscan = off;
ALTER FUNCTION tasker.expire_tasks(int) SET jit = off;
