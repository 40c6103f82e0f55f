# Two commands: `make demo` shows stackgen at work, `make test` proves it. Both set up all that they need.
.PHONY: help demo test lint format examples docs bench stop clean
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: .venv/.ready ## a small real model behind an OpenAI-compatible endpoint: rendered, started, checked, asked
	@scripts/demo

test: .venv/.ready ## everything: style, unit, property, golden and live tests (real engines in containers)
	@scripts/test

lint: .venv/.ready ## style, types and the one-way imports
	@scripts/lint

format: .venv/.ready ## reformat the code
	@.venv/bin/ruff check --fix -q . && .venv/bin/ruff format .

examples: .venv/.ready ## render compose/ anew
	@scripts/examples

docs: .venv/.ready ## generate the references in docs/
	@.venv/bin/python scripts/generate_docs.py

bench: .venv/.ready ## measure start-up, check and gateway costs side by side (the gateway needs a Docker engine)
	@.venv/bin/python benchmarks/startup.py && .venv/bin/python benchmarks/check.py && .venv/bin/python benchmarks/gateway.py

stop: ## stop the demo, and the Docker engine if it was started here
	@scripts/demo stop; scripts/engine down

clean: stop ## remove the environment, models and caches (images and volumes stay)
	@rm -rf .venv .cache

.venv/.ready: pyproject.toml
	@scripts/setup
