# Common parts of deb and rpm. To be sourced by bash from the top of the checkout, with the
# arguments of the script.

# shellcheck source=packaging/architectures.sh
source packaging/architectures.sh
name_architecture

version=$(sed -n '/^\[workspace.package\]/,/^\[/ s/^version = "\(.*\)"$/\1/p' Cargo.toml)
out=${CARGO_TARGET_DIR:-target}/package
while [ $# -gt 0 ]; do
    case $1 in
    --version) version=${2:?} ;;
    --out) out=${2:?} ;;
    --arch) name_architecture "${2:?}" ;;
    *) echo "usage: ${0##*/} [--arch ARCH] [--version VERSION] [--out DIRECTORY]" >&2; exit 2 ;;
    esac
    shift 2
done
mkdir -p "$out"
out=$(realpath "$out")

# The time of all files in the package, so that the same sources give the same bytes.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH LC_ALL=C.UTF-8 TZ=UTC
umask 022

maintainer="The miaf-agent contributors <maintainers@miaf-agent.invalid>"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
