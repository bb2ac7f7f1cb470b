# `make help` lists the targets. Each sets up what it needs in .venv; ARGS="..." is passed on to the tool.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2
# A C++ extension that does not build is an error here, and no reason to install the package without it.
export SEGFUSE_NATIVE ?= ON
# While developing, kernels are built for the GPU at hand; without one, `make cuda` compiles them for this architecture.
GPU := $(shell command -v nvidia-smi)
CUDA_ARCHITECTURES ?= $(if $(GPU),native,90-real)

VENV    := .venv
BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc python/segfuse -name __pycache__ -prune -o -print)
CPP     := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# One process for each core, of one thread each; tests of threads set their number themselves.
PYTEST  := python -m pytest -n auto --dist worksteal
test test-peers: export OMP_NUM_THREADS := 1
CLANG   ?= clang++
PEERS   :=
PEERS_VENV := .venv-peers
# What the peers' losses need, and no more: their packages ask for far larger ones.
PEERS_NEED := pillow edt kornia_rs tqdm
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

# Release wheels hold code for these GPUs, and code that drivers compile for later ones.
NVCC := $(shell command -v nvcc)
RELEASE_ARCHITECTURES ?= 75-real;80-real;86-real;89-real;90-real;100-real;120
# $(call wheel,FOLDER,OPTIONS): build a wheel in isolation and try it where only torch is installed.
define wheel
$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(1) -C build-dir=build/isolated/$(1) $(2) .
	tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && wheel=$$(ls "$$PWD"/$(1)/*.whl) \
	&& $(PYTHON) -m venv "$$tmp/venv" && "$$tmp/venv/bin/pip" install --quiet "$(TORCH)" "$$wheel" \
	&& cd "$$tmp" && venv/bin/segfuse doctor && venv/bin/python -c "$$SMOKE"
endef

.NOTPARALLEL:
.PHONY: help demo test test-peers fuzz fuzz-kernels sanitize cuda bench lint typecheck wheel readme clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F'|' '{ printf "make %-12s %s\n", $$1, $$2 }'

demo: $(VENV)/.package $(VENV)/.list-demo  ## train on small pictures and compare losses
	$(BIN)/segfuse demo $(ARGS)

test: $(VENV)/.package $(VENV)/.list-test $(VENV)/.list-demo $(VENV)/.emulation  ## run the tests
	$(BIN)/$(PYTEST) $(ARGS)

test-peers: $(PEERS_VENV)/.list  ## compare compat, patch and trainers with the libraries, in an environment of its own
	$(PEERS_VENV)/bin/$(PYTEST) tests/compat tests/integrations tests/test_examples.py $(ARGS)

fuzz: $(VENV)/.package $(VENV)/.list-test  ## random calls against the reference: ARGS="--seed 0 --count 100000"
	$(BIN)/python tests/fuzz.py $(ARGS)

fuzz-kernels: $(VENV)/.list-requires  ## random calls of the kernels, led by coverage, with clang: ARGS="-runs=200000"
	@command -v $(CLANG) >/dev/null || { echo "The fuzzer needs clang with libFuzzer, and there is no $(CLANG). \
	Try: apt install clang, or make fuzz-kernels CLANG=clang++-18"; exit 1; }
	$(call cmake,.,build/fuzz,-DSEGFUSE_FUZZ=ON -DSEGFUSE_CUDA=OFF -DCMAKE_CXX_COMPILER=$(CLANG) -DCMAKE_BUILD_TYPE=None \
	  -DCMAKE_CXX_FLAGS="-O1 -fno-sanitize-coverage=trace-cmp" -DSEGFUSE_SANITIZE="fuzzer-no-link;address;undefined")
	mkdir -p build/fuzz/corpus
	cd build/fuzz && ASAN_OPTIONS=quarantine_size_mb=16 ./fuzz_kernels -len_control=0 -entropic=0 -max_len=512 -timeout=60 \
	  -rss_limit_mb=4096 -print_funcs=0 -print_final_stats=1 corpus $(ARGS)

sanitize: $(VENV)/.list-requires $(VENV)/.list-test  ## run the kernels under gcc's sanitizers: bounds, undefined behaviour, races
	$(call sanitizer,address,-DSEGFUSE_SANITIZE="address;undefined")
	for isa in baseline avx2; do SEGFUSE_ISA=$$isa OMP_NUM_THREADS=2 $(call sanitized,address,asan ubsan) \
	  -m pytest -n auto -q -p no:cacheprovider -k cpp tests/ops tests/test_golden.py $(ARGS) || exit 1; done
	OMP_NUM_THREADS=1 $(call sanitized,address,asan ubsan) tests/fuzz.py --count 5000
	$(call sanitizer,thread,-DSEGFUSE_SANITIZE=thread)
	OMP_NUM_THREADS=3 $(call sanitized,thread,tsan) -m pytest -q -p no:cacheprovider tests/test_robustness.py -k same_bits $(ARGS)

cuda: $(VENV)/.list-requires $(VENV)/.list-test  ## compile the CUDA kernels and check what the compiler says of them
	rm -rf build/cuda
	$(call cmake,.,build/cuda,-DSEGFUSE_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES) \
	  -DCMAKE_CUDA_FLAGS=-Xptxas=-v) --target _cuda --verbose > build/cuda.log 2>&1 || { cat build/cuda.log; exit 1; }
	$(BIN)/python -m pytest --noconftest tests/cuda/test_build.py

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

wheel: $(BIN)/python  ## build wheels into dist/, for the CPU and with nvcc for CUDA, and try each in a fresh environment
	rm -rf dist
	$(call wheel,dist/cpu,-C cmake.define.SEGFUSE_CUDA=OFF)
	$(if $(NVCC),$(call wheel,dist/cuda,-C cmake.define.SEGFUSE_CUDA=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES="$(RELEASE_ARCHITECTURES)"))
	@ls -l dist/*

clean:  ## remove everything that was built, .venv included
	rm -rf $(VENV) $(PEERS_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The package as a user gets it, installed again whenever one of its files changes. Its build requirements stay in .venv
# so that only what changed is compiled; `make wheel` builds in isolation.
$(VENV)/.package: $(SOURCES) $(VENV)/.list-requires | $(BIN)/python
	$(INSTALL) --no-build-isolation --config-settings=cmake.define.SEGFUSE_CUDA=$(if $(GPU),ON,OFF) .
	@touch $@

# $(call cmake,SOURCE,BUILD,OPTIONS): configure and build with the tools of .venv.
cmake = PATH="$$PWD/$(BIN):$$PATH" && cmake -S $(1) -B $(2) -G Ninja -DPython_EXECUTABLE="$$PWD/$(BIN)/python" \
	  -DCMAKE_PREFIX_PATH="$$($(BIN)/python -m pybind11 --cmakedir)" $(3) >/dev/null && cmake --build $(2)

# $(call sanitizer,NAME,OPTION): the package with an extension built for a sanitizer.
define sanitizer
$(call cmake,.,build/sanitize/$(1),-DSEGFUSE_CUDA=OFF -DCMAKE_BUILD_TYPE=None $(2))
	rm -rf build/sanitize/$(1)/site && mkdir -p build/sanitize/$(1)/site
	cp -r python/segfuse build/sanitize/$(1)/site/ && rm -f build/sanitize/$(1)/site/segfuse/_c*.so
	cp build/sanitize/$(1)/_cpp*.so build/sanitize/$(1)/site/segfuse/
endef
# $(call sanitized,NAME,LIBRARIES): Python with it. Only the extension is instrumented; memory of tensors is guarded as
# well, since they come from malloc. Without randomised addresses, which ThreadSanitizer cannot place.
sanitized = PYTHONPATH=build/sanitize/$(1)/site ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
  UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=ignore_noninstrumented_modules=1:exitcode=66 \
  LD_PRELOAD="$$(for l in $(2) stdc++; do $(CXX) -print-file-name=lib$$l.so; done | tr '\n' ' ')" setarch -R $(BIN)/python

# The CUDA kernels as C++, for tests without a GPU.
$(VENV)/.emulation: $(SOURCES) $(wildcard tests/cuda/*) $(VENV)/.list-requires | $(BIN)/python
	$(call cmake,tests/cuda,build/emulation)
	@touch $@

# The other libraries without what they require; torch and this package are those of .venv.
$(PEERS_VENV)/.list: pyproject.toml $(VENV)/.package $(VENV)/.list-test
	test -x $(PEERS_VENV)/bin/python || $(PYTHON) -m venv $(PEERS_VENV)
	site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(BIN)/python -c "$$site" > "$$($(PEERS_VENV)/bin/python -c "$$site")/development.pth"
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PEERS_NEED)
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	    $$(sed -n 's/^peers = //p' pyproject.toml | grep -o '"[^"]*"' | tr -d '"')
	@touch $@

# The packages of one list of pyproject.toml: an extra, or the build requirements. The package itself is not built.
$(VENV)/.list-%: pyproject.toml | $(BIN)/python
	$(INSTALL) $$(sed -n 's/^$* = //p' pyproject.toml | grep -o '"[^"]*"' | tr -d '"') $(ADD_$*)
	@touch $@
