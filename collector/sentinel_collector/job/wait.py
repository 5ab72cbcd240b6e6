"""The wait for a job that is not, or no longer, recorded."""

import signal

from sentinel_collector.console import Console
from sentinel_collector.job.process import Job
from sentinel_collector.job.signals import Action, Signals
from sentinel_collector.job.waiter import detached_message

_POLL_S = 1.0


def wait_for_job(job: Job, signals: Signals, console: Console) -> int:
    """Forward signals until the job ends and return its exit code; 130 after the user's second Ctrl-C."""
    while not job.has_ended():
        for received in signals.wait(_POLL_S):
            action = job.decide(received)
            if action is Action.FORWARD:
                job.forward(received.signum)
            elif action is Action.DETACH:
                console.warn(detached_message(job.pid))
                return 128 + signal.SIGINT
    job.reap()
    assert job.exit_code is not None
    return job.exit_code
