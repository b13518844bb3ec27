package orchestrator

import (
	"testing"
	"time"
)

func TestTheWaitForAHandlerDoublesUpToABound(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		wait, most time.Duration
		epoch      int
		want       time.Duration
	}{
		{3 * s, 300 * s, 0, 3 * s},
		{3 * s, 300 * s, 1, 3 * s},
		{3 * s, 300 * s, 2, 6 * s},
		{3 * s, 300 * s, 7, 192 * s},
		{3 * s, 300 * s, 8, 300 * s},
		{3 * s, 300 * s, 1 << 30, 300 * s},
		{600 * s, 300 * s, 5, 600 * s},
		{1<<62 + 1, 1<<63 - 1, 9, 1<<63 - 1},
	} {
		if got := doubled(c.wait, c.epoch, c.most); got != c.want {
			t.Errorf("%s, at most %s, at epoch %d: %s, want %s", c.wait, c.most, c.epoch, got, c.want)
		}
	}
}
