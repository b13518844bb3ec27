-- tasker: why a step is where it is, for people and for readers in other
-- languages.
--
-- Nothing in the engine reads this view: the loop has package dag. It says in
-- SQL what dag says in Go, and a property test holds the two against each
-- other. Filter it by task_id: then it costs that task's steps and edges,
-- however many steps there are in all.

CREATE FUNCTION tasker.failure_in_words(failure jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT left(split_part(coalesce(nullif(failure ->> 'message', ''), failure ->> 'class', 'no message'), E'\n', 1), 200)
$$;

CREATE VIEW tasker.step_readiness AS
SELECT t.task_id, s.step_id, s.position, s.name, s.state,
       r.reason = 'ready' AS ready,
       r.reason,
       CASE r.reason
           WHEN 'finished' THEN CASE s.state
               WHEN 'complete' THEN format('completed with attempt %s', s.attempts)
               WHEN 'cancelled' THEN 'was cancelled: what depends on it can''t run'
               WHEN 'skipped' THEN 'was skipped: what depends on it goes on without its result'
               ELSE 'was resolved by an operator' END
           WHEN 'attempts_exhausted' THEN format('used up its %s, the last one failed: %s',
               CASE s.attempt_limit WHEN 1 THEN 'only attempt' ELSE s.attempt_limit || ' attempts' END, tasker.failure_in_words(s.error))
           WHEN 'failed' THEN format('failed for good with attempt %s: %s', s.attempts, tasker.failure_in_words(s.error))
           WHEN 'running' THEN format('attempt %s of %s runs%s%s', s.attempts_used, s.attempt_limit,
               coalesce(format(' for %s s', round(extract(epoch FROM now() - s.started_at), 1)), ''),
               CASE WHEN s.handler IS NOT NULL
                   THEN (SELECT format(' in worker %s', w.name) FROM tasker.workers w WHERE w.worker_id = t.owner)
                   ELSE (SELECT format(' in process %s', p.identity) FROM tasker.dispatches o JOIN tasker.processes p USING (process_id)
                         WHERE o.step_id = s.step_id) END)
           WHEN 'enqueued' THEN format('attempt %s of %s is in Sidekiq''s queue %s and has not begun', s.attempts_used, s.attempt_limit, s.queue)
           WHEN 'no_process_alive' THEN format('attempt %s of %s is in Sidekiq''s queue %s, and no Sidekiq process with tasker has given a sign of life for 10 s',
               s.attempts_used, s.attempt_limit, s.queue)
           WHEN 'task_cancelled' THEN 'its task was cancelled'
           WHEN 'blocked' THEN format('can''t run as things stand: %s%s', d.words,
               CASE WHEN NOT d.failed THEN format(', behind %s', c.failed_words) END)
           WHEN 'task_finished' THEN format('its task has ended as %s', t.state)
           WHEN 'paused' THEN format('its task was paused %s s ago', round(extract(epoch FROM now() - t.paused_at), 1))
           WHEN 'scheduled' THEN format('its task starts in %s s', round(extract(epoch FROM t.run_at - now()), 1))
           WHEN 'dependencies' THEN format('waits for %s of %s dependencies: %s',
               s.dependencies - d.satisfied, s.dependencies, d.words)
           WHEN 'fail_fast' THEN format('nothing new starts (on_failure: fail_fast) after %s', c.failed_words)
           WHEN 'backoff' THEN format('attempt %s of %s begins in %s s, the last one failed: %s',
               s.attempts_used + 1, s.attempt_limit, round(extract(epoch FROM s.retry_at - now()), 1), tasker.failure_in_words(s.error))
           WHEN 'at_limit' THEN format('starts when one of the %s attempts that are out has ended: max_parallel_steps is %s',
               c.outstanding, m.max_parallel_steps)
           WHEN 'no_handler_alive' THEN format('needs the Go handler %s, and %s', s.handler,
               CASE alive.workers WHEN 0 THEN 'no worker is alive' ELSE format('none of the workers alive (%s) has it', alive.workers) END)
           WHEN 'no_worker_alive' THEN 'may start, and no worker is alive that would start it'
           ELSE format('attempt %s of %s may start now', s.attempts_used + 1, s.attempt_limit)
       END AS explanation,
       s.dependencies AS dependencies_total,
       d.satisfied AS dependencies_satisfied,
       d.waiting_on,
       s.attempts, s.attempts_used, s.attempt_limit,
       CASE WHEN s.state = 'waiting_for_retry' THEN s.retry_at END AS retry_at,
       CASE WHEN s.state = 'waiting_for_retry' THEN greatest(extract(epoch FROM s.retry_at - now()), 0)::double precision END AS seconds_until_retry
FROM tasker.tasks t
JOIN tasker.task_templates m USING (template_id)
-- Who is alive. OFFSET 0 keeps each of these subqueries whole, so that it is
-- computed once: per query here, per task below.
CROSS JOIN (
    SELECT (SELECT count(*) FROM tasker.workers w
            WHERE w.state = 'alive' AND greatest(w.last_seen_at, pg_postmaster_start_time()) > now() - interval '10 seconds') AS workers,
           ARRAY(SELECT jsonb_array_elements_text(w.details -> 'handlers') FROM tasker.workers w
                 WHERE w.state = 'alive' AND greatest(w.last_seen_at, pg_postmaster_start_time()) > now() - interval '10 seconds'
                   AND jsonb_typeof(w.details -> 'handlers') = 'array') AS handlers,
           EXISTS (SELECT FROM tasker.processes p
                   WHERE p.stopped_at IS NULL AND greatest(p.last_seen_at, pg_postmaster_start_time()) > now() - interval '10 seconds') AS process
    OFFSET 0) alive
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE s.state IN ('enqueued', 'in_progress')) AS outstanding,
           count(*) FILTER (WHERE s.state = 'error') AS failed,
           array_to_string((array_agg(s.name || CASE s.state WHEN 'error' THEN format(' (error: %s)', tasker.failure_in_words(s.error)) ELSE ' (cancelled)' END
               ORDER BY s.position) FILTER (WHERE s.state IN ('error', 'cancelled')))[1:3], ', ') AS failed_words
    FROM tasker.steps s WHERE s.task_id = t.task_id) c
CROSS JOIN LATERAL (
    -- barred: what fails or is cancelled bars what depends on it, and so on
    -- down, through steps that are yet to start. A step that was skipped,
    -- resolved, or whose attempt is out passes it on to nobody. The edges are
    -- one JSON object, {dependency: [dependents]}, so that each round of the
    -- recursion looks up what it needs instead of reading them all: a chain of
    -- 10,000 steps takes as many rounds.
    WITH RECURSIVE edges AS MATERIALIZED (
        SELECT jsonb_object_agg(g.dependency, g.dependents) AS below
        FROM (SELECT e.dependency, jsonb_agg(w.position) AS dependents
              FROM tasker.steps w
              JOIN tasker.template_steps x ON x.template_id = t.template_id AND x.position = w.position
              CROSS JOIN LATERAL unnest(x.depends_on) AS e(dependency)
              WHERE w.task_id = t.task_id AND w.state IN ('pending', 'waiting_for_retry')
              GROUP BY e.dependency) g
    ), barred(position) AS (
        SELECT b.position FROM tasker.steps b WHERE b.task_id = t.task_id AND b.state IN ('error', 'cancelled')
        UNION
        SELECT e.position::int
        FROM barred b CROSS JOIN LATERAL jsonb_array_elements_text((SELECT below FROM edges) -> b.position::text) AS e(position)
    )
    SELECT w.step_id, w.position, w.name, w.state, w.attempts, w.retry_at, w.started_at, w.error,
           w.attempts - w.losses - w.forgiven AS attempts_used,
           x.attempt_limit, x.handler, x.queue, x.depends_on, cardinality(x.depends_on) AS dependencies,
           b.position IS NOT NULL AS barred
    FROM tasker.steps w
    JOIN tasker.template_steps x ON x.template_id = t.template_id AND x.position = w.position
    LEFT JOIN barred b ON b.position = w.position
    WHERE w.task_id = t.task_id) s
CROSS JOIN LATERAL (
    SELECT (count(*) FILTER (WHERE u.satisfied))::int AS satisfied,
           coalesce(bool_or(u.state IN ('error', 'cancelled')), false) AS failed,
           coalesce(array_agg(u.name ORDER BY u.position) FILTER (WHERE NOT u.satisfied), '{}') AS waiting_on,
           array_to_string((array_agg(format('%s (%s%s)', u.name, replace(u.state, '_', ' '),
                   CASE WHEN u.state = 'error' THEN ': ' || tasker.failure_in_words(u.error) END)
               ORDER BY u.state NOT IN ('error', 'cancelled'), u.position) FILTER (WHERE NOT u.satisfied))[1:5], ', ')
           || CASE WHEN count(*) FILTER (WHERE NOT u.satisfied) > 5
              THEN format(' and %s more', count(*) FILTER (WHERE NOT u.satisfied) - 5) ELSE '' END AS words
    FROM unnest(s.depends_on) AS e(dependency)
    CROSS JOIN LATERAL (
        -- OFFSET 0: by index, one by one, however few steps a task has on average.
        SELECT p.position, p.name, p.state, p.error, p.state IN ('complete', 'skipped', 'resolved_manually') AS satisfied
        FROM tasker.steps p WHERE p.task_id = t.task_id AND p.position = e.dependency OFFSET 0) u) d
-- The first reason that holds. What ends the matter comes first, then what the
-- step waits for, then what merely delays a start that is due.
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN s.state IN ('complete', 'skipped', 'resolved_manually', 'cancelled') THEN 'finished'
        WHEN s.state = 'error' AND s.attempts_used >= s.attempt_limit AND coalesce(s.error ->> 'permanent', '') <> 'true' THEN 'attempts_exhausted'
        WHEN s.state = 'error' THEN 'failed'
        WHEN t.state = 'cancelled' THEN 'task_cancelled'
        WHEN s.state = 'in_progress' THEN 'running'
        WHEN s.state = 'enqueued' THEN CASE WHEN alive.process THEN 'enqueued' ELSE 'no_process_alive' END
        WHEN t.state NOT IN ('pending', 'in_progress', 'error') THEN 'task_finished'
        WHEN s.barred THEN 'blocked'
        WHEN t.state = 'error' THEN 'task_finished'
        WHEN t.paused_at IS NOT NULL THEN 'paused'
        WHEN t.state = 'pending' AND t.run_at > now() THEN 'scheduled'
        WHEN d.satisfied < s.dependencies THEN 'dependencies'
        WHEN c.failed > 0 AND m.definition ->> 'on_failure' = 'fail_fast' THEN 'fail_fast'
        WHEN s.state = 'waiting_for_retry' AND s.retry_at > now() THEN 'backoff'
        WHEN c.outstanding >= m.max_parallel_steps THEN 'at_limit'
        WHEN s.handler IS NOT NULL AND s.handler <> ALL (alive.handlers) THEN 'no_handler_alive'
        WHEN alive.workers = 0 THEN 'no_worker_alive'
        ELSE 'ready' END AS reason) r;
COMMENT ON VIEW tasker.step_readiness IS 'Per step: whether it may start now, and if not, why; filter by task_id';
