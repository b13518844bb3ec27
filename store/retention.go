package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Retention is how long what is finished is kept; 0: for ever.
type Retention struct {
	Tasks  time.Duration // since they ended
	Events time.Duration // since the end of their day
}

// PruneOptions are what only an operator may ask for.
type PruneOptions struct {
	Failed            bool // tasks in error too
	IgnoreSubscribers bool // they lose what they have not read
}

// Pruned is what one transaction removed: tasks, or events of a partition.
type Pruned struct {
	Tasks     int64
	Partition string
	Bytes     int64 // of a partition that was dropped
	Events    int64 // rows that were deleted, of events_default
}

// ErrPruning says that somebody else is pruning.
var ErrPruning = errors.New("somebody else is pruning")

const (
	// prunePage is how many tasks a transaction looks at.
	prunePage = 1000
	// A partition can be dropped when no transaction that writes events lasts longer
	// than 100 ms; it is tried so often, with so much time between for them to go on.
	dropTries = 50
	dropPause = 200 * time.Millisecond
)

// KeepEventDays makes the event partitions of today and the next three days, and
// notes of which days no more events can come.
func (s *Store) KeepEventDays(ctx context.Context) error {
	if _, err := s.pool.Exec(ctx, `SELECT tasker.close_event_days()`); err != nil {
		return fmt.Errorf("close days of events: %w", err)
	}
	if _, err := s.pool.Exec(ctx, `SELECT tasker.make_event_days()`); err != nil && !hasCode(err, "55P03") { // locked: later then
		return fmt.Errorf("make the event partitions of the next days: %w", err)
	}
	return nil
}

// Prune removes what is older, in short transactions, each of which it reports:
// when it is interrupted, what is done is done. ErrPruning: somebody else does it.
func (s *Store) Prune(ctx context.Context, keep Retention, o PruneOptions, report func(Pruned)) error {
	if keep.Tasks > 0 {
		if err := s.pruneTasks(ctx, keep.Tasks, o.Failed, report); err != nil {
			return fmt.Errorf("prune tasks: %w", err)
		}
	}
	if keep.Events > 0 {
		if err := s.pruneEvents(ctx, keep.Events, o.IgnoreSubscribers, report); err != nil {
			return fmt.Errorf("prune events: %w", err)
		}
	}
	return nil
}

func (s *Store) pruneTasks(ctx context.Context, age time.Duration, failed bool, report func(Pruned)) error {
	for next := new(int64); next != nil; {
		var pruned int64
		err := s.pool.QueryRow(ctx, `SELECT pruned, page_end FROM tasker.prune_tasks(now() - $1::interval, $2, $3, $4)`,
			age, prunePage, *next, failed).Scan(&pruned, &next)
		switch {
		case hasCode(err, "55006"):
			return ErrPruning
		case err != nil:
			return err
		case pruned > 0:
			report(Pruned{Tasks: pruned})
		}
	}
	return nil
}

func (s *Store) pruneEvents(ctx context.Context, age time.Duration, ignoreSubscribers bool, report func(Pruned)) error {
	for tries := 1; ; {
		var partition *string
		var rows, bytes *int64
		err := s.pool.QueryRow(ctx, `SELECT partition, rows, bytes FROM tasker.prune_events(now() - $1::interval, $2)`,
			age, ignoreSubscribers).Scan(&partition, &rows, &bytes)
		switch {
		case hasCode(err, "55006"):
			return ErrPruning
		case hasCode(err, "55P03") && tries < dropTries:
			tries++
			select {
			case <-time.After(dropPause):
			case <-ctx.Done():
				return ctx.Err()
			}
		case err != nil:
			return err
		case partition == nil:
			return nil
		default:
			tries = 1
			report(Pruned{Partition: *partition, Bytes: orZero(bytes), Events: orZero(rows)})
		}
	}
}

func orZero(n *int64) int64 {
	if n == nil {
		return 0
	}
	return *n
}

func hasCode(err error, code string) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == code
}

// OldEvents is a partition that is wholly older than is asked for, or
// events_default with the older of its rows.
type OldEvents struct {
	Partition string  `json:"partition"`
	Bytes     *int64  `json:"bytes"`   // null: only rows of it are old
	HeldBy    *string `json:"held_by"` // the subscriber that has not read it
}

// OldEvents lists partitions of events that are older, the oldest first.
func (s *Store) OldEvents(ctx context.Context, age time.Duration) ([]OldEvents, error) {
	rows, err := s.pool.Query(ctx, `SELECT partition, bytes, held_by FROM tasker.old_events(now() - $1::interval)`, age)
	if err != nil {
		return nil, fmt.Errorf("list old events: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[OldEvents])
	if err != nil {
		return nil, fmt.Errorf("list old events: %w", err)
	}
	return list, nil
}

// CountOldTasks says how many tasks Prune would delete.
func (s *Store) CountOldTasks(ctx context.Context, age time.Duration, failed bool) (n int64, err error) {
	err = s.pool.QueryRow(ctx, `SELECT count(*) FROM tasker.old_tasks(now() - $1::interval, 2147483647, 0, $2) WHERE old`, age, failed).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count old tasks: %w", err)
	}
	return n, nil
}
