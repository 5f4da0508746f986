"""Compares the chat template interpreter with jinja2, byte for byte, errors with errors.

    python3 tests/text/chat_template_oracle.py TEMPLATE_DUMP

Every template of tests/text/templates is rendered over generated conversations; then random templates are, from a fixed
seed (chat_template_random.py runs more of them).  Prints TAP."""
import json
import pathlib
import random
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True

import chat_template_random
from chat_template_reference import CLOCK_NS, Dump, agree, reference, show

TEMPLATES = pathlib.Path(__file__).resolve().parent / "templates"
RANDOM_GROUPS, RANDOM_CASES = 6, 250
MUTANT_GROUPS, MUTANT_CASES = 3, 1500
TEXTS = ["Hi", "", " spaced \n", "Grüße, 世界 😀", "two\nlines\n\n", "<|im_end|> {{ injected }} {% x %}", "a \"quoted\" 'text' \\ back\t",
         "<think>plan\nmore</think>\n\nanswer", "/no_think please", "<answer>42</answer>", "\u2028sep\u00a0", "<b>&amp;</b>", "x" * 300,
         "e\u0301 \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "<tool_response>\nr\n</tool_response>", "</think>", "\x00\x07nul"]
ARGUMENTS = [{}, {"city": "Zürich", "days": 3}, {"nested": {"a": [1, 2.5, None, True], "b": "é\n\"q\""}, "z": ""}, "{\"raw\": 1}", {"x": 1e20, "y": -0.5}]
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city.\nUse often.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "description": "the city's \"name\""},
                                         "days": {"type": "integer", "default": 1, "minimum": 0},
                                         "unit": {"type": "string", "enum": ["c", "f"], "nullable": True}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "noop", "description": "", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "深い", "description": "tiefe Struktur", "strict": True, "parameters": {
        "type": "object", "properties": {"list": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": ["string", "null"]}},
                                                                            "required": ["k"]}},
                                         "map": {"type": "object", "additionalProperties": {"type": "number"}}, "any": {}},
        "required": ["list", "map"]}, "return": {"type": "string"}}},
]


def text(r):
    return r.choice(TEXTS)


def parts(r):
    choices = [{"type": "text", "text": text(r)}, {"type": "image"}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": text(r)}]
    return [r.choice(choices) for _ in range(r.randrange(4))]


def content(r, plain):
    k = r.random()
    if plain or k < 0.8:
        return text(r)
    return parts(r) if k < 0.95 else None


def conversation(r, plain):
    """A conversation as clients send them; plain ones have the alternating turns and texts every template takes."""
    messages = []
    if r.random() < 0.5:
        messages.append({"role": "system", "content": content(r, plain)})
    call = 0
    for turn in range(r.randrange(0 if not plain else 1, 4)):
        messages.append({"role": "user", "content": content(r, plain)})
        if not plain and r.random() < 0.4:
            calls = []
            for _ in range(r.randrange(1, 3)):
                call += 1
                calls.append({"id": f"call{call:05d}", "type": "function",
                              "function": {"name": r.choice(TOOLS)["function"]["name"], "arguments": r.choice(ARGUMENTS)}})
            message = {"role": "assistant", "content": r.choice([None, "", text(r)]), "tool_calls": calls}
            if r.random() < 0.2:
                del message["content"]
            messages.append(message)
            for c in calls:
                messages.append({"role": "tool", "content": text(r), "tool_call_id": c["id"], "name": c["function"]["name"]})
        if r.random() < 0.7 or turn == 0:
            message = {"role": "assistant", "content": content(r, plain)}
            if r.random() < 0.3:
                message[r.choice(["reasoning_content", "thinking"])] = text(r)
            messages.append(message)
    if r.random() < 0.6:
        messages.append({"role": "user", "content": content(r, plain)})
    if not plain and r.random() < 0.1:
        messages.append({"role": r.choice(["developer", "ipython", "Odd Role"]), "content": text(r)})
    if not plain and messages and r.random() < 0.1:
        del messages[r.randrange(len(messages))]["role"]
    return messages


def variables(seed):
    r = random.Random(seed)
    plain = seed % 2 == 0
    v = {"messages": conversation(r, plain), "add_generation_prompt": r.random() < 0.6, "bos_token": "<s>", "eos_token": "</s>"}
    if r.random() < 0.1:
        del v["bos_token"]
    k = r.random()
    if k < 0.35:
        v["tools"] = r.sample(TOOLS, r.randrange(1, 4))
    elif k < 0.6:
        v["tools"] = None
    for key, values in (("enable_thinking", [True, False]), ("thinking", [True, False]), ("reasoning_effort", ["low", "high"]),
                        ("thinking_budget", [0, 100, 5000, -1]), ("documents", [[{"title": "t", "text": "d"}]]), ("add_vision_id", [True]),
                        ("tools_in_user_message", [False]), ("controls", [{"length": "long"}])):
        if r.random() < 0.3:
            v[key] = r.choice(values)
    return v


class Tap:
    def __init__(self):
        self.count = self.failed = 0

    def line(self, good, claim):
        self.count += 1
        self.failed += not good
        print(f"{'ok' if good else 'not ok'} {self.count} - {claim}", flush=True)


def same_over_conversations(dump, name, source, count):
    """(good, texts, errors) over `count` conversations; shows the first disagreement."""
    texts = errors = 0
    for seed in range(count):
        v = variables(seed)
        expected = reference(source, v)
        got = dump.render(source, v)
        why = agree(expected, got)
        if why:
            print(f"# {name}, conversation {seed}: {why}")
            show(source, v, expected, got)
            return False, texts, errors
        texts += expected[0] == "text"
        errors += expected[0] == "error"
    return True, texts, errors


def snippets(dump):
    """Each line of chat_template_snippets.txt is a template: (all agree?, how many).  What moefuse does not support it must
    say; jinja2 may do it."""
    lines = (TEMPLATES.parent / "chat_template_snippets.txt").read_text(encoding="utf-8").splitlines()
    good = True
    for line in lines:
        expected = reference(line, chat_template_random.VARIABLES)
        got = dump.render(line, chat_template_random.VARIABLES)
        why = agree(expected, got)
        unsupported = got[0] == "error" and got[2] == "unsupported"
        address = expected[0] == "text" and chat_template_random.ADDRESS.search(expected[1])
        if why and not unsupported and not address:
            print(f"# snippet: {why}")
            show(line, chat_template_random.VARIABLES, expected, got)
            good = False
    return good, len(lines)


def file_mode(program):
    """The program's other mode, on files, gives the same text."""
    source, v = "{{ messages[0].content }}\n{{ strftime_now('%Y') }}\n", {"messages": [{"content": "é"}]}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "t.jinja").write_text(source, encoding="utf-8")
        (folder / "v.json").write_text('{"messages": [{"content": "é"}]}', encoding="utf-8")
        done = subprocess.run([program, "--clock", str(CLOCK_NS), folder / "t.jinja", folder / "v.json"], stdout=subprocess.PIPE)
    return ("text", done.stdout.decode()) == reference(source, v)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    tap = Tap()
    dump = Dump(sys.argv[1])
    paths = sorted(TEMPLATES.glob("*.jinja"))
    for path in paths:
        kind = path.stem.split("_")[0]
        count = 2 if kind in ("feature", "error") else 60
        good, texts, errors = same_over_conversations(dump, path.name, path.read_bytes().decode("utf-8"), count)
        # A template that always fails would compare nothing, and one written to fail must.
        good &= texts == 0 if kind == "error" else texts > 0
        tap.line(good, f"template {path.stem} renders as jinja2 does: {texts} texts, {errors} errors")
    tap.line(len([p for p in paths if p.stem.split("_")[0] not in ("feature", "error")]) >= 30, "at least 30 templates of families")
    built_in = json.loads(subprocess.run([sys.argv[1], "--built-in"], stdout=subprocess.PIPE, check=True).stdout)
    for name, source in built_in.items():
        good, texts, errors = same_over_conversations(dump, name, source, 60)
        tap.line(good and texts > 20, f"built-in template {name} renders as jinja2 does: {texts} texts, {errors} errors")
    good, count = snippets(dump)
    tap.line(good and count > 300, f"{count} one-line templates agree, one rule each")
    for group in range(RANDOM_GROUPS):
        bad, (texts, errors, skipped) = chat_template_random.collect(dump, RANDOM_CASES, 1000 * (group + 1))
        for seed, source, expected, got, why in bad[:3]:
            print(f"# seed {seed}: {why}")
            show(source, chat_template_random.VARIABLES, expected, got)
        tap.line(not bad and texts > RANDOM_CASES // 3, f"random templates {group + 1} of {RANDOM_GROUPS} agree: {texts} texts, {errors} errors, {skipped} left out")
    sources = [path.read_bytes().decode("utf-8") for path in paths]
    for group in range(MUTANT_GROUPS):
        bad, (texts, errors, skipped) = chat_template_random.collect(dump, MUTANT_CASES, 100000 * (group + 1), sources)
        for seed, source, expected, got, why in bad[:3]:
            print(f"# seed {seed}: {why}")
            show(source, chat_template_random.VARIABLES, expected, got)
        tap.line(not bad and texts > MUTANT_CASES // 20, f"damaged templates {group + 1} of {MUTANT_GROUPS} agree: {texts} texts, {errors} errors, "
                 f"{skipped} left out")
    tap.line(file_mode(sys.argv[1]), "a template file and a JSON file render the same")
    tap.line(dump.close() == 0, "template_dump ends well")
    print(f"1..{tap.count}")
    sys.exit(1 if tap.failed else 0)


if __name__ == "__main__":
    main()
