#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Decode and prefill of `instinfer run` beside llama.cpp's llama-bench on the same file.

Both take turns in one invocation; what counts is the ratio. The model is a random one of the shape
of Llama-3.2-1B, made by `instinfer synth`, unless --model names files.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

SHAPE = ('--layers 16 --width 2048 --heads 32 --kv-heads 8 --head-dim 64 --ffn 8192 '
         '--vocab 128256').split()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--instinfer', default='build/release/instinfer')
    parser.add_argument('--llama-bench', required=True, help='path of llama-bench')
    parser.add_argument('--model', action='append', default=[], help='a GGUF file; may be repeated')
    parser.add_argument('--types', default='q8_0,f16', help='of the random models')
    parser.add_argument('--threads', default='1,2', help='numbers of threads to try')
    parser.add_argument('--tokens', type=int, default=48, help='generated in a turn')
    parser.add_argument('--prompt', type=int, default=256, help='tokens of the prompt')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--dir', default=None, help='for models and the KV store')
    return parser.parse_args()


def ours(args, model, threads, directory):
    """Returns (prefill, decode) in tokens/s."""
    stats = os.path.join(directory, 'stats.json')
    command = [args.instinfer, 'run', '-m', model, '-p', 'x' * (args.prompt - 2),
               '-n', str(args.tokens), '--ignore-eos', '--temp', '0', '-t', str(threads),
               '-c', '4096', '--kv', 'ram:1G', '--stats', stats]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with open(stats) as file:
        result = json.load(file)
    return result['prefill_tokens_per_s'], result['decode_tokens_per_s']


def theirs(args, model, threads):
    command = [args.llama_bench, '-m', model, '-p', str(args.prompt), '-n', str(args.tokens),
               '-r', '1', '-t', str(threads), '-o', 'json']
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    speed = {bool(row['n_gen']): row['avg_ts'] for row in json.loads(out)}
    return speed[False], speed[True]


def cpu_name():
    with open('/proc/cpuinfo') as file:
        for line in file:
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return 'unknown CPU'


def compare(args, model, name, directory):
    for threads in map(int, args.threads.split(',')):
        rows = []
        for _ in range(args.rounds):
            rows.append((ours(args, model, threads, directory), theirs(args, model, threads)))
        for index, what in enumerate(('prefill', 'decode')):
            mine = statistics.median(row[0][index] for row in rows)
            other = statistics.median(row[1][index] for row in rows)
            ratios = sorted(row[0][index] / row[1][index] for row in rows)
            print(f'{name:8} {threads} threads {what:8} {mine:8.2f} tok/s, llama.cpp {other:8.2f}, '
                  f'ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})',
                  flush=True)


def main():
    args = arguments()
    print(cpu_name())
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        for model in args.model:
            compare(args, model, os.path.basename(model), directory)
        for kind in [] if args.model else args.types.split(','):
            path = os.path.join(directory, kind + '.gguf')
            subprocess.run([args.instinfer, 'synth', *SHAPE, '--type', kind, '-o', path],
                           check=True)
            compare(args, path, kind, directory)
            os.remove(path)
    return 0


if __name__ == '__main__':
    sys.exit(main())
