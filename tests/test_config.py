"""The configuration file: what it means and how it is refused."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from smallfirst.config import HOSTED, load, parse
from smallfirst.errors import ConfigError
from smallfirst.prices import PriceList
from smallfirst.types import Usage


def test_defaults_need_no_file_and_no_key() -> None:
    """Without anything there is the embedded small model, on loopback."""
    config = parse("", {})
    assert list(config.models) == ["small"]
    assert config.cascade.stages == ("small",)
    assert config.server.host == "127.0.0.1"


def test_provider_keys_in_the_environment_add_large_models() -> None:
    """Each provider key brings that provider's models: handed on by name, and one with a known price for `auto`."""
    config = parse("", {"OPENAI_API_KEY": "x", "ANTHROPIC_API_KEY": "y"})
    assert config.cascade.stages == ("small", "openai", "anthropic")
    assert config.models["anthropic"].models == ("claude-*",)
    for name in HOSTED:
        assert PriceList().cost(config.models[name].model, name, Usage(1, 1)) is not None
        said = resources.files("smallfirst").joinpath("smallfirst.toml").read_text()
        assert config.models[name].model in said


def test_a_base_url_in_the_environment_names_no_model() -> None:
    """A server of unknown models is asked for what clients name, and nothing is made up for `auto`."""
    model = parse("", {"OPENAI_API_KEY": "x", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}).models["openai"]
    assert (model.model, model.models) == ("", ("*",))


def test_the_secret_itself_is_never_in_the_config() -> None:
    """A configuration names environment variables, so it can be shown and hashed."""
    assert "s3cret" not in repr(parse("", {"OPENAI_API_KEY": "s3cret"}))


def test_a_task_is_the_cascade_with_its_own_words_laid_over() -> None:
    """Tasks inherit [cascade] key by key."""
    text = "[cascade]\nrepairs = 3\n[tasks.sql]\nmode = 'small_only'\nmatch = { tools = ['q'] }"
    config = parse(text, {})
    assert (config.policy("sql").repairs, config.policy("sql").mode) == (3, "small_only")
    assert config.policy("sql").stages == ("small",)
    assert config.matches["sql"].tools == ("q",)
    assert config.policy("anything else") == config.cascade


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[server]\nprot = 1", "prot"),
        ("[server]\nport = 'x'", "server.port"),
        ("[server]\nport = 99999", "99999"),
        ("x =", "not valid TOML"),
        ("[cascade]\nstages = ['nope']", "nope"),
        ("[cascade]\nmode = 'yolo'", "yolo"),
        ("[cascade]\nrepairs = 9", "0 to 5"),
        ("[cascade]\naudit = 2", "audit"),
        ("[cascade]\nexplore = -0.1", "explore"),
        ("[models.a]\nbackend = 'openai'", "names no model"),
        ("[models.a]\nbackend = 'llamacpp'", "weights"),
        ("[models.'a~1']\nbackend = 'fake'", "models.a~1 has a '~' in its name"),
        ("tasks = 3", "tasks"),
        ("[matches.x]", "matches"),
        ("[cascade]\nstages = ['small', 'small']", "twice"),
        ("[models.a]\nbackend = 'fake'\nmax_retries = -1", "max_retries"),
        ("[server]\nbody_timeout_s = 0", "body_timeout_s"),
        ("[cascade]\nmax_usd = -0.1", "max_usd"),
    ],
)
def test_mistakes_are_named(text: str, says: str) -> None:
    """Each mistake is refused with the place it stands at."""
    with pytest.raises(ConfigError, match=says):
        parse(text, {})


def test_the_hash_follows_the_settings() -> None:
    """Equal settings hash alike, whatever the file looks like; a changed one does not."""
    assert parse("[cascade]\nrepairs = 1  # the default", {}).hash == parse("", {}).hash
    assert parse("[cascade]\nrepairs = 2", {}).hash != parse("", {}).hash


def test_the_commented_file_shows_the_defaults() -> None:
    """What `smallfirst init` writes changes nothing until a line is uncommented."""
    text = resources.files("smallfirst").joinpath("smallfirst.toml").read_text()
    assert parse(text, {}) == parse("", {})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that was named must exist."""
    with pytest.raises(ConfigError, match="init"):
        load(tmp_path / "absent.toml", {})
