#!/usr/bin/env bash
# compute-sanitizer over every kernel, on as little as each takes:  sanitize.sh BUILD [memcheck] [racecheck] [synccheck] [initcheck]
# BUILD is what build.sh made.  A line a run; any finding, error or warning, fails it, and its first ones are shown.  Nothing is
# filtered.  COMPUTE_SANITIZER names another program than the PATH's, SANITIZE_JOBS how many run side by side, SANITIZE_LIMIT the
# seconds that one may take, ONLY a pattern (grep -E) of names.  Logs are left in BUILD/logs.
set -uo pipefail
out=$(cd "$1" && pwd)
shift
export tools=${*:-memcheck racecheck synccheck initcheck}
export logs=$out/logs check=${COMPUTE_SANITIZER:-compute-sanitizer} limit=${SANITIZE_LIMIT:-170}
export MOEFUSE_CONFORMANCE_DEVICE=cuda MOEFUSE_CUDA_LIBRARY=${MOEFUSE_CUDA_LIBRARY:-$out/libmoefuse_cuda.so} CMOCKA_MESSAGE_OUTPUT=TAP
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}:$out
export MOEFUSE_CONFORMANCE=small MOEFUSE_CUDA_MULTIPROCESSORS=12 MOEFUSE_CUDA_REPEATS=2 MOEFUSE_CUDA_ROUNDS=1 MOEFUSE_CUDA_NO_FAULTS=1
mkdir -p "$logs"
cd "$out" || exit 2

# name, then a program and its claims: the longest first
runs() {
    cat <<'R'
whole experts_units experts_of_whole
8-bit experts_units experts_of_8_and_16
layer experts_units layer_of_whole
attention attention_bits attention_bits_do_not_depend_on_the_rest
fp8 experts_units experts_of_fp8
4-bit experts_units experts_of_4
many experts_units experts_of_many
capture capture a_captured where_slots
linear dense dense_linear_of dense_rms_norm
delta-net delta_net delta_net_writes_no_state
row attend_once grouped_queries_made
tiles attend_once queries_and_keys
norms capture an_offered
router router_once
pick pick small_vocabularies
gate gate worked_row usual_models
align align worked_example wrong_histogram
combine sum_reduce every_hidden
R
}

one() { # tool name program claim...
    local name=$1-$2 log=$logs/$1-$2.log rc began=$SECONDS said
    timeout "$limit" "$check" --tool "$1" --error-exitcode 9 --print-limit 1000 "./$3" "${@:4}" >"$log" 2>&1
    rc=$?
    said=$(grep -o 'SUMMARY: .*' "$log" | tail -1 | cut -d' ' -f2-)
    if [ $rc = 0 ] && grep -q '^ok ' "$log" && ! grep -q '^=========.*\(Warning\|Error\):' "$log"; then
        echo "$name: $(grep -c '^ok ' "$log") claims, ${said:-nothing found}, $((SECONDS - began)) s"
        return 0
    fi
    echo "$name: status $rc, ${said:-no summary}, $((SECONDS - began)) s"
    grep -A3 '^=========.*\(reported\|Barrier error\|Uninitialized\|Invalid\|Warning\|Error\)\|^not ok' "$log" | grep -v 'Host\|Saved' |
        cut -c1-200 | awk '{ k = $0; gsub(/[0-9]+/, "N", k); if (seen[k]++ < 1) print "    " $0 }' | head -"${SHOW:-14}"
    return 1
}
export -f one

"$check" --version | grep Version || exit 2
version=$("$check" --version | grep -o '20[0-9][0-9]\.[0-9]*' | head -1)
[ "$(printf '%s\n' 2026.4 "$version" | sort -V | head -1)" = 2026.4 ] || echo "# before 2026.4 the tools have findings of their own: docs/cuda.md"
for tool in $tools; do
    runs | grep -E "^[^ ]*(${ONLY:-})[^ ]* " | sed "s/^/$tool /"
done | xargs -P "${SANITIZE_JOBS:-$(($(nproc) / 2 + 1))}" -L1 bash -c 'one "$@"' _ || { echo "sanitize: findings, or runs that did not end"; exit 1; }
echo "sanitize: no finding"
