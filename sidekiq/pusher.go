package sidekiq

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/taskerhq/tasker"
)

// Open connects to the Redis that Sidekiq uses. The connection is made when it
// is first needed, so a Redis that is away does not keep a worker from running
// its Go steps.
func Open(url string) (*redis.Client, error) {
	options, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("redis URL %q: %w; it looks like redis://HOST:6379/0 (--redis-url, TASKER_REDIS_URL or REDIS_URL)", hidePassword(url), err)
	}
	options.MaxRetries = 1
	options.DialTimeout = 2 * time.Second
	return redis.NewClient(options), nil
}

// Pusher pushes attempts, all that have come together at once, in the
// background.
type Pusher struct {
	redis *redis.Client
	log   *slog.Logger

	mu      sync.Mutex
	waiting []tasker.Dispatch
	signal  chan struct{}
}

// NewPusher returns a pusher; Run makes it work.
func NewPusher(client *redis.Client, log *slog.Logger) *Pusher {
	return &Pusher{redis: client, log: log, signal: make(chan struct{}, 1)}
}

// Push hands attempts over. It never blocks. While Redis is away for long,
// those beyond mostWaiting are dropped: whoever looks for attempts that are in
// no queue pushes them.
func (p *Pusher) Push(dispatches []tasker.Dispatch) {
	p.mu.Lock()
	room := max(mostWaiting-len(p.waiting), 0)
	p.waiting = append(p.waiting, dispatches[:min(len(dispatches), room)]...)
	p.mu.Unlock()
	p.wake()
}

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
		p.mu.Lock()
		n := min(len(p.waiting), mostAtOnce)
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
		case <-time.After(min(100*time.Millisecond<<min(failures, 6), 2*time.Second)):
		case <-ctx.Done():
			return
		}
		p.Push(batch)
	}
}

// Bounds: jobs in one command, in one transaction (larger ones could outlast
// the client's timeout and be sent twice), and in memory while Redis is away.
const (
	most        = 1000
	mostAtOnce  = 5000
	mostWaiting = 100_000
)

// PushNow pushes attempts in one round trip: per queue what Sidekiq's own
// client does, in a transaction.
func (p *Pusher) PushNow(ctx context.Context, dispatches []tasker.Dispatch) error {
	byQueue := map[string][]any{}
	var queues []string
	now := time.Now()
	for _, d := range dispatches {
		if byQueue[d.Queue] == nil {
			queues = append(queues, d.Queue)
		}
		byQueue[d.Queue] = append(byQueue[d.Queue], payload(d, now))
	}
	_, err := p.redis.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, q := range queues {
			pipe.SAdd(ctx, "queues", q)
			for jobs := byQueue[q]; len(jobs) > 0; {
				n := min(len(jobs), most)
				pipe.LPush(ctx, "queue:"+q, jobs[:n]...)
				jobs = jobs[n:]
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("push %d jobs to redis: %w", len(dispatches), err)
	}
	return nil
}

// Missing returns those of the attempts that are in no queue.
func (p *Pusher) Missing(ctx context.Context, dispatches []tasker.Dispatch) ([]tasker.Dispatch, error) {
	queued := map[string]map[string]bool{}
	var missing []tasker.Dispatch
	for _, d := range dispatches {
		jids, known := queued[d.Queue]
		if !known {
			var err error
			if jids, err = p.jids(ctx, d.Queue); err != nil {
				return nil, err
			}
			queued[d.Queue] = jids
		}
		if !jids[JID(d.StepID, d.Attempt)] {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// jids reads the job ids of a queue from the end where new jobs come in. Those
// that come meanwhile shift the list and make it read some twice, never none.
func (p *Pusher) jids(ctx context.Context, queue string) (map[string]bool, error) {
	jids := map[string]bool{}
	for start := int64(0); ; start += most {
		page, err := p.redis.LRange(ctx, "queue:"+queue, start, start+most-1).Result()
		if err != nil {
			return nil, fmt.Errorf("read queue %s: %w", queue, err)
		}
		for _, payload := range page {
			var j struct {
				JID string `json:"jid"`
			}
			if json.Unmarshal([]byte(payload), &j) == nil { // what others queue is not ours to judge
				jids[j.JID] = true
			}
		}
		if len(page) < most {
			return jids, nil
		}
	}
}
