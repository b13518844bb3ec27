# What can be done with this repository. `make` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Go packages to test, and flags for `go test`: make test PACKAGES=./dag FLAGS='-run Viable -v'
PACKAGES ?= ./...
FLAGS ?=

# Go stamps programs with the commit. Where git refuses to tell it (no .git, or
# a checkout that belongs to somebody else), build without.
ifneq ($(shell git rev-parse HEAD 2>/dev/null | wc -l),1)
export GOFLAGS := $(GOFLAGS) -buildvcs=false
endif

.PHONY: help
help: ## show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z/-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what is missing: Postgres, Redis, Ruby and its libraries (Debian packages)
	@scripts/setup

.PHONY: build
build: ## build bin/tasker
	go build -o bin/tasker ./cmd/tasker

# What `make demo` does besides: make demo DEMO='-trace FILE'.
DEMO ?=

.PHONY: demo
demo: setup build ## run the example application: orders through Rails, tasker and Sidekiq
	@scripts/demo $(DEMO)

.PHONY: test
test: setup ## run all tests, Go and Ruby, on one pair of servers
	@go build -o bin/testservers ./testenv/servers
	@PACKAGES='$(PACKAGES)' FLAGS='$(FLAGS)' bin/testservers -- scripts/test

.PHONY: test/long
test/long: setup ## run the property tests for minutes instead of seconds
	go test -timeout 60m -count 1 ./dag ./finalizer ./orchestrator -run 'Progress|ATaskRuns|AnyDAG|NeverHangs|TheEnd|ATaskEnds' -rapid.checks=10000
	go test -timeout 60m -count 1 ./store -run TheView -rapid.checks=5000
	go test -timeout 60m -count 1 ./model -model.much
	TASKER_INTERLEAVINGS=100000 go test -timeout 60m -count 1 ./worker -run ManyAtATime

# What `make bench` runs: make bench BENCH='-engines all -only w1,w4 -update'; go run ./bench -help has the rest.
BENCH ?=

.PHONY: bench
bench: setup ## compare tasker with DBOS and River (10 minutes, on a quiet machine: it waits for one)
	go run ./bench $(BENCH)

.PHONY: bench/bridge
bench/bridge: setup ## measure Ruby steps against native Sidekiq jobs, events to Ruby, and latencies (12 minutes, on a quiet machine)
	go run ./bench/bridge
	go run ./bench/events
	go run ./bench/latency

# What `make chaos` does: make chaos CHAOS='-seed 1,2,3 -for 10m'; go run ./chaos -help has the rest.
CHAOS ?= -seed 1 -for 2m

.PHONY: chaos
chaos: setup ## run tasker under faults and hold it to docs/guarantees.md (2 minutes; CHAOS='-for 30m' for more)
	go run ./chaos $(CHAOS)

.PHONY: lint
lint: setup bin/golangci-lint ## check the code: gofmt, vet, golangci-lint with the import rules, rubocop
	@scripts/lint

.PHONY: vulncheck
vulncheck: ## look for known vulnerabilities in what tasker is built of (half a minute)
	@scripts/vulncheck

.PHONY: fmt
fmt: bin/golangci-lint ## format Go and Ruby code
	bin/golangci-lint fmt ./...
	scripts/rubocop --autocorrect

.PHONY: docs
docs: ## write the generated parts of the documentation anew
	go generate ./...

.PHONY: clean
clean: ## remove what was built
	rm -rf bin

# The linter's version is in tools/go.mod; a change of it builds it anew. The
# first build takes a few minutes.
bin/golangci-lint: tools/go.mod tools/go.sum
	@echo '── building golangci-lint (a few minutes the first time)'
	@GOFLAGS=-buildvcs=false go build -C tools -o ../bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
