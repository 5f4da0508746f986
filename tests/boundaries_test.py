"""Includes point down the picture only: greps every #include "folder/..." under src/ and fails on an arrow that points up.

Also keeps two promises of the tree: CUDA types and #ifdefs on ISA or CUDA stay in their folders, and library folders hold no
call that exits or prints.  Prints TAP."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# folder -> folders it may include from, itself apart
ALLOWED = {
    "base": set(),
    "kernels": {"base"},
    "comm": {"base"},
    "model": {"base", "kernels", "comm"},
    "text": {"base"},
    "engine": {"base", "kernels", "comm", "model"},
    "server": {"base", "text", "engine", "model"},
    "cli": {"base", "text", "engine", "model", "server"},
}
# Single headers beyond that: what `bench` and `doctor` measure with, which shows names and numbers and no tensor.
ALLOWED_FILES = {"cli": {"kernels/bench/bench.h"}}
TENSORS = re.compile(r"\bmf_(tensor|matrix|slot|experts)\b|kernels/(ops|format)\.h")
# model/, engine/ and above know no ISA; the program's folders know no tensor op.
NOT_ABOVE_KERNELS = re.compile(r"immintrin\.h|arm_neon\.h|cuda_runtime|__AVX|__ARM_NEON")
BANNED_CALLS = re.compile(
    r"(?<![\w.>])(abort|exit|_exit|sprintf|strcpy|strcat|atoi|atol|atof|alloca|system|popen|gets|printf|puts|putchar)\s*\(")
# In the program's own folder too: what writes past its end, parses without a verdict, or starts a shell.
BANNED_ANYWHERE = re.compile(
    r"(?<![\w.>])(sprintf|vsprintf|strcpy|strcat|stpcpy|atoi|atol|atof|alloca|system|popen|gets|tmpnam|mktemp)\s*\(")
WRITES_BY_FORMAT = re.compile(r'"(?:\\.|[^"\\])*%(?:hh|h|l|ll|j|z|t)?n(?:\\.|[^"\\])*"')
# Environment after start is read by nobody: another thread may be changing it, and requests must not depend on it.
SERVER_BANNED = re.compile(r"(?<![\w.>])(getenv|setenv|putenv|fork|execv\w*|rand|srand|strtok|asctime|ctime|gmtime|localtime)\s*\(")

failures = {"includes point down": [], "what programs see of kernels names no tensor": [],
            "ISA and CUDA stay in kernels": [], "libraries neither exit nor print": [],
            "no unbounded or unchecked call anywhere": [], "the server starts nothing and reads no environment": [], "no file passes a thousand lines": []}
for path in sorted((ROOT / "src").rglob("*.[ch]")):
    folder = path.relative_to(ROOT / "src").parts[0]
    text = path.read_text(encoding="utf-8")
    rel = path.relative_to(ROOT)
    if folder not in ALLOWED:
        failures["includes point down"].append(f"{rel}: folder {folder} is not in the picture")
        continue
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*#\s*include\s+"(([a-z_]+)/[^"]*)"', line)
        if (match and match.group(2) != folder and match.group(2) in ALLOWED and match.group(2) not in ALLOWED[folder]
                and match.group(1) not in ALLOWED_FILES.get(folder, ())):
            failures["includes point down"].append(f"{rel}:{number}: {folder} must not include {match.group(2)}: {line.strip()}")
        if folder not in ("kernels", "base") and NOT_ABOVE_KERNELS.search(line):
            failures["ISA and CUDA stay in kernels"].append(f"{rel}:{number}: {line.strip()}")
    code = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group(0).count("\n"), text, flags=re.S)
    for match in WRITES_BY_FORMAT.finditer(code):
        failures["no unbounded or unchecked call anywhere"].append(f"{rel}: {match.group(0)}")
    code = re.sub(r'"(?:\\.|[^"\\])*"', '""', code)
    if folder != "cli":
        for number, line in enumerate(code.splitlines(), 1):
            if BANNED_CALLS.search(line):
                failures["libraries neither exit nor print"].append(f"{rel}:{number}: {line.strip()}")
    for number, line in enumerate(code.splitlines(), 1):
        if BANNED_ANYWHERE.search(line):
            failures["no unbounded or unchecked call anywhere"].append(f"{rel}:{number}: {line.strip()}")
        if folder == "server" and SERVER_BANNED.search(line):
            failures["the server starts nothing and reads no environment"].append(f"{rel}:{number}: {line.strip()}")
    if text.count("\n") > 1000:
        failures["no file passes a thousand lines"].append(f"{rel}: {text.count(chr(10))} lines")

for header in sorted(set().union(*ALLOWED_FILES.values())):
    code = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group(0).count("\n"), (ROOT / "src" / header).read_text(), flags=re.S)
    for number, line in enumerate(code.splitlines(), 1):
        if TENSORS.search(line):
            failures["what programs see of kernels names no tensor"].append(f"src/{header}:{number}: {line.strip()}")

for number, (claim, found) in enumerate(failures.items(), 1):
    print(f"{'not ok' if found else 'ok'} {number} - {claim}")
    for line in found:
        print(f"# {line}")
print(f"1..{len(failures)}")
sys.exit(any(failures.values()))
