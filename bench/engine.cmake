# The engine's own: bench_step, decode while a prompt comes in.
add_executable(bench_step ${CMAKE_CURRENT_LIST_DIR}/step.c ${CMAKE_CURRENT_LIST_DIR}/measure.c)
target_link_libraries(bench_step PRIVATE inst_host inst_link inst_drive inst_kernels inst_base)
