"""The server as its clients meet it: the real program, the shipped model, the openai package, bare sockets.

    serve_test.py PATH/TO/moefuse [SUBSTRING...]     the substrings choose groups of claims"""
import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import openai

from serving import ROOT, Server, claim, events_of, plan

PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
PROMPT = "Tom has 3 boxes with 12 pens each. He gives 5 pens to Anna. How many pens are left?"
CHAT = [{"role": "user", "content": PROMPT}]
NAME = "word-problems"


def client_of(server, key="none"):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)


def raised(call, *arguments, **more):
    try:
        call(*arguments, **more)
    except openai.APIError as error:
        return error
    return None


# ---- the openai package ----------------------------------------------------------------------------------------------


def openai_answers(server):
    c = client_of(server)
    a = c.chat.completions.create(model=NAME, messages=CHAT, max_tokens=60, temperature=0)
    text = a.choices[0].message.content
    claim("a chat is answered", a.choices[0].finish_reason == "stop" and "31" in text, text)
    chunks = list(c.chat.completions.create(model=NAME, messages=CHAT, max_tokens=60, temperature=0, stream=True,
                                            stream_options={"include_usage": True}))
    joined = "".join(k.choices[0].delta.content or "" for k in chunks if k.choices)
    claim("a stream's text is the answer's", joined == text, f"{joined!r} {text!r}")
    claim("a stream begins with the role", chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == "")
    claim("a stream's usage is the answer's", chunks[-1].usage.completion_tokens == a.usage.completion_tokens and
          chunks[-1].usage.prompt_tokens == a.usage.prompt_tokens and not chunks[-1].choices, chunks[-1])
    claim("a stream has an event per token, and one for the end", len([k for k in chunks if k.choices]) == a.usage.completion_tokens + 2,
          f"{len(chunks)} {a.usage}")
    claim("timings come with answers", a.timings["predicted_n"] == a.usage.completion_tokens and a.timings["ttft_ms"] > 0, a.timings)
    b = c.completions.create(model=NAME, prompt="Oscar makes 19 pizzas", max_tokens=10, temperature=0)
    ids = c.completions.create(model=NAME, prompt=[b.usage.prompt_tokens], max_tokens=1)
    claim("a completion continues its prompt", b.choices[0].text and b.choices[0].finish_reason == "length", b)
    claim("a prompt may be ids", ids.usage.prompt_tokens == 1, ids)
    n = c.chat.completions.create(model=NAME, messages=CHAT, max_tokens=12, n=3, seed=5)
    claim("n gives n choices in order", [k.index for k in n.choices] == [0, 1, 2] and n.usage.completion_tokens <= 36, n)
    best = c.completions.create(model=NAME, prompt=PROMPT, max_tokens=8, n=1, best_of=3, seed=5)
    claim("best_of gives the best", len(best.choices) == 1, best)
    word = text.split()[1]
    s = c.chat.completions.create(model=NAME, messages=CHAT, max_tokens=60, temperature=0, stop=[word])
    claim("a stop string ends before itself", s.choices[0].message.content == text[:text.index(word)] and
          s.choices[0].finish_reason == "stop" and s.choices[0].stop_reason == word, s)
    extra = c.completions.create(model=NAME, prompt=PROMPT, max_tokens=7, extra_body={"top_k": 1, "ignore_eos": True})
    claim("extra_body reaches the sampler", extra.usage.completion_tokens == 7 and
          extra.choices[0].text == c.completions.create(model=NAME, prompt=PROMPT, max_tokens=7, temperature=0,
                                                        extra_body={"ignore_eos": True}).choices[0].text, extra)
    claim("the model list names the model", c.models.list().data[0].id == NAME)


def openai_logprobs(server):
    c = client_of(server)
    a = c.completions.create(model=NAME, prompt=[[5, 6, 7, 8, 9]], max_tokens=1, echo=True, logprobs=1, temperature=0, stop=[])
    l = a.choices[0].logprobs
    claim("echo with one token has prompt + 1 entries", [len(x) for x in (l.tokens, l.token_logprobs, l.top_logprobs, l.text_offset)] == [6] * 4, l)
    claim("the first token has no probability", l.token_logprobs[0] is None and l.top_logprobs[0] is None)
    claim("a greedy token's logprob is exactly the largest", l.token_logprobs[-1] == max(l.top_logprobs[-1].values()), l)
    uncached = c.completions.create(model=NAME, prompt=[[5, 6, 7, 8, 9]], max_tokens=0, echo=True, logprobs=1, temperature=0)
    claim("max_tokens 0 with echo gives the prompt's numbers alone", uncached.choices[0].logprobs.token_logprobs == l.token_logprobs[:5])
    chat = c.chat.completions.create(model=NAME, messages=CHAT, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3)
    tokens = chat.choices[0].logprobs.content
    claim("a chat's logprobs hold tokens, bytes and the best", len(tokens) == 5 and all(len(t.top_logprobs) == 3 and
          bytes(t.bytes).decode(errors="replace") == t.token and t.logprob == t.top_logprobs[0].logprob for t in tokens), tokens)
    claim("their tokens are the text", "".join(t.token for t in tokens) == chat.choices[0].message.content)
    stream = list(c.completions.create(model=NAME, prompt=PROMPT, max_tokens=6, temperature=0, logprobs=2, echo=True, stream=True))
    whole = c.completions.create(model=NAME, prompt=PROMPT, max_tokens=6, temperature=0, logprobs=2, echo=True)
    joined = [x for k in stream if k.choices and k.choices[0].logprobs for x in k.choices[0].logprobs.token_logprobs]
    claim("a stream's logprobs are the answer's", joined == whole.choices[0].logprobs.token_logprobs, f"{joined}\n{whole.choices[0].logprobs}")
    claim("a stream's echo is the answer's", "".join(k.choices[0].text for k in stream if k.choices) == whole.choices[0].text)
    shown = [(t, o) for t, o in zip(whole.choices[0].logprobs.tokens, whole.choices[0].logprobs.text_offset) if not t.startswith("<\uff5c")]
    claim("text_offset points into the text", all(whole.choices[0].text[o:].startswith(t) for t, o in shown), whole.choices[0].logprobs)


ADD = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "negate": {"type": "boolean"}},
    "required": ["a", "negate"], "additionalProperties": False}}}


def openai_structured(server):
    c = client_of(server)
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 999}, "ok": {"type": "boolean"}},
              "required": ["n", "ok"], "additionalProperties": False}
    a = c.chat.completions.create(model=NAME, messages=CHAT, max_tokens=80, seed=3, response_format={
        "type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    value = json.loads(a.choices[0].message.content)
    claim("a schema constrains the answer", isinstance(value["n"], int) and isinstance(value["ok"], bool) and
          a.choices[0].finish_reason == "stop", a)
    a = c.completions.create(model=NAME, prompt=PROMPT, max_tokens=20, extra_body={"structured_outputs": {"choice": ["left", "right"]}})
    claim("a list of choices too", a.choices[0].text in ("left", "right"), a)
    e = raised(c.chat.completions.create, model=NAME, messages=CHAT, response_format={
        "type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://elsewhere/"}}})
    claim("a schema that cannot be is 400 with its field", isinstance(e, openai.BadRequestError) and e.body["param"], e)
    forced = {"type": "function", "function": {"name": "add"}}
    more = dict(model=NAME, messages=CHAT, max_tokens=80, seed=3, tools=[ADD], tool_choice=forced)
    a = c.chat.completions.create(**more)
    calls = a.choices[0].message.tool_calls
    arguments = json.loads(calls[0].function.arguments) if calls else {}
    claim("a named tool is called with arguments of its schema", bool(calls) and calls[0].function.name == "add" and
          isinstance(arguments.get("negate"), bool) and a.choices[0].finish_reason == "tool_calls", a)
    joined, names, reason = "", [], None
    for k in c.chat.completions.create(**more, stream=True):
        for t in k.choices[0].delta.tool_calls or []:
            joined += t.function.arguments or ""
            names += [t.function.name] if t.function.name else []
        reason = k.choices[0].finish_reason or reason
    claim("a stream's tool call is the answer's", names == ["add"] and joined == calls[0].function.arguments and reason == "tool_calls",
          f"{names} {joined} {reason} {calls}")
    a = c.chat.completions.create(model=NAME, messages=CHAT, max_tokens=20, temperature=0, tools=[ADD])
    claim("with tools at hand a plain answer stays plain", a.choices[0].message.content and not a.choices[0].message.tool_calls, a)


def text_endpoints(server):
    a = server.post("/tokenize", {"prompt": PROMPT, "return_token_strs": True}).json
    b = server.post("/detokenize", {"tokens": a["tokens"][1:]}).json
    claim("tokenize and detokenize are each other's inverse", a["count"] == len(a["tokens"]) == len(a["token_strs"]) and
          b["prompt"] == PROMPT and a["max_model_len"] == 1024, f"{a} {b}")
    long = server.post("/tokenize", {"prompt": "one two " * 20000, "add_special_tokens": False})
    claim("a long text is tokenized too", long.status == 200 and long.json["count"] >= 40000, long.status)
    claim("tokenizer_info names the special tokens", server.get("/tokenizer_info").json["eos_token"].endswith("\uff5c>"))
    api = server.get("/openapi.json").json
    claim("the API's file has every route", api["openapi"].startswith("3.1") and "/v1/chat/completions" in api["paths"] and
          "/metrics" in api["paths"] and "/reset_prefix_cache" not in api["paths"], list(api["paths"]))


def openai_errors(server):
    c = client_of(server)
    e = raised(c.chat.completions.create, model="nobody", messages=CHAT)
    claim("an unknown model is NotFoundError", isinstance(e, openai.NotFoundError) and e.body["param"] == "model" and e.body["code"] == 404, e)
    e = raised(c.chat.completions.create, model=NAME, messages=CHAT, temperature=9)
    claim("a value out of range is BadRequestError with its field", isinstance(e, openai.BadRequestError) and e.body["param"] == "temperature", e)
    e = raised(c.completions.create, model=NAME, prompt="x " * 2000, max_tokens=5)
    claim("too long a prompt says the longest", isinstance(e, openai.BadRequestError) and "maximum context length is 1024" in str(e), e)
    e = raised(c.completions.create, model=NAME, prompt="x", max_tokens=5, extra_body={"suffix": "y"})
    claim("what is not built is 501", e is not None and e.status_code == 501, e)
    a = server.post("/v1/completions", "{")
    claim("broken JSON is 400 in the error shape", a.status == 400 and set(a.json["error"]) == {"message", "type", "param", "code"}, a.body)
    a = server.get("/nothing")
    b = server.get("/v1/completions")
    claim("an unknown path is 404, a wrong method 405 with Allow", a.status == 404 and b.status == 405 and "POST" in b.headers.get("Allow", ""))


# ---- the same tokens ---------------------------------------------------------------------------------------------------


def same_tokens(server):
    def body(i, stream):
        return {"prompt": f"{PROMPT[:20 + i % 7]}", "max_tokens": 24, "seed": i, "temperature": 1.0, "stream": stream,
                "stop": ["zzz"], "ignore_eos": True}

    def text(i, stream):
        a = server.post("/v1/completions", body(i, stream))
        if not stream:
            return a.json["choices"][0]["text"]
        return "".join(e["choices"][0]["text"] for e in events_of(a.body)[0])

    alone = [text(i, False) for i in range(64)]
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        whole = list(pool.map(lambda i: text(i, False), range(64)))
        streamed = list(pool.map(lambda i: text(i, True), range(64)))
    claim("equal seeds give equal tokens at concurrency 1 and 64", alone == whole, [i for i in range(64) if alone[i] != whole[i]])
    claim("and streamed or not", alone == streamed, [i for i in range(64) if alone[i] != streamed[i]])
    claim("other seeds give other tokens", len(set(alone)) > 32, len(set(alone)))


# ---- clients that go -----------------------------------------------------------------------------------------------------


def drop(s, reset):
    if reset:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def num_blocks(m):
    return sum(m['moefuse:kv_blocks{state="%s"}' % k] for k in ("free", "used", "cached"))


def cancels(server):
    rng = random.Random(7)
    before = server.idle_metrics()
    good = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 12, "seed": 1}).json["choices"][0]["text"]
    for _ in range(300):
        body = {"prompt": PROMPT * rng.choice((1, 1, 8)), "max_tokens": rng.choice((1, 50, 400)), "ignore_eos": True,
                "stream": rng.random() < 0.7, "n": rng.choice((1, 1, 2))}
        s = server.send_raw(body)
        how = rng.random()
        if how < 0.25:
            pass  # queued or prefilling
        elif how < 0.8:
            s.recv(rng.randrange(1, 4000))
        else:
            time.sleep(rng.random() * 0.02)
        drop(s, rng.random() < 0.5)
    started = time.time()
    m = server.idle_metrics()
    claim("after 300 dropped clients all blocks are back at once", m['moefuse:kv_blocks{state="used"}'] == 0 and time.time() - started < 1,
          f"{time.time() - started:.2f} s {m}")
    total = num_blocks(m)
    claim("blocks are conserved", total == num_blocks(before) and
          m["moefuse:kv_invariant_violations_total"] == 0, m)
    claim("disconnects are counted", m['moefuse:requests_cancelled_total{cause="disconnect"}'] > 50, m)
    again = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 12, "seed": 1}).json["choices"][0]["text"]
    claim("the next good answer is equal byte for byte", good == again, f"{good!r} {again!r}")


def slow_readers(server):
    greedy = {"prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "stream": True, "logprobs": 20, "n": 4}
    sockets = [server.send_raw(greedy, receive_bytes=4096) for _ in range(4)]
    end = time.time() + 30
    paused = 0
    while time.time() < end and paused == 0:
        paused = server.metrics()["moefuse:sequences_paused"]
        time.sleep(0.05)
    claim("sequences of a client that does not read are paused", paused > 0, paused)
    a = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 20, "ignore_eos": True})
    claim("others go on beside them", a.status == 200 and a.json["usage"]["completion_tokens"] == 20, a.body)
    received = b""
    first = sockets.pop()
    first.settimeout(30)
    while not received.endswith(b"0\r\n\r\n"):
        piece = first.recv(1 << 16)
        if not piece:
            break
        received += piece
    body = re.sub(rb"\r\n[0-9a-fA-F]+\r\n", b"", b"\r\n" + received.split(b"\r\n\r\n", 1)[1])
    made = received.count(b'"finish_reason":null')
    claim("a slow client that reads in the end gets everything", b"data: [DONE]" in body and made == 4 * 900, made)
    for s in sockets:
        drop(s, True)
    m = server.idle_metrics()
    claim("and nothing is left of those that went", m['moefuse:kv_blocks{state="used"}'] == 0 and m["moefuse:sequences_paused"] == 0, m)


# ---- limits, deadlines -----------------------------------------------------------------------------------------------------


def deadlines(server):
    a = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 900, "ignore_eos": True}, headers={"X-Request-Timeout": "0.1"})
    choice = a.json["choices"][0] if a.status == 200 else {}
    claim("a deadline while generating ends with what there is", choice.get("finish_reason") == "length" and
          choice.get("stop_reason") == "deadline" and 0 < a.json["usage"]["completion_tokens"] < 900, a.body)
    a = server.post("/v1/completions", {"prompt": PROMPT, "timeout": 0.001, "max_tokens": 900, "ignore_eos": True})
    claim("a deadline that is over before it runs is 504, or has hardly begun",
          a.status == 504 or a.json["usage"]["completion_tokens"] < 20, a.body)


def overload(program):
    with Server(program, "--max-num-seqs", "2", "--max-num-queued-reqs", "4") as server:
        def one(_):
            started = time.time()
            a = server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 150, "ignore_eos": True})
            return a, time.time() - started

        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(one, range(40)))
        refused = [(a, t) for a, t in answers if a.status == 429]
        served = [a for a, _ in answers if a.status == 200]
        claim("beyond the queue requests are 429", len(refused) + len(served) == 40 and len(refused) >= 10 and len(served) >= 2,
              [a.status for a, _ in answers])
        claim("with Retry-After in whole seconds and the error shape", all(re.fullmatch(r"\d+", a.headers.get("Retry-After", "")) and
              a.json["error"]["type"] == "RateLimitError" for a, _ in refused))
        e = None
        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            c = client_of(server)
            found = list(pool.map(lambda _: raised(c.completions.create, model=NAME, prompt=PROMPT, max_tokens=150,
                                                   extra_body={"ignore_eos": True}), range(40)))
        e = next((x for x in found if x), None)
        claim("which the openai package raises as RateLimitError", isinstance(e, openai.RateLimitError), e)
        m = server.idle_metrics()
        claim("refusals are counted", m['vllm:admission_rejections_total{reason="queue_full"}'] >= 10, m)
        r = server.get("/ready")
        claim("afterwards it is ready again", r.status == 200, r.body)


# ---- its life ----------------------------------------------------------------------------------------------------------------


def health_while_loading(program):
    config = json.loads((ROOT / "bench" / "configs" / "deepseek-v2-lite-8l.json").read_text())
    config.update(num_hidden_layers=3, n_routed_experts=8, vocab_size=8000, intermediate_size=2816, bos_token_id=0, eos_token_id=1)  # a second or so of random weights
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        loading(program, file.name)


def loading(program, config):
    with Server(program, "--load-format", "dummy", "--max-model-len", "256", model=config, wait="listening") as server:
        seen, live, refused = set(), set(), set()
        while server.process.poll() is None and "ready on" not in server.log and time.time() - server.started < 60:
            h = server.get("/health")
            seen.add((h.status, h.json["status"]))
            live.add(server.get("/live").status)
            if h.status == 503 and h.json["status"] == "loading":
                a = server.post("/v1/completions", {"prompt": [5], "max_tokens": 1})
                refused.add((a.status, "Retry-After" in a.headers))
                progress = h.json.get("progress")
            time.sleep(0.02)
        claim("while the model loads health is 503 with progress and live is 200", (503, "loading") in seen and live == {200} and
              0 <= progress <= 1, f"{seen} {live}")
        claim("and work is 503 with Retry-After", refused == {(503, True)} or refused == {(503, True), (200, False)}, refused)
        h = server.get("/health")
        claim("then it is 200", (h.status, h.json) == (200, {"status": "ok"}), h.body)
        a = server.post("/v1/completions", {"prompt": [5, 6], "max_tokens": 3, "temperature": 0, "logprobs": 1})
        claim("a config without a tokenizer answers prompts of ids", a.status == 200 and a.json["usage"]["completion_tokens"] == 3, a.body)
        b = server.post("/v1/completions", {"prompt": "text", "max_tokens": 3})
        claim("and says that it has no text", b.status == 501 and "tokenizer" in b.json["error"]["message"], b.body)
        claim("a signal ends it", server.stop() == 0, server.log)


def drain(program):
    with Server(program) as server:
        s = server.send_raw({"prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "stream": True})
        s.recv(100)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("shutting down")
        h, a = server.get("/health"), server.post("/v1/completions", {"prompt": "x"})
        claim("after SIGTERM health is 503 draining", h.status == 503 and h.json["status"] == "draining", h.body)
        claim("and new work is 503 with Retry-After and Connection: close", a.status == 503 and "Retry-After" in a.headers and
              a.headers.get("Connection", "").lower() == "close", f"{a.status} {a.headers}")
        received = b""
        while piece := s.recv(1 << 16):
            received += piece
        claim("a running stream is finished", b"data: [DONE]" in received and received.count(b'"finish_reason":null') > 800,
              received[-300:])
        claim("and the server ends with 0", server.process.wait(20) == 0, server.log)
    long = {"prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "stream": True, "n": 16, "logprobs": 20}
    with Server(program, "--shutdown-timeout", "0.3", "--max-num-seqs", "32") as server:
        sockets = [server.send_raw(long) for _ in range(2)]
        sockets[0].recv(100)
        started = time.time()
        server.process.send_signal(signal.SIGTERM)
        received = b""
        while piece := sockets[0].recv(1 << 16):
            received += piece
        claim("past the timeout a stream ends with an error event", b'"code": 503' in received[-400:] and b"data: [DONE]" in received[-60:],
              received[-300:])
        claim("and the exit is still 0", server.process.wait(20) == 0 and time.time() - started < 8, f"{time.time() - started} {server.log}")
    with Server(program, "--max-num-seqs", "32") as server:
        s = server.send_raw(long)
        s.recv(100)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("shutting down")
        started = time.time()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(10)
        claim("a second signal ends it within a second", time.time() - started < 1 and code >= 0, f"{time.time() - started} {code}")


def takeover(program):
    turns = int(os.environ.get("MOEFUSE_TEST_TAKEOVERS", "5"))
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/takeover"
        outcomes, stop, port = [], threading.Event(), 0

        def ask(pause):
            """One client with a connection that it keeps, as pools do; only an answer to each request counts."""
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            while not stop.is_set():
                try:
                    connection.request("POST", "/v1/completions", b'{"prompt": "x", "max_tokens": 2}', {"Content-Type": "application/json"})
                    answer = connection.getresponse()
                    answer.read()
                    outcomes.append(answer.status)
                except OSError as error:
                    outcomes.append(repr(error))
                    connection.close()
                time.sleep(pause)

        old = Server(program, "--takeover", path)
        servers, port = [old], old.port
        workers = [threading.Thread(target=ask, args=(pause,)) for pause in (0, 0, 0.05, 0.6)]
        try:
            for w in workers:
                w.start()
            ends = []
            for _ in range(turns):
                new = Server(program, "--takeover", path)
                servers.append(new)
                ends.append(old.process.wait(30))
                old = new
            time.sleep(0.3)
            stop.set()
            for w in workers:
                w.join()
            claim(f"{turns} processes take the socket in turn and each one before drains", ends == [0] * turns and
                  all("taken the listening socket" in s.log for s in servers[:-1]), ends)
            claim("no request of clients that keep their connections failed", set(outcomes) == {200} and len(outcomes) > 100,
                  f"{set(outcomes)} {len(outcomes)}")
            claim("the last successor ends with 0", old.stop() == 0, old.log)
            claim("and leaves no socket behind", not list(pathlib.Path(folder).iterdir()), list(pathlib.Path(folder).iterdir()))
        finally:
            stop.set()
            for s in servers:
                s.__exit__()


def ask_unix(path, target="/health"):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(10)
        s.connect(path)
        s.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target.encode())
        received = b""
        while piece := s.recv(65536):
            received += piece
    return received


def takeover_of_a_unix_socket(program):
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        uds, path = one + "/http", two + "/takeover"
        with Server(program, "--uds", uds, "--takeover", path) as old, Server(program, "--uds", uds, "--takeover", path) as new:
            claim("a UNIX socket is taken over, too", old.process.wait(20) == 0 and b" 200 " in ask_unix(uds)[:20], old.log)
            claim("the successor offers it in its turn", pathlib.Path(path).is_socket(), new.log)
            claim("it ends with 0", new.stop() == 0, new.log)
            claim("both paths go with the last server", not pathlib.Path(uds).exists() and not pathlib.Path(path).exists(), new.log)


def access(program):
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write("key-of-a-file\n")
        keys.flush()
        with Server(program, "--api-key", "a-secret-key", "--api-key-file", keys.name, "--enable-log-requests") as server:
            e = raised(client_of(server, "wrong").chat.completions.create, model=NAME, messages=CHAT)
            claim("a wrong key is AuthenticationError", isinstance(e, openai.AuthenticationError), e)
            claim("keys of flag and file are taken", client_of(server, "a-secret-key").models.list().data[0].id == NAME and
                  client_of(server, "key-of-a-file").models.list().data[0].id == NAME)
            claim("health needs none, other paths do", server.get("/health").status == 200 and server.get("/metrics").status == 401 and
                  server.get("/").status == 401 and server.get("/nothing").status == 401)
            with open(f"/proc/{server.process.pid}/cmdline", "rb") as f:
                claim("the key is not in argv", b"a-secret-key" not in f.read())
            client_of(server, "a-secret-key").chat.completions.create(model=NAME, messages=CHAT, max_tokens=3)
            server.wait_for(r'"POST /v1/chat/completions" 200', 5)
            claim("the access log has the request and not the prompt", "Anna" not in server.log, server.log)
    with Server(program, env={"MOEFUSE_API_KEY": "from-the-environment"}) as server:
        claim("a key may come from the environment", server.get("/v1/models").status == 401 and
              server.get("/v1/models", headers={"Authorization": "Bearer from-the-environment"}).status == 200)
        with Server(program, "--port", str(server.port), wait=None) as second:
            claim("a port that is taken is exit code 6", second.process.wait(20) == 6 and "moefuse: error:" in second.log, second.log)


def refusals(program):
    """What cannot be served is said in one line, with an exit code of its own, before anything listens."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as taken:
        bad = pathlib.Path(folder) / "bad.keys"
        bad.write_text("one two\n")
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for code, text, *flags in (
                (6, rf"cannot listen on 127\.0\.0\.1 port {port} \(--host, --port\): Address already in use", "--port", port),
                (6, r"cannot listen on \S+/none/socket \(--uds\): No such file or directory", "--uds", folder + "/none/socket"),
                (2, r"\S+/none: cannot open: No such file or directory", "--api-key-file", folder + "/none"),
                (2, r"\S+/bad\.keys: expected keys of printable ASCII without blanks; got another byte in key 1", "--api-key-file", str(bad)),
                (2, r"unknown flag --prot; did you mean --port\?", "--prot", "1"),
                (2, r"--port: expected an integer in 0\.\.65535; got 70000", "--port", "70000"),
                (2, r'--public-paths: expected some of /health /ready /live /metrics /; got "/v1"', "--public-paths", "/v1"),
                (4, r"\S+/none: expected a model directory; got nothing of that name", "--model", folder + "/none"),
                (4, r"\S+: holds no config\.json; expected a model's directory in the Hugging Face layout", "--model", folder)):
            done = subprocess.run([program, "serve", *([] if "--port" in flags else ["--port", "0"]), *flags], text=True, capture_output=True,
                                  timeout=60)
            said = [line for line in done.stderr.splitlines() if "listening on" not in line]
            claim(f"{' '.join(flags[:1])}: exit {code} and its line", done.returncode == code and not done.stdout and
                  len(said) == 1 and re.fullmatch("moefuse: error: " + text, said[0]), f"{done.returncode} {done.stderr}")


def administration(server):
    info = server.get("/server_info").json
    claim("server_info has SGLang's keys and the plan", info["is_generation"] is True and info["internal_states"] == [{}] and
          info["model_path"] == NAME and "fusion" in info["plan"] and server.get("/get_model_info").json == info, info)
    server.idle_metrics()  # a request that a deadline ended is answered a moment before its blocks are back
    claim("version and load answer", server.get("/version").json["version"] and server.get("/load").json == {"server_load": 0})
    load = server.get("/v1/moe/expert-load").json
    claim("expert load has a row per MoE layer", len(load["layers"]) == 5 and len(load["layers"][0]["routed"]) == 20, load)
    bad = [server.get("/v1/moe/expert-load?layer=99").status, server.get("/v1/moe/expert-load?window=x").status]
    claim("and refuses what it has not", bad == [400, 400], bad)
    page = server.get("/")
    claim("the page is served with its policy", page.status == 200 and b"<!doctype html>" in page.body[:40] and
          "default-src 'none'" in page.headers["Content-Security-Policy"])
    claim("a known page need not be sent again", server.get("/", headers={"If-None-Match": page.headers["ETag"]}).status == 304)
    claim("the dev endpoint is off", server.post("/reset_prefix_cache", {}).status == 404)
    server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 3, "ignore_eos": True})
    m = server.idle_metrics()
    claim("metrics count", m["vllm:generation_tokens_total"] > 0 and m['vllm:request_success_total{finished_reason="length"}'] > 0)
    long_text = json.dumps({"prompt": "a b c " * 1300000, "max_tokens": 1}).encode()
    answers = []

    def slowest_health():
        worker = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", long_text).status))
        worker.start()
        slowest = 0
        while worker.is_alive():
            started = time.time()
            server.get("/health")
            slowest = max(slowest, time.time() - started)
            time.sleep(0.002)
        return slowest

    # A loop that is held up is so every time; a machine with other work is now and then.
    slowest = [slowest_health() for _ in range(3)]
    claim("health answers within 100 ms while 8 MB are read", min(slowest) < 0.1 and set(answers) == {400}, f"{slowest} {answers}")


def main():
    chosen = sys.argv[2:]

    def wanted(group):
        return not chosen or any(part in group.__name__ for part in chosen)

    shared = [openai_answers, openai_logprobs, openai_structured, openai_errors, text_endpoints, same_tokens, cancels, slow_readers, deadlines, administration]
    own = [refusals, overload, drain, access, takeover, takeover_of_a_unix_socket, health_while_loading]
    if any(map(wanted, shared)):
        with Server(PROGRAM) as server:
            for group in filter(wanted, shared):
                started = time.time()
                group(server)
                print(f"# {group.__name__}: {time.time() - started:.1f} s", flush=True)
            claim("it is the same process that ends with 0", server.stop() == 0, server.log)
            claim("the log holds no defect", not re.search("BUG|ERROR: |runtime error|invariant", server.log), server.log)
    for group in filter(wanted, own):
        started = time.time()
        group(PROGRAM)
        print(f"# {group.__name__}: {time.time() - started:.1f} s", flush=True)
    sys.exit(plan())


if __name__ == "__main__":
    main()
