"""Runs the test programs and counts their TAP lines; the last line is `N passed, N failed`.

    run_tests.py all | quick | asan | tsan | aarch64

A program is a failure by itself when it crashes, times out, or ends non-zero without a failed line.  Programs run two at a
time; each one's log stays in build/test-logs."""
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "test-logs"
PYTHON = sys.executable
TIMEOUT_S = 400
EMULATED_TIMEOUT_S = 1500
ASAN_ENV = {"ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


def programs(preset, *prefixes):
    folder = ROOT / "build" / preset / "bin" / "tests"
    found = sorted(p for p in folder.glob("*") if os.access(p, os.X_OK) and p.is_file())
    return [p for p in found if not prefixes or p.name.startswith(prefixes)]


def native(preset, *prefixes, env=None):
    return [(f"{preset}/{p.name}", [str(p)], env or {}) for p in programs(preset, *prefixes)]


def fuzz_replays():
    jobs = []
    for corpus in sorted((ROOT / "tests" / "fuzz" / "corpus").iterdir()):
        program = ROOT / "build" / "asan" / "bin" / "fuzz" / f"fuzz_{corpus.name}"
        jobs.append((f"asan/fuzz_{corpus.name} corpus", [str(program), str(corpus)], ASAN_ENV))
    return jobs


SCRIPT_FLAGS = {"chat page": ["--static"], "server under load": ["--quick"]}


def scripts(preset):
    tools = ROOT / "build" / preset / "bin"
    jobs = [("boundaries", [PYTHON, "tests/boundaries_test.py"], {}),
            ("python mirror", [PYTHON, "tests/python/abi_test.py"], {}),
            ("readme tables", [PYTHON, "tools/bench_table.py", "--check"], {})]
    for name, script, tool in (("tokenizer oracle", "tests/text/tokenizer_oracle.py", "tests-tools/tok_dump"),
                               ("tokenizer chars oracle", "tests/text/tokenizer_chars_oracle.py", "tests-tools/tok_dump"),
                               ("tiktoken oracle", "tests/text/tokenizer_tiktoken_oracle.py", "tests-tools/tok_dump"),
                               ("chat template oracle", "tests/text/chat_template_oracle.py", "tests-tools/template_dump"),
                               ("key timing", "tests/server/key_timing_test.py", "tests-tools/key_check"),
                               ("guide oracle", "tests/text/guide_oracle.py", "tests-tools/guide_dump"),
                               ("program", "tests/program_test.py", "moefuse"),
                               ("server", "tests/server/serve_test.py", "moefuse"),
                               ("request fields", "tests/server/fields_live_test.py", "moefuse"),
                               ("operator", "tests/server/operator_test.py", "moefuse"),
                               ("server under load", "tests/server/load_test.py", "moefuse"),
                               ("metrics parser", "tests/server/metrics_parser_test.py", "tests-tools/metrics_dump"),
                               ("chat page", "tests/server/page_browser_test.py", "tests-tools/page_dump"),
                               ("reverse proxy", "tests/server/reverse_proxy_test.py", "tests-tools/page_dump"),
                               ("hardening", "tests/hardening_test.py", "moefuse"),
                               ("client", "tests/client/client_test.py", "moefuse"),
                               ("install and ABI", "tests/abi/install_test.py", "moefuse")):
        jobs.append((name, [PYTHON, script, str(tools / tool), *SCRIPT_FLAGS.get(name, [])], {}))
    return jobs


# An emulated CPU for each top rung of aarch64's ladder.  The first has all rungs and runs everything; the others show that
# what they lack is not used.
EMULATED = "aarch64"
AARCH64_CPUS = (("max", "neon_bf16"), ("neoverse-n1", "neon_dotprod"), ("cortex-a57", "neon"))
AARCH64_QUICK = ("conformance_rungs", "conformance_products", "conformance_int4_groups", "conformance_dense",
                 "conformance_sum_reduce", "unit_vectors")
AARCH64_TOO_LONG = ("conformance_layer_chunks",)  # thousands of tokens one by one, on every rung and format
AARCH64_RUNGS = ("conformance_rungs", "unit_vectors")


def emulated(cpu, rung, *prefixes):
    qemu = ["qemu-aarch64", "-cpu", cpu, "-L", "/usr/aarch64-linux-gnu"]
    return [(f"{EMULATED} {cpu}/{p.name}", qemu + [str(p)], {"MOEFUSE_EXPECT_RUNG": rung})
            for p in programs("aarch64", *prefixes)]


def aarch64_whole():
    (cpu, rung), *others = AARCH64_CPUS
    jobs = [job for job in emulated(cpu, rung, "conformance_", "unit_") if not job[1][-1].endswith(AARCH64_TOO_LONG)]
    NOT_RUN.extend(f"aarch64: {name} takes too long under emulation" for name in AARCH64_TOO_LONG)
    for cpu, rung in others:
        jobs += emulated(cpu, rung, *AARCH64_QUICK)
    return jobs


def aarch64_quick():
    """What `make test` runs; nothing, and a line that says why, where the cross compiler could not be had."""
    reason = ROOT / "build" / "aarch64-not-run"
    if reason.exists():
        NOT_RUN.append(f"aarch64: {reason.read_text(errors='replace').strip() or 'tools/setup.sh aarch64 failed'}")
        return []
    (cpu, rung), *others = AARCH64_CPUS
    jobs = emulated(cpu, rung, *AARCH64_QUICK)
    for cpu, rung in others:
        jobs += emulated(cpu, rung, *AARCH64_RUNGS)
    if not jobs:
        NOT_RUN.append("aarch64: build/aarch64 holds no test programs; make test builds them")
    return jobs


NOT_RUN = []
SUITES = {
    "quick": lambda: native("dev", "unit_", "conformance_"),
    "asan": lambda: native("asan", env=ASAN_ENV) + fuzz_replays(),
    "asan-kernels": lambda: native("asan-kernels", env=ASAN_ENV),
    "tsan": lambda: native("tsan", "unit_base", "unit_placement", "engine_", "text_guide", "server_service", "server_calls",
                           "conformance_gate", "conformance_sum_reduce", "conformance_layer", "conformance_experts"),
    "aarch64": aarch64_whole,
    "all": lambda: scripts("dev") + native("dev") + fuzz_replays() + native("asan", env=ASAN_ENV) + aarch64_quick(),
}


def run(job):
    name, command, env = job
    limit = EMULATED_TIMEOUT_S if name.startswith(EMULATED) else TIMEOUT_S
    started = time.time()
    log = LOGS / (re.sub(r"[^A-Za-z0-9_.-]+", "_", name) + ".log")
    try:
        with open(log, "wb") as out:
            code = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                  timeout=limit, env={**os.environ, "CMOCKA_MESSAGE_OUTPUT": "TAP", **env}).returncode
        problem = f"exit status {code}" if code else None
    except subprocess.TimeoutExpired:
        problem = f"no end within {limit} s"
    except OSError as error:
        problem = str(error)
        log.write_text(problem + "\n")
    text = log.read_text(errors="replace")
    passed = len(re.findall(r"^ok \d+", text, re.M))
    skipped = re.findall(r"^not ok \d+ # SKIP (.*)$", text, re.M)  # as cmocka says it
    NOT_RUN.extend(f"{name}: {claim}" for claim in skipped)
    failed = len(re.findall(r"^not ok \d+", text, re.M)) - len(skipped)
    if passed + failed == 0 and not problem:
        passed = 1  # a replay: its exit status is the verdict
    if problem and failed == 0:
        failed = 1
    return name, passed, failed, problem, log, time.time() - started


def told(lines, most=60):
    """What failed and why, wherever it stands in the log, then the log's end."""
    failed = [i for i, line in enumerate(lines) if line.startswith("not ok ") and " # SKIP" not in line]
    shown = sorted({k for i in failed[:10] for k in range(max(0, i - 3), i + 4) if k < len(lines)})
    return [lines[i][:2000] for i in shown] + (["..."] if shown else []) + lines[-most:]


def main():
    suite = sys.argv[1] if len(sys.argv) > 1 else "all"
    if suite not in SUITES:
        sys.exit(f"usage: run_tests.py {' | '.join(SUITES)}")
    LOGS.mkdir(parents=True, exist_ok=True)
    total_passed = total_failed = 0
    jobs = SUITES[suite]()
    workers = min(2, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for name, passed, failed, problem, log, seconds in pool.map(run, jobs):
            total_passed += passed
            total_failed += failed
            print(f"{'FAIL' if failed else 'ok  '} {name}: {passed} passed, {failed} failed ({seconds:.1f} s)", flush=True)
            if failed:
                for line in told(log.read_text(errors="replace").splitlines()):
                    print(f"     | {line}")
                print(f"     ({problem or 'failed lines'}; whole log: {log.relative_to(ROOT)})", flush=True)
    if not jobs:
        total_failed = 1
        print("FAIL no test programs were built")
    for line in NOT_RUN:
        print(f"not run: {line}")
    print(f"{total_passed} passed, {total_failed} failed")
    sys.exit(1 if total_failed else 0)


if __name__ == "__main__":
    main()
