// Package model is the protocol of ownership, parking and reporting, small
// enough to look at every order in which things can happen.
//
// One task with one Ruby step, two workers, one handler process, River's jobs and
// Sidekiq's queue. Each action is what one transaction, or one command to Redis,
// does. Two kinds of actions: what the system does by itself, and what befalls
// it, as often as a budget allows: a worker or the handler process dies, a worker
// is presumed dead that was only paused, a notification or a payload gets lost, a
// payload is doubled, an operator cancels.
//
// Explore walks through all states that can be reached. In none may a promise be
// broken; and from each of them what the system does by itself must be able to
// bring the task to its end. Left out on purpose is the sweep, the last net: the
// protocol has to hold without it.
//
// Each field of Rules is one rule of the protocol. The tests take away one at a
// time and see that something breaks: each is needed, and the model would notice.
package model
