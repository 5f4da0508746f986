"""A wrong key costs the same number of instructions however much of it is right: callgrind counts them for every length of
matching prefix.  `key_timing_test.py KEY_CHECK`; prints TAP."""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

KEY = "sk-0123456789abcdef0123456789abcdef"
CLAIM = "a wrong key takes the same instructions however long its right beginning is"


def count(program, key, folder):
    out = pathlib.Path(folder) / "callgrind.out"
    # Only what happens inside the comparison: start-up differs by what the loader finds in the environment.
    done = subprocess.run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--toggle-collect=mf_api_keys_allow",
                           program, f"Bearer {key}"], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        sys.exit(f"valgrind failed: {done.stderr[-2000:]}")
    return done.stdout.strip(), int(re.search(r"Collected : (\d+)", done.stderr).group(1))


def main():
    if not shutil.which("valgrind"):
        print("not ok 1 # SKIP key timing: valgrind is not installed\n1..1")
        return
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        for right in range(0, len(KEY), 5):
            wrong = KEY[:right] + "#" * (len(KEY) - right)
            verdict, counts[right] = count(sys.argv[1], wrong, folder)
            assert verdict == "refused", wrong
        verdict, whole = count(sys.argv[1], KEY, folder)
        assert verdict == "allowed"
    equal = len(set(counts.values())) == 1 and min(counts.values()) > 1000
    print(f"{'ok' if equal else 'not ok'} 1 - {CLAIM}")
    print(f"# instructions by length of the right beginning: {counts}; the key itself: {whole}")
    print("1..1")
    sys.exit(0 if equal else 1)


main()
