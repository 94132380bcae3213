"""README and docs: links lead somewhere, and the table of options is that of the code."""

import pytest

from tests.check_docs import PAGES, ROOT, check_links, find_commands
from videogen_jax import config as configs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert check_links(page) == []


def test_the_table_of_options_is_that_of_the_code():
    path = ROOT / "docs" / "config.md"
    assert path.read_text() == configs.to_markdown() + "\n", (
        "run: python -m videogen_jax.config > docs/config.md"
    )


def test_commands_are_found_in_blocks_and_in_prose():
    commands = find_commands(ROOT / "README.md")
    assert any(one.startswith("python launch.py --config=configs/dit_512.py") for one in commands)
    assert any(one.startswith("python -m videogen_jax.plan") for one in commands)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 125
