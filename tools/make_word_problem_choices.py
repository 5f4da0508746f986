"""Makes models/word-problems/eval/word_problems_choice.jsonl from word_problems.jsonl: the same questions with four answers to
choose from.  Deterministic.

    tools/make_word_problem_choices.py [--count 200]

The wrong answers are what people get wrong: a step's result, a sum forgotten, a digit slipped."""
import argparse
import json
import pathlib
import random
import re

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "models" / "word-problems" / "eval"


def wrong_answers(solution, gold, rng):
    steps = [int(n) for n in re.findall(r"= (\d+)", solution)][:-1]
    near = [gold + d for d in (1, -1, 10, -10, 2, -2)] + [gold * 2]
    rng.shuffle(near)
    found = []
    for value in steps[::-1] + near:
        if value >= 0 and value != gold and value not in found:
            found.append(value)
    return found[:3]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    count = parser.parse_args().count
    rng = random.Random(20261129)
    lines = []
    for line in (FOLDER / "word_problems.jsonl").read_text().splitlines()[:count]:
        item = json.loads(line)
        solution, gold = item["answer"].rsplit("#### ", 1)
        choices = [int(gold.replace(",", "")), *wrong_answers(solution, int(gold.replace(",", "")), rng)]
        order = rng.sample(range(len(choices)), len(choices))
        lines.append(json.dumps({"question": item["question"], "choices": [str(choices[i]) for i in order], "answer": order.index(0)}))
    (FOLDER / "word_problems_choice.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
