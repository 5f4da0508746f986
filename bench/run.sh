#!/usr/bin/env bash
# run.sh - one sitting: this machine's ceilings, the kernels by shape and format, latency of cut models, the shipped model's
# decoding with shared experts in slots and apart.  Appends to bench/results/cpu.csv, then renews the README's tables.
#
#   bench/run.sh [--quick] [--keep-readme]      BUILD=build/release THREADS=N
#
# Wants a quiet machine: other load shows up as lower figures, never as higher ones.  5 to 20 minutes; --quick 2 to 5.
set -euo pipefail
cd "$(dirname "$0")/.."
quick=false; readme=true
for word in "$@"; do
    case $word in
        --quick) quick=true ;;
        --keep-readme) readme=false ;;
        *) echo "run.sh: unknown word $word; known: --quick, --keep-readme" >&2; exit 2 ;;
    esac
done
moefuse=${BUILD:-build/release}/bin/moefuse
out=bench/results/cpu.csv
header=date,commit,cpu,isa,threads,what,shape,dtype,T,figure,unit,ceiling,share
mkdir -p bench/results
[ -f "$out" ] || echo "$header" > "$out"
[ "$(head -1 "$out")" = "$header" ] || { echo "run.sh: $out: expected the columns $header" >&2; exit 1; }
date=$(date +%F)
commit=$(git rev-parse --short HEAD)
git diff --quiet HEAD -- src include || commit=$commit+
cpu=$(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -1 | tr ',' ' ')
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT

step() { echo "== $* ($((SECONDS / 60)) min)" >&2; }

# ---- the machine ----
step ceilings
"$moefuse" doctor > "$temp/doctor"
cat "$temp/doctor"
threads=${THREADS:-$(sed -n 's/^cpu .*; \([0-9]*\) threads* by default$/\1/p' "$temp/doctor")}
# The highest level in use: the last line that says so.
isa=$(awk '$1 == "levels" {$1 = ""; $0 = $0} $2 == "used" {used = $1} END {print used}' "$temp/doctor")
record() { # threads what shape dtype T figure unit ceiling share
    echo "$date,$commit,$cpu,$isa,$1,$2,$3,$4,$5,$6,$7,$8,$9" >> "$out"
}

# The last column is all threads.
all=$(awk '/default$/ {sub(/.*; /, ""); print $1}' "$temp/doctor")
awk '$1 == "small" && $2 == "pages" {print "read|4 KiB pages|" $NF "|GB/s"}
     $1 == "huge" && $2 == "pages" {print "read|huge pages|" $NF "|GB/s"}
     NF >= 4 && ($2 $3 == "f32fma" || $2 $3 == "bf16dot" || $2 $3 == "int8dot") {print "rate " $2 " " $3 "|" $1 "|" $NF "|10^9/s"}
    ' "$temp/doctor" | while IFS='|' read -r what shape figure unit; do
    record "$all" "$what" "$shape" - "" "$figure" "$unit" "" ""
done

# ---- kernels ----
kernels() { # flags of `bench kernels`
    rm -f "$temp/kernels.csv"
    "$moefuse" bench kernels --threads "$threads" --csv "$temp/kernels.csv" "$@"
    # In: op,shape,dtype,act_dtype,routing,isa,threads,T,repeats,experts,us,us_min,p10,p90,GB/s,GFLOP/s,ceiling,unit,share,ratio,of
    awk -F, -v head="$date,$commit,$cpu" 'NR > 1 {
        what = $1 ($5 == "skewed" ? " skewed" : "")
        base = head "," $6 "," $7 ","
        if ($18 == "") print base what "," $2 "," $3 "," $8 "," $11 ",us,,"
        else print base what "," $2 "," $3 "," $8 "," ($18 == "GB/s" ? $15 : $16) "," $18 "," $17 "," $19
        if ($20 > 0) print base (($1 == "gate") ? "gate: ref over cpu (one core each)" : "layer: SERIAL over SLOT") \
            "," $2 "," $3 "," $8 "," $20 ",ratio,,"
    }' "$temp/kernels.csv" >> "$out"
}
if $quick; then
    shapes="v2-lite v3-tp8"; formats=bf16,fp8_block,int8_channel,int4_group; tokens=1,16,256; seconds=0.3
else
    shapes="v2-lite qwen3-30b v3-tp8"; formats=bf16,fp8_block,int8_channel,int4_group,mxfp4; tokens=1,4,16,64,256,1024; seconds=0.7
fi
for shape in $shapes; do
    step "kernels $shape"
    kernels --op experts --shape "$shape" --format "$formats" --tokens "$tokens" --seconds "$seconds"
    kernels --op experts --shape "$shape" --format int8_channel,int4_group --act-quant int8 --tokens "$tokens" --seconds "$seconds"
done
step "layer, gate, sum-reduce"
kernels --op layer --shape v2-lite --format bf16 --tokens "$tokens" --seconds "$seconds"
$quick || kernels --op layer --shape v3-tp8 --format fp8_block --tokens "$tokens" --seconds "$seconds"
$quick || kernels --op experts --shape qwen3-30b --format bf16 --routing skewed --tokens "$tokens" --seconds "$seconds"
kernels --op gate --shape v3-tp8,qwen3-30b --tokens 1,256,65536 --seconds "$seconds"
$quick || kernels --op sum-reduce,attention --shape v2-lite,qwen3-30b --seconds "$seconds"

# ---- models, random weights ----
key() { sed -n "s/^  \"$1\": \([0-9.e+-]*\).*/\1/p" "$temp/latency.json"; }
latency() { # config dtype input output batch iterations flags...
    local config=$1 dtype=$2 input=$3 output=$4 batch=$5 iterations=$6; shift 6
    step "latency $config $dtype, batch $batch"
    if ! "$moefuse" bench latency "bench/configs/$config.json" --threads "$threads" --input-len "$input" --output-len "$output" \
        --batch-size "$batch" --num-iters "$iterations" --num-iters-warmup 1 --output-json "$temp/latency.json" "$@" \
        2> "$temp/log"; then
        tail -2 "$temp/log" >&2   # most often: too little memory for this config
        return
    fi
    record "$threads" "prefill $input" "$config" "$dtype" "$((input * batch))" "$(key prefill_tokens_per_second)" tok/s "" ""
    record "$threads" "decode batch $batch" "$config" "$dtype" "$batch" "$(key decode_tokens_per_second)" tok/s "" ""
}
latency deepseek-v3-tp8-1l fp8_block 512 32 1 3
latency deepseek-v2-lite-8l bf16 128 16 1 2 --dtype bfloat16
if ! $quick; then
    latency deepseek-v2-lite-8l bf16 512 32 4 2 --dtype bfloat16
    latency deepseek-v2-lite-8l int4_group 512 32 1 2 --dtype bfloat16 --quantization int4
    latency qwen3-30b-a3b-12l bf16 512 32 1 2 --dtype bfloat16
    latency qwen3-30b-a3b-12l bf16 64 16 16 1 --dtype bfloat16
    latency qwen3-30b-a3b-12l int4_group 512 32 1 2 --dtype bfloat16 --quantization int4
    latency glm-4.5-air-cut bf16 256 32 1 2 --dtype bfloat16
fi

# ---- the shipped model: shared experts in slots and apart take turns, so that drift treats both alike ----
prompt="Oscar makes 19 pizzas an hour for 9 hours. Nina makes 14 pizzas an hour for 7 hours. How many more pizzas does Oscar have than Nina?"
median() { sort -n "$1" | awk '{v[NR]=$1} END {printf "%.4g", NR % 2 ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2}'; }
decode_rate() { # model threads flags...
    local model=$1 count=$2; shift 2
    "$moefuse" run "$model" -p "$prompt" --threads "$count" -n 800 --ignore-eos --json "$@" 2>/dev/null |
        sed -n 's/.*"predicted_per_second": *\([0-9.]*\).*/\1/p' | tail -1
}
step "the shipped model"
rounds=5; $quick && rounds=3
for count in 1 "$threads"; do
    for copy in bf16 fp8; do
        model=models/word-problems; [ $copy = fp8 ] && model=$model/fp8
        rm -f "$temp"/fused "$temp"/separate
        for _ in $(seq "$rounds"); do
            decode_rate $model "$count" >> "$temp/fused"
            decode_rate $model "$count" --disable-shared-experts-fusion --disable-fused-gate >> "$temp/separate"
        done
        paste "$temp/fused" "$temp/separate" | awk '{print $1 / $2}' > "$temp/ratio"
        record "$count" "decode batch 1 fused" word-problems $copy 1 "$(median "$temp/fused")" tok/s "" ""
        record "$count" "decode batch 1 separate" word-problems $copy 1 "$(median "$temp/separate")" tok/s "" ""
        record "$count" "fused over separate (pairs)" word-problems $copy 1 "$(median "$temp/ratio")" ratio "" ""
    done
    [ "$threads" = 1 ] && break
done
if $readme; then python3 tools/bench_table.py; fi
step "done: $out"
