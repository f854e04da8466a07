# `make` lists the targets. Everything runs from .venv, which each target sets up as needed.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
# One more than processors: many tests wait for a process, or for the disk.
TESTERS = $(shell echo $$(($$(nproc) + 1)))
INSTALLED := $(VENV)/.installed

# haproxy and ip live in sbin, which a user's PATH may lack.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help
help: ## List the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 19

$(INSTALLED): pyproject.toml .ci/venv
	@.ci/venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.PHONY: install
install: $(INSTALLED) ## Make .venv with tar-like and the developers' tools in it

# Without SRC the tree is this folder, less what the installation put into it. It must hold still
# while it is copied, so Python writes no bytecode into it.
demo: export PYTHONDONTWRITEBYTECODE := 1
ifeq ($(SRC),)
demo: export SRC := $(CURDIR)
demo: DEMO_EXCLUDE := -x '^\.venv(/|$$)'
else
demo: export SRC := $(SRC)
endif
demo: export DEST := $(DEST)

.PHONY: demo
demo: install ## Copy a tree, then check the copy independently (SRC=folder DEST=folder for yours)
	@dest=$${DEST:-$$(mktemp -d /tmp/tar-like-demo.XXXXXX)}
	scratch=$$(mktemp -d)
	trap 'rm -rf "$$scratch"' EXIT
	echo "The copy goes to $$dest"
	set -x
	$(BIN)/tar-like sync $(DEMO_EXCLUDE) "$$SRC" "$$dest"
	$(BIN)/tar-like index $(DEMO_EXCLUDE) -b "$$SRC" -db "$$scratch/index.sqlite"
	$(BIN)/tar-like check -b "$$dest" -db "$$scratch/index.sqlite"

.PHONY: servers
servers:
	@.ci/servers

.PHONY: test
test: install servers ## Run the tests (ARGS='-k resume -x' narrows them)
	@$(BIN)/pytest --numprocesses $(TESTERS) $(ARGS)

.PHONY: soak
soak: install servers ## Run the tests that choose at random with other choices (ROUNDS=20 times)
	@for round in $$(seq $(or $(ROUNDS),20)); do
		TAR_LIKE_TEST_SEED=random $(BIN)/pytest --numprocesses $(TESTERS) -m seeded $(ARGS)
	done

.PHONY: test-image
test-image: install ## Build the container image and run the proxy from it (as root, on Debian)
	@for tool in buildah debootstrap; do command -v $$tool >/dev/null || .ci/apt $$tool; done
	tests/deploy/make-base dist/image/base.tar
	$(BIN)/pytest --timeout 1800 tests/deploy/check_image.py $(ARGS)

.PHONY: check
check: install ## Check format, lint, types and layers
	@$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: install ## Put the sources into their form and mend what the linter can
	@$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: bench
bench: install ## Measure against rsync, tar, cp and the fan-out peers (ARGS=… goes to the benchmark)
	@bench/setup
	$(BIN)/python -m bench $(ARGS)

.PHONY: chaos
chaos: install servers ## The long proofs by fault (ARGS='NAME --count N --seed S' for one; as root)
	@$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: fuzz
fuzz: install ## Fuzz what a hostile sender's bytes go into first (ARGS='index --seconds N --seed S')
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check 'atheris>=3.0'
	$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: fanout
fanout: install servers ## Measure the fan-out over 1 to 8 hosts and what dying costs (ARGS=--write; as root)
	@$(BIN)/python -m bench.fanout $(ARGS)

.PHONY: clean
clean: ## Remove what these targets made
	@rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
