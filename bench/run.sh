#!/usr/bin/env bash
# run.sh - this machine's figures: the experts kernels by format, then decoding with the shipped model, fused and not.
# Appends to bench/results/cpu.csv: date, commit, cpu, isa, threads, what, shape, dtype, figure, unit (medians of ROUNDS runs).
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${ROUNDS:-5}
out=bench/results/cpu.csv
mkdir -p bench/results
[ -f "$out" ] || echo "date,commit,cpu,isa,threads,what,shape,dtype,figure,unit" > "$out"
date=$(date +%F); commit=$(git rev-parse --short HEAD)
cpu=$(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -1)
isa=$(build/release/bin/moefuse run -p x -n 1 2>&1 >/dev/null | sed -n 's/^device *cpu *\([^ ,]*\).*/\1/p')
prompt="Oscar makes 19 pizzas an hour for 9 hours. Nina makes 14 pizzas an hour for 7 hours. How many more pizzas does Oscar have than Nina?"

median() { sort -n "$1" | awk '{v[NR]=$1} END {printf "%.4g", NR % 2 ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2}'; }
decode_rate() { # model threads flags...
    local model=$1 threads=$2; shift 2
    build/release/bin/moefuse run "$model" -p "$prompt" --threads "$threads" -n 800 --ignore-eos --json "$@" 2>/dev/null |
        sed -n 's/.*"predicted_per_second": *\([0-9.]*\).*/\1/p' | tail -1
}
record() { # threads what shape dtype figure unit
    echo "$date,$commit,$cpu,$isa,$1,$2,$3,$4,$5,$6" >> "$out"
    echo "$2  $3  $4  $1 threads: $5 $6"
}

# Fused and separate take turns, so that a machine whose speed drifts treats both alike.
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
for threads in 1 2; do
    for copy in bf16 fp8; do
        model=models/word-problems; [ $copy = fp8 ] && model=$model/fp8
        for _ in $(seq "$rounds"); do
            decode_rate $model $threads >> "$temp/fused"
            decode_rate $model $threads --disable-shared-experts-fusion --disable-fused-gate >> "$temp/separate"
        done
        paste "$temp/fused" "$temp/separate" | awk '{print $1 / $2}' > "$temp/ratio"
        record $threads "decode batch 1 fused" word-problems $copy "$(median "$temp/fused")" tok/s
        record $threads "decode batch 1 separate" word-problems $copy "$(median "$temp/separate")" tok/s
        record $threads "fused over separate (pairs)" word-problems $copy "$(median "$temp/ratio")" ratio
        rm "$temp"/fused "$temp"/separate "$temp"/ratio
    done
done

# The experts kernels at DeepSeek-V2-Lite's shape against the read loop of the same run.
for format in bf16 fp8_block int8_channel int4_group; do
    build/dev/bin/moefuse_bench_kernels --format $format --tokens 1 > "$temp/kernels" || continue
    cat "$temp/kernels"
    ceiling=$(sed -n 's/^# read ceiling.*: \([0-9.]*\) GB.*/\1/p' "$temp/kernels")
    rate=$(sed -n 's/.*",1,[0-9.]*,[0-9.]*,\([0-9.]*\),.*/\1/p' "$temp/kernels" | head -1)
    echo "$date,$commit,$cpu,$isa,2,experts T=1 (read loop $ceiling GB/s),v2-lite,$format,$rate,GB/s" >> "$out"
done
