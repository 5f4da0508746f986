# The short front of the build.  `make help` lists what there is; CMakePresets.json holds the configurations.

JOBS ?= $(shell nproc 2>/dev/null || echo 2)
MODEL ?= models/word-problems
PROMPT ?= Oscar makes 19 pizzas an hour for 9 hours. Nina makes 14 pizzas an hour for 7 hours. How many more pizzas does Oscar have than Nina?
PREFIX ?= /usr/local
VENV_PYTHON = .venv/bin/python

.PHONY: help run build test quick asan asan-kernels tsan test-aarch64 fuzz bench report install goldens accuracy clean setup-build setup-test

help:
	@echo "make run      install what is missing, build, load the shipped model, answer a question"
	@echo "make test     install what the tests need, build, run everything; last line 'N passed, N failed'"
	@echo "make quick    unit and conformance tests only, under a minute once built"
	@echo "make asan     all tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make asan-kernels  the products' files under the sanitizers too: minutes of compiling"
	@echo "make tsan     engine and thread tests under ThreadSanitizer"
	@echo "make test-aarch64  conformance of every rung of the aarch64 build, under qemu-user"
	@echo "make fuzz     each fuzz target for FUZZ_SECONDS (60) of new input (clang)"
	@echo "make bench    a sitting of measurements, about 20 minutes; BENCH_FLAGS=--quick about 5"
	@echo "make accuracy greedy accuracy of the shipped model on its 1,000 held-out problems, fused and separate compared"
	@echo "make report   serve the shipped model at 1 to 16 requests at once, fused and separate: build/report.html, some minutes"
	@echo "make goldens  remake tests/model/goldens (needs torch and transformers: tools/make_tiny_model.py says which)"
	@echo "make install  install program, library, headers, pkg-config file under PREFIX ($(PREFIX)); DESTDIR is honoured"

setup-build:
	@tools/setup.sh build

setup-test:
	@tools/setup.sh build test

build: setup-build
	@cmake --preset release $(CMAKE_ARGS) >/dev/null
	@cmake --build --preset release -j $(JOBS) -- --no-print-directory

run: build
	@build/release/bin/moefuse run $(MODEL) -p "$(PROMPT)"

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

clean:
	rm -rf build
