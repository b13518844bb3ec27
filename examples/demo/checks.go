package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/taskerhq/tasker"
)

// checks holds what is in the databases against what must be there. A check is
// a query for what contradicts it.
type checks struct {
	screen *screen
	pool   *pgxpool.Pool
	redis  *redis.Client
	failed int
	err    error // of a query: the checks after it are left out
}

func (c *checks) add(text string, contradictions []string) {
	c.screen.item(len(contradictions) == 0, text, "")
	if len(contradictions) == 0 {
		return
	}
	c.failed++
	const most = 5
	for i, contradiction := range contradictions {
		if i == most {
			c.screen.line(fmt.Sprintf("      and %d more", len(contradictions)-most))
			break
		}
		c.screen.line("      " + contradiction)
	}
}

// none checks that a query, whose rows are text, finds nothing.
func (c *checks) none(ctx context.Context, text, sql string, args ...any) {
	if c.err == nil {
		c.add(text, c.texts(ctx, sql, args...))
	}
}

func (c *checks) texts(ctx context.Context, sql string, args ...any) []string {
	rows, err := c.pool.Query(ctx, sql, args...)
	if err != nil {
		c.err = fmt.Errorf("check the outcome: %w", err)
		return nil
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		c.err = fmt.Errorf("check the outcome: %w", err)
	}
	return list
}

// eventually is for what the last task to finish may leave behind for a moment.
func (c *checks) eventually(ctx context.Context, text string, look func() []string) {
	if c.err != nil {
		return
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		contradictions := look()
		if len(contradictions) == 0 || c.err != nil || time.Now().After(deadline) {
			c.add(text, contradictions)
			return
		}
		if c.err = pause(ctx, nil, 50*time.Millisecond); c.err != nil {
			return
		}
	}
}

// outcome checks what the tasks have led to. The error is that of a query.
func (c *checks) outcome(ctx context.Context, all []order) error {
	placed := committed(all)
	var undone []order
	for _, o := range all {
		if !o.Committed {
			undone = append(undone, o)
		}
	}
	with := func(state tasker.TaskState) []order {
		return slices.DeleteFunc(slices.Clone(placed), func(o order) bool { return o.Expect.Task != state })
	}
	good, bad := with(tasker.TaskComplete), with(tasker.TaskError)
	recovering := slices.DeleteFunc(slices.Clone(good), func(o order) bool { return o.Expect.ChargeAttempts == 1 })
	if len(undone) == 0 || len(good) == 0 || len(bad) == 0 || len(recovering) == 0 {
		c.add("the orders are of all kinds", []string{"without a rolled back, a declined and a recovering one the checks below prove nothing"})
	}
	goodOrders, badOrders := ids(good, orderID), ids(bad, orderID)

	c.none(ctx, fmt.Sprintf("%s committed, and exactly %s: one each", count(placed, "order"), count(placed, "task")), `
		SELECT CASE WHEN p.order_id IS NULL THEN format('task %s belongs to no order that was committed', t.task_id)
		            WHEN t.task_id IS NULL THEN format('order %s has no task %s', p.order_id, p.task_id)
		            ELSE format('order %s is not there, or its task %s is about another one', p.order_id, p.task_id) END
		FROM unnest($1::bigint[], $2::bigint[]) AS p(order_id, task_id)
		FULL JOIN tasker.tasks t USING (task_id)
		LEFT JOIN public.orders o ON o.id = p.order_id
		WHERE p.order_id IS NULL OR t.task_id IS NULL OR o.id IS NULL OR (t.context ->> 'order_id')::bigint <> p.order_id
		UNION ALL
		SELECT format('there is an order %s that was not committed', o.id) FROM public.orders o WHERE o.id <> ALL ($1::bigint[])`,
		ids(placed, orderID), ids(placed, taskID))

	c.none(ctx, fmt.Sprintf("%s rolled back: no order, no task, no step, no event, no River job", count(undone, "order")), `
		SELECT format('order %s is there', id) FROM public.orders WHERE id = ANY ($1::bigint[])
		UNION ALL SELECT format('task %s is there', task_id) FROM tasker.tasks WHERE task_id = ANY ($2::bigint[])
		UNION ALL SELECT format('step %s of task %s is there', name, task_id) FROM tasker.steps WHERE task_id = ANY ($2::bigint[])
		UNION ALL SELECT format('event %s of task %s is there', name, task_id) FROM tasker.events WHERE task_id = ANY ($2::bigint[])
		UNION ALL SELECT format('River job %s of task %s is there', id, args ->> 'task_id') FROM tasker.river_job
		          WHERE (args ->> 'task_id')::bigint = ANY ($2::bigint[])`,
		ids(undone, orderID), ids(undone, taskID))

	c.none(ctx, fmt.Sprintf("%s complete, %d in error: as their cards would have it", count(good, "task"), len(bad)), `
		SELECT format('task %s is %s, not %s', t.task_id, t.state, e.state)
		FROM unnest($1::bigint[], $2::text[]) AS e(task_id, state) JOIN tasker.tasks t USING (task_id) WHERE t.state <> e.state`,
		ids(placed, taskID), values(placed, func(o order) string { return string(o.Expect.Task) }))

	c.none(ctx, fmt.Sprintf("declined: charge in error after 1 attempt, code %s", strings.Join(values(bad, errorCode), ", ")), `
		SELECT format('charge of task %s is %s after %s attempts, code %s', s.task_id, s.state, s.attempts, coalesce(s.error ->> 'code', 'none'))
		FROM unnest($1::bigint[], $2::text[]) AS e(task_id, code) JOIN tasker.steps s USING (task_id)
		WHERE s.name = 'charge' AND (s.state <> 'error' OR s.attempts <> 1 OR s.error ->> 'code' IS DISTINCT FROM e.code)`,
		ids(bad, taskID), values(bad, errorCode))

	var after []string
	if c.err == nil {
		after = c.texts(ctx, later+`SELECT s.name FROM later JOIN tasker.steps s USING (step_id) GROUP BY s.name ORDER BY min(s.position)`, ids(bad, taskID))
	}
	c.none(ctx, fmt.Sprintf("declined: what follows (%s) is still pending; no charge, no shipment, no notification", strings.Join(after, ", ")), later+`
		SELECT format('step %s of task %s is %s', s.name, s.task_id, s.state) FROM later JOIN tasker.steps s USING (step_id) WHERE s.state <> 'pending'
		UNION ALL SELECT 'no step follows charge' WHERE NOT EXISTS (SELECT FROM later)
		UNION ALL SELECT format('order %s is %s', id, state) FROM public.orders WHERE id = ANY ($2::bigint[]) AND state <> 'payment_failed'
		UNION ALL SELECT format('order %s has charge %s', order_id, id) FROM public.charges WHERE order_id = ANY ($2::bigint[])
		UNION ALL SELECT format('order %s has shipment %s', order_id, id) FROM public.shipments WHERE order_id = ANY ($2::bigint[])
		UNION ALL SELECT format('order %s has notification %s', order_id, id) FROM public.notifications WHERE order_id = ANY ($2::bigint[])`,
		ids(bad, taskID), badOrders)

	c.none(ctx, fmt.Sprintf("%s recovered: charge took %s attempts; no other step took more than one",
		count(recovering, "order"), strings.Join(values(recovering, attempts), ", ")), `
		SELECT format('step %s of task %s took %s attempts, not %s', s.name, s.task_id, s.attempts, e.attempts)
		FROM unnest($1::bigint[], $2::int[]) AS e(task_id, attempts) JOIN tasker.steps s USING (task_id)
		WHERE s.name = 'charge' AND s.attempts <> e.attempts
		UNION ALL
		SELECT format('step %s of task %s is %s after %s attempts', s.name, s.task_id, s.state, s.attempts)
		FROM tasker.steps s WHERE s.name <> 'charge' AND s.attempts <> CASE s.state WHEN 'pending' THEN 0 ELSE 1 END`,
		ids(placed, taskID), ids(placed, func(o order) int64 { return int64(o.Expect.ChargeAttempts) }))

	c.none(ctx, "the payment gateway was asked once per attempt, and took each order's money once", `
		SELECT format('%s requests for %s attempts', r.n, s.n)
		FROM (SELECT count(*) AS n FROM public.gateway_requests) r, (SELECT sum(attempts) AS n FROM tasker.steps WHERE name = 'charge') s
		WHERE r.n <> s.n
		UNION ALL
		SELECT format('payment %s: %s taken, %s in charges', reference, coalesce(p.amount_cents, 0), coalesce(c.amount_cents, 0))
		FROM public.gateway_payments p FULL JOIN public.charges c USING (reference) WHERE p.amount_cents IS DISTINCT FROM c.amount_cents
		UNION ALL
		SELECT format('order %s costs %s, charge %s is of %s', o.id, o.total_cents, c.id, c.amount_cents)
		FROM public.charges c JOIN public.orders o ON o.id = c.order_id WHERE o.total_cents <> c.amount_cents`)

	c.none(ctx, fmt.Sprintf("%s fulfilled: one charge, one shipment, one notification each", count(good, "order")), `
		SELECT format('order %s is %s and has %s charges, %s shipments, %s notifications', o.id, o.state, n.charges, n.shipments, n.notifications)
		FROM public.orders o
		CROSS JOIN LATERAL (SELECT (SELECT count(*) FROM public.charges x WHERE x.order_id = o.id) AS charges,
		                           (SELECT count(*) FROM public.shipments x WHERE x.order_id = o.id) AS shipments,
		                           (SELECT count(*) FROM public.notifications x WHERE x.order_id = o.id) AS notifications) n
		WHERE o.id = ANY ($1::bigint[]) AND (o.state, n.charges, n.shipments, n.notifications) IS DISTINCT FROM ('fulfilled', 1, 1, 1)
		ORDER BY o.id`, goodOrders)

	c.none(ctx, "the stock agrees with the reservations, and these with the orders", `
		SELECT format('%s: %s reserved in stock, %s in reservations, %s ordered', sku, i.reserved, r.quantity, o.quantity)
		FROM public.inventory_items i
		LEFT JOIN (SELECT sku, sum(quantity) AS quantity FROM public.reservations GROUP BY sku) r USING (sku)
		LEFT JOIN (SELECT sku, sum(quantity) AS quantity FROM public.order_items GROUP BY sku) o USING (sku)
		WHERE i.reserved <> coalesce(r.quantity, 0) OR i.reserved <> coalesce(o.quantity, 0)`)

	c.none(ctx, "every step that completed says so in exactly one event", `
		SELECT format('step %s of task %s has %s events step.completed', s.name, s.task_id, count(e.event_id))
		FROM tasker.steps s LEFT JOIN tasker.events e ON e.step_id = s.step_id AND e.name = 'step.completed'
		GROUP BY s.step_id HAVING count(e.event_id) <> CASE s.state WHEN 'complete' THEN 1 ELSE 0 END`)

	c.eventually(ctx, "nothing is outstanding: no step under way, no attempt at Sidekiq, no River job of a task", func() []string {
		return c.texts(ctx, `
			SELECT format('step %s of task %s is %s', name, task_id, state) FROM tasker.steps WHERE state IN ('enqueued', 'in_progress', 'waiting_for_retry')
			UNION ALL SELECT format('attempt %s of step %s is at Sidekiq', attempt, step_id) FROM tasker.dispatches
			UNION ALL SELECT format('River job %s of task %s is %s', id, args ->> 'task_id', state) FROM tasker.river_job
			          WHERE kind = 'task_execution' AND state NOT IN ('completed', 'cancelled')`)
	})

	c.eventually(ctx, "nothing is left in Redis: no job queued, scheduled, to be retried, or dead", func() []string { return c.leftInRedis(ctx) })
	return c.err
}

// later are the steps that depend on charge, directly or not, of the tasks $1.
const later = `
	WITH RECURSIVE later AS (
		SELECT step_id FROM tasker.step_dependencies WHERE task_id = ANY ($1::bigint[]) AND depends_on_name = 'charge'
		UNION SELECT d.step_id FROM tasker.step_dependencies d JOIN later ON d.depends_on_step_id = later.step_id
	) `

func (c *checks) leftInRedis(ctx context.Context) []string {
	queues, err := c.redis.SMembers(ctx, "queues").Result()
	if err != nil {
		c.err = fmt.Errorf("look into Redis: %w", err)
		return nil
	}
	var left []string
	look := func(name string, n int64, err error) {
		if err != nil {
			c.err = errors.Join(c.err, fmt.Errorf("look into Redis: %w", err))
		}
		if n > 0 {
			left = append(left, fmt.Sprintf("%s holds %d jobs", name, n))
		}
	}
	for _, q := range queues {
		n, err := c.redis.LLen(ctx, "queue:"+q).Result()
		look("queue "+q, n, err)
	}
	for _, set := range []string{"schedule", "retry", "dead"} {
		n, err := c.redis.ZCard(ctx, set).Result()
		look("set "+set, n, err)
	}
	return left
}

// stops checks that a process ends in good order when it is asked to.
func (c *checks) stops(name string, process *child) {
	began := time.Now()
	err := c.screen.wait("SIGTERM to "+name, func() error { return process.stop(stopWithin) })
	var contradictions []string
	if err != nil {
		contradictions = []string{err.Error()}
	} else if process.Err() != nil {
		contradictions = []string{process.status()}
	}
	c.add(fmt.Sprintf("%s exits with 0 on SIGTERM, after %s", name, seconds(time.Since(began))), contradictions)
}

func (c *checks) verdict() error {
	if c.failed == 0 {
		return nil
	}
	return fmt.Errorf("checks that failed: %d", c.failed)
}

func orderID(o order) int64    { return o.OrderID }
func taskID(o order) int64     { return o.TaskID }
func errorCode(o order) string { return o.Expect.ErrorCode }
func attempts(o order) string  { return fmt.Sprint(o.Expect.ChargeAttempts) }

func ids(orders []order, id func(order) int64) []int64 { return values(orders, id) }

func values[T any](orders []order, of func(order) T) []T {
	list := make([]T, len(orders)) // not nil: an empty array to Postgres, not NULL
	for i, o := range orders {
		list[i] = of(o)
	}
	return list
}

func count(orders []order, what string) string {
	if len(orders) == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", len(orders), what)
}
