# Two commands matter: `make demo` (needs only Go) and `make test`.
# The real mail servers that tests start come from Debian; .ci/run installs them.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  = -s -w -X main.version=$(VERSION)
# The race detector needs a C compiler; without one the tests run without it and say so.
RACE    := $(shell command -v $${CC:-gcc} >/dev/null 2>&1 && echo -race)
# It watches our code and the libraries, but for SQLite, which is C in Go's clothes and takes most of the time then. That package
# alone: one that makes functions of somebody's type parameters (sync.Map, atomic.Pointer) lends them to the whole program, and
# where the linker takes its unwatched ones, races are reported that are none.
UNRACED  = -gcflags=modernc.org/sqlite/lib=-race=0

.PHONY: demo test build lint bench faults matrix window attacks fuzz vuln docs clean

demo: ## a whole migration on this machine, nothing to install
	$(GO) run ./cmd/crossfade demo

test: lint ## everything that must hold, against real servers where they are installed
	@test -n "$(RACE)" || echo "make test: no C compiler found: running WITHOUT the race detector" >&2
	@figures=$$(mktemp); CROSSFADE_FIGURES=$$figures $(GO) test $(RACE) $(if $(RACE),$(UNRACED)) -timeout 20m ./...; code=$$?; \
	echo "figures that the tests measured:"; cat $$figures; rm -f $$figures; exit $$code

build: ## bin/crossfade, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/crossfade ./cmd/crossfade

lint: ## formatting, vet
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "not gofmt'ed:"; echo "$$out"; exit 1; }
	$(GO) vet ./...

bench: build ## beside Postfix, in the same run, on this machine (root, Debian; alone: nothing else may run)
	bash bench/smtp.sh
	@echo "memory, with a million queued messages: bash bench/memory.sh; on Redis: bash bench/redis.sh; mailbox copies: bash bench/imap.sh"
	@echo "idle connections: bash bench/idle.sh; clients that drip, floods, TLS handshakes: bash bench/load.sh"

matrix: ## every ordered pair of servers (docs/backfill.md), long form: some minutes
	@figures=$$(mktemp); CROSSFADE_FIGURES=$$figures CROSSFADE_MATRIX=long \
	$(GO) test -timeout 60m -count=1 ./internal/matrix; code=$$?; \
	cat $$figures; rm -f $$figures; exit $$code

faults: ## the fault suite (docs/faults.md), long form: about an hour, or one PART of it (PART=./internal/daemon); root for all of it
	@figures=$$(mktemp); CROSSFADE_FIGURES=$$figures CROSSFADE_FAULTS=long \
	$(GO) test -p 2 -timeout 90m -count=1 -run 'Kill|Crash|Faults|Full|Failed|PowerLoss' $(or $(PART),./store/... ./backfill/... ./internal/...); code=$$?; \
	cat $$figures; rm -f $$figures; exit $$code

window: ## a company of 200 goes through the whole window (docs/faults.md), long form; and how long flips hold mail
	@figures=$$(mktemp); CROSSFADE_FIGURES=$$figures CROSSFADE_FAULTS=long \
	$(GO) test -timeout 120m -count=1 ./internal/window; code=$$?; \
	cat $$figures; rm -f $$figures; exit $$code

attacks: ## what strangers try (docs/security-tests.md), long form: every case and the corpus through six real mail servers
	@figures=$$(mktemp); CROSSFADE_FIGURES=$$figures CROSSFADE_ATTACKS=long \
	$(GO) test -timeout 60m -count=1 ./internal/attack; code=$$?; \
	cat $$figures; rm -f $$figures; exit $$code

fuzz: ## every fuzz target for FUZZTIME (30s) each
	bash bench/fuzz.sh $(or $(FUZZTIME),30s)

vuln: ## known vulnerabilities in what this needs; says so where the database cannot be reached
	bash bench/vuln.sh

docs: ## docs/configuration.md from the code
	$(GO) run ./cmd/crossfade check --reference > docs/configuration.md

clean:
	rm -rf bin
