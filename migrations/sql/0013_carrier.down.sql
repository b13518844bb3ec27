DROP FUNCTION tasker.enqueue_task(text, text, jsonb, text, smallint, timestamptz, text, text, text, text[], text, text, text, text[], timestamptz, bigint, jsonb);
CREATE FUNCTION tasker.enqueue_task(
    namespace text, name text, context jsonb DEFAULT '{}', version text DEFAULT NULL,
    priority smallint DEFAULT NULL, run_at timestamptz DEFAULT NULL,
    idempotency_key text DEFAULT NULL, on_duplicate text DEFAULT 'return_existing',
    correlation_id text DEFAULT NULL, tags text[] DEFAULT '{}',
    initiator text DEFAULT NULL, source_system text DEFAULT NULL, reason text DEFAULT NULL,
    bypass_steps text[] DEFAULT '{}',
    deadline timestamptz DEFAULT NULL, parent_task_id bigint DEFAULT NULL)
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
                                   correlation_id, tags, initiator, source_system, reason, bypass_steps, deadline, parent_task_id)
    VALUES ($1, $2, $4, $3, coalesce($5, 2::smallint), $6, $7, $9, coalesce($10, '{}'), $11, $12, $13, coalesce($14, '{}'), $15, $16)
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

DROP TRIGGER refuse_carrier ON tasker.tasks;
DROP FUNCTION tasker.refuse_carrier();
ALTER TABLE tasker.tasks DROP COLUMN carrier;
