# tulle: make demo shows it, make test proves it, make help lists the rest.

# The same commit makes the same bytes: nothing is of when and where it is built, nor abbreviated as the history at hand asks for.
VERSION ?= $(shell git describe --tags --always --dirty --abbrev=12 2>/dev/null || echo 0.0.0-dev)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

.PHONY: build
build: ## build bin/tulle
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/tulle ./cmd/tulle

.PHONY: demo
demo: ## build, and show three hosts whose containers talk, and why (needs root)
	@e2e/prepare demo
	@$(MAKE) --no-print-directory build
	@bin/tulle lab demo

# The plugin, if Docker has it, or else the program of before.
COMPOSE = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

.PHONY: compose-up
compose-up: build ## build, and start an etcd and three nodes as containers (deploy/compose)
	@deploy/compose/image
	@cd deploy/compose && $(COMPOSE) up -d

.PHONY: compose-down
compose-down: ## remove these containers, with all that belongs to them
	@cd deploy/compose && $(COMPOSE) down -v --rmi all
	@docker image prune -f --filter label=tulle-lab >/dev/null

.PHONY: test
test: ## run all tests (needs root; installs what they need with apt)
	@e2e/prepare test
	@rm -f bin/skipped
	TULLE_TEST_ROOT=1 TULLE_SKIPPED=$(CURDIR)/bin/skipped CGO_ENABLED=1 go test -race -timeout 60m -parallel 4 ./...
	@[ ! -e bin/skipped ] || { echo "SKIPPED, for want of a kernel that can (make test-kernel has one):"; sort bin/skipped; }

# What is IPIP's and WireGuard's: the kernel of who runs make test may lack both.
KERNEL_TESTS = ^TestBackends$$/^(ipip|wireguard)|^TestDirectRouting$$/^ipip|^TestDoctorBackends$$/^(ipip|wireguard)|^TestTypeChange$$|^TestWireGuard$$/^(keys|rotation|device|closed|secrets)|^TestWireGuardFlannel$$|^TestIPIP$$

.PHONY: test-kernel
test-kernel: ## run what make test skips on a kernel without IPIP or WireGuard, in a virtual machine that has both (needs root; amd64)
	@e2e/prepare vm
	e2e/vm '$(KERNEL_TESTS)' backend/kernel e2e

.PHONY: test-matrix
test-matrix: ## each family inside on each family outside, each way to carry packets, each packet filter: make test has a part of it (needs root)
	@e2e/prepare test
	TULLE_TEST_ROOT=1 TULLE_MATRIX=all CGO_ENABLED=1 go test -race -timeout 120m -parallel 4 -run 'TestMatrix$$' ./e2e

# As in make soak FOR=1h SEED=42.
.PHONY: soak
soak: ## break things at random for 10 minutes, and see all heal (FOR=TIME, SEED=NUMBER of a run to repeat)
	@e2e/prepare test
	TULLE_TEST_ROOT=1 TULLE_SOAK=$(or $(FOR),10m) TULLE_SOAK_SEED=$(SEED) CGO_ENABLED=1 go test -race -timeout 0 -v -run 'TestSoak$$' ./e2e

.PHONY: test-all
test-all: ## all tests, make test-matrix, a release of all architectures, make soak, and the tests that set the clock, in a virtual machine (needs root)
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory test-matrix
	TULLE_TEST_ROOT=1 TULLE_RELEASE=all go test -timeout 60m -v -run 'TestRelease$$' ./e2e
	@$(MAKE) --no-print-directory soak
	@e2e/prepare vm
	e2e/vm 'TestClock$$'

# As in make release VERSION=1.2.3.
.PHONY: release
release: ## build what is released, for six architectures: binaries, debs, rpms, SBOMs, SHA256SUMS in bin/release (VERSION=1.2.3)
	@deploy/package/release '$(VERSION)' bin/release

# As in make bench ARGS="--only join,idle". bin/bench compare OLD.json NEW.json compares two runs.
.PHONY: bench
bench: ## measure what ten thousand hosts cost each of them, for 6 minutes: a table, bin/bench.json, docs/performance (needs root)
	@e2e/prepare demo
	@$(MAKE) --no-print-directory build
	go build -o bin/bench ./e2e/bench
	@bin/bench --json bin/bench.json --svg docs/performance $(ARGS)

.PHONY: bench-data
bench-data: ## measure what each backend costs packets, what VXLAN does, and what offloads are worth, for 25 minutes: three tables, bin/bench-data.json (needs root)
	@e2e/prepare bench
	@$(MAKE) --no-print-directory build
	@go run ./e2e/bench/data --json bin/bench-data.json $(ARGS)

.PHONY: cli
cli: ## make docs/cli.md anew, of the commands' definitions
	@go run ./cmd/tulle reference markdown >docs/cli.md.new && mv docs/cli.md.new docs/cli.md

.PHONY: picture
picture: ## make docs/page.png anew: an agent's page, of a lab of six hosts (needs root)
	@e2e/prepare test
	TULLE_TEST_ROOT=1 TULLE_PICTURE=$(CURDIR)/docs/page.png go test -count 1 -run 'TestPicture$$' ./e2e

.PHONY: lint
lint: ## check format, vet, staticcheck (staticcheck.conf), go.mod, and the shell scripts
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "not gofmt-ed: $$unformatted"; exit 1; }
	go vet ./...
	go -C deploy/package vet ./...
	go tool staticcheck ./...
	go mod tidy -diff
	go mod verify
	@command -v shellcheck >/dev/null || e2e/prepare lint
	shellcheck -s bash -S warning $(SCRIPTS)

# In a release's sources there is no git to ask.
SCRIPTS = $(shell git grep -lE '^#!.*sh\b' 2>/dev/null) cmd/tulle/completion/tulle.bash

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
