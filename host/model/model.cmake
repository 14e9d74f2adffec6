# Sources of the model half of the host (included by host/CMakeLists.txt).
set(INST_HOST_MODEL_SOURCES
  model/config.c model/gguf.c model/gguf_open.c model/gguf_parse.c model/gguf_split.c model/gguf_write.c
  model/rope.c model/synth.c model/template.c model/template_known.c model/template_text.c model/text.c
  model/tokenizer.c model/tokenizer_bpe.c model/tokenizer_names.c model/tokenizer_pre.c
  model/tokenizer_special.c model/tokenizer_spm.c model/tokenizer_vocab.c model/unicode.c)
