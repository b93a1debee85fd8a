"""Pieces of text to ids, on several processes, in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from gpt2c.data.documents import Piece
from gpt2c.data.reading import BLOCK
from gpt2c.errors import DataError, InputError
from gpt2c.support.machine import cores
from gpt2c.tokenizers.conventions import conventions, with_conventions
from gpt2c.tokenizers.tokenizer import Tokenizer

WORTH_PROCESSES = 8 << 20  # bytes of text below which starting processes takes longer than encoding
MOST_WORKERS = 8  # one process reads for all; each takes some 60 MB

_tokenizer = None  # of this worker process


def encode(piece, tokenizer):
    """The ids of a piece, the token that opens a text before the first of a document."""
    try:
        ids = np.asarray(tokenizer.encode_array(piece.text), np.int32)
    except InputError as error:
        raise DataError(f"{piece.where}: {error}") from None
    return np.concatenate([[tokenizer.opens], ids], dtype=np.int32) if piece.first and tokenizer.opens is not None else ids


def encode_pieces(pieces: Iterator[Piece], tokenizer, total, workers=0) -> Iterator[tuple[str, np.ndarray, int]]:
    """(part, ids, where the text begins among all bytes) of each job, in order; `total` bytes are to come."""
    workers = workers or (min(cores(), MOST_WORKERS) if total > WORTH_PROCESSES else 1)
    jobs = _jobs(pieces)
    if workers == 1:
        for job in jobs:
            yield job[0].part, _encode_job(job, tokenizer), job[0].at
        return
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (tokenizer.to_json(), conventions(tokenizer))) as pool:
        waiting: deque[tuple] = deque()
        try:
            with _interrupts_ignored():  # the processes that the first job starts take this over
                pool.submit(int).result()
            for job in jobs:
                waiting.append((job[0].part, pool.submit(_encode_job, job), job[0].at))
                if len(waiting) > 2 * workers:
                    part, result, at = waiting.popleft()
                    yield part, result.result(), at
            for part, result, at in waiting:
                yield part, result.result(), at
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_ignored():
    """Ctrl-C reaches all processes of a terminal; the first one ends the others."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _jobs(pieces):
    """Pieces of one part in lists of about a block of text."""
    job, size = [], 0
    for piece in pieces:
        if job and (size >= BLOCK or piece.part != job[0].part):
            yield job
            job, size = [], 0
        job.append(piece)
        size += len(piece.text)
    if job:
        yield job


def _start_worker(tokenizer_json, found):
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already
    _tokenizer = with_conventions(Tokenizer.from_json(tokenizer_json), found)


def _encode_job(job, tokenizer=None):
    return np.concatenate([encode(piece, tokenizer or _tokenizer) for piece in job])
