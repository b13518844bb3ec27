package model

import "fmt"

// Rules are what the protocol rests on.
type Rules struct {
	Fence            bool // a loop's write is refused when the task isn't its worker's, or has another epoch
	CommitFirst      bool // an attempt is pushed after it was committed
	SecondLook       bool // parking is refused when a report has come meanwhile
	FenceReports     bool // a report is refused when its attempt is not the current one
	JobForUnawaited  bool // a report that no loop waits for inserts a River job
	FreeOnReap       bool // a dead worker's tasks and jobs are free in the transaction that declares it dead
	CancelTakesEpoch bool // cancelling takes the task from its loop
	LostOnlyWhenDead bool // an attempt that runs is given up only when its process is dead
	PushAgain        bool // an attempt that nobody started and that is in no queue is pushed again
}

// AllRules is the protocol as it is.
func AllRules() Rules { return Rules{true, true, true, true, true, true, true, true, true} }

// Budget is how often something may befall the system.
type Budget struct {
	Deaths, Pauses, HandlerDeaths, Losses, Doubles, Cancels, Failures uint8
}

const (
	workers     = 2
	maxAttempts = 5 // more than the budgets can use up
)

// What a worker's process is about to do.
type point uint8

const (
	idle     point = iota
	fetched        // has a River job
	owning         // has claimed, and not read
	deciding       // has a view
	pushing        // has committed an attempt, and not pushed it
	waiting        // for a report
	ending         // has let the task go, and not ticked off the job
	gone           // has died, or knows that it was declared dead
)

// step states.
const (
	pending uint8 = iota
	enqueued
	inProgress
	retrying
	complete
	cancelled
)

// worker is what one of them knows; 1-based numbers say who.
type worker struct {
	at    point
	epoch uint8 // of its claim
	step  uint8 // its view: the state
	try   uint8 // and the attempt
	told  bool  // a notification has arrived
	view  bool  // what it knows was read
}

// state is everything. It is comparable: visited states are a map's keys.
type state struct {
	// In Postgres.
	owner, epoch  uint8
	ended         bool
	taskCancelled bool
	step, attempt uint8
	out           bool  // there is a dispatch
	outAttempt    uint8 // of this attempt
	awaited       uint8 // by this worker; 0: nobody
	failed        bool  // a failure was reported, and is not yet settled
	started       bool
	alive         [workers]bool // as Postgres has it
	jobs          uint8         // available
	jobOf         [workers]bool // running
	accepted      uint8         // results
	// In Redis: copies per attempt, 0 to 2.
	queue [maxAttempts + 1]uint8
	// The handler process: which attempts run in it.
	runs [maxAttempts + 1]bool

	w      [workers]worker
	budget Budget
	broken string
}

func start(b Budget) state {
	s := state{jobs: 1, budget: b}
	for i := range s.alive {
		s.alive[i] = true
	}
	return s
}

// next is a state that an action leads to.
type next struct {
	name   string
	to     state
	befell bool // it was no doing of the system
}

// steps lists all that can happen in s.
func (r Rules) steps(s state) []next {
	var list []next
	add := func(name string, befell bool, change func(*state)) {
		t := s
		change(&t)
		if t != s {
			list = append(list, next{name, t, befell})
		}
	}
	for i := range workers {
		r.workerSteps(s, i, add)
	}
	r.handlerSteps(s, add)
	r.nets(s, add)
	if s.budget.Cancels > 0 && !s.ended {
		add("an operator cancels", true, func(t *state) {
			t.budget.Cancels--
			if t.step != complete {
				t.step = cancelled
			}
			t.taskCancelled, t.ended, t.out, t.failed, t.started, t.owner = true, true, false, false, false, 0
			if r.CancelTakesEpoch {
				t.epoch++
			} else {
				t.owner = s.owner
			}
			if s.owner > 0 {
				t.w[s.owner-1].told = true
			}
		})
	}
	return list
}

// mayWrite is the fence of a loop's write.
func (r Rules) mayWrite(s *state, i int) bool {
	if !r.Fence {
		return true
	}
	return s.alive[i] && s.owner == uint8(i+1) && s.epoch == s.w[i].epoch
}

// release ends a visit of worker i.
func release(t *state, i int) {
	t.owner, t.w[i].at, t.w[i].told, t.w[i].view = 0, ending, false, false
}

type adder func(name string, befell bool, change func(*state))

func (r Rules) workerSteps(s state, i int, add adder) {
	w, me := s.w[i], uint8(i+1)
	name := func(what string) string { return fmt.Sprintf("worker %d %s", me, what) }
	refused := func(t *state) { // what becomes of a loop whose write is refused
		t.w[i].view = false
		if !t.alive[i] {
			t.w[i] = worker{at: gone}
		} else if t.owner != me {
			t.w[i] = worker{at: ending}
		} else {
			t.w[i].at, t.w[i].epoch = owning, t.epoch
		}
	}
	switch w.at {
	case idle:
		if s.jobs > 0 && s.alive[i] {
			add(name("fetches a job"), false, func(t *state) { t.jobs--; t.jobOf[i] = true; t.w[i].at = fetched })
		}
	case fetched:
		add(name("claims"), false, func(t *state) {
			switch {
			case !t.alive[i]:
				t.w[i] = worker{at: gone}
			case t.ended || t.owner != 0:
				t.w[i].at = ending
			default:
				t.owner, t.epoch = me, t.epoch+1
				t.w[i] = worker{at: owning, epoch: t.epoch}
				if t.out && !t.failed { // its report rings for this worker
					t.awaited = me
				}
			}
		})
	case owning:
		add(name("reads the task"), false, func(t *state) {
			if t.owner != me || t.epoch != t.w[i].epoch {
				refused(t)
				return
			}
			t.w[i].at, t.w[i].step, t.w[i].try, t.w[i].view, t.w[i].told = deciding, t.step, t.attempt, true, false
		})
	case deciding:
		r.decide(s, i, add, refused)
	case pushing:
		add(name("pushes"), false, func(t *state) {
			t.queue[w.try] = min(t.queue[w.try]+1, 2)
			t.w[i].at = waiting
		})
	case waiting:
		add(name("hears of a report"), false, func(t *state) { // or looks for itself, now and then
			if t.w[i].told || t.owner != me || t.epoch != t.w[i].epoch || t.step == complete || t.failed || !t.alive[i] {
				t.w[i].told = false
				t.w[i].at = owning
			}
		})
		add(name("parks"), false, func(t *state) {
			if !r.mayWrite(t, i) {
				refused(t)
				return
			}
			if r.SecondLook && (!t.out || t.failed || t.awaited != me) {
				refused(t)
				return
			}
			if t.awaited == me {
				t.awaited = 0
			}
			release(t, i)
		})
	case ending:
		add(name("has its job ticked off"), false, func(t *state) { t.jobOf[i] = false; t.w[i] = worker{} })
	case gone:
	}
	if w.at != gone && s.budget.Deaths > 0 {
		add(name("dies"), true, func(t *state) { t.budget.Deaths--; t.w[i] = worker{at: gone} })
	}
	// Presumed dead: rightly, or because it was paused for too long.
	if s.alive[i] && (w.at == gone || s.budget.Pauses > 0) {
		add(name("is declared dead"), w.at != gone, func(t *state) {
			if w.at != gone {
				t.budget.Pauses--
			}
			t.alive[i] = false
			if r.FreeOnReap {
				r.free(t, i)
			}
		})
	}
	// Its supervisor starts it again, as a new worker.
	if w.at == gone && !s.alive[i] {
		add(name("is started anew"), false, func(t *state) { t.alive[i] = true; t.w[i] = worker{} })
	}
}

// free sets free what a dead worker held.
func (r Rules) free(t *state, i int) {
	me := uint8(i + 1)
	if t.awaited == me {
		t.awaited = 0
	}
	rescued := t.jobOf[i]
	if rescued {
		t.jobOf[i], t.jobs = false, t.jobs+1
	}
	if t.owner == me {
		t.owner, t.epoch = 0, t.epoch+1
		if !rescued {
			t.jobs++
		}
	}
}

// decide is what a loop does with its view: one write.
func (r Rules) decide(s state, i int, add adder, refused func(*state)) {
	w, me := s.w[i], uint8(i+1)
	name := func(what string) string { return fmt.Sprintf("worker %d %s", me, what) }
	claim := func(t *state) { // a new attempt
		if !r.mayWrite(t, i) || r.Fence && (t.step != w.step || t.attempt != w.try) {
			refused(t)
			return
		}
		if t.ended {
			t.broken = "an attempt was claimed in a task that has ended"
		}
		t.step, t.attempt = enqueued, t.attempt+1
		t.out, t.outAttempt, t.awaited, t.failed, t.started = true, t.attempt, me, false, false
		t.w[i].try, t.w[i].step, t.w[i].at = t.attempt, enqueued, pushing
		if !r.CommitFirst {
			t.w[i].at = waiting // it was pushed before
		}
	}
	switch w.step {
	case pending, retrying:
		if w.try >= maxAttempts {
			return
		}
		if !r.CommitFirst {
			if s.queue[w.try+1] == 0 {
				add(name("pushes what it is about to claim"), false, func(t *state) { t.queue[w.try+1]++ })
				return
			}
		}
		add(name("claims an attempt"), false, claim)
	case enqueued, inProgress:
		if s.failed && s.owner == me { // its view is read anew for that; here it is one action
			add(name("settles a failure"), false, func(t *state) {
				if !r.mayWrite(t, i) || r.Fence && (t.attempt != w.try || !t.failed) {
					refused(t)
					return
				}
				t.step, t.out, t.failed, t.awaited, t.started = retrying, false, false, 0, false
				t.w[i].step = retrying
			})
			return
		}
		add(name("waits"), false, func(t *state) { t.w[i].at = waiting })
	case complete, cancelled:
		add(name("ends the task"), false, func(t *state) {
			if !r.mayWrite(t, i) {
				refused(t)
				return
			}
			if t.taskCancelled && w.step == complete {
				t.broken = "a cancelled task was completed"
			}
			t.ended = true
			release(t, i)
		})
	}
}

// handlerSteps are those of the process that runs attempts.
func (r Rules) handlerSteps(s state, add adder) {
	for a := uint8(1); a <= maxAttempts; a++ {
		if s.queue[a] > 0 && !s.runs[a] {
			add(fmt.Sprintf("attempt %d is taken from the queue", a), false, func(t *state) {
				t.queue[a]--
				if a > t.attempt {
					t.broken = "an attempt was in Redis before it was committed"
				}
				// The start is fenced; what is not current doesn't run.
				if t.out && t.outAttempt == a && !t.started && !t.failed || !r.FenceReports {
					t.runs[a] = true
					if t.outAttempt == a {
						t.started, t.step = true, inProgress
					}
				}
			})
		}
		if !s.runs[a] {
			continue
		}
		current := s.out && s.outAttempt == a && !s.failed
		ring := func(t *state) {
			switch {
			case t.awaited > 0:
				t.w[t.awaited-1].told = true
			case r.JobForUnawaited:
				t.jobs++
			}
		}
		add(fmt.Sprintf("attempt %d reports its result", a), false, func(t *state) {
			t.runs[a] = false
			if !current && r.FenceReports {
				return
			}
			if t.accepted > 0 {
				t.broken = "two results were accepted"
			}
			t.accepted++
			ring(t)
			t.step, t.out, t.awaited, t.started = complete, false, 0, false
		})
		if s.budget.Failures > 0 {
			add(fmt.Sprintf("attempt %d reports a failure", a), true, func(t *state) {
				t.budget.Failures--
				t.runs[a] = false
				if !current && r.FenceReports {
					return
				}
				t.failed = true
				ring(t)
			})
		}
		if s.budget.HandlerDeaths > 0 {
			add(fmt.Sprintf("attempt %d dies with its process", a), true, func(t *state) { t.budget.HandlerDeaths--; t.runs[a] = false })
		}
	}
}

// nets are what finds that something got lost, and the losses.
func (r Rules) nets(s state, add adder) {
	if s.out && !s.failed {
		a := s.outAttempt
		if !s.started && s.queue[a] == 0 && r.PushAgain {
			if !s.busyPushing(a) {
				add("a job that is in no queue is pushed again", false, func(t *state) { t.queue[a] = 1 })
			}
		}
		if s.started && (!s.runs[a] || !r.LostOnlyWhenDead) {
			add("an attempt is found to be lost", false, func(t *state) {
				if t.runs[a] {
					t.broken = "an attempt was given up that runs"
				}
				t.failed = true
				if t.awaited > 0 {
					t.w[t.awaited-1].told = true
				} else {
					t.jobs++
				}
			})
		}
	}
	for i := range workers {
		if s.w[i].told && s.budget.Losses > 0 {
			add(fmt.Sprintf("a notification to worker %d is lost", i+1), true, func(t *state) { t.budget.Losses--; t.w[i].told = false })
		}
	}
	for a := uint8(1); a <= maxAttempts; a++ {
		if s.queue[a] > 0 && s.budget.Losses > 0 {
			add(fmt.Sprintf("Redis loses attempt %d", a), true, func(t *state) { t.budget.Losses--; t.queue[a] = 0 })
		}
		if s.queue[a] == 1 && s.budget.Doubles > 0 {
			add(fmt.Sprintf("Redis delivers attempt %d twice", a), true, func(t *state) { t.budget.Doubles--; t.queue[a] = 2 })
		}
	}
}

// busyPushing says that a worker is about to push the attempt.
func (s *state) busyPushing(a uint8) bool {
	for _, w := range s.w {
		if w.at == pushing && w.try == a {
			return true
		}
	}
	return false
}
