#!/usr/bin/env bash
# Everything that needs a GPU, in one go, over what build.sh made:  run.sh BUILD [tests] [models] [program] [sanitizer] [bench]
# models: whole models against the goldens, with golden_test, act_dtype_test and states_test of a CMake build copied to BUILD.
# program: what the program refuses and says, the shipped model's accuracy, a soak, with moefuse of a CMake build copied to BUILD.
# Programs run side by side; a line says how each ended, failures show their first lines.  Logs are left in BUILD/logs.
set -uo pipefail
out=$(cd "$1" && pwd)
shift
what=${*:-tests sanitizer bench}
logs=$out/logs
mkdir -p "$logs"
export MOEFUSE_CONFORMANCE_DEVICE=cuda MOEFUSE_CUDA_LIBRARY=$out/libmoefuse_cuda.so CMOCKA_MESSAGE_OUTPUT=TAP
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}:$out
failed=0

# name seconds command...
start() {
    local name=$1 limit=$2
    shift 2
    ( began=$SECONDS; timeout "$limit" "$@" >"$logs/$name.log" 2>&1; echo "$? $((SECONDS - began))" >"$logs/$name.rc" ) &
    names+=("$name")
}

finish() {
    wait
    for name in "${names[@]}"; do
        read -r rc took <"$logs/$name.rc"
        ok=$(grep -c '^ok ' "$logs/$name.log")
        bad=$(grep -c '^not ok ' "$logs/$name.log")
        echo "$name: $ok passed, $bad failed, status $rc, $took s"
        if [ "$rc" != 0 ]; then
            failed=1
            grep -v '^ok ' "$logs/$name.log" | cut -c1-400 | head -${SHOW:-14} | sed 's/^/    /'
        fi
    done
    names=()
}
names=()

# What the copies of staging.c cannot hold (tensors of 8 GiB and more), and what opens device cpu.
tests() {
    start gate ${LIMIT:-170} "$out/gate"
    start gate_api ${LIMIT:-170} "$out/gate_api"
    start align ${LIMIT:-170} "$out/align"
    start sum_reduce ${LIMIT:-170} "$out/sum_reduce"
    start invariants ${LIMIT:-170} "$out/invariants"
    start traps ${LIMIT:-170} "$out/traps" -offsets_are_64_bit
    start experts ${LIMIT:-170} "$out/experts"
    start experts_bits ${LIMIT:-170} "$out/experts_bits" -threads -experts_run_names -device_names
    start experts_units ${LIMIT:-170} "$out/experts_units"
    start layer ${LIMIT:-170} "$out/layer"
    start layer_chunks ${LIMIT:-170} "$out/layer_chunks" -workspace_does_not_grow
    start capture ${LIMIT:-170} "$out/capture"
    start pick ${LIMIT:-170} "$out/pick"
    start attend_once ${LIMIT:-170} "$out/attend_once"
    start router_once ${LIMIT:-170} "$out/router_once"
    start combine_once ${LIMIT:-170} "$out/combine_once"
    start sigmoid_sweep ${LIMIT:-170} "$out/sigmoid_sweep"
    start dense ${LIMIT:-170} "$out/dense"
    start attention ${LIMIT:-170} "$out/attention" -attention_needs_no_more
    start attention_bits ${LIMIT:-170} "$out/attention_bits"
    start delta_net ${LIMIT:-170} "$out/delta_net"
    finish
}

models() {
    export MOEFUSE_GOLDEN_DEVICE=cuda MOEFUSE_SOURCE_DIR=${MOEFUSE_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}
    [ -x "$out/golden_test" ] || { echo "models: no golden_test in $out"; return; }
    start goldens ${LIMIT:-170} "$out/golden_test" logits_and_greedy
    start goldens-chunks ${LIMIT:-170} "$out/golden_test" decoding_and_chunked
    start goldens-company ${LIMIT:-170} "$out/golden_test" a_text_among
    start goldens-fusion ${LIMIT:-170} "$out/golden_test" fused_and_unfused replicas
    start goldens-counts ${LIMIT:-170} "$out/golden_test" a_row_of_nan expert_load
    start dtypes ${LIMIT:-170} "$out/act_dtype_test"
    start states ${LIMIT:-170} "$out/states_test"
    finish
}

# One after the other: they look at the GPU's memory.
program() {
    [ -x "$out/moefuse" ] || { echo "program: no moefuse in $out"; return; }
    local here
    here=$(cd "$(dirname "$0")" && pwd)
    start refusals ${LIMIT:-170} "$here/refusals.sh" "$out/moefuse"
    finish
    start whole_models ${LIMIT:-170} "$here/whole_models.sh" "$out/moefuse"
    finish
}

for part in $what; do
    case $part in
    tests) tests ;;
    models) models ;;
    program) program ;;
    sanitizer) "$(dirname "$0")/sanitize.sh" "$out" || failed=1 ;;
    few) "$out/cuda_bench" experts --few 2>&1 ;;
    bench) "$out/cuda_bench" ${BENCH_FLAGS:-} 2>&1 | tee "$logs/bench.log" ;;
    esac
done
exit $failed
