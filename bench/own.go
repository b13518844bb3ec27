package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/taskerhq/tasker/bench/contest"
	"github.com/taskerhq/tasker/bench/stage"
)

// ownWorkloads ask about tasker alone whether anything grows faster than it
// should. Those without a unit are specials.
var ownWorkloads = []workload{
	{name: "w5_100", title: "20 tasks of 100 steps in a row, one after the other", unit: "steps/s", own: true, order: contest.Order{Shape: contest.Chain, Size: 100, Tasks: 20, InTurn: true}},
	{name: "w5_10k", title: "one task of 10,000 steps in a row", unit: "steps/s", own: true, order: contest.Order{Shape: contest.Chain, Size: 10_000, Tasks: 1}},
	{name: "wide_1k", title: "10 tasks of 1 step, then 1,000 side by side, then 1", unit: "steps/s", own: true, order: contest.Order{Shape: contest.Fan, Size: 1000, Tasks: 10}},
	{name: "wide_10k", title: "one task of 1 step, then 10,000 side by side, then 1", unit: "steps/s", own: true, order: contest.Order{Shape: contest.Fan, Size: 10_000, Tasks: 1}},
	{name: "w1_1", title: "2,000 tasks of 10 steps in a row, one worker process", unit: "steps/s", own: true, order: contest.Order{Shape: contest.Chain, Size: 10, Tasks: 2000}},
	{name: "w1_2", title: "the same, two processes", unit: "steps/s", own: true, helpers: 1, order: contest.Order{Shape: contest.Chain, Size: 10, Tasks: 2000}},
	{name: "w1_4", title: "the same, four processes", unit: "steps/s", own: true, helpers: 3, order: contest.Order{Shape: contest.Chain, Size: 10, Tasks: 2000}},
	{name: "w1_full", title: "the same, one process, with finished tasks in the tables (-finished)", unit: "steps/s", own: true, finished: true, order: contest.Order{Shape: contest.Chain, Size: 10, Tasks: 2000}},
	{name: "held", title: "w1 again and again while a snapshot is held and four readers scan (-hold)", own: true},
	{name: "idle", title: "a worker with nothing to do, and parked tasks (-parked)", own: true},
}

// specials run once, after the rounds.
var specials = map[string]func(ctx context.Context, b *bench) ([]note, error){"held": held, "idle": idle}

// fill puts finished diamonds into the tables, as a worker would have left them.
func (b *bench) fill(ctx context.Context, e engine, url string, conn *pgx.Conn) error {
	c, err := b.start(ctx, e.name, e, url)
	if err != nil {
		return err
	}
	_, err = c.Run(contest.Order{Shape: contest.Diamond}) // migrates and registers
	if err = errors.Join(err, c.Close()); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "filling the tables with %d finished tasks: some minutes\n", b.finished)
	for _, sql := range []string{
		`SET session_replication_role = replica`, // no triggers: nothing is to be started
		`INSERT INTO tasker.tasks (template_id, namespace, name, version, state, created_at, started_at, finished_at)
			SELECT template_id, namespace, name, version, 'complete', now() - i * interval '1 second', now(), now()
			FROM tasker.task_templates, generate_series(1, ` + strconv.Itoa(b.finished) + `) i WHERE name = 'diamond'`,
		`INSERT INTO tasker.steps (task_id, position, name, state, attempts, result, started_at, finished_at)
			SELECT t.task_id, s.position, s.name, 'complete', 1, '` + contest.Result + `', t.finished_at, t.finished_at
			FROM tasker.tasks t JOIN tasker.template_steps s USING (template_id) ORDER BY t.task_id, s.position`,
		`INSERT INTO tasker.events (task_id, step_id, created_at, attempt, name) SELECT task_id, step_id, finished_at, 1, 'step.completed' FROM tasker.steps ORDER BY step_id`,
		`INSERT INTO tasker.events (task_id, created_at, name) SELECT task_id, finished_at, 'task.completed' FROM tasker.tasks ORDER BY task_id`,
		`RESET session_replication_role`,
		`VACUUM ANALYZE`,
		`CHECKPOINT`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("fill the tables: %w", err)
		}
	}
	return nil
}

// tasker is the engine of this repository.
func (b *bench) tasker() engine {
	return b.engines[slices.IndexFunc(b.engines, func(e engine) bool { return e.name == "tasker" })]
}

// held compares the rate at the end of a long snapshot with that at its start.
func held(ctx context.Context, b *bench) (_ []note, err error) {
	url, err := b.stage.Database(ctx, "held")
	if err != nil {
		return nil, err
	}
	c, err := b.start(ctx, "tasker", b.tasker(), url)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	order := contest.Order{Shape: contest.Chain, Size: 10, Tasks: 500}
	if _, err := c.Run(order); err != nil { // migrates and warms up
		return nil, err
	}
	holder, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, holder.Close(context.WithoutCancel(ctx))) }()
	if _, err := holder.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM tasker.tasks LIMIT 1`); err != nil {
		return nil, err
	}
	reading, stop := context.WithCancel(ctx)
	var readers errgroup.Group
	for range 4 {
		readers.Go(func() error { return scan(reading, url) })
	}
	defer func() { stop(); err = errors.Join(err, readers.Wait()) }()
	var rates []float64
	for begun := time.Now(); time.Since(begun) < b.hold || len(rates) < 10; {
		done, err := c.Run(order)
		if err != nil {
			return nil, err
		}
		rates = append(rates, float64(order.Tasks*order.StepsPerTask())/done.Took.Seconds())
		fmt.Fprintf(os.Stderr, "held %s: %.0f steps/s\n", time.Since(begun).Round(time.Second), rates[len(rates)-1])
	}
	tenth := len(rates) / 10
	first, last := stage.SpreadOf(slices.Clone(rates[:tenth])).Median, stage.SpreadOf(slices.Clone(rates[len(rates)-tenth:])).Median
	notes := []note{
		{"held", fmt.Sprintf("steps/s, median of the first tenth of %s with the snapshot held and four readers", b.hold), first},
		{"held", "steps/s, median of the last tenth", last}, {"held", "ratio", last / first},
	}
	dead, err := holder.Query(ctx, `SELECT relname || ', dead tuples; live: ' || n_live_tup, n_dead_tup::float8 FROM pg_stat_user_tables
		WHERE schemaname = 'tasker' AND n_dead_tup > 1000 ORDER BY n_dead_tup DESC`)
	if err != nil {
		return nil, err
	}
	n := note{Workload: "held"}
	_, err = pgx.ForEachRow(dead, []any{&n.What, &n.Value}, func() error { notes = append(notes, n); return nil })
	return notes, err
}

// scan reads all steps and events, again and again, until ctx ends.
func scan(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	// The same load from the first minute to the last: one process, that never rests.
	if _, err := conn.Exec(ctx, `SET max_parallel_workers_per_gather = 0`); err != nil {
		return err
	}
	for ctx.Err() == nil {
		_, err := conn.Exec(ctx, `SELECT /* bench */ count(result), (SELECT max(created_at) FROM tasker.events) FROM tasker.steps`)
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// idle measures what a worker costs that has nothing to do.
func idle(ctx context.Context, b *bench) ([]note, error) {
	if _, err := b.stage.Pool.Exec(ctx, `CREATE EXTENSION IF NOT EXISTS pg_stat_statements`); err != nil {
		return nil, err
	}
	notes, err := rest(ctx, b, "no tasks")
	if err != nil {
		return nil, err
	}
	if err := park(ctx, b); err != nil {
		return nil, err
	}
	more, err := rest(ctx, b, fmt.Sprintf("%s parked tasks", number(float64(b.parked))))
	return append(notes, more...), err
}

// park makes tasks that wait for a retry, most of an hour: longer is cut.
func park(ctx context.Context, b *bench) (err error) {
	if err := b.stage.Register(ctx, "parked.yaml", "name: parked\nnamespace_name: bench\nversion: 1.0.0\nstep_templates: [{name: only, handler: bench.later}]\n"); err != nil {
		return err
	}
	c, err := b.start(ctx, "tasker", b.tasker(), b.stage.DatabaseURL(), "-park-after", "1ms")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if _, err := b.stage.Pool.Exec(ctx, `INSERT INTO tasker.tasks (namespace, name) SELECT 'bench', 'parked' FROM generate_series(1, $1)`, b.parked); err != nil {
		return err
	}
	for begun := time.Now(); ; {
		var busy int
		if err := b.stage.Pool.QueryRow(ctx, `SELECT count(*) FROM tasker.tasks t WHERE t.state = 'pending' OR t.state = 'in_progress' AND
			(t.owner IS NOT NULL OR NOT EXISTS (SELECT FROM tasker.steps s WHERE s.task_id = t.task_id AND s.state = 'waiting_for_retry'))`).Scan(&busy); err != nil || busy == 0 {
			return err
		}
		fmt.Fprintf(os.Stderr, "parking: %d of %d to go after %s\n", busy, b.parked, time.Since(begun).Round(time.Second))
		select {
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// rest starts a worker, lets it settle and measures a minute of it.
func rest(ctx context.Context, b *bench, what string) (_ []note, err error) {
	c, err := b.start(ctx, "tasker", b.tasker(), b.stage.DatabaseURL())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	meter, err := pgx.Connect(ctx, b.stage.DatabaseURL())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, meter.Close(context.WithoutCancel(ctx))) }()
	if _, err := c.Run(contest.Order{Shape: contest.Single}); err != nil {
		return nil, err
	}
	if _, err := b.stage.Pool.Exec(ctx, `VACUUM ANALYZE`); err != nil { // not in the minute
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "idle with %s: a minute and a half\n", what)
	var readings []reading
	for _, pause := range []time.Duration{30 * time.Second, time.Minute} {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		r, err := read(ctx, b.stage, meter)
		if err != nil {
			return nil, err
		}
		readings = append(readings, r)
	}
	before, after := readings[0], readings[1]
	seconds := after.at.Sub(before.at).Seconds()
	return []note{
		{"idle", what + ": CPU of the worker, ms/s", float64((after.engine("tasker") - before.engine("tasker")).Milliseconds()) / seconds},
		{"idle", what + ": CPU of Postgres, ms/s", float64((after.cpu["postgres"] - before.cpu["postgres"]).Milliseconds()) / seconds},
		{"idle", what + ": statements/s", float64(after.statements-before.statements) / seconds},
		{"idle", what + ": resident memory of the worker, MiB", float64(stage.Resident(c.PID())) / (1 << 20)},
	}, nil
}
