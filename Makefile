# Tools are pinned here and installed into .bin on demand, so that a fresh machine needs the Go toolchain alone.
BIN := $(CURDIR)/.bin
BUF_VERSION := v1.75.0
PROTOC_GEN_GO_VERSION := v1.36.12
CONNECT_VERSION := v1.21.1
STATICCHECK_VERSION := v0.8.2
# Modules that hold Go code.
MODULES = $(shell for dir in $$(go list -m -f '{{.Dir}}'); do test -z "$$(find $$dir -name '*.go' | head -1)" || echo $$dir; done)
# The race detector needs a C compiler.
RACE := $(if $(shell command -v gcc),-race,)

.PHONY: help test lint build generate
help: ## Print what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 24

test: ## Run all tests
	@echo "fast tests (race detector: $(if $(RACE),on,off: no C compiler))"
	go test $(RACE) $(MODULES:%=%/...)

build: ## Build and vet every module, in the workspace and on its own
	go build $(MODULES:%=%/...)
	go vet $(MODULES:%=%/...)
	@set -e; for dir in $(MODULES); do echo "alone: $${dir#$(CURDIR)/}"; \
	  (cd $$dir && GOWORK=off go build ./... && GOWORK=off go vet ./...); done

lint: build $(BIN)/buf $(BIN)/staticcheck $(BIN)/protoc-gen-go $(BIN)/protoc-gen-connect-go ## Run linters, check formatting and generated code
	@unformatted=$$(gofmt -l proto shared services); test -z "$$unformatted" || { echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; }
	@set -e; for dir in $(MODULES); do (cd $$dir && $(BIN)/staticcheck ./...); done
	cd proto && $(BIN)/buf lint && $(BIN)/buf format --diff --exit-code
	@fresh=$$(mktemp -d); trap 'rm -rf $$fresh' EXIT; \
	  cp -R proto/. $$fresh/ && (cd $$fresh && PATH=$(BIN):$$PATH buf generate) && \
	  diff -r proto/gen $$fresh/gen || { echo "generated code is not up to date: make generate"; exit 1; }

generate: $(BIN)/buf $(BIN)/protoc-gen-go $(BIN)/protoc-gen-connect-go ## Generate Go from proto/
	cd proto && PATH=$(BIN):$$PATH buf generate

$(BIN)/buf:
	GOBIN=$(BIN) GOWORK=off go install github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION)
$(BIN)/staticcheck:
	GOBIN=$(BIN) GOWORK=off go install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION)
$(BIN)/protoc-gen-go:
	GOBIN=$(BIN) GOWORK=off go install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO_VERSION)
$(BIN)/protoc-gen-connect-go:
	GOBIN=$(BIN) GOWORK=off go install connectrpc.com/connect/cmd/protoc-gen-connect-go@$(CONNECT_VERSION)
