"""What a worker process does beside its firings: keeps leases, hears cancels, reaps, reports, ends well."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import redis
import structlog

from pixelkiln_shared import heap, keys
from pixelkiln_shared.costs import Costs
from pixelkiln_shared.errors import RedisUnavailable, Unavailable
from pixelkiln_shared.fleet import Fleet, State, unavailable
from pixelkiln_shared.previews import SIDE_PX, Previews
from pixelkiln_shared.settings import Settings
from pixelkiln_worker import hung_loads, imaging, reports
from pixelkiln_worker.held import Gone, HeldJob
from pixelkiln_worker.loops import Loop
from pixelkiln_worker.ringer import Ringer
from pixelkiln_worker.serving import (
    EXIT_DEAF,
    EXIT_DRAINED,
    EXIT_HUNG,
    EXIT_LOAD_HUNG,
    EXIT_POISONED,
    EXIT_SWOLLEN,
)
from pixelkiln_worker.workshop import Workshop

log = structlog.get_logger(__name__)

PULSE_S = 0.25  # progress is reported at most four times a second
REAP_S = 1.0  # by one process of the fleet: 0.04 ms of Redis, whatever waits
RING_S = 5.0  # a bell that nobody may heed yet is heard in vain, again and again
REPORT_S = 5.0
HUNG_GRACE_S = 5.0  # past its run timeout, a model that reaches a step within this time saves its process
DEAF_S = 60.0  # bells are rung every few seconds while jobs wait; an idle worker that takes none is stuck
SWOLLEN_S = 30.0  # memory that a process without jobs has not given back by then, it never will
LAST_WORDS_S = 2.0  # after a drain, for firings to notice and Celery to say goodbye


class Lifecycle:
    """The loops of one process.

    `exit_process` ends it at once, without any clean-up; `end_celery` makes it stop as SIGTERM does.
    """

    def __init__(
        self,
        shop: Workshop,
        *,
        ringer: Ringer,
        fleet: Fleet,
        client: redis.Redis,
        settings: Settings,
        exit_process: Callable[[int], object] = os._exit,
        end_celery: Callable[[], object] = lambda: os.kill(os.getpid(), signal.SIGTERM),
    ) -> None:
        self.exit_code = 0
        ringer.on_count = shop.telemetry.counted
        self._shop = shop
        self._ringer = ringer
        self._fleet = fleet
        self._client = client
        self._costs = Costs(client)
        self._settings = settings
        self._exit = exit_process
        self._end_celery = end_celery
        self._state: State = "starting"
        self._refuses = False
        self._started_at = datetime.now(UTC)
        self._given_back = threading.Event()
        self._drain_lock, self._asked_lock = threading.Lock(), threading.Lock()
        self._ring_at = 0.0
        self._slim_since = shop.telemetry.totals()
        self._reap_s = min(REAP_S, settings.heartbeat_s)
        self._heartbeat = Loop("heartbeat", self.heartbeat, settings.heartbeat_s)
        self._pulse = Loop("pulse", self.pulse, PULSE_S)
        self._report = Loop("report", self.report, REPORT_S)
        self._listener = Loop("listener", self.listen, REPORT_S)
        self._reaper = Loop("reaper", self.reap, self._reap_s)
        self._previews = Previews(client)
        self._shows = Loop("previews", self.show_previews, PULSE_S)
        self._wishes = Loop("wishes", self.hear_wishes, 0.0)

    def start(self) -> None:
        """Start the loops; the process reports itself as starting."""
        for loop in self._loops():
            loop.start()

    def stop(self) -> None:
        """End the loops after the calls under way, and say goodbye; in a drain, once all is given back."""
        if self._drain_lock.locked():
            self._given_back.wait(self._settings.drain_s + LAST_WORDS_S)
        for loop in self._loops():
            loop.stop()
        self._leave()

    def ready(self) -> None:
        """Report that bells are heard from now on."""
        self._shop.telemetry.shares.begin()
        self._shop.telemetry.busy()
        self._enter("ready")
        self._ringer.nudge()

    # ------------------------------------------------------------------------------------------------ loops

    def heartbeat(self) -> None:
        """Renew every lease in one call, and learn which jobs are canceled or no longer ours."""
        pairs = self._shop.held.pairs()
        if not pairs:
            return
        renewal = self._shop.ledger.renew(self._shop.worker_id, pairs, lease_s=self._shop.lease_s)
        self._shop.held.leave(renewal.canceling, Gone.CANCELED)
        self._shop.held.leave(renewal.lost, Gone.LOST)

    def pulse(self) -> None:
        """Report the steps reached, settle the jobs that left, and watch the clock of the running batch."""
        self._watch_the_clock()
        self._watch_the_load()
        self._watch_the_refusals()
        run = self._shop.compute.current
        computing = () if run is None else run.jobs
        for job in self._shop.held.jobs():
            # a canceled job stays ours until its model reaches a step; the others need no such moment
            stays = job.gone is Gone.CANCELED and job in computing and not job.at_boundary
            if job.gone is not None and not stays:
                self._shop.held.settle(job)
            elif job.wanted and job.step < job.steps and (job.step, job.steps) != job.reported:
                self._tell_progress(job)

    def show_previews(self) -> None:
        """Encode and tell the newest rough pictures; what came meanwhile, the next round shows."""
        for job in self._shop.held.jobs():
            pixels, job.preview = job.preview, None
            if pixels is not None and job.wanted:
                webp = imaging.preview_of(pixels, side_px=SIDE_PX)
                self._previews.put(job.id, webp, step=job.step, steps=job.steps)

    def reap(self) -> None:
        """Take expired leases back, unless another process just did; ring for what waits anywhere."""
        try:
            lock_ms = int(self._reap_s * 900)
            mine = self._client.set(keys.REAP_LOCK, self._shop.worker_id, nx=True, px=lock_ms)
        except redis.RedisError as error:
            raise RedisUnavailable("Redis does not answer") from error
        if mine:
            reaped = self._shop.ledger.reap()
            if reaped.requeued or time.monotonic() >= self._ring_at:
                self._ringer.bells.ring(reaped.lanes)
                self._ring_at = time.monotonic() + RING_S
            if reaped.requeued or reaped.failed:
                log.warning("leases had run out", requeued=reaped.requeued, failed=reaped.failed)

    def hear_wishes(self) -> None:
        """Listen for cancels and drains until the connection breaks; heartbeat and report bring the rest."""
        try:
            with self._client.pubsub(ignore_subscribe_messages=True) as channel:
                channel.subscribe(keys.CANCELS, keys.DRAINS)
                while not self._wishes.stopped:
                    message = channel.get_message(timeout=1.0)
                    if message is not None:
                        self._heed(_text(message["channel"]), _text(message["data"]))
        except redis.RedisError as error:
            raise RedisUnavailable("Redis does not answer") from error

    def report(self) -> None:
        """Tell the fleet how we are and what batches cost since; hear whether we are wanted any longer."""
        shop = self._shop
        unwanted = self._fleet.report(reports.of(shop, self._told_state(), started_at=self._started_at))
        if unwanted:
            self.drain_for_good()
        self._costs.learn(shop.telemetry.take_measured())
        self._see_who_else_can()
        self._slim()

    def _slim(self) -> None:
        """Give memory back, once after each spell of work."""
        done = self._shop.telemetry.totals()
        if done != self._slim_since and not self._shop.held.jobs():
            heap.trim()
            self._slim_since = done

    def listen(self) -> None:
        """End an idle process that takes nothing while jobs wait for long: deaf to bells, or stuck."""
        shop = self._shop
        if self._told_state() != "ready" or shop.held.jobs():
            shop.telemetry.busy()
        if shop.telemetry.idle_s < DEAF_S:
            return
        mine = {name for name, entry in shop.lanes.items() if not shop.residency.resting(entry.id)}
        waiting = [lane.lane for lane in shop.ledger.lanes() if lane.lane in mine and lane.oldest_s > DEAF_S]
        if waiting:
            silent_s = round(shop.telemetry.silent_s, 1)  # since the last bell
            log.error("jobs wait and none is claimed; the process ends", lanes=waiting, silent_s=silent_s)
            self._exit(EXIT_DEAF)

    # ---------------------------------------------------------------------------------------------- endings

    def drain(self) -> None:
        """Stop claiming, wait up to `drain_s` for what runs, give the rest back, and end. Returns at once."""
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def drain_for_good(self) -> None:
        """Drain because somebody asked for it, and end so that nobody starts this worker again."""
        if self._state == "draining" or not self._asked_lock.acquire(blocking=False):
            return
        self.exit_code = EXIT_DRAINED
        log.info("asked to drain")
        if self._state == "starting":  # Celery does not heed SIGTERM yet
            self.drain()
        else:  # as from outside: Celery stops hearing bells, and calls `drain`
            self._end_celery()

    def end_poisoned(self, suspects: Sequence[HeldJob]) -> None:
        """End the process after the device broke; on the device thread, so that nothing else runs there.

        The jobs that ran count as those of a process that died. What is computed already is still delivered,
        and everything else given back without blame.
        """
        shop = self._shop
        log.error("the device is broken; the process ends", jobs=[job.id for job in suspects])
        shop.held.leave([job.id for job in suspects], Gone.LOST)  # the ledger still counts them as held by us
        self._end_early()
        self._let_expire(suspects)
        self._exit(self.exit_code or EXIT_POISONED)

    def _drain(self) -> None:
        if not self._drain_lock.acquire(blocking=False):
            return
        shop = self._shop
        shop.draining.set()
        self._enter("draining")
        self._give_back(lambda job: not job.started)
        shop.held.wait_until_empty(self._settings.drain_s)
        self._give_back(lambda job: True)
        self._given_back.set()
        self._report.stop()
        self._leave()
        time.sleep(LAST_WORDS_S)
        self._exit(self.exit_code)

    def _leave(self) -> None:
        try:
            self._fleet.leave(self._shop.worker_id)
            self._costs.learn(self._shop.telemetry.take_measured())
        except RedisUnavailable:
            log.info("Redis heard no goodbye")
        self._shop.spool.close()

    def _loops(self) -> tuple[Loop, ...]:
        mine = (self._heartbeat, self._pulse, self._shows, self._report, self._listener, self._reaper)
        return (*mine, self._wishes, self._ringer.loop)

    def _give_back(self, which: Callable[[HeldJob], bool]) -> None:
        jobs = [job for job in self._shop.held.jobs() if which(job)]
        self._shop.held.leave([job.id for job in jobs], Gone.DRAINED)
        try:
            for job in jobs:
                self._shop.held.settle(job)
            self._ringer.ring()
        except Unavailable:
            log.warning("Redis is away: leases will run out instead", jobs=[job.id for job in jobs])

    def _watch_the_refusals(self) -> None:
        reason = self._shop.refusals.reason
        if bool(reason) != self._refuses:
            self._refuses = bool(reason)
            if reason:
                log.warning("no jobs are taken for now", reason=reason)
            else:
                log.info("jobs are taken again")
            self._report.nudge()
        idle = self._state == "ready" and self._shop.residency.loading is None and not self._shop.held.jobs()
        if idle and self._shop.refusals.swollen_s > SWOLLEN_S:
            log.error("memory stays above its ceiling; the process ends", reason=reason)
            self._end_early()
            self._exit(self.exit_code or EXIT_SWOLLEN)

    def _watch_the_clock(self) -> None:
        run = self._shop.compute.current
        if run is None:
            return
        took_s = time.monotonic() - run.began
        late = [job.id for job in run.jobs if took_s > job.spec.run_timeout_s]
        self._shop.held.leave(late, Gone.TIMED_OUT)
        if len(late) == len(run.jobs) and took_s > self._longest(run.jobs) + HUNG_GRACE_S:
            log.error("the model hangs; the process ends", jobs=late, took_s=round(took_s, 1))
            self._end_hung(run.jobs)

    def _watch_the_load(self) -> None:
        loading = self._shop.residency.loading
        if loading is None or loading[1] <= self._settings.load_timeout_s:
            return
        model, took_s = loading
        log.error("a model hangs while it loads; the process ends", model=model, took_s=round(took_s, 1))
        hung_loads.note(self._shop.spool.folder.parent, model)
        self._end_early()  # nobody is to blame: no job had the model yet
        self._exit(self.exit_code or EXIT_LOAD_HUNG)

    def _end_hung(self, hung: tuple[HeldJob, ...]) -> None:
        """A forward pass cannot be interrupted from outside: save what can be saved, and end the process."""
        for job in hung:
            self._shop.held.settle(job)
        self._end_early()
        self._exit(self.exit_code or EXIT_HUNG)

    def _end_early(self) -> None:
        """Save what can be saved in a few seconds, and say goodbye."""
        self._shop.draining.set()
        self._give_back(lambda job: not job.started)
        self._shop.held.wait_until_empty(HUNG_GRACE_S)
        self._give_back(lambda job: True)
        self._report.stop()
        self._leave()

    def _let_expire(self, jobs: Sequence[HeldJob]) -> None:
        """Let the leases of these jobs end now, not in a while, and take them back with the usual blame."""
        pairs = [(job.id, job.attempt) for job in jobs]
        try:
            self._shop.ledger.renew(self._shop.worker_id, pairs, lease_s=0)
            self._ringer.bells.ring(self._shop.ledger.reap().lanes)
        except Unavailable:
            log.warning("Redis is away: leases will run out instead", jobs=[job.id for job in jobs])

    def _heed(self, channel: str, name: str) -> None:
        if channel == keys.CANCELS:
            self._shop.held.leave([name], Gone.CANCELED)
        elif name == self._shop.worker_id:
            self.drain_for_good()

    def _see_who_else_can(self) -> None:
        """Where no worker can load a model that we could not, its jobs are told so instead of waiting."""
        broken = self._shop.residency.unavailable
        if not broken:
            return
        workers = self._fleet.workers()
        hopeless = {model for model in broken if unavailable(workers, model) is not None}
        if self._shop.residency.nobody_loads(hopeless):
            self._ringer.nudge()

    def _told_state(self) -> State:
        return "refusing" if self._state == "ready" and self._shop.refusals.reason else self._state

    def _enter(self, state: State) -> None:
        self._state = state
        self._report.nudge()

    def _tell_progress(self, job: HeldJob) -> None:
        reached = (job.step, job.steps)
        if self._shop.ledger.progress(job.id, job.attempt, *reached):
            job.reported = reached
        else:
            self._shop.held.leave([job.id], Gone.LOST)

    @staticmethod
    def _longest(jobs: tuple[HeldJob, ...]) -> float:
        return max(job.spec.run_timeout_s for job in jobs)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
