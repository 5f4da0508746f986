#!/usr/bin/env bash
# What docs/cuda.md's table promises of a device that cannot be opened, from the program itself: refusals.sh MOEFUSE
# Each case is one line; MOEFUSE_CUDA_LIBRARY names the library as for every test here.  Needs a GPU of compute capability 8.0 or later
# with 8 GiB to spare; a case that this machine cannot show (no cc: no stand-in for the driver) says so.
set -uo pipefail
moefuse=$1
root=${MOEFUSE_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}
small=$root/models/word-problems
large=$root/bench/configs/qwen3-30b-a3b.json
gpu=cuda
temp=$(mktemp -d)
. "$(dirname "$0")/serving.sh"
trap 'rm -rf "$temp"' EXIT
failed=0
number=0

# name, status, then patterns (grep -E) that the message must have, then -- and the command
refused() {
    local name=$1 want=$2 patterns=() rc missing=
    shift 2
    while [ "$1" != -- ]; do patterns+=("$1"); shift; done
    shift
    number=$((number + 1))
    timeout "${LIMIT:-60}" "$@" >"$temp/out" 2>&1 </dev/null
    rc=$?
    for p in "${patterns[@]}"; do grep -Eq -- "$p" "$temp/out" || missing="$missing [$p]"; done
    if [ "$rc" = "$want" ] && [ -z "$missing" ]; then
        echo "ok $number - $name: $(grep -m 1 error: "$temp/out" | cut -c1-200)"
    else
        echo "not ok $number - $name: status $rc, expected $want;${missing:+ not said:$missing}"
        head -8 "$temp/out" | cut -c1-300 | sed 's/^/    /'
        failed=1
    fi
}

latency=(bench latency --device cuda --load-format dummy --no-progress --input-len 8 --output-len 2 --num-iters 1 --num-iters-warmup 0)
run=(run "$small" --device cuda -p hello --max-tokens 2 --no-progress)

refused "no library" 5 'device cuda: libmoefuse_cuda.so cannot be opened: ' MOEFUSE_CUDA_LIBRARY \
    -- env MOEFUSE_CUDA_LIBRARY="$temp/none.so" "$moefuse" "${run[@]}"
: >"$temp/empty.so"
refused "a library that is empty" 5 'libmoefuse_cuda.so cannot be opened: .*(too short|invalid)' \
    -- env MOEFUSE_CUDA_LIBRARY="$temp/empty.so" "$moefuse" "${run[@]}"
libm=$(ldconfig -p | awk '/libm\.so\.6 .*x86-64|libm\.so\.6 .*AArch64/ {print $NF; exit}')
refused "a library that is not this program's" 4 'device cuda: libmoefuse_cuda.so is of another build \(no entry point; expected [0-9.]+\)' \
    -- env MOEFUSE_CUDA_LIBRARY="${libm:-libm.so.6}" "$moefuse" "${run[@]}"
if command -v cc >/dev/null; then
    mkdir "$temp/old"
    echo 'int moefuse_stand_in;' >"$temp/old.c"
    cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$temp/old/libcuda.so.1" "$temp/old.c"
    refused "a driver that lacks what CUDA needs" 5 'device cuda: no NVIDIA driver, or one older than CUDA [0-9]+\.[0-9]+' \
        -- env LD_LIBRARY_PATH="$temp/old:${LD_LIBRARY_PATH:-}" "$moefuse" "${run[@]}"
else
    echo "# no cc: no stand-in for an old driver"
fi
for hidden in '' -1 99; do
    refused "CUDA_VISIBLE_DEVICES=$hidden" 5 'device cuda: this machine has no NVIDIA GPU that CUDA_VISIBLE_DEVICES names' \
        -- env CUDA_VISIBLE_DEVICES="$hidden" "$moefuse" "${run[@]}"
done
refused "a GPU that is not there" 4 'device cuda:77: this machine has [0-9]+ NVIDIA GPUs?; expected cuda:0 to cuda:[0-9]+' \
    -- "$moefuse" run "$small" --device cuda:77 -p hello --max-tokens 2
refused "a device of no name" 2 "expected one of cpu.cuda.cuda:N.ref; got .cuda:x" -- "$moefuse" run "$small" --device cuda:x -p hello --max-tokens 2
refused "weights past the memory that may be used" 5 'device cuda: weights of [0-9.]+ GiB and activations of [0-9.]+ GiB do not fit: ' \
    'of which 0.05 may be used and [0-9.]+ GiB are in use already' '--gpu-memory-utilization' \
    -- "$moefuse" "${latency[@]}" --gpu-memory-utilization 0.05 "$large"
refused "a cache past it" 5 'kv_cache_memory_bytes: 900000000000; weights and scratch memory leave [0-9]+ of device cuda' \
    -- "$moefuse" "${latency[@]}" --kv-cache-memory-bytes 900000000000 "$small"
refused "a server whose model does not fit ends with the same text" 5 'do not fit' \
    -- "$moefuse" serve --port 0 --device cuda --load-format dummy --gpu-memory-utilization 0.05 "$large"

# ---- a server that is killed in the middle, and started again ----

answer() {
    curl -s -m 20 "http://127.0.0.1:$port/v1/completions" -H 'Content-Type: application/json' \
        -d '{"model":"word-problems","prompt":"Oscar makes 19 pizzas an hour","max_tokens":24,"temperature":0}' |
        grep -o '"text":"[^}]*' | cut -d'"' -f4
}

port=${PORT:-18733}
number=$((number + 1))
before=$(in_use)
restarted=no
if start_server "$temp/first" "$small" --port "$port"; then
    first=$(answer)
    timeout 30 "$moefuse" bench serve "$small" --base-url "http://127.0.0.1:$port" --num-prompts 400 --max-concurrency 16 --no-progress \
        --random-input-len 64 --random-output-len 128 --ignore-eos >"$temp/load" 2>&1 &
    load=$!
    sleep 1
    kill -9 "$server"
    wait "$server" 2>/dev/null
    wait "$load"
    load_rc=$?
    if start_server "$temp/second" "$small" --port "$port"; then
        second=$(answer)
        kill -TERM "$server"
        wait "$server"
        ended=$?
        sleep 0.5
        after=$(in_use)
        [ -n "$first" ] && [ "$first" = "$second" ] && [ "$ended" = 0 ] && [ "$load_rc" != 124 ] &&
            [ $((${after:-0} - ${before:-0})) -le 16 ] && restarted=yes
    fi
fi
kill -9 "$server" 2>/dev/null
if [ $restarted = yes ]; then
    echo "ok $number - a server killed under load starts again and answers alike: \"${first:0:40}\"; GPU memory ${before:-?} MiB before, ${after:-?} after"
else
    echo "not ok $number - a server killed under load: \"${first:-}\", then \"${second:-}\"; load's status ${load_rc:-?}, end's ${ended:-?}, memory ${before:-?} to ${after:-?} MiB"
    failed=1
fi
exit $failed
