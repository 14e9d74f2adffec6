#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks the arrows of the house from the includes, and rules that a reader of any file counts on:
    layers.py ROOT         every file of the tree
    layers.py --self-test  this check itself, on files made up to be wrong
A room includes itself and what lies below it, never across; inside the drive too."""
import pathlib
import re
import sys
import tempfile

BELOW = {
    'base': set(),
    'kernels': {'base'},
    'drive': {'kernels', 'base'},
    'link': {'drive', 'kernels', 'base'},
    'sim': {'link', 'drive', 'kernels', 'base'},
    'host': {'link', 'drive', 'kernels', 'base'},
    'cmd': {'host', 'sim', 'link', 'drive', 'kernels', 'base'},
}
# Further down: what others may know of a drive is the command set and how to plan and open one.
DOORS = {'drive/command.h', 'drive/drive.h', 'drive/engine_model.h', 'drive/flash/flash.h'}
KNOWN_BY_DOORS = {'link', 'host', 'cmd'}
# Inside the drive: what a room may include of the others'. A folder stands for all in it; of flash/
# the table alone, not the back ends.
COMMANDS, ENGINE, FLASH = 'drive/command.h', 'drive/engine.h', 'drive/flash/flash.h'
INSIDE = {
    'drive/flash/': {'base'},
    'drive/ftl/': {'base', 'kernels', COMMANDS, ENGINE, FLASH},
    'drive/attend/': {'base', 'kernels', COMMANDS, ENGINE, FLASH, 'drive/ftl/',
                      'drive/selection.h'},
    'drive/control/': {'base', 'kernels', COMMANDS, ENGINE, FLASH, 'drive/ftl/', 'drive/attend/',
                       'drive/drive.h'},
    # What lies in no room
    'drive/command': {'base', COMMANDS},
    'drive/engine_model': {'base', ENGINE, FLASH, 'drive/engine_model.h'},
    'drive/engine': {'base', ENGINE},
    'drive/selection.h': {'base', COMMANDS},
    'drive/drive.h': {'base', 'kernels', COMMANDS, FLASH, 'drive/selection.h'},
}
# The same inside the host: the engine stands on the model and on what computes.
INSIDE_HOST = {
    'host/model/': {'base', 'kernels'},
    'host/compute/': {'base', 'kernels', 'host/model/'},
}
# Files of one header that call each other, each only those before it.
CHAINS = [['host/model/gguf.c', 'host/model/gguf_parse.c', 'host/model/gguf_split.c',
           'host/model/gguf_open.c']]
DEFINED = re.compile(r'^(?!static\b)[a-z][\w *]*?\b\*?(\w+)\([^;{}]*\)\s*\{', re.M)
# Methods are data to the rooms around them: only the list of those that a drive brings names them.
# READ is a command of its own.
METHOD = re.compile(r'&\s*method_(?!copy\b)[a-z]+\b|\bmethod_(?!copy\b)[a-z]+\s*\.')
METHODS_KNOWN_BY = {'drive/attend/methods.c'}
# The run command proves that the public header is enough.
PUBLIC_ONLY = {'cmd/run.c'}
# Of what is below cmd/ these write, to streams that they are given.
WRITING = {'sim/selections.c'}
PRINTING = re.compile(r'(?<!->)\b(printf|fprintf|puts|fputs|putchar|perror|exit|_exit|abort|assert)\s*\(')
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.S)
LINES_MAX = 1000


def check_inside(name, include, errors):
    """An include by a file of the drive."""
    room = next((r for r in INSIDE if name.startswith(r)), None)
    if room is None:
        errors.append(f'{name}: in no room of the drive')
    elif not (room.endswith('/') and include.startswith(room)) and not any(
            include == b or include.startswith(b.rstrip('/') + '/') for b in INSIDE[room]):
        errors.append(f'{name} includes {include}: an arrow inside the drive that points up or '
                      'across')


def check(path, name, errors):
    """Appends what is wrong with one file of a room to errors."""
    room, text = name.split('/')[0], path.read_text()
    code = COMMENT.sub(' ', text)
    for include in INCLUDE.findall(text):
        target = include.split('/')[0]
        if name in PUBLIC_ONLY and target in BELOW and target != 'cmd':
            errors.append(f'{name} includes {include}: the public header must be enough')
        if room == 'drive':
            check_inside(name, include, errors)
        for inner, below in INSIDE_HOST.items():
            if name.startswith(inner) and not include.startswith(inner) and target in BELOW and (
                    not any(include.startswith(b.rstrip('/') + '/') for b in below)):
                errors.append(f'{name} includes {include}: an arrow inside the host that points up')
        if target not in BELOW or target == room:
            continue
        if target not in BELOW[room]:
            errors.append(f'{name} includes {include}: an arrow that points up or across')
        if room in KNOWN_BY_DOORS and target == 'drive' and include not in DOORS:
            errors.append(f'{name} includes {include}: inside the drive')
    if name.startswith(('drive/control/', 'drive/ftl/')) and name not in METHODS_KNOWN_BY:
        for match in METHOD.finditer(code):
            errors.append(f'{name}: {match.group()}: knows a method')
    if room != 'cmd' and name not in WRITING:
        for match in PRINTING.finditer(code):
            errors.append(f'{name}: {match.group(1)}() below cmd/')
    if text.count('\n') > LINES_MAX:
        errors.append(f'{name}: {text.count(chr(10))} lines, at most {LINES_MAX}')
    if 'SPDX-License-Identifier: Apache-2.0' not in text[:200]:
        errors.append(f'{name}: no licence line')


def check_chain(root, chain, errors):
    """Calls among the files of a chain go back only."""
    texts = {name: COMMENT.sub(' ', (root / name).read_text()) for name in chain
             if (root / name).exists()}
    for i, name in enumerate(chain):
        for later in chain[i + 1:]:
            for function in DEFINED.findall(texts.get(later, '')):
                if re.search(rf'\b{function}\s*\(', texts.get(name, '')):
                    errors.append(f'{name} calls {function}() of {later}: a circle')


def check_tree(root):
    """What is wrong with a tree, and how many files it has."""
    errors, files = [], 0
    for chain in CHAINS:
        check_chain(root, chain, errors)
    for room in BELOW:
        for path in sorted((root / room).rglob('*.[ch]')):
            check(path, path.relative_to(root).as_posix(), errors)
            files += 1
    return errors, files


# ---- of the check itself -----------------------------------------------------------------------

RIGHT = {
    'base/a.c': '#include "base/b.h"',
    'kernels/a.c': '#include "base/b.h"\n#include "kernels/k.h"',
    'drive/flash/a.c': '#include "drive/flash/nand.h"\n#include "base/b.h"',
    'drive/ftl/a.c': '#include "drive/ftl/x.h"\n#include "drive/flash/flash.h"\n'
                     '#include "drive/engine.h"\n#include "kernels/k.h"',
    'drive/attend/a.c': '#include "drive/ftl/x.h"\n#include "drive/attend/method.h"\n'
                        'const struct method method_dense;',
    'drive/attend/methods.c': '#include "drive/attend/walk.h"\nuse(&method_dense);',
    'drive/control/b.c': '#include "drive/drive.h"\n// as method_dense does\n'
                         '#include "drive/ftl/x.h"\nattend_method(x); struct method_plan *p; x = &method_copy;',
    'drive/command.c': '#include "drive/command.h"\n#include "base/le.h"',
    'drive/engine_pool.c': '#include "drive/engine.h"\n#include "base/pool.h"',
    'link/a.c': '#include "drive/drive.h"\nlink->ops->abort(link);',
    'host/model/a.c': '#include "host/model/b.h"\n#include "kernels/k.h"\n#include "base/b.h"',
    'host/compute/a.c': '#include "host/compute/b.h"\n#include "host/model/b.h"',
    'host/engine/a.c': '#include "host/model/b.h"\n#include "host/compute/b.h"\n'
                       '#include "link/link.h"',
    'host/model/gguf.c': 'int gguf_first(struct gguf *g)\n{\n    return g->x;\n}\n',
    'host/model/gguf_parse.c': 'int gguf_parse(struct gguf *g,\n               int x)\n{\n'
                               '    return gguf_first(g);\n}\nstatic int left(int x)\n{\n}\n',
    'host/a.c': '#include "drive/flash/flash.h"\n#include "link/link.h"\nx = "exit(1)";',
    'cmd/a.c': '#include "host/h.h"\nexit(1);',
    'cmd/run.c': '#include "cmd/a.h"\n#include "instinfer.h"',
}
WRONG = [
    ('base/a.c', '#include "kernels/k.h"', 'points up'),
    ('kernels/a.c', ' # include "drive/command.h"', 'points up'),
    ('drive/a.c', '#include "link/link.h"', 'points up'),
    ('drive/new.c', '#include "base/b.h"', 'no room'),
    ('link/a.c', '#include "host/h.h"', 'points up'),
    ('host/a.c', '#include "sim/s.h"', 'across'),
    ('link/a.c', '#include "drive/ftl/space.h"', 'inside the drive'),
    ('host/a.c', '#include "drive/engine.h"', 'inside the drive'),
    ('cmd/a.c', '#include "drive/attend/method.h"', 'inside the drive'),
    ('drive/flash/a.c', '#include "drive/ftl/space.h"', 'up or across'),
    ('drive/flash/a.c', '#include "drive/command.h"', 'up or across'),
    ('drive/flash/a.c', '#include "kernels/k.h"', 'up or across'),
    ('drive/ftl/a.c', '#include "drive/attend/job.h"', 'up or across'),
    ('drive/ftl/a.c', '#include "drive/control/internal.h"', 'up or across'),
    ('drive/ftl/a.c', '#include "drive/drive.h"', 'up or across'),
    ('drive/ftl/a.c', '#include "drive/flash/nand.h"', 'up or across'),
    ('drive/attend/a.c', '#include "drive/control/internal.h"', 'up or across'),
    ('drive/attend/a.c', '#include "drive/drive.h"', 'up or across'),
    ('drive/control/a.c', '#include "drive/flash/file.h"', 'up or across'),
    ('drive/control/a.c', 'if (method == &method_sparf)', 'knows a method'),
    ('drive/ftl/a.c', 'x = method_dense.id;', 'knows a method'),
    ('drive/command.h', '#include "drive/drive.h"', 'up or across'),
    ('drive/engine.h', '#include "drive/ftl/space.h"', 'up or across'),
    ('drive/drive.h', '#include "drive/engine.h"', 'up or across'),
    ('host/model/a.c', '#include "host/engine/plan.h"', 'inside the host'),
    ('host/model/a.c', '#include "host/compute/compute.h"', 'inside the host'),
    ('host/model/a.c', '#include "link/link.h"', 'inside the host'),
    ('host/compute/a.c', '#include "host/engine/engine.h"', 'inside the host'),
    ('host/a.c', 'abort();', 'below cmd/'),
    ('base/a.c', '\n' * (LINES_MAX + 1), 'at most'),
    ('cmd/run.c', '#include "host/h.h"', 'public header'),
]


def errors_of(files):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text('// SPDX-License-Identifier: Apache-2.0\n' + text)
        return check_tree(root)[0]


def self_test():
    failed = [f'right, but: {e}' for e in errors_of(RIGHT)]
    circle = {'host/model/gguf.c': 'int gguf_a(void)\n{\n    return gguf_open(x);\n}\n',
              'host/model/gguf_open.c': 'int gguf_open(struct gguf **out)\n{\n}\n'}
    if not any('a circle' in e for e in errors_of(circle)):
        failed.append('a circle of gguf files should be refused')
    for name, text, says in WRONG:
        errors = errors_of({name: text})
        if not any(says in e and e.startswith(name) for e in errors):
            failed.append(f'{name} with {text.strip()[:60]!r} should be refused ({says}): {errors}')
    print('\n'.join(failed) or f'{len(WRONG)} wrong files are refused')
    return bool(failed)


def main():
    if sys.argv[1] == '--self-test':
        return self_test()
    root = pathlib.Path(sys.argv[1])
    errors, files = check_tree(root)
    for header in sorted((root / 'include').glob('*.h')):
        lines = header.read_text().count('\n')
        if lines > 260:
            errors.append(f'include/{header.name}: {lines} lines, at most 260')
    print('\n'.join(errors) or f'{files} files, all arrows point down')
    return bool(errors) or files == 0


if __name__ == '__main__':
    sys.exit(main())
