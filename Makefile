# Everything here needs a Python from 3.11 on and nothing else: `make train`, `make test`.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

# The newest Python that is new enough and works: a shim may exist for a version that is not installed.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && \
	{ echo "$$python"; break; }; done)

REJAX := .venv-rejax
SERVER := .venv-llm-server

# What `make train` compares; ppo, which ignores the auxiliary reward, and add, which trusts it, stand beside the method.
TRAIN ?= env=cartpole aux=language llm=recorded method=implicit

.PHONY: help train test test-faults test-wheel lint format types layers check docs test-llm-server bench-rejax clean

help:
	@echo "make train        CartPole with a language model's recorded answers: learning how far to trust them beside ignoring"
	@echo "                  and trusting them, in a table and a picture; another task with TRAIN=\"env=... aux=...\""
	@echo "make test         the tests, without the slow ones"
	@echo "make test-faults  kills, full disks and other harm, as long as it takes: half an hour"
	@echo "make test-wheel   the wheel in clean environments, by pip and uv, for every Python from 3.11 to 3.13 here"
	@echo "make check        lint, types, layers and tests"
	@echo "make docs         the documentation, into site/; fails where a link leads nowhere"
	@echo "make format       format the code"
	@echo "make test-llm-server  label and train with a real server of language models, and a tiny random model made here"
	@echo "make bench-rejax  the environment that \`llmrl bench against=rejax\` compares with"
	@echo "make clean        remove the environment and caches; runs/ stays"

train: $(READY)
	$(BIN)/llmrl compare $(TRAIN)

test: $(READY)
	$(BIN)/python -m pytest -m "not slow"

# Results: docs/reliability.md.
test-faults: $(READY)
	$(BIN)/python -m pytest -n 0 --timeout 3600 tests/faults tests/language tests/runs tests/training/test_hosts.py

test-wheel: $(READY)
	$(BIN)/python scripts/test_wheel.py $(if $(PYTHONS),--python $(PYTHONS))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/pyright --project pyproject.toml

layers: $(READY)
	$(BIN)/lint-imports

check: lint types layers test

# llama.cpp's server, in an environment of its own.
test-llm-server: $(READY) $(SERVER)/.installed
	LLMRL_SERVER_PYTHON=$(CURDIR)/$(SERVER)/bin/python $(BIN)/python -m pytest -n 0 -s tests/server

$(SERVER)/.installed:
	test -x $(SERVER)/bin/python || $(PYTHON) -m venv $(SERVER)
	$(SERVER)/bin/python -m pip install --disable-pip-version-check xllamacpp==2026.10.11549 gguf==0.19.0
	@touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "site/index.html"

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[docs]"
	@touch $@

bench-rejax: $(REJAX)/.installed

# rejax is written for the interface of gymnax 0.0.9 (its own metadata would let it install a later one and fail), so it cannot
# share our environment; jax is ours, so that not its versions are compared.
$(REJAX)/.installed: $(READY)
	test -x $(REJAX)/bin/python || $(PYTHON) -m venv $(REJAX)
	jax=$$($(BIN)/python -c 'import jax; print(jax.__version__)') && \
		$(REJAX)/bin/python -m pip install --disable-pip-version-check \
		rejax==0.1.3 gymnax==0.0.9 "jax==$$jax"
	@touch $@

clean:
	rm -rf $(VENV) $(REJAX) $(SERVER) site .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed once; again when pyproject.toml changes.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { \
		echo "llmrl needs Python 3.11 or newer with its venv module (on Debian: apt install python3-venv)." >&2; \
		echo "None was found; name one with: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing llmrl and what it needs into $(VENV), once: about two minutes, most of them downloads."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[dev]"
	@touch $@
