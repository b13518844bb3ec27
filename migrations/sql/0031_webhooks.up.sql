-- tasker: events to HTTP. A worker that may call the host and has the secret posts them, in
-- order, as the durable subscriber "webhook:<name>"; what is not taken after many tries
-- is kept below, and the next events go on.
CREATE TABLE tasker.webhooks (
    name       text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    url        text   NOT NULL,
    patterns   text[] NOT NULL,
    secret_env text   NOT NULL,  -- the worker's environment variable that holds the secret
    changed_at timestamptz NOT NULL DEFAULT now(),
    changed_by text
);

CREATE TABLE tasker.webhook_failures (
    webhook   text   NOT NULL REFERENCES tasker.webhooks (name) ON DELETE CASCADE,
    event_id  bigint NOT NULL,
    event     jsonb  NOT NULL,  -- as it was to be posted
    tries     int    NOT NULL,
    failure   text   NOT NULL,  -- of the last
    failed_at timestamptz NOT NULL DEFAULT now(),
    again     boolean NOT NULL DEFAULT false,  -- an operator wants it tried again
    PRIMARY KEY (webhook, event_id)
);
CREATE INDEX webhook_failures_again ON tasker.webhook_failures (webhook, event_id) WHERE again;

-- Makes a webhook, or changes it; its place among the events stays.
CREATE FUNCTION tasker.set_webhook(name text, url text, patterns text[], secret_env text, by text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql
AS $$
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
END $$;

-- Drops a webhook, its place and what it failed to deliver. False: there is none.
CREATE FUNCTION tasker.remove_webhook(name text) RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    DELETE FROM tasker.webhooks w WHERE w.name = $1;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM tasker.unsubscribe('webhook:' || $1);
    RETURN true;
END $$;

-- Has what a webhook failed to deliver tried again: one event, or all. Returns how many.
CREATE FUNCTION tasker.retry_webhook(name text, of_event bigint DEFAULT NULL) RETURNS int
LANGUAGE plpgsql
AS $$
DECLARE
    n int;
BEGIN
    UPDATE tasker.webhook_failures f SET again = true WHERE f.webhook = $1 AND f.event_id = coalesce(of_event, f.event_id) AND NOT f.again;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
