package handler_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/handler"
)

// Keys in the query of a URL are for the called service alone.
func TestFailuresOfHTTPDoNotShowTheQueryOfTheURL(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, "http://other.invalid/?token=hunter2", http.StatusFound)
			return
		}
		http.Error(w, "password: hunter2 is wrong \x00\xff", http.StatusInternalServerError)
	}))
	defer server.Close()
	r := handler.NewRegistry()
	r.AllowHTTP(strings.TrimPrefix(server.URL, "http://"), "127.0.0.1:1")
	for address, want := range map[string]string{
		server.URL + "/x?q=hunter2&api_key=hunter2": "GET " + server.URL + "/x?q=[FILTERED]&api_key=[FILTERED] answered 500 Internal Server Error: password: [FILTERED] is wrong \uFFFD",
		server.URL + "/away?q=hunter2":              "tasker.http may not call other.invalid; it may call",
		"http://127.0.0.1:1/x?q=hunter2":            "call http://127.0.0.1:1/x?q=[FILTERED]: dial tcp 127.0.0.1:1: ",
		"http://:hun/ter2@127.0.0.1:1/x":            "url \"[FILTERED]\": not a URL",
		"ftp://u:hunter2@h/x?q=hunter2":             "url \"ftp://u:[FILTERED]@h/x?q=[FILTERED]\" is neither http nor https",
	} {
		config, err := json.Marshal(map[string]string{"url": address})
		if err != nil {
			t.Fatal(err)
		}
		_, f := r.Run(t.Context(), "tasker.http", &tasker.Attempt{Config: config})
		if f == nil || !strings.Contains(f.Message, want) || strings.Contains(f.Message, "hunter2") || strings.Contains(f.Message, "hun\"") {
			t.Errorf("%s: got %+v", address, f)
		}
	}
}

func TestHTTPTurnsAnswersIntoResultsAndFailures(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/json":
			fmt.Fprintf(w, `{"method": %q, "key": %q, "own": %q}`, r.Method, r.Header.Get("Idempotency-Key"), r.Header.Get("X-Own"))
		case "/echo":
			_, _ = io.Copy(w, r.Body) // a broken connection shows in the result
		case "/text":
			fmt.Fprint(w, "hello")
		case "/binary":
			fmt.Fprint(w, "\xff\xfe")
		case "/busy":
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusTooManyRequests)
		case "/dated":
			w.Header().Set("Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT")
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/broken":
			http.Error(w, "oh no", http.StatusInternalServerError)
		case "/elsewhere":
			http.Redirect(w, r, "http://other.invalid/", http.StatusFound)
		case "/large":
			fmt.Fprint(w, strings.Repeat("x", 1<<20+1))
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	r := handler.NewRegistry()
	r.AllowHTTP(host)
	call := func(config string) (string, *tasker.Failure) {
		result, failure := r.Run(t.Context(), "tasker.http", &tasker.Attempt{
			StepID: 5, IdempotencyKey: "tasker-5eed00000007-5", Step: "s", Template: "n/t@1.0.0", Context: json.RawMessage(`{"a":1}`),
			Config: json.RawMessage(strings.ReplaceAll(config, "HOST", server.URL))})
		return string(result), failure
	}
	for config, want := range map[string]string{
		`{"url": "HOST/json", "headers": {"X-Own": "yes"}}`:            `{"status":200,"body":{"method":"GET","key":"tasker-5eed00000007-5","own":"yes"}}`,
		`{"url": "HOST/text"}`:                                         `{"status":200,"body":"hello"}`,
		`{"url": "HOST/echo", "method": "post"}`:                       `{"status":200,"body":{"context":{"a":1},"dependencies":null}}`,
		`{"url": "HOST/echo", "method": "PUT", "body": {"own": true}}`: `{"status":200,"body":{"own":true}}`,
	} {
		if result, failure := call(config); failure != nil || result != want {
			t.Errorf("%s\n got: %s, %+v\nwant: %s", config, result, failure, want)
		}
	}
	for config, want := range map[string]struct {
		permanent     bool
		code, message string
		after         string
	}{
		`{"url": "HOST/busy"}`:                  {false, "", "429 Too Many Requests", `"7"`},
		`{"url": "HOST/dated"}`:                 {false, "", "503 Service Unavailable", `"Wed, 21 Oct 2026 07:28:00 GMT"`},
		`{"url": "HOST/broken"}`:                {false, "", "500 Internal Server Error: oh no", ""},
		`{"url": "HOST/nothing"}`:               {true, "http_404", "404 Not Found", ""},
		`{"url": "HOST/binary"}`:                {true, tasker.CodeResultNotSerializable, "neither JSON nor text", ""},
		`{"url": "HOST/large"}`:                 {true, tasker.CodeResultTooLarge, "more than 1048576 bytes", ""},
		`{"url": "HOST/elsewhere"}`:             {true, "host_not_allowed", "tasker.http may not call other.invalid; it may call: " + host, ""},
		`{"url": "http://other.invalid/x"}`:     {true, "host_not_allowed", "--http-allow other.invalid", ""},
		`{"url": "file:///etc/passwd"}`:         {true, "bad_handler_config", "neither http nor https", ""},
		`{}`:                                    {true, "bad_handler_config", "needs a url", ""},
		`{"url": "HOST/json", "method": "a b"}`: {true, "bad_handler_config", "invalid method", ""},
	} {
		_, f := call(config)
		if f == nil || f.Permanent != want.permanent || f.Code != want.code || !strings.Contains(f.Message, want.message) || string(f.RetryAfter) != want.after {
			t.Errorf("%s\n got: %+v\nwant: %+v", config, f, want)
		}
	}
	server.Close()
	if _, f := call(`{"url": "HOST/json"}`); f == nil || f.Permanent {
		t.Errorf("a server that is away must be tried again: %+v", f)
	}
}
