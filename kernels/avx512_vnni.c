// SPDX-License-Identifier: Apache-2.0
// The AVX-512 set once more for CPUs with VNNI, whose integer products take one instruction instead
// of two.
#define SET_TABLE kernels_avx512vnni
#define SET_NAME  "avx512vnni"
#include "kernels/avx512.c"
