// SPDX-License-Identifier: Apache-2.0
// Machines from profiles (base/profile.h). Of a drive's flash only what bounds reads in bulk is
// looked at: rate and number of the flash channels, time and parallelism of the array.
#include "drive/engine_model.h"
#include "drive/flash/nand_profile.h"
#include "sim/machine.h"

#define FIELDS(table) table, sizeof table / sizeof *table

static int load_gpu(struct gpu *g, const struct profile *p, struct inst_msg *msg)
{
    uint64_t memory, bandwidth, link;
    const struct profile_field fields[] = {
        {"memory", PROFILE_BYTES, &memory, 0, 0, false},
        {"bandwidth", PROFILE_RATE, &bandwidth, 0, 0, false},
        {"bandwidth_share", PROFILE_NUMBER, &g->vram_efficiency, 0, 0, false},
        {"flops", PROFILE_FLOPS, &g->flops, 0, 0, false},
        {"flops_share", PROFILE_NUMBER, &g->flops_efficiency, 0, 0, false},
        {"link", PROFILE_RATE, &link, 0, 0, false},
        {"usable", PROFILE_NUMBER, &g->usable, 0, 0, false},
    };
    int err = profile_read(p, "gpu", FIELDS(fields), msg);
    if (err)
        return err;
    g->vram_bytes = (double)memory;
    g->vram_rate = (double)bandwidth;
    g->link_rate = (double)link;
    return 0;
}

static int load_host(struct host *h, const struct profile *p, struct inst_msg *msg)
{
    uint64_t memory, system;
    const struct profile_field fields[] = {
        {"memory", PROFILE_BYTES, &memory, 0, 0, false},
        {"system", PROFILE_BYTES, &system, 0, 0, false},
    };
    int err = profile_read(p, "host", FIELDS(fields), msg);
    if (err)
        return err;
    h->dram_bytes = (double)memory;
    h->system_bytes = (double)system;
    return 0;
}

static int load_flash(struct csd *c, const struct profile *p, struct inst_msg *msg)
{
    struct nand_profile nand;
    int err = nand_profile_read(&nand, p, msg);
    if (err)
        return err;
    if (!nand.has_wear)
        return inst_fail(msg, INST_EINVAL, "%s: no [wear]", p->place);
    const struct nand_params *n = &nand.time;
    c->flash_channels = (double)n->channels;
    c->channel_rate = (double)n->bus;
    // Everything that the engine reads comes through the port where there is one.
    if (n->port && (double)n->port < c->flash_channels * c->channel_rate)
        c->channel_rate = (double)n->port / c->flash_channels;
    c->page_bytes = (double)n->page_bytes;
    c->dies_a_channel = (double)(n->dies * n->planes);
    c->capacity_bytes = (double)nand.size_bytes;
    c->read_ns = (double)n->read_ns;
    c->cycles = (double)nand.wear.endurance;
    return 0;
}

static int load_engine(struct csd *c, const struct profile *p, struct inst_msg *msg)
{
    struct engine_params e;
    uint64_t cores, lookup, write, link, dram;
    const struct profile_field controller[] = {
        {"cores", PROFILE_COUNT, &cores, 0, 0, false},
        {"lookup", PROFILE_NS, &lookup, 0, 0, false},
        {"write", PROFILE_RATE, &write, 0, 0, false},
    };
    const struct profile_field memory[] = {{"size", PROFILE_BYTES, &dram, 0, 0, false}};
    const struct profile_field port[] = {{"rate", PROFILE_RATE, &link, 0, 0, false}};
    int err = engine_params_read(&e, p, msg);
    err = err ? err : profile_read(p, "controller", FIELDS(controller), msg);
    err = err ? err : profile_read(p, "dram", FIELDS(memory), msg);
    err = err ? err : profile_read(p, "link", FIELDS(port), msg);
    if (err)
        return err;
    c->kernels = (double)e.kernels;
    c->gemv_units = (double)e.gemv_units;
    c->gemv_flops = e.gemv;
    c->softmax_units = (double)e.softmax_units;
    c->softmax_rate = e.softmax;
    c->filter_rate = (double)e.filter;
    c->argtopk_rate = e.argtopk;
    c->staging_bytes = (double)e.staging;
    c->overlap = (double)e.overlap;
    c->cores = (double)cores;
    c->lookup_ns = (double)lookup;
    c->program_rate = (double)write;
    c->dram_bytes = (double)dram;
    c->link_rate = (double)link;
    return 0;
}

int machine_load(struct machine *m, const char *gpu, const char *host, const char *drive,
                 struct inst_msg *msg)
{
    struct profile p;
    int err = profile_open(&p, gpu, msg);
    err = err ? err : load_gpu(&m->gpu, &p, msg);
    err = err ? err : profile_open(&p, host, msg);
    err = err ? err : load_host(&m->host, &p, msg);
    err = err ? err : profile_open(&p, drive, msg);
    err = err ? err : load_flash(&m->csd, &p, msg);
    err = err ? err : load_engine(&m->csd, &p, msg);
    return err;
}
