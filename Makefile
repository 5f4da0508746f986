# The short front of the build.  `make help` lists what there is; CMakePresets.json holds the configurations.

JOBS ?= $(shell nproc 2>/dev/null || echo 2)
MODEL ?= models/word-problems
PROMPT ?= Oscar makes 19 pizzas an hour for 9 hours. Nina makes 14 pizzas an hour for 7 hours. How many more pizzas does Oscar have than Nina?
PREFIX ?= /usr/local
VENV_PYTHON = .venv/bin/python

.PHONY: help run serve build wheel test test-python test-page test-api test-load test-clients quick asan asan-kernels \
    tsan test-aarch64 fuzz bench report install deb goldens accuracy clean setup-build setup-test test-gpu bench-gpu

help:
	@echo "make run      install what is missing, build, load the shipped model, answer a question"
	@echo "make serve    the same, then serve it at http://127.0.0.1:8000 (SERVE_FLAGS=...)"
	@echo "make test     install what the tests need, build, run everything; last line 'N passed, N failed'"
	@echo "make quick    unit and conformance tests only, under a minute once built"
	@echo "make test-page  the chat page in headless Chromium, about 20 s; SHOTS=FOLDER keeps screenshots"
	@echo "make test-api   schemathesis on the server's /openapi.json, API_EXAMPLES (100) requests per operation"
	@echo "make wheel    the Python package with the library inside, in build/wheel; test-python tests it (torch: 1 to 3 GB once)"
	@echo "make test-load  the server under load on the release build: its goals in figures, about 15 minutes; LOAD='GROUP...' chooses"
	@echo "make test-clients  vLLM's and SGLang's benchmark clients and lm-eval against the server; 1.5 GB of downloads once"
	@echo "make test-gpu   device cuda: conformance, graph replays and compute-sanitizer; bench-gpu: its figures (nvcc, an NVIDIA GPU)"
	@echo "make asan     all tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make asan-kernels  the products' files under the sanitizers too: minutes of compiling"
	@echo "make tsan     engine and thread tests under ThreadSanitizer"
	@echo "make test-aarch64  conformance of every rung of the aarch64 build, under qemu-user"
	@echo "make fuzz     each fuzz target for FUZZ_SECONDS (60) of new input (clang)"
	@echo "make bench    a sitting of measurements, 5 to 20 minutes; BENCH_FLAGS=--quick 2 to 5"
	@echo "make accuracy greedy accuracy of the shipped model on its 1,000 held-out problems, fused and separate compared"
	@echo "make report   serve the shipped model at 1 to 16 requests at once, fused and separate: build/report.html, some minutes"
	@echo "make goldens  remake tests/model/goldens (needs torch and transformers: tools/make_tiny_model.py says which)"
	@echo "make deb      Debian packages in build/deb: moefuse, libmoefuse0, libmoefuse-dev"
	@echo "make install  program, library, headers, manual, completion, systemd unit under PREFIX ($(PREFIX)); DESTDIR is honoured"

setup-build:
	@tools/setup.sh build

setup-test:
	@tools/setup.sh build test

build: setup-build
	@cmake --preset release $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset release -j $(JOBS) -- --no-print-directory

run: build
	@build/release/bin/moefuse run $(MODEL) -p "$(PROMPT)"

serve: build
	@build/release/bin/moefuse serve $(MODEL) $(SERVE_FLAGS)

dev: setup-test
	@cmake --preset dev $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset dev -j $(JOBS) -- --no-print-directory

build-asan: setup-test
	@cmake --preset asan $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset asan -j $(JOBS) -- --no-print-directory

test: build dev build-asan build-aarch64-if-possible
	@$(VENV_PYTHON) tests/run_tests.py all

quick: dev
	@$(VENV_PYTHON) tests/run_tests.py quick

# The library inside the package is the release build's; the wheel is for any Python 3 on this platform.
wheel: build setup-test
	@rm -rf python/moefuse/lib python/build build/wheel && mkdir -p python/moefuse/lib build/wheel
	@cmake --build --preset release -j $(JOBS) --target moefuse_kernels -- --no-print-directory
	@cp -L build/release/lib/libmoefuse_kernels.so python/moefuse/lib/
	@if [ -f build/release/lib/libmoefuse_cuda.so ]; then cp -L build/release/lib/libmoefuse_cuda.so python/moefuse/lib/; fi
	@$(VENV_PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps -w build/wheel ./python
	@rm -rf python/build python/*.egg-info && ls build/wheel/*.whl

test-python: wheel
	@tools/setup.sh torch
	@.python-venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall build/wheel/*.whl
	@cd build && ../.python-venv/bin/python ../tests/python/ops_test.py

test-page: setup-test
	@tools/setup.sh browser
	@cmake --preset dev $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset dev -j $(JOBS) --target page_dump -- --no-print-directory
	@$(VENV_PYTHON) tests/server/page_browser_test.py build/dev/bin/tests-tools/page_dump $(if $(SHOTS),--shots $(SHOTS))

asan-kernels: setup-test
	@cmake -S . -B build/asan-kernels -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_C_FLAGS_RELWITHDEBINFO="-O1 -g1" \
	    -DMOEFUSE_TESTS=ON -DMOEFUSE_SANITIZE=address,undefined -DMOEFUSE_SANITIZE_PRODUCTS=ON $(CMAKE_ARGS) >/dev/null
	@cmake --build build/asan-kernels -j $(JOBS) --target conformance_products conformance_experts conformance_experts_bits \
	    conformance_dense conformance_layer_chunks conformance_attention -- --no-print-directory
	@$(VENV_PYTHON) tests/run_tests.py asan-kernels

asan: build-asan
	@$(VENV_PYTHON) tests/run_tests.py asan

# What `make test` runs of them; a machine that cannot have the cross compiler says so in the tests' last lines.
AARCH64_QUICK = conformance_rungs conformance_products conformance_int4_groups conformance_dense conformance_sum_reduce \
    unit_vectors

build-aarch64-if-possible: setup-test
	@mkdir -p build && rm -f build/aarch64-not-run
	@if tools/setup.sh aarch64 2>build/aarch64-setup.log; then \
	    cmake --preset aarch64 $(CMAKE_ARGS) >/dev/null && \
	    cmake --build --preset aarch64 -j $(JOBS) --target $(AARCH64_QUICK) -- --no-print-directory; \
	else tail -n 1 build/aarch64-setup.log >build/aarch64-not-run; fi

test-aarch64: setup-test
	@tools/setup.sh aarch64
	@cmake --preset aarch64 $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset aarch64 -j $(JOBS) -- --no-print-directory
	@$(VENV_PYTHON) tests/run_tests.py aarch64

# On a machine with an NVIDIA GPU and nvcc; needs neither our libraries nor CMake.
test-gpu:
	@tests/cuda/build.sh build/gpu
	@for t in golden_test act_dtype_test states_test; do cp build/dev/bin/tests/$$t build/gpu/ 2>/dev/null || true; done
	@cp build/release/bin/moefuse build/gpu/ 2>/dev/null || true
	@tests/cuda/run.sh build/gpu tests models program sanitizer

bench-gpu:
	@tests/cuda/build.sh build/gpu
	@tests/cuda/run.sh build/gpu bench

test-clients: build setup-test
	@tools/setup.sh clients
	@$(VENV_PYTHON) tests/server/clients/run.py build/release/bin/moefuse

test-api: build setup-test
	@tools/setup.sh api
	@$(VENV_PYTHON) tests/server/openapi_fuzz.py build/release/bin/moefuse $(or $(API_EXAMPLES),100)
test-load: build setup-test
	@$(VENV_PYTHON) tests/server/load_test.py build/release/bin/moefuse --json build/load.json $(LOAD)

tsan: setup-test
	@cmake --preset tsan $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset tsan -j $(JOBS) -- --no-print-directory
	@$(VENV_PYTHON) tests/run_tests.py tsan

fuzz:
	@tools/setup.sh build fuzz
	@cmake --preset fuzz $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset fuzz -j $(JOBS) -- --no-print-directory
	@tests/fuzz/run.sh $(or $(FUZZ_SECONDS),60)

bench: build
	@bench/run.sh $(BENCH_FLAGS)

accuracy: build
	@build/release/bin/moefuse eval $(MODEL) --data models/word-problems/eval/word_problems.jsonl --chat --max-tokens 256 \
	    --fusion both --min-accuracy 0.97

report: build
	@build/release/bin/moefuse bench serve $(MODEL) --sweep-max-concurrency 1,2,4,8,16 --fusion all --rounds 3 --num-prompts 64 \
	    --random-input-len 128 --random-output-len 64 --ignore-eos --temperature 0 --result-filename build/report.jsonl $(REPORT_FLAGS)
	@build/release/bin/moefuse bench report build/report.jsonl -o build/report.html

goldens:
	@$(or $(PYTHON),python3) tools/make_tiny_model.py --out tests/model/goldens
	@$(or $(PYTHON),python3) tools/make_word_problem_goldens.py

install: build
	@DESTDIR="$(DESTDIR)" cmake --install build/release --prefix "$(PREFIX)"

deb: setup-build
	@tools/setup.sh deb
	@cmake --preset deb $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset deb -j $(JOBS) -- --no-print-directory
	@cd build/deb && cpack -G DEB && ls -l *.deb

clean:
	rm -rf build
