"""Compares tokenizers that begin with characters (SentencePiece's kind) with Hugging Face `tokenizers`, id for id.

    python tests/text/tokenizer_chars_oracle.py BUILD/bin/tests-tools/tok_dump [SUBSTRING OF A CLAIM]

The vocabularies are trained here, on a text of a few kilobytes; their files have the parts that Mixtral's, ERNIE's and Gemma's
have, and others.  All random numbers are seeded.  Prints TAP."""
import os
import random

os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers  # noqa: E402

from tokenizer_oracle_tools import (ADD_SPECIAL, MOST_POINTS, NO_SPECIAL, WORDS, added, ask, claim, compare,  # noqa: E402
                                    encoded, finish, opening, packed, random_texts, saved)

# ---- a trained vocabulary --------------------------------------------------------------------------------------------

CORPUS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(0, len(WORDS), 3)] + [
    "def f(x):\n    return x + 1\n\n\nclass A:\n        pass\n", "a  b   c    d     e        f", "the cat sat on the mat and the hat",
    "ababab abcabc xxxx 2024 2025 12345", "don't won't can't", "こんにちは世界 你好世界 你好", "café naïve élève"]
BYTE_TOKENS = [f"<0x{b:02X}>" for b in range(256)]


def train():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", "<s>", "</s>"] + BYTE_TOKENS, limit_alphabet=120,
                                  show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    import json
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(m) for m in model["merges"]]


VOCAB, MERGES = train()
# Runs of blanks, which SentencePiece trains and Metaspace does not, and tokens that run on over a blank.
RUNS = [("▁", "▁"), ("▁▁", "▁▁"), ("▁▁▁▁", "▁▁▁▁"), ("▁▁", "▁"), ("\n", "\n")]
ACROSS = [("a", "▁"), ("e▁", "t"), ("e", "▁"), ("▁", "▁a"), ("s▁", "▁"), ("s", "▁")]

PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
BACK = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
LLAMA_DECODER = [BACK, {"type": "ByteFallback"}, {"type": "Fuse"}, STRIP]
SPECIALS = [added(0, "<unk>", True), added(0, "<s>", True), added(0, "</s>", True)]


def sequence(kind, parts):
    return parts[0] if len(parts) == 1 else {"type": "Sequence", kind: parts} if parts else None


def made(name, normal=(PREPEND, REPLACE), decoders=LLAMA_DECODER, merges=None, without=(), extra=(), added_tokens=SPECIALS, pre=None,
         model=None, **parts):
    merges = MERGES if merges is None else merges
    vocab = {}
    for token in [*VOCAB, *("".join(m) for m in merges), *extra]:
        if token not in without:
            vocab.setdefault(token, len(vocab))
    merges = [list(m) for m in merges if all(t in vocab for t in (*m, "".join(m)))]
    base = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab, "merges": merges, **(model or {})}
    base = {k: v for k, v in base.items() if v != "none"}
    ids, listed = len(vocab), []
    for token in added_tokens:
        id_ = vocab.get(token["content"])
        if id_ is None:
            id_, ids = ids, ids + 1
        listed.append({**token, "id": id_})
    return saved(name, {"version": "1.0", "truncation": None, "padding": None, "added_tokens": listed,
                        "normalizer": sequence("normalizers", list(normal)), "pre_tokenizer": pre, "post_processor": None,
                        "decoder": sequence("decoders", list(decoders)), "model": base, **parts})


def metaspace(**more):
    return {"type": "Metaspace", "replacement": "▁", **more}


WITH_RUNS = MERGES + RUNS
EXTRA = [added(0, "<x>"), added(0, "<y>", True, lstrip=True), added(0, "<z>", True, rstrip=True), added(0, "word", single_word=True),
         added(0, "▁▁▁▁▁"), added(0, "<n>", False, normalized=True), added(0, "a b", False, normalized=True),
         added(0, "<sn>", True, normalized=True)]
TEMPLATE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}

PATHS = {
    "Mixtral": made("mixtral", merges=WITH_RUNS, post_processor=TEMPLATE),
    "Mixtral, newer": made("mixtral2", normal=(), pre=metaspace(prepend_scheme="first", split=False), merges=WITH_RUNS,
                           post_processor=TEMPLATE),
    "Gemma": made("gemma", normal=(REPLACE,), decoders=LLAMA_DECODER[:3], merges=WITH_RUNS,
                  pre={"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}),
    "added tokens": made("added", merges=WITH_RUNS, added_tokens=SPECIALS + EXTRA),
    "added tokens, Metaspace first": made("added1", (), merges=WITH_RUNS, added_tokens=SPECIALS + EXTRA,
                                          pre=metaspace(prepend_scheme="first")),
    "added tokens, Metaspace always": made("added2", (), merges=WITH_RUNS, added_tokens=SPECIALS + EXTRA,
                                           pre=metaspace(prepend_scheme="always", split=False)),
    "tokens across blanks": made("across", merges=ACROSS + WITH_RUNS),
    "tokens across blanks, whole words": made("across2", merges=WITH_RUNS + ACROSS, model={"ignore_merges": True},
                                              extra=["▁hello", "▁a▁b", "▁ab", "zz"]),
    "NFC": made("nfc", normal=({"type": "NFC"}, PREPEND, REPLACE), merges=WITH_RUNS, added_tokens=SPECIALS + EXTRA),
    "no byte tokens": made("nobytes", without=BYTE_TOKENS, merges=WITH_RUNS),
    "some byte tokens": made("somebytes", without=BYTE_TOKENS[0x80:0xC8], merges=WITH_RUNS),
    "some byte tokens, each unknown": made("somebytes2", without=BYTE_TOKENS[0x80:0xC8], model={"fuse_unk": False}),
    "no byte fallback": made("nofall", model={"byte_fallback": False, "fuse_unk": False}),
    "nothing unknown": made("nounk", without=BYTE_TOKENS, model={"unk_token": None}),
    "old Metaspace": made("old", (), pre=metaspace(add_prefix_space=True)),
    "Metaspace never": made("never", (), pre=metaspace(prepend_scheme="never", add_prefix_space=False)),
    "Metaspace behind digits": made("digits", (), pre={"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, metaspace(prepend_scheme="first")]}),
    "Metaspace always behind a split": made("split", (), pre={"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\n+|b"}, "behavior": "Removed", "invert": False}, metaspace(prepend_scheme="always")]}),
    "odd replacements": made("odd", normal=({"type": "Replace", "pattern": {"String": "ab"}, "content": "a"},
                                            {"type": "Replace", "pattern": {"String": "aa"}, "content": ""},
                                            {"type": "Prepend", "prepend": "c "}, REPLACE), added_tokens=SPECIALS + EXTRA),
}
HF = {name: Tokenizer.from_file(path) for name, path in PATHS.items()}
MARKS = ["<s>", "</s>", "<unk>", "<x>", "<y>", "<z>", "<n>", "<sn>", "word", "a b", "▁▁▁▁▁", " <n>", "<0x0A>", "▁", "▁▁", " ", "  "]
ALPHABET = list("aabbcc  ▁▁\n<>xz1é中👍e\u0301\u1100") + MARKS


def small_texts(seed, count):
    rng = random.Random(seed)
    return ["".join(rng.choice(ALPHABET) for _ in range(rng.randint(0, 20))) for _ in range(count)]


@claim("random strings, with and without special tokens")
def _():
    total, differences = 0, []
    texts = random_texts(7, 600, MARKS) + small_texts(3, 500)
    for name, path in PATHS.items():
        hf = HF[name]
        count, found = compare(texts, encoded(path, texts, ADD_SPECIAL), [e.ids for e in hf.encode_batch_fast(texts)])
        hf.encode_special_tokens = True
        few = texts[::3]
        more, others = compare(few, encoded(path, few, NO_SPECIAL), [e.ids for e in hf.encode_batch_fast(few, add_special_tokens=False)])
        hf.encode_special_tokens = False
        total += count + more
        differences += [f"{name}: {d}" for d in found + others]
    return total, differences


@claim("one in four code points, alone and in context")
def _():
    total, differences = 0, []
    points = MOST_POINTS[::4]
    texts = ["".join(f"a{c}b {c}\n" for c in points[i:i + 64]) for i in range(0, len(points), 64)] + points[::9]
    for name in ("Mixtral", "some byte tokens", "NFC"):
        count, found = compare(texts, encoded(PATHS[name], texts), [e.ids for e in HF[name].encode_batch_fast(texts, add_special_tokens=False)])
        total += count
        differences += [f"{name}: {d}" for d in found]
    return total, differences


@claim("long texts, each one word")
def _():
    n = 12000
    texts = ["a" * n, " " * n, "▁" * n, "1" * n, "\n" * n, "中" * (n // 4), "😀" * (n // 4), "a b" * (n // 3), " \n" * (n // 2),
             "the cat sat on the mat " * (n // 20), "ab" * n, "s  " * (n // 3), "".join(random_texts(5, 600, MARKS)), "</s>" * 2000, "<x>" * 2000]
    total, differences = 0, []
    for name in ("Mixtral", "tokens across blanks", "tokens across blanks, whole words", "no byte tokens", "added tokens"):
        count, found = compare(texts, encoded(PATHS[name], texts), [HF[name].encode(t, add_special_tokens=False).ids for t in texts])
        total += count
        differences += [f"{name}: {d}" for d in found]
    return total, differences


# ---- decoding --------------------------------------------------------------------------------------------------------

DECODERS = {
    "Llama": LLAMA_DECODER, "Gemma": LLAMA_DECODER[:3], "Metaspace first": [metaspace(prepend_scheme="first")],
    "Metaspace never": [metaspace(prepend_scheme="never")], "old Metaspace": [metaspace(add_prefix_space=True)],
    "Metaspace and bytes": [metaspace(prepend_scheme="always", split=False), {"type": "ByteFallback"}, {"type": "Fuse"}],
    "no bytes": [BACK, {"type": "Fuse"}, {**STRIP, "start": 3}], "another blank": [BACK, {"type": "Fuse"}, {**STRIP, "content": "a"}],
    "two replacements": [BACK, {"type": "Replace", "pattern": {"String": "e"}, "content": ""}, {"type": "ByteFallback"}, {"type": "Fuse"}]}


@claim("decoding: at once, and as a stream but for what a beginning drops")
def _():
    total, differences = 0, []
    rng = random.Random(11)
    for name, decoders in DECODERS.items():
        path = made("decoder", decoders=decoders, merges=WITH_RUNS, added_tokens=SPECIALS + EXTRA)
        hf = Tokenizer.from_file(path)
        size = hf.get_vocab_size()
        lists = [hf.encode(t).ids for t in random_texts(13, 200, MARKS) + small_texts(4, 100)]
        lists += [[rng.choice([rng.randrange(259, size), rng.randrange(0, 3), 3 + rng.randrange(0x80)]) for _ in range(rng.randint(1, 8))]
                  for _ in range(400)]
        lists += [[i] for i in range(size) if not 3 + 0x80 <= i < 259]
        for skip in (False, True):
            if skip:  # tokenizers does not know a special token again whose normal form is another
                lists = [ids for ids in lists if hf.token_to_id("<sn>") not in ids]
            expected = [t.encode() for t in hf.decode_batch(lists, skip_special_tokens=skip)]
            whole = ask([(b"D", [skip], packed(ids)) for ids in lists], path)
            # Invalid runs of bytes are repaired another way: see tokenizer.h.
            differences += [f"{name}: {ids} skip {skip}: got {g}, expected {e}" for ids, g, e in zip(lists, whole, expected)
                            if g != (0, e) and "\ufffd".encode() not in e]
            streamed = ask([(b"S", [skip], packed(ids)) for ids in lists], path)
            # What comes behind a prompt loses nothing: it is the text behind that of a token before it.
            start = 259 + rng.randrange(20)
            behind = hf.decode([start])
            expected = [t[len(behind):].encode() for t in hf.decode_batch([[start] + ids for ids in lists], skip_special_tokens=skip)]
            differences += [f"{name}: {ids} stream, skip {skip}: got {g}, expected {e}" for ids, g, e in zip(lists, streamed, expected)
                            if g != (0, e) and "\ufffd".encode() not in e]
            total += 2 * len(lists)
    return total, differences


# ---- what is refused -------------------------------------------------------------------------------------------------


@claim("a file that tokenizers refuses is refused, and so is what is not known")
def _():
    cases = [(made("r1", (), pre=metaspace(prepend_scheme="always", add_prefix_space=False)), "contradicts"),
             (made("r2", (), pre=metaspace(prepend_scheme="sometimes")), "sometimes"),
             (made("r3", ({"type": "NFKC"},)), "NFKC"), (made("r4", pre={"type": "Whitespace"}), "Whitespace"),
             (made("r5", decoders=[BACK, STRIP]), "Strip"), (made("r6", decoders=[{"type": "ByteFallback"}, BACK]), "Replace"),
             (made("r7", ({"type": "Replace", "pattern": {"Regex": " +"}, "content": "▁"},)), "Regex"),
             (made("r8", model={"unk_token": "<none>"}), "<none>")]
    differences = []
    for path, part in cases:
        said = opening(path)
        if part not in said or path not in said:
            differences.append(f"{part}: {said}")
    return len(cases), differences


finish()
