// SPDX-License-Identifier: Apache-2.0
#include "sim/machine.h"

#include <math.h>

#define GPU(field, min, max)                                                                       \
    {                                                                                              \
#field, offsetof(struct gpu, field), min, max                                              \
    }
#define HOST(field, min, max)                                                                      \
    {                                                                                              \
#field, offsetof(struct host, field), min, max                                             \
    }
#define CSD(field, min, max)                                                                       \
    {                                                                                              \
#field, offsetof(struct csd, field), min, max                                              \
    }

const struct machine_field gpu_fields[] = {
    GPU(vram_bytes, 1e6, 1e15),    GPU(vram_rate, 1e6, 1e15),
    GPU(vram_efficiency, 0.01, 1), GPU(flops, 1e6, 1e18),
    GPU(flops_efficiency, .01, 1), GPU(link_rate, 1e6, 1e15),
    GPU(usable, 0.01, 1),          {NULL, 0, 0, 0},
};
const struct machine_field host_fields[] = {
    HOST(dram_bytes, 1e6, 1e16),
    HOST(system_bytes, 0, 1e15),
    {NULL, 0, 0, 0},
};
const struct machine_field csd_fields[] = {
    CSD(flash_channels, 1, 64),
    CSD(channel_rate, 1e6, 1e12),
    CSD(page_bytes, 512, 1 << 20),
    CSD(read_ns, 0, 1e9),
    CSD(dies_a_channel, 1, 256),
    CSD(program_rate, 1e3, 1e13),
    CSD(link_rate, 1e6, 1e13),
    CSD(capacity_bytes, 1e6, 1e17),
    CSD(cycles, 1, 1e7),
    CSD(dram_bytes, 1e6, 1e15),
    CSD(kernels, 1, 64),
    CSD(gemv_units, 1, 4096),
    CSD(gemv_flops, 1e6, 1e15),
    CSD(softmax_units, 1, 4096),
    CSD(softmax_rate, 1e3, 1e15),
    CSD(filter_rate, 1e6, 1e13),
    CSD(argtopk_rate, 1e3, 1e15),
    CSD(cores, 1, 256),
    CSD(lookup_ns, 0, 1e6),
    CSD(staging_bytes, 4096, 1e9),
    CSD(overlap, 0, 1),
    {NULL, 0, 0, 0},
};

static int check_part(const void *part, const struct machine_field *fields, const char *what,
                      struct inst_msg *msg)
{
    for (const struct machine_field *f = fields; f->name; f++) {
        double v = *(const double *)((const char *)part + f->offset);
        if (!(v >= f->min && v <= f->max))
            return inst_fail(msg, INST_EINVAL, "%s: %s = %g is out of range (%g to %g)", what,
                             f->name, v, f->min, f->max);
    }
    return 0;
}

int machine_check(const struct machine *m, struct inst_msg *msg)
{
    int err = check_part(&m->gpu, gpu_fields, "gpu", msg);
    if (!err)
        err = check_part(&m->host, host_fields, "host", msg);
    if (!err)
        err = check_part(&m->csd, csd_fields, "drive", msg);
    if (!err && m->host.system_bytes >= m->host.dram_bytes)
        err = inst_fail(msg, INST_EINVAL, "host: system_bytes leave nothing of dram_bytes");
    double whole[] = {m->csd.flash_channels, m->csd.kernels, m->csd.gemv_units,
                      m->csd.softmax_units,  m->csd.cores,   m->csd.page_bytes,
                      m->csd.overlap};
    for (size_t i = 0; i < sizeof whole / sizeof *whole && !err; i++)
        if (whole[i] != floor(whole[i]))
            err = inst_fail(msg, INST_EINVAL, "drive: %g channels, units or bytes", whole[i]);
    if (!err && (!m->gpus || m->gpus > 1024 || !m->drives || m->drives > 100000))
        err = inst_fail(msg, INST_EINVAL, "%u GPUs and %u drives: 1 to 1024 and 1 to 100000",
                        m->gpus, m->drives);
    return err;
}
