# Tests of host/model: GGUF, configuration, tokenizer, text, synthetic models.
find_path(CJSON_INCLUDE cjson/cJSON.h REQUIRED)
find_library(CJSON_LIBRARY cjson REQUIRED)
set(MODEL_TEST_LIBS inst_host inst_link inst_drive inst_kernels inst_base)
foreach(name gguf gguf_split config bad tokenizer token_special text synth)
  inst_test(NAME host/model_${name} SOURCES model_${name}.c LIBS ${MODEL_TEST_LIBS})
endforeach()
foreach(name template template_known tokens_golden token_bpe token_points)
  inst_test(NAME host/model_${name} SOURCES model_${name}.c
    LIBS ${MODEL_TEST_LIBS} ${CJSON_LIBRARY})
  target_include_directories(test_host_model_${name} SYSTEM PRIVATE ${CJSON_INCLUDE})
endforeach()
add_test(NAME host/model_bad_corpus
  COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/bad/make_bad.py --check)
# Every code point, and no Unicode of the installed PCRE2.
target_link_options(test_host_model_token_points PRIVATE -Wl,--wrap=pcre2_compile_8)
target_include_directories(test_host_model_token_points SYSTEM PRIVATE ${PCRE2_INCLUDE})
inst_more(host/model_token_points test_host_model_token_points)
inst_fast(host/model_gguf host/model_gguf_split host/model_config host/model_bad host/model_bad_corpus
  host/model_tokenizer host/model_token_special host/model_text host/model_synth host/model_template
  host/model_token_points host/model_tokens_golden)
