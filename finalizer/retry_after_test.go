package finalizer_test

import (
	"encoding/json"
	"math"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/finalizer"
)

func TestRetryAfterIsRead(t *testing.T) {
	const longest = time.Duration(math.MaxInt64)
	for raw, want := range map[string]time.Duration{
		`120`:     2 * time.Minute,
		`0.25`:    250 * time.Millisecond,
		`1e2`:     100 * time.Second,
		`0`:       0,
		`-5`:      0,
		`1e300`:   longest,
		`1e999`:   longest, // beyond float64
		`-1e999`:  0,
		`"120"`:   2 * time.Minute,
		`" 1.5 "`: 1500 * time.Millisecond,
		`"-5"`:    0,
		`"1e999"`: longest,

		`"Sun, 01 Mar 2026 12:02:00 GMT"`:  2 * time.Minute, // RFC 1123
		`"Sunday, 01-Mar-26 12:02:00 GMT"`: 2 * time.Minute, // RFC 850
		`"Sun Mar  1 12:02:00 2026"`:       2 * time.Minute, // asctime
		`"Sun, 01 Mar 2026 11:00:00 GMT"`:  0,               // past
		`"Sunday, 06-Nov-94 08:49:37 GMT"`: 0,               // of the last century
		`"Fri, 31 Dec 9999 23:59:59 GMT"`:  longest,         // beyond time.Duration
	} {
		if got, err := finalizer.RetryAfter(json.RawMessage(raw), now); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", raw, got, err, want)
		}
	}
}

func TestRetryAfterIsRefused(t *testing.T) {
	for _, raw := range []string{
		`"soon"`, `""`, `" "`, `"inf"`, `"NaN"`, `"0x10"`, `"1_000"`, `"1 s"`, `"1,5"`, `"--1"`, `"."`,
		`"Sun, 01 Mar 2026 12:02:00 CET"`, `"2026-03-01"`,
		`true`, `[1]`, `{"seconds": 1}`, `null`, `{`, ``,
	} {
		if got, err := finalizer.RetryAfter(json.RawMessage(raw), now); err == nil || got != 0 {
			t.Errorf("%s: read as %v", raw, got)
		}
	}
}

func TestRetryAfterReadsNumbersAndTextsAlike(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := strconv.FormatFloat(rapid.Float64().Draw(t, "seconds"), 'g', -1, 64)
		number, err := finalizer.RetryAfter(json.RawMessage(n), now)
		if err != nil {
			t.Fatalf("%s: %v", n, err)
		}
		text, err := finalizer.RetryAfter(json.RawMessage(`"`+n+`"`), now)
		if err != nil || text != number {
			t.Fatalf("%s is %v, and as text %v, %v", n, number, text, err)
		}
	})
}

func FuzzRetryAfter(f *testing.F) {
	for _, seed := range []string{`1`, `"1.5"`, `"Sun, 01 Mar 2026 12:00:10 GMT"`, `-1`, `1e999`, `"`, `{}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if d, err := finalizer.RetryAfter(raw, now); d < 0 || (err != nil && d != 0) {
			t.Errorf("%q: %v, %v", raw, d, err)
		}
	})
}
