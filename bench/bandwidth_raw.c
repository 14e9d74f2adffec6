// SPDX-License-Identifier: Apache-2.0
#include "bench/bandwidth_raw.h"
#include "base/clock.h"

#include <errno.h>
#include <string.h>

#ifdef HAVE_LIBURING

#include "base/mapping.h"
#include "bench/measure.h"

#include <liburing.h>

struct reader {
    struct io_uring ring;
    int fd;
    uint64_t offset, places; // request_bytes each
    uint32_t request_bytes;
    unsigned char *buffers; // (depth, request_bytes)
    uint64_t random;
};

static void start_read(struct reader *reader, uint64_t slot)
{
    // xorshift64
    reader->random ^= reader->random << 13;
    reader->random ^= reader->random >> 7;
    reader->random ^= reader->random << 17;
    uint64_t place = reader->random % reader->places;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&reader->ring);
    io_uring_prep_read(sqe, reader->fd, reader->buffers + slot * reader->request_bytes,
                       reader->request_bytes, reader->offset + place * reader->request_bytes);
    sqe->user_data = slot;
}

// Keeps `depth` reads in flight until the time is over, then collects the rest. Bytes per second,
// or -errno.
static double read_for(struct reader *reader, unsigned depth, double seconds)
{
    double start = clock_seconds(), end = start;
    uint64_t bytes = 0;
    unsigned in_flight = depth;
    int error = 0;
    for (unsigned i = 0; i < depth; i++)
        start_read(reader, i);
    while (in_flight) {
        struct io_uring_cqe *cqe;
        int rc = io_uring_submit_and_wait(&reader->ring, 1);
        if (rc < 0 && rc != -EINTR)
            return rc;
        while (io_uring_peek_cqe(&reader->ring, &cqe) == 0) {
            uint64_t slot = cqe->user_data;
            if (cqe->res != (int)reader->request_bytes)
                error = cqe->res < 0 ? cqe->res : -EIO;
            bytes += reader->request_bytes;
            io_uring_cqe_seen(&reader->ring, cqe);
            end = clock_seconds();
            if (!error && end - start < seconds)
                start_read(reader, slot);
            else
                in_flight--;
        }
    }
    return error ? error : (double)bytes / (end - start);
}

int raw_read_bandwidth(int fd, uint64_t offset, uint64_t bytes, uint32_t request_bytes,
                       unsigned depth, double seconds, double *bytes_per_s, struct inst_msg *msg)
{
    if (!request_bytes || request_bytes > bytes || !depth || depth > 1024)
        return inst_fail(msg, INST_EINVAL, "raw read: %u bytes at depth %u do not fit",
                         request_bytes, depth);
    struct reader reader = {.fd = fd,
                            .offset = offset,
                            .places = bytes / request_bytes,
                            .request_bytes = request_bytes,
                            .random = UINT64_C(0x9e3779b97f4a7c15)};
    int rc = io_uring_queue_init(depth, &reader.ring, 0);
    if (rc)
        return inst_fail(msg, INST_ENOTSUP, "raw read: io_uring: %s", strerror(-rc));
    struct mapping buffers = {0};
    double rate = -ENOMEM;
    size_t all = (size_t)depth * request_bytes;
    if (mapping_open(&buffers, all, true)) { // large pages, as the drive's
        memset(buffers.data, 0, all);
        reader.buffers = buffers.data;
        rate = read_for(&reader, depth, seconds);
    }
    io_uring_queue_exit(&reader.ring);
    mapping_close(&buffers);
    if (rate < 0)
        return inst_fail(msg, INST_EIO, "raw read: %s", strerror((int)-rate));
    *bytes_per_s = rate;
    return 0;
}

#else

int raw_read_bandwidth(int fd, uint64_t offset, uint64_t bytes, uint32_t request_bytes,
                       unsigned depth, double seconds, double *bytes_per_s, struct inst_msg *msg)
{
    (void)fd, (void)offset, (void)bytes, (void)request_bytes, (void)depth, (void)seconds;
    (void)bytes_per_s;
    return inst_fail(msg, INST_ENOTSUP, "raw read: built without liburing");
}

#endif

int raw_read_best(int fd, uint64_t offset, uint64_t bytes, double seconds_each, double *bytes_per_s,
                  uint32_t *request_bytes, struct inst_msg *msg)
{
    *bytes_per_s = 0;
    for (uint32_t size = RAW_REQUEST_MIN; size <= RAW_REQUEST_MAX && size <= bytes; size *= 2) {
        double rate = 0;
        int rc = raw_read_bandwidth(fd, offset, bytes, size, RAW_DEPTH, seconds_each, &rate, msg);
        if (rc)
            return rc;
        if (rate > *bytes_per_s) {
            *bytes_per_s = rate;
            *request_bytes = size;
        }
    }
    return *bytes_per_s > 0 ? 0 : inst_fail(msg, INST_EINVAL, "raw read: the file is too small");
}
