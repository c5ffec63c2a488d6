#!/bin/sh
# The ENTRYPOINT of an image that brings hamirt along: caps come as variables, and the command is the image's own.
#
#   HAMIRT_MEM, HAMIRT_SM, HAMIRT_WEIGHT, HAMIRT_CLASS, HAMIRT_NAME, HAMIRT_ON_ERROR   as the options of `hamirt run`
#   HAMIRT_GPU   one index or UUID, or several with commas between them
#   HAMIRT_SIM   so many simulated cards
#
# A variable that is there and empty is a value, which `hamirt run` refuses: a template that failed is not "no cap".
set -eu

fail() {
    echo "hamirt: $*" >&2
    exit 125
}

[ $# -gt 0 ] || fail "the container names no program: give it a command"

wanted=""
for name in MEM SM WEIGHT CLASS NAME ON_ERROR GPU SIM; do
    eval "[ -z \"\${HAMIRT_$name+x}\" ]" || wanted="$wanted HAMIRT_$name"
done

if [ -e /run/hamirt/ro/limits ] || [ -n "${HAMIRT_TENANT_DIR-}" ]; then
    [ -z "$wanted" ] || echo "hamirt: the node has set this container's limits:$wanted changes nothing" >&2
    exec "$@"
fi
[ -n "$wanted" ] || exec "$@"
command -v hamirt >/dev/null 2>&1 ||
    fail "the image has no hamirt, which$wanted needs: install it in the image, or take the variables out"

# from the last word to the first
set -- -- "$@"
[ -z "${HAMIRT_SIM+x}" ] || set -- --sim "$@"
[ -z "${HAMIRT_ON_ERROR+x}" ] || set -- --on-error "$HAMIRT_ON_ERROR" "$@"
[ -z "${HAMIRT_NAME+x}" ] || set -- --name "$HAMIRT_NAME" "$@"
[ -z "${HAMIRT_CLASS+x}" ] || set -- --class "$HAMIRT_CLASS" "$@"
[ -z "${HAMIRT_WEIGHT+x}" ] || set -- --weight "$HAMIRT_WEIGHT" "$@"
[ -z "${HAMIRT_SM+x}" ] || set -- --sm "$HAMIRT_SM" "$@"
[ -z "${HAMIRT_MEM+x}" ] || set -- --mem "$HAMIRT_MEM" "$@"
if [ -n "${HAMIRT_GPU+x}" ]; then
    rest="$HAMIRT_GPU,"
    while [ -n "$rest" ]; do
        set -- --gpu "${rest%%,*}" "$@"
        rest="${rest#*,}"
    done
fi
exec hamirt run "$@"
