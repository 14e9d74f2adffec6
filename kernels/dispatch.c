// SPDX-License-Identifier: Apache-2.0
// Chooses a kernel set: by the CPU's features on x86-64, at compile time elsewhere. Keeps no
// state: the answer is the same however often it is asked.
#include "kernels/sets.h"

#include <string.h>

// INST_KERNELS_X86, INST_KERNELS_AVX512 and INST_KERNELS_NEON come from kernels/CMakeLists.txt with
// the files built.
#ifdef INST_KERNELS_X86
#include <cpuid.h>

static int machine_level(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C))
        return 0;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return 0;
#ifndef INST_KERNELS_AVX512
    return 1;
#else
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return 1;
    return __builtin_cpu_supports("avx512vnni") ? 3 : 2;
#endif
}

static const struct kernels *const sets[] = {
    &kernels_reference,
    &kernels_avx2,
#ifdef INST_KERNELS_AVX512
    &kernels_avx512,
    &kernels_avx512vnni,
#endif
};
static const char *const names[][5] = {{"reference"},
                                       {"reference", "avx2"},
                                       {"reference", "avx2", "avx512"},
                                       {"reference", "avx2", "avx512", "avx512vnni"}};
#else
#ifdef INST_KERNELS_NEON
static const struct kernels *const sets[] = {&kernels_reference, &kernels_neon};
static const char *const names[][3] = {{"reference"}, {"reference", "neon"}};
#else
static const struct kernels *const sets[] = {&kernels_reference};
static const char *const names[][2] = {{"reference"}};
#endif
static int machine_level(void)
{
    return (int)(sizeof sets / sizeof sets[0]) - 1;
}
#endif

// Asking a CPU what it can takes long in a virtual machine, and always gives the same answer.
const struct kernels *kernels_best(void)
{
    static const struct kernels *best;
    const struct kernels *known = __atomic_load_n(&best, __ATOMIC_RELAXED);
    if (!known) {
        known = sets[machine_level()];
        __atomic_store_n(&best, known, __ATOMIC_RELAXED);
    }
    return known;
}

const struct kernels *kernels_by_name(const char *name)
{
    for (int i = machine_level(); i >= 0; i--)
        if (strcmp(sets[i]->name, name) == 0)
            return sets[i];
    return NULL;
}

const char *const *kernels_available(void)
{
    return names[machine_level()];
}
