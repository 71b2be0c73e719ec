"""Reloads and their results in memory that several processes share."""

from __future__ import annotations

import sys
import threading

from restante.app.reloads import Refusal, Reloads


def test_results_of_reloads() -> None:
    reloads = Reloads(2)
    assert (reloads.refusal(), reloads.accepted, reloads.is_requested) == (None, 0, False)
    first = reloads.request(1)
    assert (first, reloads.is_requested, reloads.result(first)) == (1, True, False)
    assert reloads.begin() == first
    assert (reloads.is_requested, reloads.result(first)) == (False, False)
    second = reloads.request(0)  # the reload that has begun may have read the files already
    reloads.end("the reason")
    refused = reloads.result(first)
    assert isinstance(refused, Refusal)
    assert (refused.number, refused.reason) == (first, "the reason")
    assert reloads.result(second) is False
    assert reloads.begin() == second == 2
    reloads.end(None)
    assert (reloads.result(second), reloads.accepted) == (True, 2)
    assert reloads.refusal() == refused
    assert (reloads.accepted_count, reloads.refused_count) == (1, 1)
    assert [reloads.adopted(worker) for worker in (0, 1)] == [0, 0]
    reloads.adopt(1, second)
    assert [reloads.adopted(worker) for worker in (0, 1)] == [0, 2]


def test_reasons_of_any_length_and_text() -> None:
    reloads = Reloads(1)
    for reason in ("", "x", "x" * 2000, "\0", "one\ntwo", "\u00e9" * 1000, "\ud800"):
        reloads.begin()
        reloads.end(reason)
        refusal = reloads.refusal()
        assert refusal is not None
        assert refusal.reason == reason.replace("\ud800", "?")
    reloads.begin()
    reloads.end("\u00e9" + "x" * 5000)
    refusal = reloads.refusal()
    assert refusal is not None
    assert refusal.reason == "\u00e9" + "x" * 1998


def test_refusal_that_is_read_while_another_is_written_is_complete() -> None:
    reloads, is_over, before = Reloads(1), False, sys.getswitchinterval()

    def write() -> None:
        nonlocal is_over
        for _ in range(5000):
            number = reloads.begin()
            reloads.end(f"{number} " * (number % 300 + 1))
        is_over = True

    sys.setswitchinterval(1e-6)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not is_over:
            if refusal := reloads.refusal():
                words = refusal.reason.split(" ")[:-1]
                if len(words) < 300:  # not cut off
                    assert set(words) == {str(refusal.number)}
                    assert len(words) == refusal.number % 300 + 1
    finally:
        sys.setswitchinterval(before)
        writer.join()
