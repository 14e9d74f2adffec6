#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the arrows of the house: a room includes itself and what lies below it, never across."""
import pathlib
import re
import sys

BELOW = {
    'base': set(),
    'kernels': {'base'},
    'drive': {'kernels', 'base'},
    'link': {'drive', 'kernels', 'base'},
    'sim': {'link', 'drive', 'kernels', 'base'},
    'host': {'link', 'drive', 'kernels', 'base'},
    'cmd': {'host', 'sim', 'link', 'drive', 'kernels', 'base'},
}
# Further down: what a host may know of a drive is the command set and how to plan and open one.
HOST_SEES_OF_DRIVE = {'drive/command.h', 'drive/drive.h', 'drive/flash/flash.h'}
# The run command proves that the public header is enough.
PUBLIC_ONLY = {'cmd/run.c'}
PRINTING = re.compile(r'\b(printf|fprintf|puts|fputs|putchar|perror|exit|_exit|abort|assert)\s*\(')
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.S)
LINES_MAX = 1000


def check(path, name, errors):
    """Appends what is wrong with one file of a room to errors."""
    room, text = name.split('/')[0], path.read_text()
    for include in INCLUDE.findall(text):
        target = include.split('/')[0]
        if name in PUBLIC_ONLY and target in BELOW and target != 'cmd':
            errors.append(f'{name} includes {include}: the public header must be enough')
        if target not in BELOW or target == room:
            continue
        if target not in BELOW[room]:
            errors.append(f'{name} includes {include}: an arrow that points up or across')
        if room == 'host' and target == 'drive' and include not in HOST_SEES_OF_DRIVE:
            errors.append(f'{name} includes {include}: inside the drive')
    if room != 'cmd':
        for match in PRINTING.finditer(COMMENT.sub(' ', text)):
            errors.append(f'{name}: {match.group(1)}() below cmd/')
    if text.count('\n') > LINES_MAX:
        errors.append(f'{name}: {text.count(chr(10))} lines, at most {LINES_MAX}')
    if 'SPDX-License-Identifier: Apache-2.0' not in text[:200]:
        errors.append(f'{name}: no licence line')


def main():
    root, errors, files = pathlib.Path(sys.argv[1]), [], 0
    for room in BELOW:
        for path in sorted((root / room).rglob('*.[ch]')):
            check(path, path.relative_to(root).as_posix(), errors)
            files += 1
    header = (root / 'include/instinfer.h').read_text().count('\n')
    if header > 250:
        errors.append(f'include/instinfer.h: {header} lines, at most 250')
    print('\n'.join(errors) or f'{files} files, all arrows point down')
    return bool(errors) or files == 0


if __name__ == '__main__':
    sys.exit(main())
