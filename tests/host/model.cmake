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
# Every code point; the whole of it takes a while.
target_link_options(test_host_model_token_points PRIVATE -Wl,--wrap=pcre2_compile_8)
target_include_directories(test_host_model_token_points SYSTEM PRIVATE ${PCRE2_INCLUDE})
set_tests_properties(host/model_token_points PROPERTIES TIMEOUT ${INST_SLOW})
add_test(NAME host/model_token_points_all COMMAND test_host_model_token_points all)
set_tests_properties(host/model_token_points_all PROPERTIES LABELS slow TIMEOUT ${INST_SLOW})
inst_fast(host/model_gguf host/model_gguf_split host/model_config host/model_bad host/model_bad_corpus
  host/model_tokenizer host/model_token_special host/model_text host/model_synth host/model_template
  host/model_tokens_golden)
