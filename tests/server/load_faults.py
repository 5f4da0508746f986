"""What clients and time do to a server that works: clients that go at any byte, requests that mean harm, an engine that stands
still, an end that comes too soon, minutes of all of it at once.  Groups of load_test.py."""
import concurrent.futures
import ctypes
import itertools
import json
import os
import random
import re
import signal
import socket
import time

from load_driver import (MIB, Client, Load, PinnedServer, chat, claim_nothing_left, completion, figure, num_blocks, question, request_bytes,
                         reset, settle, warm)
from serving import Server, claim, events_of

# ---- clients that go ------------------------------------------------------------------------------------------------------


def cancels(program, quick):
    num, at_once = 2000, 20
    rng = random.Random(7)
    with PinnedServer(program, "--max-num-seqs", "16", "--kv-cache-memory-bytes", str(32 * MIB)) as server:
        before = settle(server)
        good = answer_of(server)
        longest = []
        for first in range(0, num, at_once):
            sockets = []
            for i in range(first, first + at_once):
                body = {"prompt": question(i) * rng.choice((1, 1, 10)), "max_tokens": rng.choice((1, 50, 400)), "ignore_eos": True,
                        "stream": rng.random() < 0.7, "n": rng.choice((1, 1, 2)), "seed": i}
                s = server.send_raw(body)
                how = rng.random()
                if how < 0.4 and (body["stream"] or body["max_tokens"] == 1):
                    s.recv(rng.randrange(1, 4000))  # decoding, at some byte of the answer
                elif how < 0.6:
                    time.sleep(rng.random() * 0.02)  # prefilling
                sockets.append(s)  # or queued
                if rng.random() < 0.5:
                    s = sockets.pop(rng.randrange(len(sockets)))
                    reset(s) if rng.random() < 0.5 else s.close()
            for s in sockets:
                reset(s) if rng.random() < 0.5 else s.close()
            started = time.perf_counter()
            while True:
                m = server.metrics()
                if m['moefuse:kv_blocks{state="used"}'] == 0 and m["vllm:num_requests_running"] + m["vllm:num_requests_waiting"] == 0:
                    break
                if time.perf_counter() - started > 30:
                    break
                time.sleep(0.002)
            longest.append(time.perf_counter() - started)
        m = claim_nothing_left(server, before, f"{num} cancelled requests")
        claim("disconnects are counted", m['moefuse:requests_cancelled_total{cause="disconnect"}'] > num / 5, m)
        claim("the next good answer is the one before", answer_of(server) == good)
        step = longest_step(server)
        figure(f"{num} clients that go at random bytes, {at_once} at once", f"blocks free after {1e3 * max(longest):.0f} ms at most, "
               f"{1e3 * sorted(longest)[len(longest) // 2]:.0f} ms median (a full step: {1e3 * step:.0f} ms); "
               f"{m['moefuse:kv_invariant_violations_total']:.0f} violations, {m['moefuse:late_events_total']:.0f} late events",
               "one step + 100 ms, 0 violations")
        claim("blocks are back within a step and 100 ms", max(longest) <= step + 0.1, longest)
        claim("the server ends with 0", server.stop() == 0, server.log)


def longest_step(server):
    """As long as a step can be here: prompts of all the tokens that it may hold."""
    started = time.perf_counter()
    server.post("/v1/completions", {"prompt": [[3 + (7 * i + j) % 900 for i in range(1000)] for j in (1, 2)], "max_tokens": 1})
    return time.perf_counter() - started


def answer_of(server):
    a = server.post("/v1/completions", {"prompt": question(1), "max_tokens": 12, "seed": 1, "logprobs": 3, "ignore_eos": True})
    return a.status, a.json.get("choices")


# ---- one bad request ------------------------------------------------------------------------------------------------------


def bad_framings():
    body = b'{"prompt":"x","max_tokens":1}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    yield b"\r\n\r\n\r\n"
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)
    yield b"GET / HTTP/9.9\r\nHost: x\r\n\r\n"
    yield b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"GET /%2f HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"GET /../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40000 + b"\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200 + b"\r\n"
    yield b"GET / HTTP/1.1\r\n\r\n"
    yield b"GET / HTTP/1.1\nHost: x\n\n"
    yield b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: x\r\nX : a\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n"
    yield head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + body
    yield head + b"Content-Length: +29\r\n\r\n" + body
    yield head + b"Content-Length: -1\r\n\r\n" + body
    yield head + b"Content-Length: 99999999999999999999\r\n\r\n" + body
    yield head + b"Content-Length: 9000000\r\n\r\n" + body
    yield head + b"Transfer-Encoding: gzip\r\n\r\n" + body
    yield head + b"Transfer-Encoding: chunked\r\nContent-Length: 29\r\n\r\n" + body
    for size in (b"0x5", b"+5", b"-1", b"ffffffffffffffff", b"", b"5 5"):
        yield head + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\nhello\r\n0\r\n\r\n"
    yield b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 29\r\n\r\n" + body
    yield b"DELETE /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n"
    yield head + b"Origin: http://elsewhere\r\nContent-Length: 29\r\n\r\n" + body


def bad_bodies():
    yield from (b"", b"{", b"[]", b"null", b"5", b'"x"', b"{}", b"\xef\xbb\xbf{}", b'{"prompt":"x"}x', b'{"prompt":"\xff"}', b'{"prompt":"\\ud800"}',
                b'{"prompt":"a\\u0000b"}', b'{"prompt":"x","prompt":"y"}', b'{"prompt":"x","temperature":NaN}', b'{"prompt":"x","temperature":1e999}',
                b'{"prompt":"x","max_tokens":99999999999999999999}', b"[" * 100000, b'{"a":' * 100000, b'{"prompt":' + b"[" * 100 + b"]" * 100 + b"}",
                b'{"prompt":[' + b"1," * 1100000 + b"1]}")
    base = {"prompt": "x", "max_tokens": 1}
    for field, values in {
            "prompt": ([], [""], "", [[]], [-1], [1 << 40], [10 ** 6], [1, "x"], ["x"] * 65, 5, None, "x " * 3000, [[5]] * 65),
            "max_tokens": (0, -1, 1 << 62, 1.5, "1", True, []), "min_tokens": (-1, 5, 1 << 40), "n": (0, -1, 17, 10 ** 9, "2", 1.5), "best_of": (0, 17, 10 ** 9),
            "temperature": (-1, 3, "0", [], -0.0001), "top_p": (0, -1, 2, "1"), "top_k": (-2, 1 << 40, 0.5), "min_p": (-1, 2),
            "presence_penalty": (-3, 3), "frequency_penalty": (-3, 3), "repetition_penalty": (0, -1, 11), "seed": (1 << 64, "1", 0.5),
            "stop": (["x"] * 17, [""], ["x" * 300], 5, [5]), "stop_token_ids": ([-1], [1 << 40], [10 ** 6], [1] * 1025, "x"),
            "allowed_token_ids": ([], [-1], [10 ** 6]), "bad_words": ([""], ["x"] * 129, [5]),
            "logit_bias": ({"-1": 1}, {"x": 1}, {"1": 1000}, {"999999": 1}, {"1": "1"}, [1]), "logprobs": (-1, 21, 10 ** 9, "1", True),
            "prompt_logprobs": (-1, 6, 10 ** 9), "stream": (1, "yes"), "stream_options": ({"include_usage": True}, 5),
            "truncate_prompt_tokens": (-2, 0, 10 ** 9), "timeout": (0, -1, 1e9), "model": ("nobody", "", 5, "x" * 300), "suffix": ("x",),
            "use_beam_search": (True,), "priority": (1 << 40,), "user": ("x" * 300,),
            "response_format": ({"type": "nothing"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}),
            "structured_outputs": ({"regex": "(" * 60000}, {"regex": "a**"}, {"regex": "(a{1000}){1000}"}, {"grammar": "root ::= root"}, {"json": "{"},
                                   {"choice": []})}.items():
        for value in values:
            yield json.dumps({**base, field: value}).encode()


def bad_chats():
    ok = {"role": "user", "content": "x"}
    for messages in ([], [{}], [{"role": "nobody", "content": "x"}], [{"role": "user"}], [ok] * 2049, "x", [5], [{"role": "user", "content": 5}],
                     [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]):
        yield json.dumps({"messages": messages, "max_tokens": 1}).encode()
    for more in ({"top_logprobs": 3}, {"chat_template": "{{ x }}"}, {"chat_template_kwargs": {"messages": []}}, {"tools": [{}]}, {"tools": [ok] * 129},
                 {"tool_choice": "required"}, {"add_generation_prompt": True, "continue_final_message": True}):
        yield json.dumps({"messages": [ok], "max_tokens": 1, **more}).encode()


def hostile(seed):
    """(bytes, whether an answer is a 4xx or 501 by all means), in an order of the seed's."""
    found = [(b, True) for b in bad_framings()]
    found += [(request_bytes(b), False) for b in bad_bodies()]
    found += [(request_bytes(b, "/v1/chat/completions"), False) for b in bad_chats()]
    random.Random(seed).shuffle(found)
    return found


def answered(server, data):
    """The status of what comes back; 0: nothing."""
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.settimeout(20)
        try:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR) if b"Connection: close" not in data else None
        except OSError:
            pass
        received = b""
        try:
            while piece := s.recv(1 << 16):
                received += piece
        except OSError:
            pass
        return int(received[9:12]) if received.startswith(b"HTTP/1.1 ") else 0


def one_bad_one_answer(program, quick):
    with PinnedServer(program) as server:
        before = settle(server)
        good = answer_of(server)
        statuses, wrong = {}, []
        for data, _ in hostile(1):
            status = answered(server, data)
            statuses[status] = statuses.get(status, 0) + 1
            if status >= 500 and status != 501 or server.process.poll() is not None or answer_of(server) != good:
                wrong.append((status, data[:300], server.process.poll()))
                if server.process.poll() is not None:
                    break
        claim("after every hostile request the same process gives the same answer", not wrong and good[0] == 200, wrong[:5])
        figure(f"{sum(statuses.values())} hostile requests, a good one after each", f"{len(wrong)} changed an answer; statuses "
               + ", ".join(f"{k}: {v}" for k, v in sorted(statuses.items())), "0")
        claim("most were refused", sum(v for k, v in statuses.items() if 400 <= k < 500) > sum(statuses.values()) * 0.8, statuses)
        claim_nothing_left(server, before, "hostile requests")
        claim("the server ends with 0", server.stop() == 0, server.log)
        claim("the log holds no defect", not re.search("BUG|ERROR: |runtime error", server.log), server.log)


# ---- the same tokens --------------------------------------------------------------------------------------------------------


def same_tokens(program, quick):
    num, tokens = 64, 100

    def body(i, stream):
        return {"prompt": question(i), "max_tokens": tokens, "seed": i, "temperature": 1.0, "stream": stream, "ignore_eos": True, "logprobs": 2,
                "return_token_ids": True}

    def tokens_of(server, i, stream):
        a = server.post("/v1/completions", body(i, stream))
        parts = [e["choices"][0] for e in events_of(a.body)[0]] if stream else a.json["choices"]
        return ([t for p in parts for t in p.get("token_ids") or []], "".join(p["text"] for p in parts),
                [l for p in parts if p["logprobs"] for l in p["logprobs"]["token_logprobs"]])

    with PinnedServer(program) as server:
        alone = [tokens_of(server, i, i % 2 == 0) for i in range(num)]
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            together = list(pool.map(lambda i: tokens_of(server, i % num, i >= num), range(2 * num)))
        differ = [i for i in range(2 * num) if together[i] != alone[i % num]]
        claim("the same seeds give the same tokens, texts and log-probabilities alone and among 64, streamed or not", not differ and
              all(len(t[0]) == tokens for t in alone), (differ, alone[:1], together[:1]))
        figure(f"{2 * num} answers of {tokens} tokens at concurrency 64 against alone", f"{len(differ)} differ", "0")


# ---- an engine that stands still, an end that comes too soon ------------------------------------------------------------------


def engine_thread(pid):
    def name(tid):
        with open(f"/proc/{pid}/task/{tid}/comm") as f:
            return f.read().strip()

    return next(tid for tid in map(int, os.listdir(f"/proc/{pid}/task")) if name(tid) == "mf-engine")


class StoppedThread:
    """One thread of a child stands still, the others go on: as a hanging device or a deadlock looks from outside."""
    SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000

    def __init__(self, tid):
        self.tid, self.libc = tid, ctypes.CDLL(None, use_errno=True)

    def _ptrace(self, request):
        if self.libc.ptrace(request, self.tid, None, None) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    def __enter__(self):
        self._ptrace(self.SEIZE)
        self._ptrace(self.INTERRUPT)
        os.waitpid(self.tid, self.WALL)
        return self

    def __exit__(self, *_):
        self._ptrace(self.DETACH)


def stalled_engine(program, quick):
    with PinnedServer(program) as server:
        load = Load(server.port)
        for i in range(4):
            load.start(Client(completion(i, 800, stream=True)))
        while not all(c.times for _, c in load.live.values()):
            load.turn(0.1)
        try:
            stopped = StoppedThread(engine_thread(server.process.pid)).__enter__()
        except OSError as error:
            print(f"# not run: a thread cannot be stopped here ({error})", flush=True)
            return
        started = time.time()
        try:
            while server.get("/health").status == 200 and time.time() - started < 30:
                time.sleep(0.02)
            seconds, h = time.time() - started, server.get("/health")
            live, ready = server.get("/live").status, server.get("/ready").status
        finally:
            stopped.__exit__()
        figure("health beside a stalled engine", f"{h.status} {h.json['status']} after {seconds:.1f} s, /live {live}", "503 after 5 s, 200")
        claim("health turns 503 when the engine stands still, live stays 200", (h.status, h.json["status"], live, ready) == (503, "stalled", 200, 503)
              and seconds > 4 and (quick or seconds < 6), (h.body, live, ready, seconds))
        done = load.finish(60)
        claim("when it goes on so does everything", all(c.complete and c.status == 200 for c in done) and len(done) == 4 and
              server.get("/health").status == 200)


def short_drain(program, quick):
    more = {"stream": True, "n": 4}
    with PinnedServer(program, "--shutdown-timeout", "0.5") as server:
        load = Load(server.port)
        clients = [load.start(Client(completion(i, 900, **more))) for i in range(20)]
        while not all(c.times for c in clients):
            load.turn(0.1)
        started = time.time()
        server.process.send_signal(signal.SIGTERM)
        load.finish(20)
        code = server.process.wait(20)
        told = [c for c in clients if b'"error"' in c.tail and b"data: [DONE]" in c.tail]
        figure("past the shutdown timeout (0.5 s)", f"{len(told)} of {len(clients)} streams end with an error event, out with {code} after "
               f"{time.time() - started:.1f} s", "all, 0")
        claim("past the timeout every stream ends with an error event", len(told) + sum(c.events > 3600 for c in clients) >= len(clients),
              [c.tail[-200:] for c in clients if c not in told][:3])
        claim("and the exit status is 0", code == 0, server.log)
    with PinnedServer(program) as server:
        load = Load(server.port)
        clients = [load.start(Client(completion(i, 900, **more))) for i in range(20)]
        while not all(c.times for c in clients):
            load.turn(0.1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("shutting down")
        started = time.time()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(20)
        seconds = time.time() - started
        load.drop_all()
        figure("a second signal", f"out with {code} after {seconds:.2f} s", "<= 1 s")
        claim("a second signal ends it within a second", code >= 0 and seconds < 1, (seconds, code))


# ---- minutes of it ------------------------------------------------------------------------------------------------------------


def soak(program, quick):
    seconds = float(os.environ.get("SOAK_SECONDS", "300"))
    rng, number = random.Random(11), itertools.count()
    bad = itertools.cycle(data for data, _ in hostile(2) if len(data) < 100000)
    with PinnedServer(program, "--kv-cache-memory-bytes", str(32 * MIB)) as server:
        warm(server)
        before = settle(server)
        fds, good = server.descriptors(), answer_of(server)
        load, kinds, broken = Load(server.port), {}, []
        started, samples, counts = time.time(), [], {"good": 0, "cancelled": 0, "hostile": 0}
        while time.time() < started + seconds:
            while len(load.live) < 16:
                i, r = next(number), rng.random()
                if r < 0.7:
                    c = Client((chat if rng.random() < 0.5 else completion)(i, 40, stream=rng.random() < 0.7))
                    kinds[c] = "good"
                elif r < 0.9:
                    c = Client(completion(i, 300, stream=True))
                    kinds[c] = "cancelled"
                else:
                    c = Client(next(bad))
                    kinds[c] = "hostile"
                load.start(c)
            load.turn(0.05)
            now = time.perf_counter()
            for fd, (s, c) in list(load.live.items()):
                if (kinds[c] == "cancelled" and c.events > rng.randrange(100)) or (kinds[c] == "hostile" and now - c.started > 0.5):
                    del load.live[fd]
                    load.poll.unregister(fd)
                    reset(s) if rng.random() < 0.5 else s.close()
                    counts[kinds.pop(c)] += 1
            for c in load.take_done():
                kind = kinds.pop(c)
                counts[kind] += 1
                if kind == "good" and not (c.complete and c.status == 200):
                    broken.append((c.status, c.problem, c.tail[-200:]))
            if time.time() > started + len(samples) * seconds / 10:
                samples.append(server.rss())
        load.drop_all()
        settle(server)
        rss = server.rss()
        growth = rss - samples[2]  # after a fifth of the time
        m = claim_nothing_left(server, before, "soak")
        figure(f"soak of {seconds:.0f} s: {counts['good']} good, {counts['cancelled']} cancelled, {counts['hostile']} hostile",
               f"{len(broken)} good ones failed; resident {growth / MIB:+.2f} MiB after the first minute (at each tenth, MiB: "
               f"{' '.join(f'{s / MIB:.1f}' for s in samples)}, then {rss / MIB:.1f}), descriptors "
               f"{server.descriptors() - fds:+d}, {m['moefuse:kv_invariant_violations_total']:.0f} violations", "0 failed, flat, +-0, 0")
        claim("every good request of the soak is answered", not broken, broken[:5])
        claim("its descriptors are exact", server.descriptors() == fds, (server.descriptors(), fds))
        claim("its memory grows by less than 8 MiB after the first minute", growth < 8 * MIB, samples)
        claim("the answer after it is the one before", answer_of(server) == good)
        claim("the server ends with 0", server.stop() == 0, server.log)


GROUPS = [cancels, one_bad_one_answer, same_tokens, stalled_engine, short_drain, soak]
