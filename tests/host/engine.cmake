# Tests of host/engine: plan, sync, generations, sampler, system; on the fake drive and on the real one.
set(ENGINE_TEST_LIBS inst_host inst_link inst_drive inst_kernels inst_base)
foreach(name micro plan reply sampler system)
  inst_test(NAME host/engine_${name} SOURCES engine_${name}.c LIBS ${ENGINE_TEST_LIBS})
endforeach()
inst_rig(engine_rig SOURCES fake_drive.c LIBS ${ENGINE_TEST_LIBS})
foreach(name api architectures array late loss generate numbers preflight sync step share stories sparf faults cut pages)
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
