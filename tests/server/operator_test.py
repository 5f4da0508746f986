"""What an operator sets and reads: flags of `serve`, the log, small stacks, and that docs/server.md is true.

    operator_test.py PATH/TO/moefuse [SUBSTRING...]     the substrings choose groups of claims"""
import json
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from serving import ROOT, Server, claim, events_of, plan

PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
PROMPT = "Tom has 3 boxes with 12 pens each."
DOCS = (ROOT / "docs" / "server.md").read_text()
HELP = subprocess.run([PROGRAM, "serve", "--help"], capture_output=True, text=True, check=True).stdout


def completion(server, **more):
    return server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 4, "temperature": 0, **more})


def completion_with(server, headers, **more):
    return server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 1, **more}, headers=headers)


# ---- flags -----------------------------------------------------------------------------------------------------------


def flags_of_answers():
    with Server(PROGRAM, "--max-logprobs", "3", "--stream-interval", "4", "--max-sequences-per-request", "2", "--allowed-origins",
                "https://a.example", "--max-connections-per-ip", "3", "--metrics-per-expert") as server:
        claim("--max-logprobs is the most a request may ask for", completion(server, logprobs=3).status == 200 and
              completion(server, logprobs=4).status == 400)
        events, done = events_of(completion(server, stream=True, max_tokens=12, ignore_eos=True).body)
        claim("--stream-interval joins tokens of a stream: 1 + 4 + 4, and the last 3 with the end", done and len(events) == 4, events)
        claim("--max-sequences-per-request bounds prompts x n", completion(server, n=2, temperature=1).status == 200 and
              completion(server, n=3, temperature=1).status == 400)
        a = server.get("/health", headers={"Origin": "https://a.example"})
        b = server.get("/health", headers={"Origin": "https://b.example"})
        claim("--allowed-origins names the pages that may call", a.headers.get("Access-Control-Allow-Origin") == "https://a.example" and
              b.status == 403, f"{a.headers} {b.status}")
        held = [server.connect() for _ in range(3)]
        time.sleep(0.1)
        with server.connect() as fourth:
            fourth.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = fourth.recv(4096)
        claim("--max-connections-per-ip refuses one more", answer.startswith(b"HTTP/1.1 503") or answer.startswith(b"HTTP/1.1 429"), answer)
        for s in held:
            s.close()
        time.sleep(0.2)
        claim("--metrics-per-expert has a counter per expert", re.search(rb'expert_tokens_total\{[^}]*expert="0"', server.get("/metrics").body))
        claim("it ends with 0", server.stop() == 0, server.log)


def flags_of_access():
    with Server(PROGRAM, "--served-model-name", "one", "--served-model-name", "two", "--api-key", "k", "--public-paths", "/metrics,/live",
                "--trust-request-chat-template", "--enable-dev-endpoints") as server:
        key = {"Authorization": "Bearer k"}
        claim("--public-paths names what needs no key, and nothing else does without", [server.get(p).status for p in
              ("/metrics", "/live", "/health", "/ready", "/")] == [200, 200, 401, 401, 401])
        answers = [completion_with(server, key, model=name) for name in ("one", "two", "word-problems")]
        claim("--served-model-name: each of them is known, the first is reported, the folder's is not known",
              [a.status for a in answers] == [200, 200, 404] and server.get("/v1/models", headers=key).json["data"][0]["id"] == "one",
              [a.body for a in answers])
        a = server.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}], "chat_template": "x"}, headers=key)
        claim("--trust-request-chat-template takes a template", a.status == 200 and a.json["count"] >= 1, a.body)
        claim("--enable-dev-endpoints has its path", server.post("/reset_prefix_cache", {}, headers=key).status == 200)
    with Server(PROGRAM, "--max-num-queued-reqs", "1", "--max-num-seqs", "1", "--max-connections", "20") as server:
        a = server.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}], "chat_template": "x"})
        claim("without the flags both are refused", a.status == 400 and server.post("/reset_prefix_cache", {}).status == 404, a.body)
        held = [server.send_raw({"prompt": PROMPT, "max_tokens": 900, "ignore_eos": True}) for _ in range(6)]
        time.sleep(0.3)
        heads = []
        for s in held:
            s.settimeout(10)
            heads.append(s.recv(15))
            s.close()
        claim("--max-num-queued-reqs refuses more with 429", any(b" 429" in h for h in heads) and any(b" 200" in h for h in heads), heads)
    for flags, part in ((["--public-paths", "/v1/models"], "--public-paths"), (["--max-logprobs", "21"], "--max-logprobs"),
                        (["--log-format", "xml"], "--log-format"), (["--max-logprob", "2"], "--max-logprobs"),
                        (["--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization")):
        done = subprocess.run([PROGRAM, "serve", "--port", "0", *flags], capture_output=True, text=True, timeout=60)
        claim(f"{' '.join(flags)} is a usage error that names it", done.returncode == 2 and part in done.stderr, done.stderr)


def flags_of_time():
    long = {"prompt": PROMPT, "max_tokens": 900, "ignore_eos": True, "n": 16, "logprobs": 20}
    with Server(PROGRAM, "--request-timeout", "0.2", "--max-num-seqs", "2") as server:
        started = time.time()
        a = server.post("/v1/completions", long)
        reasons = [c["stop_reason"] for c in a.json["choices"]]
        claim("--request-timeout ends what runs with what there is", a.status == 200 and "deadline" in reasons and
              time.time() - started < 5, f"{a.status} {reasons}")
    with Server(PROGRAM, "--sse-keep-alive-interval", "0.5", "--max-num-seqs", "1") as server:
        first = server.send_raw(long)
        time.sleep(0.1)
        second = server.send_raw({**long, "n": 1, "max_tokens": 2, "stream": True})
        received = b""
        while b": ping" not in received and b"[DONE]" not in received:
            received += second.recv(65536)
        claim("--sse-keep-alive-interval writes comments into a silent stream", b": ping" in received, received[:300])
        first.close(), second.close()


def generation_config():
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "generation_config.json"
        file.write_text('{"temperature": 0.0, "eos_token_id": 1, "do_sample": true}')
        greedy = None
        for flags in (["--generation-config", "none", "--override-generation-config", '{"temperature": 0, "max_new_tokens": 7}'],
                      ["--generation-config", str(file)], ["--generation-config", folder]):
            with Server(PROGRAM, *flags) as server:
                texts = {server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 8, "seed": seed}).json["choices"][0]["text"]
                         for seed in range(3)}
                greedy = greedy or texts
                claim(f"{flags[0]} {flags[-1][-24:]}: every seed gives the greedy text", len(texts) == 1 and texts == greedy, texts)
                if len(flags) > 2:
                    a = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}], "ignore_eos": True})
                    claim("max_new_tokens is what a request gets that asks for no number", a.json["usage"]["completion_tokens"] == 7, a.body)
    for flags, part in ((["--override-generation-config", '{"temperature": 3}'], "temperature"),
                        (["--override-generation-config", '{"beams": 3}'], "beams"), (["--generation-config", "/nowhere"], "/nowhere")):
        done = subprocess.run([PROGRAM, "serve", "--port", "0", *flags], capture_output=True, text=True, timeout=60)
        claim(f"{' '.join(flags)} is refused by name", done.returncode not in (0, -11) and part in done.stderr, done.stderr)


# ---- the log ---------------------------------------------------------------------------------------------------------


def log_forms():
    with Server(PROGRAM, "--log-format", "json", "--enable-log-requests") as server:
        completion(server)
        s = server.connect()
        s.sendall(b"GET /a\x1b[31m\xff HTTP/1.1\r\nHost: x\r\n\r\n")
        s.recv(1000)
        s.close()
        server.get("/a%1b%5b31m%c2%9b%0a")
        code = server.stop()
        raw = pathlib.Path(server.log_file.name).read_bytes()
        lines = [json.loads(line) for line in raw.decode().splitlines()]
        claim("--log-format json: every line is an object with time, level and message", code == 0 and len(lines) > 8 and
              all(set(line) == {"time", "level", "message"} for line in lines), lines)
        claim("the plan and the last line are among them", any("fusion" in k["message"] for k in lines) and
              "stopped" in lines[-1]["message"], lines[-1])
        claim("no byte of a request steers a terminal", not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]", raw), raw)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "server.log"
        file.write_text("what was there\n")
        with Server(PROGRAM, "--log-file", str(file), wait=None) as server:
            end = time.time() + 30
            while time.time() < end and "ready on" not in file.read_text():
                time.sleep(0.02)
            code = server.stop()
            text = file.read_text()
            claim("--log-file appends lines with their time", code == 0 and text.startswith("what was there\n2") and
                  re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info: ready on", text), text)
            claim("one line tells of the sandbox", text.count("sandbox") <= 1, text)
    done = subprocess.run([PROGRAM, "serve", "--log-file", "/nowhere/x"], capture_output=True, text=True, timeout=60)
    claim("a log file that cannot be is refused by name", done.returncode == 2 and "--log-file" in done.stderr, done.stderr)


def full_disk():
    # The port is not in the log, which goes nowhere: it is chosen here.
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with Server(PROGRAM, "--port", str(port), "--log-file", "/dev/full", "--enable-log-requests", wait=None) as server:
        server.port = port
        end = time.time() + 30
        while time.time() < end:
            try:
                if server.get("/health").status == 200:
                    break
            except OSError:
                time.sleep(0.02)
        answers = [completion(server).status for _ in range(5)]
        dropped = server.metrics()["moefuse:log_lines_dropped_total"]
        claim("a full disk under the log stops nothing", answers == [200] * 5, answers)
        claim("the lines that were lost are counted", dropped >= 6, dropped)
        told = re.findall(r"log /dev/full: .*No space left", server.log)
        claim("and told once", len(told) == 1, server.log)
        claim("it ends with 0", server.stop() == 0, server.log)


# ---- stacks ----------------------------------------------------------------------------------------------------------


def small_stacks():
    """Every thread, the first one too: the kernel ends a process whose stack outgrows its limit."""
    if re.search(r"/[at]san/", PROGRAM):
        return
    old = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (256 << 10, old[1]))
    try:
        server = Server(PROGRAM)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, old)
    with server:
        schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]}
        deep = "[" * 60 + "]" * 60
        a = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 30, "n": 4, "response_format": {
            "type": "json_schema", "json_schema": {"name": "x", "schema": schema}}})
        b = server.post("/v1/completions", '{"prompt": "x", "max_tokens": 1, "other": ' + deep + "}")
        claim("on stacks of 256 KiB a schema compiles and answers", a.status == 200, a.body)
        claim("and JSON of the greatest depth is read", b.status == 200, b.body)
        maps = pathlib.Path(f"/proc/{server.process.pid}/maps").read_text()
        claim("the first thread's stack is no larger", all(int(m[2], 16) - int(m[1], 16) <= 264 << 10 for m in
              re.finditer(r"^([0-9a-f]+)-([0-9a-f]+) .*\[stack\]$", maps, re.M)))
        claim("it ends with 0", server.stop() == 0, server.log)


# ---- docs/server.md --------------------------------------------------------------------------------------------------


def section(title):
    return DOCS.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def limit(what):
    found = re.search(rf"^\| {re.escape(what)} \| ([^|]+) \|", section("Limits"), re.M)
    return found[1].strip() if found else None


def documentation():
    routes = re.findall(r'\{ "(\w+)", "([^"]+)", mf_handle', (ROOT / "src/server/routes.c").read_text())
    listed = re.findall(r"^\| (GET|POST) \| `([^`]+)` \|", section("Endpoints"), re.M)
    claim("docs: the table of endpoints is the routes' table", sorted(routes) == sorted(listed), set(routes) ^ set(listed))
    code = re.sub(r"INT64_C\((\d+)\)", r"\1", (ROOT / "src/server/http_server.c").read_text())
    value = {name: eval(text) for name, text in re.findall(r"\.(\w+) = ([\d <]+),", code)}
    rows = {"head of a request": f"{value['head_bytes'] >> 10} KiB", "header fields": str(value["num_fields"]),
            "URL": f"{value['url_bytes'] >> 10} KiB", "body": f"{value['body_bytes'] >> 20} MiB",
            "bodies present at one moment": f"{value['all_bodies_bytes'] >> 20} MiB",
            "first byte of a connection": f"{value['first_byte_ns'] // 10**9} s", "head complete": f"{value['head_ns'] // 10**9} s",
            f"body's rate after {value['body_grace_ns'] // 10**9} s": f"{value['body_bytes_per_s']} bytes/s",
            "idle connection": f"{value['idle_ns'] // 10**9} s", "unread answer per connection": f"{value['backlog_bytes'] >> 10} KiB",
            "a client that reads nothing of it": f"{value['write_stall_ns'] // 10**9} s"}
    fields = (ROOT / "src/server/fields.c").read_text()
    constants = {"MF_MAX_LOGIT_BIAS": 1024, "MF_MAX_LOGPROBS": 20}

    def most(field, where):
        text = re.search(rf'\{{ "{field}", {where}, MF_FIELD_\w+,\s*[\w.-]+,\s*([\w.]+)', fields)[1]
        return str(constants.get(text, text))
    rows |= {"`n`, `best_of`": most("n", "C \\| H"), "prompts of a request": most("prompt", "C"),
             "messages": most("messages", "H \\| T"), "tools": most("tools", "H \\| T"), "`stop`": most("stop", "C \\| H"),
             "`logit_bias`": most("logit_bias", "C \\| H"), "`prompt_logprobs`": most("prompt_logprobs", "C \\| H"),
             "`logprobs`": most("logprobs", "C") + ", `--max-logprobs`"}
    wrong = {what: (limit(what), text) for what, text in rows.items() if limit(what) != text}
    claim("docs: the table of limits is the code's", not wrong, wrong)
    flags = set(re.findall(r"`(--[a-z-]+)", DOCS))
    known = set(re.findall(r"(--[a-z-]+)", HELP))
    claim("docs: every flag exists", flags <= known, flags - known)
    defaults = {flag: default for flag, default in re.findall(r"^\s+(--[a-z-]+)[^\n]*\(([^()]*)\)$", HELP, re.M)}
    stated = {flag: value for value, flag in re.findall(r"\| (\d+), `(--[a-z-]+)` \|", DOCS)}
    claim("docs: defaults are the flags' own", stated and all(defaults.get(f) == v for f, v in stated.items()), (stated, defaults))
    golden = (ROOT / "tests/server/metrics.golden").read_text()
    names = re.findall(r"`((?:vllm|moefuse):\w+)`", DOCS)
    claim("docs: every metric exists", names and all(name in golden for name in names), names)
    unit = (ROOT / "packaging" / "moefuse.service.in").read_text()
    claim("the unit's flags exist", set(re.findall(r" (--[a-z-]+)", re.search("ExecStart=.*", unit)[0])) <= known)
    man = (ROOT / "docs" / "moefuse.1.in").read_text().replace("\\-", "-")
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", man))
    verbs = "".join(subprocess.run([PROGRAM, *v, "--help"], capture_output=True, text=True).stdout
                    for v in (["run"], ["eval"], ["bench", "serve"], ["bench"], ["info"], ["check"], ["doctor"], ["bench", "report"]))
    claim("the manual page's flags exist", used - {"--help", "--version", "--now", "--completion", "--flag"} <= known | set(re.findall(r"(--[a-z-]+)", verbs)),
          used - known)


def main():
    groups = [flags_of_answers, flags_of_access, flags_of_time, generation_config, log_forms, full_disk, small_stacks, documentation]
    for group in groups:
        if not sys.argv[2:] or any(part in group.__name__ for part in sys.argv[2:]):
            started = time.time()
            group()
            print(f"# {group.__name__}: {time.time() - started:.1f} s", flush=True)
    sys.exit(plan())


if __name__ == "__main__":
    main()
