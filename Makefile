# Sets up .venv with the locked versions and runs the main jobs. Needs Linux and Python 3.10 or 3.11, which uv can bring.

UV := $(or $(shell command -v uv),.uv/bin/uv)
BIN := .venv/bin
CODE := searchforge trainer beam_jobs indexer serving_check infra ondevice tests setup.py
SCENES ?= 1600
# Two test processes keep two cores busy: threads of the one would only wait for those of the other.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 $(BIN)/python -m pytest --numprocesses logical
INSTALL := $(UV) pip install --quiet --python $(BIN)/python --no-deps

.PHONY: setup demo test ondevice proofs integration lint lock clean

setup: .venv/.installed

.venv/.installed: requirements.lock requirements-dev.lock pyproject.toml | $(UV)
	@python="$(PYTHON)"; for version in 3.11 3.10; do \
		test -n "$$python" || python=$$($(UV) python find --no-python-downloads --no-project $$version 2>/dev/null); \
	done; \
	$(UV) venv --quiet --allow-existing --python "$${python:-3.11}" .venv || { echo "error: $(UV) made no environment \
	of Python 3.10 or 3.11; install one of them, or run make PYTHON=/path/to/python3.11"; exit 2; }
	$(INSTALL) --require-hashes --compile-bytecode -r requirements.lock -r requirements-dev.lock
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

.uv/bin/uv: requirements-uv.lock
	@for python in python3 python3.13 python3.12 python3.11 python3.10; do \
		rm -rf .uv; why=$$($$python -m venv .uv 2>&1 && \
		.uv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $< 2>&1) && exit 0; \
		test -x .uv/bin/pip && break; \
	done; rm -rf .uv; echo "$$why"; echo "error: uv, which installs everything else, is not on the PATH and cannot be \
	installed; install uv, or a python3 with venv and pip (Debian: apt install python3-venv)"; exit 2

demo: setup  ## from nothing to a published, verified searcher in demo-workspace/
	$(BIN)/searchforge demo --workspace demo-workspace --scenes $(SCENES)

test: setup  ## everything that needs nothing but PyPI
	$(PYTEST) --dist worksteal -m "not integration and not proof"

ondevice: setup  ## builds and tests the reader in ondevice/; needs a C++17 compiler
	+$(MAKE) --silent --jobs=2 -C ondevice library programs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest ondevice/tests

proofs: setup  ## what takes long by nature: kills, races, soaks, every corruption and interleaving
	$(PYTEST) --dist worksteal -m proof

integration: setup  ## tests against real servers; each is skipped where its server cannot be had
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m "integration and not proof"

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	MYPYPATH=ondevice/python $(BIN)/mypy --package searchforge_reader
	$(BIN)/lint-imports --no-cache

lock: | $(UV)  ## resolve the locks anew
	$(UV) pip compile --universal --python-version 3.10 --generate-hashes --all-extras --no-header --upgrade \
		pyproject.toml -o requirements.lock
	$(UV) pip compile --universal --python-version 3.10 --generate-hashes --no-header --upgrade \
		--constraints requirements.lock --group dev -o requirements-dev.lock
	$(UV) pip compile --universal --python-version 3.10 --generate-hashes --no-header --upgrade \
		infra/deploy/beam/dataflow.in -o infra/deploy/beam/dataflow.lock
	$(UV) pip compile --universal --python-version 3.10 --generate-hashes --no-header --upgrade \
		--constraints requirements.lock infra/deploy/ray/gcp.in -o infra/deploy/ray/gcp.lock
	echo uv | $(UV) pip compile --universal --python-version 3.10 --generate-hashes --no-header --upgrade \
		- -o requirements-uv.lock

clean:
	rm -rf .venv .uv demo-workspace build *.egg-info
