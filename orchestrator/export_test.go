package orchestrator

import "runtime"

const LittleToDo = littleToDo

// AwaitJoined returns when a River job has joined the visit of the task.
func (o *Orchestrator) AwaitJoined(task int64) {
	for {
		o.mu.Lock()
		l := o.loops[task]
		joined := l == nil || l.again || l.awaited
		o.mu.Unlock()
		if joined {
			return
		}
		runtime.Gosched()
	}
}
