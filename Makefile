# SPDX-License-Identifier: GPL-2.0-only
# `make demo` and `make test` need nothing but python3 (3.11 or newer) with its venv module and a
# network or pip cache; each makes what it needs in .venv and is quick the second time.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml vmi/version.py hatch_build.py $(wildcard vmi/native/accelerator/*.[ch])
# pip says nothing of what its build hook says, so which engine it became is asked for afterwards
ENGINE = $(BIN)/vmi version | sed -n 's/^engine */the CPU is run by: /p'

.PHONY: demo test lint types bench coverage clean help
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:
	@echo "make demo   patch a sample kernel, run it natively and paravirtualized, compare"
	@echo "make test   lint, type check, all tests, and coverage"
	@echo "make lint   ruff and mypy only"
	@echo "make coverage  how much of the hypervisor's code the conformance suite and its tests run; some minutes"
	@echo "make bench KERNEL=FILE  patch it, run it in every mode, print figures (see bench/kernel.py)"
	@echo "make bench PATCH=FILE  what patching it takes, becomes and costs; ARGS=--run boots it (see bench/patch.py)"
	@echo "make bench EXITS=1  what paravirtualization gains, workload by workload (see bench/hypervisor.py)"
	@echo "make bench  the engine against QEMU: loops, round trips, start-up, and kernels that ARGS name (see bench/engine.py)"
	@echo "make clean  remove everything that make made"

# An interrupted installation leaves no stamp, so the next make starts it again.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "vmi needs Python 3.11 or newer as $(PYTHON); name another one with: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) >$(VENV).log 2>&1 || \
	  { cat $(VENV).log >&2; rm -rf $(VENV) $(VENV).log; \
	    echo "$(PYTHON) can't make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@rm -f $(VENV).log
	@touch $@

$(VENV)/.user: $(VENV)/.made $(INPUTS)
	@echo "installing vmi into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@$(ENGINE)
	@touch $@

$(VENV)/.dev: $(VENV)/.made $(INPUTS)
	@echo "installing vmi and its test tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@$(ENGINE)
	@touch $@ $(VENV)/.user

demo: $(VENV)/.user
	@$(BIN)/vmi demo

# Once with the accelerator, if there is a C compiler, and what it has a part in once more without.
test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
	VMI_ACCELERATOR=0 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/native
	VMI_ACCELERATOR=0 $(BIN)/vmi conform -q --rom native -j $(WORKERS)
	@$(MAKE) --no-print-directory coverage

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

# Lines and branches; fails below the floor that pyproject.toml sets. Without the accelerator, which does a part
# of the hypervisor's work where there is a C compiler.
coverage: $(VENV)/.dev
	rm -f .coverage .coverage.*
	VMI_ACCELERATOR=0 $(BIN)/coverage run -m vmi conform -q -j $(WORKERS)
	VMI_ACCELERATOR=0 $(BIN)/coverage run -m pytest -q -n $(WORKERS) --dist worksteal tests/hypervisor
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# The kernel to measure is yours to name: make bench KERNEL=vmlinux ARGS='--until login:'
# And what patching costs: make bench PATCH="'vmlinuz,console=ttyS0 quiet,initrd' other" ARGS='--run --until login:'
# EXITS=1 measures what paravirtualization gains. Without any, the engine is measured against QEMU.
MEASURE = $(if $(EXITS),bench/hypervisor.py,bench/engine.py)
PROGRAM = $(if $(PATCH),bench/patch.py $(PATCH),$(if $(KERNEL),bench/kernel.py $(KERNEL),$(MEASURE)))
bench: $(VENV)/.user
	$(BIN)/python $(PROGRAM) $(ARGS)

clean:
	rm -f vmi/native/accelerator/*.so vmi/native/accelerator/not-built.txt
	rm -f .coverage .coverage.*
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find vmi tests sample_kernels -name __pycache__ -type d -prune -exec rm -rf {} +
