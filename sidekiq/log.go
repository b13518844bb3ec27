package sidekiq

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/taskerhq/tasker/safetext"
)

// slogger is the logger of the last pusher; nil: slog's default.
var slogger atomic.Pointer[slog.Logger]

// logThroughSlog makes the Redis client log through slog. The client has one logger for
// the whole process, which otherwise writes plain lines to standard error.
var logThroughSlog = sync.OnceFunc(func() { redis.SetLogger(redisLog{}) })

type redisLog struct{}

// Printf logs what the Redis client says.
func (redisLog) Printf(ctx context.Context, format string, args ...any) {
	log := slogger.Load()
	if log == nil {
		log = slog.Default()
	}
	log.WarnContext(ctx, "the Redis client reports a problem", "problem", safetext.MaskClean(fmt.Sprintf(format, args...), 1000))
}
