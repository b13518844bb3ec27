package finalizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/taskerhq/tasker"
)

// RetryAfter reads the delay that a called system asked for, counted from now:
// a JSON number of seconds, or the text of a Retry-After header, which is a
// number of seconds or an HTTP date (RFC 1123, RFC 850 or asctime). Fractions
// are fine; what lies in the past, or below zero, is 0. It is not capped.
func RetryAfter(raw json.RawMessage, now time.Time) (time.Duration, error) {
	var value any
	if err := json.Unmarshal(raw, &value); err != nil {
		return parseRetryAfter(string(raw), now) // a number beyond float64, or no JSON
	}
	switch v := value.(type) {
	case float64:
		return seconds(v), nil
	case string:
		return parseRetryAfter(v, now)
	default:
		return 0, errors.New("is neither a number of seconds nor a text")
	}
}

func parseRetryAfter(text string, now time.Time) (time.Duration, error) {
	text = strings.TrimSpace(text)
	if strings.Trim(text, "0123456789+-.eE") == "" && text != "" { // no hex, Inf or NaN
		n, err := strconv.ParseFloat(text, 64)
		if err == nil || errors.Is(err, strconv.ErrRange) { // out of range: n is ±Inf or nearly 0
			return seconds(n), nil
		}
	}
	// The three forms that HTTP allows, as net/http reads them. A two-digit
	// year from 69 on is of the last century, so past: 0.
	for _, layout := range []string{"Mon, 02 Jan 2006 15:04:05 GMT", time.RFC850, time.ANSIC} {
		if at, err := time.Parse(layout, text); err == nil {
			return max(at.Sub(now), 0), nil
		}
	}
	return 0, errors.New("is neither a number of seconds nor an HTTP date")
}

func seconds(n float64) time.Duration { return tasker.Seconds(notNegative(n)).Duration() }

// retryAfter reads the wish within a failure. ok says that it holds; the note
// says what was ignored or cut.
func retryAfter(raw json.RawMessage, most tasker.Seconds, now time.Time) (delay time.Duration, note string, ok bool) {
	if text := strings.TrimSpace(string(raw)); text == "" || text == "null" || text == `""` {
		return 0, "", false
	}
	delay, err := RetryAfter(raw, now)
	longest := seconds(float64(most))
	switch {
	case err != nil:
		return 0, fmt.Sprintf("retry_after %s was ignored, and the step's backoff taken: it %v", shorten(string(raw)), err), false
	case longest == 0:
		return 0, "retry_after was ignored, and the step's backoff taken: the policy's retry_after_cap_seconds is 0", false
	case delay > longest:
		return longest, fmt.Sprintf("retry_after %s was cut to the policy's retry_after_cap_seconds, %v", shorten(string(raw)), longest), true
	default:
		return delay, "", true
	}
}

// shorten keeps a note readable, whatever a server wrote into its header.
func shorten(text string) string {
	const most = 80
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
}
