# Tests of the flash back ends and their wrappers.
foreach(test flash_conformance flash_ram flash_file flash_probe flash_wrappers nand_flash)
  inst_test(NAME drive/${test} SOURCES ${test}.c flash_harness.c
            LIBS inst_drive inst_kernels inst_base)
endforeach()
inst_test(NAME drive/nand_profile SOURCES nand_profile.c LIBS inst_drive inst_kernels inst_base)
inst_test(NAME drive/nand_time SOURCES nand_time.c LIBS inst_drive inst_kernels inst_base)

# The same conformance over a system that moves less than it was asked to.
inst_test(NAME drive/flash_short SOURCES flash_conformance.c flash_short.c flash_harness.c
          LIBS inst_drive inst_kernels inst_base)
target_compile_definitions(test_drive_flash_short PRIVATE SHORT_TRANSFERS)
target_link_options(test_drive_flash_short PRIVATE -Wl,--wrap=preadv -Wl,--wrap=pwritev)

# A ring that refuses submissions for a while.
if("HAVE_LIBURING" IN_LIST INST_FLASH_DEFINITIONS)
  target_compile_definitions(test_drive_flash_file PRIVATE HAVE_LIBURING)
  target_link_options(test_drive_flash_file PRIVATE -Wl,--wrap=io_uring_submit)
endif()
inst_fast(drive/nand_flash drive/nand_profile drive/nand_time drive/flash_ram drive/flash_file drive/flash_wrappers)
# Of the conformance the back ends that have threads.
inst_threads(drive/flash_conformance drive/flash_file drive/flash_probe)
