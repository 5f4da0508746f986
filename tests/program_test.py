"""The program as its user meets it: verbs, flags, messages, exit codes, pipes, interruption, the chat on a terminal.

    program_test.py PATH/TO/moefuse"""
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = str(pathlib.Path(sys.argv[1]).resolve())
MODEL = str(ROOT / "models" / "word-problems")
PROMPT = "Tom has 3 boxes with 12 pens each. He gives 5 pens to Anna. How many pens are left?"
count = failures = 0


def claim(text, ok, detail=""):
    global count, failures
    count += 1
    failures += not ok
    print(f"{'ok' if ok else 'not ok'} {count} - {text}", flush=True)
    if not ok:
        print("\n".join("# " + line for line in str(detail).splitlines()), flush=True)


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
    claim("--help lists the verbs on stdout", r.code == 0 and all(v in r.out for v in ("run", "info", "check")), r.all)
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
    for flags in (["--disable-shared-experts-fusion"], ["--disable-fused-gate"], ["--num-shared-expert-replicas", "3"],
                  ["--threads", "1"], ["--no-mmap"], ["--max-num-batched-tokens", "7"], ["--no-enable-prefix-caching"]):
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


for part in (shrinking_weights, help_and_usage, run_verb, info_and_check, broken_models, dummy_weights, interruption, terminal_chat):
    part()
print(f"1..{count}")
sys.exit(failures > 0)
