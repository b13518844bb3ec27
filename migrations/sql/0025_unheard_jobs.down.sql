DROP FUNCTION tasker.rescue_unheard(text, bigint[]);
