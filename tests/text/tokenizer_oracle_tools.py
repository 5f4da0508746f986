"""What the tokenizer's oracles share: the program under test, claims in TAP, tokenizers' files, texts.

A script that imports this is called with the program tok_dump and, optionally, a part of a claim's text."""
import array
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time

TOK_DUMP = sys.argv[1]
ONLY = sys.argv[2] if len(sys.argv) > 2 else ""
ADD_SPECIAL, NO_SPECIAL, NO_ADDED = 1, 2, 4
CODE_POINTS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
# Most planes are unassigned and all alike: where time matters, all that is assigned or near it, and a sample of the rest.
MOST_POINTS = [c for c in CODE_POINTS if ord(c) < 0x32400 or 0xE0000 <= ord(c) < 0xE0200 or ord(c) % 97 == 0]
UNSUPPORTED = 2

# ---- the program under test ------------------------------------------------------------------------------------------


def ask(requests, path=None):
    """requests: (operation, arguments, payload) -> list of (status, bytes)."""
    data = bytearray()
    for operation, arguments, payload in requests:
        data += struct.pack("<c3BI", operation, *(tuple(arguments) + (0, 0, 0))[:3], len(payload)) + payload
    out = subprocess.run([TOK_DUMP] + ([path] if path else []), input=data, stdout=subprocess.PIPE, check=True).stdout
    answers, at = [], 0
    while at < len(out):
        status, size = struct.unpack_from("<II", out, at)
        answers.append((status, out[at + 8:at + 8 + size]))
        at += 8 + size
    assert len(answers) == len(requests)
    return answers


def differing_alone(path, points, encode_batch):
    """Encodes each character as a text of its own; answers are compared as bytes, a few thousand at a time."""
    requests = b"".join(b"E\0\0\0" + struct.pack("<I", len(b)) + b for b in (c.encode() for c in points))
    out = subprocess.run([TOK_DUMP, path], input=requests, stdout=subprocess.PIPE, check=True).stdout
    packers = [struct.Struct(f"<II{n}i").pack for n in range(17)]
    differences, at = [], 0
    for begin in range(0, len(points), 20000):
        ids = [e.ids for e in encode_batch(points[begin:begin + 20000], add_special_tokens=False)]
        expected = [packers[len(i)](0, 4 * len(i), *i) for i in ids]
        joined = b"".join(expected)
        if out[at:at + len(joined)] != joined:
            bad = 0
            while out.startswith(expected[bad], at):
                at += len(expected[bad])
                bad += 1
            differences.append(f"U+{ord(points[begin + bad]):04X}: expected {ids[bad]}, got another answer")
            break
        at += len(joined)
    return differences + (["more answers than questions"] if not differences and at != len(out) else [])


def encoded(path, texts, flags=0):
    answers = ask([(b"E", [flags], t.encode()) for t in texts], path)
    return [list(array.array("i", body)) if status == 0 else body.decode() for status, body in answers]


def opening(*paths):
    """What the program says when it opens the file: nothing when it can."""
    return subprocess.run([TOK_DUMP, *paths], input=b"", capture_output=True).stderr.decode()


def packed(ids):
    return array.array("i", ids).tobytes()


# ---- claims ----------------------------------------------------------------------------------------------------------

number = failed = 0


def claim(text):
    """Runs the function at once; it returns (number of comparisons, list of differences)."""
    def run(function):
        global number, failed
        if ONLY not in text:
            return
        number += 1
        started = time.time()
        try:
            count, differences = function()
        except Exception as problem:  # a broken pipe is a failure like another
            count, differences = 0, [repr(problem)]
        good = count > 0 and not differences
        failed += not good
        print(f"{'ok' if good else 'not ok'} {number} - {text} # {count} comparisons, {time.time() - started:.1f} s", flush=True)
        for difference in differences[:5]:
            print(f"# {difference}"[:1000])
    return run


def finish():
    print(f"1..{number}")
    sys.exit(1 if failed or number == 0 else 0)


def compare(texts, got, expected):
    return len(texts), [f"{ascii(t)[:300]}: got {g}, expected {e}" for t, g, e in zip(texts, got, expected) if g != e]


# ---- tokenizers ------------------------------------------------------------------------------------------------------

FOLDER = tempfile.TemporaryDirectory()


def byte_alphabet():
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


BYTES = byte_alphabet()
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def added(id_, content, special=False, **flags):
    return {"id": id_, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": special, **flags}


def saved(name, tokenizer):
    path = os.path.join(FOLDER.name, name + ".json")
    pathlib.Path(path).write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return path


# ---- texts -----------------------------------------------------------------------------------------------------------

WORDS = ("the quick brown fox can't we'll I'M they'RE 'S 12345 3.14 1,000,000 foo_bar() {x:1} https://a.b/c?d=e <html> "
         "naïve café Ångström Straße ĳ ﬁ ſ K Привет мир 你好，世界 日本語テスト カタカナ 한국어 "
         "العربية עברית हिन्दी ไทย 👍🏽 👩‍👩‍👧‍👦 🇩🇪 ①²½Ⅷ٣๔ \u0301 e\u0301 \u1100\u1161\u11a8 \ufeff \u200b \u200d "
         "\u180e \u2028 \u3000 \xa0 \x85 \ufffd \U000e0041 ¡¿«»„“ ∑∫≠ $€£ …—– ").split(" ")
SPACES = [" ", " ", " ", "  ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u3000", "\xa0", "", ""]
ALPHABETS = ["abcXYZ 's123.,\n", " \t\n\r\x0b\x0c\x85\xa0\u2003\u3000a1", "'\u2019sSſtTdDmMlLvVrReE ", "0123456789٠१０½Ⅷ²",
             "你好世界日本語、。！Aa1 ", "e\u0301\u0327\u0323\u0308\u0345a\u030ao\u031b가\u1100\u1161\u11a8",
             "अआइ\u093c\u094dकषि\u0902", "👍🏽👩\u200d🇩🇪\ufe0f", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ abc", "\x00\x01\x1b\x7f\xad\u200b\ufeff a"]


def random_text(rng, specials):
    kind = rng.random()
    if kind < 0.45:
        return "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randint(1, 12)))
    if kind < 0.75:
        alphabet = rng.choice(ALPHABETS)
        return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40)))
    if kind < 0.85:
        return "".join(rng.choice(CODE_POINTS) for _ in range(rng.randint(1, 12)))
    if kind < 0.9:
        return rng.choice(WORDS)[:3] * rng.randint(1, 40)
    parts = []
    for _ in range(rng.randint(1, 6)):
        special = rng.choice(specials)
        cut = rng.random()
        parts.append(special if cut < 0.7 else special[:rng.randint(0, len(special))] if cut < 0.85 else special[1:])
        parts.append(rng.choice(WORDS + SPACES))
    return "".join(parts)


def random_texts(seed, count, specials):
    rng = random.Random(seed)
    return [random_text(rng, specials) for _ in range(count)]
