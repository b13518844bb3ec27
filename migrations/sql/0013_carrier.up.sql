-- tasker: what a task carries along for whoever runs its steps.
--
-- A context says what a task is about: its template's schema holds for it, and
-- it may be the task's identity. What only travels with the task, such as the
-- user for whom a request was made, must change neither: it is kept beside.
-- The engine does not read it.

ALTER TABLE tasker.tasks ADD COLUMN carrier jsonb; -- an object, by the name of whoever put a member there; null: nothing

CREATE FUNCTION tasker.refuse_carrier() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the carrier of a task is a JSON object of at most 64 KiB, not % of % bytes',
        CASE WHEN jsonb_typeof(NEW.carrier) = 'object' THEN 'one' ELSE jsonb_typeof(NEW.carrier) END, pg_column_size(NEW.carrier)
    USING ERRCODE = 'TK003', HINT = 'it is for what travels with the task; what the task is about belongs into its context';
END $$;

-- The condition is part of the trigger: an INSERT without a carrier pays nothing.
CREATE TRIGGER refuse_carrier BEFORE INSERT ON tasker.tasks
    FOR EACH ROW WHEN (NEW.carrier IS NOT NULL AND (jsonb_typeof(NEW.carrier) <> 'object' OR pg_column_size(NEW.carrier) > 65536))
    EXECUTE FUNCTION tasker.refuse_carrier();

-- As in 0009, with carrier. A task that is there already keeps its own.
DROP FUNCTION tasker.enqueue_task(text, text, jsonb, text, smallint, timestamptz, text, text, text, text[], text, text, text, text[], timestamptz, bigint);
CREATE FUNCTION tasker.enqueue_task(
    namespace text, name text, context jsonb DEFAULT '{}', version text DEFAULT NULL,
    priority smallint DEFAULT NULL, run_at timestamptz DEFAULT NULL,
    idempotency_key text DEFAULT NULL, on_duplicate text DEFAULT 'return_existing',
    correlation_id text DEFAULT NULL, tags text[] DEFAULT '{}',
    initiator text DEFAULT NULL, source_system text DEFAULT NULL, reason text DEFAULT NULL,
    bypass_steps text[] DEFAULT '{}',
    deadline timestamptz DEFAULT NULL, parent_task_id bigint DEFAULT NULL,
    carrier jsonb DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    id  bigint;
    key text := idempotency_key;
BEGIN
    IF on_duplicate IS NULL OR on_duplicate NOT IN ('return_existing', 'refuse') THEN
        RAISE EXCEPTION 'on_duplicate must be return_existing or refuse, not %', coalesce(on_duplicate, 'NULL')
        USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO tasker.tasks AS t (namespace, name, version, context, priority, run_at, idempotency_key,
                                   correlation_id, tags, initiator, source_system, reason, bypass_steps, deadline, parent_task_id, carrier)
    VALUES ($1, $2, $4, $3, coalesce($5, 2::smallint), $6, $7, $9, coalesce($10, '{}'), $11, $12, $13, coalesce($14, '{}'), $15, $16, $17)
    ON CONFLICT (namespace, name, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING t.task_id INTO id;

    IF id IS NULL THEN
        key := coalesce(key, tasker.context_key($3)); -- where none was given, the template asked for this one
        SELECT t.task_id INTO id FROM tasker.tasks t
        WHERE t.namespace = $1 AND t.name = $2 AND t.idempotency_key = key;
        IF id IS NULL THEN
            RAISE EXCEPTION 'task %/% with idempotency key % was inserted by a transaction that this one cannot see', $1, $2, key
            USING ERRCODE = 'serialization_failure', HINT = 'run the transaction again';
        ELSIF on_duplicate = 'refuse' THEN
            RAISE EXCEPTION 'task % of %/% has the idempotency key % already', id, $1, $2, key
            USING ERRCODE = 'unique_violation';
        END IF;
    END IF;
    RETURN id;
END $$;
