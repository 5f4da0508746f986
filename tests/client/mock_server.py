"""A small OpenAI-compatible server with faults on demand, for the tests of the client side.

    with MockServer(first_s=0.02, token_s=0.002, fail_every=0, cut_every=0, ...) as server: server.url

Every request's body is kept in server.bodies.  Timings are what the test asked for, so that the client's figures can be
checked against them."""
import asyncio
import json
import threading


class MockServer:
    def __init__(self, first_s=0.01, token_s=0.001, fail_every=0, cut_every=0, refuse_first=0, close_every=0, error_event_every=0,
                 with_usage=True, framing="chunked", answer=None, logprob=None, max_model_len=4096, models=("mock",), tokenize=None):
        self.__dict__.update(locals())
        self.bodies, self.count, self.connections, self.now, self.most = [], 0, 0, 0, 0
        self.tokens_of = tokenize

    def __enter__(self):
        started = threading.Event()

        def run():
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
            server = self.loop.run_until_complete(asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=2048))
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            self.loop.run_forever()
            server.close()
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        started.wait()
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)

    async def serve(self, reader, writer):
        self.connections += 1
        answered = 0
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *fields = head.split("\r\n")
                length = next((int(f.split(":")[1]) for f in fields if f.lower().startswith("content-length:")), 0)
                body = await reader.readexactly(length)
                method, path, _ = line.split(" ")
                answered += 1
                await self.route(method, path, body, writer)
                if self.close_every and answered % self.close_every == 0:
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        writer.close()

    async def reply(self, writer, status, document, extra=""):
        text = json.dumps(document).encode()
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{extra}Content-Length: {len(text)}\r\n\r\n".encode() + text)
        await writer.drain()

    async def route(self, method, path, body, writer):
        if path == "/v1/models":
            data = [{"id": m, "object": "model", "max_model_len": self.max_model_len} for m in self.models]
            return await self.reply(writer, 200, {"object": "list", "data": data})
        if path == "/v1/moe/expert-load":
            layers = [{"layer": i, "mode": "slot", "routed": [(i * 7 + e * e) % 50 for e in range(8)], "shared": [99], "jain": 0.8,
                       "max_over_mean": 2.0, "top": [1], "bottom": [2], "bad_rows": 0} for i in range(3)]
            return await self.reply(writer, 200, {"window_s": 0, "tokens": 100, "layers": layers})
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return await self.reply(writer, 404, {"error": {"message": f"no {path}", "type": "NotFoundError", "code": 404}})
        request = json.loads(body)
        self.bodies.append(request)
        self.count += 1
        number = self.count
        if number <= self.refuse_first:
            return await self.reply(writer, 429, {"error": {"message": "queue full", "code": 429}}, "Retry-After: 0\r\n")
        if self.fail_every and number % self.fail_every == 0:
            return await self.reply(writer, 500, {"error": {"message": "asked to fail", "type": "InternalServerError", "code": 500}})
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if request.get("stream"):
                await self.stream(request, "chat" in path, number, writer)
            else:
                await self.whole(request, "chat" in path, writer)
        finally:
            self.now -= 1

    def text_for(self, request):
        if self.answer:
            return self.answer(request)
        return ["tok%d " % i for i in range(request["max_tokens"])]

    async def whole(self, request, chat, writer):
        await asyncio.sleep(self.first_s)
        if request.get("echo"):
            ids = request["prompt"][0] if isinstance(request["prompt"][0], list) else request["prompt"]
            logprobs = [None] + [self.logprob(ids, i) for i in range(1, len(ids))] + [-1.0]
            choice = {"index": 0, "text": "", "finish_reason": "length",
                      "logprobs": {"tokens": ["x"] * (len(ids) + 1), "token_logprobs": logprobs, "top_logprobs": None, "text_offset": []}}
            return await self.reply(writer, 200, {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}})
        pieces = self.text_for(request)
        text = "".join(pieces)
        choice = {"index": 0, "finish_reason": "stop", **({"message": {"role": "assistant", "content": text}} if chat else {"text": text})}
        await self.reply(writer, 200, {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": len(pieces)}})

    async def stream(self, request, chat, number, writer):
        chunked = self.framing == "chunked"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n" +
                     (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Connection: close\r\n\r\n"))

        async def event(data):
            payload = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(payload), payload) if chunked else payload)
            await writer.drain()

        def piece(text, finish=None):
            body = {"delta": {"content": text}} if chat else {"text": text}
            return {"choices": [{"index": 0, **body, "finish_reason": finish}], "usage": None}

        if chat:
            await event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        pieces = self.text_for(request)
        next_at = self.loop.time() + self.first_s
        for i, text in enumerate(pieces):
            await asyncio.sleep(max(0, next_at - self.loop.time()))
            next_at += self.token_s
            await event(piece(text, "length" if i + 1 == len(pieces) else None))
            if self.cut_every and number % self.cut_every == 0 and i == len(pieces) // 2:
                raise ConnectionError
            if self.error_event_every and number % self.error_event_every == 0 and i == len(pieces) // 2:
                await event({"error": {"message": "engine down", "code": 500}})
                await event("[DONE]")
                raise ConnectionError
        if self.with_usage:
            await event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(pieces)}})
        await event("[DONE]")
        if chunked:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        else:
            raise ConnectionError


if __name__ == "__main__":
    import sys
    import time
    with MockServer(first_s=float(sys.argv[1]), token_s=float(sys.argv[2])) as server:
        print(server.url, flush=True)
        time.sleep(float(sys.argv[3]) if len(sys.argv) > 3 else 60)
