"""README.md's tables of measurements, written from bench/results/cpu.csv and gpu.csv between `<!-- bench:NAME -->` and `<!-- /bench -->`.

    bench_table.py [--check]      --check: change nothing, exit 1 when README.md is not what the rows say

A figure is the newest row of its (what, shape, dtype, T, threads); under each table stands where its rows come from.  A table
without rows says so."""
import argparse
import csv
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "cpu.csv"
GPU_RESULTS = ROOT / "bench" / "results" / "gpu.csv"
GPU_SERVE_RESULTS = ROOT / "bench" / "results" / "gpu_serve.csv"
README = ROOT / "README.md"
COLUMNS = "date,commit,cpu,isa,threads,what,shape,dtype,T,figure,unit,ceiling,share".split(",")
GPU_COLUMNS = "date,gpu,who,version,what,shape,dtype,T,figure,unit".split(",")
SERVE_COLUMNS = ("date,gpu,version,shape,dtype,fusion,concurrency,requests,input_len,output_len,output_tok_s,total_tok_s,"
                 "ttft_ms,ttft_p99_ms,itl_ms,itl_p99_ms").split(",")
KERNEL_TOKENS = (1, 4, 16, 64, 256, 1024)
GPU_TOKENS = (1, 4, 16, 64, 256, 1024, 8192)


def read_rows(path, columns=COLUMNS):
    with open(path, newline="", encoding="utf-8") as f:
        reader = csv.DictReader(f)
        if reader.fieldnames != columns:
            sys.exit(f"{path}: expected the columns {','.join(columns)}; got {','.join(reader.fieldnames or [])}")
        rows = list(reader)
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            sys.exit(f"{path}:{number}: expected {len(columns)} columns")
        for name in row.keys() & {"figure", *SERVE_COLUMNS[10:]}:
            row[name] = float(row[name])
    return rows


class Table:
    """Collects what a table used, so that its sources can be named."""

    def __init__(self, rows):
        self.newest = {}
        for row in rows:
            self.newest[row["what"], row["shape"], row["dtype"], row["T"], row["threads"]] = row
        self.used = []
        self.lines = []

    def find(self, what, shape, dtype, tokens="", threads=None):
        """The newest row; of the largest number of threads unless told."""
        candidates = [row for key, row in self.newest.items()
                      if key[:4] == (what, shape, dtype, str(tokens)) and threads in (None, row["threads"])]
        if not candidates:
            return None
        best = max(candidates, key=lambda row: int(row["threads"]))
        self.used.append(best)
        return best

    def names(self, what, column):
        """Distinct values of a column among rows of that kind, in the order they were first measured."""
        return list(dict.fromkeys(row[column] for row in self.newest.values() if row["what"] == what))

    def head(self, *cells):
        self.lines += ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]

    def line(self, *cells):
        self.lines.append("| " + " | ".join(cells) + " |")

    def text(self):
        if not self.used:
            return "Not measured yet.\n"
        sources = list(dict.fromkeys((r["date"], r["commit"], r["cpu"], r["isa"], r["threads"]) for r in self.used))
        dates = sorted({s[0] for s in sources})
        commits = list(dict.fromkeys(s[1] for s in sources))
        machines = list(dict.fromkeys(f"{s[2]}, {s[3]}" for s in sources))
        threads = sorted({int(s[4]) for s in sources})
        note = (f"{' to '.join(dates[:1] + dates[-1:] if len(dates) > 1 else dates)}, {'; '.join(machines)}, "
                f"{' and '.join(map(str, threads))} thread{'s' if threads != [1] else ''}, commit {', '.join(commits)}.")
        return "\n".join(self.lines) + f"\n\n{note}\n"


def number(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.3g}"


def cell(row):
    if not row:
        return "-"
    share = f" ({float(row['share']) * 100:.0f} %)" if row["share"] else ""
    unusual = ("GFLOP/s", "GOP/s") if int(row["T"] or 0) <= 16 else ("GB/s",)
    return number(row["figure"]) + (f" {row['unit']}" if row["unit"] in unusual else "") + share


def machine(table):
    """Of one machine: rows of what another had and this one lacks are left out."""
    rates = {key: row for key, row in table.newest.items() if row["what"] == "read" or row["what"].startswith("rate ")}
    last = max(rates.values(), key=lambda row: row["date"], default=None)
    table.newest = {key: row for key, row in rates.items() if (row["date"], row["cpu"]) == (last["date"], last["cpu"])}
    table.head("what this machine does, all threads", "measured")
    for pages in ("4 KiB pages", "huge pages"):
        row = table.find("read", pages, "-")
        if row:
            table.line(f"read memory in {pages}, GB/s", number(row["figure"]))
    for what in [name for name in dict.fromkeys(r["what"] for r in table.newest.values()) if name.startswith("rate ")]:
        for level in table.names(what, "shape"):
            row = table.find(what, level, "-")
            if row:
                table.line(f"{what.removeprefix('rate ')}, {level}, 10^9 operations/s", number(row["figure"]))


def kernels(table):
    table.head("one MoE layer's experts", *(f"T = {t}" for t in KERNEL_TOKENS))
    for shape in table.names("experts", "shape"):
        for dtype in table.names("experts", "dtype"):
            cells = [table.find("experts", shape, dtype, t) for t in KERNEL_TOKENS]
            if any(cells):
                table.line(f"{shape}, {dtype}", *(cell(row) for row in cells))


def layer(table):
    what = "layer: SERIAL over SLOT"
    table.head("separate shared expert's time over the fused one's", *(f"T = {t}" for t in KERNEL_TOKENS))
    for shape in table.names(what, "shape"):
        for dtype in table.names(what, "dtype"):
            cells = [table.find(what, shape, dtype, t) for t in KERNEL_TOKENS]
            if any(cells):
                table.line(f"{shape}, {dtype}", *(cell(row) for row in cells))


def gate(table):
    tokens = (1, 256, 65536)
    table.head("gate", *(f"T = {t:,}, us" for t in tokens), *(f"T = {t:,}, ref over cpu" for t in tokens))
    for shape in table.names("gate", "shape"):
        table.line(shape, *(cell(table.find("gate", shape, "f32", t)) for t in tokens),
                   *(cell(table.find("gate: ref over cpu (one core each)", shape, "f32", t)) for t in tokens))


def models(table):
    kinds = [w for w in dict.fromkeys(r["what"] for r in table.newest.values()) if re.fullmatch(r"prefill \d+|decode batch \d+", w)]
    kinds.sort(key=lambda w: (w.split()[0] == "prefill", int(w.split()[-1])))
    pairs = list(dict.fromkeys((r["shape"], r["dtype"]) for r in table.newest.values() if r["what"] in kinds))
    pairs = [p for p in pairs if p[0] != "word-problems"]
    table.head("random weights, tok/s", *kinds)
    for shape, dtype in pairs:
        row_of = {}
        for row in table.newest.values():
            if (row["shape"], row["dtype"]) == (shape, dtype) and row["what"] in kinds:
                row_of[row["what"]] = row
        table.used += row_of.values()
        table.line(f"{shape}, {dtype}", *(cell(row_of.get(kind)) for kind in kinds))


def shipped(table):
    what = {"fused": "decode batch 1 fused", "separate": "decode batch 1 separate", "ratio": "fused over separate (pairs)"}
    threads = sorted({r["threads"] for r in table.newest.values() if r["what"] == what["fused"]}, key=int)
    table.head("decode, batch 1, shipped model (7.5 M parameters), tok/s",
               *(f"{n} thread{'s' if n != '1' else ''}" for n in threads))
    for dtype, name in (("bf16", "bf16"), ("fp8", "FP8 block")):
        for key, text in (("fused", "shared experts in slots"), ("separate", "separate"), ("ratio", "fused over separate, pair by pair")):
            table.line(f"{name}, {text}", *(cell(table.find(what[key], "word-problems", dtype, 1, n)) for n in threads))


class GpuTable(Table):
    """Ours and a peer's, measured in one call on one machine; rows are keyed by who measured them as well."""

    PEER = "sglang-triton"

    def __init__(self, rows):
        super().__init__([])
        for row in rows:
            self.newest[row["who"], row["what"], row["shape"], row["dtype"], row["T"]] = row

    def find(self, who, what, shape, dtype, tokens=""):
        row = self.newest.get((who, what, shape, dtype, str(tokens)))
        if row:
            self.used.append(row)
        return row

    def kinds(self, matches, *columns):
        found = (tuple(r[c] for c in columns) for r in self.newest.values() if r["who"] == "moefuse" and matches(r["what"]))
        return list(dict.fromkeys(found))

    def pair(self, what, shape, dtype, tokens):
        ours, peer = (self.find(who, what, shape, dtype, tokens) for who in ("moefuse", self.PEER))
        return "-" if not ours else number(ours["figure"]) + (f" / {number(peer['figure'])}" if peer else "")

    def text(self):
        if not self.used:
            return "Not measured yet.\n"
        dates, gpus = (sorted({r[c] for r in self.used}) for c in ("date", "gpu"))
        whos = list(dict.fromkeys(f"{r['who']} {r['version']}" for r in self.used))
        return "\n".join(self.lines) + f"\n\n{', '.join(dates)}, {', '.join(gpus)}: {', '.join(whos)}.\n"


def gpu_layer(table):
    table.head("experts and combine, us: ours / peer", *(f"T = {t:,}" for t in GPU_TOKENS))
    for shape, dtype in table.kinds(lambda what: what == "experts and combine", "shape", "dtype"):
        table.line(f"{shape}, {dtype}", *(table.pair("experts and combine", shape, dtype, t) for t in GPU_TOKENS))


def gpu_operations(table):
    tokens = (1, 64, 256, 1024, 4096, 65536)
    table.head("operation, us: ours / peer", *(f"T = {t:,}" for t in tokens))
    matches = lambda what: what == "gate" or what.startswith(("align", "combine"))
    for what, shape, dtype in table.kinds(matches, "what", "shape", "dtype"):
        table.line(f"{what}, {shape}", *(table.pair(what, shape, dtype, t) for t in tokens))


def gpu_models(table):
    matches = lambda what: what.startswith(("prefill", "decode"))
    shapes = table.kinds(matches, "shape", "dtype")
    table.head("random weights, tok/s", *(f"{shape}, {dtype}" for shape, dtype in shapes))
    for (what,) in table.kinds(matches, "what"):
        found = [[r for k, r in table.newest.items() if k[:4] == ("moefuse", what, *s)] for s in shapes]
        table.used += [rows[0] for rows in found if rows]
        table.line(what, *(number(rows[0]["figure"]) if rows else "-" for rows in found))


class ServeTable:
    """Runs of `bench serve` on a GPU: a line per model and concurrency, shared experts in slots beside separate ones."""

    def __init__(self, rows):
        self.newest = {(r["shape"], r["dtype"], int(r["concurrency"]), r["fusion"]): r for r in rows}

    def text(self):
        if not self.newest:
            return "Not measured yet.\n"
        lines = ["| model | requests at once | TTFT, ms (p99) | between tokens, ms (p99) | output tok/s | all tok/s |", "|" + "---|" * 6]
        for shape, dtype, concurrency in dict.fromkeys(k[:3] for k in self.newest):
            pair = [r for r in (self.newest.get((shape, dtype, concurrency, f)) for f in ("on", "off")) if r]
            cells = [[f"{number(r['ttft_ms'])} ({number(r['ttft_p99_ms'])})" for r in pair],
                     [f"{number(r['itl_ms'])} ({number(r['itl_p99_ms'])})" for r in pair],
                     [number(r["output_tok_s"]) for r in pair], [number(r["total_tok_s"]) for r in pair]]
            gain = f", {(pair[0]['output_tok_s'] / pair[1]['output_tok_s'] - 1) * 100:+.0f} %" if len(pair) == 2 else ""
            shown = [" / ".join(c) for c in cells]
            lines.append(f"| {shape}, {dtype} | {concurrency} | {shown[0]} | {shown[1]} | {shown[2]}{gain} | {shown[3]} |")
        rows = self.newest.values()
        dates, gpus, versions = (", ".join(dict.fromkeys(r[c] for r in rows)) for c in ("date", "gpu", "version"))
        return "\n".join(lines) + f"\n\n{dates}, {gpus}: moefuse {versions}.\n"


GPU_TABLES = {"gpulayer": gpu_layer, "gpuoperations": gpu_operations, "gpumodels": gpu_models}
TABLES = {"machine": machine, "kernels": kernels, "layer": layer, "gate": gate, "models": models, "shipped": shipped}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    rows, gpu_rows = read_rows(RESULTS), read_rows(GPU_RESULTS, GPU_COLUMNS)
    serve_rows = read_rows(GPU_SERVE_RESULTS, SERVE_COLUMNS)
    text = README.read_text(encoding="utf-8")

    def fill(match):
        name = match.group(1)
        if name == "gpuserve":
            return f"<!-- bench:{name} -->\n{ServeTable(serve_rows).text()}<!-- /bench -->"
        if name not in TABLES and name not in GPU_TABLES:
            sys.exit(f"{README}: unknown table bench:{name}; known: {', '.join([*TABLES, *GPU_TABLES, 'gpuserve'])}")
        table = GpuTable(gpu_rows) if name in GPU_TABLES else Table(rows)
        (TABLES | GPU_TABLES)[name](table)
        return f"<!-- bench:{name} -->\n{table.text()}<!-- /bench -->"

    new = re.sub(r"<!-- bench:([a-z]+) -->\n.*?<!-- /bench -->", fill, text, flags=re.S)
    if arguments.check:
        sys.exit(new != text and f"{README.name} is not what {RESULTS.parent.relative_to(ROOT)} says: run tools/bench_table.py")
    if new != text:
        README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
