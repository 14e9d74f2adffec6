"""Writes the recall model as a GGUF file and reads it back."""

import gguf
import numpy
import torch

import model as recall
import vocabulary

DESCRIPTION = (
    "A 2.8 M parameter llama that recalls facts from long documents, trained"
    " by tools/recall/train.py on text which that script makes up."
)


def _add_header(writer, config):
    writer.add_name("InstInfer recall")
    writer.add_version("1.0")
    writer.add_description(DESCRIPTION)
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.epsilon)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_vocab_size(config.vocabulary)


def _add_vocabulary(writer):
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece.text for piece in vocabulary.PIECES])
    writer.add_token_scores([piece.score for piece in vocabulary.PIECES])
    writer.add_token_types([piece.type for piece in vocabulary.PIECES])
    writer.add_bos_token_id(vocabulary.BOS_ID)
    writer.add_eos_token_id(vocabulary.EOS_ID)
    writer.add_unk_token_id(vocabulary.UNK_ID)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)


def write(path, model):
    """Matrices as F16, vectors as F32, as llama.cpp wants them."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_header(writer, model.config)
    _add_vocabulary(writer)
    for name, tensor in model.tensors().items():
        kind = numpy.float32 if tensor.ndim == 1 else numpy.float16
        writer.add_tensor(name, tensor.detach().numpy().astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path):
    """The model of a file that `write` made, with its rounded weights."""
    named = {t.name: t for t in gguf.GGUFReader(path).tensors}
    layers = sum(name.endswith(".attn_q.weight") for name in named)
    model = recall.Model(recall.Config(len(vocabulary.PIECES), layers))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            data = numpy.array(named[name].data, dtype=numpy.float32)
            parameter.copy_(torch.from_numpy(data).view(parameter.shape))
    return model
