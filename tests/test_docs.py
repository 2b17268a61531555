# SPDX-License-Identifier: Apache-2.0
"""The documentation: its site, its links, and every block of code in it."""

import ast
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPERS

from mal_mmdet.apis import generate_labels
from mal_mmdet.labeling import export_labels, read_coco, write_json
from tests.conftest import ROOT, tiny_config
from tests.doc_blocks import (
    PAGES,
    SHELL,
    Shell,
    check_call,
    check_imports,
    find_blocks,
    missing_tests,
    printed_pattern,
    run_call,
    run_python,
)

BLOCKS = [block for page in PAGES for block in find_blocks(page)]
CODE = [block for block in BLOCKS if block.language in (*SHELL, "python")]
OTHER_LANGUAGES = {"text", "json"}
PACKAGES = [path.stem for path in sorted((ROOT / "docs/api").glob("*.md")) if path.stem != "index"]


class Page(HTMLParser):
    """Places of a page that can be linked to, its links, and what it loads from elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.remote: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        loaded = attrs.get("href" if tag == "link" else "src") or ""
        if re.match(r"(https?:)?//", loaded):
            self.remote.append(loaded)


def build_site(root: Path, out: Path) -> str:
    """Builds the site as a release does; returns its warnings, each of which fails the build."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", out]  # -q hides warnings
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    lines = (done.stdout + done.stderr).splitlines()
    warnings = [line for line in lines if not line.startswith("INFO")]
    assert bool(warnings) == bool(done.returncode), done.stderr
    return "\n".join(warnings)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "site"
    assert build_site(ROOT, out) == ""
    return out


def test_dead_links_fail_the_build(tmp_path):
    """So do missing anchors and pages without a place in the navigation."""
    for name in ("docs", "mal_mmdet"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(".mim"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    page = tmp_path / "docs/index.md"
    page.write_text(page.read_text() + "\n[a](nothing.md) [b](method.md#nothing)\n")
    (tmp_path / "docs/lost.md").write_text("# Lost\n")
    warnings = build_site(tmp_path, tmp_path / "site")
    for words in ("'nothing.md'", "'method.md#nothing'", "lost.md"):
        assert words in warnings


def test_the_site_needs_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert [remote for path in pages for remote in Page(path).remote] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\W?(https?:)?//", style.read_text(encoding="utf-8"))


def test_roles_in_docstrings_are_links(site):
    pages = {path.stem: path.read_text(encoding="utf-8") for path in site.glob("api/*.html")}
    assert not [name for name, text in pages.items() if re.search(r":(class|func|meth):", text)]
    # Within the page, on another page, and of two functions with one name that of the package.
    assert 'href="#mal_mmdet.models.MaskNetwork"><code>MaskNetwork' in pages["models"]
    assert 'href="labeling.html#mal_mmdet.labeling.LabelWriter"' in pages["apis"]
    assert 'href="#mal_mmdet.labeling.check_exportable"' in pages["labeling"]


@pytest.mark.parametrize("name", PACKAGES)
def test_the_reference_has_every_export(site, name):
    package = importlib.import_module(f"mal_mmdet.{name}")
    ids = Page(site / f"api/{name}.html").ids
    missing = {
        export
        for export in package.__all__
        # A function with the name of its module stands under both.
        if not ids & {f"{package.__name__}{middle}.{export}" for middle in ("", f".{export}")}
    }
    assert not missing


def test_every_package_has_a_reference():
    packages = {path.parent.name for path in (ROOT / "mal_mmdet").glob("*/__init__.py")}
    assert packages == set(PACKAGES)


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_links_outside_the_site(site, page):
    """README and CONTRIBUTING link to files and to places in the pages of the site."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    links = [link for link in found if not link.startswith("https://")]
    assert links or page.name == "CONTRIBUTING.md"
    for link in links:
        name, _, place = link.partition("#")
        assert (ROOT / name).exists(), link
        if place:
            assert place in Page(site / Path(name).relative_to("docs").with_suffix(".html")).ids


def test_blocks_say_their_language():
    unknown = [str(b) for b in BLOCKS if b not in CODE and b.language not in OTHER_LANGUAGES]
    assert not unknown


@pytest.fixture(scope="module")
def shell(tmp_path_factory) -> Shell:
    folder = tmp_path_factory.mktemp("shell")
    for name in ("tools", "configs"):
        (folder / name).symlink_to(ROOT / name)
    return Shell(folder)


@pytest.mark.parametrize("block", CODE, ids=str)
def test_block(block, shell):
    """Its commands are such as the tools take, and something runs it, or it says why not."""
    if block.language in SHELL:
        calls = shell.read(block.text)
        assert calls, "calls nothing"
        for call in calls:
            check_call(call, shell)
    else:
        check_imports(block.text)
        if block.is_config and not block.run_by:
            assert Config.fromstring(block.text, ".py").model
    assert missing_tests(block) == []
    if block.not_run:
        pytest.skip(f"in the documentation, not run: {block.not_run}")


CONFIG = "configs/mal/mal_vit-demo_1xb16_demo.py"


@pytest.mark.parametrize(
    "text, message",
    [
        ("python tools/train.py", "the following arguments are required: config"),
        ("python tools/no_tool.py", "there is no tools/no_tool.py"),
        ("python tools/train.py configs/mal/no_config.py", "there is no config configs/mal/no_con"),
        (f"python tools/train.py {CONFIG} --no-option", "unrecognized arguments: --no-option"),
        (f"python tools/train.py {CONFIG} --cfg-options modle.a=1", "has no modle.a"),
        (f"python tools/train.py {CONFIG} --cfg-options param_scheduler.2.end=1", "list ends"),
        ("python tools/train.py mmdet::no/config.py", "no/config.py"),
        (f"bash tools/dist_train.sh {CONFIG}", "Usage: bash tools/dist_train.sh"),
        (f"bash tools/dist_train.sh {CONFIG} --resume", "Usage: bash tools/dist_train.sh"),
        (f"bash tools/dist_train.sh {CONFIG} 8 --no-option", "unrecognized arguments"),
        (f"bash tools/slurm_train.sh part job {CONFIG} work --no-option", "unrecognized arguments"),
        ("bash tools/quickstart.sh --no-option", "unknown option --no-option"),
        ("pip install --no-option", "no such option: --no-option"),
        ("python -m mal_mmdet.nothing", "there is no module mal_mmdet.nothing"),
        ("no_program", "no_program: command not found"),
        ("for", "syntax error"),
    ],
)
def test_wrong_commands_are_found(text, message, shell):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        for call in shell.read(text):
            check_call(call, shell)


def test_bash_reads_the_blocks(shell):
    """Variables, loops, quotes, comments and patterns of files."""
    text = """
    A="--x 'y z'" B=1  # a comment
    for name in a b; do
        python tool.py $A "$name" \\
            tools/tr*.py
    done
    """
    calls = [["python", "tool.py", "--x", "'y", "z'", x, "tools/train.py"] for x in "ab"]
    assert shell.read(text) == calls


def test_wrong_python_and_missing_tests_are_found(tmp_path):
    with pytest.raises(ValueError, match=r"mal_mmdet\.apis has no Nothing"):
        check_imports("from mal_mmdet.apis import Nothing")
    with pytest.raises(SyntaxError):
        check_imports("a = ")
    page = tmp_path / "page.md"
    tests = "tests/test_quickstart.py::test_summary tests/test_quickstart.py::no_test"
    page.write_text(
        f"<!-- run by {tests} -->\n```shell\npython tools/export_labels.py\n```\n"
        "<!-- not run: no\n reason -->\n```python\nx\n```\n```text\n3 of 4\n…\n```\n"
    )
    first, second, _ = find_blocks(page)
    no_test, no_tool = missing_tests(first)
    assert no_test == "there is no test tests/test_quickstart.py::no_test"
    assert no_tool.endswith("names the tool export_labels")
    assert second.not_run == "no reason" and not second.is_run_here
    assert printed_pattern(second.prints).search("a\n12 of 4.5\nb") is None  # no line …
    assert printed_pattern("3 of 4\n").search("a\n12 of 4.5\nb")


TINY = {
    "model.network.backbone.arch": dict(
        embed_dims=32, num_layers=1, num_heads=2, feedforward_channels=32
    ),
    "model.network.decoder": dict(in_channels=32, channels=16),
    "model.crf_loss.num_steps": 5,
    "train_dataloader.batch_size": 32,
    "train_dataloader.dataset.dataset.times": 1,
    "default_hooks.checkpoint.interval": 40,
}


@pytest.fixture
def folder(demo, tmp_path, monkeypatch) -> Path:
    """A repository whose small network is tiny, with the data of the page about one's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    path = tmp_path / "configs/mal/mal_vit-demo_1xb16_small-data.py"
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(TINY)
    cfg.dump(path)
    own = tmp_path / "data/own"
    shutil.copytree(demo / "train", own / "images")
    coco = read_coco(demo / "instances_train.json")
    export_labels("yolo", coco, own)
    for name in ("data/own/coco.json", "data/own/human.json", "labels.json"):
        shutil.copy(demo / "instances_train.json", tmp_path / name)
    names = {c["id"]: c["name"] for c in coco["categories"]}
    rows = ["file_name,x0,y0,x1,y1,label"]
    (own / "voc").mkdir()
    for image in coco["images"]:
        objects = ""
        for ann in (a for a in coco["annotations"] if a["image_id"] == image["id"]):
            x, y, w, h = ann["bbox"]
            corners, name = (x, y, x + w, y + h), names[ann["category_id"]]
            rows.append(",".join(map(str, (image["file_name"], *corners, name))))
            tags = zip(("xmin", "ymin", "xmax", "ymax"), corners)
            box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
            objects += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
        head = f"<filename>{image['file_name']}</filename>{size}"
        xml = own / "voc" / f"{image['id']}.xml"
        xml.write_text(f"<annotation>{head}{objects}</annotation>")
    (own / "boxes.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(b.page == page and b.is_run_here for b in CODE)],
    ids=lambda page: page.name,
)
def test_page_runs(page, folder, tmp_path_factory, capsys):
    """The blocks that no other test runs, one after the other, with what they print."""
    shell = Shell(tmp_path_factory.mktemp("shell"))
    (shell.folder / "data").symlink_to(folder / "data")
    names: dict = {}
    for block in (b for b in CODE if b.page == page and b.is_run_here):
        capsys.readouterr()
        if block.language in SHELL:
            for call in shell.read(block.text):
                run_call(call, folder)
        else:
            run_python(block, names)
        printed = capsys.readouterr().out
        if block.prints:
            assert printed_pattern(block.prints).search(printed), f"{block}: {printed[-1000:]}"


def templates(path: Path) -> list[str]:
    """The texts in a file of Python, with ``…`` for what is filled in."""

    def text(node: ast.AST) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        if isinstance(node, ast.BinOp):
            return text(node.left) + text(node.right)
        return "…"

    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [text(node) for node in ast.walk(tree) if isinstance(node, kinds)]


def test_messages_are_those_of_the_code():
    """Messages in the page on troubleshooting: quoted with ``…`` for what is filled in."""
    files = [p for name in ("mal_mmdet", "tools") for p in (ROOT / name).rglob("*.py")]
    known = [template for path in files for template in templates(path)]
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE)
    quoted += re.findall(r"`(?:bbox|its|image) [^`]*`", page)
    messages = [message for cell in quoted for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 40
    for message in (" ".join(message.split()) for message in messages):
        # At the end … also stands for the rest of a message.
        start = message.removesuffix("…").rstrip()
        assert any(start in template for template in known), message


def test_every_field_of_a_label_file_is_documented(demo, tmp_path):
    """What labeling has written, in the page that lists it."""
    cfg = tiny_config(demo, tmp_path / "work")
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / "mal.pth")
    boxes = read_coco(demo / "boxes_val.json")
    boxes["annotations"][0]["bbox"] = [0, 0, 0, 0]
    write_json(tmp_path / "boxes.json", boxes)
    files = tmp_path / "boxes.json", demo / "val", tmp_path / "out.json"
    assert generate_labels(cfg, tmp_path / "mal.pth", *files, date="2026-11-25") == 1
    labels = read_coco(tmp_path / "out.json")
    report = json.loads((tmp_path / "out.json.report.json").read_text())
    before, after = boxes["annotations"][1], labels["annotations"][0]
    changed = [key for key in after if after[key] != before.get(key)]
    info = labels["info"]["mal_mmdet"]
    assert {"segmentation", "area", "mask_quality", "source"} == set(changed)
    page = (ROOT / "docs/label_file.md").read_text(encoding="utf-8")
    for key in (*changed, *info, *info["versions"], *report, *report["failed"][0]):
        assert f"`{key}`" in page, key


def is_setting(cfg: Config, name: str) -> bool:
    """Whether a config has a setting, or the class that it configures has such an argument."""
    node = cfg
    for part in name.split("."):
        if isinstance(node, list):
            node = node[int(part)]
        elif part in node:
            node = node[part]
        else:
            kinds = (registry.get(node.get("type", "")) for registry in (MODELS, OPTIM_WRAPPERS))
            classes = [c for kind in kinds if kind for c in kind.__mro__]
            return any(part in inspect.signature(c.__init__).parameters for c in classes)
    return True


@pytest.mark.parametrize("page", ["method", "migration"])
def test_settings_exist(page):
    """Settings that the tables of options name, in the config of the paper's main run."""
    cfg = Config.fromfile(ROOT / "configs/mal/mal_vit-base-mae_8xb4-10e_coco.py")
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    parts = "model|optim_wrapper|train_dataloader|test_dataloader|test_evaluator|train_cfg"
    names = re.findall(rf"`((?:{parts}|param_scheduler)\.[\w.]+)(?:=[^`]*)?`", text)
    if page == "migration":  # the names of TAO's options stand on the left
        rows = re.findall(r"^\|.*?\|.*?\|(.*)\|$", text, re.MULTILINE)
        names = [name for name in names if any(f"`{name}" in row for row in rows)]
    assert len(names) >= 10
    # MMEngine takes these two before it builds the wrapper.
    taken = ("optim_wrapper.constructor", "optim_wrapper.paramwise_cfg")
    names = [name for name in names if name not in taken]
    assert [name for name in names if not is_setting(cfg, name)] == []
