package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/jackc/pgx/v5"
)

// report prints a table per workload: each engine's median and spread, and how
// the first engine's compares.
func report(out io.Writer, workloads []workload, engines []engine, figures []figure) {
	for _, w := range workloads {
		fmt.Fprintf(out, "\n%s: %s\n%-10s %10s %10s %10s %8s %8s | per step: %9s %9s %8s %10s %8s\n", w.name, w.title,
			w.unit, "min", "median", "max", "p99", "ratio", "engine µs", "postgres", "WAL B", "statements", "commits")
		var first float64
		for i, e := range engines {
			var of []figure
			for _, f := range figures {
				if f.Workload == w.name && f.Engine == e.name {
					of = append(of, f)
				}
			}
			if len(of) == 0 {
				continue
			}
			median := func(value func(figure) float64) float64 { return middle(of, value) }
			value := median(func(f figure) float64 { return f.Value })
			if i == 0 {
				first = value
			}
			ratio := first / value
			if w.unit == "ms" {
				ratio = value / first
			}
			slices.SortFunc(of, func(a, b figure) int { return int(a.Value*1000 - b.Value*1000) })
			fmt.Fprintf(out, "%-10s %10.1f %10.1f %10.1f %8.1f %8.2f |           %9.0f %9.0f %8.0f %10.3f %8.3f\n", e.name, of[0].Value, value, of[len(of)-1].Value,
				median(func(f figure) float64 { return f.P99 }), ratio,
				median(func(f figure) float64 { return micros(f.EngineCPU) }), median(func(f figure) float64 { return micros(f.Postgres) }),
				median(func(f figure) float64 { return f.WAL }), median(func(f figure) float64 { return f.Statements }),
				median(func(f figure) float64 { return f.Commits }))
		}
	}
}

// statements prints the top-level statements of an engine that took longest.
func statements(ctx context.Context, out io.Writer, meter *pgx.Conn, e engine, most, steps int) error {
	if most == 0 {
		return nil
	}
	rows, err := meter.Query(ctx, `SELECT calls, total_exec_time, wal_bytes::float8, left(regexp_replace(query, '\s+', ' ', 'g'), 120)
		FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query NOT LIKE '%pg_stat_statements%'
		ORDER BY total_exec_time DESC LIMIT $1`, most)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s, per step (%d steps):\n%10s %12s %12s %8s  statement\n", e.name, steps, "calls", "µs", "µs per call", "WAL B")
	var (
		calls  int
		ms     float64
		wal    float64
		query  string
		perUse = float64(steps)
	)
	_, err = pgx.ForEachRow(rows, []any{&calls, &ms, &wal, &query}, func() error {
		_, err := fmt.Fprintf(out, "%10.4f %12.1f %12.1f %8.0f  %s\n", float64(calls)/perUse, ms*1000/perUse, ms*1000/float64(calls), wal/perUse, query)
		return err
	})
	return err
}

// middle is the median of a value.
func middle(of []figure, value func(figure) float64) float64 {
	all := make([]float64, len(of))
	for i, f := range of {
		all[i] = value(f)
	}
	slices.Sort(all)
	return all[len(all)/2]
}
