#!/usr/bin/env python3
"""Makes grade-school word problems with worked steps, in GSM8K's form, for models/word-problems.

Each problem is {"question", "answer"}; the answer is one short line per step and a last line `#### N`:

    Cost of the pens: 3 * 4 = 12
    Change: 20 - 12 = 8
    #### 8

About a hundred templates (word_problems/) draw names, objects, numbers, paraphrases and distracting
numbers.  Multi-digit products are broken up (24 * 13 = 24 * 10 + 24 * 3 = 240 + 72 = 312), every result is a whole
number from 0 to 9,999.  Everything is seeded: the same arguments give the same bytes.

The split is a property of the question's text (a hash of it), so a held-out question cannot be made for training,
whatever the seed.  A small share of the training stream is not word problems: bare arithmetic and the few things
people say to a model first ("hi", "what can you do?"); these are never in the held-out file.

    make_word_problems.py --count 1000 --split eval --seed 7 --out eval/word_problems.jsonl
    make_word_problems.py --check 200        every template 200 times, each equation recomputed
    make_word_problems.py --show 20          a look
"""
import argparse
import hashlib
import json
import multiprocessing
import random
import re
import sys

from word_problems import TEMPLATES, G

# One question in 32 belongs to the held-out side.
HELD_OUT_ONE_IN = 32
MAX_VALUE = 9999

CHAT_SHARE = 0.025
ARITHMETIC_SHARE = 0.035


def is_held_out(question):
    """The split: a hash of the text with case and spacing removed."""
    key = " ".join(question.lower().split()).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "little") % HELD_OUT_ONE_IN == 0


def make_word_problem(rng, template=None):
    """One problem as (question, answer text, template's name); templates redraw until the numbers fit."""
    while True:
        fn = template or TEMPLATES[int(rng.random() * len(TEMPLATES))]
        g = G(rng)
        fn(g)
        made = g.finish(MAX_VALUE)
        if made is not None:
            return made[0], made[1], fn.__name__


def make_arithmetic(rng):
    """A bare sum, as people type it."""
    while True:
        g = G(rng)
        kind = g.pick("+-*/+-*")
        if kind == "+":
            a, b = g.i(1, 999), g.i(1, 999)
            g.add("", a, b)
        elif kind == "-":
            a, b = g.i(2, 999), g.i(1, 998)
            if b > a:
                a, b = b, a
            g.sub("", a, b)
        elif kind == "*":
            a, b = g.i(2, 99), g.i(2, 99)
            g.mul("", a, b)
        else:
            b, q = g.i(2, 12), g.i(2, 100)
            a = b * q
            g.div("", a, b)
        word = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[kind]
        form = int(rng.random() * 8)
        if form < 3:
            g.ctx.append(f"What is {a} {kind} {b}?")
        elif form == 3:
            g.ctx.append(f"What is {a} {word} {b}?")
        elif form == 4:
            g.ctx.append(f"{a} {kind} {b}")
        elif form == 5:
            g.ctx.append(f"{a} {kind} {b} = ?" if g.chance(.5) else f"{a}{kind}{b}=")
        elif form == 6:
            g.ctx.append(f"Compute {a} {kind} {b}." if g.chance(.5) else f"Calculate {a} {kind} {b}.")
        else:
            g.ctx.append(f"How much is {a} {word} {b}?" if g.chance(.5) else f"what's {a}{kind}{b}?")
        made = g.finish(MAX_VALUE)
        if made is not None:
            return made


ABOUT = ("I am a small model that solves grade-school word problems. "
         "Ask me something like: Tom has 3 boxes with 12 pens each. How many pens does he have?")
HELLO = ("Hello! I solve small word problems. "
         "Try: Anna buys 4 apples for $3 each and pays with $20. How much change does she get?")
BYE = "Goodbye! Come back with another word problem."
THANKS = "You are welcome. Do you have another word problem for me?"
FINE = "I am fine, thank you. Give me a small word problem and I will solve it step by step."
SORRY = "I only know small word problems. Give me a story with numbers and a question, and I will work it out."

_HELLOS = ("Hi", "Hello", "Hey", "Hi there", "Hello there", "Hey there", "Good morning", "Good evening",
           "Good afternoon", "Greetings", "Hi, who is there", "Hello, world", "Hallo", "Howdy", "Yo", "Hi friend",
           "Hello my friend", "Hi bot", "Hello model", "Test", "Testing", "Ping", "Start", "Are you there")
_ABOUTS = ("Who are you", "What are you", "What can you do", "What do you do", "Help", "Help me", "Tell me about yourself",
           "What is your name", "What is this", "How do I use you", "What can I ask you", "Can you help me",
           "What are you good at", "Are you a person", "Are you a robot", "Who made you", "What model are you",
           "Introduce yourself", "What should I ask", "Explain what you do", "Can you do math", "Do you know math",
           "Can you solve problems", "Hi, who are you", "Hello, what can you do", "Hello, who are you", "Hi, what are you",
           "What kind of model are you", "Say something", "Tell me something")
_FINES = ("How are you", "How are you today", "How do you do", "How is it going", "What's up", "Are you ok",
          "Hi, how are you", "Hello, how are you", "How are you doing")
_BYES = ("Bye", "Goodbye", "See you", "Good night", "Bye bye", "See you later", "That is all", "Quit", "Exit", "Stop")
_THANKS = ("Thanks", "Thank you", "Thank you very much", "Thanks a lot", "Great, thanks", "Nice", "Good job", "Well done",
           "Perfect", "Great", "Cool", "Ok", "Okay", "Good", "Awesome", "Correct", "That is right", "Yes")
_ASKS = ("What is {}?", "Tell me about {}.", "Explain {}.", "Write a poem about {}.", "Write a story about {}.",
         "What do you know about {}?", "Who invented {}?", "Give me a recipe for {}.", "Tell me a joke about {}.",
         "Translate {} into French.", "Where can I find {}?", "Do you like {}?", "Why is {} important?", "Write code for {}.",
         "How does {} work?", "Summarize {}.", "I want to talk about {}.", "What is the capital of {}?", "{}",
         "Write a short essay about {}.", "Can you explain {} to me?", "Define {}.", "What is the history of {}?")
_TOPICS = ("the moon", "France", "Germany", "love", "the weather", "music", "cats", "dogs", "history", "football", "the sun",
           "a computer", "Python", "the sea", "bread", "soup", "politics", "a tree", "the news", "movies", "dreams", "time",
           "a car", "the internet", "coffee", "pizza", "the stars", "birds", "winter", "summer", "books", "art", "Japan",
           "China", "Italy", "a king", "the brain", "gravity", "energy", "water", "fire", "a good life", "chess", "money",
           "language", "the ocean", "flowers", "trains", "a dragon", "space", "electricity", "the heart", "machine learning",
           "a mixture of experts", "quantum physics", "Shakespeare", "Paris", "philosophy", "happiness", "evolution")


def make_chat(rng):
    """A greeting, a question about the model, or something off its subject, with what it says to that."""
    def pick(seq):
        return seq[int(rng.random() * len(seq))]
    kind = rng.random()
    if kind < .35:
        topic = pick(_TOPICS)
        q = pick(_ASKS).format(topic)
        q = q[0].upper() + q[1:]
        a = SORRY
    else:
        prompts, a = ((_HELLOS, HELLO) if kind < .6 else (_ABOUTS, ABOUT) if kind < .8 else (_FINES, FINE) if kind < .87
                      else (_BYES, BYE) if kind < .93 else (_THANKS, THANKS))
        q = pick(prompts)
        question = q.split()[0].strip(",") in ("Who", "What", "How", "Are", "Can", "Do", "What's") or ", " in q
        end = rng.random()
        q += ("?" if question else "!" if end < .5 else ".") if end < .75 else ""
    if rng.random() < .3:
        q = q.lower()
    return q, a


def make_training_example(rng):
    """One (question, answer) of the training stream; never a held-out one."""
    kind = rng.random()
    if kind < CHAT_SHARE:
        return make_chat(rng)
    while True:
        if kind < CHAT_SHARE + ARITHMETIC_SHARE:
            q, a = make_arithmetic(rng)
        else:
            q, a, _ = make_word_problem(rng)
            if is_held_out(q):
                continue
            # Some people type without capitals.
            if rng.random() < .02:
                q = q.lower()
        return q, a


def make_held_out(count, seed):
    """`count` distinct held-out problems; every template has about the same share."""
    rng = random.Random(f"held-out {seed}")
    seen, out = set(), []
    order = list(TEMPLATES)
    while len(out) < count:
        rng.shuffle(order)
        for fn in order:
            while True:
                q, a, name = make_word_problem(rng, fn)
                if is_held_out(q) and q not in seen:
                    break
            seen.add(q)
            out.append({"question": q, "answer": a, "template": name})
            if len(out) == count:
                break
    return out


def final_answer(text):
    """The number after the last `####`, or None: how answers are compared."""
    found = re.findall(r"####\s*\$?(-?[\d,]*\d)", text)
    return int(found[-1].replace(",", "")) if found else None


_SIMPLE = re.compile(r"(?<![\d*/+-] )(\d+(?: [-+*/] \d+)+)(?= =|$)")


def check_problem(question, answer):
    """What is wrong with a problem, or None: every equation is recomputed, the last line is the last result."""
    lines = answer.split("\n")
    if not re.fullmatch(r"#### \d+", lines[-1]) or len(lines) < 2:
        return "no last line"
    result = None
    for line in lines[:-1]:
        chain = line.split(": ", 1)[-1].split(" = ")
        if len(chain) < 2:
            return f"no equation in {line!r}"
        rest = re.fullmatch(r"(\d+) remainder (\d+)", chain[-1])
        if rest:
            a, b = chain[0].split(" / ")
            if divmod(int(a), int(b)) != (int(rest[1]), int(rest[2])):
                return f"wrong: {line!r}"
            result = int(rest[2])
            continue
        values = []
        for part in chain:
            if not re.fullmatch(r"\d+(?: [-+*/] \d+)*", part):
                return f"not arithmetic: {line!r}"
            values.append(eval(part))  # digits and operators only, by the line above
        if any(v != values[0] for v in values):
            return f"wrong: {line!r}"
        result = int(values[0])
    if result != int(lines[-1][5:]) and not re.search(r"remainder", answer):
        return "last line is not the last result"
    if re.search(r"\b1 (?!in\b)[a-z]+s\b(?<!1 glass)(?<!1 class)|  |\.\.| ,|\{|\}|\ba (?:eight|egg|apple|orange|hour)\b", question):
        return f"odd English: {question!r}"
    return None


def _lines(args):
    split, seed, chunk, count = args
    rng = random.Random(f"{split} {seed} {chunk}")
    out = []
    for _ in range(count):
        q, a = make_training_example(rng)
        out.append(json.dumps({"question": q, "answer": a}, ensure_ascii=False))
    return "\n".join(out) + "\n"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--count", type=int, default=1000, help="how many problems (default 1000)")
    ap.add_argument("--split", choices=("train", "eval"), default="eval")
    ap.add_argument("--seed", type=int, default=7)
    ap.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="processes for --split train")
    ap.add_argument("--out", default="-", help="JSONL file (default: standard output)")
    ap.add_argument("--check", type=int, metavar="N", help="make every template N times and recompute every equation")
    ap.add_argument("--show", type=int, metavar="N", help="print N problems for reading")
    ap.add_argument("--template", help="with --show: only this template")
    args = ap.parse_args()

    if args.check:
        rng, bad = random.Random(args.seed), 0
        for fn in TEMPLATES:
            seen = set()
            for _ in range(args.check):
                q, a, _ = make_word_problem(rng, fn)
                seen.add(q)
                wrong = check_problem(q, a)
                if wrong and bad < 20:
                    print(f"{fn.__name__}: {wrong}\n{q}\n{a}\n")
                bad += wrong is not None
            if len(seen) < .9 * args.check:
                print(f"note: {fn.__name__} repeats itself: {len(seen)} of {args.check} distinct")
        print(f"{len(TEMPLATES)} templates, {args.check} problems each, {bad} wrong")
        return 1 if bad else 0
    if args.show:
        rng = random.Random(args.seed)
        by_name = {fn.__name__: fn for fn in TEMPLATES}
        for k in range(args.show):
            fn = by_name[args.template] if args.template else TEMPLATES[k % len(TEMPLATES)]
            q, a, name = make_word_problem(rng, fn)
            print(f"[{name}]\n{q}\n{a}\n")
        return 0
    out = sys.stdout if args.out == "-" else open(args.out, "w", encoding="utf-8")
    if args.split == "eval":
        for p in make_held_out(args.count, args.seed):
            out.write(json.dumps({"question": p["question"], "answer": p["answer"]}, ensure_ascii=False) + "\n")
    else:
        size = 5000
        jobs = [(args.split, args.seed, c, min(size, args.count - c * size)) for c in range(-(-args.count // size))]
        with multiprocessing.Pool(args.jobs) as pool:
            for text in pool.imap(_lines, jobs):
                out.write(text)
    if out is not sys.stdout:
        out.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
