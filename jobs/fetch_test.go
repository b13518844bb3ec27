package jobs

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/rivertype"

	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// insertJobs inserts jobs of several priorities, one that was tried before, and
// three that are not to be fetched: due later, of another queue, of another kind.
func insertJobs(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `INSERT INTO tasker.river_job (kind, args, queue, priority, max_attempts, state, scheduled_at, tags, attempt, attempted_by, errors, metadata)
		SELECT CASE i WHEN 9 THEN 'other' ELSE 'task_execution' END, jsonb_build_object('task_id', i), CASE i WHEN 8 THEN 'elsewhere' ELSE 'default' END,
		       1 + i % 3, 1000, 'available', CASE i WHEN 7 THEN timestamptz '2100-01-01' ELSE timestamptz '2026-01-01' - i * interval '1 s' END, '{a,b}',
		       CASE i WHEN 2 THEN 3 ELSE 0 END, CASE i WHEN 2 THEN '{x,y,z}'::text[] END,
		       CASE i WHEN 2 THEN ARRAY[jsonb_build_object('at', '2026-01-02T03:04:05Z', 'attempt', 3, 'error', 'no', 'trace', '')] END, '{"k": 1}'
		FROM generate_series(1, 9) i`); err != nil {
		t.Fatal(err)
	}
}

// What is fetched by id is fetched as River does it: the same jobs, in the same
// order of importance, left in the same state.
func TestRecentJobsAreFetchedAsRiverFetches(t *testing.T) {
	t.Parallel()
	type fetched struct {
		jobs [][]*rivertype.JobRow
		left string
	}
	var of [2]fetched
	for way := range of {
		pool := testenv.Pool(t, testenv.Database(t))
		insertJobs(t, pool)
		var told []int
		d := newDriver(pool, migrations.Schema, "me", &Known{}, func(n int) { told = append(told, n) })
		e := d.GetExecutor()
		at := time.Date(2026, 11, 12, 13, 14, 15, 0, time.UTC)
		p := &riverdriver.JobGetAvailableParams{ClientID: "me", Kind: []string{"task_execution"}, MaxAttemptedBy: 3, MaxToLock: 4, Now: &at, Queue: "default", Schema: migrations.Schema}
		for range 3 {
			if way == 1 {
				d.fetcher.until = time.Now().Add(time.Hour)
				d.fetcher.last = below // ids from 1
			}
			found, err := e.JobGetAvailable(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			byID := map[int64]*rivertype.JobRow{} // RETURNING has no order
			for _, j := range found.Jobs {
				j.CreatedAt, j.UniqueStates = time.Time{}, nil
				byID[j.ID] = j
			}
			var jobs []*rivertype.JobRow
			for id := int64(1); id < 10; id++ {
				if byID[id] != nil {
					jobs = append(jobs, byID[id])
				}
			}
			of[way].jobs = append(of[way].jobs, jobs)
		}
		if !slices.Equal(told, []int{4, 2, 0}) {
			t.Errorf("told of %v jobs, not of 4, 2 and none", told)
		}
		if err := pool.QueryRow(t.Context(), `SELECT string_agg(concat_ws(' ', id, state, attempt, attempted_at, attempted_by, scheduled_at), E'\n' ORDER BY id) FROM tasker.river_job`).
			Scan(&of[way].left); err != nil {
			t.Fatal(err)
		}
	}
	if n := fmt.Sprint(len(of[0].jobs[0]), len(of[0].jobs[1]), len(of[0].jobs[2])); n != "4 2 0" {
		t.Fatalf("River fetched %s jobs, not 4 2 0", n)
	}
	for round := range of[0].jobs {
		for i, want := range of[0].jobs[round] {
			if i >= len(of[1].jobs[round]) || !reflect.DeepEqual(of[1].jobs[round][i], want) {
				t.Errorf("fetch %d: got %+v, River %+v", round, of[1].jobs[round], want)
			}
		}
		if len(of[1].jobs[round]) != len(of[0].jobs[round]) {
			t.Errorf("fetch %d: got %d jobs, River %d", round, len(of[1].jobs[round]), len(of[0].jobs[round]))
		}
	}
	if of[0].left != of[1].left {
		t.Errorf("jobs were left as\n%s\nby River as\n%s", of[1].left, of[0].left)
	}
}

// jobsUpTo are n jobs, the last of which has the id.
func jobsUpTo(id int64, n int) (jobs []*rivertype.JobRow) {
	for i := range n {
		jobs = append(jobs, &rivertype.JobRow{ID: id - int64(i)})
	}
	return jobs
}

func TestJobsAreFetchedByIDOnlyWhereThatIsWorthIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fetcher{}
		want := func(what string, after int64, recent bool) {
			t.Helper()
			if a, r := f.recent(); r != recent || recent && a != after {
				t.Errorf("%s: recent %t after %d, not %t after %d", what, r, a, recent, after)
			}
		}
		f.took(time.Millisecond, false, jobsUpTo(5000, 3), 10)
		want("a quick fetch", 0, false)
		f.took(100*time.Millisecond, false, jobsUpTo(6000, 10), 10)
		want("slow, and there may be more", 0, false)
		f.took(100*time.Millisecond, false, jobsUpTo(7000, 3), 10)
		want("slow, and all are fetched", 7000-below, true)
		f.took(time.Millisecond, true, jobsUpTo(8000, 3), 10)
		want("quick by id", 8000-below, true)
		f.took(time.Millisecond, true, jobsUpTo(9500, 10), 10)
		want("some may be left below", 8000-below, true)
		time.Sleep(fullShare*100*time.Millisecond - time.Nanosecond)
		want("just before all are looked through again", 8000-below, true)
		time.Sleep(time.Nanosecond)
		want("then", 0, false)
		f.took(100*time.Millisecond, false, nil, 10)
		want("still slow", 8000-below, true)
		f.took(80*time.Millisecond, true, nil, 10)
		time.Sleep(2 * time.Second)
		f.took(100*time.Millisecond, false, nil, 10)
		want("by id was no quicker", 0, false)
		time.Sleep(notWorthIt - time.Second)
		f.took(100*time.Millisecond, false, nil, 10)
		want("not yet again", 0, false)
		time.Sleep(2 * time.Second)
		f.took(100*time.Millisecond, false, nil, 10)
		want("tried again", 8000-below, true)
	})
}

// A job that is older than those is found when all are looked through.
func TestOlderJobsAreFoundInTime(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t, testenv.Database(t))
	insertJobs(t, pool)
	d := newDriver(pool, migrations.Schema, "me", &Known{}, nil)
	p := &riverdriver.JobGetAvailableParams{ClientID: "me", MaxAttemptedBy: 3, MaxToLock: 100, Queue: "default", Schema: migrations.Schema}
	d.fetcher.last, d.fetcher.until = 5000, time.Now().Add(time.Hour)
	for _, want := range []int{0, 7} {
		found, err := d.GetExecutor().JobGetAvailable(t.Context(), p)
		if err != nil || len(found.Jobs) != want {
			t.Fatalf("fetched %d jobs, %v; not %d", len(found.Jobs), err, want)
		}
		d.fetcher.until = time.Now()
	}
}
