"""The Python package's mirror of include/moefuse.h has the compiler's sizes, offsets and numbers.  Needs no torch."""
import importlib.util
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from tap import claim, plan  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
spec = importlib.util.spec_from_file_location("_abi", ROOT / "python" / "moefuse" / "_abi.py")
abi = importlib.util.module_from_spec(spec)
sys.dont_write_bytecode = True
spec.loader.exec_module(abi)
PREFIXES = (("MF_SCORING_", abi.SCORING), ("MF_BIAS_", abi.BIAS_DOMAIN), ("MF_RENORM_", abi.RENORM), ("MF_GROUP_SCORE_", abi.GROUP_SCORE),
            ("MF_SHARED_", abi.SHARED_WEIGHT), ("MF_FORMAT_", abi.FORMAT), ("MF_ACT_QUANT_", abi.ACT_QUANT), ("MF_MODE_", abi.MODE))
OTHER_NAMES = {"MF_ACT_" + name.upper(): number for name, number in abi.ACTIVATION.items()}
OTHER_NAMES["MF_ACT_GELU_ERF"] = OTHER_NAMES.pop("MF_ACT_GELU")  # torch calls the exact one gelu


def main():
    lines = ["#include <stddef.h>", "#include <stdio.h>", '#include "moefuse.h"', "int main(void) {"]
    for name, mirror in abi.STRUCTS.items():
        lines.append(f'    printf("{name} size %zu\\n", sizeof({name}));')
        lines += [f'    printf("{name} {field} %zu\\n", offsetof({name}, {field}));' for field, *_ in mirror._fields_]
    numbers = {prefix + name.upper(): number for prefix, table in PREFIXES for name, number in table.items()}
    numbers.update(OTHER_NAMES)
    numbers.update({name: value for name, value in vars(abi).items() if re.fullmatch(r"MF_[A-Z0-9_]+", name)})
    lines += [f'    printf("{name} = %d\\n", (int){name});' for name in numbers]
    lines.append("    return 0; }")
    with tempfile.TemporaryDirectory() as folder:
        source, program = pathlib.Path(folder) / "dump.c", pathlib.Path(folder) / "dump"
        source.write_text("\n".join(lines) + "\n")
        built = subprocess.run(["cc", "-std=c11", f"-I{ROOT / 'include'}", str(source), "-o", str(program)], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
        claim("the header has every name that the mirror has", built.returncode == 0, built.stdout)
        said = subprocess.run([str(program)], stdout=subprocess.PIPE, text=True).stdout if built.returncode == 0 else ""
    expected = []
    for name, mirror in abi.STRUCTS.items():
        expected.append(f"{name} size {abi.ctypes.sizeof(mirror)}")
        expected += [f"{name} {field} {getattr(mirror, field).offset}" for field, *_ in mirror._fields_]
    expected += [f"{name} = {number}" for name, number in numbers.items()]
    wrong = [f"mirror: {e}; header: {s}" for e, s in zip(expected, said.splitlines()) if e != s]
    claim(f"{len(expected)} sizes, offsets and numbers are the compiler's", said.splitlines() == expected, "\n".join(wrong[:20]))
    header = (ROOT / "include" / "moefuse.h").read_text()
    for name, mirror in abi.STRUCTS.items():
        body = re.search(r"typedef struct %s \{(.*?)\n\} %s;" % (name, name), header, re.S).group(1)
        fields = [f for f, *_ in mirror._fields_]
        names = re.findall(r"[a-z][a-z0-9_]*(?=(?:\[[^\]]*\])?\s*[,;])", re.sub(r"/\*.*?\*/", "", body, flags=re.S))
        claim(f"{name} has no field that the mirror lacks", names == fields, f"{names}\n{fields}")
    version = re.search(r'MF_VERSION_STRING "(.*)"', header).group(1)
    claim("the package has the header's version", version == abi.__version__, version)
    sys.exit(plan())


main()
