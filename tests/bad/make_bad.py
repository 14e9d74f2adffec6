#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the corpus of bad GGUF files into this folder, and expected.txt beside them.

Each case is a small valid model with one thing wrong. expected.txt has one line per file: name, tab,
status code, tab, the whole error line that opening the model must give. The lines are built here
from the offsets this script wrote things at, so they do not depend on the reader. Standard library
only. The output is committed; CI runs `make_bad.py --check` to see that it is what this script makes.
"""
import os
import struct
import sys

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
PACK = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q",
        I64: "q", F64: "d"}
EFORMAT, ENOTSUP = "INST_EFORMAT", "INST_ENOTSUP"
TENSOR_F32, TENSOR_F16, TENSOR_Q8_0, TENSOR_IQ4_XS = 0, 1, 8, 23
WIDTH, HEADS, HEAD_DIM, FFN, LAYERS = 8, 2, 4, 12, 1
TOKENS = [b"<unk>", b"<s>", b"</s>", b"<0x41>", b"ab", b"a", b"b"]


def string(data):
    return struct.pack("<Q", len(data)) + data


class Array:
    def __init__(self, kind, values, count=None):
        self.kind, self.values, self.count = kind, values, count

    def encode(self):
        count = len(self.values) if self.count is None else self.count
        body = b"".join(encode(self.kind, v) for v in self.values)
        return struct.pack("<IQ", self.kind, count) + body


class Raw(bytes):
    """A value's bytes as they are."""


def encode(kind, value):
    if isinstance(value, Raw):
        return value
    if kind == STRING:
        return string(value)
    if kind == ARRAY:
        return value.encode()
    return struct.pack("<" + PACK[kind], value)


class Model:
    """A valid tiny model; cases change its fields before it is written."""

    def __init__(self):
        self.magic, self.version = b"GGUF", 3
        self.n_tensors = self.n_keys = None
        self.alignment = 32
        self.keys = [
            (b"general.architecture", STRING, b"llama"),
            (b"llama.block_count", U32, LAYERS),
            (b"llama.context_length", U32, 64),
            (b"llama.embedding_length", U32, WIDTH),
            (b"llama.feed_forward_length", U32, FFN),
            (b"llama.attention.head_count", U32, HEADS),
            (b"llama.attention.head_count_kv", U32, 1),
            (b"llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
            (b"tokenizer.ggml.model", STRING, b"llama"),
            (b"tokenizer.ggml.tokens", ARRAY, Array(STRING, TOKENS)),
            (b"tokenizer.ggml.scores", ARRAY, Array(F32, [0.0] * len(TOKENS))),
            (b"tokenizer.ggml.token_type", ARRAY, Array(I32, [2, 3, 3, 6, 1, 1, 1])),
        ]
        q, kv = HEADS * HEAD_DIM, HEAD_DIM
        self.tensors = [[n.encode(), d, TENSOR_F32] for n, d in [
            ("token_embd.weight", [WIDTH, len(TOKENS)]),
            ("output_norm.weight", [WIDTH]),
            ("blk.0.attn_norm.weight", [WIDTH]),
            ("blk.0.attn_q.weight", [WIDTH, q]),
            ("blk.0.attn_k.weight", [WIDTH, kv]),
            ("blk.0.attn_v.weight", [WIDTH, kv]),
            ("blk.0.attn_output.weight", [q, WIDTH]),
            ("blk.0.ffn_norm.weight", [WIDTH]),
            ("blk.0.ffn_gate.weight", [WIDTH, FFN]),
            ("blk.0.ffn_up.weight", [WIDTH, FFN]),
            ("blk.0.ffn_down.weight", [FFN, WIDTH]),
        ]]
        self.moved = {}  # tensor name -> data offset written instead of the right one
        self.rope_freqs = None
        self.at = {}  # name -> offset, filled by encode()

    def key(self, name, kind, value):
        """Replaces the key, or adds it at the end."""
        name = name.encode()
        for i, k in enumerate(self.keys):
            if k[0] == name:
                self.keys[i] = (name, kind, value)
                return
        self.keys.append((name, kind, value))

    def drop_key(self, name):
        self.keys = [k for k in self.keys if k[0] != name.encode()]

    def tensor(self, name, dims=None, kind=None):
        name = name.encode()
        for t in self.tensors:
            if t[0] == name:
                t[1] = dims or t[1]
                t[2] = t[2] if kind is None else kind
                return
        self.tensors.append([name, dims, kind or TENSOR_F32])

    def drop_tensor(self, name):
        self.tensors = [t for t in self.tensors if t[0] != name.encode()]

    def encode(self):
        out = self.magic + struct.pack(
            "<IQQ", self.version,
            len(self.tensors) if self.n_tensors is None else self.n_tensors,
            len(self.keys) if self.n_keys is None else self.n_keys)
        for name, kind, value in self.keys:
            self.at[name.decode(errors="replace")] = len(out)
            out += string(name) + struct.pack("<I", kind) + encode(kind, value)
        data = b""
        for name, dims, kind in self.tensors:
            self.at[name.decode(errors="replace")] = len(out)
            out += string(name) + struct.pack("<I", len(dims))
            out += b"".join(struct.pack("<Q", d) for d in dims)
            out += struct.pack("<IQ", kind, self.moved.get(name.decode(), len(data)))
            n = 1
            for d in dims:
                n *= d
            size = min({TENSOR_F32: n * 4, TENSOR_F16: n * 2, TENSOR_Q8_0: n // 32 * 34,
                        TENSOR_IQ4_XS: n // 256 * 136}.get(kind, 0), 1 << 13)
            values = bytes(size)
            if name == b"rope_freqs.weight":
                values = struct.pack("<%df" % len(self.rope_freqs), *self.rope_freqs)
            data += values + bytes(-len(values) % self.alignment)
        self.entries_end = len(out)
        return out + bytes(-len(out) % self.alignment) + data


CASES = []


def case(function):
    CASES.append(function)
    return function


def key_error(m, name, detail, code=EFORMAT):
    data = m.encode()
    return data, code, "key '%s' at offset %d: %s" % (name, m.at[name], detail)


def tensor_error(m, name, detail, code=EFORMAT):
    data = m.encode()
    return data, code, "tensor '%s' at offset %d: %s" % (name, m.at[name], detail)


# The header.

@case
def empty(m):
    return b"", EFORMAT, "header at offset 0: the file is empty"


@case
def not_gguf(m):
    m.magic = b"GGML"
    return m.encode(), EFORMAT, ('header at offset 0: not a GGUF file (it does not start with '
                                 '"GGUF")')


@case
def three_bytes(m):
    return b"GGU", EFORMAT, 'header at offset 0: not a GGUF file (it does not start with "GGUF")'


@case
def header_cut(m):
    return m.encode()[:20], EFORMAT, "header at offset 4: the file ends inside it (20 bytes)"


@case
def version_1(m):
    m.version = 1
    return m.encode(), EFORMAT, "header at offset 4: GGUF version 1; versions 2 and 3 are read"


@case
def version_4(m):
    m.version = 4
    return m.encode(), EFORMAT, "header at offset 4: GGUF version 4; versions 2 and 3 are read"


@case
def big_endian(m):
    m.version = 3 << 24
    return m.encode(), EFORMAT, ("header at offset 4: GGUF version 50331648 (a big-endian file?); "
                                 "versions 2 and 3 are read")


@case
def tensor_count_huge(m):
    m.n_tensors = 1 << 60
    data = m.encode()
    return data, EFORMAT, "header at offset 8: %d tensors do not fit in a file of %d bytes" % (
        1 << 60, len(data))


@case
def key_count_huge(m):
    m.n_keys = (1 << 64) - 1
    data = m.encode()
    return data, EFORMAT, "header at offset 16: %d keys do not fit in a file of %d bytes" % (
        (1 << 64) - 1, len(data))


# Keys.

@case
def key_name_cut(m):
    m.n_tensors, m.n_keys = 0, 3
    data = m.encode()
    at = m.at["llama.context_length"]
    return data[:at + 20], EFORMAT, ("key 2 at offset %d: the file ends inside it (%d bytes)" %
                                     (at, at + 20))


@case
def key_name_length_cut(m):
    m.n_tensors, m.n_keys = 0, 3
    data = m.encode()
    at = m.at["llama.context_length"]
    return data[:at + 5], EFORMAT, ("key 2 at offset %d: the file ends inside it (%d bytes)" %
                                    (at, at + 5))


@case
def key_type_cut(m):
    m.n_tensors, m.n_keys = 0, 3
    data = m.encode()
    at = m.at["llama.context_length"]
    end = at + 8 + len("llama.context_length") + 2
    return data[:end], EFORMAT, ("key 2 at offset %d: the file ends inside it (%d bytes)" %
                                 (at, end))


@case
def key_value_cut(m):
    m.n_tensors, m.n_keys = 0, 3
    data = m.encode()
    end = m.at["llama.context_length"] + 8 + len("llama.context_length") + 4 + 3
    return data[:end], EFORMAT, ("key 'llama.context_length' at offset %d: the file ends inside "
                                 "its value" % m.at["llama.context_length"])


@case
def key_name_empty(m):
    m.keys.insert(1, (b"", U32, 0))
    return m.encode(), EFORMAT, ("key 1 at offset %d: name of 0 bytes (1 to 65535 allowed)" %
                                 m.at[""])


@case
def key_name_long(m):
    data = bytearray(m.encode())
    at = m.at["llama.block_count"]
    data[at:at + 8] = struct.pack("<Q", 1 << 63)
    return bytes(data), EFORMAT, ("key 1 at offset %d: name of %d bytes (1 to 65535 allowed)" %
                                  (at, 1 << 63))


@case
def key_twice(m):
    m.keys.append((b"general.architecture", STRING, b"llama"))
    data = m.encode()
    return data, EFORMAT, ("key 'general.architecture' at offset %d: the key is there twice" %
                           m.at["general.architecture"])


@case
def key_type_unknown(m):
    m.key("extra", 13, Raw(b"\0" * 8))
    return key_error(m, "extra", "unknown value type 13")


@case
def key_name_unprintable(m):
    m.keys.append((b"e\nx\x1b[31m\xff'", 99, Raw(b"\0" * 8)))
    data = m.encode()
    return data, EFORMAT, ("key 'e?x?[31m??' at offset %d: unknown value type 99" %
                           m.at["e\nx\x1b[31m\ufffd'"])


@case
def bool_of_7(m):
    m.key("tokenizer.ggml.add_bos_token", BOOL, 7)
    return key_error(m, "tokenizer.ggml.add_bos_token", "a boolean of value 7")


@case
def string_too_long(m):
    m.key("general.name", STRING, Raw(struct.pack("<Q", 1 << 62) + b"x"))
    return key_error(m, "general.name", "its string is longer than the file")


@case
def string_length_wraps(m):
    m.key("general.name", STRING, Raw(struct.pack("<Q", (1 << 64) - 4) + b"x"))
    return key_error(m, "general.name", "its string is longer than the file")


@case
def array_nested(m):
    m.key("extra", ARRAY, Array(ARRAY, [Array(U8, [1])]))
    return key_error(m, "extra", "arrays of arrays are not allowed")


@case
def array_type_unknown(m):
    m.key("extra", ARRAY, Array(77, [], 3))
    return key_error(m, "extra", "unknown element type 77")


@case
def array_too_long(m):
    m.key("extra", ARRAY, Array(U16, [1, 2], 1 << 40))
    return key_error(m, "extra", "array of %d elements is longer than the file" % (1 << 40))


@case
def array_size_overflows(m):
    m.key("extra", ARRAY, Array(U64, [1, 2], 1 << 61))
    return key_error(m, "extra", "array of %d elements is longer than the file" % (1 << 61))


@case
def array_strings_too_many(m):
    m.key("extra", ARRAY, Array(STRING, [b"x"], 1 << 61))
    return key_error(m, "extra", "array of %d strings is longer than the file" % (1 << 61))


@case
def array_string_too_long(m):
    m.key("extra", ARRAY, Array(STRING, [b"x", Raw(struct.pack("<Q", 1 << 33))]))
    m.encode()
    at = m.at["extra"] + 8 + 5 + 4 + 12 + 9
    return key_error(m, "extra",
                     "string 1 of the array, at offset %d, is longer than the file" % at)


@case
def array_head_cut(m):
    m.n_tensors = 0
    m.key("extra", ARRAY, Array(U8, [1]))
    data = m.encode()
    return data[:m.at["extra"] + 8 + 5 + 4 + 6], EFORMAT, (
        "key 'extra' at offset %d: the file ends inside its array" % m.at["extra"])


@case
def alignment_24(m):
    m.key("general.alignment", U32, 24)
    return key_error(m, "general.alignment",
                     "alignment 24 is not a power of two from 8 to 1048576")


@case
def alignment_0(m):
    m.key("general.alignment", U32, 0)
    return key_error(m, "general.alignment", "alignment 0 is not a power of two from 8 to 1048576")


@case
def alignment_huge(m):
    m.key("general.alignment", U64, 1 << 63)
    return key_error(m, "general.alignment",
                     "alignment %d is not a power of two from 8 to 1048576" % (1 << 63))


@case
def alignment_string(m):
    m.key("general.alignment", STRING, b"32")
    return key_error(m, "general.alignment", "not an integer")


# Tensors.

@case
def tensor_name_cut(m):
    m.n_tensors = 2
    data = m.encode()
    at = m.at["output_norm.weight"]
    return data[:at + 9], EFORMAT, ("tensor 1 at offset %d: the file ends inside it (%d bytes)" %
                                    (at, at + 9))


@case
def tensor_entry_cut(m):
    m.n_tensors = 1
    data = m.encode()
    end = m.at["token_embd.weight"] + 8 + len("token_embd.weight") + 4 + 8
    return data[:end] + b"\0\0", EFORMAT, (
        "tensor 'token_embd.weight' at offset %d: the file ends inside its entry" %
        m.at["token_embd.weight"])


@case
def tensor_offset_cut(m):
    m.tensors = m.tensors[:1]
    data = m.encode()
    return data[:m.entries_end - 1], EFORMAT, (
        "tensor 'token_embd.weight' at offset %d: the file ends inside its entry" %
        m.at["token_embd.weight"])


@case
def tensor_dims_0(m):
    m.tensor("output_norm.weight")
    m.tensors[1][1] = []
    return tensor_error(m, "output_norm.weight", "0 dimensions (1 to 4 allowed)")


@case
def tensor_dims_5(m):
    m.tensor("output_norm.weight", [1, 1, 1, 1, 8])
    return tensor_error(m, "output_norm.weight", "5 dimensions (1 to 4 allowed)")


@case
def tensor_dim_zero(m):
    m.tensor("output_norm.weight", [8, 0])
    return tensor_error(m, "output_norm.weight", "dimension 1 is 0")


@case
def tensor_dims_overflow(m):
    m.tensor("output_norm.weight", [1 << 32, 1 << 32])
    return tensor_error(m, "output_norm.weight",
                        "its dimensions overflow 64 bits (dimension 1 is %d)" % (1 << 32))


@case
def tensor_bytes_overflow(m):
    m.tensor("output_norm.weight", [1 << 62])
    return tensor_error(m, "output_norm.weight", "its size overflows 64 bits")


@case
def tensor_type_unknown(m):
    m.tensor("output_norm.weight", kind=1000)
    return tensor_error(m, "output_norm.weight", "unknown tensor type 1000")


@case
def tensor_row_not_whole_blocks(m):
    m.tensor("blk.0.attn_q.weight", kind=TENSOR_Q8_0)
    return tensor_error(m, "blk.0.attn_q.weight",
                        "rows of 8 elements are not whole blocks of 32 (type Q8_0)")


@case
def tensor_twice(m):
    m.tensors.append([b"output_norm.weight", [WIDTH], TENSOR_F32])
    return tensor_error(m, "output_norm.weight", "the tensor is there twice")


@case
def tensor_misaligned(m):
    m.moved["output_norm.weight"] = 225
    return tensor_error(m, "output_norm.weight", "data offset 225 is not a multiple of 32")


@case
def tensor_offset_wrong(m):
    m.moved["output_norm.weight"] = 0
    return tensor_error(m, "output_norm.weight", "data offset 0 where 224 is expected")


@case
def tensor_offset_beyond(m):
    m.moved["output_norm.weight"] = 1 << 40
    data = m.encode()
    return tensor_error(m, "output_norm.weight",
                        "32 bytes of data at data offset %d reach beyond the end of the file "
                        "(%d bytes)" % (1 << 40, len(data)))


@case
def tensor_offset_wraps(m):
    m.moved["output_norm.weight"] = (1 << 64) - 32
    data = m.encode()
    return tensor_error(m, "output_norm.weight",
                        "32 bytes of data at data offset %d reach beyond the end of the file "
                        "(%d bytes)" % ((1 << 64) - 32, len(data)))


@case
def data_cut(m):
    data = m.encode()
    data = data[:-1]
    size = FFN * WIDTH * 4
    start = len(m.encode()) - size
    base = m.entries_end + -m.entries_end % 32
    return data, EFORMAT, (
        "tensor 'blk.0.ffn_down.weight' at offset %d: %d bytes of data at data offset %d reach "
        "beyond the end of the file (%d bytes)" %
        (m.at["blk.0.ffn_down.weight"], size, start - base, len(data)))


# The configuration.

@case
def architecture_missing(m):
    m.drop_key("general.architecture")
    return m.encode(), EFORMAT, "key 'general.architecture' is missing"


@case
def architecture_unknown(m):
    m.key("general.architecture", STRING, b"mamba")
    return key_error(m, "general.architecture", "architecture 'mamba' is not supported", ENOTSUP)


@case
def architecture_number(m):
    m.key("general.architecture", U32, 1)
    return key_error(m, "general.architecture", "not a string")


@case
def layers_0(m):
    m.key("llama.block_count", U32, 0)
    return key_error(m, "llama.block_count", "0 is out of range (1 to 4096)")


@case
def layers_negative(m):
    m.key("llama.block_count", I32, -1)
    return key_error(m, "llama.block_count", "-1 is out of range (1 to 4096)")


@case
def width_missing(m):
    m.drop_key("llama.embedding_length")
    return m.encode(), EFORMAT, "key 'llama.embedding_length' is missing"


@case
def ffn_huge(m):
    m.key("llama.feed_forward_length", U64, 1 << 40)
    return key_error(m, "llama.feed_forward_length",
                     "%d is out of range (1 to 16777216)" % (1 << 40))


@case
def context_0(m):
    m.key("llama.context_length", U32, 0)
    return key_error(m, "llama.context_length", "0 is out of range (1 to 1073741824)")


@case
def heads_do_not_divide(m):
    m.key("llama.attention.head_count", U32, 3)
    return key_error(m, "llama.attention.head_count", "3 heads do not divide a width of 8")


@case
def kv_heads_do_not_divide(m):
    m.key("llama.attention.head_count", U32, 4)
    m.key("llama.attention.head_count_kv", U32, 3)
    return key_error(m, "llama.attention.head_count_kv", "3 KV heads do not divide 4 heads")


@case
def kv_heads_more(m):
    m.key("llama.attention.head_count_kv", U32, 3)
    return key_error(m, "llama.attention.head_count_kv", "3 is out of range (1 to 2)")


@case
def kv_heads_per_layer(m):
    m.key("llama.attention.head_count_kv", ARRAY, Array(U32, [1, 2]))
    return key_error(m, "llama.attention.head_count_kv",
                     "values that differ from layer to layer are not supported", ENOTSUP)


@case
def kv_heads_empty_array(m):
    m.key("llama.attention.head_count_kv", ARRAY, Array(U32, []))
    return key_error(m, "llama.attention.head_count_kv",
                     "an empty array where an integer belongs")


@case
def head_dim_odd(m):
    m.key("llama.attention.key_length", U32, 5)
    return m.encode(), ENOTSUP, "a head_dim of 5 is not supported (even, 2 to 512)"


@case
def head_dim_huge(m):
    m.key("llama.attention.key_length", U32, 514)
    return key_error(m, "llama.attention.key_length", "514 is out of range (2 to 512)")


@case
def value_length_differs(m):
    m.key("llama.attention.value_length", U32, 8)
    return key_error(m, "llama.attention.value_length",
                     "values of 8 and keys of 4 elements: only equal lengths are supported",
                     ENOTSUP)


@case
def eps_nan(m):
    m.key("llama.attention.layer_norm_rms_epsilon", F32, float("nan"))
    return key_error(m, "llama.attention.layer_norm_rms_epsilon",
                     "nan is out of range (1e-20 to 1)")


@case
def eps_integer(m):
    m.key("llama.attention.layer_norm_rms_epsilon", U32, 1)
    return key_error(m, "llama.attention.layer_norm_rms_epsilon",
                     "not a floating-point number")


@case
def rope_dims_odd(m):
    m.key("llama.rope.dimension_count", U32, 3)
    return key_error(m, "llama.rope.dimension_count", "3 is odd")


@case
def rope_dims_many(m):
    m.key("llama.rope.dimension_count", U32, 6)
    return key_error(m, "llama.rope.dimension_count", "6 is out of range (2 to 4)")


@case
def rope_base_0(m):
    m.key("llama.rope.freq_base", F32, 0.0)
    return key_error(m, "llama.rope.freq_base", "0 is out of range (1 to 1e+15)")


@case
def rope_scaling_dynamic(m):
    m.key("llama.rope.scaling.type", STRING, b"dynamic")
    return key_error(m, "llama.rope.scaling.type", "rope scaling 'dynamic' is not supported", ENOTSUP)


@case
def rope_scaling_longrope(m):
    m.key("llama.rope.scaling.type", STRING, b"longrope")
    return key_error(m, "llama.rope.scaling.type", "rope scaling 'longrope' is not supported",
                     ENOTSUP)


@case
def rope_scaling_mscale(m):
    m.key("llama.rope.scaling.yarn_log_multiplier", F32, 0.5)
    return key_error(m, "llama.rope.scaling.yarn_log_multiplier", "value 0.5 is not supported",
                     ENOTSUP)


@case
def rope_scale_linear(m):
    m.key("llama.rope.scale_linear", F32, -4.0)
    return key_error(m, "llama.rope.scale_linear", "-4 is out of range (0 to 1e+06)")


@case
def experts(m):
    m.key("llama.expert_count", U32, 8)
    return key_error(m, "llama.expert_count", "value 8 is not supported", ENOTSUP)


@case
def not_causal(m):
    m.key("llama.attention.causal", BOOL, 0)
    return key_error(m, "llama.attention.causal", "value 0 is not supported", ENOTSUP)


@case
def tokens_fewer_than_rows(m):
    m.key("tokenizer.ggml.tokens", ARRAY, Array(STRING, TOKENS[:-1]))
    return key_error(m, "tokenizer.ggml.tokens", "6 tokens, but token_embd.weight has 7 rows")


# The weights.

@case
def no_tensors(m):
    m.tensors = []
    return m.encode(), EFORMAT, "no tensors in it (a vocabulary only)"


@case
def tensor_missing(m):
    m.drop_tensor("blk.0.attn_v.weight")
    return m.encode(), EFORMAT, "tensor 'blk.0.attn_v.weight' is missing"


@case
def layer_missing(m):
    m.key("llama.block_count", U32, 2)
    return m.encode(), EFORMAT, "tensor 'blk.1.attn_norm.weight' is missing"


@case
def tensor_shape_wrong(m):
    m.tensor("blk.0.ffn_up.weight", [WIDTH, FFN + 1])
    return tensor_error(m, "blk.0.ffn_up.weight",
                        "shape 8 x 13 x 1 x 1 where 8 x 12 is expected")


@case
def tensor_3d(m):
    m.tensor("blk.0.ffn_up.weight", [WIDTH, FFN, 2])
    return tensor_error(m, "blk.0.ffn_up.weight",
                        "shape 8 x 12 x 2 x 1 where 8 x 12 is expected")


@case
def norm_short(m):
    m.tensor("output_norm.weight", [WIDTH - 1])
    return tensor_error(m, "output_norm.weight", "shape 7 x 1 x 1 x 1 where 8 x 1 is expected")


@case
def norm_f16(m):
    m.tensor("output_norm.weight", kind=TENSOR_F16)
    return tensor_error(m, "output_norm.weight", "type F16 is not supported here", ENOTSUP)


@case
def type_iq4_xs(m):
    m.key("llama.feed_forward_length", U32, 256)
    m.tensor("blk.0.ffn_gate.weight", [WIDTH, 256])
    m.tensor("blk.0.ffn_up.weight", [WIDTH, 256])
    m.tensor("blk.0.ffn_down.weight", [256, WIDTH], TENSOR_IQ4_XS)
    return tensor_error(m, "blk.0.ffn_down.weight", "type IQ4_XS is not supported here", ENOTSUP)


@case
def bias(m):
    m.tensor("blk.0.attn_q.bias", [HEADS * HEAD_DIM])
    return tensor_error(m, "blk.0.attn_q.bias", "architecture llama does not use such a tensor; "
                        "the result would be wrong without it", ENOTSUP)


@case
def rope_freqs_zero(m):
    m.tensor("rope_freqs.weight", [HEAD_DIM // 2])
    m.rope_freqs = [1.0, 0.0]
    return tensor_error(m, "rope_freqs.weight", "element 1 (0) is not a positive number")


# The tokenizer.

@case
def tokenizer_missing(m):
    m.drop_key("tokenizer.ggml.model")
    return m.encode(), EFORMAT, "key 'tokenizer.ggml.model' is missing"


@case
def tokenizer_unknown(m):
    m.key("tokenizer.ggml.model", STRING, b"t5")
    return key_error(m, "tokenizer.ggml.model", "tokenizer 't5' is not supported", ENOTSUP)


@case
def tokens_missing(m):
    m.drop_key("tokenizer.ggml.tokens")
    return m.encode(), EFORMAT, "key 'tokenizer.ggml.tokens' is missing"


@case
def tokens_not_strings(m):
    m.key("tokenizer.ggml.tokens", ARRAY, Array(U8, [1] * 7))
    return key_error(m, "tokenizer.ggml.tokens", "not an array of the expected type")


@case
def token_long(m):
    m.key("tokenizer.ggml.tokens", ARRAY, Array(STRING, TOKENS[:-1] + [b"b" * 65536]))
    return key_error(m, "tokenizer.ggml.tokens", "token 6 has 65536 bytes (at most 65535)")


@case
def scores_few(m):
    m.key("tokenizer.ggml.scores", ARRAY, Array(F32, [0.0]))
    return key_error(m, "tokenizer.ggml.scores", "1 scores for 7 tokens")


@case
def scores_strings(m):
    m.key("tokenizer.ggml.scores", ARRAY, Array(STRING, [b"0"] * 7))
    return key_error(m, "tokenizer.ggml.scores", "not an array of numbers")


@case
def score_nan(m):
    m.key("tokenizer.ggml.scores", ARRAY, Array(F32, [0.0] * 6 + [float("nan")]))
    return key_error(m, "tokenizer.ggml.scores", "the score of token 6 is not a number")


@case
def types_few(m):
    m.key("tokenizer.ggml.token_type", ARRAY, Array(I32, [1] * 6))
    return key_error(m, "tokenizer.ggml.token_type", "6 types for 7 tokens")


@case
def merges_missing(m):
    m.key("tokenizer.ggml.model", STRING, b"gpt2")
    return m.encode(), EFORMAT, "key 'tokenizer.ggml.merges' is missing"


@case
def merges_not_strings(m):
    m.key("tokenizer.ggml.model", STRING, b"gpt2")
    m.key("tokenizer.ggml.merges", ARRAY, Array(U32, [1]))
    return key_error(m, "tokenizer.ggml.merges", "not an array of the expected type")


@case
def merge_long(m):
    m.key("tokenizer.ggml.model", STRING, b"gpt2")
    m.key("tokenizer.ggml.merges", ARRAY, Array(STRING, [b"a b", b"b" * 65536]))
    return key_error(m, "tokenizer.ggml.merges", "merge 1 has 65536 bytes (at most 65535)")


@case
def pre_unknown(m):
    m.key("tokenizer.ggml.model", STRING, b"gpt2")
    m.key("tokenizer.ggml.pre", STRING, b"viking")
    return key_error(m, "tokenizer.ggml.pre", "pre-tokenizer 'viking' is not supported", ENOTSUP)


@case
def pre_number(m):
    m.key("tokenizer.ggml.model", STRING, b"gpt2")
    m.key("tokenizer.ggml.pre", U32, 2)
    return key_error(m, "tokenizer.ggml.pre", "not a string")


# Files in parts: what is wrong with the one that is opened.

def part(m, no=0, count=2):
    m.key("split.no", U16, no)
    m.key("split.count", U16, count)
    return m


@case
def split_name(m):
    return key_error(part(m, 0, 3), "split.count",
                     "one of 3 parts, but not named NAME-00001-of-00003.gguf")


@case
def split_no_missing(m):
    m.key("split.count", U16, 3)
    return m.encode(), EFORMAT, "key 'split.no' is missing"


@case
def split_not_first(m):
    return key_error(part(m, 1, 3), "split.no", "part 2: open part 1 of 3")


@case
def split_count_huge(m):
    return key_error(part(m, 0, 65535), "split.count",
                     "one of 65535 parts, but not named NAME-00001-of-65535.gguf")


@case
def split_count_string(m):
    m.key("split.count", STRING, b"2")
    return key_error(m, "split.count", "not an integer")


@case
def split_tensors_negative(m):
    part(m).key("split.tensors.count", I32, -3)
    return key_error(m, "split.tensors.count", "-3 is out of range (0 to 4294967295)")


@case
def add_bos_number(m):
    m.key("tokenizer.ggml.add_bos_token", U32, 1)
    return key_error(m, "tokenizer.ggml.add_bos_token", "not a boolean")


def build():
    files, lines = {}, []
    for function in CASES:
        data, code, detail = function(Model())
        name = function.__name__ + ".gguf"
        files[name] = data
        lines.append("%s\t%s\t%s: %s\n" % (name, code, name, detail))
    files["valid.gguf"] = Model().encode()
    m = Model()
    m.key("tokenizer.ggml.model", STRING, b"gpt2")
    m.key("tokenizer.ggml.pre", STRING, b"llama-bpe")
    m.key("tokenizer.ggml.merges", ARRAY, Array(STRING, [b"a b", b"ab b", b"b ", b"a b"]))
    files["valid_bpe.gguf"] = m.encode()
    lines.append("valid_bpe.gguf\t0\t\n")
    first, second = part(Model()), part(Model(), 1)
    second.keys = second.keys[-2:]
    first.tensors, second.tensors = first.tensors[:6], second.tensors[6:]
    first = first.encode()
    # A seed for fuzzing: two parts, then "PART" and the length of the first.
    files["split_pair.bin"] = first + second.encode() + b"PART" + struct.pack("<I", len(first))
    lines.append("valid.gguf\t0\t\n")
    files["expected.txt"] = "".join(lines).encode()
    return files


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    files = build()
    wrong = []
    for name, data in files.items():
        path = os.path.join(here, name)
        if "--check" in sys.argv:
            if not os.path.exists(path) or open(path, "rb").read() != data:
                wrong.append(name)
        else:
            with open(path, "wb") as f:
                f.write(data)
    for name in os.listdir(here):
        if name.endswith(".gguf") and name not in files:
            wrong.append(name)
    if wrong:
        sys.exit("not what make_bad.py makes: " + ", ".join(sorted(wrong)))
    print("%d files" % len(files))


main()
