"""Credentials of S3 buckets: the standard variables, or where a pod has a cloud role instead, those of the role."""

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from pipeline.errors import LakeUnavailable

VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
ROLES = (  # what EKS sets for a service account with a role, and for a pod identity
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)


def has_role() -> bool:
    """True if this process is to use a cloud role: it has one, and no key."""
    return not os.environ.get("AWS_ACCESS_KEY_ID") and any(os.environ.get(name) for name in ROLES)


def credentials() -> dict[str, str]:
    """The values of `VARIABLES` that there are; empty without key and role. Those of a role are renewed before they expire.

    DuckDB and dbt know keys alone; boto3 gets them for a role.

    Raises:
        LakeUnavailable: if the role's credentials cannot be had.
    """
    if not has_role():
        return {name: value for name in VARIABLES if (value := os.environ.get(name))}
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    try:
        found = _role().get_frozen_credentials()
    except (BotoCoreError, ClientError) as error:
        role = os.environ.get("AWS_ROLE_ARN", "the pod's role")
        raise LakeUnavailable(
            f"Getting the credentials of {role}: {error}. Correct the role and whom it trusts."
        ) from error
    return {name: value for name, value in zip(VARIABLES, found[:3], strict=True) if value}


def duckdb_secret(found: Mapping[str, str], *, region: str, endpoint: str) -> dict[str, str]:
    """The options of DuckDB's secret of type ``s3`` for *found*, which `credentials` gave; *endpoint* is empty for AWS."""
    key_id, secret, token = (found.get(name, "") for name in VARIABLES)
    options = {
        "KEY_ID": key_id,
        "SECRET": secret,
        "SESSION_TOKEN": token,
        "REGION": region,
        "ENDPOINT": endpoint.removeprefix("http://").removeprefix("https://"),
        "URL_STYLE": "path" if endpoint else "vhost",
        "USE_SSL": "false" if endpoint.startswith("http://") else "true",
    }
    return {name: value for name, value in options.items() if value}


@cache
def _role() -> Any:
    import boto3  # type: ignore[import-untyped]

    return boto3.Session().get_credentials()
