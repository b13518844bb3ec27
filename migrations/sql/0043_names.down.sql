CREATE OR REPLACE FUNCTION tasker.gate_is_for(scope text, gate text, namespace text, name text, handler_class text, handler text, queue text, limit_key text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT CASE scope WHEN 'template' THEN gate = namespace || '/' || name
        WHEN 'handler' THEN gate = coalesce(handler_class, handler)
        WHEN 'queue' THEN handler_class IS NOT NULL AND gate = queue
        ELSE gate = limit_key END
$$;

CREATE OR REPLACE FUNCTION tasker.gate_rank(since timestamp with time zone, priority integer) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT since + (priority - 1) * interval '1 minute' $$;

CREATE OR REPLACE FUNCTION tasker.gate_tokens(g tasker.gates) RETURNS double precision
    LANGUAGE sql STABLE
    AS $$
    SELECT least(g.burst, g.tokens + g.per_second * greatest(0, extract(epoch FROM clock_timestamp() - g.filled_at)))
$$;

CREATE OR REPLACE FUNCTION tasker.river_state(due timestamp with time zone) RETURNS tasker.river_job_state
    LANGUAGE sql STABLE
    AS $$
    SELECT CASE WHEN due > now() + interval '5 seconds' THEN 'scheduled' ELSE 'available' END::tasker.river_job_state
$$;

CREATE OR REPLACE FUNCTION tasker.failure_in_words(failure jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    SELECT left(split_part(coalesce(nullif(failure ->> 'message', ''), failure ->> 'class', 'no message'), E'\n', 1), 200)
$$;

CREATE OR REPLACE FUNCTION tasker.first_unread(c tasker.event_cursor) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT least(c.passed + 1, lower(c.missing + c.recent))
$$;

CREATE OR REPLACE FUNCTION tasker.has_defaults(schema jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT coalesce(schema::text LIKE '%"default": %', false) $$;

CREATE OR REPLACE FUNCTION tasker.fence_class() RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$SELECT 1953721202$$;

