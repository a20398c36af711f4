# Everything a person or CI does here. Needs only Python 3.11 or 3.12, make and a package index.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
READY := .venv/ready

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */\1|/' | while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

demo: $(READY)  ## load, model and check the bundled project on example data, here and now
	@$(BIN)/python -m pipeline.projects.nyc.demo run

dev: $(READY)  ## the same project with code server, daemon and UI on http://localhost:3001, until Ctrl-C
	@$(BIN)/python -m pipeline.projects.nyc.demo up

test: $(READY)  ## all tests but those of a cluster and the benchmarks
	@export COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")'); \
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --cov=pipeline --cov-report=term:skip-covered --cov-fail-under=85 -m 'not benchmark and not cluster'

test-cluster: $(READY)  ## image and chart on the Kubernetes of KUBECONFIG, which has the image MILLRACE_TEST_IMAGE
	@tests="$(BIN)/python -m pytest --no-cov --timeout 900 --durations 15 --tb short tests/cluster"; failed=; said=$$(mktemp); \
	$$tests -m 'cluster and not shared_release' >$$said 2>&1 & beside=$$!; \
	$$tests -m 'cluster and shared_release' || failed=1; wait $$beside || failed=1; \
	cat $$said; rm $$said; [ -z "$$failed" ]

test-faults: $(READY)  ## every fault of docs/faults.md on the same Kubernetes; ONLY='a or b' chooses
	@$(BIN)/python -m pytest -m cluster --no-cov --timeout 900 --durations 0 -k '$(or $(ONLY),test_)' tests/faults

check: $(READY)  ## lint, types, import rules, dbt parse, Dagster definitions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/millrace --state .venv/check check
	MILLRACE_STATE_DIR=.venv/check $(BIN)/dagster definitions validate

bench: $(READY)  ## speed and memory against peers, as a table and JSON
	@$(BIN)/python -m tests.benchmarks

bench-cluster: $(READY)  ## the cost of a run in a pod against stock Dagster, on the Kubernetes of `make test-cluster`
	@$(BIN)/python -m tests.benchmarks cluster

lock:  ## resolve requirements/*.lock anew from pyproject.toml
	@for group in dev image airbyte bench; do \
	  case $$group in dev) source="pyproject.toml --all-extras --group dev";; image) source="pyproject.toml --extra cluster --extra embedded -c requirements/dev.lock";; *) source="--group pyproject.toml:$$group";; esac; \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	    --no-emit-find-links $$source -o requirements/$$group.lock; done
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	  --no-emit-find-links -o requirements/uv.lock - <<< "uv==$$($(BIN)/uv --version | cut -d' ' -f2)"

clean:  ## remove what was made: environment, state, caches
	@[ ! -x $(BIN)/millrace ] || $(BIN)/millrace down || true
	rm -rf .venv .millrace .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage *.egg-info

# The environment is of the lock file to the letter, and made anew when that or the project's own metadata changes.
$(READY): requirements/dev.lock requirements/uv.lock pyproject.toml
	@python=$$(for name in python3.12 python3.11 python3 python; do \
	  "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo "$$name" && break; done); \
	if [ -z "$$python" ]; then echo "Millrace needs Python 3.11 or 3.12: neither python3.12 nor python3.11 nor a python3 of that version is on PATH." >&2; exit 1; fi; \
	[ -x $(BIN)/python ] || "$$python" -m venv .venv; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock; \
	index=$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true); \
	export UV_DEFAULT_INDEX=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$index}}; [ -n "$$UV_DEFAULT_INDEX" ] || unset UV_DEFAULT_INDEX; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.lock; \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(READY)

.PHONY: help demo dev test test-cluster test-faults check bench bench-cluster lock clean
