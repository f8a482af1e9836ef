"""Signals: the first is a wish, the second an exception, and afterwards all is as before."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from signal import SIGINT, SIGTERM, Signals
from typing import Any

import pytest

import bif
from bif.store.signals import Preempted, termination_raises, wishes_to_stop
from same_bits import assert_same_run, without_page
from small_problems import TINY, classification

RAISED: dict[Signals, type[BaseException]] = {SIGINT: KeyboardInterrupt, SIGTERM: Preempted}
each_signal = pytest.mark.parametrize("number", [SIGINT, SIGTERM])


def send(number: Signals) -> None:
    """To this very process, as a user or a cluster would."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs before the sleep or cuts it short


def handlers() -> dict[Signals, Any]:
    return {number: signal.getsignal(number) for number in RAISED}


@pytest.fixture(autouse=True)
def _unwanted_signals_do_not_kill() -> Iterator[list[int]]:
    """A signal that nobody catches is noted, and fails the test."""
    stray: list[int] = []
    before = handlers()
    for number in RAISED:
        signal.signal(number, lambda n, frame: stray.append(n))
    ours = handlers()
    yield stray
    assert handlers() == ours, "handlers were not put back"
    for number, handler in before.items():
        signal.signal(number, handler)
    assert not stray


class TestWishes:
    @each_signal
    def test_the_first_signal_is_noted_and_raises_nothing(self, number):
        with wishes_to_stop(terminate=True) as wish:
            assert wish.signal is None
            send(number)
            assert wish.signal is number

    @pytest.mark.parametrize("first", [SIGINT, SIGTERM])
    @pytest.mark.parametrize("second", [SIGINT, SIGTERM])
    def test_the_second_raises_what_it_asks_for_and_the_first_stays_noted(self, first, second):
        with wishes_to_stop(terminate=True) as wish:
            send(first)
            with pytest.raises(RAISED[second]):
                send(second)
            assert wish.signal is first

    def test_every_further_one_raises_again(self):
        with wishes_to_stop(terminate=False):
            send(SIGINT)
            for _ in range(3):
                with pytest.raises(KeyboardInterrupt):
                    send(SIGINT)

    def test_without_terminate_sigterm_is_left_to_whom_it_was(self, _unwanted_signals_do_not_kill):
        with wishes_to_stop(terminate=False) as wish:
            send(SIGTERM)
            assert wish.signal is None
        assert _unwanted_signals_do_not_kill == [SIGTERM]
        _unwanted_signals_do_not_kill.clear()

    def test_a_wish_is_granted_once(self):
        with wishes_to_stop(terminate=True) as wish:
            send(SIGINT)
        with wishes_to_stop(terminate=True) as another:
            assert another.signal is None and wish.signal is SIGINT


class TestTermination:
    def test_sigterm_raises_and_ctrl_c_is_left_alone(self, _unwanted_signals_do_not_kill):
        with termination_raises():
            with pytest.raises(Preempted, match="stopped by SIGTERM"):
                send(SIGTERM)
            send(SIGINT)
        assert _unwanted_signals_do_not_kill == [SIGINT]
        _unwanted_signals_do_not_kill.clear()

    def test_handlers_for_ordinary_errors_do_not_catch_it(self):
        assert not issubclass(Preempted, Exception)
        with pytest.raises(Preempted), termination_raises():
            try:
                send(SIGTERM)
            except Exception:
                pytest.fail("a user's handler kept the process alive")

    def test_inside_it_a_wish_comes_first_and_then_it_raises_again(self):
        with termination_raises():
            with wishes_to_stop(terminate=True) as wish:
                send(SIGTERM)
                assert wish.signal is SIGTERM
            with pytest.raises(Preempted):
                send(SIGTERM)


CONTEXTS: list[Callable[[], Any]] = [
    termination_raises,
    lambda: wishes_to_stop(terminate=True),
    lambda: wishes_to_stop(terminate=False),
]


class TestHandlers:
    @pytest.mark.parametrize("context", CONTEXTS)
    @pytest.mark.parametrize("error", [None, ValueError(), KeyboardInterrupt(), Preempted()])
    def test_they_are_put_back_whatever_happens_inside(self, context, error):
        before = handlers()
        try:
            with context():
                assert handlers() != before
                if error is not None:
                    raise error
        except BaseException as caught:
            assert caught is error
        assert handlers() == before

    @pytest.mark.parametrize("special", [signal.SIG_IGN, signal.SIG_DFL])
    def test_ignored_and_default_signals_stay_so_afterwards(self, special):
        own = signal.signal(SIGINT, special)
        try:
            with wishes_to_stop(terminate=False) as wish:
                send(SIGINT)
            assert wish.signal is SIGINT and signal.getsignal(SIGINT) is special
        finally:
            signal.signal(SIGINT, own)

    @pytest.mark.parametrize("context", CONTEXTS)
    def test_in_another_thread_nothing_is_handled_and_nothing_fails(self, context):
        def inside() -> tuple[dict[Signals, Any], Any]:
            assert threading.current_thread() is not threading.main_thread()
            with context() as wish:
                return handlers(), wish

        before = handlers()
        with ThreadPoolExecutor(1) as pool:
            found, wish = pool.submit(inside).result()
        assert found == before == handlers()
        assert wish is None or wish.signal is None


def test_a_run_in_another_thread_is_the_run_in_the_main_thread(tmp_path):
    problem = classification()
    with without_page(), ThreadPoolExecutor(1) as pool:
        there = pool.submit(bif.attribute, problem, TINY, out=tmp_path).result()
    assert_same_run(there, bif.attribute(problem, TINY))
