# A fresh machine needs only the Go toolchain and make. The targets download everything else. The versions of tools are
# pinned here, and the tools are built into .bin.
BIN := $(CURDIR)/.bin
BUF_VERSION := v1.75.0
PROTOC_GEN_GO_VERSION := v1.36.12
CONNECT_VERSION := v1.21.1
STATICCHECK_VERSION := v0.8.2

# MODULES are the folders of all modules in go.work. In the commands below, the package pattern "work" means all their
# packages.
MODULES = $(shell go list -m -f '{{.Dir}}')
# The number of packages whose tests run at the same time. It is small, because several packages start a whole mesh.
TEST_PACKAGES ?= 2
# PKG selects a package, and RUN selects tests by a regular expression for their names: make test PKG=./shared/bus
# RUN=TestReader.
PKG ?= work
RUN ?= .
EDUMATRIX := bin/edumatrix
TESTSERVERS := bin/testservers

# Build with the same settings as the Dockerfile. So the test that runs the commands of the Dockerfile finds the
# compiled packages in the build cache.
build lint $(EDUMATRIX) $(TESTSERVERS): export CGO_ENABLED := 0
build lint $(EDUMATRIX) $(TESTSERVERS): export GOFLAGS := $(strip $(GOFLAGS) -trimpath)

.PHONY: help run test test-fast bench bench-size bench-hostile tidy fmt faults faults-broken build lint generate env
.PHONY: verify-connections picture
.PHONY: breaking $(EDUMATRIX) $(TESTSERVERS)

help: ## Print all targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 24
	@echo
	@echo "  There are two layers of tests. Fast tests need only Go. Integration tests are in files with the build tag"
	@echo "  integration. They need Kafka, Redis and PostgreSQL: make test installs and starts these servers, or uses those"
	@echo "  that KAFKA_BROKERS, REDIS_URL and DATABASE_URL name. See CONTRIBUTING.md."

run: $(EDUMATRIX) ## Start the whole mesh in one process; Ctrl-C stops it
	@exec $(EDUMATRIX) up

test: $(TESTSERVERS) ## Run all tests with the race detector; PKG=./shared/bus RUN=TestReader runs some of them
	@$(TESTSERVERS) -install
	@if command -v gcc >/dev/null; then race=-race; else race=; echo "gcc is missing: tests run without the race detector"; fi; \
	  echo "fast tests and integration tests$${race:+, with the race detector}"; \
	  exec $(TESTSERVERS) -jaeger -- go test $$race -p $(TEST_PACKAGES) -timeout 40m -tags integration -run '$(RUN)' $(PKG)

test-fast: ## Run the tests that need no server
	@echo "fast tests only; make test also runs the integration tests"
	go test work

# Without -v, go test prints only the first ten lines that a benchmark logs.
bench: $(TESTSERVERS) ## Measure latency, throughput and CPU cost; BENCH_BEFORE=dir also measures another checkout, in turns
	@$(TESTSERVERS) -install
	go test -v -tags integration -run '^$$' -bench Mesh -benchtime 1x -timeout 2h ./services/edumatrix/e2e

bench-size: $(TESTSERVERS) ## Measure queries with 10 million events and with a hundredth of them; takes minutes
	@$(TESTSERVERS) -install
	go test -v -tags integration -run '^$$' -bench Size -benchtime 1x -timeout 2h ./services/chat/query ./services/presence/store

bench-hostile: $(TESTSERVERS) ## Measure ordinary users with and without each hostile user, in turns
	@$(TESTSERVERS) -install
	go test -v -tags integration -run '^$$' -bench '^BenchmarkHostile$$' -benchtime 1x -timeout 30m ./services/gateway \
	  ./services/edumatrix/e2e

SEEDS ?= 10
faults: $(TESTSERVERS) ## Try to break the guarantees: SEEDS=n random runs, SEED=x repeats a run, EACH=1 runs every fault alone
	@$(TESTSERVERS) -install
	FAULTS_SEEDS=$(SEEDS) FAULTS_SEED=$(SEED) FAULTS_EACH=$(EACH) FAULTS_LIST=$(CURDIR)/docs/faults.tsv \
	  go test -v -count=1 -timeout 24h -tags integration -run '^TestFaults_' ./services/edumatrix/faults

faults-broken: $(TESTSERVERS) ## Check that the fault suite finds three deliberate mistakes
	@$(TESTSERVERS) -install
	FAULTS_BROKEN=1 go test -v -count=1 -timeout 1h -tags integration -run '^TestBroken_' ./services/edumatrix/faults

build: ## Build and vet every module, in the workspace and without it
	go build work
	go vet work
	go vet -tags integration work
	@set -e; for dir in $(MODULES); do echo "alone: $${dir#$(CURDIR)/}"; \
	  (cd $$dir && GOWORK=off go build ./... && GOWORK=off go vet -tags integration ./...); done

lint: build $(BIN)/buf $(BIN)/staticcheck $(BIN)/protoc-gen-go $(BIN)/protoc-gen-connect-go ## Run linters; check formatting, generated code and imports
	@unformatted=$$(gofmt -l proto shared services deployments docs); \
	  test -z "$$unformatted" || { echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; }
	$(BIN)/staticcheck work
	$(BIN)/staticcheck -tags integration work
	go test -count=1 -run '^Test(Walls|Prose)_' ./shared/meshtest
	go test -count=1 -run '^TestGuide_' ./deployments
	cd proto && $(BIN)/buf lint && $(BIN)/buf format --diff --exit-code
	@set -e; fresh=$$(mktemp -d); trap 'rm -rf $$fresh' EXIT; \
	  cp -R proto/. $$fresh/ && (cd $$fresh && PATH=$(BIN):$$PATH buf generate) && \
	  diff -r proto/gen $$fresh/gen || { echo "generated code is not up to date: make generate"; exit 1; }
	go test -count=1 -run '^TestGenerated_' ./proto/cmd/reference
	@$(MAKE) --no-print-directory breaking

# breaking compares proto with the branch main. On main itself, it compares proto with the previous commit. If there is
# no commit to compare with, it compares nothing. In CI it then fails, so that the missing comparison is noticed, except
# in shallow clones and in repositories with a single commit.
breaking: $(BIN)/buf
	@set -e; base=$$(git rev-parse -q --verify origin/main || git rev-parse -q --verify main || true); \
	  if [ -n "$$base" ] && [ "$$base" = "$$(git rev-parse HEAD)" ]; then \
	    base=$$(git rev-parse -q --verify HEAD~1 || true); \
	  fi; \
	  if [ -z "$$base" ]; then \
	    if [ -n "$$CI" ] && [ "$$(git rev-parse --is-shallow-repository)" != true ] && \
	      [ "$$(git rev-list --count HEAD)" != 1 ]; then \
	      echo "buf breaking: the branch main to compare proto with is missing: fetch it"; exit 1; fi; \
	    echo "buf breaking: there is no earlier commit to compare proto with; nothing is compared"; exit; \
	  fi; \
	  old=$$(mktemp -d); trap 'rm -rf $$old' EXIT; git archive $$base proto | tar -x -C $$old; \
	  echo "buf breaking against $$(git log -1 --format='%h %s' $$base)"; \
	  cd proto && $(BIN)/buf breaking --against $$old/proto

tidy: ## Tidy every module, each without the workspace
	@set -e; for dir in $(MODULES); do echo "tidy: $${dir#$(CURDIR)/}"; (cd $$dir && GOWORK=off go mod tidy); done

fmt: $(BIN)/buf ## Format Go and Protobuf files
	gofmt -w proto shared services deployments docs
	cd proto && $(BIN)/buf format -w

generate: $(BIN)/buf $(BIN)/protoc-gen-go $(BIN)/protoc-gen-connect-go ## Generate Go, docs/reference.md and the pages at /docs from proto/
	cd proto && PATH=$(BIN):$$PATH buf generate
	cd proto && go run ./cmd/reference

env: ## Write random secrets for docker compose into .env; existing ones are kept
	@sh deployments/env.sh

picture: $(EDUMATRIX) ## Record docs/talk.svg, the picture of the README, from the real program
	go run ./services/edumatrix/cmd/picture -edumatrix $(EDUMATRIX) -out docs/talk.svg

verify-connections: $(EDUMATRIX) ## Check every connection to Postgres, Redis and Kafka, one by one
	@$(EDUMATRIX) verify

$(EDUMATRIX):
	@go build -o $@ ./services/edumatrix/cmd/edumatrix

$(TESTSERVERS):
	@go build -o $@ ./shared/meshtest/cmd/testservers

# Tools depend on the Makefile, because it contains their versions.
$(BIN)/%: Makefile
	GOBIN=$(BIN) GOWORK=off go install $($(notdir $@)_module)

buf_module := github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION)
staticcheck_module := honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)
protoc-gen-go_module := google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO_VERSION)
protoc-gen-connect-go_module := connectrpc.com/connect/cmd/protoc-gen-connect-go@$(CONNECT_VERSION)
