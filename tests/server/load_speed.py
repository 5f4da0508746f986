"""What serving costs beside the engine alone, and what requests gain from running together.  Groups of load_test.py that only mean
something on a release build and an idle machine."""
import json
import os
import random
import statistics
import subprocess
import tempfile

from load_driver import Client, Load, figure, request_bytes
from serving import ROOT, MODEL, Server, claim

INPUT, OUTPUT = 32, 128


def bench_latency(program, threads):
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([program, "bench", "latency", MODEL, "--threads", str(threads), "--batch-size", "1", "--input-len", str(INPUT), "--output-len",
                        str(OUTPUT), "--num-iters-warmup", "3", "--num-iters", "20", "--output-json", file.name], check=True, capture_output=True)
        with open(file.name) as f:
            return json.load(f)["latencies"]


def served(load, rng, num, vocab=1000, tokens=OUTPUT, stream=True):
    times = []
    for _ in range(num):
        c = Client(request_bytes({"prompt": [rng.randrange(10, vocab) for _ in range(INPUT)], "max_tokens": tokens, "ignore_eos": True,
                                  "temperature": 0, "stream": stream}))
        load.start(c)
        load.finish(60)
        if c.complete and c.status == 200:
            times.append(c.ended - c.started)
    return times


def overhead(program, quick):
    """One request at a time, streamed, against the engine in one process; taken in turns, since machines drift."""
    rng = random.Random(5)
    alone, behind, whole = [], [], []
    with Server(program, "--threads", "1") as server:
        load = Load(server.port)
        served(load, rng, 5)
        for _ in range(4):
            alone += bench_latency(program, 1)
            behind += served(load, rng, 20)
            whole += served(load, rng, 20, stream=False)
    a, b, w = (statistics.median(x) / OUTPUT * 1e6 for x in (alone, behind, whole))
    figure("per token alone (bench latency, 1 thread)", f"{a:.1f} us")
    figure("per token behind the server, streamed, concurrency 1", f"{b:.1f} us: {100 * (b / a - 1):+.1f} %", "<= 3 %")
    figure("per token behind the server, not streamed", f"{w:.1f} us: {100 * (w / a - 1):+.1f} %")
    claim("serving costs at most 3 % per token", b <= 1.03 * a, (a, b))


def throughput(program, quick):
    """Sixteen requests at a time against one, where weights and not the model's small size decide."""
    rng = random.Random(6)
    config = os.environ.get("LOAD_CONFIG", str(ROOT / "bench" / "configs" / "deepseek-v2-lite-8l.json"))
    more = os.environ.get("LOAD_FLAGS", "").split()
    with Server(program, "--load-format", "dummy", "--max-model-len", "512", *more, model=config) as server:
        load, rates = Load(server.port), {}
        served(load, rng, 1, tokens=4)
        for concurrency in (1, 16):
            num, tokens = (3, 24) if concurrency == 1 else (32, 24)

            def make():
                return Client(request_bytes({"prompt": [rng.randrange(10, 30000) for _ in range(8)], "max_tokens": tokens, "ignore_eos": True,
                                             "stream": True}))

            clients = []
            for _ in range(num // concurrency):  # waves: all decode together
                wave = [load.start(make()) for _ in range(concurrency)]
                load.finish(120)
                clients += wave
            good = [c for c in clients if c.complete and c.status == 200]
            claim(f"all are answered at concurrency {concurrency}", len(good) == len(clients), [(c.status, c.tail[-200:]) for c in clients][:2])
            # The rate of decoding: from the first token of all to the last.
            gaps = [c.times[-2] - c.times[0] for c in good]
            rates[concurrency] = concurrency * (tokens - 1) / statistics.mean(gaps)
            figure(f"decode at concurrency {concurrency} ({os.path.basename(config)}, dummy weights)", f"{rates[concurrency]:.1f} tokens/s")
        ratio = rates[16] / rates[1]
        figure("throughput at 16 against 1", f"{ratio:.2f} x", ">= 4 x")
        claim("sixteen together make four times the tokens of one", ratio >= 4, rates)


GROUPS = [overhead, throughput]
