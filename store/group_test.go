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

// Flushers that are too many end when they have flushed what they took, and come
// back when there may be more.
func TestAGroupsLimitCanChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			mu          sync.Mutex
			now, atMost int
		)
		g := newGroup(2, 1, func(items []int) []outcome[int] {
			mu.Lock()
			now++
			atMost = max(atMost, now)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			now--
			mu.Unlock()
			return []outcome[int]{{value: items[0]}}
		})
		run := func(n int) *sync.WaitGroup {
			var all sync.WaitGroup
			for i := range n {
				all.Go(func() {
					if got, err := g.do(t.Context(), i); got != i || err != nil {
						t.Errorf("item %d: got %d, %v", i, got, err)
					}
				})
			}
			return &all
		}
		check := func(what string, begun time.Time, took time.Duration, most int) {
			t.Helper()
			if time.Since(begun) != took || atMost != most {
				t.Errorf("%s: took %s with %d at once, not %s with %d", what, time.Since(begun), atMost, took, most)
			}
			atMost = 0
		}

		begun := time.Now()
		run(4).Wait()
		check("two at once", begun, 2*time.Second, 2)

		begun = time.Now()
		all := run(6)
		time.Sleep(time.Second / 2)
		g.setLimit(1)
		all.Wait()
		check("the first two together, four in a row", begun, 5*time.Second, 2)

		begun = time.Now()
		all = run(6)
		time.Sleep(3 * time.Second / 2)
		g.setLimit(3) // and at once: not only when the one has flushed
		all.Wait()
		check("two in a row, four by three", begun, 3500*time.Millisecond, 3)
	})
}
