// SPDX-License-Identifier: Apache-2.0
#include "drive/flash/nand_profile.h"
#include "base/checked.h"

#include <string.h>

static int read_flash(struct nand_profile *out, const struct profile *profile, struct inst_msg *msg)
{
    struct nand_params *p = &out->time;
    // Bounds are the model's (nand_params_check).
    const struct profile_field fields[] = {
        {"channels", PROFILE_COUNT, &p->channels, 0, 0, false},
        {"dies", PROFILE_COUNT, &p->dies, 0, 0, false},
        {"planes", PROFILE_COUNT, &p->planes, 0, 0, false},
        {"page", PROFILE_BYTES, &p->page_bytes, 0, 0, false},
        {"spare", PROFILE_BYTES, &p->spare_bytes, 0, 0, true},
        {"pages_per_block", PROFILE_COUNT, &p->pages_per_block, 0, 0, false},
        {"size", PROFILE_BYTES, &out->size_bytes, 1, 0, false},
        {"read", PROFILE_NS, &p->read_ns, 0, 0, false},
        {"program", PROFILE_NS, &p->program_ns, 0, 0, false},
        {"erase", PROFILE_NS, &p->erase_ns, 0, 0, false},
        {"command", PROFILE_NS, &p->command_ns, 0, 0, true},
        {"bus", PROFILE_RATE, &p->bus, 0, 0, false},
        {"port", PROFILE_RATE, &p->port, 0, 0, true},
        {"registers", PROFILE_COUNT, &p->registers, 0, 0, true},
        {"suspends", PROFILE_COUNT, &p->suspends, 0, 0, true},
        {"suspend", PROFILE_NS, &p->suspend_ns, 0, 0, true},
    };
    p->registers = 1;
    int err = profile_read(profile, "flash", fields, sizeof fields / sizeof *fields, msg);
    if (err)
        return err;
    struct inst_msg why = {0};
    err = nand_params_check(p, &why);
    return err ? inst_fail(msg, err, "%s: [flash]: %s", profile->place, why.text) : 0;
}

static int read_wear(struct nand_wear_params *w, const struct profile *profile,
                     struct inst_msg *msg)
{
    enum { RETRIES_MOST = 8 };
    const struct profile_field fields[] = {
        {"endurance", PROFILE_COUNT, &w->endurance, 1, 1e6, false},
        {"bad_blocks", PROFILE_NUMBER, &w->bad_blocks, 0, 0.5, true},
        {"grown_bad", PROFILE_NUMBER, &w->grown_bad, 0, 1, true},
        {"spare_blocks", PROFILE_NUMBER, &w->spare_blocks, 0, 0.5, true},
        {"retries_fresh", PROFILE_NUMBER, &w->retries_fresh, 0, RETRIES_MOST, true},
        {"retries_worn", PROFILE_NUMBER, &w->retries_worn, 0, RETRIES_MOST, true},
        {"retries_aged", PROFILE_NUMBER, &w->retries_aged, 0, RETRIES_MOST, true},
        {"retention", PROFILE_NS, &w->retention_ns, 1, 0, true},
        {"retries_most", PROFILE_COUNT, &w->retries_most, 1, 15, true},
    };
    int err = profile_read(profile, "wear", fields, sizeof fields / sizeof *fields, msg);
    if (!err && w->retries_aged > 0 && !w->retention_ns)
        return inst_fail(msg, INST_EINVAL, "%s: [wear]: retries_aged needs retention",
                         profile->place);
    if (!err && w->bad_blocks > w->spare_blocks)
        return inst_fail(msg, INST_EINVAL,
                         "%s: [wear]: spare_blocks is less than bad_blocks: they would not do",
                         profile->place);
    return err;
}

int nand_profile_read(struct nand_profile *out, const struct profile *profile, struct inst_msg *msg)
{
    memset(out, 0, sizeof *out);
    int err = read_flash(out, profile, msg);
    out->has_wear = profile_has(profile, "wear");
    if (!err && out->has_wear)
        err = read_wear(&out->wear, profile, msg);
    struct flash_geometry geometry;
    return err ? err : nand_profile_geometry(out, 0, &geometry, msg);
}

int nand_profile_geometry(const struct nand_profile *profile, uint64_t size_bytes,
                          struct flash_geometry *out, struct inst_msg *msg)
{
    const struct nand_params *p = &profile->time;
    uint32_t units = nand_units(p);
    uint64_t size = size_bytes ? size_bytes : profile->size_bytes;
    uint64_t row = p->page_bytes * p->pages_per_block * units; // below 2^46
    if (size < row)
        return inst_fail(msg, INST_EINVAL,
                         "NAND of %llu bytes: one block of each of %u planes are %llu",
                         (unsigned long long)size, units, (unsigned long long)row);
    *out = (struct flash_geometry){
        .page_bytes = (uint32_t)p->page_bytes,
        .pages_per_block = (uint32_t)p->pages_per_block,
        .blocks = size / row * units,
        .dies = units,
        .channels = (uint32_t)p->channels,
        // A request takes no more here than its pages do.
        .read_bytes = (uint32_t)p->page_bytes,
        .oob = p->spare_bytes >= FLASH_OOB_BYTES,
    };
    return flash_geometry_check(out, msg);
}
