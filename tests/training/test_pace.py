"""The time that devices wait for input: counted if they are idle, and only then."""

import time

import jax
import jax.numpy as jnp

from kernsym_jax.training.pace import STEPS_AHEAD, Ahead


def batches(seconds):
    while True:
        time.sleep(seconds)
        yield {"image": jnp.zeros(())}


class Unfinished:
    """An array that is ready after two milliseconds."""

    def block_until_ready(self):
        time.sleep(0.002)
        return self


def go(seconds, result):
    ahead = Ahead(batches(seconds))
    for _ in range(STEPS_AHEAD + 5):
        ahead.batch()
        ahead.started(result())
    return ahead.waited


def test_slow_input_before_idle_devices_counts_as_waiting():
    done = jax.block_until_ready(jnp.zeros(()))
    assert go(0.01, lambda: done) >= 5 * 0.01


def test_input_that_is_there_before_the_devices_are_done_does_not():
    assert go(0.01, Unfinished) == 0
