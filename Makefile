# One entry point for everything; each target builds the environment that it needs and finds it again.
#
#   make demo      track a real job and deliver its samples to ./demo-data
#   make test      build the wheel, install it, test what was installed
#   make lint      ruff, mypy, and the direction of imports
#   make ci        lint and test, as .ci/run does
#   make settings  generate docs/settings.md and the shell completion
#   make lock      write the lock files anew (needs uv)
#   make clean     remove what was built
#
# These take long, or need more than Python (CONTRIBUTING.md):
#
#   make test-all      the tests with every Python that is found, 3.11 and later
#   make test-docker   run docker-compose.yml on a real engine, kill every container, count rows
#   make test-browser  the viewer's pages in a real Chromium (apt-get install chromium)
#   make pictures the documents' pictures of reports, top and web, taken of real runs
#   make test-network  two network namespaces (root): attack an uploader, then delay, loss, a cut of a minute
#   make matrix   what a job may lack or meet, bare against wrapped: one table: make matrix GROUPS="memory signals"
#   make test-crowd    200 collectors, an uploader with 128 descriptors
#   make chaos     break everything by a seeded schedule, then count rows: make chaos SEED=4 DURATION=600
#   make faults    six everyday faults, the peer and ours in one harness: one table
#   make fuzz      frames that no collector sends, for an hour or 10 million: make fuzz SECONDS=600
#   make machine   a run's events in any order, for twenty minutes: make machine EXAMPLES=1000
#   make bench     compare with the peer (benchmarks/README.md)
#   make bench-load    one uploader under many collectors: make bench-load LOAD_ARGS='--collectors 10000'

VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that is there, works and is new enough.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
SOURCES := $(shell find collector uploader protocol viewer -type f ! -name '*.pyc') hatch_build.py pyproject.toml README.md LICENSE $(wildcard completions/*/*)
DEMO := $(CURDIR)/demo-data
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
PYTEST_ARGS ?=
BENCH_ARGS ?=
LOAD_ARGS ?=
DURATION ?= 60
COLLECTORS ?= 4
UPLOADERS ?= 2
SECONDS ?= 3600
EXAMPLES ?= 4000
ENGINE ?= atheris
PEER := .venv-peer

.PHONY: demo test test-all test-docker test-browser pictures test-crowd test-network chaos faults matrix fuzz machine lint ci settings bench bench-load lock clean environment
.DEFAULT_GOAL := test

$(VENV)/.dependencies: requirements-dev.lock
	@test -n "$(PYTHON)" || { echo "make: needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

# The wheel is what is tested and shown: no network is needed to build it again.
$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	rm -rf dist
	$(BIN)/python -m hatchling build -t wheel -d dist
	$(PIP) install --no-index --no-deps --force-reinstall dist/*.whl
	@touch $@

# The peer is measured, never imported by ours: it has an environment of its own.
$(PEER)/.installed: benchmarks/requirements.txt
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip --quiet --disable-pip-version-check install --require-hashes -r benchmarks/requirements.txt
	@touch $@

environment: $(VENV)/.installed

demo: environment
	@sh examples/demo.sh $(BIN) $(DEMO)

test: environment
	$(if $(PYTEST_ARGS),$(BIN)/pytest $(PYTEST_ARGS),@bash tests/side_by_side.sh $(BIN)/pytest)

test-all:
	@bash tests/every_interpreter.sh "$(MAKE)"

test-docker: environment
	@bash tests/deployment/on_engine.sh $(BIN)/pytest -m docker -s tests/deployment $(PYTEST_ARGS)

test-browser: environment
	$(PIP) install --require-hashes -r tests/viewer/requirements.txt
	$(BIN)/pytest -m browser tests/viewer $(PYTEST_ARGS)

pictures: environment
	$(PIP) install --require-hashes -r tests/viewer/requirements.txt
	PYTHONPATH=tests $(BIN)/python tests/viewer/pictures.py

test-crowd: environment
	PYTHONPATH=tests $(BIN)/python -m chaos.crowd

test-network: environment
	$(BIN)/pytest -s tests/end_to_end/test_hostile_network.py
	PYTHONPATH=tests $(BIN)/python -m chaos.network

chaos: environment
	PYTHONPATH=tests $(BIN)/python -m chaos $(if $(SEED),--seed $(SEED)) --duration $(DURATION) \
		--collectors $(COLLECTORS) --uploaders $(UPLOADERS)

faults: environment $(PEER)/.installed
	PYTHONPATH=tests $(BIN)/python -m chaos.six_faults

matrix: environment
	PYTHONPATH=tests $(BIN)/python -m chaos.matrix $(GROUPS)

# Where there is no wheel of atheris: make fuzz ENGINE=hypothesis
fuzz: environment
	$(if $(filter atheris,$(ENGINE)),$(PIP) install --require-hashes -r tests/fuzz/requirements.txt)
	PYTHONPATH=tests $(BIN)/python -m fuzz --engine $(ENGINE) --seconds $(SECONDS)

machine: environment
	MACHINE_EXAMPLES=$(EXAMPLES) $(BIN)/pytest -o timeout=0 tests/uploader/test_run_state_machine.py

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=collector:uploader:protocol:viewer $(BIN)/lint-imports --no-cache

ci: lint test

settings: environment
	$(BIN)/python docs/generate.py

bench: environment $(PEER)/.installed
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-load: environment
	$(BIN)/python -m benchmarks.load $(LOAD_ARGS)

lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --extra uploader pyproject.toml -o requirements.lock
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --extra uploader --extra view --extra dev pyproject.toml -o requirements-dev.lock
	echo hatchling | uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -c requirements-dev.lock - -o requirements-build.lock

clean:
	rm -rf $(VENV) $(PEER) dist build demo-data .mypy_cache .pytest_cache .ruff_cache .hypothesis
