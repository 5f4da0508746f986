"""A running server for tests: starts the real program on a free port, knows its log and its numbers, and ends it."""
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from tap import claim, counts, plan  # noqa: E402, F401: tests take them from here

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODEL = str(ROOT / "models" / "word-problems")


class Answer:
    def __init__(self, response):
        self.status, self.headers, self.body = response.status, dict(response.getheaders()), response.read()

    @property
    def json(self):
        return json.loads(self.body)


class Server:
    def __init__(self, program, *flags, model=MODEL, wait="ready", env=None):
        self.log_file = tempfile.NamedTemporaryFile(prefix="moefuse-serve-", suffix=".log")
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MOEFUSE_")}
        if re.search(r"/[at]san/", program):  # the sanitizers' own look at the process at its end is what a sandbox forbids
            flags = (*flags, "--no-sandbox")
        self.started = time.time()
        self.process = subprocess.Popen([program, "serve", model, "--port", "0", *flags], stderr=self.log_file,
                                        stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env={**clean, **(env or {})})
        self.port = 0
        if wait:
            self.wait_for(r"listening on \S+|listening socket is taken over")
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.log)
            self.port = int(found.group(1)) if found else 0
        if wait == "ready":
            self.wait_for(r"ready on ")

    @property
    def log(self):
        with open(self.log_file.name, errors="replace") as f:
            return f.read()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def wait_for(self, pattern, seconds=60):
        end = time.time() + seconds
        while time.time() < end:
            if re.search(pattern, self.log):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise RuntimeError(f"no {pattern!r} in the log:\n{self.log}")

    def ask(self, method, path, body=None, headers=None, timeout=60):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})} if body is not None
                               else headers or {})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path, **more):
        return self.ask("GET", path, **more)

    def post(self, path, body, **more):
        return self.ask("POST", path, body, **more)

    def connect(self, receive_bytes=None):
        s = socket.socket()
        if receive_bytes:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        s.settimeout(150)
        s.connect(("127.0.0.1", self.port))
        return s

    def send_raw(self, body, path="/v1/completions", receive_bytes=None):
        """A request on a bare socket, whose answer the caller reads or does not read."""
        text = json.dumps(body).encode()
        s = self.connect(receive_bytes)
        s.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                  % (path.encode(), len(text)) + text)
        return s

    def metrics(self):
        """{name{labels}: value}, the constant labels left out."""
        found = {}
        for line in self.get("/metrics").body.decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = re.sub(r'model_name="[^"]*",?|engine="0",?', "", name).replace(",}", "}").replace("{}", "")
                found[name] = float(value)
        return found

    def idle_metrics(self, seconds=10):
        """The numbers once nothing runs, waits or is connected beside us."""
        end = time.time() + seconds
        while True:
            m = self.metrics()
            if (m["vllm:num_requests_running"] + m["vllm:num_requests_waiting"] == 0 and m['moefuse:kv_blocks{state="used"}'] == 0) \
                    or time.time() > end:
                return m
            time.sleep(0.02)

    def stop(self, sig=signal.SIGTERM, seconds=40):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "killed"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def events_of(body):
    """The JSON events of a stream, and whether [DONE] ended it."""
    lines = [line[6:] for line in body.decode().split("\n\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"], bool(lines) and lines[-1] == "[DONE]"
