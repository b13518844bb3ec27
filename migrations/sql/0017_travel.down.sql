DROP FUNCTION tasker.travel(interval);
DROP FUNCTION tasker.is_test_database();
