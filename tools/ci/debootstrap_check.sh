#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The newcomer's test: a minimal Debian or Ubuntu with git and nothing else, a clone, ./demo and
# ./check. Needs root, debootstrap and a mirror.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

usage() {
  cat <<'TEXT'
usage: tools/ci/debootstrap_check.sh [--dir DIR] [--worktree] [SUITE] [COMMAND...]

  SUITE       bookworm (Debian 12, the default), trixie (Debian 13) or noble (Ubuntu 24.04)
  COMMAND     what runs in the clone; default: ./demo and then ./check
  --dir DIR   where the systems are made (default: build/newcomer), not on tmpfs
  --worktree  the working tree instead of a clone of what is committed

Everything runs as root, there is no sudo. MIRROR in the environment: where the packages come from.
The base system and the packages that were downloaded stay in DIR for the next time.
TEXT
}

dir=build/newcomer
worktree=false
while [[ ${1:-} == -* ]]; do
  case $1 in
    --dir) dir=$2; shift ;;
    --worktree) worktree=true ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
suite=${1:-bookworm}
shift || true
case $suite in
  bookworm | trixie) options=('--include=git,ca-certificates') mirror=http://deb.debian.org/debian ;;
  noble)
    options=('--include=git,ca-certificates' '--components=main,universe')
    mirror=http://archive.ubuntu.com/ubuntu
    # Debian has no package with Ubuntu's keys: without them debootstrap warns and goes on.
    keys=/usr/share/keyrings/ubuntu-archive-keyring.gpg
    [[ ! -e $keys ]] || options+=(--keyring="$keys") ;;
  *) usage >&2; exit 2 ;;
esac
[[ $EUID -eq 0 ]] || { echo "debootstrap_check: must be run by root" >&2; exit 1; }

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
base=$dir/base-$suite root=$dir/root-$suite

if [[ ! -d $base ]]; then
  script=/usr/share/debootstrap/scripts/$suite
  # An older debootstrap does not know the suite by name; all of Ubuntu's share one script.
  [[ -e $script || $suite != noble ]] || script=/usr/share/debootstrap/scripts/jammy
  rm -rf "$base.new"
  debootstrap --variant=minbase "${options[@]}" "$suite" "$base.new" "${MIRROR:-$mirror}" "$script" |
    tail -n 3
  mv "$base.new" "$base"
fi

mounted=()
cleanup() {
  for ((i = ${#mounted[@]} - 1; i >= 0; i--)); do
    umount "${mounted[i]}"
  done
  # A mount that is still there must not be deleted through.
  rm -rf --one-file-system "$root"
}
trap cleanup EXIT

rm -rf --one-file-system "$root"
cp -a "$base" "$root"
cp /etc/resolv.conf "$root/etc/resolv.conf"
mount_in() {
  mount "${@:2}" "$root/$1"
  mounted+=("$root/$1")
}
mount_in proc -t proc proc
mount_in dev/shm -t tmpfs tmpfs
mount_in dev/pts --bind /dev/pts
mkdir -p "$dir/packages-$suite"
mount_in var/cache/apt/archives --bind "$dir/packages-$suite"

# Not in root's home: some tests give up root, and must still see the program.
clone=$root/srv/instinfer
if $worktree; then
  mkdir -p "$clone"
  git ls-files -z -co --exclude-standard |
    while IFS= read -rd '' file; do [[ ! -e $file ]] || printf '%s\0' "$file"; done |
    tar -c --null -T - | tar -xC "$clone"
else
  git clone -q "file://$PWD" "$clone"
fi

[[ $# -gt 0 ]] || set -- bash -c './demo && ./check'
in_root=(env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM="${TERM:-dumb}" LANG=C.UTF-8
  chroot "$root" bash -c 'cd /srv/instinfer && exec "$@"' bash)
"${in_root[@]}" "$@"
