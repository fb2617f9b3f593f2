# The machine in systemd-nspawn with Debian 13 in it: another systemd, other names of the libraries.

# shellcheck source=tests/system/machine/nspawn.sh
source "$here/machine/nspawn.sh"
