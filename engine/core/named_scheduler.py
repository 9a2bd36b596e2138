"""Find a scheduler of one's own by its name: a class in a file beside the engine."""

from __future__ import annotations

import sys
from importlib import import_module

from engine.config import ConfigError
from engine.core.scheduler import Scheduler


def named_scheduler(name: str | None) -> type[Scheduler]:
    """Return the scheduler that "module:Class" names, the engine's own without a name.

    The module may be a file in the current folder. Raises `ConfigError`.
    """
    if name is None:
        return Scheduler
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ConfigError(f"{name!r} names no class: write MODULE:CLASS, such as mine:Shortest")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ConfigError(f"{name} can't be imported: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Scheduler)):
        raise ConfigError(f"{name} is no subclass of engine.core.scheduler.Scheduler")
    return found
