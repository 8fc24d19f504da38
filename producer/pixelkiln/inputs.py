"""Input pictures: from a reference in a request to an object of the job's own, or another job's artifact."""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pixelkiln.records import result_of, spec_of
from pixelkiln.validation import is_id, validate, wrong
from pixelkiln_shared import keys
from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.errors import InvalidImage, InvalidInput, NotFound, StorageUnavailable, UnknownModel
from pixelkiln_shared.jobs import GroupWebhook, JobSpec, Status
from pixelkiln_shared.kinds import (
    INPUTS,
    ImageRef,
    InlineRef,
    JobRef,
    Kind,
    KindInput,
    ObjectRef,
    Role,
    StoredRef,
    UploadRef,
    UrlRef,
)
from pixelkiln_shared.ledger.contract import Ledger, Record
from pixelkiln_shared.pictures import CheckedPicture, PictureLimits, open_picture
from pixelkiln_shared.settings import Settings
from pixelkiln_shared.storage.contract import Storage

OPENED_AT_ONCE = 4  # pictures decoded at the same time: one of 32 megapixels takes about 200 MB meanwhile

_REFERENCES: dict[str, type[UploadRef | JobRef | UrlRef | InlineRef]] = {
    "upload": UploadRef,
    "job": JobRef,
    "url": UrlRef,
    "base64": InlineRef,
}

_DRAWN = (Kind.GENERATE, Kind.EDIT)  # what a model draws belongs to its world, in a size that is known before

Wanted = TypeVar("Wanted", bound=KindInput)
Reader = Callable[[bytes, PictureLimits], CheckedPicture]
"""How an untrusted file becomes a picture: `open_picture`, or `open_transparency` for a mask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Whose job this is and where in the request it stands; `siblings` are jobs written together with it.

    `webhook` is the group's: whom to tell of jobs that name nobody themselves, and of the group's end.
    """

    tenant: str
    group: str | None = None
    webhook: GroupWebhook | None = None
    at: str = ""
    siblings: Mapping[str, JobSpec] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a picture comes from. Width and height are pixels, None while nobody can know them.

    Exactly one of `data` (bytes to store) and `reference` (another job's artifact) is set.
    """

    width: int | None
    height: int | None
    world: str = ""
    data: bytes | None = None
    media_type: str = ""
    reference: JobRef | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """The pictures of a job in their last form.

    `references` by input field; `stored` are the keys written for them, `waits_for` the jobs they come from.
    """

    references: Mapping[str, StoredRef]
    stored: tuple[str, ...]
    waits_for: tuple[str, ...]


_NOTHING = Kept(references={}, stored=(), waits_for=())


class Inputs:
    """Reads references against the storage and the ledger. Thread-safe."""

    def __init__(self, catalogue: Catalogue, ledger: Ledger, storage: Storage, limits: PictureLimits) -> None:
        self._catalogue = catalogue
        self._ledger = ledger
        self._storage = storage
        self._limits = limits
        self._places = threading.BoundedSemaphore(OPENED_AT_ONCE)

    def read(self, form: type[Wanted], raw: Mapping[str, Any], at: str) -> Wanted:
        """Validate an input; each reference by its own form, so that an error names one field.

        Raises:
            InvalidInput: as `validate`, or `invalid_reference`.
        """
        given = [name for name in form.pictures if name in raw]
        may_lack = {name for name in given if raw[name] is None and not form.model_fields[name].is_required()}
        references = {name: _reference(raw[name], f"{at}/{name}") for name in given if name not in may_lack}
        return validate(form, {**raw, **references} if references else raw, at=at)

    def look_all(self, wanted: KindInput, order: Order, at: str) -> dict[str, Source]:
        """Find every picture of an input; nothing is stored yet.

        Raises:
            InvalidInput, InvalidImage, NotFound: a reference leads to no picture of this tenant.
        """
        given = {name: getattr(wanted, name) for name in type(wanted).pictures}
        return {
            name: self.look(reference, order, f"{at}/{name}")
            for name, reference in given.items()
            if reference is not None
        }

    def look(self, reference: ImageRef, order: Order, at: str) -> Source:
        """Find the picture and its size; nothing is stored yet.

        Raises:
            InvalidInput, InvalidImage, NotFound: the reference leads to no picture of this tenant.
        """
        if isinstance(reference, UrlRef):
            raise wrong("url_not_allowed", f"{at}/url", "no host is allowed for URLs: upload the picture")
        if isinstance(reference, InlineRef):
            picture = self._inline(reference.base64, at)
            return Source(
                width=picture.width, height=picture.height, data=picture.data, media_type=picture.media_type
            )
        if isinstance(reference, UploadRef):
            return self._uploaded(reference.upload, order.tenant, at)
        return self._artifact(reference, order, at)

    def keep_all(self, sources: Mapping[str, Source], tenant: str, job_id: str) -> Kept:
        """Store the pictures that came as bytes under the job's own keys.

        Raises:
            StorageUnavailable: the store does not answer; what was stored before is removed.
        """
        if not sources:
            return _NOTHING
        references: dict[str, StoredRef] = {}
        stored: list[str] = []
        try:
            for name, source in sources.items():
                key = keys.input_key(tenant, job_id, name)
                references[name] = self._keep(source, key)
                if source.data is not None:
                    stored.append(key)
        except StorageUnavailable:
            for key in stored:
                with suppress(StorageUnavailable):
                    self._storage.delete(key)
            raise
        waits_for = dict.fromkeys(made.job for made in references.values() if isinstance(made, JobRef))
        return Kept(references=references, stored=tuple(stored), waits_for=tuple(waits_for))

    def _keep(self, source: Source, key: str) -> StoredRef:
        if source.data is None:
            assert source.reference is not None  # noqa: S101 - the invariant of Source
            return source.reference
        stored = self._storage.put(key, source.data, media_type=source.media_type)
        assert source.width is not None  # noqa: S101 - bytes have a size
        assert source.height is not None  # noqa: S101
        assert stored.sha256 is not None  # noqa: S101
        return ObjectRef(object=key, sha256=stored.sha256, width=source.width, height=source.height)

    def upload(
        self, data: bytes, tenant: str, *, read: Reader = open_picture
    ) -> tuple[str, str, CheckedPicture]:
        """Check and store a picture for later jobs; returns its id, its SHA-256 and the picture.

        Raises:
            InvalidImage: not a picture we open.
        """
        picture = self._opened(data, read)
        upload_id = keys.new_id("upl")
        key = keys.upload_key(tenant, upload_id)
        stored = self._storage.put(key, picture.data, media_type=picture.media_type)
        facts = {"width": picture.width, "height": picture.height, "media_type": picture.media_type}
        # The facts come last: an upload without them was cut short and does not exist.
        self._storage.put(f"{key}.json", json.dumps(facts).encode(), media_type="application/json")
        assert stored.sha256 is not None  # noqa: S101 - our own put
        return upload_id, stored.sha256, picture

    def _opened(self, data: bytes, read: Reader = open_picture) -> CheckedPicture:
        with self._places:
            return read(data, self._limits)

    def _inline(self, text: str, at: str) -> CheckedPicture:
        if len(text) * 3 // 4 > self._limits.max_bytes + 3:
            raise wrong(
                "image_too_large",
                f"{at}/base64",
                "the picture has too many bytes",
                max=self._limits.max_bytes,
            )
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise wrong(
                "invalid_base64", f"{at}/base64", "not base64; send the bare text, without a `data:` prefix"
            ) from error
        try:
            return self._opened(data)
        except InvalidImage as error:
            error.pointer = f"{at}/base64"
            raise

    def _uploaded(self, upload_id: str, tenant: str, at: str) -> Source:
        missing = NotFound("no such upload, or it has expired", pointer=f"{at}/upload")
        if not is_id(upload_id, "upl"):
            raise missing
        key = keys.upload_key(tenant, upload_id)
        try:
            facts = json.loads(self._storage.get(f"{key}.json"))
            data = self._storage.get(key)
        except NotFound as error:
            raise missing from error
        return Source(width=facts["width"], height=facts["height"], data=data, media_type=facts["media_type"])

    # -------------------------------------------------------------------------------------------- other jobs

    def _artifact(self, reference: JobRef, order: Order, at: str) -> Source:
        parent, record = self._parent(reference.job, order, at)
        makes = INPUTS[parent.kind].makes
        if reference.input is not None:
            _check_given(reference, at)
            return self._same_input(parent, reference.input, order, at)
        if reference.role is Role.IMAGE and Role.IMAGE not in makes:  # what it worked on
            if reference.index:
                raise wrong("out_of_range", f"{at}/index", "that job has one input picture", min=0, max=0)
            return self._same_input(parent, "image", order, at)
        if reference.role not in makes:
            roles = [role.value for role in dict.fromkeys((Role.IMAGE, *makes))]
            raise wrong(
                "invalid_reference", f"{at}/role", f"{parent.kind} jobs make no such picture", known=roles
            )
        if record is not None and record.status.terminal and record.status is not Status.SUCCEEDED:
            raise wrong("parent_failed", f"{at}/job", f"that job has {record.status}: it has no picture")
        width, height = _picture_size(parent, record, reference, at)
        return Source(width=width, height=height, world=self._world(parent), reference=reference)

    def _parent(self, job_id: str, order: Order, at: str) -> tuple[JobSpec, Record | None]:
        sibling = order.siblings.get(job_id)
        if sibling is not None:
            return sibling, None
        try:
            if not is_id(job_id, "job"):
                raise NotFound("no such job")
            record = self._ledger.get(job_id)
            if record.tenant != order.tenant:
                raise NotFound("no such job")
        except NotFound as error:
            raise NotFound("no such job", pointer=f"{at}/job") from error
        return spec_of(record), record

    def _same_input(self, parent: JobSpec, field: str, order: Order, at: str) -> Source:
        """A picture another job was given: copied, or waited for as that job did."""
        given = [name for name in INPUTS[parent.kind].pictures if parent.input.get(name)]
        if field not in given:
            raise wrong("invalid_reference", f"{at}/input", "that job was given no such picture", known=given)
        image = parent.input[field]
        if "job" in image:
            return self._artifact(JobRef(**image), order, at)
        stored = ObjectRef(**image)
        try:
            data = self._storage.get(stored.object)
        except NotFound as error:
            raise NotFound("that job's input is gone", pointer=f"{at}/job") from error
        head = self._storage.head(stored.object)
        media_type = head.media_type if head else "image/png"
        return Source(width=stored.width, height=stored.height, data=data, media_type=media_type)

    def _world(self, parent: JobSpec) -> str:
        try:
            return self._catalogue.get(parent.model).world if parent.kind in _DRAWN else ""
        except UnknownModel:
            return ""  # the catalogue has changed since


def _reference(raw: object, at: str) -> UploadRef | JobRef | UrlRef | InlineRef:
    if not isinstance(raw, Mapping):
        raise wrong("invalid_type", at, 'a picture is an object, such as {"upload": "upl_..."}')
    form = next((form for name, form in _REFERENCES.items() if name in raw), None)
    if form is None:
        raise wrong("invalid_reference", at, "a picture is one of the known forms", known=list(_REFERENCES))
    return validate(form, raw, at=at)


def _check_given(reference: JobRef, at: str) -> None:
    """Check that what names an input picture does not name an artifact as well."""
    for name in ("role", "index"):
        if getattr(reference, name) != JobRef.model_fields[name].default:
            raise wrong("invalid_reference", f"{at}/{name}", "`input` alone names what that job was given")


def picture_limits(settings: Settings) -> PictureLimits:
    """Return what the settings allow of a picture from outside."""
    return PictureLimits(
        max_bytes=settings.max_image_bytes,
        max_pixels=settings.max_image_pixels,
        max_side_px=settings.max_image_side_px,
    )


def _picture_size(
    parent: JobSpec, record: Record | None, reference: JobRef, at: str
) -> tuple[int | None, int | None]:
    """Return width and height of another job's picture as far as they are known; check that it will exist."""
    if parent.kind in _DRAWN and reference.index >= parent.rows:
        raise wrong(
            "out_of_range", f"{at}/index", "that job makes fewer pictures", min=0, max=parent.rows - 1
        )
    if record is not None and record.result is not None:
        made = result_of(record).artifacts
        found = [a for a in made if a.role is reference.role and a.index == reference.index]
        if not found:
            raise InvalidInput("that job has no such picture", code="out_of_range", pointer=f"{at}/index")
        return found[0].width, found[0].height
    if parent.kind in _DRAWN:
        return parent.input.get("width"), parent.input.get("height")
    return None, None
