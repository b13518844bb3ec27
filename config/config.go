// Package config knows every setting of tasker: what it is called in
// tasker.yaml, in the environment and as a flag, what values it may have, its
// default and the reason for it. Settings is the one table of all this; the
// loader, `tasker config`, docs/configuration.md and the flags are made from it.
//
// Who decides. A flag goes over the environment, the environment over the file,
// the file over the default. An empty environment variable counts as not set.
// Only cmd/tasker reads this package: it hands each part of a Config to the
// package that works with it, and those packages know nothing of files. Their
// own defaults, for programs that run a worker without a file, are tested to be
// the same.
//
// What is trusted. Nothing. A key that is not known, a value of another kind
// and one out of its range are errors, each with its place and what to write
// instead, all of them at once. Values of secret settings are in no message.
//
// What happens when it breaks. Load returns Errors and no settings. A worker
// that is told to read its file again, and can't, goes on with what it has.
package config

import "time"

// Config holds the values of all settings, group by group.
type Config struct {
	Database     Database
	Redis        Redis
	Worker       Worker
	DeadLetters  DeadLetters
	Retention    Retention
	Analytics    Analytics
	Orchestrator Orchestrator
	Writer       Writer
	River        River
	Server       Server
	Telemetry    Telemetry
	HTTP         HTTP
	Templates    Templates
	Log          Log
}

// Database is how Postgres is reached.
type Database struct {
	URL            string
	Connections    int
	ConnectTimeout time.Duration
	Mode           string // direct, poll_only
	PollEvery      time.Duration
}

// PollOnly says that sessions are a pooler's.
func (d Database) PollOnly() bool { return d.Mode == "poll_only" }

// Redis is how Sidekiq's Redis is reached.
type Redis struct {
	URL         string
	DialTimeout time.Duration
	RetryEvery  time.Duration
	Batch       int
	Backlog     int
	Bundle      int
	BundleTime  time.Duration
	BundleWait  time.Duration
}

// Worker is what one worker takes on, and how it watches over the others.
type Worker struct {
	MaxTasks        int
	Lease           time.Duration
	ParkAfter       time.Duration
	HoldFor         time.Duration
	ShutdownTimeout time.Duration
	ShutdownGrace   time.Duration
	SignOff         time.Duration
	CatchUpEvery    time.Duration
	ClockEvery      time.Duration
	AgeEvery        time.Duration
	AgeAfter        time.Duration
	RepairEvery     time.Duration
	RepairTimeout   time.Duration
	RepairBatch     int
	SilentProcess   time.Duration
	HandlerWait     time.Duration
	UnstartedFor    time.Duration
	TakenFor        time.Duration
	SweepEvery      time.Duration
	RestartEvery    time.Duration
	ReconnectAfter  time.Duration
}

// DeadLetters is when a task counts as one that stands still.
type DeadLetters struct {
	Every      time.Duration
	Pending    time.Duration
	InProgress time.Duration
	Waiting    time.Duration
	Running    time.Duration
	Failed     time.Duration
}

// Retention is how long finished tasks and events are kept; 0: for ever.
type Retention struct {
	Every  time.Duration
	Tasks  time.Duration
	Events time.Duration
}

// Analytics is how figures of what has ended are kept up.
type Analytics struct {
	Every time.Duration
	Keep  time.Duration
}

// Orchestrator is how a loop treats its task.
type Orchestrator struct {
	MaxLosses          int
	Indulgence         time.Duration
	HandledElsewhere   time.Duration
	HandledNowhere     time.Duration
	HandledNowhereMost time.Duration
	AskAgain           time.Duration
	BlockedFor         time.Duration
	GiveUpFor          time.Duration
	ProgressEvery      time.Duration
	GatesEvery         time.Duration
	GatesIdle          time.Duration
}

// Writer is how the writes of many loops are grouped.
type Writer struct {
	Connections int
	Batch       int
	ClaimBatch  int
}

// River is the job queue under it.
type River struct {
	FetchCooldown time.Duration
	Poll          time.Duration
	JobRetention  time.Duration
	RetryAfter    time.Duration
	UnservedAfter time.Duration
}

// Telemetry is where traces go.
type Telemetry struct {
	Endpoint string
	OneIn    int
}

// Server is what a worker answers over HTTP.
type Server struct {
	Listen  string
	MostLag time.Duration
	Token   string
}

// HTTP is what the handler tasker.http may do.
type HTTP struct {
	Allow       []string
	Timeout     time.Duration
	MaxResponse int
}

// Templates is which template files are registered, and how they are read.
type Templates struct {
	Folder      string
	Environment string
	AllowEnv    []string
}

// Log is what is logged, and how.
type Log struct {
	Level  string
	Format string
}
