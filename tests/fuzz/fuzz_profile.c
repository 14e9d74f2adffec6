// SPDX-License-Identifier: Apache-2.0
// Any text as a profile: what is refused says why in one line that names the place; what is
// accepted holds whole texts and numbers within the bounds that were asked for.
#include "base/profile.h"

#include <stdlib.h>
#include <string.h>

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void check_message(const struct inst_msg *msg)
{
    check(!strncmp(msg->text, "p:", 2) && !strchr(msg->text, '\n'));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct profile p;
    struct inst_msg msg = {0};
    int err = profile_parse(&p, "p", (const char *)data, size, &msg);
    if (err) {
        check(err == INST_EINVAL);
        check_message(&msg);
        return 0;
    }
    check(p.n && p.n <= PROFILE_ENTRIES_MAX);
    for (size_t i = 0; i < p.n; i++) {
        const struct profile_entry *e = &p.entries[i];
        check(e->line && memchr(e->key, 0, PROFILE_KEY_MAX) && memchr(e->value, 0, 80));
        check(profile_has(&p, e->section));
        for (int kind = PROFILE_COUNT; kind <= PROFILE_TEXT; kind++) {
            union {
                uint64_t whole;
                double number;
                const char *text;
            } out;
            struct profile_field field = {e->key, (enum profile_kind)kind, &out, 2, 1e9, true};
            msg.text[0] = 0;
            err = profile_read(&p, e->section, &field, 1, &msg);
            if (err)
                check_message(&msg);
            else if (kind <= PROFILE_RATE)
                check(out.whole >= 2 && out.whole <= 1000000000);
            else if (kind < PROFILE_TEXT)
                check(out.number >= 2 && out.number <= 1e9);
            else
                check(out.text == e->value);
        }
    }
    return 0;
}
