#!/usr/bin/env bash
# The shipped model on the GPU, as its users run it: whole_models.sh MOEFUSE [accuracy] [soak] [company]
# accuracy: 1,000 word problems on the GPU and on the CPU, in bf16 and in f32: every transcript is the same, all but 3 % are right.
# soak: 14,000 steps of a server under sampling: what the process and the GPU hold stays where it was after the first 3,000.
# company: what a request gets alone, greedy and with a seed, it gets among 31 others that come and go.
set -uo pipefail
moefuse=$1
shift
root=${MOEFUSE_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}
model=$root/models/word-problems
gpu=${MOEFUSE_CONFORMANCE_DEVICE:-cuda}
temp=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill -9 $server 2>/dev/null; rm -rf "$temp"' EXIT
failed=0
number=0
. "$(dirname "$0")/serving.sh"

claim() { # name passed-or-not detail
    number=$((number + 1))
    if [ "$2" = yes ]; then echo "ok $number - $1: $3"; else echo "not ok $number - $1: ${2:-no}: $3"; failed=1; fi
}

accuracy() {
    local dtype device
    for dtype in bfloat16 float32; do
        for device in "$gpu" cpu; do
            "$moefuse" eval "$model" --data "$model/eval/word_problems.jsonl" --chat --max-tokens 256 --device $device --dtype $dtype \
                --no-progress --min-accuracy 0.97 -o "$temp/$device-$dtype" >"$temp/log" 2>&1 || sed 's/^/    /' "$temp/log"
            tail -1 "$temp/log"
        done
        claim "transcripts in $dtype" "$(python3 - "$temp/$gpu-$dtype" "$temp/cpu-$dtype" <<'P'
import json, sys
gpu, cpu = ([(i["question"], i["output"], i.get("token_ids")) for i in json.load(open(p))["results"][0]["items"]] for p in sys.argv[1:])
different = sum(a != b for a, b in zip(gpu, cpu)) + abs(len(gpu) - len(cpu))
print("yes" if gpu and not different else f"{different} of {len(cpu)} differ")
P
)" "GPU and CPU"
    done
}

stop_server() {
    kill -TERM "$server"
    wait "$server"
    local rc=$?
    server=
    claim "the server ends when it is told to" "$([ $rc = 0 ] && echo yes)" "status $rc"
}

load() { # requests concurrency
    "$moefuse" bench serve "$model" --base-url "$url" --num-prompts "$1" --max-concurrency "$2" --random-input-len 48 --random-output-len 128 \
        --random-range-ratio 0.5 --ignore-eos --temperature 0.8 --no-progress --seed "$3" --json 2>>"$temp/errors" |
        python3 -c 'import json, sys; d = json.load(sys.stdin); print(d["completed"], d["failed"], d["total_output_tokens"])'
}

soak() {
    start_server "$temp/server" "$model" --port 0 || { claim "the server starts" no ""; return; }
    local warm=400 first last memory rss rss_last memory_last
    first=$(load "$warm" 16 1) # graphs of all sizes are noted meanwhile
    memory=$(in_use)
    rss=$(awk '/VmRSS/ {print $2}' /proc/$server/status)
    last=$(load "${SOAK_REQUESTS:-1400}" 16 2)
    memory_last=$(in_use)
    rss_last=$(awk '/VmRSS/ {print $2}' /proc/$server/status)
    read -r done_first failed_first _ <<<"$first"
    read -r done_last failed_last tokens <<<"$last"
    claim "all requests end" "$([ "$done_first" = $warm ] && [ "$done_last" = "${SOAK_REQUESTS:-1400}" ] && [ "$failed_first$failed_last" = 00 ] && echo yes)" \
        "$done_first and $done_last done, $failed_first and $failed_last failed, $tokens tokens, about $((tokens / 16)) steps"
    claim "memory does not grow" "$([ $((${memory_last:-0} - ${memory:-0})) -le 0 ] && [ $((rss_last - rss)) -le 4096 ] && echo yes)" \
        "GPU $memory then $memory_last MiB, process $rss then $rss_last KiB"
    claim "no invariant broke" "$(curl -s "$url/metrics" | grep -q '^moefuse:kv_invariant_violations_total.* 0$' && echo yes)" "moefuse:kv_invariant_violations_total"
    stop_server
}

company() {
    start_server "$temp/server" "$model" --port 0 --no-enable-prefix-caching || { claim "the server starts" no ""; return; }
    claim "a request's tokens do not depend on its company" "$(python3 - "$url" <<'P'
import concurrent.futures, json, sys, urllib.request
url = sys.argv[1]
def ask(i):
    body = {"model": "word-problems", "prompt": [(i * 37 + k * 11) % 200 + 10 for k in range(5 + i * 7 % 90)], "max_tokens": 20 + i * 13 % 100,
            "ignore_eos": True, "return_token_ids": True, "temperature": 0 if i % 2 else 0.9, "top_p": 0.95, "seed": i}
    r = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(r, timeout=60))["choices"][0]["token_ids"]
alone = [ask(i) for i in range(64)]
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    among = list(pool.map(ask, range(64)))
wrong = [i for i in range(64) if alone[i] != among[i]]
print("yes" if not wrong else f"requests {wrong[:8]} differ")
P
)" "64 requests, greedy and with seeds, alone and 32 at once"
    stop_server
}

for part in ${*:-accuracy company soak}; do
    case $part in
    accuracy | soak | company) $part ;;
    *) echo "whole_models.sh: unknown word $part" >&2; exit 2 ;;
    esac
done
[ ! -s "$temp/errors" ] || sed 's/^/    /' "$temp/errors"
exit $failed
