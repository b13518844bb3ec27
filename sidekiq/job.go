// Package sidekiq brings attempts to Sidekiq: it writes jobs in Sidekiq's wire
// format, pushes them in groups, and finds those that Redis has lost.
//
// What is trusted. Redis is a carrier and nothing more: it may lose a job, keep
// it for hours, or deliver it twice. The attempt that a job names was committed
// to Postgres before the job was pushed, and tasker.start_attempt lets it start
// once. So pushing again is always safe, and that is the one repair there is.
//
// What happens when Redis is away: jobs wait in memory and are pushed when it
// is back; nothing of a step is used up by waiting. If the worker dies
// meanwhile, another one finds the attempts unstarted and pushes them.
package sidekiq

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/taskerhq/tasker"
)

// JobClass is the Ruby class that runs attempts.
const JobClass = "TaskerCore::StepJob"

// argsVersion is the version of a job's arguments.
const argsVersion = 1

// job is Sidekiq's format, the fields that all versions from 6.4 to 8 share.
type job struct {
	Class      string     `json:"class"`
	Args       []argument `json:"args"`
	Queue      string     `json:"queue"`
	JID        string     `json:"jid"`
	Retry      bool       `json:"retry"` // always sent: left out, Sidekiq would retry 25 times
	CreatedAt  seconds    `json:"created_at"`
	EnqueuedAt seconds    `json:"enqueued_at"`
}

type argument struct {
	Version int    `json:"v"`
	StepID  int64  `json:"step_id"`
	Attempt int    `json:"attempt"`
	TaskID  int64  `json:"task_id"`
	Handler string `json:"handler"`

	CorrelationID string `json:"correlation_id,omitempty"` // of the task, for log lines before the attempt has started
}

// seconds is a time as seconds since 1970, always with a fraction: Sidekiq 8
// takes a JSON integer for milliseconds.
type seconds float64

func (s seconds) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(s), 'f', 6, 64), nil
}

// JID is the job id of an attempt: the same attempt always has the same.
func JID(step int64, attempt int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d:%d", step, attempt))
	return hex.EncodeToString(sum[:12])
}

// payload writes the job for an attempt.
func payload(d tasker.Dispatch, now time.Time) []byte {
	at := seconds(float64(now.UnixMicro()) / 1e6)
	doc, err := json.Marshal(job{
		Class: JobClass, Queue: d.Queue, JID: JID(d.StepID, d.Attempt), CreatedAt: at, EnqueuedAt: at,
		Args: []argument{{argsVersion, d.StepID, d.Attempt, d.TaskID, d.Handler, d.CorrelationID}},
	})
	if err != nil {
		panic(fmt.Sprintf("sidekiq: a job of strings and numbers did not marshal: %v", err))
	}
	return doc
}
