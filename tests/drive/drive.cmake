set(DRIVE_LIBS inst_drive inst_kernels inst_base)
inst_test(NAME drive/attention SOURCES drive_attention.c drive_harness.c LIBS ${DRIVE_LIBS})
inst_test(NAME drive/commands SOURCES drive_commands.c drive_harness.c LIBS ${DRIVE_LIBS})
