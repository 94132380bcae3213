"""The pages on installing, and the Dockerfile, against what is here: nothing is downloaded or built."""

import re
import shlex
import tomllib

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.conftest import ROOT

INSTRUCTIONS = {
    "FROM",
    "RUN",
    "CMD",
    "ENTRYPOINT",
    "COPY",
    "WORKDIR",
    "ENV",
    "ARG",
    "VOLUME",
    "LABEL",
}


def environment(python):
    """What markers see on Linux, x86-64."""
    version = {"python_full_version": f"{python}.9", "python_version": python}
    return version | {"sys_platform": "linux", "platform_machine": "x86_64", "extra": ""}


def locked(python="3.11"):
    """Package to its versions in requirements.txt; by default for the Python of the image."""
    text = (ROOT / "requirements.txt").read_text()
    lines = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)(?: ; (.*?))?(?: \\)?$", text, re.MULTILINE)
    pins = [
        (name, version)
        for name, version, marker in lines
        if not marker or Marker(marker).evaluate(environment(python))
    ]
    assert len({name for name, _ in pins}) == len(pins), f"Python {python}: a package has two pins"
    return dict(pins)


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pythons():
    """The versions of Python that the classifiers name."""
    found = (re.fullmatch(r".*Python :: (3\.\d+)", line) for line in project()["classifiers"])
    return [match[1] for match in found if match]


def instructions():
    """(name, rest) of each instruction of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    lines = [line.strip() for line in text.splitlines()]
    return [tuple(line.split(None, 1)) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("python", pythons())
def test_the_lock_has_one_fitting_pin_of_each_dependency(python):
    pins = locked(python)
    for line in project()["dependencies"]:
        requirement = Requirement(line)
        if not requirement.marker or requirement.marker.evaluate(environment(python)):
            name = requirement.name.replace("_", "-").lower()
            assert requirement.specifier.contains(pins[name], prereleases=True), line


def test_the_same_pythons_are_named_everywhere():
    assert pythons() == ["3.11", "3.12", "3.13", "3.14"]
    allowed = SpecifierSet(project()["requires-python"])
    minors = [f"3.{minor}" for minor in range(8, 20)]
    assert [python for python in minors if python in allowed] == pythons()
    makefile, page = ((ROOT / name).read_text() for name in ("Makefile", "docs/install.md"))
    assert " ".join(f"python{python}" for python in pythons()) in makefile
    assert re.findall(r"^\| (3\.\d+) \|", page, re.MULTILINE) == pythons()  # of the table


def test_both_cudas_are_extras_with_the_bound_of_jax():
    (bound,) = (Requirement(d) for d in project()["dependencies"] if Requirement(d).name == "jax")
    for extra, wheels in (("cuda", "cuda12"), ("cuda13", "cuda13")):
        (line,) = project()["optional-dependencies"][extra]
        assert (Requirement(line).extras, Requirement(line).specifier) == (
            {wheels},
            bound.specifier,
        )


def test_every_instruction_is_one_of_dockers_and_the_first_says_from_what():
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert found[0] == ("FROM", "python:3.11-slim")
    assert [name for name, _ in found].count("ENTRYPOINT") == 1
    for name, rest in found:
        if name in ("CMD", "ENTRYPOINT"):
            assert re.fullmatch(r'\["[^"]+"(, "[^"]+")*\]', rest)  # not through a shell


def test_all_that_is_copied_is_here_and_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for name, rest in instructions():
        if name == "COPY":
            *sources, target = rest.split()
            assert len(sources) == 1 or target.endswith("/")
            for source in sources:
                assert (ROOT / source).exists() and source not in ignored, source
    assert {"runs", ".venv", ".git"} <= set(ignored)


def test_the_packages_that_are_named_are_those_of_the_lock():
    """jax[cuda12] is of the version that is locked; nothing else is named beside the lock."""
    versions = locked()
    named = [rest for name, rest in instructions() if name == "ARG"]
    assert named == [f"JAX=jax[cuda12]=={versions['jax']}"]
    for name in ("README.md", "docs/install.md"):  # the version that is there, whatever the Python
        line = "jax[cuda12]==$(python -c 'import jax; print(jax.__version__)')"
        assert line in (ROOT / name).read_text()
    for name, rest in instructions():
        if name != "RUN":
            continue
        words = shlex.split(rest)
        assert words[:2] == ["pip", "install"]
        packages = [word for word in words[2:] if not word.startswith("-")]
        assert packages in (["requirements.txt"], ["${JAX}"], ["."]), rest
    assert "setuptools" in versions  # for --no-build-isolation


def test_the_image_starts_the_console_command():
    text = (ROOT / "pyproject.toml").read_text()
    assert ("ENTRYPOINT", '["videogen"]') in instructions()
    assert 'videogen = "videogen_jax.cli:main"' in text


@pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
def test_activation_stands_before_the_first_python(page):
    blocks = "\n".join(re.findall(r"```(?:sh|console)\n(.*?)```", (ROOT / page).read_text(), re.S))
    assert "source .venv/bin/activate" in blocks
    activated = blocks.index("source .venv/bin/activate")
    assert activated < blocks.index("python -") and activated < blocks.index("pip install")


def test_pairs_of_rtx_4090_are_told_what_nccl_needs():
    assert "NCCL_P2P_DISABLE=1" in (ROOT / "docs" / "install.md").read_text()
