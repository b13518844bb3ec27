package testenv

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// RedisDatabases is how many databases the Redis server of a test run has. A
// database number is the one way to separate tests that Sidekiq knows too: it
// has no namespaces.
const RedisDatabases = 1024

// Databases 1 to redisInUse are handed out in turn; the counter is in database
// 0, which all test processes see.
const (
	redisInUse   = 1000
	redisCounter = "tasker:test:db"
)

// Redis gives the test a Redis database of its own, empty, and returns its
// URL. It is emptied when the test ends.
func Redis(t testing.TB) string {
	t.Helper()
	server, err := redisURL()
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	address, err := takeRedisDatabase(ctx, server)
	if err != nil {
		t.Fatalf("testenv: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		// A test may have stopped its Redis; then there is nothing to empty.
		_ = flush(ctx, address)
	})
	return address
}

func takeRedisDatabase(ctx context.Context, server string) (string, error) {
	options, err := redis.ParseURL(server)
	if err != nil {
		return "", fmt.Errorf("%s: %w", RedisURLVariable, err)
	}
	client := redis.NewClient(options)
	defer client.Close()
	count, err := client.Incr(ctx, redisCounter).Result()
	if err != nil {
		return "", fmt.Errorf("take a Redis database: %w", err)
	}
	address, err := url.Parse(server)
	if err != nil {
		return "", fmt.Errorf("%s: %w", RedisURLVariable, err)
	}
	address.Path = "/" + strconv.FormatInt((count-1)%redisInUse+1, 10)
	if err := flush(ctx, address.String()); err != nil {
		return "", fmt.Errorf("empty Redis database %s (the server needs --databases %d): %w", address.Path[1:], RedisDatabases, err)
	}
	return address.String(), nil
}

func flush(ctx context.Context, address string) error {
	options, err := redis.ParseURL(address)
	if err != nil {
		return err
	}
	client := redis.NewClient(options)
	defer client.Close()
	return client.FlushDB(ctx).Err()
}
