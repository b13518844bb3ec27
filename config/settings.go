package config

import "strings"

//go:generate go test . -run TestTheReferenceIsCurrent -update

// Setting is one thing that an operator may set.
type Setting struct {
	Key     string // GROUP.NAME; in tasker.yaml NAME stands under GROUP
	Kind    Kind
	Default string   // as written in the environment or for a flag
	Least   string   // of numbers and durations
	Most    string   // likewise
	Choices []string // of a Choice
	Schemes []string // that a URL may begin with
	Form    string   // what a value looks like, where the kind doesn't say
	Env     []string // the first that is not empty counts; default: TASKER_GROUP_NAME
	Flag    string   // empty: none
	Live    bool     // SIGHUP changes it in a running worker
	About   string   // what it is
	Why     string   // why the default is what it is: what it trades

	field func(*Config) any // a pointer to its value
	item  func(string) (fault string)
}

// Group is the part of the key that it shares with others.
func (s *Setting) Group() string { group, _, _ := strings.Cut(s.Key, "."); return group }

// Name is its key within the group.
func (s *Setting) Name() string { _, name, _ := strings.Cut(s.Key, "."); return name }

// Variables are the environment variables that set it, the first before the
// next.
func (s *Setting) Variables() []string {
	if s.Env != nil {
		return s.Env
	}
	return []string{"TASKER_" + strings.ToUpper(strings.ReplaceAll(s.Key, ".", "_"))}
}

// Groups says what each group is about, in the order of the reference.
var Groups = []struct{ Name, About string }{
	{"database", "How Postgres is reached"},
	{"redis", "How Sidekiq's Redis is reached"},
	{"worker", "What one worker takes on, how it stops, and how it watches over the others"},
	{"dead_letters", "When a task counts as one that stands still"},
	{"retention", "How long what is finished is kept"},
	{"analytics", "How figures of what has ended are kept up"},
	{"orchestrator", "How a loop treats its task"},
	{"writer", "How the writes of many loops become few transactions"},
	{"river", "The job queue that wakes tasks"},
	{"server", "What a worker answers over HTTP"},
	{"telemetry", "Where traces go"},
	{"http", "What the handler tasker.http may do"},
	{"templates", "Which template files a worker registers, and how they are read"},
	{"log", "What is logged, and how"},
}

// Settings are all of them, group by group.
var Settings = []Setting{
	{
		Key: "database.url", Kind: URL, Schemes: []string{"postgres://", "postgresql://"}, Form: "postgres://USER:PASSWORD@HOST:5432/DATABASE",
		Env: []string{"TASKER_DATABASE_URL", "DATABASE_URL"}, Flag: "database-url", field: func(c *Config) any { return &c.Database.URL },
		About: "Postgres, as a URL or as `host=… dbname=…`",
		Why:   "There is none: work on the wrong database would be worse than none. `DATABASE_URL` is where Rails has it.",
	},
	{
		Key: "database.connections", Kind: Whole, Default: "20", Least: "4", Most: "1000", field: func(c *Config) any { return &c.Database.Connections },
		About: "Connections that a worker keeps open at most, besides two for its heartbeat and one that listens; `pool_max_conns` in the URL goes before it",
		Why:   "A worker writes in groups, so hundreds of tasks need few; 20 leaves room for four workers within Postgres' default of 100.",
	},
	{
		Key: "database.connect_timeout", Kind: Duration, Default: "10s", Least: "100ms", Most: "10m", field: func(c *Config) any { return &c.Database.ConnectTimeout },
		About: "How long to wait for the database's first answer at the start",
		Why:   "A server that is just starting answers within it, and a wrong address is told before anybody loses patience.",
	},
	{
		Key: "database.mode", Kind: Choice, Default: "direct", Choices: []string{"direct", "poll_only"}, field: func(c *Config) any { return &c.Database.Mode },
		About: "`poll_only`: through a pooler that gives every transaction another session, such as PgBouncer in transaction mode; nothing is kept in a session then, and nobody listens",
		Why:   "Who listens hears of work within a millisecond, and asks for nothing meanwhile.",
	},
	{
		Key: "database.poll_every", Kind: Duration, Default: "200ms", Least: "10ms", Most: "1m", field: func(c *Config) any { return &c.Database.PollEvery },
		About: "In mode `poll_only`: how often jobs, reports and admissions are looked for",
		Why:   "Half of it is what each hand-over takes longer; five to fifteen small statements a second and worker are what it costs.",
	},

	{
		Key: "redis.url", Kind: URL, Schemes: []string{"redis://", "rediss://", "unix://"}, Form: "redis://:PASSWORD@HOST:6379/0",
		Env: []string{"TASKER_REDIS_URL", "REDIS_URL"}, Flag: "redis-url", field: func(c *Config) any { return &c.Redis.URL },
		About: "The Redis of your Sidekiq",
		Why:   "There is none: a worker without Redis runs Go steps and leaves Ruby steps to others. `REDIS_URL` is where Sidekiq has it.",
	},
	{
		Key: "redis.dial_timeout", Kind: Duration, Default: "2s", Least: "100ms", Most: "1m", field: func(c *Config) any { return &c.Redis.DialTimeout },
		About: "How long a new connection may take",
		Why:   "Redis is near; one that takes longer is away, and attempts wait in memory until it is back.",
	},
	{
		Key: "redis.retry_every", Kind: Duration, Default: "2s", Least: "100ms", Most: "1m", field: func(c *Config) any { return &c.Redis.RetryEvery },
		About: "The longest pause between two tries to push while Redis is away",
		Why:   "Ruby steps go on within 2 s of its return, and a Redis that is starting is not hammered.",
	},
	{
		Key: "redis.batch", Kind: Whole, Default: "5000", Least: "1", Most: "50000", field: func(c *Config) any { return &c.Redis.Batch },
		About: "Jobs pushed in one transaction at most",
		Why:   "Larger ones could outlast the client's timeout and be sent twice; smaller ones cost more round trips.",
	},
	{
		Key: "redis.backlog", Kind: Whole, Default: "100000", Least: "1000", Most: "10000000", field: func(c *Config) any { return &c.Redis.Backlog },
		About: "Attempts kept in memory while Redis is away; further ones are found by the repair",
		Why:   "About 20 MB; the repair is slower than memory, but loses nothing.",
	},
	{
		Key: "redis.bundle", Kind: Whole, Default: "50", Least: "1", Most: "200", field: func(c *Config) any { return &c.Redis.Bundle },
		About: "Attempts that ride in one Sidekiq job at most, when work has piled up; 1: never more than one",
		Why:   "At 50 what Sidekiq spends on a job is no longer felt; the attempts of a job run one after the other.",
	},
	{
		Key: "redis.bundle_time", Kind: Duration, Default: "50ms", Least: "1ms", Most: "500ms", field: func(c *Config) any { return &c.Redis.BundleTime },
		About: "How long the attempts of one job may be expected to take together",
		Why:   "Long enough to carry five handlers of 10 ms, short enough that nobody notices waiting behind them.",
	},
	{
		Key: "redis.bundle_wait", Kind: Duration, Default: "4ms", Least: "1ms", Most: "100ms", field: func(c *Config) any { return &c.Redis.BundleWait },
		About: "How long attempts wait for company while a queue holds more jobs than there are threads",
		Why:   "Every thread has its next job then, so nobody waits for these, and a few milliseconds bring several together.",
	},

	{
		Key: "worker.max_tasks", Kind: Whole, Default: "500", Least: "1", Most: "10000", Flag: "max-tasks", field: func(c *Config) any { return &c.Worker.MaxTasks },
		About: "Tasks that one worker runs at once",
		Why:   "Enough to fill the groups of writes; more hold memory and come back later should the worker die.",
	},
	{
		Key: "worker.lease", Kind: Duration, Default: "4s", Least: "1s", Most: "1h", Flag: "lease", field: func(c *Config) any { return &c.Worker.Lease },
		About: "Silence after which a worker counts as dead; it beats four times per lease",
		Why:   "Tasks of a dead worker go on within seconds; a shorter lease would take a pause of a busy machine for death.",
	},
	{
		Key: "worker.park_after", Kind: Duration, Default: "2s", Least: "1ms", Most: "1h", Flag: "park-after", Live: true, field: func(c *Config) any { return &c.Worker.ParkAfter },
		About: "How long to keep a task that only waits, for Sidekiq or for a retry",
		Why:   "Most Ruby steps report within it, which saves giving the task up and claiming it anew; longer would fill `max_tasks` with tasks that wait.",
	},
	{
		Key: "worker.hold_for", Kind: Duration, Default: "30s", Least: "1ms", Most: "1h", Live: true, field: func(c *Config) any { return &c.Worker.HoldFor },
		About: "How long to keep a task that only waits for Sidekiq while a quarter of `max_tasks` is free; at least `park_after`",
		Why:   "To claim a task anew for each report costs more than to keep it, where nobody needs its place.",
	},
	{
		Key: "worker.shutdown_timeout", Kind: Duration, Default: "25s", Least: "1ms", Most: "1h", Flag: "shutdown-timeout", Live: true, field: func(c *Config) any { return &c.Worker.ShutdownTimeout },
		About: "How long running Go handlers may take after SIGTERM; then their contexts end",
		Why:   "Sidekiq's own, and within the 30 s after which Kubernetes and systems like it kill.",
	},
	{
		Key: "worker.shutdown_grace", Kind: Duration, Default: "3s", Least: "1ms", Most: "10m", Live: true, field: func(c *Config) any { return &c.Worker.ShutdownGrace },
		About: "How much longer handlers get whose contexts have ended, before their attempts are given to others",
		Why:   "Time to roll back and return; together with `shutdown_timeout` it ends before most systems kill.",
	},
	{
		Key: "worker.sign_off", Kind: Duration, Default: "5s", Least: "1ms", Most: "10m", Live: true, field: func(c *Config) any { return &c.Worker.SignOff },
		About: "How long a stopping worker may take for its last words to River and to the database, each",
		Why:   "A database that restarts at the same moment may need it; without them others wait for the lease, which is shorter.",
	},
	{
		Key: "worker.catch_up_every", Kind: Duration, Default: "2s", Least: "100ms", Most: "1h", Live: true, field: func(c *Config) any { return &c.Worker.CatchUpEvery },
		About: "How often reports and changes are looked for whose notification was missed",
		Why:   "Bounds the delay when a notification is lost, which is rare; costs one short query.",
	},
	{
		Key: "worker.clock_every", Kind: Duration, Default: "2s", Least: "100ms", Most: "1h", Live: true, field: func(c *Config) any { return &c.Worker.ClockEvery },
		About: "How often deadlines, timeouts and heartbeats of Ruby steps, and silent Sidekiq processes are looked for",
		Why:   "Adds to each of them: what hangs is taken back within seconds, for two short queries per worker.",
	},
	{
		Key: "worker.age_every", Kind: Duration, Default: "10s", Least: "100ms", Most: "1h", Live: true, field: func(c *Config) any { return &c.Worker.AgeEvery },
		About: "How often jobs are looked for that have waited for so long that they move up",
		Why:   "A sixth of what a level takes. Where the look takes long it comes more rarely, up to ten times.",
	},
	{
		Key: "worker.age_after", Kind: Duration, Default: "1m", Least: "1s", Most: "24h", Live: true, field: func(c *Config) any { return &c.Worker.AgeAfter },
		About: "Waiting that is worth a level of priority",
		Why:   "Urgent tasks overtake what came in the last minutes; what has waited longer takes its turn between them, in portions.",
	},
	{
		Key: "worker.repair_every", Kind: Duration, Default: "5s", Least: "100ms", Most: "1h", Live: true, field: func(c *Config) any { return &c.Worker.RepairEvery },
		About: "How often jobs are looked for that Redis has lost",
		Why:   "Adds to `unstarted_for`: recovery within seconds, for one query per worker.",
	},
	{
		Key: "worker.repair_timeout", Kind: Duration, Default: "30s", Least: "1s", Most: "1h", Live: true, field: func(c *Config) any { return &c.Worker.RepairTimeout },
		About: "How long one round of the repair or of the sweep may take",
		Why:   "Far more than a round needs; ends one that hangs on a lock or on a dead connection.",
	},
	{
		Key: "worker.repair_batch", Kind: Whole, Default: "5000", Least: "1", Most: "100000", Live: true, field: func(c *Config) any { return &c.Worker.RepairBatch },
		About: "Unstarted attempts that one round looks for in Redis at most",
		Why:   "After a Redis lost all its data 1000 jobs per second and worker come back, without one statement that locks everything.",
	},
	{
		Key: "worker.silent_process", Kind: Duration, Default: "10s", Least: "8s", Most: "1h", Live: true, field: func(c *Config) any { return &c.Worker.SilentProcess },
		About: "Silence after which a Sidekiq process counts as dead, and what it ran as lost",
		Why:   "A process beats every 2 s and drops a connection that hangs after 6 s; less would declare living ones dead and run their steps twice.",
	},
	{
		Key: "worker.handler_wait", Kind: Duration, Default: "10m", Least: "1s", Most: "168h", Live: true, field: func(c *Config) any { return &c.Worker.HandlerWait },
		About: "How long an attempt waits for a Sidekiq process that has its handler's class, before its step fails for good",
		Why:   "A rolling deployment takes minutes; a name that is spelt wrong should not stay hidden for hours.",
	},
	{
		Key: "worker.unstarted_for", Kind: Duration, Default: "5s", Least: "1s", Most: "1h", Live: true, field: func(c *Config) any { return &c.Worker.UnstartedFor },
		About: "How long a pushed attempt may be unstarted before its job is looked for in Redis",
		Why:   "Jobs that merely wait in a long queue are looked for again each time, so shorter costs reading of queues.",
	},
	{
		Key: "worker.taken_for", Kind: Duration, Default: "1s", Least: "50ms", Most: "1m", Live: true, field: func(c *Config) any { return &c.Worker.TakenFor },
		About: "How long a Sidekiq thread may have a job without having started all its attempts, before they count as lost by Redis",
		Why:   "Attempts that ride together take 50 ms at most; pushed again too early, they are only refused twice.",
	},
	{
		Key: "worker.sweep_every", Kind: Duration, Default: "30s", Least: "1s", Most: "24h", Live: true, field: func(c *Config) any { return &c.Worker.SweepEvery },
		About: "How often open tasks are looked for that nothing would bring back",
		Why:   "There should be none; 30 s is what a bug may cost. Where so many are open that the look takes long, it is made up to ten times more rarely.",
	},
	{
		Key: "worker.restart_every", Kind: Duration, Default: "1s", Least: "100ms", Most: "10m", Live: true, field: func(c *Config) any { return &c.Worker.RestartEvery },
		About: "How often a worker that was declared dead tries to start anew while it can't",
		Why:   "It was cut off from the database; this is how soon it works again when that is over.",
	},
	{
		Key: "worker.reconnect_after", Kind: Duration, Default: "500ms", Least: "10ms", Most: "10m", Live: true, field: func(c *Config) any { return &c.Worker.ReconnectAfter },
		About: "How soon the connection that listens for reports is made anew when it broke",
		Why:   "Meanwhile `catch_up_every` finds them, so there is no need to press a server that restarts.",
	},

	{
		Key: "dead_letters.every", Kind: Duration, Default: "1m", Least: "1s", Most: "24h", Live: true, field: func(c *Config) any { return &c.DeadLetters.Every },
		About: "How often tasks are looked for that have failed, or that nothing happens to",
		Why:   "Dead letters are for people, who look minutes later; it is one query over the open tasks.",
	},
	{
		Key: "dead_letters.pending", Kind: Duration, Default: "1h", Least: "1s", Most: "8760h", Live: true, field: func(c *Config) any { return &c.DeadLetters.Pending },
		About: "How long a task may wait for a worker before it is listed",
		Why:   "A backlog after a deployment drains within it; a task that no worker can take is found the same hour.",
	},
	{
		Key: "dead_letters.in_progress", Kind: Duration, Default: "30m", Least: "1s", Most: "8760h", Live: true, field: func(c *Config) any { return &c.DeadLetters.InProgress },
		About: "How long nothing may happen to a task that has begun and has no attempt out",
		Why:   "Nothing in the engine waits for so long without saying until when.",
	},
	{
		Key: "dead_letters.waiting", Kind: Duration, Default: "30m", Least: "1s", Most: "8760h", Live: true, field: func(c *Config) any { return &c.DeadLetters.Waiting },
		About: "How long an attempt may lie in Sidekiq's queue",
		Why:   "Longer than a busy queue, shorter than somebody's patience; where it matters, a step says so with `schedule_to_start_seconds`.",
	},
	{
		Key: "dead_letters.running", Kind: Duration, Default: "24h", Least: "1s", Most: "8760h", Live: true, field: func(c *Config) any { return &c.DeadLetters.Running },
		About: "How long an attempt may run that has neither `timeout_seconds` nor `heartbeat_seconds`",
		Why:   "Nothing else would end it; what is meant to run for days says so with a heartbeat.",
	},
	{
		Key: "dead_letters.failed", Kind: Duration, Default: "0s", Least: "0s", Most: "8760h", Live: true, field: func(c *Config) any { return &c.DeadLetters.Failed },
		About: "How long a task may be in error before it is listed",
		Why:   "A failed task waits for a person from the start; raise it where something retries by itself.",
	},

	{
		Key: "retention.every", Kind: Duration, Default: "10m", Least: "1s", Most: "24h", Live: true, field: func(c *Config) any { return &c.Retention.Every },
		About: "How often a worker makes the event partitions of the next days, and removes what is older than the next two say",
		Why:   "Partitions are made three days ahead, so nothing hurries; small portions disturb nobody.",
	},
	{
		Key: "retention.tasks", Kind: Duration, Default: "0s", Least: "0s", Most: "87600h", Live: true, field: func(c *Config) any { return &c.Retention.Tasks },
		About: "How long ago a task must have ended to be deleted with its steps, such as 2160h for 90 days; 0s: never. Open tasks, their parents and children, and tasks in error stay",
		Why:   "Whether the history is needed, and for how long, only you know; `tasker prune` does the same by hand.",
	},
	{
		Key: "retention.events", Kind: Duration, Default: "0s", Least: "0s", Most: "87600h", Live: true, field: func(c *Config) any { return &c.Retention.Events },
		About: "How old a day's events must be for their partition to be dropped; 0s: never. What a durable subscriber has not read stays",
		Why:   "As above; dropping a partition costs nothing per row.",
	},

	{
		Key: "analytics.every", Kind: Duration, Default: "5s", Least: "100ms", Most: "24h", Live: true, field: func(c *Config) any { return &c.Analytics.Every },
		About: "How often what has happened is added to the counts of `tasker analytics`",
		Why:   "One worker reads the events since the last time: 5 µs each. With more than 5,000 of them it rests 19 times as long as it took, so figures of a database that is busy all the time come later.",
	},
	{
		Key: "analytics.keep", Kind: Duration, Default: "2160h", Least: "25h", Most: "87600h", Live: true, field: func(c *Config) any { return &c.Analytics.Keep },
		About: "How long the counts are kept",
		Why:   "An hour of a step is some fifty small rows; those of five minutes go after a day.",
	},

	{
		Key: "orchestrator.max_losses", Kind: Whole, Default: "5", Least: "1", Most: "1000", Live: true, field: func(c *Config) any { return &c.Orchestrator.MaxLosses },
		About: "Attempts of one step that may be lost with the process that ran them; the next one puts the step in error",
		Why:   "A few deployments and crashes are borne, while a step that kills its process each time can't do so for ever.",
	},
	{
		Key: "orchestrator.indulgence", Kind: Duration, Default: "5s", Least: "1ms", Most: "1h", Live: true, field: func(c *Config) any { return &c.Orchestrator.Indulgence },
		About: "How much longer than its timeout a Go handler may take to notice that its context has ended",
		Why:   "Time to clean up and return; without a bound a handler that ignores its context would hold its task for ever.",
	},
	{
		Key: "orchestrator.handled_elsewhere", Kind: Duration, Default: "50ms", Least: "1ms", Most: "1m", Live: true, field: func(c *Config) any { return &c.Orchestrator.HandledElsewhere },
		About: "How soon a task is offered again that needs a handler of another worker",
		Why:   "Any worker may get it, so it may take a few rounds; each costs a claim.",
	},
	{
		Key: "orchestrator.handled_nowhere", Kind: Duration, Default: "3s", Least: "10ms", Most: "1h", Live: true, field: func(c *Config) any { return &c.Orchestrator.HandledNowhere },
		About: "The same where no living worker has the handler; it doubles with each round",
		Why:   "One may come with the deployment that is under way; until then each round is for nothing.",
	},
	{
		Key: "orchestrator.handled_nowhere_most", Kind: Duration, Default: "5m", Least: "10ms", Most: "24h", Live: true, field: func(c *Config) any { return &c.Orchestrator.HandledNowhereMost },
		About: "Up to which that grows",
		Why:   "A worker that comes with the handler wakes such tasks; this is for the case that it could not.",
	},
	{
		Key: "orchestrator.ask_again", Kind: Duration, Default: "1s", Least: "1ms", Most: "1m", Live: true, field: func(c *Config) any { return &c.Orchestrator.AskAgain },
		About: "For how long the answer is believed to whether another worker has a handler",
		Why:   "One question per second and set of handlers, however many tasks wait for it.",
	},
	{
		Key: "orchestrator.blocked_for", Kind: Duration, Default: "1s", Least: "5ms", Most: "5s", Live: true, field: func(c *Config) any { return &c.Orchestrator.BlockedFor },
		About: "How long a loop waits at most before it tries a write again that somebody's open transaction stands in the way of",
		Why:   "The first tries come after milliseconds; this is for transactions that stay open, and bounds what each costs.",
	},
	{
		Key: "orchestrator.give_up_for", Kind: Duration, Default: "1m", Least: "1s", Most: "24h", Live: true, field: func(c *Config) any { return &c.Orchestrator.GiveUpFor },
		About: "When a task is tried again that its loop could not move",
		Why:   "The reason is one that time alone rarely mends (the log says which), so sooner would only fill the log.",
	},
	{
		Key: "orchestrator.progress_every", Kind: Duration, Default: "1s", Least: "10ms", Most: "1m", Live: true, field: func(c *Config) any { return &c.Orchestrator.ProgressEvery },
		About: "How often the progress of one Go attempt is written at most, however often it beats",
		Why:   "What is lost with a dying worker is a second's progress; a write per heartbeat could be thousands a second.",
	},
	{
		Key: "orchestrator.gates_every", Kind: Duration, Default: "1s", Least: "10ms", Most: "1m", Live: true, field: func(c *Config) any { return &c.Orchestrator.GatesEvery },
		About: "How often the line at limits is looked at, should nobody have said that a place got free",
		Why:   "Only places that a worker did not free itself wait for it; it is one query, and none where no limit is set.",
	},
	{
		Key: "orchestrator.gates_idle", Kind: Duration, Default: "10s", Least: "1s", Most: "1h", Live: true, field: func(c *Config) any { return &c.Orchestrator.GatesIdle },
		About: "How often a worker that knows of no limit or pause looks whether one has been set",
		Why:   "One that claims is told at once; this is for those that only wake what waits.",
	},

	{
		Key: "writer.connections", Kind: Whole, Default: "2", Least: "1", Most: "32", field: func(c *Config) any { return &c.Writer.Connections },
		About: "Transactions that all workers' writers have under way, at least one each, and as many their claimers",
		Why:   "One is built and received while the other commits; more make smaller groups and more commits on the same disk, so workers share them: with two alive each has one.",
	},
	{
		Key: "writer.batch", Kind: Whole, Default: "100", Least: "1", Most: "10000", field: func(c *Config) any { return &c.Writer.Batch },
		About: "Tasks in one write at most",
		Why:   "By a hundred the commit is paid for. With all in one write the worker and Postgres take turns instead of working side by side; and a refusal sends the rest again, which larger writes make dearer.",
	},
	{
		Key: "writer.claim_batch", Kind: Whole, Default: "100", Least: "1", Most: "10000", field: func(c *Config) any { return &c.Writer.ClaimBatch },
		About: "Tasks in one claim at most",
		Why:   "A claim reads all steps of its tasks; this bounds its answer, and how long the first task waits for the last.",
	},

	{
		Key: "river.fetch_cooldown", Kind: Duration, Default: "1ms", Least: "1ms", Most: "100ms", field: func(c *Config) any { return &c.River.FetchCooldown },
		About: "The least time between two fetches of jobs",
		Why:   "Fetches happen when a notification comes or a slot gets free; River's 100 ms would be most of a short task's time.",
	},
	{
		Key: "river.poll", Kind: Duration, Default: "1s", Least: "100ms", Most: "1m", field: func(c *Config) any { return &c.River.Poll },
		About: "How often jobs are looked for that no notification told of",
		Why:   "New tasks and jobs that come due are told of; this is for when that got lost, and costs one short query each time.",
	},
	{
		Key: "river.job_retention", Kind: Duration, Default: "10m", Least: "1m", Most: "720h", field: func(c *Config) any { return &c.River.JobRetention },
		About: "How long River's rows of finished jobs are kept",
		Why:   "The history is in `tasker.events`; these rows only help to see what has just run, and make the table larger.",
	},
	{
		Key: "river.retry_after", Kind: Duration, Default: "5s", Least: "100ms", Most: "1h", field: func(c *Config) any { return &c.River.RetryAfter },
		About: "When a job is tried again whose orchestration failed",
		Why:   "Mostly the database was away; steps' retries have nothing to do with it.",
	},
	{
		Key: "river.unserved_after", Kind: Duration, Default: "1s", Least: "1s", Most: "1h", field: func(c *Config) any { return &c.River.UnservedAfter },
		About: "When a job comes back whose task was held by another transaction, or whose worker had to drop everything",
		Why:   "River's unit is the second; it is another worker's turn, so there is no reason to wait longer.",
	},

	{
		Key: "server.listen", Kind: Text, Flag: "listen", field: func(c *Config) any { return &c.Server.Listen },
		About: "HOST:PORT at which a worker answers HTTP, such as `0.0.0.0:8080`: `/health/live`, `/health/ready`, `/health/status`, `/analytics/…`, `/events`, `/metrics`; empty: not at all. On loopback a worker answers Host `localhost`, `127.0.0.1` and `[::1]` only",
		Why:   "Nothing listens that nobody has asked for.",
	},
	{
		Key: "server.token", Kind: Secret, field: func(c *Config) any { return &c.Server.Token },
		About: "What all but `/health/live` and `/health/ready` want to see, as `Authorization: Bearer TOKEN`; empty: nothing",
		Why:   "Figures and events say much about a business. Without a token let only those reach the port who may see them.",
	},
	{
		Key: "server.most_lag", Kind: Duration, Default: "0s", Least: "0s", Most: "24h", field: func(c *Config) any { return &c.Server.MostLag },
		About: "How long the first task that is due may wait for a worker before `/health/ready` and `tasker health` say so with an error; 0s: for ever",
		Why:   "A backlog is no fault of the worker that is asked, and mostly no reason to hold up a deployment.",
	},

	{
		Key: "telemetry.otlp_endpoint", Kind: URL, Schemes: []string{"http://", "https://"}, Form: "http://localhost:4318", Env: []string{"TASKER_TELEMETRY_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"}, field: func(c *Config) any { return &c.Telemetry.Endpoint },
		About: "Collector of OpenTelemetry traces that takes OTLP over HTTP, such as `http://localhost:4318`; empty: nothing is traced",
		Why:   "Nothing leaves that nobody has asked for.",
	},
	{
		Key: "telemetry.trace_one_in", Kind: Whole, Default: "100", Least: "1", Most: "1000000000", field: func(c *Config) any { return &c.Telemetry.OneIn },
		About: "Of tasks that nobody's trace led to, one in so many is traced; 1: all",
		Why:   "A task whose `carrier` has a sampled `traceparent` always is. What is not traced costs nothing, and what is one look into the database at its end.",
	},

	{
		Key: "http.allow", Kind: List, Flag: "http-allow", Live: true, field: func(c *Config) any { return &c.HTTP.Allow }, item: hostFault,
		About: "Hosts that `tasker.http` may call, such as `api.example.com` or `127.0.0.1:8080`",
		Why:   "None: a template must not be able to make a worker call whatever the worker can reach.",
	},
	{
		Key: "http.timeout", Kind: Duration, Default: "0s", Least: "0s", Most: "24h", Live: true, field: func(c *Config) any { return &c.HTTP.Timeout },
		About: "How long one call may take; 0s: as long as the step's `timeout_seconds`",
		Why:   "The step knows what it calls; a bound for all would cut off those that are slow by design.",
	},
	{
		Key: "http.max_response", Kind: Whole, Default: "1048576", Least: "1024", Most: "4194304", Live: true, field: func(c *Config) any { return &c.HTTP.MaxResponse },
		About: "Bytes that an answer may have; a larger one is a permanent failure",
		Why:   "It becomes the step's result, is stored and read again by later steps; Postgres refuses results of more than 4 MiB.",
	},

	{
		Key: "templates.folder", Kind: Text, Env: []string{"TASKER_TEMPLATES"}, Flag: "templates", Live: true, field: func(c *Config) any { return &c.Templates.Folder },
		About: "Folder of template YAML that a worker registers when it starts, and again at SIGHUP",
		Why:   "None: templates may as well be registered once per deployment, with `tasker template register`.",
	},
	{
		Key: "templates.environment", Kind: Text, Env: []string{"TASKER_ENV", "RAILS_ENV"}, Flag: "environment", Live: true, field: func(c *Config) any { return &c.Templates.Environment },
		About: "Whose overlays to apply to template files; `tasker dev`: development",
		Why:   "None, so that templates are taken as they stand where nobody says where this is. `RAILS_ENV` is where Rails has it.",
	},
	{
		Key: "templates.allow_env", Kind: List, Flag: "allow-env", Live: true, field: func(c *Config) any { return &c.Templates.AllowEnv },
		About: "Environment variables that template files may use as `${NAME}`",
		Why:   "None: a template may come from elsewhere, and must not read whatever is in the environment.",
	},

	{
		Key: "log.level", Kind: Choice, Default: "info", Choices: []string{"debug", "info", "warn", "error"}, Flag: "log-level", Live: true, field: func(c *Config) any { return &c.Log.Level },
		About: "What is logged: this and what is graver",
		Why:   "Starts, stops and what was repaired show; what each task does is in `tasker.events`.",
	},
	{
		Key: "log.format", Kind: Choice, Default: "auto", Choices: []string{"auto", "text", "json"}, Flag: "log-format", field: func(c *Config) any { return &c.Log.Format },
		About: "How: text, json, or auto: text on a terminal, JSON in a pipe",
		Why:   "People read terminals and programs read pipes.",
	},
}

// Find returns the setting of a key, or nil.
func Find(key string) *Setting {
	for i := range Settings {
		if Settings[i].Key == key {
			return &Settings[i]
		}
	}
	return nil
}

func hostFault(host string) string {
	if strings.Contains(host, "/") {
		return "is a URL or a path; write the host alone, with its port where it isn't the scheme's own"
	}
	return ""
}
