// Package webhooks posts events to HTTP addresses: signed, in order, each at least
// once. What an address does not take after many tries is kept as a dead letter, and
// the next events go on.
package webhooks

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/events"
	"github.com/taskerhq/tasker/safetext"
	"github.com/taskerhq/tasker/store"
)

// Sender posts what the webhooks want that it can serve: those whose host it may call,
// and whose secret it has.
type Sender struct {
	Store  *store.Store
	Allow  func() []string     // hosts, or hosts and ports, that may be called
	Getenv func(string) string // os.Getenv
	Tries  int                 // of one event before it is a dead letter; default 15, which is ten minutes
	Every  time.Duration       // how often to look for new and changed webhooks; default 10 s
	Logger *slog.Logger
}

const (
	// Timeout is how long an address may take to answer.
	Timeout = 10 * time.Second
	// lastWord is how long it has left for that when the worker stops.
	lastWord = 3 * time.Second
	// excerpt is how many characters of a refusal's body are kept, and excerptBytes how
	// many bytes are read: more than so many characters can have.
	excerpt      = 200
	excerptBytes = 4*excerpt + 4
	// tolerance is how old a signature may be that Verify takes.
	tolerance = 5 * time.Minute
)

// Headers of a request.
const (
	HeaderWebhook   = "Tasker-Webhook"
	HeaderEvent     = "Tasker-Event"
	HeaderEventID   = "Tasker-Event-Id" // the same when it comes again
	HeaderTimestamp = "Tasker-Timestamp"
	HeaderSignature = "Tasker-Signature" // v1= and the hex of HMAC-SHA256 over the timestamp, a dot and the body
)

// Run posts events until ctx ends.
func (s *Sender) Run(ctx context.Context) {
	if s.Tries == 0 {
		s.Tries = 15
	}
	if s.Every == 0 {
		s.Every = 10 * time.Second
	}
	running := map[string]*delivery{}
	var all sync.WaitGroup
	defer all.Wait()
	warned := map[string]string{}
	for ctx.Err() == nil {
		hooks, err := s.Store.Webhooks(ctx)
		if err != nil {
			if ctx.Err() == nil {
				s.Logger.Warn("webhooks can't be read", "error", err)
			}
			hooks = nil
		}
		wanted := map[string]*store.Webhook{}
		for i := range hooks {
			w := &hooks[i]
			if reason := s.lacks(w); reason != "" {
				if warned[w.Name] != reason {
					s.Logger.Info("this worker does not serve a webhook", "webhook", w.Name, "reason", reason)
				}
				warned[w.Name] = reason
				continue
			}
			delete(warned, w.Name)
			wanted[w.Name] = w
		}
		for name, d := range running {
			// A delivery ends by itself when its subscriber is gone, for one. Below it starts again.
			if d.hasEnded() {
				delete(running, name)
				continue
			}
			if err == nil && (wanted[name] == nil || !d.serves(wanted[name])) {
				d.stop()
				<-d.ended
				delete(running, name)
			}
		}
		for name, w := range wanted {
			if running[name] == nil {
				d := s.start(ctx, w)
				running[name] = d
				all.Go(func() { <-d.ended })
			}
		}
		select {
		case <-time.After(s.Every):
		case <-ctx.Done():
		}
	}
}

// lacks says why a webhook can't be served here; empty: it can.
func (s *Sender) lacks(w *store.Webhook) string {
	u, err := url.Parse(w.URL)
	if err != nil {
		return "its URL can't be read"
	}
	if allowed := s.Allow(); !slices.Contains(allowed, u.Host) && !slices.Contains(allowed, u.Hostname()) {
		return "its host " + u.Host + " is not in http.allow"
	}
	if s.Getenv(w.SecretEnv) == "" {
		return "the environment variable " + w.SecretEnv + " with its secret is not set"
	}
	return ""
}

// delivery is a webhook that is served.
type delivery struct {
	hook   store.Webhook
	secret string
	stop   context.CancelFunc
	ended  chan struct{}
	sender *Sender
	client *http.Client
	log    *slog.Logger
}

// hasEnded says whether the delivery's goroutine has returned.
func (d *delivery) hasEnded() bool {
	select {
	case <-d.ended:
		return true
	default:
		return false
	}
}

func (d *delivery) serves(w *store.Webhook) bool {
	return d.hook.URL == w.URL && slices.Equal(d.hook.Patterns, w.Patterns) && d.hook.SecretEnv == w.SecretEnv && d.secret == d.sender.Getenv(w.SecretEnv)
}

func (s *Sender) start(ctx context.Context, w *store.Webhook) *delivery {
	ctx, stop := context.WithCancel(ctx)
	d := &delivery{
		hook: *w, secret: s.Getenv(w.SecretEnv), stop: stop, ended: make(chan struct{}), sender: s, log: s.Logger.With("webhook", w.Name),
		// Another address is not the one that the operator allowed.
		client: &http.Client{Timeout: Timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
	go func() {
		defer close(d.ended)
		defer stop()
		var repeating sync.WaitGroup
		repeating.Go(func() { d.repeat(ctx) })
		defer repeating.Wait()
		defer stop()
		if err := events.Subscribe(ctx, s.Store, events.Subscription{
			Name: w.Subscriber(), Patterns: w.Patterns, Handle: d.deliver, GiveUpAfter: s.Tries - 1, GaveUp: d.gaveUp, Logger: d.log,
		}); err != nil && ctx.Err() == nil {
			d.log.Error("webhook delivery ended; it starts again", "error", err)
		}
	}()
	return d
}

func (d *delivery) deliver(ctx context.Context, e *tasker.Event) error {
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("event %d: %w", e.ID, err)
	}
	// What is under way when the worker stops is finished: else it would come again.
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(lastWord, cancel) })
	defer stop()
	return d.post(lasting, string(e.Name), e.ID, body)
}

func (d *delivery) gaveUp(ctx context.Context, e *tasker.Event, tries int, reason error) error {
	return d.sender.Store.WebhookFailed(ctx, d.hook.Name, e, tries, reason.Error())
}

// repeat posts again what an operator wants tried again, until ctx ends. Of several
// workers that do so, all may: each delivery is at least once.
func (d *delivery) repeat(ctx context.Context) {
	for ctx.Err() == nil {
		failed, err := d.sender.Store.TryAgain(ctx, d.hook.Name)
		if err == nil && failed != nil {
			var e tasker.Event
			if err = json.Unmarshal(failed.Event, &e); err == nil {
				if reason := d.deliver(ctx, &e); reason == nil {
					err = d.sender.Store.WebhookDelivered(ctx, d.hook.Name, e.ID)
				} else if ctx.Err() == nil {
					err = d.sender.Store.WebhookFailed(ctx, d.hook.Name, &e, 1, reason.Error())
				}
			}
			if err == nil {
				continue
			}
		}
		if err != nil && ctx.Err() == nil {
			d.log.Warn("what is to be tried again waits", "error", err)
		}
		select {
		case <-time.After(d.sender.Every):
		case <-ctx.Done():
		}
	}
}

// post sends one event. Any answer of 2xx takes it.
func (d *delivery) post(ctx context.Context, name string, id int64, body []byte) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.hook.URL, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("post to %s: not a URL", safetext.MaskQuery(d.hook.URL))
	}
	now := strconv.FormatInt(time.Now().Unix(), 10)
	for header, value := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "tasker", HeaderWebhook: d.hook.Name, HeaderEvent: name, HeaderEventID: strconv.FormatInt(id, 10),
		HeaderTimestamp: now, HeaderSignature: Sign(d.secret, now, body),
	} {
		request.Header.Set(header, value)
	}
	response, err := d.client.Do(request)
	if err != nil {
		return fmt.Errorf("post to %s: %w", safetext.MaskQuery(d.hook.URL), safetext.CallError(err))
	}
	defer response.Body.Close()
	if response.StatusCode/100 == 2 {
		return nil
	}
	said, _ := io.ReadAll(io.LimitReader(response.Body, excerptBytes)) // it is for people
	return errors.New(answer(response.Status, said))
}

// answer describes an answer that did not take an event. Both parts are text of the
// other system, of which only the start is kept.
func answer(status string, body []byte) string {
	text := "the answer is " + safetext.Clean(status, 100)
	if said := strings.TrimSpace(safetext.Clean(string(body), excerpt)); said != "" {
		text += ": " + said
	}
	return text
}

// Sign is the signature of a request.
func Sign(secret, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(timestamp + "."))
	mac.Write(body)
	return "v1=" + hex.EncodeToString(mac.Sum(nil))
}

// ErrSignature says that a request is not from who has the secret, or was sent too
// long ago.
var ErrSignature = errors.New("the signature is not right")

// Verify is for receivers in Go: it returns ErrSignature unless the request was signed
// with the secret in the last five minutes.
func Verify(secret string, header http.Header, body []byte) error {
	at, err := strconv.ParseInt(header.Get(HeaderTimestamp), 10, 64)
	if err != nil || time.Since(time.Unix(at, 0)).Abs() > tolerance {
		return fmt.Errorf("%w: %s is no time of the last %s", ErrSignature, HeaderTimestamp, tolerance)
	}
	if !hmac.Equal([]byte(header.Get(HeaderSignature)), []byte(Sign(secret, header.Get(HeaderTimestamp), body))) {
		return ErrSignature
	}
	return nil
}
