"""Makes tests/model/goldens/word_problems.jsonl: what transformers answers, greedily and in float32, to the first 50 held-out
problems with the shipped model.  Needs torch and transformers 5.  Run it by `make goldens`.

Each line: {"question", "prompt_ids", "text", "ids"}; ids end with the end-of-sentence token."""
import argparse
import json
import pathlib

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=ROOT / "models" / "word-problems", type=pathlib.Path)
    parser.add_argument("--out", default=ROOT / "tests" / "model" / "goldens", type=pathlib.Path)
    parser.add_argument("--count", default=50, type=int)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    eos = model.config.eos_token_id
    lines = (args.model / "eval" / "word_problems.jsonl").read_text().splitlines()[:args.count]
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "word_problems.jsonl", "w", encoding="utf-8") as out, torch.no_grad():
        for line in lines:
            question = json.loads(line)["question"]
            prompt = f"<｜begin▁of▁sentence｜><｜User｜>{question}<｜Assistant｜>"
            prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
            whole = model.generate(torch.tensor([prompt_ids]), max_new_tokens=200, do_sample=False, eos_token_id=eos,
                                   pad_token_id=model.config.pad_token_id)[0].tolist()
            ids = whole[len(prompt_ids):]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            out.write(json.dumps({"question": question, "prompt_ids": prompt_ids, "text": text, "ids": ids}, ensure_ascii=False) + "\n")
            print(len(ids), text.splitlines()[-1] if text else "", flush=True)


if __name__ == "__main__":
    main()
