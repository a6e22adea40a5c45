# Everything runs from the virtual environment in .venv, made by `make install`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
MINUTES ?= 10
.PHONY: help install serve test faults fuzz check format protos docs

help:
	@echo "make install   create $(VENV) with the pinned dependencies"
	@echo "make serve     install, then serve the bundled demo model on http://127.0.0.1:8000"
	@echo "make test      install, make check, then every test"
	@echo "make faults    every test on Ray: processes are killed, stopped, cut off and resized (half an hour)"
	@echo "make fuzz      look for input that Manta does not stand, for MINUTES=10"
	@echo "make check     style, formatting, types, import layers"
	@echo "make format    rewrite the sources in the project's format"
	@echo "make protos    generate the protobuf stubs again"
	@echo "make docs      generate docs/service-yaml.md, docs/training-yaml.md and the table in docs/api.md again"

install: $(STAMP)

# The stamp makes a second run instant; it is out of date when the dependencies change.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Manta needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Install a newer one and name it: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

serve: install
	@exec $(BIN)/manta serve demo

test: install check
	$(BIN)/python -m pytest

# The short form of it belongs to `make test`.
faults: install
	$(BIN)/python -m pytest tests/faults tests/integration --full

# A minute of it belongs to `make test`.
fuzz: install
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/basedpyright -p tests
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: install
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. protos/generation.proto protos/dispatch.proto

docs: install
	$(BIN)/python -m cluster.spec_reference
	$(BIN)/python -m training.spec_reference
	$(BIN)/python -m serving.fields_reference
