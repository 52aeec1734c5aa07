"""Writes requirements.lock and requirements-dev.lock from the environment it runs in."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

HEAD = "# Made from a working environment by `make lock`. torch comes first, under constraints.txt.\n"


def closure(roots: list[str]) -> dict[str, str]:
    """The installed version of each root and of all it needs, local version labels dropped."""
    found: dict[str, str] = {}
    while roots:
        distribution = metadata.distribution(roots.pop())
        name = distribution.metadata["Name"].lower().replace("_", "-")
        if name in found:
            continue
        found[name] = distribution.version.split("+")[0]
        needs = [Requirement(text) for text in distribution.requires or []]
        roots += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def main() -> None:
    """Runtime packages in one file, what tests and benches need besides in the other."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [text for name in ("run", "compress", "all") for text in extras[name]]
    needed = {Requirement(text).name for text in [*project["dependencies"], *asked]} - {project["name"]}
    runtime = closure([*needed, "hatchling", "editables"])
    beside = [text for name in ("lightning", "transformers", "dev", "bench") for text in extras[name]]
    everything = closure([*runtime, *({Requirement(text).name for text in beside} - {project["name"]})])
    lines = {name: f"{name}=={version}\n" for name, version in sorted(everything.items())}
    Path("requirements.lock").write_text(HEAD + "".join(lines[name] for name in lines if name in runtime))
    Path("requirements-dev.lock").write_text(HEAD + "".join(lines[name] for name in lines if name not in runtime))


if __name__ == "__main__":
    main()
