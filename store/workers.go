package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/taskerhq/tasker"
)

// RegisterWorker enters a worker. client is the id of its River client. When it
// has not beaten for the length of lease, others declare it dead.
func (s *Store) RegisterWorker(ctx context.Context, name, client string, lease time.Duration, details any) (int64, error) {
	doc, err := json.Marshal(details)
	if err != nil {
		return 0, fmt.Errorf("register worker: %w", err)
	}
	var id int64
	err = s.pool.QueryRow(ctx, `INSERT INTO tasker.workers (name, client_id, lease, details) VALUES ($1, $2, $3, $4) RETURNING worker_id`,
		name, client, lease, doc).Scan(&id)
	if err != nil {
		return 0, fmt.Errorf("register worker: %w", err)
	}
	return id, nil
}

// maintenanceTime is how long a periodic statement may take that holds rows which the
// way of a step needs: far below a lease, and below the silence after which a process
// counts as dead. One that takes longer is ended, and its rows are free; the next round
// looks again.
const maintenanceTime = time.Second

// bounded runs such statements in a transaction.
func (s *Store) bounded(ctx context.Context, do func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		limit := fmt.Sprint(maintenanceTime.Milliseconds())
		if _, err := tx.Exec(ctx, `SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $1, true)`, limit); err != nil {
			return err
		}
		return do(tx)
	})
}

// outOfTime reports whether a bounded statement was ended, as it took too long.
func outOfTime(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "57014" // query_canceled
}

// Pulse is what a worker learns when it says that it is alive.
type Pulse struct {
	Silent  time.Duration // how long it had not said so before
	Now     time.Time     // the database's time
	Suspect bool          // a worker has been silent for the length of its lease, or one that is gone has tasks still
	Due     time.Duration // until the next job is due that nobody will ring for; 0: none within a minute
	Workers int           // that are alive
	Place   int           // of this one among them, from 0
}

// Beat says that the worker is alive. ErrWorkerDead: it has been declared dead
// meanwhile.
func (s *Store) Beat(ctx context.Context, worker int64) (p Pulse, err error) {
	var silent float64
	var due *float64
	err = s.pool.QueryRow(ctx, `UPDATE tasker.workers w SET last_seen_at = clock_timestamp()
		FROM (SELECT last_seen_at FROM tasker.workers WHERE worker_id = $1) before,
		     (SELECT count(*) AS alive, count(*) FILTER (WHERE worker_id < $1) AS before FROM tasker.workers WHERE state = 'alive') o
		WHERE w.worker_id = $1 AND w.state = 'alive'
		RETURNING extract(epoch FROM w.last_seen_at - before.last_seen_at)::float8, w.last_seen_at,
			EXISTS (SELECT FROM tasker.workers d WHERE d.worker_id <> $1 AND d.state = 'alive'
			        AND greatest(d.last_seen_at, pg_postmaster_start_time()) < clock_timestamp() - d.lease)
			OR EXISTS (SELECT FROM tasker.workers d WHERE d.state <> 'alive' AND EXISTS (SELECT FROM tasker.tasks t WHERE t.owner = d.worker_id)),
			(SELECT extract(epoch FROM min(n.scheduled_at) - clock_timestamp())::float8
			 FROM generate_series(1, 4) AS p(priority) CROSS JOIN LATERAL (
			     SELECT j.scheduled_at FROM tasker.river_job j
			     WHERE j.state = 'available' AND j.queue = 'default' AND j.priority = p.priority
			       -- Also what came due since the last beat: River may have made it available after that.
			       AND j.scheduled_at > now() - interval '3 seconds' AND j.scheduled_at < now() + interval '1 minute'
			     ORDER BY j.scheduled_at LIMIT 1) n),
			o.alive, o.before`, worker).
		Scan(&silent, &p.Now, &p.Suspect, &due, &p.Workers, &p.Place)
	if err = translate(err); errors.Is(err, ErrNotFound) {
		return p, ErrWorkerDead
	}
	if err != nil {
		return p, fmt.Errorf("beat: %w", err)
	}
	p.Silent = time.Duration(silent * float64(time.Second))
	if due != nil {
		p.Due = max(time.Duration(*due*float64(time.Second)), 1)
	}
	return p, nil
}

// Ring has all workers fetch the jobs that are due.
func (s *Store) Ring(ctx context.Context) error {
	if _, err := s.pool.Exec(ctx, `SELECT tasker.notify_river()`); err != nil {
		return fmt.Errorf("ring for jobs that are due: %w", err)
	}
	return nil
}

// WakeHandled makes the jobs of tasks due now that wait for a Go handler which
// the worker has and none before it had. It returns how many.
func (s *Store) WakeHandled(ctx context.Context, worker int64) (woken int, err error) {
	if err := s.pool.QueryRow(ctx, `SELECT tasker.wake_handled($1)`, worker).Scan(&woken); err != nil {
		return 0, fmt.Errorf("wake tasks that wait for handlers: %w", err)
	}
	return woken, nil
}

// ReapWorker declares one worker dead that has not beaten for the length of its
// lease, if there is one, and returns how many tasks that set free.
func (s *Store) ReapWorker(ctx context.Context) (freed int, err error) {
	if err := s.pool.QueryRow(ctx, `SELECT tasker.reap_worker()`).Scan(&freed); err != nil {
		return 0, fmt.Errorf("find dead workers: %w", err)
	}
	return freed, nil
}

// StopWorker signs the worker off and sets free what it still holds.
func (s *Store) StopWorker(ctx context.Context, worker int64) error {
	if _, err := s.pool.Exec(ctx, `SELECT tasker.stop_worker($1)`, worker); err != nil {
		return fmt.Errorf("sign worker %d off: %w", worker, err)
	}
	return nil
}

// Sweep looks for open tasks that nothing would bring back, and brings them
// back. It returns how many there were: none, unless something is wrong.
func (s *Store) Sweep(ctx context.Context) (found int, err error) {
	if err := s.pool.QueryRow(ctx, `SELECT tasker.sweep()`).Scan(&found); err != nil {
		return 0, fmt.Errorf("look for forgotten tasks: %w", err)
	}
	return found, nil
}

// RescueUnheard makes those River jobs available again that run in a client for
// seconds and that it doesn't know of: the answer of their fetch was lost.
func (s *Store) RescueUnheard(ctx context.Context, client string, known []int64) (rescued int, err error) {
	if err := s.bounded(ctx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `SELECT tasker.rescue_unheard($1, $2)`, client, known).Scan(&rescued)
	}); err != nil {
		return 0, fmt.Errorf("look for jobs whose fetch was lost: %w", err)
	}
	return rescued, nil
}

// HandledElsewhere reports whether another living worker has one of the Go
// handlers.
func (s *Store) HandledElsewhere(ctx context.Context, worker int64, handlers []string) (bool, error) {
	var handled bool
	err := s.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM tasker.workers
		WHERE state = 'alive' AND worker_id <> $1 AND details -> 'handlers' ?| $2)`, worker, handlers).Scan(&handled)
	if err != nil {
		return false, fmt.Errorf("find a worker with the handlers: %w", err)
	}
	return handled, nil
}

// clockPortion is how many tasks, and how many attempts, one statement ends at most: far
// less than fits into maintenanceTime, also on a machine that is slow.
const clockPortion = 200

// ReadClocks ends what has taken too long: tasks whose deadline has passed, and
// attempts at Sidekiq whose time is up or whose process has been silent for so
// long; silence 0: which process has been silent can't be told now. An attempt that no
// process has the handler for ends after handlerWait. It returns how many. What is left
// when maintenanceTime is over is for the next call.
func (s *Store) ReadClocks(ctx context.Context, silence, handlerWait time.Duration) (tasks, attempts int, err error) {
	portions := func(sql string, args ...any) (total int, err error) {
		for began := time.Now(); ; {
			var n int
			if err := s.bounded(ctx, func(tx pgx.Tx) error { return tx.QueryRow(ctx, sql, append([]any{clockPortion}, args...)...).Scan(&n) }); err != nil {
				return total, err
			}
			if total += n; n < clockPortion || time.Since(began) > maintenanceTime {
				return total, nil
			}
		}
	}
	if tasks, err = portions(`SELECT tasker.expire_tasks($1)`); err != nil {
		return tasks, 0, fmt.Errorf("end tasks whose deadline has passed: %w", err)
	}
	if attempts, err = portions(`SELECT tasker.reap_attempts(nullif($2, '0'::interval), $1, $3)`, silence, handlerWait); err != nil {
		return tasks, attempts, fmt.Errorf("find attempts that have taken too long: %w", err)
	}
	return tasks, attempts, nil
}

// AgeJobs moves up the jobs of tasks that have waited for long: one level of priority
// per ageing.
func (s *Store) AgeJobs(ctx context.Context, ageing time.Duration) error {
	if err := s.bounded(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `SELECT tasker.age_jobs($1)`, ageing)
		return err
	}); err != nil {
		return fmt.Errorf("move up what has waited for long: %w", err)
	}
	return nil
}

// TakeUnstarted returns attempts that no process has started and that nobody
// has looked after for age, those first that waited longest, up to limit, or
// fewer where the database is slow. They are the caller's to look after now: no
// other call returns them before age has passed again.
func (s *Store) TakeUnstarted(ctx context.Context, age time.Duration, limit int) ([]tasker.Dispatch, error) {
	var list []tasker.Dispatch
	take := func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT * FROM tasker.take_unstarted($1, $2, $3)`, age, limit, tasker.LeastShared.Seconds())
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[tasker.Dispatch])
		return err
	}
	err := s.bounded(ctx, take)
	for outOfTime(err) && limit > 10 {
		limit /= 10
		err = s.bounded(ctx, take)
	}
	if err != nil {
		return nil, fmt.Errorf("find unstarted attempts: %w", err)
	}
	return list, nil
}

// StillUnstarted returns those of the attempts that nobody has started or ended.
func (s *Store) StillUnstarted(ctx context.Context, attempts []tasker.Dispatch) ([]tasker.Dispatch, error) {
	steps := make([]int64, len(attempts))
	for i, a := range attempts {
		steps[i] = a.StepID
	}
	rows, err := s.pool.Query(ctx, `SELECT step_id, attempt FROM tasker.dispatches WHERE step_id = ANY ($1) AND started_at IS NULL AND failure IS NULL`, steps)
	if err != nil {
		return nil, fmt.Errorf("see which attempts are still unstarted: %w", err)
	}
	unstarted := map[int64]int{}
	var step int64
	var attempt int
	if _, err := pgx.ForEachRow(rows, []any{&step, &attempt}, func() error { unstarted[step] = attempt; return nil }); err != nil {
		return nil, fmt.Errorf("see which attempts are still unstarted: %w", err)
	}
	return slices.DeleteFunc(attempts, func(a tasker.Dispatch) bool { return unstarted[a.StepID] != a.Attempt }), nil
}

// Process is a Sidekiq process that lives.
type Process struct {
	Queues      []string           `json:"queues"`
	Concurrency int                `json:"concurrency"`
	Bundles     bool               `json:"-"` // it takes several attempts in one job
	Seconds     map[string]float64 `json:"-"` // that its handlers take, by class
}

// Processes lists the Sidekiq processes that have given a sign of life within
// the time.
func (s *Store) Processes(ctx context.Context, within time.Duration) ([]Process, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT details, seconds FROM tasker.processes WHERE stopped_at IS NULL AND last_seen_at > clock_timestamp() - $1::interval`, within)
	if err != nil {
		return nil, fmt.Errorf("read sidekiq processes: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p Process, err error) {
		var details, seconds []byte
		if err = row.Scan(&details, &seconds); err != nil {
			return p, err
		}
		// What a process says of itself is a hint, and may be anything: of one that
		// can't be understood it is only known that it lives.
		if !understood(details, &p) || !understood(seconds, &p.Seconds) {
			return Process{}, nil
		}
		p.Bundles = seconds != nil
		return p, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read sidekiq processes: %w", err)
	}
	return list, nil
}

// understood reads what a process says of itself; nothing said is understood.
func understood(doc []byte, v any) bool { return doc == nil || json.Unmarshal(doc, v) == nil }

// Listener takes what a worker is told of.
type Listener interface {
	Rung(steps []int64)       // reports of these steps were committed, and are to be read
	Completed(steps []Report) // these steps were completed
	Changed(task int64)       // an operator has changed it
	Admitted(task int64)      // it has steps that a gate lets pass now; 0: a gate was changed
	Enqueued(task, job int64) // it was inserted alone, with this River job, and all workers are told
}

// Listen passes on what this worker is told of, until ctx ends or the connection
// breaks. ready is called once it listens: what was committed before has to be
// looked up.
func (s *Store) Listen(ctx context.Context, worker int64, ready func(), l Listener) error {
	err := s.listen(ctx, []string{fmt.Sprint("tasker.worker_", worker), inserts}, ready, func(n *pgconn.Notification) {
		if n.Channel == inserts {
			tellOfJob(l, n.Payload)
		} else {
			tell(l, n.Payload)
		}
	})
	return fmt.Errorf("listen for reports: %w", err)
}

// listen hears channels on a connection of its own, until that breaks or ctx ends.
func (s *Store) listen(ctx context.Context, channels []string, ready func(), heard func(*pgconn.Notification)) error {
	conn, err := pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig.Copy())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, channel := range channels {
		if _, err := conn.Exec(ctx, `LISTEN `+pgx.Identifier{channel}.Sanitize()); err != nil {
			return err
		}
	}
	ready()
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		heard(n)
	}
}

// inserts is the channel on which River is told of jobs.
const inserts = "tasker.river_insert"

// tellOfJob passes on which task a job is for, where that is said.
func tellOfJob(l Listener, payload string) {
	if !strings.Contains(payload, `"task_id"`) {
		return // many of them
	}
	var job struct {
		Task int64 `json:"task_id"`
		ID   int64 `json:"job_id"`
	}
	if err := json.Unmarshal([]byte(payload), &job); err == nil && job.Task > 0 && job.ID > 0 {
		l.Enqueued(job.Task, job.ID)
	}
}

// notifications are what a worker understands on its own channel, by the first letter
// of the payload. Any login of the database may send them: each is a hint where to look,
// but for results, which carry their attempt's ticket.
var notifications = map[string]func(l Listener, list string){
	"t": func(l Listener, list string) {
		for _, id := range ids(list) {
			l.Changed(id)
		}
	},
	"g": func(l Listener, list string) {
		if list == "" {
			l.Admitted(0)
		}
		for _, id := range ids(list) {
			l.Admitted(id)
		}
	},
	// Of attempts that a worker of an earlier version made: to be read.
	"c": func(l Listener, list string) { l.Rung(completedSteps(list)) },
	"d": func(l Listener, list string) { l.Completed(completed(list)) },
}

// NotificationKinds lists the first letters of payloads that a worker understands; the
// empty one is a list of steps. It is for tests that forge them.
func NotificationKinds() []string {
	return append(slices.Sorted(maps.Keys(notifications)), "")
}

func tell(l Listener, payload string) {
	if act := notifications[payload[:min(len(payload), 1)]]; act != nil {
		act(l, payload[1:])
		return
	}
	l.Rung(ids(payload))
}

// completed reads a list of step.attempt.task.ticket.
func completed(list string) []Report {
	var reports []Report
	for word := range strings.SplitSeq(list, ",") {
		if n := ids(strings.ReplaceAll(word, ".", ",")); len(n) == 4 {
			reports = append(reports, Report{StepID: n[0], Attempts: int(n[1]), TaskID: n[2], State: tasker.StepComplete, Ticket: n[3]})
		}
	}
	return reports
}

// completedSteps reads the steps of a list of step.attempt.task.
func completedSteps(list string) []int64 {
	var steps []int64
	for word := range strings.SplitSeq(list, ",") {
		first, _, _ := strings.Cut(word, ".")
		steps = append(steps, ids(first)...)
	}
	return steps
}
