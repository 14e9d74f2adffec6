// SPDX-License-Identifier: Apache-2.0
#include "cmd/process.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

bool process_begin(void)
{
    // A closed pipe is an error of fwrite and a limit on file sizes one of write, not a silent
    // death.
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
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
