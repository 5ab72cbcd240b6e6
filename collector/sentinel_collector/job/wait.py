"""Being the job's wrapper and nothing else."""

import signal

from sentinel_collector.console import Console
from sentinel_collector.job.process import Job
from sentinel_collector.job.signals import Action, SignalPolicy, Signals

_POLL_S = 1.0


def wait_for_job(job: Job, signals: Signals, console: Console) -> int:
    """Forward signals until the job has ended and return its exit code (130 when the user's second Ctrl-C meant us)."""
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
    """Return what is said when we leave before the job does."""
    return f"the job goes on (process {job.pid}) and is not recorded any more"
