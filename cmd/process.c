// SPDX-License-Identifier: Apache-2.0
#include "cmd/process.h"
#include "cmd/options.h"
#include "cmd/output_file.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

// Everything below is called by a signal handler: nothing that allocates, locks or prints.

// A line of /proc/self/maps: "START-END PERMISSIONS OFFSET DEVICE INODE   PATH".
enum { MAPS_LINE = PATH_MAX + 128 };

static const char *read_hex(const char *p, uintptr_t *value)
{
    for (*value = 0;; p++) {
        const char *digits = "0123456789abcdef", *at = *p ? strchr(digits, *p) : NULL;
        if (!at)
            return p;
        *value = *value * 16 + (uintptr_t)(at - digits);
    }
}

// The path in this line if it is a file that is mapped here to be read only, shared with whoever
// changes it; else NULL.
static const char *path_of(const char *line, uintptr_t address)
{
    uintptr_t from, to;
    const char *p = read_hex(line, &from);
    p = read_hex(p + (*p == '-'), &to);
    if (address < from || address >= to || strncmp(p, " r--s ", 6))
        return NULL;
    return strchr(p, '/');
}

// Of the file that is mapped at this address. It stays until the next call.
static const char *mapped_file(uintptr_t address)
{
    static char line[MAPS_LINE], piece[4096];
    size_t n = 0;
    const char *path = NULL;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    for (ssize_t got; fd >= 0 && !path && (got = read(fd, piece, sizeof piece)) > 0;)
        for (ssize_t i = 0; i < got && !path; i++) {
            bool end = piece[i] == '\n';
            if (!end && n < sizeof line - 1)
                line[n++] = piece[i];
            line[n] = 0;
            if (end) {
                path = path_of(line, address);
                n = 0;
            }
        }
    if (fd >= 0)
        close(fd);
    return path;
}

static void say(const char *text)
{
    ssize_t n = write(STDERR_FILENO, text, strlen(text));
    (void)n; // there is nobody else to tell
}

// Weights are mapped: a file that somebody shortens, or a disk that fails, is noticed where they
// are used, deep inside a product, on any thread. Nothing can go on without them.
static void on_bus_error(int number, siginfo_t *info, void *context)
{
    static atomic_flag met = ATOMIC_FLAG_INIT;
    (void)context;
    if (atomic_flag_test_and_set(&met))
        for (;;)
            pause(); // another thread is saying it
    const char *path = info->si_code > 0 ? mapped_file((uintptr_t)info->si_addr) : NULL;
    output_files_discard();
    if (!path) { // not about a file: a fault of the machine or ours
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    say("instinfer: ");
    say(path);
    say(": cannot be read any more: it was shortened while in use, or its disk failed\n");
    _exit(EXIT_FAILED);
}

bool process_begin(void)
{
    // A closed pipe is an error of fwrite and a limit on file sizes one of write, not a silent
    // death.
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) >= 0)
            continue;
        // The lowest free number is this one. In the wrong direction, so that text which goes
        // nowhere is an error as it is with any closed descriptor.
        if (open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)
            return false;
    }
    return true;
}
