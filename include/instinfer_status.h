// SPDX-License-Identifier: Apache-2.0
// Status codes shared by the public header and every room of the house.
#ifndef INSTINFER_STATUS_H
#define INSTINFER_STATUS_H

// X(name, number, text, NVMe status as SCT << 8 | SC; 7xx is vendor specific)
#define INST_STATUS_MAP(X)                                                                         \
    X(INST_EINVAL, -1, "invalid argument", 0x002)                                                  \
    X(INST_ENOMEM, -2, "memory budget exceeded", 0x701)                                            \
    X(INST_EIO, -3, "input/output error", 0x280)                                                   \
    X(INST_ENOSPC, -4, "no space left", 0x081)                                                     \
    X(INST_ECORRUPT, -5, "stored data is corrupt", 0x281)                                          \
    X(INST_EFORMAT, -6, "malformed file", 0x702)                                                   \
    X(INST_ENOTSUP, -7, "not supported", 0x001)                                                    \
    X(INST_ESEQUENCE, -8, "position out of sequence", 0x703)                                       \
    X(INST_ENOENT, -9, "not found", 0x704)                                                         \
    X(INST_ENORESOURCE, -10, "drive resources exhausted", 0x705)                                   \
    X(INST_ETIMEOUT, -11, "timed out", 0x706)                                                      \
    X(INST_ECANCELLED, -12, "cancelled", 0x007)                                                    \
    X(INST_EEXIST, -13, "already exists", 0x707)                                                   \
    X(INST_EINTERNAL, -14, "internal error", 0x006)                                                \
    X(INST_ENOCHAT, -15, "no chat template that is known", 0x708)                                  \
    X(INST_ERANGE, -16, "a number is none, or too large", 0x709)

enum inst_status {
#define INST_STATUS_ENUM(name, number, text, nvme) name = number,
    INST_STATUS_MAP(INST_STATUS_ENUM)
#undef INST_STATUS_ENUM
};

// One line of detail about a failure; zero-initialise before the call.
struct inst_msg {
    char text[320];
};

#if defined(__GNUC__)
#define INST_API __attribute__((visibility("default")))
#else
#define INST_API
#endif

#ifdef __cplusplus
extern "C" {
#endif
// Short text of a code; never NULL.
INST_API const char *inst_status_text(int code);
#ifdef __cplusplus
}
#endif

#endif
