"""The gallery's addresses: `/`, `/jobs/{id}` and the pictures on them, and the login where a key is asked."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from jinja2 import Environment, FileSystemLoader
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from pixelkiln.api import cursors
from pixelkiln.api.auth import SESSION_COOKIE, SESSION_S, CurrentCaller, address_of
from pixelkiln.api.services import Parts
from pixelkiln.api.views import Views
from pixelkiln.gallery import cards
from pixelkiln.gallery.cards import Card
from pixelkiln.gallery.snippets import request_of, snippets
from pixelkiln.records import result_of, spec_of
from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.errors import InvalidCursor, NotFound
from pixelkiln_shared.jobs import Artifact, Status
from pixelkiln_shared.kinds import INPUTS, Kind, Role

PAGE = 36
MESSAGES = 5  # the newest to receivers on a job's page; all are in the API
STATIC = Path(__file__).with_name("static")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-store"}
_FILE_HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cache-Control": "private, max-age=31536000, immutable",
}

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.globals.update(Role=Role, Status=Status, Kind=Kind)
_templates.globals.update(address=cards.address, caption=cards.caption, tries=cards.tries)

router = APIRouter(include_in_schema=False)


def page(template: str, *, status_code: int = 200, **context: Any) -> HTMLResponse:
    """Return a rendered template."""
    text = _templates.get_template(template).render(**context)
    return HTMLResponse(text, status_code=status_code, headers=_PAGE_HEADERS)


@router.get("/")
def front(
    request: Request,
    parts: Parts,
    caller: CurrentCaller,
    status: str = "",
    kind: str = "",
    group: str = "",
    cursor: str = "",
) -> Response:
    """Show the jobs, newest first."""
    listing = _listing(request, parts, caller.tenant, status, kind, group, cursor)
    counts = parts.producer.ledger.counts(caller.tenant)
    return page(
        "jobs.html",
        **listing,
        counts={one: counts.get(one, 0) for one in Status},
        total=sum(counts.values()),
        models=[entry for entry in parts.producer.catalogue if Kind.GENERATE in entry.kinds],
        editors=_editors(parts),
        kinds=[one for one in Kind if any(one in entry.kinds for entry in parts.producer.catalogue)],
        tasks=_tasks(parts),
        **frame(parts),
    )


@router.get("/cards")
def grid(
    request: Request,
    parts: Parts,
    caller: CurrentCaller,
    status: str = "",
    kind: str = "",
    group: str = "",
    cursor: str = "",
) -> Response:
    """Return the cards alone, for a page that is open."""
    return page("cards.html", **_listing(request, parts, caller.tenant, status, kind, group, cursor))


@router.get("/live")
async def live(
    parts: Parts, caller: CurrentCaller, jobs: Annotated[str, Query(max_length=2_048)] = ""
) -> Response:
    """Stream what happens to the jobs named: one connection a page, where a browser allows six a server."""
    mine = await run_in_threadpool(_mine, parts, caller.tenant, jobs.split(",")[:PAGE])
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(parts.watcher.moving(mine), media_type="text/event-stream", headers=headers)


@router.get("/jobs/{job_id}")
def job(job_id: str, request: Request, parts: Parts, caller: CurrentCaller) -> Response:
    """Show one job."""
    try:
        record = parts.producer.get(job_id, caller.tenant)
    except NotFound:
        return page("missing.html", status_code=404, **frame(parts))
    views = Views.of(request, parts)
    found = views.job(record, live=True)
    card = Card(found)
    return page(
        "job.html",
        card=card,
        job=found,
        again=request_of(found),
        mask=cards.first(found.artifacts, Role.MASK),
        annotations=cards.first(found.artifacts, Role.ANNOTATIONS),
        named=cards.named(found),
        to_do=[task for task in _tasks(parts) if task[0] is not found.kind] if card.ready else [],
        editors=_editors(parts) if card.ready else [],
        cutouts=[one for one in found.artifacts if one.role is Role.CUTOUT],
        parameters=cards.parameters(found.input),
        timeline=cards.timeline(found),
        stalled=cards.stalled(found),
        messages=parts.outbox.of(record.id)[:MESSAGES],
        snippets=snippets(found, views.base, parts.producer.catalogue, closed=parts.gate.closed),
        **frame(parts),
    )


# ------------------------------------------------------------------------------------------------ pictures


@router.get("/jobs/{job_id}/files/{role}/{index}")
def file(
    job_id: str, role: Role, index: int, parts: Parts, caller: CurrentCaller, name: str | None = None
) -> Response:
    """Return an artifact; through here it also reaches pages when it lies in somebody else's store."""
    artifact = _artifact(parts, job_id, caller.tenant, role, index)
    headers = dict(_FILE_HEADERS)
    if name:
        ending = artifact.key.rpartition(".")[2]
        headers["Content-Disposition"] = f'attachment; filename="{job_id}-{role}-{index}.{ending}"'
    return Response(parts.producer.storage.get(artifact.key), media_type=artifact.media_type, headers=headers)


@router.get("/jobs/{job_id}/thumb/{role}/{index}")
def thumb(job_id: str, role: Role, index: int, parts: Parts, caller: CurrentCaller) -> Response:
    """Return a small picture of an artifact."""
    artifact = _artifact(parts, job_id, caller.tenant, role, index)
    if role not in cards.PICTURES:
        raise NotFound("no such picture")
    return Response(parts.thumbnails.of(artifact.key), media_type="image/webp", headers=_FILE_HEADERS)


@router.get("/jobs/{job_id}/input/{field}")
def input_picture(
    job_id: str, field: str, parts: Parts, caller: CurrentCaller, small: Annotated[bool, Query()] = False
) -> Response:
    """Return a picture a job was given."""
    spec = spec_of(parts.producer.get(job_id, caller.tenant))
    image = (spec.input.get(field) if field in INPUTS[spec.kind].pictures else None) or {}
    if "job" in image:
        verb = "thumb" if small else "files"
        return RedirectResponse(f"/jobs/{image['job']}/{verb}/{image['role']}/{image['index']}")
    if "object" not in image:
        raise NotFound("no such picture")
    if small:
        return Response(parts.thumbnails.of(image["object"]), media_type="image/webp", headers=_FILE_HEADERS)
    stored = parts.producer.storage.head(image["object"])
    data = parts.producer.storage.get(image["object"])
    return Response(data, media_type=stored.media_type if stored else None, headers=_FILE_HEADERS)


# ------------------------------------------------------------------------------------------------ login


@router.get("/login")
def login_form(parts: Parts, next: str = "/") -> Response:
    """Show the form, where there is a key to ask for."""
    if not parts.gate.closed:
        return RedirectResponse("/", status_code=303)
    return page("login.html", next=_inside(next), wrong=False)


@router.post("/login")
def login(
    request: Request,
    parts: Parts,
    key: Annotated[str, Form(max_length=512)] = "",
    next: Annotated[str, Form(max_length=512)] = "/",
) -> Response:
    """Open a session for whoever knows the key."""
    found = parts.gate.key_of(key.strip()) if parts.gate.closed else None
    if found is None:
        parts.gate.note_failure(address_of(request.scope))
        return page("login.html", status_code=401, next=_inside(next), wrong=True)
    answer = RedirectResponse(_inside(next), status_code=303)
    answer.set_cookie(
        SESSION_COOKIE,
        parts.gate.session(found),
        max_age=SESSION_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.post("/logout")
def logout() -> Response:
    """Close the session."""
    answer = RedirectResponse("/login", status_code=303)
    answer.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict")
    return answer


# ------------------------------------------------------------------------------------------------ inside


def _listing(
    request: Request, parts: Parts, tenant: str, status: str, kind: str, group: str, cursor: str
) -> dict[str, Any]:
    wanted = Status(status) if status in set(Status) else None
    only = Kind(kind) if kind in set(Kind) else None
    filters: dict[str, str | None] = {
        "tenant": tenant,
        "status": wanted,
        "kind": only,
        "group": group or None,
    }
    try:
        after = cursors.unseal(cursor, filters, parts.secret) if cursor else None
    except InvalidCursor:
        after = None  # an old bookmark shows the beginning
    found = parts.producer.jobs(
        tenant, status=wanted, kind=only, group=group or None, limit=PAGE, after=after
    )
    views = Views.of(request, parts)
    following = cursors.seal(found.after, filters, parts.secret) if found.after is not None else None
    return {
        "cards": [Card(views.job(record, live=True)) for record in found.records],
        "query": {
            "status": wanted or "",
            "kind": only or "",
            "group": group,
            "cursor": cursor if after else "",
        },
        "following": following,
    }


def _tasks(parts: Parts) -> list[tuple[Kind, str, list[ModelEntry]]]:
    """What can be done with a picture here: the kind, what its button says, and the models that do it."""
    listed = []
    for kind, words in cards.TO_DO.items():
        entries = [entry for entry in parts.producer.catalogue if kind in entry.kinds]
        if any(kind in entry.default_for for entry in entries):
            listed.append((kind, words, [e for e in entries if e.marks != "needed" and not e.phrases]))
    return listed


def _editors(parts: Parts) -> list[ModelEntry]:
    """The models that draw a picture anew by a prompt."""
    return [e for e in parts.producer.catalogue if Kind.EDIT in e.kinds and e.prompt != "ignored"]


def _mine(parts: Parts, tenant: str, job_ids: list[str]) -> list[str]:
    found = []
    for name in job_ids:
        with suppress(NotFound):
            found.append(parts.producer.get(name, tenant).id)
    return found


def frame(parts: Parts) -> dict[str, Any]:
    """Return what every page's head shows."""
    workers = parts.fleet.workers()
    return {"workers": sum(info.state == "ready" for info in workers), "closed": parts.gate.closed}


def _artifact(parts: Parts, job_id: str, tenant: str, role: Role, index: int) -> Artifact:
    record = parts.producer.get(job_id, tenant)
    made = result_of(record).artifacts
    found = next((one for one in made if one.role is role and one.index == index), None)
    if found is None:
        raise NotFound("no such file")
    return found


def _inside(path: str) -> str:
    """Return a path of this server; anything else would send people elsewhere after the login."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"
