"""Runs SGLang's serving benchmark from its unzipped wheel ($SGL_ROOT) without torch: empty modules stand in for the packages
whose __init__ would import the engine."""
import os
import runpy
import sys
import types

root = os.path.join(os.environ["SGL_ROOT"], "sglang")
for name in ("sglang", "sglang.srt", "sglang.srt.utils", "sglang.srt.disaggregation", "sglang.srt.disaggregation.utils"):
    module = types.ModuleType(name)
    module.__path__ = [os.path.join(root, *name.split(".")[1:])]
    module.FAKE_BOOTSTRAP_HOST = "2.2.2.2"
    sys.modules[name] = module
sys.path.insert(0, os.environ["SGL_ROOT"])
runpy.run_module("sglang.benchmark.serving", run_name="__main__", alter_sys=True)
