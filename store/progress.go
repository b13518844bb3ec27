package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
)

// Progress is how far an attempt of a Go step has come.
type Progress struct {
	Step     int64
	Attempt  int
	Progress json.RawMessage
}

// Keeper writes the progress of one worker's attempts, many in one statement.
type Keeper struct {
	store  *Store
	worker int64
	ctx    context.Context
	group  *group[Progress, struct{}]
}

// NewKeeper returns a keeper for the worker.
func (s *Store) NewKeeper(ctx context.Context, worker int64) *Keeper {
	k := &Keeper{store: s, worker: worker, ctx: ctx}
	k.group = newGroup(1, s.Groups.WithDefaults().Batch, k.flush)
	return k
}

// Keep writes one attempt's progress, unless the attempt is not current any
// more. A *RefusedError: the database can't hold it. It is tried once: there
// will be another.
func (k *Keeper) Keep(ctx context.Context, p Progress) error {
	_, err := k.group.do(ctx, p)
	return err
}

func (k *Keeper) flush(list []Progress) []outcome[struct{}] {
	outcomes := make([]outcome[struct{}], len(list))
	err := k.send(list)
	var refused *RefusedError
	for i := range list {
		if outcomes[i].err = err; errors.As(err, &refused) && len(list) > 1 { // one of them is: which?
			outcomes[i].err = k.send(list[i : i+1])
		}
	}
	return outcomes
}

func (k *Keeper) send(list []Progress) error {
	list = slices.SortedFunc(slices.Values(list), func(a, b Progress) int { return cmp.Compare(a.Step, b.Step) })
	var (
		steps    = make([]int64, len(list))
		attempts = make([]int32, len(list))
		docs     = make([]string, len(list))
	)
	for i, p := range list {
		steps[i], attempts[i], docs[i] = p.Step, int32(p.Attempt), string(p.Progress)
	}
	_, err := k.store.pool.Exec(k.ctx, `SELECT tasker.record_progress($1, $2, $3, $4)`, k.worker, steps, attempts, docs)
	return translate(err)
}
