# Sets up .venv with the locked versions and runs the main jobs. Needs Linux and Python 3.10 or 3.11.

PYTHON ?= $(shell for python in python3.11 python3.10 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' 2>/dev/null \
	&& echo $$python && break; done)
BIN := .venv/bin
CODE := searchforge trainer beam_jobs indexer serving_check infra tests setup.py
SCENES ?= 2400

.PHONY: setup demo test integration lint lock clean

setup: .venv/.installed

.venv/.installed: requirements.lock requirements-dev.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 or 3.11 was found; install one, or run make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup  ## from nothing to a published, verified searcher in demo-workspace/
	$(BIN)/searchforge demo --workspace demo-workspace --scenes $(SCENES)

test: setup  ## everything that needs nothing but PyPI
	$(BIN)/python -m pytest -m "not integration" --numprocesses logical --dist loadfile

integration: setup  ## tests against real servers; each is skipped where its server cannot be had
	$(BIN)/python -m pytest -m integration

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

lock:  ## resolve the locks anew; needs uv
	uv pip compile --universal --python-version 3.10 --generate-hashes --all-extras --no-header --upgrade \
		pyproject.toml -o requirements.lock
	uv pip compile --universal --python-version 3.10 --generate-hashes --no-header --upgrade \
		--constraints requirements.lock --group dev -o requirements-dev.lock
	uv pip compile --universal --python-version 3.10 --generate-hashes --no-header --upgrade \
		infra/beam/dataflow.in -o infra/beam/dataflow.lock
	uv pip compile --universal --python-version 3.10 --generate-hashes --no-header --upgrade \
		--constraints requirements.lock infra/ray/gcp.in -o infra/ray/gcp.lock

clean:
	rm -rf .venv demo-workspace build *.egg-info
