"""openapi_fuzz.py PROGRAM [EXAMPLES [SEED]] - `make test-api`: schemathesis reads the running server's /openapi.json and sends what
it allows and what it forbids: no server error, no status that the file does not list, every answer as its schema says.

Left out is positive_data_acceptance: not everything that a JSON schema allows is a request (`min_tokens` may not exceed
`max_tokens`, a token id must be below the vocabulary's size, `n` times the prompts is capped), and such bodies are 400."""
import pathlib
import re
import subprocess
import sys

from serving import ROOT, Server, claim, plan

LEFT_OUT = "positive_data_acceptance"


def main():
    program, examples, seed = (sys.argv[1:] + ["100", "1"][len(sys.argv) - 2:])[:3]
    with Server(str(pathlib.Path(program).resolve()), "--max-model-len", "128") as server:  # chat's default answer is the rest of it
        done = subprocess.run([ROOT / ".venv-api" / "bin" / "schemathesis", "--config-file", ROOT / "tests" / "server" / "schemathesis.toml", "run", server.url + "/openapi.json", "--checks", "all",
                               "--exclude-checks", LEFT_OUT, "--max-examples", examples, "--seed", seed, "--workers", "1",
                               "--request-timeout", "60", "--suppress-health-check", "too_slow",  # of making requests, on a busy machine
                               "--phases", "examples,coverage,fuzzing", "--continue-on-failure"],
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        print(done.stdout, flush=True)
        claim("schemathesis finds nothing", done.returncode == 0, f"exit status {done.returncode}")
        claim("the server is still healthy", server.process.poll() is None and server.get("/health").status == 200)
        m = server.idle_metrics()
        claim("nothing of its requests is left", m['moefuse:kv_blocks{state="used"}'] == 0 and
              m["moefuse:kv_invariant_violations_total"] == 0, m)
        claim("it ends with 0", server.stop() == 0, server.log)
        claim("the log holds no defect", not re.search("BUG|ERROR: |runtime error|invariant", server.log), server.log)
    sys.exit(plan())


main()
