"""Programs of `torch.export` from elsewhere: what opening one would run is found before it is opened."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inception_v4.inference.sessions import RUNTIMES, ExportedFileError
from inception_v4.weights.files.pt2 import what_would_run

EXAMPLES = "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
PROGRAM = "models/model.json"

Changes = dict[str, Callable[[bytes], bytes]]


class Small(nn.Module):
    """The operators of the network that is exported, without its size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(8, 2)

    def forward(self, image: Tensor) -> Tensor:
        maps = torch.relu_(self.conv(image))
        maps = torch.cat([maps, maps], 1)
        return self.head(torch.max_pool2d(maps, maps.shape[-1]).squeeze((2, 3))).softmax(1)


@pytest.fixture(scope="module")
def sound(module_folder: Callable[[str], Path]) -> Path:
    """What this project writes, of a small network."""
    path = module_folder("pt2") / "sound.pt2"
    shapes = {"image": {0: torch.export.Dim("batch")}}
    program = torch.export.export(Small().eval(), (torch.rand(2, 3, 5, 5),), dynamic_shapes=shapes)
    torch.export.save(program, str(path), extra_files={"inception_v4.json": "{}"})
    return path


class Trap:
    """Pickles to a call of `os.mkdir`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def altered(sound: Path, path: Path, changes: Changes) -> Path:
    """A copy with parts of it changed or, of those that it lacks, added."""
    with zipfile.ZipFile(sound) as old, zipfile.ZipFile(path, "w") as new:
        root = old.namelist()[0].split("/")[0]
        held = {name.removeprefix(f"{root}/"): old.read(name) for name in old.namelist()}
        for name in held | changes:
            content = held.get(name, b"")
            new.writestr(f"altered/{name}", changes[name](content) if name in changes else content)
    return path


def in_json(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        value = json.loads(content)
        change(value)
        return json.dumps(value).encode()

    return changed


def first_node(program: Any) -> Any:
    return program["graph_module"]["graph"]["nodes"][0]


def a_size(program: Any) -> Any:
    """The one of an input that is a symbol."""
    return program["graph_module"]["graph"]["tensor_values"]["image"]["sizes"][0]["as_expr"]


def a_call(trap: Path) -> str:
    return f"__import__('os').mkdir('{trap}')"


def pickled_weight(sound: Path, trap: Path) -> Changes:
    def change(table: Any) -> None:
        name, entry = next(iter(table["config"].items()))
        table["config"][name] = entry | {"use_pickle": True, "path_name": "weight_99"}

    return {WEIGHTS: in_json(change), "data/weights/weight_99": lambda _: saved(Trap(trap))}


def opaque_constant(sound: Path, trap: Path) -> Changes:
    with zipfile.ZipFile(sound) as file:
        weight = next(iter(json.loads(file.read(f"sound/{WEIGHTS}"))["config"].values()))
    content = pickle.dumps(Trap(trap))

    def change(table: Any) -> None:
        table["config"]["x"] = weight | {"path_name": "opaque_obj_0"}

    padded = content + bytes(-len(content) % 4)  # as long as some number of float32
    return {CONSTANTS: in_json(change), "data/constants/opaque_obj_0": lambda _: padded}


RUN_AT_ONCE: dict[str, Callable[[Path, Path], Changes]] = {
    "example inputs": lambda sound, trap: {EXAMPLES: lambda _: saved(((Trap(trap),), {}))},
    "weights of older versions": lambda sound, trap: {"data/weights/model.pt": lambda _: saved({"x": Trap(trap)})},
    "a weight": pickled_weight,
    "a constant": opaque_constant,
    "a size": lambda sound, trap: {PROGRAM: in_json(lambda program: a_size(program).update(expr_str=a_call(trap)))},
}
"""What PyTorch runs while it opens the file."""


def opened_by_pytorch(path: Path) -> None:
    with warnings.catch_warnings(), suppress(Exception):  # what was run is no tensor
        warnings.simplefilter("ignore")
        torch.export.load(str(path))


@pytest.mark.parametrize("kind", RUN_AT_ONCE)
def test_what_pytorch_would_run_is_refused_before_it_is_opened(sound: Path, tmp_path: Path, kind: str) -> None:
    trap = tmp_path / "executed"
    path = altered(sound, tmp_path / "evil.pt2", RUN_AT_ONCE[kind](sound, trap))
    with pytest.raises(ExportedFileError, match=r"evil\.pt2 is refused, because opening it could run code") as error:
        RUNTIMES["pt2"].open(path, "cpu")
    assert not trap.exists() and "\n" not in str(error.value)
    opened_by_pytorch(path)
    assert trap.exists(), "the negative control: PyTorch alone would have run it"


def test_files_of_older_versions_are_refused(sound: Path, tmp_path: Path) -> None:
    trap, path = tmp_path / "executed", tmp_path / "old.pt2"
    with zipfile.ZipFile(sound) as file, zipfile.ZipFile(path, "w") as old:
        program = file.read(f"sound/{PROGRAM}")
        version = json.loads(program)["schema_version"]
        old.writestr("version", f"{version['major']}.{version['minor']}")
        old.writestr("serialized_exported_program.json", program)
        for name in ("constants", "state_dict", "example_inputs"):
            old.writestr(f"serialized_{name}.pt", saved({"x": Trap(trap)}))
    with pytest.raises(ExportedFileError, match=r"in the format of PyTorch 2\.7, whose parts are unpickled"):
        RUNTIMES["pt2"].open(path, "cpu")
    assert not trap.exists()
    opened_by_pytorch(path)
    assert trap.exists(), "the negative control"


NOT_PLAIN: dict[str, tuple[str, Callable[[Any], object]]] = {
    "guards": ("guards_code is 'f()'", lambda program: program.update(guards_code=["L['image'].size()[0] > 1", "f()"])),
    "another function": (
        "target is 'torch.serialization.os.system'",
        lambda program: first_node(program).update(target="torch.serialization.os.system"),
    ),
    "an operator that writes files": (
        "target is 'torch.ops.aten.from_file.default'",
        lambda program: first_node(program).update(target="torch.ops.aten.from_file.default"),
    ),
    "a list of sizes": ("expr_str is 'f()'", lambda program: a_size(program).update(expr_str=["f()"])),
    "a name": ('name is "x = open', lambda program: first_node(program).update(name="x = open('y', 'w'); z")),
    "a name in a table": (
        "a name is 'image;",
        lambda program: program["graph_module"]["graph"]["tensor_values"].update({"image; f()": {}}),
    ),
    "a module to import": (
        "in_spec is ",
        lambda program: program["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec='[1, {"type": "builtins.dict", "context": "{\\"__enum__\\": 1}", "children_spec": []}]'
        ),
    ),
    "arguments called remarks": (
        "target is 'math.sqrt'",
        lambda program: first_node(program)["inputs"].append(
            {"name": "x", "arg": {"as_string_to_argument": {"metadata": {"as_graph": {"target": "math.sqrt"}}}}}
        ),
    ),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_text_that_could_be_code_is_found(sound: Path, tmp_path: Path, kind: str) -> None:
    message, change = NOT_PLAIN[kind]
    assert message in what_would_run(altered(sound, tmp_path / "evil.pt2", {PROGRAM: in_json(change)}))


@pytest.mark.parametrize(
    ("examples", "plain"),
    [
        (((torch.ones(1),), {}), True),
        (((torch.ones(1),), {'"+f()+"': torch.ones(1)}), False),
        ((({'"+f()+"': torch.ones(1)},), {}), False),
        ([torch.ones(1)], False),
    ],
)
def test_example_inputs_have_no_names(sound: Path, tmp_path: Path, examples: object, plain: bool) -> None:
    path = altered(sound, tmp_path / "a.pt2", {EXAMPLES: lambda _: saved(examples)})
    assert bool(what_would_run(path)) is not plain


def test_code_and_programs_beside_the_one_are_found(sound: Path, tmp_path: Path) -> None:
    path = altered(sound, tmp_path / "a.pt2", {"data/aotinductor/model/x.so": lambda _: b"x"})
    assert what_would_run(path) == "it holds compiled code besides the program"
    path = altered(sound, tmp_path / "b.pt2", {"models/other.json": lambda _: b"{}"})
    assert "'models/other.json'" in what_would_run(path)


def test_what_this_project_writes_is_opened(sound: Path, tmp_path: Path) -> None:
    assert what_would_run(sound) == ""
    copy = altered(sound, tmp_path / "copy.pt2", {})
    images = torch.rand(3, 3, 5, 5)
    outputs = [RUNTIMES["pt2"].open(path, "cpu").run(images) for path in (sound, copy)]
    assert torch.equal(*outputs) and outputs[0].shape == (3, 2)


@pytest.mark.parametrize("part", [0.001, 0.5, 0.99])
def test_damaged_files_are_named(sound: Path, tmp_path: Path, part: float) -> None:
    content = sound.read_bytes()
    (tmp_path / "cut.pt2").write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ExportedFileError, match=r"cut\.pt2 cannot be opened .*copy it again"):
        RUNTIMES["pt2"].open(tmp_path / "cut.pt2", "cpu")
