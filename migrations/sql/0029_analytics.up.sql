-- tasker: figures of what has ended, kept up from the events.
--
-- One worker at a time reads the events with a cursor, as a subscriber does, and
-- adds what it finds to the counts below, in the transaction that moves the cursor:
-- each event counts once. The counts are of spans of five minutes, kept for a day
-- and two hours, of hours, and of all time.

CREATE TABLE tasker.stats (
    span        smallint    NOT NULL,  -- minutes: 5 or 60; 0: all time
    since       timestamptz NOT NULL,  -- when the span began; of all time: -infinity
    template_id bigint      NOT NULL,
    position    int         NOT NULL,  -- of the step; -1: the task itself
    -- Durations: run (an attempt, or a task from its start to its end), wait (a task
    -- until a worker takes it, a step from being ready to the start of its first
    -- attempt), total (a task from its insert to its end), backoff (before another attempt).
    -- Counts, with bucket 0 and no seconds: created, completed, failed, cancelled,
    -- resolved, skipped, retried, recovered (completed after the first attempt),
    -- exhausted (failed after the first attempt). And, with all their seconds, those
    -- of which there is a duration: ran (run), waited (wait), took (total).
    measure     text        NOT NULL,
    bucket      smallint    NOT NULL,  -- b: from 2^(b/8) to 2^((b+1)/8) seconds
    n           bigint      NOT NULL,
    seconds     double precision NOT NULL,  -- their sum
    PRIMARY KEY (span, since, template_id, position, measure, bucket)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE tasker.stats IS 'Counts and durations of what has ended, by span, template and step; read them by tasker.figures and tasker.outcomes';

-- The ten that took longest of each hour, template and step.
CREATE TABLE tasker.stats_slowest (
    since       timestamptz NOT NULL,  -- when the hour began
    template_id bigint      NOT NULL,
    position    int         NOT NULL,
    seconds     double precision NOT NULL,
    task_id     bigint      NOT NULL,
    ended_at    timestamptz NOT NULL,
    PRIMARY KEY (since, template_id, position, seconds, task_id)
);

-- Failures that are alike: numbers, ids and quoted words taken out of the message.
CREATE TABLE tasker.stats_errors (
    span        smallint    NOT NULL,
    since       timestamptz NOT NULL,
    template_id bigint      NOT NULL,
    position    int         NOT NULL,
    fingerprint text        NOT NULL,
    class       text        NOT NULL,
    message     text        NOT NULL,  -- of the last, as it was
    n           bigint      NOT NULL,
    task_id     bigint      NOT NULL,  -- of the last
    last_at     timestamptz NOT NULL,
    PRIMARY KEY (span, since, template_id, position, fingerprint)
) WITH (fillfactor = 50);

-- How far the counts go.
CREATE TABLE tasker.stats_progress (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    cursor   tasker.event_cursor,  -- NULL: nothing was read yet
    as_of    timestamptz,          -- what ended until then, about, is in the counts
    rest_until timestamptz         -- there was more, and this long the database has its rest from it
);
INSERT INTO tasker.stats_progress DEFAULT VALUES;

CREATE FUNCTION tasker.stats_bucket(seconds double precision) RETURNS smallint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN floor(8 * ln(greatest(seconds, 1e-6)) / ln(2::double precision))::smallint;

-- What two failures that are alike have in common.
CREATE FUNCTION tasker.failure_kind(class text, message text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(class, '') || ': ' || left(regexp_replace(coalesce(message, ''),
    '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|0x[0-9a-f]+|"[^"]*"|''[^'']*''|[0-9]+([.:][0-9]+)*', '?', 'gi'), 200);

-- Reads up to most events and adds them to the counts. Returns how many it read:
-- most, when there may be more; NULL: another is at it, or it is too soon, as
-- with more to do the next comes rest times later than this took: the counts never
-- take more than their share of a busy database, and catch up when it is less busy.
CREATE FUNCTION tasker.roll_up(most int DEFAULT 5000, rest double precision DEFAULT 19) RETURNS int
LANGUAGE plpgsql
-- Plans must not depend on tables being small when first planned.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    c       tasker.event_cursor;
    settled boolean := true;
    oldest  timestamptz;
    seen    int8multirange;
    reached bigint;
    n       int;
    latest  timestamptz;
    began   timestamptz := clock_timestamp();
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'whoever reads events must see what commits while it runs: call roll_up in a read committed transaction' USING ERRCODE = 'TK003';
    END IF;
    SELECT (p.cursor).* INTO c FROM tasker.stats_progress p
    WHERE p.rest_until IS NULL OR p.rest_until <= clock_timestamp() OR rest = 0 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF c IS NULL OR c.passed IS NULL THEN -- a database that had events before it had counts: its last day is enough
        c := tasker.event_cursor_since(now() - interval '1 day');
    END IF;
    -- Before the look: what ended until here is seen by it.
    IF NOT isempty(c.missing) THEN
        settled := NOT tasker.still_writing(c.writers);
    END IF;
    oldest := tasker.unread_since(tasker.first_unread(c));

    WITH looked AS MATERIALIZED (
        (SELECT e.event_id, e.created_at, e.name, e.task_id, e.step_id, e.attempt, e.data
         FROM unnest(c.missing + c.recent) AS m(ids)
         CROSS JOIN LATERAL (SELECT v.* FROM tasker.events v
                             WHERE v.created_at >= oldest AND v.event_id >= lower(m.ids) AND v.event_id < upper(m.ids) OFFSET 0) e
         ORDER BY e.event_id LIMIT most)
        UNION ALL
        (SELECT e.event_id, e.created_at, e.name, e.task_id, e.step_id, e.attempt, e.data FROM tasker.events e
         WHERE e.created_at >= oldest AND e.event_id > c.passed ORDER BY e.event_id LIMIT most)
        ORDER BY 1 LIMIT most
    ), ends AS MATERIALIZED (
        SELECT e.event_id, e.created_at AS at, split_part(e.name, '.', 2) AS what, e.attempt, e.data, t.template_id, t.task_id,
               coalesce(s.position, -1) AS position, ready.at AS ready, begun.at AS begun,
               CASE WHEN s.step_id IS NULL THEN coalesce(t.finished_at, e.created_at)
                    WHEN s.attempts = e.attempt AND e.name <> 'step.retry_requested' THEN coalesce(s.finished_at, e.created_at)
                    ELSE e.created_at END AS ended,
               CASE WHEN s.step_id IS NULL THEN t.created_at END AS created
        FROM looked e
        JOIN tasker.tasks t USING (task_id)
        LEFT JOIN tasker.steps s ON s.step_id = e.step_id
        CROSS JOIN LATERAL (
            SELECT CASE WHEN s.step_id IS NULL THEN t.started_at
                        WHEN e.attempt IS NULL THEN NULL
                        WHEN s.attempts = e.attempt AND s.started_at IS NOT NULL THEN s.started_at
                        -- A later attempt has begun, or it is to be made again: when this one began is in the events.
                        ELSE (SELECT h.created_at FROM tasker.events h
                              WHERE h.task_id = e.task_id AND h.event_id < e.event_id AND h.step_id = e.step_id AND h.attempt = e.attempt AND h.name = 'step.handle'
                              ORDER BY h.event_id DESC LIMIT 1) END AS at OFFSET 0) begun
        CROSS JOIN LATERAL (
            SELECT CASE WHEN s.step_id IS NULL THEN greatest(t.created_at, t.run_at)
                        WHEN e.attempt = 1 THEN greatest(t.started_at, (
                            SELECT max(d.finished_at) FROM tasker.template_steps ts CROSS JOIN LATERAL unnest(ts.depends_on) AS o(position)
                            JOIN tasker.steps d ON d.task_id = s.task_id AND d.position = o.position
                            WHERE ts.template_id = t.template_id AND ts.position = s.position)) END AS at OFFSET 0) ready
        WHERE e.name IN ('step.completed', 'step.failed', 'step.retry_requested', 'step.cancelled', 'step.skipped', 'step.resolved_manually',
                         'task.initialize_requested', 'task.completed', 'task.failed', 'task.cancelled', 'task.resolved_manually')
    ), measured AS (
        SELECT e.at, e.template_id, e.position, m.measure, m.seconds
        FROM ends e CROSS JOIN LATERAL (
            SELECT 'run' AS measure, extract(epoch FROM e.ended - e.begun)::double precision AS seconds
            WHERE e.begun IS NOT NULL AND (e.what IN ('completed', 'failed', 'retry_requested') OR e.position < 0 AND e.what IN ('cancelled', 'resolved_manually'))
            UNION ALL
            SELECT 'wait', extract(epoch FROM e.begun - e.ready)::double precision
            WHERE e.begun IS NOT NULL AND e.ready IS NOT NULL AND e.what IN ('completed', 'failed', 'retry_requested')
            UNION ALL
            SELECT 'total', extract(epoch FROM e.ended - e.created)::double precision WHERE e.created IS NOT NULL AND e.what <> 'initialize_requested'
            UNION ALL
            SELECT 'backoff', (e.data ->> 'retry_in_seconds')::double precision WHERE e.what = 'retry_requested' AND e.data ? 'retry_in_seconds'
        ) m
    ), counted AS (
        SELECT m.at, m.template_id, m.position, m.measure, tasker.stats_bucket(m.seconds) AS bucket, greatest(m.seconds, 0) AS seconds FROM measured m
        UNION ALL
        SELECT e.at, e.template_id, e.position,
               CASE e.what WHEN 'initialize_requested' THEN 'created' WHEN 'retry_requested' THEN 'retried' WHEN 'resolved_manually' THEN 'resolved' ELSE e.what END, 0, 0
        FROM ends e
        UNION ALL
        SELECT e.at, e.template_id, e.position, CASE e.what WHEN 'completed' THEN 'recovered' ELSE 'exhausted' END, 0, 0
        FROM ends e WHERE e.position >= 0 AND e.attempt > 1 AND e.what IN ('completed', 'failed')
    ), summed AS MATERIALIZED ( -- before it is made three of: there are many rows and few sums
        SELECT date_bin('5 minutes', k.at, timestamptz '2000-01-01 00:00+00') AS since, k.template_id, k.position, k.measure, k.bucket, count(*) AS n, sum(k.seconds) AS seconds
        FROM counted k GROUP BY 1, 2, 3, 4, 5
    ), added AS (
        INSERT INTO tasker.stats AS s (span, since, template_id, position, measure, bucket, n, seconds)
        SELECT g.span, CASE g.span WHEN 0 THEN '-infinity' WHEN 5 THEN k.since ELSE date_bin('1 hour', k.since, timestamptz '2000-01-01 00:00+00') END,
               k.template_id, k.position, k.measure, k.bucket, sum(k.n), sum(k.seconds)
        FROM (SELECT * FROM summed
              UNION ALL
              SELECT d.since, d.template_id, d.position, CASE d.measure WHEN 'run' THEN 'ran' WHEN 'wait' THEN 'waited' ELSE 'took' END, 0, sum(d.n), sum(d.seconds)
              FROM summed d WHERE d.measure IN ('run', 'wait', 'total') GROUP BY 1, 2, 3, 4) k
        CROSS JOIN (VALUES (0), (5), (60)) AS g(span)
        GROUP BY 1, 2, 3, 4, 5, 6
        ON CONFLICT (span, since, template_id, position, measure, bucket) DO UPDATE SET n = s.n + excluded.n, seconds = s.seconds + excluded.seconds
    ), slow AS (
        INSERT INTO tasker.stats_slowest (since, template_id, position, seconds, task_id, ended_at)
        SELECT r.since, r.template_id, r.position, r.seconds, r.task_id, r.ended FROM (
            SELECT h.since, e.template_id, e.position, x.seconds, e.task_id, e.ended,
                   row_number() OVER (PARTITION BY h.since, e.template_id, e.position ORDER BY x.seconds DESC) AS place
            FROM ends e
            CROSS JOIN LATERAL (SELECT date_bin('1 hour', e.at, timestamptz '2000-01-01 00:00+00') AS since) h
            CROSS JOIN LATERAL (SELECT extract(epoch FROM e.ended - coalesce(e.created, e.begun))::double precision AS seconds) x
            WHERE e.what IN ('completed', 'failed') AND x.seconds IS NOT NULL) r
        WHERE r.place <= 10
          -- Slower than the tenth of its hour, or it is not among the ten.
          AND r.seconds > coalesce((SELECT l.seconds FROM tasker.stats_slowest l WHERE l.since = r.since AND l.template_id = r.template_id AND l.position = r.position
                                    ORDER BY l.seconds DESC OFFSET 9 LIMIT 1), -1)
        ON CONFLICT DO NOTHING
    ), failures AS (
        INSERT INTO tasker.stats_errors AS x (span, since, template_id, position, fingerprint, class, message, n, task_id, last_at)
        SELECT g.span, date_bin(make_interval(mins => g.span), f.at, timestamptz '2000-01-01 00:00+00'), f.template_id, f.position,
               left(md5(tasker.failure_kind(f.class, f.message)), 12),
               (array_agg(f.class ORDER BY f.event_id DESC))[1], (array_agg(f.message ORDER BY f.event_id DESC))[1], count(*),
               (array_agg(f.task_id ORDER BY f.event_id DESC))[1], max(f.at)
        FROM (SELECT e.*, coalesce(e.data ->> 'class', '') AS class, left(coalesce(e.data ->> 'message', ''), 500) AS message
              FROM ends e WHERE e.position >= 0 AND e.what IN ('failed', 'retry_requested')) f
        CROSS JOIN (VALUES (5), (60)) AS g(span)
        GROUP BY 1, 2, 3, 4, 5
        ON CONFLICT (span, since, template_id, position, fingerprint)
        DO UPDATE SET n = x.n + excluded.n, last_at = greatest(x.last_at, excluded.last_at),
                      message = CASE WHEN excluded.last_at >= x.last_at THEN excluded.message ELSE x.message END,
                      task_id = CASE WHEN excluded.last_at >= x.last_at THEN excluded.task_id ELSE x.task_id END
    )
    SELECT coalesce((SELECT range_agg(i.ids) FROM (
               -- ids that follow on one another have the same difference to their rank
               SELECT int8range(min(l.event_id), max(l.event_id), '[]') AS ids
               FROM (SELECT k.event_id, row_number() OVER (ORDER BY k.event_id) AS r FROM looked k) l GROUP BY l.event_id - l.r) i), '{}'),
           max(k.event_id), count(*), max(k.created_at)
    INTO seen, reached, n, latest FROM looked k;

    c := tasker.cursor_after(c, seen, reached, n = most, settled);
    UPDATE tasker.stats_progress p
    SET cursor = c, as_of = CASE WHEN n < most THEN now() ELSE greatest(latest, p.as_of) END,
        rest_until = CASE WHEN n = most THEN clock_timestamp() + rest * (clock_timestamp() - began) END;
    RETURN n;
END $$;

-- Drops what is too old: counts of five minutes after a day and two hours, those of hours
-- after keep. Of the slowest of the hours that are still counted, ten of each stay.
CREATE FUNCTION tasker.prune_stats(keep interval DEFAULT '90 days') RETURNS int
LANGUAGE plpgsql
AS $$
DECLARE
    n     int;
    total int := 0;
BEGIN
    DELETE FROM tasker.stats s WHERE s.span = 5 AND s.since < now() - interval '26 hours' OR s.span = 60 AND s.since < now() - keep;
    GET DIAGNOSTICS total = ROW_COUNT;
    DELETE FROM tasker.stats_errors s WHERE s.span = 5 AND s.since < now() - interval '26 hours' OR s.span = 60 AND s.since < now() - keep;
    GET DIAGNOSTICS n = ROW_COUNT;
    total := total + n;
    DELETE FROM tasker.stats_slowest s WHERE s.since < now() - keep;
    GET DIAGNOSTICS n = ROW_COUNT;
    total := total + n;
    DELETE FROM tasker.stats_slowest s USING (
        SELECT l.ctid AS place, row_number() OVER (PARTITION BY l.since, l.template_id, l.position ORDER BY l.seconds DESC) AS rank
        FROM tasker.stats_slowest l WHERE l.since >= now() - interval '3 hours') r
    WHERE s.ctid = r.place AND r.rank > 10;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN total + n;
END $$;

-- Where a period begins, as the counts have it: with a span of five minutes, or, more than a
-- day ago, with an hour.
CREATE FUNCTION tasker.stats_from(period interval) RETURNS timestamptz
LANGUAGE sql STABLE
RETURN CASE WHEN period <= interval '25 hours' THEN date_bin('5 minutes', now() - period, timestamptz '2000-01-01 00:00+00')
            ELSE date_bin('1 hour', now() - period, timestamptz '2000-01-01 00:00+00') END;

-- The counts since then: by hours where they are whole, else by five minutes.
CREATE FUNCTION tasker.stats_since(since timestamptz) RETURNS SETOF tasker.stats
LANGUAGE sql STABLE
AS $$
    SELECT s.* FROM tasker.stats s WHERE s.span = 60 AND s.since >= date_bin('1 hour', $1 + interval '59 minutes 59.999999 seconds', timestamptz '2000-01-01 00:00+00')
    UNION ALL
    SELECT s.* FROM tasker.stats s WHERE s.span = 5 AND s.since >= $1 AND s.since < date_bin('1 hour', $1 + interval '59 minutes 59.999999 seconds', timestamptz '2000-01-01 00:00+00')
$$;

-- Durations in a period, by step (step NULL: of the tasks), all versions of a template together.
-- A percentile lies in its bucket, which is 9 % wide, as far as its rank goes.
CREATE FUNCTION tasker.figures(period interval DEFAULT '24 hours', of_namespace text DEFAULT NULL, of_name text DEFAULT NULL)
RETURNS TABLE (namespace text, name text, step text, measure text, n bigint, mean double precision,
               p50 double precision, p90 double precision, p95 double precision, p99 double precision)
LANGUAGE sql STABLE
SET jit = off
AS $$
    WITH summed AS MATERIALIZED ( -- before anything is joined: there are many rows and few sums
        SELECT s.template_id, s.position, s.measure, s.bucket, sum(s.n) AS n, sum(s.seconds) AS seconds
        FROM tasker.stats_since(tasker.stats_from($1)) s
        WHERE s.measure IN ('run', 'wait', 'total', 'backoff')
          AND s.template_id = ANY (ARRAY(SELECT t.template_id FROM tasker.task_templates t WHERE t.namespace = coalesce($2, t.namespace) AND t.name = coalesce($3, t.name)))
        GROUP BY 1, 2, 3, 4
    ), counted AS MATERIALIZED (
        SELECT t.namespace, t.name, st.name AS step, s.measure, s.bucket, sum(s.n)::bigint AS n, sum(s.seconds) AS seconds
        FROM summed s
        JOIN tasker.task_templates t USING (template_id)
        LEFT JOIN tasker.template_steps st ON st.template_id = s.template_id AND st.position = s.position
        GROUP BY 1, 2, 3, 4, 5
    ), ranked AS (
        SELECT c.*, sum(c.n) OVER (one ORDER BY c.bucket) AS up_to, sum(c.n) OVER one AS total, sum(c.seconds) OVER one AS total_seconds
        FROM counted c WINDOW one AS (PARTITION BY c.namespace, c.name, c.step, c.measure)
    )
    SELECT r.namespace, r.name, r.step, r.measure, max(r.total)::bigint, max(r.total_seconds) / max(r.total),
           max(q.value) FILTER (WHERE q.p = 0.5), max(q.value) FILTER (WHERE q.p = 0.9), max(q.value) FILTER (WHERE q.p = 0.95), max(q.value) FILTER (WHERE q.p = 0.99)
    FROM ranked r
    LEFT JOIN LATERAL (
        SELECT p.p, power(2, (r.bucket + (p.p * r.total - (r.up_to - r.n)) / r.n) / 8.0) AS value
        FROM unnest(ARRAY[0.5, 0.9, 0.95, 0.99]) AS p(p)
        WHERE p.p * r.total > r.up_to - r.n AND p.p * r.total <= r.up_to) q ON true
    GROUP BY 1, 2, 3, 4
    ORDER BY 1, 2, 3 NULLS FIRST, 4
$$;

-- How often what happened in a period, by step (step NULL: to the tasks).
CREATE FUNCTION tasker.outcomes(period interval DEFAULT '24 hours', of_namespace text DEFAULT NULL, of_name text DEFAULT NULL)
RETURNS TABLE (namespace text, name text, step text, created bigint, completed bigint, failed bigint, cancelled bigint, resolved bigint,
               skipped bigint, retried bigint, recovered bigint, exhausted bigint,
               ran bigint, ran_seconds double precision, waited bigint, waited_seconds double precision, took bigint, took_seconds double precision)
LANGUAGE sql STABLE
SET jit = off
AS $$
    WITH summed AS MATERIALIZED (
        SELECT s.template_id, s.position, s.measure, sum(s.n) AS n, sum(s.seconds) AS seconds
        FROM tasker.stats_since(tasker.stats_from($1)) s
        WHERE s.measure NOT IN ('run', 'wait', 'total', 'backoff')
          AND s.template_id = ANY (ARRAY(SELECT t.template_id FROM tasker.task_templates t WHERE t.namespace = coalesce($2, t.namespace) AND t.name = coalesce($3, t.name)))
        GROUP BY 1, 2, 3
    )
    SELECT t.namespace, t.name, st.name,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'created'), 0)::bigint, coalesce(sum(s.n) FILTER (WHERE s.measure = 'completed'), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'failed'), 0)::bigint, coalesce(sum(s.n) FILTER (WHERE s.measure = 'cancelled'), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'resolved'), 0)::bigint, coalesce(sum(s.n) FILTER (WHERE s.measure = 'skipped'), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'retried'), 0)::bigint, coalesce(sum(s.n) FILTER (WHERE s.measure = 'recovered'), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'exhausted'), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'ran'), 0)::bigint, coalesce(sum(s.seconds) FILTER (WHERE s.measure = 'ran'), 0),
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'waited'), 0)::bigint, coalesce(sum(s.seconds) FILTER (WHERE s.measure = 'waited'), 0),
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'took'), 0)::bigint, coalesce(sum(s.seconds) FILTER (WHERE s.measure = 'took'), 0)
    FROM summed s
    JOIN tasker.task_templates t USING (template_id)
    LEFT JOIN tasker.template_steps st ON st.template_id = s.template_id AND st.position = s.position
    GROUP BY 1, 2, 3
    ORDER BY 1, 2, 3 NULLS FIRST
$$;

-- How durations of a period are spread: how many were between the bounds, in seconds.
CREATE FUNCTION tasker.histogram(period interval, of_namespace text, of_name text, of_step text DEFAULT NULL, of_measure text DEFAULT 'run')
RETURNS TABLE (at_least double precision, below double precision, n bigint)
LANGUAGE sql STABLE
SET jit = off
AS $$
    SELECT power(2, s.bucket / 8.0)::double precision, power(2, (s.bucket + 1) / 8.0)::double precision, sum(s.n)::bigint
    FROM tasker.stats_since(tasker.stats_from($1)) s
    JOIN tasker.task_templates t USING (template_id)
    LEFT JOIN tasker.template_steps st ON st.template_id = s.template_id AND st.position = s.position
    WHERE t.namespace = $2 AND t.name = $3 AND st.name IS NOT DISTINCT FROM $4 AND s.measure = $5
    GROUP BY s.bucket ORDER BY s.bucket
$$;

-- The tasks and steps of a period that took longest: by hours, so also those of the hour
-- in which the period begins.
CREATE FUNCTION tasker.slowest(period interval DEFAULT '24 hours', of_namespace text DEFAULT NULL, of_name text DEFAULT NULL, of_steps boolean DEFAULT false, most int DEFAULT 10)
RETURNS TABLE (namespace text, name text, version text, step text, task_id bigint, seconds double precision, ended_at timestamptz)
LANGUAGE sql STABLE
SET jit = off
AS $$
    SELECT t.namespace, t.name, t.version, st.name, s.task_id, s.seconds, s.ended_at
    FROM tasker.stats_slowest s
    JOIN tasker.task_templates t USING (template_id)
    LEFT JOIN tasker.template_steps st ON st.template_id = s.template_id AND st.position = s.position
    WHERE s.since >= date_bin('1 hour', now() - $1, timestamptz '2000-01-01 00:00+00') AND (s.position >= 0) = of_steps
      AND t.namespace = coalesce($2, t.namespace) AND t.name = coalesce($3, t.name)
    ORDER BY s.seconds DESC, s.task_id LIMIT most
$$;

-- Failures of a period that are alike, the most frequent first.
CREATE FUNCTION tasker.failures(period interval DEFAULT '24 hours', of_namespace text DEFAULT NULL, of_name text DEFAULT NULL, most int DEFAULT 10)
RETURNS TABLE (fingerprint text, namespace text, name text, step text, n bigint, class text, message text, task_id bigint, last_at timestamptz)
LANGUAGE sql STABLE
SET jit = off
AS $$
    SELECT e.fingerprint, t.namespace, t.name, st.name, sum(e.n)::bigint, (array_agg(e.class ORDER BY e.last_at DESC))[1],
           (array_agg(e.message ORDER BY e.last_at DESC))[1], (array_agg(e.task_id ORDER BY e.last_at DESC))[1], max(e.last_at)
    FROM (
        SELECT x.* FROM tasker.stats_errors x, date_bin('1 hour', tasker.stats_from($1) + interval '59 minutes 59.999999 seconds', timestamptz '2000-01-01 00:00+00') AS whole
        WHERE x.span = 60 AND x.since >= whole OR x.span = 5 AND x.since >= tasker.stats_from($1) AND x.since < whole) e
    JOIN tasker.task_templates t USING (template_id)
    LEFT JOIN tasker.template_steps st ON st.template_id = e.template_id AND st.position = e.position
    WHERE t.namespace = coalesce($2, t.namespace) AND t.name = coalesce($3, t.name)
    GROUP BY 1, 2, 3, 4
    ORDER BY 5 DESC, 9 DESC LIMIT most
$$;

-- What open tasks wait for, of the oldest that are open: each by the first of its
-- unfinished steps that something is known of.
CREATE FUNCTION tasker.waiting_now(most int DEFAULT 2000)
RETURNS TABLE (namespace text, name text, step text, reason text, of text, tasks bigint, oldest_seconds double precision, task_id bigint)
LANGUAGE sql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
    WITH open AS MATERIALIZED (
        SELECT t.* FROM tasker.tasks t WHERE t.state IN ('pending', 'in_progress') ORDER BY t.task_id LIMIT most
    ), waits AS (
        SELECT t.namespace, t.name, t.task_id, w.step, w.reason, w.of, w.since
        FROM open t CROSS JOIN LATERAL (
            (SELECT NULL AS step, 'paused' AS reason, NULL AS of, t.paused_at AS since, 0 AS rank WHERE t.paused_at IS NOT NULL)
            UNION ALL
            (SELECT NULL, CASE WHEN t.run_at > now() THEN 'scheduled' ELSE 'worker' END, NULL, greatest(t.created_at, least(t.run_at, now())), 1
             WHERE t.state = 'pending')
            UNION ALL
            (SELECT s.name, k.reason, k.of, k.since, k.rank
             FROM tasker.steps s
             JOIN tasker.template_steps ts ON ts.template_id = t.template_id AND ts.position = s.position
             LEFT JOIN tasker.gate_waiters g ON g.step_id = s.step_id AND g.admitted_until IS NULL
             LEFT JOIN tasker.gates l ON l.gate_id = g.gate_id
             CROSS JOIN LATERAL (
                 SELECT CASE WHEN g.step_id IS NOT NULL THEN 'limit' WHEN s.state = 'enqueued' THEN 'queue' WHEN s.state = 'in_progress' THEN 'handler'
                             WHEN s.state = 'waiting_for_retry' THEN 'retry' END AS reason,
                        CASE WHEN g.step_id IS NOT NULL THEN l.scope || ' ' || l.name WHEN s.state = 'enqueued' THEN ts.queue
                             ELSE coalesce(ts.handler_class, ts.handler) END AS of,
                        CASE WHEN g.step_id IS NOT NULL THEN g.since WHEN s.state = 'in_progress' THEN s.started_at
                             WHEN s.state = 'enqueued' THEN (SELECT d.looked_at FROM tasker.dispatches d WHERE d.step_id = s.step_id) END AS since,
                        CASE WHEN g.step_id IS NOT NULL THEN 2 WHEN s.state = 'enqueued' THEN 3 WHEN s.state = 'waiting_for_retry' THEN 4 ELSE 5 END AS rank) k
             WHERE s.task_id = t.task_id AND (s.state IN ('enqueued', 'in_progress', 'waiting_for_retry') OR g.step_id IS NOT NULL)
               AND t.state = 'in_progress')
            UNION ALL
            (SELECT NULL, 'worker', NULL, NULL, 9)  -- between two steps
            ORDER BY rank LIMIT 1) w
    )
    SELECT w.namespace, w.name, w.step, w.reason, w.of, count(*), extract(epoch FROM now() - min(w.since))::double precision, min(w.task_id)
    FROM waits w GROUP BY 1, 2, 3, 4, 5 ORDER BY 6 DESC, 7 DESC NULLS LAST
$$;

-- How a period went, by spans of five minutes where it is not longer than four hours, else by hours.
CREATE FUNCTION tasker.trend(period interval DEFAULT '24 hours', of_namespace text DEFAULT NULL, of_name text DEFAULT NULL)
RETURNS TABLE (since timestamptz, minutes int, created bigint, completed bigint, failed bigint, mean_total double precision, attempts bigint, retried bigint)
LANGUAGE sql STABLE
SET jit = off
AS $$
    SELECT s.since, s.span::int,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'created'), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'completed' AND s.position < 0), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'failed' AND s.position < 0), 0)::bigint,
           sum(s.seconds) FILTER (WHERE s.measure = 'took') / sum(s.n) FILTER (WHERE s.measure = 'took'),
           coalesce(sum(s.n) FILTER (WHERE s.measure IN ('completed', 'failed', 'retried') AND s.position >= 0), 0)::bigint,
           coalesce(sum(s.n) FILTER (WHERE s.measure = 'retried'), 0)::bigint
    FROM tasker.stats s
    JOIN tasker.task_templates t USING (template_id)
    WHERE s.span = CASE WHEN period <= interval '4 hours' THEN 5 ELSE 60 END
      AND s.since >= CASE WHEN period <= interval '4 hours' THEN tasker.stats_from(period) ELSE date_bin('1 hour', now() - period, timestamptz '2000-01-01 00:00+00') END
      AND s.measure IN ('created', 'completed', 'failed', 'retried', 'took')
      AND t.namespace = coalesce($2, t.namespace) AND t.name = coalesce($3, t.name)
    GROUP BY 1, 2 ORDER BY 1
$$;

-- All that was ever counted, all versions of a template together: what a metric that only
-- grows is made of.
CREATE FUNCTION tasker.totals() RETURNS TABLE (namespace text, name text, step text, measure text, bucket int, n bigint, seconds double precision)
LANGUAGE sql STABLE
SET jit = off
AS $$
    SELECT t.namespace, t.name, st.name, s.measure, s.bucket::int, sum(s.n)::bigint, sum(s.seconds)
    FROM tasker.stats s
    JOIN tasker.task_templates t USING (template_id)
    LEFT JOIN tasker.template_steps st ON st.template_id = s.template_id AND st.position = s.position
    WHERE s.span = 0
    GROUP BY 1, 2, 3, 4, 5
    ORDER BY 1, 2, 3 NULLS FIRST, 4, 5
$$;
