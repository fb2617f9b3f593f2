# shellcheck shell=bash disable=SC2034,SC2154 # variables are from or for the scripts that source it
# How demo and demo-est tell their stories: steps, commands with what they print, the countdown to a
# renewal, and the WFM at the end. To be sourced after world.sh.

tell() { paste -sd ' ' | fold --spaces --width=76 | sed 's/ *$//; s/^/  /'; } # one paragraph
step() { printf '\n%s%2d  %s%s\n\n' "$bold" "$((step += 1))" "$1" "$plain"; tell; }
run() { # COMMAND LINE: shows it, runs it, and shows what it prints
    printf '\n  %s$ %s%s\n' "$cyan" "$1" "$plain"
    eval "$1" | show
}
run_refused() { # COMMAND LINE WORDS: the same of one that has to fail, and say this
    printf '\n  %s$ %s%s\n' "$cyan" "$1" "$plain"
    if eval "$1" >refused.log 2>&1; then fail "it was not refused: $(cat refused.log)"; fi
    fold --spaces --width=76 refused.log | show
    grep -q -e "$2" refused.log || fail "it was refused for another reason than \"$2\""
}
good() { printf '\n  %sOK%s  %s\n' "$green" "$plain" "$1"; }
clock() { date --utc --date="$1" +%H:%M:%S; }
step=0

# A WFM of the trust domain, $wfm_id, that accepts these clients; sets $wfm_url.
start_wfm() { # SPIFFE ID…
    local accept=() id
    for id in "$@"; do accept+=(--accept "$id"); done
    development-mis mint --directory mis --spiffe-id "$wfm_id" --key-out wfm.key --out wfm.pem \
        --bundle-out wfm-bundle.json >mint.log 2>&1 || fail "the WFM has no SVID"
    development-wfm --svid wfm.pem --key wfm.key --bundle wfm-bundle.json --mis "$url" --listen 127.0.0.1:0 \
        --base-path /v1alpha2/margo --no-onboarding "${accept[@]}" >wfm.log 2>&1 &
    pids[wfm]=$!
    wait_for 60 "the WFM" grep -q '^listening on ' wfm.log
    wfm_url=$(sed -n 's/^listening on //p' wfm.log)
}

# Counts down to the renewal: one line that is written again on a terminal, else a line every ten
# seconds.
count_down() { # SERIAL OF THE CERTIFICATE THAT WILL BE REPLACED
    local renewal begun deadline=$((SECONDS + 120)) left gone bar said=-10 width=40
    renewal=$(date --date="$(field '.identities[0].svid.renewAt')" +%s)
    begun=$(date +%s)
    until serial_is_not "$1" 2>/dev/null; do
        kill -0 "${pids[agent]}" 2>/dev/null || fail "the agent has ended by itself"
        [ "$SECONDS" -lt "$deadline" ] || fail "timed out after 120 s waiting for the renewal"
        left=$((renewal - $(date +%s)))
        if [ "$left" -lt 0 ]; then left=0; fi
        if [ -n "$live" ]; then
            gone=$((width - left * width / (renewal > begun ? renewal - begun : 1)))
            bar=$(printf '%*s' "$gone" '')$(printf '%*s' "$((width - gone))" '' | tr ' ' .)
            printf '\r  [%s%s%s] renewal in %2d s ' "$cyan" "${bar// /#}" "$plain" "$left"
            sleep 0.25
        else
            if [ $((SECONDS - said)) -ge 10 ]; then
                printf '  renewal in %d s\n' "$left"
                said=$SECONDS
            fi
            sleep 0.5
        fi
    done
    if [ -n "$live" ]; then printf '\r\033[K'; else printf '\n'; fi
}

no_renewal_within() { # SECONDS: on a busy computer the renewal may be due before its step, and is waited for then
    local due serial
    due=$(field '.identities[0].svid.renewAt // empty')
    if [ -n "$due" ] && [ $(($(date --date="$due" +%s) - $(date +%s))) -ge "$1" ]; then return; fi
    serial=$(field '.identities[0].svid.serial')
    wait_for 60 "the renewal" serial_is_not "$serial"
}
