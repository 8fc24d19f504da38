"""Metrics to scale by: seconds of work in each lane, how many workers that needs, how many can go."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily

from pixelkiln.scaling import Outlook


def of_outlook(outlook: Outlook, target_s: float) -> Iterator[GaugeMetricFamily]:
    """Yield the families; a lane of which nothing is learned yet has no seconds."""
    work = GaugeMetricFamily(
        "pixelkiln_queue_work_seconds", "How long one worker would run what waits", labels=["lane"]
    )
    servable = GaugeMetricFamily(
        "pixelkiln_queue_servable", "1 when a ready worker serves the lane, else 0", labels=["lane"]
    )
    for lane in outlook.lanes:
        servable.add_metric([lane], outlook.servable(lane))
        work_s = outlook.waiting_s(lane)
        if work_s is not None:
            work.add_metric([lane], work_s)
    yield from (work, servable)
    yield GaugeMetricFamily(
        "pixelkiln_desired_workers",
        "Worker processes that finish what waits within PIXELKILN_SCALE_TARGET_S",
        value=outlook.desired_workers(target_s),
    )
    yield GaugeMetricFamily(
        "pixelkiln_workers_safe_to_stop",
        "Workers that hold no job and are not needed",
        value=len(outlook.safe_to_stop(target_s)),
    )
