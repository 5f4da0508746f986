# serving.sh - sourced by the scripts that start a server on the GPU: needs `moefuse` and `gpu`, sets `server` and `url`.

# log, then the model and what else `moefuse serve` takes
start_server() {
    local log=$1
    shift
    "$moefuse" serve "$@" --device "$gpu" >"$log" 2>&1 </dev/null &
    server=$!
    for _ in $(seq 300); do
        url=$(grep -o 'ready on http://[0-9.:]*' "$log" | cut -d' ' -f3)
        [ -n "$url" ] && return 0
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    echo "    the server did not get ready:"
    tail -5 "$log" | sed 's/^/    /'
    return 1
}

# MiB of the GPU's memory
in_use() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits 2>/dev/null | head -1; }
