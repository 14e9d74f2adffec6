# The kernels' own benchmarks: bench_matmul (beside oneDNN when it is there), bench_attention_kernel.
add_executable(bench_matmul ${CMAKE_CURRENT_LIST_DIR}/matmul.c ${CMAKE_CURRENT_LIST_DIR}/measure.c)
target_link_libraries(bench_matmul PRIVATE inst_kernels inst_base)
find_package(dnnl CONFIG QUIET)
find_package(OpenMP QUIET COMPONENTS C)
if(dnnl_FOUND AND OpenMP_C_FOUND)
  target_sources(bench_matmul PRIVATE ${CMAKE_CURRENT_LIST_DIR}/matmul_dnnl.c)
  # OpenMP only to tell oneDNN's runtime how many threads to use.
  target_link_libraries(bench_matmul PRIVATE DNNL::dnnl OpenMP::OpenMP_C)
  target_compile_definitions(bench_matmul PRIVATE INST_BENCH_DNNL)
endif()

add_executable(bench_attention_kernel ${CMAKE_CURRENT_LIST_DIR}/attention_kernel.c
  ${CMAKE_CURRENT_LIST_DIR}/measure.c)
target_link_libraries(bench_attention_kernel PRIVATE inst_kernels inst_base)
