"""What `make install` lays down works for a stranger: the headers compile as C and C++ without warnings, pkg-config finds the
library, a program linked against it gets the worked row of the gate, and nothing but mf_ symbols is exported.  The manual,
the completion and the systemd unit are whole.

    install_test.py PATH/TO/BUILD/bin/moefuse"""
import gzip
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from tap import claim, plan, skip  # noqa: E402

BUILD = pathlib.Path(sys.argv[1]).resolve().parent.parent


def call(command, **kwargs):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)


# E 8, G 4, L 2, TOP2_SUM, K 2, SIGMOID, zero bias, all logits 0, S 1, factor 2.5: ids 0 1 8, weights 1.25 1.25 1.
PROGRAM = r"""
#include <moefuse.h>
#include <moefuse_engine.h>
#include <stdio.h>
int main(void)
{
    mf_error err;
    mf_device *device = 0;
    if (mf_device_open("cpu", 0, &device, &err) != MF_OK) { puts(err.message); return 1; }
    float logits[8] = {0}, bias[8] = {0}, weights[3];
    int32_t ids[3];
    mf_gate_config config = MF_GATE_CONFIG_INIT;
    config.num_experts = 8; config.top_k = 2; config.num_shared_slots = 1;
    config.scoring = MF_SCORING_SIGMOID; config.bias_domain = MF_BIAS_SCORE; config.renorm = MF_RENORM_SUM_EPS;
    config.n_group = 4; config.topk_group = 2; config.group_score = MF_GROUP_SCORE_TOP2_SUM;
    config.routed_scaling_factor = 2.5;
    mf_gate_args args = {0};
    args.config = &config;
    args.router_logits = mf_tensor_2d(logits, MF_F32, 1, 8);
    args.e_score_correction_bias = mf_tensor_1d(bias, MF_F32, 8);
    args.topk_ids = mf_tensor_2d(ids, MF_I32, 1, 3);
    args.topk_weights = mf_tensor_2d(weights, MF_F32, 1, 3);
    if (mf_moe_fused_gate(device, &args, &err) != MF_OK) { puts(err.message); return 1; }
    printf("%d %d %d %g %g %g\n", ids[0], ids[1], ids[2], weights[0], weights[1], weights[2]);
    mf_device_close(&device);
    return 0;
}
"""

with tempfile.TemporaryDirectory() as temp:
    temp = pathlib.Path(temp)
    prefix = temp / "usr"
    result = call(["cmake", "--install", str(BUILD), "--prefix", str(prefix)])
    claim("make install succeeds", result.returncode == 0, result.stdout)
    pc = next(prefix.rglob("moefuse.pc"), None)
    claim("a pkg-config file is installed", pc is not None)
    env = {**os.environ, "PKG_CONFIG_PATH": str(pc.parent) if pc else ""}
    flags = call(["pkg-config", "--cflags", "--libs", "moefuse"], env=env)
    claim("pkg-config finds the library", flags.returncode == 0, flags.stdout)
    flags = flags.stdout.split()
    libdir = [f[2:] for f in flags if f.startswith("-L")]
    (temp / "t.c").write_text(PROGRAM)
    (temp / "t.cc").write_text(PROGRAM.replace("mf_gate_args args = {0};", "mf_gate_args args = {};"))
    for compiler, source, standard in (("gcc", "t.c", "-std=c11"), ("g++", "t.cc", "-std=gnu++20")):
        extra = ["-Wno-missing-field-initializers"] if compiler == "g++" else []
        result = call([compiler, standard, "-Wall", "-Wextra", "-Werror", *extra, str(temp / source), "-o", str(temp / "t"), *flags])
        claim(f"the headers compile with {compiler} {standard} and no warning", result.returncode == 0, result.stdout)
        result = call([str(temp / "t")], env={**os.environ, "LD_LIBRARY_PATH": ":".join(libdir)})
        claim(f"a {compiler} program gets the worked row of the gate", result.stdout == "0 1 8 1.25 1.25 1\n", result.stdout)
    library = next(prefix.rglob("libmoefuse.so*"), None)
    symbols = call(["nm", "-D", "--defined-only", str(library)]).stdout.split("\n")
    foreign = [s for s in symbols if s and not s.split()[-1].split("@")[0].startswith("mf_")]
    claim("the library exports mf_ symbols only", library is not None and symbols and not foreign, "\n".join(foreign[:20]))
    program = next(prefix.rglob("bin/moefuse"), None)
    result = call([str(program), "--version"])
    claim("the installed program says its version", result.stdout.startswith("moefuse "), result.stdout)
    result = call([str(program), "info"], cwd=temp)
    claim("the installed program finds the shipped model", result.returncode == 0 and "deepseek_v3" in result.stdout,
          result.stdout)

    page = prefix / "share/man/man1/moefuse.1.gz"
    text = gzip.decompress(page.read_bytes()).decode() if page.exists() else ""
    verbs = re.findall(r"^  (\w+)  ", call([str(program), "--help"]).stdout, re.M)
    missing = [verb for verb in verbs if f".SS moefuse {verb}" not in text]
    claim("the manual has the flags of every verb", text and verbs and not missing and "\\-\\-max\\-model\\-len" in text, missing)
    claim("nothing in it is left to fill in, and it names the installed places", "@" not in text.replace("\\(at", "")
          and str(prefix / "share/moefuse") in text, re.findall("@.*", text))
    (temp / "moefuse.1").write_text(text)
    if shutil.which("mandoc"):
        result = call(["mandoc", "-T", "lint", "-W", "warning", str(temp / "moefuse.1")])
        claim("mandoc finds nothing to warn of", result.returncode == 0, result.stdout)
    elif shutil.which("man"):
        result = call(["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(temp / "moefuse.1")],
                      env={**os.environ, "LC_ALL": "C.UTF-8"})
        claim("man finds nothing to warn of", "warning:" not in result.stdout, re.findall(".*warning:.*", result.stdout)[:5])

    completion = prefix / "share/bash-completion/completions/moefuse"

    def complete(*words):
        script = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _moefuse 2>/dev/null; echo "${COMPREPLY[*]}"'
        return call(["bash", "-c", script, str(completion), "moefuse", *words]).stdout.split()

    claim("bash completes verbs", {"run", "info", "bench"} <= set(complete("")), complete(""))
    claim("bash completes flags", complete("run", "--max-model") == ["--max-model-len"], complete("run", "--max-model"))
    claim("bash completes choices, in both spellings", complete("run", "--device", "") == complete("run", "--device", "=", "")
          == ["cpu", "cuda", "ref"], complete("run", "--device", ""))
    claim("bash completes modes and their flags", "latency" in complete("bench", "")
          and complete("bench", "latency", "--batch") == ["--batch-size"], complete("bench", "latency", "--batch"))

    unit = prefix / "lib/systemd/system/moefuse.service"
    text = unit.read_text() if unit.exists() else ""
    claim("the unit starts the installed program", f"ExecStart={prefix}/bin/moefuse serve" in text and "@" not in re.sub("@[a-z-]+", "", text),
          text)
    if shutil.which("systemd-analyze"):
        result = call(["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)])
        level = re.search(r"exposure level for moefuse.service: ([\d.]+)", result.stdout)
        claim(f"its exposure is at most 2.0: {level and level.group(1)}", level and float(level.group(1)) <= 2.0, result.stdout)
    else:
        skip("the unit's exposure: systemd-analyze is not installed")
sys.exit(plan())
