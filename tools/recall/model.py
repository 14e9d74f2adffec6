"""The recall model: a small llama that finds facts in long documents.

Names of modules are the tensor names of GGUF, so that a state dictionary is
written to a file, and read back, without a table of names.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Config:
    vocabulary: int
    layers: int = 3
    width: int = 256
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    ffn: int = 512
    epsilon: float = 1e-5
    rope_base: float = 10000.0
    # Only these pairs of channels turn with the position. Their periods are
    # below 84 tokens, so that no angle is new at any length. What a head
    # searches for is matched on the other pairs, which do not turn.
    turning_pairs: int = 10
    context: int = 131072

    @property
    def group(self):
        return self.heads // self.kv_heads

    @property
    def turning(self):
        """Channels of a head that turn with the position."""
        return 2 * self.turning_pairs


# llama.cpp divides each frequency by its factor: this one stops the turning.
STILL = 1e9

# Layer 0 looks back by these distances, one for each head.
LOOK_BACK = (0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 8.5)
SHARPNESS = 5.0  # of a score, for each turning pair
TAPS = 16  # training sees no further back in layer 0
# Channel 0 has this value after the norm of layer 0, for every token.
CONSTANT = 4.82


def rope_factors(config):
    factors = torch.full((config.head_dim // 2,), STILL)
    factors[:config.turning_pairs] = 1.0
    return factors


def frequencies(config):
    pairs = torch.arange(config.head_dim // 2, dtype=torch.float64)
    plain = config.rope_base ** (-2 * pairs / config.head_dim)
    return plain / rope_factors(config).double()


def angles(config, first, count):
    """Cosines and sines of `count` positions, [count, 1, pairs]."""
    positions = torch.arange(first, first + count, dtype=torch.float64)
    turn = positions[:, None, None] * frequencies(config)
    return turn.cos().float(), turn.sin().float()


def rotate(x, cos_sin):
    """RoPE on neighbouring channels; x is [batch, tokens, heads, channels]."""
    cos, sin = cos_sin
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = (even * cos - odd * sin, even * sin + odd * cos)
    return torch.stack(turned, -1).flatten(-2)


class Norm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.width))
        self.epsilon = config.epsilon

    def forward(self, x):
        size = x.pow(2).mean(-1, keepdim=True) + self.epsilon
        return x * size.rsqrt() * self.weight


def _linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        width, ffn = config.width, config.ffn
        queries = config.heads * config.head_dim
        keys = config.kv_heads * config.head_dim
        self.attn_norm = Norm(config)
        self.attn_q = _linear(width, queries)
        self.attn_k = _linear(width, keys)
        self.attn_v = _linear(width, keys)
        self.attn_output = _linear(queries, width)
        self.ffn_norm = Norm(config)
        self.ffn_gate = _linear(width, ffn)
        self.ffn_up = _linear(width, ffn)
        self.ffn_down = _linear(ffn, width)

    def project(self, x, cos_sin):
        """Queries, keys and values, each [batch, tokens, heads, channels]."""
        shape = (*x.shape[:2], -1, self.config.head_dim)
        x = self.attn_norm(x)
        query = rotate(self.attn_q(x).view(shape), cos_sin)
        key = rotate(self.attn_k(x).view(shape), cos_sin)
        return query, key, self.attn_v(x).view(shape)

    def look_back(self, x, taps):
        """Layer 0 in training: its scores depend on the distance alone, so
        attention is a filter over the last values. `taps` is [heads, TAPS],
        the scores of the distances 0, 1, ..."""
        batch, tokens, _ = x.shape
        config, reach = self.config, taps.shape[1]
        distance = torch.arange(reach)
        missing = distance[None] > torch.arange(tokens)[:, None]
        share = taps[None].masked_fill(missing[:, None], -1e30).softmax(-1)
        share = share.view(tokens, config.kv_heads, config.group, reach)
        value = self.attn_v(self.attn_norm(x))
        value = value.view(batch, tokens, config.kv_heads, config.head_dim)
        padded = F.pad(value, (0, 0, 0, 0, reach - 1, 0))
        recent = padded.unfold(1, reach, 1)  # the last tap is distance 0
        share = share.flip(-1).to(value.dtype)
        mixed = torch.einsum("btkcn,tkgn->btkgc", recent, share)
        return self.attn_output(mixed.flatten(2))

    def attend(self, x, cos_sin, scale):
        """Causal attention over the tokens of `x` alone."""
        query, key, value = self.project(x, cos_sin)
        mixed = F.scaled_dot_product_attention(
            query.to(value.dtype).transpose(1, 2),
            key.to(value.dtype).transpose(1, 2),
            value.transpose(1, 2),
            is_causal=True,
            scale=scale,
            enable_gqa=True,
        )
        return self.attn_output(mixed.transpose(1, 2).flatten(2))

    def feed_forward(self, x):
        x = self.ffn_norm(x)
        return self.ffn_down(F.silu(self.ffn_gate(x)) * self.ffn_up(x))


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(config.vocabulary, config.width)
        self.blk = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.output_norm = Norm(config)
        self.output = _linear(config.width, config.vocabulary)
        self.register_buffer("taps", look_back_scores(config, TAPS).float())

    def forward(self, ids, wanted, scale):
        """Logits of the tokens where `wanted` ([batch, tokens]) is true."""
        cos_sin = angles(self.config, 0, ids.shape[1])
        x = self.token_embd(ids)
        for number, block in enumerate(self.blk):
            if number == 0:
                x = x + block.look_back(x, self.taps)
            else:
                x = x + block.attend(x, cos_sin, scale)
            x = x + block.feed_forward(x)
        return self.output(self.output_norm(x[wanted]))

    def tensors(self):
        """All that a GGUF file needs, by its names there."""
        tensors = dict(self.named_parameters())
        tensors["rope_freqs.weight"] = rope_factors(self.config)
        return tensors


def look_back_scores(config, reach):
    """Scores of layer 0 for distances below `reach`, [heads, reach]."""
    distance = torch.arange(reach, dtype=torch.float64)
    offset = torch.tensor(LOOK_BACK, dtype=torch.float64)
    away = distance[None] - offset[:, None]
    frequency = frequencies(config)[:config.turning_pairs]
    return SHARPNESS * (away[..., None] * frequency).cos().sum(-1)


@torch.no_grad()
def keep_channel_constant(model):
    """Gives channel 0 the value CONSTANT after the norm of layer 0.

    To be called after every step of training: the look-back of layer 0 stands
    on this channel."""
    width = model.config.width
    ratio = CONSTANT * math.sqrt((width - 1) / (width - CONSTANT**2))
    weight = model.token_embd.weight
    weight[:, 0] = ratio * weight[:, 1:].pow(2).mean(-1).sqrt()
    model.blk[0].attn_norm.weight[0] = 1.0


@torch.no_grad()
def fix_look_back(model):
    """Makes layer 0 look back by fixed distances, whatever the tokens are.

    Its queries and keys read the constant channel and write only to the
    turning pairs. Learnt heads of this kind leak attention over long
    documents; these do not."""
    config, block = model.config, model.blk[0]
    frequency = frequencies(config)[:config.turning_pairs]
    turning = config.turning
    size = math.sqrt(SHARPNESS * math.sqrt(config.head_dim)) / CONSTANT
    query = torch.zeros(config.heads, config.head_dim, config.width)
    key = torch.zeros(config.kv_heads, config.head_dim, config.width)
    key[:, 0:turning:2, 0] = size
    for head, offset in enumerate(LOOK_BACK):
        turn = frequency * offset
        query[head, 0:turning:2, 0] = (size * turn.cos()).float()
        query[head, 1:turning:2, 0] = (-size * turn.sin()).float()
    for linear, weight in ((block.attn_q, query), (block.attn_k, key)):
        linear.weight.copy_(weight.flatten(0, 1))
        linear.weight.requires_grad_(False)
    keep_channel_constant(model)


@torch.no_grad()
def initialise(model):
    """Random weights in which the way to the solution is laid out."""
    nn.init.normal_(model.token_embd.weight, std=0.5)
    nn.init.normal_(model.output.weight, std=0.02)
    for block in model.blk:
        for name, linear in block.named_children():
            if isinstance(linear, nn.Linear):
                gain = 0.3 if name in ("attn_output", "ffn_down") else 1.0
                std = gain * linear.in_features**-0.5
                nn.init.normal_(linear.weight, std=std)
    _share_values(model.blk[0])
    for block in model.blk[1:]:
        _match_like_with_like(block)
    fix_look_back(model)


def _share_values(block, gain=5.0):
    """All heads of layer 0 add the recent words in one common subspace."""
    config = block.config
    value, output = block.attn_v.weight, block.attn_output.weight
    one_value = value[:config.head_dim].clone()
    one_output = gain * output[:, : config.head_dim].clone()
    value.copy_(one_value.repeat(config.kv_heads, 1))
    output.copy_(one_output.repeat(1, config.heads))


def _match_like_with_like(block, gain=2.0):
    """Queries equal keys on the pairs that do not turn: at the start, a token
    looks for tokens that have the same words behind them."""
    config = block.config
    by_head = (-1, config.head_dim, config.width)
    key = block.attn_k.weight.view(by_head)
    query = block.attn_q.weight.view(by_head)
    still = slice(config.turning, config.head_dim)
    key[:, still] *= gain
    query[:, still] = key[:, still].repeat_interleave(config.group, 0)
