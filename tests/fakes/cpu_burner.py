"""The beginning of a job's code that uses CPU time, forks, and waits to be told to go on."""

BURN = """
import os, signal, sys, threading, time

def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

def child(work, *args):
    pid = os.fork()
    if pid == 0:
        work(*args)
        os._exit(0)
    return pid

def said(word):
    print(word, flush=True)
    sys.stdin.readline()
"""
"""Defines `burn(seconds)`, `child(work, *args)`, which returns a pid, and `said(word)`, which waits for a line."""
