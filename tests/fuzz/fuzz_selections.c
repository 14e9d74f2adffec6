// SPDX-License-Identifier: Apache-2.0
// Any bytes as recorded selections: refused with a message, or whole numbers that fit together.
#include "sim/selections.h"

#include <stdlib.h>
#include <string.h>

static void count(void *arg, uint32_t page)
{
    (void)page;
    ++*(uint64_t *)arg;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct inst_msg msg = {0};
    struct selections *t;
    char *text = malloc(bytes + 1); // exact, so that a byte too many is seen
    if (!text)
        return 0;
    memcpy(text, data, bytes);
    int err = selections_parse(&t, "fuzz", text, bytes, &msg);
    free(text);
    if (err) {
        if (t || !*msg.text)
            abort();
        return 0;
    }
    struct selections_about about;
    struct selections_pages pages;
    selections_about(t, &about);
    if (!(about.token_share >= 0 && about.token_share <= 1) || !about.records)
        abort();
    // A unit of more pages than that takes a second.
    if (about.tokens_most < 1 << 16 && !selections_pages(t, &pages, &msg) &&
        pages.token > UINT64_C(1) << 40)
        abort();
    struct draw draw = {.state = bytes};
    uint64_t told = 0, chosen[4];
    uint32_t channels[128];
    selections_draw_pages(t, &draw, 100, 16, count, &told);
    selections_draw_channels(t, &draw, 128, 2, count, &told);
    selections_replay_tokens(t, bytes, 200, chosen);
    selections_replay_channels(t, bytes, 128, channels, 128);
    if (told > 164)
        abort();
    selections_free(t);
    return 0;
}
