// SPDX-License-Identifier: Apache-2.0
// What every kind of link shares: one command from submit to completion.
#include "link/link.h"
#include "base/clock.h"

#include <stdalign.h>
#include <string.h>

enum { WAIT_NS = 100 * 1000 * 1000, STAT_S = 2, CALL_S = 600 };
static const uint64_t second_ns = 1000000000;

static int call(struct link *link, const struct command *command, const void *table, void *data,
                uint64_t *result, uint64_t limit_ns, struct inst_msg *msg)
{
    struct completion done;
    uint64_t end = clock_ns() + limit_ns;
    int err;
    while ((err = link->ops->submit(link, command, table, data)) == INST_ENORESOURCE &&
           clock_ns() < end)
        if (link->ops->poll(link, &done, 1, WAIT_NS))
            return inst_fail(msg, INST_EINTERNAL, "%s: another command was in flight",
                             opcode_name(command->opcode));
    if (err)
        return inst_fail(msg, err, "%s: %s", opcode_name(command->opcode), inst_status_text(err));
    while (!link->ops->poll(link, &done, 1, WAIT_NS)) {
        if (clock_ns() < end)
            continue;
        link->ops->abort(link);
        return inst_fail(msg, INST_ETIMEOUT, "%s: no answer in %.3g s",
                         opcode_name(command->opcode), 1e-9 * (double)limit_ns);
    }
    if (done.cid != command->cid)
        return inst_fail(msg, INST_EINTERNAL, "%s: the completion of another command came back",
                         opcode_name(command->opcode));
    if (done.status)
        return inst_fail(msg, done.status, "%s: %s", opcode_name(command->opcode),
                         *done.text ? done.text : inst_status_text(done.status));
    if (result)
        *result = done.result;
    return 0;
}

int link_call(struct link *link, const struct command *command, const void *table, void *data,
              uint64_t *result, struct inst_msg *msg)
{
    return call(link, command, table, data, result, CALL_S * second_ns, msg);
}

int link_stat(struct link *link, struct drive_stats *stats, struct inst_msg *msg)
{
    alignas(64) unsigned char table[STAT_TABLE_BYTES];
    struct command stat = {.opcode = OP_STAT, .length = sizeof table};
    int err = call(link, &stat, NULL, table, NULL, STAT_S * second_ns, msg);
    if (!err && stats_decode(stats, table, sizeof table))
        err = inst_fail(msg, INST_EIO, "the drive's statistics are malformed");
    return err;
}
