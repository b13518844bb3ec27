package dag

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestPositionsIsASortedSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Around the sizes at which a layer is added.
		n := rapid.SampledFrom([]int{1, 63, 64, 65, 4095, 4096, 4097, 300_000}).Draw(t, "size")
		p := newPositions(n)
		members := map[int]bool{}
		for range rapid.IntRange(0, 60).Draw(t, "changes") {
			i := rapid.IntRange(0, n-1).Draw(t, "position")
			member := rapid.Bool().Draw(t, "member")
			p.put(i, member)
			if members[i] = member; !member {
				delete(members, i)
			}
			from := rapid.IntRange(0, n).Draw(t, "from")
			next := -1
			for m := range members {
				if m >= from && (next < 0 || m < next) {
					next = m
				}
			}
			if got := p.next(from); got != next {
				t.Fatalf("next from %d is %d, want %d", from, got, next)
			}
		}
		var sorted []int
		for m := range members {
			sorted = append(sorted, m)
		}
		slices.Sort(sorted)
		if p.count != len(members) || !slices.Equal(p.all(), sorted) {
			t.Fatalf("%d members %v, want %v", p.count, p.all(), sorted)
		}
	})
}
