"""Tokens that move tokens in stories260K: `python examples/stories.py --data DIR --out stories`.

DIR holds `stories260K.bin` and `tok512.bin` of llama2.c, and `stories.txt` with `<|endoftext|>`
between stories (or the folders `stories260K` and `tinystories` with them).
"""

import argparse
from pathlib import Path

import torch

import bif
from bif.interop.llama2c import Llama2cTokenizer, read_llama2c


def items(stories, tokenizer, *, length, prefix):
    """Stories cut to `length` tokens, with the pieces of text that these stand for."""
    ids = [tokenizer.encode(story)[:length] for story in stories]
    width = max(map(len, ids))
    tokens = torch.zeros(len(ids), width, dtype=torch.long)
    labels = torch.full_like(tokens, -100)  # what does not count
    for row, own in enumerate(ids):
        tokens[row, : len(own)] = torch.tensor(own)
        labels[row, 1 : len(own)] = tokens[row, 1 : len(own)]  # the first token has no loss
    return bif.Items(
        {"input_ids": tokens, "labels": labels},
        ids=[f"{prefix}-{i}" for i in range(len(ids))],
        # Behind another token, so that a space at the piece's beginning is kept.
        tokens=[[tokenizer.decode([1, 3, t])[1:] for t in own] for own in ids],
        token_mask=labels != -100,
    )


def first_file(folder, *names):
    """The first of some files that there is."""
    return next(folder / n for n in names if (folder / n).is_file() or n == names[-1])


def main():
    """Read, sample, print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--train", type=int, default=16, help="stories that are scored")
    options.add_argument("--length", type=int, default=40, help="tokens of a story")
    options.add_argument("--draws", type=int, default=200)
    a = options.parse_args()
    model = read_llama2c(first_file(a.data, "stories260K/stories260K.bin", "stories260K.bin"))
    tokenizer = Llama2cTokenizer.read(first_file(a.data, "stories260K/tok512.bin", "tok512.bin"))
    file = first_file(a.data, "tinystories/tinystories_sample.txt", "stories.txt")
    stories = [s.strip() for s in file.read_text(encoding="utf-8").split("<|endoftext|>")]

    problem = bif.Problem(
        model,
        bif.losses.next_token,
        train=items(stories[: a.train], tokenizer, length=a.length, prefix="story"),
        queries=items(stories[a.train : a.train + 2], tokenizer, length=a.length, prefix="new"),
        tokens="both",
        tied_weights="share",  # embedding and output are one matrix
    )
    settings = bif.Settings(
        chains=4, draws=a.draws, nbeta=a.train, gamma=1e5, step_size=1.5e-3, friction=630.0,
        mass="identity", burn_in=10, thin=2,
    )  # fmt: skip
    run = bif.attribute(problem, settings, out=a.out, on_existing="replace", show_progress=True)
    print(run)
    print(run.influence.by_item().top("new-0"))  # whole stories
    query = next(i for i in run.influence.dataset["query_id"].values if i.startswith("new-0["))
    print(run.influence.top(query))  # tokens that move the first token of the query
    print(f"the page: {a.out / 'report.html'}")


if __name__ == "__main__":
    main()
