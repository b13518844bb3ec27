CREATE OR REPLACE FUNCTION tasker.take_unstarted(age interval, most integer, shared double precision) RETURNS TABLE(task_id bigint, step_id bigint, attempt integer, handler_class text, queue text, correlation_id text, alone boolean, ticket bigint)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_indexscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
DECLARE
    ids bigint[];
BEGIN
    -- Looked for first, and locked by their keys: what is locked must not depend on a plan.
    ids := ARRAY(SELECT d.step_id FROM tasker.dispatches d
                 WHERE d.started_at IS NULL AND d.failure IS NULL AND d.looked_at < clock_timestamp() - age ORDER BY d.looked_at LIMIT most);
    ids := ARRAY(SELECT d.step_id FROM tasker.dispatches d WHERE d.step_id = ANY (ids) AND d.started_at IS NULL AND d.failure IS NULL
                 AND d.looked_at < clock_timestamp() - age ORDER BY d.step_id FOR UPDATE SKIP LOCKED);
    UPDATE tasker.dispatches d SET looked_at = clock_timestamp() WHERE d.step_id = ANY (ids);
    RETURN QUERY
    SELECT d.task_id, d.step_id, d.attempt, coalesce(ts.handler_class, ''), d.queue, coalesce(t.correlation_id, ''),
           s.losses > 0 OR coalesce(least(ts.timeout_seconds, ts.heartbeat_seconds) < shared, false), coalesce(d.ticket, 0)
    FROM unnest(ids) AS u(id)
    CROSS JOIN LATERAL (SELECT * FROM tasker.dispatches q WHERE q.step_id = u.id OFFSET 0) d
    CROSS JOIN LATERAL (SELECT q.position, q.losses FROM tasker.steps q WHERE q.step_id = u.id OFFSET 0) s
    CROSS JOIN LATERAL (SELECT q.template_id, q.correlation_id FROM tasker.tasks q WHERE q.task_id = d.task_id OFFSET 0) t
    CROSS JOIN LATERAL (SELECT q.handler_class, q.timeout_seconds, q.heartbeat_seconds FROM tasker.template_steps q
                        WHERE q.template_id = t.template_id AND q.position = s.position OFFSET 0) ts
    ORDER BY d.step_id;
END $$;

DROP FUNCTION tasker.reap_attempts(interval, integer, interval);
CREATE FUNCTION tasker.reap_attempts(silence interval, most integer DEFAULT 1000) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_indexscan TO 'off'
    SET enable_indexonlyscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
DECLARE
    gone    bigint[]; -- processes with attempts
    overdue bigint[];
    reports jsonb;
    n       int;
BEGIN
    gone := ARRAY(
        SELECT o.process_id FROM (SELECT DISTINCT d.process_id FROM tasker.dispatches d WHERE d.started_at IS NOT NULL AND d.process_id IS NOT NULL) o
        LEFT JOIN LATERAL (SELECT * FROM tasker.processes q WHERE q.process_id = o.process_id OFFSET 0) p ON true
        WHERE p.process_id IS NULL OR p.stopped_at IS NOT NULL OR greatest(p.last_seen_at, pg_postmaster_start_time()) < clock_timestamp() - silence);
    overdue := ARRAY(
        SELECT d.step_id FROM tasker.dispatches d
        WHERE d.failure IS NULL AND (least(d.deadline, CASE WHEN silence IS NOT NULL THEN d.beat_by END, d.start_by) < clock_timestamp()
            OR d.started_at IS NOT NULL AND d.process_id = ANY (gone)) LIMIT most);
    IF overdue = '{}' THEN
        RETURN 0;
    END IF;
    SELECT array_agg(l.step_id) INTO overdue
    FROM (SELECT s.step_id FROM tasker.steps s WHERE s.step_id = ANY (overdue) ORDER BY s.step_id FOR NO KEY UPDATE SKIP LOCKED) l;
    -- What is up first tells the story.
    SELECT jsonb_agg(jsonb_build_object('step_id', d.step_id, 'attempt', d.attempt, 'secret', d.secret, 'ticket', d.ticket)
               || CASE WHEN least(d.deadline, CASE WHEN silence IS NOT NULL THEN d.beat_by END, d.start_by) < clock_timestamp() THEN jsonb_build_object('outcome', 'failure', 'failure', jsonb_build_object(
                          'class', up.code, 'code', up.code, 'attempt', d.attempt, 'message', up.message))
                  ELSE '{"outcome": "lost"}' END) INTO reports
    FROM tasker.dispatches d
    CROSS JOIN LATERAL (
        SELECT 'schedule_to_start_timeout' AS code, d.start_by AS at,
               format('no process took it from queue %s within its schedule_to_start_seconds', d.queue) AS message
        UNION ALL SELECT 'heartbeat_timeout', CASE WHEN silence IS NOT NULL THEN d.beat_by END, format('no heartbeat within %s', d.heartbeat)
        UNION ALL SELECT 'attempt_timeout', d.deadline, format('no result within %s', date_trunc('milliseconds', d.deadline - d.started_at))
        ORDER BY 2 LIMIT 1) up
    LEFT JOIN LATERAL (SELECT * FROM tasker.processes q WHERE q.process_id = d.process_id OFFSET 0) p ON true
    -- Once more: a heartbeat or a start may have come in between, or another attempt.
    WHERE d.step_id = ANY (overdue) AND d.failure IS NULL
      AND (least(d.deadline, CASE WHEN silence IS NOT NULL THEN d.beat_by END, d.start_by) < clock_timestamp()
           OR d.started_at IS NOT NULL AND d.process_id IS NOT NULL
              AND (p.process_id IS NULL OR p.stopped_at IS NOT NULL
                   OR greatest(p.last_seen_at, pg_postmaster_start_time()) < clock_timestamp() - silence));
    IF reports IS NULL THEN
        RETURN 0;
    END IF;
    SELECT count(*) FILTER (WHERE r.accepted) INTO n FROM tasker.report_results(reports) r;
    RETURN n;
END $$;
COMMENT ON FUNCTION tasker.reap_attempts(silence interval, most integer) IS 'Ends attempts whose time is up, and takes those for lost whose process has been silent for so long; silence NULL: the caller has no healthy database and can''t tell, so only deadlines count';

CREATE OR REPLACE FUNCTION tasker.travel(span interval) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    timed bigint[];
    owned record;
BEGIN
    IF NOT tasker.is_test_database() THEN
        RAISE EXCEPTION 'time travel is for test databases, and % is not marked as one', current_database()
        USING ERRCODE = 'TK008', HINT = format('ALTER DATABASE %I SET tasker.testing = on', current_database());
    ELSIF span IS NULL OR span < interval '0' OR span > interval '100 years' THEN
        RAISE EXCEPTION 'time goes forward, by up to 100 years, and not by %', coalesce(span::text, 'NULL') USING ERRCODE = 'TK003';
    END IF;
    span := make_interval(secs => extract(epoch FROM span)); -- a day is as long wherever a row stands in the calendar

    -- Everything is held first, in the lock order.
    PERFORM FROM tasker.tasks t ORDER BY t.task_id FOR UPDATE;
    PERFORM FROM tasker.gates g ORDER BY g.gate_id FOR UPDATE;
    PERFORM FROM tasker.steps s ORDER BY s.step_id FOR NO KEY UPDATE;
    PERFORM FROM tasker.dispatches d ORDER BY d.step_id FOR UPDATE;

    -- Loops that keep the time of a retry in memory read it again, as after an
    -- operator's verb. All others are left alone.
    SELECT coalesce(array_agg(DISTINCT t.task_id), '{}') INTO timed FROM tasker.tasks t JOIN tasker.steps s USING (task_id)
    WHERE t.owner IS NOT NULL AND s.state = 'waiting_for_retry';
    UPDATE tasker.tasks t SET run_at = t.run_at - span, deadline = t.deadline - span, paused_at = t.paused_at - span,
        created_at = t.created_at - span, started_at = t.started_at - span, finished_at = t.finished_at - span,
        epoch = t.epoch + CASE WHEN t.task_id = ANY (timed) THEN 1 ELSE 0 END;
    UPDATE tasker.gates g SET filled_at = g.filled_at - span, paused_at = g.paused_at - span, changed_at = g.changed_at - span;
    UPDATE tasker.gate_slots o SET taken_at = o.taken_at - span;
    UPDATE tasker.gate_waiters w SET since = w.since - span, rank = w.rank - span, admitted_until = w.admitted_until - span;
    UPDATE tasker.steps s SET retry_at = s.retry_at - span, started_at = s.started_at - span, finished_at = s.finished_at - span;
    UPDATE tasker.dispatches d SET looked_at = d.looked_at - span, started_at = d.started_at - span, deadline = d.deadline - span,
        start_by = d.start_by - span, beat_by = d.beat_by - span;
    UPDATE tasker.event_days d SET last_id = NULL; -- closed days get events
    UPDATE tasker.events e SET created_at = e.created_at - span;
    UPDATE tasker.dead_letters d SET found_at = d.found_at - span, since = d.since - span, resolved_at = d.resolved_at - span;
    UPDATE tasker.river_job j SET scheduled_at = j.scheduled_at - span, state = tasker.river_state(j.scheduled_at - span)
    FROM (SELECT l.id FROM tasker.river_job l
          WHERE l.kind = 'task_execution' AND l.state IN ('available', 'scheduled', 'retryable') ORDER BY l.id FOR UPDATE) due
    WHERE j.id = due.id;

    -- What would be found within seconds is found here and now.
    WHILE tasker.expire_tasks() > 0 LOOP
    END LOOP;
    PERFORM tasker.reap_attempts(interval '100 years'); -- whose process is silent is for workers to say
    FOR owned IN SELECT t.owner, string_agg(t.task_id::text, ',') AS tasks
        FROM (SELECT u.owner, u.task_id, row_number() OVER (PARTITION BY u.owner) / 300 AS chunk FROM tasker.tasks u
              WHERE u.task_id = ANY (timed) AND u.owner IS NOT NULL) t
        GROUP BY t.owner, t.chunk
    LOOP
        PERFORM pg_notify('tasker.worker_' || owned.owner, 't' || owned.tasks);
    END LOOP;
    PERFORM tasker.notify_river();
    PERFORM tasker.open_gates();
END $$;

CREATE OR REPLACE VIEW tasker.step_readiness AS
 SELECT t.task_id,
    s.step_id,
    s."position",
    s.name,
    s.state,
    (r.reason = 'ready'::text) AS ready,
    r.reason,
        CASE r.reason
            WHEN 'finished'::text THEN
            CASE s.state
                WHEN 'complete'::text THEN format('completed with attempt %s'::text, s.attempts)
                WHEN 'cancelled'::text THEN 'was cancelled: what depends on it can''t run'::text
                WHEN 'skipped'::text THEN 'was skipped: what depends on it goes on without its result'::text
                ELSE 'was resolved by an operator'::text
            END
            WHEN 'attempts_exhausted'::text THEN format('used up its %s, the last one failed: %s'::text,
            CASE s.attempt_limit
                WHEN 1 THEN 'only attempt'::text
                ELSE (s.attempt_limit || ' attempts'::text)
            END, tasker.failure_in_words(s.error))
            WHEN 'failed'::text THEN format('failed for good with attempt %s: %s'::text, s.attempts, tasker.failure_in_words(s.error))
            WHEN 'running'::text THEN format('attempt %s of %s runs%s%s%s'::text, s.attempts_used, s.attempt_limit, COALESCE(format(' for %s s'::text, round(EXTRACT(epoch FROM (now() - s.started_at)), 1)), ''::text),
            CASE
                WHEN (s.handler IS NOT NULL) THEN ( SELECT format(' in worker %s'::text, w.name) AS format
                   FROM tasker.workers w
                  WHERE (w.worker_id = t.owner))
                ELSE ( SELECT format(' in process %s'::text, p.identity) AS format
                   FROM (tasker.dispatches o
                     JOIN tasker.processes p USING (process_id))
                  WHERE (o.step_id = s.step_id))
            END, (', progress '::text || "left"((s.progress)::text, 100)))
            WHEN 'enqueued'::text THEN format('attempt %s of %s is in Sidekiq''s queue %s and has not begun'::text, s.attempts_used, s.attempt_limit, s.queue)
            WHEN 'no_process_alive'::text THEN format('attempt %s of %s is in Sidekiq''s queue %s, and no Sidekiq process with tasker has given a sign of life for 10 s'::text, s.attempts_used, s.attempt_limit, s.queue)
            WHEN 'task_cancelled'::text THEN 'its task was cancelled'::text
            WHEN 'blocked'::text THEN format('can''t run as things stand: %s%s'::text, d.words,
            CASE
                WHEN (NOT d.failed) THEN format(', behind %s'::text, c.failed_words)
                ELSE NULL::text
            END)
            WHEN 'task_finished'::text THEN format('its task has ended as %s'::text, t.state)
            WHEN 'paused'::text THEN format('its task was paused %s s ago'::text, round(EXTRACT(epoch FROM (now() - t.paused_at)), 1))
            WHEN 'scheduled'::text THEN format('its task starts in %s s'::text, round(EXTRACT(epoch FROM (t.run_at - now())), 1))
            WHEN 'dependencies'::text THEN format('waits for %s of %s dependencies: %s'::text, (s.dependencies - d.satisfied), s.dependencies, d.words)
            WHEN 'fail_fast'::text THEN format('nothing new starts (on_failure: fail_fast) after %s'::text, c.failed_words)
            WHEN 'backoff'::text THEN format('attempt %s of %s begins in %s s, the last one failed: %s'::text, (s.attempts_used + 1), s.attempt_limit, round(EXTRACT(epoch FROM (s.retry_at - now())), 1), tasker.failure_in_words(s.error))
            WHEN 'at_limit'::text THEN format('starts when one of the %s attempts that are out has ended: max_parallel_steps is %s'::text, c.outstanding, m.max_parallel_steps)
            WHEN 'gate_paused'::text THEN format('%s %s was paused %s s ago%s'::text, gate.scope, gate.name, round(EXTRACT(epoch FROM (now() - gate.paused_at)), 1), COALESCE((' by '::text || gate.changed_by), ''::text))
            WHEN 'limited'::text THEN format('waits since %s s at the limit of %s %s (%s); %s before it'::text, round(EXTRACT(epoch FROM (now() - gate.since)), 1), gate.scope, gate.name, concat_ws(', '::text, (((gate."out" || ' of '::text) || gate.max_attempts) || ' attempts are out'::text), (gate.per_second || ' per second'::text)),
            CASE gate.ahead
                WHEN 0 THEN 'no step is'::text
                WHEN 1 THEN '1 step is'::text
                ELSE (gate.ahead || ' steps are'::text)
            END)
            WHEN 'no_handler_alive'::text THEN format('needs the Go handler %s, and %s'::text, s.handler,
            CASE alive.workers
                WHEN 0 THEN 'no worker is alive'::text
                ELSE format('none of the workers alive (%s) has it'::text, alive.workers)
            END)
            WHEN 'no_worker_alive'::text THEN 'may start, and no worker is alive that would start it'::text
            ELSE format('attempt %s of %s may start now'::text, (s.attempts_used + 1), s.attempt_limit)
        END AS explanation,
    s.dependencies AS dependencies_total,
    d.satisfied AS dependencies_satisfied,
    d.waiting_on,
    s.attempts,
    s.attempts_used,
    s.attempt_limit,
        CASE
            WHEN (s.state = 'waiting_for_retry'::text) THEN s.retry_at
            ELSE NULL::timestamp with time zone
        END AS retry_at,
        CASE
            WHEN (s.state = 'waiting_for_retry'::text) THEN (GREATEST(EXTRACT(epoch FROM (s.retry_at - now())), (0)::numeric))::double precision
            ELSE NULL::double precision
        END AS seconds_until_retry,
    gate.scope AS gate_scope,
    gate.name AS gate_name
   FROM (((((((tasker.tasks t
     JOIN tasker.task_templates m USING (template_id))
     CROSS JOIN ( SELECT ( SELECT count(*) AS count
                   FROM tasker.workers w
                  WHERE ((w.state = 'alive'::text) AND (GREATEST(w.last_seen_at, pg_postmaster_start_time()) > (now() - '00:00:10'::interval)))) AS workers,
            ARRAY( SELECT jsonb_array_elements_text((w.details -> 'handlers'::text)) AS jsonb_array_elements_text
                   FROM tasker.workers w
                  WHERE ((w.state = 'alive'::text) AND (GREATEST(w.last_seen_at, pg_postmaster_start_time()) > (now() - '00:00:10'::interval)) AND (jsonb_typeof((w.details -> 'handlers'::text)) = 'array'::text))) AS handlers,
            (EXISTS ( SELECT
                   FROM tasker.processes p
                  WHERE ((p.stopped_at IS NULL) AND (GREATEST(p.last_seen_at, pg_postmaster_start_time()) > (now() - '00:00:10'::interval))))) AS process
         OFFSET 0) alive)
     CROSS JOIN LATERAL ( SELECT count(*) FILTER (WHERE (s_1.state = ANY (ARRAY['enqueued'::text, 'in_progress'::text]))) AS outstanding,
            count(*) FILTER (WHERE (s_1.state = 'error'::text)) AS failed,
            array_to_string((array_agg((s_1.name ||
                CASE s_1.state
                    WHEN 'error'::text THEN format(' (error: %s)'::text, tasker.failure_in_words(s_1.error))
                    ELSE ' (cancelled)'::text
                END) ORDER BY s_1."position") FILTER (WHERE (s_1.state = ANY (ARRAY['error'::text, 'cancelled'::text]))))[1:3], ', '::text) AS failed_words
           FROM tasker.steps s_1
          WHERE (s_1.task_id = t.task_id)) c)
     CROSS JOIN LATERAL ( WITH RECURSIVE edges AS MATERIALIZED (
                 SELECT jsonb_object_agg(g.dependency, g.dependents) AS below
                   FROM ( SELECT e.dependency,
                            jsonb_agg(w_1."position") AS dependents
                           FROM ((tasker.steps w_1
                             JOIN tasker.template_steps x_1 ON (((x_1.template_id = t.template_id) AND (x_1."position" = w_1."position"))))
                             CROSS JOIN LATERAL unnest(x_1.depends_on) e(dependency))
                          WHERE ((w_1.task_id = t.task_id) AND (w_1.state = ANY (ARRAY['pending'::text, 'waiting_for_retry'::text])))
                          GROUP BY e.dependency) g
                ), barred("position") AS (
                 SELECT b_1."position"
                   FROM tasker.steps b_1
                  WHERE ((b_1.task_id = t.task_id) AND (b_1.state = ANY (ARRAY['error'::text, 'cancelled'::text])))
                UNION
                 SELECT (e."position")::integer AS "position"
                   FROM (barred b_1
                     CROSS JOIN LATERAL jsonb_array_elements_text((( SELECT edges.below
                           FROM edges) -> (b_1."position")::text)) e("position"))
                )
         SELECT w.step_id,
            w."position",
            w.name,
            w.state,
            w.attempts,
            w.retry_at,
            w.started_at,
            w.error,
            w.progress,
            ((w.attempts - w.losses) - w.forgiven) AS attempts_used,
            x.attempt_limit,
            x.handler,
            x.handler_class,
            x.queue,
            x.limit_key,
            x.depends_on,
            cardinality(x.depends_on) AS dependencies,
            (b."position" IS NOT NULL) AS barred
           FROM ((tasker.steps w
             JOIN tasker.template_steps x ON (((x.template_id = t.template_id) AND (x."position" = w."position"))))
             LEFT JOIN barred b ON ((b."position" = w."position")))
          WHERE (w.task_id = t.task_id)) s)
     CROSS JOIN LATERAL ( SELECT (count(*) FILTER (WHERE u.satisfied))::integer AS satisfied,
            COALESCE(bool_or((u.state = ANY (ARRAY['error'::text, 'cancelled'::text]))), false) AS failed,
            COALESCE(array_agg(u.name ORDER BY u."position") FILTER (WHERE (NOT u.satisfied)), '{}'::text[]) AS waiting_on,
            (array_to_string((array_agg(format('%s (%s%s)'::text, u.name, replace(u.state, '_'::text, ' '::text),
                CASE
                    WHEN (u.state = 'error'::text) THEN (': '::text || tasker.failure_in_words(u.error))
                    ELSE NULL::text
                END) ORDER BY (u.state <> ALL (ARRAY['error'::text, 'cancelled'::text])), u."position") FILTER (WHERE (NOT u.satisfied)))[1:5], ', '::text) ||
                CASE
                    WHEN (count(*) FILTER (WHERE (NOT u.satisfied)) > 5) THEN format(' and %s more'::text, (count(*) FILTER (WHERE (NOT u.satisfied)) - 5))
                    ELSE ''::text
                END) AS words
           FROM (unnest(s.depends_on) e(dependency)
             CROSS JOIN LATERAL ( SELECT p."position",
                    p.name,
                    p.state,
                    p.error,
                    (p.state = ANY (ARRAY['complete'::text, 'skipped'::text, 'resolved_manually'::text])) AS satisfied
                   FROM tasker.steps p
                  WHERE ((p.task_id = t.task_id) AND (p."position" = e.dependency))
                 OFFSET 0) u)) d)
     LEFT JOIN LATERAL ( SELECT g.scope,
            g.name,
            g.paused_at,
            g.changed_by,
            g.max_attempts,
            g.per_second,
            w.since,
            ( SELECT count(*) AS count
                   FROM tasker.gate_slots o
                  WHERE (o.gate_id = g.gate_id)) AS "out",
            ( SELECT count(*) AS count
                   FROM tasker.gate_waiters a
                  WHERE ((a.gate_id = g.gate_id) AND (ROW(a.rank, a.step_id) < ROW(w.rank, w.step_id)))) AS ahead
           FROM (tasker.gates g
             LEFT JOIN tasker.gate_waiters w ON (((w.gate_id = g.gate_id) AND (w.step_id = s.step_id))))
          WHERE ((s.state = ANY (ARRAY['pending'::text, 'waiting_for_retry'::text])) AND (((g.paused_at IS NOT NULL) AND tasker.gate_is_for(g.scope, g.name, t.namespace, t.name, s.handler_class, s.handler, s.queue, s.limit_key)) OR ((w.step_id IS NOT NULL) AND (w.admitted_until IS NULL))))
          ORDER BY (g.paused_at IS NULL), g.gate_id
         LIMIT 1) gate ON (true))
     CROSS JOIN LATERAL ( SELECT
                CASE
                    WHEN (s.state = ANY (ARRAY['complete'::text, 'skipped'::text, 'resolved_manually'::text, 'cancelled'::text])) THEN 'finished'::text
                    WHEN ((s.state = 'error'::text) AND (s.attempts_used >= s.attempt_limit) AND (COALESCE((s.error ->> 'permanent'::text), ''::text) <> 'true'::text)) THEN 'attempts_exhausted'::text
                    WHEN (s.state = 'error'::text) THEN 'failed'::text
                    WHEN (t.state = 'cancelled'::text) THEN 'task_cancelled'::text
                    WHEN (s.state = 'in_progress'::text) THEN 'running'::text
                    WHEN (s.state = 'enqueued'::text) THEN
                    CASE
                        WHEN alive.process THEN 'enqueued'::text
                        ELSE 'no_process_alive'::text
                    END
                    WHEN (t.state <> ALL (ARRAY['pending'::text, 'in_progress'::text, 'error'::text])) THEN 'task_finished'::text
                    WHEN s.barred THEN 'blocked'::text
                    WHEN (t.state = 'error'::text) THEN 'task_finished'::text
                    WHEN (t.paused_at IS NOT NULL) THEN 'paused'::text
                    WHEN ((t.state = 'pending'::text) AND (t.run_at > now())) THEN 'scheduled'::text
                    WHEN (d.satisfied < s.dependencies) THEN 'dependencies'::text
                    WHEN ((c.failed > 0) AND ((m.definition ->> 'on_failure'::text) = 'fail_fast'::text)) THEN 'fail_fast'::text
                    WHEN ((s.state = 'waiting_for_retry'::text) AND (s.retry_at > now())) THEN 'backoff'::text
                    WHEN (c.outstanding >= m.max_parallel_steps) THEN 'at_limit'::text
                    WHEN (gate.paused_at IS NOT NULL) THEN 'gate_paused'::text
                    WHEN (gate.scope IS NOT NULL) THEN 'limited'::text
                    WHEN ((s.handler IS NOT NULL) AND (s.handler <> ALL (alive.handlers))) THEN 'no_handler_alive'::text
                    WHEN (alive.workers = 0) THEN 'no_worker_alive'::text
                    ELSE 'ready'::text
                END AS reason) r);

DROP FUNCTION tasker.handler_missing(bigint[], integer[], bigint[], bigint);
ALTER TABLE tasker.dispatches DROP COLUMN missing_since, DROP COLUMN missing_in;
