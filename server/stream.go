package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/taskerhq/tasker/events"
	"github.com/taskerhq/tasker/store"
)

const (
	// keepAlive is the pause after which something is sent all the same, so that
	// whatever is in between keeps the connection, and one that is gone is noticed.
	keepAlive = 15 * time.Second
)

// stream sends events as they come (server-sent events). The last of each batch has as
// its id the place to go on from, which a client sends back as Last-Event-ID when it
// connects again; what came after the last id comes again.
func (s *server) stream(w http.ResponseWriter, r *http.Request) {
	select {
	case s.streaming <- struct{}{}:
		defer func() { <-s.streaming }()
	default:
		refuse(w, http.StatusServiceUnavailable, fmt.Sprintf("this worker streams to %d clients already; ask another", mostStreaming))
		return
	}
	q := r.URL.Query()
	patterns := q["pattern"]
	if len(patterns) == 0 {
		patterns = []string{"*"}
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.Ending, cancel)()
	after, err := s.from(ctx, r, patterns)
	var bad *requestError
	switch {
	case errors.As(err, &bad):
		refuse(w, http.StatusBadRequest, bad.message)
		return
	case err != nil:
		s.Logger.Error("events could not be read", "error", err)
		refuse(w, http.StatusServiceUnavailable, "the database could not be read; the worker's log says why")
		return
	}

	out := &stream{w: w, control: http.NewResponseController(w), cancel: cancel, slowest: s.Slowest}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx keeps back what it can
	w.WriteHeader(http.StatusOK)
	if out.send([]byte("retry: 1000\n\n")) != nil {
		return // the client has gone
	}
	var beating sync.WaitGroup
	beating.Go(func() {
		ticks := time.NewTicker(keepAlive)
		defer ticks.Stop()
		for {
			select {
			case <-ticks.C:
				if out.send([]byte(": still here\n\n")) != nil {
					return // and the stream ends
				}
			case <-ctx.Done():
				return
			}
		}
	})
	defer beating.Wait()
	defer cancel()
	err = events.Follow(ctx, s.Store, after, patterns, slog.New(slog.DiscardHandler), func(b *store.EventBatch) error {
		var text bytes.Buffer
		for i := range b.Events {
			doc, err := json.Marshal(&b.Events[i])
			if err != nil {
				return fmt.Errorf("event %d: %w", b.Events[i].ID, err)
			}
			if i == len(b.Events)-1 {
				fmt.Fprintf(&text, "id: %s\n", b.Cursor)
			}
			fmt.Fprintf(&text, "event: %s\ndata: %s\n\n", b.Events[i].Name, doc)
		}
		return out.send(text.Bytes())
	})
	if err != nil && ctx.Err() == nil {
		s.Logger.Warn("a stream of events broke; its client comes again", "error", err)
	}
}

// from is where a stream begins: after the last id, as long ago as since says, or now.
func (s *server) from(ctx context.Context, r *http.Request, patterns []string) (store.EventCursor, error) {
	q := r.URL.Query()
	id := r.Header.Get("Last-Event-ID")
	if id == "" {
		id = q.Get("last_event_id") // for who can't set headers
	}
	since, what := time.Time{}, "pattern"
	if text := q.Get("since"); text != "" && id == "" {
		d, err := ParsePeriod(text)
		if err != nil {
			return "", &requestError{"since: " + err.Error()}
		}
		since = time.Now().Add(-d)
	}
	after := store.EventCursor(id)
	if id != "" {
		what = "Last-Event-ID or pattern"
	} else {
		var err error
		if after, err = s.Store.EventsSince(ctx, since); err != nil {
			return "", err
		}
	}
	// A look, so that what is wrong is said before the answer begins.
	if _, err := s.Store.ReadEvents(ctx, after, patterns, 1, "", ""); err != nil {
		var refused *store.RefusedError
		if errors.As(err, &refused) {
			return "", &requestError{what + ": " + refused.Error()}
		}
		return "", err
	}
	return after, nil
}

// stream is a client that listens.
type stream struct {
	mu      sync.Mutex
	w       http.ResponseWriter
	control *http.ResponseController
	cancel  context.CancelFunc
	slowest time.Duration // that a client may take to receive what it is sent
}

// send sends the text, or ends the stream.
func (s *stream) send(text []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.control.SetWriteDeadline(time.Now().Add(s.slowest))
	if err == nil {
		_, err = s.w.Write(text)
	}
	if err == nil {
		err = s.control.Flush()
	}
	if err != nil {
		s.cancel()
		return fmt.Errorf("send events: %w", err)
	}
	return nil
}
