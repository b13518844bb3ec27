package safetext_test

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/safetext"
)

// The gem's specs read the same file.
func TestSecretsAreMaskedAsTheContractSays(t *testing.T) {
	doc, err := os.ReadFile("../contract/secrets.json")
	if err != nil {
		t.Fatal(err)
	}
	var examples struct {
		Masked    [][2]string
		Unchanged []string
		Trees     [][2]any
	}
	decoder := json.NewDecoder(bytes.NewReader(doc))
	decoder.UseNumber()
	if err := decoder.Decode(&examples); err != nil {
		t.Fatal(err)
	}
	for _, text := range examples.Unchanged {
		examples.Masked = append(examples.Masked, [2]string{text, text})
	}
	for _, e := range examples.Masked {
		if got := safetext.Mask(e[0]); got != e[1] {
			t.Errorf("%q\n got %q\nwant %q", e[0], got, e[1])
		}
		if got := safetext.Mask(e[1]); got != e[1] {
			t.Errorf("masked again: %q\n got %q", e[1], got)
		}
	}
	for _, e := range examples.Trees {
		if got := safetext.MaskTree(e[0]); !reflect.DeepEqual(got, e[1]) {
			t.Errorf("%v\n got %v\nwant %v", e[0], got, e[1])
		}
	}
}

// Each hostile text makes a filter with a careless pattern look at its end again and again.
func TestMaskingTakesLinearTime(t *testing.T) {
	for _, part := range []string{
		"token", "eyJ", "eyJ.", "eyJaaaaaaaa.", "password", "password=", "password: '", "password\\", `password\"=\"`, "://", "://:", "://a:b", "http://a:", "://a:@",
		"4242 ", "4242-", "4", "4242424242424242 ", "-", "_", "-----BEGIN PRIVATE KEY-----", "-----", "bearer ", "basic a", "authorization:", "authorization: [", "?key=", "--password ",
		"cookie:", "token: [\"", "password )", "password=)))", "password=,a", " ", "\t", "é", "\xff", "secret\"]", "a=>", "authorization: is ", "password==", "password=,password=,", "password=]",
	} {
		least := func(size int) time.Duration {
			text := strings.Repeat(part, size/len(part))
			best := time.Duration(math.MaxInt64)
			for range 3 { // what disturbs one of them does not disturb all
				start := time.Now()
				safetext.Mask(text)
				safetext.Mask("password=" + text + "x")
				safetext.Mask("password: \"" + text)
				best = min(best, time.Since(start))
			}
			return best
		}
		// Eight times the text: about 8 times as long, and 64 times where each place looks at the end.
		if short, long := least(1<<11), least(1<<14); long > 30*short {
			t.Errorf("2 KB of %q took %s, 16 KB %s", part, short, long)
		}
	}
}

func TestTheQueryOfACallIsMasked(t *testing.T) {
	for address, want := range map[string]string{
		"https://h/x":                             "https://h/x",
		"https://u:p@h/x?a=1&b&token=2#f":         "https://u:[FILTERED]@h/x?a=[FILTERED]&[FILTERED]&token=[FILTERED]",
		"https://h/x?":                            "https://h/x?",
		"https://u:s%@h/x":                        "[FILTERED]",
		"redis://:ab/CD3@127.0.0.1:6379/0?a=b://": "[FILTERED]",
	} {
		if got := safetext.MaskQuery(address); got != want {
			t.Errorf("%s: got %s, want %s", address, got, want)
		}
	}
}

func TestEveryTextOfAFailureIsMasked(t *testing.T) {
	f := safetext.Failure(&tasker.Failure{
		Class: "a", Message: "password=hunter2", Cause: "password=hunter2", Code: "password=hunter2", Handler: "h",
		Backtrace: []string{"x.go:1", "call(password=hunter2)"}, Context: json.RawMessage(`{"token":"hunter2","n":12345678901234567890}`),
	})
	doc, err := json.Marshal(f)
	if err != nil || bytes.Contains(doc, []byte("hunter2")) || !bytes.Contains(doc, []byte("12345678901234567890")) || !bytes.Contains(doc, []byte(`"x.go:1"`)) {
		t.Errorf("%s, %v", doc, err)
	}
	if safetext.Failure(nil) != nil {
		t.Error("no failure became one")
	}
}
