# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a checkpoint as the keys of a GGUF file.

Two kinds, as GGUF names them. "gpt2": byte-pair encoding of visible bytes,
from tokenizer.json or from vocab.json and merges.txt. "llama": SentencePiece's
BPE, from tokenizer.model or from tokenizer.json. Which words a text of kind
gpt2 is cut into follows from the pre-tokenizer's description, which must be one of a
table, because GGUF only has names for them.
"""

import json
import re
import struct
from dataclasses import dataclass, field

from checkpoint import Refused

# tokenizer.ggml.token_type; SentencePiece has the same numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNRANKED = -1e6  # score of a token that no merge makes

CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS_ETC = (
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WHOLE = "whole words"  # a word that is a token is not put together by merges
# What a pre-tokenizer does -> its name in GGUF.
PRE_TOKENIZERS = {
    ("gpt2 words",): "gpt-2",
    (f"split {CASELESS}{WORDS_ETC % '{1,3}'}", WHOLE): "llama-bpe",
    (f"split {CASELESS}{WORDS_ETC % '{1,3}'}",): "dbrx",
    (f"split {CASELESS}{WORDS_ETC % ''}",): "qwen2",
    (f"split {CASED}", WHOLE): "tekken",
    ("single digits", "gpt2 words"): "smollm",
}


@dataclass
class Vocabulary:
    kind: str
    tokens: list  # by id; None where there is none
    types: list
    rows: int  # of the embeddings: there are not more tokens
    merges: list = None
    scores: list = None
    pre: str = None
    add_space: bool = None
    add_bos: bool = None  # as far as the tokenizer itself says
    add_eos: bool = None
    special: dict = field(default_factory=dict)  # role -> id

    def put(self, number, text, kind, score=0.0):
        """A token at its place, which may be behind the end."""
        if number < 0 or not isinstance(text, str | None):
            raise ValueError
        _check_count(number + 1, self.rows)
        while number >= len(self.tokens):
            self.tokens.append(None)
            self.types.append(UNUSED)
            if self.scores is not None:
                self.scores.append(0.0)
        self.tokens[number] = text
        self.types[number] = kind
        if self.scores is not None:
            self.scores[number] = score


def _check_count(count, rows):
    if count > rows:
        raise Refused(
            f"the vocabulary has {count} tokens, but the embeddings have"
            f" {rows} rows"
        )


def _from_table(table, rows, where):
    """Tokens by id from text -> id."""
    if not isinstance(table, dict) or not all(
        isinstance(n, int) and n >= 0 for n in table.values()
    ):
        raise Refused(f"{where}: its vocabulary is malformed")
    count = max(table.values(), default=-1) + 1
    _check_count(count, rows)
    tokens = [None] * count
    for text, number in table.items():
        tokens[number] = text
    return tokens


# SentencePiece: a protocol buffer of which three messages matter.


def _varint(raw, at):
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError


def _fields(raw):
    """(number, value) of every field of a message; bytes for what has a
    length."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(raw, at)
        else:
            size = {1: 8, 5: 4}.get(wire)
            if wire == 2:
                size, at = _varint(raw, at)
            if size is None or at + size > len(raw):
                raise ValueError
            value = raw[at : at + size]
            at += size
        yield key >> 3, value


def _read_sentencepiece(path, rows):
    pieces, trainer, normalizer = [], {}, {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                piece = {2: bytes(4), 3: NORMAL} | dict(_fields(value))
                score = struct.unpack("<f", piece[2])[0]
                pieces.append((piece[1].decode(), score, piece[3]))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (ValueError, IndexError, KeyError, struct.error, TypeError):
        raise Refused(f"{path}: not a SentencePiece model") from None
    if not pieces:
        raise Refused(f"{path}: not a SentencePiece model")
    if trainer.get(3, 1) != 2:
        raise Refused(
            f"{path}: only SentencePiece models of the type BPE are supported"
        )
    texts, scores, types = map(list, zip(*pieces, strict=True))
    if not set(types) <= set(range(NORMAL, BYTE + 1)):
        raise Refused(f"{path}: has a piece of an unknown type")
    _check_count(len(texts), rows)
    add_space = bool(normalizer.get(3, 1))
    return Vocabulary(
        "llama", texts, types, rows, scores=scores, add_space=add_space
    )


# tokenizer.json


def _steps(node):
    """The parts of a sequence, or the one there is."""
    if node is None:
        return []
    if node.get("type") == "Sequence":
        for name in ("pretokenizers", "normalizers", "processors", "decoders"):
            if name in node:
                return [s for part in node[name] for s in _steps(part)]
    return [node]


def _step_text(step):
    """What a step of a pre-tokenizer does, as in PRE_TOKENIZERS."""
    kind = step.get("type")
    if kind == "ByteLevel":
        if step.get("add_prefix_space"):
            return "a space first"
        return "gpt2 words" if step.get("use_regex", True) else ""
    if kind == "Digits" and step.get("individual_digits"):
        return "single digits"
    if kind == "Split" and isinstance(step.get("pattern"), dict):
        kept = step.get("behavior") == "Isolated" and not step.get("invert")
        # "Removed" with "invert" says the same in other words.
        kept |= step.get("behavior") == "Removed" and bool(step.get("invert"))
        regex = step["pattern"].get("Regex")
        if kept and regex:
            return f"split {regex}"
    return json.dumps(step, ensure_ascii=False)


def _pre_tokenizer(data, where):
    parts = _steps(data.get("pre_tokenizer"))
    steps = tuple(filter(None, map(_step_text, parts)))
    if data["model"].get("ignore_merges"):
        steps += (WHOLE,)
    if steps not in PRE_TOKENIZERS:
        raise Refused(
            f"{where}: its pre-tokenizer is unknown ({', '.join(steps)}); say"
            " which one of GGUF it is with --pre NAME"
        )
    return PRE_TOKENIZERS[steps]


def _merge_list(merges, where):
    """Merges as "left right"."""
    texts = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2:
            raise Refused(f"{where}: {merge!r} is not a merge")
        if any(" " in part for part in pair):
            raise Refused(f"{where}: a merge of {pair!r} has a space in it")
        texts.append(" ".join(pair))
    return texts


def _scores_of_merges(tokens, merges):
    """SentencePiece joins the pair whose token has the best score: that order
    of tokens is the order of the merges that make them."""
    rank = {}
    for i, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), i)
    return [float(-rank[t]) if t in rank else UNRANKED for t in tokens]


def _add_space_of(data, where):
    """Whether a text gets a space first, where spaces are U+2581."""
    add = False
    for step in _steps(data.get("normalizer")):
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == "\u2581":
            add = True
        elif kind != "Replace" or step.get("content") != "\u2581":
            raise Refused(f"{where}: normalizer {kind} is not supported")
    for step in _steps(data.get("pre_tokenizer")):
        kind = step.get("type")
        if kind == "Metaspace":
            scheme = step.get("prepend_scheme", "always")
            add |= scheme != "never" and step.get("add_prefix_space", True)
        elif kind != "Split":  # at spaces, of which a normalizer left none
            raise Refused(f"{where}: pre-tokenizer {kind} is not supported")
    return add


def _template(node, where):
    """(texts before, texts behind) that the post-processor adds."""
    for step in _steps(node):
        kind = step.get("type")
        if kind == "TemplateProcessing":
            before, behind, seen = [], [], False
            for item in step["single"]:
                if "Sequence" in item:
                    seen = True
                else:
                    side = behind if seen else before
                    side.append(item["SpecialToken"]["id"])
            return before, behind
        if kind != "ByteLevel":
            raise Refused(f"{where}: post-processor {kind} is not supported")
    return None


def _read_tokenizer_json(checkpoint, data, rows, pre):
    where = checkpoint.folder / "tokenizer.json"
    model = data.get("model") or {}
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise Refused(
            f"{where}: its model {model.get('type')} is not supported"
        )
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise Refused(f"{where}: {name} is not supported")
    tokens = _from_table(model.get("vocab"), rows, where)
    merges = _merge_list(model["merges"], where)
    pre_steps = _steps(data.get("pre_tokenizer"))
    if any(step.get("type") == "ByteLevel" for step in pre_steps):
        normalizers = {s.get("type") for s in _steps(data.get("normalizer"))}
        if normalizers - {"NFC"}:
            raise Refused(
                f"{where}: normalizers {normalizers} are not supported"
            )
        if normalizers:
            checkpoint.notes.append(
                "tokenizer.json: Unicode normalisation (NFC): texts are taken"
                " as they are"
            )
        types = [NORMAL if t is not None else UNUSED for t in tokens]
        vocabulary = Vocabulary("gpt2", tokens, types, rows, merges=merges)
        vocabulary.pre = pre or _pre_tokenizer(data, where)
    elif checkpoint.path("tokenizer.model"):
        path = checkpoint.path("tokenizer.model")
        vocabulary = _read_sentencepiece(path, rows)
    elif model.get("byte_fallback"):
        scores = _scores_of_merges(tokens, merges)
        types = [_piece_type(text, model.get("unk_token")) for text in tokens]
        vocabulary = Vocabulary("llama", tokens, types, rows, scores=scores)
        vocabulary.add_space = _add_space_of(data, where)
    else:
        raise Refused(
            f"{where}: neither byte-level BPE nor one with a fallback to bytes"
        )
    _read_template(vocabulary, data, where)
    for token in data.get("added_tokens", []):
        kind = CONTROL if token.get("special") else USER_DEFINED
        _add(vocabulary, token["id"], token["content"], kind)
    return vocabulary


def _piece_type(text, unknown):
    if text is None:
        return UNUSED
    if text == unknown:
        return UNKNOWN
    is_byte = len(text) == 6 and text.startswith("<0x") and text[5] == ">"
    return BYTE if is_byte else NORMAL


def _read_template(vocabulary, data, where):
    template = _template(data.get("post_processor"), where)
    if template is None:
        return
    before, behind = template
    if len(before) > 1 or len(behind) > 1:
        raise Refused(f"{where}: adds more than one token at an end")
    vocabulary.add_bos, vocabulary.add_eos = bool(before), bool(behind)
    ids = {t["content"]: t["id"] for t in data.get("added_tokens", [])}
    for role, texts in (("bos", before), ("eos", behind)):
        if texts:
            vocabulary.special[role] = ids.get(texts[0])


def _add(vocabulary, number, text, kind):
    """An added token; those of SentencePiece keep the type they have there."""
    if vocabulary.kind == "llama" and number < len(vocabulary.tokens):
        known = vocabulary.types[number]
        if vocabulary.tokens[number] == text and known != NORMAL:
            return
    score = vocabulary.scores[number] if _has(vocabulary, number) else UNRANKED
    vocabulary.put(number, text, kind, score)


def _has(vocabulary, number):
    return vocabulary.scores is not None and number < len(vocabulary.scores)


# vocab.json and merges.txt


def _read_gpt2_files(checkpoint, rows, pre):
    where = checkpoint.folder / "vocab.json"
    tokens = _from_table(checkpoint.json("vocab.json"), rows, where)
    types = [NORMAL if t is not None else UNUSED for t in tokens]
    path = checkpoint.folder / "merges.txt"
    lines = checkpoint.text("merges.txt").split("\n")
    if lines and lines[0].startswith("#version"):
        lines = lines[1:]
    merges = _merge_list([line for line in lines if line.strip()], path)
    settings = checkpoint.json("tokenizer_config.json") or {}
    if settings.get("add_prefix_space"):
        raise Refused(
            f"{checkpoint.folder / 'tokenizer_config.json'}: add_prefix_space"
            " is not supported"
        )
    vocabulary = Vocabulary("gpt2", tokens, types, rows, merges=merges)
    vocabulary.pre, vocabulary.add_bos = pre or "gpt-2", False
    return vocabulary


def _text_of(token):
    """Special tokens are named by their text or by an object with it."""
    return token.get("content") if isinstance(token, dict) else token


ROLES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}
OTHER_ROLES = ("sep_token", "cls_token", "mask_token")
SETTINGS_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# What reading a value of another type or beyond a table's end raises.
MALFORMED = (KeyError, TypeError, AttributeError, ValueError, RecursionError)


def _read_settings(checkpoint, vocabulary):
    """What the files beside the vocabulary say of special and added tokens."""
    settings = (checkpoint.json("special_tokens_map.json") or {}) | (
        checkpoint.json("tokenizer_config.json") or {}
    )
    for text, number in (checkpoint.json("added_tokens.json") or {}).items():
        if number >= len(vocabulary.tokens) or not vocabulary.tokens[number]:
            _add(vocabulary, number, text, USER_DEFINED)
    for number, token in settings.get("added_tokens_decoder", {}).items():
        kind = CONTROL if token.get("special") else USER_DEFINED
        _add(vocabulary, int(number), token["content"], kind)
    ids = {text: i for i, text in enumerate(vocabulary.tokens)}
    extra = settings.get("additional_special_tokens") or []
    for name in (*ROLES, *OTHER_ROLES, *range(len(extra))):
        text = _text_of(
            extra[name] if isinstance(name, int) else settings.get(name)
        )
        number = ids.get(text) if text is not None else None
        if number is None:
            if text is not None:
                checkpoint.notes.append(
                    f"tokenizer_config.json: {text!r}, which is no token of"
                    " the vocabulary"
                )
            continue
        if name in ROLES:
            vocabulary.special[ROLES[name]] = number
        if vocabulary.types[number] in (NORMAL, USER_DEFINED):
            vocabulary.types[number] = CONTROL
    for name in ("add_bos", "add_eos"):
        if isinstance(settings.get(f"{name}_token"), bool):
            setattr(vocabulary, name, settings[f"{name}_token"])
    return settings


def _note_stripping(checkpoint, settings):
    """Added tokens that take white space around them, or only whole words."""
    listed = (checkpoint.json("tokenizer.json") or {}).get("added_tokens", [])
    listed = [*listed, *settings.get("added_tokens_decoder", {}).values()]
    for name in ("lstrip", "rstrip", "single_word"):
        texts = {token["content"] for token in listed if token.get(name)}
        if texts:
            checkpoint.notes.append(
                f"{name} of added tokens ({', '.join(sorted(texts))})"
            )


def _ids_of(checkpoint, role, count):
    """The tokens that the settings of the model and of its generation give
    this role, each once."""
    found, beyond = [], []
    for where in ("config.json", "generation_config.json"):
        numbers = (checkpoint.json(where) or {}).get(f"{role}_token_id")
        numbers = numbers if isinstance(numbers, list) else [numbers]
        for number in numbers:
            if number is None:
                continue
            if type(number) is not int:
                raise Refused(
                    f"{checkpoint.folder / where}: {role}_token_id is"
                    " malformed"
                )
            ids = found if 0 <= number < count else beyond
            if number not in ids:
                ids.append(number)
    if beyond:
        texts = ", ".join(str(number)[:20] for number in beyond)
        checkpoint.notes.append(
            f"{role}_token_id {texts}: the vocabulary has {count} tokens"
        )
    return found


ENDS = ("eos", "eot", "eom")  # what GGUF has places for


def _read_special_ids(checkpoint, vocabulary):
    """The begin token, and everything that ends a text: what the tokenizer
    says first, then what the other settings add."""
    special, count = vocabulary.special, len(vocabulary.tokens)
    if special.get("bos") is None:
        for number in _ids_of(checkpoint, "bos", count)[:1]:
            special["bos"] = number
    ends = [] if special.get("eos") is None else [special["eos"]]
    ends += [n for n in _ids_of(checkpoint, "eos", count) if n not in ends]
    if not ends:
        raise Refused(
            f"{checkpoint.folder}: nothing in it names an end token"
            " (eos_token_id in config.json)"
        )
    if len(ends) > len(ENDS):
        raise Refused(
            f"{checkpoint.folder}: {len(ends)} end tokens"
            f" ({', '.join(map(str, ends))}), but GGUF has places for"
            f" {len(ENDS)}: {', '.join(ENDS)}"
        )
    special |= zip(ENDS, ends, strict=False)


# Settings of generation_config.json that say nothing of the text, or that are
# in the file already.
GENERATION_KEPT = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "use_cache",
    "cache_implementation",
    "return_dict_in_generate",
}


def _note_generation(checkpoint):
    """How the model's makers would have its tokens drawn."""
    settings = checkpoint.json("generation_config.json") or {}
    names = [
        name
        for name, value in settings.items()
        if name not in GENERATION_KEPT
        and not name.startswith("_")
        and value not in (None, False, [], {})
    ]
    if names:
        checkpoint.notes.append(
            f"generation_config.json: {', '.join(names)}: these are options of"
            " `instinfer run`, as far as it has them"
        )


TEMPLATES = "additional_chat_templates/*.jinja"


def _chat_templates(checkpoint, settings):
    """Texts by name; "default" is the one that chats."""
    templates = settings.get("chat_template") or {}
    if isinstance(templates, list):
        templates = {t["name"]: t["template"] for t in templates}
    elif isinstance(templates, str):
        templates = {"default": templates}
    for path in sorted(checkpoint.folder.glob(TEMPLATES)):
        templates[path.stem] = checkpoint.text(
            f"{path.parent.name}/{path.name}"
        )
    # The file counts where both are there.
    if checkpoint.path("chat_template.jinja"):
        templates["default"] = checkpoint.text("chat_template.jinja")
    elif not templates:
        old = checkpoint.json("chat_template.json") or {}
        if "chat_template" in old:
            templates = {"default": old["chat_template"]}
    if not all(isinstance(text, str) for text in templates.values()):
        raise ValueError
    if templates and "default" not in templates:
        names = ", ".join(templates)
        checkpoint.notes.append(f"no chat template is the default of {names}")
    return templates


def _read_any(checkpoint, rows, pre):
    data = checkpoint.json("tokenizer.json")
    if data is not None:
        try:
            return _read_tokenizer_json(checkpoint, data, rows, pre)
        except MALFORMED:
            where = checkpoint.folder / "tokenizer.json"
            raise Refused(f"{where}: malformed") from None
    if checkpoint.path("tokenizer.model"):
        path = checkpoint.path("tokenizer.model")
        return _read_sentencepiece(path, rows)
    if checkpoint.path("vocab.json"):
        return _read_gpt2_files(checkpoint, rows, pre)
    raise Refused(
        f"{checkpoint.folder}: no tokenizer in it (tokenizer.json,"
        " tokenizer.model, or vocab.json with merges.txt)"
    )


def read(checkpoint, rows, pre):
    """(Vocabulary with as many tokens as the embeddings have rows, chat
    templates by name)."""
    vocabulary = _read_any(checkpoint, rows, pre)
    try:
        settings = _read_settings(checkpoint, vocabulary)
        _note_stripping(checkpoint, settings)
        templates = _chat_templates(checkpoint, settings)
    except MALFORMED:
        names = ", ".join(filter(checkpoint.path, SETTINGS_FILES))
        raise Refused(f"{checkpoint.folder}: malformed: {names}") from None
    _note_generation(checkpoint)
    _read_special_ids(checkpoint, vocabulary)
    if vocabulary.add_bos is None:
        vocabulary.add_bos = vocabulary.kind == "llama"
    if rows > len(vocabulary.tokens):
        vocabulary.put(rows - 1, None, UNUSED)
    vocabulary.tokens = [
        f"[PAD{i}]" if text is None else text
        for i, text in enumerate(vocabulary.tokens)
    ]
    return vocabulary, templates


def _add_templates(writer, templates):
    prefix = "tokenizer.chat_template"
    others = {}
    for name, text in templates.items():
        if name == "default":
            writer.add(prefix, "str", text)
        else:
            others[re.sub("[^A-Za-z0-9]", "_", name)] = text
    for name, text in others.items():
        writer.add(f"{prefix}.{name}", "str", text)
    if others:
        writer.add_array(f"{prefix}s", "str", list(others))


def add_keys(writer, vocabulary, templates):
    prefix = "tokenizer.ggml."
    writer.add(prefix + "model", "str", vocabulary.kind)
    if vocabulary.kind == "gpt2":
        writer.add(prefix + "pre", "str", vocabulary.pre)
    writer.add_array(prefix + "tokens", "str", vocabulary.tokens)
    if vocabulary.scores is not None:
        writer.add_array(prefix + "scores", "f32", vocabulary.scores)
    writer.add_array(prefix + "token_type", "i32", vocabulary.types)
    if vocabulary.merges is not None:
        writer.add_array(prefix + "merges", "str", vocabulary.merges)
    for role, number in vocabulary.special.items():
        if number is not None:
            writer.add(f"{prefix}{role}_token_id", "u32", number)
    writer.add(prefix + "add_bos_token", "bool", bool(vocabulary.add_bos))
    writer.add(prefix + "add_eos_token", "bool", bool(vocabulary.add_eos))
    if vocabulary.add_space is not None:
        space = bool(vocabulary.add_space)
        writer.add(prefix + "add_space_prefix", "bool", space)
    _add_templates(writer, templates)
