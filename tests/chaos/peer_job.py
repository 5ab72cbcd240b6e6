"""What a user of the peer would write: track this process for some seconds. Runs in the peer's own environment.

`python peer_job.py SECONDS`; the last line on stdout is the number of samples that it has taken.
"""

import sys
import time

from resource_tracker import ResourceTracker


def main() -> None:
    tracker = ResourceTracker(interval=1, upload_interval=4, discover_server=False, discover_cloud=False)
    tracker.start()
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        time.sleep(0.1)
        if (count := len(tracker.get_combined_metrics())) > 0:
            print(count, flush=True)
    tracker.stop()
    print(len(tracker.get_combined_metrics()), flush=True)


if __name__ == "__main__":
    main()
