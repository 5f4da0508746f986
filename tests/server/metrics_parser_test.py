"""Prometheus' own parser reads the exposition back: metrics_parser_test.py PATH/TO/metrics_dump.  Prints TAP."""
import math
import pathlib
import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from tap import claim, plan  # noqa: E402


def families(*arguments):
    text = subprocess.run([sys.argv[1], *arguments], capture_output=True, check=True).stdout.decode()
    return text, list(text_string_to_metric_families(text))


name = 'odd "name" \\ with\nlines'
text, found = families(name)
by_name = {f.name: f for f in found}
claim("every line is read", sum(not l.startswith("#") for l in text.splitlines()) == sum(len(f.samples) for f in found))
claim("every family has help and a type", all(f.documentation and f.type != "unknown" for f in found),
      [f.name for f in found if f.type == "unknown"])
claim("no family comes twice", len(by_name) == len(found))
claim("escaped label values come back as they were",
      all(s.labels["model_name"] == name for f in found for s in f.samples if f.name.startswith(("vllm:", "moefuse:"))))
counters = [f for f in found if f.type == "counter"]
claim("counters end in _total", counters and all(s.name.endswith("_total") for f in counters for s in f.samples), counters)
for family in (f for f in found if f.type == "histogram"):
    buckets = [(float(s.labels["le"]), s.value) for s in family.samples if s.name.endswith("_bucket")]
    total = [s.value for s in family.samples if s.name.endswith("_count")]
    sums = [s.value for s in family.samples if s.name.endswith("_sum")]
    claim(f"{family.name}: cumulative buckets up to +Inf, a sum and a count",
          buckets == sorted(buckets) and math.isinf(buckets[-1][0]) and total == [buckets[-1][1]] and len(sums) == 1
          and all(a[1] <= b[1] for a, b in zip(buckets, buckets[1:])), family.samples)
ttft = by_name["vllm:time_to_first_token_seconds"]
claim("1,000 values of 0..0.999 s lie where they should",
      {float(s.labels["le"]): s.value for s in ttft.samples if s.name.endswith("_bucket")}[0.25] == 251
      and abs(next(s.value for s in ttft.samples if s.name.endswith("_sum")) - 499.5) < 1e-9, ttft.samples)
one = {tuple(s.labels[k] for k in ("layer", "kind")): s.value for s in by_name["moefuse:expert_tokens"].samples}
_, found = families("m", "--per-expert")
each = {}
for s in next(f for f in found if f.name == "moefuse:expert_tokens").samples:
    key = tuple(s.labels[k] for k in ("layer", "kind"))
    each[key] = each.get(key, 0) + s.value
claim("series per expert add up to the sums", one == each, f"{one}\n{each}")
sys.exit(plan())
