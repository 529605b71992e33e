# feastrank: `make demo` is the tour, `make test` the fast suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONUNBUFFERED := 1

.PHONY: demo test test-slow test-spark check bench clean install

demo: install  ## install, start Redis, run the main job on MovieLens-100k, print recommendations and metrics, serve
	$(BIN)/feastrank demo

test: install  ## the fast suite, with a real Redis
	$(BIN)/python -m pytest -n 2

test-slow: install  ## the slow tests as well
	$(BIN)/python -m pytest -n 2 -m ""

test-spark: install $(VENV)/spark-installed  ## all tests of Spark, which needs Java 17
	$(BIN)/python -m pytest -m "" tests/spark tests/job/test_spark_profile.py

check: install  ## style, types, import directions
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

install: $(VENV)/installed

$(VENV)/installed: requirements.lock pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/spark-installed: requirements-spark.lock $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-spark.lock
	@touch $@

clean:  ## remove everything that was made: environment, state, caches
	@test ! -x $(BIN)/feastrank || $(BIN)/feastrank stop || true
	rm -rf $(VENV) .feastrank *.egg-info build .hypothesis .mypy_cache .ruff_cache .import_linter_cache catboost_info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

bench: install  ## every benchmark, each beside its peer; the last line of each is JSON
	$(BIN)/python -m benchmarks.online_read
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.materialize
	$(BIN)/python -m benchmarks.cluster
	$(BIN)/python -m benchmarks.point_in_time
	$(BIN)/python -m benchmarks.lists_memory
	$(BIN)/python -m benchmarks.content
	$(BIN)/python -m benchmarks.gates
	$(BIN)/python -m benchmarks.bad_inputs
	$(BIN)/python -m benchmarks.ann
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.image_embedding
	$(BIN)/python -m benchmarks.text_embedding
	$(BIN)/python -m benchmarks.postgres
