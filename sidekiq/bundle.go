package sidekiq

import (
	"context"
	"slices"
	"time"

	"github.com/taskerhq/tasker"
)

// Consumer is a Sidekiq process as it last described itself.
type Consumer struct {
	Queues      []string                 // none: not known, so it may be any
	Concurrency int                      // threads
	Bundles     bool                     // it understands jobs that carry several attempts
	Takes       map[string]time.Duration // how long handlers take there, by class
}

// SetConsumers says who takes jobs. Until then, none carries several attempts.
func (p *Pusher) SetConsumers(consumers []Consumer) { p.consumers.Store(&consumers) }

// grain is the work that is worth a job of its own, once there is more than the
// threads can begin at once. Starting a job's attempts takes about half a
// millisecond, so threads that share less than this hold each other up.
const grain = 2 * time.Millisecond

// bundles divides attempts of one queue among jobs. Attempts ride together only
// when there are more than the idle threads could begin at once, and only those
// whose handlers are known to be quick: so no thread runs out of work that rides
// with another, and nobody waits long behind another.
func (p *Pusher) bundles(ctx context.Context, queue string, attempts []tasker.Dispatch, threads int, takes map[string]time.Duration) [][]tasker.Dispatch {
	jobs := len(attempts)
	if len(attempts) > 1 && p.tuning.Bundle > 1 && threads > 0 {
		waiting, err := p.redis.LLen(ctx, "queue:"+queue).Result()
		if err != nil {
			waiting = 0 // Redis is away, and the push says so
		}
		if free := threads - int(waiting); len(attempts) > free {
			jobs = max(min(free, grains(attempts, takes)), (len(attempts)+p.tuning.Bundle-1)/p.tuning.Bundle)
		}
	}
	return divide(attempts, jobs, p.tuning.BundleTime, takes)
}

// grains says how many jobs the attempts are worth.
func grains(attempts []tasker.Dispatch, takes map[string]time.Duration) int {
	var all time.Duration
	for _, d := range attempts {
		all += takes[d.Handler]
	}
	return int((all + grain - 1) / grain)
}

// divide makes so many jobs of attempts, all of about the same size, or more
// where some may not ride together.
func divide(attempts []tasker.Dispatch, jobs int, most time.Duration, takes map[string]time.Duration) (all [][]tasker.Dispatch) {
	for i := range jobs {
		var riding []tasker.Dispatch
		var together time.Duration
		for _, d := range attempts[len(attempts)*i/jobs : len(attempts)*(i+1)/jobs] {
			long, known := takes[d.Handler]
			if d.Alone || !known || long > most/2 {
				all = append(all, []tasker.Dispatch{d})
				continue
			}
			if together+long > most {
				all, riding, together = append(all, riding), nil, 0
			}
			riding, together = append(riding, d), together+long
		}
		if len(riding) > 0 {
			all = append(all, riding)
		}
	}
	return all
}

// threads adds up who takes jobs of the queue, and how long handlers take, at the
// slowest of them. It is 0 while a process is among them that understands only
// jobs of one attempt.
func (p *Pusher) threads(queue string) (int, map[string]time.Duration) {
	consumers := p.consumers.Load()
	if consumers == nil {
		return 0, nil
	}
	n, takes := 0, map[string]time.Duration{}
	for _, c := range *consumers {
		if len(c.Queues) > 0 && !slices.Contains(c.Queues, queue) {
			continue
		}
		if !c.Bundles {
			return 0, nil
		}
		n += max(c.Concurrency, 1)
		for handler, long := range c.Takes {
			takes[handler] = max(takes[handler], long)
		}
	}
	return n, takes
}
