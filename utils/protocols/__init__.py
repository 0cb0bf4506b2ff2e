"""Protocols: one file of training values for all networks that are compared, and the name a run may call itself by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from utils.config import Settings, build_settings, merge, read_yaml
from utils.errors import InputError

if TYPE_CHECKING:
    from utils.settings import TrainingSettings

NONE, CUSTOM = "none", "custom"
_FOLDER = Path(__file__).parent
KNOWN = sorted(path.stem for path in _FOLDER.glob("*.yaml"))


class Protocol(Settings):
    """A protocol file.

    Attributes:
        values: of every network.
        networks: further values of one network, by its name.
        free: keys that a run may set otherwise and keep the protocol's name.
        only: the networks that it is of; empty is any.
    """

    values: dict[str, Any]
    networks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    free: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


def fill_in(settings_class: type[TrainingSettings], raw: Mapping[str, Any]) -> dict[str, Any]:
    """The given values over those of the protocol they name.

    Raises:
        InputError: no such protocol, or one with an unknown key or a wrong value.
    """
    name = raw.get("protocol", NONE)
    if not isinstance(name, str) or name == NONE:
        return dict(raw)
    values = protocol_values(settings_class, name)
    if "epochs" in raw and "updates" not in raw:
        values.pop("updates", None)  # who asks for epochs gets them
    return merge(values, raw)


def protocol_values(settings_class: type[TrainingSettings], name: str) -> dict[str, Any]:
    """A protocol's values for one network.

    Raises:
        InputError: as `fill_in`.
    """
    path, protocol = _read(name)
    if protocol.only and settings_class.NETWORK not in protocol.only:
        raise InputError(
            f"protocol: {name} is of the networks {', '.join(protocol.only)}, not of {settings_class.NETWORK}; set "
            "another"
        )
    values = merge(protocol.values, protocol.networks.get(settings_class.NETWORK, {}))
    if unknown := [key for key in values if key not in settings_class.model_fields]:
        names = ", ".join(map(repr, unknown))
        raise InputError(f"{path}: unknown key {names} for {settings_class.NETWORK}; correct or remove it")
    _require_valid(settings_class, values, path)
    return values


def label(settings: TrainingSettings) -> str:
    """The name of a run's protocol; `custom` where one of its values is neither the protocol's nor free."""
    if settings.protocol == NONE:
        return CUSTOM
    path, protocol = _read(settings.protocol)
    kept = settings.model_dump(mode="json", include=set(settings.NOT_PROTOCOL) - {"protocol"} | set(protocol.free))
    values = kept | protocol_values(type(settings), settings.protocol)
    expected = build_settings(type(settings), values, str(path), check_paths=False).protocol_values
    found = settings.protocol_values
    departs = any(found[key] != expected[key] for key in found if key not in protocol.free)
    return CUSTOM if departs else path.stem


def _require_valid(settings_class: type[TrainingSettings], values: Mapping[str, Any], path: Path) -> None:
    """Check a protocol's values alone: among those of a config, they would be taken for the config's."""
    fields = {key: (settings_class.model_fields[key].annotation, settings_class.model_fields[key]) for key in values}
    part = create_model(settings_class.__name__, __base__=Settings, **fields)
    build_settings(part, values, str(path), check_paths=False)


def _read(name: str) -> tuple[Path, Protocol]:
    path = _FOLDER / f"{name}.yaml" if name in KNOWN else Path(name)
    if not path.is_file():
        raise InputError(f"protocol: {name!r} is neither {', '.join([NONE, *KNOWN])} nor a file; correct it")
    if name not in KNOWN and path.stem in (NONE, CUSTOM, *KNOWN):
        raise InputError(f"protocol: {name}: tables would call it {path.stem!r}, which means another; rename the file")
    return path, build_settings(Protocol, read_yaml(path), str(path))
