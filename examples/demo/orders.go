package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker"
)

// order is what bin/place_orders says about one order.
type order struct {
	OrderID   int64       `json:"order_id"`
	TaskID    int64       `json:"task_id"`
	Committed bool        `json:"committed"`
	Expect    expectation `json:"expect"` // of a committed one
}

// expectation is what its card leads to.
type expectation struct {
	Task           tasker.TaskState `json:"task"`
	ChargeAttempts int              `json:"charge_attempts"`
	ErrorCode      string           `json:"error_code"`
}

// fulfil places the orders, and shows how their tasks get on until the last
// one has finished.
func (d *demo) fulfil(ctx context.Context) ([]order, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, finishWithin, fmt.Errorf("the tasks did not finish within %s", finishWithin))
	defer cancel()

	var orders []order
	placed := make(chan error, 1)
	go func() {
		var err error
		orders, err = d.placeOrders(ctx)
		placed <- err
	}()

	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	expected, said := -1, time.Time{}
	defer d.screen.clear()
	for {
		select {
		case err := <-placed:
			if err != nil {
				return nil, err
			}
			expected = len(committed(orders))
			d.screen.clear()
			d.screen.item(true, fmt.Sprintf("bin/place_orders: %d orders, %d committed with their tasks, %d rolled back",
				len(orders), expected, len(orders)-expected), seconds(time.Since(began)))
		case <-ticker.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		p, err := d.progress(ctx)
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, err
		}
		if expected >= 0 && p.Finished >= expected {
			d.screen.clear()
			d.screen.item(true, fmt.Sprintf("%d tasks finished, %d retries", p.Finished, p.Retries), seconds(time.Since(began)))
			return orders, nil
		}
		text := fmt.Sprintf("%s %d/%d tasks finished   %d/%d steps   %d retries   %s", bar(p.StepsDone, p.Steps, 24),
			p.Finished, p.Tasks, p.StepsDone, p.Steps, p.Retries, seconds(time.Since(began)))
		if p.Tasks == 0 {
			text = "bin/place_orders starts   " + seconds(time.Since(began))
		}
		d.screen.redraw(text)
		if !d.screen.live && p.Tasks > 0 && time.Since(said) >= time.Second {
			d.screen.line("    " + text)
			said = time.Now()
		}
	}
}

func (d *demo) placeOrders(ctx context.Context) ([]order, error) {
	var output bytes.Buffer
	if err := d.tool(ctx, "place_orders", &output, filepath.Join(d.app, "bin", "place_orders"), "-o", "json"); err != nil {
		return nil, err
	}
	var orders []order
	for decoder := json.NewDecoder(&output); ; {
		var o order
		switch err := decoder.Decode(&o); {
		case errors.Is(err, io.EOF):
			return orders, nil
		case err != nil:
			return nil, fmt.Errorf("what bin/place_orders printed: %w", err)
		}
		orders = append(orders, o)
	}
}

func committed(orders []order) []order {
	var list []order
	for _, o := range orders {
		if o.Committed {
			list = append(list, o)
		}
	}
	return list
}

type progress struct{ Tasks, Finished, Steps, StepsDone, Retries int }

func (d *demo) progress(ctx context.Context) (progress, error) {
	rows, err := d.pool.Query(ctx, `
		SELECT count(*) AS tasks,
		       count(*) FILTER (WHERE state NOT IN ('pending', 'in_progress')) AS finished,
		       coalesce(sum(steps_total), 0) AS steps,
		       coalesce(sum(steps_satisfied), 0) AS steps_done,
		       (SELECT coalesce(sum(attempts - 1) FILTER (WHERE attempts > 1), 0) FROM tasker.steps) AS retries
		FROM tasker.task_summaries`)
	if err != nil {
		return progress{}, fmt.Errorf("read the progress: %w", err)
	}
	p, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[progress])
	if err != nil {
		return progress{}, fmt.Errorf("read the progress: %w", err)
	}
	return p, nil
}

func (d *demo) printTasks(ctx context.Context) error {
	type row struct {
		TaskID, OrderID                        int64
		Customer                               string
		State                                  tasker.TaskState
		StepsSatisfied, StepsTotal, AttemptSum int
		Duration                               time.Duration
		Trouble                                string
	}
	result, err := d.pool.Query(ctx, `
		SELECT t.task_id, o.id AS order_id, o.customer, t.state, t.steps_satisfied, t.steps_total, t.attempts AS attempt_sum, coalesce(t.duration, now() - t.created_at) AS duration,
		       coalesce((SELECT string_agg(s.name || ': ' || (s.error ->> 'message') || coalesce(' (' || (s.error ->> 'code') || ')', ''), '; ' ORDER BY s.position)
		                 FROM tasker.steps s WHERE s.task_id = t.task_id AND s.error IS NOT NULL), '') AS trouble
		FROM tasker.task_summaries t
		JOIN tasker.tasks c USING (task_id)
		JOIN public.orders o ON o.id = (c.context ->> 'order_id')::bigint
		ORDER BY t.task_id`)
	if err != nil {
		return fmt.Errorf("read the tasks: %w", err)
	}
	tasks, err := pgx.CollectRows(result, pgx.RowToStructByName[row])
	if err != nil {
		return fmt.Errorf("read the tasks: %w", err)
	}
	table := [][]string{{"TASK", "ORDER", "CUSTOMER", "STATE", "STEPS", "ATTEMPTS", "DURATION", "TROUBLE ON THE WAY"}}
	for _, t := range tasks {
		table = append(table, []string{
			strconv.FormatInt(t.TaskID, 10), strconv.FormatInt(t.OrderID, 10), t.Customer, string(t.State),
			fmt.Sprintf("%d/%d", t.StepsSatisfied, t.StepsTotal), strconv.Itoa(t.AttemptSum),
			fmt.Sprintf("%d ms", t.Duration.Milliseconds()), t.Trouble,
		})
	}
	d.screen.heading("Tasks")
	d.screen.table(table, func(cells []string, column int) string {
		switch {
		case column == 3 && cells[3] == string(tasker.TaskComplete):
			return green
		case column == 3:
			return red
		case column == 7:
			return yellow
		}
		return ""
	})
	return nil
}
