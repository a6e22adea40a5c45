"""What /openapi.json and /docs say of request bodies, which are read by hand (limits, errors of one sentence)."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

REFERENCE = "#/components/schemas/{model}"


def body_docs(kind: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of an endpoint whose body is of this kind."""
    schema = {"$ref": REFERENCE.format(model=kind.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe_bodies(app: FastAPI, kinds: Sequence[type[BaseModel]]) -> None:
    """Adds the schemas that `body_docs` refers to, and those that they refer to, to what `app` says of itself."""

    endpoints_only = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, definitions = models_json_schema([(kind, "validation") for kind in kinds], ref_template=REFERENCE)
            components = endpoints_only().setdefault("components", {})
            components.setdefault("schemas", {}).update(definitions["$defs"])
        return endpoints_only()  # FastAPI makes it once, and keeps it

    app.openapi = openapi
