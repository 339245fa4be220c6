#!/bin/sh
# Stands before rustc as RUSTC_WORKSPACE_WRAPPER, and has it count the branches that are taken in the crates of this workspace, with overflow
# and assertions checked. What they depend on is compiled as for any release build, and shared with it. Stable Rust takes these flags.
set -eu
rustc=$1
shift
case " $* " in
*" --crate-name build_script_"*) exec "$rustc" "$@" ;;
*" --crate-name unanimity_wal "*)
    # No comparisons: told of them, libFuzzer puts right checksums in, and what a checksum must find passes for written.
    compares= ;;
*" --crate-name unanimity_"*) compares=-Cllvm-args=-sanitizer-coverage-trace-compares ;;
*) exec "$rustc" "$@" ;;
esac
exec "$rustc" "$@" \
    -Cdebug-assertions=on \
    -Coverflow-checks=on \
    -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    $compares
