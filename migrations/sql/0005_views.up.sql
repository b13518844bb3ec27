-- tasker: views for people and for readers in other languages.

CREATE VIEW tasker.task_summaries AS
SELECT t.task_id, t.namespace, t.name, t.version, t.state,
       CASE WHEN t.state IN ('cancelled', 'resolved_manually') THEN t.state
            WHEN s.satisfied = s.total THEN 'all_complete'
            WHEN s.outstanding > 0 THEN 'processing'
            WHEN s.ready > 0 THEN 'has_ready_steps'
            WHEN s.waiting > 0 THEN 'waiting_for_retry'
            WHEN s.failed + s.cancelled > 0 THEN 'blocked_by_failures'
            ELSE 'waiting_for_dependencies' END AS execution_status,
       s.total AS steps_total, s.satisfied AS steps_satisfied, s.outstanding AS steps_outstanding, s.ready AS steps_ready,
       s.waiting AS steps_waiting_for_retry, s.failed AS steps_failed, s.attempts, s.next_retry_at,
       t.priority, t.run_at, t.correlation_id, t.tags, t.initiator, t.source_system, t.reason, t.error,
       t.created_at, t.started_at, t.finished_at, t.finished_at - t.created_at AS duration
FROM tasker.tasks t
CROSS JOIN LATERAL (
    SELECT count(*)::int AS total,
           count(*) FILTER (WHERE s.state IN ('complete', 'skipped', 'resolved_manually'))::int AS satisfied,
           count(*) FILTER (WHERE s.state IN ('enqueued', 'in_progress'))::int AS outstanding,
           count(*) FILTER (WHERE s.state = 'waiting_for_retry')::int AS waiting,
           count(*) FILTER (WHERE s.state = 'error')::int AS failed,
           count(*) FILTER (WHERE s.state = 'cancelled')::int AS cancelled,
           count(*) FILTER (WHERE s.state = 'pending' AND NOT EXISTS (
               SELECT FROM tasker.template_steps d
               JOIN tasker.steps p ON p.task_id = s.task_id AND p.position = ANY (d.depends_on)
               WHERE d.template_id = t.template_id AND d.position = s.position
                 AND p.state NOT IN ('complete', 'skipped', 'resolved_manually')))::int AS ready,
           coalesce(sum(s.attempts), 0)::int AS attempts,
           min(s.retry_at) FILTER (WHERE s.state = 'waiting_for_retry') AS next_retry_at
    FROM tasker.steps s WHERE s.task_id = t.task_id) s;
COMMENT ON VIEW tasker.task_summaries IS 'A task with its steps counted; execution_status says what it is doing';

CREATE VIEW tasker.step_dependencies AS
SELECT s.task_id, s.step_id, s.name, p.step_id AS depends_on_step_id, p.name AS depends_on_name
FROM tasker.steps s
JOIN tasker.tasks t USING (task_id)
JOIN tasker.template_steps d ON d.template_id = t.template_id AND d.position = s.position
JOIN tasker.steps p ON p.task_id = s.task_id AND p.position = ANY (d.depends_on);
COMMENT ON VIEW tasker.step_dependencies IS 'The edges of a task''s DAG';
