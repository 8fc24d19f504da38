"""What the documents promise exists: links, commands, targets, settings, models."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pydantic import SecretStr

from pixelkiln.api.app import create_app
from pixelkiln.api.lane_metrics import of_outlook
from pixelkiln.api.metrics import of_fleet, of_jobs, of_lanes, of_leases, of_messages
from pixelkiln.cli import main
from pixelkiln.scaling import Outlook
from pixelkiln_shared.catalogue import Catalogue
from pixelkiln_shared.ledger.leases import LeaseCount
from pixelkiln_shared.ledger.outbox import OutboxState
from pixelkiln_shared.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CODE_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def tracked() -> list[Path]:
    """Return the files git knows; skip where there is no clone."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [path for name in listing.decode().split("\0") if name and (path := ROOT / name).is_file()]


def shown_commands(program: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (page, words) for each line of a code block, or inline code, that runs the program."""
    for page in PAGES:
        text = page.read_text("utf-8")
        lines = [line for block in CODE_BLOCK.findall(text) for line in block.splitlines()]
        lines += re.findall(rf"`({program} [^`\n]+)`", CODE_BLOCK.sub("", text))
        for line in lines:
            for part in re.split(r"&&|\|\||[|;]|\$\(", line):
                if re.match(rf"\s*\$?\s*{program} ", part):
                    words = shlex.split(part.strip().lstrip("$ ").rstrip(")"), comments=True)
                    yield page.name, words[1:]


def anchors(page: Path) -> set[str]:
    """Return the fragments a page's headings answer to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(CODE_BLOCK.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{page.name} links to {target}"
        assert not fragment or fragment in anchors(other), f"{page.name} links to {target}"


def test_shown_commands_exist_with_their_options() -> None:
    context = click.Context(main)
    seen = 0
    for page, words in shown_commands("pixelkiln"):
        if not words or words[0].startswith(("-", "{", "<")):
            continue
        command = main.get_command(context, words[0])
        assert command is not None, f"{page}: pixelkiln {words[0]}"
        if isinstance(command, click.Group):
            words = words[1:] if len(words) > 1 and words[1] in command.commands else words
            command = command.commands.get(words[0], command)
        known = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        used = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-zA-Z]", word)}
        assert used <= known | {"-h", "--help"}, f"{page}: pixelkiln {words[0]} {used - known}"
        seen += 1
    assert seen > 10


def test_files_named_in_documents_exist() -> None:
    known = [f"/{path.relative_to(ROOT)}" for path in tracked()]
    for page in PAGES:
        for name in re.findall(
            r"`([\w/.-]+\.(?:py|lua|toml|yaml|yml|Dockerfile|sh))`", page.read_text("utf-8")
        ):
            short = (
                name.replace("shared/", "shared/pixelkiln_shared/") if page.stem == "architecture" else name
            )
            found = any(path.endswith((f"/{name}", f"/{short}")) for path in known)
            assert found or name == "my-models.toml", f"{page.name} names {name}"


def test_shown_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    shown = {words[0] for _, words in shown_commands("make")}
    assert shown
    assert shown <= targets


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs/cli.md").read_text("utf-8")
    missing = [name for name in main.list_commands(click.Context(main)) if f"`pixelkiln {name}" not in text]
    assert not missing


def test_every_address_is_documented_and_no_other(tmp_path: Path) -> None:
    settings = Settings(redis_url="redis://127.0.0.1:1/0", storage_url=f"file://{tmp_path}")
    paths = create_app(settings).openapi()["paths"]
    real = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    text = (ROOT / "docs/http-api.md").read_text("utf-8")
    assert set(re.findall(r"^\| `([A-Z]+ /\S*)` \|", text, re.MULTILINE)) == real


def test_every_error_code_of_the_documents_is_in_the_code() -> None:
    sources = [path.read_text("utf-8") for path in tracked() if path.suffix in {".py", ".lua"}]
    known = {word for text in sources for word in re.findall(r"[\"']([a-z_]+)[\"']", text)}
    errors = (ROOT / "docs/http-api.md").read_text("utf-8").partition("## Errors")[2]
    shown = set(re.findall(r"`([a-z]+_[a-z_]+)`", errors)) - {"request_id"}
    assert len(shown) > 30
    assert shown <= known


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs/configuration.md").read_text("utf-8")
    rows = dict(
        re.findall(r"^\| `PIXELKILN_(\w+)` \| ([^|]+) \|", text.partition("## Clients")[0], re.MULTILINE)
    )
    shown = {name.lower(): value.strip().strip("`") for name, value in rows.items()}
    assert shown == {name: as_shown(field.default) for name, field in Settings.model_fields.items()}


def as_shown(default: object) -> str:
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    return "-" if default is None else "empty" if default == "" else str(default)


def test_every_model_is_documented() -> None:
    text = (ROOT / "docs/models.md").read_text("utf-8")
    missing = [entry.id for entry in Catalogue.load(stub=True) if f"| `{entry.id}` |" not in text]
    assert not missing


def test_every_metric_of_the_documents_is_told() -> None:
    families = [*of_lanes(()), *of_jobs({}), *of_fleet(()), *of_outlook(Outlook(), 60)]
    families += of_leases(LeaseCount(held=0, overdue=0))
    families += of_messages(Counter(), OutboxState(failing=0, gone=0, late_s=0))
    ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    told = {f"{family.name}{end}" for family in families for end in ends.get(family.type, ("",))}
    text = (ROOT / "docs/operations.md").read_text("utf-8")
    shown = set(re.findall(r"\bpixelkiln_[a-z_]+", text)) - {"pixelkiln_worker"}  # the package
    assert len(shown) >= 8
    assert shown <= told


def test_env_example_names_what_compose_asks_for() -> None:
    compose = (ROOT / "docker-compose.yml").read_text("utf-8")
    example = set(re.findall(r"^([A-Z_0-9]+)=", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE))
    required = set(re.findall(r"\$\{([A-Z_0-9]+):\?", compose))
    assert required
    assert required <= example


def test_published_ports_are_on_loopback() -> None:
    compose = (ROOT / "docker-compose.yml").read_text("utf-8")
    ports = re.findall(r"^\s*ports: \[(.*)\]$", compose, re.MULTILINE)
    assert ports
    assert all(port.strip().strip('"').startswith("127.0.0.1:") for line in ports for port in line.split(","))


def test_no_source_file_is_longer_than_400_lines() -> None:
    sources = [path for path in tracked() if path.suffix in {".py", ".lua", ".sh"}]
    lengths = {path.name: len(path.read_text("utf-8").splitlines()) for path in sources}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = {"util", "utils", "common", "helper", "helpers", "misc"}
    assert not [path for path in tracked() if path.suffix == ".py" and path.stem in empty]


def test_no_path_of_one_machine_and_no_package_index_is_committed() -> None:
    foreign = re.compile(
        r"(?<![\w.$-])/(?:work|root|home|farm)/[a-z.]|index[-]url|/simple[/]|https?://[a-z.]*(?:debian|pypi|npmjs)"
    )
    found = []
    for path in tracked():
        if path.stat().st_size > 1_000_000 or path.suffix in {".png", ".jpg", ".safetensors", ".webp"}:
            continue
        text = path.read_text("utf-8", errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {hit}" for hit in foreign.findall(text)]
    assert not found
