# What drives a drive into every order of events: tests and the fuzz target share it.
set(INTERLEAVE_SOURCES interleave_harness.c interleave_draw.c interleave_judge.c interleave_shadow.c
    interleave_model.c interleave_port.c interleave_known.c chaos_flash.c late_engine.c)
