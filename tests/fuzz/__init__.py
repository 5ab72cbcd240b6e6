"""Frames that no collector sends, against the decoder and the intake's whole state machine with a real spool.

Bytes are read as a play of a few steps: several clients speak, well or not, time passes, the uploader delivers or is
killed, and between all that one honest client goes on. `play.play` raises where anything is not as promised.
`python -m fuzz` (`make fuzz`) lets a fuzzer write the bytes, `test_fuzz.py` replays `corpus/` and a little more.
"""
