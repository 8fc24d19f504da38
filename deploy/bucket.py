"""Make the bucket of PIXELKILN_STORAGE_URL if it is missing, then write, read and remove an object in it.

Run once by docker-compose.yml before the API and the workers start: a wrong key or endpoint stops the stack
with one line instead of failing jobs later.
"""

from __future__ import annotations

import sys
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from pixelkiln_shared.errors import PixelkilnError
from pixelkiln_shared.settings import load
from pixelkiln_shared.storage import open_storage


def main() -> str:
    """Return the name of the bucket, which exists and works."""
    settings = load()
    bucket = urlsplit(settings.storage_url).netloc
    s3 = boto3.client("s3", endpoint_url=settings.s3_endpoint_url, region_name=settings.s3_region)
    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in {"404", "NoSuchBucket"}:
            raise
        s3.create_bucket(Bucket=bucket)
    open_storage(settings).check()
    return bucket


if __name__ == "__main__":
    try:
        print(f"bucket {main()} works")
    except (BotoCoreError, ClientError, PixelkilnError) as error:
        sys.exit(f"the object store cannot be used: {error}")
