"""Models that run at once in threads of one process, while another thread changes the settings of all kernels; children of fork.

What goes wrong there ends a process or hangs, so test_concurrency.py gives each check one of its own: `python at_once.py CHECK`.
"""

import itertools
import os
import signal
import sys
import threading
import time

import numpy as np
from families import FAMILIES, model_of

import gpt2c
from gpt2c import _core

ROUNDS = 8


def batch():
    ids = np.random.default_rng(1).integers(0, 20, (8, 65))
    return ids[:, :-1], ids[:, 1:]


def step(model):
    """One step's loss and gradients, as bits."""
    model.reset_state()
    loss = model.loss_and_grad(*batch())
    return np.float64(loss).tobytes(), model.grads.flat.tobytes()


def at_once(tasks, meanwhile):
    """The results of tasks, each in a thread of its own, while one more does `meanwhile` again and again."""
    results, errors, done = [None] * len(tasks), [], threading.Event()
    begin = threading.Barrier(len(tasks) + 1)

    def run(number, task):
        begin.wait()
        try:
            results[number] = task()
        except BaseException as error:
            errors.append(error)

    def change():
        begin.wait()
        while not done.is_set():
            meanwhile()

    workers = [threading.Thread(target=run, args=each) for each in enumerate(tasks)]
    changer = threading.Thread(target=change)
    for thread in (*workers, changer):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    changer.join()
    if errors:
        raise errors[0]
    return results


def steps_keep_their_bits():
    """Whatever the number of threads becomes meanwhile."""
    alone = [step(model_of(family)) for family in FAMILIES]
    models = [model_of(family) for family in FAMILIES]
    numbers = itertools.cycle([1, 2, 3, 9])
    tasks = [lambda model=model: [step(model) for _ in range(ROUNDS)] for model in models]
    for bits, found in zip(alone, at_once(tasks, lambda: gpt2c.set_num_threads(next(numbers)))):
        assert found == ROUNDS * [bits]


def a_run_keeps_its_settings():
    """What another thread sets holds from the next run on: each run has the bits of one setting, not of a mixture."""
    every = [*itertools.product(_core.isas(), ("fp32", "bf16"), (1, 3))]
    settings = itertools.cycle(every)

    def choose(isa, precision, threads):
        gpt2c.set_isa(isa)
        gpt2c.set_matmul_precision(precision)
        gpt2c.set_num_threads(threads)

    x, w = np.random.default_rng(1).standard_normal((2, 64, 64), np.float32)

    def chain():
        """One program of products, each of the one before: a change between two of them would show."""
        arrays = [x, *(np.empty_like(x) for _ in range(40))]
        stream = _core.Stream("record")
        for before, after in itertools.pairwise(arrays):
            stream.matmul_forward(after, before, w)
            stream.layernorm_forward(after, after[0].copy(), after[1].copy(), after, w[0], w[1])
        return arrays[-1], stream.program()

    def results(program, out, count):
        for _ in range(count):
            program.run()
            yield out.tobytes()

    known = set()
    out, program = chain()
    for setting in every:
        choose(*setting)
        known |= {*results(program, out, 1)}
    pairs = [chain() for _ in range(3)]
    tasks = [lambda out=out, program=program: {*results(program, out, 300)} for out, program in pairs]
    found = set().union(*at_once(tasks, lambda: choose(*next(settings))))
    assert len(found) > 1 and found <= known, (len(found), len(known), len(found - known))


def threads_that_come_during_a_run_wait_for_the_next():
    """They would have no scratch."""
    gpt2c.set_num_threads(1)
    x, w = np.random.default_rng(1).standard_normal((2, 512, 512), np.float32)
    out, stream = np.empty_like(x), _core.Stream("record")
    for _ in range(40):
        stream.matmul_forward(out, x, w)
    program = stream.program()

    def twice():
        for _ in range(2):
            program.run()
            yield out.tobytes()

    def later():
        time.sleep(0.02)
        gpt2c.set_num_threads(64)

    ((first, second),) = at_once([lambda: [*twice()]], later)
    assert first == second


def a_program_runs_once_at_a_time():
    a, b = np.zeros((2, 1 << 20), np.float32)
    stream = _core.Stream("record")
    for _ in range(50):
        stream.add_scaled(a, b, 1.0)
    program, refused = stream.program(), []

    def run():
        for _ in range(20):
            try:
                program.run()
            except RuntimeError as error:
                refused.append(str(error))

    at_once([run, run], lambda: None)
    assert {*refused} == {"this program is running in another thread: record one, or make a model, for each thread"}
    program.run()  # and is free again


def in_child(check):
    child = os.fork()
    if child == 0:
        signal.alarm(15)  # nobody would end one that hangs
        code = 1
        try:
            check()
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


FORKED = (
    "the number of threads is 2, expected 1: this process was forked from one whose kernels had run on several threads, which "
    "fork does not copy; start it with spawn to have more"
)


def a_child_goes_on_with_one_thread():
    """And gets the bits that several give."""
    model = model_of("gpt2")
    gpt2c.set_num_threads(3)
    bits = step(model)

    def check():
        assert step(model) == bits
        assert gpt2c.info()["threads"] == 1
        gpt2c.set_num_threads(1)
        try:
            gpt2c.set_num_threads(2)
        except gpt2c.UsageError as error:
            assert str(error) == FORKED, error
        else:
            raise AssertionError("not refused")
        assert gpt2c.info()["threads"] == 1

    in_child(check)
    in_child(lambda: in_child(check))
    assert gpt2c.info()["threads"] == 3 and step(model) == bits


def a_child_may_have_the_first_threads():
    """Where the parent has run kernels on one thread only, or none."""
    model = model_of("gpt2")

    def check():
        assert gpt2c.info()["threads"] == threads
        gpt2c.set_num_threads(3)
        step(model)

    gpt2c.set_num_threads(threads := 2)
    in_child(check)
    gpt2c.set_num_threads(threads := 1)
    step(model)
    in_child(check)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
