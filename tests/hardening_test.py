"""What the program was built with: hardening_test.py PATH/TO/moefuse.  Prints TAP."""
import re
import subprocess
import sys

from tap import claim, plan

PROGRAM = sys.argv[1]


def readelf(*flags):
    return subprocess.run(["readelf", *flags, "-W", PROGRAM], stdout=subprocess.PIPE, text=True, check=True).stdout


header, segments, dynamic, symbols = readelf("-h"), readelf("-l"), readelf("-d"), readelf("--dyn-syms")
stack = re.search(r"GNU_STACK.*", segments)
claim("it may be loaded at any address", "Type:                              DYN" in header and "PIE" in dynamic, dynamic)
claim("its relocations are read-only and resolved at start", "GNU_RELRO" in segments and "BIND_NOW" in dynamic + segments
      or re.search(r"FLAGS.*NOW", dynamic), dynamic)
claim("its stack is not executable", stack and "RWE" not in stack.group(0), segments)
claim("no segment is writable and executable", not re.search(r"LOAD.*RWE", segments), segments)
claim("it looks up no library by a path of its own", "RPATH" not in dynamic and "RUNPATH" not in dynamic, dynamic)
claim("stacks are guarded", "__stack_chk_fail" in symbols, symbols)
claim("library calls are checked", len(re.findall(r"__\w+_chk@", symbols)) >= 3, re.findall(r"__\w+_chk", symbols))
if "X86-64" in header:
    code = subprocess.run(["objdump", "-d", "--no-show-raw-insn", PROGRAM], stdout=subprocess.PIPE, text=True, check=True).stdout
    landings = len(re.findall(r"\bendbr64\b", code))
    claim("indirect branches land on marks", landings > 500, f"{landings} endbr64")
sys.exit(plan())
