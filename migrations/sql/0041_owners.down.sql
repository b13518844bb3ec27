CREATE OR REPLACE FUNCTION tasker.subscribe(name text, patterns text[] DEFAULT '{*}'::text[], start text DEFAULT 'now'::text) RETURNS void
    LANGUAGE plpgsql
    AS $_$
DECLARE
    new_likes text[] := tasker.event_likes(patterns);
BEGIN
    IF coalesce(name, '') !~ '^\S(.{0,198}\S)?$' THEN
        RAISE EXCEPTION 'the name of a subscriber has 1 to 200 characters and no space at its ends, unlike "%"', name USING ERRCODE = 'TK003';
    END IF;
    IF start IS NULL OR start NOT IN ('now', 'beginning') THEN
        RAISE EXCEPTION 'a subscriber starts at now or beginning, not at %', coalesce(start, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    INSERT INTO tasker.event_subscribers AS s (name, patterns, likes, cursor)
    VALUES ($1, $2, new_likes, ROW (CASE start WHEN 'now' THEN (SELECT coalesce(max(e.event_id), 0) FROM tasker.events e) ELSE 0 END, '{}', '{}', '{}'))
    ON CONFLICT ON CONSTRAINT event_subscribers_pkey DO UPDATE SET patterns = excluded.patterns, likes = excluded.likes
    WHERE s.patterns <> excluded.patterns;
END $_$;

CREATE OR REPLACE FUNCTION tasker.unsubscribe(name text) RETURNS boolean
    LANGUAGE plpgsql
    AS $_$
BEGIN
    DELETE FROM tasker.event_sleepers s WHERE s.name = $1;
    DELETE FROM tasker.event_subscribers s WHERE s.name = $1;
    RETURN FOUND;
END $_$;

CREATE OR REPLACE FUNCTION tasker.hold_subscriber(name text, holder text) RETURNS boolean
    LANGUAGE plpgsql
    AS $_$
DECLARE
    s tasker.event_subscribers;
BEGIN
    SELECT * INTO s FROM tasker.event_subscribers u WHERE u.name = $1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no subscriber "%"', name USING ERRCODE = 'no_data_found', HINT = 'tasker.subscribe makes one';
    END IF;
    IF s.holder = $2 AND s.held_until > clock_timestamp() + interval '3 seconds' THEN
        RETURN true;
    END IF;
    UPDATE tasker.event_subscribers u SET holder = $2, held_until = clock_timestamp() + interval '5 seconds'
    WHERE u.name = $1 AND (u.holder = $2 OR u.holder IS NULL OR u.held_until < clock_timestamp());
    RETURN FOUND;
END $_$;

CREATE OR REPLACE FUNCTION tasker.acknowledge_events(name text, holder text, cursor tasker.event_cursor, up_to bigint DEFAULT NULL::bigint) RETURNS boolean
    LANGUAGE plpgsql
    AS $_$
BEGIN
    UPDATE tasker.event_subscribers s
    SET cursor = CASE WHEN up_to IS NULL THEN $3 ELSE tasker.cursor_within(s.cursor, $3, up_to) END,
        acknowledged_at = clock_timestamp(), failed_event_id = NULL, failure = NULL,
        held_until = clock_timestamp() + interval '5 seconds'
    WHERE s.name = $1 AND s.holder = $2;
    RETURN FOUND;
END $_$;

CREATE OR REPLACE FUNCTION tasker.event_failed(name text, holder text, event_id bigint, failure text) RETURNS void
    LANGUAGE sql
    AS $_$
    UPDATE tasker.event_subscribers s SET failed_event_id = $3, failure = left($4, 2000) WHERE s.name = $1 AND s.holder = $2
$_$;

CREATE OR REPLACE FUNCTION tasker.release_subscriber(name text, holder text) RETURNS void
    LANGUAGE plpgsql
    AS $_$
BEGIN
    DELETE FROM tasker.event_sleepers s USING tasker.event_subscribers u WHERE u.name = $1 AND u.holder = $2 AND s.name = $1;
    UPDATE tasker.event_subscribers u SET holder = NULL, held_until = NULL WHERE u.name = $1 AND u.holder = $2;
END $_$;

CREATE OR REPLACE FUNCTION tasker.set_webhook(name text, url text, patterns text[], secret_env text, by text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql
    AS $_$
BEGIN
    IF name IS NULL OR name !~ '^[a-z0-9][a-z0-9_-]{0,62}$' THEN
        RAISE EXCEPTION 'the name of a webhook has up to 63 of a-z, 0-9, _ and -, and begins with a letter or number, not %', coalesce(quote_literal(left(name, 80)), 'null') USING ERRCODE = 'TK003';
    ELSIF url IS NULL OR url !~* '^https?://[^/@\s]+(/\S*)?$' OR length(url) > 2000 THEN
        RAISE EXCEPTION 'the URL of webhook % must be like https://host/path, without a user or password, and at most 2000 characters', quote_literal(name) USING ERRCODE = 'TK003';
    ELSIF secret_env IS NULL OR secret_env !~ '^[A-Za-z_][A-Za-z0-9_]*$' THEN
        RAISE EXCEPTION 'secret_env of webhook % must be the name of an environment variable, not %', quote_literal(name), coalesce(quote_literal(left(secret_env, 80)), 'null') USING ERRCODE = 'TK003';
    END IF;
    PERFORM tasker.subscribe('webhook:' || name, patterns);
    INSERT INTO tasker.webhooks AS w (name, url, patterns, secret_env, changed_by) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT ON CONSTRAINT webhooks_pkey DO UPDATE SET url = excluded.url, patterns = excluded.patterns, secret_env = excluded.secret_env, changed_at = now(), changed_by = excluded.changed_by;
END $_$;

DROP FUNCTION tasker.set_subscriber_owner(text, text);
DROP FUNCTION tasker.own_subscriber(text);
DROP FUNCTION tasker.steers_subscribers();
ALTER TABLE tasker.event_subscribers DROP COLUMN owner;
