# `make help` lists the targets. Each sets up what it needs in .venv; ARGS="..." is passed on to the tool.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2

VENV    := .venv
BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc python/segfuse -name __pycache__ -prune -o -print)
CPP     := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
PEERS   :=
PEERS_VENV := .venv-peers
# What the peers' losses need, and no more: their packages ask for far larger ones.
PEERS_NEED := numpy scipy pillow edt kornia_rs tqdm pytest hypothesis "pybind11>=2.12" scikit-build-core cmake ninja
# What the list `requires` of pyproject.toml leaves to the build front end.
ADD_requires := cmake ninja

define SMOKE
import torch, segfuse
x = torch.randn(2, 3, 8, 8, requires_grad=True)
loss = segfuse.DiceLoss() + segfuse.CrossEntropyLoss()
loss(x, torch.zeros(2, 8, 8, dtype=torch.long)).backward()
assert x.grad.isfinite().all()
endef
export SMOKE

.NOTPARALLEL:
.PHONY: help demo test test-peers bench lint typecheck wheel readme clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F'|' '{ printf "make %-10s %s\n", $$1, $$2 }'

demo: $(VENV)/.package $(VENV)/.list-demo  ## train on small pictures and compare losses
	$(BIN)/segfuse demo $(ARGS)

test: $(VENV)/.package $(VENV)/.list-test $(VENV)/.list-demo  ## run the tests
	$(BIN)/python -m pytest $(ARGS)

test-peers: $(PEERS_VENV)/.list  ## compare compat and patch with the libraries, in an environment of its own
	$(PEERS_VENV)/bin/python -m pytest tests/compat $(ARGS)

bench: $(VENV)/.package $(VENV)/.list-bench $(PEERS:%=$(VENV)/.list-peers)  ## run the benchmarks; PEERS=1 adds other libraries
	$(BIN)/python -m pytest benchmarks $(ARGS)

readme: $(VENV)/.package $(VENV)/.list-bench  ## write the benchmark table into README.md
	$(BIN)/python benchmarks/readme.py $(ARGS)

lint: $(VENV)/.list-dev  ## check style: ruff, clang-format
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(if $(CPP),$(BIN)/clang-format --dry-run -Werror $(CPP))

typecheck: $(VENV)/.package $(VENV)/.list-dev  ## check types: mypy
	$(BIN)/mypy $(ARGS)

wheel: $(BIN)/python  ## build a wheel into dist/ and try it in a fresh environment
	rm -rf dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist --config-settings=build-dir=build/isolated .
	tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && wheel=$$(ls "$$PWD"/dist/*.whl) \
	&& $(PYTHON) -m venv "$$tmp/venv" && "$$tmp/venv/bin/pip" install --quiet "$(TORCH)" "$$wheel" \
	&& cd "$$tmp" && venv/bin/segfuse doctor && venv/bin/python -c "$$SMOKE"
	@ls -l dist

clean:  ## remove everything that was built, .venv included
	rm -rf $(VENV) $(PEERS_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The package as a user gets it, installed again whenever one of its files changes. Its build requirements stay in .venv
# so that only what changed is compiled; `make wheel` builds in isolation.
$(VENV)/.package: $(SOURCES) $(VENV)/.list-requires | $(BIN)/python
	$(INSTALL) --no-build-isolation .
	@touch $@

# The other libraries without what they require, and this package beside them.
$(PEERS_VENV)/.list: pyproject.toml $(SOURCES)
	test -x $(PEERS_VENV)/bin/python || $(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" $(PEERS_NEED)
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    $$(sed -n 's/^peers = //p' pyproject.toml | grep -o '"[^"]*"' | tr -d '"')
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation .
	@touch $@

# The packages of one list of pyproject.toml: an extra, or the build requirements. The package itself is not built.
$(VENV)/.list-%: pyproject.toml | $(BIN)/python
	$(INSTALL) $$(sed -n 's/^$* = //p' pyproject.toml | grep -o '"[^"]*"' | tr -d '"') $(ADD_$*)
	@touch $@
