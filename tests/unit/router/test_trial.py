"""Who is suspected of a worker's death, and who is let off."""

from __future__ import annotations

from services.router.relay.attempt import Blame
from services.router.relay.flight import Flight
from services.router.sessions.trial import trial
from tests.support.flights import IDS, flight, news, seated


def fresh() -> Flight:
    return seated(flight())


def streaming() -> Flight:
    it = fresh()
    it.advance(news(0, IDS[:1]), 2.0)
    return it


def suspect() -> Flight:
    it = fresh()
    it.lose_worker(Blame.SUSPECTED, resumes=2)
    return seated(it, "other")


def verdicts(*flights: Flight) -> list[Blame]:
    verdict = trial(flights)
    return [verdict.of(each) for each in flights]


async def test_what_was_streaming_is_innocent_and_what_had_just_come_is_suspected() -> None:
    assert verdicts(streaming(), fresh()) == [Blame.NONE, Blame.SUSPECTED]


async def test_the_only_one_that_was_at_two_deaths_is_convicted_and_all_others_are_cleared() -> None:
    guilty, newcomer, old = suspect(), fresh(), streaming()
    assert verdicts(guilty, newcomer, old) == [Blame.CONVICTED, Blame.NONE, Blame.NONE]
    assert trial([guilty, newcomer, old]).cleared == {newcomer, old}


async def test_two_old_suspects_at_one_death_are_not_told_apart() -> None:
    assert verdicts(suspect(), suspect()) == [Blame.SUSPECTED, Blame.SUSPECTED]


async def test_a_suspect_that_got_a_token_is_cleared() -> None:
    it = suspect()
    it.advance(news(0, IDS[:1]), 3.0)
    assert verdicts(it) == [Blame.NONE]
    it.lose_worker(Blame.NONE, resumes=2)
    assert not it.suspected


async def test_what_came_after_the_last_sign_of_life_is_no_suspect() -> None:
    early, late = fresh(), fresh()
    early.submitted_s, late.submitted_s = 10.0, 10.4
    verdict = trial([early, late], until_s=10.3)
    assert [verdict.of(early), verdict.of(late)] == [Blame.SUSPECTED, Blame.NONE]
