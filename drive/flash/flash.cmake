# The flash back ends; included by the CMakeLists.txt above.
#   add_library(inst_drive OBJECT ... ${INST_FLASH_SOURCES})
#   target_link_libraries(inst_drive PUBLIC ... ${INST_FLASH_LIBS})
#   target_include_directories(inst_drive SYSTEM PRIVATE ${INST_FLASH_INCLUDES})
#   target_compile_definitions(inst_drive PRIVATE ${INST_FLASH_DEFINITIONS})
# Without liburing the file back end falls back to threads.
option(INST_LIBURING "use liburing where it is found" ON)
set(INST_FLASH_SOURCES flash/common.c flash/null.c flash/ram.c flash/file.c flash/file_uring.c
  flash/file_threads.c flash/probe.c flash/fault.c flash/check.c flash/trace.c
  flash/nand_time.c flash/nand_profile.c flash/nand_wear.c flash/nand_flash.c)
set(INST_FLASH_LIBS Threads::Threads)
set(INST_FLASH_INCLUDES)
set(INST_FLASH_DEFINITIONS)
if(INST_LIBURING)
  find_path(LIBURING_INCLUDE liburing.h)
  find_library(LIBURING_LIBRARY uring)
  if(LIBURING_INCLUDE AND LIBURING_LIBRARY)
    list(APPEND INST_FLASH_LIBS ${LIBURING_LIBRARY})
    list(APPEND INST_FLASH_INCLUDES ${LIBURING_INCLUDE})
    list(APPEND INST_FLASH_DEFINITIONS HAVE_LIBURING)
  endif()
endif()
