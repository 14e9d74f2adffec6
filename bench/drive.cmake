# Bandwidth of the drive alone, beside the device's or the memory's own.
add_executable(bench_drive ${CMAKE_CURRENT_LIST_DIR}/drive.c ${CMAKE_CURRENT_LIST_DIR}/measure.c
  ${CMAKE_CURRENT_LIST_DIR}/bandwidth_raw.c)
target_link_libraries(bench_drive PRIVATE inst_link inst_drive inst_kernels inst_base)
target_compile_definitions(bench_drive PRIVATE ${INST_FLASH_DEFINITIONS})
