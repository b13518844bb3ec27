package store

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// sizes hands in n items, one after the other at the same time, and says how they
// were grouped. Flushes take a second, so that what comes meanwhile queues up.
func sizes(t *testing.T, g *group[int, int], flushed *[]int, n int) []int {
	t.Helper()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if got, err := g.do(t.Context(), i); got != i || err != nil {
				t.Errorf("item %d: got %d, %v", i, got, err)
			}
		})
		synctest.Wait()
	}
	all.Wait()
	got := slices.Clone(*flushed)
	*flushed = nil
	return got
}

func TestAGroupWaitsOnlyForCompanyThatWasAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			mu      sync.Mutex
			flushed []int
		)
		g := newGroup(1, 5, func(items []int) []outcome[int] {
			mu.Lock()
			flushed = append(flushed, len(items))
			mu.Unlock()
			time.Sleep(time.Second)
			outcomes := make([]outcome[int], len(items))
			for i, item := range items {
				outcomes[i].value = item
			}
			return outcomes
		})
		for _, c := range []struct {
			what         string
			expect, come int
			want         []int
			waits        time.Duration
		}{
			{"a lone item goes at once", 0, 1, []int{1}, 0},
			{"one that was announced, too", 1, 1, []int{1}, 0},
			{"the first goes alone, the others queue up behind it", 0, 4, []int{1, 3}, 0},
			{"those that were announced go together", 4, 4, []int{4}, 0},
			{"no more at once than fit", 6, 6, []int{5, 1}, 0},
			{"nor waited for more than fit", 9, 5, []int{5}, 0},
			{"more come than were announced", 2, 4, []int{2, 2}, 0},
			{"who doesn't come is not waited for long", 3, 2, []int{2}, latecomers},
			{"and then not any more", 0, 1, []int{1}, 0},
		} {
			begun := time.Now()
			g.expect(c.expect)
			got := sizes(t, g, &flushed, c.come)
			if took := time.Since(begun) - time.Duration(len(c.want))*time.Second; !slices.Equal(got, c.want) || took != c.waits {
				t.Errorf("%s: groups of %v after %s, not of %v after %s", c.what, got, took, c.want, c.waits)
			}
			time.Sleep(latecomers) // the timer of this case is not the next one's
		}
	})
}
