"""How receivers do, as metrics and `doctor` ask, on both outboxes."""

from __future__ import annotations

from pixelkiln_shared.keys import FAILING_S, GONE_S
from pixelkiln_shared.ledger.outbox import OutboxState, Word
from tests.contract.test_outbox import OTHER, ended
from tests.ledger_worlds import World


def state(world: World) -> tuple[int, int]:
    found = world.outbox.state()
    return found.failing, found.gone


def test_where_nobody_is_told_nothing_fails(world: World) -> None:
    assert world.outbox.state() == OutboxState(failing=0, gone=0, late_s=0.0)


def test_receivers_that_fail_are_counted_until_they_take_something(world: World) -> None:
    ended(world, 3)
    ended(world, webhook=OTHER)
    for delivery in world.outbox.claim(10):
        world.outbox.settle(delivery, Word.FAILED, error="timeout")
    assert state(world) == (2, 0)
    world.clock.advance(5)
    for delivery in world.outbox.claim(10):
        world.outbox.settle(delivery, Word.DELIVERED if delivery.url == OTHER else Word.FAILED)
    assert state(world) == (1, 0)
    world.clock.advance(FAILING_S)
    assert state(world) == (0, 0)


def test_urls_that_want_no_more_are_counted_while_they_are_left_alone(world: World) -> None:
    ended(world)
    for delivery in world.outbox.claim(10):
        world.outbox.settle(delivery, Word.GONE, response=410, error="gone")
    assert state(world) == (0, 1)
    world.clock.advance(GONE_S)
    assert state(world) == (0, 0)


def test_a_message_that_nobody_sends_is_late(world: World) -> None:
    ended(world)
    world.clock.advance(90)
    assert world.outbox.state().late_s == 90
    (delivery,) = world.outbox.claim(10)
    assert world.outbox.state().late_s == 0
    world.outbox.settle(delivery, Word.FAILED, error="timeout")
    assert world.outbox.state().late_s == 0
