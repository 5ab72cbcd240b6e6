"""`python sandbox.py ERRNO CALL[,CALL…] COMMAND…`: the command in a seccomp sandbox where these calls fail (x86-64)."""

import ctypes
import errno
import os
import struct
import sys

CALLS = {
    "sched_getaffinity": 204,
    "sched_setaffinity": 203,
    "sched_setscheduler": 144,
    "sched_getscheduler": 145,
    "sched_yield": 24,
    "eventfd2": 290,
    "epoll_create1": 291,
    "pidfd_open": 434,
    "pidfd_send_signal": 424,
    "waitid": 247,
    "setitimer": 38,
    "prctl": 157,
}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def forbid(numbers: list[int], code: int) -> None:
    """Make the calls fail with the code for this process and all that it starts."""
    program = [struct.pack("HBBI", _LOAD, 0, 0, 0)]
    for number in numbers:
        program += [struct.pack("HBBI", _EQUAL, 0, 1, number), struct.pack("HBBI", _RETURN, 0, 0, _ERRNO | code)]
    program.append(struct.pack("HBBI", _RETURN, 0, 0, _ALLOW))
    code_bytes = ctypes.create_string_buffer(b"".join(program))
    header = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code_bytes))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    forbid([CALLS[name] for name in sys.argv[2].split(",")], getattr(errno, sys.argv[1]))
    os.execvp(sys.argv[3], sys.argv[3:])
