# The two commands a newcomer needs are `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out/demo
TESTS ?= tests
WITHIN ?= 0
BIN := $(VENV)/bin
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1

.PHONY: demo test test-slow test-all notebooks lint clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## corpus, codec, tokens, backbone, super-resolution, three songs and out/demo/report.html
	$(BIN)/hiermusic demo --workdir=$(OUT)

test: $(VENV)/.installed lint  ## all but the slow ones: ten to twenty minutes on two cores where nothing is compiled yet, then six to ten
	$(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder -m "not slow" --within=$(WITHIN) $(TESTS)

test-slow: $(VENV)/.installed  ## the others; WITHIN=600: none is begun after so many seconds, and those left out are named
	$(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder -m slow --within=$(WITHIN) $(TESTS)

test-all: test test-slow

notebooks: $(VENV)/.installed  ## all of them, at a reduced size; the slow tests run them too
	$(BIN)/pytest tests/test_notebooks.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) out .jax_cache
