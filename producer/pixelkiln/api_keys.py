"""API keys: who may ask, on behalf of which tenant, and for what. A key is shown once and kept as a hash."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import cast

import redis
from pydantic import BaseModel, ConfigDict

from pixelkiln_shared import keys
from pixelkiln_shared.errors import InvalidInput, NotFound, RedisUnavailable
from pixelkiln_shared.ledger import redis_errors

DEFAULT_TENANT = "default"

_ID_BYTES, _SECRET_BYTES = 5, 32  # eight characters of base 32, and 256 bits
_TOKEN = re.compile(r"kiln_([0-9a-z]{8})_[A-Za-z0-9_-]{43}")
_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")  # it begins keys of the store


class KeyScope(StrEnum):
    """What a key may do. None of them means another."""

    READ = "read"
    """Look at jobs, files, workers and metrics."""
    SUBMIT = "submit"
    """Send, cancel, retry and delete jobs, groups and uploads."""
    ADMIN = "admin"
    """Drain workers; see the numbers of all tenants in the metrics."""


class ApiKey(BaseModel):
    """What is kept of a key. `per_minute` is how many requests it may send, None without a limit."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    tenant: str
    scopes: frozenset[KeyScope]
    sha256: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    per_minute: int | None = None

    @property
    def valid(self) -> bool:
        """Whether it opens anything now."""
        return self.revoked_at is None and (self.expires_at is None or datetime.now(UTC) < self.expires_at)


class KeyRing:
    """The keys in Redis, and what of them was last read: finding one asks nobody. Thread-safe."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._known: Mapping[str, ApiKey] | None = None

    # --------------------------------------------------------------------------------- for operators

    def make(
        self,
        name: str,
        *,
        tenant: str = DEFAULT_TENANT,
        scopes: Collection[KeyScope] = (KeyScope.READ, KeyScope.SUBMIT),
        lifetime: timedelta | None = None,
        per_minute: int | None = None,
    ) -> tuple[ApiKey, str]:
        """Make a key; returns what is kept of it and the key itself, which nobody can tell again.

        Raises:
            InvalidInput: the tenant is no slug, or there is no scope.
            RedisUnavailable: Redis does not answer.
        """
        if not _TENANT.fullmatch(tenant):
            raise InvalidInput("a tenant is 1 to 40 small letters, digits and inner hyphens")
        if not scopes:
            raise InvalidInput("a key without a scope opens nothing")
        now = datetime.now(UTC)
        identity = keys.random_text(_ID_BYTES)
        token = f"kiln_{identity}_{secrets.token_urlsafe(_SECRET_BYTES)}"
        made = ApiKey(
            id=identity,
            name=name,
            tenant=tenant,
            scopes=frozenset(scopes),
            sha256=_hash(token),
            created_at=now,
            expires_at=None if lifetime is None else now + lifetime,
            per_minute=per_minute,
        )
        self._write(made)
        return made, token

    def all(self) -> list[ApiKey]:
        """Return every key there ever was, oldest first.

        Raises:
            RedisUnavailable: Redis does not answer.
        """
        with redis_errors():
            found = cast(list[str], self._client.hvals(keys.API_KEYS))
        return sorted(map(ApiKey.model_validate_json, found), key=lambda key: key.created_at)

    def revoke(self, identity: str) -> ApiKey:
        """End a key for good; servers know within seconds. Twice changes nothing.

        Raises:
            NotFound: no such key.
            RedisUnavailable: Redis does not answer.
        """
        key = next((one for one in self.all() if one.id == identity), None)
        if key is None:
            raise NotFound(f"there is no key {identity}")
        if key.revoked_at is None:
            key = key.model_copy(update={"revoked_at": datetime.now(UTC)})
            self._write(key)
        return key

    # --------------------------------------------------------------------------------- for servers

    def refresh(self) -> None:
        """Read the keys; what `find` knows is as old as this.

        Raises:
            RedisUnavailable: Redis does not answer; what was known stays.
        """
        self._known = {key.id: key for key in self.all()}

    def find(self, token: str) -> ApiKey | None:
        """Return the valid key that a text is; takes as long for a wrong one as for a right one.

        Raises:
            RedisUnavailable: the keys have not been read yet.
        """
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        key = self.get(match[1])
        right = hmac.compare_digest(_hash(token), key.sha256 if key else _hash(""))
        return key if right else None

    def get(self, identity: str) -> ApiKey | None:
        """Return a valid key by its id.

        Raises:
            RedisUnavailable: the keys have not been read yet.
        """
        if self._known is None:
            raise RedisUnavailable("the keys have not been read yet")
        key = self._known.get(identity)
        return key if key is not None and key.valid else None

    @property
    def tenants(self) -> frozenset[str]:
        """Every tenant that there was a key for, and the default one."""
        return frozenset({DEFAULT_TENANT, *(key.tenant for key in (self._known or {}).values())})

    def _write(self, key: ApiKey) -> None:
        with redis_errors():
            self._client.hset(keys.API_KEYS, key.id, key.model_dump_json())


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
