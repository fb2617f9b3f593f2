"""What grpcio sees on the agent's socket: a line of JSON for each line on standard input, all of it on one channel.

    grpc_client.py unix:///PATH
"""

import json
import sys

import grpc

PATIENCE = 40.0
STREAMS = 20
REFUSALS = 50
HEADER = (("workload.spiffe.io", "true"),)
HEALTH = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


def main():
    with grpc.insecure_channel(sys.argv[1], options=[("grpc.max_reconnect_backoff_ms", 500)]) as channel:
        for _ in sys.stdin:
            streams = [stream(channel, "/SpiffeWorkloadAPI/FetchX509Bundles", b"", HEADER) for _ in range(STREAMS)]
            firsts = {end_of(lambda: next(one)) for one in streams}
            # While the streams are open.
            print(json.dumps({
                "streams": sorted(firsts),
                "check": {service: check(channel, service) for service in ["", "SpiffeWorkloadAPI", "nothing"]},
                "watch": {service: watch(channel, service) for service in ["", "SpiffeWorkloadAPI", "nothing"]},
                "key": refusals(channel, "/SpiffeWorkloadAPI/FetchX509SVID", HEADER),
                "withoutHeader": refusals(channel, "/SpiffeWorkloadAPI/FetchX509SVID", ()),
                "notThere": refusals(channel, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", ()),
            }), flush=True)
            for one in streams:
                one.cancel()


def stream(channel, method, message, metadata):
    call = channel.unary_stream(method)
    return call(message, metadata=metadata, timeout=PATIENCE, wait_for_ready=True)


def check(channel, service):
    call = channel.unary_unary("/grpc.health.v1.Health/Check")
    answers = []
    end = end_of(lambda: answers.append(call(named(service), timeout=PATIENCE, wait_for_ready=True)))
    return status_in(answers[0]) if answers else end


def watch(channel, service):
    call = stream(channel, "/grpc.health.v1.Health/Watch", named(service), ())
    status = status_in(next(call))
    call.cancel()
    return status


def refusals(channel, method, metadata):
    """The codes that so many calls end with, each of which sends more than it need to."""
    ends = {end_of(lambda: next(stream(channel, method, b"\x0a\xfa\x07" + 1018 * b"x", metadata))) for _ in range(REFUSALS)}
    return sorted(ends)


def end_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def named(service):
    """HealthCheckRequest: field 1 is the service."""
    return bytes([0x0A, len(service)]) + service.encode() if service else b""


def status_in(message):
    """HealthCheckResponse: field 1 is the status, which is left out where it is 0."""
    if not message:
        return HEALTH[0]
    assert message[0] == 0x08 and len(message) == 2, message
    return HEALTH[message[1]]


main()
