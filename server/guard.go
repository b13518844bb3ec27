package server

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"
)

// checked refuses requests that no handler should see, and gives each answer a time.
func (s *server) checked(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w = &timedWriter{ResponseWriter: w, within: s.Slowest}
		if s.Loopback && !isLocalHost(r.Host) {
			refuse(w, http.StatusMisdirectedRequest, fmt.Sprintf("this worker listens on loopback and answers Host localhost, 127.0.0.1 and [::1] only, not %q; "+
				"call http://localhost, have the proxy send Host: localhost, or set server.listen to another address", r.Host))
			return
		}
		if problem := problemOf(r); problem != "" {
			refuse(w, http.StatusBadRequest, problem)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// isLocalHost reports whether a Host header names this machine. A web page whose name
// was bound to 127.0.0.1 sends the name (DNS rebinding). Browsers always send a Host.
func isLocalHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host == "" || strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsLoopback()
}

// problemOf says why the text of a request cannot go to the database; "": it can.
func problemOf(r *http.Request) string {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fmt.Sprintf("query: %s; write it as name=value&name=value, percent-encoded", err)
	}
	for name, values := range query {
		if !isText(name) {
			return fmt.Sprintf("query: the name %q must be UTF-8 without NUL", name)
		}
		for _, value := range values {
			if !isText(value) {
				return fmt.Sprintf("%s: the value %q must be UTF-8 without NUL", name, value)
			}
		}
	}
	if id := r.Header.Get("Last-Event-ID"); !isText(id) {
		return fmt.Sprintf("Last-Event-ID: the value %q must be UTF-8 without NUL", id)
	}
	return ""
}

func isText(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// timedWriter limits the time from the first byte of an answer to its last one. A
// client that does not read would otherwise keep a goroutine and a connection.
type timedWriter struct {
	http.ResponseWriter
	within time.Duration
	begun  bool
}

func (w *timedWriter) begin() {
	if !w.begun {
		w.begun = true
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(w.within)) // a recorder of a test has none
	}
}

// WriteHeader begins the answer.
func (w *timedWriter) WriteHeader(status int) {
	w.begin()
	w.ResponseWriter.WriteHeader(status)
}

// Write begins the answer, unless it has begun.
func (w *timedWriter) Write(text []byte) (int, error) {
	w.begin()
	return w.ResponseWriter.Write(text)
}

// Unwrap is for http.ResponseController.
func (w *timedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
