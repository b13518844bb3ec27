package devstack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Free ports are looked for below the range that Linux and macOS give to
// outgoing connections (32768 and up). Inside that range, a client that keeps
// trying to reach a server which is down for a moment can be given the
// server's own port as its source, connect to itself, and keep the server from
// coming back.
const lowestPort, highestPort = 15000, 32000

// attempts at a port when the caller leaves the choice to us: between the look
// and the server's bind another process may take it.
const portAttempts = 5

var errPortTaken = errors.New("port is in use")

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// portFree says whether a server could listen on the port.
func portFree(port int) bool {
	listener, err := net.Listen("tcp4", address(port))
	if err != nil {
		return false
	}
	return listener.Close() == nil
}

func freePort() (int, error) {
	for range 200 {
		if port := lowestPort + rand.IntN(highestPort-lowestPort); portFree(port) {
			return port, nil
		}
	}
	return 0, fmt.Errorf("found no free port between %d and %d on 127.0.0.1", lowestPort, highestPort)
}

// withPort calls start with the port that was asked for, or with free ones
// until it gets one that nobody took meanwhile.
func withPort(asked int, server string, start func(port int) error) error {
	if asked != 0 {
		if !portFree(asked) {
			return fmt.Errorf("start %s: %w: another program listens on %s; stop it or choose another port", server, errPortTaken, address(asked))
		}
		return start(asked)
	}
	var err error
	for range portAttempts {
		var port int
		if port, err = freePort(); err != nil {
			return fmt.Errorf("start %s: %w", server, err)
		}
		if err = start(port); err == nil || portFree(port) {
			return err // a failure that isn't about the port
		}
	}
	return err
}
