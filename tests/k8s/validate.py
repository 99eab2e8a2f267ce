"""Validates objects by the published schemas: `python validate.py CRD_FOLDER < objects.json`, in the environment of
schemas.txt. Prints a JSON list, one list of faults an object.

Core objects: kubernetes-validate in its strict form, oldest and newest version. Custom ones: the schema of their
definition with its defaults, unknown fields refused as `kubectl apply` does, and its CEL rules but those of changes.
"""

from __future__ import annotations

import copy
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celpy
import celpy.adapter
import jsonschema
import kubernetes_validate
import yaml

VERSIONS = ("1.31", "1.37")
"""podFailurePolicy is stable from 1.31 on; the newest that kubernetes-validate knows."""
KEPT = (
    "type", "enum", "required", "minLength", "maxLength", "minimum", "maximum", "pattern", "minItems", "maxItems",
    "minProperties", "maxProperties", "uniqueItems", "multipleOf",
)  # fmt: skip
"""Keywords that mean in a definition what they mean in JSON Schema."""
SAME_SPEC = {"TrainingRuntime": "ClusterTrainingRuntime"}
"""Kinds without a definition here whose specification is, field by field, that of another kind."""
CORE_GROUPS = ("", "apps", "batch", "networking.k8s.io")
UNKNOWN = {"LocalQueue"}
"""Kinds for which there is neither a core schema nor a definition here."""


def main(folder: Path) -> None:
    definitions = read_definitions(folder)
    print(json.dumps([list(faults(one, definitions)) for one in json.load(sys.stdin)]))


def read_definitions(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the schema of each served version of each custom kind, by (apiVersion, kind)."""
    found = {}
    for file in sorted(folder.glob("*.yaml.gz")):
        spec = yaml.load(gzip.decompress(file.read_bytes()), getattr(yaml, "CSafeLoader", yaml.SafeLoader))[
            "spec"
        ]
        for version in spec["versions"]:
            if version["served"]:
                key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                found[key] = version["schema"]["openAPIV3Schema"]
    return found


def faults(one: dict[str, Any], definitions: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    """Yields the faults of one object."""
    kind, group = SAME_SPEC.get(one["kind"], one["kind"]), one["apiVersion"].rpartition("/")[0]
    if schema := definitions.get((one["apiVersion"], kind)):
        yield from custom_faults({**one, "kind": kind}, schema)
    elif group in CORE_GROUPS:
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                yield f"Kubernetes {version}: {str(error).splitlines()[0]}"
    elif kind not in UNKNOWN:
        yield f"no schema of {one['apiVersion']} {kind}"


def custom_faults(one: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    one = copy.deepcopy(one)
    fill(schema, one)
    checked = strict(schema)
    checked["properties"].update({"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}})
    for error in jsonschema.Draft202012Validator(checked).iter_errors(one):
        yield f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
    yield from broken_rules(schema, one, "")


def fill(schema: dict[str, Any], value: Any) -> None:
    """Adds the defaults of a schema to a value, in place, as the API server does before it validates."""
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if name not in value and "default" in part:
                value[name] = copy.deepcopy(part["default"])
        for name, inner in value.items():
            fill(part_of(schema, name), inner)
    elif isinstance(value, list):
        for inner in value:
            fill(schema.get("items", {}), inner)


def part_of(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the schema of a field of an object."""
    rest = schema.get("additionalProperties")
    return schema.get("properties", {}).get(name) or (rest if isinstance(rest, dict) else {})


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the JSON Schema of a structural schema, with fields that it does not name refused."""
    out: dict[str, Any] = {name: schema[name] for name in KEPT if name in schema}
    if schema.get("x-kubernetes-int-or-string"):
        out["type"] = ["integer", "string"]
    elif schema.get("nullable") and isinstance(out.get("type"), str):
        out["type"] = [out["type"], "null"]
    if "properties" in schema:
        out["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
    if isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = strict(schema["additionalProperties"])
    elif "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        out["additionalProperties"] = False
    if "items" in schema:
        out["items"] = strict(schema["items"])
    return out


def broken_rules(schema: dict[str, Any], value: Any, path: str) -> Iterator[str]:
    """Yields a line for each CEL rule of a schema that a value breaks; rules of changes (oldSelf) need two values."""
    if value is None:
        return
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not holds(rule["rule"], value):
            yield f"{path}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from broken_rules(part_of(schema, name), inner, f"{path}/{name}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from broken_rules(schema.get("items", {}), inner, f"{path}/{index}")


def holds(rule: str, value: Any) -> bool:
    environment = celpy.Environment()
    program = environment.program(environment.compile(rule))
    return bool(program.evaluate({"self": celpy.adapter.json_to_cel(value)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
