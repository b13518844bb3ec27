package webhooks_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
	"github.com/taskerhq/tasker/webhooks"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const secret = "s3cret"

// receiver is an address that takes events, or does not.
type receiver struct {
	*testing.T
	pool   *pgxpool.Pool
	store  *store.Store
	server *httptest.Server

	mu    sync.Mutex
	got   []int64 // events taken, in order
	tries map[int64]int
	says  func(id int64, try int) int // the status
	words func(id int64) []byte       // the body of the answer; nil: "try N"
	more  chan struct{}
}

func newReceiver(t *testing.T, says func(id int64, try int) int) *receiver {
	t.Helper()
	t.Parallel()
	pool := testenv.Pool(t, testenv.Database(t))
	r := &receiver{T: t, pool: pool, store: store.New(pool), tries: map[int64]int{}, says: says, more: make(chan struct{}, 1000)}
	r.server = httptest.NewServer(http.HandlerFunc(r.take))
	t.Cleanup(r.server.Close)
	return r
}

func (r *receiver) take(w http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(q.Body)
	if err == nil {
		err = webhooks.Verify(secret, q.Header, body)
	}
	var e tasker.Event
	if err == nil {
		err = json.Unmarshal(body, &e)
	}
	if err == nil && (q.Header.Get(webhooks.HeaderEventID) != fmt.Sprint(e.ID) || q.Header.Get(webhooks.HeaderEvent) != string(e.Name) || q.Header.Get(webhooks.HeaderWebhook) != "shop") {
		err = fmt.Errorf("headers %v of event %d", q.Header, e.ID)
	}
	if err != nil {
		r.Errorf("a request that can't be right: %v", err)
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tries[e.ID]++
	status := r.says(e.ID, r.tries[e.ID])
	if status == http.StatusOK {
		r.got = append(r.got, e.ID)
	}
	w.WriteHeader(status)
	if r.words != nil {
		_, _ = w.Write(r.words(e.ID)) // a sender that has heard enough
	} else {
		fmt.Fprintf(w, "try %d", r.tries[e.ID])
	}
	r.more <- struct{}{}
}

// until waits until the condition holds after a request.
func (r *receiver) until(what string, done func() bool) {
	r.Helper()
	late := time.After(30 * time.Second)
	for {
		r.mu.Lock()
		ok := done()
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-r.more:
		case <-late:
			r.Fatalf("%s: got %v, tries %v", what, r.got, r.tries)
		}
	}
}

func (r *receiver) hook(patterns ...string) {
	r.Helper()
	if err := r.store.SetWebhook(r.Context(), &store.Webhook{Name: "shop", URL: r.server.URL + "/in", Patterns: patterns, SecretEnv: "SHOP_SECRET"}, "me"); err != nil {
		r.Fatal(err)
	}
}

func (r *receiver) publish(n int) (ids []int64) {
	r.Helper()
	if err := r.pool.QueryRow(r.Context(), `SELECT array_agg(tasker.publish_event('n.e', jsonb_build_object('i', i))) FROM generate_series(1, $1::int) i`, n).Scan(&ids); err != nil {
		r.Fatal(err)
	}
	return ids
}

// run has a sender run until the returned function is called.
func (r *receiver) run(change func(*webhooks.Sender)) (stop func()) {
	r.Helper()
	u, err := url.Parse(r.server.URL)
	if err != nil {
		r.Fatal(err)
	}
	s := &webhooks.Sender{
		Store: r.store, Allow: func() []string { return []string{u.Host} }, Getenv: func(name string) string { return map[string]string{"SHOP_SECRET": secret}[name] },
		Every: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(s)
	}
	ctx, cancel := context.WithCancel(r.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	r.Cleanup(stop)
	return stop
}

func taken(int64, int) int { return http.StatusOK }

func TestEventsArePostedInOrderAndSigned(t *testing.T) {
	r := newReceiver(t, taken)
	r.hook("n.*")
	want := r.publish(20)
	stop := r.run(nil)
	r.until("the first", func() bool { return len(r.got) == 20 })
	stop()
	want = append(want, r.publish(5)...)
	r.run(nil) // goes on where the other was
	r.until("the rest", func() bool { return len(r.got) == 25 })
	if !slices.Equal(r.got, want) {
		t.Errorf("got %v, not %v", r.got, want)
	}
}

// An address that is in trouble for a while gets the event again, and nothing
// before it.
func TestWhatIsNotTakenComesAgain(t *testing.T) {
	var first int64
	r := newReceiver(t, func(id int64, try int) int {
		if id == first && try < 2 {
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	})
	r.hook("n.*")
	want := r.publish(3)
	first = want[0]
	r.run(nil)
	r.until("all", func() bool { return len(r.got) == 3 })
	if !slices.Equal(r.got, want) || r.tries[first] != 2 {
		t.Errorf("got %v with %v tries, not %v", r.got, r.tries, want)
	}
}

// What is never taken is kept; the others go on; an operator has it tried again.
func TestWhatIsNeverTakenIsADeadLetter(t *testing.T) {
	var bad int64
	mended := false // guarded by the receiver's mutex
	r := newReceiver(t, func(id int64, _ int) int {
		if id == bad && !mended {
			return http.StatusUnprocessableEntity
		}
		return http.StatusOK
	})
	r.hook("n.*")
	ids := r.publish(3)
	bad = ids[1]
	r.run(func(s *webhooks.Sender) { s.Tries = 2 })
	r.until("the others", func() bool { return len(r.got) == 2 })
	failures, err := r.store.WebhookFailures(t.Context(), "shop", 10)
	if err != nil || len(failures) != 1 || failures[0].EventID != bad || failures[0].Tries != 2 || failures[0].Failure != "the answer is 422 Unprocessable Entity: try 2" {
		t.Fatalf("kept: %+v, %v", failures, err)
	}
	for _, wanted := range []int{1, 0} { // the second time it is under way already, or done
		r.mu.Lock()
		mended = true
		r.mu.Unlock()
		n, err := r.store.RetryWebhook(t.Context(), "shop", 0)
		if err != nil || n > wanted {
			t.Fatalf("to be tried again: %d, %v", n, err)
		}
	}
	r.until("the bad one", func() bool { return len(r.got) == 3 })
	if want := []int64{ids[0], ids[2], bad}; !slices.Equal(r.got, want) {
		t.Errorf("got %v, not %v", r.got, want)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		failures, err := r.store.WebhookFailures(t.Context(), "", 10)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("still kept: %+v, %v", failures, err)
		}
		if len(failures) == 0 {
			break
		}
	}
}

// A delivery whose subscriber is gone ends, and is started again.
func TestADeliveryThatEndedIsStartedAgain(t *testing.T) {
	r := newReceiver(t, taken)
	r.hook("n.*")
	r.publish(1)
	r.run(nil)
	r.until("the first", func() bool { return len(r.got) == 1 })
	if _, err := r.pool.Exec(t.Context(), `DELETE FROM tasker.event_subscribers`); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		lags, err := r.store.EventLags(t.Context())
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("the webhook has no subscriber again: %+v, %v", lags, err)
		}
		if len(lags) == 1 && lags[0].Holder != nil {
			break
		}
	}
	want := r.publish(2)
	r.until("what came after", func() bool { return len(r.got) == 3 })
	if !slices.Equal(r.got[1:], want) {
		t.Errorf("got %v, not %v", r.got[1:], want)
	}
}

// The text of an answer is another system's. Whatever it is, the failure is kept and
// the next event goes on.
func TestAFailureIsKeptWhateverTheAnswerSays(t *testing.T) {
	answers := map[string]struct {
		body []byte
		want string
	}{
		"invalid UTF-8":            {[]byte("caf\xe9 \xff\xfe"), "the answer is 500 Internal Server Error: caf\uFFFD \uFFFD"},
		"cut at byte 300":          {[]byte(strings.Repeat("x", 299) + "é"), "the answer is 500 Internal Server Error: " + strings.Repeat("x", 199) + "…"},
		"ended inside a letter":    {[]byte("a\xe2\x82"), "the answer is 500 Internal Server Error: a\uFFFD"},
		"NUL":                      {[]byte("a\x00b"), "the answer is 500 Internal Server Error: ab"},
		"empty":                    {nil, "the answer is 500 Internal Server Error"},
		"NUL alone":                {[]byte("\x00\x00"), "the answer is 500 Internal Server Error"},
		"invalid to the last byte": {bytes.Repeat([]byte("\x9b"), 5000), ""},
	}
	names := slices.Sorted(maps.Keys(answers))
	var ids []int64
	r := newReceiver(t, func(id int64, _ int) int {
		if id == ids[len(ids)-1] {
			return http.StatusOK
		}
		return http.StatusInternalServerError
	})
	r.words = func(id int64) []byte {
		if i := slices.Index(ids, id); i < len(names) {
			return answers[names[i]].body
		}
		return nil
	}
	r.hook("n.*")
	ids = r.publish(len(names) + 1)
	r.run(func(s *webhooks.Sender) { s.Tries = 2 })
	r.until("the event behind all failures", func() bool { return len(r.got) == 1 })
	failures, err := r.store.WebhookFailures(t.Context(), "shop", 10)
	if err != nil || len(failures) != len(names) {
		t.Fatalf("kept: %+v, %v", failures, err)
	}
	for i, f := range failures {
		if want := answers[names[i]].want; want != "" && f.Failure != want || !utf8.ValidString(f.Failure) {
			t.Errorf("%s:\n got %q\nwant %q", names[i], f.Failure, want)
		}
	}
}

// Keys in the query of a webhook's URL are for the receiver alone.
func TestAFailureDoesNotShowTheQueryOfTheURL(t *testing.T) {
	r := newReceiver(t, taken)
	r.server.Close() // nothing answers
	if err := r.store.SetWebhook(t.Context(), &store.Webhook{Name: "shop", URL: r.server.URL + "/in?a=hunter2&token=hunter2", Patterns: []string{"n.*"}, SecretEnv: "SHOP_SECRET"}, "me"); err != nil {
		t.Fatal(err)
	}
	r.publish(1)
	r.run(func(s *webhooks.Sender) { s.Tries = 2 })
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		failures, err := r.store.WebhookFailures(t.Context(), "shop", 10)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("kept: %+v, %v", failures, err)
		}
		if len(failures) == 0 {
			continue
		}
		if f := failures[0].Failure; strings.Contains(f, "hunter2") || !strings.HasPrefix(f, "post to "+r.server.URL+"/in?a=[FILTERED]&token=[FILTERED]: dial tcp") {
			t.Errorf("got %s", f)
		}
		return
	}
}

// A worker serves what it may call and has the secret of, also when that changes.
func TestWhoMayNotCallDoesNot(t *testing.T) {
	r := newReceiver(t, taken)
	r.hook("n.*")
	want := r.publish(1)
	for name, change := range map[string]func(*webhooks.Sender){
		"a host that is not allowed": func(s *webhooks.Sender) { s.Allow = func() []string { return []string{"example.com"} } },
		"a secret that it has not":   func(s *webhooks.Sender) { s.Getenv = func(string) string { return "" } },
	} {
		stop := r.run(change)
		if _, err := r.store.Webhooks(t.Context()); err != nil {
			t.Fatal(err)
		}
		stop()
		if len(r.tries) > 0 {
			t.Errorf("%s: it was called", name)
		}
	}
	stop := r.run(nil)
	r.until("the one that may", func() bool { return len(r.got) == 1 })
	stop()
	if !slices.Equal(r.got, want) {
		t.Errorf("got %v, not %v", r.got, want)
	}
	if err := r.store.RemoveWebhook(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	if lags, err := r.store.EventLags(t.Context()); err != nil || len(lags) > 0 {
		t.Errorf("subscribers %+v are left, %v", lags, err)
	}
}

func TestWrongWebhooksAreRefused(t *testing.T) {
	t.Parallel()
	s := store.New(testenv.Pool(t, testenv.Database(t)))
	for _, w := range []store.Webhook{
		{Name: "Shop", URL: "https://h/x", Patterns: []string{"*"}, SecretEnv: "A"}, {Name: "", URL: "https://h/x", Patterns: []string{"*"}, SecretEnv: "A"},
		{Name: "a", URL: "ftp://h/x", Patterns: []string{"*"}, SecretEnv: "A"}, {Name: "a", URL: "https://u:p@h/x", Patterns: []string{"*"}, SecretEnv: "A"},
		{Name: "a", URL: "https://h/x", Patterns: []string{"X"}, SecretEnv: "A"}, {Name: "a", URL: "https://h/x", Patterns: []string{"*"}, SecretEnv: "A-B"},
		{Name: "a", URL: "https://h/x", Patterns: []string{"*"}},
	} {
		if err := s.SetWebhook(t.Context(), &w, ""); err == nil {
			t.Errorf("%+v is taken", w)
		}
	}
	if hooks, err := s.Webhooks(t.Context()); err != nil || len(hooks) > 0 {
		t.Errorf("there are %+v, %v", hooks, err)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	body := []byte(`{"id": 7}`)
	header := func(at time.Time, secret string) http.Header {
		stamp := fmt.Sprint(at.Unix())
		return http.Header{webhooks.HeaderTimestamp: {stamp}, webhooks.HeaderSignature: {webhooks.Sign(secret, stamp, body)}}
	}
	for name, c := range map[string]struct {
		header http.Header
		body   string
		right  bool
	}{
		"as it was sent":        {header(time.Now(), secret), `{"id": 7}`, true},
		"another body":          {header(time.Now(), secret), `{"id": 8}`, false},
		"another secret":        {header(time.Now(), "other"), `{"id": 7}`, false},
		"sent again much later": {header(time.Now().Add(-6*time.Minute), secret), `{"id": 7}`, false},
		"no signature":          {http.Header{}, `{"id": 7}`, false},
	} {
		if err := webhooks.Verify(secret, c.header, []byte(c.body)); (err == nil) != c.right {
			t.Errorf("%s: %v", name, err)
		}
	}
}
