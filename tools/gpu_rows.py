"""Rows of bench/results/gpu.csv from what moefuse_cuda_bench printed (`make bench-gpu`), to standard output.

    gpu_rows.py --version COMMIT [--gpu "NVIDIA H200"] [--date 2026-12-01] LOG...

A line that looks like a figure and is of a shape not known here is an error: no figure is lost without a word."""
import argparse
import csv
import datetime
import re
import sys

SHAPES = {
    "DeepSeek-V3 TP8 fp8": ("v3-tp8", "fp8_block"),
    "Qwen3-30B-A3B bf16": ("qwen3-30b", "bf16"),
    "DeepSeek-V2-Lite bf16": ("v2-lite", "bf16"),
    "GLM-4.5-Air TP2 bf16": ("glm-air-tp2", "bf16"),
    "GLM-4.5-Air fp8": ("glm-air", "fp8_block"),
    "Qwen3-30B-A3B int4/128": ("qwen3-30b", "int4 group 128"),
    "Qwen3-30B-A3B int4/32": ("qwen3-30b", "int4 group 32"),
    "Qwen3-30B-A3B gptq/128": ("qwen3-30b", "int4 group 128, f16 scales, zero points"),
    "GLM-4.5-Air int4/128": ("glm-air", "int4 group 128"),
    "gpt-oss-20b mxfp4": ("gpt-oss-20b", "mxfp4"),
    "gpt-oss-120b mxfp4": ("gpt-oss-120b", "mxfp4"),
    "w8a16 V3 TP8 fp8": ("v3-tp8", "fp8_block w8a16"),
    "w8a16 Qwen3 fp8": ("qwen3-30b", "fp8_block w8a16"),
    "w8a16 GLM-4.5-Air fp8": ("glm-air", "fp8_block w8a16"),
    "w8a16 Qwen3 channel": ("qwen3-30b", "fp8_channel w8a16"),
    "w8a16 Qwen3 int8": ("qwen3-30b", "int8_channel w8a16"),
    "w8a16 GLM-4.5-Air channel": ("glm-air", "fp8_channel w8a16"),
    "w8a8 Qwen3 fp8": ("qwen3-30b", "fp8_block"),
    "w8a8 Qwen3 channel": ("qwen3-30b", "fp8_channel w8a8"),
    "w8a8 Qwen3 int8": ("qwen3-30b", "int8_channel w8a8"),
    "w8a8 GLM-4.5-Air channel": ("glm-air", "fp8_channel w8a8"),
    "w8a8 GLM-4.5-Air int8": ("glm-air", "int8_channel w8a8"),
    "f16 Qwen3-30B-A3B": ("qwen3-30b", "f16"),
}
GATES = {
    "256, 8 groups, top 8+1, sigmoid": "v3",
    "128, top 8, softmax": "qwen3-30b",
    "384, top 8+1, sigmoid": "kimi-k2",
}
EXPERTS = re.compile(r"^(?P<name>\S.*?)\s+T\s+(?P<t>\d+)  experts\+combine\s+(?P<us>[\d.]+) us")
POINT = re.compile(r"  T (\d+) ([\d.]+)( \(from L2 ([\d.]+)\))?")


def known(table, name):
    if name not in table:
        sys.exit(f"gpu_rows.py: {name!r} is not known; expected one of {', '.join(table)}")
    return table[name]


def points(text):
    """(T, us) of a line of several; of a combine that fits the L2 cache the figure from there, as the peer's bench reads it."""
    return [(t, float(from_l2 or us)) for t, us, _, from_l2 in POINT.findall(text)]


def figures(line):
    """(what, shape, dtype, T, us) of a line, none where it is something else."""
    experts = EXPERTS.match(line)
    if experts:
        shape, dtype = known(SHAPES, experts["name"])
        return [("experts and combine", shape, dtype, experts["t"], float(experts["us"]))]
    if line.startswith("gate "):
        name, _, rest = line[5:].partition("  ")
        return [("gate", known(GATES, name.strip()), "f32", t, us) for t, us in points("  " + rest)]
    if line.startswith("align 257 slots, 9 columns"):
        return [("align 257 slots 9 columns", "v3", "i32", t, us) for t, us in points(line)]
    combine = re.match(r"combine bf16 top (\d+), H (\d+)", line)
    if combine:
        return [(f"combine top {combine[1]}", f"H {combine[2]}", "bf16", t, us) for t, us in points(line)]
    return []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+")
    parser.add_argument("--version", required=True)
    parser.add_argument("--gpu", default="NVIDIA H200")
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    args = parser.parse_args()
    out = csv.writer(sys.stdout, lineterminator="\n")
    count = 0
    for log in args.logs:
        with open(log, encoding="utf-8") as lines:
            for line in lines:
                for what, shape, dtype, tokens, us in figures(line.rstrip("\n")):
                    out.writerow([args.date, args.gpu, "moefuse", args.version, what, shape, dtype, tokens, f"{us:.2f}", "us"])
                    count += 1
    if not count:
        sys.exit(f"gpu_rows.py: no figure in {', '.join(args.logs)}")


if __name__ == "__main__":
    main()
