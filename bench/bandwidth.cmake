# Bandwidth of the drive alone, beside the device's or the memory's own.
add_executable(bench_bandwidth ${CMAKE_CURRENT_LIST_DIR}/bandwidth.c ${CMAKE_CURRENT_LIST_DIR}/measure.c
  ${CMAKE_CURRENT_LIST_DIR}/bandwidth_raw.c)
target_link_libraries(bench_bandwidth PRIVATE inst_link inst_drive inst_kernels inst_base)
target_compile_definitions(bench_bandwidth PRIVATE ${INST_FLASH_DEFINITIONS})
