// Package server is what a worker answers over HTTP: whether it lives, and whether
// it is ready.
package server

import (
	"encoding/json"
	"net/http"
	"time"
)

// Handler answers GET /health/live and /health/ready. Neither asks who is there:
// they are for probes.
func Handler(p Probe) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health/live", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"alive": true, "service": "tasker", "timestamp": time.Now().UTC()})
	})
	mux.HandleFunc("GET /health/ready", func(w http.ResponseWriter, r *http.Request) {
		ready := p.Ready(r.Context())
		status := http.StatusOK
		if !ready.Ready {
			status = http.StatusServiceUnavailable
		}
		answer(w, status, ready)
	})
	return mux
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // who asked has gone away
}
