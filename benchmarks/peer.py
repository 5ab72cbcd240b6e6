"""Runs the peer in an interpreter of its own, as its documentation describes it for a running process.

`python peer.py psutil|procfs INTERVAL`, in an environment that has resource-tracker. Lines on stdin: the pid to track,
then anything to stop. Lines on stdout: `ready`, the pids of the tracker's worker processes, the rows as JSON.

The peer uses psutil where it is installed, and reads `/proc` itself otherwise. For the latter, psutil is hidden. Its
cloud and server discovery are off, no token is set, and its sockets cannot connect.
"""

import json
import socket
import sys


def _no_network(*_: object) -> None:
    raise OSError("the benchmark connects to nothing")


def main() -> None:
    implementation, interval_s = sys.argv[1], float(sys.argv[2])
    socket.socket.connect = _no_network  # type: ignore[method-assign] # -- whatever the peer tries stays here
    if implementation == "procfs":
        sys.modules["psutil"] = None  # type: ignore[assignment] # -- how the import system spells "not installed"
    from resource_tracker import ResourceTracker
    from resource_tracker.helpers import get_tracker_implementation

    reader = get_tracker_implementation()[0]
    if not reader.__module__.endswith(implementation):
        raise SystemExit(f"asked for {implementation}, got {reader.__module__}")
    print("ready", flush=True)
    pid = int(sys.stdin.readline())
    tracker = ResourceTracker(pid=pid, interval=interval_s, discover_server=False, discover_cloud=False)
    tracker.start()
    print(tracker.process_tracker_process.pid, tracker.system_tracker_process.pid, flush=True)
    sys.stdin.readline()
    tracker.stop()
    print(json.dumps([tracker.process_metrics.to_dict(), tracker.system_metrics.to_dict()]), flush=True)
    tracker.cleanup()


if __name__ == "__main__":
    main()
