package jobs

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"
)

// River fetches along an index of the jobs that are available, the oldest first.
// While anybody holds a snapshot open, entries of jobs that were done since can't be
// removed from it, and each fetch reads over all of them: after five minutes under
// load that is 100 ms a fetch, and most of what such a database does.
//
// Where fetching is slow, it therefore goes by id from just below the last job that
// was fetched, and by River's statement only from time to time, for the few that
// are older and have become available again.

const (
	slowFetch = 5 * time.Millisecond // from which on it may be worth it
	fullShare = 20                   // all are looked through after so many times what that takes,
	fullEvery = time.Second          // but not more often
	// below is how far below the last fetched job the next may be: whose transaction
	// got its id earlier and committed later.
	below      = 1000
	notWorthIt = time.Minute // how long it isn't tried again where it was no quicker
)

// driver is River's own but for how jobs are fetched, and that it notes which are done.
type driver struct {
	*riverpgxv5.Driver
	known   *Known
	fetcher *fetcher
	fetched func(n int) // told how many jobs have come together, before they are worked; nil: nobody is
}

func newDriver(pool *pgxpool.Pool, schema, client string, known *Known, fetched func(n int)) *driver {
	schema = pgx.Identifier{schema}.Sanitize()
	return &driver{
		Driver: riverpgxv5.New(pool), known: known, fetched: fetched,
		fetcher: &fetcher{pool: pool, client: client, fetch: strings.ReplaceAll(fetchRecent, "{schema}", schema), ours: strings.ReplaceAll(runsHere, "{schema}", schema)},
	}
}

// GetExecutor implements riverdriver.Driver.
func (d *driver) GetExecutor() riverdriver.Executor {
	return &executor{d.Driver.GetExecutor(), d}
}

type executor struct {
	riverdriver.Executor
	driver *driver
}

// JobGetAvailable implements riverdriver.Executor.
func (e *executor) JobGetAvailable(ctx context.Context, p *riverdriver.JobGetAvailableParams) (*riverdriver.JobGetAvailableResult, error) {
	after, recent := e.driver.fetcher.recent()
	began := time.Now()
	var found *riverdriver.JobGetAvailableResult
	var err error
	if recent {
		found, err = e.driver.fetcher.newer(ctx, p, after)
	} else {
		found, err = e.Executor.JobGetAvailable(ctx, p)
	}
	if err == nil {
		e.driver.fetcher.took(time.Since(began), recent, found.Jobs, p.MaxToLock)
		if e.driver.fetched != nil {
			e.driver.fetched(len(found.Jobs))
		}
	}
	return found, err
}

// JobSetStateIfRunningMany implements riverdriver.Executor. River asks only whether a
// job runs, not whether it runs here: after a pause in which this worker was declared
// dead, it would end jobs that another one has by now.
func (e *executor) JobSetStateIfRunningMany(ctx context.Context, p *riverdriver.JobSetStateIfRunningManyParams) ([]*rivertype.JobRow, error) {
	ours := p
	if e.driver.known.late(p.ID) {
		ids, err := e.driver.fetcher.running(ctx, p.ID)
		if err != nil {
			return nil, err
		}
		ours = only(p, ids)
	}
	var jobs []*rivertype.JobRow
	if len(ours.ID) > 0 {
		var err error
		if jobs, err = e.Executor.JobSetStateIfRunningMany(ctx, ours); err != nil {
			return nil, err
		}
	}
	e.driver.known.written(p.ID)
	return jobs, nil
}

// only is the part of p that is about the jobs.
func only(p *riverdriver.JobSetStateIfRunningManyParams, jobs []int64) *riverdriver.JobSetStateIfRunningManyParams {
	o := &riverdriver.JobSetStateIfRunningManyParams{Now: p.Now, Schema: p.Schema}
	for i, id := range p.ID {
		if !slices.Contains(jobs, id) {
			continue
		}
		o.ID, o.Attempt, o.ErrData = append(o.ID, id), append(o.Attempt, p.Attempt[i]), append(o.ErrData, p.ErrData[i])
		o.FinalizedAt, o.ScheduledAt, o.State = append(o.FinalizedAt, p.FinalizedAt[i]), append(o.ScheduledAt, p.ScheduledAt[i]), append(o.State, p.State[i])
		o.MetadataDoMerge, o.MetadataUpdates = append(o.MetadataDoMerge, p.MetadataDoMerge[i]), append(o.MetadataUpdates, p.MetadataUpdates[i])
	}
	return o
}

// fetcher asks for this client's jobs, and knows how they are to be fetched next.
type fetcher struct {
	pool        *pgxpool.Pool
	client      string
	fetch, ours string // statements

	mu    sync.Mutex
	last  int64         // the highest id that was fetched, and none is left below it, but for those of below
	until time.Time     // only recent jobs are looked for, until then
	spent time.Duration // by fetches of recent jobs since all were looked through
	n     int           // how many they are
	from  time.Time     // from when on it may be worth it again
}

// recent says whether to fetch only jobs whose id is higher than after.
func (f *fetcher) recent() (after int64, recent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last - below, time.Now().Before(f.until)
}

// took notes what a fetch took that could have had so many jobs.
func (f *fetcher) took(d time.Duration, recent bool, jobs []*rivertype.JobRow, most int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := len(jobs) < most // that there were
	if all {
		for _, j := range jobs {
			f.last = max(f.last, j.ID)
		}
	}
	now := time.Now()
	if recent {
		f.spent += d
		f.n++
		return
	}
	if f.n > 0 && f.spent/time.Duration(f.n) > d/2 {
		f.from = now.Add(notWorthIt)
	}
	f.spent, f.n = 0, 0
	if d > slowFetch && all && now.After(f.from) {
		f.until = now.Add(max(fullEvery, fullShare*d))
	}
}

// fetchRecent is River's statement for jobs of higher ids, in terms that don't fit the
// index. Of the columns it leaves out those of unique jobs, which tasks' are not.
const fetchRecent = `WITH locked AS (
	SELECT id FROM {schema}.river_job
	WHERE id > $1 AND state::text = 'available' AND queue || '' = $2::text AND ($3::text[] IS NULL OR kind = ANY ($3::text[]))
	  AND scheduled_at <= coalesce($4::timestamptz, now())
	ORDER BY priority + 0, scheduled_at, id LIMIT $5 FOR UPDATE SKIP LOCKED)
UPDATE {schema}.river_job j
SET state = 'running', attempt = j.attempt + 1, attempted_at = coalesce($4::timestamptz, now()),
    attempted_by = array_append(CASE WHEN array_length(j.attempted_by, 1) >= $6::int
        THEN j.attempted_by[array_length(j.attempted_by, 1) + 2 - $6:] ELSE j.attempted_by END, $7::text)
FROM locked l WHERE j.id = l.id
RETURNING j.id, j.args, j.attempt, j.attempted_at, j.attempted_by, j.created_at, j.errors, j.kind, j.max_attempts, j.metadata, j.priority, j.queue, j.scheduled_at, j.tags`

func (f *fetcher) newer(ctx context.Context, p *riverdriver.JobGetAvailableParams, after int64) (*riverdriver.JobGetAvailableResult, error) {
	rows, err := f.pool.Query(ctx, f.fetch, after, p.Queue, p.Kind, p.Now, p.MaxToLock, p.MaxAttemptedBy, p.ClientID)
	if err != nil {
		return nil, fmt.Errorf("fetch jobs: %w", err)
	}
	found := &riverdriver.JobGetAvailableResult{}
	found.Jobs, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*rivertype.JobRow, error) {
		j := &rivertype.JobRow{State: rivertype.JobStateRunning}
		var failures [][]byte
		if err := row.Scan(&j.ID, &j.EncodedArgs, &j.Attempt, &j.AttemptedAt, &j.AttemptedBy, &j.CreatedAt, &failures, &j.Kind, &j.MaxAttempts,
			&j.Metadata, &j.Priority, &j.Queue, &j.ScheduledAt, &j.Tags); err != nil {
			return nil, err
		}
		at := j.AttemptedAt.UTC()
		j.AttemptedAt, j.CreatedAt, j.ScheduledAt = &at, j.CreatedAt.UTC(), j.ScheduledAt.UTC()
		j.Errors = make([]rivertype.AttemptError, len(failures))
		for i, failure := range failures {
			if err := riverdriver.UnmarshalAttemptError(failure, &j.Errors[i]); err != nil {
				if found.DecodeErrors == nil {
					found.DecodeErrors = map[int64]error{}
				}
				found.DecodeErrors[j.ID], j.Errors = err, nil
				break
			}
		}
		return j, nil
	})
	if err != nil {
		return nil, fmt.Errorf("fetch jobs: %w", err)
	}
	return found, nil
}

const runsHere = `SELECT id FROM {schema}.river_job WHERE id = ANY ($1) AND state = 'running' AND attempted_by[cardinality(attempted_by)] = $2`

// running says which of the jobs run, and are this client's.
func (f *fetcher) running(ctx context.Context, jobs []int64) ([]int64, error) {
	rows, err := f.pool.Query(ctx, f.ours, jobs, f.client)
	if err != nil {
		return nil, fmt.Errorf("read which jobs are still this worker's: %w", err)
	}
	ours, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("read which jobs are still this worker's: %w", err)
	}
	return ours, nil
}
