//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// proxy stands between one process and one server, and does to what passes what
// networks do.
type proxy struct {
	listener net.Listener
	server   string
	postgres bool // knows the messages of Postgres

	paused     gate
	swallow    atomic.Bool  // notifications don't arrive
	loseAnswer atomic.Int32 // so many statements end, and nobody hears how

	mu    sync.Mutex
	conns map[net.Conn]bool
}

// gate lets through, or doesn't.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // nil: open
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		g.open = make(chan struct{})
	}
}

func (g *gate) reopen() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open != nil {
		close(g.open)
		g.open = nil
	}
}

func (g *gate) pass() {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	if open != nil {
		<-open
	}
}

func newProxy(server string, postgres bool) (*proxy, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: l, server: server, postgres: postgres, conns: map[net.Conn]bool{}}
	go p.accept()
	return p, nil
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		go p.serve(client)
	}
}

func (p *proxy) serve(client net.Conn) {
	server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp4", p.server) // ends with the proxy
	if err != nil {
		_ = client.Close() // the server is away, and so is its proxy
		return
	}
	p.mu.Lock()
	p.conns[client], p.conns[server] = true, true
	p.mu.Unlock()
	end := func() {
		p.mu.Lock()
		delete(p.conns, client)
		delete(p.conns, server)
		p.mu.Unlock()
		_ = client.Close() // both, whoever was first
		_ = server.Close()
	}
	go func() {
		defer end()
		p.up(server, client)
	}()
	go func() {
		defer end()
		if p.postgres {
			_ = p.down(client, server) // ends with the connection
			return
		}
		p.up(client, server)
	}()
}

// up copies bytes.
func (p *proxy) up(to io.Writer, from io.Reader) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		p.paused.pass()
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

var errLost = errors.New("the answer was lost")

// down copies what Postgres says, message by message: a letter, a length, and
// what it is about.
func (p *proxy) down(client net.Conn, server net.Conn) error {
	from, to := bufio.NewReaderSize(server, 64<<10), bufio.NewWriterSize(client, 64<<10)
	var head [5]byte
	losing := false // from here on nothing is passed
	for {
		if _, err := io.ReadFull(from, head[:]); err != nil {
			return err
		}
		p.paused.pass()
		body := int64(binary.BigEndian.Uint32(head[1:])) - 4
		if head[0] == 'T' || head[0] == 'D' || head[0] == 'C' {
			if !losing && p.loseAnswer.Load() > 0 && p.loseAnswer.Add(-1) >= 0 {
				losing = true
			}
		}
		if losing || head[0] == 'A' && p.swallow.Load() {
			if _, err := io.CopyN(io.Discard, from, body); err != nil {
				return err
			}
			if losing && head[0] == 'Z' { // the statement has ended, and mostly its transaction
				return errLost
			}
			continue
		}
		if _, err := to.Write(head[:]); err != nil {
			return err
		}
		if _, err := io.CopyN(to, from, body); err != nil {
			return err
		}
		if from.Buffered() == 0 {
			if err := to.Flush(); err != nil {
				return err
			}
		}
	}
}

// cut ends all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close() // that is what is wanted
	}
}

func (p *proxy) close() {
	_ = p.listener.Close() // at the end
	p.paused.reopen()
	p.cut()
}
