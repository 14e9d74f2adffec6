# Tests of host/engine: plan, sync, generations, sampler, system; on the fake drive and on the real one.
set(ENGINE_TEST_LIBS inst_host inst_link inst_drive inst_kernels inst_base)
foreach(name micro plan reply sampler system)
  inst_test(NAME host/engine_${name} SOURCES engine_${name}.c LIBS ${ENGINE_TEST_LIBS})
endforeach()
inst_rig(engine_rig SOURCES fake_drive.c LIBS ${ENGINE_TEST_LIBS})
foreach(name api architectures array audit late loss generate kv numbers preflight sync step share stories sparf faults cut pages nand)
  inst_test(NAME host/engine_${name} SOURCES engine_${name}.c LIBS engine_rig)
endforeach()
foreach(name architectures array loss step stories sparf faults cut)
  inst_more(host/engine_${name} test_host_engine_${name})
endforeach()
# What llama.cpp wrote is kept as JSON (CJSON_*: model.cmake).
target_include_directories(test_host_engine_stories SYSTEM PRIVATE ${CJSON_INCLUDE})
target_link_libraries(test_host_engine_stories PRIVATE ${CJSON_LIBRARY})
inst_fast(host/engine_micro host/engine_plan host/engine_reply host/engine_sampler host/engine_system
  host/engine_numbers host/engine_preflight host/engine_sync)
# The same tests, computed by a device that does its work later and elsewhere (compute_async.h).
inst_rig(engine_async_rig SOURCES compute_async.c LIBS engine_rig)
foreach(name architectures array loss generate numbers sync step share stories sparf faults cut)
  inst_test(NAME host/engine_on_async_${name} SOURCES engine_${name}.c LIBS engine_async_rig)
  target_compile_options(test_host_engine_on_async_${name} PRIVATE
    -include ${CMAKE_CURRENT_SOURCE_DIR}/on_async.h)
endforeach()
foreach(name architectures array loss generate sync stories sparf faults cut share)
  set_property(TEST host/engine_on_async_${name} APPEND PROPERTY LABELS more)
endforeach()
target_include_directories(test_host_engine_on_async_stories SYSTEM PRIVATE ${CJSON_INCLUDE})
target_link_libraries(test_host_engine_on_async_stories PRIVATE ${CJSON_LIBRARY})
inst_test(NAME host/engine_async SOURCES engine_async.c LIBS engine_async_rig)
inst_long(host/engine_generate host/engine_on_async_step host/engine_sync)
inst_fast(host/engine_async)
# A device that computes elsewhere is one thread more; faults and joining prompts over all of them.
inst_threads(host/engine_api host/engine_async host/engine_on_async_step host/engine_sync
  host/engine_faults)
