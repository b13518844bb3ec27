package finalizer_test

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/finalizer"
)

var growths = []tasker.Backoff{
	tasker.BackoffNone, tasker.BackoffFixed, tasker.BackoffLinear, tasker.BackoffExponential, tasker.BackoffFibonacci,
}

func TestBackoffGrows(t *testing.T) {
	for growth, want := range map[tasker.Backoff][]float64{ // n = 1, 2, 3 …
		tasker.BackoffNone:        {0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		tasker.BackoffFixed:       {3, 3, 3, 3, 3, 3, 3, 3, 3, 3},
		tasker.BackoffLinear:      {3, 6, 9, 12, 15, 18, 21, 24, 27, 30},
		tasker.BackoffExponential: {3, 6, 12, 24, 48, 96, 100, 100, 100, 100},
		tasker.BackoffFibonacci:   {3, 3, 6, 9, 15, 24, 39, 63, 100, 100},
		"quadratic":               {3, 6, 12, 24, 48, 96, 100, 100, 100, 100}, // not known: exponential
	} {
		policy := tasker.RetryPolicy{Backoff: growth, Base: 3, Cap: 100}
		for k, seconds := range want {
			if got := finalizer.Backoff(policy, k+1, middle); got != tasker.Seconds(seconds).Duration() {
				t.Errorf("%s, n = %d: %v, want %v s", growth, k+1, got, seconds)
			}
		}
	}
}

// The table in Backoff's comment.
func TestBackoffAsDocumented(t *testing.T) {
	policy := tasker.DefaultRetryPolicy()
	if policy.Cap != 300 || policy.Base != 1 {
		t.Fatalf("the default policy is %+v", policy)
	}
	for growth, row := range map[tasker.Backoff][]int{
		tasker.BackoffLinear:      {1, 2, 3, 4, 5, 6, 9, 10, 13, 14},
		tasker.BackoffExponential: {1, 2, 4, 8, 16, 32, 256, 300, 300, 300},
		tasker.BackoffFibonacci:   {1, 1, 2, 3, 5, 8, 34, 55, 233, 300},
	} {
		policy.Backoff = growth
		for k, n := range []int{1, 2, 3, 4, 5, 6, 9, 10, 13, 14} {
			if got := finalizer.Backoff(policy, n, middle); got != time.Duration(row[k])*time.Second {
				t.Errorf("%s, n = %d: %v, want %d s", growth, n, got, row[k])
			}
		}
	}
}

func TestJitterSpreads(t *testing.T) {
	policy := tasker.RetryPolicy{Backoff: tasker.BackoffFixed, Base: 100, Cap: 105, Jitter: 0.1}
	for _, c := range []struct {
		draw    float64
		seconds tasker.Seconds
	}{
		{0, 90},
		{0.25, 95},
		{middle, 100},
		{0.75, 105},
		{1, 100}, // 110, mirrored at the cap
		{-3, 90},
		{7, 100},
		{math.NaN(), 100},
	} {
		got := finalizer.Backoff(policy, 1, c.draw)
		if diff := got - c.seconds.Duration(); diff.Abs() > time.Microsecond {
			t.Errorf("draw %v: %v, want %v s", c.draw, got, c.seconds)
		}
	}
}

func TestBackoffAtTheEdgesOfNumbers(t *testing.T) {
	huge := tasker.Seconds(math.MaxFloat64)
	inf := tasker.Seconds(math.Inf(1))
	nan := tasker.Seconds(math.NaN())
	const longest = time.Duration(math.MaxInt64)
	exponential := func(base, most tasker.Seconds) tasker.RetryPolicy {
		return tasker.RetryPolicy{Backoff: tasker.BackoffExponential, Base: base, Cap: most}
	}
	for _, c := range []struct {
		name   string
		policy tasker.RetryPolicy
		n      int
		want   time.Duration
	}{
		{"n of zero counts as one", exponential(5, 100), 0, 5 * time.Second},
		{"n below zero counts as one", exponential(5, 100), math.MinInt, 5 * time.Second},
		{"2^(n-1) past float64", exponential(1, 300), 1025, 300 * time.Second},
		{"n and base so large that their exponents add up beyond int", exponential(4, 300), math.MaxInt, 300 * time.Second},
		{"n as large as it gets", exponential(1, 300), math.MaxInt, 300 * time.Second},
		{"fib(n) past float64", tasker.RetryPolicy{Backoff: tasker.BackoffFibonacci, Base: 1, Cap: 300}, math.MaxInt, 300 * time.Second},
		{"no cap in sight", exponential(1, huge), math.MaxInt, longest},
		{"all infinite", exponential(inf, inf), 1, longest},
		{"a base above the cap", exponential(600, 300), 1, 300 * time.Second},
		{"base of zero", exponential(0, 300), math.MaxInt, 0},
		{"base below zero", exponential(-1, 300), 3, 0},
		{"base not a number", exponential(nan, 300), 3, 0},
		{"cap of zero", exponential(1, 0), 3, 0},
		{"cap not a number", exponential(1, nan), 3, 0},
		{"a policy that says nothing is the default", tasker.RetryPolicy{}, 4, 8 * time.Second},
	} {
		if got := finalizer.Backoff(c.policy, c.n, middle); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func anySeconds(t *rapid.T, what string) tasker.Seconds {
	return tasker.Seconds(rapid.OneOf(rapid.Float64Range(0, 4000), rapid.Float64()).Draw(t, what))
}

// anyPolicy draws policies with sense and without.
func anyPolicy(t *rapid.T) tasker.RetryPolicy {
	return tasker.RetryPolicy{
		Backoff:       rapid.SampledFrom(append(growths, "", "quadratic")).Draw(t, "backoff"),
		Base:          anySeconds(t, "base"),
		Cap:           anySeconds(t, "cap"),
		Jitter:        rapid.OneOf(rapid.Float64Range(0, 1), rapid.Float64()).Draw(t, "jitter"),
		RetryAfterCap: anySeconds(t, "retry after cap"),
	}
}

func TestBackoffLiesBetweenZeroAndTheCap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := anyPolicy(t)
		if policy == (tasker.RetryPolicy{}) {
			t.Skip("the default policy")
		}
		d := finalizer.Backoff(policy, rapid.Int().Draw(t, "n"), rapid.Float64().Draw(t, "draw"))
		if d < 0 || d > max(policy.Cap, 0).Duration() {
			t.Fatalf("%v with %+v", d, policy)
		}
	})
}

func TestBackoffWithoutJitterNeverShrinks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := anyPolicy(t)
		policy.Jitter = 0
		n := rapid.OneOf(rapid.IntRange(1, 100), rapid.IntRange(1, math.MaxInt-1)).Draw(t, "n")
		draw := rapid.Float64Range(0, 1).Draw(t, "draw")
		if a, b := finalizer.Backoff(policy, n, draw), finalizer.Backoff(policy, n+1, draw); a > b {
			t.Fatalf("%v after %d, %v after %d", a, n, b, n+1)
		}
	})
}

func TestJitterStaysWithinItsShare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := tasker.RetryPolicy{
			Backoff: rapid.SampledFrom(growths).Draw(t, "backoff"),
			Base:    tasker.Seconds(rapid.Float64Range(0, 100).Draw(t, "base")),
			Cap:     tasker.Seconds(rapid.Float64Range(0, 1000).Draw(t, "cap")),
			Jitter:  rapid.Float64Range(0, 1).Draw(t, "jitter"),
		}
		n := rapid.IntRange(1, 50).Draw(t, "n")
		plain := finalizer.Backoff(policy, n, middle).Seconds()
		spread := finalizer.Backoff(policy, n, rapid.Float64Range(0, 1).Draw(t, "draw")).Seconds()
		if math.Abs(spread-plain) > plain*policy.Jitter+1e-6 {
			t.Fatalf("%v s became %v s with %+v", plain, spread, policy)
		}
	})
}
