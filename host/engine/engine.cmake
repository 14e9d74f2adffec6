set(INST_HOST_ENGINE_SOURCES
  compute/cpu.c
  engine/chat.c
  engine/decode.c
  engine/engine.c
  engine/layers.c engine/numbers.c
  engine/plan.c
  engine/port.c
  engine/prefill.c
  engine/sampler.c
  engine/session.c
  engine/store.c
  engine/system.c)
