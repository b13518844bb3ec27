-- Runs at the end of every migration, in its transaction.
--
-- A function looks names up in pg_catalog alone, whatever the session's search_path:
-- a role that may create objects somewhere could plant an operator or a function that
-- fits better, and it would run with the rights of the caller. A function whose body
-- was parsed when it was made needs no setting.
DO $secure$
DECLARE
    f record;
BEGIN
    FOR f IN
        SELECT p.oid::regprocedure AS signature FROM pg_proc p
        WHERE p.pronamespace = 'tasker'::regnamespace AND p.prokind = 'f' AND p.prosqlbody IS NULL
          AND 'search_path=pg_catalog, pg_temp' <> ALL (coalesce(p.proconfig, '{}'))
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, pg_temp', f.signature);
    END LOOP;
END $secure$;
