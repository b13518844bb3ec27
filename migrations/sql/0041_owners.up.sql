-- tasker: a durable subscriber has an owner, the login that made it. Functions refuse other
-- logins. Before, any app could drop the subscribers of other apps and of operators'
-- webhooks, or move their cursors past events that they had not read.
--
-- An owner of NULL is that of a subscriber from before this migration. The first login that
-- uses it becomes its owner: with the schema's owner there, apps would have been locked out.
ALTER TABLE tasker.event_subscribers ADD COLUMN owner text;
COMMENT ON COLUMN tasker.event_subscribers.owner IS
    'Role that may use it, with its members; NULL: the first login that uses it becomes the owner';

UPDATE tasker.event_subscribers s SET owner = r.rolname
FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner, tasker.webhooks w WHERE n.nspname = 'tasker' AND s.name = 'webhook:' || w.name;

-- Whether this login may use every subscriber: it is an operator, a worker or the schema's owner.
CREATE FUNCTION tasker.steers_subscribers() RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM pg_roles r
                   WHERE (r.rolname IN ('tasker_operator', 'tasker_worker')
                          OR r.oid = (SELECT n.nspowner FROM pg_namespace n WHERE n.nspname = 'tasker'))
                     AND pg_has_role(session_user, r.oid, 'MEMBER'))
$$;

-- Refuses a login that may not use the subscriber. session_user is the login also within
-- functions that run with the rights of the schema's owner.
CREATE FUNCTION tasker.own_subscriber(name text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    owner text;
BEGIN
    SELECT s.owner INTO owner FROM tasker.event_subscribers s WHERE s.name = $1;
    IF NOT FOUND OR owner = session_user THEN
        RETURN;
    END IF;
    IF owner IS NULL THEN
        UPDATE tasker.event_subscribers s SET owner = session_user WHERE s.name = $1 AND s.owner IS NULL;
        IF FOUND THEN
            RETURN;
        END IF;
        -- Another login was first.
        SELECT s.owner INTO owner FROM tasker.event_subscribers s WHERE s.name = $1;
    END IF;
    IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = owner AND pg_has_role(session_user, r.oid, 'MEMBER')) OR tasker.steers_subscribers() THEN
        RETURN;
    END IF;
    RAISE EXCEPTION 'subscriber "%" belongs to %, and % may not use it', name, owner, session_user USING ERRCODE = 'insufficient_privilege',
        HINT = format('use another name, or let its owner or an operator call tasker.set_subscriber_owner(%L, ROLE)', name);
END $$;

-- Gives a subscriber to another role: to a group, for one, whose logins change.
CREATE FUNCTION tasker.set_subscriber_owner(name text, owner text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tasker.own_subscriber(name);
    IF owner IS NOT NULL AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = $2) THEN
        RAISE EXCEPTION 'there is no role "%"', owner USING ERRCODE = 'no_data_found';
    END IF;
    UPDATE tasker.event_subscribers s SET owner = $2 WHERE s.name = $1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no subscriber "%"', name USING ERRCODE = 'no_data_found', HINT = 'tasker.subscribe makes one';
    END IF;
END $$;

-- Names that begin with webhook: are those of webhooks. A worker makes the subscriber of a
-- webhook again where it is missing.
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
    IF starts_with(name, 'webhook:')
       AND NOT (EXISTS (SELECT FROM tasker.webhooks w WHERE w.name = substr($1, 9)) AND tasker.steers_subscribers()) THEN
        RAISE EXCEPTION 'names of subscribers that begin with webhook: belong to webhooks, so "%" is refused', name
        USING ERRCODE = 'insufficient_privilege', HINT = 'an operator makes a webhook: tasker webhook set';
    END IF;
    INSERT INTO tasker.event_subscribers AS s (name, owner, patterns, likes, cursor)
    VALUES ($1, session_user, $2, new_likes, ROW (CASE start WHEN 'now' THEN (SELECT coalesce(max(e.event_id), 0) FROM tasker.events e) ELSE 0 END, '{}', '{}', '{}'))
    ON CONFLICT ON CONSTRAINT event_subscribers_pkey DO UPDATE SET patterns = excluded.patterns, likes = excluded.likes
    WHERE s.patterns <> excluded.patterns;
    PERFORM tasker.own_subscriber(name); -- its error takes back the patterns
END $_$;

CREATE OR REPLACE FUNCTION tasker.unsubscribe(name text) RETURNS boolean
    LANGUAGE plpgsql
    AS $_$
BEGIN
    IF EXISTS (SELECT FROM tasker.webhooks w WHERE 'webhook:' || w.name = $1) AND tasker.steers_subscribers() THEN
        RAISE EXCEPTION 'subscriber "%" belongs to a webhook', name USING ERRCODE = 'TK008',
            HINT = format('remove the webhook: tasker webhook remove %s', substr(name, 9));
    END IF;
    PERFORM tasker.own_subscriber(name);
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
    IF s.owner IS DISTINCT FROM session_user THEN
        PERFORM tasker.own_subscriber(name);
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
    PERFORM tasker.own_subscriber(name);
    UPDATE tasker.event_subscribers s
    SET cursor = CASE WHEN up_to IS NULL THEN $3 ELSE tasker.cursor_within(s.cursor, $3, up_to) END,
        acknowledged_at = clock_timestamp(), failed_event_id = NULL, failure = NULL,
        held_until = clock_timestamp() + interval '5 seconds'
    WHERE s.name = $1 AND s.holder = $2;
    RETURN FOUND;
END $_$;

CREATE OR REPLACE FUNCTION tasker.release_subscriber(name text, holder text) RETURNS void
    LANGUAGE plpgsql
    AS $_$
BEGIN
    PERFORM tasker.own_subscriber(name);
    DELETE FROM tasker.event_sleepers s USING tasker.event_subscribers u WHERE u.name = $1 AND u.holder = $2 AND s.name = $1;
    UPDATE tasker.event_subscribers u SET holder = NULL, held_until = NULL WHERE u.name = $1 AND u.holder = $2;
END $_$;

CREATE OR REPLACE FUNCTION tasker.event_failed(name text, holder text, event_id bigint, failure text) RETURNS void
    LANGUAGE sql
    AS $_$
    SELECT tasker.own_subscriber($1);
    UPDATE tasker.event_subscribers s SET failed_event_id = $3, failure = left($4, 2000) WHERE s.name = $1 AND s.holder = $2
$_$;

-- The webhook's row is there first: tasker.subscribe looks for it. Its subscriber belongs to
-- the schema's owner, and not to the operator that happened to call.
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
    INSERT INTO tasker.webhooks AS w (name, url, patterns, secret_env, changed_by) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT ON CONSTRAINT webhooks_pkey DO UPDATE SET url = excluded.url, patterns = excluded.patterns, secret_env = excluded.secret_env, changed_at = now(), changed_by = excluded.changed_by;
    PERFORM tasker.subscribe('webhook:' || name, patterns);
    UPDATE tasker.event_subscribers s SET owner = r.rolname
    FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner
    WHERE n.nspname = 'tasker' AND s.name = 'webhook:' || $1 AND s.owner IS DISTINCT FROM r.rolname;
END $_$;
