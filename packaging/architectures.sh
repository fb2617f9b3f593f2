# The names of an architecture in Debian ($debian), rpm ($rpm), Rust ($rust), GNU and the kernel's
# ABI ($gnu). To be sourced by bash. Others can be added here and in packaging/cross.

native=$(uname -m)
name_architecture() { # ARCH: its name in Debian or rpm, or empty for this machine's own
    case ${1:-$native} in
    amd64 | x86_64) debian=amd64 rpm=x86_64 rust=x86_64-unknown-linux-gnu gnu=x86_64-linux-gnu ;;
    arm64 | aarch64) debian=arm64 rpm=aarch64 rust=aarch64-unknown-linux-gnu gnu=aarch64-linux-gnu ;;
    armhf | armv7l | armv7hl) debian=armhf rpm=armv7hl rust=armv7-unknown-linux-gnueabihf gnu=arm-linux-gnueabihf ;;
    *)
        [ -z "${1:-}" ] || { echo "${0##*/}: \"$1\" is not a supported architecture: amd64, arm64, armhf" >&2; exit 2; }
        debian=$(dpkg --print-architecture) rpm=$native rust= gnu=$(gcc -dumpmachine)
        ;;
    esac
}
is_native() { # for the architecture of name_architecture
    [ "$rpm" = "$native" ] || { [ "$native" = armv7l ] && [ "$rpm" = armv7hl ]; }
}
# The directory of the agent's release build for the architecture of name_architecture.
release_directory() {
    local target=${CARGO_TARGET_DIR:-target}
    if is_native || [ -z "$rust" ]; then echo "$target/release"; else echo "$target/cross/build/$rust/release"; fi
}
