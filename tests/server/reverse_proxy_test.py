"""docs/reverse-proxy.md's nginx example, as it stands there, in front of a server: streams come piece by piece, big bodies and
errors pass, a client that goes is noticed.  Skipped where nginx is not installed.  Prints TAP.

    reverse_proxy_test.py PATH/TO/page_dump"""
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import page_mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from tap import claim, plan  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def main():
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if not nginx:
        print("not ok 1 # SKIP nginx is not installed\n1..1")
        return
    mock = page_mock.Mock(sys.argv[1], token_ms=20)
    backend = page_mock.start(mock).server_address[1]
    blocks = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs/reverse-proxy.md").read_text(), re.S)
    port = free_port()
    example = blocks[0].replace("127.0.0.1:8000", f"127.0.0.1:{backend}").replace("listen 8080;", f"listen 127.0.0.1:{port};")
    inside = blocks[1].replace("allow 10.0.0.0/8;", "")
    example = example.rstrip().removesuffix("}") + inside + "}\n"
    with tempfile.TemporaryDirectory() as temp:
        paths = "".join(f"{kind}_temp_path {temp}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        config = pathlib.Path(temp) / "nginx.conf"
        config.write_text(("user root;\n" if os.geteuid() == 0 else "") + f"daemon off; pid {temp}/pid; error_log {temp}/error.log; worker_processes 1;\n"
                          f"events {{}}\nhttp {{ access_log off; {paths}\n{example}\n}}\n")
        process = subprocess.Popen([nginx, "-p", temp, "-c", str(config)], stderr=subprocess.PIPE, text=True)
        try:
            for _ in range(100):
                with socket.socket() as s:
                    if s.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            claims(mock, port)
        finally:
            process.terminate()
            process.wait(10)
        log = (pathlib.Path(temp) / "error.log").read_text()
        claim("nginx logs no error of the server's", "upstream" not in log.replace("access forbidden", ""), log)
    sys.exit(plan())


def claims(mock, port):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    c.request("GET", "/health")
    r = c.getresponse()
    claim("a plain answer passes", r.status == 200 and json.loads(r.read()) == {"status": "ok"})
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 3_000_000}], "stream": True})
    c.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    r = c.getresponse()
    arrivals, text = [], b""
    while True:
        piece = r.read1(65536)
        if not piece:
            break
        arrivals.append(time.time())
        text += piece
    content = "".join(e["choices"][0]["delta"].get("content", "") for e in (
        json.loads(line[6:]) for line in text.decode().split("\n\n") if line.startswith("data: {")) if e["choices"])
    claim("a stream arrives whole, after a body of 3 MB", content == mock.answer and text.endswith(b"data: [DONE]\n\n"), text[-200:])
    gaps = sorted(b - a for a, b in zip(arrivals, arrivals[1:]))
    claim("and piece by piece, as it was sent", len(arrivals) > 40 and gaps[len(gaps) // 2] > 0.01, f"{len(arrivals)} pieces, {gaps}")
    mock.fail_next = (429, "The queue is full.")
    c.request("POST", "/v1/chat/completions", "{}", {"Content-Type": "application/json"})
    r = c.getresponse()
    claim("a refusal passes with its Retry-After", r.status == 429 and r.headers["Retry-After"] == "2" and b"queue is full" in r.read())
    asked = len(mock.bodies)
    mock.fail_next = (503, "draining")
    c.request("POST", "/v1/chat/completions", "{}", {"Content-Type": "application/json"})
    r = c.getresponse()
    claim("a failed request is not sent twice", r.status == 503 and r.read() and len(mock.bodies) == asked + 1)
    c.request("POST", "/v1/chat/completions", "x" * (8 * 1024 * 1024 + 1), {"Content-Type": "application/json"})
    r = c.getresponse()
    claim("a body beyond the limit stops at nginx", r.status == 413 and len(mock.bodies) == asked + 1, r.status)
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    c.request("GET", "/v1/moe/expert-load")
    claim("what is kept inside is refused outside", c.getresponse().status == 403)
    cut = mock.cut_streams
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    c.request("POST", "/v1/chat/completions", "{}", {"Content-Type": "application/json"})
    c.getresponse().read1(10)
    c.close()
    end = time.time() + 5
    while mock.cut_streams == cut and time.time() < end:
        time.sleep(0.02)
    claim("the server learns that a client went", mock.cut_streams == cut + 1)


main()
