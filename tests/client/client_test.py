"""`moefuse bench serve` and `moefuse eval` against a server whose timings, answers and faults are known; `bench compare` and
`bench report` as a user runs them.

    client_test.py PATH/TO/moefuse"""
import hashlib
import json
import os
import pathlib
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from mock_server import MockServer  # noqa: E402
from tap import claim, plan, skip  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
MODEL = str(ROOT / "models" / "word-problems")
FIXTURES = ROOT / "tests" / "client" / "fixtures"
WORD_PROBLEMS = ROOT / "models" / "word-problems" / "eval" / "word_problems.jsonl"
CHOICES = ROOT / "models" / "word-problems" / "eval" / "word_problems_choice.jsonl"
TEMP = pathlib.Path(tempfile.mkdtemp(prefix="moefuse-client-"))


class Result:
    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        self.all = f"exit {self.code}\nstdout: {self.out}\nstderr: {self.err}"


def moefuse(*arguments, files=None):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MOEFUSE_")}
    limit = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))) if files else None
    return Result(subprocess.run([PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120,
                                 env=clean, stdin=subprocess.DEVNULL, preexec_fn=limit))


def bench(server, *more, files=None, output_len=16):
    return moefuse("bench", "serve", MODEL, "--base-url", server.url, "--random-input-len", 20, "--random-output-len", output_len, *more,
                   files=files)


def close(value, expected, below=0.02, above=0.5):
    """A client may see things a little early (shared clocks) and, on a busy machine, late."""
    return expected * (1 - below) <= value <= expected * (1 + above) + 5


# ---- bench serve ----

def timings():
    with MockServer(first_s=0.1, token_s=0.02) as server:
        path = TEMP / "timings.json"
        r = bench(server, "--num-prompts", 12, "--max-concurrency", 4, "--percentile-metrics", "ttft,tpot,itl,e2el", "--save-detailed",
                  "--result-filename", path, "--ignore-eos", "--temperature", 0)
        claim("bench serve succeeds and prints vLLM's table", r.code == 0 and "Successful requests:                     12        \n" in r.out
              and "\n----------------End-to-end Latency----------------\n" in r.out, r.all)
        d = json.loads(path.read_text())
        claim("TTFT, ITL, TPOT and E2EL are what the server did", close(d["median_ttft_ms"], 100) and close(d["median_itl_ms"], 20, 0.2)
              and close(d["median_tpot_ms"], 20, 0.2) and close(d["median_e2el_ms"], 100 + 15 * 20), {k: d[k] for k in d if k.endswith("_ms")})
        claim("the counts are exact", d["completed"] == 12 and d["failed"] == 0 and d["total_output_tokens"] == 12 * 16
              and d["num_prompts"] == 12 and d["max_concurrency"] == 4 and d["request_rate"] == "inf", d)
        claim("throughputs are counts over the duration", abs(d["output_throughput"] * d["duration"] - 192) < 0.01
              and abs(d["request_throughput"] * d["duration"] - 12) < 0.001, d)
        claim("details hold every request", len(d["ttfts"]) == 12 and all(len(i) == 15 for i in d["itls"]) and set(d["errors"]) == {""}
              and d["generated_texts"][0].startswith("tok0 tok1 ") and d["output_lens"] == [16] * 12, d["errors"])
        claim("never more at once than asked", server.most == 4, server.most)
        body = server.bodies[0]
        claim("requests are vLLM's: a text, a stream with usage, no coercion of what was not asked", isinstance(body["prompt"], str)
              and body["stream"] is True and body["stream_options"] == {"include_usage": True} and body["max_tokens"] == 16
              and body["ignore_eos"] is True and body["temperature"] == 0 and body["model"] == "mock" and "seed" not in body, body)
        about = d["moefuse"]
        claim("the result says build, machine, flags and the server's expert load", about["version"] and about["cpu"] and about["isa"]
              and about["flags"]["random_input_len"] == 20 and len(about["expert_load"]["layers"]) == 3, about)
        prompts = [b["prompt"] for b in server.bodies]
        claim("prompts differ", len(set(prompts)) == 12)
    with MockServer() as server:
        bench(server, "--num-prompts", 12, "--max-concurrency", 4)
        claim("equal seeds give equal prompts, and no temperature is sent unless told", [b["prompt"] for b in server.bodies] == prompts
              and "temperature" not in server.bodies[0] and "ignore_eos" not in server.bodies[0])
        server.bodies.clear()
        bench(server, "--num-prompts", 12, "--seed", 5, "--random-range-ratio", 0.5)
        lengths = {b["max_tokens"] for b in server.bodies}
        claim("another seed gives others, and a range ratio draws lengths", not set(prompts) & {b["prompt"] for b in server.bodies}
              and len(lengths) > 2 and min(lengths) >= 8 and max(lengths) <= 24, lengths)


def rates():
    with MockServer(first_s=0.001, token_s=0) as server:
        path = TEMP / "rate.json"
        r = bench(server, "--num-prompts", 60, "--request-rate", 100, "--result-filename", path, "--save-detailed", output_len=2)
        d = json.loads(path.read_text())
        starts = sorted(d["start_times"])
        claim("60 requests at 100 a second take 0.6 s", r.code == 0 and 0.45 < starts[-1] - starts[0] < 2, starts[-1] - starts[0])
        claim("the table tells the rate", "Request rate configured (RPS):           100.00    \n" in r.out and d["request_rate"] == 100, r.out)
    with MockServer(first_s=0.2, token_s=0) as server:
        r = bench(server, "--num-prompts", 200, output_len=1, files=90)
        claim("never more connections than descriptors, and it is said", r.code == 0 and server.most <= 30 and "ulimit -n" in r.err
              and "Successful requests:                     200 " in r.out, f"{server.most} {r.all}")
    with MockServer(first_s=0.05, token_s=0) as server:
        r = bench(server, "--num-prompts", 300, output_len=2)
        claim("300 at once all come back", r.code == 0 and "Successful requests:                     300 " in r.out and server.most > 100,
              f"{server.most} {r.all}")


def faults():
    with MockServer(fail_every=5, cut_every=7) as server:
        path = TEMP / "faults.json"
        r = bench(server, "--num-prompts", 35, "--max-concurrency", 3, "--result-filename", path, "--save-detailed")
        d = json.loads(path.read_text())
        errors = [e for e in d["errors"] if e]
        claim("refused and cut requests are counted and kept, the others measured", r.code == 0 and d["failed"] == 11 and d["completed"] == 24
              and sum(e == "HTTP 500: asked to fail" for e in errors) == 7 and len(errors) == 11, r.all + str(errors))
        claim("a stream that was cut says so", sum("in the middle of an answer" in e for e in errors) == 4, errors)
        claim("failures are told at once, with the first cause", "11 of 35 requests failed; the first: " in r.err, r.err)
        claim("a failed request adds no tokens", d["total_output_tokens"] == 24 * 16, d["total_output_tokens"])
    with MockServer(error_event_every=2, close_every=1) as server:
        r = bench(server, "--num-prompts", 6, "--max-concurrency", 1, "--json")
        d = json.loads(r.out)
        claim("an error event is a failure, and connections that close are opened anew", d["failed"] == 3 and d["completed"] == 3
              and server.connections >= 6, r.all)
    with MockServer(with_usage=False, framing="close") as server:
        r = bench(server, "--num-prompts", 3, "--json")
        d = json.loads(r.out)
        text = "".join("tok%d " % i for i in range(16))
        claim("without usage tokens are counted in the text; a stream may end with its connection",
              d["completed"] == 3 and d["total_output_tokens"] > 16 * 3 and text, r.all)
    with MockServer(fail_every=1) as server:
        r = bench(server, "--num-prompts", 3)
        claim("when every request fails the exit code is 1, after the table", r.code == 1 and "every request failed" in r.err
              and "Failed requests:                         3 " in r.out, r.all)
    r = moefuse("bench", "serve", MODEL, "--base-url", "http://127.0.0.1:9", "--num-prompts", 1)
    claim("no server there: one line with the reason", r.code == 1 and re.search(r"moefuse: error: --base-url: cannot connect to 127.0.0.1:9: Connection refused", r.err), r.all)
    with MockServer(first_s=30) as server:
        process = subprocess.Popen([PROGRAM, "bench", "serve", MODEL, "--base-url", server.url, "--num-prompts", "4", "--random-input-len", "9"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        for _ in range(100):
            if server.now:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        claim("Ctrl-C ends a run with 130", process.returncode == 130 and b"interrupted" in err, err)


def kinds():
    with MockServer() as server:
        r = bench(server, "--backend", "openai-chat", "--num-prompts", 3, "--json")
        d = json.loads(r.out)
        claim("chat: messages are sent, the role's event is no token", d["completed"] == 3 and d["endpoint_type"] == "openai-chat"
              and server.bodies[0]["messages"][0]["role"] == "user" and d["total_output_tokens"] == 48, r.all)
        data = TEMP / "prompts.jsonl"
        data.write_text('{"prompt": "one", "output_tokens": 3}\n\n{"prompt": "two \\u00e9"}\n')
        server.bodies.clear()
        r = moefuse("bench", "serve", MODEL, "--base-url", server.url, "--dataset-name", "custom", "--dataset-path", data, "--num-prompts", 3,
                    "--max-concurrency", 1, "--json")
        claim("prompts of a file are asked in order, and again", [(b["prompt"], b["max_tokens"]) for b in server.bodies] ==
              [("one", 3), ("two \u00e9", 256), ("one", 3)] and json.loads(r.out)["total_input_tokens"] > 3, r.all)
        data.write_text(json.dumps([{"conversations": [{"value": "ask"}, {"value": "a longer answer here"}]}]))
        server.bodies.clear()
        r = moefuse("bench", "serve", MODEL, "--base-url", server.url, "--dataset-name", "sharegpt", "--dataset-path", data, "--num-prompts", 1, "--json")
        claim("sharegpt asks the first turn for the second's length", server.bodies and server.bodies[0]["prompt"] == "ask"
              and server.bodies[0]["max_tokens"] > 2, r.all)
        data.write_text('{"prompt": 5}\n')
        r = moefuse("bench", "serve", MODEL, "--base-url", server.url, "--dataset-name", "custom", "--dataset-path", data)
        claim("a prompt that is no text is refused by file and entry", r.code != 0 and "prompts.jsonl: entry 1: expected a string" in r.err, r.all)
        path = TEMP / "sweep.jsonl"
        r = bench(server, "--num-prompts", 8, "--sweep-max-concurrency", "1,2,4", "--rounds", 2, "--result-filename", path)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        claim("a sweep runs each level in each round and sums up", r.code == 0 and [d["max_concurrency"] for d in lines] == [1, 2, 4] * 2
              and len(r.out.splitlines()) == 4 and r.out.startswith("concurrency "), r.all)
        r = bench(server, "--num-prompts", 2, "--goodput", "ttft:10000", "tpot:5000", "--json")
        d = json.loads(r.out)
        claim("--goodput takes several words as vLLM's does", r.code == 0 and abs(d["request_goodput"] - d["request_throughput"]) < 1e-9, r.all)


def usage():
    with MockServer(max_model_len=30) as server:
        r = bench(server)
        claim("more tokens than the server's model takes are refused with both numbers", r.code == 2 and "at most 30 tokens; got 36" in r.err, r.all)
    cases = [
        (["--request-rate", "0"], "--request-rate: expected a number above 0, or inf; got \"0\""),
        (["--sweep-max-concurrency", "1,,2"], "--sweep-max-concurrency: expected"),
        (["--sweep-max-concurrency", "1", "--max-concurrency", "1"], "exclude each other"),
        (["--percentile-metrics", "ttft,foo"], "--percentile-metrics: expected ttft, tpot, itl, e2el; got \"ttft,foo\""),
        (["--metric-percentiles", "101"], "--metric-percentiles: expected"),
        (["--goodput", "foo:1"], "--goodput: expected"),
        (["--dataset-name", "custom"], "--dataset-name custom: expected --dataset-path FILE; got none"),
        (["--fusion", "both", "--base-url", "http://127.0.0.1:1"], "--fusion both: expected no --base-url"),
        (["--fusion", "both", "--rounds", "2"], "--rounds: expected at least 3 with --fusion both; got 2"),
        (["--base-url", "https://x"], "https is not spoken here"),
        (["--num-promts", "3"], "did you mean --num-prompts?"),
    ]
    for arguments, message in cases:
        r = moefuse("bench", "serve", MODEL, *arguments)
        claim(f"bench serve {' '.join(arguments)} is refused", r.code == 2 and message in r.err and r.err.startswith("moefuse: error: "), r.all)
    r = moefuse("bench", "serve", "--base-url", "http://127.0.0.1:1")
    claim("random prompts need a tokenizer", r.code == 2 and "--tokenizer DIR" in r.err, r.all)
    for mode in ("serve", "compare", "report", "latency", "throughput"):
        r = moefuse("bench", mode, "--help")
        claim(f"bench {mode} --help answers", r.code == 0 and "usage: moefuse bench " + mode in r.out and "--" in r.out, r.all)
    r = moefuse("eval", "--help")
    claim("eval --help answers", r.code == 0 and "--min-accuracy" in r.out and "fusion:" in r.out, r.all)


# ---- compare and report ----

def results():
    sweep, vllm, sglang = (FIXTURES / n for n in ("sweep.jsonl", "vllm.json", "sglang.jsonl"))
    r = moefuse("bench", "compare", sweep)
    claim("bench compare of one file shows its variants", r.code == 0 and "B = " in r.out and "worse" in r.out, r.all)
    r = moefuse("bench", "compare", sweep, "--threshold", "5%")
    claim("worse than the threshold is exit 3", r.code == 3 and "worse than A by more than 5 %" in r.err, r.all)
    r = moefuse("bench", "compare", sweep, "--threshold", "0.2", "--json")
    d = json.loads(r.out)
    claim("--json is one document", r.code == 0 and d["worse"] is False and len(d["groups"]) == 6
          and d["groups"][0]["metrics"][0]["metric"] == "request_throughput", r.all)
    r = moefuse("bench", "compare", vllm, sglang)
    claim("vLLM's and SGLang's files are compared", r.code == 0 and "Median TTFT (ms)" in r.out, r.all)
    other = TEMP / "other.json"
    other.write_text(vllm.read_text().replace('"num_prompts": 64', '"num_prompts": 65'))
    r = moefuse("bench", "compare", vllm, other)
    claim("unequal workloads are refused with the reason and the way out", r.code == 2 and "64 against 65 prompts" in r.err and "--force" in r.err, r.all)
    claim("--force compares them", moefuse("bench", "compare", vllm, other, "--force").code == 0)
    r = moefuse("bench", "compare", vllm, TEMP / "none.json")
    claim("a file that is not there is named", r.code == 1 and "none.json" in r.err, r.all)
    r = moefuse("bench", "compare", vllm, other, "--threshold", "x")
    claim("a threshold that is no share is refused", r.code == 2 and "--threshold: expected a share" in r.err, r.all)
    page = TEMP / "report.html"
    r = moefuse("bench", "report", sweep, "-o", page)
    claim("bench report writes the golden page", r.code == 0 and page.read_bytes() == (FIXTURES / "sweep.html").read_bytes(), r.all)
    r = moefuse("bench", "report", vllm, sglang, "-o", page)
    claim("several files are lines of one chart, named", r.code == 0 and "vllm.json" in page.read_text() and "sglang.jsonl" in page.read_text(), r.all)
    r = moefuse("bench", "report", sweep, "-o", TEMP / "no" / "where.html")
    claim("a page that cannot be written is named", r.code == 1 and "where.html" in r.err, r.all)


# ---- eval ----

def lm_eval_regex(text, pattern, group_select):
    match = re.findall(pattern, text)
    if not match:
        return "[invalid]"
    match = match[group_select]
    if isinstance(match, tuple):
        match = [m for m in match if m]
        match = match[0] if match else "[invalid]"
    return match.strip()


def lm_eval_exact(prediction, reference):
    """exact_match of lm-eval 0.4.13 with gsm8k's settings."""
    for pattern in (",", "\\$", "(?s).*#### ", "\\.$"):
        prediction, reference = re.sub(pattern, "", prediction), re.sub(pattern, "", reference)
    return prediction.lower() == reference.lower()


def random_answer(rng, gold):
    parts = ["#### ", "####", " ", "\n", "-", "$", ",", ".", "5", "12", "1,234", "answer", gold, "#### " + gold, "#### $" + gold, gold + ".", "é", "#### -"]
    return "".join(rng.choice(parts) for _ in range(rng.randrange(12)))


def generate():
    rng = random.Random(20261129)
    items = [{"question": f"question number {i}?", "answer": f"work {i}\n#### {rng.choice(['7', '1,234', '-5', '12', '5.', '0.5'])}"} for i in range(400)]
    data = TEMP / "generate.jsonl"
    data.write_text("".join(json.dumps(i) + "\n" for i in items))
    answers = {i["question"]: random_answer(rng, i["answer"].split("#### ")[1]) for i in items}
    number = re.compile(r"question number \d+\?")

    def answer(request):
        text = request["prompt"] if "prompt" in request else request["messages"][-1]["content"]
        return [answers[number.findall(text)[-1]]]

    with MockServer(first_s=0, answer=answer, refuse_first=3, fail_every=50) as server:
        output = TEMP / "out.json"
        r = moefuse("eval", "--base-url", server.url, "--data", data, "--output", output, "--max-concurrency", 32, "--max-tokens", 77)
        d = json.loads(output.read_text())
        got = [(i["strict"], i["flexible"]) for i in d["results"][0]["items"]]
        expected = []
        for item in items:
            text = answers[item["question"]]
            expected.append((lm_eval_exact(lm_eval_regex(text, r"#### (\-?[0-9\.\,]+)", 0), item["answer"]),
                             lm_eval_exact(lm_eval_regex(text, r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1), item["answer"])))
        wrong = [(items[i], answers[items[i]["question"]], got[i], expected[i]) for i in range(400) if got[i] != expected[i]]
        claim("400 random texts are judged as lm-eval's gsm8k filters judge them", r.code == 0 and not wrong, f"{wrong[:3]} {r.err}")
        claim("both verdicts occur", 10 < sum(s for s, _ in expected) < 390 and 10 < sum(f for _, f in expected) < 390)
        measures = d["results"][0]["measures"]
        claim("the shares are those of the items", abs(measures["strict"]["value"] - sum(s for s, _ in expected) / 400) < 1e-9
              and abs(measures["flexible"]["value"] - sum(f for _, f in expected) / 400) < 1e-9, measures)
        claim("429 and 500 are tried again", server.count > 400 + 3, server.count)
        body = server.bodies[-1]
        claim("prompts are lm-eval's, greedy, with its stops", body["prompt"].startswith("Question: question number") and
              body["prompt"].endswith("?\nAnswer:") and body["temperature"] == 0 and body["max_tokens"] == 77
              and body["stop"] == ["Question:", "</s>", "<|im_end|>"], body)
        claim("the table has strict and flexible with stderr and interval", re.search(r"^generate +strict +400 +0\.\d{4} +0\.\d{4} +0\.\d{4} \.\. 0\.\d{4}", r.out, re.M), r.out)
        r = moefuse("eval", "--base-url", server.url, "--data", data, "--min-accuracy", 0.999, "--limit", 50)
        claim("an accuracy below --min-accuracy is exit 3", r.code == 3 and "expected at least 0.999" in r.err and " 50 " in r.out, r.all)
        server.bodies.clear()
        r = moefuse("eval", "--base-url", server.url, "--data", data, "--chat", "--limit", 5, "--num-shots", 2, "--fewshot", data)
        messages = server.bodies[0]["messages"]
        claim("--chat with examples sends turns", r.code == 0 and [m["role"] for m in messages] == ["user", "assistant"] * 2 + ["user"]
              and messages[1]["content"] == items[0]["answer"] and "stop" not in server.bodies[0], r.all)
        server.bodies.clear()
        r = moefuse("eval", "--base-url", server.url, "--data", data, "--limit", 1, "--num-shots", 1, "--fewshot", data)
        claim("an example stands before the question as lm-eval lays it out", server.bodies[0]["prompt"] ==
              f"Question: question number 0?\nAnswer: {items[0]['answer']}\n\nQuestion: question number 0?\nAnswer:", server.bodies[0])
        server.bodies.clear()
    with MockServer(fail_every=1) as server:
        r = moefuse("eval", "--base-url", server.url, "--data", data, "--limit", 2)
        claim("an evaluation without all answers is none", r.code == 1 and "HTTP 500: asked to fail (4 tries)" in r.err and not r.out, r.all)


def choices():
    """Log-likelihoods that depend on ids and place alone, so that sums can be checked here."""
    def logprob(ids, i):
        digest = hashlib.sha256(json.dumps([ids[i - 1], ids[i], i]).encode()).digest()
        return -int.from_bytes(digest[:3], "big") / 2 ** 22

    data = TEMP / "choice.jsonl"
    rng = random.Random(7)
    words = ["red", "blue", "a much longer answer", "12", "é è", "no"]
    items = [{"question": f"pick {i} ", "choices": rng.sample(words, 4), "answer": rng.choice([1, "C", "a", 3])} for i in range(60)]
    data.write_text("".join(json.dumps(i) + "\n" for i in items))
    with MockServer(first_s=0, logprob=logprob) as server:
        output = TEMP / "choice.json"
        r = moefuse("eval", MODEL, "--base-url", server.url, "--data", data, "--output", output, "--prompt-format", "{question}")
        d = json.loads(output.read_text())
        asked = {}
        for body in server.bodies:
            asked.setdefault(json.dumps(body["prompt"]), body)
        claim("each choice is one request: ids, echo, one token, log-probabilities", r.code == 0 and len(server.bodies) == 240
              and all(b["echo"] is True and b["max_tokens"] == 1 and b["logprobs"] == 1 and isinstance(b["prompt"][0], int) for b in server.bodies), r.all)
        gold = [1 if i["answer"] == 1 else 2 if i["answer"] == "C" else 0 if i["answer"] == "a" else 3 for i in items]
        acc = acc_norm = acc_bytes = 0
        for item, g, result in zip(items, gold, d["results"][0]["items"]):
            lls = result["loglikelihoods"]
            acc += max(range(4), key=lambda c: lls[c]) == g
            acc_norm += max(range(4), key=lambda c: lls[c] / len(item["choices"][c])) == g
            acc_bytes += max(range(4), key=lambda c: lls[c] / len(item["choices"][c].encode())) == g
        m = d["results"][0]["measures"]
        claim("acc, acc_norm (characters) and acc_bytes follow from the sums", abs(m["acc"]["value"] - acc / 60) < 1e-9
              and abs(m["acc_norm"]["value"] - acc_norm / 60) < 1e-9 and abs(m["acc_bytes"]["value"] - acc_bytes / 60) < 1e-9, m)
        try:
            import tokenizers
        except ImportError:
            tokenizers = None
        if tokenizers:
            tok = tokenizers.Tokenizer.from_file(str(pathlib.Path(MODEL) / "tokenizer.json"))
            wrong = 0
            for item, result in zip(items, d["results"][0]["items"]):
                for c, choice in enumerate(item["choices"]):
                    context, continuation = item["question"], " " + choice  # lm-eval's _encode_pair
                    n_spaces = len(context) - len(context.rstrip())
                    if n_spaces > 0:
                        continuation, context = context[-n_spaces:] + continuation, context[:-n_spaces]
                    whole = tok.encode(context + continuation, add_special_tokens=False).ids
                    start = len(tok.encode(context, add_special_tokens=False).ids)
                    wrong += abs(sum(logprob(whole, i) for i in range(start, len(whole))) - result["loglikelihoods"][c]) > 1e-6
            claim("context and continuation are encoded together and split as lm-eval does", wrong == 0, wrong)
    r = moefuse("eval", "--base-url", "http://127.0.0.1:1", "--data", data)
    claim("choices need a tokenizer", r.code in (1, 2) and ("--tokenizer DIR" in r.err or "cannot connect" in r.err), r.all)


def in_process():
    few = ["--limit", 24, "--max-tokens", 128, "--threads", 2]
    output = TEMP / "both.json"
    r = moefuse("eval", MODEL, "--data", WORD_PROBLEMS, "--chat", "--fusion", "both", "--min-accuracy", 0.9, "--output", output, *few)
    claim("eval --fusion both: equal transcripts, both accuracies", r.code == 0 and "log-probability's bits: 0 of 24" in r.out
          and r.out.count("strict") == 2, r.all)
    d = json.loads(output.read_text())
    item = d["results"][0]["items"][0]
    claim("--output keeps prompt, output, ids and verdict", item["output"] and item["strict"] is True and item["token_ids"]
          and item["question"] in item["prompt"] and d["differing_transcripts"] == 0, item)
    a = moefuse("eval", MODEL, "--data", CHOICES, "--task", "choice", "--limit", 12, "--json", "--fusion", "both")
    d = json.loads(a.out)
    claim("choices are ranked in-process, fused and separate alike", a.code == 0 and d["differing_transcripts"] == 0 and d["type"] == "choice"
          and d["results"][0]["measures"] == d["results"][1]["measures"], a.all)
    bad = TEMP / "bad.jsonl"
    cases = [('{"question": "q"}\n', "entry 1: expected a string \"answer\" with ####; got nothing"),
             ('{"question": "q", "choices": ["a"], "answer": 3}\n', "entry 1: expected \"answer\" as an index of choices or its letter; got an integer"),
             ('{"question": "q", "choices": [], "answer": 0}\n', "entry 1: expected \"choices\" with 1 to 64 strings"),
             ('{"question": "q", "answer": "#### 1"}\n{"question": 5, "answer": "#### 1"}\n', "entry 2: expected a string \"question\"; got an integer"),
             ('{"question": "q", "answer": "#### 1"}\n{broken\n', "line 2"), ("", "bad.jsonl")]
    for text, message in cases:
        bad.write_text(text)
        r = moefuse("eval", MODEL, "--data", bad)
        claim(f"questions that are none are refused by place: {message[:40]}", 1 <= r.code <= 125 and message in r.err and "bad.jsonl" in r.err, r.all)
    for arguments, message in [(["eval", MODEL], "--data: expected a file"), (["eval", MODEL, "--data", bad, "--prompt-format", "x"], "{question}"),
                               (["eval", "--data", bad, "--base-url", "http://x", "--fusion", "both"], "--fusion both: expected no --base-url"),
                               (["eval", TEMP / "none", "--data", bad], "expected a model directory")]:
        r = moefuse(*arguments)
        claim(f"eval usage: {message}", r.code == 2 and message in r.err, r.all)


# ---- a server of one's own ----

def own_server():
    if moefuse("serve", "--help").code != 0:
        return skip("bench serve starts its own server (this program has no verb serve)")
    few = ["--random-input-len", 12, "--random-output-len", 8, "--num-prompts", 6, "--ignore-eos", "--temperature", 0, "--threads", 2]
    path = TEMP / "own.jsonl"
    r = moefuse("bench", "serve", MODEL, *few, "--max-concurrency", 2, "--json")
    d = json.loads(r.out) if r.code == 0 else {}
    claim("without --base-url the model is served, measured and stopped", r.code == 0 and d["completed"] == 6 and d["total_output_tokens"] == 48
          and d["moefuse"]["fusion"]["variant"] == "fused" and d["moefuse"]["expert_load"]["layers"], r.all)
    r = moefuse("bench", "serve", MODEL, *few, "--sweep-max-concurrency", "1,2", "--fusion", "all", "--rounds", 3, "--save-detailed",
                "--result-filename", path)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if r.code == 0 else []
    order = [(d["moefuse"]["round"], d["moefuse"]["fusion"]["variant"], d["max_concurrency"]) for d in lines]
    names = ["fused", "shared experts separate", "gate separate"]
    claim("variants take turns within each round", order == [(n, v, c) for n in (1, 2, 3) for v in names for c in (1, 2)], r.all)
    texts = {d["max_concurrency"]: set() for d in lines}
    for d in lines:
        texts[d["max_concurrency"]].add(json.dumps(d["generated_texts"]))
    claim("all variants and rounds answer the same prompts alike", all(len(t) == 1 for t in texts.values()), texts)
    claim("the summary compares variants", "against fused" in r.out and "95 % interval" in r.out, r.out)
    config = TEMP / "config.json"
    config.write_bytes((pathlib.Path(MODEL) / "config.json").read_bytes())
    r = moefuse("bench", "serve", config, *few, "--load-format", "dummy", "--max-concurrency", 3, "--random-range-ratio", 0.5, "--save-detailed",
                "--json")
    d = json.loads(r.out) if r.code == 0 else {"generated_texts": []}
    claim("a model without a tokenizer is asked with lists of ids, and its answers are ids", len(d["generated_texts"]) == 6 and d["failed"] == 0 and
          [len(t.split()) for t in d["generated_texts"]] == d["output_lens"] and len(set(d["input_lens"])) > 1 and
          all(int(i) >= 0 for t in d["generated_texts"] for i in t.split()), r.all)
    r = moefuse("bench", "serve", config, *few, "--load-format", "dummy", "--backend", "openai-chat")
    claim("a chat without a tokenizer is refused", r.code == 2 and "expected a tokenizer" in r.err, r.all)
    r = moefuse("bench", "serve", MODEL, *few, "--max-model-len", 10)
    claim("more tokens than the model takes are refused", r.code == 2 and "at most 10 tokens; got 20" in r.err, r.all)
    r = moefuse("bench", "serve", MODEL, *few, "--kv-cache-memory-bytes", 1)
    claim("a server that cannot start says why", r.code != 0 and "the server ended before it was ready; it said: moefuse: error: " in r.err, r.all)
    process = subprocess.Popen([PROGRAM, "bench", "serve", MODEL, "--random-input-len", "9", "--random-output-len", "900", "--num-prompts", "5000"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    found = None
    for line in process.stderr:
        found = re.search(r"http://127.0.0.1:(\d+)", line)
        if found:
            break
    process.kill()
    process.wait()
    gone = False
    for _ in range(100):
        with socket.socket() as probe:
            gone = probe.connect_ex(("127.0.0.1", int(found.group(1)))) != 0
        if gone:
            break
        time.sleep(0.05)
    process.stderr.close()
    claim("the server dies with the bench that started it", found and gone, found)


for part in (usage, timings, rates, faults, kinds, results, generate, choices, in_process, own_server):
    part()
sys.exit(plan())
