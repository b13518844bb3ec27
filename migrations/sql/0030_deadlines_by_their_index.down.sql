ALTER FUNCTION tasker.expire_tasks(int) RESET jit;
ALTER FUNCTION tasker.expire_tasks(int) RESET enable_seqscan;
ALTER FUNCTION tasker.expire_tasks(int) RESET enable_sort;
