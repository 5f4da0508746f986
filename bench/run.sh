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
isa=$(build/release/bin/moefuse run -p x -n 1 2>&1 >/dev/null | sed -n 's/^device *cpu \([^,]*\).*/\1/p' | tr -d ' ')
prompt="Oscar makes 19 pizzas an hour for 9 hours. Nina makes 14 pizzas an hour for 7 hours. How many more pizzas does Oscar have than Nina?"

median() { sort -n | awk '{v[NR]=$1} END {print NR % 2 ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2}'; }

for threads in 1 2; do
    for copy in bf16 fp8; do
        model=models/word-problems; [ $copy = fp8 ] && model=$model/fp8
        for fusion in fused separate; do
            flag=(); [ $fusion = separate ] && flag=(--disable-shared-experts-fusion --disable-fused-gate)
            figure=$(for _ in $(seq "$rounds"); do
                build/release/bin/moefuse run $model -p "$prompt" --threads $threads -n 400 --ignore-eos --json "${flag[@]}" 2>/dev/null |
                    sed -n 's/.*"predicted_per_second": *\([0-9.]*\).*/\1/p;s/.*"predicted_per_second":\([0-9.]*\).*/\1/p' | tail -1
            done | median)
            echo "decode batch 1  $copy  $threads threads  $fusion: $figure tok/s (median of $rounds)"
            echo "$date,$commit,$cpu,$isa,$threads,decode batch 1 $fusion,word-problems,$copy,$figure,tok/s" >> "$out"
        done
    done
done
if [ -x build/dev/bin/moefuse_bench_kernels ]; then
    build/dev/bin/moefuse_bench_kernels
fi
