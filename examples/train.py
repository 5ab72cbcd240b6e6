"""A small training job: worker processes, CPU, memory and files, with the standard library alone.

Fits a logistic regression to made-up data with gradient descent; workers compute the gradients of their shares,
and a checkpoint is written after every epoch.
"""

import json
import math
import multiprocessing
import os
import random
import sys
import tempfile
import time

FEATURES = 24
SAMPLES_PER_WORKER = 4_000


def gradient(task: tuple[int, list[float]]) -> tuple[list[float], float]:
    """Return the gradient and the loss over one worker's share of the data."""
    seed, weights = task
    rng = random.Random(seed)  # noqa: S311 -- made-up data
    total = [0.0] * FEATURES
    loss = 0.0
    for _ in range(SAMPLES_PER_WORKER):
        features = [rng.gauss(0, 1) for _ in range(FEATURES)]
        label = 1.0 if features[0] + 0.5 * features[1] - 0.25 * features[2] > 0 else 0.0
        score = sum(weight * value for weight, value in zip(weights, features, strict=True))
        guess = 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))
        loss -= math.log(max(1e-12, guess if label else 1 - guess))
        error = guess - label
        for index, value in enumerate(features):
            total[index] += error * value
    return [value / SAMPLES_PER_WORKER for value in total], loss / SAMPLES_PER_WORKER


def main(seconds: float, workers: int) -> None:
    """Train for about so long and say how the loss went down."""
    weights = [0.0] * FEATURES
    cache = bytearray(os.urandom(1 << 20) * 64)  # a data set that stays in memory
    began = time.monotonic()
    epoch = 0
    with multiprocessing.Pool(workers) as pool, tempfile.TemporaryDirectory() as directory:
        while time.monotonic() - began < seconds:
            epoch += 1
            results = pool.map(gradient, [(1000 * epoch + worker, weights) for worker in range(workers)])
            for gradients, _ in results:
                weights = [weight - 0.5 * step for weight, step in zip(weights, gradients, strict=True)]
            loss = sum(loss for _, loss in results) / len(results)
            with open(os.path.join(directory, "checkpoint.json"), "w", encoding="utf-8") as file:
                json.dump({"epoch": epoch, "weights": weights, "padding": cache[: 1 << 20].hex()}, file)
            if epoch % 10 == 1:
                print(f"epoch {epoch}: loss {loss:.4f}")
    print(f"trained {epoch} epochs, loss {loss:.4f}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0, int(sys.argv[2]) if len(sys.argv) > 2 else 2)
