// SPDX-License-Identifier: Apache-2.0
// What the process may use of the machine: CPUs and memory, control groups included.
#ifndef INST_HOST_ENGINE_SYSTEM_H
#define INST_HOST_ENGINE_SYSTEM_H

#include <stdint.h>

// CPUs that this process may run on, at least 1: those of its affinity, no more than the least
// quota of the CPU control groups (v1 or v2) above it allows, rounded up.
uint32_t system_cpus(void);
// Bytes that could be allocated now without swapping: the least of MemAvailable and of what is left
// in every memory control group (v1 or v2) above the process. At least 1 MiB.
uint64_t system_memory_available(void);

// The same with other roots, for tests: "/proc" and "/sys/fs/cgroup" in the functions above.
uint64_t system_memory_available_in(const char *proc, const char *cgroup);
uint64_t system_cpu_quota_in(const char *proc, const char *cgroup); // UINT64_MAX: none

#endif
