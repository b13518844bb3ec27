package orchestrator

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// ticket is what a process has to show to start the attempt, and what the
// notification of its result has to carry to be believed: 48 bits that cannot be
// guessed without this worker's key. SQL makes the same (tasker.ticket).
func (o *Orchestrator) ticket(step int64, attempt int) int64 {
	sum := sha256.Sum256(fmt.Appendf(o.ticketKey[:len(o.ticketKey):len(o.ticketKey)], "%d.%d", step, attempt))
	return int64(binary.BigEndian.Uint64(sum[:8]) >> 16)
}
