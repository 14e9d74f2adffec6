# SPDX-License-Identifier: Apache-2.0
"""The one way in which the scripts write a file, as cmd/output_file.h is that
of the program. Standard library only.

    with output_file.writing(path, "wb", inputs=[...]) as file:
        all of the work

Before the work the place is tried and compared with the inputs. The new file
lies beside the old one until it is complete and then takes its place; work
that fails or is ended by a signal leaves the old one. A symbolic link stays.
What is no regular file is written to as it is and never removed.
"""

import contextlib
import os
import signal
import stat
import tempfile
import threading

NAME_BYTES = 200  # of the file's name in that of the unfinished one


class Refused(OSError):
    """The output is one of the inputs."""

    def __str__(self):
        return str(self.args[0])


def _refuse_inputs(path, inputs):
    for other in inputs:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samefile(path, other):
                raise Refused(f"{path}: is read, too ({other})")


@contextlib.contextmanager
def _ending_cleanly():
    """SIGTERM and SIGHUP end the work as Ctrl-C does: by an exception."""

    def end(number, frame):
        raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _permissions(path):
    """What a new file gets: the old one's or the usual ones."""
    if path:
        return stat.S_IMODE(os.stat(path).st_mode) & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _new_name(target):
    folder, name = os.path.split(target)
    kept = os.fsencode(name)[:NAME_BYTES].decode(errors="ignore")
    number, temporary = tempfile.mkstemp(prefix=kept + ".part-", dir=folder)
    os.close(number)
    return temporary


@contextlib.contextmanager
def writing(path, mode="w", inputs=(), **how):
    """A file object, as open(path, mode, **how) gives it."""
    path = os.fspath(path)
    old = path
    try:
        os.stat(path)
    except FileNotFoundError:
        old = None
    else:
        _refuse_inputs(path, inputs)
        if not os.path.isfile(path):
            with open(path, mode, **how) as file:
                yield file
            return
        os.close(os.open(path, os.O_WRONLY))  # whether it may be written
    target = os.path.realpath(path)
    with _ending_cleanly():
        temporary = _new_name(target)
        try:
            os.chmod(temporary, _permissions(old))
            with open(temporary, mode, **how) as file:
                yield file
                file.flush()
                if old:
                    os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def write_text(path, text, inputs=()):
    """The text as UTF-8, line breaks as they are."""
    with writing(path, "w", inputs, encoding="utf-8", newline="") as file:
        file.write(text)
