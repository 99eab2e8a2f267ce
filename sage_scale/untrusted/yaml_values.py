"""Parses YAML from outside with limits: plain values only, and every refusal names its key."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import yaml

from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import text_fault

MAX_BYTES = 256 << 10
"""A recipe has some 6 kB, and PyYAML reads some 100 kB a second."""
MAX_DEPTH = 32
MAX_DIGITS = 400
_PREFIX = "tag:yaml.org,2002:"
_PLAIN = {f"{_PREFIX}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")


class InvalidYAML(ValueError):
    """The text is not YAML, or not plain: aliases, tags, too deep, too large, characters that are none."""


class _Loader(yaml.SafeLoader):
    """PyYAML's loader without aliases, endless nesting and tags that make other objects than plain values.

    Ambiguous values stay strings, and the key's type decides: dates, numbers that are not finite or beyond 64
    bits (0x_, .inf, 6,000 digits), numbers that are not written as they are printed (010, 1_000, 1:30, 0x10), and words
    that YAML 1.1 alone takes for booleans (no, which is Norwegian, too).
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, _BOOL if tag.endswith(":bool") else pattern) for tag, pattern in resolvers if tag in _PLAIN
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.path: list[str] = []

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.path.append(_step(parent, index))
        if self.check_event(yaml.AliasEvent):
            raise InvalidYAML("aliases (*name) are not read")
        if len(self.path) > MAX_DEPTH:
            raise InvalidYAML(f"more than {MAX_DEPTH} nested levels")
        node: Any = super().compose_node(parent, index)
        if node.tag not in _PLAIN or node.tag not in (self._natural_tag(node), f"{_PREFIX}str"):
            raise InvalidYAML(f"tags ({shortened(node.tag.replace(_PREFIX, '!!'))}) are not read")
        if isinstance(node, yaml.ScalarNode) and (fault := text_fault(node.value)):
            raise InvalidYAML(fault)
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if twice := next((key for key, count in keys.items() if count > 1), None):
                raise InvalidYAML(f"the key '{shortened(twice)}' occurs twice")
        self.path.pop()
        return node

    def _natural_tag(self, node: Any) -> str:
        return self.resolve(type(node), node.value, (True, False))

    def construct_number(self, node: Any) -> Any:
        build = super().construct_yaml_int if node.tag.endswith(":int") else super().construct_yaml_float
        try:
            value = build(node) if len(node.value) <= MAX_DIGITS else math.inf
            written = str(value) == node.value or "e" in node.value.lower()
            return value if written and abs(value) < 2**63 else node.value
        except ValueError:
            return node.value


for _kind in ("int", "float"):
    _Loader.add_constructor(f"{_PREFIX}{_kind}", _Loader.construct_number)


def parse_yaml(data: str | bytes) -> Any:
    """Returns the value of one YAML document: mappings, lists, strings, numbers, booleans and None.

    Raises InvalidYAML with a reason of a few words, after the key ("pretrain.lr: ...") where there is one.
    """
    if len(data) > MAX_BYTES:
        raise InvalidYAML(f"{len(data):,} bytes, more than {MAX_BYTES:,}")
    loader = None
    try:
        text = data if isinstance(data, str) else bytes(data).decode("utf-8-sig")
        loader = _Loader(text)
        return loader.get_single_data()
    except UnicodeDecodeError as error:
        raise InvalidYAML(f"not UTF-8 at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidYAML(
            f"{_where(loader)}not YAML{line}: {shortened(error.problem or error.context)}"
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = error if isinstance(error, InvalidYAML) else f"not YAML: {shortened(error)}"
        raise InvalidYAML(f"{_where(loader)}{reason}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _step(parent: Any, index: Any) -> str:
    if isinstance(index, yaml.ScalarNode):
        return f".{index.value}"
    return f"[{index}]" if isinstance(parent, yaml.SequenceNode) else ""


def _where(loader: _Loader | None) -> str:
    path = "".join(loader.path).lstrip(".") if loader is not None else ""
    return f"{shortened(path)}: " if path else ""
