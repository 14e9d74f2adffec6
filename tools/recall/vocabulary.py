"""The recall model's SentencePiece vocabulary: one token for every word.

SentencePiece joins neighbouring pieces as long as the result is a piece. Each
word is therefore here with all its beginnings (" a", " am", " amb", ...), so
that joining runs from the space to the end of the word and nowhere else.
Letters and bytes are there for text that the grammar does not know.
"""

import string
from collections import namedtuple
from itertools import pairwise

import corpus

# Token types of GGUF.
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6

UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
FIRST_BYTE_ID = 3

# Joins that begin with a space always win over those inside a word.
INNER_JOIN_PENALTY = 100

Piece = namedtuple("Piece", "text score type")


def _beginnings(word):
    return [word[:end] for end in range(2, len(word) + 1)]


def _word_pieces():
    """Pieces that the grammar's text consists of."""
    spaced = [corpus.SPACE + word for word in corpus.words()]
    digits = [corpus.SPACE + d for d in string.digits] + list(string.digits)
    return [*corpus.starters(), *spaced, *digits, *corpus.MARKS]


def _all_pieces():
    complete = dict.fromkeys(_word_pieces())
    partial = {}
    for word in complete:
        partial.update(dict.fromkeys(_beginnings(word)))
    letters = dict.fromkeys([corpus.SPACE, *string.ascii_letters])
    return list(complete | partial | letters)


def _score(text):
    inner = len(text) > 1 and not text.startswith(corpus.SPACE)
    return -float(len(text) + INNER_JOIN_PENALTY * inner)


def _build():
    pieces = [
        Piece("<unk>", 0.0, UNKNOWN),
        Piece("<s>", 0.0, CONTROL),
        Piece("</s>", 0.0, CONTROL),
    ]
    pieces += [Piece(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    pieces += [Piece(text, _score(text), NORMAL) for text in _all_pieces()]
    return pieces


PIECES = _build()
IDS = {piece.text: number for number, piece in enumerate(PIECES)}
IDS[corpus.NEWLINE] = FIRST_BYTE_ID + ord(corpus.NEWLINE)


def encode(tokens):
    """The ids of tokens as corpus.py makes them."""
    return [IDS[token] for token in tokens]


def split(text):
    """Splits text as a SentencePiece tokenizer does; slow, for tests."""
    symbols = list((" " + text).replace(" ", corpus.SPACE))
    while True:
        joins = [
            (-PIECES[IDS[left + right]].score, at)
            for at, (left, right) in enumerate(pairwise(symbols))
            if left + right in IDS
        ]
        if not joins:
            return symbols
        at = min(joins)[1]
        symbols[at:at + 2] = [symbols[at] + symbols[at + 1]]
