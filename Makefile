# Everything that is needed is fetched by the targets themselves: a fresh machine has the Go toolchain and make.
# Tools are pinned here and built into .bin.
BIN := $(CURDIR)/.bin
BUF_VERSION := v1.75.0
PROTOC_GEN_GO_VERSION := v1.36.12
CONNECT_VERSION := v1.21.1
STATICCHECK_VERSION := v0.8.2

# "work" is every package of every module of go.work.
MODULES = $(shell go list -m -f '{{.Dir}}')
# Packages whose tests run at once. Several start a whole mesh.
TEST_PACKAGES ?= 2
# make test PKG=./shared/bus RUN=TestReader: one package's tests, or those whose names match
PKG ?= work
RUN ?= .
EDUMATRIX := bin/edumatrix
TESTSERVERS := bin/testservers

# What is not tested but built is built as the images are, so that a fresh machine compiles it once.
build lint $(EDUMATRIX) $(TESTSERVERS): export CGO_ENABLED := 0
build lint $(EDUMATRIX) $(TESTSERVERS): export GOFLAGS := $(strip $(GOFLAGS) -trimpath)

.PHONY: help run test test-fast bench bench-size bench-hostile tidy fmt faults faults-broken build lint generate env
.PHONY: verify-connections picture
.PHONY: breaking $(EDUMATRIX) $(TESTSERVERS)

help: ## Print what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 24
	@echo
	@echo "  Tests come in two layers. Fast tests need nothing but Go. Integration tests are the files with the build tag"
	@echo "  integration; they need Kafka, Redis and PostgreSQL, which make test installs or starts, or takes from"
	@echo "  KAFKA_BROKERS, REDIS_URL and DATABASE_URL. See CONTRIBUTING.md."

run: $(EDUMATRIX) ## Start the whole mesh in one process; Ctrl-C stops it
	@exec $(EDUMATRIX) up

test: $(TESTSERVERS) ## Run all tests with the race detector; PKG=./shared/bus and RUN=TestReader for some
	@$(TESTSERVERS) -install
	@if command -v gcc >/dev/null; then race=-race; else race=; echo "there is no gcc: no race detector"; fi; \
	  echo "fast tests and integration tests$${race:+, with the race detector}"; \
	  exec $(TESTSERVERS) -jaeger -- go test $$race -p $(TEST_PACKAGES) -timeout 40m -tags integration -run '$(RUN)' $(PKG)

test-fast: ## Run the tests that need no server
	@echo "fast tests alone; make test runs the integration tests as well"
	go test work

# Without -v, Go keeps no more than ten lines of what a benchmark says.
bench: $(TESTSERVERS) ## Measure latency, throughput and cost; BENCH_BEFORE=dir: beside another checkout, in turns
	@$(TESTSERVERS) -install
	go test -v -tags integration -run '^$$' -bench Mesh -benchtime 1x -timeout 2h ./services/edumatrix/e2e

bench-size: $(TESTSERVERS) ## Measure what queries cost at 10 million events, beside a hundredth of it; takes minutes
	@$(TESTSERVERS) -install
	go test -v -tags integration -run '^$$' -bench Size -benchtime 1x -timeout 2h ./services/chat/query ./services/presence/store

bench-hostile: $(TESTSERVERS) ## Measure other users beside each hostile one; quiet and hostile rounds take turns
	@$(TESTSERVERS) -install
	go test -v -tags integration -run '^$$' -bench '^BenchmarkHostile$$' -benchtime 1x -timeout 30m ./services/gateway \
	  ./services/edumatrix/e2e

SEEDS ?= 10
faults: $(TESTSERVERS) ## Try to break what is promised: SEEDS=n random runs, or SEED=x again, or EACH=1: every fault alone
	@$(TESTSERVERS) -install
	FAULTS_SEEDS=$(SEEDS) FAULTS_SEED=$(SEED) FAULTS_EACH=$(EACH) FAULTS_LIST=$(CURDIR)/docs/faults.tsv \
	  go test -v -count=1 -timeout 24h -tags integration -run '^TestFaults_' ./services/edumatrix/faults

faults-broken: $(TESTSERVERS) ## Break the mesh on purpose, in three ways, and see that the faults show it
	@$(TESTSERVERS) -install
	FAULTS_BROKEN=1 go test -v -count=1 -timeout 1h -tags integration -run '^TestBroken_' ./services/edumatrix/faults

build: ## Build and vet every module, in the workspace and on its own
	go build work
	go vet work
	go vet -tags integration work
	@set -e; for dir in $(MODULES); do echo "alone: $${dir#$(CURDIR)/}"; \
	  (cd $$dir && GOWORK=off go build ./... && GOWORK=off go vet -tags integration ./...); done

lint: build $(BIN)/buf $(BIN)/staticcheck $(BIN)/protoc-gen-go $(BIN)/protoc-gen-connect-go ## Run linters, check formatting, generated code and walls
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

# On main itself a change is held against the commit before it. Only a shallow clone may lack what to compare with where
# CI is set: else a check that compares nothing would go unseen.
breaking: $(BIN)/buf
	@set -e; base=$$(git rev-parse -q --verify origin/main || git rev-parse -q --verify main || true); \
	  if [ -n "$$base" ] && [ "$$base" = "$$(git rev-parse HEAD)" ]; then \
	    base=$$(git rev-parse -q --verify HEAD~1 || true); \
	  fi; \
	  if [ -z "$$base" ]; then \
	    if [ -n "$$CI" ] && [ "$$(git rev-parse --is-shallow-repository)" != true ] && \
	      [ "$$(git rev-list --count HEAD)" != 1 ]; then \
	      echo "buf breaking: there is no main to compare proto with: fetch it"; exit 1; fi; \
	    echo "buf breaking: no history here to compare proto with, nothing is compared"; exit; \
	  fi; \
	  old=$$(mktemp -d); trap 'rm -rf $$old' EXIT; git archive $$base proto | tar -x -C $$old; \
	  echo "buf breaking against $$(git log -1 --format='%h %s' $$base)"; \
	  cd proto && $(BIN)/buf breaking --against $$old/proto

tidy: ## Tidy every module, each without the workspace
	@set -e; for dir in $(MODULES); do echo "tidy: $${dir#$(CURDIR)/}"; (cd $$dir && GOWORK=off go mod tidy); done

fmt: $(BIN)/buf ## Format Go and Protobuf files
	gofmt -w proto shared services deployments docs
	cd proto && $(BIN)/buf format -w

generate: $(BIN)/buf $(BIN)/protoc-gen-go $(BIN)/protoc-gen-connect-go ## Generate Go, docs/reference.md and what /docs serves from proto/
	cd proto && PATH=$(BIN):$$PATH buf generate
	cd proto && go run ./cmd/reference

env: ## Write .env for docker compose, with random secrets, where it is missing
	@sh deployments/env.sh

picture: $(EDUMATRIX) ## Record docs/talk.svg, the picture of the README, from the real program
	go run ./services/edumatrix/cmd/picture -edumatrix $(EDUMATRIX) -out docs/talk.svg

verify-connections: $(EDUMATRIX) ## Check every connection to Postgres, Redis and Kafka, one by one
	@$(EDUMATRIX) verify

$(EDUMATRIX):
	@go build -o $@ ./services/edumatrix/cmd/edumatrix

$(TESTSERVERS):
	@go build -o $@ ./shared/meshtest/cmd/testservers

# A changed version is a changed Makefile.
$(BIN)/%: Makefile
	GOBIN=$(BIN) GOWORK=off go install $($(notdir $@)_module)

buf_module := github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION)
staticcheck_module := honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)
protoc-gen-go_module := google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO_VERSION)
protoc-gen-connect-go_module := connectrpc.com/connect/cmd/protoc-gen-connect-go@$(CONNECT_VERSION)
