# Everything a checkout needs: Python 3.11 or 3.12 and make. The environment is .venv, made once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
WORKERS ?= 2
PYTEST_ARGS ?=
QUICKSTART := runs/quickstart
STORE := $(QUICKSTART)/store
DOMAINS := synthetic_garden,synthetic_kitchen,synthetic_office,synthetic_sports

.DELETE_ON_ERROR:
.PHONY: help install quickstart test test-slow lint
help:
	@echo "make quickstart   train, evaluate and report on synthetic data (runs/quickstart)"
	@echo "make test         the tests, but for the slow ones"
	@echo "make test-slow    the slow tests alone"
	@echo "make lint         ruff and shellcheck"
	@echo "make install      $(VENV) alone;  PYTHON=python3.12 chooses the interpreter"

install: $(INSTALLED)

$(INSTALLED): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
	  { echo "calrec_jax needs Python 3.11 or 3.12, and '$(PYTHON)' is not (or not found):" \
	         "say which one to use, as in make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  --no-build-isolation -e '.[test]'
	@touch $@

# Huge pages: on a CPU a sixth of training's time would else go into page faults.
quickstart: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
quickstart: $(STORE)/vocabulary.model
	$(BIN)/calrec train --gin_file=gin/runs/quickstart.gin
	$(BIN)/calrec eval --model_dir=$(QUICKSTART)/model
	$(BIN)/calrec report $(QUICKSTART)/model

$(STORE)/vocabulary.model: | $(INSTALLED)
	$(BIN)/calrec synthetic --data_dir=$(STORE)
	$(BIN)/calrec vocab --data_dir=$(STORE) --domains=$(DOMAINS) --out=$@

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) -m slow $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/shellcheck launch/*.sh .ci/run
