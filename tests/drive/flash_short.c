// SPDX-License-Identifier: Apache-2.0
// Linked over preadv and pwritev of the thread engine: most calls move only a part (at direct I/O's
// grain or, where the file is buffered, at any byte), say that they moved less than they did (at
// any byte), or are interrupted.
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/uio.h>

_Atomic uint64_t flash_short_cuts;

ssize_t __real_preadv(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __real_pwritev(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __wrap_preadv(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int count, off_t offset);

// Copies the front part of iov to out; its length, 0 = interrupted.
static int cut(int fd, const struct iovec *iov, int count, struct iovec *out)
{
    static _Atomic uint64_t state;
    uint64_t random = (atomic_fetch_add(&state, 1) + 1) * UINT64_C(0x9e3779b97f4a7c15);
    random ^= random >> 29;
    size_t total = 0, grain = fcntl(fd, F_GETFL) & O_DIRECT ? 512 : 1;
    for (int i = 0; i < count; i++) {
        total += iov[i].iov_len;
        if ((uintptr_t)iov[i].iov_base % 512 && grain == 512)
            abort(); // a vector longer than what is left of the request
    }
    if (random % 4 == 0) {
        errno = random & 16 ? EINTR : EAGAIN;
        return 0;
    }
    size_t left = random % 3 ? (random >> 8) % (total / grain + 1) * grain : total;
    if (left == 0) {
        errno = EINTR;
        return 0;
    }
    atomic_fetch_add(&flash_short_cuts, left != total);
    int n = 0;
    for (; n < count && left; n++) {
        out[n] = iov[n];
        if (out[n].iov_len > left)
            out[n].iov_len = left;
        left -= out[n].iov_len;
    }
    return n;
}

static ssize_t understate(ssize_t moved)
{
    static _Atomic uint64_t calls;
    return moved > 1 && atomic_fetch_add(&calls, 1) % 5 == 0 ? moved - 1 : moved;
}

ssize_t __wrap_preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
    struct iovec part[1024];
    int n = cut(fd, iov, count, part);
    ssize_t moved = n ? __real_preadv(fd, part, n, offset) : -1;
    return understate(moved);
}

ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    struct iovec part[1024];
    int n = cut(fd, iov, count, part);
    ssize_t moved = n ? __real_pwritev(fd, part, n, offset) : -1;
    return understate(moved);
}
