// Command enqueue measures what it costs to enqueue tasks of four steps by SQL:
// many in one INSERT … SELECT, and one per transaction from several connections,
// each against plain inserts into a table with the same columns, CHECKs and
// indexes, and no triggers. The two take turns, so that a noisy minute falls on
// both; nobody works the tasks. fsync and synchronous_commit are on. The CPU is
// that of all of Postgres, the WAL that of the tasks with their steps, events
// and jobs. Run it from the root of the repository, on a quiet machine:
//
//	go run ./bench/enqueue
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/bench/stage"
)

// All but the triggers; what the triggers find out is given.
const plain = `CREATE TABLE plain (LIKE tasker.tasks INCLUDING ALL) WITH (fillfactor = 80)`

var series = []struct{ name, many, one string }{
	{
		"plain table",
		`INSERT INTO plain (namespace, name, template_id, version, context) SELECT 'bench', 'four', 1, '0.1.0', jsonb_build_object('order_id', i) FROM generate_series(1, $1::int) i`,
		`INSERT INTO plain (namespace, name, template_id, version, context) VALUES ('bench', 'four', 1, '0.1.0', jsonb_build_object('order_id', $1::int))`,
	},
	{
		"tasks",
		`INSERT INTO tasker.tasks (namespace, name, context) SELECT 'bench', 'four', jsonb_build_object('order_id', i) FROM generate_series(1, $1::int) i`,
		`INSERT INTO tasker.tasks (namespace, name, context) VALUES ('bench', 'four', jsonb_build_object('order_id', $1::int))`,
	},
	{
		"enqueue_task", "",
		`SELECT tasker.enqueue_task('bench', 'four', jsonb_build_object('order_id', $1::int))`,
	},
}

func main() {
	rounds := flag.Int("rounds", 7, "runs of each series")
	many := flag.Int("many", 10_000, "tasks of one INSERT … SELECT")
	singles := flag.Int("singles", 4_000, "transactions per run of one task each")
	connections := flag.Int("connections", 8, "that insert single tasks")
	flag.Parse()
	stage.Main("enqueue", func(ctx context.Context) error { return measure(ctx, *rounds, *many, *singles, *connections) })
}

// cost of one run, per task.
type cost struct{ rate, cpu, wal float64 }

func measure(ctx context.Context, rounds, many, singles, connections int) (err error) {
	servers, err := stage.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, servers.Close()) }()
	if err := servers.Register(ctx, "four", stage.FourSteps); err != nil {
		return err
	}
	if _, err := servers.Pool.Exec(ctx, plain); err != nil {
		return err
	}
	conns := make([]*pgx.Conn, connections)
	for i := range conns {
		if conns[i], err = pgx.Connect(ctx, servers.DatabaseURL()); err != nil {
			return err
		}
		defer conns[i].Close(context.WithoutCancel(ctx))
	}
	bulk, single := make([][]cost, len(series)), make([][]cost, len(series))
	for round := range rounds + 1 {
		for i, x := range series {
			a, err := run(ctx, servers, many, func() error {
				if x.many == "" {
					return nil
				}
				_, err := conns[0].Exec(ctx, x.many, many)
				return err
			})
			if err != nil {
				return err
			}
			b, err := run(ctx, servers, singles, func() error { return share(ctx, conns, x.one, singles) })
			if err != nil {
				return err
			}
			if round > 0 { // the first one warms up
				bulk[i], single[i] = append(bulk[i], a), append(single[i], b)
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round, rounds)
	}
	fmt.Printf("%-24s %9s %9s %9s %10s %9s %7s\n", "tasks/s", "min", "median", "max", "CPU µs", "WAL bytes", "ratio")
	for i, x := range series {
		if x.many != "" {
			report(fmt.Sprintf("%s, %d at once", x.name, many), bulk[i], bulk[0])
		}
	}
	for i, x := range series {
		report(fmt.Sprintf("%s, %d conns", x.name, connections), single[i], single[0])
	}
	return nil
}

// run measures n tasks: their rate, and what Postgres used for each.
func run(ctx context.Context, servers *stage.Stage, n int, insert func() error) (cost, error) {
	before, err := wal(ctx, servers)
	if err != nil {
		return cost{}, err
	}
	cpu, begun := servers.CPU()["postgres"], time.Now()
	if err := insert(); err != nil {
		return cost{}, err
	}
	took, used := time.Since(begun), servers.CPU()["postgres"]-cpu
	after, err := wal(ctx, servers)
	return cost{
		rate: float64(n) / took.Seconds(),
		cpu:  float64(used.Microseconds()) / float64(n),
		wal:  (after - before) / float64(n),
	}, err
}

// share has the connections insert n tasks together, each in a transaction.
func share(ctx context.Context, conns []*pgx.Conn, sql string, n int) error {
	var all sync.WaitGroup
	errs := make([]error, len(conns))
	for i, conn := range conns {
		all.Go(func() {
			for j := i; j < n && errs[i] == nil; j += len(conns) {
				_, errs[i] = conn.Exec(ctx, sql, j)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// wal is where the log's end is, in bytes.
func wal(ctx context.Context, servers *stage.Stage) (bytes float64, err error) {
	err = servers.Pool.QueryRow(ctx, `SELECT (pg_current_wal_insert_lsn() - '0/0')::float8`).Scan(&bytes)
	return bytes, err
}

func report(name string, runs, plain []cost) {
	of := func(value func(i int) float64) stage.Spread {
		values := make([]float64, len(runs))
		for i := range runs {
			values[i] = value(i)
		}
		return stage.SpreadOf(values)
	}
	rate := of(func(i int) float64 { return runs[i].rate })
	cpu := of(func(i int) float64 { return runs[i].cpu })
	wal := of(func(i int) float64 { return runs[i].wal })
	ratio := of(func(i int) float64 { return runs[i].rate / plain[i].rate }) // of neighbours in time
	fmt.Printf("%-24s %9.0f %9.0f %9.0f %10.0f %9.0f %7.2f\n", name, rate.Least, rate.Median, rate.Most, cpu.Median, wal.Median, ratio.Median)
}
