"""Many clients in one thread: an epoll loop of bare sockets that sends requests, counts what comes and when, and drops, reads
or ignores it as told.  Also a server on the first core with its clients on another, and what a process holds."""
import collections
import json
import os
import select
import socket
import struct
import time

from serving import Server, claim

# The server and its clients do not share a core where there are two.
CORES = sorted(os.sched_getaffinity(0))


class PinnedServer(Server):
    """On the first core, with one thread for the engine; the test itself moves to the others."""

    def __init__(self, program, *flags, **more):
        if len(CORES) > 1:
            os.sched_setaffinity(0, CORES[:1])
        try:
            super().__init__(program, "--threads", "1", *flags, **more)
        finally:
            os.sched_setaffinity(0, CORES[1:] or CORES)

    def rss(self):
        return memory_of(self.process.pid, "VmRSS")

    def count_descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def descriptors(self):
        """The least of some looks: a connection that asked for the numbers may be on its way out."""
        found = []
        for _ in range(10):
            found.append(self.count_descriptors())
            time.sleep(0.005)
        return min(found)


def memory_of(pid, key):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(key + ":"))


def request_bytes(body, path="/v1/completions", close=True):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n" % (
        path.encode(), b"Connection: close\r\n" if close else b"", len(text)) + text


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p / 100))] if values else float("nan")


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


class Client:
    """One request on one connection, to the end of the connection.  times: when each read brought something."""

    def __init__(self, request, reads=True, keep_text=False):
        self.request, self.reads, self.keep_text = request, reads, keep_text
        self.started = self.ended = 0.0
        self.times = []
        self.head = b""    # the first bytes
        self.tail = b""    # the last bytes
        self.text = []
        self.events = 0
        self.problem = None

    @property
    def status(self):
        return int(self.head[9:12]) if self.head.startswith(b"HTTP/1.1 ") else 0

    @property
    def ttft(self):
        return self.times[0] - self.started if self.times else float("inf")

    @property
    def gaps(self):
        return [b - a for a, b in zip(self.times, self.times[1:-1])]

    @property
    def complete(self):
        """The whole answer came: a stream with its last event, or a body of the length that its head says."""
        if self.problem or not self.ended:
            return False
        if b"text/event-stream" in self.head:
            return b"data: [DONE]" in self.tail
        head, _, body = self.head.partition(b"\r\n\r\n")
        length = [int(l.split(b":")[1]) for l in head.split(b"\r\n") if l.lower().startswith(b"content-length:")]
        return len(length) == 1 and (len(body) >= length[0] if len(self.head) < 4096 else True)


class Load:
    def __init__(self, port):
        self.port = port
        self.poll = select.epoll()
        self.live = {}  # descriptor -> (socket, client)
        self.done = collections.deque()

    def start(self, client, receive_bytes=None):
        s = socket.socket()
        if receive_bytes:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.setblocking(False)
        client.started = time.perf_counter()
        s.connect_ex(("127.0.0.1", self.port))
        self.live[s.fileno()] = s, client
        self.poll.register(s.fileno(), select.EPOLLOUT)
        return client

    def _end(self, fd, problem=None):
        s, client = self.live.pop(fd)
        self.poll.unregister(fd)
        s.close()
        client.ended = time.perf_counter()
        client.problem = problem
        self.done.append(client)

    def turn(self, wait_s):
        """What has happened, or wait_s at most."""
        for fd, what in self.poll.poll(wait_s, 512):
            s, client = self.live[fd]
            try:
                if what & select.EPOLLOUT and client.request:
                    n = s.send(client.request)
                    client.request = client.request[n:]
                    if not client.request:
                        self.poll.modify(fd, select.EPOLLIN if client.reads else 0)
                elif not client.reads:
                    self._end(fd, "closed")  # cut while it did not read
                else:
                    piece = s.recv(1 << 16)
                    if not piece:
                        self._end(fd)
                        continue
                    client.times.append(time.perf_counter())
                    if len(client.head) < 4096:
                        client.head += piece
                    client.tail = client.tail[-64:] + piece
                    client.events += piece.count(b"data: ")
                    if client.keep_text:
                        client.text.append(piece)
            except OSError as error:
                self._end(fd, type(error).__name__)

    def finish(self, seconds):
        """Until all have ended; returns those that ended."""
        end = time.perf_counter() + seconds
        while self.live and time.perf_counter() < end:
            self.turn(0.1)
        return self.take_done()

    def take_done(self):
        found = list(self.done)
        self.done.clear()
        return found

    def drop_all(self, by_reset=True):
        for fd in list(self.live):
            s, client = self.live.pop(fd)
            self.poll.unregister(fd)
            (reset if by_reset else socket.socket.close)(s)
            client.problem = "dropped"

    def closed_loop(self, make, concurrency, seconds):
        """Keeps `concurrency` requests under way for so long, then lets them end; who is refused comes back a tenth of a second
        later.  Returns (clients, how many were served in time)."""
        end = time.perf_counter() + seconds
        found, waiting = [], collections.deque()
        for _ in range(concurrency):
            self.start(make())
        while (now := time.perf_counter()) < end:
            while waiting and waiting[0] <= now:
                waiting.popleft()
                self.start(make())
            self.turn(max(0.0, min(end, *waiting) - now) if waiting else end - now)
            for client in self.take_done():
                found.append(client)
                if client.status == 200:
                    self.start(make())
                else:
                    waiting.append(time.perf_counter() + 0.1)
        in_time = len([c for c in found if c.ended <= end and c.status == 200])
        return found + self.finish(60), in_time

    def open_loop(self, make, per_second, seconds):
        """Starts requests at a rate, whatever becomes of them."""
        begin = now = time.perf_counter()
        found, num_started, latest = [], 0, 0.0
        while now < begin + seconds:
            due = begin + num_started / per_second
            if now >= due:
                self.start(make())
                num_started += 1
                latest = max(latest, now - due)
            self.turn(max(0.0, min(0.05, begin + num_started / per_second - now)) if now < due else 0.0)
            found += self.take_done()
            now = time.perf_counter()
        in_time = len([c for c in found if c.ended <= begin + seconds and c.status == 200])
        return found + self.finish(120), in_time


figures = []


def figure(what, value, goal=""):
    figures.append({"what": what, "value": value, "goal": goal})
    print(f"# {what}: {value}" + (f" (goal: {goal})" if goal else ""), flush=True)


# ---- requests and numbers ------------------------------------------------------------------------------------------------

MIB = 1 << 20
QUESTION = "%s has %d boxes with %d pens each. He gives %d pens to Anna. How many pens are left?"
NAMES = ("Tom", "Oscar", "Nina", "Eve", "Max", "Lena", "Paul", "Rita")


def question(i):
    return QUESTION % (NAMES[i % 8], 2 + i // 8 % 60, 3 + i // 480 % 60, 1 + i // 3 % 90)


def chat(i, max_tokens=60, **more):
    return request_bytes({"messages": [{"role": "user", "content": question(i)}], "max_tokens": max_tokens, "seed": i, **more},
                         "/v1/chat/completions")


def completion(i, max_tokens, **more):
    return request_bytes({"prompt": question(i), "max_tokens": max_tokens, "seed": i, "ignore_eos": True, **more})


def num_blocks(m):
    return sum(m['moefuse:kv_blocks{state="%s"}' % k] for k in ("free", "used", "cached"))


def settle(server):
    """The numbers once nothing is left of what went; it may take the server a moment to see the last client go."""
    m = server.idle_metrics(30)
    end = time.time() + 10
    while m["moefuse:http_connections"] > 1 and time.time() < end:
        time.sleep(0.02)
        m = server.metrics()
    return m


def warm(server, num=200):
    """Fills the KV cache and the allocator as a server is filled that has worked for a while."""
    load = Load(server.port)
    for i in range(num):
        load.start(Client(completion(100000 + i, 200, stream=True)))
    load.finish(120)


def claim_nothing_left(server, before, what):
    m = settle(server)
    claim(f"{what}: every KV block is back", m['moefuse:kv_blocks{state="used"}'] == 0 and num_blocks(m) == num_blocks(before) and
          m["moefuse:kv_invariant_violations_total"] == 0, m)
    return m
