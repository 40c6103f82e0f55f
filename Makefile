# `make demo` shows stackgen, `make test` runs all tests. Both install everything that they need.
.PHONY: help demo test lint format examples docs bench stop clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: .venv/.ready ## serve a small real model: render a stack, start it, check it, ask it a question
	@scripts/demo

test: .venv/.ready ## run everything: style, unit, property, golden and live tests (real engines in containers)
	@scripts/test

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

stop: ## stop the demo, and the Docker engine if it was started here
	@scripts/demo stop; scripts/engine down

clean: stop ## remove the environment, models and caches (images and volumes stay)
	@rm -rf .venv .cache

.venv/.ready: pyproject.toml
	@scripts/setup
