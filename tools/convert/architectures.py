# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's config.json and tensors become in a GGUF file.

An architecture is a row: the classes of Transformers that it stands for, its
tensors (their name, ours, the shape in words, what is changed), the settings
that must have one value because the engine knows no other, and a function for
the keys that only it has. A tensor that no row names and a setting that would
change results are refused.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from checkpoint import Refused


def _short(value):
    """As it is written, which may be a thousand digits long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:20]}..."


class Config:
    """config.json with types checked; null counts as absent."""

    def __init__(self, values, where="config.json"):
        self.values = values
        self.where = where

    def get(self, name, default=None):
        value = self.values.get(name)
        return default if value is None else value

    def number(self, name, default=None):
        value = self.get(name, default)
        if value is None:
            raise Refused(f"{self.where}: there is no {name} in it")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refused(f"{self.where}: {name} is not a number")
        if not -1e18 <= value <= 1e18:  # nor is it NaN
            self.absurd(name, value)
        return value

    def absurd(self, name, value):
        raise Refused(f"{self.where}: {name} is {_short(value)}")

    def positive(self, name, default=None):
        value = self.number(name, default)
        if value <= 0:
            self.absurd(name, value)
        return value

    def integer(self, name, default=None):
        value = self.number(name, default)
        if value != int(value) or not 1 <= value < 2**31:
            self.absurd(name, value)
        return int(value)

    def names(self, name):
        value = self.get(name, [])
        if not isinstance(value, list):
            raise Refused(f"{self.where}: {name} is not a list")
        return value

    def only(self, name, *allowed):
        """Refuses any other value; the first is that of an absent one."""
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise Refused(
                f"{self.where}: {name} = {_short(value)} is not supported"
                f" (only {' or '.join(map(repr, allowed))})"
            )


# How rows or values of a tensor are changed.
PAIRS = "pairs"  # rows i and i + half of a head become 2i and 2i + 1
PLUS_ONE = "plus one"  # the file holds what is multiplied

NORMS = {
    "input_layernorm.weight": ("attn_norm.weight", "width"),
    "post_attention_layernorm.weight": ("ffn_norm.weight", "width"),
}
QKV = {
    "self_attn.q_proj.weight": ("attn_q.weight", "q", "width"),
    "self_attn.k_proj.weight": ("attn_k.weight", "kv", "width"),
    "self_attn.v_proj.weight": ("attn_v.weight", "kv", "width"),
}
QKV_BIAS = {
    "self_attn.q_proj.bias": ("attn_q.bias", "q"),
    "self_attn.k_proj.bias": ("attn_k.bias", "kv"),
    "self_attn.v_proj.bias": ("attn_v.bias", "kv"),
}
QK_NORM = {
    "self_attn.q_norm.weight": ("attn_q_norm.weight", "head_dim"),
    "self_attn.k_norm.weight": ("attn_k_norm.weight", "head_dim"),
}
REST = {
    "self_attn.o_proj.weight": ("attn_output.weight", "width", "q"),
    "mlp.gate_proj.weight": ("ffn_gate.weight", "ffn", "width"),
    "mlp.up_proj.weight": ("ffn_up.weight", "ffn", "width"),
    "mlp.down_proj.weight": ("ffn_down.weight", "width", "ffn"),
}
PHI3_LAYER = NORMS | {
    "self_attn.qkv_proj.weight": ("attn_qkv.weight", "qkv", "width"),
    "self_attn.o_proj.weight": ("attn_output.weight", "width", "q"),
    "mlp.gate_up_proj.weight": ("ffn_up.weight", "gate_up", "width"),
    "mlp.down_proj.weight": ("ffn_down.weight", "width", "ffn"),
}
GEMMA_NORMS = {
    "input_layernorm.weight": ("attn_norm.weight", "width"),
    "post_attention_layernorm.weight": (
        "post_attention_norm.weight",
        "width",
    ),
    "pre_feedforward_layernorm.weight": ("ffn_norm.weight", "width"),
    "post_feedforward_layernorm.weight": ("post_ffw_norm.weight", "width"),
}
OPT_LAYER = (
    QKV
    | QKV_BIAS
    | {
        "self_attn_layer_norm.weight": ("attn_norm.weight", "width"),
        "self_attn_layer_norm.bias": ("attn_norm.bias", "width"),
        "self_attn.out_proj.weight": ("attn_output.weight", "width", "q"),
        "self_attn.out_proj.bias": ("attn_output.bias", "width"),
        "final_layer_norm.weight": ("ffn_norm.weight", "width"),
        "final_layer_norm.bias": ("ffn_norm.bias", "width"),
        "fc1.weight": ("ffn_up.weight", "ffn", "width"),
        "fc1.bias": ("ffn_up.bias", "ffn"),
        "fc2.weight": ("ffn_down.weight", "width", "ffn"),
        "fc2.bias": ("ffn_down.bias", "width"),
    }
)
EMBEDDINGS = {"embed_tokens.weight": ("token_embd.weight", "vocab", "width")}
GLOBAL = EMBEDDINGS | {"norm.weight": ("output_norm.weight", "width")}
OPT_GLOBAL = EMBEDDINGS | {
    "embed_positions.weight": ("position_embd.weight", "positions", "width"),
    "final_layer_norm.weight": ("output_norm.weight", "width"),
    "final_layer_norm.bias": ("output_norm.bias", "width"),
}
# Computed from the configuration, whatever an old checkpoint says.
IGNORED = (".rotary_emb.inv_freq",)


@dataclass(frozen=True)
class Architecture:
    name: str
    classes: tuple  # of Transformers
    layer: dict
    keys: object  # function(Model), for what only this one has
    only: dict = field(
        default_factory=dict
    )  # setting -> values, default first
    tied: bool = False  # when config.json does not say
    global_: dict = field(default_factory=lambda: GLOBAL)
    prefixes: tuple = ("model.",)
    pairs: bool = False
    plus_one: bool = False


def _rope_object(value):
    if not isinstance(value, dict):
        raise Refused("config.json: the settings of rope are no object")
    return value


def _rope_of(config):
    """(rope settings, base of layers with a window or None), from the form of
    Transformers 5 or from that of earlier ones."""
    rope = config.get("rope_parameters")
    local = None
    if config.get("rope_local_base_freq") is not None:
        local = config.positive("rope_local_base_freq")
    if rope is None:
        rope = _rope_object(config.get("rope_scaling", {}))
        base = config.get("rope_theta", 10000.0)
        rope = {"rope_theta": base} | rope
    elif "full_attention" in _rope_object(rope):
        windowed = Config(_rope_object(rope.get("sliding_attention", {})))
        if windowed.get("rope_type", "default") != "default":
            raise Refused(
                "config.json: scaled rope in layers with a sliding window is"
                " not supported"
            )
        local = windowed.positive("rope_theta", 10000.0)
        rope = rope["full_attention"]
    return Config(_rope_object(rope), "config.json, rope"), local


ROPE_COMMON = {
    "rope_theta",
    "type",
    "rope_type",
    "original_max_position_embeddings",
    "partial_rotary_factor",
}
ROPE_SETTINGS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {
        "factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "truncate",
    },
    "longrope": {"factor", "attention_factor", "long_factor", "short_factor"},
}
FACTOR_MAX = 1e18  # of longrope's
ROPE_NAMES = {"su": "longrope"}  # of old phi3 checkpoints


class Model:
    """A checkpoint as its architecture's row sees it, on its way to a file."""

    def __init__(self, checkpoint, writer):
        self.writer = writer
        self.config = Config(checkpoint.config)
        self.architecture = _find(self.config)
        self.arch = self.architecture.name
        if self.config.get("quantization_config"):
            raise Refused("config.json: the weights are quantised already")
        for name, allowed in self.architecture.only.items():
            self.config.only(name, *allowed)
        c = self.config
        self.layers = c.integer("num_hidden_layers")
        self.width = c.integer("hidden_size")
        self.heads = c.integer("num_attention_heads")
        self.kv_heads = c.integer("num_key_value_heads", self.heads)
        if self.heads % self.kv_heads or (
            c.get("head_dim") is None and self.width % self.heads
        ):
            raise Refused("config.json: the numbers of heads do not divide")
        self.head_dim = c.integer("head_dim", self.width // self.heads)
        self.ffn = c.integer(
            "ffn_dim" if self.arch == "opt" else "intermediate_size"
        )
        self.vocab = c.integer("vocab_size")
        self.context = c.integer("max_position_embeddings")
        self.extra = {}  # tensors that no checkpoint has, name -> float32
        self.tied = bool(c.get("tie_word_embeddings", self.architecture.tied))

    def key(self, name, kind, value):
        self.writer.add(f"{self.arch}.{name}", kind, value)

    def add_keys(self):
        self.key("context_length", "u32", self.context)
        self.key("embedding_length", "u32", self.width)
        self.key("block_count", "u32", self.layers)
        self.key("feed_forward_length", "u32", self.ffn)
        self.key("attention.head_count", "u32", self.heads)
        self.key("vocab_size", "u32", self.vocab)
        self.architecture.keys(self)

    # What more than one architecture has.

    def rms_keys(self):
        self.key("attention.head_count_kv", "u32", self.kv_heads)
        self.key("attention.key_length", "u32", self.head_dim)
        self.key("attention.value_length", "u32", self.head_dim)
        epsilon = self.config.positive("rms_norm_eps", 1e-6)
        self.key("attention.layer_norm_rms_epsilon", "f32", epsilon)

    def rope_keys(self, *kinds):
        """Keys of the base and of the scaling, which is one of these kinds."""
        rope, local = _rope_of(self.config)
        kind = rope.get("rope_type", rope.get("type", "default"))
        kind = ROPE_NAMES.get(str(kind), str(kind))
        if kind not in ("default", *kinds):
            raise Refused(
                f"config.json: rope scaling {_short(kind)} is not supported"
            )
        for name in rope.values.keys() - ROPE_COMMON - ROPE_SETTINGS[kind]:
            if rope.get(name) is not None:
                raise Refused(
                    f"config.json: {_short(name)} of rope scaling {kind} is not"
                    " supported"
                )
        share = rope.positive(
            "partial_rotary_factor",
            self.config.positive("partial_rotary_factor", 1.0),
        )
        if share > 1:
            rope.absurd("partial_rotary_factor", share)
        self.rope_dims = int(self.head_dim * share)
        if self.arch != "phi3" and self.rope_dims != self.head_dim:
            raise Refused(
                "config.json: partial_rotary_factor is not supported"
            )
        self.key("rope.dimension_count", "u32", self.rope_dims)
        self.base = rope.positive("rope_theta", 10000.0)
        self.key("rope.freq_base", "f32", self.base)
        if kind != "default":
            original = rope.integer(
                "original_max_position_embeddings",
                self.config.get(
                    "original_max_position_embeddings", self.context
                ),
            )
            SCALINGS[kind](self, rope, original)
        return local

    def window_key(self):
        if self.config.get("sliding_window"):
            window = self.config.integer("sliding_window")
            self.key("attention.sliding_window", "u32", window)

    def full_attention_only(self):
        kinds = self.config.names("layer_types")
        if any(kind != "full_attention" for kind in kinds):
            raise Refused(
                "config.json: layer_types with windows are not supported"
            )

    # Tensors.

    def tensors(self, found):
        """(our name, shape, source, row order or None, what to add) of every
        tensor, in the order of the layers."""
        rules = self._rules(found)
        missing = [name for name in rules if name not in found]
        if missing:
            raise Refused(
                f"tensor {missing[0]!r} is missing in the checkpoint"
            )
        for name in found:
            if name not in rules and not name.endswith(IGNORED):
                if not (name == "lm_head.weight" and self.tied):
                    raise Refused(
                        f"tensor {name!r} is none that architecture"
                        f" {self.arch} has here"
                    )
        for name, (ours, *dims) in rules.items():
            source = found[name]
            shape = tuple(self._dimension(d) for d in dims)
            if source.shape != shape:
                raise Refused(
                    f"tensor {name!r} has the shape {list(source.shape)} where"
                    f" config.json means {list(shape)}"
                )
            plus = self.architecture.plus_one and ours.endswith("norm.weight")
            yield ours, shape, source, self._order(ours), int(plus)

    def _rules(self, found):
        """Name in the checkpoint -> (our name, shape in words)."""
        row = self.architecture
        if self.layers > len(found):
            raise Refused(
                f"config.json: num_hidden_layers is {self.layers}, but the"
                f" checkpoint has only {len(found)} tensors"
            )
        prefix = row.prefixes[0]
        for other in row.prefixes:
            if f"{other}embed_tokens.weight" in found:
                prefix = other
        rules = {prefix + n: rule for n, rule in row.global_.items()}
        if not self.tied:
            rules["lm_head.weight"] = ("output.weight", "vocab", "width")
        for i in range(self.layers):
            for name, (ours, *dims) in row.layer.items():
                theirs = f"{prefix}layers.{i}.{name}"
                rules[theirs] = (f"blk.{i}.{ours}", *dims)
        return rules

    def _dimension(self, name):
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        named = {
            "width": self.width,
            "q": q,
            "kv": kv,
            "qkv": q + 2 * kv,
            "head_dim": self.head_dim,
            "ffn": self.ffn,
            "gate_up": 2 * self.ffn,
            "vocab": self.vocab,
            "positions": self.context + 2,
        }
        return named[name]

    def _order(self, ours):
        """Rows in the order of rope that turns neighbours."""
        heads = {"attn_q": self.heads, "attn_k": self.kv_heads}
        part = ours.split(".")[-2]
        if not self.architecture.pairs or part not in heads:
            return None
        rows = np.arange(heads[part] * self.head_dim)
        halves = rows.reshape(heads[part], 2, self.head_dim // 2)
        return halves.swapaxes(1, 2).reshape(-1)


def _scale_linear(model, rope, original):
    model.key("rope.scaling.type", "str", "linear")
    model.key("rope.scaling.factor", "f32", rope.positive("factor"))


def _scale_yarn(model, rope, original):
    rope.only("truncate", True)
    factor = rope.positive("factor")
    model.key("rope.scaling.type", "str", "yarn")
    model.key("rope.scaling.factor", "f32", factor)
    model.key("rope.scaling.original_context_length", "u32", original)
    if rope.get("attention_factor") is not None:
        # The key multiplies what follows from the factor anyway.
        plain = 1 + 0.1 * math.log(factor) if factor > 1 else 1.0
        value = rope.positive("attention_factor") / plain
        model.key("rope.scaling.attn_factor", "f32", value)
    for name in ("beta_fast", "beta_slow"):
        if rope.get(name) is not None:
            key = f"rope.scaling.yarn_{name}"
            model.key(key, "f32", rope.number(name))


def _scale_llama3(model, rope, original):
    low = rope.positive("low_freq_factor", 1.0)
    high = rope.positive("high_freq_factor", 4.0)
    if high <= low:
        raise Refused(
            "config.json: high_freq_factor is not above low_freq_factor"
        )
    pairs = np.arange(model.head_dim // 2, dtype=np.float64)
    turns = original / (2 * np.pi * model.base ** (2 * pairs / model.head_dim))
    kept = np.clip((turns - low) / (high - low), 0, 1)
    divisors = 1 / ((1 - kept) / rope.positive("factor") + kept)
    model.extra["rope_freqs.weight"] = divisors.astype(np.float32)


def _scale_longrope(model, rope, original):
    if original < 2:
        rope.absurd("original_max_position_embeddings", original)
    grown = model.context / original
    attention = 1.0
    if grown > 1:
        attention = math.sqrt(1 + math.log(grown) / math.log(original))
    attention = rope.positive("attention_factor", attention)
    model.key("rope.scaling.type", "str", "longrope")
    model.key("rope.scaling.original_context_length", "u32", original)
    model.key("rope.scaling.attn_factor", "f32", attention)
    for length in ("long", "short"):
        try:
            factors = np.array(rope.get(f"{length}_factor", []), np.float64)
        except (ValueError, TypeError, OverflowError):
            factors = np.empty(0)
        count = model.rope_dims // 2
        good = factors.shape == (count,) and (factors > 0).all()
        if not good or not (factors < FACTOR_MAX).all():
            raise Refused(
                f"config.json: {length}_factor needs {count} positive numbers"
            )
        values = factors.astype(np.float32)
        model.extra[f"rope_factors_{length}.weight"] = values


SCALINGS = {
    "linear": _scale_linear,
    "yarn": _scale_yarn,
    "llama3": _scale_llama3,
    "longrope": _scale_longrope,
}


def _llama(model):
    model.full_attention_only()
    model.rms_keys()
    model.rope_keys("linear", "yarn", "llama3")
    model.window_key()


def _qwen(model):
    model.full_attention_only()
    model.rms_keys()
    model.rope_keys("linear", "yarn")


def _phi3(model):
    model.rms_keys()
    model.rope_keys("longrope")
    model.window_key()


GEMMA2_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
GEMMA3_CAPS = dict.fromkeys(GEMMA2_CAPS)


def _gemma(model, period, wide_layers, caps, *scalings):
    c = model.config
    c.only("hidden_activation", "gelu_pytorch_tanh")
    model.head_dim = c.integer("head_dim", 256)
    model.rms_keys()
    local = model.rope_keys(*scalings)
    wide = model.layers == wide_layers
    scale = model.width // model.heads if wide else model.head_dim
    if c.number("query_pre_attn_scalar", 256) != scale:
        raise Refused(
            f"config.json: query_pre_attn_scalar is not {scale}, the only one"
            " supported here"
        )
    for name, default in caps.items():
        # Absent is not null, which means none.
        if c.values.get(name, default) is not None:
            model.key(name, "f32", c.number(name, default))
    window = c.integer("sliding_window", 4096)
    model.key("attention.sliding_window", "u32", window)
    default = period
    if c.get("sliding_window_pattern") is not None:
        period = c.integer("sliding_window_pattern")
    kinds = c.names("layer_types")
    if kinds and "full_attention" in kinds:
        period = kinds.index("full_attention") + 1
    meant = [
        "sliding_attention" if (i + 1) % period else "full_attention"
        for i in range(model.layers)
    ]
    if kinds and kinds != meant:
        raise Refused(
            "config.json: layer_types without a regular period are not"
            " supported"
        )
    if period != default:
        model.key("attention.sliding_window_pattern", "u32", period)
    if local is not None and local != 10000:
        model.key("rope.freq_base_swa", "f32", local)


def _opt(model):
    c = model.config
    if c.integer("word_embed_proj_dim", model.width) != model.width:
        raise Refused(
            "config.json: word_embed_proj_dim differs from hidden_size:"
            " projections behind the embeddings and before the output"
            " (project_in, project_out, as in opt-350m) are not supported"
        )
    if not c.get("do_layer_norm_before", True):
        raise Refused(
            "config.json: do_layer_norm_before is false: norms behind the"
            " blocks (post-norm, as in opt-350m) are not supported"
        )
    model.key("attention.layer_norm_epsilon", "f32", 1e-5)


SILU = {"hidden_act": ("silu",)}
ARCHITECTURES = (
    Architecture(
        "llama",
        ("LlamaForCausalLM", "MistralForCausalLM"),
        NORMS | QKV | REST,
        _llama,
        SILU | {"attention_bias": (False,), "mlp_bias": (False,)},
        pairs=True,
    ),
    Architecture(
        "qwen2",
        ("Qwen2ForCausalLM",),
        NORMS | QKV | QKV_BIAS | REST,
        _qwen,
        SILU | {"use_sliding_window": (False,)},
    ),
    Architecture(
        "qwen3",
        ("Qwen3ForCausalLM",),
        NORMS | QKV | QK_NORM | REST,
        _qwen,
        SILU | {"use_sliding_window": (False,), "attention_bias": (False,)},
    ),
    Architecture(
        "phi3",
        ("Phi3ForCausalLM",),
        PHI3_LAYER,
        _phi3,
        SILU | {"attention_bias": (False,)},
    ),
    Architecture(
        "gemma2",
        ("Gemma2ForCausalLM",),
        GEMMA_NORMS | QKV | REST,
        lambda model: _gemma(model, 2, 46, GEMMA2_CAPS),
        {"attention_bias": (False,)},
        tied=True,
        plus_one=True,
    ),
    Architecture(
        "gemma3",
        ("Gemma3ForCausalLM",),
        GEMMA_NORMS | QKV | QK_NORM | REST,
        lambda model: _gemma(model, 6, 62, GEMMA3_CAPS, "linear"),
        {
            "attention_bias": (False,),
            "use_bidirectional_attention": (False,),
        },
        tied=True,
        plus_one=True,
    ),
    Architecture(
        "opt",
        ("OPTForCausalLM", "OPTModel"),
        OPT_LAYER,
        _opt,
        {
            "activation_function": ("relu",),
            "enable_bias": (True,),
            "layer_norm_elementwise_affine": (True,),
            "_remove_final_layer_norm": (False,),
        },
        tied=True,
        global_=OPT_GLOBAL,
        prefixes=("model.decoder.", "decoder."),
    ),
)


def _find(config):
    names = config.names("architectures")
    for row in ARCHITECTURES:
        if any(name in row.classes for name in names):
            return row
    known = ", ".join(name for row in ARCHITECTURES for name in row.classes)
    what = names[0] if names else config.get("model_type", "nothing")
    raise Refused(
        f"config.json: {_short(what)} is not supported (only {known})"
    )
