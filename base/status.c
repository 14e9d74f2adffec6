// SPDX-License-Identifier: Apache-2.0
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

int inst_fail(struct inst_msg *msg, int code, const char *fmt, ...)
{
    if (msg && !msg->text[0]) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(msg->text, sizeof msg->text, fmt, args);
        va_end(args);
    }
    return code;
}

const char *inst_status_text(int code)
{
    switch (code) {
    case 0:
        return "success";
#define STATUS_TEXT(name, number, text, nvme)                                                      \
    case name:                                                                                     \
        return text;
        INST_STATUS_MAP(STATUS_TEXT)
#undef STATUS_TEXT
    default:
        return "unknown status";
    }
}

uint16_t inst_status_to_nvme(int code)
{
    switch (code) {
    case 0:
        return 0;
#define STATUS_NVME(name, number, text, nvme)                                                      \
    case name:                                                                                     \
        return nvme;
        INST_STATUS_MAP(STATUS_NVME)
#undef STATUS_NVME
    default:
        return 0x006;
    }
}

int inst_status_from_nvme(uint16_t status)
{
    switch (status) {
    case 0:
        return 0;
#define STATUS_CODE(name, number, text, nvme)                                                      \
    case nvme:                                                                                     \
        return name;
        INST_STATUS_MAP(STATUS_CODE)
#undef STATUS_CODE
    default:
        return INST_EINTERNAL;
    }
}
