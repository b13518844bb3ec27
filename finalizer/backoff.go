package finalizer

import (
	"math"
	"time"

	"github.com/taskerhq/tasker"
)

// Backoff is the delay before the next attempt, after n attempts were used up.
//
//	none         0
//	fixed        base
//	linear       base · n
//	exponential  base · 2^(n-1)
//	fibonacci    base · fib(n), with fib = 1, 1, 2, 3, 5, 8 …
//
// That is cut at the cap and then spread by the draw u, from 0 up to 1: delay ·
// (1 + jitter·(2u-1)). What the jitter would put above the cap is mirrored
// below it, rather than cut, so that steps that have reached the cap together
// still come back apart. The result lies between 0 and the cap.
//
// In seconds, from base 1 with cap 300 and no jitter:
//
//	n            1   2   3   4   5    6    9    10   13   14
//	linear       1   2   3   4   5    6    9    10   13   14
//	exponential  1   2   4   8   16   32   256  300  300  300
//	fibonacci    1   1   2   3   5    8    34   55   233  300
//
// and with the default ±10 %, the exponential's n = 1 lies within 0.9 to 1.1 s
// and its n = 10 within 270 to 300 s.
//
// Growth is computed in floating point, where it ends at +Inf instead of
// wrapping round: 2^(n-1) leaves float64 at n = 1025 and fib(n) at n = 1477,
// and both are cut at the cap like any other number. The conversion saturates
// at the longest time.Duration, 292 years.
//
// A policy that says nothing at all is tasker.DefaultRetryPolicy, and a word
// for growth that isn't known grows exponentially: templates are checked before
// they are stored, so neither is worth stopping a task for. An n below 1 counts
// as 1; base, cap or jitter that are negative or NaN count as 0, and a jitter
// above 1 as 1.
func Backoff(policy tasker.RetryPolicy, n int, draw float64) time.Duration {
	policy = orDefault(policy)
	base, most := notNegative(float64(policy.Base)), notNegative(float64(policy.Cap))
	n = max(n, 1)
	if base == 0 || most == 0 {
		return 0 // also keeps 0 · Inf out of what follows
	}

	var delay float64
	switch policy.Backoff {
	case tasker.BackoffNone:
		return 0
	case tasker.BackoffFixed:
		delay = base
	case tasker.BackoffLinear:
		delay = base * float64(n)
	case tasker.BackoffFibonacci:
		delay = base * fibonacci(n)
	case tasker.BackoffExponential:
		fallthrough
	default:
		delay = math.Ldexp(base, min(n-1, 4096)) // Ldexp itself wraps round near the largest int
	}
	delay = min(delay, most)

	jitter := min(notNegative(policy.Jitter), 1)
	delay *= 1 + jitter*(2*unit(draw)-1)
	if delay > most {
		delay = most - (delay - most)
	}
	return tasker.Seconds(notNegative(delay)).Duration()
}

// fibonacci is fib(n), or +Inf where float64 ends.
func fibonacci(n int) float64 {
	a, b := 0.0, 1.0
	for range n - 1 {
		if a, b = b, a+b; math.IsInf(b, 1) {
			break
		}
	}
	return b
}

// orDefault fills in for a step whose template came without a retry policy.
func orDefault(policy tasker.RetryPolicy) tasker.RetryPolicy {
	if policy == (tasker.RetryPolicy{}) {
		return tasker.DefaultRetryPolicy()
	}
	return policy
}

// notNegative is x, or 0 when x is negative or NaN.
func notNegative(x float64) float64 {
	if x > 0 {
		return x
	}
	return 0
}

// unit forces a draw into 0 to 1. NaN is the middle, which is no jitter.
func unit(draw float64) float64 {
	if math.IsNaN(draw) {
		return 0.5
	}
	return min(max(draw, 0), 1)
}
