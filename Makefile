# Everything starts here and needs Python >= 3.11 (with pip and venv), make and a C compiler, nothing else.
# .venv is made on first use, and touched again only when pyproject.toml or constraints.txt is newer.

SHELL := bash
PYTHON ?= python3
# Another build of torch goes into a new .venv by `make clean up TORCH='torch==…'`; a path or URL as `torch @ …`.
TORCH ?= $(shell grep '^torch==' constraints.txt)
VENV := .venv
BIN := $(VENV)/bin
MAKEFLAGS += --silent --no-print-directory
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
.PHONY: help up test setup lint pytest format protos docs results lock clean

help:  ## These lines
	grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## */make \1\t/' | expand -t 16

up: $(VENV)/up  ## Run the whole mesh here; FLAGS='--model DIR' goes to `headrace up`
	$(BIN)/headrace up $(FLAGS)

test:  ## Lint and test everything; TESTS=tests/unit for a part
	set -e; for step in setup lint pytest; do \
		began=$$SECONDS; $(MAKE) $$step; spent+=" $$step $$((SECONDS - began)) s,"; \
	done; echo "time:$${spent%,}"

setup: $(VENV)/dev  ## .venv with everything for development

lint: $(VENV)/dev  ## Code style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# These run two at a time; then all others one at a time, since a busy machine looks like a frozen worker.
UNITS := $(filter-out %/bench %/__pycache__,$(wildcard tests/unit/*))

pytest: $(VENV)/dev
ifdef TESTS
	$(BIN)/python -m pytest $(TESTS)
else
	failed=0; \
	$(BIN)/python -m pytest -n 2 --dist loadfile $(UNITS) || failed=1; \
	$(BIN)/python -m pytest $(addprefix --ignore=,$(UNITS)) || failed=1; \
	exit $$failed
endif

format: $(VENV)/dev  ## Put code and protos in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format -w protos

protos: $(VENV)/dev  ## Generate the stubs beside protos/headrace/v1/*.proto
	$(BIN)/python protos/generate.py

docs: $(VENV)/dev  ## Generate docs/settings.md from the settings classes
	$(BIN)/python docs/settings_page.py

results: $(VENV)/dev  ## Collect bench/results/*.json into docs/results.md
	$(BIN)/python -m bench.collect

clean:  ## Remove .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

lock:  ## Resolve pyproject.toml afresh into constraints.txt; torch's version there is chosen by hand
	set -eo pipefail; lock=$$(mktemp -d); trap 'rm -rf "$$lock"' EXIT; \
	$(PYTHON) -m venv "$$lock"; \
	"$$lock"/bin/python -m pip install -qq -e '.[dev,hub,otel]' '$(TORCH)' setuptools; \
	{ grep '^#' constraints.txt; "$$lock"/bin/python -m pip freeze --all --exclude-editable --exclude pip --exclude triton \
		| sed -E 's/\+.*//'; } > "$$lock"/constraints.txt; \
	cp "$$lock"/constraints.txt constraints.txt

$(VENV)/up: extras := torch,gpu
$(VENV)/dev: extras := dev
$(VENV)/up $(VENV)/dev: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Headrace needs Python >= 3.11: make PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	echo "setting up $(VENV): headrace[$(extras)]"
	sed 's|^torch==.*|$(TORCH)|' constraints.txt > $(VENV)/constraints.txt
	set -eo pipefail; for packages in setuptools '--no-build-isolation -e .[$(extras)]'; do \
		$(BIN)/python -m pip install -c $(VENV)/constraints.txt $$packages 2>&1 | tee $(VENV)/pip.log \
			| { grep --line-buffered -oE 'Downloading .*\(.* [MG]B\)' || true; } \
			|| { tail -n 20 $(VENV)/pip.log; exit 1; }; \
	done
	touch $@
