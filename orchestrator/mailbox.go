package orchestrator

import (
	"encoding/json"
	"sync"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/store"
)

// letter is news for a loop: an ended Go attempt, a report from Sidekiq, word that
// somebody else has changed the task, or that a gate opens.
type letter struct {
	changed  bool
	admitted bool // a gate lets some of its steps pass
	report   *store.Report
	told     bool // a notification says so: it has to show the attempt's ticket
	ended    *ended
}

// ended is a Go attempt that came back.
type ended struct {
	position int
	attempt  int
	result   json.RawMessage
	failure  *tasker.Failure
	lost     bool            // interrupted by the worker's stop
	progress json.RawMessage // what its last heartbeat carried
}

// mailbox holds letters until its loop reads them. Putting one in never blocks.
type mailbox struct {
	mu      sync.Mutex
	letters []letter
	signal  chan struct{} // holds one token while there may be letters
}

func newMailbox() mailbox { return mailbox{signal: make(chan struct{}, 1)} }

func (m *mailbox) put(l letter) {
	m.mu.Lock()
	m.letters = append(m.letters, l)
	m.mu.Unlock()
	select {
	case m.signal <- struct{}{}:
	default:
	}
}

func (m *mailbox) take() []letter {
	m.mu.Lock()
	defer m.mu.Unlock()
	letters := m.letters
	m.letters = nil
	return letters
}
