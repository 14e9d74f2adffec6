// SPDX-License-Identifier: Apache-2.0
// FlexGen's model is always OPT-1.3B with weights made up; its KV lies on the disk as a whole, cold
// before each load, and its context is made up too, so that only decode takes time.
#include "cmd/bench/flexgen.h"
#include "cmd/bench/rival.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OWN_ARGS = 20, BATCH_AT_ONCE = 8 };

static double number(const cJSON *row, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(row, name);
    return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

static int parse(struct flexgen *f, const char *text, struct flexgen_turn *turn)
{
    cJSON *row = cJSON_Parse(text);
    double rate = number(row, "decode_tok_s");
    int code = 0;
    if (!(rate > 0) || !isfinite(rate)) {
        code = fail(EXIT_FAILED, "%s did not print a line of JSON with decode_tok_s", f->path);
    } else if (fabs(number(row, "batch") - turn->batch) > 0 ||
               fabs(number(row, "prompt") - (double)turn->depth) > 0) {
        code = fail(EXIT_FAILED, "%s measured a batch of %.0f x %.0f tokens, not %u x %llu",
                    f->path, number(row, "batch"), number(row, "prompt"), turn->batch,
                    (unsigned long long)turn->depth);
    } else {
        const cJSON *peer = cJSON_GetObjectItemCaseSensitive(row, "peer");
        snprintf(f->build, sizeof f->build, "%s",
                 cJSON_IsString(peer) ? peer->valuestring : "an unknown build");
        turn->step = turn->batch / rate;
        turn->read_mb = number(row, "disk_read_MB_step");
    }
    cJSON_Delete(row);
    return code;
}

// Where the CPU has no arithmetic for it, bf16 makes FlexGen slower than fp32 does.
static bool cpu_has_bf16(void)
{
    char *line = NULL;
    size_t room = 0;
    bool found = false;
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && !found && getline(&line, &room, f) > 0)
        found =
            (!strncmp(line, "flags", 5) || !strncmp(line, "Features", 8)) && strstr(line, "bf16");
    free(line);
    if (f)
        fclose(f);
    return found;
}

int flexgen_turn(struct flexgen *f, struct flexgen_turn *turn)
{
    char prompt[24], gen[16], batch[16], batches[16];
    uint32_t at_once = turn->batch % BATCH_AT_ONCE ? turn->batch : BATCH_AT_ONCE;
    snprintf(prompt, sizeof prompt, "%llu", (unsigned long long)turn->depth);
    snprintf(gen, sizeof gen, "%u", turn->steps + 1); // its prefill makes the first one
    snprintf(batch, sizeof batch, "%u", at_once);
    snprintf(batches, sizeof batches, "%u", turn->batch / at_once);
    const char *own[OWN_ARGS] = {f->path,
                                 f->directory,
                                 "--prompt-len",
                                 prompt,
                                 "--gen-len",
                                 gen,
                                 "--gpu-batch-size",
                                 batch,
                                 "--num-gpu-batches",
                                 batches,
                                 "--fg-cold",
                                 "--fg-fast-prefill",
                                 "--fg-dtype",
                                 cpu_has_bf16() ? "bf16" : "fp32"};
    size_t n = 14;
    if (turn->host_cache)
        own[n++] = "--cpu-cache-compute";
    const char **argv = calloc(n + f->extra->n + 1, sizeof *argv);
    if (!argv)
        return fail(EXIT_FAILED, "FlexGen: %s", strerror(errno));
    memcpy(argv, own, n * sizeof *argv);
    for (size_t i = 0; i < f->extra->n; i++)
        argv[n + i] = f->extra->items[i];
    char *text;
    int code = rival_run(argv, &text);
    if (!code)
        code = parse(f, text, turn);
    free(text);
    free(argv);
    return code;
}
