#!/usr/bin/env python3
"""Writes src/text/unicode_tables.c: the character properties that Hugging Face `tokenizers` uses, found by asking it.

`tokenizers` mixes three engines, each with its own Unicode version: Oniguruma for regexes (\\p{..}, \\s, \\w, \\d), Rust's
standard library for the Digits pre-tokenizer, Rust's regex crate for single_word tokens, and a much older crate for NFC.
Every code point is put through each of them and the answers are written down as ranges, so that moefuse gives the same ids
whatever Unicode version its own libraries know.

Needs: pip install tokenizers==0.23.3 unicodedata2    (a recent unicodedata2: its data says which code points normalisation
could touch at all)

    python tools/make_unicode_tables.py src/text/unicode_tables.c
"""
import sys

import tokenizers
import unicodedata2
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
ALL_TEXT = "".join(map(chr, CODE_POINTS))
# The order is that of enum mf_unicode_category in src/text/unicode.h.
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cs Co Cn".split()
SCRIPTS = "Arabic Cyrillic Devanagari Greek Han Hangul Hebrew Hiragana Katakana Latin Thai".split()
WORD_CATEGORIES = set("Lu Ll Lt Lm Lo Mn Mc Me Nd Pc".split())


def members(pattern):
    """The code points that the regex matches, one character at a time."""
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return {ord(c) for piece, _ in split.pre_tokenize_str(ALL_TEXT) for c in piece}


def ranges(points):
    out = []
    for c in sorted(points):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def digits_pre_tokenizer():
    """What char::is_numeric() says: the only single characters that Digits cuts out of a text of a's."""
    text = "".join("a" + chr(c) for c in CODE_POINTS if c != ord("a"))
    return {ord(p) for p, _ in pre_tokenizers.Digits(individual_digits=False).pre_tokenize_str(text) if len(p) == 1 and p != "a"}


def added_token_word():
    """What counts as a word character beside a single_word token."""
    tok = Tokenizer(models.BPE({"\0": 0}, [], unk_token="\0"))
    tok.add_tokens([AddedToken("QZ", single_word=True, normalized=False)])
    return {c for c in CODE_POINTS if 1 not in tok.encode(chr(c) + "QZ").ids}


def unknown_to_nfc():
    """Code points that take part in canonical normalisation today but not in the tokenizers' older data.

    A later version of Unicode never changes how an assigned character normalises, so these are all younger characters, and
    the others behave in every library as they do in tokenizers."""
    nfd = normalizers.NFD().normalize_str
    combining, pairs = set(), {}
    for c in CODE_POINTS:
        if unicodedata2.combining(chr(c)):
            combining.add(c)
        decomposition = unicodedata2.decomposition(chr(c))
        if decomposition and not decomposition.startswith("<"):
            pairs[c] = [int(part, 16) for part in decomposition.split()]
    # A known mark moves behind one of class 1 and before one of class 240; an unknown one stays where it was.
    young = {c for c in combining if nfd("a" + chr(c) + "\u0334") == "a" + chr(c) + "\u0334"
             and nfd("a\u0345" + chr(c)) == "a\u0345" + chr(c) and nfd(chr(c)) == chr(c)}
    young -= {c for c in young if unicodedata2.combining(chr(c)) in (1, 240)}
    # Classes 1 and 240 themselves need neighbours of another class.
    for c in combining:
        if unicodedata2.combining(chr(c)) == 1 and nfd("a\u0345" + chr(c)) == "a\u0345" + chr(c):
            young.add(c)
        if unicodedata2.combining(chr(c)) == 240 and nfd("a" + chr(c) + "\u0334") == "a" + chr(c) + "\u0334":
            young.add(c)
    young_pairs = {c for c in pairs if nfd(chr(c)) == chr(c)}
    young |= young_pairs
    known_parts = {part for c in pairs if c not in young_pairs for part in pairs[c]}
    for c in young_pairs:
        young |= {part for part in pairs[c] if part not in known_parts and part not in combining - young}
    return young


def main():
    category = {}
    for name in CATEGORIES:
        for c in members(rf"\p{{{name}}}"):
            assert c not in category, hex(c)
            category[c] = name
    assert len(category) == len(CODE_POINTS)
    for major in "LMNPSZC":
        assert members(rf"\p{{{major}}}") == {c for c in CODE_POINTS if category[c][0] == major}, major
    assert members(r"\d") == {c for c in CODE_POINTS if category[c] == "Nd"}
    for c in range(0xD800, 0xE000):
        category[c] = "Cs"
    word = members(r"\w")
    plain_word = {c for c in CODE_POINTS if category[c] in WORD_CATEGORIES}
    assert plain_word <= word
    rust_word = added_token_word()
    number = {c for c in CODE_POINTS if category[c][0] == "N"}
    digits = digits_pre_tokenizer()
    assert number <= digits
    # What the table calls unassigned is left alone by normalisation without being listed.
    young = {c for c in unknown_to_nfc() if category[c] != "Cn"}

    lines = [
        "/* unicode_tables.c - generated by tools/make_unicode_tables.py from the answers of tokenizers "
        f"{tokenizers.__version__}; do not edit. */",
        '#include "text/unicode.h"', "",
        "/* Each entry begins a run: first code point << 8 | category. */",
        "const uint32_t mf_unicode_runs[] = {"]
    runs, previous = [], None
    for c in range(0x110000):
        if category[c] != previous:
            previous = category[c]
            runs.append(c << 8 | CATEGORIES.index(previous))
    for i in range(0, len(runs), 12):
        lines.append("    " + ", ".join(f"0x{r:x}" for r in runs[i:i + 12]) + ",")
    lines += ["};", f"const size_t mf_unicode_num_runs = {len(runs)};", ""]

    def table(name, points, comment):
        found = ranges(points)
        lines.append(f"/* {comment} */")
        lines.append(f"const mf_char_range {name}[] = {{")
        for i in range(0, len(found), 6):
            lines.append("    " + ", ".join(f"{{ 0x{a:x}, 0x{b:x} }}" for a, b in found[i:i + 6]) + ",")
        lines.extend(["};", f"const size_t {name}_count = {len(found)};", ""])

    table("mf_unicode_space", members(r"\s"), "\\s")
    table("mf_unicode_word_extra", word - plain_word, "\\w beyond letters, marks, decimal digits and connectors")
    table("mf_unicode_neighbour_extra", rust_word - plain_word, "the same for the neighbours of single_word tokens")
    assert plain_word <= rust_word
    table("mf_unicode_digits_extra", digits - number, "what the Digits pre-tokenizer cuts out beyond the categories N*")
    table("mf_unicode_nfc_unknown", young, "assigned code points that normalisation must treat as if they were unassigned")
    for script in SCRIPTS:
        table(f"script_{script.lower()}", members(rf"\p{{{script}}}"), f"\\p{{{script}}}")
    text = "\n".join(lines)
    for script in SCRIPTS:
        text = text.replace(f"const mf_char_range script_{script.lower()}[]", f"static const mf_char_range script_{script.lower()}[]")
        start = text.index(f"const size_t script_{script.lower()}_count")
        text = text[:start] + text[text.index("\n", start) + 1:]
    text += "\nconst mf_unicode_script mf_unicode_scripts[] = {\n"
    for script in SCRIPTS:
        key = f"script_{script.lower()}"
        text += f'    {{ "{script.lower()}", {key}, sizeof {key} / sizeof *{key} }},\n'
    text += f"}};\nconst size_t mf_unicode_num_scripts = {len(SCRIPTS)};\n"
    with open(sys.argv[1], "w", encoding="ascii") as f:
        f.write(text)


if __name__ == "__main__":
    main()
