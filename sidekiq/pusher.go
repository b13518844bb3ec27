package sidekiq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/crash"
	"github.com/taskerhq/tasker/safetext"
)

// Tuning is how Redis is talked to. The zero value of a field means its
// default.
type Tuning struct {
	DialTimeout time.Duration // for a new connection
	RetryEvery  time.Duration // while Redis is away: the longest pause between two tries
	Batch       int           // most jobs in one transaction; larger ones could outlast the client's timeout and be sent twice
	Backlog     int           // most attempts in memory while Redis is away
	Bundle      int           // most attempts in one job; 1: no job carries two
	BundleTime  time.Duration // that the attempts of one job may be expected to take together
	BundleWait  time.Duration // to wait for company while a queue holds more jobs than there are threads
}

// WithDefaults has the default in place of each zero.
func (t Tuning) WithDefaults() Tuning {
	t.DialTimeout = cmp.Or(t.DialTimeout, 2*time.Second)
	t.RetryEvery = cmp.Or(t.RetryEvery, 2*time.Second)
	t.Batch = cmp.Or(t.Batch, 5000)
	t.Backlog = cmp.Or(t.Backlog, 100_000)
	t.Bundle = cmp.Or(t.Bundle, 50)
	t.BundleTime = cmp.Or(t.BundleTime, 50*time.Millisecond)
	t.BundleWait = cmp.Or(t.BundleWait, 4*time.Millisecond)
	return t
}

// Open connects to the Redis that Sidekiq uses. The connection is made when it
// is first needed, so a Redis that is away does not keep a worker from running
// its Go steps.
func Open(address string) (*redis.Client, error) { return Tuning{}.Open(address) }

// Open is the function Open, tuned.
func (t Tuning) Open(address string) (*redis.Client, error) {
	logThroughSlog()
	options, err := redis.ParseURL(address)
	if err != nil {
		return nil, fmt.Errorf("redis URL %s: %s; it looks like redis://HOST:6379/0 (--redis-url, TASKER_REDIS_URL or REDIS_URL)", safetext.MaskAddress(address), fault(err))
	}
	options.MaxRetries = 1 // for a connection that has gone stale; the pusher has patience of its own
	options.DialTimeout = t.WithDefaults().DialTimeout
	return redis.NewClient(options), nil
}

// fault says what is wrong with a URL. The parser's own message repeats the URL, and the
// part that it takes for a port, which may be the password.
func fault(err error) string {
	if _, unreadable := errors.AsType[*url.Error](err); unreadable {
		return "not a URL; characters such as / # ? @ of a password are written as %2F %23 %3F %40"
	}
	return safetext.Mask(err.Error())
}

// Pusher pushes attempts, all that have come together at once, in the
// background.
type Pusher struct {
	redis     *redis.Client
	log       *slog.Logger
	tuning    Tuning
	consumers atomic.Pointer[[]Consumer]
	used      atomic.Bool
	plenty    atomic.Bool // the last push found its queues with more jobs than threads

	mu      sync.Mutex
	waiting []tasker.Dispatch
	signal  chan struct{}
}

// NewPusher returns a pusher; Run makes it work.
func NewPusher(client *redis.Client, log *slog.Logger) *Pusher {
	return Tuning{}.NewPusher(client, log)
}

// NewPusher is the function NewPusher, tuned.
func (t Tuning) NewPusher(client *redis.Client, log *slog.Logger) *Pusher {
	slogger.Store(log)
	return &Pusher{redis: client, log: log, tuning: t.WithDefaults(), signal: make(chan struct{}, 1)}
}

// Push hands attempts over. It never blocks. While Redis is away for long,
// those beyond the backlog are dropped: whoever looks for attempts that are in
// no queue pushes them.
func (p *Pusher) Push(dispatches []tasker.Dispatch) {
	p.used.Store(true)
	p.mu.Lock()
	room := max(p.tuning.Backlog-len(p.waiting), 0)
	p.waiting = append(p.waiting, dispatches[:min(len(dispatches), room)]...)
	p.mu.Unlock()
	p.wake()
}

// Used reports whether anything was pushed since the last call.
func (p *Pusher) Used() bool { return p.used.Swap(false) }

func (p *Pusher) wake() {
	select {
	case p.signal <- struct{}{}:
	default:
	}
}

// Run pushes until ctx ends. What is not pushed by then is pushed by another
// worker, which finds it unstarted.
func (p *Pusher) Run(ctx context.Context) {
	for failures := 0; ; {
		select {
		case <-p.signal:
		case <-ctx.Done():
			return
		}
		if p.plenty.Load() { // no thread waits for these, and together they cost less
			select {
			case <-time.After(p.tuning.BundleWait):
			case <-ctx.Done():
				return
			}
		}
		p.mu.Lock()
		n := min(len(p.waiting), p.tuning.Batch)
		batch := p.waiting[:n:n]
		p.waiting = p.waiting[n:]
		more := len(p.waiting) > 0
		p.mu.Unlock()
		if n == 0 {
			continue
		}
		err := p.PushNow(ctx, batch)
		if more {
			p.wake()
		}
		if err == nil {
			if failures > 0 {
				p.log.Info("redis is back", "pushed", len(batch))
			}
			failures = 0
			continue
		}
		if ctx.Err() != nil {
			return
		}
		failures++
		if failures == 1 || failures%30 == 0 {
			p.log.Error("redis is away: Ruby steps wait, nothing is lost; check --redis-url and that the server runs",
				"address", p.redis.Options().Addr, "waiting", len(batch), "error", err)
		}
		select {
		case <-time.After(min(100*time.Millisecond<<min(failures, 10), p.tuning.RetryEvery)):
		case <-ctx.Done():
			return
		}
		p.Push(batch)
	}
}

// most is how many jobs go into one command, or are read by one. It is no
// setting: Redis serves nobody else during a command, and a pipeline of several
// costs no more than a longer one.
const most = 1000

// PushNow pushes attempts: per queue what Sidekiq's own client does, in a
// transaction.
func (p *Pusher) PushNow(ctx context.Context, dispatches []tasker.Dispatch) error {
	byQueue := map[string][]tasker.Dispatch{}
	var queues []string
	for _, d := range dispatches {
		if byQueue[d.Queue] == nil {
			queues = append(queues, d.Queue)
		}
		byQueue[d.Queue] = append(byQueue[d.Queue], d)
	}
	now := time.Now()
	jobs := map[string][]any{}
	threads := map[string]int{}
	for _, q := range queues {
		var takes map[string]time.Duration
		threads[q], takes = p.threads(q)
		for _, attempts := range p.bundles(ctx, q, byQueue[q], threads[q], takes) {
			jobs[q] = append(jobs[q], payload(attempts, now))
		}
	}
	lengths := map[string]*redis.IntCmd{}
	crash.At(crash.PushBegins)
	_, err := p.redis.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, q := range queues {
			pipe.SAdd(ctx, "queues", q)
			for rest := jobs[q]; len(rest) > 0; {
				n := min(len(rest), most)
				lengths[q] = pipe.LPush(ctx, "queue:"+q, rest[:n]...)
				rest = rest[n:]
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("push %d attempts to redis: %w", len(dispatches), err)
	}
	crash.At(crash.PushEnds)
	plenty := true
	for q, length := range lengths {
		plenty = plenty && threads[q] > 0 && length.Val() > int64(threads[q])
	}
	p.plenty.Store(plenty)
	return nil
}

// Missing returns those of the attempts that are in no queue.
func (p *Pusher) Missing(ctx context.Context, dispatches []tasker.Dispatch) ([]tasker.Dispatch, error) {
	queued := map[string]map[[3]int64]bool{}
	var missing []tasker.Dispatch
	for _, d := range dispatches {
		attempts, known := queued[d.Queue]
		if !known {
			var err error
			if attempts, err = p.queued(ctx, d.Queue); err != nil {
				return nil, err
			}
			queued[d.Queue] = attempts
		}
		if !attempts[[3]int64{d.StepID, int64(d.Attempt), d.Ticket}] {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// queued reads the attempts in a queue from the end where new jobs come in.
// Those that come meanwhile shift the list and make it read some twice, never
// none.
func (p *Pusher) queued(ctx context.Context, queue string) (map[[3]int64]bool, error) {
	attempts := map[[3]int64]bool{}
	for start := int64(0); ; start += most {
		page, err := p.redis.LRange(ctx, "queue:"+queue, start, start+most-1).Result()
		if err != nil {
			return nil, fmt.Errorf("read queue %s: %w", queue, err)
		}
		for _, payload := range page {
			for _, attempt := range carried(payload) {
				attempts[attempt] = true
			}
		}
		if len(page) < most {
			return attempts, nil
		}
	}
}
