package sidekiq_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/taskerhq/tasker/sidekiq"
)

func TestErrorsOfARedisURLDoNotShowThePassword(t *testing.T) {
	for _, address := range []string{
		"redis://:ab/CD3@127.0.0.1:6379/0", "redis://u:ab#CD3@h", "redis://:ab CD3@h", "http://:CD3@h", "redis://:CD3@h:6379/0?nope=1&password=CD3", "unix:///s?password=CD3", "redis://:CD3@h:6379/x",
	} {
		_, err := sidekiq.Open(address)
		if err == nil || strings.Contains(err.Error(), "CD3") || strings.Contains(err.Error(), `ab"`) || !strings.Contains(err.Error(), "it looks like redis://HOST:6379/0") {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// safeBuffer is written by the connections of the client.
type safeBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *safeBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.String()
}

func TestTheRedisClientLogsThroughSlog(t *testing.T) {
	var lines safeBuffer
	client, err := sidekiq.Open("redis://:hunter2@127.0.0.1:1/0")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.Options().Dialer = func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("refused by redis://:hunter2@127.0.0.1:1/0")
	}
	sidekiq.NewPusher(client, slog.New(slog.NewJSONHandler(&lines, nil)))
	if err := client.Ping(t.Context()).Err(); err == nil {
		t.Fatal("nothing listens there")
	}
	if text := lines.text(); !strings.Contains(text, `"level":"WARN","msg":"the Redis client reports a problem","problem":"`) || strings.Contains(text, "hunter2") {
		t.Errorf("got %s", text)
	}
}
