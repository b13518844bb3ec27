package main

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/taskerhq/tasker/bench/contest"
)

// What a team writes that wants a graph on River: a step's job keeps its result,
// completes itself and inserts what comes next, all in one transaction.
const tables = `
	CREATE TABLE IF NOT EXISTS chain_tasks (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, waits_for int NOT NULL, done boolean NOT NULL DEFAULT false) WITH (fillfactor = 80);
	CREATE INDEX IF NOT EXISTS chain_tasks_open ON chain_tasks (id) WHERE NOT done;
	CREATE TABLE IF NOT EXISTS chain_results (task bigint, step int, result jsonb NOT NULL, PRIMARY KEY (task, step))`

type chain struct {
	client *river.Client[pgx.Tx]
	pool   *pgxpool.Pool
	asks   *pgxpool.Pool
}

// stepArgs is a step of a task. Steps are numbered: a chain 0, 1, …; of a fan, 0
// is the first, Last the last, and those between run side by side.
type stepArgs struct {
	Task int64 `json:"task"`
	Step int   `json:"step"`
	Last int   `json:"last"`
	Fan  bool  `json:"fan,omitempty"`
}

func (stepArgs) Kind() string { return "step" }

type stepWorker struct {
	river.WorkerDefaults[stepArgs]
	pool   *pgxpool.Pool
	client *river.Client[pgx.Tx]
}

func (w *stepWorker) Work(ctx context.Context, job *river.Job[stepArgs]) error {
	return pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		a := job.Args
		if _, err := tx.Exec(ctx, `INSERT INTO chain_results (task, step, result) VALUES ($1, $2, $3)`, a.Task, a.Step, contest.Result); err != nil {
			return err
		}
		if _, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job); err != nil {
			return err
		}
		next := a
		next.Step++
		switch {
		case a.Step == a.Last:
			_, err := tx.Exec(ctx, `UPDATE chain_tasks SET done = true WHERE id = $1`, a.Task)
			return err
		case a.Fan && a.Step == 0:
			var jobs []river.InsertManyParams
			for ; next.Step < a.Last; next.Step++ {
				jobs = append(jobs, river.InsertManyParams{Args: next})
			}
			_, err := w.client.InsertManyFastTx(ctx, tx, jobs)
			return err
		case a.Fan:
			// The last thing before the commit: the siblings wait for this row's lock.
			var left int
			if err := tx.QueryRow(ctx, `UPDATE chain_tasks SET waits_for = waits_for - 1 WHERE id = $1 RETURNING waits_for`, a.Task).Scan(&left); err != nil || left > 0 {
				return err
			}
			next.Step = a.Last
		}
		_, err := w.client.InsertTx(ctx, tx, next, nil)
		return err
	})
}

func (c *chain) Prepare(context.Context, contest.Order) error { return nil }

func (c *chain) Enqueue(ctx context.Context, o contest.Order, n int) error {
	return pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		fan, last := o.Shape == contest.Fan || o.Shape == contest.Diamond, o.StepsPerTask()-1
		rows, err := tx.Query(ctx, `INSERT INTO chain_tasks (waits_for) SELECT $1 FROM generate_series(1, $2) RETURNING id`, last-1, n)
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return err
		}
		jobs := make([]river.InsertManyParams, n)
		for i, id := range ids {
			jobs[i].Args = stepArgs{Task: id, Last: last, Fan: fan}
		}
		_, err = c.client.InsertManyFastTx(ctx, tx, jobs)
		return err
	})
}

func (c *chain) Open(ctx context.Context, _ contest.Order) (open int, err error) {
	err = c.asks.QueryRow(ctx, `SELECT /* bench */ count(*) FROM chain_tasks WHERE NOT done`).Scan(&open)
	return open, err
}
