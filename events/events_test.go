package events_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/events"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// log is a database whose events a test reads.
type log struct {
	*testing.T
	pool  *pgxpool.Pool
	store *store.Store
}

func newLog(t *testing.T) *log {
	t.Helper()
	t.Parallel()
	pool := testenv.Pool(t, testenv.Database(t))
	return &log{t, pool, store.New(pool)}
}

func (l *log) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// publish publishes events n.1 to n.count and returns their ids.
func (l *log) publish(count int) (ids []int64) {
	l.Helper()
	l.must(l.pool.QueryRow(l.Context(), `SELECT array_agg(tasker.publish_event('n.e' || i, jsonb_build_object('i', i))) FROM generate_series(1, $1::int) i`, count).Scan(&ids))
	return ids
}

// reader is a subscriber at work, and what it was given.
type reader struct {
	log    *log
	stop   context.CancelFunc
	ended  chan error
	handle func(ctx context.Context, e *tasker.Event) error

	mu   sync.Mutex
	got  []int64
	more chan struct{}
}

func (l *log) read(sub events.Subscription, handle func(ctx context.Context, e *tasker.Event) error) *reader {
	l.Helper()
	ctx, stop := context.WithCancel(l.Context())
	r := &reader{log: l, stop: stop, ended: make(chan error, 1), handle: handle, more: make(chan struct{}, 1)}
	sub.Logger = slog.New(slog.DiscardHandler)
	sub.Handle = r.take
	go func() { r.ended <- events.Subscribe(ctx, l.store, sub) }()
	l.Cleanup(r.end)
	return r
}

func (r *reader) take(ctx context.Context, e *tasker.Event) error {
	if r.handle != nil {
		if err := r.handle(ctx, e); err != nil {
			return err
		}
	}
	r.mu.Lock()
	r.got = append(r.got, e.ID)
	r.mu.Unlock()
	select {
	case r.more <- struct{}{}:
	default:
	}
	return nil
}

func (r *reader) ids() []int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// has waits until it was given exactly these, in this order.
func (r *reader) has(ids ...int64) {
	r.log.Helper()
	timeout := time.After(20 * time.Second)
	for !slices.Equal(r.ids(), ids) {
		select {
		case <-r.more:
		case <-timeout:
			r.log.Fatalf("got %v, want %v", r.ids(), ids)
		}
	}
}

// end has it stop, and waits until it has.
func (r *reader) end() {
	r.stop()
	if err, ok := <-r.ended; ok {
		close(r.ended)
		if err != nil {
			r.log.Errorf("Subscribe: %v", err)
		}
	}
}

func TestASubscriberGetsAllInOrderAndGoesOnWhereItStopped(t *testing.T) {
	l := newLog(t)
	before := l.publish(3)
	r := l.read(events.Subscription{Name: "s", FromBeginning: true, Batch: 2}, nil)
	r.has(before...)
	later := l.publish(5)
	r.has(append(before, later...)...)
	r.end()
	missed := l.publish(2)
	l.read(events.Subscription{Name: "s"}, nil).has(missed...)
	l.read(events.Subscription{Name: "new", Patterns: []string{"n.e2"}, FromBeginning: true}, nil).has(before[1], later[1], missed[1])
}

func TestAnEventOfATransactionThatCommitsLateIsNotSkipped(t *testing.T) {
	l := newLog(t)
	r := l.read(events.Subscription{Name: "s", FromBeginning: true}, nil)
	r.has(l.publish(1)...)
	tx, err := l.pool.Begin(t.Context())
	l.must(err)
	defer func() { _ = tx.Rollback(t.Context()) }() // where the test ends early
	var late int64
	l.must(tx.QueryRow(t.Context(), `SELECT tasker.publish_event('n.late')`).Scan(&late))
	early := l.publish(1)
	r.has(1, early[0])
	l.must(tx.Commit(t.Context()))
	r.has(1, early[0], late)
}

func TestOfOneNameOneReadsAndAnotherTakesOver(t *testing.T) {
	l := newLog(t)
	ids := l.publish(4)
	begun, release := make(chan struct{}), make(chan struct{})
	first := l.read(events.Subscription{Name: "s", FromBeginning: true}, func(_ context.Context, e *tasker.Event) error {
		if e.ID == ids[1] {
			close(begun)
			<-release
		}
		return nil
	})
	<-begun
	second := l.read(events.Subscription{Name: "s"}, nil)
	// Longer than it is held for if nobody renews it.
	time.Sleep(6 * time.Second) // nothing happens that could be waited for
	if got := second.ids(); len(got) > 0 {
		t.Errorf("while the first handles an event the second got %v", got)
	}
	first.stop()
	close(release)
	first.end()
	first.has(ids[:2]...)
	second.has(ids[2:]...)
}

func TestAFailingHandlerHoldsItsSubscriberAndNobodyElse(t *testing.T) {
	l := newLog(t)
	ids := l.publish(3)
	var mu sync.Mutex
	tries := 0
	failing := l.read(events.Subscription{Name: "failing", FromBeginning: true}, func(_ context.Context, e *tasker.Event) error {
		mu.Lock()
		defer mu.Unlock()
		if e.ID != ids[1] {
			return nil
		}
		if tries++; tries < 2 {
			return errors.New("printer on fire")
		}
		lags, err := l.store.EventLags(t.Context())
		if err != nil || len(lags) != 2 {
			return fmt.Errorf("got %v, %w", lags, err)
		}
		at := slices.IndexFunc(lags, func(l store.EventLag) bool { return l.Name == "failing" })
		if lag := lags[at]; lag.FailedEventID == nil || *lag.FailedEventID != ids[1] || *lag.Failure != "printer on fire" || lag.Behind != 2 {
			t.Errorf("where it stands: got %+v", lag)
		}
		return nil
	})
	l.read(events.Subscription{Name: "other", FromBeginning: true}, nil).has(ids...)
	failing.has(ids...)

	skipping := l.read(events.Subscription{Name: "skipping", FromBeginning: true, GiveUpAfter: 1}, func(_ context.Context, e *tasker.Event) error {
		if e.ID == ids[1] {
			return errors.New("never")
		}
		return nil
	})
	skipping.has(ids[0], ids[2])
}

// The text of an error may come from another system.
func TestWhereASubscriberStandsIsRecordedWhateverTheErrorSays(t *testing.T) {
	for name, c := range map[string]struct{ says, want string }{
		"invalid UTF-8": {"caf\xe9", "caf\uFFFD"}, "NUL": {"a\x00b", "ab"}, "empty": {"", ""}, "cut": {strings.Repeat("é", 3000), strings.Repeat("é", 1999) + "…"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLog(t)
			ids := l.publish(1)
			tries := 0 // Handle is called by one goroutine
			got := ""
			l.read(events.Subscription{Name: "failing", FromBeginning: true}, func(ctx context.Context, _ *tasker.Event) error {
				if tries++; tries < 2 {
					return errors.New(c.says)
				}
				lags, err := l.store.EventLags(ctx)
				if err == nil && len(lags) == 1 && lags[0].Failure != nil {
					got = *lags[0].Failure
				}
				return err
			}).has(ids...)
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestASubscriptionThatMakesNoSenseIsRefused(t *testing.T) {
	l := newLog(t)
	nothing := func(context.Context, *tasker.Event) error { return nil }
	for _, sub := range []events.Subscription{
		{Name: "s"}, {Name: "", Handle: nothing}, {Name: " s", Handle: nothing}, {Name: "s", Patterns: []string{"Task.*"}, Handle: nothing},
	} {
		if err := events.Subscribe(t.Context(), l.store, sub); err == nil {
			t.Errorf("%+v: was not refused", sub)
		}
	}
}

func TestFollowStartsWhereItIsToldTo(t *testing.T) {
	l := newLog(t)
	l.publish(2)
	now, err := l.store.EventsSince(t.Context(), time.Time{})
	l.must(err)
	since, err := l.store.EventsSince(t.Context(), time.Now().Add(-time.Hour))
	l.must(err)
	stop := errors.New("enough")
	follow := func(after store.EventCursor, want int, meanwhile func()) (got []int64, at store.EventCursor) {
		t.Helper()
		if meanwhile != nil {
			time.AfterFunc(100*time.Millisecond, meanwhile)
		}
		err := events.Follow(t.Context(), l.store, after, []string{"n.*"}, slog.New(slog.DiscardHandler), func(b *store.EventBatch) error {
			for _, e := range b.Events {
				got = append(got, e.ID)
			}
			at = b.Cursor
			if len(got) >= want {
				return stop
			}
			return nil
		})
		if !errors.Is(err, stop) {
			t.Fatal(err)
		}
		return got, at
	}
	published := make(chan []int64, 1)
	got, at := follow(now, 3, func() { published <- l.publish(3) })
	if more := <-published; !slices.Equal(got, more) {
		t.Errorf("from now on: got %v, want %v", got, more)
	}
	for name, after := range map[string]store.EventCursor{"since an hour ago": since, "from the beginning": ""} {
		if got, _ := follow(after, 5, nil); len(got) != 5 || got[0] != 1 {
			t.Errorf("%s: got %v", name, got)
		}
	}
	last := l.publish(1)
	if got, _ := follow(at, 1, nil); !slices.Equal(got, last) {
		t.Errorf("after a cursor: got %v, want %v", got, last)
	}
}
