"""A server that answers what the chat page asks, with made-up numbers: for looking at the page and for its test.

    page_mock.py PATH/TO/page_dump [--port N] [--key KEY] [--loading S] [--layers N] [--experts N] [--token-ms N]

The page and its headers are those that the program has compiled in (page_dump prints them)."""
import argparse
import http.server
import json
import random
import subprocess
import threading
import time

PLAN = """model   deepseek_v3 "word-problems"  {layers} layers (1 dense, {moe} MoE)  {experts} experts top-4 + 1 shared  7.5 M total, 3.6 M active
device  cpu  avx512_bf16  2 threads
memory  weights 15.0 MB (mapped; bf16, 400 bytes f32) | workspace 26.2 MB
fusion  gate fused {moe}/{moe} | shared slots: SLOT {slot}, OVERLAP 1, SERIAL 0 | replicas 1
        layer 3: shared expert separate (overlap): down_proj is bf16 [2048, 2816], backend cpu has no bf16+int4 pair
cache   KV 251.7 MB = 8,192 blocks x 16 tokens (128 seqs at 1,024)
limits  max-model-len 1,024 | seqs 128 | batched tokens 2048
"""
ANSWER = "Tom's pens: 3 * 12 = 36\nAfter giving 5 to Anna: 36 - 5 = 31\n<b>&amp; nothing here is markup</b> \u2013 caf\u00e9, \u6c34, \U0001f41f\n#### 31"


class Mock:
    """The state behind the handlers; `log` holds (method, path, status)."""

    def __init__(self, page_dump, key="", loading_s=0.0, layers=6, experts=20, token_ms=12.0, answer=ANSWER):
        head, self.page = subprocess.run([page_dump], capture_output=True, check=True).stdout.split(b"\n\n", 1)
        self.headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.key, self.layers, self.experts, self.token_ms, self.answer = key, layers, experts, token_ms, answer
        self.ready_at = time.time() + loading_s
        self.loading_s = loading_s
        self.fail_next = None  # (status, message) for one chat request
        self.tokens = 0
        self.cut_streams = 0
        self.log, self.bodies = [], []
        self.random = random.Random(7)
        self.weights = [[self.random.gammavariate(1.4, 1) for _ in range(experts)] for _ in range(layers)]

    def loads(self):
        rows = []
        for layer in range(1, self.layers):
            w = self.weights[layer]
            routed = [round(self.tokens * 4 * x / sum(w)) for x in w]
            total, squares = sum(routed), sum(x * x for x in routed)
            rows.append({"layer": layer, "mode": "overlap" if layer == 3 else "slot", "routed": routed, "shared": [self.tokens],
                         "jain": total * total / (self.experts * squares) if squares else None,
                         "max_over_mean": max(routed) * self.experts / total if total else None,
                         "top": sorted(range(self.experts), key=lambda e: -routed[e])[:5],
                         "bottom": sorted(range(self.experts), key=lambda e: routed[e])[:5]})
        return {"window_s": 10.2, "tokens": self.tokens, "bad_rows": 0, "layers": rows}


def handler(mock):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, body, headers=None, kind="application/json"):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            mock.log.append((self.command, self.path, status))

        def error(self, status, message, headers=None):
            self.answer(status, {"error": {"message": message, "type": "Error", "param": None, "code": status}}, headers)

        def refused(self):
            if mock.key and self.headers.get("Authorization") != "Bearer " + mock.key:
                self.error(401, "The key is missing or wrong.", {"WWW-Authenticate": "Bearer"})
                return True
            if time.time() < mock.ready_at:
                self.error(503, "The model is loading.", {"Retry-After": "1"})
                return True
            return False

        def do_GET(self):
            path = self.path.split("?")[0]
            if path == "/":
                if self.headers.get("If-None-Match") == mock.headers["ETag"]:
                    self.send_response(304)
                    self.end_headers()
                    return
                self.answer(200, mock.page, {**mock.headers, "Cache-Control": "no-cache"}, "text/html; charset=utf-8")
            elif path == "/health":
                left = mock.ready_at - time.time()
                if left > 0:
                    self.answer(503, {"status": "loading", "progress": 1 - left / mock.loading_s}, {"Retry-After": "1"})
                else:
                    self.answer(200, {"status": "ok"})
            elif path in ("/v1/models", "/server_info", "/v1/moe/expert-load"):
                if self.refused():
                    return
                moe = mock.layers - 1
                self.answer(200, {
                    "/v1/models": {"object": "list", "data": [{"id": "word-problems", "object": "model"}]},
                    "/server_info": {"version": "0.1.0", "plan": PLAN.format(layers=mock.layers, moe=moe, slot=moe - 1,
                                                                            experts=mock.experts)},
                    "/v1/moe/expert-load": mock.loads()}[path])
            else:
                self.error(404, "There is no such path.")

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            mock.bodies.append(body)
            if self.refused():
                return
            if mock.fail_next:
                (status, message), mock.fail_next = mock.fail_next, None
                self.error(status, message, {"Retry-After": "2"} if status == 429 else None)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            mock.log.append((self.command, self.path, 200))
            started = time.time()
            try:
                self.stream(started)
            except (BrokenPipeError, ConnectionResetError):
                mock.cut_streams += 1
                self.close_connection = True

        def event(self, data):
            raw = b"data: " + data.encode() + b"\n\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))

        def chunk(self, delta, finish=None, **more):
            self.event(json.dumps({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "word-problems", "choices": [
                {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}], "usage": None, **more}))

        def stream(self, started):
            self.chunk({"role": "assistant", "content": ""})
            mock.tokens += 53
            pieces = [mock.answer[i:i + 2] for i in range(0, len(mock.answer), 2)]
            time.sleep(0.03)
            first = time.time()
            for piece in pieces:
                self.chunk({"content": piece})
                self.wfile.flush()
                mock.tokens += 1
                time.sleep(mock.token_ms / 1000)
            ms = (time.time() - first) * 1000
            self.chunk({}, "stop", timings={"queue_ms": 0.1, "ttft_ms": (first - started) * 1000, "prompt_n": 53, "prompt_ms": 8.0,
                                            "prompt_per_second": 6625.0, "cached_n": 16, "predicted_n": len(pieces),
                                            "predicted_ms": ms, "predicted_per_second": len(pieces) * 1000 / ms})
            self.event(json.dumps({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [],
                                   "usage": {"prompt_tokens": 53, "completion_tokens": len(pieces)}}))
            self.event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")

    return Handler


def start(mock, port=0):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler(mock))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("page_dump")
    p.add_argument("--port", type=int, default=0)
    p.add_argument("--key", default="")
    p.add_argument("--loading", type=float, default=0)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--experts", type=int, default=20)
    p.add_argument("--token-ms", type=float, default=12)
    a = p.parse_args()
    server = start(Mock(a.page_dump, a.key, a.loading, a.layers, a.experts, a.token_ms), a.port)
    print(f"http://127.0.0.1:{server.server_address[1]}/", flush=True)
    threading.Event().wait()
