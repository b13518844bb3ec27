package store

import (
	"context"
	"net"
	"time"
)

// A peer that is gone without a word (its machine lost power, a router forgot the
// connection) is noticed after vanished: by probes where nothing is under way, else
// by what it doesn't acknowledge. The kernel's own patience is a quarter of an hour,
// for which a worker's writes would hang while its heartbeats, on another
// connection, say that all is well. A Postgres that is only slow acknowledges.
const vanished = 6 * time.Second

// dial connects to Postgres.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{
		Timeout:         ConnectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: vanished / 2, Interval: vanished / 6, Count: 3},
		Control:         giveUpAfterVanished,
	}
	return d.DialContext(ctx, network, address)
}
