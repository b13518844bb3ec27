package handler_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/handler"
)

// contract/http_outcomes.json is read by the gem's specs too: tasker.http and
// TaskerCore::ApiStepHandler take an answer for the same.
func TestHTTPTakesAnAnswerForWhatTheGemTakesItFor(t *testing.T) {
	text, err := os.ReadFile("../contract/http_outcomes.json")
	if err != nil {
		t.Fatal(err)
	}
	var rows []struct {
		Status     int
		Headers    map[string]string
		Outcome    string
		Code       string
		RetryAfter *string `json:"retry_after"`
	}
	if err := json.Unmarshal(text, &rows); err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for name, value := range row.Headers {
				w.Header().Set(name, value)
			}
			w.WriteHeader(row.Status)
		}))
		registry := handler.NewRegistry()
		registry.AllowHTTP(strings.TrimPrefix(server.URL, "http://"))
		result, failure := registry.Run(t.Context(), "tasker.http", &tasker.Attempt{
			StepID: 5, Step: "s", Template: "n/t@1.0.0", Config: json.RawMessage(`{"url": "` + server.URL + `"}`)})
		server.Close()

		if row.Outcome == "result" {
			if failure != nil || !strings.Contains(string(result), `"status":`) {
				t.Errorf("%d is %s, %+v, not a result", row.Status, result, failure)
			}
			continue
		}
		if failure == nil {
			t.Errorf("%d is a result, not %s", row.Status, row.Outcome)
			continue
		}
		var after *string
		if failure.RetryAfter != nil {
			after = new(string)
			if err := json.Unmarshal(failure.RetryAfter, after); err != nil {
				t.Fatal(err)
			}
		}
		same := (after == nil) == (row.RetryAfter == nil) && (after == nil || *after == *row.RetryAfter)
		if failure.Permanent != (row.Outcome == "permanent") || failure.Code != row.Code || !same {
			t.Errorf("%d with %v: got permanent %v, code %q, retry after %s; want %+v", row.Status, row.Headers, failure.Permanent, failure.Code, failure.RetryAfter, row)
		}
	}
}
