#!/usr/bin/env python3
"""Trains the recall model from nothing and writes it as a GGUF file.

    python3 tools/recall/train.py --out models/recall.gguf
"""

import argparse
import math
import pathlib
import sys
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import corpus
import curriculum
import gguf_writer
import model as recall
import vocabulary
from muon import Muon

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import output_file  # noqa: E402


@dataclass(frozen=True)
class Stage:
    length: int  # tokens of a document
    steps: int
    single_word: float  # share of documents where one word tells facts apart


STAGES = (
    Stage(128, 140, 0.6),
    Stage(256, 60, 0.3),
    Stage(512, 80, 0.15),
    Stage(1024, 120, 0.05),
    Stage(4096, 40, 0.0),
)
STEPS = sum(stage.steps for stage in STAGES)
ATTRIBUTES_FIRST_STEPS = 140
TOKENS_PER_STEP = 8192

MATRIX_RATE = 0.012
OTHER_RATE = 2e-3
WARM_UP_STEPS = 20
DECAY_FROM = 0.5  # of all steps
TEXT_WEIGHT = 0.07
LEAST_SCALE = 0.6


def rate_at(step):
    """Share of the full learning rate."""
    left = (STEPS - step) / STEPS
    decay = max(0.02, min(1.0, left / (1 - DECAY_FROM)))
    return min(decay, (step + 1) / WARM_UP_STEPS)


def make_optimizers(model):
    """Muon for the matrices of the blocks, AdamW for all the rest."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_block = name.startswith("blk.") and parameter.ndim == 2
        (matrices if in_block else others).append(parameter)
    adam = torch.optim.AdamW(
        others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0
    )
    return ((Muon(matrices, MATRIX_RATE), MATRIX_RATE), (adam, OTHER_RATE))


def make_batch(dice, stage, step):
    """Ids, the ids to predict and what each of them means for the loss."""
    ids, classes = curriculum.batch(
        dice,
        max(1, TOKENS_PER_STEP // stage.length),
        stage.length + 1,
        stage.single_word,
        attributes_first=step < ATTRIBUTES_FIRST_STEPS,
    )
    ids, classes = torch.tensor(ids), torch.tensor(classes)
    return ids[:, :-1], ids[:, 1:], classes[:, 1:]


def loss_of(logits, targets, classes):
    """First digits, the rest of answers and text, each averaged by itself:
    the few first digits, which need the search, count as much as the rest.
    """
    each = F.cross_entropy(logits, targets, reduction="none")
    mean = {}
    for name in ("FIRST_DIGIT", "REST_OF_ANSWER", "TEXT"):
        chosen = each[classes == getattr(curriculum, name)]
        mean[name] = chosen.mean() if len(chosen) else each.sum() * 0
    return (
        0.5 * mean["FIRST_DIGIT"]
        + 0.5 * mean["REST_OF_ANSWER"]
        + TEXT_WEIGHT * mean["TEXT"]
    )


class Progress:
    """Prints the loss and the share of right tokens in answers."""

    def __init__(self, every=20):
        self.every = every
        self.started = time.monotonic()
        self.losses, self.hits, self.asked = [], 0, 0

    def note(self, step, stage, loss, logits, targets, classes):
        answer = classes >= curriculum.FIRST_DIGIT
        self.hits += (logits.argmax(-1) == targets)[answer].sum().item()
        self.asked += answer.sum().item()
        self.losses.append(loss.item())
        if (step + 1) % self.every and step + 1 < STEPS:
            return
        print(
            f"step {step + 1}/{STEPS}, {stage.length} tokens:"
            f" loss {sum(self.losses) / len(self.losses):.3f},"
            f" answers {100 * self.hits / max(1, self.asked):.1f} % right,"
            f" {time.monotonic() - self.started:.0f} s",
            flush=True,
        )
        self.losses, self.hits, self.asked = [], 0, 0


def train(model, seed):
    dice = corpus.Dice(seed)
    optimizers = make_optimizers(model)
    plan = [stage for stage in STAGES for _ in range(stage.steps)]
    progress = Progress()
    for step, stage in enumerate(plan):
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_at(step)
        ids, targets, classes = make_batch(dice, stage, step)
        wanted = classes != curriculum.IGNORED
        # Flatter attention in training leaves a margin for long documents.
        flatter = LEAST_SCALE + (1 - LEAST_SCALE) * dice.roll()
        scale = flatter / math.sqrt(model.config.head_dim)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids, wanted, scale)
        logits = logits.float()
        targets, classes = targets[wanted], classes[wanted]
        loss = loss_of(logits, targets, classes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recall.keep_channel_constant(model)
        progress.note(step, stage, loss, logits, targets, classes)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="GGUF file to write")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    with output_file.writing(options.out, "wb") as file:
        model = recall.Model(recall.Config(len(vocabulary.PIECES)))
        recall.initialise(model)
        train(model, options.seed)
        gguf_writer.write(file.name, model)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
