package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype/zeronull"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/safetext"
)

// EventCursor is how far a reader of events has got. What is in it is Postgres's
// affair; the zero value is before the first event.
type EventCursor string

// beginning is the cursor before the first event.
const beginning EventCursor = "(0,{},{},{})"

// EventBatch is what one look at the events found: events in order, at most as
// many as were asked for, and the cursor behind them.
type EventBatch struct {
	Events []tasker.Event
	Cursor EventCursor
}

// eventColumns are those of tasker.read_events and tasker.next_events, the cursor
// as text.
const eventColumns = `event_id, occurred_at, event, task_id, step_id, attempt, data, namespace, task_name, version, step, correlation_id, parent_task_id`

// Subscribe makes a durable subscriber, or gives it other patterns; its place it
// keeps. fromBeginning is for one that is new: what has happened before comes, too.
func (s *Store) Subscribe(ctx context.Context, name string, patterns []string, fromBeginning bool) error {
	start := "now"
	if fromBeginning {
		start = "beginning"
	}
	if _, err := s.pool.Exec(ctx, `SELECT tasker.subscribe($1, $2, $3)`, name, patterns, start); err != nil {
		return fmt.Errorf("subscribe %q: %w", name, translate(err))
	}
	return nil
}

// Unsubscribe drops a durable subscriber and its place. ErrNotFound: there is none.
func (s *Store) Unsubscribe(ctx context.Context, name string) error {
	var there bool
	if err := s.pool.QueryRow(ctx, `SELECT tasker.unsubscribe($1)`, name).Scan(&there); err != nil {
		return fmt.Errorf("unsubscribe %q: %w", name, translate(err))
	}
	if !there {
		return fmt.Errorf("unsubscribe %q: %w", name, ErrNotFound)
	}
	return nil
}

// ErrHeld says that another process reads for a subscriber.
var ErrHeld = errors.New("another process reads for this subscriber")

// NextEvents acknowledges the batch before, "" for none, and returns the next. With
// a channel, a batch without events has the next event notified there, as "events"
// and the name. ErrHeld: another holder reads.
func (s *Store) NextEvents(ctx context.Context, name, holder string, most int, acknowledged EventCursor, channel string) (*EventBatch, error) {
	batch, err := s.events(ctx, `SELECT `+eventColumns+`, cursor::text FROM tasker.next_events($1, $2, $3, $4::text::tasker.event_cursor, $5)`,
		name, holder, most, text(string(acknowledged)), text(channel))
	if err == nil && batch.Cursor == "" {
		err = ErrHeld
	}
	if err != nil {
		return nil, fmt.Errorf("read events for %q: %w", name, err)
	}
	return batch, nil
}

// AcknowledgeEvents moves a subscriber to the cursor of a batch, or to the last
// event of it that was handled; 0: all were. ErrHeld: another holder reads by now.
func (s *Store) AcknowledgeEvents(ctx context.Context, name, holder string, cursor EventCursor, upTo int64) error {
	var last *int64
	if upTo > 0 {
		last = &upTo
	}
	var held bool
	err := s.pool.QueryRow(ctx, `SELECT tasker.acknowledge_events($1, $2, $3::text::tasker.event_cursor, $4)`, name, holder, string(cursor), last).Scan(&held)
	if err == nil && !held {
		err = ErrHeld
	}
	if err != nil {
		return fmt.Errorf("acknowledge events for %q: %w", name, translate(err))
	}
	return nil
}

// HoldSubscriber keeps the subscriber for its holder for 5 seconds more. ErrHeld:
// another has it.
func (s *Store) HoldSubscriber(ctx context.Context, name, holder string) error {
	var held bool
	err := s.pool.QueryRow(ctx, `SELECT tasker.hold_subscriber($1, $2)`, name, holder).Scan(&held)
	if err == nil && !held {
		err = ErrHeld
	}
	if err != nil {
		return fmt.Errorf("hold subscriber %q: %w", name, translate(err))
	}
	return nil
}

// ReleaseSubscriber lets another process take over at once.
func (s *Store) ReleaseSubscriber(ctx context.Context, name, holder string) error {
	if _, err := s.pool.Exec(ctx, `SELECT tasker.release_subscriber($1, $2)`, name, holder); err != nil {
		return fmt.Errorf("release subscriber %q: %w", name, translate(err))
	}
	return nil
}

// EventFailed records the event at which a subscriber stands, and why. failure may be
// any text.
func (s *Store) EventFailed(ctx context.Context, name, holder string, event int64, failure string) error {
	if _, err := s.pool.Exec(ctx, `SELECT tasker.event_failed($1, $2, $3, $4)`, name, holder, event, safetext.MaskClean(failure, 2000)); err != nil {
		return fmt.Errorf("note the failure of %q: %w", name, translate(err))
	}
	return nil
}

// EventsSince is the cursor of a reader that wants what has happened since then,
// about; the zero time: only what comes from now on.
func (s *Store) EventsSince(ctx context.Context, at time.Time) (EventCursor, error) {
	var from *time.Time
	if !at.IsZero() {
		from = &at
	}
	var cursor EventCursor
	if err := s.pool.QueryRow(ctx, `SELECT tasker.event_cursor_since($1)::text`, from).Scan(&cursor); err != nil {
		return "", fmt.Errorf("find where events begin: %w", translate(err))
	}
	return cursor, nil
}

// ReadEvents returns the next events after a cursor that the caller keeps. With a
// channel, a batch without events has the next event notified there, as "events"
// and the sleeper's name.
func (s *Store) ReadEvents(ctx context.Context, after EventCursor, patterns []string, most int, sleeper, channel string) (*EventBatch, error) {
	if after == "" {
		after = beginning
	}
	batch, err := s.events(ctx, `SELECT `+eventColumns+`, next::text FROM tasker.read_events($1::text::tasker.event_cursor, $2, $3, $4, $5)`,
		string(after), patterns, most, text(sleeper), text(channel))
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return batch, nil
}

func (s *Store) events(ctx context.Context, sql string, args ...any) (*EventBatch, error) {
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, translate(err)
	}
	defer rows.Close()
	batch := &EventBatch{}
	for rows.Next() {
		var (
			e       tasker.Event
			at      *time.Time
			attempt zeronull.Int4
			cursor  zeronull.Text
		)
		err := rows.Scan((*zeronull.Int8)(&e.ID), &at, (*zeronull.Text)(&e.Name), (*zeronull.Int8)(&e.TaskID), (*zeronull.Int8)(&e.StepID), &attempt,
			(*[]byte)(&e.Data), (*zeronull.Text)(&e.Namespace), (*zeronull.Text)(&e.TaskName), (*zeronull.Text)(&e.TaskVersion), (*zeronull.Text)(&e.StepName),
			(*zeronull.Text)(&e.CorrelationID), (*zeronull.Int8)(&e.ParentTaskID), &cursor)
		if err != nil {
			return nil, err
		}
		if at == nil { // the last row
			batch.Cursor = EventCursor(cursor)
			continue
		}
		e.OccurredAt, e.Attempt, e.Version = *at, int(attempt), tasker.EventsVersion
		batch.Events = append(batch.Events, e)
	}
	if err := rows.Err(); err != nil {
		return nil, translate(err)
	}
	return batch, nil
}

// EventLag is how far behind a durable subscriber is.
type EventLag struct {
	Name          string     `json:"name"`
	Patterns      []string   `json:"patterns"`
	Behind        int64      `json:"behind"`      // ids between its place and the last event, wanted or not
	Lag           *float64   `json:"lag_seconds"` // age of the first that it has not passed
	Awaited       int64      `json:"awaited"`     // ids that may still come from open transactions
	Holder        *string    `json:"holder"`      // the process that reads
	FailedEventID *int64     `json:"failed_event_id"`
	Failure       *string    `json:"failure"`
	Acknowledged  *time.Time `json:"acknowledged_at"`
}

// EventLags lists the durable subscribers, those that are furthest behind first.
func (s *Store) EventLags(ctx context.Context) ([]EventLag, error) {
	rows, err := s.pool.Query(ctx, `SELECT l.name, l.patterns, l.behind, extract(epoch FROM l.lag)::float8, l.awaited, l.holder, l.failed_event_id, l.failure, l.acknowledged_at
		FROM tasker.event_lag l ORDER BY l.lag DESC NULLS LAST, l.name`)
	if err != nil {
		return nil, fmt.Errorf("read subscribers: %w", err)
	}
	lags, err := pgx.CollectRows(rows, pgx.RowToStructByPos[EventLag])
	if err != nil {
		return nil, fmt.Errorf("read subscribers: %w", err)
	}
	return lags, nil
}

// ListenOn listens to a channel on a connection of its own until that breaks or ctx
// ends. ready is called when it hears; before, notifications may have been missed.
func (s *Store) ListenOn(ctx context.Context, channel string, ready func(), heard func(payload string)) error {
	return s.listen(ctx, []string{channel}, ready, func(n *pgconn.Notification) { heard(n.Payload) })
}
