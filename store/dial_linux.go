package store

import (
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// giveUpAfterVanished breaks a connection when what was sent is not acknowledged.
func giveUpAfterVanished(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var refused error
	err := c.Control(func(fd uintptr) {
		refused = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(vanished.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return refused
}
