"""Laws of retries, rate and breaker, on a clock of our own."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from llmrl.language.asking import Asker, Manners
from llmrl.language.question import Answer, Provider, Question, Unanswered
from llmrl.language.spending import Budget, Ledger

QUESTION = Question(1, (0,), "state", ("jump",), user="user " * 60)
MANNERS = Manners(deadline=100.0, retries=3, backoff=1.0, patience=3, cooldown=10.0, max_cooldown=60.0)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


def asked(outcomes, times=1, manners=MANNERS, budget=None):
    """Asks ``times`` questions of a provider whose attempts end one after the other as listed, the last for ever.

    Returns:
        The questions' ends, the clock's time at each attempt, and the asker and its ledger.
    """
    clock, attempts = Clock(), []

    async def answer(question):
        outcome = outcomes[min(len(attempts), len(outcomes) - 1)]
        attempts.append(clock.now)
        if isinstance(outcome, Unanswered):
            raise outcome
        return outcome

    async def work():
        ledger = Ledger(budget or Budget(), clock)
        asker = Asker(Provider(identity="p", answer=answer, answer_limit=4), ledger, manners, clock, clock.sleep)
        ends = []
        for _ in range(times):
            try:
                ends.append(await asker.ask(QUESTION))
            except Unanswered as failure:
                ends.append(failure.kind)
        return ends, attempts, asker, ledger

    return asyncio.run(work())


GOOD = Answer((1.0,), "null", 100, 1)


def failure(kind, retry_after=None):
    return Unanswered(kind, "why", retry_after)


def test_a_passing_failure_is_tried_again_after_a_growing_wait():
    ends, attempts, *_ = asked([failure("server_error"), failure("timeout"), failure("unreachable"), GOOD])
    assert ends == [GOOD]
    waits = [later - earlier for earlier, later in pairwise(attempts)]
    assert all(0.5 * 2**i <= wait <= 2**i for i, wait in enumerate(waits))


@pytest.mark.parametrize("kind", ["unparseable", "no_logprobs", "refused_request", "rejected_key", "no_model"])
def test_another_failure_is_not(kind):
    ends, attempts, *_ = asked([failure(kind)])
    assert (ends, len(attempts)) == ([kind], 1)


def test_the_endpoints_own_wish_comes_first_and_stays_within_the_deadline():
    _, attempts, *_ = asked([failure("rate_limited", 7.0), failure("rate_limited", 9.0), GOOD])
    assert attempts == [0.0, 7.0, 16.0]
    ends, attempts, *_ = asked([failure("rate_limited", 101.0)])
    assert (ends, attempts) == (["rate_limited"], [0.0])


@pytest.mark.parametrize("wish", [None, -3.0, 0.0, 0.1])
def test_an_endpoint_cannot_wish_for_less_than_the_backoff(wish):
    _, attempts, *_ = asked([failure("rate_limited", wish)])
    waits = [later - earlier for earlier, later in pairwise(attempts)]
    assert len(waits) == MANNERS.retries
    assert all(wait >= 0.5 * 2**i for i, wait in enumerate(waits))


def test_an_attempt_in_other_words_follows_at_once_and_is_no_retry():
    ends, attempts, asker, ledger = asked([failure("adapted"), failure("adapted"), GOOD], manners=Manners(retries=0))
    assert (ends, attempts, asker.stopped) == ([GOOD], [0.0, 0.0, 0.0], None)
    assert ledger.counts()["requests"] == 3


def test_a_wish_longer_than_the_deadline_holds_the_next_question_back():
    ends, attempts, *_ = asked([failure("rate_limited", 50.0), GOOD], times=2, manners=Manners(deadline=5.0))
    assert (ends, attempts) == (["rate_limited", GOOD], [0.0, 50.0])


def test_the_breaker_opens_for_longer_each_time_and_closes_with_an_answer():
    manners = Manners(deadline=100.0, retries=0, patience=3, cooldown=10.0, max_cooldown=30.0)
    _, attempts, *_ = asked([failure("unreachable")], times=8, manners=manners)
    assert attempts == [0, 0, 0, 10, 30, 60, 90, 120]
    outcomes = [*[failure("unreachable")] * 4, GOOD, *[failure("unreachable")] * 4]
    _, attempts, _, ledger = asked(outcomes, times=9, manners=manners)
    assert attempts == [0, 0, 0, 10, 30, 30, 30, 30, 40]
    assert ledger.counts()["pauses"] == 4


def test_after_so_many_openings_nothing_more_is_asked():
    manners = Manners(deadline=100.0, retries=0, patience=2, cooldown=1.0, max_trips=2)
    ends, attempts, asker, _ = asked([failure("unreachable")], times=9, manners=manners)
    assert len(attempts) == 3
    assert ends == ["unreachable"] * 9
    assert str(asker.stopped) == "why"


@pytest.mark.parametrize("kind", ["rejected_key", "no_model", "redirected", "misconfigured"])
def test_a_failure_for_good_ends_all_asking(kind):
    ends, attempts, asker, _ = asked([failure(kind), GOOD], times=3)
    assert (ends, len(attempts), asker.stopped.kind) == ([kind] * 3, 1, kind)


def test_answers_that_are_never_of_use_end_all_asking_and_a_few_do_not():
    _, attempts, asker, _ = asked([failure("unparseable")], times=99, manners=Manners(max_final=20))
    assert len(attempts) == 20
    assert "20 answers in a row" in str(asker.stopped)
    mixed = [failure("unparseable")] * 19 + [GOOD]
    _, attempts, asker, _ = asked(mixed * 3, times=60, manners=Manners(max_final=20))
    assert len(attempts) == 60
    assert asker.stopped is None


def test_a_rate_spaces_attempts():
    _, attempts, *_ = asked([GOOD], times=4, manners=Manners(requests_per_minute=30.0))
    assert attempts == [0, 2, 4, 6]


@pytest.mark.parametrize("budget", [Budget(requests=3), Budget(tokens=450), Budget(seconds=2.5)])
def test_a_budget_ends_all_asking(budget):
    _, attempts, asker, ledger = asked([GOOD], times=9, manners=Manners(requests_per_minute=60.0), budget=budget)
    assert asker.stopped.kind == "budget"
    assert len(attempts) == 3 if budget.tokens is None else 1 <= len(attempts) <= 4
    assert ledger.counts()["tokens"] == 101 * len(attempts)
    assert ledger.counts()["requests"] == len(attempts)


def test_a_budget_of_nothing_asks_nothing():
    ends, attempts, *_ = asked([GOOD], budget=Budget(requests=0))
    assert (ends, attempts) == (["budget"], [])


def test_what_is_reserved_is_given_back():
    """Requests on their way count as if they took the longest answer; afterwards only what they took."""
    ledger = Ledger(Budget(tokens=250))
    provider = Provider(identity="p", answer_limit=100)
    reservation = ledger.reserve(provider, Question(1, (0,), "", ("jump",)))
    with pytest.raises(Unanswered):
        for _ in range(3):
            ledger.reserve(provider, Question(1, (0,), "", ("jump",)))
    ledger.settle(provider, reservation, Answer((1.0,), "null", 5, 1))
    assert ledger.counts()["tokens"] == 6
    ledger.reserve(provider, Question(1, (0,), "", ("jump",)))
