# `make demo`, `make demo-real` and `make test` need Linux, Python 3.11 with its headers, a C++ compiler and a package index; the rest is set up in .venv.
# Variables: PYTHON, DEVICE=cpu|gpu (which lock is installed), SEED (of the demos), UPGRADE=1 (newest versions in `make lock`).
PYTHON ?= python3.11
DEVICE ?= cpu
SEED ?= 0
UV_VERSION := 0.13.8

SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# uv does not read pip's variables; what this machine says to pip holds for uv too.
empty :=
space := $(empty) $(empty)
comma := ,
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))
endif
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifdef PIP_EXTRA_INDEX_URL
export UV_INDEX ?= $(PIP_EXTRA_INDEX_URL)
export UV_INDEX_STRATEGY ?= unsafe-best-match
endif
ifdef PIP_CERT
export SSL_CERT_FILE ?= $(PIP_CERT)
endif
ifdef PIP_DEFAULT_TIMEOUT
export UV_HTTP_TIMEOUT ?= $(PIP_DEFAULT_TIMEOUT)
endif
# CPU torch comes from the machine's own wheel folder where it names one, else from PyTorch's CPU index.
CPU_TORCH := $(if $(PIP_FIND_LINKS),,--torch-backend cpu)

LOCK := requirements/$(DEVICE).lock
ifeq ($(wildcard $(LOCK)),)
$(error DEVICE=$(DEVICE): expected cpu or gpu)
endif
UV_READY := .venv/.uv-$(UV_VERSION)
READY := .venv/.installed-$(DEVICE)-$(shell cat $(LOCK) requirements/data.txt pyproject.toml | sha256sum | cut -c1-16)
COMPILE := .venv/bin/uv pip compile pyproject.toml --quiet --extra dev --extra real --override requirements/overrides.txt --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--no-annotate --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

.PHONY: setup demo demo-real test test-fast test-unit test-nightly lint mutate lock clean

setup: $(READY)

demo: $(READY)
	.venv/bin/rlft demo --seed $(SEED)

demo-real: $(READY)
	.venv/bin/rlft demo --model smollm2 --seed $(SEED)

test: $(READY)
	.venv/bin/pytest

test-fast: $(READY)
	.venv/bin/pytest -m "not integration and not slow"

test-unit: $(READY)
	.venv/bin/pytest -m "not integration"

test-nightly: $(READY)
	.venv/bin/pytest --nightly

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/pyright

mutate: $(READY)
	.venv/bin/python tests/mutate.py

lock: $(UV_READY)
	$(COMPILE) --extra cpu --override requirements/cpu-overrides.txt $(CPU_TORCH) -o requirements/cpu.lock
	env -u UV_FIND_LINKS $(COMPILE) --extra gpu -o requirements/gpu.lock

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find rlft tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(UV_READY):
	@command -v $(PYTHON) >/dev/null || { echo "rlft needs Python 3.11: '$(PYTHON)' is not on PATH; install it or say PYTHON=/path/to/python3.11" >&2; exit 1; }
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

# The lock is complete, so nothing is resolved. The stamp's name carries the hash of what was installed.
# Compiled once for all packages (under a minute): without it, each actor of a first run compiles torch and vLLM for itself.
$(READY): $(UV_READY)
	.venv/bin/uv pip install --python .venv/bin/python --no-deps --compile-bytecode $(if $(filter cpu,$(DEVICE)),$(CPU_TORCH)) -r $(LOCK)
	.venv/bin/uv pip install --python .venv/bin/python --no-deps --compile-bytecode -r requirements/data.txt
	.venv/bin/uv pip install --python .venv/bin/python --no-deps --no-build-isolation --editable .
	@$(if $(filter cpu,$(DEVICE)),$(BUILD_COMM))
	@rm -f .venv/.installed-* && touch $@

# DeepSpeed compiles its shared-memory collectives at first use; done here, no learner waits for it.
define BUILD_COMM
echo "Compiling DeepSpeed's CPU collectives (about a minute, once)"; \
log=$$(DS_ACCELERATOR=cpu timeout 600 .venv/bin/python -c "from deepspeed.comm.torch import build_shm_op; build_shm_op()" 2>&1) || { \
	printf '%s\n' "$$log" | tail -n 20 >&2; \
	echo "rlft: DeepSpeed's CPU collectives did not compile (above). They need a C++ compiler (g++, or CXX=...) and Python's headers." >&2; \
	echo "If nothing stands above, an earlier build was killed: remove ~/.cache/torch_extensions/*/deepspeed_shm_comm and run make again." >&2; \
	exit 1; }
endef
