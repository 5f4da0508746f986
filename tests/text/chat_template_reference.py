"""jinja2 as transformers sets it up for chat templates, and the C interpreter next to it.

The environment follows transformers.utils.chat_template_utils: the immutable sandbox, trim_blocks and lstrip_blocks,
break and continue, {% generation %}, tojson without ASCII or HTML escapes, raise_exception, strftime_now, and
namespaces that refuse names with a leading underscore."""
import datetime
import json
import os
import re
import subprocess
import sys
import time
import warnings

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

warnings.simplefilter("ignore", SyntaxWarning)  # of Python, about the code that jinja2 makes of odd templates

CLOCK_NS = 1_722_470_400_123_456_789  # 2024-08-01 00:00:00.123456 UTC
os.environ["TZ"] = "UTC"
time.tzset()


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    @jinja2.pass_eval_context
    def _body(self, context, caller):
        return caller()


class Namespace(jinja2.utils.Namespace):
    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        attrs = dict(*args, **kwargs)
        for name in attrs:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(self, attrs)

    def __setitem__(self, name, value):
        Namespace.check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(name)


class Dict:
    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        return dict.fromkeys(*args, **kwargs)


class RaisedByTemplate(jinja2.exceptions.TemplateError):
    pass


def raise_exception(message):
    raise RaisedByTemplate(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(format):
    return datetime.datetime.fromtimestamp(CLOCK_NS // 1000 / 1e6).strftime(format)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, dict=Dict(), namespace=Namespace)
    return env


ENV = environment()


def reference(source, variables):
    """("text", TEXT) or ("error", MESSAGE, raised by the template itself?)"""
    try:
        text = ENV.from_string(source).render(**variables)
        text.encode("utf-8")
        return ("text", text)
    except RecursionError:
        return ("error", "RecursionError", False)
    except Exception as error:  # whatever jinja2 or Python raises is an error of the template
        return ("error", str(error), isinstance(error, RaisedByTemplate))


class Dump:
    """template_dump --lines: one request, one answer."""

    def __init__(self, program):
        self.process = subprocess.Popen([program, "--clock", str(CLOCK_NS), "--lines"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env={**os.environ, "TZ": "UTC"})

    def render(self, source, variables, limits=None):
        request = {"template": source, "variables": variables}
        if limits:
            request["limits"] = limits
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"template_dump ended with {self.process.wait()} on:\n{source!r}\n{variables!r}")
        answer = json.loads(line)
        if "text" in answer:
            return ("text", answer["text"])
        return ("error", answer["error"], answer["status"])

    def close(self):
        self.process.stdin.close()
        return self.process.wait()


def agree(expected, got):
    """None when both say the same; else why not."""
    if expected[0] != got[0]:
        return "one side renders, the other does not"
    if expected[0] == "text":
        return None if expected[1] == got[1] else "the texts differ"
    # Messages go to terminals and logs, so control characters are shown as question marks; long ones are cut.
    if expected[2] and not re.sub(r"[\x00-\x09\x0b-\x1f\x7f]", "?", expected[1].split("\0")[0]).startswith(got[1][:250]):
        return "the messages of raise_exception differ"
    return None


def show(source, variables, expected, got, file=sys.stdout):
    print(f"# template:  {source!r}\n# variables: {json.dumps(variables)[:2000]}\n# jinja2:    {expected!r}"
          f"\n# moefuse:   {got!r}", file=file)
