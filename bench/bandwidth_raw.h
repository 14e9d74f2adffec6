// SPDX-License-Identifier: Apache-2.0
// What a disk can do at best, without our own code: random aligned reads through io_uring on a file
// that is open already, for standing beside our numbers in the same run.
#ifndef INST_BENCH_BANDWIDTH_RAW_H
#define INST_BENCH_BANDWIDTH_RAW_H

#include "base/status.h"

#include <stdint.h>

enum { RAW_DEPTH = 32, RAW_REQUEST_MIN = 16 << 10, RAW_REQUEST_MAX = 1 << 20 };

// Reads for that many seconds with `depth` requests of request_bytes in flight at random multiples
// of request_bytes within [offset, offset + bytes), which must have been written (holes cost no
// I/O). The descriptor's own flags decide about O_DIRECT. INST_ENOTSUP without io_uring.
int raw_read_bandwidth(int fd, uint64_t offset, uint64_t bytes, uint32_t request_bytes,
                       unsigned depth, double seconds, double *bytes_per_s, struct inst_msg *msg);

// The best over request sizes 16 KiB, 32 KiB ... 1 MiB at depth 32, that many seconds each.
int raw_read_best(int fd, uint64_t offset, uint64_t bytes, double seconds_each, double *bytes_per_s,
                  uint32_t *request_bytes, struct inst_msg *msg);

#endif
