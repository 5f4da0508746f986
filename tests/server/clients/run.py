"""run.py PROGRAM - `make test-clients`: the clients that people have drive the real server, unchanged and offline.

vLLM's benchmark client (its binary from the wheel), lm-eval over both APIs and three tokenizer backends, SGLang's serving
benchmark.  Prints their own tables; the last line is `N passed, N failed`.  tools/setup.sh clients brings them under .clients."""
import json
import os
import pathlib
import random
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CLIENTS = ROOT / ".clients"
WORK = ROOT / "build" / "clients"
MODEL = ROOT / "models" / "word-problems"
NAME = "word-problems"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
           "HF_HOME": str(WORK / "hf"), "OPENAI_API_KEY": "", "NO_COLOR": "1"}
PROGRAM = os.path.abspath(sys.argv[1])
results = []


def claim(name, holds, detail=""):
    results.append(bool(holds))
    print(f"{'ok' if holds else 'NOT OK'} - {name}{': ' + str(detail) if detail and not holds else ''}", flush=True)


def run(name, command, env=None, expect=0, timeout=600):
    print(f"\n== {name}\n$ {' '.join(map(str, command))}", flush=True)
    done = subprocess.run([str(c) for c in command], env={**os.environ, **OFFLINE, **(env or {})}, cwd=WORK, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout)
    shown = "\n".join(line.rsplit("\r", 1)[-1] for line in done.stdout.splitlines())
    print(shown[-6000:], flush=True)
    claim(f"{name}: exit status {expect}", done.returncode == expect, done.returncode)
    return shown


def make_data():
    WORK.mkdir(parents=True, exist_ok=True)
    items = [json.loads(line) for line in open(MODEL / "eval" / "word_problems.jsonl", encoding="utf-8")][:40]
    with open(WORK / "toy_gen.jsonl", "w", encoding="utf-8") as out:
        for item in items:
            out.write(json.dumps({"question": item["question"], "answer": item["answer"]}) + "\n")
    numbers = random.Random(1)
    with open(WORK / "toy_mc.jsonl", "w", encoding="utf-8") as out:
        for item in items:
            right = item["answer"]
            value = right.rsplit("####", 1)[1].strip()
            wrong = [right[: right.rfind(value)] + str(int(value.replace(",", "")) + d) for d in (1, 7, 12)]
            wrong[1] = wrong[1].split("\n", 1)[-1]  # of another length, so that acc and acc_norm may differ
            answer = numbers.randrange(4)
            choices = wrong[:answer] + [right] + wrong[answer:]
            out.write(json.dumps({"question": item["question"], "choices": choices, "answer": answer}) + "\n")
    tasks = WORK / "tasks"
    tasks.mkdir(exist_ok=True)
    for source in (HERE / "tasks").glob("*.yaml"):
        (tasks / source.name).write_text(source.read_text().replace("__DATA__", str(WORK)))
    return tasks


def start(program):
    server = subprocess.Popen([program, "serve", MODEL, "--port", "0", "--served-model-name", NAME], stderr=subprocess.PIPE,
                              text=True, cwd=WORK)
    log = []
    for line in server.stderr:
        log.append(line)
        found = re.search(r"ready on (http://127\.0\.0\.1:\d+)", line)
        if found:
            return server, found.group(1), log
    sys.exit("the server did not start:\n" + "".join(log))


def vllm_bench(url):
    for concurrency, rate in ((1, "inf"), (8, "inf"), (4, "20")):
        result = WORK / "vllm.json"
        result.unlink(missing_ok=True)
        shown = run(f"vllm-rs bench serve, concurrency {concurrency}, rate {rate}",
                    [CLIENTS / "vllm-rs", "bench", "serve", "--backend", "openai", "--base-url", url, "--model", NAME, "--tokenizer",
                     MODEL, "--dataset-name", "random", "--random-input-len", "64", "--random-output-len", "16", "--num-prompts",
                     "40", "--max-concurrency", concurrency, "--request-rate", rate, "--ignore-eos", "--temperature", "0",
                     "--percentile-metrics", "ttft,tpot,itl,e2el", "--save-result", "--result-filename", result])
        saved = json.loads(result.read_text())
        claim("vllm-rs: 40 completed, none failed", saved["completed"] == 40 and saved.get("failed", 0) == 0, saved)
        claim("vllm-rs: every token counted", saved["total_output_tokens"] == 40 * 16, saved["total_output_tokens"])
        claim("vllm-rs: no warning", not re.search(r"\bWARN", shown))
    run("vllm-rs bench serve, chat", [CLIENTS / "vllm-rs", "bench", "serve", "--backend", "openai-chat", "--base-url", url, "--endpoint",
                                      "/v1/chat/completions", "--model", NAME, "--tokenizer", MODEL, "--dataset-name", "random",
                                      "--random-input-len", "32", "--random-output-len", "16", "--num-prompts", "20",
                                      "--max-concurrency", "4", "--ignore-eos", "--temperature", "0"])


def accuracies(out):
    newest = max(pathlib.Path(out).rglob("results_*.json"), key=lambda p: p.stat().st_mtime)
    return json.loads(newest.read_text())["results"]


def own_eval(name, *flags):
    """{measure: value} of `moefuse eval`."""
    print(f"\n== moefuse eval, {name}\n$ moefuse eval {' '.join(map(str, flags))}", flush=True)
    done = subprocess.run([PROGRAM, "eval", *map(str, flags), "--json"], cwd=WORK, text=True, capture_output=True, timeout=600)
    claim(f"moefuse eval, {name}: exit status 0", done.returncode == 0, done.stderr[-2000:])
    measures = {k: m["value"] for k, m in json.loads(done.stdout)["results"][0]["measures"].items()} if done.returncode == 0 else {}
    print(measures, flush=True)
    return measures


def same_accuracy(url, theirs, task, data, keys, *flags):
    """The same questions in the same form: exactly lm-eval's accuracies, over the server and in this process."""
    wanted = {ours: theirs[task][key] for ours, key in keys.items()}
    for place, more in (("over the server", ("--base-url", url, "--tokenizer", MODEL)), ("in-process", (MODEL,))):
        measures = own_eval(f"{task}, {place}", *more, "--data", WORK / data, "--max-tokens", "200", *flags)
        claim(f"moefuse eval of {task} {place} is lm-eval's, exactly", {k: measures.get(k) for k in wanted} == wanted,
              f"{measures} {wanted}")


GENERATE = {"strict": "exact_match,strict-match", "flexible": "exact_match,flexible-extract"}
CHOICE = {"acc": "acc,none", "acc_norm": "acc_norm,none"}
STOPS = ("--stop", "Question:", "--stop", "</s>", "--stop", "<|im_end|>")


def lm_eval(url, tasks):
    base = [CLIENTS / "venv" / "bin" / "lm-eval", "run"]
    seen = []
    for backend in (f"tokenizer={MODEL},tokenizer_backend=huggingface,tokenized_requests=True", "tokenizer_backend=remote"):
        out = WORK / f"lm_eval_{len(seen)}"
        shown = run(f"lm-eval local-completions, {backend.rsplit('/', 1)[-1]}",
                    base + ["--model", "local-completions", "--model_args",
                            f"model={NAME},base_url={url}/v1/completions,num_concurrent=2,max_retries=1,max_length=1024,{backend}",
                            "--tasks", "toy_mc,toy_gen", "--include_path", tasks, "--batch_size", "1", "--output_path", out])
        claim("lm-eval: no failed request", "API request failed" not in shown and "Retry" not in shown)
        seen.append(accuracies(out))
    claim("lm-eval: both tokenizer backends give the same accuracies",
          all(seen[0][t][k] == seen[1][t][k] for t in seen[0] for k in seen[0][t] if isinstance(seen[0][t][k], float)), seen)
    # The shipped model learned its problems as chats, so raw prompts in gsm8k's form are often answered wrongly: what counts is
    # that both programs count the same.
    same_accuracy(url, seen[0], "toy_gen", "toy_gen.jsonl", GENERATE)
    same_accuracy(url, seen[0], "toy_mc", "toy_mc.jsonl", CHOICE)
    out = WORK / "lm_eval_chat"
    run("lm-eval local-chat-completions",
        base + ["--model", "local-chat-completions", "--model_args",
                f"model={NAME},base_url={url}/v1/chat/completions,num_concurrent=2,max_retries=1", "--tasks", "toy_gen,toy_chat",
                "--include_path", tasks, "--apply_chat_template", "--output_path", out])
    chat = accuracies(out)
    claim("lm-eval: the shipped model solves its problems in a chat", chat["toy_chat"]["exact_match,strict-match"] >= 0.95, chat["toy_chat"])
    same_accuracy(url, chat, "toy_chat", "toy_gen.jsonl", GENERATE, "--chat", *STOPS)
    same_accuracy(url, chat, "toy_gen", "toy_gen.jsonl", GENERATE, "--chat", "--prompt-format", "Question: {question}\nAnswer:", *STOPS)


# ---- two clients, one server -----------------------------------------------------------------------------------------


def compare_benches(url):
    """`moefuse bench serve` beside vLLM's client, by turns: the same totals, and medians for a reader to compare."""
    shape = ["--base-url", url, "--model", NAME, "--tokenizer", MODEL, "--dataset-name", "random", "--random-input-len", "64",
             "--random-output-len", "32", "--num-prompts", "200", "--max-concurrency", "4", "--ignore-eos", "--temperature", "0",
             "--percentile-metrics", "ttft,tpot,itl,e2el", "--save-result"]
    saved = {"vllm-rs": [], "moefuse": []}
    for _ in range(3):
        for client, command in (("vllm-rs", [CLIENTS / "vllm-rs", "bench", "serve", "--backend", "openai"]),
                                ("moefuse", [PROGRAM, "bench", "serve"])):
            result = WORK / f"bench_{client}.json"
            result.unlink(missing_ok=True)
            done = subprocess.run([str(c) for c in command + shape + ["--result-filename", result]], env={**os.environ, **OFFLINE},
                                  cwd=WORK, text=True, capture_output=True, timeout=600)
            if done.returncode != 0:
                claim(f"{client}: the comparison's run ends with 0", False, done.stdout[-2000:] + done.stderr[-2000:])
                return
            saved[client].append(json.loads(result.read_text()))
    totals = {c: {(s["completed"], s.get("failed", 0), s["total_output_tokens"]) for s in runs} for c, runs in saved.items()}
    claim("moefuse bench serve counts what vLLM's client counts", totals["moefuse"] == totals["vllm-rs"] and len(totals["moefuse"]) == 1, totals)
    # Each client draws its own random ids, and a few prompts lose a token when their text is encoded again.
    sent = {c: sum(s["total_input_tokens"] for s in runs) for c, runs in saved.items()}
    claim("and sends as many tokens, within 1 %", abs(sent["moefuse"] / sent["vllm-rs"] - 1) < 0.01, sent)
    print(f"\n== medians of three runs by turns, concurrency 4, 200 prompts of 64 tokens, 32 made\n{'':32s} {'vllm-rs':>10s} {'moefuse':>10s}")
    for key in ("median_ttft_ms", "median_tpot_ms", "median_itl_ms", "median_e2el_ms", "output_throughput", "total_token_throughput"):
        a, b = (sorted(s[key] for s in saved[c])[1] for c in ("vllm-rs", "moefuse"))
        print(f"{key:32s} {a:10.3f} {b:10.3f} {100 * (b / a - 1):+7.1f} %", flush=True)


def sglang_bench(url):
    out = WORK / "sglang.jsonl"
    out.unlink(missing_ok=True)
    for backend in ("sglang-oai", "sglang-oai-chat", "vllm"):
        run(f"SGLang's serving benchmark, {backend}",
            [CLIENTS / "venv" / "bin" / "python", HERE / "sgl_bench.py", "--backend", backend, "--base-url", url, "--model", NAME,
             "--tokenizer", MODEL, "--dataset-name", "random-ids", "--random-input-len", "64", "--random-output-len", "16",
             "--random-range-ratio", "1.0", "--num-prompts", "20", "--max-concurrency", "4", "--output-file", out],
            env={"SGL_ROOT": str(CLIENTS / "sgl")})
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    claim("SGLang: every request completed", [r["completed"] for r in rows] == [20] * 3, [r["completed"] for r in rows])


def main():
    tasks = make_data()
    server, url, _ = start(PROGRAM)
    try:
        vllm_bench(url)
        lm_eval(url, tasks)
        sglang_bench(url)
        compare_benches(url)
    finally:
        server.terminate()
        _, rest = server.communicate(timeout=60)
        print("\n== the server's last lines\n" + "\n".join(rest.splitlines()[-5:]))
    claim("the server ends with 0 when told to", server.returncode == 0, server.returncode)
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    sys.exit(0 if all(results) else 1)


main()
