"""Prompts for routing captures, cut from held-out documents of all domains.

Knows: how to cut a prompt at a line or word end so that it is valid text. Does not know: engines or traces.

    python prompts.py --folder CACHE --out ../prompts.jsonl
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizer import domains_of, read_documents
from tokenizers import Tokenizer

PROMPTS_PER_DOMAIN = 16
MIN_TOKENS, MAX_TOKENS = 60, 200
MIN_NEW_TOKENS, MAX_NEW_TOKENS = 200, 256


def cut(text: str, num_tokens: int, tokenizer: Tokenizer) -> str:
    """The first `num_tokens` tokens of `text`, shortened to the last line or word end if one is near."""
    end = tokenizer.encode(text).offsets[num_tokens - 1][1]
    prompt = text[:end]
    for mark in ("\n", " "):
        at = prompt.rfind(mark)
        if at > 0.75 * len(prompt):
            return prompt[: at + 1] if mark == "\n" else prompt[:at]
    return prompt


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    tokenizer = Tokenizer.from_file(str(arguments.folder / "tokens" / "tokenizer.json"))
    lines = []
    for domain in domains_of(arguments.folder):
        documents = read_documents(arguments.folder, domain, "held_out")
        for number, i in enumerate(rng.permutation(len(documents))[:PROMPTS_PER_DOMAIN]):
            text = documents[i]["text"]
            length = len(tokenizer.encode(text).ids)
            wanted = int(rng.integers(MIN_TOKENS + 20, min(MAX_TOKENS, length // 2) + 1))
            # Half of the prompts open a document, half start at a line end further in.
            begin = text.find("\n", int(rng.integers(len(text) // 2))) + 1 if number % 2 else 0
            if len(tokenizer.encode(text[begin:]).ids) <= wanted:
                begin = 0
            lines.append(
                {
                    "request": f"{domain}-{number:02d}",
                    "domain": domain,
                    "document": documents[i]["id"],
                    "prompt": cut(text[begin:], wanted, tokenizer),
                    "max_new_tokens": int(rng.integers(MIN_NEW_TOKENS, MAX_NEW_TOKENS + 1)),
                }
            )
    with open(arguments.out, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    lengths = [len(tokenizer.encode(line["prompt"]).ids) for line in lines]
    print(f"{len(lines)} prompts of {min(lengths)} to {max(lengths)} tokens, mean {np.mean(lengths):.0f}")
