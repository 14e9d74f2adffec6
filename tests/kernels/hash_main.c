// SPDX-License-Identifier: Apache-2.0
// Prints one line per case: its hash and name, for the set named by the argument (default: the
// best one). Two machines whose output is equal compute equal bits.
#include "cases.h"

#include <stdio.h>

static void print(void *arg, const char *name, uint64_t hash)
{
    (void)arg;
    printf("%016llx %s\n", (unsigned long long)hash, name);
}

int main(int argc, char **argv)
{
    const struct kernels *k = argc > 1 ? kernels_by_name(argv[1]) : kernels_best();
    if (!k) {
        fprintf(stderr, "kernels_hash: no set '%s' on this machine\n", argv[1]);
        return 1;
    }
    cases_run(k, print, NULL);
    return 0;
}
