# Needs make, a POSIX shell and Python 3.11 or newer with venv. `make help` lists what there is.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
SOURCES := shared producer worker training bench examples tests
SIDE_BY_SIDE := tests/unit tests/contract tests/integration/api# on all processors; the others start workers, and wait for them
MAX_LINES := 400
ARGS ?=

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ------------------------------------------------------------------------------------------ the environment

# The first Python that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

$(PY):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with its venv module is needed (on Debian and Ubuntu: apt install python3 python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps: an environment is made again only when what it is made from has changed. torch comes first and by
# itself, so that a machine without a GPU gets the build that pip is offered for it.
$(VENV)/.installed: pyproject.toml constraints.txt | $(PY)
	@echo "installing the libraries; this takes minutes the first time"
	$(PIP) install --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(PIP) install --constraint constraints.txt --editable '.[local]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $@

.PHONY: venv
venv: $(VENV)/.installed-dev ## make the virtual environment with everything a developer needs

# ------------------------------------------------------------------------------------------ to use it

.PHONY: demo
demo: $(VENV)/.installed ## make pictures and their masks, and show them on one contact sheet
	@$(PY) -m pixelkiln.demo $(ARGS)

.PHONY: up
up: $(VENV)/.installed ## run Redis, API and a worker here until Ctrl-C
	@$(VENV)/bin/pixelkiln up $(ARGS)

# ------------------------------------------------------------------------------------------ to change it

.PHONY: test
test: $(VENV)/.installed-dev ## run the tests: unit, contract, integration, end to end and the short chaos run
	for part in $(SIDE_BY_SIDE); do \
		$(PY) -m pytest --numprocesses auto --dist loadfile $$part $(ARGS) || [ $$? -eq 5 ] || exit 1; \
	done # 5: ARGS chose none here
	$(PY) -m pytest tests $(SIDE_BY_SIDE:%=--ignore=%) $(ARGS)

.PHONY: chaos
chaos: $(VENV)/.installed-dev ## kill everything for half an hour and count; SEED=7 replays, JOBS=500 is shorter
	$(PY) -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(JOBS),--jobs $(JOBS)) $(ARGS)

.PHONY: chaos-mutants
chaos-mutants: $(VENV)/.installed-dev ## break the product on purpose: the chaos run's judge must see it
	$(PY) -m tests.chaos --mutants $(if $(SEED),--seed $(SEED)) $(ARGS)

.PHONY: drills
drills: $(VENV)/.installed-dev ## one fault after the other, and what it costs; ARGS="redis" does one of them
	$(PY) -m tests.chaos.drills $(ARGS)

.PHONY: check
check: $(VENV)/.installed-dev ## look at style, types, the floors of the house and the length of files
	$(VENV)/bin/ruff check $(SOURCES)
	$(VENV)/bin/ruff format --check $(SOURCES)
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	@find $(SOURCES) -name '*.py' -exec awk -v most=$(MAX_LINES) \
		'END { if (NR > most) { print FILENAME ": " NR " lines, at most " most; exit 1 } }' {} \; | { ! grep .; }

.PHONY: format
format: $(VENV)/.installed-dev ## put the code into the house style
	$(VENV)/bin/ruff check --fix-only --quiet $(SOURCES)
	$(VENV)/bin/ruff format $(SOURCES)

.PHONY: bench
bench: $(VENV)/.installed-dev ## measure the engine, in a few minutes
	$(PY) -m bench $(ARGS)

.PHONY: bench-full
bench-full: $(VENV)/.installed-dev ## measure three times as often, for figures to publish
	$(PY) -m bench --full $(ARGS)

.PHONY: train
train: $(VENV)/.installed-dev ## train the embedded models from nothing, in hours
	$(PY) -m training all $(ARGS)

.PHONY: clean
clean: ## remove caches and the demo's output; keeps .venv, build/ (trained models) and pixelkiln-data/
	rm -rf dist demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
