# `make demo` shows stackgen, `make test` runs all tests. Both install everything that they need.
.PHONY: help demo test test-fast test-cluster lint format examples docs bench bench-stack clients soak release stop clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: .venv/.ready ## serve a small real model: render a stack, start it, check it, ask it a question
	@scripts/demo

test: .venv/.ready ## run everything: style, unit, property, golden and live tests (real engines in containers)
	@scripts/test

test-fast: .venv/.ready ## run style, types and all tests that need no container: the inner loop, 3 minutes at most
	@scripts/test --fast

test-cluster: .venv/.ready ## run the tests of the Kubernetes target on a real control plane (compiled once, 10 minutes)
	@scripts/test --cluster

lint: .venv/.ready ## check style, types and import layers
	@scripts/lint

format: .venv/.ready ## reformat the code
	@.venv/bin/ruff check --fix -q . && .venv/bin/ruff format .

examples: .venv/.ready ## render the examples in compose/ again
	@scripts/examples

docs: .venv/.ready ## generate the references in docs/
	@.venv/bin/python scripts/generate_docs.py

bench: .venv/.ready ## measure startup, check and gateway overhead (the gateway needs a Docker engine)
	@.venv/bin/python benchmarks/startup.py && .venv/bin/python benchmarks/check.py && .venv/bin/python benchmarks/gateway.py

bench-stack: .venv/.ready ## measure a running stack with the real GuideLLM, few requests (STACK=folder)
	@.venv/bin/stackgen bench $(STACK) --concurrency 1,2 --requests 4 --prompt-tokens 32 --output-tokens 8

clients: .venv/.ready ## run real clients against real engines, and write docs/clients.md (CLIENTS="--engines vllm --clients codex")
	@.venv/bin/python benchmarks/clients.py $(CLIENTS)

soak: .venv/.ready ## put a stack under load for an hour, and fail if it loses a request or grows (SOAK="--minutes 12")
	@.venv/bin/python benchmarks/soak.py $(SOAK)

release: .venv/.ready ## build the wheel and the source archive in dist/, and check both
	@scripts/release

stop: ## stop the demo, and the Docker engine if it was started here
	@scripts/demo stop; scripts/engine down

clean: stop ## remove the environment, models and caches (images and volumes stay)
	@rm -rf .venv .cache

.venv/.ready: pyproject.toml
	@scripts/setup
