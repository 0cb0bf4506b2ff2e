"""From a YAML file and `key=value` overrides to checked, frozen settings; every problem at once, in under a second.

Nothing heavy may be imported here: `--help` and a typo must not wait for torch.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_after_validator_function

from utils.errors import InputError


class Settings(BaseModel):
    """Base of every settings class: unknown keys are errors, values are frozen, infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)

    @classmethod
    def complete(cls, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values to check instead of the given ones: a class may fill in what is missing."""
        return raw


def _must_exist(path: Path, info: ValidationInfo) -> Path:
    if (info.context or {}).get("check_paths", True) and not path.exists():
        raise ValueError(f"{path} does not exist; correct the path, or run the stage that makes it first")
    return path


InputPath = Annotated[Path, AfterValidator(_must_exist)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Form:
    """What a text must look like: `Annotated[str, Form(r"^\\d+$", "digits")]`.

    Attributes:
        pattern: that it must match.
        words: the same for a person: a regular expression is no sentence.
    """

    pattern: str
    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": self.pattern, "words": self.words}

    def _check(self, text: str) -> str:
        if re.fullmatch(self.pattern, text) is None:  # `$` alone would take a line break at the end
            raise PydanticCustomError("form", "expected {words}", {"words": self.words})
        return text


AnySettings = TypeVar("AnySettings", bound=Settings)
_NUMBERS = {1: "one", 2: "two", 3: "three"}


def read_settings(
    settings_class: type[AnySettings],
    doc: str | None,
    default_config: Path,
    argv: Sequence[str] | None = None,
    *,
    flags: Mapping[str, str] | None = None,
) -> AnySettings:
    """Read a stage's settings from `--config` (default: the script's own YAML) and `key=value` overrides.

    Args:
        doc: the script's docstring, shown by `--help`.
        default_config: the YAML used without `--config`.
        flags: keys that are set to true by an option of their name (`dry_run` by `--dry-run`), with its help.

    Raises:
        InputError: all problems of the file and the overrides, each with its key and a suggestion.
    """
    arguments = _parse_arguments(settings_class, doc, default_config, argv, flags or {})
    overrides = [*arguments.overrides, *(f"{key}=true" for key in flags or {} if getattr(arguments, key))]
    raw = _merge_sources(settings_class, arguments.config, overrides)
    origin = str(arguments.config) + (" with the overrides" if overrides else "")
    settings = build_settings(settings_class, raw, origin, check_paths=not arguments.print_config)
    if arguments.print_config:
        print(dump_settings(settings), end="")
        sys.exit(0)
    return settings


def build_settings(
    settings_class: type[AnySettings], raw: Mapping[str, Any], origin: str, *, check_paths: bool = True
) -> AnySettings:
    """Check a plain mapping against a settings class.

    Raises:
        InputError: naming `origin` and every wrong key.
    """
    raw = settings_class.complete(raw)
    # Strict validation of JSON takes "a/b" as a Path and a list as a tuple, but neither "5" nor yes as a number.
    try:
        return settings_class.model_validate_json(json.dumps(raw), context={"check_paths": check_paths})
    except ValidationError as error:
        problems = list(dict.fromkeys(_describe_problem(settings_class, item) for item in error.errors()))
    if len(problems) == 1:
        raise InputError(f"{origin}: {problems[0]}")
    raise InputError(f"{origin} has {len(problems)} problems:\n" + "\n".join(f"  - {line}" for line in problems))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; numbers as YAML 1.2 has them, so `1e-4` is a number and `no` and `007` are text.

    Raises:
        InputError: no such file, not UTF-8, not YAML, a duplicate key, a python tag, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: there is no such file; give --config a YAML file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    content = _load_yaml(text, str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be a mapping of 'key: value' lines, not a {type(content).__name__}")
    return content


def dump_settings(settings: Settings) -> str:
    """Settings as YAML text that `read_yaml` reads back to the same values."""
    return dump_yaml(settings.model_dump(mode="json"))


def dump_yaml(content: Mapping[str, Any]) -> str:
    """A mapping as YAML text, keys in their own order."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _parse_arguments(
    settings_class: type[Settings],
    doc: str | None,
    default_config: Path,
    argv: Sequence[str] | None,
    flags: Mapping[str, str],
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=doc,
        epilog=_describe_settings(settings_class),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if default_config.is_relative_to(Path.cwd()):
        default_config = default_config.relative_to(Path.cwd())  # as the user would type it
    parser.add_argument("--config", type=Path, default=default_config, help=f"YAML file (default: {default_config})")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")
    for key, text in flags.items():
        parser.add_argument(f"--{key.replace('_', '-')}", action="store_true", help=text)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key, e.g. lr=1e-4 data.root=DIR")
    return parser.parse_intermixed_args(argv)  # options may stand between overrides


def _describe_settings(settings_class: type[Settings]) -> str:
    """For --help: every key with its default, then what the docstrings say of the keys."""
    lines = ["keys:"]
    for name, field in settings_class.model_fields.items():
        lines.append(
            f"  {name}: {'(required)' if field.is_required() else _plain(field.get_default(call_default_factory=True))}"
        )
    classes = [settings_class, *(base for base in settings_class.__mro__[1:] if base not in Settings.__mro__)]
    nested = (_nested_settings(settings_class, name) for name in settings_class.model_fields)
    docs = [inspect.getdoc(kind) for kind in dict.fromkeys([*classes, *filter(None, nested)])]
    return "\n\n".join(["\n".join(lines), *filter(None, docs)])


def _plain(value: Any) -> str:
    if isinstance(value, Settings):
        return "(a section)"
    return str(value) if isinstance(value, Path) else json.dumps(value)


def _merge_sources(settings_class: type[Settings], config: Path, overrides: list[str]) -> dict[str, Any]:
    raw = _use_field_names(settings_class, read_yaml(config), str(config))
    seen: set[str] = set()
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"override {override!r}: write it as key=value, without blanks around the '='")
        # Paths and texts are taken as they are typed: YAML would cut them at ' #' and split them at ': '.
        is_text = _names_text(settings_class, key.split(".")) and text not in ("null", "~", "")
        nested: Any = text if is_text else _load_yaml(text, f"override {override!r}")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        nested = _use_field_names(settings_class, nested, f"override {override!r}")
        name = ".".join(_leading_keys(nested, key.count(".") + 1))
        if name in seen:
            raise InputError(f"override {name!r} is given twice; keep one of them")
        seen.add(name)
        _merge_into(raw, nested)
    return raw


def _names_text(settings_class: type[Settings], parts: list[str]) -> bool:
    for part in parts[:-1]:
        if not part.isdigit():
            nested = _nested_settings(settings_class, _field_name(settings_class, part))
            if nested is None:
                return False
            settings_class = nested
    field = settings_class.model_fields.get(_field_name(settings_class, parts[-1]))
    return field is not None and _is_text(field.annotation)


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_text(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return all(_is_text(part) for part in get_args(annotation) if part is not NoneType)
    return annotation in (Path, str)


def _leaves(annotation: Any) -> Iterator[Any]:
    """All types in an annotation such as `tuple[Model, ...] | None`."""
    yield annotation
    for part in get_args(annotation):
        yield from _leaves(part)


def _leading_keys(nested: Mapping[str, Any], depth: int) -> Iterator[str]:
    for _ in range(depth):
        key, nested = next(iter(nested.items()))
        yield key


def _merge_into(target: dict[Any, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        current = target.get(key)
        if isinstance(value, Mapping) and isinstance(current, list):
            target[key] = _merge_into_list(current, value, key)
        elif isinstance(value, Mapping) and isinstance(current, dict):
            _merge_into(current, value)
        else:
            target[key] = value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `over`, and those of `base` that it lacks, section by section; neither is changed."""
    merged = copy.deepcopy(dict(base))
    _merge_into(merged, copy.deepcopy(dict(over)))
    return merged


def _merge_into_list(items: list[Any], source: Mapping[str, Any], key: str) -> list[Any]:
    """`models.0.checkpoint=PATH`: items are addressed by their position, from 0."""
    by_position: dict[Any, Any] = {str(position): item for position, item in enumerate(items)}
    if unknown := [part for part in source if part not in by_position]:
        raise InputError(f"override {key}.{unknown[0]}: {key!r} is a list with positions 0 to {len(items) - 1}")
    _merge_into(by_position, source)
    return list(by_position.values())


def _use_field_names(settings_class: type[Settings], raw: dict[str, Any], origin: str) -> dict[str, Any]:
    """Replace aliases (`time_dim`) by field names (`num_frames`), so that sources can be merged key by key."""
    renamed: dict[str, Any] = {}
    for key, value in raw.items():
        name = _field_name(settings_class, key)
        if name in renamed:
            raise InputError(f"{origin}: {key!r} and {name!r} are names of the same setting; keep one of them")
        nested = _nested_settings(settings_class, name)
        if nested is not None and isinstance(value, dict):
            value = _use_field_names(nested, value, origin)
        renamed[name] = value
    return renamed


def _field_name(settings_class: type[Settings], key: Any) -> Any:
    for name, field in settings_class.model_fields.items():
        if isinstance(field.validation_alias, AliasChoices) and key in field.validation_alias.choices:
            return name
    return key


def _nested_settings(settings_class: type[Settings], name: Any) -> type[Settings] | None:
    """The settings class of a section, or of the items of a list."""
    field = settings_class.model_fields.get(name)
    candidates = _leaves(field.annotation) if field else ()
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, Settings)), None)


def _describe_problem(settings_class: type[Settings], item: Mapping[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], list(_known_keys(settings_class, location[:-1])), n=1)
        return f"unknown key {key!r}" + (
            f", did you mean {'.'.join([*location[:-1], near[0]])!r}?" if near else "; remove it"
        )
    if item["type"] == "missing":
        return f"{key!r} is missing; add it"
    message = _say(item)
    if not key:
        return message
    if item["type"] == "value_error":
        return f"{key}: {message}"
    return f"{key}: {message} (got {_shorten(item['input'])})"


def _say(item: Mapping[str, Any]) -> str:
    """What is wrong with a value, in the words of a person."""
    kind, message, context = item["type"], item["msg"], item.get("ctx", {})
    if kind == "value_error":  # ours are written as they should be, and may begin with a path
        return message.removeprefix("Value error, ")
    if kind == "form":
        return message
    if kind == "too_short":
        return f"give at least {_NUMBERS.get(context['min_length'], context['min_length'])}"
    if kind == "too_long":
        return f"give at most {_NUMBERS.get(context['max_length'], context['max_length'])}"
    for technical, plain in (("a valid array", "a list"), ("an object", "a section"), ("a valid string", "text")):
        message = message.replace(technical, plain)
    return message[0].lower() + message[1:]


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known_keys(settings_class: type[Settings], parents: list[str]) -> Iterator[str]:
    for part in parents:
        if part.isdigit():
            continue
        nested = _nested_settings(settings_class, part)
        if nested is None:
            return
        settings_class = nested
    for name, field in settings_class.model_fields.items():
        yield name
        if isinstance(field.validation_alias, AliasChoices):
            yield from (choice for choice in field.validation_alias.choices if isinstance(choice, str))


# ---------------------------------------------------------------------------------------------------------------------
# YAML


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars; duplicate keys and aliases are errors."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # a few nested ones grow to gigabytes, and one may hold itself
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not read; write the value out", mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes exactly what `_Loader` would otherwise read as something else, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_SCALARS = (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in _SCALARS:
        _class.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
        key = key_node.value
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


# Only what JSON has: timestamps, sets and binaries would not reach the settings.
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rsplit(":", 1)[-1] in ("null", "bool", "int", "float", "str", "seq")
}
_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _load_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        # What was never closed is found at the end of the file; the context is where it opened.
        unclosed = "<stream end>" in (error.problem or "")
        mark = (unclosed and error.context_mark) or error.problem_mark or error.context_mark
        place = f"{origin} line {mark.line + 1}" if mark else origin
        problem = error.problem or "cannot be parsed"
        if "could not determine a constructor for the tag" in problem:
            problem = problem.replace("could not determine a constructor for the", "refused the")
            problem += ": only plain text, numbers, lists and mappings are read"
        raise InputError(f"{place}: not valid YAML: {problem}; correct that line") from error
    except (yaml.YAMLError, RecursionError, ValueError, KeyError) as error:  # the last two: `!!int ten`, `!!bool 5`
        raise InputError(f"{origin}: not valid YAML: {str(error) or 'nested too deeply'}; correct the file") from error
