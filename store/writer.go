package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/crash"
)

// Unit is what one loop writes at once: results of its last wave, claims of the
// next, and what becomes of the task. All of it is written, or nothing.
type Unit struct {
	Task    int64
	Epoch   int
	State   tasker.TaskState // empty: stays as it is
	Error   json.RawMessage  // with State error: what blocked the task
	Release bool             // give the task up: nobody owns it afterwards
	Rerun   *time.Duration   // ask for a River job after so long
	Steps   []StepWrite      // a step at most once
	Settled []int64          // steps whose reported failure is hereby taken
	Parked  []int64          // steps whose report shall insert a River job from now on
	Gates   int64            // the version of the gates that its claims know
	Needs   []int64          // steps that its claims depend on, other than those it completes itself

	Denied []int64 // set by Write: claims that a gate did not let pass; all else is written
}

// StepWrite is one transition of a step. Was and WasAttempt are what the loop
// saw: if the row differs, the whole unit is refused.
type StepWrite struct {
	Step       int64
	Was        tasker.StepState
	WasAttempt int
	State      tasker.StepState
	Attempt    int
	Losses     int
	Result     json.RawMessage
	Error      json.RawMessage
	RetryIn    time.Duration  // with StepWaitingForRetry
	Queue      string         // with StepEnqueued
	Ticket     int64          // with StepEnqueued: what the process that starts it has to show
	StartIn    tasker.Seconds // with StepEnqueued: it fails if no process starts it within; 0: never
	Gates      []int32        // of a claim: the gates that it has to pass
}

// Writer writes the units of all the loops of one worker in few transactions.
//
// A transaction is one call of tasker.write_batch with the units that have come
// together while the last call was under way. When the function refuses, it
// rolls back everything. Mostly it says which tasks it is about: their loops
// are told, and the rest is sent again. Where it can't say, each unit is sent
// alone. A worker that is alone has two calls side by side: one is being built
// and received while the other commits. Where there are more, one each does that,
// and groups stay large. Units of one task seldom meet, as its loop waits for each; where
// they do (two loops, one after the other), they are sent one by one.
type Writer struct {
	// Wrote is told of each transaction; nil: nobody is.
	Wrote func(units int, took time.Duration)

	store  *Store
	worker int64
	ctx    context.Context
	group  *group[*Unit, struct{}]
}

// NewWriter returns a writer for the worker. It gives up on a Postgres that is
// away when ctx ends.
func (s *Store) NewWriter(ctx context.Context, worker int64) *Writer {
	w := &Writer{store: s, worker: worker, ctx: ctx}
	w.group = newGroup(s.Groups.share(1), s.Groups.WithDefaults().Batch, w.flush)
	return w
}

// Write returns when the unit is committed, or refused: ErrStale,
// ErrWorkerDead, or the error of a database that refuses this unit.
func (w *Writer) Write(ctx context.Context, u *Unit) error {
	_, err := w.group.do(ctx, u)
	return err
}

// Expect says that about n loops have been woken together and will write soon,
// so that they write together.
func (w *Writer) Expect(n int) { w.group.expect(n) }

// Among says how many workers are alive, this one included.
func (w *Writer) Among(workers int) { w.group.setLimit(w.store.Groups.share(workers)) }

func (w *Writer) flush(units []*Unit) []outcome[struct{}] {
	outcomes := make([]outcome[struct{}], len(units))
	at := make(map[int64]int, len(units)) // task → its place in units
	var again []int                       // places of units whose task has one already
	rest := make([]*Unit, 0, len(units))
	for i, u := range units {
		if _, there := at[u.Task]; there {
			again = append(again, i)
			continue
		}
		at[u.Task] = i
		rest = append(rest, u)
	}
	slices.SortFunc(rest, func(a, b *Unit) int { return cmp.Compare(a.Task, b.Task) })
	w.settle(rest, func(u *Unit, err error) { outcomes[at[u.Task]].err = err })
	for _, i := range again {
		outcomes[i] = w.flush(units[i : i+1])[0]
	}
	return outcomes
}

// settle writes units of different tasks, and says which were refused.
func (w *Writer) settle(rest []*Unit, refused func(*Unit, error)) {
	for len(rest) > 0 {
		err := w.send(rest)
		if err == nil {
			return
		}
		var stale *staleError
		var named []int64
		if errors.As(err, &stale) {
			named = ids(stale.tasks)
		}
		blamed := func(u *Unit) bool { return slices.Contains(named, u.Task) }
		if len(rest) > 1 && slices.ContainsFunc(rest, blamed) {
			for _, u := range rest {
				if blamed(u) {
					refused(u, err)
				}
			}
			rest = slices.DeleteFunc(rest, blamed)
			continue
		}
		alone := len(rest) == 1 || errors.Is(err, ErrWorkerDead) || w.ctx.Err() != nil
		for _, u := range rest {
			if !alone {
				err = w.send([]*Unit{u})
			}
			if err != nil {
				refused(u, err)
			}
		}
		return
	}
}

// ids reads a list of numbers, as the database's functions write them.
func ids(list string) []int64 {
	var numbers []int64
	for word := range strings.SplitSeq(list, ",") {
		if n, err := strconv.ParseInt(word, 10, 64); err == nil {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// send makes one call, again and again while the reason is temporary.
func (w *Writer) send(units []*Unit) error {
	args := encode(w.worker, units)
	crash.At(crash.BatchReady)
	began := time.Now()
	for n := 1; ; n++ {
		var denied []int64
		err := w.store.pool.QueryRow(w.ctx, writeBatch, args...).Scan(&denied)
		if err == nil {
			crash.At(crash.BatchWritten)
			if w.Wrote != nil {
				w.Wrote(len(units), time.Since(began))
			}
			deny(units, denied)
			return nil
		}
		if !temporary(err, n) {
			return translate(err)
		}
		select {
		case <-time.After(patience(n)):
		case <-w.ctx.Done():
			return errors.Join(w.ctx.Err(), err)
		}
	}
}

const writeBatch = `SELECT tasker.write_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26)`

// encode lays the units out as the columns of tasker.write_batch.
func encode(worker int64, units []*Unit) []any {
	n, steps := len(units), 0
	for _, u := range units {
		steps += len(u.Steps)
	}
	var (
		tasks, epochs     = make([]int64, 0, n), make([]int32, 0, n)
		states, errs      = make([]*string, 0, n), make([]*string, 0, n)
		release, rerun    = make([]bool, 0, n), make([]*float64, 0, n)
		settled, parked   = []int64{}, []int64{}
		rows              = make([]row, 0, steps)
		ids, of           = make([]int64, 0, steps), make([]int64, 0, steps)
		was, state        = make([]string, 0, steps), make([]string, 0, steps)
		wasAttempt        = make([]int32, 0, steps)
		attempt, losses   = make([]int32, 0, steps), make([]int32, 0, steps)
		results, failures = make([]*string, 0, steps), make([]*string, 0, steps)
		retryIn           = make([]*float64, 0, steps)
		queues            = make([]*string, 0, steps)
		startIn           = make([]*float64, 0, steps)
		tickets           = make([]*int64, 0, steps)
		gated, gates      = []int64{}, []int32{}
		needs             = []int64{}
		seen              *int64
	)
	for _, u := range units {
		tasks, epochs = append(tasks, u.Task), append(epochs, int32(u.Epoch))
		states, errs = append(states, text(string(u.State))), append(errs, document(u.Error))
		release = append(release, u.Release)
		var in *float64
		if u.Rerun != nil {
			in = new(u.Rerun.Seconds())
		}
		rerun = append(rerun, in)
		settled, parked = append(settled, u.Settled...), append(parked, u.Parked...)
		needs = append(needs, u.Needs...)
		for i := range u.Steps {
			rows = append(rows, row{u.Task, &u.Steps[i]})
			// The oldest that any of them knows: the gates may have been read anew
			// while another loop was deciding.
			if u.Steps[i].State.Outstanding() && (seen == nil || u.Gates < *seen) {
				seen = &u.Gates
			}
		}
	}
	// The lock order: inside a table by ascending id.
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.step.Step, b.step.Step) })
	for _, r := range rows {
		w := r.step
		ids, of = append(ids, w.Step), append(of, r.task)
		was, wasAttempt = append(was, string(w.Was)), append(wasAttempt, int32(w.WasAttempt))
		state, attempt, losses = append(state, string(w.State)), append(attempt, int32(w.Attempt)), append(losses, int32(w.Losses))
		results, failures = append(results, document(w.Result)), append(failures, document(w.Error))
		var in *float64
		if w.State == tasker.StepWaitingForRetry {
			in = new(w.RetryIn.Seconds())
		}
		retryIn = append(retryIn, in)
		queues, startIn = append(queues, text(w.Queue)), append(startIn, seconds(w.StartIn))
		var ticket *int64
		if w.Ticket != 0 {
			ticket = &w.Ticket
		}
		tickets = append(tickets, ticket)
		for _, g := range w.Gates {
			gated, gates = append(gated, w.Step), append(gates, g)
		}
	}
	return []any{worker, tasks, epochs, states, errs, release, rerun,
		ids, of, was, wasAttempt, state, attempt, losses, results, failures, retryIn, queues, settled, parked,
		startIn, gated, gates, seen, needs, tickets}
}

// deny tells the units which of their claims were denied.
func deny(units []*Unit, denied []int64) {
	if len(denied) == 0 {
		return
	}
	was := make(map[int64]bool, len(denied))
	for _, step := range denied {
		was[step] = true
	}
	for _, u := range units {
		for i := range u.Steps {
			if step := u.Steps[i].Step; was[step] {
				u.Denied = append(u.Denied, step)
			}
		}
	}
}

type row struct {
	task int64
	step *StepWrite
}

// text is s, or NULL for the empty string.
func text(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// document is a JSON document as text, or NULL for none.
func document(d json.RawMessage) *string {
	if d == nil {
		return nil
	}
	s := string(d)
	return &s
}
