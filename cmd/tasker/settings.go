package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/taskerhq/tasker/config"
	"github.com/taskerhq/tasker/handler"
	"github.com/taskerhq/tasker/jobs"
	"github.com/taskerhq/tasker/orchestrator"
	"github.com/taskerhq/tasker/sidekiq"
	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/telemetry"
	"github.com/taskerhq/tasker/template"
	"github.com/taskerhq/tasker/worker"
)

// Which settings have flags where. Commands that read template files share
// theirs.
var (
	globalSettings  = []string{"database.url", "redis.url", "log.format", "log.level"}
	readingSettings = []string{"templates.environment", "templates.allow_env"}
	workerSettings  = append([]string{"templates.folder", "http.allow", "worker.max_tasks", "worker.lease", "worker.park_after", "worker.shutdown_timeout", "server.listen"}, readingSettings...)
	devSettings     = append([]string{"templates.folder"}, readingSettings...)
)

// settingFlags adds the flags of settings. Their values are judged together with
// the file and the environment.
func (a *app) settingFlags(flags *pflag.FlagSet, keys ...string) {
	for _, key := range keys {
		s := config.Find(key)
		usage := strings.ReplaceAll(s.About, "`", "") // pflag would take the word for the value's name
		if !strings.HasPrefix(usage, "Postgres") {
			usage = strings.ToLower(usage[:1]) + usage[1:]
		}
		if s.Kind == config.List {
			usage += "; separated by commas, or given more than once"
		}
		flags.Var(&settingFlag{a, s}, s.Flag, usage+" ("+"$"+strings.Join(s.Variables(), ", $")+")")
	}
}

type settingFlag struct {
	app *app
	s   *config.Setting
}

func (f *settingFlag) String() string {
	if f.s == nil {
		return ""
	}
	return f.s.Default
}

func (f *settingFlag) Type() string { return strings.ReplaceAll(string(f.s.Kind), " ", "-") }

func (f *settingFlag) Set(text string) error {
	if before := f.app.given[f.s.Key]; before != "" && f.s.Kind == config.List {
		text = before + "," + text
	}
	f.app.given[f.s.Key] = text
	return nil
}

// templateOptions say how template files are read.
func (a *app) templateOptions() (template.Options, error) { return templateOptions(a.settings) }

func templateOptions(l *config.Loaded) (template.Options, error) {
	variables := map[string]string{}
	for _, name := range l.Templates.AllowEnv {
		value, set := os.LookupEnv(name)
		if !set {
			return template.Options{}, l.Fault("templates.allow_env", "the environment has no variable %s", name)
		}
		variables[name] = value
	}
	return template.Options{Environment: l.Templates.Environment, Variables: variables}, nil
}

// workerConfig hands each setting to the part of a worker that works with it. A
// test changes them one by one and sees that none is forgotten.
func workerConfig(l *config.Loaded) (worker.Config, error) {
	live, err := liveConfig(l)
	if err != nil {
		return worker.Config{}, err
	}
	return worker.Config{
		DatabaseURL:    l.Database.URL,
		RedisURL:       l.Redis.URL,
		Handlers:       handler.NewRegistry(),
		Connections:    l.Database.Connections,
		ConnectTimeout: l.Database.ConnectTimeout,
		PollOnly:       l.Database.PollOnly(),
		PollEvery:      l.Database.PollEvery,
		MaxTasks:       l.Worker.MaxTasks,
		Lease:          l.Worker.Lease,
		Writer:         store.Groups(l.Writer),
		River: jobs.Tuning{
			FetchCooldown: l.River.FetchCooldown,
			Poll:          l.River.Poll,
			Retention:     l.River.JobRetention,
			RetryAfter:    l.River.RetryAfter,
			UnservedAfter: l.River.UnservedAfter,
		},
		Redis: sidekiq.Tuning{
			DialTimeout: l.Redis.DialTimeout,
			RetryEvery:  l.Redis.RetryEvery,
			Batch:       l.Redis.Batch,
			Backlog:     l.Redis.Backlog,
			Bundle:      l.Redis.Bundle,
			BundleTime:  l.Redis.BundleTime,
			BundleWait:  l.Redis.BundleWait,
		},
		Listen:  l.Server.Listen,
		Token:   l.Server.Token,
		MostLag: l.Server.MostLag,
		Traces:  telemetry.TraceConfig{Endpoint: strings.TrimSuffix(l.Telemetry.Endpoint, "/"), OneIn: l.Telemetry.OneIn},
		Live:    live,
	}, nil
}

// liveConfig is the part of workerConfig that may change while a worker runs.
func liveConfig(l *config.Loaded) (worker.Live, error) {
	reading, err := templateOptions(l)
	if err != nil {
		return worker.Live{}, err
	}
	return worker.Live{
		Tuning: orchestrator.Tuning{
			ParkAfter:          l.Worker.ParkAfter,
			HoldFor:            l.Worker.HoldFor,
			Indulgence:         l.Orchestrator.Indulgence,
			MaxLosses:          l.Orchestrator.MaxLosses,
			HandledElsewhere:   l.Orchestrator.HandledElsewhere,
			HandledNowhere:     l.Orchestrator.HandledNowhere,
			HandledNowhereMost: l.Orchestrator.HandledNowhereMost,
			AskAgain:           l.Orchestrator.AskAgain,
			BlockedFor:         l.Orchestrator.BlockedFor,
			GiveUpFor:          l.Orchestrator.GiveUpFor,
			ProgressEvery:      l.Orchestrator.ProgressEvery,
			GatesEvery:         l.Orchestrator.GatesEvery,
			GatesIdle:          l.Orchestrator.GatesIdle,
		},
		Templates:     l.Templates.Folder,
		Environment:   reading.Environment,
		Variables:     reading.Variables,
		HTTP:          &handler.HTTP{Allow: l.HTTP.Allow, Timeout: l.HTTP.Timeout, MaxResponse: l.HTTP.MaxResponse},
		Shutdown:      l.Worker.ShutdownTimeout,
		ShutdownGrace: l.Worker.ShutdownGrace,
		SignOff:       l.Worker.SignOff,
		CatchUpEvery:  l.Worker.CatchUpEvery,
		ClockEvery:    l.Worker.ClockEvery,
		AgeEvery:      l.Worker.AgeEvery,
		AgeAfter:      l.Worker.AgeAfter,
		RepairEvery:   l.Worker.RepairEvery,
		RepairTimeout: l.Worker.RepairTimeout,
		RepairBatch:   l.Worker.RepairBatch,
		SilentProcess: l.Worker.SilentProcess,
		HandlerWait:   l.Worker.HandlerWait,
		UnstartedFor:  l.Worker.UnstartedFor,
		TakenFor:      l.Worker.TakenFor,
		SweepEvery:    l.Worker.SweepEvery,
		RestartEvery:  l.Worker.RestartEvery,
		StaleEvery:    l.DeadLetters.Every,
		Stale: store.Staleness{Pending: l.DeadLetters.Pending, InProgress: l.DeadLetters.InProgress, Waiting: l.DeadLetters.Waiting,
			Running: l.DeadLetters.Running, Failed: l.DeadLetters.Failed},
		RollUpEvery:    l.Analytics.Every,
		KeepStats:      l.Analytics.Keep,
		RetainEvery:    l.Retention.Every,
		Retention:      store.Retention{Tasks: l.Retention.Tasks, Events: l.Retention.Events},
		ReconnectAfter: l.Worker.ReconnectAfter,
	}, nil
}

// noDatabase is said where a database is needed and none is named.
func noDatabase() error {
	return &usageError{fmt.Errorf("no database given: set --database-url, TASKER_DATABASE_URL, DATABASE_URL, or database.url in %s", config.File)}
}
