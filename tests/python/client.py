#!/usr/bin/env python3
"""Submits a transfer between two participants and reads its outcome, with nothing of ours but the .proto files.

It shows what a client in another language needs: stubs from proto/, values, a request id chosen before the first attempt, retries under
that same id which say how long ago it was first sent, and an outcome that is one of committed, aborted, heuristic or unknown. A call
without an answer is never taken for an abort.

Prints one JSON object on stdout. Exit codes: 0 committed, 1 aborted, 2 usage, 3 refused, 4 heuristic, 7 unknown.
"""

import argparse
import json
import pathlib
import random
import sys
import tempfile
import time
import uuid

import grpc
from google.protobuf import duration_pb2
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
FILES = ("unanimity/v1/transaction.proto", "unanimity/v1/transaction_service.proto")
STUBS = tempfile.TemporaryDirectory(prefix="unanimity-stubs-")

# The reasons that say: this call was not taken, and may be later.
RETRYABLE = {
    "PARTICIPANT_UNAVAILABLE",
    "DRAINING",
    "STARTING",
    "TOO_MANY_TRANSACTIONS",
    "PARTICIPANT_BUSY",
    "LOG_SPACE_LOW",
}
# Codes which, without a reason of ours, no library makes up for a broken connection.
NOT_TAKEN = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
}
EXIT = {"committed": 0, "aborted": 1, "refused": 3, "heuristic": 4, "unknown": 7}


def make_stubs():
    """Compiles the .proto files and imports what came of it."""
    includes = pathlib.Path(protoc.__file__).parent / "_proto"
    command = ["protoc", f"-I{PROTO}", f"-I{includes}", f"--python_out={STUBS.name}", f"--grpc_python_out={STUBS.name}", *FILES]
    if protoc.main(command) != 0:
        raise SystemExit(f"protoc failed on {PROTO}")
    sys.path.insert(0, STUBS.name)
    from unanimity.v1 import transaction_pb2, transaction_service_pb2, transaction_service_pb2_grpc

    return transaction_pb2, transaction_service_pb2, transaction_service_pb2_grpc


transaction_pb2, service_pb2, service_pb2_grpc = make_stubs()


def reason_of(error):
    """ErrorInfo.reason, where the status is the coordinator's own; read without googleapis-common-protos."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return error_info_reason(value)
    return None


def error_info_reason(status_bytes):
    """google.rpc.Status{details = 3: Any{type_url = 1, value = 2}}, google.rpc.ErrorInfo{reason = 1, domain = 2}."""
    for number, detail in fields(status_bytes):
        any_fields = dict(fields(detail)) if number == 3 else {}
        if any_fields.get(1, b"").endswith(b"/google.rpc.ErrorInfo"):
            info = dict(item for item in fields(any_fields.get(2, b"")) if item[0] in (1, 2))
            if info.get(2) == b"unanimity":
                return info.get(1, b"").decode()
    return None


def fields(data):
    """The length-delimited fields of a protobuf message."""
    position = 0

    def varint():
        nonlocal position
        result = shift = 0
        while True:
            byte = data[position]
            position += 1
            result |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return result

    while position < len(data):
        tag = varint()
        wire_type = tag & 7
        if wire_type == 0:
            varint()
        elif wire_type == 2:
            length = varint()
            yield tag >> 3, data[position : position + length]
            position += length
        else:
            raise ValueError(f"wire type {wire_type} in a google.rpc.Status")


def value(given):
    if given is None:
        return transaction_pb2.Value(null=True)
    if isinstance(given, bool):  # before int: a bool is one
        return transaction_pb2.Value(boolean=given)
    if isinstance(given, int):
        return transaction_pb2.Value(integer=given)
    if isinstance(given, float):
        return transaction_pb2.Value(float=given)
    if isinstance(given, bytes):
        return transaction_pb2.Value(bytes=given)
    return transaction_pb2.Value(text=str(given))


def operation(name, **parameters):
    return transaction_pb2.Operation(name=name, parameters={key: value(given) for key, given in parameters.items()})


def transfer(arguments, request_id):
    def branch(participant, name, account, entry):
        work = [
            operation(name, account=account, amount=arguments.amount),
            operation("entry", transfer=request_id, account=account, amount=entry),
        ]
        return service_pb2.BranchRequest(participant=participant, operations=work)

    return service_pb2.SubmitTransactionRequest(
        request_id=request_id,
        branches=[
            branch(arguments.debit, "debit", arguments.from_account, -arguments.amount),
            branch(arguments.credit, "credit", arguments.to_account, arguments.amount),
        ],
        timeout=duration_pb2.Duration(seconds=10),
    )


def submitting(stub, request):
    """Makes one attempt with each call. All but the first say how long ago that was, lest a coordinator that forgot it do it again."""
    first_sent = None

    def attempt():
        nonlocal first_sent
        if first_sent is None:
            first_sent = time.monotonic()
        else:
            request.age.FromNanoseconds(int((time.monotonic() - first_sent) * 1e9))
        return stub.SubmitTransaction(request, timeout=15)

    return attempt


def persist(call, retry_for):
    """Calls until an answer comes. Returns (answer, None), or (None, what went wrong); the error's `outcome` tells what is known."""
    end = time.monotonic() + retry_for
    bound, in_doubt = 0.02, False
    while True:
        try:
            return call(), None
        except grpc.RpcError as error:
            reason = reason_of(error)
            retryable = reason in RETRYABLE
            if reason is None:
                taken = error.code() not in NOT_TAKEN
            else:
                taken = not retryable and error.code() not in NOT_TAKEN
            in_doubt = in_doubt or taken
            problem = {
                "outcome": "unknown" if in_doubt else "refused",
                "code": error.code().name,
                "reason": reason,
                "message": error.details(),
            }
        pause = random.uniform(0, bound)
        if not (retryable or taken) or time.monotonic() + pause >= end:
            return None, problem
        time.sleep(pause)
        bound = min(bound * 2, 1.0)


def outcome_of(transaction):
    """The word for a state; None while it is not decided."""
    state = transaction_pb2.TransactionState.Name(transaction.state).removeprefix("TRANSACTION_STATE_").lower()
    words = {"committing": "committed", "aborting": "aborted"}
    outcome = words.get(state, state)
    return outcome if outcome in EXIT else None


def shown(transaction):
    reason = transaction.abort_reason
    return {
        "outcome": outcome_of(transaction) or "unknown",
        "transaction_id": transaction.transaction_id,
        "request_id": transaction.request_id,
        "state": transaction_pb2.TransactionState.Name(transaction.state).removeprefix("TRANSACTION_STATE_").lower(),
        "abort_reason": None
        if not transaction.HasField("abort_reason")
        else {
            "code": transaction_pb2.AbortCode.Name(reason.code).removeprefix("ABORT_CODE_").lower(),
            "participant": reason.participant or None,
            "message": reason.message,
        },
        "branches": [
            {
                "number": branch.number,
                "participant": branch.participant,
                "state": transaction_pb2.BranchState.Name(branch.state).removeprefix("BRANCH_STATE_").lower(),
            }
            for branch in transaction.branches
        ],
    }


def run(arguments):
    request_id = arguments.request_id or str(uuid.uuid4())
    options = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000)]
    with grpc.insecure_channel(arguments.coordinator.removeprefix("http://"), options=options) as channel:
        stub = service_pb2_grpc.TransactionServiceStub(channel)
        request = transfer(arguments, request_id)
        answer, problem = persist(submitting(stub, request), arguments.retry_for)
        if problem:
            return {"request_id": request_id, **problem}
        look = service_pb2.GetTransactionRequest(transaction_id=answer.transaction.transaction_id)
        looked, problem = persist(lambda: stub.GetTransaction(look, timeout=5), arguments.retry_for)
        # The submit's answer stands, whether or not the look succeeds; but they must agree.
        result = shown(answer.transaction)
        result["looked_up"] = shown(looked.transaction) if looked else problem
        if looked and outcome_of(looked.transaction) != outcome_of(answer.transaction):
            raise SystemExit(f"the look-up disagrees with the answer: {json.dumps(result)}")
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coordinator", help="host:port, with http:// or without")
    parser.add_argument("debit", help="the participant that is debited")
    parser.add_argument("credit", help="the participant that is credited")
    parser.add_argument("--from-account", type=int, default=1)
    parser.add_argument("--to-account", type=int, default=1)
    parser.add_argument("--amount", type=int, default=1)
    parser.add_argument("--request-id", help="the idempotency key; a fresh UUID by default")
    parser.add_argument("--retry-for", type=float, default=30.0, metavar="SECONDS")
    result = run(parser.parse_args())
    print(json.dumps(result, indent=2))
    return EXIT[result["outcome"]]


if __name__ == "__main__":
    sys.exit(main())
