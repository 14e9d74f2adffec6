#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""SparF (Algorithm 1 of arXiv 2409.04992) inside a model, in float64 NumPy.

The prompt is read with dense attention; every token after it is one decode
step whose attention is SparF. K and V are rounded to fp16, as a cache does.
For query heads that share a KV head, SparQ's rule: |q| is summed over them to
choose channels, the predicted softmax to choose tokens. Shares no code with
the drive, nor with the reference in C (tests/reference).
"""

import argparse
import json
import sys
from dataclasses import dataclass

import numpy as np

import llama_float64 as reference


@dataclass
class Sparf:
    channels: int = 0  # r; 0: an eighth of head_dim
    tokens: int = 0  # k; 0: by the divisor
    divisor: int = 8  # k = ceil(S / divisor)
    local: int = 0  # newest tokens that are always in; they count in k

    def r(self, head_dim):
        return min(self.channels or -(-head_dim // 8), head_dim)

    def k(self, length):
        tokens = self.tokens or -(-length // self.divisor)
        return min(max(tokens, self.local), length)


def largest(values, count):
    """Indices of the largest values, the lower index first among equals."""
    return np.sort(np.argsort(-values, kind="stable")[:count])


def closeness(values, chosen):
    """Relative distance between the last chosen and the first left out."""
    left = np.delete(values, chosen)
    if not len(left) or not len(chosen):
        return 1.0
    least = values[chosen].min()
    return float((least - left.max()) / least) if least else 0.0


def sparf(settings, q, k, v, calls=None):
    """q (G, head_dim) of the heads that share k, v (S, head_dim): (G,
    head_dim), the share of the true softmax (G) and the chosen tokens."""
    group, head_dim = q.shape
    length = len(k)
    size = np.abs(q)
    i = largest(size.sum(0), settings.r(head_dim))
    share = size[:, i].sum(1) / np.maximum(size.sum(1), 1e-300)
    share = np.where(share > 0, share, 1.0)
    dots = np.zeros((group, length))
    for c in i:  # one by one, so that equal tokens tie exactly
        dots += q[:, c, None] * k[None, :, c]
    s_hat = reference.softmax(dots / np.sqrt(head_dim * share)[:, None])
    rank = s_hat.sum(0)
    local = min(settings.local, length)
    older = rank[: length - local]
    chosen = largest(older, settings.k(length) - local)
    if calls is not None:
        calls.append(closeness(older, chosen))
    j = np.concatenate([chosen, np.arange(length - local, length)])
    alpha = s_hat[:, j].sum(1)
    score = q @ k.T / np.sqrt(head_dim)
    out = reference.softmax(score[:, j]) @ v[j]
    out = alpha[:, None] * out + (1 - alpha[:, None]) * v.mean(0)
    return out, reference.softmax(score)[:, j].sum(1), j


class Session:
    """K and V of the tokens so far, and what attention gave up. With noise,
    q, k and v are off by that much, relative: another way of rounding."""

    def __init__(self, model, settings, noise=0.0, seed=0):
        c = model.config
        if any(c.layer_window(layer) for layer in range(c.layers)):
            raise SystemExit("sliding windows are not part of this reference")
        if c.score_cap:
            raise SystemExit("soft caps are not part of this reference")
        self.model, self.settings = model, settings
        self.noise, self.random = noise, np.random.default_rng(seed)
        shape = (0, c.kv_heads, c.head_dim)
        self.k = [np.empty(shape) for _ in range(c.layers)]
        self.v = [np.empty(shape) for _ in range(c.layers)]
        self.captured, self.calls = [], []

    def shaken(self, x):
        if not self.noise:
            return x
        return x * (1 + self.noise * self.random.standard_normal(x.shape))

    def attend(self, layer, q, k, v):
        q, k, v = (self.shaken(x) for x in (q, k, v))
        for cache, new in ((self.k, k), (self.v, v)):
            new = reference.to_f16(new)
            cache[layer] = np.concatenate([cache[layer], new])
        k, v = self.k[layer], self.v[layer]
        if len(k) == len(q):
            return reference.attention(q, k, v)
        if len(q) != 1:
            raise SystemExit("a decode step has one token")
        group = q.shape[1] // k.shape[1]
        out = np.empty_like(q)
        for head in range(k.shape[1]):
            mine = slice(head * group, (head + 1) * group)
            out[0, mine], captured, _ = sparf(
                self.settings, q[0, mine], k[:, head], v[:, head], self.calls
            )
            self.captured.append(captured)
        return out

    def step(self, tokens):
        """Logits after the last of these tokens."""
        first = len(self.k[0])
        return reference.forward(self.model, tokens, first, self.attend)[-1]


def generate(sessions, prompt, count, least_lead=0.0):
    """Greedy tokens, and the least lead of a winner over the second best. It
    ends before a token on which the sessions differ, or that leads in one of
    them by less than least_lead."""
    logits = [session.step(prompt) for session in sessions]
    tokens, lead = [], np.inf
    while len(tokens) < count:
        ranked = [np.argsort(x)[-2:] for x in logits]
        if len({int(best) for _, best in ranked}) > 1:
            break
        now = min(x[b] - x[s] for x, (s, b) in zip(logits, ranked))
        if now < least_lead:
            break
        lead = min(lead, now)
        tokens.append(int(ranked[0][1]))
        logits = [session.step(tokens[-1:]) for session in sessions]
    return tokens, float(lead)


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--tokens", required=True, help="ids: 1,2,3")
    parser.add_argument("-n", "--predict", type=int, default=32)
    parser.add_argument("-r", "--channels", type=int, default=0)
    parser.add_argument("-k", "--keep", type=int, default=0)
    parser.add_argument("--divisor", type=int, default=8)
    parser.add_argument("--local", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    settings = Sparf(
        options.channels, options.keep, options.divisor, options.local
    )
    prompt = [int(token) for token in options.tokens.split(",")]
    model = reference.Model.load(options.model)
    session = Session(model, settings)
    tokens, lead = generate([session], prompt, options.predict)
    result = {
        "tokens": tokens,
        "least_lead": lead,
        "captured_mean": float(np.mean(session.captured)),
        "closest_call": min(session.calls),
    }
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
