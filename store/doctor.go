package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Check is one thing that must be so, whatever has died before. Its statement
// finds where it is not.
type Check struct {
	Name    string `json:"check"`
	Promise string `json:"promise"`
	Warning bool   `json:"warning"` // what is found breaks no promise, but will cost somebody time

	sql     string // task_id, step_id, and what is wrong; see scope
	command string // what mends it: {task} and {step} stand for the ids
}

// Finding is a place where something is not as it must be.
type Finding struct {
	TaskID  *int64 `json:"task_id"`
	StepID  *int64 `json:"step_id"`
	Detail  string `json:"detail"`
	Command string `json:"command"` // that mends it, or leads to who can
}

// String is where it is, and what.
func (f Finding) String() string {
	var where string
	if f.TaskID != nil {
		where = fmt.Sprintf("task %d", *f.TaskID)
	}
	if f.StepID != nil {
		where += fmt.Sprintf(", step %d", *f.StepID)
	}
	if where == "" {
		return f.Detail
	}
	return where + ": " + f.Detail
}

// Examined is a check that was made.
type Examined struct {
	Check
	Findings []Finding `json:"findings"`
	More     bool      `json:"more"` // there are more findings than were asked for
	Took     float64   `json:"seconds"`
}

// Broken reports whether a promise is: a warning is none.
func (e *Examined) Broken() bool { return !e.Warning && len(e.Findings) > 0 }

// ExamineOptions narrow an examination. The zero value is all that there is.
type ExamineOptions struct {
	Task  *int64        // this one alone
	Since time.Duration // open tasks, and those that have ended within; 0: all
	Most  int           // findings of each check; 0: 20
	Done  func(Examined)
}

// Examine holds all that is stored against what is promised. It only reads, and
// sees everything as of one moment, so that a working system is not in its way.
func (s *Store) Examine(ctx context.Context, o ExamineOptions) ([]Examined, error) {
	if o.Most == 0 {
		o.Most = 20
	}
	var since *time.Duration
	if o.Since > 0 {
		since = &o.Since
	}
	var all []Examined
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if o.Task == nil {
			// How many rows scope has is guessed, and a loop in a loop over them would take
			// for ever where the guess is wrong.
			if _, err := tx.Exec(ctx, `SET LOCAL enable_nestloop = off`); err != nil {
				return err
			}
		}
		for _, check := range Checks {
			began := time.Now()
			rows, err := tx.Query(ctx, scope+check.sql+"\nORDER BY 1, 2, 3 LIMIT $3", o.Task, since, o.Most+1)
			if err != nil {
				return fmt.Errorf("check %s: %w", check.Name, err)
			}
			e := Examined{Check: check, Findings: []Finding{}}
			for rows.Next() {
				var f Finding
				if err := rows.Scan(&f.TaskID, &f.StepID, &f.Detail); err != nil {
					rows.Close()
					return fmt.Errorf("check %s: %w", check.Name, err)
				}
				f.Command = strings.NewReplacer("{task}", id(f.TaskID), "{step}", id(f.StepID)).Replace(check.command)
				e.Findings = append(e.Findings, f)
			}
			if err := rows.Err(); err != nil {
				return fmt.Errorf("check %s: %w", check.Name, err)
			}
			if len(e.Findings) > o.Most {
				e.Findings, e.More = e.Findings[:o.Most], true
			}
			e.Took = time.Since(began).Seconds()
			all = append(all, e)
			if o.Done != nil {
				o.Done(e)
			}
		}
		return nil
	})
	return all, err
}

func id(n *int64) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}

// scope is what every check begins with: the tasks in question, and what they
// were told to become, by their events. Events are kept for as long as retention
// says, so only tasks are replayed whose first event is still there. Two events
// of one transaction have one time; their order is that of their ids.
const scope = `
WITH scope AS (
    SELECT t.* FROM tasker.tasks t
    WHERE ($1::bigint IS NULL OR t.task_id = $1)
      AND ($2::interval IS NULL OR t.state IN ('pending', 'in_progress') OR t.finished_at > now() - $2)
), step AS (
    SELECT s.*, x.handler, x.handler_class, x.attempt_limit, x.depends_on, t.state AS task_state, t.owner, t.template_id
    FROM scope t JOIN tasker.steps s USING (task_id)
    JOIN tasker.template_steps x ON x.template_id = t.template_id AND x.position = s.position
), told AS (
    SELECT e.*, CASE e.name
        WHEN 'task.start_requested' THEN 'in_progress' WHEN 'task.retry_requested' THEN 'in_progress'
        WHEN 'task.completed' THEN 'complete' WHEN 'task.failed' THEN 'error' WHEN 'task.cancelled' THEN 'cancelled'
        WHEN 'task.resolved_manually' THEN 'resolved_manually'
        WHEN 'step.initialize_requested' THEN 'pending' WHEN 'step.execution_requested' THEN 'enqueued'
        WHEN 'step.handle' THEN 'in_progress' WHEN 'step.completed' THEN 'complete'
        WHEN 'step.retry_requested' THEN 'waiting_for_retry' WHEN 'step.failed' THEN 'error'
        WHEN 'step.cancelled' THEN 'cancelled' WHEN 'step.skipped' THEN 'skipped'
        WHEN 'step.resolved_manually' THEN 'resolved_manually' END AS becomes
    FROM scope t JOIN tasker.events e ON e.task_id = t.task_id
    WHERE EXISTS (SELECT FROM tasker.events f WHERE f.task_id = t.task_id AND f.name = 'task.initialize_requested')
), last AS (
    SELECT DISTINCT ON (e.task_id, e.step_id) e.* FROM told e WHERE e.becomes IS NOT NULL ORDER BY e.task_id, e.step_id, e.event_id DESC
)`

const report = "please report this, with the output of: tasker task show {task} -o json"

// Checks are all that is looked for.
var Checks = []Check{
	{
		Name: "forgotten_task", Promise: "every open task is owned by a living worker, or something will bring it back",
		command: `psql "$TASKER_DATABASE_URL" -c 'SELECT tasker.sweep()'  # workers do it every 30 s: is one running?`,
		sql: `
SELECT t.task_id, NULL::bigint AS step_id,
       CASE WHEN t.owner IS NULL THEN format('it is %s, nobody owns it, and no River job, attempt or limit would bring it back', t.state)
            ELSE format('it is owned by worker %s, which is %s', t.owner, coalesce(w.state, 'unknown')) END
FROM scope t LEFT JOIN tasker.workers w ON w.worker_id = t.owner
WHERE t.state IN ('pending', 'in_progress') AND t.paused_at IS NULL
  AND CASE WHEN t.owner IS NOT NULL THEN w.state IS DISTINCT FROM 'alive' AND coalesce(w.last_seen_at, '-infinity') < now() - interval '1 minute' ELSE
      NOT EXISTS (SELECT FROM tasker.dispatches d WHERE d.task_id = t.task_id AND d.failure IS NULL)
      AND NOT EXISTS (SELECT FROM tasker.gate_waiters l JOIN tasker.steps s USING (step_id)
          WHERE l.task_id = t.task_id AND s.state IN ('pending', 'waiting_for_retry'))
      AND NOT EXISTS (SELECT FROM tasker.river_job j WHERE (j.args ->> 'task_id')::bigint = t.task_id AND j.kind = 'task_execution'
          AND j.state IN ('available', 'running', 'scheduled', 'retryable', 'pending')
          AND (j.state <> 'running' OR j.attempted_at > now() - interval '2 minutes')) END`,
	},
	{
		Name: "result_twice", Promise: "a step has at most one accepted result",
		command: report,
		sql: `
SELECT min(e.task_id), e.step_id, format('%s results were accepted, of the attempts %s', count(*), string_agg(e.attempt::text, ', ' ORDER BY e.event_id))
FROM told e WHERE e.name = 'step.completed' GROUP BY e.step_id HAVING count(*) > 1`,
	},
	{
		Name: "result_of_another_attempt", Promise: "what a step is complete with is the result of its current attempt",
		command: report,
		sql: `
SELECT s.task_id, s.step_id, format('attempt %s is current, and %s was accepted', s.attempts, e.attempt)
FROM step s JOIN told e USING (step_id) WHERE s.state = 'complete' AND e.name = 'step.completed' AND e.attempt <> s.attempts`,
	},
	{
		Name: "started_too_early", Promise: "a step starts after all that it depends on is satisfied",
		command: report,
		sql: `
SELECT s.task_id, s.step_id, format('%s is %s, and depends on %s, which is %s', s.name, s.state, d.name, d.state)
FROM step s JOIN tasker.steps d ON d.task_id = s.task_id AND d.position = ANY (s.depends_on)
WHERE s.state IN ('enqueued', 'in_progress', 'complete', 'waiting_for_retry', 'error') AND s.attempts > 0
  AND d.state NOT IN ('complete', 'skipped', 'resolved_manually')
UNION ALL
SELECT s.task_id, s.step_id, format('attempt %s of %s started at %s, and %s was satisfied at %s', b.attempt, s.name, b.created_at, d.name, e.created_at)
FROM step s JOIN tasker.steps d ON d.task_id = s.task_id AND d.position = ANY (s.depends_on)
JOIN told b ON b.step_id = s.step_id AND b.becomes IN ('enqueued', 'in_progress')
JOIN told e ON e.step_id = d.step_id AND e.becomes IN ('complete', 'skipped', 'resolved_manually')
WHERE b.event_id < e.event_id AND b.created_at < e.created_at`,
	},
	{
		Name: "too_many_attempts", Promise: "attempts that were not lost to infrastructure stay within the step's limit",
		command: report,
		sql: `
SELECT s.task_id, s.step_id, format('%s has used %s attempts of %s', s.name, s.attempts - s.losses - s.forgiven, s.attempt_limit)
FROM step s WHERE s.attempts - s.losses - s.forgiven > s.attempt_limit`,
	},
	{
		Name: "retried_too_early", Promise: "no retry starts before its backoff is over, unless an operator says so",
		command: report,
		sql: `
SELECT r.task_id, r.step_id, format('attempt %s started %s after attempt %s failed, and was due after %s s',
                                    r.next_attempt, r.next_at - r.created_at, r.attempt, r.data ->> 'retry_in_seconds')
FROM (SELECT e.*, lead(e.becomes) OVER next AS next_becomes, lead(e.attempt) OVER next AS next_attempt, lead(e.created_at) OVER next AS next_at
      FROM told e WHERE e.step_id IS NOT NULL AND (e.becomes IS NOT NULL OR e.name = 'step.run_now')
      WINDOW next AS (PARTITION BY e.step_id ORDER BY e.event_id)) r
WHERE r.name = 'step.retry_requested' AND r.next_becomes IN ('enqueued', 'in_progress')
  AND r.next_at < r.created_at + make_interval(secs => (r.data ->> 'retry_in_seconds')::double precision)`,
	},
	{
		Name: "broken_history", Promise: "every transition is one that the state machine allows, and leaves one event",
		command: report,
		sql: `
SELECT p.task_id, p.step_id, format('the events say %s, which is no transition', array_to_string(ARRAY[p.was, p.becomes], ' → '))
FROM (SELECT e.task_id, e.step_id, e.becomes,
             lag(e.becomes, 1, 'pending') OVER (PARTITION BY e.task_id, e.step_id ORDER BY e.event_id) AS was
      FROM told e WHERE e.becomes IS NOT NULL) p
WHERE NOT CASE WHEN p.step_id IS NULL THEN tasker.task_may_become(p.was, p.becomes) ELSE tasker.step_may_become(p.was, p.becomes) END
UNION ALL
SELECT t.task_id, NULL, format('the task is %s, and its last event says %s', t.state, coalesce(l.becomes, 'pending'))
FROM scope t LEFT JOIN last l ON l.task_id = t.task_id AND l.step_id IS NULL
WHERE t.state <> coalesce(l.becomes, 'pending') AND t.task_id IN (SELECT e.task_id FROM told e)
UNION ALL
SELECT s.task_id, s.step_id, format('%s is %s, and its last event says %s', s.name, s.state, coalesce(l.becomes, 'pending'))
FROM step s LEFT JOIN last l USING (step_id)
WHERE s.state <> coalesce(l.becomes, 'pending') AND s.task_id IN (SELECT e.task_id FROM told e)`,
	},
	{
		Name: "wrong_outcome", Promise: "how a task has ended follows from its steps",
		command: "tasker explain {task}",
		sql: `
SELECT s.task_id, s.step_id, format('the task is %s, and %s is %s', s.task_state, s.name, s.state)
FROM step s
WHERE CASE s.task_state WHEN 'complete' THEN s.state NOT IN ('complete', 'skipped', 'resolved_manually')
                        WHEN 'cancelled' THEN s.state IN ('pending', 'enqueued', 'in_progress', 'waiting_for_retry')
                        WHEN 'error' THEN s.state IN ('enqueued', 'in_progress')
                        WHEN 'resolved_manually' THEN s.state IN ('enqueued', 'in_progress') END
UNION ALL
SELECT t.task_id, NULL, 'the task is in error, and neither a step nor its own error says why'
FROM scope t WHERE t.state = 'error' AND t.error IS NULL AND NOT EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = t.task_id AND s.state IN ('error', 'cancelled'))`,
	},
	{
		Name: "moved_after_the_end", Promise: "nothing starts in a task that has ended",
		command: report,
		sql: `
SELECT b.task_id, b.step_id, format('attempt %s started at %s, and the task had ended at %s', b.attempt, b.created_at, to_timestamp(b.last[2] / 1e6))
FROM (SELECT l.*, -- the last event of the task itself: its id, when it was, whether it was an end
             max(ARRAY[l.event_id, (extract(epoch FROM l.created_at) * 1e6)::bigint, (l.becomes <> 'in_progress')::int]) FILTER (WHERE l.step_id IS NULL AND l.becomes IS NOT NULL)
                 OVER (PARTITION BY l.task_id ORDER BY l.event_id) AS last
      FROM told l) b
WHERE b.step_id IS NOT NULL AND b.becomes IN ('enqueued', 'in_progress') AND b.last[3] = 1 AND (extract(epoch FROM b.created_at) * 1e6)::bigint > b.last[2]`,
	},
	{
		Name: "orphan", Promise: "what is kept for an attempt that is out goes when it is in",
		command: "tasker explain {task}",
		sql: `
SELECT d.task_id, d.step_id, format('a dispatch of attempt %s is left of a step that is %s with %s attempts', d.attempt, coalesce(s.state, 'gone'), s.attempts)
FROM tasker.dispatches d LEFT JOIN tasker.steps s USING (step_id)
WHERE ($1 IS NULL OR d.task_id = $1) AND (s.state IS NULL OR s.state NOT IN ('enqueued', 'in_progress') OR s.attempts <> d.attempt)
UNION ALL
SELECT s.task_id, s.step_id, format('%s is %s, and no dispatch is kept of its attempt %s', s.name, s.state, s.attempts)
FROM step s WHERE s.handler_class IS NOT NULL AND s.state IN ('enqueued', 'in_progress') AND NOT EXISTS (SELECT FROM tasker.dispatches d WHERE d.step_id = s.step_id)
UNION ALL
SELECT g.task_id, g.step_id, format('it holds a place at a limit, and is %s', coalesce(s.state, 'gone'))
FROM tasker.gate_slots g LEFT JOIN tasker.steps s USING (step_id)
WHERE ($1 IS NULL OR g.task_id = $1) AND (s.state IS NULL OR s.state NOT IN ('enqueued', 'in_progress'))
UNION ALL
SELECT l.task_id, l.step_id, format('it stands in line at a limit, and is %s', s.state)
FROM tasker.gate_waiters l JOIN tasker.steps s USING (step_id) -- who was cancelled or skipped leaves the line when its turn comes
WHERE ($1 IS NULL OR l.task_id = $1) AND s.state IN ('enqueued', 'in_progress')`,
	},
	{
		Name: "torn_enqueue", Promise: "a task is inserted with all of its steps, or not at all",
		command: report,
		sql: `
SELECT t.task_id, NULL::bigint, format('the template has %s steps, the task %s', x.n, s.n)
FROM scope t CROSS JOIN LATERAL (SELECT count(*) AS n FROM tasker.template_steps x WHERE x.template_id = t.template_id) x
CROSS JOIN LATERAL (SELECT count(*) AS n FROM tasker.steps s WHERE s.task_id = t.task_id) s
WHERE x.n <> s.n
UNION ALL
SELECT t.task_id, NULL, 'there is no template of its namespace, name and version with its template_id'
FROM scope c JOIN tasker.tasks t USING (task_id)
WHERE NOT EXISTS (SELECT FROM tasker.task_templates m WHERE m.template_id = t.template_id AND m.namespace = t.namespace AND m.name = t.name AND m.version = t.version)
UNION ALL
SELECT s.task_id, s.step_id, 'a step of no task'
FROM tasker.steps s WHERE $1 IS NULL AND $2 IS NULL AND NOT EXISTS (SELECT FROM tasker.tasks t WHERE t.task_id = s.task_id)`,
	},
	{
		Name: "no_worker", Promise: "somebody works on what is due", Warning: true,
		command: "tasker worker",
		sql: `
SELECT NULL::bigint AS task_id, NULL::bigint AS step_id, format('%s tasks are due, and no worker is alive', count(*))
FROM scope t WHERE t.state IN ('pending', 'in_progress') AND t.paused_at IS NULL AND coalesce(t.run_at, t.created_at) < now() - interval '10 seconds'
  AND NOT EXISTS (SELECT FROM tasker.workers w WHERE w.state = 'alive' AND w.last_seen_at > now() - 2 * w.lease)
HAVING count(*) > 0`,
	},
	{
		Name: "given_up_job", Promise: "River has given up none of its jobs of open tasks", Warning: true,
		command: "tasker explain {task}",
		sql: `
SELECT t.task_id, NULL::bigint, format('River job %s was %s at %s: %s', j.id, j.state, j.finalized_at, j.errors[cardinality(j.errors)] ->> 'error')
FROM scope t JOIN tasker.river_job j ON (j.args ->> 'task_id')::bigint = t.task_id AND j.kind = 'task_execution'
WHERE t.state IN ('pending', 'in_progress') AND j.state IN ('discarded', 'cancelled')`,
	},
	{
		Name: "rights", Promise: "the roles have their rights, and logins without a grant none", Warning: true,
		command: "tasker migrate roles",
		sql: `
SELECT NULL::bigint AS task_id, NULL::bigint AS step_id, format('%s: %s', p.oid::regprocedure, CASE
    WHEN has_function_privilege('public', p.oid, 'EXECUTE') THEN 'any login may call it'
    ELSE 'workers may not call it' END)
FROM pg_proc p CROSS JOIN pg_roles r
WHERE $1 IS NULL AND p.pronamespace = 'tasker'::regnamespace AND p.prokind = 'f'
  AND r.rolname = 'tasker_worker' AND has_schema_privilege(r.oid, 'tasker', 'USAGE')
  AND (has_function_privilege('public', p.oid, 'EXECUTE') OR NOT has_function_privilege(r.oid, p.oid, 'EXECUTE'))
UNION ALL
SELECT NULL, NULL, format('%s may read %s.%s, which shows who may start and report attempts', r.rolname, a.attrelid::regclass, a.attname)
FROM pg_attribute a CROSS JOIN pg_roles r
WHERE $1 IS NULL AND a.attrelid IN ('tasker.dispatches'::regclass, 'tasker.processes'::regclass) AND a.attname IN ('ticket', 'secret')
  AND r.rolname IN ('tasker_app', 'tasker_reader', 'tasker_operator') AND has_column_privilege(r.oid, a.attrelid, a.attnum, 'SELECT')`,
	},
	{
		Name: "sequence_behind", Promise: "numbers that Postgres gives out next are not taken already", Warning: true,
		command: `psql "$TASKER_DATABASE_URL", with the statement above`,
		// As after logical replication, which copies rows and no sequences. A role that may
		// not read a sequence is told nothing of it.
		sql: `
SELECT NULL::bigint AS task_id, NULL::bigint AS step_id, format('%s is at %s, and its table has %s already: SELECT setval(%L, %s)', q.name, coalesce(l.value, 0), q.taken, q.name, q.taken)
FROM (VALUES ('tasker.tasks_task_id_seq', (SELECT max(task_id) FROM tasker.tasks)),
             ('tasker.steps_step_id_seq', (SELECT max(step_id) FROM tasker.steps)),
             ('tasker.events_event_id_seq', (SELECT max(event_id) FROM tasker.events)),
             ('tasker.river_job_id_seq', (SELECT max(id) FROM tasker.river_job)),
             ('tasker.workers_worker_id_seq', (SELECT max(worker_id) FROM tasker.workers)),
             ('tasker.processes_process_id_seq', (SELECT max(process_id) FROM tasker.processes)),
             ('tasker.task_templates_template_id_seq', (SELECT max(template_id) FROM tasker.task_templates)),
             ('tasker.gates_gate_id_seq', (SELECT max(gate_id) FROM tasker.gates)),
             ('tasker.dead_letters_dead_letter_id_seq', (SELECT max(dead_letter_id) FROM tasker.dead_letters))) AS q(name, taken)
CROSS JOIN LATERAL (SELECT CASE WHEN has_sequence_privilege(q.name, 'USAGE, SELECT') THEN pg_sequence_last_value(q.name::regclass) END AS value) l
WHERE $1 IS NULL AND has_sequence_privilege(q.name, 'USAGE, SELECT') AND coalesce(l.value, 0) < q.taken`,
	},
	{
		Name: "notification_queue", Promise: "no session keeps notifications from being removed", Warning: true,
		command: `psql "$TASKER_DATABASE_URL" -c "SELECT pid, usename, application_name, xact_start FROM pg_stat_activity WHERE state LIKE 'idle in%' ORDER BY xact_start"`,
		sql: `
SELECT NULL::bigint AS task_id, NULL::bigint AS step_id,
       format('the notification queue is %s %% full; when it is full, enqueuing fails', round((pg_notification_queue_usage() * 100)::numeric, 1))
WHERE $1 IS NULL AND pg_notification_queue_usage() > 0.1`,
	},
	{
		Name: "events_without_a_day", Promise: "events are in the partition of their day", Warning: true,
		command: "tasker worker",
		sql: `
SELECT NULL::bigint AS task_id, NULL::bigint AS step_id, format('%s events are in events_default, since %s: no worker has made the partitions of those days', count(*), min(d.created_at))
FROM tasker.events_default d HAVING count(*) > 0`,
	},
	{
		Name: "old_snapshot", Promise: "nobody keeps old row versions from being removed", Warning: true,
		command: `psql "$TASKER_DATABASE_URL" -c 'SELECT pid, application_name, state, xact_start, query FROM pg_stat_activity ORDER BY xact_start'`,
		sql: `
SELECT NULL::bigint AS task_id, NULL::bigint AS step_id, format('process %s (%s, %s) holds a snapshot since %s: tables grow until it ends', a.pid, a.application_name, a.state, a.xact_start)
FROM pg_stat_activity a WHERE a.backend_xmin IS NOT NULL AND a.xact_start < now() - interval '10 minutes' AND a.pid <> pg_backend_pid()`,
	},
}
