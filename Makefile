# Everything a checkout needs: Python 3.11 or 3.12 and make. The environment is .venv, made once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
WORKERS ?= 2

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

quickstart: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/quickstart.sh

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	@if command -v shellcheck >/dev/null; then shellcheck launch/*.sh .ci/run; \
	 else echo "shellcheck is not installed: the shell scripts were not checked" >&2; fi
