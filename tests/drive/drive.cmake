set(DRIVE_LIBS inst_drive inst_kernels inst_base)
inst_test(NAME drive/slot SOURCES drive_slot.c LIBS ${DRIVE_LIBS})
inst_test(NAME drive/attention SOURCES drive_attention.c drive_harness.c LIBS ${DRIVE_LIBS})
inst_test(NAME drive/commands SOURCES drive_commands.c drive_harness.c LIBS ${DRIVE_LIBS})
inst_test(NAME drive/order SOURCES drive_order.c drive_harness.c LIBS ${DRIVE_LIBS})
inst_test(NAME drive/time SOURCES drive_time.c drive_harness.c LIBS ${DRIVE_LIBS})
inst_test(NAME drive/cache SOURCES drive_cache.c drive_harness.c flash_harness.c LIBS ${DRIVE_LIBS} m)
inst_test(NAME drive/segment SOURCES ftl_segment.c LIBS ${DRIVE_LIBS})
inst_test(NAME drive/full SOURCES drive_full.c drive_harness.c LIBS ${DRIVE_LIBS})
inst_test(NAME drive/tickets SOURCES drive_tickets.c drive_harness.c LIBS ${DRIVE_LIBS})
inst_test(NAME drive/many SOURCES drive_many.c drive_harness.c LIBS ${DRIVE_LIBS})
inst_test(NAME drive/refused SOURCES drive_refused.c drive_harness.c LIBS ${DRIVE_LIBS})
inst_test(NAME drive/forks SOURCES drive_forks.c drive_harness.c LIBS ${DRIVE_LIBS})
inst_test(NAME drive/map SOURCES ftl_map.c LIBS ${DRIVE_LIBS})
inst_test(NAME drive/reclaim SOURCES drive_reclaim.c drive_harness.c LIBS ${DRIVE_LIBS})
# Two million pages; the other versions are the same code. By hand: test_drive_churn 10000000.
inst_test(NAME drive/churn SOURCES drive_churn.c drive_harness.c LIBS ${DRIVE_LIBS})
add_test(NAME drive/churn_long COMMAND test_drive_churn 2000000)
set_tests_properties(drive/churn_long PROPERTIES LABELS slow TIMEOUT ${INST_SLOW})
inst_long(drive/churn_long drive/flash_conformance drive/flash_short)
inst_test(NAME drive/select SOURCES drive_select.c LIBS ${DRIVE_LIBS} m)
inst_test(NAME drive/sparf SOURCES drive_sparf.c sparf_scene.c drive_harness.c
          LIBS ${DRIVE_LIBS} inst_reference m)
inst_test(NAME drive/sparf_faults SOURCES drive_sparf_faults.c sparf_scene.c drive_harness.c
          LIBS ${DRIVE_LIBS} inst_reference m)
inst_test(NAME drive/method SOURCES drive_method.c method_mean.c late_engine.c drive_harness.c
          LIBS ${DRIVE_LIBS} m)
inst_test(NAME drive/engine SOURCES drive_engine.c late_engine.c sparf_scene.c drive_harness.c
          LIBS ${DRIVE_LIBS} inst_reference m)
foreach(name attention churn sparf sparf_faults)
  inst_more(drive/${name} test_drive_${name})
endforeach()
# Everything at once, in any order: see interleave_harness.h. Longer: test_drive_interleave --seeds N.
include(interleave.cmake)
inst_test(NAME drive/interleave SOURCES interleave.c ${INTERLEAVE_SOURCES} LIBS ${DRIVE_LIBS} m)
inst_test(NAME drive/interleave_faults SOURCES interleave_faults.c ${INTERLEAVE_SOURCES}
          LIBS ${DRIVE_LIBS} m)
inst_more(drive/interleave test_drive_interleave)
inst_fast(drive/slot drive/time drive/select drive/commands drive/full drive/reclaim drive/engine drive/interleave
          drive/interleave_faults)
