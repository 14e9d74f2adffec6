#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# neon.sh CC QEMU SOURCE_DIR WORK_DIR KERNELS_HASH: builds kernels_hash for AArch64, runs its NEON
# set under QEMU and compares every hash with the plain C reference of this machine.
# INST_WERROR: empty, or -Werror.
set -eu
cc=$1 qemu=$2 source=$3 work=$4 native=$5
"$cc" -std=gnu11 -O2 -Wall -Wextra -Wconversion ${INST_WERROR:-} -ffp-contract=off -fno-math-errno \
    -D_GNU_SOURCE -DINST_KERNELS_NEON -I"$source" -static -o "$work/kernels_hash_aarch64" \
    "$source"/tests/kernels/hash_main.c "$source"/tests/kernels/cases.c \
    "$source"/tests/kernels/cases_kv.c "$source"/tests/kernels/cases_sparf.c "$source"/kernels/transpose.c "$source"/kernels/kv.c \
    "$source"/kernels/neon.c "$source"/kernels/reference.c "$source"/kernels/dispatch.c \
    "$source"/kernels/tensor_type.c -lm
"$native" reference >"$work/hash_native.txt"
"$qemu" "$work/kernels_hash_aarch64" neon >"$work/hash_neon.txt"
lines=$(wc -l <"$work/hash_native.txt")
if [ "$lines" -lt 1000 ] || ! diff "$work/hash_native.txt" "$work/hash_neon.txt" >"$work/hash_diff.txt"
then
    echo "NEON differs from the reference (or too few cases: $lines):"
    head -n 20 "$work/hash_diff.txt"
    exit 1
fi
echo "NEON: $lines cases, bits equal to the reference"
