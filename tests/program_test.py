"""The program as its user meets it: verbs, flags, messages, exit codes, pipes, interruption, the chat on a terminal.

    program_test.py PATH/TO/moefuse"""
import base64
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tap import claim, plan

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
MODEL = str(ROOT / "models" / "word-problems")
PROMPT = "Tom has 3 boxes with 12 pens each. He gives 5 pens to Anna. How many pens are left?"


class Result:
    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        self.all = f"exit {self.code}\nstdout: {self.out}\nstderr: {self.err}"


def moefuse(*arguments, stdin=None, env=None, cwd=None):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MOEFUSE_")}
    return Result(subprocess.run([PROGRAM, *arguments], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                 timeout=120, env={**clean, **(env or {})}, cwd=cwd,
                                 stdin=subprocess.DEVNULL if stdin is None else None))


def help_and_usage():
    r = moefuse("--help")
    claim("--help lists the verbs on stdout", r.code == 0 and all(v in r.out for v in ("run", "info", "check", "bench", "doctor")), r.all)
    r = moefuse("--version")
    claim("--version prints name and version", r.code == 0 and re.fullmatch(r"moefuse \d+\.\d+\.\d+\n", r.out), r.all)
    r = moefuse()
    claim("no verb is a usage error with help on stderr", r.code == 2 and "usage:" in r.err, r.all)
    for verb in ("run", "info", "check"):
        r = moefuse(verb, "--help")
        claim(f"{verb} --help shows grouped flags with defaults",
              r.code == 0 and "--threads" in r.out and "--disable-shared-experts-fusion" in r.out and "fusion:" in r.out, r.all)
    r = moefuse("rum")
    claim("a mistyped verb names the nearest one", r.code == 2 and 'did you mean "run"?' in r.err, r.all)
    r = moefuse("run", MODEL, "-p", "x", "--chat-template", "chatlm")
    claim("an unknown chat template lists the built-in ones", r.code != 0 and "chat template chatlm: expected a file, or a built-in one (chatml, "
          in r.err, r.all)
    r = moefuse("run", MODEL, "-p", "x", "--chat-template", "chatml", "--max-tokens", "2")
    claim("a built-in chat template stands in the plan", r.code == 0 and "chat template chatml, built in\n" in r.err, r.all)
    r = moefuse("run", "--max-modl-len", "5")
    claim("a mistyped flag names the nearest one", r.code == 2 and "did you mean --max-model-len?" in r.err, r.all)
    r = moefuse("run", "--threads", "many")
    claim("a flag's wrong value is named with what was expected",
          r.code == 2 and '--threads: expected an integer; got "many"' in r.err, r.all)
    r = moefuse("run", "--temperature=3")
    claim("a flag out of range is refused with its range", r.code == 2 and "--temperature: expected a number in 0..2; got 3" in r.err,
          r.all)
    r = moefuse("run", "--num-shared-expert-replicas", "0")
    claim("0 replicas are refused", r.code == 2 and "1..64" in r.err, r.all)
    r = moefuse("run", "--load-format", "gguf")
    claim("a choice lists the known ones", r.code == 2 and "auto|dummy" in r.err, r.all)
    r = moefuse("info", MODEL, env={"MOEFUSE_DEVICE": "tpu"})
    claim("a wrong environment variable is named", r.code == 2 and "MOEFUSE_DEVICE" in r.err, r.all)


def run_verb():
    r = moefuse("run", MODEL, "-p", PROMPT)
    claim("run answers the prompt on stdout", r.code == 0 and r.out.rstrip().endswith("#### 31"), r.all)
    claim("run prints the plan on stderr", "fusion" in r.err and "SLOT 5" in r.err and "device" in r.err, r.all)
    claim("run ends with one line of figures",
          re.search(r"prompt \d+ tok [\d.]+ tok/s \| decode \d+ tok [\d.]+ tok/s \| TTFT [\d.]+ s \| total [\d.]+ s \| "
                    r"shared experts in slots 5/5 layers\n$", r.err), r.all)
    plain = r.out
    r = moefuse("run", MODEL, "-p", PROMPT, "--device", "cuda", env={"MOEFUSE_CUDA_LIBRARY": "/nonexistent/libmoefuse_cuda.so"})
    claim("without the CUDA backend --device cuda says what is missing",
          r.code == 5 and "device cuda: libmoefuse_cuda.so cannot be opened" in r.err and "MOEFUSE_CUDA_LIBRARY" in r.err, r.all)
    r = moefuse("run", MODEL, "-p", PROMPT, "--device", "cuda:7", env={"MOEFUSE_CUDA_LIBRARY": "/nonexistent/libmoefuse_cuda.so"})
    claim("one of several GPUs is named by its number", r.code == 5 and "device cuda:7: libmoefuse_cuda.so" in r.err, r.all)
    for name in ("cuda:", "cuda:x", "cuda:1x", "cuda:1000", "cuda:N", "cpu:1"):
        r = moefuse("run", MODEL, "-p", PROMPT, "--device", name)
        claim(f"--device {name} is refused", r.code == 2 and f'expected one of cpu|cuda|cuda:N|ref; got "{name}"' in r.err, r.all)
    r = moefuse("run", MODEL, "-p", PROMPT, "--gpu-memory-utilization", "1.5")
    claim("a share of a GPU's memory past the whole is refused", r.code == 2 and "0.05..1" in r.err, r.all)
    r = moefuse("run", MODEL, "-p", PROMPT, "--json")
    lines = [json.loads(line) for line in r.out.splitlines()]
    text = "".join(line["text"] for line in lines if line["type"] == "token")
    claim("run --json streams the same text as JSON lines", text == plain.rstrip("\n") and lines[-1]["type"] == "stats", r.all)
    wanted = {"queue_ms", "ttft_ms", "prompt_n", "prompt_ms", "prompt_per_second", "cached_n", "predicted_n", "predicted_ms",
              "predicted_per_second"}
    claim("the stats line has the keys of timings", wanted <= set(lines[-1]), lines[-1])
    r = moefuse("run", MODEL, stdin=PROMPT)
    claim("a prompt through a pipe gives the same answer", r.out == plain, r.all)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
        f.write(PROMPT)
        f.flush()
        r = moefuse("run", "-f", f.name, "--model", MODEL)
        claim("a prompt from a file gives the same answer", r.out == plain, r.all)
    for flags in (["--disable-shared-experts-fusion"], ["--disable-fused-gate"], ["--disable-fusion-bands"], ["--num-shared-expert-replicas", "3"],
                  ["--threads", "1"], ["--no-mmap"], ["--weights-memory", "copy"],
                  ["--pin-threads"], ["--pin-threads", "--numa", "interleave"], ["--max-num-batched-tokens", "7"], ["--no-enable-prefix-caching"]):
        r = moefuse("run", MODEL, "-p", PROMPT, *flags)
        claim(f"{' '.join(flags)} changes nothing in the text", r.out == plain, r.all)
    r = moefuse("run", MODEL, "-p", PROMPT, env={"MOEFUSE_DISABLE_SHARED_EXPERTS_FUSION": "1"})
    claim("a flag can come from the environment", "SERIAL 5" in r.err and "shared experts in slots 0/5" in r.err, r.all)
    r = moefuse("run", MODEL, "-p", PROMPT, "--stop", "####")
    claim("--stop ends before the text", r.code == 0 and "####" not in r.out and r.out.strip(), r.all)
    r = moefuse("run", MODEL, "-p", PROMPT, "--max-tokens", "3", "--json")
    claim("--max-tokens is exact", json.loads(r.out.splitlines()[-1])["predicted_n"] == 3, r.all)
    r = moefuse("run", MODEL, "--raw", "-p", "Tom has", "--max-tokens", "5")
    claim("--raw continues plain text", r.code == 0 and r.out.strip(), r.all)
    # The model is sure of its answers; at the start of a plain text it is not.
    warm = ["run", MODEL, "--raw", "-p", "", "--temperature", "2", "--max-tokens", "40"]
    a = moefuse(*warm, "--seed", "7")
    b = moefuse(*warm, "--seed", "7", "--threads", "2")
    c = moefuse(*warm, "--seed", "8")
    claim("a seed repeats its answer and another seed differs", a.out == b.out and a.out != c.out, a.all + b.all + c.all)
    r = moefuse("run", MODEL, "-p", PROMPT, "--expert-map")
    claim("--expert-map draws a row per MoE layer", len(re.findall(r"layer +\d+ \|", r.err)) == 5, r.all)
    r = moefuse("run", MODEL, "-p", "word " * 2000)
    claim("a prompt longer than the context is refused with both numbers", r.code == 1 and "1024" in r.err.replace(",", ""), r.all)
    r = moefuse("run", MODEL, "-p", "\udcff".encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape"))
    claim("a prompt that is not UTF-8 is refused", r.code == 1 and "UTF-8" in r.err, r.all)
    r = moefuse("run", MODEL, "-p", PROMPT, "-tp", "4")
    claim("a flag that cannot take effect is a warning", r.code == 0 and "warning" in r.err and "no transport" in r.err, r.all)
    r = moefuse("run", MODEL + "/fp8", "-p", PROMPT)
    claim("the FP8 copy answers too", r.out == plain and "fp8" in r.err, r.all)
    r = moefuse("run", "-p", PROMPT)
    claim("MODEL left out is the shipped model", r.out == plain, r.all)


def info_and_check():
    r = moefuse("run", MODEL, "-p", "x", "-n", "1", "--log-level", "debug")
    claim("--log-level debug prints the plan of every layer", len(re.findall(r"^ +layer \d", r.err, re.M)) == 6, r.all)
    r = moefuse("info", MODEL)
    claim("info shows sizes and the plan", r.code == 0 and "7.5 M total" in r.out and "20 routed, top 4" in r.out and "SLOT" in r.out,
          r.all)
    r = moefuse("info", MODEL, "--json", "--disable-shared-experts-fusion")
    document = json.loads(r.out)
    claim("info --json is one document with the plan and its reasons",
          document["total_params"] == 7484708 and all(not l["moe"] or (l["mode"] == "SERIAL" and l["reason"]) for l in document["plan"]),
          r.out)
    for folder in (MODEL, MODEL + "/fp8"):
        r = moefuse("check", folder, "--deep", "--generate", "4")
        claim(f"check accepts {pathlib.Path(folder).name}", r.code == 0 and r.out == "ok\n", r.all)
    r = moefuse("check", MODEL, "--json")
    claim("check --json says ok", r.code == 0 and json.loads(r.out) == {"ok": True, "findings": []}, r.all)


def quantize_verb():
    with tempfile.TemporaryDirectory() as temp:
        plain = moefuse("run", MODEL, "-p", PROMPT).out
        for form in ("fp8-block", "int8", "int4"):
            out = str(pathlib.Path(temp) / form)
            r = moefuse("quantize", MODEL, out, "--format", form, "--no-progress")
            claim(f"quantize --format {form} prints each layer's error", r.code == 0 and len(re.findall(r"^ +\d+  +\S", r.out, re.M)) == 6
                  and f" matrices as {form}; tensors " in r.out, r.all)
            r = moefuse("check", out, "--deep", "--generate", "4")
            claim(f"check accepts the {form} output", r.code == 0 and r.out == "ok\n", r.all)
            r = moefuse("run", out, "-p", PROMPT)
            claim(f"the {form} output answers as the model does", r.code == 0 and r.out.splitlines()[-1] == plain.splitlines()[-1], r.all)
            r = moefuse("info", out, "--json")
            parts = json.loads(r.out)["bytes_by_part"]
            claim(f"info tells the {form} output's formats part by part",
                  list(parts["routed experts"]) == [{"fp8-block": "fp8_block", "int8": "int8_channel", "int4": "int4_group"}[form]]
                  and list(parts["router"]) == list(parts["head"]), r.out)
        r = moefuse("quantize", MODEL, out, "--format", "int4")
        claim("quantize refuses an existing OUT", r.code == 4 and "exists; the output must be a new folder" in r.err, r.all)
        r = moefuse("quantize", out, out + "-again", "--format", "int8")
        claim("quantize refuses a quantised IN", r.code == 4 and "is quantised already" in r.err and not os.path.exists(out + "-again"), r.all)
        for arguments, message in ((["--format", "int4", "--group", "48"], "expected 32, 64 or 128"), ([], "expected fp8-block, int8 or int4"),
                                   (["--format", "int8", "--group", "64"], "belongs to --format int4"), (["--format", "int5"], "int5")):
            r = moefuse("quantize", MODEL, out + "-again", *arguments)
            claim(f"quantize {' '.join(arguments)} is a usage error", r.code == 2 and message in r.err, r.all)
        claim("nothing is left beside the outputs", sorted(os.listdir(temp)) == ["fp8-block", "int4", "int8"], str(os.listdir(temp)))


def doctor():
    r = moefuse("doctor", "--seconds", "0", "--threads", "2")
    claim("doctor names levels, reading and arithmetic",
          r.code == 0 and all(w in r.out for w in ("levels", "huge pages", "f32 fma", "1 thread", "2 threads", "GB/s")), r.all)
    r = moefuse("doctor", "--seconds", "0", "--threads", "2", "--json")
    d = json.loads(r.out)
    claim("doctor --json is one document with a figure per thread count",
          d["threads"] == [1, 2] and all(len(line["gops"]) == 2 and min(line["gops"]) > 0 for line in d["rates"])
          and all(x > 0 for x in d["read"]["small_pages_gb_per_s"] + d["read"]["huge_pages_gb_per_s"]), r.all)
    levels = {level["name"]: level for level in d["levels"]}
    claim("each level is used or says why not", levels["c"]["used"] and all(l["used"] != bool(l["reason"]) for l in d["levels"]),
          d["levels"])
    claim("a level without its instructions is not used", all(l["available"] or not l["used"] for l in d["levels"]), d["levels"])
    r = moefuse("doctor", "--seconds", "0", "--threads", "1", "--json", env={"MOEFUSE_ISA": "c"})
    used = [l["name"] for l in json.loads(r.out)["levels"] if l["used"]]
    claim("doctor says what MOEFUSE_ISA switches off", used == ["c"] and (len(levels) == 1 or "MOEFUSE_ISA=c" in r.out), r.all)
    r = moefuse("doctor", "--seconds", "quick")
    claim("doctor --seconds wants a number", r.code == 2 and '--seconds: expected a number; got "quick"' in r.err, r.all)


def bench_kernels():
    quick = ["--repeats", "2", "--seconds", "0", "--threads", "2"]
    r = moefuse("bench")
    claim("bench without a mode lists the modes", r.code == 2 and all(m in r.err for m in ("kernels", "latency", "throughput")), r.all)
    r = moefuse("bench", "throughptu")
    claim("a mistyped mode names the nearest one", r.code == 2 and 'did you mean "throughput"?' in r.err, r.all)
    for mode in ("kernels", "latency", "throughput"):
        r = moefuse("bench", mode, "--help")
        claim(f"bench {mode} --help shows its flags", r.code == 0 and "--json" in r.out and "--threads" in r.out, r.all)
    for flags, words in (
            (["--op", "expert"], ["--op: expected names of experts|layer|gate|align|sum-reduce|linear|lm-head|attention", 'got "expert"']),
            (["--shape", "v4"], ["--shape: expected names of v2-lite|", 'got "v4"']),
            (["--format", "bf16,int3"], ["--format: expected names of f32|bf16|", 'got "int3"']),
            (["--tokens", "1,0"], ["--tokens: expected integers in 1..65536", 'got "0"']),
            (["--tokens", "1;4"], ["--tokens: expected integers", 'got "1;4"']),
            (["--act-quant", "fp4"], ["--act-quant: expected one of none|w8a8|int8", 'got "fp4"']),
            (["--act-quant", "int8", "--format", "bf16"], ["--act-quant int8 has no effect on --format bf16", "int4_group"]),
            (["--group-size", "100"], ["--group-size: expected a multiple of 32; got 100"]),
            (["--routing", "random"], ["--routing: expected one of uniform|skewed"]),
            (["--dtype", "f64"], ["--dtype: expected one of bf16|f32"]),
            (["--isa", "sse2"], ["--isa: expected one of c", 'got "sse2"']),
            (["--repeats", "-1"], ["--repeats: expected an integer in 0..1000; got -1"])):
        r = moefuse("bench", "kernels", "--shape", "tiny", *flags)
        claim(f"bench kernels {' '.join(flags)} is refused by name", r.code == 2 and all(w in r.err for w in words), r.all)
    r = moefuse("bench", "kernels", "--shape", "tiny", "--op", "all", "--format", "bf16,int8_channel", "--tokens", "1,70", "--json",
                *quick)
    rows = json.loads(r.out)["kernels"]
    keys = {"op", "shape", "dtype", "M", "experts", "us", "GB/s", "TFLOP/s", "ceiling", "share", "p10", "p90", "isa", "threads"}
    claim("bench kernels --json has a row per op, format and token count",
          len(rows) == 30 and all(keys <= set(row) and row["us"] > 0 for row in rows), r.out)
    by = {(row["op"], row["dtype"], row["M"]): row for row in rows}
    products = [row for row in rows if row["op"] in ("experts", "linear", "lm-head")]
    rate_of = {"GB/s": lambda row: row["GB/s"], "GFLOP/s": lambda row: row["TFLOP/s"] * 1e3}
    claim("a product's share is its rate over the ceiling that the row names", products and
          all(abs(rate_of[row["ceiling_unit"]](row) / row["ceiling"] / row["share"] - 1) < 1e-2 for row in products), products)
    one = by["experts", "bf16", 1]
    stored = one["experts"] * 3 * 256 * 64 * 2  # 4 routed and 1 shared expert of three 256 x 64 matrices
    claim("GB/s counts the stored bytes of the distinct experts", one["experts"] == 5
          and abs(one["GB/s"] * one["us"] * 1e3 / stored - 1) < 1e-3, one)
    claim("the layer's row compares both modes", by["layer SLOT", "bf16", 1]["ratio"] > 0
          and by["layer SLOT", "bf16", 1]["ratio_of"] == "SERIAL / SLOT", rows)
    r = moefuse("bench", "kernels", "--shape", "tiny", "--tokens", "2", "--isa", "c", "--json", *quick)
    claim("--isa lowers the level", json.loads(r.out)["kernels"][0]["isa"] == "c", r.all)
    with tempfile.TemporaryDirectory() as temp:
        path = pathlib.Path(temp) / "rows.csv"
        for _ in range(2):
            r = moefuse("bench", "kernels", "--shape", "tiny", "--tokens", "1,3", "--csv", str(path), *quick)
        lines = path.read_text().splitlines()
        claim("--csv appends rows under one header", r.code == 0 and len(lines) == 5 and lines[0].startswith("op,shape,dtype,")
              and all(line.count(",") == lines[0].count(",") for line in lines), lines)
        r = moefuse("bench", "kernels", "--shape", "tiny", "--csv", temp + "/no/rows.csv", *quick)
        claim("a CSV file that cannot be written is named", r.code == 1 and temp + "/no/rows.csv" in r.err, r.all)


def bench_models():
    few = ["--input-len", "9", "--output-len", "5", "--threads", "2"]
    latency = ["bench", "latency", MODEL, *few, "--batch-size", "3", "--num-iters", "4", "--num-iters-warmup", "1"]
    r = moefuse(*latency)
    claim("bench latency prints vLLM's lines", r.code == 0 and re.match(r"Avg latency: [\d.e-]+ seconds\n10% percentile latency: ", r.out)
          and "99% percentile latency: " in r.out and "Decode: " in r.out, r.all)
    r = moefuse(*latency, "--json")
    d = json.loads(r.out)
    claim("bench latency --json has vLLM's keys", {"model_id", "avg_latency", "latencies", "percentiles", "moefuse"} <= set(d)
          and list(d["percentiles"]) == ["10", "25", "50", "75", "90", "99"] and len(d["latencies"]) == 4, r.out)
    claim("its average is that of its latencies", abs(sum(d["latencies"]) / 4 - d["avg_latency"]) < 1e-6
          and min(d["latencies"]) <= d["percentiles"]["50"] <= max(d["latencies"])
          and d["prefill_tokens_per_second"] > 0 and d["decode_tokens_per_second"] > 0, r.out)
    r = moefuse(*latency, "--profile")
    claim("bench latency --profile names each part of a step",
          r.code == 0 and all(re.search(rf"^  {part} +[\d.]+ +[\d.]+ % +[\d.]+ +[\d.]+ %$", r.out, re.M)
                              for part in ("attention", "gate", "experts", "combine", "dense products", "rest", "all")), r.all)
    r = moefuse(*latency, "--profile", "--json")
    d = json.loads(r.out)["profile"]
    claim("its JSON has the seconds of each part", d["prefill"]["steps"] >= 1 and d["decode"]["steps"] == 4
          and abs(sum(v for k, v in d["decode"].items() if k not in ("steps", "seconds")) - d["decode"]["seconds"])
          < 0.1 * d["decode"]["seconds"], d)
    throughput = ["bench", "throughput", MODEL, *few, "--num-prompts", "20"]
    with tempfile.TemporaryDirectory() as temp:
        path = pathlib.Path(temp) / "out.json"
        r = moefuse(*throughput, "--max-num-seqs", "4", "--output-json", str(path))
        d = json.loads(path.read_text())
        claim("bench throughput prints vLLM's line and counts every token",
              re.match(r"Throughput: [\d.]+ requests/s, [\d.]+ total tokens/s, [\d.]+ output tokens/s\n", r.out)
              and "Total num prompt tokens:  180\n" in r.out and "Total num output tokens:  100\n" in r.out, r.all)
        claim("its JSON has vLLM's keys", d["num_requests"] == 20 and d["total_num_tokens"] == 280 and d["model_id"] == MODEL
              and abs(d["tokens_per_second"] * d["elapsed_time"] - 280) < 0.1
              and abs(d["requests_per_second"] * d["elapsed_time"] - 20) < 0.01, d)
        config = pathlib.Path(temp) / "shape.json"
        shutil.copy(pathlib.Path(MODEL) / "config.json", config)
        r = moefuse("bench", "latency", str(config), *few, "--batch-size", "1", "--num-iters", "1", "--num-iters-warmup", "0", "--json")
        claim("a config.json alone runs with random weights",
              r.code == 0 and json.loads(r.out)["moefuse"]["flags"]["load_format"] == "dummy" and "--load-format dummy" in r.err, r.all)
        config.write_text("{}")
        r = moefuse("bench", "latency", str(config))
        claim("a config that says nothing is refused by name", r.code == 4 and "shape.json" in r.err, r.all)
        r = moefuse("bench", "latency", temp + "/none.json")
        claim("a config that is not there is refused by name", r.code == 4 and "none.json" in r.err, r.all)
    r = moefuse("bench", "latency", MODEL, "--input-len", "1000", "--output-len", "100")
    claim("more tokens than the model takes are refused with both numbers", r.code == 2 and "1024" in r.err and "1100" in r.err, r.all)
    r = moefuse("bench", "latency", MODEL, "--batch-size", "0")
    claim("a batch of nothing is refused", r.code == 2 and "--batch-size: expected an integer in 1..1024; got 0" in r.err, r.all)
    r = moefuse("bench", "throughput", MODEL, *few, "--max-model-len", "13")
    claim("a --max-model-len below the prompts' length is refused", r.code == 2 and "= 14; got 13" in r.err, r.all)
    for path in sorted((ROOT / "bench" / "configs").glob("*.json")):
        r = moefuse("info", str(path), "--load-format", "dummy")
        claim(f"bench/configs/{path.name} is read", r.code == 0 and "experts" in r.out, r.all)


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps(config))


def broken_models():
    """Each kind of damage: a message of its own that names the file, from check and from run, and an exit code in 1..125."""
    def truncated(folder):
        with open(folder / "model.safetensors", "r+b") as f:
            f.truncate(f.seek(0, 2) - 1000)

    def unknown_architecture(folder):
        edit_config(folder, architectures=["GrokForCausalLM"])

    def absurd_layers(folder):
        edit_config(folder, num_hidden_layers=2 ** 40)

    def zero_heads(folder):
        edit_config(folder, num_attention_heads=0)

    def top_k_above_experts(folder):
        edit_config(folder, num_experts_per_tok=21)

    def text_for_number(folder):
        edit_config(folder, hidden_size="256")

    def wrong_shape(folder):
        edit_config(folder, moe_intermediate_size=128)

    def more_experts(folder):
        edit_config(folder, n_routed_experts=24)

    def no_weights(folder):
        (folder / "model.safetensors").unlink()

    def no_config(folder):
        (folder / "config.json").unlink()

    def no_tokenizer(folder):
        (folder / "tokenizer.json").unlink()

    def broken_tokenizer(folder):
        path = folder / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        tokenizer["model"]["type"] = "Unigram"
        path.write_text(json.dumps(tokenizer))

    def broken_template(folder):
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        config["chat_template"] = "{% for m in messages %}{{ m.content }}"
        path.write_text(json.dumps(config))

    def junk_weights(folder):
        (folder / "model.safetensors").write_bytes(os.urandom(4096))

    def missing_shard(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}))

    cases = [
        (truncated, ["model.safetensors", "bytes"]),
        (unknown_architecture, ["config.json", "GrokForCausalLM", "DeepseekV3ForCausalLM"]),
        (absurd_layers, ["config.json", "num_hidden_layers"]),
        (zero_heads, ["config.json", "num_attention_heads"]),
        (top_k_above_experts, ["config.json", "21"]),
        (text_for_number, ["config.json", "hidden_size"]),
        (wrong_shape, ["model.safetensors", "128"]),
        (more_experts, ["model.safetensors", "[24, 256]", "[20, 256]"]),
        (no_weights, ["model.safetensors"]),
        (no_config, ["config.json"]),
        (no_tokenizer, ["tokenizer.json"]),
        (broken_tokenizer, ["tokenizer.json", "Unigram"]),
        (broken_template, ["for"]),
        (junk_weights, ["model.safetensors"]),
        (missing_shard, ["model-00001-of-00002.safetensors"]),
    ]
    seen = {}
    with tempfile.TemporaryDirectory() as temp:
        for damage, words in cases:
            folder = pathlib.Path(temp) / damage.__name__
            shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("fp8", "eval", "*.md", "train_log.json"))
            damage(folder)
            for verb, extra in (("check", []), ("run", ["-p", "x"])):
                r = moefuse(verb, str(folder), *extra)
                text = r.out + r.err
                claim(f"{verb}: {damage.__name__} is refused by name",
                      1 <= r.code <= 125 and all(w in text for w in words) and "Sanitizer" not in text, r.all)
            first = next((line for line in text.splitlines() if "error" in line), "")
            seen.setdefault(first.replace(str(folder), ""), []).append(damage.__name__)
            shutil.rmtree(folder)
        claim("each kind of damage has its own message", all(len(v) == 1 for v in seen.values()), seen)
        r = moefuse("run", temp, "-p", "x")
        claim("a directory that is no model says what is missing", r.code == 4 and "config.json" in r.err, r.all)
        r = moefuse("run", temp + "/nothing", "-p", "x")
        claim("a path that is not there is named", r.code == 4 and "nothing" in r.err and "expected a model directory" in r.err, r.all)


def tiktoken_folder():
    with tempfile.TemporaryDirectory() as temp:
        for name in ("config.json", "model.safetensors"):
            shutil.copy(ROOT / "models" / "word-problems" / name, temp)
        lines = [base64.b64encode(bytes([b])).decode() + f" {b}\n" for b in range(256)]
        (pathlib.Path(temp) / "tiktoken.model").write_text("".join(lines))
        config = {"tokenizer_class": "TikTokenTokenizer", "chat_template": "[BOS]{{ messages[0].content }}",
                  "added_tokens_decoder": {"256": {"content": "[BOS]", "special": True}}}
        (pathlib.Path(temp) / "tokenizer_config.json").write_text(json.dumps(config))
        r = moefuse("run", temp, "-p", "hi", "--max-tokens", "3", "--ignore-eos")
        claim("a folder with a tiktoken file and no tokenizer.json runs", r.code == 0 and "prompt 3 tok" in r.err, r.all)
        (pathlib.Path(temp) / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "Other"}))
        r = moefuse("check", temp)
        claim("check: an unknown tokenizer_class is told, and which are known",
              r.code == 4 and "Other" in r.all and "HYTokenizer (hy.tiktoken)" in r.all, r.all)


def dummy_weights():
    with tempfile.TemporaryDirectory() as temp:
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ROOT / "models" / "word-problems" / name, temp)
        a = moefuse("run", temp, "--load-format", "dummy", "-p", "x", "--max-tokens", "8", "--seed", "1", "--temperature", "0",
                    "--ignore-eos", "--json")
        b = moefuse("run", temp, "--load-format", "dummy", "-p", "x", "--max-tokens", "8", "--seed", "1", "--temperature", "0",
                    "--ignore-eos", "--json", "--threads", "1")
        ids = [[json.loads(line).get("id") for line in r.out.splitlines()] for r in (a, b)]
        claim("--load-format dummy runs from config.json alone and repeats", a.code == 0 and ids[0] == ids[1] and len(ids[0]) >= 8,
              a.all + b.all)


def interruption():
    process = subprocess.Popen([PROGRAM, "run", MODEL, "--raw", "-p", "Tom", "--ignore-eos", "--temperature", "1"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    claim("Ctrl-C ends the answer, prints the figures and exits 130", process.returncode == 130 and b"| decode" in err,
          f"exit {process.returncode} {err}")


def terminal_chat():
    """A chat on a pseudo-terminal: two turns, the second one reads the first's KV blocks."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "dumb"
        os.execv(PROGRAM, [PROGRAM, "run", MODEL])
    seen = b""

    def read_until(pattern, seconds=30):
        nonlocal seen
        end = time.time() + seconds
        while time.time() < end and not re.search(pattern, seen):
            if select.select([fd], [], [], 0.2)[0]:
                try:
                    seen += os.read(fd, 65536)
                except OSError:
                    break
        return re.search(pattern, seen)

    ready = read_until(rb"\n> ")
    os.write(fd, PROMPT.encode() + b"\n")
    first = read_until(rb"#### 31[\s\S]*slots 5/5 layers[\s\S]*> ")
    seen = b""
    os.write(fd, b"What is 2 + 3?\n")
    second = read_until(rb"slots 5/5 layers[\s\S]*> ")
    os.write(fd, b"\n")
    end = time.time() + 10
    code = None
    while time.time() < end and code is None:
        done, status = os.waitpid(pid, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if done else None
        time.sleep(0.05)
    os.close(fd)
    claim("the chat on a terminal answers two turns and leaves cleanly", ready and first and second and code == 0,
          f"{bool(ready)} {bool(first)} {bool(second)} exit {code}\n{seen.decode(errors='replace')}")


def shrinking_weights():
    """The weights file loses its end while a chat waits: a message and exit 66, not a dead process without a word."""
    with tempfile.TemporaryDirectory() as temp:
        folder = pathlib.Path(temp) / "model"
        shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("fp8", "eval"))
        pid, fd = pty.fork()
        if pid == 0:
            os.execv(PROGRAM, [PROGRAM, "run", str(folder)])
        seen = b""
        end = time.time() + 30
        while time.time() < end and not re.search(rb"\n> ", seen):
            if select.select([fd], [], [], 0.2)[0]:
                seen += os.read(fd, 65536)
        os.truncate(folder / "model.safetensors", 100000)
        os.write(fd, b"What is 2 + 3?\n")
        seen = b""
        while time.time() < end:
            try:
                seen += os.read(fd, 65536)
            except OSError:
                break
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(fd)
        claim("a weights file that shrinks after loading ends with its name and exit 66",
              code == 66 and b"model.safetensors: weights unreadable at byte" in seen, f"exit {code}\n{seen.decode(errors='replace')}")


for part in (shrinking_weights, help_and_usage, run_verb, info_and_check, quantize_verb, doctor, bench_kernels, bench_models, broken_models, tiktoken_folder, dummy_weights, interruption, terminal_chat):
    part()
sys.exit(plan())
