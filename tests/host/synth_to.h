// SPDX-License-Identifier: Apache-2.0
// synth_write to a path, for tests.
#ifndef INST_TESTS_HOST_SYNTH_TO_H
#define INST_TESTS_HOST_SYNTH_TO_H

#include "host/model/synth.h"

static inline int synth_to(const struct synth_options *o, const char *path, struct inst_msg *msg)
{
    FILE *file = fopen(path, "wb");
    if (!file)
        return inst_fail(msg, INST_EIO, "%s cannot be written", path);
    int rc = synth_write(o, file, path, msg);
    fclose(file);
    return rc;
}

#endif
