"""The server under load, in figures: many clients, dropped ones, slow ones, more than it can do, the end of it.

    load_test.py PATH/TO/moefuse [--quick] [--json FILE] [SUBSTRING...]     the substrings choose groups

--quick is what `make test` runs: the same groups in small, where counts and invariants decide and no time does.  Without it,
on a release build and an idle machine, the goals themselves are claims, and a table of the figures ends the output."""
import itertools
import json
import pathlib
import random
import re
import signal
import sys
import time

import load_faults
import load_speed
from load_driver import (MIB, Client, Load, PinnedServer, chat, claim_nothing_left, completion, figure, figures, percentile, reset,
                         settle, warm)
from serving import claim, counts, plan


# ---- many streams ------------------------------------------------------------------------------------------------------


def many_streams(program, quick):
    num = 100 if quick else 1000
    with PinnedServer(program, "--kv-cache-memory-bytes", str(32 * MIB)) as server:
        warm(server, 5 if quick else 200)
        before = settle(server)
        idle_rss, idle_fds = server.rss(), server.descriptors()
        load = Load(server.port)
        clients = [load.start(Client(chat(i, 15 if quick else 60, stream=True))) for i in range(num)]
        peak_rss, started = idle_rss, time.time()
        peak_connections = 0
        while load.live and time.time() - started < 900:
            load.turn(0.1)
            rss = server.rss()
            peak_rss = max(peak_rss, rss)
            peak_connections = max(peak_connections, server.count_descriptors() - idle_fds)
        seconds = time.time() - started
        good = [c for c in clients if c.complete and c.status == 200]
        claim(f"{num} streams at once all complete", len(good) == num,
              [(c.status, c.problem, c.tail[-200:]) for c in clients if c not in good][:5])
        limit = 64 * MIB + num * 65536
        figure(f"{num} concurrent streams: completed", f"{len(good)} in {seconds:.1f} s, {sum(c.events for c in clients) / seconds:.0f} events/s",
               "all")
        figure("resident memory above idle", f"{(peak_rss - idle_rss) / MIB:.1f} MiB at {peak_connections} connections",
               f"<= {limit / MIB:.0f} MiB")
        claim("in memory of 64 MiB and 64 KiB each", peak_rss - idle_rss <= limit, (peak_rss, idle_rss))
        claim_nothing_left(server, before, "many streams")
        fds = server.descriptors()
        figure("descriptors after them", f"{fds - idle_fds:+d}", "+-0")
        claim("every descriptor is back", abs(fds - idle_fds) <= 1, (fds, idle_fds))
        claim("the server ends with 0", server.stop() == 0, server.log)


# ---- connections that go ------------------------------------------------------------------------------------------------


def half_things(rng):
    whole = completion(rng.randrange(1000), 20, stream=True)
    kind = rng.randrange(6)
    if kind == 0:
        return b""
    if kind == 1:
        return rng.randbytes(rng.randrange(1, 600))
    if kind == 2:
        return whole[:rng.randrange(1, len(whole))]
    if kind == 3:
        return b"GET /health HTTP/1.1\r\nHost: x\r\n" * rng.randrange(1, 3)
    if kind == 4:
        return b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"
    return whole


def dropped_connections(program, quick):
    num = 1500 if quick else 10000
    rng = random.Random(3)
    with PinnedServer(program, "--kv-cache-memory-bytes", str(32 * MIB)) as server:
        warm(server, 5 if quick else 200)
        before = settle(server)
        idle_rss, idle_fds, started = server.rss(), server.descriptors(), time.time()
        open_sockets = []
        for _ in range(num):
            s = server.connect()
            s.settimeout(5)
            try:
                s.sendall(half_things(rng))
            except OSError:
                pass
            open_sockets.append(s)
            if len(open_sockets) > rng.randrange(1, 200):  # some at once, in any order
                s = open_sockets.pop(rng.randrange(len(open_sockets)))
                reset(s) if rng.random() < 0.5 else s.close()
        for s in open_sockets:
            reset(s) if rng.random() < 0.5 else s.close()
        seconds = time.time() - started
        m = claim_nothing_left(server, before, f"{num} dropped connections")
        fds, rss = server.descriptors(), server.rss()
        figure(f"{num} connections opened and dropped", f"{num / seconds:.0f}/s; descriptors {fds - idle_fds:+d}, "
               f"resident {(rss - idle_rss) / MIB:+.1f} MiB", "+-8, +-32 MiB")
        claim("descriptors are back", abs(fds - idle_fds) <= 8, (fds, idle_fds))
        claim("so is memory", rss - idle_rss <= 32 * MIB, (rss, idle_rss))
        claim("an answer comes as before", server.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).status == 200, m)
        claim("the server ends with 0", server.stop() == 0, server.log)


def idle_connections(program, quick):
    num = 500 if quick else 5000
    with PinnedServer(program) as server:
        sockets = []
        ask = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        for _ in range(num):
            s = server.connect()
            s.sendall(ask)
            sockets.append(s)
        claim(f"{num} kept connections are answered", all(s.recv(4096).startswith(b"HTTP/1.1 200") for s in sockets))
        rng, times = random.Random(1), []
        for _ in range(300 if quick else 3000):
            s = rng.choice(sockets)
            started = time.perf_counter()
            s.sendall(ask)
            s.recv(4096)
            times.append(time.perf_counter() - started)
        figure(f"/health beside {num} idle connections", f"p50 {percentile(times, 50) * 1e3:.2f} ms, p99 {percentile(times, 99) * 1e3:.2f} ms, "
               f"{server.rss() / MIB:.0f} MiB resident", "p99 <= 50 ms")
        claim("health answers beside them", quick or percentile(times, 99) <= 0.05, percentile(times, 99))
        for s in sockets:
            s.close()
        m = settle(server)
        claim("and they are gone when they go", m["moefuse:http_connections"] <= 1, m["moefuse:http_connections"])


# ---- more than it can do -------------------------------------------------------------------------------------------------


def measured(what, found, seconds):
    """(goodput, times of first tokens)"""
    clients, in_time = found
    good = [c for c in clients if c.complete and c.status == 200]
    ttft = [c.ttft for c in good]
    figure(what, f"goodput {in_time / seconds:.1f} requests/s, {len(clients) - len(good)} refused, TTFT p50 {percentile(ttft, 50) * 1e3:.1f} ms, "
           f"p99 {percentile(ttft, 99) * 1e3:.1f} ms")
    return in_time / seconds, ttft


def overload(program, quick):
    """A server whose first tokens are to be quick has a short queue: what it takes starts soon, the rest is refused at once."""
    seqs, queue = (16, 2) if quick else (64, 2)
    rng, number = random.Random(9), itertools.count()

    def make():
        """Of different lengths: equal ones would all end in the same step, again and again, and the next ones wait for it."""
        return Client(completion(next(number), rng.randrange(8, 25) if quick else rng.randrange(32, 97), stream=True))

    with PinnedServer(program, "--max-num-seqs", str(seqs), "--max-num-queued-reqs", str(queue)) as server:
        before = settle(server)
        load = Load(server.port)
        load.closed_loop(make, seqs, 0.5 if quick else 2)
        seconds = 2 if quick else 8
        peak, at_peak = measured(f"{seqs} clients, one request after another", load.closed_loop(make, seqs, seconds), seconds)
        for share in () if quick else (1.0, 1.5):
            measured(f"offered {share} x", load.open_loop(make, share * peak, seconds), seconds)
        rate, seconds = 10 * peak, 3 if quick else 20
        clients, in_time = load.open_loop(make, rate, seconds)
        good = [c for c in clients if c.status == 200]
        refused = [c for c in clients if c.status in (429, 503)]
        whole = [c for c in good if c.complete]
        goodput = in_time / seconds
        ttft = [c.ttft for c in whole]
        times = [c.ttft for c in refused]
        figure(f"offered 10 x: {len(clients) / seconds:.0f} requests/s for {seconds} s", f"goodput {goodput:.1f} requests/s = "
               f"{100 * goodput / peak:.0f} % of the peak", ">= 90 %")
        figure("first token of an accepted request", f"p50 {percentile(ttft, 50) * 1e3:.0f} ms ({percentile(ttft, 50) / percentile(at_peak, 50):.2f} x peak), "
               f"p99 {percentile(ttft, 99) * 1e3:.0f} ms ({percentile(ttft, 99) / percentile(at_peak, 99):.2f} x peak)", "<= 2 x")
        figure(f"{len(refused)} refusals", f"p50 {percentile(times, 50) * 1e3:.2f} ms, p99 {percentile(times, 99) * 1e3:.2f} ms, "
               f"max {max(times) * 1e3:.1f} ms", "<= 10 ms")
        claim("every request is served or refused; no connection is reset", len(whole) + len(refused) == len(clients) and
              not any(c.problem for c in clients), [(c.status, c.problem, c.tail[-100:]) for c in clients if c not in whole and c not in refused][:5])
        claim("much is refused", len(refused) > len(clients) / 2, (len(refused), len(clients)))
        claim("with Retry-After and the error shape", all(re.search(rb"\r\nRetry-After: \d+\r\n", c.head) and
              json.loads(c.head.partition(b"\r\n\r\n")[2])["error"]["code"] == c.status for c in refused))
        claim("what is accepted is served", len(whole) >= seqs, len(whole))
        if not quick:
            claim("goodput stays", goodput >= 0.9 * peak, (goodput, peak))
            claim("refusals take at most 10 ms (p99)", percentile(times, 99) <= 0.01, percentile(times, 99))
            claim("a first token takes at most twice its time at the peak", percentile(ttft, 99) <= 2 * percentile(at_peak, 99))
        claim_nothing_left(server, before, "overload")
        claim("the server ends with 0", server.stop() == 0, server.log)


# ---- slow readers ---------------------------------------------------------------------------------------------------------


def slow_readers(program, quick):
    num, seqs = (16, 6) if quick else (200, 128)  # more of them than places
    big = {"logprobs": 20, "stream": True}

    def probe(load, first, seconds):
        """One good client after another."""
        clients, _ = load.closed_loop(lambda: Client(completion(next(first), 32, stream=True)), 1, seconds)
        good = [c for c in clients if c.complete and c.status == 200]
        return good, [c.ttft for c in good], [g for c in good for g in c.gaps]

    with PinnedServer(program, "--kv-cache-memory-bytes", str(64 * MIB), "--max-num-seqs", str(seqs)) as server:
        warm(server, 5 if quick else 200)
        before = settle(server)
        idle_rss = server.rss()
        load, number = Load(server.port), iter(range(500000, 10 ** 9))
        good, idle_ttft, idle_itl = probe(load, number, 1 if quick else 5)
        slow = Load(server.port)
        started = time.time()
        clients = [slow.start(Client(completion(i, 900, **big), reads=False), receive_bytes=4096) for i in range(num)]
        paused, stalled_at = 0, None
        while time.time() - started < 90 and paused < num:
            slow.turn(0.1)
            m = server.metrics()
            paused = m["moefuse:sequences_paused"] + m['moefuse:requests_cancelled_total{cause="slow_reader"}']
        stalled_at = time.time()
        claim(f"{num} clients that never read are all paused", paused == num, paused)
        good, ttft, itl = probe(load, number, 1 if quick else 15)
        peak_rss = server.rss()
        claim("a good client is served beside them", len(good) > 0, len(good))
        figure(f"good client beside {num} slow readers", f"TTFT p99 {percentile(ttft, 99) * 1e3:.1f} ms (idle {percentile(idle_ttft, 99) * 1e3:.1f}), "
               f"ITL p99 {percentile(itl, 99) * 1e3:.2f} ms (idle {percentile(idle_itl, 99) * 1e3:.2f})", "<= 2 x idle")
        figure("resident memory for them", f"{(peak_rss - idle_rss) / MIB:.1f} MiB; all paused after {stalled_at - started:.1f} s",
               f"<= {64 + num / 16:.0f} MiB")
        claim("memory is bounded", peak_rss - idle_rss <= 64 * MIB + num * 65536, (peak_rss, idle_rss))
        if not quick:
            claim("its first token within 2 x", percentile(ttft, 99) <= 2 * percentile(idle_ttft, 99))
            claim("its other tokens within 2 x", percentile(itl, 99) <= 2 * percentile(idle_itl, 99))
            while time.time() < stalled_at + 45 and server.metrics()["moefuse:sequences_paused"] > 0:
                time.sleep(0.1)
            cut = time.time() - stalled_at
            m = server.metrics()
            num_cut = m['moefuse:requests_cancelled_total{cause="slow_reader"}']
            figure("slow readers are cut", f"the last {cut:.1f} s after the last was paused; {num_cut:.0f} cancelled", "30 s")
            claim("they are cut 30 s after their stall", m["moefuse:sequences_paused"] == 0 and cut <= 33 and num_cut == num, m)
        slow.drop_all()
        claim_nothing_left(server, before, "slow readers")
        claim("the server ends with 0", server.stop() == 0, server.log)


# ---- the end --------------------------------------------------------------------------------------------------------------


def drain(program, quick):
    num = 50 if quick else 200
    with PinnedServer(program) as server:
        load = Load(server.port)
        clients = [load.start(Client(completion(i, 40 if quick else 120, stream=True))) for i in range(num)]
        while sum(bool(c.times) for c in clients) < num // 2:
            load.turn(0.1)
        # What has been answered or is in the queue is the server's: a request still on its way may be refused.
        started = time.time()
        server.process.send_signal(signal.SIGTERM)
        load.finish(60)
        code = server.process.wait(40)
        cut = [c for c in clients if c.times and c.status == 200 and not c.complete]
        figure(f"SIGTERM under {num} streams", f"{len(cut)} cut, {sum(c.complete and c.status == 200 for c in clients)} finished, "
               f"out with {code} after {time.time() - started:.1f} s", "0 cut, exit 0")
        claim("no stream is cut by SIGTERM", not cut and all(c.complete for c in clients),
              [(c.status, c.problem, c.tail[-200:]) for c in clients if not c.complete][:5])
        claim("and the exit status is 0", code == 0, server.log)


# The first three are in serve_test.py in small.
NOT_QUICK = [load_faults.cancels, load_faults.same_tokens, load_faults.short_drain, load_faults.soak, *load_speed.GROUPS]
GROUPS = [many_streams, dropped_connections, idle_connections, overload, slow_readers, drain]


def main():
    arguments = sys.argv[2:]
    quick = "--quick" in arguments
    path = arguments[arguments.index("--json") + 1] if "--json" in arguments else None
    chosen = [a for a in arguments if not a.startswith("--") and a != path]
    program = str(pathlib.Path(sys.argv[1]).resolve())
    for group in GROUPS + load_faults.GROUPS + load_speed.GROUPS:
        if quick and group in NOT_QUICK:
            continue
        if chosen and not any(part in group.__name__ for part in chosen):
            continue
        started = time.time()
        group(program, quick)
        print(f"# {group.__name__}: {time.time() - started:.1f} s", flush=True)
    if path:
        with open(path, "w") as f:
            json.dump(figures, f, indent=1)
    code = plan()
    if not quick:
        width = max((len(f["what"]) for f in figures), default=0)
        for f in figures:
            print(f"{f['what']:<{width}}  {f['value']}" + (f"   [{f['goal']}]" if f["goal"] else ""))
        print(f"{counts['claims'] - counts['failures']} passed, {counts['failures']} failed")
    sys.exit(code)


if __name__ == "__main__":
    main()
