# make demo | demo-real | demo-loop | test | check. Each one makes the environment it needs in .venv first;
# later runs reuse it, and a changed pyproject.toml installs again.
#
#   PYTHON=python3.12   the interpreter to make .venv with (any CPython >= 3.11)
#   ORACLE=no           `make test` without torch and transformers; their live comparisons are skipped
#   LIBTPU=no           `make test` without the TPU's compiler; what is compiled for TPUs is skipped
#   WORKERS=4           test processes
#   ARGS="-k rope"      passed on to pytest, or to the demo

VENV ?= .venv
ORACLE ?= yes
LIBTPU ?= yes
WORKERS ?= 2
ARGS ?=

BIN := $(abspath $(VENV))/bin
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install -qq
LIBTPU_PATH := $(if $(filter yes,$(LIBTPU)),$(abspath $(VENV))/libtpu)
# Linux, glibc 2.35 on: XLA takes its scratch memory anew in every training step, and in pages of 2 MiB there are a
# tenth of the page faults (an eighth to a fifth of the CPU time of SFT). Elsewhere it means nothing.
LARGE_PAGES := GLIBC_TUNABLES=glibc.malloc.hugetlb=1
# The libtpu that the installed jax names.
LIBTPU_PIN := import importlib.metadata as m; print(next(r.split(";")[0] for r in m.requires("jax") if r.startswith("libtpu")))
# The versions that the suite is run on come first. A pyenv shim may exist and still not run, a
# Debian python3 may lack venv: try, do not look.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3.14 python3; do \
	$$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo $$p && break; done)

.PHONY: help demo demo-real demo-loop test check

help:
	@echo "make demo       train, align, export and sample a tiny Gemma 4 on arithmetic (under 8 minutes)"
	@echo "make demo-real  SFT and DPO on the rules of a linter and its fixes of real code"
	@echo "make demo-loop  rounds of verified preferences: a tiny Gemma 4 unlearns its slips (10 minutes of CPU)"
	@echo "make test       the whole test suite"
	@echo "make check      format, lint, types, import rules"

demo: $(VENV)/.runtime
	PATH="$(BIN):$$PATH" $(LARGE_PAGES) $(VENV)/bin/python -m examples.arithmetic.demo $(ARGS)

demo-real: $(VENV)/.demo-real
	PATH="$(BIN):$$PATH" $(VENV)/bin/python -m examples.ruff_rules.demo $(ARGS)

demo-loop: $(VENV)/.demo-loop
	PATH="$(BIN):$$PATH" $(LARGE_PAGES) $(VENV)/bin/python -m examples.verifiable_loop.demo $(ARGS)

test: $(VENV)/.dev $(VENV)/.oracle-$(ORACLE) $(VENV)/.libtpu-$(LIBTPU) $(VENV)/.questions
	PATH="$(BIN):$$PATH" PYTHONPATH="$(LIBTPU_PATH)" $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile -ra $(ARGS)

check: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

$(VENV)/bin/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: no Python >= 3.11 with venv found; install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
		exit 2; \
	fi
	@echo "== making $(VENV) with $(PYTHON) ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml | $(VENV)/bin/python
	@echo "== installing gemma4_jax and what it runs on (1 to 3 minutes, about 1 GB on disk)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.demo-real: pyproject.toml $(VENV)/.runtime
	@echo "== installing the linter whose rules are the data (seconds)"
	@$(PIP) -e '.[demo-real]'
	@touch $@

$(VENV)/.demo-loop: pyproject.toml $(VENV)/.runtime
	@echo "== installing what checks JSON schemas (seconds)"
	@$(PIP) -e '.[verify]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.runtime
	@echo "== installing the test and lint tools (under a minute)"
	@$(PIP) -e '.[dev]'
	@touch $@

# torch is an oracle for tests, nothing else. Where it has no build, the suite still runs on the
# committed fixtures, and the summary at its end lists what was skipped and why.
$(VENV)/.oracle-yes: pyproject.toml $(VENV)/.dev
	@echo "== installing torch and transformers, the oracles (minutes: torch is large; ORACLE=no goes without)"
	@if $(PIP) -e '.[oracle]'; then touch $@; else \
		echo "warning: torch or transformers could not be installed; live comparisons will be skipped" >&2; \
	fi

$(VENV)/.oracle-no: $(VENV)/.dev
	@touch $@

# The TPU's compiler: tests compile for TPUs that are not there. Beside the environment, not in it: there every
# command on a machine without a TPU would complain of it at length.
$(VENV)/.libtpu-yes: pyproject.toml $(VENV)/.dev
	@echo "== fetching libtpu for the tests (0.2 GB, 0.7 GB on disk; LIBTPU=no goes without)"
	@if $(PIP) --no-deps --upgrade --target $(VENV)/libtpu "$$($(VENV)/bin/python -c '$(LIBTPU_PIN)')"; then touch $@; else \
		echo "warning: libtpu could not be installed; what is compiled for TPUs will be skipped" >&2; \
	fi

$(VENV)/.libtpu-no: $(VENV)/.dev
	@touch $@

# Real questions for the benchmarks' tests: the wheel is read, not installed (it would bring a hundred packages).
$(VENV)/.questions: $(VENV)/.dev
	@echo "== fetching the wheel of lm-eval, whose examples are real questions (9 MB)"
	@if $(VENV)/bin/python -m pip --disable-pip-version-check download -qq --no-deps --dest $(VENV)/questions lm-eval==0.4.13; then touch $@; else \
		echo "warning: lm-eval could not be fetched; benchmarks will not be rehearsed on real questions" >&2; \
	fi
