// SPDX-License-Identifier: Apache-2.0
// Private to the file back end: requests to the system and the engines (io_uring, threads) that
// carry them out. The back end joins operations into requests, keeps their order, continues short
// transfers and translates errors; an engine only executes.
#ifndef INST_DRIVE_FLASH_FILE_H
#define INST_DRIVE_FLASH_FILE_H

#include "drive/flash/nand.h"

#include <sys/uio.h>

enum {
    FILE_SLOTS = 128,         // requests in flight
    FILE_IOVECS = 64,         // operations joined into one request
    FILE_JOIN_BYTES = 1 << 20 // size up to which operations are joined
};

enum file_op {
    FILE_READ,
    FILE_WRITE,
    FILE_PUNCH, // give the range back to the file system
    FILE_SYNC,
    FILE_DROP, // forget the range in the page cache; 0 bytes = the whole file
};

struct file_request {
    enum file_op op;
    uint64_t offset, bytes; // what is left of it
    struct iovec *iov;      // the buffers of what is left
    unsigned iov_count;
    int64_t result; // out: bytes moved or 0, or -errno
    struct file_request *next;
    // The back end's:
    struct flash_io *ios; // NULL = the slot is free, or only drops
    uint64_t start, end;  // file range while in flight
    unsigned retries;
    struct iovec iovecs[FILE_IOVECS];
};

struct file_engine;
struct file_engine_ops {
    void (*start)(struct file_engine *engine, struct file_request *request); // may be held ...
    void (*flush)(struct file_engine *engine);                               // ... until flush
    struct file_request *(*reap)(struct file_engine *engine);  // a finished one, or NULL
    void (*wait)(struct file_engine *engine, uint64_t max_ns); // until one can be reaped
    void (*close)(struct file_engine *engine);                 // nothing may be in flight
};

struct file_engine {
    const struct file_engine_ops *ops;
};

// Return 0 or -errno: why the system does not let us.
int file_uring_open(struct file_engine **out, int fd, struct budget *budget);
int file_threads_open(struct file_engine **out, int fd, struct budget *budget);

#endif
