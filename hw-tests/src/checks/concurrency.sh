# What another program may do with the TPM while the agent works: concurrency WAY ROUNDS HANDLE
# WAY is "objects" (through a resource manager) or "handle" (a key that is in the TPM already, so no
# slot stays taken).
set -euo pipefail
way=$1 rounds=$2 handle=$3

storage='fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt'
signing='fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign'

tool() { # NAME ARGUMENTS: unless the suite wants an end
    [ ! -e stop ] || exit 0
    "tpm2_$1" "${@:2}"
}

head -c 100 /dev/urandom >message

for _ in $(seq "$rounds"); do
    case $way in
    objects)
        tool createprimary -Q -C o -G ecc256:aes128cfb -a "$storage" -c primary.ctx
        tool create -Q -C primary.ctx -G ecc256:ecdsa-sha256 -a "$signing" -u key.pub -r key.priv
        tool load -Q -C primary.ctx -u key.pub -r key.priv -c key.ctx
        tool sign -Q -c key.ctx -g sha256 -o signature message
        tool verifysignature -Q -c key.ctx -g sha256 -m message -s signature
        tool flushcontext -t
        ;;
    handle)
        tool sign -Q -c "$handle" -g sha256 -o signature message
        tool verifysignature -Q -c "$handle" -g sha256 -m message -s signature
        tool getrandom -Q -o random 32
        ;;
    esac
done
