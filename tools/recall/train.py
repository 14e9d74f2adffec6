#!/usr/bin/env python3
"""Trains the recall model from nothing and writes it as a GGUF file.

    python3 tools/recall/train.py --out models/recall.gguf
    python3 tools/recall/train.py --tasks --out first.gguf
    python3 tools/recall/train.py --tasks --from first.gguf --out tasks.gguf
    python3 tools/recall/train.py --drill --from tasks.gguf --out drilled.gguf

The second one also learns the tasks of tasks.py, in one layer more; the third
one goes on with it, with more of what takes two look-ups; the fourth one with
copying and counting alone.
"""

import argparse
import math
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import corpus
import curriculum
import gguf_writer
import model as recall
import tasks_curriculum
import vocabulary
from muon import Muon

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import output_file  # noqa: E402


@dataclass(frozen=True)
class Stage:
    length: int  # tokens of a document
    steps: int
    single_word: float  # share of documents where one word tells facts apart
    tokens: int = 8192  # of a step


STAGES = (
    Stage(128, 140, 0.6),
    Stage(256, 60, 0.3),
    Stage(512, 80, 0.15),
    Stage(1024, 120, 0.05),
    Stage(4096, 40, 0.0),
)
TASK_STAGES = (
    Stage(128, 170, 0.6, 4096),
    Stage(256, 110, 0.3, 4096),
    Stage(512, 90, 0.15, 4096),
    Stage(1024, 90, 0.05, 4096),
    Stage(2048, 20, 0.0, 4096),
)
MORE_STAGES = (
    Stage(128, 110, 0.3, 4096),
    Stage(256, 80, 0.15, 4096),
    Stage(512, 60, 0.05, 4096),
    Stage(1024, 50, 0.0, 4096),
    Stage(2048, 30, 0.0, 4096),
)
DRILL_STAGES = (
    Stage(512, 40, 0.0, 2048),
    Stage(1024, 50, 0.0, 2048),
    Stage(2048, 30, 0.0, 2048),
)
ATTRIBUTES_FIRST_STEPS = 140

MATRIX_RATE = 0.012
OTHER_RATE = 2e-3
WARM_UP_STEPS = 20
DECAY_FROM = 0.5  # of all steps
WEIGHTS = {
    curriculum.FIRST_DIGIT: 0.5,
    curriculum.REST_OF_ANSWER: 0.5,
    curriculum.TEXT: 0.07,
    curriculum.UNSURE: 0.15,
    curriculum.COUNTED: 0.7,
}
ANSWERS = {
    curriculum.FIRST_DIGIT: "first tokens of answers",
    curriculum.REST_OF_ANSWER: "the rest",
    curriculum.COUNTED: "counted",
}
LEAST_SCALE = 0.6


@dataclass(frozen=True)
class Recipe:
    batch: Callable
    stages: tuple
    layers: int
    rate: float = 1.0  # of the full learning rate


PLAIN = Recipe(curriculum.batch, STAGES, 3)
TASKS = Recipe(tasks_curriculum.batch, TASK_STAGES, 4)
MORE = Recipe(tasks_curriculum.more_batch, MORE_STAGES, 4, 0.6)
DRILL = Recipe(tasks_curriculum.drill_batch, DRILL_STAGES, 4, 0.6)


def rate_at(step, steps):
    """Share of the full learning rate."""
    left = (steps - step) / steps
    decay = max(0.02, min(1.0, left / (1 - DECAY_FROM)))
    return min(decay, (step + 1) / WARM_UP_STEPS)


def make_optimizers(model, kind):
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
    return ((Muon(matrices, MATRIX_RATE, kind), MATRIX_RATE), (adam, OTHER_RATE))


def faster_type():
    """bfloat16 is several times faster where the CPU has it, and several times
    slower where it has not."""
    seconds = {}
    for kind in (torch.float32, torch.bfloat16):
        a, b = torch.ones(2048, 256, dtype=kind), torch.ones(256, 512, dtype=kind)
        torch.mm(a, b)
        started = time.monotonic()
        for _ in range(4):
            torch.mm(a, b)
        seconds[kind] = time.monotonic() - started
    return min(seconds, key=seconds.get)


def make_batch(batch, dice, stage, step):
    """Ids, the ids to predict and what each of them means for the loss."""
    ids, classes, *targets = batch(
        dice,
        max(1, stage.tokens // stage.length),
        stage.length + 1,
        stage.single_word,
        attributes_first=step < ATTRIBUTES_FIRST_STEPS,
    )
    targets = torch.tensor(targets[0] if targets else ids)
    ids, classes = torch.tensor(ids), torch.tensor(classes)
    return ids[:, :-1], targets[:, 1:], classes[:, 1:]


def loss_of(logits, targets, classes):
    """First digits, the rest of answers and text, each averaged by itself:
    the few first digits, which need the search, count as much as the rest.
    """
    each = F.cross_entropy(logits, targets, reduction="none")
    total = each.sum() * 0
    for name, weight in WEIGHTS.items():
        chosen = each[classes == name]
        if len(chosen):
            total = total + weight * chosen.mean()
    return total


class Progress:
    """Prints the loss and the share of right tokens in answers."""

    def __init__(self, steps, every=20):
        self.steps, self.every = steps, every
        self.started = time.monotonic()
        self.losses = []
        self.hits, self.asked = Counter(), Counter()

    def note(self, step, stage, loss, logits, targets, classes):
        right = logits.argmax(-1) == targets
        for kind in ANSWERS:
            self.hits[kind] += right[classes == kind].sum().item()
            self.asked[kind] += (classes == kind).sum().item()
        self.losses.append(loss.item())
        if (step + 1) % self.every and step + 1 < self.steps:
            return
        print(
            f"step {step + 1}/{self.steps}, {stage.length} tokens:"
            f" loss {sum(self.losses) / len(self.losses):.3f},"
            f" {self._shares()} % right,"
            f" {time.monotonic() - self.started:.0f} s",
            flush=True,
        )
        self.losses = []
        self.hits.clear()
        self.asked.clear()

    def _shares(self):
        return ", ".join(
            f"{name} {100 * self.hits[kind] / self.asked[kind]:.1f}"
            for kind, name in ANSWERS.items() if self.asked[kind]
        )


def train(model, seed, recipe):
    dice = corpus.Dice(seed)
    kind = faster_type()
    optimizers = make_optimizers(model, kind)
    plan = [stage for stage in recipe.stages for _ in range(stage.steps)]
    progress = Progress(len(plan))
    for step, stage in enumerate(plan):
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * rate * rate_at(step, len(plan))
        ids, targets, classes = make_batch(recipe.batch, dice, stage, step)
        wanted = classes != curriculum.IGNORED
        # Flatter attention in training leaves a margin for long documents.
        flatter = LEAST_SCALE + (1 - LEAST_SCALE) * dice.roll()
        scale = flatter / math.sqrt(model.config.head_dim)
        with torch.autocast("cpu", kind, enabled=kind != torch.float32):
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
    parser.add_argument(
        "--tasks", action="store_true",
        help="learn the tasks of tasks.py, too: four layers",
    )
    parser.add_argument(
        "--drill", action="store_true",
        help="with --from: learn to copy and to count alone",
    )
    parser.add_argument(
        "--from", dest="first", metavar="FILE",
        help="with --tasks or --drill: go on with what --tasks wrote",
    )
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    if options.tasks and options.drill:
        parser.error("--tasks or --drill")
    if options.drill != bool(options.first) and not options.tasks:
        parser.error("--from goes with --tasks or --drill, --drill with --from")
    recipe = PLAIN
    if options.tasks:
        recipe = MORE if options.first else TASKS
    if options.drill:
        recipe = DRILL
    with output_file.writing(options.out, "wb") as file:
        if options.first:
            model = gguf_writer.read(options.first)
            recall.fix_look_back(model)
        else:
            config = recall.Config(len(vocabulary.PIECES), recipe.layers)
            model = recall.Model(config)
            recall.initialise(model)
        train(model, options.seed, recipe)
        gguf_writer.write(file.name, model)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
