"""TAP for the test scripts: a line per claim, its detail behind '#' when it fails, the plan at the end."""
counts = {"claims": 0, "failures": 0}


def claim(text, ok, detail=""):
    counts["claims"] += 1
    counts["failures"] += not ok
    print(f"{'ok' if ok else 'not ok'} {counts['claims']} - {text}", flush=True)
    if not ok:
        print("\n".join("# " + line for line in str(detail)[:20000].splitlines()), flush=True)


def skip(text):
    """What this machine cannot show; run_tests.py lists it."""
    counts["claims"] += 1
    print(f"not ok {counts['claims']} # SKIP {text}", flush=True)


def plan():
    """Ends the output; the exit status."""
    print(f"1..{counts['claims']}")
    return 1 if counts["failures"] else 0
