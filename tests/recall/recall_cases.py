# SPDX-License-Identifier: Apache-2.0
"""The models that are asked for facts, their documents and their questions.

Shared by the check and by the tool that asks llama.cpp the same questions.
Standard library only.
"""

import gzip
import hashlib
import json
import pathlib
import sys
from collections import namedtuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"
ANSWERS = DATA / "recall_llamacpp.json"
LENGTHS = (4096, 16384)  # tokens of a document
QUESTIONS = 50
TO_LLAMACPP = range(0, QUESTIONS, 5)  # questions that llama.cpp answered too
ANSWER_TOKENS = 5  # four digits and the full stop
OWN_SEED = 20

Case = namedtuple("Case", "name model documents")


def shared_documents():
    """Documents for the shared recall.gguf by length; see tools/reference."""
    packed = DATA / "recall_documents.json.gz"
    documents = json.loads(gzip.decompress(packed.read_bytes()))
    return {document["tokens"]: document for document in documents}


def own_documents():
    """Documents for the model in models/ by length."""
    sys.path.insert(0, str(ROOT / "tools/recall"))
    import corpus

    return {
        length: corpus.make_document(length, OWN_SEED, QUESTIONS)
        for length in LENGTHS
    }


def cases(shared_models=None):
    """The model of the tree; with a folder also the one that lies there."""
    found = [Case("own", ROOT / "models/recall.gguf", own_documents)]
    if shared_models and (shared_models / "recall.gguf").exists():
        path = shared_models / "recall.gguf"
        found.insert(0, Case("shared", path, shared_documents))
    return found


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
