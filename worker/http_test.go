package worker_test

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"regexp"
	"testing"

	"github.com/taskerhq/tasker/server"
	"github.com/taskerhq/tasker/worker"
)

func TestAWorkerAnswersProbes(t *testing.T) {
	b := setup(t)
	var said syncBuffer
	stop := b.start(func(c *worker.Config) {
		c.Listen = "127.0.0.1:0"
		c.Logger = slog.New(slog.NewTextHandler(&said, nil))
	})
	found := regexp.MustCompile(`answering HTTP" address=(\S+)`).FindStringSubmatch(said.String())
	if found == nil {
		t.Fatalf("it does not say where it answers: %s", said.String())
	}
	address := found[1]
	ask := func(path string) (status int, r server.Readiness) {
		t.Helper()
		answer, err := http.Get("http://" + address + path)
		if err != nil {
			return 0, r
		}
		defer answer.Body.Close()
		b.must(json.NewDecoder(answer.Body).Decode(&r))
		return answer.StatusCode, r
	}
	b.until("it hears notifications", func() bool { status, _ := ask("/health/ready"); return status == http.StatusOK })
	if status, _ := ask("/health/live"); status != http.StatusOK {
		t.Errorf("alive: got %d", status)
	}
	if _, r := ask("/health/ready"); !r.Ready || r.Checks["listener"].Status != "ok" || r.Checks["worker"].Status != "ok" || r.Checks["redis"].Status != "ok" {
		t.Errorf("ready: got %+v", r)
	}
	b.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN "tasker.%'`)
	b.until("it says that it does not hear", func() bool { status, _ := ask("/health/ready"); return status == http.StatusServiceUnavailable })
	b.until("it hears again", func() bool { status, _ := ask("/health/ready"); return status == http.StatusOK })

	taken := worker.Config{DatabaseURL: b.url, Listen: address, Logger: slog.New(slog.DiscardHandler)}
	if err := worker.Run(t.Context(), taken); !errors.Is(err, worker.ErrConfig) {
		t.Errorf("an address that is taken: got %v", err)
	}
	stop()
	if status, _ := ask("/health/live"); status != 0 {
		t.Errorf("when it has stopped it still answers: %d", status)
	}
}
