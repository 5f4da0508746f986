#!/usr/bin/env bash
# run.sh SECONDS - every libFuzzer target for SECONDS of new input, starting from the committed corpus.  A crash stops the
# run; its input is left in build/fuzz/crashes.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60}
mkdir -p build/fuzz/crashes
for target in build/fuzz/bin/fuzz/fuzz_*; do
    name=$(basename "$target"); name=${name#fuzz_}
    new=build/fuzz/new-$name
    mkdir -p "$new"
    echo "== $name: $seconds s"
    "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -artifact_prefix=build/fuzz/crashes/ \
        "$new" "tests/fuzz/corpus/$name" 2>&1 | grep -E "DONE|SUMMARY|ERROR|stat::|Done" || true
    test "${PIPESTATUS[0]}" -eq 0
done
