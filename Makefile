# The developer's and the DBA's verbs. `make` alone lists them.
#
# The database is the one named by TRACEDB_DSN, DATABASE_URL or PG*; it is read from the environment
# and never put on a command line, where `ps` and build logs would show its password.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
DB ?= auto
PG ?= 18
ARGS ?=
DATA ?=

venv := .venv
bin := $(venv)/bin
stamp := $(venv)/.installed

.PHONY: help
help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(stamp)  ## make .venv with the package, all extras and the development tools

$(stamp): pyproject.toml
	@command -v $(PYTHON) >/dev/null \
	    || { echo "tracedb needs Python 3.11 or newer: $(PYTHON) is not installed (set PYTHON=...)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "tracedb needs Python 3.11 or newer: $(PYTHON) is older (set PYTHON=...)" >&2; exit 1; }
	@echo "installing tracedb and its tools into $(venv)" >&2
	@test -x $(bin)/pip || $(PYTHON) -m venv $(venv)
	@$(bin)/python -m pip install --quiet --disable-pip-version-check -e '.[all,dev]'
	@touch $@

.PHONY: demo
demo: $(stamp)  ## agent runs in a database in one minute; DATA="file ..." loads tau2-bench results instead
	@$(bin)/tracedb demo $(DATA)

.PHONY: demo-stop
demo-stop: $(stamp)  ## stop the demo's embedded server (its data stays)
	@$(bin)/tracedb demo --stop

.PHONY: test
test: $(stamp)  ## run the tests; DB=auto|dsn|docker|embedded, PG=16|18 (embedded), ARGS="-k word"
	@$(bin)/pytest --db=$(DB) --pg=$(PG) $(ARGS)

.PHONY: test-all
test-all: $(stamp)  ## run the tests on embedded PostgreSQL 18, then on 16
	@$(bin)/pytest --db=embedded --pg=18 $(ARGS)
	@$(bin)/pytest --db=embedded --pg=16 $(ARGS)

.PHONY: check
check: $(stamp)  ## ruff, mypy --strict, SQL lints, squawk on the migrations
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy --strict tracedb tests
	@$(bin)/pytest -m lint --db=$(DB) --pg=$(PG)
	@$(bin)/squawk --reporter=gcc migrations/*.sql

.PHONY: migrate
migrate: $(stamp)  ## bring the database up to date
	@$(bin)/tracedb migrate $(ARGS)

.PHONY: rollback
rollback: $(stamp)  ## undo the newest migration
	@$(bin)/tracedb rollback $(ARGS)

.PHONY: status
status: $(stamp)  ## list the migrations, applied and pending
	@$(bin)/tracedb status $(ARGS)

.PHONY: verify
verify: $(stamp)  ## compare the database with the schema it should have
	@$(bin)/tracedb verify $(ARGS)

.PHONY: doctor
doctor: $(stamp)  ## check versions, roles, row-level security, partitions and indexes
	@$(bin)/tracedb doctor $(ARGS)

.PHONY: maintain
maintain: $(stamp)  ## run every maintenance job once: partitions, totals, retention, archive
	@$(bin)/tracedb maintain $(ARGS)

.PHONY: soak
soak: $(stamp)  ## the writer under faults for longer; ARGS="--minutes 60"
	@$(bin)/python tests/soak.py $(ARGS)

.PHONY: bench
bench: $(stamp)  ## measure ingest and reads; ARGS goes to tests/bench/run.py
	@$(bin)/python tests/bench/run.py $(ARGS)

.PHONY: build
build: $(stamp)  ## build the wheel into dist/
	@$(bin)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

.PHONY: clean
clean:  ## remove .venv, caches and build results (never data)
	@rm -rf $(venv) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
