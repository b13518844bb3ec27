//go:build linux

// Command chaos runs tasker under faults and says whether it kept its promises:
//
//	go run ./chaos -seed 1 -for 30m
//
// It starts a Postgres (fsync on), a Redis, two workers and two Sidekiqs of its
// own, each with its own wires to both servers, enqueues random DAGs of Go and
// Ruby steps all the while, and brings about one fault after the other: half of
// them apart, so that recovery can be measured, half of them on top of each
// other. Then it leaves all in peace, waits until every task has ended, and holds
// what is stored against what is promised (tasker doctor) and against a ledger
// that the handlers have kept themselves.
//
// The seed decides the templates, the faults, their order and their lengths.
// What the machine makes of them is its own.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/taskerhq/tasker/devstack"
	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/sidekiq"
	"github.com/taskerhq/tasker/store"
)

type run struct {
	seed   int64
	random *rand.Rand // of the templates and the faults
	only   string
	// What processes are deployed in place of, and taken back to; empty: nothing.
	revision string

	dir               string
	this, old         *version // old: nil where there is no revision
	disk              string   // what Postgres has its data on
	smallDisk         bool     // which is a file system of its own, in memory
	postgres          *devstack.Postgres
	ahead             time.Duration // by how much its clock is before ours
	redis             *devstack.Redis
	redisClient       *redis.Client
	pool              *pgxpool.Pool
	store             *store.Store
	workers, sidekiqs []*process

	enqueued atomic.Int64
	flood    atomic.Int64 // tasks that are open besides those of every day
}

var errSkipped = errors.New("can't be brought about here")

func main() {
	ctx, stop := devstack.Told()
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		flags := flag.NewFlagSet("worker", flag.ExitOnError)
		without := flags.String("without", "", "")
		hasty := flags.Bool("hasty", false, "")
		_ = flags.Parse(os.Args[2:]) // ends the program
		if err := runWorker(ctx, *without, *hasty); err != nil {
			fmt.Fprintln(os.Stderr, "chaos worker:", err)
			os.Exit(1)
		}
		return
	}
	seeds := flag.String("seed", "1", "seeds, one run after the other: 1,2,3")
	lasting := flag.Duration("for", 2*time.Minute, "how long faults are brought about, in each run")
	only := flag.String("only", "", "only the faults whose name has this in it")
	open := flag.Int("open", 150, "tasks that are open at a time, about")
	out := flag.String("json", "", "a file for all figures")
	smallDisk := flag.Bool("small-disk", false, "give Postgres a disk of 1 GiB, in memory, and fill it up (root only)")
	revision := flag.String("old", "", "a revision of this repository that deployments replace by this source, and are taken back to")
	keep := flag.String("logs", "", "a folder that keeps the logs of all processes")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "chaos: what is", flag.Arg(0), "? See: go run ./chaos -help")
		os.Exit(2)
	}
	all := summary{}
	broken := false
	for word := range strings.SplitSeq(*seeds, ",") {
		r := run{only: *only, smallDisk: *smallDisk, revision: *revision}
		if _, err := fmt.Sscan(word, &r.seed); err != nil {
			fmt.Fprintf(os.Stderr, "chaos: -seed takes numbers, not %q\n", word)
			os.Exit(2)
		}
		result, err := r.all(ctx, *lasting, *open, *keep)
		if err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
			os.Exit(1)
		}
		all.add(result)
		broken = broken || len(result.Broken) > 0
	}
	all.print(os.Stdout)
	if *out != "" {
		text, err := json.MarshalIndent(all, "", "  ")
		if err == nil {
			err = os.WriteFile(*out, append(text, '\n'), 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
			os.Exit(1)
		}
	}
	if broken {
		os.Exit(1)
	}
}

func (r *run) all(ctx context.Context, lasting time.Duration, open int, keep string) (_ *result, err error) {
	r.random = rand.New(rand.NewPCG(uint64(r.seed), 1))
	dir, cleanup, err := devstack.WorkDir("")
	if err != nil {
		return nil, err
	}
	defer cleanup()
	r.dir = dir
	if keep != "" {
		r.dir = filepath.Join(keep, fmt.Sprint("seed-", r.seed))
		if err := os.MkdirAll(r.dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := r.findVersions(ctx, dir); err != nil {
		return nil, err
	}
	if err := r.open(ctx, dir); err != nil {
		return nil, errors.Join(err, r.close())
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.makeTemplates(ctx); err != nil {
		return nil, err
	}
	if err := r.startAll(ctx); err != nil {
		return nil, err
	}

	began := time.Now()
	say("seed %d: faults for %s", r.seed, lasting)
	loading, enough := context.WithCancel(ctx)
	var loader sync.WaitGroup
	loader.Go(func() { r.load(loading, open) })
	var acts int
	loader.Go(func() { acts = r.harass(loading) })
	history, err := r.bringAbout(ctx, time.Now().Add(lasting))
	enough()
	loader.Wait()
	if err != nil {
		return nil, err
	}
	say("seed %d: hostile logins did %d things", r.seed, acts)
	say("seed %d: in peace; waiting until all %d tasks have ended", r.seed, r.enqueued.Load())
	quiet := time.Now()
	err = r.until(ctx, "all tasks have ended", func() (bool, error) {
		var n int
		err := r.pool.QueryRow(ctx, `SELECT count(*) FROM tasker.tasks WHERE state IN ('pending', 'in_progress')`).Scan(&n)
		return n == 0, err
	})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		say("%v", err) // the verdict counts them
	}
	say("seed %d: settled after %s; the verdict", r.seed, time.Since(quiet).Round(time.Second))
	result := &result{Seed: r.seed, Seconds: time.Since(began).Seconds(), Settled: time.Since(quiet).Seconds(), Faults: map[string]*figures{}}
	for _, h := range history {
		result.count(h)
	}
	if err := r.pool.QueryRow(ctx, `SELECT (SELECT count(*) FROM tasker.tasks), (SELECT count(*) FROM tasker.steps WHERE state = 'complete'),
			(SELECT coalesce(sum(losses), 0) FROM tasker.steps), (SELECT count(*) FROM tasker.events WHERE name = 'step.report_refused')`).
		Scan(&result.Tasks, &result.Steps, &result.Losses, &result.Refused); err != nil {
		return nil, err
	}
	result.Broken, result.Duplicates, err = r.verdict(ctx)
	found, logErr := r.sweepFound()
	if err = errors.Join(err, logErr); found > 0 {
		result.Broken = append(result.Broken, fmt.Sprintf("%d times the sweep found tasks that nothing else would have brought back", found))
	}
	for _, b := range result.Broken {
		say("BROKEN: %s", b)
	}
	return result, err
}

// open starts the servers.
func (r *run) open(ctx context.Context, dir string) (err error) {
	r.disk = filepath.Join(dir, "postgres")
	if r.smallDisk {
		if err := os.Mkdir(r.disk, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("chaos", r.disk, "tmpfs", 0, "size=1g"); err != nil {
			return fmt.Errorf("mount a small disk: %w", err)
		}
	}
	// Go asks the kernel what time it is, past any library; so all others are wrong.
	var clock []string
	if ahead := pick(r.random, []time.Duration{0, wrongBy, -wrongBy}); ahead != 0 {
		clock, err = devstack.WrongClock(ctx, dir, ahead)
		if err == nil {
			r.ahead = ahead
			say("seed %d: all clocks but Postgres's are wrong by %s", r.seed, -ahead)
		} else if !errors.Is(err, devstack.ErrNoWrongClock) {
			return err
		}
	}
	if r.postgres, err = devstack.StartPostgres(ctx, devstack.PostgresOptions{Dir: r.disk, Fsync: true, Env: clock}); err != nil {
		return err
	}
	if r.redis, err = devstack.StartRedis(ctx, devstack.RedisOptions{Dir: filepath.Join(dir, "redis")}); err != nil {
		return err
	}
	if err = r.postgres.CreateDatabase(ctx, "chaos"); err != nil {
		return err
	}
	// Two for the load, one for the faults, one to spare: they go past the proxies.
	if r.pool, err = store.Open(ctx, r.postgres.URL("chaos"), "chaos", 4); err != nil {
		return err
	}
	r.store = store.New(r.pool)
	if err = migrations.Up(ctx, r.pool); err != nil {
		return err
	}
	if err = r.makeHostile(ctx); err != nil {
		return err
	}
	if _, err = r.pool.Exec(ctx, ledger); err != nil {
		return err
	}
	r.redisClient, err = sidekiq.Open(r.redis.URL(0))
	return err
}

func (r *run) close() error {
	for _, p := range r.everyone() {
		p.close()
	}
	if r.redisClient != nil {
		_ = r.redisClient.Close() // the server goes, too
	}
	if r.pool != nil {
		r.pool.Close()
	}
	var err error
	if r.redis != nil {
		err = r.redis.Kill()
	}
	if r.postgres != nil {
		err = errors.Join(err, r.postgres.Kill())
	}
	if r.smallDisk {
		err = errors.Join(err, syscall.Unmount(r.disk, syscall.MNT_DETACH)) // backends may still be ending
	}
	return err
}

// sweepFound counts how often the last net has caught something, by the workers'
// logs: there is nothing that it should have to catch.
func (r *run) sweepFound() (n int, err error) {
	for _, p := range r.workers {
		text, err := os.ReadFile(p.log.Name())
		if err != nil {
			return 0, err
		}
		n += strings.Count(string(text), "nothing would have brought back")
	}
	return n, nil
}

// bringAbout brings about one fault after the other until the time is over.
func (r *run) bringAbout(ctx context.Context, until time.Time) ([]*happened, error) {
	var bag []*fault
	for i := range faults {
		if strings.Contains(strings.ToLower(faults[i].name), strings.ToLower(r.only)) {
			for range faults[i].weight {
				bag = append(bag, &faults[i])
			}
		}
	}
	if len(bag) == 0 {
		return nil, fmt.Errorf("no fault has %q in its name", r.only)
	}
	var history []*happened
	skipped := map[string]bool{}
	for n := 0; time.Now().Before(until); {
		// Every fault has its turn before the first one comes again as often as it may.
		if n%len(bag) == 0 {
			r.random.Shuffle(len(bag), func(i, j int) { bag[i], bag[j] = bag[j], bag[i] })
		}
		f := bag[n%len(bag)]
		n++
		apart := r.random.IntN(2) == 0
		pause := time.Duration(r.random.Int64N(int64(2 * time.Second)))
		h, err := r.strike(ctx, f)
		if errors.Is(err, errSkipped) {
			if !skipped[f.name] {
				say("%s: %v", f.name, err)
			}
			skipped[f.name] = true
			continue
		}
		if err != nil {
			return nil, err
		}
		history = append(history, h)
		for _, p := range r.everyone() {
			if !p.alive() { // of its own accord; a supervisor would do the same
				say("%s had ended and is started again", p.name)
				if err := p.start(); err != nil {
					return nil, err
				}
			}
		}
		if h.apart = apart; apart {
			err := r.until(ctx, "all that "+strings.ToLower(f.name)+" was about goes on", func() (bool, error) {
				waiting, err := r.measure(ctx, h)
				return err == nil && waiting == 0, err
			})
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				return nil, errors.Join(err, r.dump(ctx, h))
			}
		}
		say("%3d %-22s %s", len(history), f.name, h.said())
		if err := wait(ctx, pause); err != nil {
			return nil, err
		}
	}
	return history, nil
}

// dump shows what has not gone on.
func (r *run) dump(ctx context.Context, h *happened) error {
	rows, err := r.pool.Query(ctx, `SELECT format('task %s %s owner=%s epoch=%s steps: %s; jobs: %s', t.task_id, t.state, t.owner, t.epoch,
			(SELECT string_agg(format('%s %s %s/%s %s', s.step_id, s.name, s.state, s.attempts, coalesce(d.looked_at::text, '')), ', ' ORDER BY s.step_id)
			 FROM tasker.steps s LEFT JOIN tasker.dispatches d USING (step_id) WHERE s.task_id = t.task_id),
			(SELECT string_agg(format('%s %s %s', j.id, j.state, j.scheduled_at), ', ') FROM tasker.river_job j WHERE (j.args ->> 'task_id')::bigint = t.task_id))
		FROM tasker.tasks t WHERE t.task_id = ANY ($1) AND t.state IN ('pending', 'in_progress')
		  AND NOT EXISTS (SELECT FROM tasker.events e WHERE e.task_id = t.task_id AND e.created_at > $2) LIMIT 10`, h.tasks, h.from)
	if err != nil {
		return err
	}
	defer rows.Close()
	var lines []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return err
		}
		lines = append(lines, line)
	}
	return errors.New(strings.Join(lines, "\n"))
}

// until waits for two minutes at most: far more than anything may take.
func (r *run) until(ctx context.Context, what string, holds func() (bool, error)) error {
	deadline := time.Now().Add(2 * time.Minute)
	for {
		ok, err := holds()
		if err == nil && ok {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("after two minutes it is still not so that %s", what), err)
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// said is what is known of the recovery so far.
func (h *happened) said() string {
	if !h.apart {
		return "and at once the next"
	}
	if len(h.recovery) == 0 {
		return "nothing was about to be lost"
	}
	slices.Sort(h.recovery)
	return fmt.Sprintf("%d went on, the last after %s", len(h.recovery), h.recovery[len(h.recovery)-1].Round(10*time.Millisecond))
}
