"""The wait for a job that is not, or no longer, recorded."""

import signal

from sentinel_collector.console import Console
from sentinel_collector.job.process import Job
from sentinel_collector.job.signals import Action, SignalPolicy, Signals

_POLL_S = 1.0


def wait_for_job(job: Job, signals: Signals, console: Console) -> int:
    """Forward signals until the job ends and return its exit code; 130 after the user's second Ctrl-C."""
    policy = SignalPolicy(job.contains)
    while not job.has_ended():
        for received in signals.wait(_POLL_S):
            action = policy.decide(received)
            if action is Action.FORWARD:
                job.forward(received.signum)
            elif action is Action.DETACH:
                console.warn(detached_message(job))
                return 128 + signal.SIGINT
    job.reap()
    assert job.exit_code is not None
    return job.exit_code


def detached_message(job: Job) -> str:
    """Return the message for a collector that ends before its job."""
    return f"the job continues (process {job.pid}), but is no longer recorded"
