# Everything happens in this tree: .venv holds the tools, hamirt/_native what was compiled.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
C_FILES = $(wildcard shim/*.c shim/*.h simgpu/*.c simgpu/*.h $(foreach d,tests/shim/programs tests/container/programs tests/gpu/programs bench/probes,$(wildcard $(d)/*.c $(d)/*.h)))
PYTEST = $(BIN)/python -m pytest -n 2 -q

.DEFAULT_GOAL := help
.PHONY: help build demo test lint unit shim node instructions fuzz soak sanitize dist image gpu-bundle format clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/ready: pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "hamirt needs Python 3.10 or newer; name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "hamirt needs Python's venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=23.1'
	HAMIRT_BUILD=later $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

build: $(VENV)/ready  ## Make .venv and build the shim, the simulated driver and the cffi module in place
	@$(BIN)/python -m hamirt._build

demo: build  ## Two tenants share one GPU, simulated where there is none
	@$(BIN)/hamirt demo

test: export HAMIRT_WERROR = 1
test: build  ## Lint, then all tests that need no GPU
	@$(MAKE) --no-print-directory lint
	@# what measures time, before what takes all cores
	$(BIN)/python -m pytest -q -m realtime tests/sim
	$(BIN)/python -m pytest -q -m realtime --ignore=tests/sim tests
	@$(MAKE) --no-print-directory soak SOAK_SECONDS=20 SOAK_SEED=7
	$(PYTEST) -m "not gpu and not realtime" tests

lint: $(VENV)/ready  ## ruff, mypy and clang-format, which change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(if $(C_FILES),$(BIN)/clang-format --dry-run --Werror $(C_FILES))

unit: build  ## The Python tests that start no program
	$(PYTEST) tests/unit

shim: build  ## The tests of the shim and of the simulated driver
	$(PYTEST) tests/shim tests/sim

node: build  ## The tests of `hamirt run` and `hamirt status`
	$(PYTEST) tests/node

instructions: build  ## Count what a launch spends in the hook, on the simulated card; results in build/
	$(BIN)/python -m bench.build --out build/gpu-programs
	$(BIN)/python -m bench.instructions --programs build/gpu-programs --out build

fuzz: build  ## Spoil pages and requests to the daemon, 100,000 of each: some minutes; results in FUZZ_OUT
	$(BIN)/python -m tests.fuzz --out $(or $(FUZZ_OUT),build/fuzz.json)

soak: build  ## Tenants come, go and change at random: 30 minutes or SOAK_SECONDS, simulated; results in SOAK_OUT
	@$(BIN)/python -m bench.build --out build/bench-programs >/dev/null
	$(BIN)/python -m bench.soak --sim --programs build/bench-programs --seconds $(or $(SOAK_SECONDS),1800) $(if $(SOAK_SEED),--seed $(SOAK_SEED)) \
		--out $(or $(SOAK_OUT),build/soak)

sanitize: build  ## The shim's tests under AddressSanitizer and ThreadSanitizer
	@for sanitizer in address thread; do \
		HAMIRT_SANITIZE=$$sanitizer $(BIN)/python -m hamirt._build || exit 1; \
		HAMIRT_SANITIZE=$$sanitizer $(BIN)/python -m pytest -q tests/shim || exit 1; \
	done

dist: $(VENV)/ready  ## The wheels for x86-64 and aarch64, for glibc 2.17 and newer, in dist/
	@rm -rf dist
	@for target in x86_64 aarch64; do \
		rm -rf build/lib* build/bdist* && \
		HAMIRT_TARGET=$$target $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
			--no-build-isolation --wheel-dir dist . && \
		$(BIN)/auditwheel show dist/*_$$target.whl | grep -q "\"manylinux_2_17_$$target\"" || \
			{ echo "the wheel for $$target is missing, or not what its name says: see auditwheel show" >&2; exit 1; }; \
	done
	@ls dist/*.whl

image: dist  ## The daemon's image hamirt-node, with IMAGE_TOOL (podman, docker, buildah) on BASE if it is named
	$(or $(IMAGE_TOOL),podman) build --file Dockerfile.node --tag hamirt-node $(if $(BASE),--build-arg BASE=$(BASE)) .

gpu-bundle: build  ## What a GPU machine without network needs for tests/gpu and bench
	$(BIN)/python bench/bundle.py

format: $(VENV)/ready  ## Let ruff and clang-format rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@$(if $(C_FILES),$(BIN)/clang-format -i $(C_FILES))

clean:  ## Remove everything that was built, .venv included
	rm -rf $(VENV) build dist hamirt.egg-info hamirt/_native hamirt/_region.abi3.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
