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
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/taskerhq/tasker"
)

// JobClass is the Ruby class that runs attempts.
const JobClass = "TaskerCore::StepJob"

// Versions of a job's arguments: for one attempt, and for several.
const (
	argsVersion   = 1
	bundleVersion = 2
)

// job is Sidekiq's format, the fields that all versions from 6.4 to 8 share.
type job struct {
	Class      string  `json:"class"`
	Args       [1]any  `json:"args"`
	Queue      string  `json:"queue"`
	JID        string  `json:"jid"`
	Retry      bool    `json:"retry"` // always sent: left out, Sidekiq would retry 25 times
	CreatedAt  seconds `json:"created_at"`
	EnqueuedAt seconds `json:"enqueued_at"`
}

type argument struct {
	Version int    `json:"v"`
	StepID  int64  `json:"step_id"`
	Attempt int    `json:"attempt"`
	TaskID  int64  `json:"task_id"`
	Handler string `json:"handler"`
	Ticket  int64  `json:"ticket,omitempty"` // without it the attempt does not start

	CorrelationID string `json:"correlation_id,omitempty"` // of the task, for log lines before the attempt has started
}

// bundle is the argument of a job that carries several attempts.
type bundle struct {
	Version  int        `json:"v"`
	Attempts [][3]int64 `json:"attempts"` // step_id, attempt and ticket of each
	Handlers []string   `json:"handlers"` // for people who look at the queue
}

// seconds is a time as seconds since 1970, always with a fraction: Sidekiq 8
// takes a JSON integer for milliseconds.
type seconds float64

func (s seconds) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(s), 'f', 6, 64), nil
}

// JID is the job id of an attempt: the same attempt always has the same.
func JID(step int64, attempt int) string { return jid(fmt.Appendf(nil, "%d:%d", step, attempt)) }

func jid(name []byte) string {
	sum := sha256.Sum256(name)
	return hex.EncodeToString(sum[:12])
}

// payload writes the job for attempts of one queue, one or several.
func payload(ds []tasker.Dispatch, now time.Time) []byte {
	at := seconds(float64(now.UnixMicro()) / 1e6)
	d := ds[0]
	j := job{Class: JobClass, Queue: d.Queue, CreatedAt: at, EnqueuedAt: at}
	if len(ds) == 1 {
		j.JID = JID(d.StepID, d.Attempt)
		j.Args[0] = argument{argsVersion, d.StepID, d.Attempt, d.TaskID, d.Handler, d.Ticket, d.CorrelationID}
	} else {
		b := bundle{Version: bundleVersion, Attempts: make([][3]int64, len(ds))}
		var name []byte
		for i, d := range ds {
			b.Attempts[i] = [3]int64{d.StepID, int64(d.Attempt), d.Ticket}
			name = fmt.Appendf(name, "%d:%d,", d.StepID, d.Attempt)
			if !slices.Contains(b.Handlers, d.Handler) {
				b.Handlers = append(b.Handlers, d.Handler)
			}
		}
		j.JID, j.Args[0] = jid(name[:len(name)-1]), b
	}
	doc, err := json.Marshal(j)
	if err != nil {
		panic(fmt.Sprintf("sidekiq: a job of strings and numbers did not marshal: %v", err))
	}
	return doc
}

// carried lists the attempts that a job in a queue carries, each with its ticket; none of
// one that is not ours.
func carried(payload string) (attempts [][3]int64) {
	var j struct {
		Class string `json:"class"`
		Args  []struct {
			StepID   int64      `json:"step_id"`
			Attempt  int64      `json:"attempt"`
			Ticket   int64      `json:"ticket"`
			Attempts [][3]int64 `json:"attempts"`
		} `json:"args"`
	}
	if !strings.Contains(payload, JobClass) || json.Unmarshal([]byte(payload), &j) != nil || j.Class != JobClass || len(j.Args) != 1 {
		return nil
	}
	if a := j.Args[0]; len(a.Attempts) == 0 {
		return [][3]int64{{a.StepID, a.Attempt, a.Ticket}}
	}
	return j.Args[0].Attempts
}
