# What another program may do with the TPM while the agent works: beside WAY ROUNDS HANDLE
# WAY is "objects" (through a resource manager) or "handle" (a key that is in the TPM already, so no slot stays taken).
set -euo pipefail
way=$1 rounds=$2 handle=$3

storage='fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt'
signing='fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign'
head -c 100 /dev/urandom >message

for _ in $(seq "$rounds"); do
    case $way in
    objects)
        tpm2_createprimary -Q -C o -G ecc256:aes128cfb -a "$storage" -c primary.ctx
        tpm2_create -Q -C primary.ctx -G ecc256:ecdsa-sha256 -a "$signing" -u key.pub -r key.priv
        tpm2_load -Q -C primary.ctx -u key.pub -r key.priv -c key.ctx
        tpm2_sign -Q -c key.ctx -g sha256 -o signature message
        tpm2_verifysignature -Q -c key.ctx -g sha256 -m message -s signature
        tpm2_flushcontext -t
        ;;
    handle)
        tpm2_sign -Q -c "$handle" -g sha256 -o signature message
        tpm2_verifysignature -Q -c "$handle" -g sha256 -m message -s signature
        tpm2_getrandom -Q -o random 32
        ;;
    esac
done
