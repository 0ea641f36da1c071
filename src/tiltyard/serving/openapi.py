"""The OpenAPI document of what is served, and a page to read it on that loads nothing from elsewhere. Pure."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from tiltyard.serving.answers import Described, InputColumn, Limits
from tiltyard.types import Task

ARROW = "application/vnd.apache.arrow.stream"
PROBLEM = "application/problem+json"


def document(models: Sequence[Described], limits: Limits, *, root: str = "") -> dict[str, Any]:
    """OpenAPI 3.1 for exactly these models: each has its own path and its own row."""
    paths: dict[str, Any] = {
        "/ping": {"get": _plain("Whether the application answers.", auth=False)},
        "/version": {"get": _plain("The version of MLflow whose scoring protocol this is.", auth=False)},
        "/models": {
            "get": _get("Every model served here, with what it takes.", {"$ref": "#/components/schemas/Models"})
        },
    }
    schemas: dict[str, Any] = dict(_SCHEMAS)
    for model in models:
        key = "".join(c if c.isalnum() or c in "._-" else "_" for c in model.served_as)
        schemas[f"Row.{key}"] = _row(model.columns)
        schemas[f"Answer.{key}"] = _answer(model)
        base = f"/models/{model.served_as}"
        row, answer = {"$ref": f"#/components/schemas/Row.{key}"}, {"$ref": f"#/components/schemas/Answer.{key}"}
        paths[base] = {"get": _get(f"{model.served_as}: version, digest and columns.", _MODEL)}
        paths[f"{base}/predict"] = {"post": _predict(model, row, answer, limits)}
        paths[f"{base}/invocations"] = {"post": _invocations(model, row, limits)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tiltyard: served models", "version": version("tiltyard")},
        "servers": [{"url": root or "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {name: _problem(text) for name, text in _REFUSALS.items()},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


_REFUSALS = {
    "400": "The body cannot be read.",
    "401": "No valid token.",
    "403": "The token is not for this model.",
    "404": "No such model is served.",
    "408": "The body did not arrive in time.",
    "413": "Too many bytes or rows.",
    "415": "Another content type was wanted.",
    "422": "A value is not what the model takes; row and column are named.",
    "429": "Too many requests; Retry-After says how long to wait.",
    "503": "Not available now; Retry-After says how long to wait.",
    "504": "The model did not answer in time.",
}
_MODEL = {"$ref": "#/components/schemas/Model"}
_SCHEMAS: dict[str, Any] = {
    "Problem": {
        "type": "object",
        "required": ["type", "title", "status", "detail", "problems"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "problems": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "row": {"type": ["integer", "null"]},
                        "column": {"type": ["string", "null"]},
                        "found": {"type": "string"},
                        "wanted": {"type": "string"},
                    },
                },
            },
        },
    },
    "Model": {
        "type": "object",
        "required": ["name", "model", "version", "digest", "task", "classes", "columns", "problem"],
        "properties": {
            "name": {"type": "string"},
            "model": {"type": "string"},
            "version": {"type": "integer"},
            "digest": {"type": "string"},
            "task": {"type": "string"},
            "classes": {"type": "array"},
            "columns": {"type": "array", "items": {"type": "object"}},
            "problem": {"type": "string"},
            "split": {"type": "string"},
            "registry": {"type": "string"},
        },
    },
    "Models": {
        "type": "object",
        "required": ["models"],
        "properties": {"models": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}}},
    },
}


def _column(column: InputColumn) -> dict[str, Any]:
    if column.kind == "tensor":
        numbers = {"type": "array", "items": {"type": "number"}}
        return {**numbers, "minItems": column.width, "maxItems": column.width}
    return {"type": ["number" if column.kind == "number" else "string", "null"]}


def _row(columns: Sequence[InputColumn]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [c.name for c in columns],
        "properties": {c.name: _column(c) for c in columns},
        "additionalProperties": False,
    }


def _answer(model: Described) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "model": {"type": "string"},
        "version": {"type": "integer"},
        "digest": {"type": "string"},
        "predictions": {"type": "array"},
    }
    if model.task is not Task.REGRESSION:
        properties |= {"classes": {"type": "array"}, "probabilities": {"type": "array", "items": {"type": "array"}}}
    return {"type": "object", "required": list(properties), "properties": properties}


def _predict(model: Described, row: Any, answer: Any, limits: Limits) -> dict[str, Any]:
    rows = {"type": "array", "items": row, "minItems": 1, "maxItems": limits.rows}
    body = {"type": "object", "required": ["rows"], "properties": {"rows": rows}, "additionalProperties": False}
    return {
        "summary": f"Answers of {model.served_as} for rows.",
        "description": f"At most {limits.rows} rows and {limits.body_bytes} bytes. An Arrow stream is answered by one.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}, ARROW: {"schema": {}}}},
        "responses": {
            "200": {
                "description": "One prediction a row.",
                "headers": {
                    "x-tiltyard-version": {"schema": {"type": "string"}},
                    "x-tiltyard-digest": {"schema": {"type": "string"}},
                },
                "content": {"application/json": {"schema": answer}, ARROW: {"schema": {}}},
            },
            **_refusals(*_REFUSALS),
        },
    }


def _invocations(model: Described, row: Any, limits: Limits) -> dict[str, Any]:
    rows = {"type": "array", "items": row, "minItems": 1, "maxItems": limits.rows}
    body = {"type": "object", "required": ["dataframe_records"], "properties": {"dataframe_records": rows}}
    return {
        "summary": f"MLflow's scoring protocol for {model.served_as}.",
        "description": "Also: dataframe_split, instances, inputs, and text/csv.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {
                "description": "One record a row.",
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["predictions"],
                            "properties": {"predictions": {"type": "array", "items": {"type": "object"}}},
                        }
                    }
                },
            },
            **_refusals(*_REFUSALS),
        },
    }


def _get(summary: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {
        "summary": summary,
        "responses": {
            "200": {"description": "Found.", "content": content},
            **_refusals("401", "403", "404", "429", "503"),
        },
    }


def _plain(summary: str, *, auth: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "Yes.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    }
    return told if auth else {**told, "security": [{}]}


def _refusals(*statuses: str) -> dict[str, Any]:
    return {status: {"$ref": f"#/components/responses/{status}"} for status in statuses}


def _problem(text: str) -> dict[str, Any]:
    return {"description": text, "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}}


def page(told: Mapping[str, Any]) -> str:
    """The document as one HTML page without scripts."""
    parts = []
    for path, operations in told["paths"].items():
        for method, operation in operations.items():
            schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            resolved = _resolve(schema, told) if schema else None
            shown = f"<pre>{html.escape(json.dumps(resolved, indent=1))}</pre>" if resolved else ""
            parts.append(
                f"<section><h2><code>{method.upper()} {html.escape(path)}</code></h2>"
                f"<p>{html.escape(operation['summary'])} {html.escape(operation.get('description', ''))}</p>{shown}</section>"
            )
    style = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}pre{overflow:auto}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(told["info"]["title"])}</title>'
        f"<style>{style}</style><h1>{html.escape(told['info']['title'])}</h1>"
        f'<p>The same for machines: <a href="openapi.json">openapi.json</a></p>{"".join(parts)}</html>'
    )


def _resolve(schema: Any, told: Mapping[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _resolve(told["components"]["schemas"][schema["$ref"].rpartition("/")[2]], told)
        return {k: _resolve(v, told) for k, v in schema.items()}
    return [_resolve(v, told) for v in schema] if isinstance(schema, list) else schema
