#!/usr/bin/env python3
"""Measures how many questions the recall model answers exactly.

    python3 tools/recall/evaluate.py models/recall.gguf

It computes what a program computes that runs the file: all of attention, with
the rounded weights of the file and with keys and values rounded to fp16. An
answer is exact when all four digits and the full stop are the likeliest.
"""

import argparse
import math
import time

import torch
import torch.nn.functional as F

import corpus
import gguf_writer
import model as recall
import vocabulary


def rounded(x):
    """What a KV cache in fp16 gives back; [heads, tokens, channels]."""
    return x[0].transpose(0, 1).half().float()


def attend(query, key, value):
    """The last tokens of all attend to them and to all before them."""
    count, total = query.shape[1], key.shape[1]
    query = query.transpose(1, 2)
    key, value = key[None], value[None]
    if count == total:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )
    visible = torch.ones(count, total, dtype=torch.bool).tril(total - count)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=visible, enable_gqa=True
    )


@torch.no_grad()
def run(model, ids, cache=None):
    """Returns the last hidden states of `ids`, which follow the tokens of
    `cache`, and the keys and values of all tokens."""
    known = cache[0][0].shape[1] if cache else 0
    cos_sin = recall.angles(model.config, known, len(ids))
    x = model.token_embd(torch.tensor([ids]))
    stored = []
    for number, block in enumerate(model.blk):
        query, key, value = block.project(x, cos_sin)
        key, value = rounded(key), rounded(value)
        if cache:
            key = torch.cat((cache[number][0], key), 1)
            value = torch.cat((cache[number][1], value), 1)
        stored.append((key, value))
        mixed = attend(query, key, value).transpose(1, 2).flatten(2)
        x = x + block.attn_output(mixed)
        x = x + block.feed_forward(x)
    return x[0], stored


@torch.no_grad()
def is_exact(model, cache, key, value):
    """Whether greedy choice gives the answer: each of its tokens must be the
    likeliest after the right ones before it."""
    question = vocabulary.encode(corpus.question_tokens(key))
    answer = vocabulary.encode([*corpus.value_tokens(value), "."])
    states, _ = run(model, question + answer[:-1], cache)
    last = model.output_norm(states[-len(answer):])
    return model.output(last).argmax(-1).tolist() == answer


def exact_answers(model, length, seed, questions):
    dice = corpus.Dice(seed)
    ledger = corpus.Ledger.generate(length, dice)
    ids = [vocabulary.BOS_ID, *vocabulary.encode(ledger.tokens)]
    _, cache = run(model, ids)
    asked = ledger.questions(questions, dice)
    return sum(is_exact(model, cache, *fact) for fact in asked)


def measure(model, length, documents, questions, seed):
    """Prints the share of exact answers with its standard error."""
    started, right = time.monotonic(), 0
    for document in range(documents):
        right += exact_answers(model, length, seed + document, questions)
    count = documents * questions
    share = right / count
    error = math.sqrt(share * (1 - share) / count)
    print(
        f"{length} tokens: {100 * share:.1f} % exact"
        f" (n {count}, standard error {100 * error:.1f}),"
        f" {time.monotonic() - started:.0f} s",
        flush=True,
    )


def length_and_documents(text):
    length, documents = text.split(":")
    return int(length), int(documents)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="GGUF file that train.py wrote")
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=length_and_documents,
        default=[(4096, 8), (16384, 6), (65536, 4)],
        metavar="TOKENS:DOCUMENTS",
    )
    parser.add_argument(
        "--questions", type=int, default=50, help="for each document"
    )
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = gguf_writer.read(options.model)
    for length, documents in options.lengths:
        measure(model, length, documents, options.questions, options.seed)


if __name__ == "__main__":
    main()
